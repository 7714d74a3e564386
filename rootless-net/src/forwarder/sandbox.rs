//! What the forwarder's process gives up once it is set up.
//!
//! It speaks with whoever can reach a published port, and with name servers, and needs sockets and a
//! few files for that. So: no file but those that tell of name servers can be opened (Landlock), no
//! capability is left but what the thread in the uplink namespace needs, nothing can be executed,
//! mounted, traced or loaded, no namespace entered, no memory made executable, and no socket made but
//! of TCP and UDP (seccomp). A socket to a neighbour's bus, say, would be a way out.
//!
//! Landlock concerns the calling thread and those it starts later; the thread in the uplink namespace
//! must be started before seccomp forbids to enter namespaces, and before this thread's capabilities
//! go. Hence one function does all of it in order.

mod system_calls;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::{Pid, Signal, getppid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use selkie_sys::SysError;
use selkie_sys::errno::Attempt;
use serde::{Deserialize, Serialize};

use super::{Sources, UplinkSockets};

/// What a process is left with.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox<'a> {
    /// Files and directories it may go on reading. Those that do not exist are left out: name a
    /// directory where a file may come and go.
    pub readable: &'a [PathBuf],
    /// Its parent, with which it ends.
    pub parent: Pid,
}

/// How far the kernel went along with Landlock, which depends on its version and configuration. All
/// else is enforced or an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileAccess {
    /// All that was asked for (Linux 6.12).
    Confined,
    /// Only in part: an older kernel.
    PartlyConfined,
    /// The kernel has no Landlock, or it is switched off.
    Unconfined,
}

/// Why a process could not be confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A call failed.
    #[error("confine the forwarder: {0}")]
    System(#[from] SysError),
    /// Landlock refused.
    #[error("confine the forwarder to its files: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter could not be compiled for this machine.
    #[error("confine the forwarder to its system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The parent is gone already.
    #[error("confine the forwarder: its parent, process {0}, has ended")]
    Orphaned(i32),
}

impl Sandbox<'_> {
    /// Enters the sandbox, for good. The caller must be its process's only thread; everything opened
    /// before stays usable. `namespace` is where sockets for containers are made.
    pub fn enter(
        &self,
        namespace: OwnedFd,
        sources: Sources,
    ) -> Result<(UplinkSockets, FileAccess), SandboxError> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .attempt(|| "prctl(PR_SET_PDEATHSIG)")?;
        if getppid() != Some(self.parent) {
            return Err(SandboxError::Orphaned(self.parent.as_raw_pid()));
        }
        rustix::thread::set_no_new_privs(true).attempt(|| "prctl(PR_SET_NO_NEW_PRIVS)")?;
        let files = confine_files(self.readable)?;
        let sockets = UplinkSockets::start(namespace, sources)?;
        drop_capabilities()?;
        for program in system_calls::filters()? {
            system_calls::load(&program)?;
        }
        Ok((sockets, files))
    }
}

fn confine_files(readable: &[PathBuf]) -> Result<FileAccess, landlock::RulesetError> {
    let abi = ABI::V7;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    for path in readable {
        let Some(beneath) = open(path) else { continue };
        ruleset = ruleset.add_rule(beneath)?;
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => FileAccess::Confined,
        RulesetStatus::PartiallyEnforced => FileAccess::PartlyConfined,
        RulesetStatus::NotEnforced => FileAccess::Unconfined,
    })
}

fn open(path: &Path) -> Option<PathBeneath<PathFd>> {
    let is_directory = path.is_dir();
    let access = if is_directory {
        AccessFs::ReadFile | AccessFs::ReadDir
    } else {
        AccessFs::ReadFile.into()
    };
    Some(PathBeneath::new(PathFd::new(path).ok()?, access))
}

fn drop_capabilities() -> Result<(), SysError> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::clear_ambient_capability_set().attempt(|| "prctl(PR_CAP_AMBIENT_CLEAR_ALL)")?;
    set_capabilities(None, none).attempt(|| "give up all capabilities")
}
