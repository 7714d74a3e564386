//! Joining and inspecting namespaces.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use crate::errno::{Attempt, SysError, SysResult};

/// Joins the given namespaces of the process behind `pidfd` in one call (`setns(2)` with a pidfd).
/// A user namespace can only be joined by a single-threaded process.
pub fn join(pidfd: BorrowedFd<'_>, namespaces: ThreadNameSpaceType) -> SysResult<()> {
    move_into_thread_name_spaces(pidfd, namespaces)
        .attempt(|| format!("setns into {namespaces:?} of a process"))
}

/// Joins one namespace by its own descriptor (`setns(2)` with an nsfs file).
pub fn join_by_fd(namespace: BorrowedFd<'_>) -> SysResult<()> {
    // SAFETY: setns takes two integers and touches no memory of ours; a zero type accepts any kind.
    if unsafe { libc::setns(namespace.as_raw_fd(), 0) } == -1 {
        return Err(SysError::last("setns"));
    }
    Ok(())
}

/// The user namespace that owns `namespace` (`NS_GET_USERNS`, ioctl_ns(2)).
pub fn owning_user_namespace(namespace: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    namespace_ioctl(
        namespace,
        NS_GET_USERNS,
        "find the user namespace that owns a namespace",
    )
}

/// The parent of a user or PID namespace (`NS_GET_PARENT`, ioctl_ns(2)).
/// `EPERM` when the parent is outside the caller's own namespace.
pub fn parent(namespace: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    namespace_ioctl(namespace, NS_GET_PARENT, "find the parent of a namespace")
}

/// The UID that made a user namespace, as the caller's own namespace numbers it
/// (`NS_GET_OWNER_UID`, ioctl_ns(2)); 65534 when it has no number there.
pub fn owner_uid(user_namespace: BorrowedFd<'_>) -> SysResult<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the request stores one uid_t at the given address, which outlives the call.
    let result = unsafe { libc::ioctl(user_namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid) };
    if result == -1 {
        return Err(SysError::last("find the owner of a user namespace"));
    }
    Ok(uid)
}

/// Moves the calling process into a mount namespace of its own, a copy of the present one
/// (`unshare(CLONE_NEWNS)`).
pub fn unshare_mounts() -> SysResult<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .attempt(|| "unshare the mount namespace")
}

/// Which namespace an open nsfs file is: two descriptors with equal keys mean one namespace. The
/// kernel gives a key to another namespace only after the first is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NamespaceKey {
    /// Device number of nsfs.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl NamespaceKey {
    /// Of an open namespace file.
    pub fn of(namespace: BorrowedFd<'_>) -> SysResult<Self> {
        let stat = rustix::fs::fstat(namespace).attempt(|| "fstat a namespace")?;
        Ok(Self::from_stat(&stat))
    }
    /// Of a `/proc/PID/ns/NAME` link, followed.
    pub fn at(path: &str) -> SysResult<Self> {
        let stat = rustix::fs::stat(path).attempt(|| format!("stat {path}"))?;
        Ok(Self::from_stat(&stat))
    }
    fn from_stat(stat: &rustix::fs::Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;
const NS_GET_USERNS: libc::c_ulong = 0xb701;
const NS_GET_PARENT: libc::c_ulong = 0xb702;

fn namespace_ioctl(
    namespace: BorrowedFd<'_>,
    request: libc::c_ulong,
    attempt: &str,
) -> SysResult<OwnedFd> {
    // SAFETY: both requests take no argument and return a new descriptor or -1.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), request) };
    if fd == -1 {
        return Err(SysError::last(attempt));
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
