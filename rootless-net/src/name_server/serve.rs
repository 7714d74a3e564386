//! The loops: datagrams and connections in, answers out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::NameServer;
use super::exchange::{Forwarded, framed, read_framed, with_datagram_room};
use super::message::{MAX_QUERY, Received, Request, receive};
use super::quota::Pass;
use super::views::{Asker, Verdict};

/// Datagrams taken from one socket before the others have their turn.
const BATCH: usize = 64;
/// How long a client may take for its next message, from its first byte to its last included.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// How long a client may take to read an answer.
const TCP_WRITE: Duration = Duration::from_secs(5);
/// Pause while the machine has no descriptor or memory for another connection.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What becomes of a message.
pub(super) enum Outcome {
    Silence,
    Answer(Vec<u8>),
    Forward(Box<Forwarding>),
}

/// A query that goes to servers.
pub(super) struct Forwarding {
    request: Box<Request>,
    pub servers: Arc<[IpAddr]>,
    query: Forwarded,
    _pass: Pass,
}

impl NameServer {
    /// Answers datagrams for `network`, for as long as this runs. What is still to be answered then is
    /// given up.
    ///
    /// It ends by itself only when the socket can no longer be read, and says why.
    pub async fn serve_udp(self, socket: UdpSocket, network: String) -> io::Error {
        let socket = Arc::new(socket);
        let mut forwarded = JoinSet::new();
        loop {
            tokio::select! {
                ready = socket.readable() => if let Err(error) = ready {
                    return error;
                },
                Some(_) = forwarded.join_next(), if !forwarded.is_empty() => continue,
            }
            for _ in 0..BATCH {
                let taken: io::Result<_> = with_datagram_room(|room| {
                    let (length, source) = socket.try_recv_from(room)?;
                    let message = &room[..length];
                    Ok((source, self.consider(&network, source.ip(), message, true)))
                });
                match taken {
                    Ok((_, Outcome::Silence)) => {}
                    Ok((source, Outcome::Answer(answer))) => {
                        // Where there is no room to send, an answer is lost like any datagram.
                        if let Err(error) = socket.try_send_to(&answer, source) {
                            tracing::debug!("cannot answer {source}: {error}");
                        }
                    }
                    Ok((source, Outcome::Forward(forwarding))) => {
                        let (server, socket) = (self.clone(), Arc::clone(&socket));
                        forwarded.spawn(async move {
                            let answer = server.forward(&forwarding).await;
                            if let Err(error) = socket.send_to(&answer, source).await {
                                tracing::debug!("cannot answer {source}: {error}");
                            }
                        });
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if is_passing(&error) => {
                        tracing::debug!("cannot receive in network {network}: {error}");
                    }
                    Err(error) => return error,
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Answers connections for `network`, for as long as this runs. Those still open then are closed.
    ///
    /// It ends by itself only when the listener can no longer accept, and says why.
    pub async fn serve_tcp(self, listener: TcpListener, network: String) -> io::Error {
        let network: Arc<str> = network.into();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            match accepted {
                Ok((stream, source)) => {
                    let asker = self.asker(&network, source.ip());
                    // More than its share: closed at once.
                    let Some(pass) = self.shared.connections.enter(&asker) else {
                        continue;
                    };
                    let (server, network) = (self.clone(), Arc::clone(&network));
                    connections.spawn(async move {
                        let _pass = pass;
                        if let Err(error) = server.converse(stream, source, &network).await {
                            tracing::debug!("connection of {source} ends: {error}");
                        }
                    });
                }
                Err(error) if is_exhaustion(&error) => {
                    tracing::warn!("cannot accept a connection in network {network}: {error}");
                    sleep(EXHAUSTED).await;
                }
                Err(error) if is_passing(&error) => {
                    tracing::debug!("cannot accept a connection in network {network}: {error}");
                }
                Err(error) => return error,
            }
        }
    }

    async fn converse(
        &self,
        mut stream: TcpStream,
        source: SocketAddr,
        network: &str,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        while let Some(message) = timeout(TCP_IDLE, read_framed(&mut stream, MAX_QUERY)).await?? {
            let answer = match self.consider(network, source.ip(), &message, false) {
                Outcome::Silence => return Ok(()),
                Outcome::Answer(answer) => answer,
                Outcome::Forward(forwarding) => self.forward(&forwarding).await,
            };
            timeout(TCP_WRITE, stream.write_all(&framed(&answer)?)).await??;
        }
        Ok(())
    }

    fn asker(&self, network: &str, source: IpAddr) -> Asker {
        // Of a socket for both families, IPv4 comes mapped.
        self.shared.views.asker(network, source.to_canonical())
    }

    /// What becomes of a message from `source`, short of asking elsewhere.
    pub(super) fn consider(
        &self,
        network: &str,
        source: IpAddr,
        message: &[u8],
        udp: bool,
    ) -> Outcome {
        let request = match receive(message) {
            Received::Noise => return Outcome::Silence,
            Received::Refused(answer) => return Outcome::Answer(answer),
            Received::Request(request) => request,
        };
        let asker = self.asker(network, source);
        let (name, kind) = (request.question.name(), request.question.query_type());
        let servers = match self.shared.views.decide(network, &asker, name, kind) {
            Verdict::Addresses(addresses) => {
                return Outcome::Answer(request.addresses(&addresses, udp));
            }
            Verdict::Names(names) => return Outcome::Answer(request.names(&names, udp)),
            Verdict::NoSuchName => return Outcome::Answer(request.error(ResponseCode::NXDomain)),
            Verdict::Refused => return Outcome::Answer(request.error(ResponseCode::Refused)),
            Verdict::Forward(servers) => servers,
        };
        let Some(pass) = self.shared.outstanding.enter(&asker) else {
            tracing::debug!("{asker:?} has too many queries unanswered");
            return Outcome::Answer(request.error(ResponseCode::ServFail));
        };
        Outcome::Forward(Box::new(Forwarding {
            query: Forwarded {
                message: message.to_vec(),
                question_end: request.question_end(),
                tcp: !udp,
            },
            request,
            servers,
            _pass: pass,
        }))
    }

    async fn forward(&self, forwarding: &Forwarding) -> Vec<u8> {
        let Forwarding {
            request,
            servers,
            query,
            ..
        } = forwarding;
        match self.shared.upstream.ask(servers, query).await {
            Some(answer) => request.fit(answer, !query.tcp),
            None => request.error(ResponseCode::ServFail),
        }
    }
}

/// Errors of a socket that tell of one peer, or of a moment.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    is_exhaustion(error)
        || matches!(
            error.kind(),
            Kind::Interrupted
                | Kind::ConnectionAborted
                | Kind::ConnectionRefused
                | Kind::ConnectionReset
                | Kind::HostUnreachable
                | Kind::NetworkUnreachable
                | Kind::NetworkDown
                | Kind::PermissionDenied
                | Kind::TimedOut
        )
}

fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    matches!(
        errno,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}
