//! What the engine says to the uplink's supervisor, and what it hears: one JSON text a message over a
//! `SOCK_SEQPACKET` socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::connector::Dedicated;
use crate::member::Member;
use crate::network::Network;
use rustix::io::Errno;
use selkie_sys::errno::{SysError, SysResult};
use selkie_sys::fd_passing;

/// Longest message. A container with 10,000 published ranges fits.
pub(super) const MESSAGE_SIZE: usize = 1 << 20;

/// To the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Connects a container, completely and as said: what it has and `member` does not name is taken
    /// away. With it come its network namespace and a pidfd of its init, whose end disconnects it.
    Attach {
        /// The container.
        member: Member,
        /// Those that `member` is in.
        networks: Vec<Network>,
        /// A connector of its own instead.
        dedicated: Option<Dedicated>,
        /// It runs and has lost its uplink: published ports that others have taken since are left out,
        /// with a warning, rather than keeping it off its networks.
        #[serde(default)]
        reconnects: bool,
    },
    /// Forgets a container.
    Detach {
        /// Its ID.
        container: String,
    },
    /// A network's definition has changed in what its name server goes by.
    ChangeNetwork {
        /// As it is now.
        network: Network,
    },
    /// Removes a network's bridge.
    RemoveNetwork {
        /// The network.
        network: Network,
    },
    /// Asks how things are.
    Status,
}

/// From the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done {
        /// What works less well than it should, for people; said once per uplink.
        warnings: Vec<String>,
    },
    /// Not done, and nothing of it left.
    Failed(Failure),
    /// Answer to [`Request::Status`].
    Status(Status),
}

/// Why a request failed.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What was attempted and what stood against it.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// How the uplink is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// PID of the supervisor.
    pub supervisor: i32,
    /// PID of the process that serves names and published ports.
    pub services: Option<i32>,
    /// PID of the program that connects the uplink with the host.
    pub connector: Option<i32>,
    /// Its name, or why there is none.
    pub connected_by: String,
    /// Why TCP connections out of containers are not made by the services but go by way of the connector;
    /// `None` when they are not.
    #[serde(default)]
    pub tcp_by_connector: Option<String>,
    /// IDs of the containers that are connected.
    pub containers: Vec<String>,
}

/// Sends one message.
pub(super) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> SysResult<()> {
    let text = serde_json::to_vec(message)
        .map_err(|_| SysError::new("write a message to the uplink", Errno::INVAL))?;
    if text.len() > MESSAGE_SIZE {
        return Err(SysError::new(
            format!("send {} bytes to the uplink", text.len()),
            Errno::MSGSIZE,
        ));
    }
    fd_passing::send(socket, &text, fds)
}

/// Receives one message; `None` when the peer has closed.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> SysResult<Option<(T, Vec<OwnedFd>)>> {
    buffer.resize(MESSAGE_SIZE, 0);
    let (length, fds) = match fd_passing::receive(socket.as_fd(), buffer) {
        Ok(received) => received,
        Err(error) if error.errno == Errno::CONNRESET => return Ok(None),
        Err(error) => return Err(error),
    };
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[..length]).map_err(|error| {
        SysError::new(
            format!("understand a message about the uplink ({error})"),
            Errno::BADMSG,
        )
    })?;
    Ok(Some((message, fds)))
}
