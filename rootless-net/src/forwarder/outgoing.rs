//! Connections out of containers, made again by the host's own TCP.
//!
//! # Theory of operation
//!
//! What a container connects to is somewhere behind the host. The first packet of a connection is
//! routed into an interface that this process reads (`syn0`); it holds the packet and has the host's
//! kernel connect to where it is bound for. When that works the packet goes back into the uplink
//! namespace, whose rules now lead it (tproxy) to a socket that listens here, in the remote's place:
//! only now does the container hear that it is connected, and both sockets are passed on to each other.
//! When it does not, the container gets the packet that the remote or a router would have sent. So a
//! container sees what a host would see: refusals, silence, no route.
//!
//! All later packets find their socket by themselves, as those of published ports do (see [`super`]).
//! The uplink namespace has to have, beside what is said there:
//!
//! ```text
//! nft: hook prerouting:
//!      iifname "syn0" tcp flags & (syn | ack) == syn tproxy to LISTENER meta mark set 1 accept
//!      (a first packet from a container for somewhere behind the uplink) meta mark set 2
//! ip [-6] rule add fwmark 2 lookup 101
//! ip [-6] route add default dev syn0 table 101
//! sysctl net.ipv4.tcp_early_demux=0
//! ```
//!
//! Data may follow the handshake so closely that its socket is not there yet. The rules route such packets
//! into the interface too, and what is no request goes back as it came, a moment later (see
//! `uplink/rules_outgoing.nft`).
//!
//! Where it has not, such packets go by way of pasta, as all that is not TCP does: whose own TCP, in
//! user space, is slower, and offers windows that make senders wait.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::Shared;
use super::descriptors::OutgoingShare;
use super::handshake::{Flow, Refusal, Syn, Unreachable, is_outside};
use super::passing::{Gone, pass_on};
use super::relay::reset;

/// Bytes of the longest packet.
const PACKET: usize = 65536;

/// How long a container may take to go on with a handshake it began.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// How many packets are taken before others have their turn.
const TURN: u64 = 64;

/// How many addresses are remembered at least.
const ADDRESSES: usize = 1024;

/// How long to pause after what may fail again at once.
const TROUBLE: Duration = Duration::from_millis(10);

/// See the module.
pub(super) struct Outgoing {
    shared: Shared,
    /// Tokio has no type of its own for what is read by the packet; it treats this like a pipe.
    requests: pipe::Receiver,
    waiting: Mutex<HashMap<Flow, Waiting>>,
    containers: Mutex<Containers>,
}

/// A connection that a container waits for.
enum Waiting {
    /// For the host's.
    ForHost,
    /// For its own, which the packet has been sent back for.
    ForContainer(Syn, oneshot::Sender<TcpStream>),
}

/// What each container has, by its address. One whose network is a bridge may use any of its subnet, so
/// those that have no connections are cleared away now and then.
#[derive(Default)]
struct Containers {
    all: HashMap<IpAddr, Own>,
    clear_at: usize,
}

struct Own {
    gone: watch::Sender<()>,
    room: Arc<Semaphore>,
}

/// What one connection takes up.
struct Room {
    _of_all: OutgoingShare,
    _own: OwnedSemaphorePermit,
}

impl Outgoing {
    /// `requests` is the interface.
    pub(super) fn new(shared: Shared, requests: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            shared,
            requests: pipe::Receiver::from_owned_fd_unchecked(requests)?,
            waiting: Mutex::default(),
            containers: Mutex::default(),
        })
    }

    /// Takes what containers ask, until it is dropped.
    pub(super) async fn hear(self: Arc<Self>) {
        let mut packet = vec![0; PACKET];
        for count in 1_u64.. {
            if count.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
            match self.requests.try_read(&mut packet) {
                Ok(length) => match Syn::parse(&packet[..length]) {
                    Some(syn) => self.asked(syn),
                    // By now its socket is there, or it never will be.
                    None => self.say(&packet[..length]),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Fails with the runtime only.
                    if self.requests.readable().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "read from the uplink's interface");
                    tokio::time::sleep(TROUBLE).await;
                }
            }
        }
    }

    /// Gives the sockets that containers have been connected to to those that wait for them.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((near, container)) => {
                    let Ok(remote) = near.local_addr() else {
                        continue;
                    };
                    let flow = Flow { container, remote };
                    match self.waiting().remove(&flow) {
                        Some(Waiting::ForContainer(_, to)) => {
                            if let Err(near) = to.send(near) {
                                reset(&near);
                            }
                        }
                        _ => reset(&near),
                    }
                }
                // It failed before it was taken, or there is a shortage (accept(2)).
                Err(_) => tokio::time::sleep(TROUBLE).await,
            }
        }
    }

    /// Resets what a container has that had these addresses.
    pub(super) fn forget(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut containers = lock(&self.containers);
        for address in addresses {
            containers.all.remove(&address);
        }
    }

    fn asked(self: &Arc<Self>, syn: Syn) {
        match self.waiting().get_mut(&syn.flow) {
            None => {}
            Some(Waiting::ForHost) => return,
            // The answer has been lost, or the container has given up and tries again.
            Some(Waiting::ForContainer(first, _)) => {
                *first = syn;
                return self.say(first.packet());
            }
        }
        if !is_outside(syn.flow.remote.ip()) {
            return self.refuse(&syn, Refusal::Unreachable(Unreachable::Prohibited));
        }
        // It asks again when nothing is said.
        let Some((room, gone)) = self.room(syn.flow.container.ip()) else {
            tracing::debug!(flow = ?syn.flow, "too many connections");
            return;
        };
        self.waiting().insert(syn.flow, Waiting::ForHost);
        tokio::spawn(self.clone().connect(syn, room, gone));
    }

    fn room(&self, container: IpAddr) -> Option<(Room, watch::Receiver<()>)> {
        let descriptors = &self.shared.descriptors;
        let mut containers = lock(&self.containers);
        let own = containers.get(container, descriptors.outgoing_of_one());
        let room = Room {
            _own: own.room.clone().try_acquire_owned().ok()?,
            _of_all: descriptors.outgoing()?,
        };
        Some((room, own.gone.subscribe()))
    }

    async fn connect(self: Arc<Self>, syn: Syn, room: Room, mut gone: watch::Receiver<()>) {
        let mut gone: Gone = Box::pin(async move {
            // The sender says nothing, but goes.
            let _ = gone.changed().await;
        });
        let flow = syn.flow;
        let entry = Entry(&self, flow);
        let both = async {
            match connect_host(flow).await {
                Ok(far) => match self.offer(syn).await {
                    Some(near) => Some((near, far)),
                    None => {
                        reset(&far);
                        None
                    }
                },
                Err(error) => {
                    tracing::debug!(?flow, %error, "no connection out of a container");
                    if let Some(refusal) = Refusal::of(&error) {
                        self.refuse(&syn, refusal);
                    }
                    None
                }
            }
        };
        let both = tokio::select! {
            both = both => both,
            () = &mut gone => None,
        };
        drop(entry);
        let Some((near, far)) = both else { return };
        let Shared {
            buffers, workers, ..
        } = &self.shared;
        pass_on(near, far, gone, buffers, workers, room).await;
    }

    /// Has the container's handshake go on; its socket, when it does.
    async fn offer(&self, syn: Syn) -> Option<TcpStream> {
        let (sender, socket) = oneshot::channel();
        let flow = syn.flow;
        let packet = syn.packet().to_owned();
        self.waiting()
            .insert(flow, Waiting::ForContainer(syn, sender));
        self.say(&packet);
        tokio::time::timeout(HANDSHAKE, socket).await.ok()?.ok()
    }

    fn refuse(&self, syn: &Syn, refusal: Refusal) {
        if let Some(packet) = syn.refuse(refusal) {
            self.say(&packet);
        }
    }

    /// As packets do, it gets lost where there is no room for it.
    fn say(&self, packet: &[u8]) {
        match rustix::io::write(&self.requests, packet) {
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => {}
            Err(errno) => tracing::warn!(%errno, "write to the uplink's interface"),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Flow, Waiting>> {
        lock(&self.waiting)
    }
}

impl Containers {
    /// What the one with this address has, which may have so many connections.
    fn get(&mut self, address: IpAddr, most: usize) -> &Own {
        if self.all.len() >= self.clear_at && !self.all.contains_key(&address) {
            self.all.retain(|_, own| own.gone.receiver_count() > 0);
            self.clear_at = (2 * self.all.len()).max(ADDRESSES);
        }
        self.all.entry(address).or_insert_with(|| Own {
            gone: watch::Sender::new(()),
            room: Arc::new(Semaphore::new(most)),
        })
    }
}

/// Takes a flow from those that wait when it is dropped.
struct Entry<'a>(&'a Outgoing, Flow);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

async fn connect_host(flow: Flow) -> io::Result<TcpStream> {
    let socket = if flow.remote.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_nodelay(true)?;
    // The container's probes are answered here: somebody must find out that the remote is gone.
    socket.set_keepalive(true)?;
    socket.connect(flow.remote).await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn addresses_without_connections_are_cleared_away() {
        let mut containers = Containers::default();
        let address = |n: usize| IpAddr::from(Ipv6Addr::from(n as u128));
        let kept = containers.get(address(0), 1).gone.subscribe();
        for n in 1..10 * ADDRESSES {
            containers.get(address(n), 1);
            assert!(containers.all.len() <= ADDRESSES + 1);
        }
        assert!(containers.all.contains_key(&address(0)));
        drop(kept);
        for n in 1..2 * ADDRESSES {
            containers.get(address(n), 1);
        }
        assert!(!containers.all.contains_key(&address(0)));
    }
}
