//! Where things are, and the rules that make every crash recognisable.
//!
//! ```text
//! data_dir/                     survives reboots
//!   state.db state.lock         the database and its writers' queue
//!   store/                      images (`selkie-storage`)
//!   containers/ID/              one container:
//!     upper/ work/              its writable layer
//!     etc/                      hosts, hostname, resolv.conf, as mounted into it
//!     log                       its output (k8s-file format)
//!     state exit                its run (see `state`)
//!     root/                     a spare's overlay is mounted here
//!   spares/KEY,N/               the directory of a container to come (see `container::spare`)
//!   volumes/NAME/_data          one named volume
//! run_dir/                      may vanish at any moment, also under running containers
//!   attach/ID                   the monitor's socket
//! ```
//!
//! # Crash rules
//! - A container's directory is made under the database's writer lock, just before its row is
//!   committed. So whoever holds that lock and sees a directory without a row sees garbage.
//! - Everything *inside* the directory is made when the container starts, and what is missing is made
//!   again; a row whose directory is empty is a container that never started.
//! - The directory itself is the container's lock (`flock`): held exclusively by whoever creates,
//!   starts, removes or settles it, and by its monitor for the whole run. The kernel frees it when
//!   they die, however they die. A `disposable` row (`run --rm`) whose lock is free and whose init is
//!   gone is garbage.
//! - Removal deletes the row first, then the directory: what is left after a crash is garbage by the
//!   first rule, and a container never loses files while it still has a row.
//! - A volume's row comes first, its directory when it is first used; it is removed in the same order
//!   as a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::EngineConfig;
use crate::container::ContainerId;
use crate::error::{Error, Result};

impl EngineConfig {
    /// All containers' directories.
    pub(crate) fn containers_dir(&self) -> PathBuf {
        self.data_dir.join("containers")
    }
    /// One container's directory.
    pub(crate) fn container_dir(&self, id: &ContainerId) -> PathBuf {
        self.containers_dir().join(id.as_str())
    }
    /// Directories for containers to come (`container::spare`).
    pub(crate) fn spares_dir(&self) -> PathBuf {
        self.data_dir.join("spares")
    }
    /// All volumes' directories.
    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.data_dir.join("volumes")
    }
    /// The directory a volume shows.
    pub(crate) fn volume_data(&self, name: &str) -> PathBuf {
        self.volumes_dir().join(name).join("_data")
    }
    /// The image store.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.data_dir.join("store")
    }
    /// All monitors' sockets.
    pub(crate) fn attach_dir(&self) -> PathBuf {
        self.run_dir.join("attach")
    }
}

/// A container's directory, open and locked.
#[derive(Debug)]
pub(crate) struct LockedContainer {
    /// Its path.
    pub path: PathBuf,
    /// The directory; the lock goes with it (and with copies of it in forked children).
    pub dir: OwnedFd,
}

impl LockedContainer {
    /// Makes the directory, which must not exist, and locks it. Call under the writer lock.
    pub(crate) fn make(config: &EngineConfig, id: &ContainerId) -> Result<Self> {
        let path = config.container_dir(id);
        let mode = Mode::RWXU;
        match rustix::fs::mkdir(&path, mode) {
            Err(Errno::NOENT) => {
                crate::database::make_private_dir(&config.containers_dir())?;
                rustix::fs::mkdir(&path, mode)
            }
            other => other,
        }
        .map_err(|errno| Error::machine(format!("make directory {}", path.display()), errno))?;
        let dir = open_dir(&path)?;
        flock(&dir, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| Error::machine(format!("lock {}", path.display()), errno))?;
        Ok(Self { path, dir })
    }

    /// Locks an existing container, waiting for whoever holds it. The directory is made again when it
    /// has vanished (the row is the container).
    pub(crate) fn wait(config: &EngineConfig, id: &ContainerId) -> Result<Self> {
        let (path, dir) = open_or_remake(config, id)?;
        rustix::io::retry_on_intr(|| flock(&dir, FlockOperation::LockExclusive))
            .map_err(|errno| Error::machine(format!("lock {}", path.display()), errno))?;
        Ok(Self { path, dir })
    }

    /// Locks an existing container; `None` while somebody else holds it. The directory is made again
    /// when it has vanished.
    pub(crate) fn try_lock(config: &EngineConfig, id: &ContainerId) -> Result<Option<Self>> {
        let (path, dir) = open_or_remake(config, id)?;
        Self::try_lock_dir(path, dir)
    }

    /// As [`Self::try_lock`], but an error when there is no directory.
    pub(crate) fn try_lock_existing(
        config: &EngineConfig,
        id: &ContainerId,
    ) -> Result<Option<Self>> {
        let path = config.container_dir(id);
        let dir = open_dir(&path)?;
        Self::try_lock_dir(path, dir)
    }

    fn try_lock_dir(path: PathBuf, dir: OwnedFd) -> Result<Option<Self>> {
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path, dir })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::machine(format!("lock {}", path.display()), errno)),
        }
    }
}

impl AsFd for LockedContainer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn open_or_remake(config: &EngineConfig, id: &ContainerId) -> Result<(PathBuf, OwnedFd)> {
    let path = config.container_dir(id);
    if !path.exists() {
        crate::database::make_private_dir(&path)?;
    }
    let dir = open_dir(&path)?;
    Ok((path, dir))
}

/// Opens a directory of ours.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| Error::machine(format!("open directory {}", path.display()), errno))
}

/// Makes `bytes` the content of a file that may hold something else.
pub(crate) fn write_over(file: BorrowedFd<'_>, bytes: &[u8]) -> std::result::Result<(), Errno> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(file, rest))?;
        rest = &rest[written..];
    }
    // Cut last and only where needed: ext4 begins at once to write out a file that was emptied first.
    let length = bytes.len() as u64;
    if rustix::fs::fstat(file)?.st_size as u64 > length {
        rustix::fs::ftruncate(file, length)?;
    }
    Ok(())
}
