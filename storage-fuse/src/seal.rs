//! Telling whether somebody has changed a small directory tree.
//!
//! # Theory of operation
//! Whatever is done to a file or directory (content, owner, mode, attributes, names in it) moves its
//! change time, which nobody can set. So a tree is as it was when every inode that was in it still
//! has the change time it had: new names would have moved their directory's. That takes change times
//! that differ for any two changes with a look in between ("multigrain timestamps"), which not every
//! file system has; the others are refused.
//!
//! Access times of directories are compared too: they tell of a listing, and cannot be taken back
//! without moving the change time.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

/// More than this in a tree is not worth remembering.
const MOST: usize = 64;

/// Magic numbers (statfs(2)) of the file systems with multigrain timestamps, as of Linux 6.13: ext4,
/// XFS, btrfs, tmpfs.
const FINE: [u64; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994];

/// What a tree looked like at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    marks: Vec<Mark>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    /// From the directory the seal was made in.
    path: CString,
    look: Look,
}

/// What must stay the same of one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    inode: (u64, u64),
    changed: (i64, i64),
    /// Of directories.
    listed: Option<(i64, i64)>,
}

impl Look {
    fn of(stat: &Stat) -> Self {
        let time = |seconds: i64, nanoseconds: u64| (seconds, nanoseconds as i64);
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Self {
            inode: (stat.st_dev, stat.st_ino),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
            listed: is_directory.then(|| time(stat.st_atime, stat.st_atime_nsec)),
        }
    }
}

impl Seal {
    /// Remembers the trees called `names` in `directory`. `None` when they are not all there, are too
    /// large, or on a file system on which a change could go unnoticed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(directory: BorrowedFd<'_>, names: &[&str]) -> Result<Option<Self>, Errno> {
        let kind = rustix::fs::fstatfs(directory)?.f_type as u64;
        if !FINE.contains(&kind) {
            return Ok(None);
        }
        let mut marks: Vec<Mark> = Vec::new();
        for name in names {
            let name = CString::new(*name).map_err(|_| Errno::INVAL)?;
            let Some(look) = look_at(directory, &name)? else {
                return Ok(None);
            };
            let mut next = marks.len();
            marks.push(Mark { path: name, look });
            while let Some(mark) = marks.get(next) {
                if mark.look.listed.is_some() {
                    let path = mark.path.clone();
                    list(directory, &path, &mut marks)?;
                    if marks.len() > MOST {
                        return Ok(None);
                    }
                }
                next += 1;
            }
        }
        Ok(Some(Self { marks }))
    }

    /// True when nobody has changed anything since.
    pub fn holds(&self, directory: BorrowedFd<'_>) -> bool {
        self.marks
            .iter()
            .all(|mark| look_at(directory, &mark.path).is_ok_and(|look| look == Some(mark.look)))
    }
}

fn look_at(directory: BorrowedFd<'_>, path: &CString) -> Result<Option<Look>, Errno> {
    match rustix::fs::statat(directory, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Look::of(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Adds what is in a directory.
fn list(directory: BorrowedFd<'_>, path: &CString, marks: &mut Vec<Mark>) -> Result<(), Errno> {
    // NOATIME: our own listing must not show.
    let flags =
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    let open = rustix::fs::openat(directory, path, flags, Mode::empty())?;
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(open.as_fd(), &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let path = [path.as_bytes(), b"/", name].concat();
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        if let Some(look) = look_at(directory, &path)? {
            marks.push(Mark { path, look });
        }
        if marks.len() > MOST {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    /// A tree, and its seal.
    fn sealed() -> (tempfile::TempDir, std::fs::File, Seal) {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("upper/etc")).unwrap();
        std::fs::write(temp.path().join("upper/etc/hosts"), "x").unwrap();
        let directory = std::fs::File::open(temp.path()).unwrap();
        let seal = Seal::of(directory.as_fd(), &["upper"]);
        let seal = seal.unwrap().expect("ext4, xfs, btrfs or tmpfs");
        assert_eq!(seal.marks.len(), 3);
        (temp, directory, seal)
    }

    fn is_seen(change: impl Fn(&Path)) -> bool {
        // At once after the look, when coarse times would not have moved yet; repeatedly, since they
        // might just have.
        (0..20).all(|_| {
            let (temp, directory, seal) = sealed();
            change(&temp.path().join("upper"));
            !seal.holds(directory.as_fd())
        })
    }

    #[test]
    fn an_untouched_tree_holds() {
        let (temp, directory, seal) = sealed();
        assert!(seal.holds(directory.as_fd()));
        assert_eq!(
            std::fs::read(temp.path().join("upper/etc/hosts")).unwrap(),
            b"x"
        );
        assert!(seal.holds(directory.as_fd()), "reading changes nothing");
    }

    #[test]
    fn every_change_is_seen() {
        assert!(is_seen(
            |upper| std::fs::write(upper.join("new"), "").unwrap()
        ));
        assert!(is_seen(|upper| {
            std::fs::write(upper.join("etc/new"), "").unwrap();
            std::fs::remove_file(upper.join("etc/new")).unwrap();
        }));
        assert!(is_seen(|upper| std::fs::write(
            upper.join("etc/hosts"),
            "y"
        )
        .unwrap()));
        assert!(is_seen(|upper| std::fs::remove_file(
            upper.join("etc/hosts")
        )
        .unwrap()));
        assert!(is_seen(|upper| {
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(upper.join("etc/hosts"), mode).unwrap();
        }));
        assert!(is_seen(|upper| {
            let file = std::fs::File::options()
                .write(true)
                .open(upper.join("etc/hosts"))
                .unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.set_modified(before).unwrap();
        }));
        assert!(is_seen(|upper| {
            std::fs::rename(upper.join("etc"), upper.join("other")).unwrap();
            std::fs::rename(upper.join("other"), upper.join("etc")).unwrap();
        }));
    }

    #[test]
    fn large_and_absent_trees_are_not_sealed() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("upper")).unwrap();
        for number in 0..=MOST {
            std::fs::write(temp.path().join(format!("upper/{number}")), "").unwrap();
        }
        let directory = std::fs::File::open(temp.path()).unwrap();
        assert_eq!(Seal::of(directory.as_fd(), &["upper"]).unwrap(), None);
        assert_eq!(Seal::of(directory.as_fd(), &["absent"]).unwrap(), None);
    }
}
