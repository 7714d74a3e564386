//! The process that serves names and published ports: its parent's side.

mod process;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use selkie_sys::clone::{Side, fork};
use selkie_sys::errno::{Attempt, SysResult};
use selkie_sys::process_identity::send_signal;
use serde::{Deserialize, Serialize};

use super::protocol::{Failure, receive, send};
use crate::forwarder::PublishError;
use crate::member::Member;
use crate::network::Network;

/// What the services are told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ServiceRequest {
    /// Names and ports of a container, all of them.
    Attach {
        /// The container.
        member: Member,
        /// Those it is in.
        networks: Vec<Network>,
        /// What of its ports that cannot be had.
        ports: Ports,
    },
    /// It has ended.
    Detach {
        /// Its ID.
        container: String,
    },
    /// A network's definition has changed.
    ChangeNetwork {
        /// As it is now.
        network: Network,
    },
    /// A network is no more.
    RemoveNetwork {
        /// Its name.
        name: String,
    },
}

/// What becomes of a container with published ports that cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ports {
    /// An error, and nothing is published.
    AllOrNothing,
    /// The others are published.
    ThoseThereAre,
}

/// What they answer, with the ports that were left out; also once, by themselves, when they serve or
/// cannot.
pub(super) type ServiceAnswer = Result<Vec<PublishError>, ServiceFailure>;

/// Why they could not.
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
pub(super) struct Services {
    pid: i32,
    pidfd: OwnedFd,
    channel: OwnedFd,
    buffer: Vec<u8>,
}

impl Services {
    /// Forks it. The caller has one thread.
    pub(super) fn start(uplink: BorrowedFd<'_>, resolv_conf: &Path) -> SysResult<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .attempt(|| "make a channel to the uplink's services")?;
        let parent = rustix::process::getpid();
        match fork()? {
            Side::Child => {
                drop(ours);
                process::run(theirs, uplink, resolv_conf, parent)
            }
            Side::Parent { pid, pidfd } => Ok(Self {
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
    pub(super) fn call(&mut self, request: &ServiceRequest) -> Result<Vec<String>, Failure> {
        send(self.channel.as_fd(), request, &[]).map_err(|_| dead())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Vec<String>, Failure> {
        match receive::<ServiceAnswer>(&self.channel, &mut self.buffer) {
            Ok(Some((Ok(left_out), _))) => Ok(left_out
                .into_iter()
                .map(|error| Failure::from(ServiceFailure::Publish(error)).message)
                .collect()),
            Ok(Some((Err(failure), _))) => Err(failure.into()),
            Ok(None) | Err(_) => Err(dead()),
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn dead() -> Failure {
    Failure {
        message: "the uplink's services have died".into(),
        hint: Some("they are being started again: try again".into()),
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // Reads nothing that must be finished, and serves nobody any more.
        let _ = send_signal(&self.pidfd, 9);
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
    }
}
