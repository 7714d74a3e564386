//! One connection passed on: two sockets, and bytes moved between them without copying.
//!
//! Each direction is a *pump*: it splices what a socket has into a pipe and from there into the other
//! socket. A pipe is held only while something moves, so idle connections cost no more than their
//! sockets, and what is under way is bounded by one pipe and the kernel's socket buffers.
//!
//! The end of a direction is passed on as what it was. A FIN becomes a FIN (`shutdown`), and the other
//! direction goes on. A reset becomes a reset, but not before what was read earlier has been delivered:
//! servers that refuse a request often answer, close with input unread, and thereby reset.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::Shutdown;
use rustix::net::sockopt::set_socket_linger;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes a pipe is asked to hold.
const PIPE: usize = 256 * 1024;

/// How many empty pipes are kept for the next transfer.
const KEPT: usize = 32;

/// How long what a reset side said before may take to be delivered.
const FAREWELL: Duration = Duration::from_secs(30);

/// How many times a pump fills its pipe before others have their turn.
const TURNS: u32 = 8;

/// Empty pipes, to be used again.
#[derive(Clone, Default)]
pub(super) struct Pipes(Arc<Mutex<Vec<(OwnedFd, OwnedFd)>>>);

impl Pipes {
    fn take(&self) -> io::Result<Pipe> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (output, input) = match kept {
            Some(ends) => ends,
            None => {
                let ends = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
                // Refused when the login has many large pipes; the kernel's own size will do.
                let _ = fcntl_setpipe_size(&ends.1, PIPE);
                ends
            }
        };
        Ok(Pipe {
            ends: Some((output, input)),
            filled: 0,
            pipes: self.clone(),
        })
    }
}

/// A pipe that goes back to the others if it is empty when it is dropped.
struct Pipe {
    ends: Option<(OwnedFd, OwnedFd)>,
    filled: usize,
    pipes: Pipes,
}

impl Pipe {
    fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let (_, input) = self.ends.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let count = from.try_io(Interest::READABLE, || {
            Ok(splice(from, None, input, None, PIPE, flags)?)
        })?;
        self.filled += count;
        Ok(count)
    }

    fn empty(&mut self, to: &TcpStream) -> io::Result<()> {
        let (output, _) = self.ends.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let count = to.try_io(Interest::WRITABLE, || {
            Ok(splice(output, None, to, None, self.filled, flags)?)
        })?;
        self.filled -= count.min(self.filled);
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut kept = self.pipes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.filled == 0
            && kept.len() < KEPT
            && let Some(ends) = self.ends.take()
        {
            kept.push(ends);
        }
    }
}

/// Why a pump stopped before the end of what it moves.
enum Broken {
    /// The side it reads from was reset.
    From,
    /// The side it writes to was reset.
    To,
    /// It could not go on.
    Pump(io::Error),
}

/// Moves everything from one socket to the other, and then its end, unless `is_last`: the other
/// direction has ended before, so that closing the sockets tells it as well.
async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    pipes: &Pipes,
    is_last: &AtomicBool,
) -> Result<(), Broken> {
    loop {
        from.readable().await.map_err(|_| Broken::From)?;
        let mut pipe = pipes.take().map_err(Broken::Pump)?;
        let mut turns = 0;
        loop {
            match pipe.fill(from) {
                Ok(0) => {
                    if !is_last.swap(true, Ordering::Relaxed) {
                        // Fails only when that side has been reset, which its own pump finds out.
                        let _ = rustix::net::shutdown(to, Shutdown::Write);
                    }
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Broken::From),
            }
            while pipe.filled != 0 {
                match pipe.empty(to) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        to.writable().await.map_err(|_| Broken::To)?;
                    }
                    Err(_) => return Err(Broken::To),
                }
            }
            turns += 1;
            if turns == TURNS {
                break;
            }
        }
        drop(pipe);
        if turns == TURNS {
            tokio::task::yield_now().await;
        }
    }
}

/// Passes on what both sides say until both have ended, or one is reset.
pub(super) async fn relay(client: &TcpStream, server: &TcpStream, pipes: &Pipes) {
    let is_last = AtomicBool::new(false);
    let mut up = pin!(pump(client, server, pipes, &is_last));
    let mut down = pin!(pump(server, client, pipes, &is_last));
    tokio::select! {
        ended = &mut up => rest(ended, client, server, down).await,
        ended = &mut down => rest(ended, server, client, up).await,
    }
}

/// One pump, which read from `near` and wrote to `far`, has `ended`; `other` is the other one.
async fn rest(
    ended: Result<(), Broken>,
    near: &TcpStream,
    far: &TcpStream,
    other: impl Future<Output = Result<(), Broken>>,
) {
    match ended {
        Ok(()) => {
            let broken = tokio::select! {
                ended = other => ended,
                // Nobody reads from there any more, so nobody else would notice.
                _ = near.ready(Interest::ERROR) => Err(Broken::To),
            };
            match broken {
                Ok(()) => {}
                Err(Broken::From) => farewell(near).await,
                Err(Broken::To) => farewell(far).await,
                Err(Broken::Pump(error)) => give_up(near, far, &error),
            }
        }
        Err(Broken::From) => farewell(far).await,
        Err(Broken::To) => {
            // What `far` said before it was reset is still to be read.
            let _ = tokio::time::timeout(FAREWELL, other).await;
            farewell(near).await;
        }
        Err(Broken::Pump(error)) => give_up(near, far, &error),
    }
}

/// Delivers what is in the socket's buffer and makes its end a reset.
async fn farewell(socket: &TcpStream) {
    let delivered = async {
        let mut pause = Duration::from_millis(1);
        while matches!(selkie_sys::socket::unacknowledged(socket.as_fd()), Ok(1..)) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    };
    let _ = tokio::time::timeout(FAREWELL, delivered).await;
    reset(socket);
}

fn give_up(near: &TcpStream, far: &TcpStream, error: &io::Error) {
    tracing::warn!(%error, "no pipe for a connection to a published port; the connection is reset");
    reset(near);
    reset(far);
}

/// Makes closing this socket a reset.
pub(super) fn reset(socket: &TcpStream) {
    // Can fail for a socket only that is none.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}
