//! A container's writable layer: upper and work directories, and re-owning them for another slice.

use std::path::{Path, PathBuf};

use selkie_userns::IdMaps;

use crate::store::StoreError;

/// The writable layer of one container below `dir` (the engine owns the directory's name).
#[derive(Debug, Clone)]
pub struct ContainerLayer {
    /// Directory holding `upper/` and `work/`.
    pub dir: PathBuf,
}

impl ContainerLayer {
    /// Makes `upper/` and `work/` in `dir`.
    pub fn create(dir: &Path) -> Result<Self, StoreError> {
        let _ = dir;
        todo!()
    }
    /// Removes it with all content.
    pub fn remove(self) -> Result<(), StoreError> {
        todo!()
    }
}

/// Changes every owner in the tree at `root` from what `old` maps to what `new` maps (both
/// container ↔ pause namespace), keeping set-ID bits, capabilities (v3 root IDs too) and times.
/// Idempotent after a crash when the two maps share no outside ID: already moved inodes are left.
pub fn reown_tree(root: &Path, old: &IdMaps, new: &IdMaps) -> Result<(), StoreError> {
    let _ = (root, old, new);
    todo!()
}
