//! The process that serves names and published ports: its parent's side.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use selkie_sys::clone::{Side, fork};
use selkie_sys::errno::{Attempt, SysResult};
use selkie_sys::process_identity::send_signal;
use serde::{Deserialize, Serialize};

use super::protocol::{Failure, receive, send};
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
    },
    /// It has ended.
    Detach {
        /// Its ID.
        container: String,
    },
    /// A network is no more.
    RemoveNetwork {
        /// Its name.
        name: String,
    },
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
        match fork()? {
            Side::Child => {
                drop(ours);
                process::run(theirs, uplink, resolv_conf)
            }
            Side::Parent { pid, pidfd } => Ok(Self {
                pid: pid.as_raw_nonzero().get(),
                pidfd,
                channel: ours,
                buffer: Vec::new(),
            }),
        }
    }

    /// Tells it, and waits until it is so.
    pub(super) fn call(&mut self, request: &ServiceRequest) -> Result<(), Failure> {
        let dead = || Failure {
            message: "the uplink's services have died".into(),
            hint: Some("they are being started again: try again".into()),
        };
        send(self.channel.as_fd(), request, &[]).map_err(|_| dead())?;
        match receive::<Result<(), Failure>>(&self.channel, &mut self.buffer) {
            Ok(Some((answer, _))) => answer,
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

impl Drop for Services {
    fn drop(&mut self) {
        // Reads nothing that must be finished, and serves nobody any more.
        let _ = send_signal(&self.pidfd, 9);
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
    }
}

mod process;
