//! Sockets that live in the uplink namespace, for a process that does not.
//!
//! A socket belongs for good to the network namespace of the thread that made it, and a thread can
//! enter one without the process doing so. So one thread enters the uplink namespace, stays there,
//! and makes sockets on request; bind, connect and everything after happen wherever convenient.
//!
//! To send with an address that is none of ours a socket must be *transparent*, and only setting that
//! needs a capability (`CAP_NET_RAW` in the user namespace that owns the network namespace). Those
//! sockets are therefore made a few at a time, ahead of need: a new connection rarely waits for the
//! thread.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, set_capabilities};
use selkie_sys::errno::{Attempt, SysResult};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

/// How many sockets of one kind are made at once.
const BATCH: usize = 32;

/// More are made when there are fewer than this.
const FEW: usize = 16;

/// How long a process that was killed may take to let go of its sockets.
const REPLACED: Duration = Duration::from_secs(2);

/// Bytes of answers that may wait in a UDP flow; the kernel grants no more than net.core.rmem_max.
const QUEUE: usize = 1 << 20;

/// With what addresses sockets send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// With any, whosever it is.
    Any,
    /// With those of the namespace, as the kernel chooses.
    Own,
}

impl Sources {
    /// What the thread needs: to make sockets transparent, and to bind ports below 1024.
    fn capabilities(self) -> CapabilitySet {
        match self {
            Self::Any => CapabilitySet::NET_RAW.union(CapabilitySet::NET_BIND_SERVICE),
            Self::Own => CapabilitySet::empty(),
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread in the uplink namespace. Clones lead to the same one; it ends with the last of them.
#[derive(Clone)]
pub struct UplinkSockets {
    jobs: mpsc::Sender<Job>,
    ready: Arc<Mutex<[Vec<Socket>; 4]>>,
    sources: Sources,
}

/// What a socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Stream,
    Datagram,
}

impl UplinkSockets {
    /// Starts the thread, which enters `namespace` (needs `CAP_SYS_ADMIN` in the caller's user
    /// namespace and in the one that owns it) and then gives up every capability but those for
    /// making sockets. What can fail has been tried when this returns.
    pub fn start(namespace: OwnedFd, sources: Sources) -> SysResult<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (report, entered) = mpsc::channel();
        thread::Builder::new()
            .name("uplink".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                let result = enter(&namespace, sources);
                drop(namespace);
                let failed = result.is_err();
                if report.send(result).is_ok() && !failed {
                    inbox.into_iter().for_each(|job| job());
                }
            })
            .attempt(|| "start the thread for the uplink namespace")?;
        entered.recv().unwrap_or_else(|_| {
            Err(rustix::io::Errno::SRCH).attempt(|| "enter the uplink namespace: the thread ended")
        })?;
        Ok(Self {
            jobs,
            ready: Arc::default(),
            sources,
        })
    }

    /// Binds a UDP socket in the uplink namespace, nonblocking; the address need not exist there yet.
    pub async fn bind_udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self
            .run_when_free(move || free_bind(address, Type::DGRAM, Protocol::UDP))
            .await?;
        Ok(socket.into())
    }

    /// Listens for TCP connections in the uplink namespace, nonblocking; the address need not exist
    /// there yet.
    pub async fn listen_tcp(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self
            .run_when_free(move || -> io::Result<Socket> {
                let socket = free_bind(address, Type::STREAM, Protocol::TCP)?;
                socket.listen(1024)?;
                Ok(socket)
            })
            .await?;
        Ok(socket.into())
    }

    /// Listens like [`Self::listen_tcp`] for what the namespace's rules lead there, whatever it is
    /// addressed to; the sockets of its connections have that address.
    pub(super) async fn listen_transparent(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self
            .run_when_free(move || -> io::Result<Socket> {
                let kind = Type::STREAM.nonblocking().cloexec();
                let domain = Domain::for_address(address);
                let socket = Socket::new(domain, kind, Some(Protocol::TCP))?;
                match address.ip() {
                    IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                    IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
                }
                socket.set_reuse_address(true)?;
                // Its connections have this too.
                socket.set_tcp_nodelay(true)?;
                socket.bind(&address.into())?;
                socket.listen(4096)?;
                Ok(socket)
            })
            .await?;
        Ok(socket.into())
    }

    /// A nonblocking socket that sends with the address `source`, whosever it is, unless these are
    /// [`Sources::Own`]. Its port is kept when it is free, and left to the kernel when it is 0 or taken.
    pub(super) async fn outgoing(
        &self,
        transport: Transport,
        source: SocketAddr,
    ) -> io::Result<Socket> {
        let mut socket = self.take(transport, source.is_ipv4()).await?;
        if self.sources == Sources::Own {
            return Ok(socket);
        }
        if source.port() != 0 {
            let mut bound = socket.bind(&source.into());
            if matches!(&bound, Err(error) if error.kind() == io::ErrorKind::PermissionDenied) {
                // A port below 1024, for which only the thread has the capability.
                (socket, bound) = self
                    .run(move || {
                        let bound = socket.bind(&source.into());
                        (socket, bound)
                    })
                    .await?;
            }
            match bound {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                other => return other.map(|()| socket),
            }
        }
        // The port is chosen by connect, which may give one port to many destinations.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source.ip(), 0).into())?;
        Ok(socket)
    }

    async fn take(&self, transport: Transport, v4: bool) -> io::Result<Socket> {
        let kind = usize::from(v4) + 2 * usize::from(transport == Transport::Stream);
        let (socket, is_low) = {
            let mut ready = self.ready();
            (ready[kind].pop(), ready[kind].len() == FEW)
        };
        if is_low {
            self.make_more(kind, transport, v4);
        }
        if let Some(socket) = socket {
            return Ok(socket);
        }
        let sources = self.sources;
        let mut made = self
            .run(move || -> io::Result<Vec<Socket>> {
                (0..BATCH)
                    .map(|_| outgoing(transport, v4, sources))
                    .collect()
            })
            .await??;
        let socket = made.pop().ok_or(io::ErrorKind::Other)?;
        self.ready()[kind].append(&mut made);
        Ok(socket)
    }

    /// Has sockets made that the next connections need not wait for.
    fn make_more(&self, kind: usize, transport: Transport, v4: bool) {
        let (ready, sources) = (self.ready.clone(), self.sources);
        let job = move || {
            // Whoever finds none has its own made, and hears why there is none.
            let made: Vec<Socket> = (0..BATCH)
                .map_while(|_| outgoing(transport, v4, sources).ok())
                .collect();
            ready.lock().unwrap_or_else(PoisonError::into_inner)[kind].extend(made);
        };
        let _ = self.jobs.send(Box::new(job));
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, [Vec<Socket>; 4]> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `job`, which makes a socket of a fixed address. The process before this one may have one there
    /// for a moment longer, when it was killed.
    async fn run_when_free(
        &self,
        job: impl Fn() -> io::Result<Socket> + Clone + Send + 'static,
    ) -> io::Result<Socket> {
        let deadline = Instant::now() + REPLACED;
        loop {
            match self.run(job.clone()).await? {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {}
                made => return made,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Runs `job` in the uplink namespace.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let gone = || io::Error::other("the thread in the uplink namespace has ended");
        let (answer, result) = oneshot::channel();
        let job = Box::new(move || drop(answer.send(job())));
        self.jobs.send(job).map_err(|_| gone())?;
        result.await.map_err(|_| gone())
    }
}

fn enter(namespace: &OwnedFd, sources: Sources) -> SysResult<()> {
    let network = Some(LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), network)
        .attempt(|| "setns into the uplink namespace")?;
    let needed = sources.capabilities();
    let sets = CapabilitySets {
        effective: needed,
        permitted: needed,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).attempt(|| format!("keep only the capabilities {needed:?}"))
}

fn free_bind(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let kind = kind.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    match address.ip() {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => {
            socket.set_freebind_v6(true)?;
            socket.set_only_v6(true)?;
        }
    }
    if protocol == Protocol::TCP {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn outgoing(transport: Transport, v4: bool, sources: Sources) -> io::Result<Socket> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let (kind, protocol) = match transport {
        Transport::Stream => (Type::STREAM, Protocol::TCP),
        Transport::Datagram => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))?;
    match (sources, v4) {
        (Sources::Any, true) => socket.set_ip_transparent_v4(true)?,
        (Sources::Any, false) => socket.set_ip_transparent_v6(true)?,
        (Sources::Own, _) => {}
    }
    match transport {
        Transport::Stream => {
            // A client may come back with the port of a connection still in TIME_WAIT here.
            socket.set_reuse_address(true)?;
            socket.set_tcp_nodelay(true)?;
        }
        Transport::Datagram => socket.set_recv_buffer_size(QUEUE)?,
    }
    Ok(socket)
}
