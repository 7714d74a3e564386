//! Passing open file descriptors over a Unix socket (`SCM_RIGHTS`, unix(7)).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use rustix::io::Errno;

use crate::errno::{Attempt, SysResult};

/// Most descriptors that travel in one message.
pub const MAX_FDS: usize = 64;

/// Sends `payload` (not empty) and `fds` (at most [`MAX_FDS`]) as one message.
pub fn send(socket: BorrowedFd<'_>, payload: &[u8], fds: &[BorrowedFd<'_>]) -> SysResult<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::TOOBIG)
            .attempt(|| format!("pass {} descriptors", fds.len()));
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(
            socket,
            &[IoSlice::new(payload)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })
    .attempt(|| "send descriptors over a socket")?;
    Ok(())
}

/// Receives one message into `payload`: how many bytes came (0: the peer closed), and the
/// descriptors with it, close-on-exec.
pub fn receive(socket: BorrowedFd<'_>, payload: &mut [u8]) -> SysResult<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(payload)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .attempt(|| "receive descriptors from a socket")?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    Ok((message.bytes, fds))
}

/// Like [`send`] with at most one descriptor, and allocating nothing even on failure: for children
/// between `clone` and `exec`.
pub fn send_one(
    socket: BorrowedFd<'_>,
    payload: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(
            socket,
            &[IoSlice::new(payload)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })
    .map(drop)
}

/// Like [`receive`] with at most one descriptor, and allocating nothing even on failure.
///
/// A peer that closed its end with messages unread shows as `ECONNRESET` once, before what it has
/// sent itself: that is not an error here.
pub fn receive_one(
    socket: BorrowedFd<'_>,
    payload: &mut [u8],
) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(
            socket,
            &mut [IoSliceMut::new(payload)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(Errno::INTR | Errno::CONNRESET) => {}
            result => break result?,
        }
    };
    let mut received = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = part {
            received = fds.next();
        }
    }
    Ok((message.bytes, received))
}
