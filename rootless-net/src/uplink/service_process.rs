//! A confined process of the supervisor's that serves strangers: its parent's side.
//!
//! It is forked from the supervisor, enters its sandbox, and says once by itself that it serves or why
//! it cannot. It is killed when this handle is dropped, and by the kernel when the supervisor dies.

pub(super) mod inside;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use selkie_sys::clone::{Side, exit_now, fork};
use selkie_sys::errno::{Attempt, SysResult};
use selkie_sys::process_identity::send_signal;
use serde::{Deserialize, Serialize};

use super::protocol::{Failure, receive, send};
use crate::forwarder::PublishError;

/// What such a process answers, with the ports that were left out; also once, by itself, when it serves
/// or cannot.
pub(super) type Answer = Result<Vec<PublishError>, ServiceFailure>;

/// Why it could not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ServiceFailure {
    /// A port could not be published.
    Publish(PublishError),
    /// Anything else.
    Other(Failure),
}

impl From<ServiceFailure> for Failure {
    fn from(failure: ServiceFailure) -> Self {
        match failure {
            ServiceFailure::Publish(mut error) => {
                // They may not look at other processes; the supervisor may.
                error.look_for_process();
                Failure {
                    message: error.to_string(),
                    hint: None,
                }
            }
            ServiceFailure::Other(failure) => failure,
        }
    }
}

/// The running process.
#[derive(Debug)]
pub(super) struct ServiceProcess {
    /// For people: `the uplink's services`.
    name: &'static str,
    pid: i32,
    pidfd: OwnedFd,
    channel: OwnedFd,
    buffer: Vec<u8>,
}

impl ServiceProcess {
    /// Forks it; `run` is what it does, given its end of the channel and its parent. The process ends
    /// with it. The caller has one thread.
    pub(super) fn fork(name: &'static str, run: impl FnOnce(OwnedFd, Pid)) -> SysResult<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .attempt(|| format!("make a channel to {name}"))?;
        let parent = rustix::process::getpid();
        match fork()? {
            Side::Child => {
                drop(ours);
                run(theirs, parent);
                exit_now(0)
            }
            Side::Parent { pid, pidfd } => Ok(Self {
                name,
                pid: pid.as_raw_nonzero().get(),
                pidfd,
                channel: ours,
                buffer: Vec::new(),
            }),
        }
    }

    /// Waits until it serves.
    pub(super) fn ready(&mut self) -> Result<(), Failure> {
        self.answer().map(drop)
    }

    /// Tells it, and waits until it is so. Gives why ports were left out.
    pub(super) fn call<R: Serialize>(&mut self, request: &R) -> Result<Vec<String>, Failure> {
        send(self.channel.as_fd(), request, &[]).map_err(|_| self.dead())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Vec<String>, Failure> {
        match receive::<Answer>(&self.channel, &mut self.buffer) {
            Ok(Some((Ok(left_out), _))) => Ok(left_out
                .into_iter()
                .map(|error| Failure::from(ServiceFailure::Publish(error)).message)
                .collect()),
            Ok(Some((Err(failure), _))) => Err(failure.into()),
            Ok(None) | Err(_) => Err(self.dead()),
        }
    }

    fn dead(&self) -> Failure {
        Failure {
            message: format!("{} died", self.name),
            hint: Some("what died is being started again: try again".into()),
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        // Reads nothing that must be finished, and serves nobody any more.
        let _ = send_signal(&self.pidfd, 9);
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
    }
}
