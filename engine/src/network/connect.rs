//! Containers in networks: what they ask for, settled when they are made, and what they get, decided
//! when they start.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use rusqlite::{Connection as Database, Transaction};
use selkie_net::address;
use selkie_net::member::Member;
use selkie_net::network::{Attachment, DEFAULT_NETWORK, InterfaceName, Network};
use selkie_net::uplink::Dedicated;

use super::change::stored;
use super::create::ensure_default;
use super::lease::{self, Holder};
use super::{find, is_default};
use crate::Engine;
use crate::container::list::no_such_container;
use crate::container::{Container, ContainerId, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::options::{CreateOptions, DnsServers, NetworkMode, NetworkRequest};
use crate::state::Observed;

/// Everything that connects a container, as the uplink takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    /// The container.
    pub member: Member,
    /// Definitions of the networks it is in, in the order of its attachments.
    pub networks: Vec<Network>,
    /// A connector of its own instead of networks.
    pub dedicated: Option<Dedicated>,
}

/// A container's place in a network, for `inspect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerNetwork {
    /// The network.
    pub network: Network,
    /// What was asked for.
    pub request: NetworkRequest,
    /// What it has, while it runs.
    pub attachment: Option<Attachment>,
}

/// Who a container is to the name servers.
pub(crate) struct Who<'a> {
    pub id: &'a ContainerId,
    pub name: &'a str,
    pub options: &'a CreateOptions,
}

/// Replaces what a new container's networks were called by their names, checks what is asked of
/// them, and names the interfaces. The networks, in order.
///
/// # Errors
/// `NotFound`: no such network. `InvalidInput`: an address that is not the network's, a network, an
/// interface or a route twice.
pub(crate) fn settle(
    transaction: &Transaction<'_>,
    mode: &mut NetworkMode,
) -> Result<Vec<Network>> {
    let NetworkMode::Networks(requests) = mode else {
        return Ok(Vec::new());
    };
    let mut networks = Vec::with_capacity(requests.len());
    for index in 0..requests.len() {
        let (before, rest) = requests.split_at_mut(index);
        networks.push(settle_one(transaction, before, &mut rest[0])?);
    }
    name_interfaces(requests)?;
    refuse_two_ways(&networks.iter().collect::<Vec<_>>())?;
    Ok(networks)
}

/// Which of two routes to one place is taken is for their metrics to say (`network create --route`).
pub(super) fn refuse_two_ways(networks: &[&Network]) -> Result<()> {
    let mut seen: HashMap<(IpNet, u32), &str> = HashMap::new();
    for network in networks {
        for route in &network.routes {
            let place = (route.destination, route.metric);
            if let Some(other) = seen.insert(place, &network.name) {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "networks {other} and {} both have a route to {} of metric {}: a container \
                         in both would have two ways there",
                        network.name, route.destination, route.metric
                    ),
                )
                .with_hint(
                    "make one of them with another metric (--route NETWORK,GATEWAY,METRIC)",
                ));
            }
        }
    }
    Ok(())
}

pub(super) fn settle_one(
    transaction: &Transaction<'_>,
    others: &[NetworkRequest],
    request: &mut NetworkRequest,
) -> Result<Network> {
    let network = if is_default(&request.name) {
        ensure_default(transaction)?
    } else {
        find(transaction, &request.name)?.definition
    };
    request.name.clone_from(&network.name);
    if others.iter().any(|other| other.name == network.name) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "network {} is given twice: a container is in a network once",
                network.name
            ),
        ));
    }
    let asked = [request.ip.map(IpAddr::V4), request.ip6.map(IpAddr::V6)];
    for address in asked.into_iter().flatten() {
        check_address(&network, address)?;
    }
    for alias in &request.aliases {
        check_alias(alias)?;
    }
    Ok(network)
}

fn check_address(network: &Network, address: IpAddr) -> Result<()> {
    let same_family = |other: &IpAddr| other.is_ipv4() == address.is_ipv4();
    let subnet = network
        .subnets
        .iter()
        .find(|subnet| same_family(&subnet.gateway))
        .ok_or_else(|| {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "requested address {address}: network {} has no {family} subnet",
                    network.name
                ),
            )
        })?;
    address::check_static(subnet, address).map_err(|error| {
        Error::new(
            ErrorKind::InvalidInput,
            format!(
                "requested static ip {address} not in any subnet on network {}: {error}",
                network.name
            ),
        )
    })
}

/// What name servers can be asked: labels of letters, digits, `-` and `_`.
fn check_alias(alias: &str) -> Result<()> {
    let fits = alias.len() <= 253
        && alias.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        });
    if fits {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!("network alias {alias:?} is no name: letters, digits, '-', '_' and dots between"),
    ))
}

/// Gives each request without one the lowest free `ethN`.
pub(super) fn name_interfaces(requests: &mut [NetworkRequest]) -> Result<()> {
    for (index, request) in requests.iter().enumerate() {
        let Some(interface) = &request.interface else {
            continue;
        };
        let is_twice = requests[..index]
            .iter()
            .any(|other| other.interface.as_ref() == Some(interface));
        if is_twice || interface.as_str() == "lo" {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("interface name {interface} is already in use in the container"),
            ));
        }
    }
    for index in 0..requests.len() {
        if requests[index].interface.is_some() {
            continue;
        }
        requests[index].interface = free_interface(requests)?;
    }
    Ok(())
}

pub(super) fn free_interface(requests: &[NetworkRequest]) -> Result<Option<InterfaceName>> {
    for number in 0..=requests.len() {
        let name = format!("eth{number}");
        let is_taken = requests.iter().any(|request| {
            request
                .interface
                .as_ref()
                .is_some_and(|interface| interface.as_str() == name)
        });
        if !is_taken {
            return name
                .parse()
                .map(Some)
                .map_err(|error| Error::machine("name an interface", error));
        }
    }
    Err(Error::machine("name an interface", "all names are taken"))
}

/// Takes a container's addresses in its networks, in the transaction that makes or starts it.
/// `held` are those it has already (none of a new one).
///
/// # Errors
/// `Conflict` when there is none left, or the one asked for is somebody else's.
pub(crate) fn connect(
    transaction: &Transaction<'_>,
    who: &Who<'_>,
    networks: Vec<Network>,
    held: &[(String, IpAddr)],
    is_active: &dyn Fn(&str) -> bool,
) -> Result<Option<Connection>> {
    let NetworkMode::Networks(requests) = &who.options.network else {
        return Ok(None);
    };
    let holder = Holder {
        id: who.id,
        is_active,
    };
    let mut attachments = Vec::with_capacity(networks.len());
    for (network, request) in networks.iter().zip(requests) {
        let addresses = lease::take(transaction, &holder, network, request, held)?;
        attachments.push(attachment(who.id, network, request, &addresses)?);
    }
    Ok(Some(Connection {
        member: who.member(attachments),
        networks,
        dedicated: None,
    }))
}

/// [`connect`] for a container that was made earlier.
pub(crate) fn connect_again(
    transaction: &Transaction<'_>,
    who: &Who<'_>,
    is_active: &dyn Fn(&str) -> bool,
) -> Result<Option<Connection>> {
    let requests = who.options.network.requests();
    let networks = requests
        .iter()
        .map(|request| Ok(find(transaction, &request.name)?.definition))
        .collect::<Result<Vec<Network>>>()?;
    let held = lease::held(transaction, who.id)?;
    connect(transaction, who, networks, &held, is_active)
}

impl Who<'_> {
    /// Podman's names: the container's own, the beginning of its ID, its host name if it was given one.
    fn member(&self, attachments: Vec<Attachment>) -> Member {
        let mut names = vec![self.name.to_owned(), self.id.short().to_owned()];
        names.extend(self.options.hostname.clone());
        names.dedup();
        Member {
            container: self.id.to_string(),
            names,
            attachments,
            ports: self.options.ports.clone(),
            dns_servers: match &self.options.names.dns_servers {
                DnsServers::These(servers) => servers.clone(),
                DnsServers::OfNetworks | DnsServers::ImagesOwn => Vec::new(),
            },
        }
    }
}

pub(super) fn attachment(
    id: &ContainerId,
    network: &Network,
    request: &NetworkRequest,
    addresses: &[IpAddr],
) -> Result<Attachment> {
    let mut nets = Vec::with_capacity(addresses.len());
    for address in addresses {
        let subnet = network
            .subnets
            .iter()
            .find(|subnet| subnet.subnet.contains(address))
            .ok_or_else(|| {
                Error::machine(
                    format!("connect container {id} to network {}", network.name),
                    format!("its address {address} is in no subnet of it"),
                )
            })?;
        let net = IpNet::new(*address, subnet.subnet.prefix_len())
            .map_err(|error| Error::machine("write an address", error))?;
        nets.push(net);
    }
    let interface = request.interface.clone().ok_or_else(|| {
        Error::machine(
            format!("connect container {id} to network {}", network.name),
            "its interface was never given a name",
        )
    })?;
    Ok(Attachment {
        network: network.name.clone(),
        interface,
        addresses: nets,
        mac: request
            .mac
            .unwrap_or_else(|| address::default_mac(id.as_str(), &network.id)),
        aliases: request.aliases.clone(),
    })
}

/// What is on record of a running container's places: `None` for one that is in no networks because
/// it has another `--network` mode.
///
/// # Errors
/// `NotFound`; the database cannot be read.
pub(crate) fn on_record(database: &Database, id: &ContainerId) -> Result<Option<Connection>> {
    let (name, config) = stored(database, id)?;
    let NetworkMode::Networks(requests) = &config.options.network else {
        return Ok(None);
    };
    let mut networks = Vec::new();
    let mut attachments = Vec::new();
    for place in places(database, id, requests, true)? {
        attachments.extend(place.attachment);
        networks.push(place.network);
    }
    let who = Who {
        id,
        name: &name,
        options: &config.options,
    };
    Ok(Some(Connection {
        member: who.member(attachments),
        networks,
        dedicated: None,
    }))
}

fn places(
    database: &Database,
    id: &ContainerId,
    requests: &[NetworkRequest],
    with_addresses: bool,
) -> Result<Vec<ContainerNetwork>> {
    let held = if with_addresses {
        lease::held(database, id)?
    } else {
        Vec::new()
    };
    requests
        .iter()
        .map(|request| {
            let network = find(database, &request.name)?.definition;
            let addresses: Vec<IpAddr> = network
                .subnets
                .iter()
                .filter_map(|subnet| {
                    held.iter().find_map(|(name, address)| {
                        (*name == network.name && subnet.subnet.contains(address))
                            .then_some(*address)
                    })
                })
                .collect();
            let attachment = if addresses.is_empty() {
                None
            } else {
                Some(attachment(id, &network, request, &addresses)?)
            };
            Ok(ContainerNetwork {
                network,
                request: request.clone(),
                attachment,
            })
        })
        .collect()
}

impl Engine {
    /// What the uplink must be told of a container: `None` for one that is in no networks because it
    /// has another `--network` mode.
    ///
    /// # Errors
    /// `NotFound`; the database cannot be read.
    pub(crate) fn connection(&self, id: &ContainerId) -> Result<Option<Connection>> {
        self.database.read(|database| on_record(database, id))
    }

    /// A container's networks, with its addresses in them while it runs.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn container_networks(&self, container: &Container) -> Result<Vec<ContainerNetwork>> {
        let runs = matches!(container.status, Status::Running | Status::Stopping);
        self.places(
            &container.id,
            container.config.options.network.requests(),
            runs,
        )
    }

    pub(super) fn places(
        &self,
        id: &ContainerId,
        requests: &[NetworkRequest],
        with_addresses: bool,
    ) -> Result<Vec<ContainerNetwork>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        self.database
            .read(|database| places(database, id, requests, with_addresses))
    }

    /// Whether the container whose network `mode` shares runs, if it shares one.
    pub(crate) fn check_shared_network(&self, mode: &NetworkMode) -> Result<()> {
        let NetworkMode::Container(target) = mode else {
            return Ok(());
        };
        let id = ContainerId::parse(target).ok_or_else(|| no_such_container(target))?;
        match self.observe(&id)? {
            Observed::Running(_) => Ok(()),
            _ => {
                let target = self.container(&id)?;
                Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "cannot join the network of container {}: it does not run",
                        target.name
                    ),
                )
                .with_hint(format!("selkie start {}", target.name)))
            }
        }
    }
}

impl NetworkMode {
    /// As `--network` takes it, and as `inspect` shows it (`HostConfig.NetworkMode`).
    pub fn describe(&self) -> String {
        let with = |name: &str, options: &[String]| match options {
            [] => name.to_owned(),
            options => format!("{name}:{}", options.join(",")),
        };
        match self {
            Self::None => "none".to_owned(),
            Self::Host => "host".to_owned(),
            Self::Networks(requests) => match requests.as_slice() {
                [one] if one.name == DEFAULT_NETWORK => "bridge".to_owned(),
                [] => "private".to_owned(),
                requests => {
                    let names: Vec<&str> = requests.iter().map(|r| r.name.as_str()).collect();
                    names.join(",")
                }
            },
            Self::Pasta(options) => with("pasta", options),
            Self::Slirp4netns(options) => with("slirp4netns", options),
            Self::Container(id) => format!("container:{id}"),
            Self::Namespace(path) => format!("ns:{}", path.display()),
        }
    }
}
