//! Presenters turn an image index into a root file system for one container.

use std::os::fd::{BorrowedFd, OwnedFd};

use selkie_userns::IdMaps;

use crate::container_layer::ContainerLayer;
use crate::store::{Store, StoreError};

/// One root file system to make.
#[derive(Debug)]
pub struct RootRequest<'a> {
    /// Which image (chain ID); `None` for an empty image.
    pub chain_id: &'a str,
    /// The container's writable layer.
    pub layer: &'a ContainerLayer,
    /// The container's user namespace, maps already written.
    pub user_namespace: BorrowedFd<'a>,
    /// The same maps: container ↔ pause namespace.
    pub maps: &'a IdMaps,
    /// True when the upper layer is thrown away after the run (`volatile`: no sync at unmount).
    pub volatile: bool,
    /// True when every owner is squashed to 0 (login without subordinate IDs).
    pub single_id: bool,
}

/// One way of presenting images; chosen by trying what the kernel can do.
pub trait Presenter {
    /// Name shown by `info`, e.g. `tmpfs-metacopy`.
    fn name(&self) -> &'static str;
    /// Makes what is shared by all containers of the image (idempotent, safe to race).
    fn prepare(&self, store: &Store, chain_id: &str, single_id: bool) -> Result<(), StoreError>;
    /// A detached mount of the container's root file system. Prepares first when needed.
    fn mount_root(&self, store: &Store, request: &RootRequest<'_>) -> Result<OwnedFd, StoreError>;
    /// Drops what `prepare` made for an image nobody uses any more.
    fn forget(&self, store: &Store, chain_id: &str) -> Result<(), StoreError>;
}

/// One kernel or file system feature and whether it worked when tried.
#[derive(Debug, Clone)]
pub struct Feature {
    /// E.g. `idmapped mounts of tmpfs`.
    pub name: &'static str,
    /// `Err` says what the kernel answered.
    pub result: Result<(), String>,
}

/// Tries every feature presenters need (for `info`; not on the hot path).
pub fn probe(store: &Store) -> Vec<Feature> {
    let _ = store;
    todo!()
}

/// The presenter to use here. Does not probe: failures of its calls are explained by probing then.
pub fn choose(store: &Store) -> Result<Box<dyn Presenter>, StoreError> {
    let _ = store;
    todo!()
}
