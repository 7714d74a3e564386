//! The flattened tree of an image in one mapped file.

use std::collections::BTreeSet;

use crate::store::{Store, StoreError};

/// An image's flattened tree, mapped read-only.
#[derive(Debug)]
pub struct ImageIndex {}

/// All owners of an image: of its files and named in its `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageIds {
    /// User IDs.
    pub uids: BTreeSet<u32>,
    /// Group IDs.
    pub gids: BTreeSet<u32>,
}

impl Store {
    /// Flattens `layers` (diff IDs, lowest first), resolving whiteouts, and stores the index
    /// durably under the top chain ID, which it returns. Does nothing when it is there.
    pub fn build_image_index(&self, layers: &[String]) -> Result<String, StoreError> {
        let _ = layers;
        todo!()
    }
    /// Maps an index.
    pub fn open_image_index(&self, chain_id: &str) -> Result<ImageIndex, StoreError> {
        let _ = chain_id;
        todo!()
    }
}

impl ImageIndex {
    /// Owners in it (stored in its header, so this does not walk the tree).
    pub fn ids(&self) -> ImageIds {
        todo!()
    }
    /// Sum of the file sizes in bytes.
    pub fn content_size(&self) -> u64 {
        todo!()
    }
    /// Number of inodes.
    pub fn inode_count(&self) -> u64 {
        todo!()
    }
    /// The content of a regular file, following symlinks inside the tree (at most 1 MiB is read).
    /// `None` when there is no such file. For `/etc/passwd` before anything is mounted.
    pub fn read_file(&self, store: &Store, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let _ = (store, path);
        todo!()
    }
}
