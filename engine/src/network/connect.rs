//! Containers in networks: what they ask for, settled when they are made; what they get, decided when
//! they start; and changes to both afterwards.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rusqlite::{Connection as Database, OptionalExtension, Transaction};
use selkie_net::address;
use selkie_net::member::Member;
use selkie_net::network::{Attachment, DEFAULT_NETWORK, InterfaceName, Network};
use selkie_net::uplink::Dedicated;
use selkie_sys::process_identity::ProcessIdentity;

use super::create::ensure_default;
use super::lease::{self, Holder};
use super::uplink_calls::{self, Live};
use super::{find, is_default};
use crate::Engine;
use crate::container::create::is_active;
use crate::container::etc_files::change_hosts_file;
use crate::container::list::no_such_container;
use crate::container::{Container, ContainerConfig, ContainerId, Status};
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::LockedContainer;
use crate::options::{CreateOptions, DnsServers, NetworkMode, NetworkRequest};
use crate::state::{Observed, observe};

/// How long a change waits for whoever holds a container's lock while it does not run.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

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
/// `NotFound`: no such network. `InvalidInput`: an address that is not the network's, a network or an
/// interface twice.
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
    Ok(networks)
}

fn settle_one(
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
fn name_interfaces(requests: &mut [NetworkRequest]) -> Result<()> {
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

fn free_interface(requests: &[NetworkRequest]) -> Result<Option<InterfaceName>> {
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

fn attachment(
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

    fn places(
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

    /// Puts a container into a network; at once when it runs.
    ///
    /// # Errors
    /// `NotFound`; `Conflict`: it is in it already, or no address is left; `InvalidInput`: it has
    /// another `--network` mode, or asks for what cannot be.
    pub fn connect_network(&mut self, id: &ContainerId, mut request: NetworkRequest) -> Result<()> {
        let held = self.hold(id)?;
        let config = &self.config;
        let (network, added, names) = self.database.write(Durability::PowerCut, |transaction| {
            let (name, mut stored) = stored(transaction, id)?;
            let requests = requests_of(&mut stored, id)?;
            let wanted = request.interface.is_some();
            if let Some(network) = requests.iter().find(|other| other.name == request.name) {
                return Err(already_connected(id, &network.name));
            }
            let network = match settle_one(transaction, &[], &mut request)? {
                network if requests.iter().any(|other| other.name == network.name) => {
                    return Err(already_connected(id, &network.name));
                }
                network => network,
            };
            if !wanted {
                request.interface = free_interface(requests)?;
            }
            requests.push(request.clone());
            name_interfaces(requests)?;
            store(transaction, id, &stored)?;
            // One that does not run gets its addresses when it starts.
            let added = match &held {
                Held::Running(_) => {
                    let holder = Holder {
                        id,
                        is_active: &|id| is_active(config, id),
                    };
                    let addresses = lease::take(transaction, &holder, &network, &request, &[])?;
                    Some(attachment(id, &network, &request, &addresses)?)
                }
                Held::Idle(_) => None,
            };
            Ok((network, added, own_names(id, &name, &stored)))
        })?;
        let (Held::Running(init), Some(added)) = (&held, added) else {
            return Ok(());
        };
        self.tell(id, *init, |config, live| {
            uplink_calls::attach(config, live, &added, &network)
        })
        .inspect_err(|_| {
            // The error of the attempt is the one to tell.
            if let Err(error) = self.forget(id, &network.name) {
                tracing::warn!("take {id} out of network {} again: {error}", network.name);
            }
        })?;
        self.change_hosts(id, &added, true, &names)
    }

    fn change_hosts(
        &self,
        id: &ContainerId,
        attachment: &Attachment,
        is_added: bool,
        names: &[String],
    ) -> Result<()> {
        let addresses: Vec<IpAddr> = attachment.addresses.iter().map(IpNet::addr).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (added, removed): (&[IpAddr], &[IpAddr]) = if is_added {
            (&addresses, &[])
        } else {
            (&[], &addresses)
        };
        change_hosts_file(&self.config.container_dir(id), added, removed, &names)
    }

    /// Takes a container out of a network; at once when it runs. With `force` it is off the record also
    /// when the running container cannot be reached.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput`: it is not in it.
    pub fn disconnect_network(
        &mut self,
        id: &ContainerId,
        name_or_id: &str,
        force: bool,
    ) -> Result<()> {
        let network = self.network(name_or_id)?.definition;
        let held = self.hold(id)?;
        let container = self.container(id)?;
        let place = self
            .places(id, container.config.options.network.requests(), true)?
            .into_iter()
            .enumerate()
            .find(|(_, place)| place.network.name == network.name);
        let Some((index, place)) = place else {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "container {} is not connected to network {}: invalid argument",
                    container.name, network.name
                ),
            ));
        };
        // Its lease goes last, so that nobody has the address while this one still answers to it.
        if let (Held::Running(init), Some(removed)) = (&held, &place.attachment) {
            let removed = removed.clone();
            self.forget_request(id, &network.name)?;
            let told = self.tell(id, *init, |config, live| {
                uplink_calls::detach(config, live, &removed, &network)
            });
            match told {
                Err(error) if force => {
                    tracing::warn!("{error}; it is taken out all the same");
                }
                Err(error) => {
                    if let Err(error) = self.remember_request(id, index, place.request.clone()) {
                        tracing::warn!("keep {id} in network {}: {error}", network.name);
                    }
                    return Err(error);
                }
                Ok(()) => {}
            }
            let names = own_names(id, &container.name, &container.config);
            self.change_hosts(id, &removed, false, &names)?;
        }
        self.forget(id, &network.name)
    }

    /// Makes a running container's places in its networks again.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it does not run; `InvalidInput`: it has another `--network` mode.
    pub fn reload_network(&mut self, id: &ContainerId) -> Result<()> {
        let container = self.container(id)?;
        if container.config.options.network.requests().is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("container {} is in no network to reload", container.name),
            ));
        }
        match self.observe(id)? {
            Observed::Running(state) => self.tell(id, state.init, uplink_calls::reload),
            _ => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "cannot reload the network of container {}: it does not run",
                    container.name
                ),
            )),
        }
    }

    /// Gives the uplink all of a container as it is on record.
    fn tell(
        &self,
        id: &ContainerId,
        init: ProcessIdentity,
        call: impl FnOnce(&crate::EngineConfig, &Live<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(Connection {
            member, networks, ..
        }) = self.connection(id)?
        else {
            return Err(no_such_container(id.as_str()));
        };
        call(
            &self.config,
            &Live {
                init,
                member: &member,
                networks: &networks,
            },
        )
    }

    fn forget_request(&mut self, id: &ContainerId, network: &str) -> Result<()> {
        self.database.write(Durability::PowerCut, |transaction| {
            let (_, mut config) = stored(transaction, id)?;
            requests_of(&mut config, id)?.retain(|request| request.name != network);
            store(transaction, id, &config)
        })
    }

    fn remember_request(
        &mut self,
        id: &ContainerId,
        index: usize,
        request: NetworkRequest,
    ) -> Result<()> {
        self.database.write(Durability::PowerCut, |transaction| {
            let (_, mut config) = stored(transaction, id)?;
            let requests = requests_of(&mut config, id)?;
            requests.insert(index.min(requests.len()), request);
            store(transaction, id, &config)
        })
    }

    /// Takes request and lease off the record.
    fn forget(&mut self, id: &ContainerId, network: &str) -> Result<()> {
        self.database.write(Durability::PowerCut, |transaction| {
            let (_, mut config) = stored(transaction, id)?;
            requests_of(&mut config, id)?.retain(|request| request.name != network);
            store(transaction, id, &config)?;
            lease::release(transaction, id, network)
        })
    }

    /// The container that runs, or the lock of one that does not, so that nobody starts it meanwhile.
    fn hold(&self, id: &ContainerId) -> Result<Held> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            if let Observed::Running(state) = self.observe(id)? {
                return Ok(Held::Running(state.init));
            }
            if let Some(lock) = LockedContainer::try_lock(&self.config, id)? {
                match observe(lock.as_fd(), ".")? {
                    Observed::Running(state) => return Ok(Held::Running(state.init)),
                    _ => return Ok(Held::Idle(lock)),
                }
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("container {id} is being started or removed by another command"),
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
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

/// A container while it is changed.
enum Held {
    Running(ProcessIdentity),
    Idle(#[allow(dead_code, reason = "held, not looked at")] LockedContainer),
}

/// What a container in networks is called in its own `/etc/hosts`.
fn own_names(id: &ContainerId, name: &str, config: &ContainerConfig) -> Vec<String> {
    let host_name = config.options.hostname.as_deref().unwrap_or(id.short());
    let mut names = vec![host_name.to_owned(), name.to_owned()];
    names.dedup();
    names
}

fn already_connected(id: &ContainerId, network: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "container {id} is already connected to network {network:?}: network is already connected"
        ),
    )
}

/// A container's name and configuration.
fn stored(database: &Database, id: &ContainerId) -> Result<(String, ContainerConfig)> {
    let (name, json): (String, String) = database
        .query_row(
            "SELECT name, config FROM container WHERE id = ?1",
            [id.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?
        .ok_or_else(|| no_such_container(id.as_str()))?;
    Ok((name, ContainerConfig::parse(&json, id.as_str())?))
}

fn store(transaction: &Transaction<'_>, id: &ContainerId, config: &ContainerConfig) -> Result<()> {
    let json = serde_json::to_string(config)
        .map_err(|error| Error::machine("write the container's configuration", error))?;
    transaction.execute(
        "UPDATE container SET config = ?2 WHERE id = ?1",
        [id.as_str(), &json],
    )?;
    Ok(())
}

fn requests_of<'c>(
    config: &'c mut ContainerConfig,
    id: &ContainerId,
) -> Result<&'c mut Vec<NetworkRequest>> {
    let mode = config.options.network.describe();
    match &mut config.options.network {
        NetworkMode::Networks(requests) => Ok(requests),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{mode:?} is not supported: invalid network mode"),
        )
        .with_hint(format!(
            "container {} was made with --network {mode}; only one on networks can change them",
            id.short()
        ))),
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
