//! The process itself: one thread that serves, and one in the uplink namespace that makes sockets.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::Pid;
use selkie_sys::clone::exit_now;
use selkie_sys::errno::{Attempt, SysError, SysResult};
use tokio::io::Interest;
use tokio::net::{TcpListener, UdpSocket, UnixDatagram};
use tokio::task::JoinHandle;

use super::super::namespace::failure;
use super::super::protocol::{receive, send};
use super::{Ports, ServiceAnswer, ServiceFailure, ServiceRequest};
use crate::forwarder::sandbox::Sandbox;
use crate::forwarder::{Forwarder, HostTables, Limits, Target, UplinkSockets};
use crate::member::Member;
use crate::name_server::{DNS_PORT, HostResolvers, MemberView, NameServer, NetworkView, Views};
use crate::network::Network;
use crate::port_mapping::PortMapping;

/// The name in `ps`. Shorter than the kernel's 16 bytes.
const PROCESS_NAME: &std::ffi::CStr = c"selkie-services";

/// Where what `resolv.conf` is, or leads to, may come and go.
const RESOLVER_PLACES: [&str; 5] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/connman",
];

/// Serves until the supervisor goes, whose process is `parent`.
pub(super) fn run(channel: OwnedFd, uplink: BorrowedFd<'_>, resolv_conf: &Path, parent: Pid) -> ! {
    let _ = rustix::thread::set_name(PROCESS_NAME);
    let _ = selkie_sys::child::hide_command_line(PROCESS_NAME);
    let served = set_up(&channel, uplink, resolv_conf, parent).and_then(|(sockets, tables)| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .attempt(|| "start the services' runtime")?;
        runtime.block_on(serve(&channel, sockets, tables, resolv_conf))
    });
    match served {
        Ok(()) => exit_now(0),
        Err(error) => {
            let failed: ServiceAnswer = Err(ServiceFailure::Other(failure(error)));
            let _ = send(channel.as_fd(), &failed, &[]);
            exit_now(1)
        }
    }
}

fn set_up(
    channel: &OwnedFd,
    uplink: BorrowedFd<'_>,
    resolv_conf: &Path,
    parent: Pid,
) -> SysResult<(UplinkSockets, HostTables)> {
    let uplink = uplink
        .try_clone_to_owned()
        .attempt(|| "duplicate a descriptor")?;
    selkie_sys::slim::close_all_except(&[channel.as_fd(), uplink.as_fd()])?;
    let mut readable: Vec<PathBuf> = RESOLVER_PLACES.iter().map(PathBuf::from).collect();
    readable.extend(resolv_conf.parent().map(Path::to_owned));
    let tables = HostTables::open();
    let sandbox = Sandbox {
        readable: &readable,
        parent,
    };
    let (sockets, _) = sandbox
        .enter(uplink)
        .map_err(|error| SysError::new(error.to_string(), Errno::PERM))?;
    rustix::io::ioctl_fionbio(channel, true).attempt(|| "make a channel non-blocking")?;
    Ok((sockets, tables))
}

async fn serve(
    channel: &OwnedFd,
    sockets: UplinkSockets,
    tables: HostTables,
    resolv_conf: &Path,
) -> SysResult<()> {
    let views = Views::new();
    let names = NameServer::new(views.clone(), HostResolvers::new(resolv_conf));
    let forwarder = Forwarder::new(sockets.clone(), tables, Limits::default())
        .attempt(|| "set up the forwarding of ports")?;
    let mut services = ServicesInside {
        sockets,
        views,
        names,
        forwarder,
        networks: HashMap::new(),
        members: HashMap::new(),
    };
    // Tokio knows sockets of packets only as datagram ones, which are read the same way.
    let channel = channel
        .try_clone()
        .map(std::os::unix::net::UnixDatagram::from)
        .and_then(UnixDatagram::from_std)
        .attempt(|| "watch the channel to the supervisor")?;
    let mut buffer = Vec::new();
    // It serves from here on.
    answer(&channel, &Ok(Vec::new()))?;
    loop {
        channel
            .readable()
            .await
            .attempt(|| "watch the channel to the supervisor")?;
        let received = channel.try_io(Interest::READABLE, || {
            receive::<ServiceRequest>(&channel, &mut buffer).map_err(Into::into)
        });
        match received {
            Ok(Some((request, _))) => {
                // Room for the longest message is too much to keep.
                buffer = Vec::new();
                let result = services.perform(request).await;
                answer(&channel, &result)?;
            }
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                return Err(error).attempt(|| "hear from the supervisor");
            }
        }
    }
}

/// The supervisor reads each answer before it asks again, so there is room.
fn answer(channel: &UnixDatagram, answer: &ServiceAnswer) -> SysResult<()> {
    send(channel.as_fd(), answer, &[])
}

/// A network whose gateways are served.
struct Served {
    gateways: Vec<IpAddr>,
    tasks: Vec<JoinHandle<std::io::Error>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct ServicesInside {
    sockets: UplinkSockets,
    views: Views,
    names: NameServer,
    forwarder: Forwarder,
    networks: HashMap<String, Served>,
    /// What each container has at the moment.
    members: HashMap<String, Member>,
}

impl ServicesInside {
    async fn perform(&mut self, request: ServiceRequest) -> ServiceAnswer {
        match request {
            ServiceRequest::Attach {
                member,
                networks,
                ports,
            } => self.attach(member, &networks, ports).await,
            ServiceRequest::Detach { container } => {
                self.members.remove(&container);
                self.views.remove_container(&container);
                self.forwarder.unpublish(&container).await;
                Ok(Vec::new())
            }
            ServiceRequest::ChangeNetwork { network } => self
                .serve_names(&network)
                .await
                .map(|()| Vec::new())
                .map_err(|error| ServiceFailure::Other(failure(error))),
            ServiceRequest::RemoveNetwork { name } => {
                self.networks.remove(&name);
                self.views.remove_network(&name);
                Ok(Vec::new())
            }
        }
    }

    async fn attach(
        &mut self,
        member: Member,
        networks: &[Network],
        ports: Ports,
    ) -> ServiceAnswer {
        for network in networks {
            self.serve_names(network)
                .await
                .map_err(|error| ServiceFailure::Other(failure(error)))?;
        }
        let left_out = self.publish(&member, networks, ports).await?;
        let container = &member.container;
        if let Some(before) = self.members.get(container) {
            for attachment in &before.attachments {
                if !member
                    .attachments
                    .iter()
                    .any(|now| now.network == attachment.network)
                {
                    self.views.remove_member(&attachment.network, container);
                }
            }
        }
        for attachment in &member.attachments {
            let mut names = member.names.clone();
            names.extend(attachment.aliases.iter().cloned());
            let view = MemberView {
                container: container.clone(),
                names,
                addresses: attachment.addresses.iter().map(|net| net.addr()).collect(),
                servers: member.dns_servers.clone(),
            };
            self.views
                .set_member(&attachment.network, view)
                .map_err(|error| {
                    ServiceFailure::Other(failure(SysError::new(error.to_string(), Errno::NOENT)))
                })?;
        }
        self.members.insert(container.clone(), member);
        Ok(left_out)
    }

    /// Serves names on a network's gateways.
    async fn serve_names(&mut self, network: &Network) -> SysResult<()> {
        self.views.set_network(NetworkView::from(network));
        let gateways: Vec<IpAddr> = network
            .subnets
            .iter()
            .map(|subnet| subnet.gateway)
            .collect();
        if self
            .networks
            .get(&network.name)
            .is_some_and(|served| served.gateways == gateways)
        {
            return Ok(());
        }
        self.networks.remove(&network.name);
        let mut served = Served {
            gateways,
            tasks: Vec::new(),
        };
        for gateway in &served.gateways {
            let address = SocketAddr::new(*gateway, DNS_PORT);
            let udp = self
                .sockets
                .bind_udp(address)
                .await
                .and_then(UdpSocket::from_std)
                .attempt(|| format!("serve names at {address}/udp"))?;
            let tcp = self
                .sockets
                .listen_tcp(address)
                .await
                .and_then(TcpListener::from_std)
                .attempt(|| format!("serve names at {address}/tcp"))?;
            let (by_udp, by_tcp) = (self.names.clone(), self.names.clone());
            served
                .tasks
                .push(tokio::spawn(by_udp.serve_udp(udp, network.name.clone())));
            served
                .tasks
                .push(tokio::spawn(by_tcp.serve_tcp(tcp, network.name.clone())));
        }
        self.networks.insert(network.name.clone(), served);
        Ok(())
    }

    /// Publishes what `member` has and is not published, and the other way round. Port by port, so that
    /// those that stay of a range that changes are not touched.
    async fn publish(
        &mut self,
        member: &Member,
        networks: &[Network],
        ports: Ports,
    ) -> ServiceAnswer {
        let container = &member.container;
        let target = target(member, networks);
        let wanted: HashSet<PortMapping> =
            member.ports.iter().flat_map(PortMapping::singles).collect();
        let before: HashSet<PortMapping> = self
            .forwarder
            .published()
            .filter(|(of, _)| of == container)
            .map(|(_, mapping)| mapping.clone())
            .collect();
        if !before.is_empty() {
            self.forwarder.retarget(container, target.clone());
        }
        let mut new: Vec<PortMapping> = wanted.difference(&before).cloned().collect();
        new.sort();
        // A port of the host that is to lead elsewhere must be free first.
        let (in_the_way, old): (Vec<&PortMapping>, Vec<&PortMapping>) = before
            .difference(&wanted)
            .partition(|old| new.iter().any(|new| new.clashes(old)));
        for mapping in &in_the_way {
            self.forwarder.unpublish_mapping(container, mapping).await;
        }
        let mut left_out = Vec::new();
        let published = match new.as_slice() {
            [] => Ok(()),
            new => self.forwarder.publish(container, new, target.clone()),
        };
        match published {
            Ok(()) => {}
            Err(error) if ports == Ports::AllOrNothing => {
                let taken_back: Vec<PortMapping> = in_the_way.into_iter().cloned().collect();
                self.forwarder
                    .publish(container, &taken_back, target)
                    .map_err(ServiceFailure::Publish)?;
                return Err(ServiceFailure::Publish(error));
            }
            Err(_) => {
                for mapping in &new {
                    let one = std::slice::from_ref(mapping);
                    left_out.extend(self.forwarder.publish(container, one, target.clone()).err());
                }
            }
        }
        for mapping in old {
            self.forwarder.unpublish_mapping(container, mapping).await;
        }
        Ok(left_out)
    }
}

/// Where published ports lead: the first address of each family in a network that has a way out.
fn target(member: &Member, networks: &[Network]) -> Target {
    let mut target = Target::default();
    for attachment in &member.attachments {
        let network = networks
            .iter()
            .find(|network| network.name == attachment.network && !network.internal);
        let Some(network) = network else {
            continue;
        };
        target
            .subnets
            .extend(network.subnets.iter().map(|subnet| subnet.subnet));
        for address in &attachment.addresses {
            match address.addr() {
                IpAddr::V4(address) if target.v4.is_none() => {
                    target.v4 = Some(address);
                    target.gateway_v4 = network.gateway_v4();
                }
                IpAddr::V6(address) if target.v6.is_none() => {
                    target.v6 = Some(address);
                    target.gateway_v6 = network.gateway_v6();
                }
                _ => {}
            }
        }
    }
    target
}
