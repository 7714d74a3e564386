//! The on-disk store of one login: layout, version, opening, locking, durability.
//!
//! # Layout (format 1)
//!
//! Everything lies below one directory (0700) and belongs to the login:
//!
//! | name | what |
//! |---|---|
//! | `version` | the format number in decimal and a line feed; written last when a store is made |
//! | `objects/xx/y…` | file contents, named by their BLAKE3 hash (2 + 62 hex digits), mode 0400 ([`crate::object`]); empty files have none |
//! | `layers/H.entries` | the entries of the layer with diff ID `sha256:H` ([`crate::layer`]) |
//! | `layers/H.stream` | how its tar stream is put together again |
//! | `images/H.index` | the flattened tree with chain ID `sha256:H` ([`crate::image_index`]) |
//! | `tmp/` | what is being written; whatever is here while nobody holds the lock is garbage |
//! | `lock` | `flock`: shared by writers, exclusive for garbage collection |
//! | `trees/` | empty on disk: the presenter mounts its metadata tree here, inside the pause namespace |
//!
//! # Rules
//!
//! * A file appears under its final name complete, by `rename`, and is never changed afterwards.
//! * A layer's `entries` file is renamed last, when every object it names is on disk (by `syncfs`, or
//!   one by one where few are new); an index likewise. So whatever is visible after a power cut is
//!   whole. An object that no layer names yet may be cut short then; writers therefore compare its
//!   length before they reuse it.
//! * Whoever adds layers holds the lock shared until something that counts as live (the caller's
//!   database) refers to them; whoever removes garbage takes it exclusively *before* working out
//!   what is live. See [`Store::lock_shared`] and [`Store::lock_exclusive`].
//! * A store with a newer format than ours is left alone: no file in it is opened but `version`.
//!
//! # Changing the format
//!
//! Raise [`FORMAT`], keep reading the older ones, and keep the fixture of each older format in
//! `tests/fixtures` opening.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// The format this crate writes.
pub const FORMAT: u32 = 1;

/// Directories below the root.
const DIRECTORIES: [&str; 5] = ["objects", "layers", "images", "tmp", "trees"];

/// An open store. Cheap to open: reads one version file.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    directory: Arc<OwnedFd>,
}

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store was written by a newer Selkie.
    #[error(
        "the store {path} has format {found}, this Selkie knows up to {known}: use the newer Selkie that wrote it"
    )]
    NewerVersion {
        /// Store root.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Input or output failed.
    #[error("{attempt} {path}: {source}")]
    Io {
        /// E.g. `write object`.
        attempt: &'static str,
        /// On which path.
        path: PathBuf,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] selkie_sys::SysError),
    /// A stored file is damaged.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// What was to be stored is something no image may hold (hostile or broken archive).
    #[error("{0}")]
    Invalid(String),
    /// The store has no such layer or image.
    #[error("the store {store} has no {what}")]
    Missing {
        /// Store root.
        store: PathBuf,
        /// E.g. `layer sha256:…`.
        what: String,
    },
    /// This kernel or file system cannot do what a presenter needs.
    #[error("{0}")]
    Unsupported(String),
    /// An ID the tree needs is not mapped in the pause namespace.
    #[error("{0}")]
    IdOutOfRange(String),
}

/// Adds what was attempted, and on which path, to a failed call.
pub(crate) trait IoContext<T> {
    fn on(self, attempt: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T, StoreError>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for Result<T, E> {
    fn on(self, attempt: &'static str, path: impl FnOnce() -> PathBuf) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io {
            attempt,
            path: path(),
            source: error.into(),
        })
    }
}

/// Holds the store's lock shared until dropped.
#[derive(Debug)]
pub struct SharedLock {
    // Closing the descriptor releases the lock.
    _file: OwnedFd,
}

/// Holds the store's lock exclusively until dropped.
#[derive(Debug)]
pub struct ExclusiveLock {
    _file: OwnedFd,
}

impl Store {
    /// Opens the store at `root`, making it (0700) when absent.
    ///
    /// # Errors
    /// [`StoreError::NewerVersion`] when a newer Selkie wrote it (nothing is touched then).
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let directory = match open_directory(root) {
            Err(Errno::NOENT) => {
                use std::os::unix::fs::DirBuilderExt;
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(root)
                    .on("make the store", || root.to_owned())?;
                open_directory(root)
            }
            other => other,
        }
        .on("open the store", || root.to_owned())?;
        let store = Self {
            root: root.to_owned(),
            directory: Arc::new(directory),
        };
        match store.read_version()? {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => {
                return Err(StoreError::NewerVersion {
                    path: root.to_owned(),
                    found,
                    known: FORMAT,
                });
            }
            Some(found) => {
                return Err(StoreError::Damaged {
                    path: store.path("version"),
                    what: format!("format {found} never existed"),
                });
            }
            None => store.initialise()?,
        }
        Ok(store)
    }

    /// Its root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Keeps garbage collection out until the lock is dropped; other writers are welcome. Whoever
    /// loads an image holds it from the first layer until the database refers to the image.
    pub fn lock_shared(&self) -> Result<SharedLock, StoreError> {
        self.lock(FlockOperation::LockShared)
            .map(|file| SharedLock { _file: file })
    }

    /// Keeps every writer out; waits for those at work. Take it before reading from the database
    /// what is live, then call [`Store::find_garbage`] or [`Store::remove_garbage`].
    pub fn lock_exclusive(&self) -> Result<ExclusiveLock, StoreError> {
        self.lock(FlockOperation::LockExclusive)
            .map(|file| ExclusiveLock { _file: file })
    }

    fn lock(&self, operation: FlockOperation) -> Result<OwnedFd, StoreError> {
        // Whoever cleans up temporary files may have taken an empty directory away.
        self.make_directories()?;
        let file = rustix::fs::openat(
            self.directory(),
            "lock",
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::RUSR | Mode::WUSR,
        )
        .on("open", || self.path("lock"))?;
        loop {
            match rustix::fs::flock(&file, operation) {
                Err(Errno::INTR) => {}
                result => {
                    result.on("lock", || self.path("lock"))?;
                    return Ok(file);
                }
            }
        }
    }

    /// The open root directory, for calls relative to it, and for a forked child that closes what it
    /// does not need.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// A path below the root, for error texts.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Opens a file of the store for reading; `None` when it does not exist.
    pub(crate) fn open_file(&self, relative: &str) -> Result<Option<std::fs::File>, StoreError> {
        match rustix::fs::openat(
            self.directory(),
            relative,
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        ) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).on("open", || self.path(relative)),
        }
    }

    /// True when a file of the store exists.
    pub(crate) fn has_file(&self, relative: &str) -> bool {
        rustix::fs::statat(self.directory(), relative, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Brings everything written so far to disk, by whomever.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        // The root is held by an O_PATH descriptor, which syncfs does not take.
        let directory = self.open_subdirectory("tmp")?;
        rustix::fs::syncfs(directory).on("write to disk", || self.root.clone())
    }

    /// Brings the names in a directory to disk.
    pub(crate) fn sync_directory(&self, name: &str) -> Result<(), StoreError> {
        rustix::fs::fsync(self.open_subdirectory(name)?).on("write to disk", || self.path(name))
    }

    /// A directory directly below the root, opened for reading.
    pub(crate) fn open_subdirectory(&self, name: &str) -> Result<OwnedFd, StoreError> {
        rustix::fs::openat(
            self.directory(),
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        )
        .on("open", || self.path(name))
    }

    fn read_version(&self) -> Result<Option<u32>, StoreError> {
        let file = match rustix::fs::openat(
            self.directory(),
            "version",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno).on("open", || self.path("version")),
        };
        let mut buffer = [0; 16];
        let length = rustix::io::read(&file, &mut buffer).on("read", || self.path("version"))?;
        std::str::from_utf8(&buffer[..length])
            .ok()
            .and_then(|text| text.strip_suffix('\n')?.parse().ok())
            .map(Some)
            .ok_or_else(|| StoreError::Damaged {
                path: self.path("version"),
                what: "it does not hold a format number".to_owned(),
            })
    }

    /// Makes the directories and then the version file, so that a store cut short while it was made
    /// is simply made again. Safe to race.
    fn initialise(&self) -> Result<(), StoreError> {
        self.make_directories()?;
        let temporary = format!("tmp/version.{}", unique_name()?);
        let file = self.create_file(&temporary)?;
        rustix::io::write(&file, format!("{FORMAT}\n").as_bytes())
            .on("write", || self.path(&temporary))?;
        rustix::fs::fsync(&file).on("write to disk", || self.path(&temporary))?;
        rustix::fs::renameat(self.directory(), &temporary, self.directory(), "version")
            .on("make", || self.path("version"))
    }

    fn make_directories(&self) -> Result<(), StoreError> {
        for name in DIRECTORIES {
            match rustix::fs::mkdirat(self.directory(), name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).on("make", || self.path(name)),
            }
        }
        Ok(())
    }

    /// A new file (0600) that must not exist yet, for reading and writing.
    pub(crate) fn create_file(&self, relative: &str) -> Result<OwnedFd, StoreError> {
        rustix::fs::openat(
            self.directory(),
            relative,
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::RUSR | Mode::WUSR,
        )
        .on("make", || self.path(relative))
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// A name nobody else uses: the PID for the reader of a listing, random bits for uniqueness (a PID
/// namespace, or a store on a shared file system, may hold the same PID twice).
pub(crate) fn unique_name() -> Result<String, StoreError> {
    let mut random = [0u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .on("get random bytes for a name in", || PathBuf::from("tmp"))?;
    Ok(format!(
        "{}-{:016x}",
        rustix::process::getpid().as_raw_nonzero(),
        u64::from_le_bytes(random)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_made_private_and_opens_again() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("deep/store");
        Store::open(&root).unwrap();
        Store::open(&root).unwrap();
        let mode = std::fs::metadata(&root).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(
            std::fs::read_to_string(root.join("version")).unwrap(),
            "1\n"
        );
        assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_newer_store_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("version"), "7\n").unwrap();
        let error = Store::open(root.path()).unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::NewerVersion {
                    found: 7,
                    known: FORMAT,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_nonsense_version_is_damage() {
        for text in ["", "1", "one\n", "0\n", "-1\n", "99999999999\n"] {
            let root = tempfile::tempdir().unwrap();
            std::fs::write(root.path().join("version"), text).unwrap();
            let error = Store::open(root.path()).unwrap_err();
            assert!(
                matches!(error, StoreError::Damaged { .. }),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn the_exclusive_lock_waits_for_shared_ones() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let first = store.lock_shared().unwrap();
        let second = store.lock_shared().unwrap();
        let file = std::fs::File::open(root.path().join("lock")).unwrap();
        let try_exclusive = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        drop(first);
        assert_eq!(try_exclusive(), Err(Errno::WOULDBLOCK));
        drop(second);
        assert_eq!(try_exclusive(), Ok(()));
    }
}
