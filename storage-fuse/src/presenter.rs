//! Presenters turn an image index into a root file system for one container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use selkie_sys::errno::Attempt;
use selkie_sys::mount::{MountAttributes, set_attributes};
use selkie_userns::IdMaps;

use crate::container_layer::ContainerLayer;
pub use crate::probe::{Feature, probe};
use crate::store::{Store, StoreError};
use crate::tmpfs_metacopy::TmpfsMetacopy;

/// One root file system to make.
#[derive(Debug)]
pub struct RootRequest<'a> {
    /// Which image (chain ID).
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
///
/// All calls are made by root of the pause namespace, in its mount namespace, on a store that was
/// opened there.
pub trait Presenter {
    /// Name shown by `info`, e.g. `tmpfs-metacopy`.
    fn name(&self) -> &'static str;
    /// Makes what is shared by all containers of the image (idempotent, safe to race).
    fn prepare(&self, store: &Store, chain_id: &str, single_id: bool) -> Result<(), StoreError>;
    /// A detached mount of the container's root file system. Prepares first when needed.
    fn mount_root(&self, store: &Store, request: &RootRequest<'_>) -> Result<OwnedFd, StoreError>;
    /// Names what a root file system consists of beside the container's own layer: two roots of one
    /// identity differ in nothing else. `None` while nothing has been prepared for the image. It
    /// changes with every `forget` and `prepare`.
    fn root_identity(
        &self,
        store: &Store,
        chain_id: &str,
        maps: &IdMaps,
        single_id: bool,
    ) -> Result<Option<String>, StoreError>;
    /// Drops what `prepare` made for an image nobody uses any more.
    fn forget(&self, store: &Store, chain_id: &str) -> Result<(), StoreError>;
}

/// The presenter to use here, or the `forced` one (for tests). Does not probe: when one of its
/// calls fails, the error says which feature is missing.
pub fn choose(forced: Option<&str>) -> Result<Box<dyn Presenter>, StoreError> {
    match forced {
        None | Some(TmpfsMetacopy::NAME) => Ok(Box::new(TmpfsMetacopy)),
        Some(other) => Err(StoreError::Unsupported(format!(
            "there is no presenter `{other}`; this Selkie has: {}",
            TmpfsMetacopy::NAME
        ))),
    }
}

/// A detached, private mount of a directory of the host, with everything mounted below it, to be
/// used as a root file system as it is. Owners cannot be translated, so this is only for containers
/// whose IDs are the pause namespace's.
pub fn bind_root(path: &Path) -> Result<OwnedFd, StoreError> {
    // Recursive, because the kernel does not let a user namespace uncover what is mounted over.
    let mount = open_tree(
        rustix::fs::CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE,
    )
    .attempt(|| format!("clone the mount at {}", path.display()))?;
    let private = MountAttributes {
        propagation: rustix::mount::MountPropagationFlags::PRIVATE.bits().into(),
        ..Default::default()
    };
    set_attributes(mount.as_fd(), private, true)?;
    Ok(mount)
}

/// A second detached mount of a root file system, private to whoever gets it.
pub fn clone_root(root: BorrowedFd<'_>) -> Result<OwnedFd, StoreError> {
    let clone = open_tree(
        root,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )
    .attempt(|| "clone the mount of a root file system")?;
    Ok(clone)
}

/// Mounts a detached root file system on the directory called `name` in `directory`, to be cloned
/// from there later ([`clone_parked_root`]).
pub fn park_root(
    root: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &str,
) -> Result<(), StoreError> {
    move_mount(
        root,
        "",
        directory,
        name,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .attempt(|| format!("mount a root file system on `{name}`"))?;
    Ok(())
}

/// True when something is mounted on the directory called `name` in `directory`.
pub fn is_root_parked(directory: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statx(
        directory,
        name,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::empty(),
    )
    .is_ok_and(|status| status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// A detached mount of what [`park_root`] has mounted on `name`.
pub fn clone_parked_root(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, StoreError> {
    let clone = open_tree(
        directory,
        name,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
    )
    .attempt(|| format!("clone the root file system mounted on `{name}`"))?;
    Ok(clone)
}
