//! A published TCP port: connections taken on the host and made again in the uplink namespace.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::descriptors::Share;
use super::passing::{Gone, pass_on};
use super::relay::reset;
use super::target::{Path, Target};
use super::uplink_sockets::Transport;
use super::{Destination, Shared};

/// How long accepting pauses when the kernel has no descriptors or memory for more.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Takes connections until it is dropped. Those it took go on without it.
pub(super) async fn serve(listener: TcpStream, shared: Shared, to: Destination, port: u16) {
    loop {
        match accept(&listener).await {
            Ok((socket, client)) => {
                // The next ones wait in the kernel until there is room for this one.
                let Some(share) = shared.descriptors.connection().await else {
                    return;
                };
                let (shared, to) = (shared.clone(), to.clone());
                tokio::spawn(async move {
                    if let Err(error) = forward(socket, client, &shared, to, port, share).await {
                        tracing::debug!(%client, port, %error, "no connection to the container");
                    }
                });
            }
            Err(error) if is_shortage(&error) => {
                tracing::warn!(%error, "accepting connections to published ports pauses");
                tokio::time::sleep(SHORTAGE).await;
            }
            // It failed before it was taken (accept(2)).
            Err(_) => {}
        }
    }
}

/// One that nobody waits for yet: that is for the thread that gets it.
async fn accept(listener: &TcpStream) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let accept = || Ok(acceptfrom_with(listener, flags)?);
    let (socket, client) = listener.async_io(Interest::READABLE, accept).await?;
    // A client that is gone already may have no address.
    let client = client.and_then(|client| SocketAddr::try_from(client).ok());
    let client = client.ok_or(io::ErrorKind::ConnectionAborted)?;
    Ok((socket.into(), client))
}

fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}

async fn forward(
    near: std::net::TcpStream,
    client: SocketAddr,
    shared: &Shared,
    mut to: Destination,
    port: u16,
    share: Share,
) -> io::Result<()> {
    let near = TcpStream::from_std(near)?;
    let path = to.borrow().as_ref().and_then(|target| target.path(client));
    let Some(path) = path else {
        reset(&near);
        return Err(io::Error::other("it has no address"));
    };
    let other = to.borrow().as_ref().and_then(|to| to.other_path(&path));
    let mut gone: Gone = Box::pin(async move {
        let has = |to: &Target| to.has(path.destination);
        let _ = to.wait_for(|to| !to.as_ref().is_some_and(has)).await;
    });
    let far = tokio::select! {
        far = connect_either(shared, path, other, port) => far.inspect_err(|_| reset(&near))?,
        // The client has given up; what it may have said reaches nobody.
        _ = near.ready(Interest::ERROR) => return Ok(()),
        _ = &mut gone => {
            reset(&near);
            return Ok(());
        }
    };
    pass_on(near, far, gone, &shared.buffers, &shared.workers, share).await;
    Ok(())
}

/// A client that was accepted does not try its other address any more, as one that was refused would
/// (`localhost` is both ::1 and 127.0.0.1). So a server that serves one family only is looked for in
/// the other too.
async fn connect_either(
    shared: &Shared,
    path: Path,
    other: Option<Path>,
    port: u16,
) -> io::Result<TcpStream> {
    match (connect(shared, path, port).await, other) {
        (Err(error), Some(other)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // What the first one said is closer to what the client asked for.
            connect(shared, other, port).await.map_err(|_| error)
        }
        (outcome, _) => outcome,
    }
}

async fn connect(shared: &Shared, path: Path, port: u16) -> io::Result<TcpStream> {
    let destination = SocketAddr::new(path.destination, port);
    let error = match attempt(shared, path.source, destination).await {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => error,
        other => return other,
    };
    if path.source.port() == 0 {
        return Err(error);
    }
    // The same client has, or lately had, a connection there from this very port.
    let any_port = SocketAddr::new(path.source.ip(), 0);
    attempt(shared, any_port, destination).await
}

async fn attempt(
    shared: &Shared,
    source: SocketAddr,
    destination: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = shared.sockets.outgoing(Transport::Stream, source).await?;
    match socket.connect(&destination.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
            return Err(error);
        }
        _ => {}
    }
    let connecting = Connecting(Some(TcpStream::from_std(socket.into())?));
    connecting.finish().await
}

/// A connection on its way. Given up, it may be there already: then the server hears of a reset.
struct Connecting(Option<TcpStream>);

impl Connecting {
    async fn finish(mut self) -> io::Result<TcpStream> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let stream = self.0.as_ref().ok_or_else(gone)?;
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        self.0.take().ok_or_else(gone)
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            reset(stream);
        }
    }
}
