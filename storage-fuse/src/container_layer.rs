//! A container's writable layer: upper and work directories, and re-owning them for another slice.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::remove_tree::remove_tree;
pub use crate::reown::reown_tree;
use crate::store::{IoContext, StoreError, unique_name};

/// The writable layer of one container below `dir` (the engine owns the directory's name).
#[derive(Debug, Clone)]
pub struct ContainerLayer {
    /// Directory holding `upper/` and `work/`.
    pub dir: PathBuf,
}

impl ContainerLayer {
    /// Makes `work/` in the existing directory `dir`. `upper/` follows at the first mount, since
    /// its owner, mode and times are those of the image's root.
    pub fn create(dir: &Path) -> Result<Self, StoreError> {
        match rustix::fs::mkdir(dir.join("work"), Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).on("make", || dir.join("work")),
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// The directory that holds what the container wrote. Absent before the first mount.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// Removes `upper/` and `work/` with all content; `dir` stays. The caller must be root of the
    /// user namespace that all owners in it are mapped in.
    pub fn remove(self) -> Result<(), StoreError> {
        remove_tree(&self.upper())?;
        remove_tree(&self.dir.join("work"))
    }

    /// Opens `upper/` and `work/`; makes `upper/` like the directory `model` when it is not there.
    pub(crate) fn open(&self, model: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd), StoreError> {
        let directory = rustix::fs::open(
            &self.dir,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .on("open", || self.dir.clone())?;
        let work = open_path(&directory, Path::new("work")).on("open", || self.dir.join("work"))?;
        let upper = match open_path(&directory, Path::new("upper")) {
            Err(Errno::NOENT) => self.make_upper(directory.as_fd(), model)?,
            other => other.on("open", || self.upper())?,
        };
        Ok((upper, work))
    }

    /// Made under another name first: `upper/` never exists with the wrong owner or mode.
    fn make_upper(
        &self,
        directory: BorrowedFd<'_>,
        model: BorrowedFd<'_>,
    ) -> Result<OwnedFd, StoreError> {
        // The kernel would mount a layer without them and fail later, when a directory is replaced.
        let unsupported = rustix::fs::fgetxattr(directory, "user.overlay.opaque", &mut [0u8; 1])
            == Err(Errno::OPNOTSUPP);
        if unsupported {
            return Err(StoreError::Unsupported(format!(
                "the file system of {} has no user extended attributes, which a container's \
                 writable layer needs: keep it on ext4, xfs, btrfs or tmpfs",
                self.dir.display()
            )));
        }
        let temporary = format!("upper-{}", unique_name()?);
        let make = || -> Result<OwnedFd, Errno> {
            // Through an idmapped mount this is the owner the container's upper layer needs.
            let stat = rustix::fs::fstat(model)?;
            rustix::fs::mkdirat(directory, &temporary, Mode::RWXU)?;
            let upper = rustix::fs::openat(
                directory,
                &temporary,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            rustix::fs::fchown(
                &upper,
                Some(rustix::fs::Uid::from_raw(stat.st_uid)),
                Some(rustix::fs::Gid::from_raw(stat.st_gid)),
            )?;
            rustix::fs::fchmod(&upper, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
            let time = Timespec {
                tv_sec: stat.st_mtime,
                tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0),
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::futimens(&upper, &times)?;
            rustix::fs::renameat(directory, &temporary, directory, "upper")?;
            Ok(upper)
        };
        make()
            .inspect_err(|_| {
                // Empty, and garbage with the whole layer if even this fails.
                let _ = rustix::fs::unlinkat(directory, &temporary, AtFlags::REMOVEDIR);
            })
            .on("make", || self.upper())
    }

    /// A `volatile` mount leaves a mark that makes the kernel refuse the layer until somebody says
    /// that nothing was lost (Documentation/filesystems/overlayfs.rst, "Volatile mount"). For a layer
    /// that is thrown away anyway, we do. Returns true when there was a mark.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] when the layer is not meant to be volatile now: after a power cut
    /// what it holds may be incomplete.
    pub(crate) fn clear_volatile_mark(
        &self,
        work: BorrowedFd<'_>,
        volatile: bool,
    ) -> Result<bool, StoreError> {
        const MARK: &str = "work/incompat/volatile";
        if rustix::fs::statat(work, MARK, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return Ok(false);
        }
        if !volatile {
            return Err(StoreError::Unsupported(format!(
                "the layer {} was written without being synced, so it may be incomplete: remove the \
                 container, or work/{MARK} in that layer if the host did not crash since",
                self.dir.display()
            )));
        }
        let path = self.dir.join("work/work/incompat");
        crate::remove_tree::remove_tree_at(work, b"work/incompat", &path)?;
        Ok(true)
    }
}

fn open_path(directory: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        directory,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}
