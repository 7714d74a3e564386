//! A further process in a running container.

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxSeccomp, Process};
use selkie_sys::process_identity::ProcessIdentity;

use crate::launch::{LaunchError, Launched, Stdio};

/// What to run where.
pub struct ExecRequest<'a> {
    /// The container's init.
    pub target: ProcessIdentity,
    /// As in [`crate::launch::LaunchRequest::spec`].
    pub process: &'a Process,
    /// The container's own filter.
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// Streams or a terminal (made in the container's devpts).
    pub stdio: Stdio,
    /// Where compiled seccomp filters are cached.
    pub seccomp_cache_dir: Option<&'a std::path::Path>,
    /// Descriptors from 3 on.
    pub preserve_fds: Vec<OwnedFd>,
}

/// Joins the container's namespaces in a child process and prepares the command there; the caller
/// lets it go with [`Launched::start`]. The process is a child of the caller, which reaps it.
pub fn exec(request: ExecRequest<'_>) -> Result<Launched, LaunchError> {
    let _ = request;
    todo!()
}
