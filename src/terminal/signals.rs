//! Signals as data: blocked, and read from a `signalfd` in the relay loops.
//!
//! They are blocked only once a container runs and its streams are connected, so that Ctrl-C
//! before that ends the command as usual, and no process forked by the engine inherits the mask.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{CliError, Result};

/// What `--sig-proxy` hands on: everything that can be caught, but faults of our own (SIGSEGV, …),
/// SIGCHLD, SIGPIPE and SIGURG, which are about us, and job control, which is the shell's word to
/// us. Real-time signals are not proxied.
const PROXIED: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGABRT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
];

/// Those that end us by default and so must put the terminal back first.
const ENDING: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// What a received signal asks of the relay loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The terminal has a new size.
    Resize,
    /// Stop until continued (job control).
    Suspend,
    /// Pass it on.
    Proxy(i32),
    /// End, as by this signal.
    End(Signal),
}

/// Blocked signals, readable until dropped.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    before: SigSet,
    proxy: bool,
}

impl Signals {
    /// `proxy`: hand signals on. `raw`: the terminal is in raw mode and must be put back before
    /// anything stops or ends us.
    pub fn block(proxy: bool, raw: bool) -> Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGWINCH);
        if proxy {
            set.extend(PROXIED.iter().copied());
        }
        if raw {
            set.extend(ENDING.iter().copied());
            set.add(Signal::SIGTSTP);
        }
        let failed = |errno| CliError::new(format!("prepare to receive signals: {errno}"));
        let before = SigSet::thread_get_mask().map_err(failed)?;
        set.thread_block().map_err(failed)?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        match fd {
            Ok(fd) => Ok(Self { fd, before, proxy }),
            Err(errno) => {
                let _ = before.thread_set_mask();
                Err(failed(errno))
            }
        }
    }

    /// The next one, if any is waiting.
    pub fn next(&mut self) -> Option<Asked> {
        let info = self.fd.read_signal().ok().flatten()?;
        let number = info.ssi_signo as i32;
        match Signal::try_from(number) {
            Ok(Signal::SIGWINCH) => Some(Asked::Resize),
            Ok(Signal::SIGTSTP) => Some(Asked::Suspend),
            Ok(signal) if !self.proxy => Some(Asked::End(signal)),
            _ => Some(Asked::Proxy(number)),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// Ends this process as the signal does by default (its mask must be back to normal).
pub fn die_of(signal: Signal) -> u8 {
    let _ = nix::sys::signal::raise(signal);
    128u8.saturating_add(signal as u8)
}

/// Stops this process until somebody continues it.
pub fn suspend() {
    let _ = nix::sys::signal::raise(Signal::SIGSTOP);
}
