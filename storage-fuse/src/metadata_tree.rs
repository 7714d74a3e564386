//! An image index written out as a tree of files without content.
//!
//! Each regular file is an empty sparse file of the right length whose extended attributes tell the
//! overlay file system where the content is (`user.overlay.metacopy`, `user.overlay.redirect`, see
//! Documentation/filesystems/overlayfs.rst, "Metadata only copy up" and "Data-only lower layers").
//! Empty files are plain. Devices are left out: an unprivileged login cannot make them.
//!
//! The order of steps matters: `chown` clears set-ID bits and capabilities, writing to or resizing a
//! file may too, and every step sets the times. So: owner, length, mode, attributes, times. A
//! directory's own attributes come after its children. Everything is done through descriptors of the
//! tree itself; no name is resolved twice but those of hard links.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::index_file::{Body, Inode, InodeKind};
use crate::store::StoreError;

/// Overlay's own attributes of a tree mounted with `userxattr`. What an image has of these is not
/// presented: it would steer the overlay.
const OVERLAY_PREFIX: &[u8] = b"user.overlay.";

/// Fills the empty directory `destination` with the image's tree; `single_id` gives everything to
/// ID 0. `path` is the destination's name in errors.
pub(crate) fn build(
    body: &Body,
    destination: BorrowedFd<'_>,
    single_id: bool,
    path: &Path,
) -> Result<(), StoreError> {
    let mut builder = Builder {
        body,
        root: destination,
        single_id,
        links: HashMap::new(),
        here: Vec::new(),
        visited: 0,
        path,
    };
    builder.directory(destination, &body.inode(0)?, 0)
}

struct Builder<'a> {
    body: &'a Body,
    root: BorrowedFd<'a>,
    single_id: bool,
    /// Where inodes with several names were made first, relative to the root.
    links: HashMap<u32, Vec<u8>>,
    /// The directory being filled, relative to the root, with a slash at the end unless it is it.
    here: Vec<u8>,
    visited: usize,
    path: &'a Path,
}

impl Builder<'_> {
    fn directory(
        &mut self,
        fd: BorrowedFd<'_>,
        directory: &Inode<'_>,
        depth: usize,
    ) -> Result<(), StoreError> {
        let body = self.body;
        for child in body.children(directory) {
            let (name, inode) = child?;
            self.visited += 1;
            body.check_progress(depth, self.visited)?;
            self.child(fd, name, &inode, depth)?;
        }
        self.owner_by_fd(fd, directory)
            .and_then(|()| rustix::fs::fchmod(fd, mode(directory)))
            .and_then(|()| self.xattrs(fd, directory))
            .and_then(|()| rustix::fs::futimens(fd, &times(directory)))
            .map_err(|errno| self.error(errno, b"", directory))
    }

    fn child(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        inode: &Inode<'_>,
        depth: usize,
    ) -> Result<(), StoreError> {
        if matches!(inode.kind, InodeKind::Device) {
            return Ok(());
        }
        if inode.links > 1 && !matches!(inode.kind, InodeKind::Directory(..)) {
            if let Some(first) = self.links.get(&inode.number) {
                return rustix::fs::linkat(
                    self.root,
                    first.as_slice(),
                    directory,
                    name,
                    AtFlags::empty(),
                )
                .map_err(|errno| self.error(errno, name, inode));
            }
            let mut path = self.here.clone();
            path.extend_from_slice(name);
            self.links.insert(inode.number, path);
        }
        let result = match inode.kind {
            InodeKind::File(size, object) => self.file(directory, name, inode, size, object),
            InodeKind::Directory(..) => {
                let fd = make_directory(directory, name)
                    .map_err(|errno| self.error(errno, name, inode))?;
                let length = self.here.len();
                self.here.extend_from_slice(name);
                self.here.push(b'/');
                self.directory(fd.as_fd(), inode, depth + 1)?;
                self.here.truncate(length);
                Ok(())
            }
            InodeKind::Symlink(target) => rustix::fs::symlinkat(target, directory, name)
                .and_then(|()| self.owner_by_name(directory, name, inode))
                .and_then(|()| self.times_by_name(directory, name, inode)),
            InodeKind::Fifo => {
                rustix::fs::mknodat(directory, name, FileType::Fifo, Mode::RUSR, 0)
                    .and_then(|()| self.owner_by_name(directory, name, inode))
                    .and_then(|()| {
                        // Nobody else can have put a link there: the tree is still private.
                        rustix::fs::chmodat(directory, name, mode(inode), AtFlags::empty())
                    })
                    .and_then(|()| self.times_by_name(directory, name, inode))
            }
            InodeKind::Device => return Ok(()),
        };
        result.map_err(|errno| self.error(errno, name, inode))
    }

    fn file(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        inode: &Inode<'_>,
        size: u64,
        object: Option<crate::object::ObjectId>,
    ) -> Result<(), Errno> {
        let fd = rustix::fs::openat(
            directory,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?;
        self.owner_by_fd(fd.as_fd(), inode)?;
        if let Some(object) = object {
            rustix::fs::ftruncate(&fd, size)?;
            let redirect = object.redirect();
            set_xattr(&fd, "user.overlay.metacopy", b"")?;
            set_xattr(&fd, "user.overlay.redirect", redirect.as_bytes())?;
        }
        rustix::fs::fchmod(&fd, mode(inode))?;
        self.xattrs(fd.as_fd(), inode)?;
        rustix::fs::futimens(&fd, &times(inode))
    }

    /// Sets what containers may see of an image's extended attributes: `user.*` and, on files,
    /// capabilities. The rest (`trusted.*`, labels of security modules) is not an unprivileged
    /// login's to set, and stays in the index.
    fn xattrs(&self, fd: BorrowedFd<'_>, inode: &Inode<'_>) -> Result<(), Errno> {
        let is_file = matches!(inode.kind, InodeKind::File(..));
        // Damage was ruled out by the checksum; what cannot be decoded is not there.
        for (name, value) in self.body.xattrs(inode).map_err(|_| Errno::BADMSG)? {
            let shown = if name == b"security.capability" {
                is_file
            } else {
                name.starts_with(b"user.") && !name.starts_with(OVERLAY_PREFIX)
            };
            if shown {
                rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())?;
            }
        }
        Ok(())
    }

    /// `None` when the inode belongs to 0:0, as everything does that we make.
    fn owner(&self, inode: &Inode<'_>) -> Option<(Option<Uid>, Option<Gid>)> {
        let owned = !self.single_id && (inode.uid, inode.gid) != (0, 0);
        owned.then(|| {
            (
                Some(Uid::from_raw(inode.uid)),
                Some(Gid::from_raw(inode.gid)),
            )
        })
    }

    fn owner_by_fd(&self, fd: BorrowedFd<'_>, inode: &Inode<'_>) -> Result<(), Errno> {
        match self.owner(inode) {
            Some((uid, gid)) => rustix::fs::fchown(fd, uid, gid).map_err(unmapped),
            None => Ok(()),
        }
    }

    fn owner_by_name(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        inode: &Inode<'_>,
    ) -> Result<(), Errno> {
        match self.owner(inode) {
            Some((uid, gid)) => {
                rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(unmapped)
            }
            None => Ok(()),
        }
    }

    fn times_by_name(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        inode: &Inode<'_>,
    ) -> Result<(), Errno> {
        rustix::fs::utimensat(directory, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn error(&self, errno: Errno, name: &[u8], inode: &Inode<'_>) -> StoreError {
        let mut inside = self.here.clone();
        inside.extend_from_slice(name);
        let inside = PathBuf::from(OsStr::from_bytes(&inside));
        match errno {
            Errno::OVERFLOW => StoreError::IdOutOfRange(format!(
                "/{} of the image belongs to UID {} and GID {}, which is beyond this login's \
                 subordinate IDs ({}); ask the administrator for a larger range in /etc/subuid and \
                 /etc/subgid (`usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST LOGIN`)",
                inside.display(),
                inode.uid,
                inode.gid,
                mapped_ids(),
            )),
            Errno::NOSPC => StoreError::Unsupported(format!(
                "no room in memory for the metadata of this image's {} files ({}): remove images \
                 that are not used (`selkie rmi`, `selkie system prune`)",
                self.visited,
                self.path.display(),
            )),
            errno => StoreError::Io {
                attempt: "present",
                path: self.path.join(inside),
                source: errno.into(),
            },
        }
    }
}

fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// `chown` says `EINVAL` of IDs without a mapping, which other steps say of other things.
fn unmapped(errno: Errno) -> Errno {
    match errno {
        Errno::INVAL => Errno::OVERFLOW,
        other => other,
    }
}

fn set_xattr(fd: &OwnedFd, name: &str, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
}

fn mode(inode: &Inode<'_>) -> Mode {
    Mode::from_raw_mode(inode.mode.into())
}

fn times(inode: &Inode<'_>) -> Timestamps {
    let time = Timespec {
        tv_sec: inode.mtime,
        tv_nsec: inode.mtime_nsec.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// How many IDs this user namespace maps, for an error.
fn mapped_ids() -> String {
    let count = |path| -> u64 {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
            .sum()
    };
    format!(
        "{} UIDs and {} GIDs are mapped",
        count("/proc/self/uid_map"),
        count("/proc/self/gid_map")
    )
}
