//! The relay loop between the caller and a process started with `exec`, which is our own child.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::Signal::SIGHUP;
use rustix::event::PollFlags;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use selkie_engine::exec::ExecProcess;

use super::caller::{Caller, PollSet, Request, Token, Wishes};
use super::signals::die_of;
use super::sink::State;
use crate::error::{CliError, Result};

/// How a relay ended.
#[derive(Debug)]
pub enum Ended {
    /// The process has ended with this code.
    Exited(i32),
    /// The detach keys were pressed; the process goes on without us.
    Detached,
    /// A signal that was not to be proxied wants us to end with this code.
    Died(u8),
}

const PROCESS: Token = Token::Peer(0);
const STDIN: Token = Token::Peer(1);
const STDOUT: Token = Token::Peer(2);
const STDERR: Token = Token::Peer(3);

/// How long output may still trickle out of a terminal whose process has ended (the kernel hands
/// it over from a work queue), in milliseconds, when something else keeps the terminal open.
const LAST_OUTPUT: i32 = 50;

/// The process's ends that are still open.
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    is_terminal: bool,
}

/// Carries bytes until the process has ended and everything it wrote has been read.
pub fn relay(mut process: ExecProcess, wishes: Wishes) -> Result<Ended> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut streams = Streams::take(&mut process)?;
    let mut caller = Caller::new(wishes, stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
    let request = run(&process, &mut streams, &mut caller)?;
    match request {
        None => {
            caller.flush()?;
            caller.disconnect();
            Ok(Ended::Exited(process.wait()?))
        }
        Some(Request::HangUp) => {
            signal(process.pidfd.as_fd(), SIGHUP as i32);
            caller.disconnect();
            Ok(Ended::Died(die_of(SIGHUP)))
        }
        Some(Request::Die(signal)) => {
            caller.disconnect();
            Ok(Ended::Died(die_of(signal)))
        }
        Some(_) => {
            caller.flush()?;
            caller.disconnect();
            Ok(Ended::Detached)
        }
    }
}

impl Streams {
    fn take(process: &mut ExecProcess) -> Result<Self> {
        let terminal = process.terminal.take();
        let is_terminal = terminal.is_some();
        let streams = match terminal {
            Some(master) => {
                let input = master.try_clone().map_err(|error| {
                    CliError::new(format!("duplicate the terminal's descriptor: {error}"))
                })?;
                Self {
                    stdin: Some(input),
                    stdout: Some(master),
                    stderr: None,
                    is_terminal,
                }
            }
            None => Self {
                stdin: process.stdin.take(),
                stdout: process.stdout.take(),
                stderr: process.stderr.take(),
                is_terminal,
            },
        };
        // These descriptions are ours alone (the process has the other ends), so nobody else is
        // surprised by them not blocking.
        for fd in [&streams.stdin, &streams.stdout, &streams.stderr]
            .into_iter()
            .flatten()
        {
            fcntl_getfl(fd)
                .and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK))
                .map_err(|errno| {
                    CliError::new(format!("prepare the process's streams: {errno}"))
                })?;
        }
        Ok(streams)
    }
}

impl Streams {
    /// What nobody reads on our side, the process shall not be able to write either: it gets
    /// SIGPIPE (or, at a terminal, the hang-up) that it would have got in our place.
    fn close_unread(&mut self, caller: &Caller<'_>) {
        if caller.stdout.state() != State::Open {
            self.stdout = None;
            if self.is_terminal {
                self.stdin = None;
            }
        }
        if caller.stderr.state() != State::Open {
            self.stderr = None;
        }
    }
}

fn run(
    process: &ExecProcess,
    streams: &mut Streams,
    caller: &mut Caller<'_>,
) -> Result<Option<Request>> {
    let mut has_ended = false;
    loop {
        if caller.is_at_end() && !streams.is_terminal {
            streams.stdin = None;
        }
        streams.close_unread(caller);
        let mut set = PollSet::default();
        if !has_ended {
            set.add(PROCESS, process.pidfd.as_fd(), PollFlags::IN);
        }
        if !has_ended
            && !caller.input().is_empty()
            && let Some(stdin) = &streams.stdin
        {
            set.add(STDIN, stdin.as_fd(), PollFlags::OUT);
        }
        if caller.has_room() {
            if let Some(stdout) = &streams.stdout {
                set.add(STDOUT, stdout.as_fd(), PollFlags::IN);
            }
            if let Some(stderr) = &streams.stderr {
                set.add(STDERR, stderr.as_fd(), PollFlags::IN);
            }
        }
        caller.poll(&mut set);
        let patience = match (has_ended && caller.has_room(), streams.is_terminal) {
            (false, _) => None,
            (true, true) => Some(LAST_OUTPUT),
            // A pipe holds all that was written before the process ended.
            (true, false) => Some(0),
        };
        if has_ended && caller.has_room() && streams.stdout.is_none() && streams.stderr.is_none() {
            return Ok(None);
        }
        let mut read_something = false;
        for (token, _) in set.wait(patience)? {
            match token {
                PROCESS => has_ended = true,
                STDIN => write_input(streams, caller),
                STDOUT => read_something |= read_output(&mut streams.stdout, &mut caller.stdout),
                STDERR => read_something |= read_output(&mut streams.stderr, &mut caller.stderr),
                own => match caller.handle(own)? {
                    None => {}
                    Some(Request::Resize(rows, columns)) => resize(streams, rows, columns),
                    Some(Request::Signal(number)) => signal(process.pidfd.as_fd(), number),
                    Some(request) => return Ok(Some(request)),
                },
            }
        }
        if patience.is_some() && !read_something && caller.has_room() {
            return Ok(None);
        }
    }
}

fn write_input(streams: &mut Streams, caller: &mut Caller<'_>) {
    let Some(stdin) = &streams.stdin else { return };
    match rustix::io::write(stdin, caller.input()) {
        Ok(count) => caller.took(count),
        Err(Errno::INTR | Errno::AGAIN) => {}
        Err(_) => {
            // It does not read any more: drop what was meant for it, and its end.
            let rest = caller.input().len();
            caller.took(rest);
            if !streams.is_terminal {
                streams.stdin = None;
            }
        }
    }
}

/// True when something was read.
fn read_output(source: &mut Option<OwnedFd>, sink: &mut super::sink::Sink<'_>) -> bool {
    let Some(fd) = source else { return false };
    let mut buffer = [0; 32 * 1024];
    match rustix::io::read(&*fd, &mut buffer) {
        Ok(count) if count > 0 => {
            sink.push(&buffer[..count]);
            return true;
        }
        Err(Errno::INTR | Errno::AGAIN) => {}
        // End of file; EIO is how a terminal says that nobody has it open any more.
        Ok(_) | Err(_) => *source = None,
    }
    false
}

fn resize(streams: &Streams, rows: u16, columns: u16) {
    let Some(terminal) = streams.stdout.as_ref().filter(|_| streams.is_terminal) else {
        return;
    };
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    if let Err(errno) = rustix::termios::tcsetwinsize(terminal, size) {
        tracing::debug!("resizing the terminal: {errno}");
    }
}

fn signal(pidfd: BorrowedFd<'_>, number: i32) {
    let sent = Signal::from_named_raw(number).map(|signal| pidfd_send_signal(pidfd, signal));
    if let Some(Err(errno)) = sent {
        tracing::debug!("sending signal {number}: {errno}");
    }
}
