//! A published UDP port: flows.
//!
//! One socket on the host takes the datagrams of all clients. For each pair of a client and the
//! address of ours it spoke to there is a *flow*: a connected socket in the uplink namespace with the
//! client's address, through which the container's answers come back, and a task that passes them on.
//! Flows end as conntrack ends them: after a short silence until the container has answered, after a
//! long one from then on. A client keeps its port unless another flow of it already has it. A datagram that cannot be sent at once is lost, as on any wire.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::descriptors::Share;
use super::packet_info::{self, Ends, with_buffer};
use super::uplink_sockets::Transport;
use super::{Destination, Shared};

/// Datagrams handled before others have their turn.
const TURNS: usize = 32;

/// When a flow was last used, and how.
struct Activity {
    /// Milliseconds since `began`.
    last: AtomicU64,
    began: Instant,
    answered: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        Self {
            last: AtomicU64::new(0),
            began: Instant::now(),
            answered: AtomicBool::new(false),
        }
    }

    fn touch(&self) {
        let passed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(passed, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

struct Flow {
    socket: Arc<UdpSocket>,
    destination: IpAddr,
    activity: Arc<Activity>,
    task: AbortHandle,
}

/// A published port.
struct Port {
    socket: Arc<UdpSocket>,
    shared: Shared,
    port: u16,
    flows: HashMap<Ends, Flow>,
    tasks: JoinSet<Ends>,
}

/// Passes datagrams on until it is dropped, and all its flows with it.
pub(super) async fn serve(socket: UdpSocket, shared: Shared, mut to: Destination, port: u16) {
    let mut port = Port {
        socket: Arc::new(socket),
        shared,
        port,
        flows: HashMap::new(),
        tasks: JoinSet::new(),
    };
    loop {
        let socket = port.socket.clone();
        tokio::select! {
            ready = socket.readable() => {
                if ready.is_err() {
                    return;
                }
                port.take(&to).await;
                while let Some(ended) = port.tasks.try_join_next() {
                    port.forget(ended);
                }
                tokio::task::yield_now().await;
            }
            Some(ended) = port.tasks.join_next() => port.forget(ended),
            changed = to.changed() => {
                if changed.is_err() {
                    return;
                }
                let target = to.borrow_and_update().clone();
                port.flows.retain(|_, flow| {
                    let stays = target.as_ref().is_some_and(|to| to.has(flow.destination));
                    if !stays {
                        flow.task.abort();
                    }
                    stays
                });
            }
        }
    }
}

impl Port {
    /// Takes what clients have sent.
    async fn take(&mut self, to: &Destination) {
        for _ in 0..TURNS {
            let step = with_buffer(|buffer| {
                let (length, ends) = self.socket.try_io(Interest::READABLE, || {
                    packet_info::receive(self.socket.as_fd(), buffer)
                })?;
                Ok(match self.flows.get(&ends) {
                    Some(flow) => {
                        flow.pass(&buffer[..length]);
                        None
                    }
                    None => Some((ends, buffer[..length].to_vec())),
                })
            });
            match step {
                Ok(None) => {}
                Ok(Some((ends, datagram))) => match self.open(ends, to).await {
                    Ok(flow) => flow.pass(&datagram),
                    Err(error) => {
                        let client = ends.client;
                        tracing::debug!(%client, port = self.port, %error, "no flow to the container");
                    }
                },
                Err(error) => {
                    let error: io::Error = error;
                    if error.kind() == io::ErrorKind::WouldBlock {
                        return;
                    }
                    // An answer of ours could not be delivered; that says nothing about this port.
                }
            }
        }
    }

    async fn open(&mut self, ends: Ends, to: &Destination) -> io::Result<&Flow> {
        let path = to
            .borrow()
            .as_ref()
            .and_then(|target| target.path(ends.client));
        let path = path.ok_or_else(|| io::Error::other("it has no address"))?;
        let share = self.share()?;
        let sockets = &self.shared.sockets;
        let socket = sockets.outgoing(Transport::Datagram, path.source).await?;
        let destination = SocketAddr::new(path.destination, self.port);
        socket.connect(&destination.into())?;
        let socket = Arc::new(UdpSocket::from_std(socket.into())?);
        let activity = Arc::new(Activity::new());
        let answers = Answers {
            from: socket.clone(),
            destination,
            through: self.socket.clone(),
            ends,
            activity: activity.clone(),
            shared: self.shared.clone(),
        };
        let task = self.tasks.spawn(async move {
            answers.run().await;
            drop(share);
            ends
        });
        let flow = Flow {
            socket,
            destination: path.destination,
            activity,
            task,
        };
        Ok(self.flows.entry(ends).insert_entry(flow).into_mut())
    }

    /// A descriptor for one more flow, if need be that of the flow least worth keeping: strangers who
    /// invent addresses must not shut out those who are spoken with.
    fn share(&mut self) -> io::Result<Share> {
        if self.flows.len() < self.shared.limits.flows_per_port
            && let Some(share) = self.shared.descriptors.flow()
        {
            return Ok(share);
        }
        let worth = |flow: &Flow| {
            let answered = flow.activity.answered.load(Ordering::Relaxed);
            (answered, flow.activity.last())
        };
        let victim = self.flows.iter().min_by_key(|(_, flow)| worth(flow));
        if let Some(ends) = victim.map(|(ends, _)| *ends)
            && let Some(flow) = self.flows.remove(&ends)
        {
            flow.task.abort();
        }
        // The victim's share comes back when its task has been dropped, a moment later.
        let share = self.shared.descriptors.flow();
        share.ok_or_else(|| io::Error::other("too many flows and connections"))
    }

    fn forget(&mut self, ended: Result<Ends, tokio::task::JoinError>) {
        // One that was aborted is gone from the table already, and may have a successor there.
        if let Ok(ends) = ended
            && self
                .flows
                .get(&ends)
                .is_some_and(|flow| flow.task.is_finished())
        {
            self.flows.remove(&ends);
        }
    }
}

impl Flow {
    fn pass(&self, datagram: &[u8]) {
        self.activity.touch();
        for _ in 0..2 {
            // Not through tokio, which does not know yet of a new socket that it can be written to.
            match rustix::net::send(&self.socket, datagram, SendFlags::DONTWAIT) {
                Ok(_) | Err(Errno::AGAIN) => return,
                // Not of this datagram: an earlier one met a closed port, or a router's objection.
                // The kernel tells that first, and sends nothing.
                Err(_) => {}
            }
        }
    }
}

/// The way back of one flow.
struct Answers {
    from: Arc<UdpSocket>,
    destination: SocketAddr,
    through: Arc<UdpSocket>,
    ends: Ends,
    activity: Arc<Activity>,
    shared: Shared,
}

impl Answers {
    /// Passes answers on until there was silence for too long.
    async fn run(self) {
        loop {
            let limits = &self.shared.limits;
            let patience = if self.activity.answered.load(Ordering::Relaxed) {
                limits.udp_idle_answered
            } else {
                limits.udp_idle
            };
            let deadline = self.activity.last() + patience;
            tokio::select! {
                ready = self.from.readable() => {
                    if ready.is_err() {
                        return;
                    }
                    self.pass().await;
                    tokio::task::yield_now().await;
                }
                () = tokio::time::sleep_until(deadline) => {
                    if self.activity.last() + patience <= Instant::now() {
                        return;
                    }
                }
            }
        }
    }

    async fn pass(&self) {
        for _ in 0..TURNS {
            let step = with_buffer(|buffer| {
                let (length, sender) = self.from.try_recv_from(buffer)?;
                if sender != self.destination {
                    // Came between bind and connect.
                    return Ok(None);
                }
                self.activity.touch();
                self.activity.answered.store(true, Ordering::Relaxed);
                let datagram = &buffer[..length];
                let blocked = self.send(datagram).is_err_and(|error| would_block(&error));
                Ok(blocked.then(|| datagram.to_vec()))
            });
            match step {
                Ok(None) => {}
                Ok(Some(datagram)) => {
                    // The container is faster than the host's network: let it wait.
                    while self.through.writable().await.is_ok()
                        && self.send(&datagram).is_err_and(|error| would_block(&error))
                    {
                    }
                }
                Err(error) if would_block(&error) => return,
                // The container's port is closed. It may open.
                Err(_) => {}
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.through.try_io(Interest::WRITABLE, || {
            packet_info::send(self.through.as_fd(), datagram, &self.ends)
        })
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
