//! Cloning a child that lives in namespaces which exist already.
//!
//! A process cannot visit such a namespace and come back: going back to the host's takes privileges
//! there that a login does not have. So a short-lived intermediate process goes in, clones the
//! child with `CLONE_PARENT`, which makes it the launching process's own, and exits. It reports the
//! child's PID and pidfd over the child's end of the channel before the child can say anything.
//!
//! The intermediate never enters a PID namespace itself (only its children do), so the container
//! cannot see it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, WaitId, WaitIdOptions, set_dumpable_behavior, waitid,
};
use rustix::thread::{
    ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use selkie_sys::SysError;
use selkie_sys::clone::{CloneNamespaces, Side, clone3, clone3_sibling, exit_now};
use selkie_sys::errno::Attempt;
use selkie_sys::fd_passing::{receive_one, send_one};

use crate::child;
use crate::launch::LaunchError;
use crate::protocol::{Failure, Tag};
use crate::spawn::protocol_error;

/// What exists already and is to be joined.
pub(crate) enum Existing {
    /// Namespaces of the process behind the pidfd.
    OfProcess {
        pidfd: OwnedFd,
        kinds: ThreadNameSpaceType,
        /// `oom_score_adj` of the child.
        oom_score: Option<i32>,
    },
    /// Single ones.
    Each(Vec<(LinuxNamespaceType, OwnedFd)>),
}

/// As the detail of a failure.
const OOM_SCORE: u32 = 1;

impl Existing {
    fn is_empty(&self) -> bool {
        match self {
            Self::OfProcess { kinds, .. } => kinds.is_empty(),
            Self::Each(list) => list.is_empty(),
        }
    }

    /// Moves the calling process; the failure's detail tells which namespace it was.
    fn join(&self) -> Result<(), (Errno, u32)> {
        match self {
            Self::OfProcess {
                pidfd,
                kinds,
                oom_score,
            } => {
                let whole = |errno| (errno, 0);
                if let Some(score) = oom_score {
                    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(whole)?;
                    child::oom_score(*score).map_err(|errno| (errno, OOM_SCORE))?;
                }
                // From the first moment on, nobody in the container may look into the child.
                set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(whole)?;
                move_into_thread_name_spaces(pidfd.as_fd(), *kinds).map_err(whole)
            }
            Self::Each(list) => join_each(list),
        }
    }

    fn describe(&self, detail: u32) -> String {
        match self {
            Self::OfProcess { oom_score, .. } if detail == OOM_SCORE => {
                format!("set oom_score_adj to {}", oom_score.unwrap_or_default())
            }
            Self::OfProcess { kinds, .. } => format!("join the container's namespaces ({kinds:?})"),
            Self::Each(list) => {
                let kind = list.get(detail as usize);
                let kind = kind.map_or("namespace".into(), |(kind, _)| kind.to_string());
                format!("join the {kind} namespace given in the spec")
            }
        }
    }
}

/// Namespaces may belong to our user namespace or to the one that is joined: those that cannot be
/// joined before the user namespace are tried once more after it.
fn join_each(list: &[(LinuxNamespaceType, OwnedFd)]) -> Result<(), (Errno, u32)> {
    let is_user = |kind: LinuxNamespaceType| kind == LinuxNamespaceType::User;
    let join = |index: usize| {
        move_into_link_name_space(list[index].1.as_fd(), None).map_err(|e| (e, index as u32))
    };
    let mut later = 0u64;
    let has_user = list.iter().any(|(kind, _)| is_user(*kind));
    for index in (0..list.len()).filter(|index| !is_user(list[*index].0)) {
        match join(index) {
            Err((Errno::PERM, _)) if has_user => later |= 1 << index,
            result => result?,
        }
    }
    for index in (0..list.len()).filter(|index| is_user(list[*index].0)) {
        join(index)?;
    }
    for index in (0..list.len()).filter(|index| later & (1 << index) != 0) {
        join(index)?;
    }
    Ok(())
}

/// `clone3` into `new` namespaces and `cgroup`, from within the `existing` ones. `ends` are the
/// channel's: the parent's and the child's.
pub(crate) fn clone_through(
    existing: &Existing,
    new: CloneNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
    ends: (&OwnedFd, &OwnedFd),
) -> Result<Side, LaunchError> {
    if existing.is_empty() {
        return Ok(clone3(new, cgroup)?);
    }
    let (parent_end, child_end) = ends;
    // The intermediate is already in the cgroup, which its child inherits: from within the
    // container's cgroup namespace it could not be moved there.
    let intermediate = match clone3(CloneNamespaces::empty(), cgroup)? {
        Side::Child => match pass(existing, new, child_end.as_fd()) {
            Some(side) => return Ok(side),
            None => exit_now(0),
        },
        Side::Parent { pidfd, .. } => pidfd,
    };
    let heard = hear(existing, parent_end.as_fd());
    let reap = || waitid(WaitId::PidFd(intermediate.as_fd()), WaitIdOptions::EXITED);
    rustix::io::retry_on_intr(reap).attempt(|| "reap the intermediate process")?;
    heard
}

/// The intermediate: `Some` in the child it has cloned, `None` in itself when it is done.
fn pass(existing: &Existing, new: CloneNamespaces, channel: BorrowedFd<'_>) -> Option<Side> {
    let failed = |errno, detail| {
        let failure = Failure {
            step: Failure::PASSAGE,
            errno,
            detail,
        };
        // When the parent is gone there is nobody to tell.
        let _ = send_one(channel, &failure.encode(), None);
        None
    };
    // Everybody in a PID namespace may read the command lines in it, and ours is the login's.
    if let Err(errno) = selkie_sys::child::hide_command_line(c"selkie-exec") {
        return failed(errno, 0);
    }
    if let Err((errno, detail)) = existing.join() {
        return failed(errno, detail);
    }
    match clone3_sibling(new, None) {
        Ok(Side::Child) => Some(Side::Child),
        Ok(Side::Parent { pid, pidfd }) => {
            let mut message = [Tag::Child as u8; 5];
            message[1..].copy_from_slice(&pid.as_raw_nonzero().get().to_ne_bytes());
            let _ = send_one(channel, &message, Some(pidfd.as_fd()));
            None
        }
        Err(error) => failed(error.errno, Failure::CLONE_DETAIL),
    }
}

/// What the intermediate has to say.
fn hear(existing: &Existing, channel: BorrowedFd<'_>) -> Result<Side, LaunchError> {
    let mut message = [0; Failure::LENGTH];
    let (length, pidfd) =
        receive_one(channel, &mut message).attempt(|| "listen to the intermediate process")?;
    let message = &message[..length];
    if let Some(failure) = Failure::decode(message) {
        let step = match failure.detail {
            Failure::CLONE_DETAIL => "clone a process in the container".to_owned(),
            detail => existing.describe(detail),
        };
        return Err(SysError::new(step, failure.errno).into());
    }
    match (message, pidfd) {
        ([tag, a, b, c, d], Some(pidfd)) if *tag == Tag::Child as u8 => {
            let pid = i32::from_ne_bytes([*a, *b, *c, *d]);
            let pid = Pid::from_raw(pid).ok_or_else(protocol_error)?;
            Ok(Side::Parent { pid, pidfd })
        }
        _ => Err(protocol_error()),
    }
}
