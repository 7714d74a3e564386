//! Removing directory trees that containers or broken runs left behind.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::store::{IoContext, StoreError};
use crate::tree_walk::{Visitor, walk};

/// Removes the tree at `path`, whoever its files belong to as far as their owners are mapped in the
/// caller's user namespace. Follows no link below `path`, enters no mount. Does nothing when there
/// is no such tree.
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
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // Linux answers EISDIR, POSIX asks for EPERM.
        Err(Errno::ISDIR | Errno::PERM) => walk(parent, name, path, &mut Remover),
        Err(errno) => Err(errno).on("remove", || path.to_owned()),
    }
}

struct Remover;

impl Visitor for Remover {
    const ATTEMPT: &'static str = "remove";

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
    ) -> Result<bool, Errno> {
        if kind == FileType::Directory {
            return Ok(true);
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(false),
            // The listing may not know types, or the type has changed.
            Err(Errno::ISDIR | Errno::PERM) if is_directory(directory, name) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(false),
            // Somebody still writes to it, or the file system skipped entries while we removed
            // others.
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(true),
            Err(errno) => Err(errno),
        }
    }
}

fn is_directory(directory: BorrowedFd<'_>, name: &CStr) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
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
