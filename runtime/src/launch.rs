//! Launching a container's init process.

use std::os::fd::{BorrowedFd, OwnedFd};

use oci_spec::runtime::Spec;
use rustix::process::Pid;
use selkie_sys::process_identity::ProcessIdentity;

/// Standard streams of the process.
#[derive(Debug)]
pub enum Stdio {
    /// Three descriptors that become 0, 1 and 2.
    Streams {
        /// Read end.
        stdin: OwnedFd,
        /// Write end.
        stdout: OwnedFd,
        /// Write end.
        stderr: OwnedFd,
    },
    /// A new terminal made in the container's own devpts; its master comes back in `Launched`.
    Terminal {
        /// First size (rows, columns).
        size: Option<(u16, u16)>,
    },
}

/// What the caller provides once the container's user namespace exists and is mapped.
#[derive(Debug)]
pub struct ProvidedRoot {
    /// A detached mount that becomes `/`.
    pub root: OwnedFd,
}

/// Everything needed to launch. ID maps come from `spec.linux.uid_mappings/gid_mappings`
/// (container ↔ caller's user namespace) and are written by the caller's process directly.
pub struct LaunchRequest<'a> {
    /// OCI runtime spec; `root.path` is ignored, `root.readonly` honoured. `process.user` holds
    /// numbers; `process.user.username`, when set, is resolved inside the root
    /// (`user`, `uid`, `user:group`, `uid:gid`) and HOME is set if the environment has none.
    pub spec: &'a Spec,
    /// Streams or a terminal.
    pub stdio: Stdio,
    /// Called in the parent with the container's user namespace; gives the root file system.
    pub provide_root:
        &'a mut dyn FnMut(
            BorrowedFd<'_>,
        )
            -> Result<ProvidedRoot, Box<dyn std::error::Error + Send + Sync>>,
    /// A cgroup v2 directory to start in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Run a small init as PID 1 (`--init`): reaps, forwards signals, exits as its child does.
    pub init: bool,
    /// Where compiled seccomp filters are cached.
    pub seccomp_cache_dir: Option<&'a std::path::Path>,
    /// Descriptors from 3 on to hand to the process (`--preserve-fds`).
    pub preserve_fds: Vec<OwnedFd>,
}

/// A container process that is set up and waits before `exec`.
#[derive(Debug)]
pub struct Launched {
    /// In the caller's PID namespace.
    pub pid: Pid,
    /// (PID, start time).
    pub identity: ProcessIdentity,
    /// Refers to it for good.
    pub pidfd: OwnedFd,
    /// Master side, when a terminal was asked for.
    pub terminal: Option<OwnedFd>,
    /// Lets it go, see [`Launched::start`].
    pub gate: OwnedFd,
}

impl Launched {
    /// Lets the process `exec` and waits until it has (or could not).
    ///
    /// # Errors
    /// [`LaunchError::CommandNotFound`] (exit code 127), [`LaunchError::CommandNotExecutable`] (126).
    pub fn start(&mut self) -> Result<(), LaunchError> {
        todo!()
    }
}

/// Sets up a container process up to the point before `exec`. The caller must be single-threaded
/// and have `CAP_SETUID`, `CAP_SETGID` and `CAP_SYS_ADMIN` in its own user namespace.
pub fn launch(request: LaunchRequest<'_>) -> Result<Launched, LaunchError> {
    let _ = request;
    todo!()
}

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No such command (Podman: 127).
    #[error("{0}: executable file not found in the container")]
    CommandNotFound(String),
    /// Found, but it cannot be run (Podman: 126).
    #[error("{0}: {1}")]
    CommandNotExecutable(String, rustix::io::Errno),
    /// The spec asks for what cannot be.
    #[error("{0}")]
    InvalidSpec(String),
    /// A step in the child failed: which and why.
    #[error("{step}: {errno}")]
    Step {
        /// E.g. `mount proc on /proc`.
        step: String,
        /// The kernel's word.
        errno: rustix::io::Errno,
    },
    /// A call in the parent failed.
    #[error(transparent)]
    Sys(#[from] selkie_sys::SysError),
    /// The caller's `provide_root` failed.
    #[error("{0}")]
    Root(Box<dyn std::error::Error + Send + Sync>),
}
