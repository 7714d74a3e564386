//! Talking to a container's monitor over its attach socket (`SOCK_SEQPACKET`, one message each).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::Result;

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

impl AttachConnection {
    /// Over a connected socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }
    /// Sends one message; blocks while the monitor is busy.
    pub fn send(&self, message: ToContainer<'_>) -> Result<()> {
        let _ = message;
        todo!()
    }
    /// Receives one message into `buffer` (at least [`MAX_PAYLOAD`] + 1 bytes).
    /// `None`: the monitor is gone without a word.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<Option<FromContainer<'b>>> {
        let _ = buffer;
        todo!()
    }
}

impl AsFd for AttachConnection {
    /// For `poll`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
