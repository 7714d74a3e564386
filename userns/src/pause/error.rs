//! What can go wrong on the way into the login's namespace, and what to do about it. Every text
//! stands in docs/subuid.md, which a test checks.

use std::path::PathBuf;

use selkie_sys::SysError;

use super::ATTEMPTS;
use crate::map_helpers::MapHelperError;
use crate::subordinate_ids::SubordinateIdError;

/// What went wrong, with the fix.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The login's subordinate IDs are set up wrongly.
    #[error(transparent)]
    SubordinateIds(#[from] SubordinateIdError),
    /// The ID maps could not be written.
    #[error(transparent)]
    MapHelper(#[from] MapHelperError),
    /// The runtime directory could be somebody else's work.
    #[error("will not use the runtime directory {}: {why}; {fix}", .path.display())]
    RuntimeDirUntrusted {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        fix: String,
    },
    /// The current directory exists outside but not (or not the same) inside.
    #[error(
        "the current directory {} cannot be reached from the login's mount namespace: {why}; it is \
         probably on a file system mounted for this session only; run the command from another \
         directory",
        .path.display()
    )]
    WorkingDirectory {
        /// The directory.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// The caller had started threads.
    #[error(
        "cannot join the login's user namespace with {count} threads running: this is a mistake in \
         Selkie, please report it"
    )]
    Threads {
        /// How many.
        count: u64,
    },
    /// The caller is in another user namespace from which the login's cannot be entered.
    #[error(
        "this process is in another user namespace (a container, or a shell of `podman unshare` or \
         the like), from which the login's own, held by process {pid}, cannot be joined; leave it \
         and run the command outside, or set XDG_RUNTIME_DIR to another directory inside"
    )]
    OtherNamespace {
        /// The pause process.
        pid: i32,
    },
    /// A sysctl allows none.
    #[error(
        "user namespaces are switched off on this host ({sysctl} = 0); as root: sysctl -w \
         {sysctl}=28633, and the same in /etc/sysctl.d to keep it"
    )]
    NamespacesOff {
        /// Its name.
        sysctl: &'static str,
    },
    /// Too many exist.
    #[error(
        "the limit of user namespaces is reached (user.max_user_namespaces = {limit}, or 32 nested \
         ones); end what holds them, or as root: sysctl -w user.max_user_namespaces={}",
        .limit.saturating_mul(2)
    )]
    NamespaceLimit {
        /// The limit.
        limit: u64,
    },
    /// Debian's switch.
    #[error(
        "logins may not make user namespaces on this host (kernel.unprivileged_userns_clone = 0); \
         as root: sysctl -w kernel.unprivileged_userns_clone=1, and the same in /etc/sysctl.d to \
         keep it"
    )]
    CloneForbidden,
    /// Ubuntu's switch.
    #[error(
        "AppArmor keeps logins from using user namespaces ({attempt} was refused, and \
         kernel.apparmor_restrict_unprivileged_userns = 1); as root, give the selkie program an \
         AppArmor profile with `userns,` in /etc/apparmor.d, or: sysctl -w \
         kernel.apparmor_restrict_unprivileged_userns=0"
    )]
    AppArmor {
        /// The step.
        attempt: String,
    },
    /// The kernel makes none for a process in a chroot.
    #[error(
        "no user namespace can be made inside a chroot; enter that root with pivot_root instead \
         (unshare --mount --root does not; bwrap or systemd-nspawn do)"
    )]
    InChroot,
    /// Not compiled in.
    #[error("this kernel has no user namespaces (CONFIG_USER_NS); boot a kernel that has them")]
    NotInKernel,
    /// No further process may be made.
    #[error(
        "{0}: this login may not start another process; end some, or raise its limit (ulimit -u, or \
         the pids limit of its cgroup: TasksMax= in systemd)"
    )]
    ProcessLimit(SysError),
    /// Refused, and no known setting explains it.
    #[error(
        "{0}; no sysctl forbids it, so it is probably a seccomp filter or security module around \
         this process (a container or sandbox); run Selkie outside of it or allow the call there"
    )]
    Denied(SysError),
    /// A namespace's maps make no sense.
    #[error("cannot use the ID maps in {path}: {why}; see that /proc is mounted and readable")]
    UnreadableMaps {
        /// The file.
        path: String,
        /// What happened.
        why: String,
    },
    /// The pause process was killed while it was made.
    #[error(
        "the new pause process ended before it was ready; something killed it: run the command again"
    )]
    CreationCutShort,
    /// It was killed or its directory removed again and again.
    #[error(
        "the pause process or {} vanished {ATTEMPTS} times while joining; find out what kills the \
         process selkie-pause or cleans that directory",
        .runtime_dir.display()
    )]
    Vanishing {
        /// The runtime directory.
        runtime_dir: PathBuf,
    },
}
