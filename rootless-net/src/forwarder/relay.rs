//! One connection passed on: two sockets, and bytes moved between them.
//!
//! Each direction is a *pump*: it reads what a socket has into a buffer and writes that to the other
//! socket. A buffer is held only while something moves, so idle connections cost no more than their
//! sockets, and what is under way is bounded by one buffer and the kernel's socket buffers.
//!
//! Copying is quicker here than `splice`, which hands over the sender's page fragments as they are: one
//! that fills the receive buffer all the time is let send in small steps, and those would become small
//! packets (measured: a quarter of the throughput, in half of all transfers). A write of many bytes
//! makes full ones. For the same reason the last packet of a full buffer waits for what follows.
//!
//! The end of a direction is passed on as what it was. A FIN becomes a FIN (`shutdown`), and the other
//! direction goes on. A reset becomes a reset, but not before what was read earlier has been delivered:
//! servers that refuse a request often answer, close with input unread, and thereby reset.

use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendFlags, Shutdown, send};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::buffers::Buffers;
use super::patience::Patience;

/// How long what a reset side said before may take to be delivered.
const FAREWELL: Duration = Duration::from_secs(30);

/// Bytes of a message after which an end may follow at once.
const SHORT: usize = 4096;

/// After how many bytes a connection is a long one.
const LONG: usize = 1024 * 1024;

/// How many bytes a pump moves before others have their turn.
const TURN: usize = 2 * 1024 * 1024;

async fn write(to: &TcpStream, mut bytes: &[u8], more_follows: bool) -> io::Result<()> {
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::MORE, more_follows);
    while !bytes.is_empty() {
        match to.try_io(Interest::WRITABLE, || Ok(send(to, bytes, flags)?)) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends what waits for more: setting `TCP_NODELAY` does, whether it is set already or not (tcp(7)).
fn push(to: &TcpStream) {
    // Fails for a socket only that was reset.
    let _ = to.set_nodelay(true);
}

/// What a socket had.
enum Read {
    /// Nothing at the moment.
    Nothing,
    Bytes(usize),
    /// So many bytes, and then its end.
    End(usize, Result<(), Reset>),
}

/// A connection's end that is not a FIN.
struct Reset;

/// Reads once, and after a short message once more: often its sender has closed after it, and then both
/// can be one packet on the other side too.
fn read(from: &TcpStream, buffer: &mut [u8]) -> Read {
    let mut total = 0;
    loop {
        match from.try_read(&mut buffer[total..]) {
            Ok(0) => return Read::End(total, Ok(())),
            Ok(count) => {
                let is_first = total == 0;
                total += count;
                if !is_first || count > SHORT || total == buffer.len() {
                    return Read::Bytes(total);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return if total == 0 {
                    Read::Nothing
                } else {
                    Read::Bytes(total)
                };
            }
            Err(_) => return Read::End(total, Err(Reset)),
        }
    }
}

/// Why a pump stopped before the end of what it moves.
enum Broken {
    /// The side it reads from was reset.
    From,
    /// The side it writes to was reset.
    To,
}

/// Why a pump stopped without anything being wrong.
#[derive(PartialEq, Eq)]
enum Stopped {
    /// At the end of what it moves.
    Ended,
    /// At a point where both can be stopped.
    Long,
}

/// What both pumps know of each other.
#[derive(Default)]
struct Both {
    one_has_ended: AtomicBool,
    /// Whether they have something in their hands.
    busy: [AtomicBool; 2],
    moved: AtomicUsize,
}

/// Moves everything from one socket to the other, and then its end, unless the other direction has ended
/// before, so that closing the sockets tells it as well.
async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    buffers: &Buffers,
    both: &Both,
    way: usize,
    until: Until,
) -> Result<Stopped, Broken> {
    loop {
        from.readable().await.map_err(|_| Broken::From)?;
        both.busy[way].store(true, Ordering::Relaxed);
        let mut buffer = buffers.take();
        let mut moved = 0;
        let mut something_waits = false;
        let mut patience = Patience::default();
        while moved < TURN {
            let (count, end) = match read(from, &mut buffer) {
                Read::Nothing if patience.look_again().await => continue,
                Read::Nothing => break,
                Read::Bytes(count) => (count, None),
                Read::End(count, end) => (count, Some(end)),
            };
            // What ends here goes out with its end.
            something_waits = count > 0 && (count == buffer.len() || end.is_some());
            let written = write(to, &buffer[..count], something_waits).await;
            written.map_err(|_| Broken::To)?;
            match end {
                None => {}
                Some(Ok(())) => {
                    if !both.one_has_ended.swap(true, Ordering::Relaxed) {
                        // Fails only when that side has been reset, which its own pump finds out.
                        let _ = rustix::net::shutdown(to, Shutdown::Write);
                    }
                    return Ok(Stopped::Ended);
                }
                Some(Err(Reset)) => {
                    if something_waits {
                        push(to);
                    }
                    return Err(Broken::From);
                }
            }
            moved += count;
            if until == Until::Ended {
                patience.renew(count);
            }
        }
        drop(buffer);
        if something_waits {
            push(to);
        }
        both.busy[way].store(false, Ordering::Relaxed);
        let total = moved + both.moved.fetch_add(moved, Ordering::Relaxed);
        if until == Until::Long
            && total >= LONG
            && !both.busy[1 - way].load(Ordering::Relaxed)
            && !both.one_has_ended.load(Ordering::Relaxed)
        {
            return Ok(Stopped::Long);
        }
        if moved >= TURN {
            tokio::task::yield_now().await;
        }
    }
}

/// How long [`relay`] goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Until both sides have ended, or one is reset.
    Ended,
    /// Or until it has turned out to be a long one.
    Long,
}

/// Passes on what both sides say. Returns whether both have ended, or one was reset; otherwise, what was
/// read has been written, and it can be gone on with anywhere.
pub(super) async fn relay(
    client: &TcpStream,
    server: &TcpStream,
    buffers: &Buffers,
    until: Until,
) -> bool {
    let both = Both::default();
    let mut up = pin!(pump(client, server, buffers, &both, 0, until));
    let mut down = pin!(pump(server, client, buffers, &both, 1, until));
    tokio::select! {
        ended = &mut up => match ended {
            Ok(Stopped::Long) => return false,
            ended => rest(ended, client, server, down, &both).await,
        },
        ended = &mut down => match ended {
            Ok(Stopped::Long) => return false,
            ended => rest(ended, server, client, up, &both).await,
        },
    }
    true
}

/// One pump, which read from `near` and wrote to `far`, has `ended`; `other` is the other one.
async fn rest(
    ended: Result<Stopped, Broken>,
    near: &TcpStream,
    far: &TcpStream,
    other: impl Future<Output = Result<Stopped, Broken>>,
    both: &Both,
) {
    match ended {
        Ok(_) => {
            let broken = tokio::select! {
                ended = other => ended,
                // Nobody reads from there any more, so nobody else would notice.
                _ = near.ready(Interest::ERROR) => Err(Broken::To),
            };
            match broken {
                Ok(_) => {}
                Err(Broken::From) => farewell(near).await,
                Err(Broken::To) => farewell(far).await,
            }
        }
        Err(Broken::From) => farewell(far).await,
        Err(Broken::To) => {
            // What `far` said before it was reset is still to be read. Whoever wrote to it has heard of the
            // reset, and the kernel tells of one only once: what comes now looks like a FIN and is none.
            both.one_has_ended.store(true, Ordering::Relaxed);
            let _ = tokio::time::timeout(FAREWELL, other).await;
            push(near);
            farewell(near).await;
        }
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

/// Makes closing this socket a reset.
pub(super) fn reset(socket: &TcpStream) {
    // Can fail for a socket only that is none.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}
