//! The caller's end of a relay: standard streams, terminal mode and signals, as one thing that the
//! loops in `attach` and `exec` poll together with the container's end.
//!
//! Theory of operation. One thread, one `poll`, no call that can block: input is read only when
//! the container's end has taken what was read before, output is fetched from there only when both
//! sinks are empty. So back-pressure works in both directions at once, and signals are seen at any
//! time.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::detach_keys::Watcher;
use super::raw_mode::RawMode;
use super::signals::{self, Asked, Signals};
use super::sink::{Sink, State};
use crate::error::{CliError, Result};

/// How the caller wants to be connected.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Hand standard input on.
    pub stdin: bool,
    /// Show standard output.
    pub stdout: bool,
    /// Show standard error.
    pub stderr: bool,
    /// The other end is a terminal.
    pub terminal: bool,
    /// Keys that end the connection; terminals only.
    pub detach_keys: Vec<u8>,
    /// Hand signals on.
    pub proxy_signals: bool,
}

/// What somebody in a set of polled descriptors is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A signal waits.
    Signal,
    /// There is input.
    Input,
    /// Standard output has room.
    Output,
    /// Standard error has room.
    Errors,
    /// A descriptor of the other end, by the loop's own count.
    Peer(usize),
}

/// Descriptors to poll, with what they are.
#[derive(Default)]
pub struct PollSet<'a> {
    fds: Vec<PollFd<'a>>,
    tokens: Vec<Token>,
}

impl<'a> PollSet<'a> {
    /// Adds one.
    pub fn add(&mut self, token: Token, fd: BorrowedFd<'a>, flags: PollFlags) {
        self.fds.push(PollFd::from_borrowed_fd(fd, flags));
        self.tokens.push(token);
    }

    /// Waits, at most `timeout` milliseconds when given, and gives those with something to do.
    pub fn wait(mut self, timeout: Option<i32>) -> Result<Vec<(Token, PollFlags)>> {
        let timeout = timeout.map(|milliseconds| rustix::event::Timespec {
            tv_sec: i64::from(milliseconds / 1000),
            tv_nsec: i64::from(milliseconds % 1000) * 1_000_000,
        });
        match rustix::event::poll(&mut self.fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(CliError::new(format!(
                    "wait for the container's streams: {errno}"
                )));
            }
        }
        Ok(self
            .fds
            .iter()
            .zip(self.tokens)
            .map(|(fd, token)| (token, fd.revents()))
            .filter(|(_, flags)| !flags.is_empty())
            .collect())
    }
}

/// What the caller's end asks of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Tell the container's terminal this size (rows, columns).
    Resize(u16, u16),
    /// Send this signal to the container.
    Signal(i32),
    /// Stop relaying: the detach keys were pressed.
    Detach,
    /// Stop relaying: the caller's terminal has gone. The container hears of it if signals are
    /// handed on.
    HangUp,
    /// Stop relaying and end as by this signal.
    Die(nix::sys::signal::Signal),
}

/// The caller's end.
#[derive(Debug)]
pub struct Caller<'fd> {
    wishes: Wishes,
    stdin: BorrowedFd<'fd>,
    /// Read and not yet taken by the other end.
    input: Vec<u8>,
    at_end: bool,
    keys: Watcher,
    /// Where the container's standard output goes.
    pub stdout: Sink<'fd>,
    /// Where its standard error goes.
    pub stderr: Sink<'fd>,
    raw: Option<RawMode>,
    signals: Signals,
}

/// Bytes of input read at once.
const INPUT_PORTION: usize = 32 * 1024;

impl<'fd> Caller<'fd> {
    /// Connects the given standard streams; puts the terminal into raw mode when both ends are
    /// terminals and input is wanted.
    pub fn new(
        wishes: Wishes,
        stdin: BorrowedFd<'fd>,
        stdout: BorrowedFd<'fd>,
        stderr: BorrowedFd<'fd>,
    ) -> Result<Self> {
        let wants_raw = wishes.terminal && wishes.stdin && rustix::termios::isatty(stdin);
        let signals = Signals::block(wishes.proxy_signals, wants_raw)?;
        let raw = wants_raw.then(RawMode::enter).transpose()?;
        let keys = if wishes.terminal {
            wishes.detach_keys.clone()
        } else {
            // Bytes of a file or pipe are data, whatever they look like.
            Vec::new()
        };
        Ok(Self {
            at_end: !wishes.stdin,
            stdout: Sink::new(stdout, wishes.stdout),
            stderr: Sink::new(stderr, wishes.stderr),
            wishes,
            stdin,
            input: Vec::new(),
            keys: Watcher::new(keys),
            raw,
            signals,
        })
    }

    /// Adds what the caller's end waits for now.
    pub fn poll<'a>(&'a self, set: &mut PollSet<'a>) {
        set.add(Token::Signal, self.signals.as_fd(), PollFlags::IN);
        if !self.at_end && self.input.is_empty() {
            set.add(Token::Input, self.stdin, PollFlags::IN);
        }
        if self.stdout.is_waiting() {
            set.add(Token::Output, self.stdout.fd(), PollFlags::OUT);
        }
        if self.stderr.is_waiting() {
            set.add(Token::Errors, self.stderr.fd(), PollFlags::OUT);
        }
    }

    /// True when more of the container's output may be fetched.
    pub fn has_room(&self) -> bool {
        !self.stdout.is_waiting() && !self.stderr.is_waiting()
    }

    /// Input read and not yet taken.
    pub fn input(&self) -> &[u8] {
        &self.input
    }

    /// The other end has taken this many bytes of it.
    pub fn took(&mut self, count: usize) {
        self.input.drain(..count.min(self.input.len()));
    }

    /// True when all input was taken and no more will come.
    pub fn is_at_end(&self) -> bool {
        self.wishes.stdin && self.at_end && self.input.is_empty()
    }

    /// Does what a ready descriptor of this end asks for.
    pub fn handle(&mut self, token: Token) -> Result<Option<Request>> {
        match token {
            Token::Signal => return self.handle_signal(),
            Token::Input => return Ok(self.read_input()),
            Token::Output => self.stdout.write_portion(),
            Token::Errors => self.stderr.write_portion(),
            Token::Peer(_) => {}
        }
        Ok(None)
    }

    fn handle_signal(&mut self) -> Result<Option<Request>> {
        match self.signals.next() {
            None => Ok(None),
            Some(Asked::Resize) => Ok(self.resize()),
            Some(Asked::Proxy(number)) => Ok(Some(Request::Signal(number))),
            Some(Asked::End(signal)) => Ok(Some(Request::Die(signal))),
            Some(Asked::Suspend) => {
                self.raw = None;
                signals::suspend();
                self.raw = Some(RawMode::enter()?);
                // It may have been another size meanwhile.
                Ok(self.resize())
            }
        }
    }

    fn resize(&self) -> Option<Request> {
        let (rows, columns) = self.wishes.terminal.then(super::size).flatten()?;
        Some(Request::Resize(rows, columns))
    }

    fn read_input(&mut self) -> Option<Request> {
        let mut buffer = vec![0; INPUT_PORTION];
        match rustix::io::read(self.stdin, &mut buffer) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            // In raw mode a terminal has no other end than this.
            Ok(0) | Err(Errno::IO) if self.raw.is_some() => return Some(Request::HangUp),
            Ok(0) => self.at_end = true,
            Ok(count) => {
                let detaches = self.keys.feed(&buffer[..count], &mut self.input);
                return detaches.then_some(Request::Detach);
            }
            // A directory, or a stream closed to us: nothing will come from it.
            Err(errno) => {
                tracing::debug!("reading standard input: {errno}");
                self.at_end = true;
            }
        }
        None
    }

    /// Whether signals are handed on.
    pub fn proxies_signals(&self) -> bool {
        self.wishes.proxy_signals
    }

    /// Puts terminal and signals back as they were, so that what follows (dying of a signal,
    /// printing an error) happens in a normal process.
    pub fn disconnect(self) {}

    /// Writes what is left, waiting for slow readers but not for ever for a signal to end us.
    pub fn flush(&mut self) -> Result<()> {
        while !self.has_room() {
            let mut set = PollSet::default();
            self.poll(&mut set);
            for (token, _) in set.wait(None)? {
                if matches!(token, Token::Output | Token::Errors) {
                    self.handle(token)?;
                } else if token == Token::Signal
                    && let Some(Request::Signal(_) | Request::Die(_)) = self.handle(token)?
                {
                    // The container is gone; whoever sends signals now wants us to go too.
                    return Ok(());
                }
            }
        }
        for (sink, name) in [(&self.stdout, "output"), (&self.stderr, "error")] {
            if let State::Failed(errno) = sink.state() {
                return Err(CliError::new(format!("write to standard {name}: {errno}")));
            }
        }
        Ok(())
    }
}
