//! Signals as something to `poll` (`signalfd(2)`), for processes that sit in a loop.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::errno::{Attempt, SysResult};

pub use nix::sys::signal::Signal as SignalName;

/// Signals blocked in the calling thread and read from a descriptor instead.
#[derive(Debug)]
pub struct SignalQueue {
    fd: SignalFd,
}

impl SignalQueue {
    /// Blocks `queued` and `ignored` in the calling thread; the former can then be read. Children
    /// inherit the mask: whoever executes another program there must clear it.
    pub fn new(queued: &[Signal], ignored: &[Signal]) -> SysResult<Self> {
        let queue: SigSet = queued.iter().copied().collect();
        let mut blocked = queue;
        blocked.extend(ignored.iter().copied());
        blocked.thread_block().attempt(|| "block signals")?;
        let fd = SignalFd::with_flags(&queue, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .attempt(|| "make a signalfd")?;
        Ok(Self { fd })
    }

    /// The next signal that came, if any.
    pub fn next(&self) -> SysResult<Option<Signal>> {
        let info = self
            .fd
            .read_signal()
            .attempt(|| "read a signal from a signalfd")?;
        Ok(info.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok()))
    }
}

impl AsFd for SignalQueue {
    /// For `poll`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queued_signal_is_read_and_does_not_kill() {
        std::thread::spawn(|| {
            let queue = SignalQueue::new(&[Signal::SIGUSR1], &[Signal::SIGUSR2]).unwrap();
            assert_eq!(queue.next().unwrap(), None);
            nix::sys::signal::raise(Signal::SIGUSR1).unwrap();
            assert_eq!(queue.next().unwrap(), Some(Signal::SIGUSR1));
        })
        .join()
        .unwrap();
    }
}
