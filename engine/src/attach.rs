//! Talking to a container's monitor over its attach socket (`SOCK_SEQPACKET`, one message each).
//!
//! A message is one tag byte and its payload. A client that reads slowly holds the container back
//! only when it was there from the start (`run`, `start --attach`); a late one loses output instead.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use crate::error::{Error, Result};
use crate::layout::open_dir;

/// A connection to a running container's streams.
#[derive(Debug)]
pub struct AttachConnection {
    socket: OwnedFd,
}

/// From the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToContainer<'a> {
    /// Bytes for standard input.
    Stdin(&'a [u8]),
    /// No more will come.
    StdinEof,
    /// The client's terminal has this size now.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Send me no output, only how it ended.
    ExitOnly,
}

/// From the container.
#[derive(Debug, PartialEq, Eq)]
pub enum FromContainer<'a> {
    /// Bytes of standard output (or the terminal).
    Stdout(&'a [u8]),
    /// Bytes of standard error.
    Stderr(&'a [u8]),
    /// It has ended (and, with `--rm`, is gone) with this exit code.
    Exited(i32),
}

/// Largest payload of one message in bytes.
pub const MAX_PAYLOAD: usize = 32 * 1024;

mod tag {
    pub const STDIN: u8 = 0;
    pub const STDIN_EOF: u8 = 1;
    pub const RESIZE: u8 = 2;
    pub const EXIT_ONLY: u8 = 3;
    pub const STDOUT: u8 = 16;
    pub const STDERR: u8 = 17;
    pub const EXITED: u8 = 18;
}

impl AttachConnection {
    /// Over a connected socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Two ends of a new connection: the client's, and the socket for the monitor.
    pub(crate) fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| Error::machine("make a socket pair for the container's streams", errno))?;
        Ok((Self { socket: ours }, theirs))
    }

    /// Connects to the monitor listening as `name` in `dir`; `None` when nobody listens there.
    pub(crate) fn connect(dir: &Path, name: &str) -> Result<Option<Self>> {
        if !dir.exists() {
            return Ok(None);
        }
        let dir = open_dir(dir)?;
        let socket = seqpacket_socket(SocketFlags::CLOEXEC)?;
        match rustix::net::connect(&socket, &address(dir.as_fd(), name)?) {
            Ok(()) => Ok(Some(Self { socket })),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(errno) => Err(Error::machine("connect to the container's monitor", errno)),
        }
    }

    /// Sends one message; blocks while the monitor is busy.
    ///
    /// # Errors
    /// The monitor is gone (`EPIPE`); the payload is over [`MAX_PAYLOAD`].
    pub fn send(&self, message: ToContainer<'_>) -> Result<()> {
        let size;
        let (tag, payload) = match message {
            ToContainer::Stdin(bytes) => (tag::STDIN, bytes),
            ToContainer::StdinEof => (tag::STDIN_EOF, &[][..]),
            ToContainer::Resize { rows, columns } => {
                let [a, b] = rows.to_le_bytes();
                let [c, d] = columns.to_le_bytes();
                size = [a, b, c, d];
                (tag::RESIZE, &size[..])
            }
            ToContainer::ExitOnly => (tag::EXIT_ONLY, &[][..]),
        };
        if payload.len() > MAX_PAYLOAD {
            return Err(Error::machine(
                "send to the container's monitor",
                Errno::MSGSIZE,
            ));
        }
        send_message(self.as_fd(), tag, payload, SendFlags::empty())
            .map_err(|errno| Error::machine("send to the container's monitor", errno))
    }

    /// Receives one message into `buffer` (at least [`MAX_PAYLOAD`] + 1 bytes).
    /// `None`: the monitor is gone without a word.
    ///
    /// # Errors
    /// The kernel's; a message that is none of ours.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<Option<FromContainer<'b>>> {
        let message = match receive_message(self.as_fd(), buffer, RecvFlags::empty()) {
            Ok(message) => message,
            Err(Errno::CONNRESET) => None,
            Err(errno) => {
                return Err(Error::machine(
                    "receive from the container's monitor",
                    errno,
                ));
            }
        };
        let Some((tag, payload)) = message else {
            return Ok(None);
        };
        match (tag, payload) {
            (tag::STDOUT, bytes) => Ok(Some(FromContainer::Stdout(bytes))),
            (tag::STDERR, bytes) => Ok(Some(FromContainer::Stderr(bytes))),
            (tag::EXITED, &[a, b, c, d]) => Ok(Some(FromContainer::Exited(i32::from_le_bytes([
                a, b, c, d,
            ])))),
            _ => Err(Error::machine(
                "receive from the container's monitor",
                format!("unknown message {tag} of {} bytes", payload.len()),
            )),
        }
    }
}

impl AsFd for AttachConnection {
    /// For `poll`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The monitor's end of one connection; never blocks.
#[derive(Debug)]
pub(crate) struct ServerEnd {
    socket: OwnedFd,
}

/// What became of a message to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is on its way.
    Yes,
    /// The client reads too slowly just now.
    Full,
    /// The client is gone.
    Gone,
}

impl ServerEnd {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Sends without waiting.
    pub(crate) fn send(&self, message: &FromContainer<'_>) -> Sent {
        let code;
        let (tag, payload) = match message {
            FromContainer::Stdout(bytes) => (tag::STDOUT, *bytes),
            FromContainer::Stderr(bytes) => (tag::STDERR, *bytes),
            FromContainer::Exited(exit) => {
                code = exit.to_le_bytes();
                (tag::EXITED, &code[..])
            }
        };
        match send_message(self.as_fd(), tag, payload, SendFlags::DONTWAIT) {
            Ok(()) => Sent::Yes,
            Err(Errno::WOULDBLOCK | Errno::NOBUFS) => Sent::Full,
            Err(_) => Sent::Gone,
        }
    }

    /// Receives without waiting. `Ok(None)`: nothing there (or nothing of meaning); `Err`: the
    /// client is gone.
    pub(crate) fn receive<'b>(
        &self,
        buffer: &'b mut [u8],
    ) -> std::result::Result<Option<ToContainer<'b>>, Errno> {
        match receive_message(self.as_fd(), buffer, RecvFlags::DONTWAIT) {
            Ok(Some((tag::STDIN, bytes))) => Ok(Some(ToContainer::Stdin(bytes))),
            Ok(Some((tag::STDIN_EOF, _))) => Ok(Some(ToContainer::StdinEof)),
            Ok(Some((tag::RESIZE, &[a, b, c, d]))) => Ok(Some(ToContainer::Resize {
                rows: u16::from_le_bytes([a, b]),
                columns: u16::from_le_bytes([c, d]),
            })),
            Ok(Some((tag::EXIT_ONLY, _))) => Ok(Some(ToContainer::ExitOnly)),
            Ok(Some(_)) | Err(Errno::WOULDBLOCK) => Ok(None),
            Ok(None) => Err(Errno::PIPE),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for ServerEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket listening as `name` in the directory `dir`; an old one of that name is replaced.
pub(crate) fn listen(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let attempt = "make the attach socket";
    let socket = seqpacket_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let address = address(dir, name)?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty())
                .map_err(|errno| Error::machine(attempt, errno))?;
            rustix::net::bind(&socket, &address)
        }
        other => other,
    }
    .map_err(|errno| Error::machine(attempt, errno))?;
    rustix::net::listen(&socket, 64).map_err(|errno| Error::machine(attempt, errno))?;
    Ok(socket)
}

/// Through `/proc/self/fd`, since paths of sockets may have 107 bytes only.
fn address(dir: BorrowedFd<'_>, name: &str) -> Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd;
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
        .map_err(|errno| Error::machine(format!("name the attach socket {name}"), errno))
}

fn seqpacket_socket(flags: SocketFlags) -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|errno| Error::machine("make a socket", errno))
}

fn send_message(
    socket: BorrowedFd<'_>,
    tag: u8,
    payload: &[u8],
    flags: SendFlags,
) -> std::result::Result<(), Errno> {
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(&[tag]), IoSlice::new(payload)],
            &mut SendAncillaryBuffer::default(),
            flags | SendFlags::NOSIGNAL,
        )
    })
    .map(|_| ())
}

/// One message, split; `None` at the end of the connection.
fn receive_message<'b>(
    socket: BorrowedFd<'_>,
    buffer: &'b mut [u8],
    flags: RecvFlags,
) -> std::result::Result<Option<(u8, &'b [u8])>, Errno> {
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(buffer)],
            &mut RecvAncillaryBuffer::default(),
            flags,
        )
    })?;
    Ok(buffer[..received.bytes]
        .split_first()
        .map(|(tag, payload)| (*tag, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_in_both_directions() {
        let (client, server) = AttachConnection::pair().unwrap();
        let server = ServerEnd::new(server);
        let mut buffer = vec![0; MAX_PAYLOAD + 1];
        let big = vec![7u8; MAX_PAYLOAD];
        client.send(ToContainer::Stdin(&big)).unwrap();
        client.send(ToContainer::StdinEof).unwrap();
        let size = ToContainer::Resize {
            rows: 50,
            columns: 300,
        };
        client.send(size).unwrap();
        assert_eq!(
            server.receive(&mut buffer).unwrap(),
            Some(ToContainer::Stdin(&big))
        );
        assert_eq!(
            server.receive(&mut buffer).unwrap(),
            Some(ToContainer::StdinEof)
        );
        assert_eq!(server.receive(&mut buffer).unwrap(), Some(size));
        assert_eq!(server.receive(&mut buffer).unwrap(), None);

        assert_eq!(server.send(&FromContainer::Stdout(b"hi")), Sent::Yes);
        assert_eq!(server.send(&FromContainer::Stderr(b"")), Sent::Yes);
        assert_eq!(server.send(&FromContainer::Exited(-1)), Sent::Yes);
        drop(server);
        assert_eq!(
            client.receive(&mut buffer).unwrap(),
            Some(FromContainer::Stdout(b"hi"))
        );
        assert_eq!(
            client.receive(&mut buffer).unwrap(),
            Some(FromContainer::Stderr(b""))
        );
        assert_eq!(
            client.receive(&mut buffer).unwrap(),
            Some(FromContainer::Exited(-1))
        );
        assert_eq!(client.receive(&mut buffer).unwrap(), None);
        assert!(client.send(ToContainer::StdinEof).is_err());
    }

    #[test]
    fn a_slow_client_is_noticed_without_waiting() {
        let (client, server) = AttachConnection::pair().unwrap();
        let server = ServerEnd::new(server);
        let big = vec![7u8; MAX_PAYLOAD];
        let mut sent = 0;
        while server.send(&FromContainer::Stdout(&big)) == Sent::Yes {
            sent += 1;
            assert!(sent < 10_000, "never full");
        }
        assert_eq!(server.send(&FromContainer::Stdout(&big)), Sent::Full);
        drop(client);
        assert_eq!(server.send(&FromContainer::Stdout(&big)), Sent::Gone);
    }

    #[test]
    fn long_directories_can_hold_sockets_and_old_sockets_are_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("d".repeat(120));
        std::fs::create_dir(&dir).unwrap();
        let name = "f".repeat(64);
        assert!(AttachConnection::connect(&dir, &name).unwrap().is_none());
        drop(listen(open_dir(&dir).unwrap().as_fd(), &name).unwrap());
        assert!(AttachConnection::connect(&dir, &name).unwrap().is_none());
        let _listening = listen(open_dir(&dir).unwrap().as_fd(), &name).unwrap();
        assert!(AttachConnection::connect(&dir, &name).unwrap().is_some());
        let nowhere = temp.path().join("gone");
        assert!(
            AttachConnection::connect(&nowhere, &name)
                .unwrap()
                .is_none()
        );
    }
}
