//! TCP and UDP passed on between the host and containers: published ports, for which this listens on the
//! host and passes on to containers with the client's address, and connections out of containers
//! ([`outgoing`]).
//!
//! # Theory of operation
//!
//! Containers hang on the uplink namespace, where the login has every right; the host's namespace,
//! where published ports must be, gives it none but to listen. So a process in the host's namespace
//! listens, and what it accepts it makes again in the uplink namespace, through sockets made there
//! ([`UplinkSockets`]). Those are transparent: they carry the address of the client, and the container
//! sees who speaks to it. Its answers to that address, which pass through the uplink namespace anyway,
//! are caught there and delivered to the socket, by three rules that whoever builds the namespace has
//! to set:
//!
//! ```text
//! nft: hook prerouting, priority mangle:
//!      meta l4proto { tcp, udp } socket transparent 1 meta mark set 1 accept
//! ip [-6] rule add fwmark 1 lookup 100
//! ip [-6] route add local default dev lo table 100
//! ```
//!
//! Some rule there must use connection tracking (`ct`), which makes the kernel put fragments together
//! before the first of these rules; only the first fragment of a datagram would match it otherwise.
//!
//! A client whose address would lead the answers elsewhere (the host's loopback, link-local ones, the
//! container's own subnet, the other family) is shown with the address of the gateway instead.
//!
//! Where there is no such gateway, because a program of the container's own connects it with the host,
//! the sockets are made in the container's namespace and none is transparent ([`Sources::Own`]).
//!
//! The process forwards bytes between strangers, so it lives in a [`sandbox`].

mod buffers;
mod descriptors;
mod handshake;
pub mod holder;
mod listening;
mod outgoing;
mod packet_info;
mod passing;
mod patience;
pub mod publish_error;
mod relay;
pub mod sandbox;
mod target;
mod tcp;
mod udp;
mod uplink_sockets;
mod workers;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::holder::{Holder, HostTables};
pub use self::publish_error::{HostPort, PublishError};
pub use self::target::Target;
pub use self::uplink_sockets::{Sources, UplinkSockets};

use self::buffers::Buffers;
use self::descriptors::{Descriptors, Share};
use self::listening::Listening;
use self::outgoing::Outgoing;
use self::publish_error::Refusal;
use self::workers::Workers;
use crate::port_mapping::{PortMapping, Protocol};

/// Where connections out of containers are taken in the uplink namespace, on its loopback.
const OUTGOING_PORT: u16 = 101;

/// What clients may use up.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Clients of one UDP port that are remembered at a time.
    pub flows_per_port: usize,
    /// How long a UDP client is remembered that was not answered.
    pub udp_idle: Duration,
    /// How long one is that was.
    pub udp_idle_answered: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows_per_port: 4096,
            udp_idle: Duration::from_secs(30),
            udp_idle_answered: Duration::from_secs(180),
        }
    }
}

/// Where a container is now; `None` once it is gone.
type Destination = watch::Receiver<Option<Target>>;

/// What all ports use.
#[derive(Clone)]
struct Shared {
    sockets: UplinkSockets,
    buffers: Buffers,
    descriptors: Descriptors,
    workers: Arc<Workers>,
    limits: Arc<Limits>,
}

/// All published ports of a login.
///
/// Its methods, and dropping it, belong into a tokio runtime with I/O and time, which they spawn on.
pub struct Forwarder {
    shared: Shared,
    tables: HostTables,
    containers: HashMap<String, Published>,
    outgoing: Option<Arc<Outgoing>>,
}

/// What one container has published.
struct Published {
    target: watch::Sender<Option<Target>>,
    ports: HashMap<PortMapping, Vec<Port>>,
}

/// One listening socket's task, and the descriptor it is allowed.
struct Port {
    at: HostPort,
    task: JoinHandle<()>,
    _share: Share,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwarder {
    /// With nothing published. Raises the process's soft limit of open files to the hard one.
    pub fn new(sockets: UplinkSockets, tables: HostTables, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            shared: Shared {
                sockets,
                buffers: Buffers::default(),
                descriptors: Descriptors::of_this_process()?,
                workers: Arc::new(Workers::new()),
                limits: Arc::new(limits),
            },
            tables,
            containers: HashMap::new(),
            outgoing: None,
        })
    }

    /// Makes the connections that containers ask for through the interface `requests` from now on (see
    /// [`outgoing`]).
    pub async fn pass_out(&mut self, requests: OwnedFd) -> io::Result<()> {
        let outgoing = Arc::new(Outgoing::new(self.shared.clone(), requests)?);
        for address in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let address = SocketAddr::new(address, OUTGOING_PORT);
            match self.shared.sockets.listen_transparent(address).await {
                Ok(listener) => {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    tokio::spawn(outgoing.clone().accept(listener));
                }
                // A kernel without IPv6.
                Err(_) if address.is_ipv6() => {}
                Err(error) => return Err(error),
            }
        }
        tokio::spawn(outgoing.clone().hear());
        self.outgoing = Some(outgoing);
        Ok(())
    }

    /// A container no longer has these addresses: the connections it made from them are reset.
    pub fn forget(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        if let Some(outgoing) = &self.outgoing {
            outgoing.forget(addresses);
        }
    }

    /// Publishes all of `mappings`, or, on an error, none of them. `target` holds for what the
    /// container has published before as well (see [`Self::retarget`]).
    pub fn publish(
        &mut self,
        container: &str,
        mappings: &[PortMapping],
        target: Target,
    ) -> Result<(), PublishError> {
        let wanted = mappings
            .iter()
            .map(|mapping| usize::from(mapping.count) * listening::addresses(mapping).len())
            .sum();
        let mut opened = Vec::new();
        let mut count = 0;
        for mapping in mappings {
            let sockets = self.open(mapping, wanted, count)?;
            count += sockets.len();
            opened.push((mapping, sockets));
        }
        let published = self
            .containers
            .entry(container.to_owned())
            .or_insert_with(|| Published {
                target: watch::Sender::new(None),
                ports: HashMap::new(),
            });
        published.target.send_replace(Some(target));
        for (mapping, sockets) in opened {
            let ports = sockets.into_iter().map(|(at, ready, share)| Port {
                at,
                task: ready.start(self.shared.clone(), published.target.subscribe()),
                _share: share,
            });
            let ports: Vec<Port> = ports.collect();
            published
                .ports
                .entry(mapping.clone())
                .or_default()
                .extend(ports);
        }
        Ok(())
    }

    /// Tells where a container is now. Connections and flows to an address that it no longer has are
    /// reset; those to one it kept go on. Does nothing for a container that has published nothing.
    pub fn retarget(&self, container: &str, target: Target) {
        if let Some(published) = self.containers.get(container) {
            published.target.send_replace(Some(target));
        }
    }

    /// Takes back one mapping: its ports are free when this returns. Connections made through them go
    /// on until they end or the container does, as when a rule is removed from a firewall; UDP flows,
    /// which answer from the port, end. Returns whether there was such a mapping.
    pub async fn unpublish_mapping(&mut self, container: &str, mapping: &PortMapping) -> bool {
        let published = self.containers.get_mut(container);
        match published.and_then(|published| published.ports.remove(mapping)) {
            Some(ports) => {
                close(ports).await;
                true
            }
            None => false,
        }
    }

    /// Takes back everything a container has published, which is gone: its ports are free when this
    /// returns, and its connections are reset.
    pub async fn unpublish(&mut self, container: &str) {
        if let Some(published) = self.containers.remove(container) {
            published.target.send_replace(None);
            close(published.ports.into_values().flatten()).await;
        }
    }

    /// Everything that is published: containers and their mappings, in no order.
    pub fn published(&self) -> impl Iterator<Item = (&str, &PortMapping)> {
        self.containers.iter().flat_map(|(container, published)| {
            let mappings = published.ports.keys();
            mappings.map(|mapping| (container.as_str(), mapping))
        })
    }

    /// Sockets of one mapping, of `wanted` in all of which there are `before` already.
    fn open(
        &self,
        mapping: &PortMapping,
        wanted: usize,
        before: usize,
    ) -> Result<Vec<(HostPort, Ready, Share)>, PublishError> {
        for first in [mapping.host_port, mapping.container_port] {
            let last = first.checked_add(mapping.count.saturating_sub(1));
            if first == 0 || mapping.count == 0 || last.is_none() {
                let count = mapping.count;
                return Err(PublishError::BadRange { first, count });
            }
        }
        let addresses = listening::addresses(mapping);
        let mut all = Vec::with_capacity(usize::from(mapping.count) * addresses.len());
        for (host, container_port) in mapping.pairs() {
            for &address in &addresses {
                let at = HostPort {
                    protocol: mapping.protocol,
                    address,
                    port: host,
                };
                let share = self.shared.descriptors.listener();
                let share = share.ok_or_else(|| PublishError::TooMany {
                    ports: wanted,
                    free: before + all.len(),
                    limit: self.shared.descriptors.limit(),
                })?;
                let ready = listening::open(&at).and_then(|socket| {
                    let listening = Listening {
                        socket,
                        container_port,
                    };
                    Ready::register(listening, at.protocol)
                });
                let ready = ready.map_err(|refusal| self.word(at, &refusal))?;
                all.push((at, ready, share));
            }
        }
        Ok(all)
    }

    fn word(&self, port: HostPort, refusal: &Refusal) -> PublishError {
        match refusal.errno() {
            Some(Errno::ADDRINUSE) => PublishError::InUse {
                port,
                holder: self.holder(&port),
            },
            Some(Errno::ACCESS | Errno::PERM) => PublishError::Privileged {
                port,
                first_unprivileged: self.tables.first_unprivileged_port(),
            },
            Some(Errno::ADDRNOTAVAIL) => PublishError::NotLocal { port },
            _ => PublishError::Failed {
                port,
                attempt: refusal.attempt.to_owned(),
                reason: refusal.error.to_string(),
            },
        }
    }

    fn holder(&self, wanted: &HostPort) -> Option<Holder> {
        let ours = self.containers.iter().find(|(_, published)| {
            published.ports.values().flatten().any(|port| {
                (port.at.protocol, port.at.port) == (wanted.protocol, wanted.port)
                    && holder::collide(port.at.address, wanted.address)
            })
        });
        match ours {
            Some((container, _)) => Some(Holder::Container(container.clone())),
            None => self
                .tables
                .holder(wanted.protocol, wanted.address, wanted.port),
        }
    }
}

/// Ends the tasks and waits until their sockets are closed.
async fn close(ports: impl IntoIterator<Item = Port>) {
    let mut ports: Vec<Port> = ports.into_iter().collect();
    for port in &ports {
        port.task.abort();
    }
    for port in &mut ports {
        let _ = (&mut port.task).await;
    }
}

/// A socket of the host that only waits to be served.
struct Ready {
    socket: Registered,
    container_port: u16,
}

enum Registered {
    /// One that listens. Tokio's own type for those accepts for the thread that it listens on only.
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Ready {
    fn register(listening: Listening, protocol: Protocol) -> Result<Self, Refusal> {
        let socket = match protocol {
            Protocol::Tcp => TcpStream::from_std(listening.socket.into()).map(Registered::Tcp),
            Protocol::Udp => UdpSocket::from_std(listening.socket.into()).map(Registered::Udp),
        };
        let attempt = "watch a socket";
        Ok(Self {
            socket: socket.map_err(|error| Refusal { attempt, error })?,
            container_port: listening.container_port,
        })
    }

    fn start(self, shared: Shared, to: Destination) -> JoinHandle<()> {
        match self.socket {
            Registered::Tcp(socket) => {
                tokio::spawn(tcp::serve(socket, shared, to, self.container_port))
            }
            Registered::Udp(socket) => {
                tokio::spawn(udp::serve(socket, shared, to, self.container_port))
            }
        }
    }
}
