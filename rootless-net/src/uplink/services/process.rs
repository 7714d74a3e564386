//! The process itself: threads that serve (one alone until a TCP port is published), and one in the uplink
//! namespace that makes sockets.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::Pid;
use selkie_sys::errno::{Attempt, SysError, SysResult};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use super::super::service_process::inside::{self, Setup, Tools, other};
use super::super::service_process::{Answer, ServiceFailure};
use super::{Ports, ServiceRequest};
use crate::forwarder::{Forwarder, Limits, Sources, Target, UplinkSockets};
use crate::member::Member;
use crate::name_server::{DNS_PORT, HostResolvers, MemberView, NameServer, NetworkView, Views};
use crate::network::Network;
use crate::port_mapping::PortMapping;

/// Where what `resolv.conf` is, or leads to, may come and go.
const RESOLVER_PLACES: [&str; 5] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/connman",
];

/// Serves until the supervisor goes, whose process is `parent`.
pub(super) fn run(
    channel: OwnedFd,
    uplink: BorrowedFd<'_>,
    requests: Option<OwnedFd>,
    resolv_conf: &Path,
    parent: Pid,
) -> ! {
    let mut readable: Vec<PathBuf> = RESOLVER_PLACES.iter().map(PathBuf::from).collect();
    readable.extend(resolv_conf.parent().map(Path::to_owned));
    let setup = Setup {
        name: c"selkie-services",
        channel,
        parent,
        namespace: uplink,
        device: requests,
        sources: Sources::Any,
        readable: &readable,
    };
    inside::run(setup, async |tools| {
        serve(tools, resolv_conf).await.map_err(other)
    })
}

async fn serve(tools: Tools, resolv_conf: &Path) -> SysResult<()> {
    let Tools {
        channel,
        sockets,
        tables,
        device,
    } = tools;
    let views = Views::new();
    let names = NameServer::new(views.clone(), HostResolvers::new(resolv_conf));
    let mut forwarder = Forwarder::new(sockets.clone(), tables, Limits::default())
        .attempt(|| "set up the forwarding of ports")?;
    if let Some(requests) = device {
        forwarder
            .pass_out(requests)
            .await
            .attempt(|| "listen for connections out of containers")?;
    }
    let mut services = ServicesInside {
        sockets,
        views,
        names,
        forwarder,
        networks: HashMap::new(),
        members: HashMap::new(),
    };
    // It serves from here on.
    channel.answer(&Ok(Vec::new()))?;
    while let Some(request) = channel.request().await? {
        let result = services.perform(request).await;
        channel.answer(&result)?;
    }
    Ok(())
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
    async fn perform(&mut self, request: ServiceRequest) -> Answer {
        match request {
            ServiceRequest::Attach {
                member,
                networks,
                ports,
            } => self.attach(member, &networks, ports).await,
            ServiceRequest::Detach { container } => {
                if let Some(member) = self.members.remove(&container) {
                    self.forwarder.forget(addresses(&member));
                }
                self.views.remove_container(&container);
                self.forwarder.unpublish(&container).await;
                Ok(Vec::new())
            }
            ServiceRequest::ChangeNetwork { network } => self
                .serve_names(&network)
                .await
                .map(|()| Vec::new())
                .map_err(other),
            ServiceRequest::RemoveNetwork { name } => {
                self.networks.remove(&name);
                self.views.remove_network(&name);
                Ok(Vec::new())
            }
        }
    }

    async fn attach(&mut self, member: Member, networks: &[Network], ports: Ports) -> Answer {
        for network in networks {
            self.serve_names(network).await.map_err(other)?;
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
            let now: Vec<IpAddr> = addresses(&member).collect();
            self.forwarder
                .forget(addresses(before).filter(|address| !now.contains(address)));
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
                .map_err(|error| other(SysError::new(error.to_string(), Errno::NOENT)))?;
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
    async fn publish(&mut self, member: &Member, networks: &[Network], ports: Ports) -> Answer {
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

/// All that a container has.
fn addresses(member: &Member) -> impl Iterator<Item = IpAddr> {
    let attachments = member.attachments.iter();
    attachments.flat_map(|attachment| attachment.addresses.iter().map(|net| net.addr()))
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
