//! `tmpcopyup`: a tmpfs that starts with what the image has at its place.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid, chownat, fchmod,
    fchown, fstat, futimens, mkdirat, openat, readlinkat, sendfile, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

/// Copies the content of directory `source`, and the directory's own owner, mode and times, into
/// `target`. Devices, sockets and FIFOs are left out. Hard links become separate files.
pub(crate) fn copy_tree(source: OwnedFd, target: BorrowedFd<'_>) -> Result<(), Errno> {
    // A new mount comes as an O_PATH descriptor.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target = openat(target, c".", flags, Mode::empty())?;
    copy_directory(source, target.as_fd(), 0)
}

/// Deeper trees do not belong into a tmpfs, and would exhaust descriptors.
const MAX_DEPTH: u32 = 128;

fn copy_directory(source: OwnedFd, target: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    if depth == MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&source, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(source.as_fd(), name, target, depth)?;
    }
    let stat = fstat(&source)?;
    fchown(
        target,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    fchmod(target, Mode::from_raw_mode(stat.st_mode))?;
    futimens(target, &times(&stat))
}

fn copy_entry(
    source: BorrowedFd<'_>,
    name: &CStr,
    target: BorrowedFd<'_>,
    depth: u32,
) -> Result<(), Errno> {
    let stat = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let owner = (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    );
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(target, name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let from = openat(source, name, flags, Mode::empty())?;
            let to = openat(target, name, flags, Mode::empty())?;
            copy_directory(from, to.as_fd(), depth + 1)
        }
        FileType::RegularFile => {
            let from = openat(
                source,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let to = openat(
                target,
                name,
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
                Mode::RWXU,
            )?;
            while sendfile(&to, &from, None, 1 << 30)? > 0 {}
            // The owner first: changing it clears the set-ID bits.
            fchown(&to, owner.0, owner.1)?;
            fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
            futimens(&to, &times(&stat))
        }
        FileType::Symlink => {
            let content = readlinkat(source, name, Vec::new())?;
            symlinkat(&content, target, name)?;
            chownat(target, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
            utimensat(target, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
        }
        _ => Ok(()),
    }
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}
