//! Launching a container's init process.
//!
//! Theory of operation. The spec becomes a script ([`crate::prepare`]); one `clone3` makes a child
//! in all new namespaces, which performs it ([`crate::child`]) while the parent, in parallel,
//! writes the ID maps, has the root file system made and looks up the user in it:
//!
//! ```text
//! parent                                   child
//! clone3 ───────────────────────────────▶  waits for the maps
//! uid_map, gid_map; opens the userns  ──▶  becomes root, makes /proc, /dev, … detached
//! provide_root(userns)                ──▶  attaches root and mounts, pivots, …
//! reads passwd and group in the root  ──▶  becomes the user
//!                                     ◀──  ready: loads the seccomp filter, waits at the gate
//! Launched::start                     ──▶  execs
//! ```
//!
//! Whatever fails on either side, the parent kills and reaps the child before it returns. The
//! child dies by itself when the parent does (see [`crate::protocol`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{LinuxPersonalityDomain, Process, Spec};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, set_dumpable_behavior};
use selkie_sys::SysResult;
use selkie_sys::clone::{CloneNamespaces, Side};
use selkie_sys::errno::Attempt;
use selkie_sys::fd_passing::{receive_one, send_one};
use selkie_sys::process_identity::ProcessIdentity;

use crate::child::{self, Buffers};
use crate::id_maps::{Map, Maps};
use crate::namespaces::Namespaces;
use crate::passage::{Existing, clone_through};
use crate::prepare::{Preparation, invalid};
use crate::process_steps;
use crate::protocol::{Failure, Tag};
use crate::script::{Script, ScriptStdio, Step};
use crate::spawn::{Handover, Setup, Wording, give_pipes, protocol_error};
use crate::user_database::{self, ResolvedUser, UserError};

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

/// Makes the root file system for the given user namespace.
pub type ProvideRoot<'a> = dyn FnMut(BorrowedFd<'_>) -> Result<ProvidedRoot, Box<dyn std::error::Error + Send + Sync>>
    + 'a;

/// Connects the container's network, given its namespace and a pidfd of its init.
pub type ConnectNetwork<'a> = dyn FnMut(BorrowedFd<'_>, BorrowedFd<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    + 'a;

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
    pub provide_root: &'a mut ProvideRoot<'a>,
    /// Called in the parent once the container's own network namespace exists, while the child makes
    /// its mounts. Only where the spec asks for a new one.
    pub connect_network: Option<&'a mut ConnectNetwork<'a>>,
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
    /// Its mount namespace, if it is a new container's: while this is open, taking all its mounts
    /// apart is not part of its end.
    pub mount_namespace: Option<OwnedFd>,
    /// Lets it go, see [`Launched::start`]. Closing it instead ends the process.
    pub gate: OwnedFd,
    /// Words what the child reports.
    pub(crate) wording: Wording,
}

impl Launched {
    /// Lets the process `exec` and waits until it has (or could not, or fails on the way there).
    ///
    /// # Errors
    /// [`LaunchError::CommandNotFound`] and [`LaunchError::InterpreterNotFound`] (exit code 127),
    /// [`LaunchError::CommandNotExecutable`] (126). The process has then exited, and is the
    /// caller's to reap.
    pub fn start(&mut self) -> Result<(), LaunchError> {
        match send_one(self.gate.as_fd(), &[Tag::Go as u8], None) {
            // It has said why and is gone.
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => {}
            result => result.attempt(|| "let the container process go")?,
        }
        let mut message = [0; Failure::LENGTH];
        let received = match receive_one(self.gate.as_fd(), &mut message) {
            // Gone before it read our message; the kernel says so once, before what it has said.
            Err(Errno::CONNRESET) => receive_one(self.gate.as_fd(), &mut message),
            result => result,
        };
        let (length, _) = received.attempt(|| "wait for the container process to exec")?;
        match (length, Failure::decode(&message[..length])) {
            (0, _) => Ok(()),
            (_, Some(failure)) => Err(self.wording.error(failure)),
            _ => Err(protocol_error()),
        }
    }
}

/// Sets up a container process up to the point before `exec`. The caller must be single-threaded
/// and have `CAP_SETUID`, `CAP_SETGID` and `CAP_SYS_ADMIN` in its own user namespace.
///
/// # Errors
/// See [`LaunchError`]. No process is left behind.
pub fn launch(request: LaunchRequest<'_>) -> Result<Launched, LaunchError> {
    launch_meanwhile(request, &mut |_| {})
}

/// As [`launch`]. The child takes most of a millisecond to make its mounts, in which the caller would
/// only wait: `meanwhile` is called then, with the child's identity.
///
/// # Errors
/// As [`launch`].
pub fn launch_meanwhile(
    request: LaunchRequest<'_>,
    meanwhile: &mut dyn FnMut(ProcessIdentity),
) -> Result<Launched, LaunchError> {
    let LaunchRequest {
        spec,
        stdio,
        provide_root,
        connect_network,
        cgroup,
        init,
        seccomp_cache_dir,
        preserve_fds,
    } = request;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| invalid("the spec has no process"))?;
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| invalid("the spec has no linux section"))?;
    let maps = Maps {
        uid: Map::of("UID", linux.uid_mappings())?,
        gid: Map::of("GID", linux.gid_mappings())?,
    };
    let who = Who::of(process, &maps)?;
    let mut namespaces = Namespaces::of(spec)?;
    namespaces.gives_network = connect_network.is_some();
    if namespaces.gives_network && !namespaces.new.contains(CloneNamespaces::NETWORK) {
        return Err(invalid(
            "only a network namespace of its own can be connected",
        ));
    }

    let mut preparation = Preparation::new(spec, &namespaces, &maps.uid, &maps.gid)?;
    preparation.names()?;
    preparation.mounts()?;
    preparation.devices()?;
    if let Stdio::Terminal { size } = stdio {
        preparation.terminal(size)?;
    }
    preparation.hide_paths()?;
    preparation.enter_root(process)?;
    let (mut steps, slots) = preparation.into_steps();
    if let Some(personality) = linux.personality() {
        steps.push(Step::Personality(match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        }));
    }
    let filter = process_steps::filter(linux.seccomp().as_ref(), seccomp_cache_dir)?;
    steps.extend(process_steps::final_steps(
        process,
        maps.gid.is_single(),
        init,
        filter,
    ));

    let (command, candidates) = process_steps::command(process)?;
    let handover = Handover::new(stdio, preserve_fds)?;
    let (parent_end, child_end) = handover.channel()?;
    let script = Script {
        steps,
        slots,
        stdio: handover.stdio,
        preserve_fds: handover.preserve_fds,
        command,
        candidates,
        wants_home: who.wants_home,
    };
    let buffers = Buffers::new();

    // /proc/PID of a process that is not dumpable belongs to the host's root, which would keep us
    // from writing the maps; joining a namespace may have made us so.
    set_dumpable_behavior(DumpableBehavior::Dumpable).attempt(|| "make this process dumpable")?;
    let by_clone = namespaces.made_by_clone();
    let existing = Existing::Each(namespaces.joined);
    let ends = (&parent_end, &child_end);
    let (pid, pidfd) = match clone_through(&existing, by_clone, cgroup, ends)? {
        Side::Child => {
            drop(parent_end);
            child::run(script, child_end, buffers)
        }
        Side::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(child_end);
    let wording = Wording {
        steps: script.steps,
        command: command_name(process),
    };
    let setup = Setup::new(pid, pidfd, parent_end, wording);
    if by_clone.contains(CloneNamespaces::USER) {
        maps.write(pid)?;
    }
    // While it is dumpable, that is, before it becomes the user.
    let mount_namespace = open_namespace(pid, "mnt")?;
    provide(&setup, &maps, &who, provide_root, &script.stdio)?;
    if let Some(connect_network) = connect_network {
        let network = setup.network()?;
        connect_network(network.as_fd(), setup.pidfd()?).map_err(LaunchError::Network)?;
    }
    meanwhile(ProcessIdentity::of(pid)?);
    let mut launched = setup.finish()?;
    launched.mount_namespace = Some(mount_namespace);
    Ok(launched)
}

/// The parent's part while the child performs its script.
fn provide(
    setup: &Setup,
    maps: &Maps,
    who: &Who,
    provide_root: &mut ProvideRoot<'_>,
    stdio: &ScriptStdio,
) -> Result<(), LaunchError> {
    let user_namespace = open_namespace(setup.pid(), "user")?;
    setup.tell(&[Tag::Maps as u8], None)?;

    let root = provide_root(user_namespace.as_fd()).map_err(LaunchError::Root)?;
    setup.tell(&[Tag::Root as u8], Some(root.root.as_fd()))?;

    introduce(setup, maps, who, root.root.as_fd(), stdio)
}

fn open_namespace(pid: Pid, kind: &str) -> SysResult<OwnedFd> {
    let path = format!("/proc/{}/ns/{kind}", pid.as_raw_nonzero());
    open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).attempt(|| format!("open {path}"))
}

/// Looks up the user in `root` and tells the child.
pub(crate) fn introduce(
    setup: &Setup,
    maps: &Maps,
    who: &Who,
    root: BorrowedFd<'_>,
    stdio: &ScriptStdio,
) -> Result<(), LaunchError> {
    let user = who.resolve(root, maps)?;
    if let (Some(uid), Some(gid)) = (maps.uid.to_outside(user.uid), maps.gid.to_outside(user.gid)) {
        give_pipes(stdio, uid, gid)?;
    }
    setup.tell_user(&user)
}

pub(crate) fn command_name(process: &Process) -> String {
    let name = process.args().iter().flatten().next();
    name.cloned().unwrap_or_default()
}

/// Who the process is to be, before the root is there.
pub(crate) struct Who {
    /// To be resolved; otherwise the numbers below hold.
    name: Option<String>,
    numbers: ResolvedUser,
    pub(crate) wants_home: bool,
}

impl Who {
    pub(crate) fn of(process: &Process, maps: &Maps) -> Result<Self, LaunchError> {
        let user = process.user();
        let numbers = ResolvedUser {
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            home: String::new(),
        };
        let name = user.username().clone();
        if name.is_none() {
            maps.uid.check("user", numbers.uid)?;
            for group in std::iter::once(&numbers.gid).chain(&numbers.groups) {
                maps.gid.check("group", *group)?;
            }
        }
        let environment = process.env().iter().flatten();
        let wants_home = !environment
            .into_iter()
            .any(|entry| entry.starts_with("HOME="));
        Ok(Self {
            name,
            numbers,
            wants_home,
        })
    }

    /// Looks up what needs looking up.
    pub(crate) fn resolve(
        &self,
        root: BorrowedFd<'_>,
        maps: &Maps,
    ) -> Result<ResolvedUser, LaunchError> {
        let Some(name) = &self.name else {
            let mut user = self.numbers.clone();
            if self.wants_home {
                user.home = user_database::resolve(root, &user.uid.to_string())?.home;
            }
            return Ok(user);
        };
        let mut user = user_database::resolve(root, name)?;
        maps.uid.check("user", user.uid)?;
        maps.gid.check("group", user.gid)?;
        // Memberships come from the image and nobody asked for them: one that the container's
        // slice has no ID for cannot be had, which must not keep root from starting.
        user.groups.retain(|group| {
            let mapped = maps.gid.to_outside(*group).is_some();
            if !mapped {
                tracing::debug!("group {group} is not mapped in the container: left out");
            }
            mapped
        });
        Ok(user)
    }
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
    /// Found, but what it names as its interpreter is not there (Podman: 127).
    #[error(
        "{0}: no such file or directory: the interpreter or loader it names is not in the container"
    )]
    InterpreterNotFound(String),
    /// The user cannot be had (Podman: 126).
    #[error(transparent)]
    User(#[from] UserError),
    /// The working directory cannot be entered (Podman: 127 when missing, else 126).
    #[error("working directory {path}: {errno}")]
    WorkingDirectory {
        /// As given.
        path: String,
        /// The kernel's word.
        errno: rustix::io::Errno,
    },
    /// The container to run a process in has ended.
    #[error("the container's process {0} does not run any more")]
    NotRunning(i32),
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
    /// The caller's `connect_network` failed.
    #[error("{0}")]
    Network(Box<dyn std::error::Error + Send + Sync>),
    /// The caller's `provide_root` failed.
    #[error("{0}")]
    Root(Box<dyn std::error::Error + Send + Sync>),
}
