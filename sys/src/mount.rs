//! The new mount API where `rustix` lacks a call, and its error log.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::mount::{OpenTreeFlags, open_tree};

use crate::errno::{Attempt, SysError, SysResult};

/// Attributes of a mount that [`set_attributes`] can change (`MOUNT_ATTR_*`, mount_setattr(2)).
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE` or 0 to leave it.
    pub propagation: u64,
}

/// `mount_setattr(2)` on the mount `mount` refers to, with everything below it if `recursive`.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes,
    recursive: bool,
) -> SysResult<()> {
    setattr(mount, attributes, None, recursive)
}

/// Gives a detached mount the ID map of `user_namespace` (`MOUNT_ATTR_IDMAP`): what the file
/// system stores as ID *n* of its own user namespace appears as container ID *n* of that one.
/// Only for file systems owned by a user namespace the caller has `CAP_SYS_ADMIN` in.
pub fn set_idmap(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> SysResult<()> {
    let attributes = MountAttributes {
        set: libc::MOUNT_ATTR_IDMAP,
        ..Default::default()
    };
    setattr(mount, attributes, Some(user_namespace), false)
}

fn setattr(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes,
    user_namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> SysResult<()> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a NUL-terminated literal, `attr` outlives the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == -1 {
        return Err(SysError::last(format!("mount_setattr {attributes:?}")));
    }
    Ok(())
}

/// A private, detached copy of the mount at the directory `tree` (`open_tree(OPEN_TREE_CLONE)`).
pub fn clone_detached(tree: BorrowedFd<'_>, recursive: bool) -> SysResult<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(tree, c"", flags).attempt(|| "open_tree(CLONE)")
}

/// What the kernel logged on a file system context (`fsopen` fd) since the last read: one message
/// per line, its level letter removed. Empty when it has nothing to say.
pub fn context_log(context: BorrowedFd<'_>) -> String {
    let mut log = Vec::new();
    let mut buffer = [0u8; 1024];
    // ENODATA ends it.
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let message = String::from_utf8_lossy(&buffer[..length]);
        let message = message.trim_end();
        log.push(message.get(2..).unwrap_or(message).to_owned());
    }
    log.join("; ")
}
