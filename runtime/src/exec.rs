//! A further process in a running container.
//!
//! Theory of operation. An intermediate process joins all of the container's namespaces in one
//! `setns` by a pidfd and clones the new process, which is in the container's PID namespace and yet
//! the caller's own child ([`crate::passage`]). That one goes through the same last steps as a
//! container's first process.
//!
//! Processes of the container see it in `/proc` from its first moment. What keeps them out
//! (CVE-2016-9962, CVE-2019-5736): the intermediate makes itself not dumpable before it joins, so
//! the child never is; and their memory belongs to the user namespace our binary was executed in,
//! so `ptrace` and `/proc/PID/{exe,fd,mem}` take a capability there that nobody in the container
//! has. What the child opens, it opens without following magic links.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, Process};
use rustix::fs::{Mode, OFlags, open, stat};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::ThreadNameSpaceType;
use selkie_sys::clone::{CloneNamespaces, Side};
use selkie_sys::errno::Attempt;
use selkie_sys::process_identity::ProcessIdentity;
use selkie_sys::{SysError, SysResult};

use crate::child::{self, Buffers};
use crate::id_maps::{Map, Maps};
use crate::launch::{LaunchError, Launched, Stdio, Who, command_name, introduce};
use crate::passage::{Existing, clone_through};
use crate::process_steps;
use crate::script::{Script, Step};
use crate::spawn::{Handover, Setup, Wording};

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
    /// The container's cgroup v2 directory, to be in from the start.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Where compiled seccomp filters are cached.
    pub seccomp_cache_dir: Option<&'a Path>,
    /// Descriptors from 3 on.
    pub preserve_fds: Vec<OwnedFd>,
}

/// Joins the container's namespaces in a child process and prepares the command there; the caller
/// lets it go with [`Launched::start`]. The process is a child of the caller, which reaps it, and
/// which must be single-threaded.
///
/// # Errors
/// See [`LaunchError`]; a container that does not run is [`LaunchError::NotRunning`].
pub fn exec(request: ExecRequest<'_>) -> Result<Launched, LaunchError> {
    let ExecRequest {
        target,
        process,
        seccomp,
        stdio,
        cgroup,
        seccomp_cache_dir,
        preserve_fds,
    } = request;
    let container = Container::open(target)?;
    let maps = container.maps()?;
    let who = Who::of(process, &maps)?;

    let mut steps = vec![
        Step::AssumeJoinedRoot {
            uid: maps.uid.acting_root(),
            gid: maps.gid.acting_root(),
        },
        Step::NewSession,
    ];
    if let Stdio::Terminal { size } = stdio {
        steps.push(Step::OpenDirectory {
            slot: 0,
            path: c"dev/pts".into(),
        });
        steps.push(Step::OpenTerminal {
            slot: 0,
            size,
            console: None,
        });
    }
    steps.extend(process_steps::working_directory(process, false)?);
    steps.push(Step::AwaitUser);
    let filter = process_steps::filter(seccomp, seccomp_cache_dir)?;
    let single = maps.gid.is_single();
    steps.extend(process_steps::final_steps(process, single, false, filter));

    let (command, candidates) = process_steps::command(process)?;
    let handover = Handover::new(stdio, preserve_fds)?;
    let (parent_end, child_end) = handover.channel()?;
    let script = Script {
        steps,
        slots: vec![None],
        stdio: handover.stdio,
        preserve_fds: handover.preserve_fds,
        command,
        candidates,
        wants_home: who.wants_home,
    };
    let buffers = Buffers::new();

    let root = container.root()?;
    let mut existing = container.namespaces;
    if let Existing::OfProcess { oom_score, .. } = &mut existing {
        *oom_score = process.oom_score_adj();
    }
    let none = CloneNamespaces::empty();
    let (pid, pidfd) = match clone_through(&existing, none, cgroup, (&parent_end, &child_end))? {
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
    introduce(&setup, &maps, &who, root.as_fd(), &script.stdio)?;
    setup.finish()
}

/// Every kind of namespace, and where `/proc/PID/ns` has it.
const KINDS: [(&str, ThreadNameSpaceType); 7] = [
    ("user", ThreadNameSpaceType::USER),
    ("mnt", ThreadNameSpaceType::MOUNT),
    ("pid", ThreadNameSpaceType::PROCESS_ID),
    ("net", ThreadNameSpaceType::NETWORK),
    ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    ("cgroup", ThreadNameSpaceType::CONTROL_GROUP),
];

/// A process whose namespaces are the container's.
struct Container {
    pid: Pid,
    /// Those that are not the caller's. One shared with the caller cannot be joined (that would
    /// take privileges over its owner), and need not be.
    namespaces: Existing,
}

impl Container {
    fn open(target: ProcessIdentity) -> Result<Self, LaunchError> {
        let gone = || LaunchError::NotRunning(target.pid);
        let pidfd = target.open()?.ok_or_else(gone)?;
        let pid = Pid::from_raw(target.pid).ok_or_else(gone)?;
        let found = match Self::inspect(pid, pidfd) {
            // Its init may be ours (`--init`), which lets nobody look at it. Its command is then
            // the process to follow: the init's first child, PID 2 in there.
            Err(error) if matches!(error.errno, Errno::ACCESS | Errno::PERM) => {
                let pid = command_below_init(pid).ok_or(error)?;
                let identity = ProcessIdentity::of(pid).map_err(|_| gone())?;
                let pidfd = identity.open()?.ok_or_else(gone)?;
                Self::inspect(pid, pidfd)
            }
            result => result,
        };
        match found {
            // The PID may have become another's while we looked.
            _ if !target.is_running() => Err(gone()),
            result => Ok(result?),
        }
    }

    fn inspect(pid: Pid, pidfd: OwnedFd) -> SysResult<Self> {
        let mut kinds = ThreadNameSpaceType::empty();
        for (name, kind) in KINDS {
            if differs(pid, name)? {
                kinds |= kind;
            }
        }
        Ok(Self {
            pid,
            namespaces: Existing::OfProcess {
                pidfd,
                kinds,
                oom_score: None,
            },
        })
    }

    fn maps(&self) -> Result<Maps, LaunchError> {
        Ok(Maps {
            uid: self.map("uid_map")?,
            gid: self.map("gid_map")?,
        })
    }

    fn map(&self, name: &str) -> SysResult<Map> {
        let path = format!("/proc/{}/{name}", self.pid.as_raw_nonzero());
        let text = std::fs::read_to_string(&path).attempt(|| format!("read {path}"))?;
        Map::parse(&text).ok_or_else(|| SysError::new(format!("parse {path}"), Errno::INVAL))
    }

    /// The container's root directory, as the container sees it.
    fn root(&self) -> SysResult<OwnedFd> {
        let path = format!("/proc/{}/root", self.pid.as_raw_nonzero());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(&path, flags, Mode::empty()).attempt(|| format!("open {path}"))
    }
}

/// Whether the namespace of `pid` is another than the caller's own.
fn differs(pid: Pid, name: &str) -> SysResult<bool> {
    let theirs = format!("/proc/{}/ns/{name}", pid.as_raw_nonzero());
    let ours = format!("/proc/self/ns/{name}");
    let theirs = stat(&theirs).attempt(|| format!("stat {theirs}"))?;
    let ours = stat(&ours).attempt(|| format!("stat {ours}"))?;
    Ok((theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino))
}

/// The child of `init` that is PID 2 in its PID namespace.
fn command_below_init(init: Pid) -> Option<Pid> {
    let init = init.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
    children.split_ascii_whitespace().find_map(|child| {
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let pids = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        (pids.split_ascii_whitespace().last() == Some("2"))
            .then(|| Pid::from_raw(child.parse().ok()?))
            .flatten()
    })
}
