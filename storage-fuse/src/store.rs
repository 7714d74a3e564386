//! The on-disk store of one login: layout, version, opening, garbage.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// An open store. Cheap to open: reads one version file.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
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
    /// This kernel or file system cannot do what a presenter needs.
    #[error("{0}")]
    Unsupported(String),
    /// An ID the tree needs is not mapped in the pause namespace.
    #[error("{0}")]
    IdOutOfRange(String),
}

/// Files of the store nothing refers to.
#[derive(Debug, Default, Clone)]
pub struct Garbage {
    /// Objects, layers, indexes, temporary files, metadata trees; absolute paths.
    pub paths: Vec<PathBuf>,
    /// Their size on disk in bytes.
    pub bytes: u64,
}

impl Store {
    /// Opens the store at `root`, making it (0700) when absent.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let _ = root;
        todo!()
    }
    /// Its root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// What is on disk beyond what the given image top chain IDs and their layers need. Takes the
    /// store's exclusive lock, so nothing that is being written is listed.
    pub fn find_garbage(
        &self,
        live_images: &BTreeSet<String>,
        live_layers: &BTreeSet<String>,
    ) -> Result<Garbage, StoreError> {
        let _ = (live_images, live_layers);
        todo!()
    }
    /// Removes what [`Self::find_garbage`] lists.
    pub fn remove_garbage(
        &self,
        live_images: &BTreeSet<String>,
        live_layers: &BTreeSet<String>,
    ) -> Result<Garbage, StoreError> {
        let _ = (live_images, live_layers);
        todo!()
    }
}
