//! Removing directory trees that containers or broken runs left behind.
//!
//! # Theory of operation
//!
//! The tree may be hostile: as deep as its maker pleased, full of symbolic links, with modes of 000
//! (no obstacle: the caller is root of the user namespace that owns it), even changing meanwhile.
//! Every step is relative to an open directory and follows no link (`RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS`), nor enters a mount (`RESOLVE_NO_XDEV`). Depth costs a name in a vector,
//! not a stack frame, and no more than [`OPEN_DIRECTORIES`] descriptors: directories further up are
//! closed and found again through `..`, whose identity is compared with what it was on the way down.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom};
use rustix::io::Errno;

use crate::store::{IoContext, StoreError};

/// Directories kept open at once.
const OPEN_DIRECTORIES: usize = 64;
/// How often a directory is read again because something new has appeared in it.
const PATIENCE: u32 = 100;

/// A directory on the way down.
struct Level {
    name: CString,
    /// Device and inode.
    identity: (u64, u64),
    /// `None` while too many below it are open.
    fd: Option<OwnedFd>,
    passes: u32,
}

/// Removes the tree at `path`. Does nothing when there is none.
pub fn remove_tree(path: &Path) -> Result<(), StoreError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL).on("remove", || path.to_owned());
    };
    let parent = match rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno).on("remove", || path.to_owned()),
    };
    remove_tree_at(parent.as_fd(), name.as_bytes(), path)
}

/// Removes the tree called `name` in `parent`; `path` is its name in errors.
pub(crate) fn remove_tree_at(
    parent: BorrowedFd<'_>,
    name: &[u8],
    path: &Path,
) -> Result<(), StoreError> {
    let name = CString::new(name).map_err(|_| Errno::INVAL);
    let name = name.on("remove", || path.to_owned())?;
    match rustix::fs::unlinkat(parent, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux answers EISDIR, POSIX asks for EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno).on("remove", || path.to_owned()),
    }
    let mut levels: Vec<Level> = Vec::new();
    descend(&mut levels, parent, name, path)?;
    while let Some(level) = levels.last_mut() {
        let Some(directory) = &level.fd else {
            return Err(Errno::BADF).on("remove", || path_of(path, &levels));
        };
        match remove_files(directory.as_fd()) {
            Ok(Some(subdirectory)) => {
                let directory = directory
                    .try_clone()
                    .on("remove", || path_of(path, &levels))?;
                descend(&mut levels, directory.as_fd(), subdirectory, path)?;
            }
            Ok(None) => ascend(&mut levels, parent, path)?,
            Err((errno, name)) => {
                return Err(errno).on("remove", || {
                    path_of(path, &levels).join(std::ffi::OsStr::from_bytes(name.to_bytes()))
                });
            }
        }
    }
    Ok(())
}

fn descend(
    levels: &mut Vec<Level>,
    parent: BorrowedFd<'_>,
    name: CString,
    path: &Path,
) -> Result<(), StoreError> {
    let opened = rustix::fs::openat2(
        parent,
        &name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
    .and_then(|fd| Ok((identity(&fd)?, fd)));
    let (identity, fd) = opened.on("remove", || {
        path_of(path, levels).join(std::ffi::OsStr::from_bytes(name.to_bytes()))
    })?;
    levels.push(Level {
        name,
        identity,
        fd: Some(fd),
        passes: 0,
    });
    // The topmost stays open: above it `..` would leave the tree.
    if levels.len() > OPEN_DIRECTORIES + 1 {
        let far = levels.len() - 1 - OPEN_DIRECTORIES;
        levels[far].fd = None;
    }
    Ok(())
}

/// Removes the emptied last level and goes back to the one above.
fn ascend(levels: &mut Vec<Level>, top: BorrowedFd<'_>, path: &Path) -> Result<(), StoreError> {
    let Some(mut done) = levels.pop() else {
        return Ok(());
    };
    if let Some(above) = levels.last_mut()
        && above.fd.is_none()
        && let Some(below) = &done.fd
    {
        let found = rustix::fs::openat(
            below,
            "..",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .and_then(|fd| Ok((identity(&fd)?, fd)));
        match found {
            Ok((identity, fd)) if identity == above.identity => above.fd = Some(fd),
            Ok(_) => {
                return Err(Errno::STALE).on("remove (its directory was moved meanwhile)", || {
                    path_of(path, levels)
                });
            }
            Err(errno) => return Err(errno).on("remove", || path_of(path, levels)),
        }
    }
    let directory = match levels.last() {
        Some(above) => above.fd.as_ref().map(AsFd::as_fd),
        None => Some(top),
    };
    let Some(directory) = directory else {
        return Err(Errno::BADF).on("remove", || path_of(path, levels));
    };
    match rustix::fs::unlinkat(directory, &done.name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // Somebody still writes to it, or the file system skipped entries while we removed others.
        Err(Errno::NOTEMPTY | Errno::EXIST) if done.passes < PATIENCE => {
            done.passes += 1;
            if let Some(fd) = &done.fd {
                rustix::fs::seek(fd, SeekFrom::Start(0)).on("remove", || path_of(path, levels))?;
            }
            levels.push(done);
            Ok(())
        }
        Err(errno) => Err(errno).on("remove", || {
            path_of(path, levels).join(std::ffi::OsStr::from_bytes(done.name.to_bytes()))
        }),
    }
}

/// Removes what is not a directory, from the current position of the listing on; stops behind the
/// first directory and gives its name. `None` at the end of the listing.
fn remove_files(directory: BorrowedFd<'_>) -> Result<Option<CString>, (Errno, CString)> {
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut listing = RawDir::new(directory, &mut buffer);
    while let Some(entry) = listing.next() {
        let entry = entry.map_err(|errno| (errno, CString::default()))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                // The listing may not know types, or the type has changed.
                Err(Errno::ISDIR | Errno::PERM) if is_directory(directory, name) => {}
                Err(errno) => return Err((errno, name.to_owned())),
            }
        }
        // What was read ahead is lost with the buffer: go on behind this entry next time.
        let name = name.to_owned();
        let position = SeekFrom::Start(entry.next_entry_cookie());
        return match rustix::fs::seek(directory, position) {
            Ok(_) => Ok(Some(name)),
            Err(errno) => Err((errno, name)),
        };
    }
    Ok(None)
}

fn is_directory(directory: BorrowedFd<'_>, name: &CStr) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn identity(fd: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn path_of(path: &Path, levels: &[Level]) -> PathBuf {
    // The first level is `path` itself.
    levels
        .iter()
        .skip(1)
        .fold(path.to_owned(), |mut path, level| {
            path.push(std::ffi::OsStr::from_bytes(level.name.to_bytes()));
            path
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_removed_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let keep = directory.path().join("keep");
        std::fs::create_dir(&keep).unwrap();
        std::fs::write(keep.join("file"), "x").unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&keep, tree.join("a/link")).unwrap();
        std::fs::write(tree.join("a/b/c"), "").unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(keep.join("file").exists());
        remove_tree(&tree).unwrap();
        remove_tree(&tree.join("nowhere")).unwrap();
    }

    #[test]
    fn trees_deeper_than_any_path_go() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut fd = rustix::fs::open(&tree, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for depth in 0..5000 {
            rustix::fs::mkdirat(&fd, "some-directory", Mode::RWXU).unwrap();
            if depth % 100 == 0 {
                rustix::fs::mkdirat(&fd, "another", Mode::RWXU).unwrap();
            }
            fd = rustix::fs::openat(&fd, "some-directory", OFlags::DIRECTORY, Mode::empty())
                .unwrap();
        }
        drop(fd);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn wide_directories_go() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        for number in 0..3000 {
            std::fs::write(tree.join(format!("file-with-a-longer-name-{number}")), "").unwrap();
        }
        for number in 0..300 {
            std::fs::create_dir(tree.join(format!("directory-{number}"))).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
