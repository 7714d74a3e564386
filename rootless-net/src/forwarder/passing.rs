//! Connections that are passed on, and by which thread.
//!
//! All begin with the thread that took them: most are short, and handing one over costs more than passing
//! it on. One that has moved much goes to one of the others, where it stays, so that its bytes stay with
//! one processor and many such connections use several.

use std::io;
use std::pin::Pin;

use tokio::net::TcpStream;

use super::buffers::Buffers;
use super::relay::{Until, relay, reset};
use super::workers::Workers;

/// Ready when a connection is to be reset, because what it led to is gone.
pub(super) type Gone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Passes on what `near` and `far` say to each other. `kept` is kept as long.
pub(super) async fn pass_on(
    near: TcpStream,
    far: TcpStream,
    mut gone: Gone,
    buffers: &Buffers,
    workers: &Workers,
    kept: impl Send + 'static,
) {
    let until = if workers.are_there() {
        Until::Long
    } else {
        Until::Ended
    };
    let is_over = tokio::select! {
        is_over = relay(&near, &far, buffers, until) => is_over,
        () = &mut gone => {
            reset(&near);
            reset(&far);
            true
        }
    };
    if is_over {
        return;
    }
    let Some(other) = workers.next() else {
        return stay(&near, &far, gone, buffers).await;
    };
    let Ok((near, far)) = near.into_std().and_then(|near| Ok((near, far.into_std()?))) else {
        return;
    };
    let buffers = buffers.clone();
    other.spawn(async move {
        // Fails without memory for one more descriptor to wait for: then it is over.
        if let Ok((near, far)) = registered(near, far) {
            stay(&near, &far, gone, &buffers).await;
        }
        drop(kept);
    });
}

fn registered(
    near: std::net::TcpStream,
    far: std::net::TcpStream,
) -> io::Result<(TcpStream, TcpStream)> {
    Ok((TcpStream::from_std(near)?, TcpStream::from_std(far)?))
}

/// Passes on until the end, with this thread.
async fn stay(near: &TcpStream, far: &TcpStream, gone: Gone, buffers: &Buffers) {
    tokio::select! {
        _ = relay(near, far, buffers, Until::Ended) => {}
        () = gone => {
            reset(near);
            reset(far);
        }
    }
}
