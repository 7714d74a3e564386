//! The presenter for Linux 6.16 and later: native I/O, nothing copied, any ID mapping.
//!
//! # Theory of operation
//!
//! One tmpfs per pause namespace, mounted at `trees/` of the store, holds one tree of metadata-only
//! files per image ([`crate::metadata_tree`]), owned by the raw IDs of the image as if they were the
//! pause namespace's own. A container's root file system is an overlay of
//!
//! * the container's upper layer, on the store's file system,
//! * a clone of the image's tree as a mount of its own whose ID map is the container's
//!   (`MOUNT_ATTR_IDMAP`): raw image ID *n* appears as container ID *n*, whoever that is outside,
//! * the objects as a data-only layer: they belong to the login, and only the overlay reads them.
//!
//! So a container in a never-used slice starts as fast as any other. The tmpfs belongs to the pause
//! namespace's mounts and dies with them; containers keep it alive through their clones, and the next
//! command mounts a new one. Building is done under a temporary name without any lock but the
//! store's shared one (against garbage collection); of racing builders the first to rename wins.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use selkie_sys::errno::{Attempt, SysError};
use selkie_userns::IdMaps;

use crate::digest::Digest;
use crate::overlay::{Layers, OverlayError};
use crate::presenter::{Presenter, RootRequest};
use crate::store::{IoContext, Store, StoreError, unique_name};
use crate::tree_name::TreeName;

/// `TMPFS_MAGIC` (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TmpfsMetacopy;

impl TmpfsMetacopy {
    pub const NAME: &'static str = "tmpfs-metacopy";
}

impl Presenter for TmpfsMetacopy {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn prepare(&self, store: &Store, chain_id: &str, single_id: bool) -> Result<(), StoreError> {
        let chain_id = Digest::parse(chain_id)?;
        let tree = TreeName {
            chain_id,
            single_id,
        };
        build_tree(store, &tree).map_err(|error| explain(store, error))
    }

    fn mount_root(&self, store: &Store, request: &RootRequest<'_>) -> Result<OwnedFd, StoreError> {
        mount_root(store, request).map_err(|error| explain(store, error))
    }

    fn root_identity(
        &self,
        store: &Store,
        chain_id: &str,
        maps: &IdMaps,
        single_id: bool,
    ) -> Result<Option<String>, StoreError> {
        let tree = TreeName {
            chain_id: Digest::parse(chain_id)?,
            single_id,
        };
        root_identity(store, &tree, maps)
    }

    fn forget(&self, store: &Store, chain_id: &str) -> Result<(), StoreError> {
        let chain_id = Digest::parse(chain_id)?;
        for single_id in [false, true] {
            let name = TreeName {
                chain_id,
                single_id,
            }
            .text();
            discard_tree(store, &name)?;
        }
        Ok(())
    }
}

/// A tree of the same name in another tmpfs, or one built again, is another tree: inode numbers of a
/// tmpfs do not repeat, and a tree's root does not change once it has its name.
fn root_identity(
    store: &Store,
    tree: &TreeName,
    maps: &IdMaps,
) -> Result<Option<String>, StoreError> {
    let name = tree.text();
    let path = format!("trees/{name}");
    let stat = match rustix::fs::statat(store.directory(), &path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno).on("look at", || store.path(&path)),
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes());
    for number in [stat.st_dev, stat.st_ino, stat.st_ctime as u64] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&(stat.st_ctime_nsec as u64).to_le_bytes());
    for map in [&maps.uid, &maps.gid] {
        hasher.update(&(map.extents().len() as u64).to_le_bytes());
        for extent in map.extents() {
            for number in [extent.inside, extent.outside, extent.count] {
                hasher.update(&number.to_le_bytes());
            }
        }
    }
    Ok(Some(hasher.finalize().to_hex()[..32].to_owned()))
}

fn mount_root(store: &Store, request: &RootRequest<'_>) -> Result<OwnedFd, StoreError> {
    let tree = TreeName {
        chain_id: Digest::parse(request.chain_id)?,
        single_id: request.single_id,
    };
    let lower = match clone_tree(store, &tree) {
        Err(error) if error.errno == Errno::NOENT => {
            build_tree(store, &tree)?;
            clone_tree(store, &tree)?
        }
        other => other?,
    };
    if !is_identity(request.maps) {
        selkie_sys::mount::set_idmap(lower.as_fd(), request.user_namespace)?;
    }
    let objects = rustix::fs::openat(
        store.directory(),
        "objects",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .on("open", || store.path("objects"))?;
    let (upper, work) = request.layer.open(lower.as_fd())?;
    let layers = Layers {
        lower: &[lower.as_fd()],
        data: &[objects.as_fd()],
        upper: Some((upper.as_fd(), work.as_fd())),
        volatile: request.volatile,
    };
    match crate::overlay::mount(&layers) {
        Err(OverlayError::Mount(_))
            if request
                .layer
                .clear_volatile_mark(work.as_fd(), request.volatile)? =>
        {
            Ok(crate::overlay::mount(&layers)?)
        }
        result => Ok(result?),
    }
}

/// Adds to an error what this kernel cannot do at all, if that may be its cause.
fn explain(store: &Store, error: StoreError) -> StoreError {
    let errno = match &error {
        StoreError::Sys(error) => Some(error.errno),
        StoreError::Io { source, .. } => Errno::from_io_error(source),
        _ => None,
    };
    if !matches!(
        errno,
        Some(
            Errno::INVAL
                | Errno::PERM
                | Errno::ACCESS
                | Errno::OPNOTSUPP
                | Errno::NOSYS
                | Errno::NODEV
        )
    ) {
        return error;
    }
    let missing: Vec<_> = crate::probe::probe(store)
        .into_iter()
        .filter_map(|feature| Some(format!("{}: {}", feature.name, feature.result.err()?)))
        .collect();
    if missing.is_empty() {
        return error;
    }
    StoreError::Unsupported(format!(
        "the presenter {} does not work here: {error}. Missing: {}",
        TmpfsMetacopy::NAME,
        missing.join("; ")
    ))
}

/// A detached clone of an image's tree. `ENOENT` when it has not been built.
fn clone_tree(store: &Store, tree: &TreeName) -> Result<OwnedFd, SysError> {
    let path = format!("trees/{}", tree.text());
    open_tree(
        store.directory(),
        &path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
    )
    .attempt(|| format!("clone the mount at {}", store.path(&path).display()))
}

/// True when every ID is the same on both sides: then the tree's owners are right as they are (and
/// the kernel refuses an ID map that is the file system's own).
fn is_identity(maps: &IdMaps) -> bool {
    [&maps.uid, &maps.gid]
        .into_iter()
        .flat_map(|map| map.extents())
        .all(|extent| extent.inside == extent.outside)
}

/// Builds an image's tree unless it is there.
fn build_tree(store: &Store, tree: &TreeName) -> Result<(), StoreError> {
    let _lock = store.lock_shared()?;
    let trees = open_trees(store)?;
    let name = tree.text();
    if rustix::fs::statat(&trees, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Ok(());
    }
    let index = store.open_image_index(&tree.chain_id.text())?;
    let body = index.body()?;
    let temporary = format!("building-{}", unique_name()?);
    let path = store.path("trees").join(&temporary);
    let result = rustix::fs::mkdirat(&trees, &temporary, Mode::RWXU)
        .and_then(|()| {
            rustix::fs::openat(
                &trees,
                &temporary,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        })
        .on("make", || path.clone())
        .and_then(|directory| {
            crate::metadata_tree::build(body, directory.as_fd(), tree.single_id, &path)
        })
        .and_then(|()| {
            match rustix::fs::renameat_with(
                &trees,
                &temporary,
                &trees,
                &name,
                RenameFlags::NOREPLACE,
            ) {
                Ok(()) => Ok(true),
                // Somebody else was faster.
                Err(Errno::EXIST) => Ok(false),
                Err(errno) => Err(errno).on("name", || path.clone()),
            }
        });
    if !matches!(result, Ok(true)) {
        let removed =
            crate::remove_tree::remove_tree_at(trees.as_fd(), temporary.as_bytes(), &path);
        if let Err(error) = removed {
            // Garbage that `system prune` finds; the outcome does not depend on it.
            tracing::warn!("{error}");
        }
    }
    result.map(drop)
}

/// Removes what is called `name` below `trees/`. It loses its name first: a tree that is only half
/// there when we are killed must not be taken for whole.
pub(crate) fn discard_tree(store: &Store, name: &str) -> Result<(), StoreError> {
    let path = store.path("trees").join(name);
    let trees = match open_trees_directory(store) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.on("remove", || path.clone())?,
    };
    let doomed = format!("removing-{}", unique_name()?);
    match rustix::fs::renameat(&trees, name, &trees, &doomed) {
        Ok(()) => crate::remove_tree::remove_tree_at(trees.as_fd(), doomed.as_bytes(), &path),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).on("remove", || path),
    }
}

/// The root of the tmpfs of trees, mounted if it is not.
fn open_trees(store: &Store) -> Result<OwnedFd, StoreError> {
    let path = || store.path("trees");
    let on_disk = match open_trees_directory(store) {
        Err(Errno::NOENT) => {
            // Somebody removed it, and with it the mount.
            match rustix::fs::mkdirat(store.directory(), "trees", Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => open_trees_directory(store),
                Err(errno) => Err(errno),
            }
        }
        other => other,
    }
    .on("open", path)?;
    if is_mounted(store, &on_disk)? {
        return Ok(on_disk);
    }
    // The lock is on the covered directory: whoever waited for it looks again by name.
    rustix::fs::flock(&on_disk, FlockOperation::LockExclusive).on("lock", path)?;
    let now = open_trees_directory(store).on("open", path)?;
    if is_mounted(store, &now)? {
        return Ok(now);
    }
    let mount = tmpfs()?;
    move_mount(
        &mount,
        "",
        &now,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
    .attempt(|| format!("mount a tmpfs at {}", path().display()))?;
    open_trees_directory(store).on("open", path)
}

fn open_trees_directory(store: &Store) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        store.directory(),
        "trees",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// True when `trees` is our tmpfs, false when it is the directory on disk (the store itself may lie
/// on a tmpfs, so the type alone says nothing).
fn is_mounted(store: &Store, trees: &OwnedFd) -> Result<bool, StoreError> {
    let path = || store.path("trees");
    let outer = rustix::fs::fstat(store.directory()).on("look at", || store.root().to_owned())?;
    let inner = rustix::fs::fstat(trees).on("look at", path)?;
    if outer.st_dev == inner.st_dev {
        return Ok(false);
    }
    let kind = rustix::fs::fstatfs(trees).on("look at", path)?.f_type;
    if u64::try_from(kind) == Ok(TMPFS_MAGIC) {
        return Ok(true);
    }
    Err(StoreError::Unsupported(format!(
        "something else is mounted at {} (type {kind:x}); unmount it",
        path().display()
    )))
}

/// A detached tmpfs for metadata trees.
pub(crate) fn tmpfs() -> Result<OwnedFd, SysError> {
    let context =
        fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).attempt(|| "open the tmpfs file system")?;
    // The kernel counts 1 KiB for each inode and its attributes; half of the memory, as tmpfs
    // allows itself for content by default. Images are not trusted to stay below that.
    let memory = rustix::system::sysinfo();
    let bytes = memory.totalram.saturating_mul(memory.mem_unit.into());
    let inodes = (bytes / 2 / 1024).max(64 * 1024).to_string();
    for (key, value) in [
        ("source", "selkie"),
        ("mode", "0700"),
        ("nr_inodes", &inodes),
    ] {
        fsconfig_set_string(&context, key, value)
            .attempt(|| format!("set {key}={value} of a tmpfs"))?;
    }
    fsconfig_create(&context).attempt(|| {
        let log = selkie_sys::mount::context_log(context.as_fd());
        format!("make a tmpfs (nr_inodes={inodes}; the kernel says: {log})")
    })?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .attempt(|| "mount a tmpfs")
}
