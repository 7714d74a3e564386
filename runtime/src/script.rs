//! The script a cloned child runs, prepared in full by its parent.
//!
//! After `clone3` the child only performs [`Step`]s: every path is a `CString`, every number is
//! computed, every buffer has its size. A step that fails is reported by its index, and the parent,
//! which holds the same script, words it with [`Step::describe`].

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;
use selkie_sys::clone::CloneNamespaces;
use selkie_sys::exec::PreparedCommand;
use selkie_sys::seccomp::Instruction;

use crate::in_root::Kind;

/// Index into the table of detached mounts.
pub(crate) type Slot = usize;

/// Where a path starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// The container's root.
    Root,
    /// A mount this script has made itself, which therefore holds no foreign links.
    Mount(Slot),
}

/// A path inside the container.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) base: Base,
    /// Relative to `base`.
    pub(crate) path: CString,
    /// As the spec has it, for messages.
    pub(crate) shown: String,
}

/// A file system to be made with `fsopen`.
#[derive(Debug, Clone)]
pub(crate) struct NewFileSystem {
    /// `proc`, `tmpfs`, …
    pub(crate) kind: CString,
    /// Parameters, in order; flags have no value.
    pub(crate) parameters: Vec<(CString, Option<CString>)>,
    /// `MOUNT_ATTR_*` from the start.
    pub(crate) attributes: u32,
}

/// The last identity change.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    /// Bounding set.
    pub(crate) bounding: CapabilitySet,
    /// Permitted set.
    pub(crate) permitted: CapabilitySet,
    /// Effective set.
    pub(crate) effective: CapabilitySet,
    /// Inheritable set.
    pub(crate) inheritable: CapabilitySet,
    /// Ambient set.
    pub(crate) ambient: CapabilitySet,
    /// Root gets no ambient and inheritable capabilities (see `credentials`).
    pub(crate) ambient_for_non_root_only: bool,
    /// With a group map of one ID the kernel may deny `setgroups`; then the login's stay.
    pub(crate) setgroups_may_be_denied: bool,
    /// `CAP_SYS_ADMIN` is needed once more, to load the seccomp filter.
    pub(crate) keep_sys_admin: bool,
    /// Set `no_new_privs`.
    pub(crate) no_new_privileges: bool,
}

/// One thing the child does.
#[derive(Debug)]
pub(crate) enum Step {
    /// Makes namespaces that the parent has no part in, while it goes on.
    Unshare(CloneNamespaces),
    /// Waits until the ID maps are written, then becomes the container's root.
    AssumeRoot { uid: u32, gid: u32 },
    /// Becomes root of the container whose namespaces this process was cloned in.
    AssumeJoinedRoot { uid: u32, gid: u32 },
    /// Opens a directory of the container that has been joined.
    OpenDirectory { slot: Slot, path: CString },
    /// `setsid`, and an own session keyring.
    NewSession,
    /// Brings up the loopback device of a new network namespace.
    Loopback,
    /// Hands the parent the network namespace made before, for it to connect.
    GiveNetwork,
    /// `sethostname`.
    HostName(String),
    /// `setdomainname`.
    DomainName(String),
    /// Makes a file system in a slot; when the first cannot be had, the second.
    Create {
        slot: Slot,
        file_system: NewFileSystem,
        otherwise: Option<NewFileSystem>,
    },
    /// Clones a host path the child itself can reach (device nodes, `/sys`).
    CloneHostPath {
        slot: Slot,
        path: CString,
        recursive: bool,
    },
    /// Links and places for device nodes in a `/dev`.
    PopulateDev { target: Target },
    /// Waits for the root file system and puts it over `/` of the child's mount namespace.
    AttachRoot,
    /// Puts the mount in a slot on its target.
    Attach {
        slot: Slot,
        target: Target,
        kind: Kind,
    },
    /// Copies what the root holds at the target into the (not yet attached) slot.
    CopyUp { slot: Slot, target: Target },
    /// `mount_setattr`.
    Restrict {
        slot: Slot,
        attributes: u64,
        recursive: bool,
        shown: String,
    },
    /// Makes a terminal in the devpts of the slot and sends its master to the parent.
    OpenTerminal {
        slot: Slot,
        size: Option<(u16, u16)>,
        /// Where it is shown too, for a container's own terminal.
        console: Option<Target>,
    },
    /// Covers a path with nothing; a missing one is skipped.
    Mask { target: Target, null: Slot },
    /// Makes a path read-only; a missing one is skipped.
    ReadOnly { target: Target },
    /// Writes a sysctl through the proc of the slot.
    Sysctl {
        slot: Slot,
        path: CString,
        value: String,
        name: String,
    },
    /// Opens the working directory; may make it.
    OpenWorkingDirectory {
        path: CString,
        create: bool,
        shown: String,
    },
    /// Root read-only.
    ReadOnlyRoot,
    /// Makes the root the only thing there is.
    Pivot { propagation: u64, recursive: bool },
    /// Waits to be told who to be; makes that user owner of the terminal and of a working directory
    /// that was made.
    AwaitUser,
    /// `setrlimit`.
    Limit {
        resource: Resource,
        limit: Rlimit,
        name: String,
    },
    /// `/proc/self/oom_score_adj`.
    OomScore(i32),
    /// `personality(2)`.
    Personality(u32),
    /// Descriptors 0, 1, 2 and the preserved ones; all others close on exec.
    PlaceDescriptors,
    /// IDs, groups, capabilities, `no_new_privs`, umask, working directory.
    BecomeUser {
        credentials: Credentials,
        umask: u32,
    },
    /// Tells the parent that all it has to know of is done. What follows up to the gate goes on while
    /// the parent puts the start on record.
    Ready,
    /// Waits to be let go.
    Gate,
    /// Forks: the child goes on, this process stays as PID 1.
    Init,
    /// Looks which of the command's paths exist.
    FindCommand,
    /// Loads the filter (last, so that it need not allow what comes before).
    Seccomp {
        program: Vec<Instruction>,
        flags: u32,
    },
    /// `execve`, trying each path found.
    Execute,
}

/// What [`Step::FindCommand`] and [`Step::Execute`] report as detail.
pub(crate) mod execute_detail {
    /// No candidate exists.
    pub(crate) const NOT_FOUND: u32 = 0;
    /// It exists, but its interpreter does not.
    pub(crate) const NO_INTERPRETER: u32 = 1;
    /// It exists and cannot be run.
    pub(crate) const NOT_EXECUTABLE: u32 = 2;
}

/// What [`Step::Attach`] reports as detail when it knows more than the errno.
pub(crate) mod attach_detail {
    /// The destination is a directory, the source is not.
    pub(crate) const ONTO_DIRECTORY: u32 = 1;
    /// The destination is not a directory, the source is.
    pub(crate) const ONTO_FILE: u32 = 2;
}

/// Standard streams of the process.
#[derive(Debug)]
pub(crate) enum ScriptStdio {
    Streams([OwnedFd; 3]),
    Terminal,
}

/// Everything the child needs.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) steps: Vec<Step>,
    /// Detached mounts: those the parent has opened, and places for the child's own.
    pub(crate) slots: Vec<Option<OwnedFd>>,
    pub(crate) stdio: ScriptStdio,
    /// Become 3, 4, …
    pub(crate) preserve_fds: Vec<OwnedFd>,
    pub(crate) command: PreparedCommand,
    /// Paths to try, in order.
    pub(crate) candidates: Vec<CString>,
    /// The environment lacks HOME: take the user's.
    pub(crate) wants_home: bool,
}

impl Step {
    /// What the step attempts, for an error message; `detail` as the child reported it.
    pub(crate) fn describe(&self, detail: u32) -> String {
        match self {
            Self::Unshare(namespaces) => format!("make new namespaces ({namespaces:?})"),
            Self::AssumeRoot { uid, gid } | Self::AssumeJoinedRoot { uid, gid } => {
                format!("become {uid}:{gid} of the container's user namespace")
            }
            Self::OpenDirectory { path, .. } => {
                format!("open /{} in the container", path.to_string_lossy())
            }
            Self::NewSession => "start a session with a keyring of its own".into(),
            Self::Loopback => "bring up the loopback device".into(),
            Self::GiveNetwork => "hand over the container's network namespace".into(),
            Self::HostName(name) => format!("set the host name to {name:?}"),
            Self::DomainName(name) => format!("set the domain name to {name:?}"),
            Self::Create { file_system, .. } => describe_create(file_system, detail),
            Self::CloneHostPath { path, .. } => {
                format!("take {} from the host", path.to_string_lossy())
            }
            Self::PopulateDev { .. } => "fill /dev".into(),
            Self::AttachRoot => "attach the container's root file system".into(),
            Self::Attach { target, .. } => {
                let why = match detail {
                    attach_detail::ONTO_DIRECTORY => {
                        " (there is a directory, what is mounted is not one)"
                    }
                    attach_detail::ONTO_FILE => {
                        " (there is a file, what is mounted is a directory)"
                    }
                    _ => "",
                };
                format!("mount on {}{why}", target.shown)
            }
            Self::CopyUp { target, .. } => {
                format!("copy the content of {} into its tmpfs", target.shown)
            }
            Self::Restrict { shown, .. } => format!("set mount options of {shown}"),
            Self::OpenTerminal { .. } => "make a terminal in /dev/pts".into(),
            Self::Mask { target, .. } => format!("mask {}", target.shown),
            Self::ReadOnly { target } => format!("make {} read-only", target.shown),
            Self::Sysctl { name, value, .. } => format!("set sysctl {name} to {value:?}"),
            Self::OpenWorkingDirectory { shown, .. } => {
                format!("enter the working directory {shown}")
            }
            Self::ReadOnlyRoot => "make the root file system read-only".into(),
            Self::Pivot { .. } => "pivot_root into the container's root file system".into(),
            Self::AwaitUser => "hand terminal and working directory to the container's user".into(),
            Self::Limit { limit, name, .. } => format!(
                "set {name} to {}:{}",
                describe_limit(limit.current),
                describe_limit(limit.maximum)
            ),
            Self::OomScore(score) => format!("set oom_score_adj to {score}"),
            Self::Personality(persona) => format!("set the personality to {persona:#x}"),
            Self::PlaceDescriptors => "lay out file descriptors".into(),
            Self::BecomeUser { .. } => become_user_detail::describe(detail).into(),
            Self::Ready => "say that all is ready".into(),
            Self::Gate => "wait to be started".into(),
            Self::Init => "start the command below the init process".into(),
            Self::FindCommand => "find the command".into(),
            Self::Seccomp { .. } => "load the seccomp filter".into(),
            Self::Execute => "execute the command".into(),
        }
    }
}

/// Parts of [`Step::BecomeUser`].
pub(crate) mod become_user_detail {
    pub(crate) const NO_NEW_PRIVILEGES: u32 = 0;
    pub(crate) const BOUNDING: u32 = 1;
    pub(crate) const GROUPS: u32 = 2;
    pub(crate) const IDS: u32 = 3;
    pub(crate) const CAPABILITIES: u32 = 4;
    pub(crate) const AMBIENT: u32 = 5;
    pub(crate) const WORKING_DIRECTORY: u32 = 6;

    pub(super) fn describe(detail: u32) -> &'static str {
        match detail {
            NO_NEW_PRIVILEGES => "set no_new_privs",
            BOUNDING => "limit the bounding capability set",
            GROUPS => "set the supplementary groups",
            IDS => "become the container's user",
            CAPABILITIES => "set the capabilities",
            AMBIENT => "set the ambient capabilities",
            _ => "enter the working directory",
        }
    }
}

/// Detail of [`Step::Create`]: 0 is the mount as a whole, `n` its `n`th parameter.
fn describe_create(file_system: &NewFileSystem, detail: u32) -> String {
    let kind = file_system.kind.to_string_lossy();
    let parameter = detail
        .checked_sub(1)
        .and_then(|index| file_system.parameters.get(index as usize));
    match parameter {
        Some((key, Some(value))) => format!(
            "make a {kind} with option {}={}",
            key.to_string_lossy(),
            value.to_string_lossy()
        ),
        Some((key, None)) => format!("make a {kind} with option {}", key.to_string_lossy()),
        None => format!("make a {kind}"),
    }
}

fn describe_limit(limit: Option<u64>) -> String {
    limit.map_or("unlimited".into(), |limit| limit.to_string())
}
