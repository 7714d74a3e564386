//! Where a container's output goes: our standard output or error, written without ever waiting in
//! `write`, so that a reader who has stopped reading cannot keep signals from the container.
//!
//! The streams may be shared with other processes, so they are not made non-blocking. Instead a
//! pipe is written in portions of `PIPE_BUF` bytes after `poll` said there is room, which cannot
//! block (pipe(7)); files and terminals are written as they come.

use std::os::fd::BorrowedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

/// What a pipe with room takes without blocking.
const PIPE_BUF: usize = 4096;

/// One output stream and what it has not taken yet.
#[derive(Debug)]
pub struct Sink<'fd> {
    fd: BorrowedFd<'fd>,
    pending: Vec<u8>,
    written: usize,
    portion: usize,
    is_wanted: bool,
    state: State,
}

/// Whether anybody can still take what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Yes.
    Open,
    /// The reader is gone; output is dropped.
    Broken,
    /// Writing failed for another reason (disk full); output is dropped.
    Failed(Errno),
}

impl<'fd> Sink<'fd> {
    /// Writes to `fd`; drops everything when it is not wanted.
    pub fn new(fd: BorrowedFd<'fd>, is_wanted: bool) -> Self {
        let waits = rustix::fs::fstat(fd).is_ok_and(|stat| {
            matches!(
                FileType::from_raw_mode(stat.st_mode),
                FileType::Fifo | FileType::Socket
            )
        });
        Self {
            fd,
            pending: Vec::new(),
            written: 0,
            portion: if waits { PIPE_BUF } else { usize::MAX },
            is_wanted,
            state: State::Open,
        }
    }

    /// Takes bytes to write, and begins to.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.is_wanted && self.state == State::Open {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// True while something waits to be written.
    pub fn is_waiting(&self) -> bool {
        self.written < self.pending.len()
    }

    /// Whether the reader is still there.
    pub fn state(&self) -> State {
        self.state
    }

    /// The stream, for `poll`.
    pub fn fd(&self) -> BorrowedFd<'fd> {
        self.fd
    }

    /// Writes one portion; call when `poll` says there is room.
    pub fn write_portion(&mut self) {
        let end = self
            .pending
            .len()
            .min(self.written.saturating_add(self.portion));
        match rustix::io::write(self.fd, &self.pending[self.written..end]) {
            Ok(count) => self.written += count,
            Err(Errno::INTR | Errno::AGAIN) => {}
            // EIO is a terminal that has hung up.
            Err(Errno::PIPE | Errno::IO | Errno::CONNRESET) => self.give_up(State::Broken),
            Err(errno) => self.give_up(State::Failed(errno)),
        }
        if !self.is_waiting() {
            self.pending.clear();
            self.written = 0;
        }
    }

    fn give_up(&mut self, state: State) {
        self.state = state;
        self.pending.clear();
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_pipe_gets_everything_in_order() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let reader = std::thread::spawn(move || {
            use std::io::Read;
            let mut all = Vec::new();
            std::fs::File::from(read).read_to_end(&mut all).unwrap();
            all
        });
        let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let mut sink = Sink::new(write.as_fd(), true);
        for part in data.chunks(30_000) {
            sink.push(part);
            while sink.is_waiting() {
                let fd = sink.fd();
                let mut fds = [rustix::event::PollFd::new(
                    &fd,
                    rustix::event::PollFlags::OUT,
                )];
                rustix::event::poll(&mut fds, None).unwrap();
                sink.write_portion();
            }
        }
        assert_eq!(sink.state(), State::Open);
        drop(write);
        assert!(reader.join().unwrap() == data);
    }

    #[test]
    fn a_closed_pipe_takes_nothing_and_keeps_nothing() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(read);
        let mut sink = Sink::new(write.as_fd(), true);
        sink.push(b"lost");
        sink.write_portion();
        assert_eq!(sink.state(), State::Broken);
        sink.push(b"also lost");
        assert!(!sink.is_waiting());
    }
}
