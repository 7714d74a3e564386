//! The relay loop between the caller and a container's monitor.

use std::os::fd::AsFd;

use nix::sys::signal::Signal;
use rustix::event::PollFlags;
use selkie_engine::attach::{AttachConnection, FromContainer, MAX_PAYLOAD, ToContainer};

use super::caller::{Caller, PollSet, Request, Token, Wishes};
use super::signals::die_of;
use super::sink::State;
use crate::error::Result;

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The container has ended with this code.
    Exited(i32),
    /// The detach keys were pressed, or nobody reads our output any more; the container goes on.
    Detached,
    /// The monitor went away without a word.
    Lost,
    /// A signal that was not to be proxied wants us to end with this code.
    Died(u8),
}

/// What the loop asks of the container beyond its streams.
pub trait Target {
    /// Sends a signal. Failures are not the relay's business: it may have ended just now.
    fn signal(&self, number: i32);
    /// Standard output cannot be written any more. True: go on without it; false: leave.
    fn output_lost(&self) -> bool;
}

const MONITOR: Token = Token::Peer(0);

/// Carries bytes until either end is done.
pub fn relay(connection: &AttachConnection, wishes: Wishes, target: &dyn Target) -> Result<Ended> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut caller = Caller::new(wishes, stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
    let ended = run(connection, &mut caller, target)?;
    if !matches!(ended, Looped::Die(_)) {
        caller.flush()?;
    }
    caller.disconnect();
    Ok(match ended {
        Looped::Exited(code) => Ended::Exited(code),
        Looped::Detached => Ended::Detached,
        Looped::Lost => Ended::Lost,
        Looped::Die(signal) => Ended::Died(die_of(signal)),
    })
}

enum Looped {
    Exited(i32),
    Detached,
    Lost,
    Die(Signal),
}

fn run(
    connection: &AttachConnection,
    caller: &mut Caller<'_>,
    target: &dyn Target,
) -> Result<Looped> {
    let mut buffer = vec![0; MAX_PAYLOAD + 64];
    let mut resize = None;
    let mut end_to_tell = caller.is_at_end();
    let mut end_told = false;
    let mut output_was_lost = false;
    loop {
        let mut flags = PollFlags::empty();
        if caller.has_room() {
            flags |= PollFlags::IN;
        }
        if !caller.input().is_empty() || resize.is_some() || (end_to_tell && !end_told) {
            flags |= PollFlags::OUT;
        }
        let mut set = PollSet::default();
        if !flags.is_empty() {
            set.add(MONITOR, connection.as_fd(), flags);
        }
        caller.poll(&mut set);
        let mut ready = PollFlags::empty();
        for (token, flags) in set.wait(None)? {
            if token == MONITOR {
                ready = flags;
                continue;
            }
            match caller.handle(token)? {
                None => {}
                Some(Request::Resize(rows, columns)) => resize = Some((rows, columns)),
                Some(Request::Signal(number)) => target.signal(number),
                Some(Request::Detach) => return Ok(Looped::Detached),
                Some(Request::HangUp) => {
                    if caller.proxies_signals() {
                        target.signal(Signal::SIGHUP as i32);
                    }
                    return Ok(Looped::Die(Signal::SIGHUP));
                }
                Some(Request::Die(signal)) => return Ok(Looped::Die(signal)),
            }
            end_to_tell = caller.is_at_end();
        }
        if !output_was_lost && caller.stdout.state() != State::Open {
            output_was_lost = true;
            if !target.output_lost() {
                return Ok(Looped::Detached);
            }
        }
        if ready.contains(PollFlags::OUT) {
            send(connection, caller, &mut resize, end_to_tell, &mut end_told);
        }
        if caller.has_room() && ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            match connection.receive(&mut buffer)? {
                Some(FromContainer::Stdout(bytes)) => caller.stdout.push(bytes),
                Some(FromContainer::Stderr(bytes)) => caller.stderr.push(bytes),
                Some(FromContainer::Exited(code)) => return Ok(Looped::Exited(code)),
                None => return Ok(Looped::Lost),
            }
        }
    }
}

/// Sends one message, which cannot block: `poll` said there is room.
fn send(
    connection: &AttachConnection,
    caller: &mut Caller<'_>,
    resize: &mut Option<(u16, u16)>,
    end_to_tell: bool,
    end_told: &mut bool,
) {
    let sent = if let Some((rows, columns)) = resize.take() {
        connection.send(ToContainer::Resize { rows, columns })
    } else if !caller.input().is_empty() {
        let count = caller.input().len().min(MAX_PAYLOAD);
        let sent = connection.send(ToContainer::Stdin(&caller.input()[..count]));
        caller.took(count);
        sent
    } else if end_to_tell && !*end_told {
        *end_told = true;
        connection.send(ToContainer::StdinEof)
    } else {
        Ok(())
    };
    if let Err(error) = sent {
        // A monitor that is going away has a last word, which receiving will find.
        tracing::debug!("sending to the container: {error}");
    }
}
