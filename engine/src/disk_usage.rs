//! What containers and volumes take on disk (`system df`).

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, statat};
use rustix::io::Errno;

use crate::Engine;
use crate::container::ContainerId;
use crate::error::{Error, Result};

impl Engine {
    /// Bytes on disk of a container's writable layer and log. Walks it.
    ///
    /// # Errors
    /// A directory cannot be read. What vanishes meanwhile does not count.
    pub fn container_disk_usage(&self, id: &ContainerId) -> Result<u64> {
        tree_usage(&self.config.container_dir(id))
    }

    /// Bytes on disk of a volume. Walks it.
    ///
    /// # Errors
    /// As [`Self::container_disk_usage`].
    pub fn volume_disk_usage(&self, name: &str) -> Result<u64> {
        tree_usage(&self.config.volume_data(name))
    }
}

/// Size in bytes of one block of `st_blocks` (stat(2)).
const BLOCK: u64 = 512;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn tree_usage(root: &Path) -> Result<u64> {
    let failed = |errno| Error::machine(format!("measure {}", root.display()), errno);
    let top = match open(root, DIRECTORY, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(0),
        Err(errno) => return Err(failed(errno)),
    };
    // Depth first, one descriptor per level, by descriptors only: containers may be changing the
    // tree under us, and no link in it is followed anywhere.
    let mut bytes = 0;
    let inner = measure(&top, &mut bytes).map_err(failed)?;
    let mut levels = vec![(top, inner)];
    while let Some((directory, waiting)) = levels.last_mut() {
        let Some(name) = waiting.pop() else {
            levels.pop();
            continue;
        };
        match openat(&*directory, &name, DIRECTORY, Mode::empty()) {
            Ok(directory) => {
                let inner = measure(&directory, &mut bytes).map_err(failed)?;
                levels.push((directory, inner));
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(bytes)
}

/// Adds what a directory holds; gives the names of directories in it.
fn measure(directory: &OwnedFd, bytes: &mut u64) -> rustix::io::Result<Vec<CString>> {
    let mut inner = Vec::new();
    for entry in Dir::read_from(directory.as_fd())? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        *bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            inner.push(name.to_owned());
        }
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_measured_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(tree_usage(&dir.path().join("absent")).unwrap(), 0);
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let before = tree_usage(dir.path()).unwrap();
        std::fs::write(dir.path().join("a/b/file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("a/link")).unwrap();
        let grown = tree_usage(dir.path()).unwrap() - before;
        assert!((100_000..200_000).contains(&grown), "{grown}");
    }
}
