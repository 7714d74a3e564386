//! The pause process: one per login, holding its user namespace and mount namespace.

use std::path::PathBuf;

use selkie_sys::process_identity::ProcessIdentity;

use crate::id_map::IdMaps;

/// The login whose namespace is wanted, and where its runtime state lives.
#[derive(Debug, Clone)]
pub struct PauseRequest {
    /// Host UID of the login (real UID of the caller).
    pub uid: u32,
    /// Host GID of the login.
    pub gid: u32,
    /// Private directory (0700, the login's) for the pause record and its lock. Recreated if gone.
    pub runtime_dir: PathBuf,
    /// Processes of running containers (their monitors and inits, newest first) in which the
    /// namespace may be found again when the pause process is dead. Asked only then.
    pub find_survivors: fn(&std::path::Path) -> Vec<ProcessIdentity>,
    /// Handed to `find_survivors`: the engine's run directory.
    pub survivors_dir: PathBuf,
}

/// Proof that the calling process is root in the login's pause namespace.
#[derive(Debug, Clone)]
pub struct JoinedPause {
    /// The pause process.
    pub identity: ProcessIdentity,
    /// Pause namespace ID (inside) ↔ host ID (outside); inside 0 is the login.
    pub host_maps: IdMaps,
    /// True when the login has no usable subordinate IDs and so only ID 0 is mapped.
    pub single_id: bool,
    /// Why there are none, with the fix, when `single_id`.
    pub single_id_reason: Option<String>,
}

/// Joins the login's pause namespace, making it first where needed. Must run while the caller has
/// one thread. Afterwards the caller is UID 0 with all capabilities in that namespace, in its mount
/// namespace, in the same current directory.
pub fn join(request: &PauseRequest) -> Result<JoinedPause, PauseError> {
    let _ = request;
    todo!()
}

/// What went wrong, with the fix.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] selkie_sys::SysError),
}
