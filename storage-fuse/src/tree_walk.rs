//! Walking directory trees that containers or broken runs left behind.
//!
//! # Theory of operation
//!
//! The tree may be hostile: as deep as its maker pleased, full of symbolic links, with modes of 000
//! (no obstacle: the caller is root of the user namespace that owns it), even changing meanwhile.
//! Every step is relative to an open directory and follows no link (`RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS`), nor enters a mount (`RESOLVE_NO_XDEV`). Depth costs a name in a vector,
//! not a stack frame, and no more than [`OPEN_DIRECTORIES`] descriptors: directories further up are
//! closed and found again through `..`, whose identity is compared with what it was on the way down.

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom};
use rustix::io::Errno;

use crate::store::{IoContext, StoreError};

/// Directories kept open at once.
const OPEN_DIRECTORIES: usize = 64;
/// How often a directory is read again because something new has appeared in it.
const PATIENCE: u32 = 100;

/// What a walk does with what it meets.
pub(crate) trait Visitor {
    /// For errors: `remove`, `change the owner of`.
    const ATTEMPT: &'static str;

    /// Called for each name in a directory but `.` and `..`. `kind` may be unknown. True to descend
    /// into it (then it must be a directory).
    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
    ) -> Result<bool, Errno>;

    /// Called when everything in a directory has been visited. True to list it again.
    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno>;
}

/// A directory on the way down.
struct Level {
    name: CString,
    /// Device and inode.
    identity: (u64, u64),
    /// `None` while too many below it are open.
    fd: Option<OwnedFd>,
    /// Where to go on in its listing.
    position: u64,
    passes: u32,
}

struct Walk<'w> {
    top: BorrowedFd<'w>,
    path: &'w Path,
    attempt: &'static str,
    levels: Vec<Level>,
}

/// Walks the directory called `name` in `parent` and everything below it; `path` is its name in
/// errors.
pub(crate) fn walk<V: Visitor>(
    parent: BorrowedFd<'_>,
    name: CString,
    path: &Path,
    visitor: &mut V,
) -> Result<(), StoreError> {
    let mut walk = Walk {
        top: parent,
        path,
        attempt: V::ATTEMPT,
        levels: Vec::new(),
    };
    walk.descend(parent, name)?;
    while let Some(level) = walk.levels.last_mut() {
        let Some(directory) = &level.fd else {
            return Err(walk.error(Errno::BADF, None));
        };
        match visit(directory.as_fd(), visitor) {
            Ok(Some((name, position))) => {
                level.position = position;
                let directory = match directory.try_clone() {
                    Ok(directory) => directory,
                    Err(source) => {
                        return Err(source).on(V::ATTEMPT, || walk.path_of(Some(&name)));
                    }
                };
                walk.descend(directory.as_fd(), name)?;
            }
            Ok(None) => walk.ascend(visitor)?,
            Err((errno, name)) => return Err(walk.error(errno, Some(&name))),
        }
    }
    Ok(())
}

/// Visits entries from the current position of the listing on, up to and including the first
/// directory to descend into; gives its name and the position behind it.
fn visit(
    directory: BorrowedFd<'_>,
    visitor: &mut impl Visitor,
) -> Result<Option<(CString, u64)>, (Errno, CString)> {
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut listing = RawDir::new(directory, &mut buffer);
    while let Some(entry) = listing.next() {
        let entry = entry.map_err(|errno| (errno, CString::default()))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match visitor.entry(directory, name, entry.file_type()) {
            Ok(false) => {}
            Ok(true) => {
                // What was read ahead is lost with the buffer.
                let name = name.to_owned();
                let position = entry.next_entry_cookie();
                return match rustix::fs::seek(directory, SeekFrom::Start(position)) {
                    Ok(_) => Ok(Some((name, position))),
                    Err(errno) => Err((errno, name)),
                };
            }
            Err(errno) => return Err((errno, name.to_owned())),
        }
    }
    Ok(None)
}

impl Walk<'_> {
    fn descend(&mut self, parent: BorrowedFd<'_>, name: CString) -> Result<(), StoreError> {
        let opened = rustix::fs::openat2(
            parent,
            &name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        )
        .and_then(|fd| Ok((identity(&fd)?, fd)));
        let (identity, fd) = opened.map_err(|errno| self.error(errno, Some(&name)))?;
        self.levels.push(Level {
            name,
            identity,
            fd: Some(fd),
            position: 0,
            passes: 0,
        });
        // The topmost stays open: above it `..` would leave the tree.
        if self.levels.len() > OPEN_DIRECTORIES + 1 {
            let far = self.levels.len() - 1 - OPEN_DIRECTORIES;
            self.levels[far].fd = None;
        }
        Ok(())
    }

    /// Goes back to the level above the last.
    fn ascend(&mut self, visitor: &mut impl Visitor) -> Result<(), StoreError> {
        let Some(mut done) = self.levels.pop() else {
            return Ok(());
        };
        if let Some(above) = self.levels.last_mut()
            && above.fd.is_none()
            && let Some(below) = &done.fd
        {
            match reopen(below, above) {
                Ok(fd) => above.fd = Some(fd),
                Err(errno) => return Err(self.error(errno, None)),
            }
        }
        let directory = match self.levels.last() {
            Some(above) => above.fd.as_ref().map(AsFd::as_fd),
            None => Some(self.top),
        };
        let result = match directory {
            Some(directory) => visitor.leave(directory, &done.name),
            None => Err(Errno::BADF),
        };
        match result {
            Ok(false) => Ok(()),
            Ok(true) if done.passes < PATIENCE => {
                done.passes += 1;
                if let Some(fd) = &done.fd {
                    rustix::fs::seek(fd, SeekFrom::Start(0))
                        .map_err(|errno| self.error(errno, Some(&done.name)))?;
                }
                self.levels.push(done);
                Ok(())
            }
            Ok(true) => Err(self.error(Errno::NOTEMPTY, Some(&done.name))),
            Err(errno) => Err(self.error(errno, Some(&done.name))),
        }
    }

    fn error(&self, errno: Errno, name: Option<&CStr>) -> StoreError {
        StoreError::Io {
            attempt: self.attempt,
            path: self.path_of(name),
            source: errno.into(),
        }
    }

    fn path_of(&self, name: Option<&CStr>) -> PathBuf {
        // The first name is `path` itself.
        self.levels
            .iter()
            .map(|level| level.name.as_c_str())
            .chain(name)
            .skip(1)
            .fold(self.path.to_owned(), |mut path, name| {
                path.push(OsStr::from_bytes(name.to_bytes()));
                path
            })
    }
}

/// Opens `level` again from the directory below it.
fn reopen(below: &OwnedFd, level: &Level) -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::openat(
        below,
        "..",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if identity(&fd)? != level.identity {
        // Somebody has moved the directory meanwhile.
        return Err(Errno::STALE);
    }
    rustix::fs::seek(&fd, SeekFrom::Start(level.position))?;
    Ok(fd)
}

fn identity(fd: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}
