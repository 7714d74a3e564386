//! A volume's directory: made for its first user, filled with what the image has at that path.
//!
//! `volumes/NAME/` holds `_data`, which containers see, and two marks: `fresh` from the making of the
//! volume until a container has used it, and `filling` while the image's content is being copied in.
//! A crash while copying leaves `filling`, and the next user throws the half copy away and starts
//! again. What a person put into a fresh volume is kept and nothing copied over it. The lock on
//! `volumes/NAME/` keeps two first users apart.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use selkie_storage::remove_tree;
use selkie_userns::IdMaps;

use crate::EngineConfig;
use crate::database::make_private_dir;
use crate::error::{Error, Result};
use crate::layout::open_dir;

const FRESH: &str = "fresh";
const FILLING: &str = "filling";
const DATA: &str = "_data";

/// Copying goes no deeper: the kernel's own limit for paths allows no more in one call.
const DEEPEST: usize = 2000;

/// A volume whose first user is about to start; locked until dropped.
#[derive(Debug)]
pub(crate) struct FirstUse {
    dir: OwnedFd,
    path: PathBuf,
    /// Where it is mounted.
    pub destination: String,
}

/// Makes a volume's directory, to be used first by whoever comes.
///
/// # Errors
/// The file system refuses.
pub(crate) fn make(paths: &EngineConfig, name: &str) -> Result<()> {
    let (dir, path) = open_locked(paths, name)?;
    make_data(dir.as_fd(), &path, Uid::ROOT, Gid::ROOT)
}

/// Makes sure that a volume's directory is there and, for its first user, owned by the container's
/// root; `Some` when the image's content is still to be copied in.
///
/// # Errors
/// The file system refuses.
pub(crate) fn prepare(
    paths: &EngineConfig,
    name: &str,
    destination: &str,
    maps: &IdMaps,
) -> Result<Option<FirstUse>> {
    let (dir, path) = open_locked(paths, name)?;
    if exists(dir.as_fd(), FILLING) {
        remove_tree(&path.join(DATA))?;
        remove(dir.as_fd(), FILLING).map_err(|errno| failed(&path, errno))?;
    }
    let owner = Uid::from_raw(maps.uid.to_outside(0).unwrap_or(0));
    let group = Gid::from_raw(maps.gid.to_outside(0).unwrap_or(0));
    if !exists(dir.as_fd(), DATA) {
        make_data(dir.as_fd(), &path, owner, group)?;
    } else if exists(dir.as_fd(), FRESH) {
        let data = open_data(dir.as_fd()).map_err(|errno| failed(&path, errno))?;
        rustix::fs::fchown(&data, Some(owner), Some(group))
            .map_err(|errno| failed(&path, errno))?;
    } else {
        return Ok(None);
    }
    Ok(Some(FirstUse {
        dir,
        path,
        destination: destination.to_owned(),
    }))
}

impl FirstUse {
    /// Ends the first use without copying.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn done(self) -> Result<()> {
        remove(self.dir.as_fd(), FRESH).map_err(|errno| failed(&self.path, errno))
    }

    /// Copies what `root`, the container's root file system, has at the volume's destination, owners
    /// included, unless somebody has already put something into the volume.
    ///
    /// # Errors
    /// The file system refuses or is full.
    pub(crate) fn fill(self, root: BorrowedFd<'_>) -> Result<()> {
        self.copy(root).map_err(|errno| failed(&self.path, errno))?;
        self.done()
    }

    fn copy(&self, root: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let relative = self.destination.trim_start_matches('/');
        let source = match rustix::fs::openat2(root, relative, how, Mode::empty(), resolve) {
            Ok(source) => source,
            // The image has nothing there, or no directory.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let data = open_data(self.dir.as_fd())?;
        if !is_empty(data.as_fd())? {
            return Ok(());
        }
        rustix::fs::openat(
            &self.dir,
            FILLING,
            OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::RUSR | Mode::WUSR,
        )?;
        copy_directory(source, data)?;
        remove(self.dir.as_fd(), FILLING)
    }
}

fn failed(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::machine(format!("make volume {}", path.display()), cause)
}

fn open_locked(paths: &EngineConfig, name: &str) -> Result<(OwnedFd, PathBuf)> {
    let path = paths.volumes_dir().join(name);
    make_private_dir(&path)?;
    let dir = open_dir(&path)?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&dir, FlockOperation::LockExclusive))
        .map_err(|errno| Error::machine(format!("lock volume {name}"), errno))?;
    Ok((dir, path))
}

/// The mark first: a directory without it is one that has been used.
fn make_data(dir: BorrowedFd<'_>, path: &Path, owner: Uid, group: Gid) -> Result<()> {
    let make = || {
        if exists(dir, DATA) {
            return Ok(());
        }
        rustix::fs::openat(
            dir,
            FRESH,
            OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::RUSR | Mode::WUSR,
        )?;
        rustix::fs::mkdirat(dir, DATA, Mode::RWXU)?;
        let data = open_data(dir)?;
        rustix::fs::fchown(&data, Some(owner), Some(group))?;
        rustix::fs::fchmod(&data, Mode::from_raw_mode(0o755))
    };
    make().map_err(|errno| failed(path, errno))
}

fn exists(dir: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn remove(dir: BorrowedFd<'_>, name: &str) -> std::result::Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn open_data(dir: BorrowedFd<'_>) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::openat(
        dir,
        DATA,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn is_empty(dir: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
    Ok(names(dir)?.is_empty())
}

fn names(dir: BorrowedFd<'_>) -> std::result::Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// One directory whose entries are being copied.
struct Level {
    source: OwnedFd,
    target: OwnedFd,
    left: Vec<CString>,
    stat: Stat,
}

/// Copies everything below `source` into `target`, then makes `target` like `source` itself. Links
/// are copied, never followed; devices are left out, as no login can make one.
fn copy_directory(source: OwnedFd, target: OwnedFd) -> std::result::Result<(), Errno> {
    let mut hard_links: std::collections::HashMap<(u64, u64), OwnedFd> = Default::default();
    let mut levels = vec![level(source, target)?];
    while let Some(current) = levels.last_mut() {
        let Some(name) = current.left.pop() else {
            copy_attributes(
                current.source.as_fd(),
                current.target.as_fd(),
                &current.stat,
            )?;
            levels.pop();
            continue;
        };
        let stat = rustix::fs::statat(&current.source, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if levels.len() >= DEEPEST {
                return Err(Errno::NAMETOOLONG);
            }
            let current = &levels[levels.len() - 1];
            rustix::fs::mkdirat(&current.target, &name, Mode::RWXU)?;
            let below = level(
                open_below(current.source.as_fd(), &name)?,
                open_below(current.target.as_fd(), &name)?,
            )?;
            levels.push(below);
            continue;
        }
        if stat.st_nlink > 1
            && let Some(first) = hard_links.get(&(stat.st_dev, stat.st_ino))
        {
            link_again(first, current.target.as_fd(), &name)?;
            continue;
        }
        if let Some(file) = copy_entry(current, &name, &stat)?
            && stat.st_nlink > 1
        {
            hard_links.insert((stat.st_dev, stat.st_ino), file);
        }
    }
    Ok(())
}

fn level(source: OwnedFd, target: OwnedFd) -> std::result::Result<Level, Errno> {
    Ok(Level {
        left: names(source.as_fd())?,
        stat: rustix::fs::fstat(&source)?,
        source,
        target,
    })
}

fn open_below(dir: BorrowedFd<'_>, name: &CStr) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Through `/proc/self/fd`, because `AT_EMPTY_PATH` needs a capability over the whole host.
fn link_again(
    first: &OwnedFd,
    target: BorrowedFd<'_>,
    name: &CStr,
) -> std::result::Result<(), Errno> {
    use std::os::fd::AsRawFd;
    rustix::fs::linkat(
        rustix::fs::CWD,
        format!("/proc/self/fd/{}", first.as_raw_fd()),
        target,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )
}

/// Copies one entry that is no directory; gives a regular file back.
fn copy_entry(
    level: &Level,
    name: &CStr,
    stat: &Stat,
) -> std::result::Result<Option<OwnedFd>, Errno> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = rustix::fs::openat(&level.source, name, read, Mode::empty())?;
            let write =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = rustix::fs::openat(&level.target, name, write, Mode::RUSR)?;
            copy_bytes(source.as_fd(), target.as_fd())?;
            copy_attributes(source.as_fd(), target.as_fd(), stat)?;
            Ok(Some(target))
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(&level.source, name, Vec::new())?;
            rustix::fs::symlinkat(&link, &level.target, name)?;
            chown_entry(level, name, stat)?;
            Ok(None)
        }
        FileType::Fifo | FileType::Socket => {
            let kind = FileType::from_raw_mode(stat.st_mode);
            let mode = Mode::from_raw_mode(stat.st_mode);
            rustix::fs::mknodat(&level.target, name, kind, mode, 0)?;
            chown_entry(level, name, stat)?;
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn chown_entry(level: &Level, name: &CStr, stat: &Stat) -> std::result::Result<(), Errno> {
    rustix::fs::chownat(
        &level.target,
        name,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

fn copy_bytes(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let mut can_copy_range = true;
    let mut buffer = Vec::new();
    loop {
        if can_copy_range {
            match rustix::fs::copy_file_range(source, None, target, None, 1 << 30) {
                Ok(0) => return Ok(()),
                Ok(_) => continue,
                Err(Errno::INTR) => continue,
                // Between these two file systems it does not work.
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    can_copy_range = false;
                    buffer = vec![0u8; 128 * 1024];
                }
                Err(errno) => return Err(errno),
            }
        }
        let length = rustix::io::retry_on_intr(|| rustix::io::read(source, &mut buffer))?;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let count = rustix::io::retry_on_intr(|| rustix::io::write(target, rest))?;
            rest = &rest[count..];
        }
    }
}

/// Owner, then mode, then extended attributes, then times: each clears something of the next.
fn copy_attributes(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    stat: &Stat,
) -> std::result::Result<(), Errno> {
    rustix::fs::fchown(
        target,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    copy_xattrs(source, target)?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec.try_into().unwrap_or(0),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0),
        },
    };
    rustix::fs::futimens(target, &times)
}

/// What the volume's file system does not keep is left out, as `cp --preserve` does.
fn copy_xattrs(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let mut list = vec![0u8; 64 * 1024];
    let length = match rustix::fs::flistxattr(source, &mut list) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut value = vec![0u8; 64 * 1024];
    for name in list[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let size = match rustix::fs::fgetxattr(source, name, &mut value) {
            Ok(size) => size,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(errno) => return Err(errno),
        };
        match rustix::fs::fsetxattr(target, name, &value[..size], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::paths;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// The caller's own IDs as "container root", so that this works for any tester.
    fn own_maps() -> IdMaps {
        let single = |id| selkie_userns::IdMap::single(0, id, 1).unwrap();
        IdMaps {
            uid: single(rustix::process::getuid().as_raw()),
            gid: single(rustix::process::getgid().as_raw()),
        }
    }

    fn image(temp: &Path) -> std::fs::File {
        let root = temp.join("root");
        let there = root.join("srv/data");
        std::fs::create_dir_all(there.join("sub")).unwrap();
        std::fs::write(there.join("file"), "content").unwrap();
        std::fs::set_permissions(there.join("file"), std::fs::Permissions::from_mode(0o4711))
            .unwrap();
        std::fs::hard_link(there.join("file"), there.join("sub/again")).unwrap();
        symlink("/etc/passwd", there.join("link")).unwrap();
        std::fs::set_permissions(&there, std::fs::Permissions::from_mode(0o1750)).unwrap();
        // An absolute link must be followed inside the image, not on the host.
        symlink("/srv/data", root.join("alias")).unwrap();
        std::fs::File::open(root).unwrap()
    }

    #[test]
    fn the_first_user_gets_the_images_content() {
        let temp = tempfile::tempdir().unwrap();
        let (paths, root) = (paths(temp.path()), image(temp.path()));
        let first = prepare(&paths, "v", "/alias", &own_maps())
            .unwrap()
            .unwrap();
        first.fill(root.as_fd()).unwrap();
        let data = paths.volume_data("v");
        let file = std::fs::metadata(data.join("file")).unwrap();
        assert_eq!(file.mode() & 0o7777, 0o4711);
        assert_eq!(
            file.ino(),
            std::fs::metadata(data.join("sub/again")).unwrap().ino()
        );
        assert_eq!(
            std::fs::read_link(data.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(std::fs::metadata(&data).unwrap().mode() & 0o7777, 0o1750);
        assert!(
            prepare(&paths, "v", "/alias", &own_maps())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn half_a_copy_is_thrown_away_and_a_persons_files_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let (paths, root) = (paths(temp.path()), image(temp.path()));
        make(&paths, "v").unwrap();
        let data = paths.volume_data("v");
        std::fs::write(data.join("half"), "").unwrap();
        std::fs::write(paths.volumes_dir().join("v").join(FILLING), "").unwrap();
        let first = prepare(&paths, "v", "/srv/data", &own_maps())
            .unwrap()
            .unwrap();
        first.fill(root.as_fd()).unwrap();
        assert!(!data.join("half").exists() && data.join("file").exists());

        make(&paths, "w").unwrap();
        let data = paths.volume_data("w");
        std::fs::write(data.join("mine"), "").unwrap();
        let first = prepare(&paths, "w", "/srv/data", &own_maps())
            .unwrap()
            .unwrap();
        first.fill(root.as_fd()).unwrap();
        assert!(data.join("mine").exists() && !data.join("file").exists());
        assert!(
            prepare(&paths, "w", "/srv/data", &own_maps())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn nothing_at_that_path_leaves_it_empty() {
        let temp = tempfile::tempdir().unwrap();
        let (paths, root) = (paths(temp.path()), image(temp.path()));
        for (name, path) in [
            ("a", "/none"),
            ("b", "/srv/data/file"),
            ("c", "/../../../etc"),
        ] {
            let first = prepare(&paths, name, path, &own_maps()).unwrap().unwrap();
            first.fill(root.as_fd()).unwrap();
            assert_eq!(
                std::fs::read_dir(paths.volume_data(name)).unwrap().count(),
                0
            );
        }
    }
}
