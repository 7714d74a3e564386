//! Paths inside a container root, resolved by the kernel so that they cannot leave it.
//!
//! The ordinary case is one `openat2(RESOLVE_IN_ROOT)` and allocates nothing. Only where something
//! is missing does [`ensure`] walk the path itself, component by component, because the kernel has
//! no call that creates through symbolic links (an image's `/etc/resolv.conf` is often a link to
//! nowhere).

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, mknodat, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;

/// What is expected, and made when missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// An (empty) file.
    File,
}

/// As many links as the kernel itself follows in one path.
const MAX_LINKS: u32 = 40;

/// Opens `path` (relative to `root`, which it cannot leave) with `flags`, close-on-exec.
pub(crate) fn open(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    loop {
        match openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            // A rename somewhere raced with a `..` in the path; the kernel asks to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// An `O_PATH` descriptor of `path`, which is made (with missing directories above it, mode 0755)
/// when it does not exist. What exists is taken as it is, whatever its kind.
pub(crate) fn ensure(root: BorrowedFd<'_>, path: &CStr, kind: Kind) -> Result<OwnedFd, Errno> {
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => create(root, path, kind),
        result => result,
    }
}

/// True when the descriptor refers to a directory.
pub(crate) fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// Walks `path`, following links by hand, and makes what is missing. Every step opens one
/// component without following it; `..` goes back to a directory already opened, so that nothing
/// a container does meanwhile leads out of `root`.
fn create(root: BorrowedFd<'_>, path: &CStr, kind: Kind) -> Result<OwnedFd, Errno> {
    let mut links = 0;
    let mut todo: VecDeque<Vec<u8>> = components(path.to_bytes());
    let mut above: Vec<OwnedFd> = Vec::new();
    while let Some(name) = todo.pop_front() {
        if name == b".." {
            above.pop();
            continue;
        }
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let here = above.last().map_or(root, |fd| fd.as_fd());
        let is_last = todo.is_empty();
        let entry = match statat(here, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) if is_last && kind == Kind::File => {
                match mknodat(
                    here,
                    &name,
                    FileType::RegularFile,
                    Mode::from_raw_mode(0o644),
                    0,
                ) {
                    Ok(()) | Err(Errno::EXIST) => FileType::RegularFile,
                    Err(errno) => return Err(errno),
                }
            }
            Err(Errno::NOENT) => {
                match mkdirat(here, &name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                FileType::Directory
            }
            Err(errno) => return Err(errno),
        };
        if entry == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = readlinkat(here, &name, Vec::new())?;
            let target = target.to_bytes();
            if target.first() == Some(&b'/') {
                above.clear();
            }
            let mut rest = components(target);
            rest.append(&mut todo);
            todo = rest;
            continue;
        }
        // Through openat2 for one component, so that a mount on it is seen and a link that has
        // taken its place meanwhile is not followed.
        let fd = openat(
            here,
            &name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        if FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Symlink {
            return Err(Errno::LOOP);
        }
        above.push(fd);
    }
    match above.pop() {
        Some(fd) => Ok(fd),
        None => open(root, c".", OFlags::PATH),
    }
}

fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, std::fs::File) {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        (dir, fd)
    }

    #[test]
    fn missing_mount_points_are_made_inside_the_root() {
        let (dir, fd) = root();
        ensure(fd.as_fd(), c"a/b/c", Kind::Directory).unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        ensure(fd.as_fd(), c"etc/hosts", Kind::File).unwrap();
        assert!(dir.path().join("etc/hosts").is_file());
    }

    #[test]
    fn links_to_nowhere_are_followed_within_the_root() {
        let (dir, fd) = root();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        symlink(
            "../run/systemd/resolv.conf",
            dir.path().join("etc/resolv.conf"),
        )
        .unwrap();
        symlink("/run", dir.path().join("var")).unwrap();
        ensure(fd.as_fd(), c"etc/resolv.conf", Kind::File).unwrap();
        assert!(dir.path().join("run/systemd/resolv.conf").is_file());
        ensure(fd.as_fd(), c"var/lock/x", Kind::Directory).unwrap();
        assert!(dir.path().join("run/lock/x").is_dir());
    }

    #[test]
    fn links_and_dots_cannot_leave_the_root() {
        let (dir, fd) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("abs")).unwrap();
        symlink("../../../../../../../../etc", dir.path().join("up")).unwrap();
        ensure(fd.as_fd(), c"abs/new", Kind::Directory).unwrap();
        assert!(!outside.path().join("new").exists());
        ensure(fd.as_fd(), c"up/selkie-test", Kind::Directory).unwrap();
        assert!(dir.path().join("etc/selkie-test").is_dir());
        ensure(fd.as_fd(), c"../../x", Kind::Directory).unwrap();
        assert!(dir.path().join("x").is_dir());
    }

    #[test]
    fn loops_end() {
        let (dir, fd) = root();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert_eq!(
            ensure(fd.as_fd(), c"a/x", Kind::Directory).unwrap_err(),
            Errno::LOOP
        );
    }
}
