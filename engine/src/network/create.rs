//! Making networks: what was asked for, completed and checked against what is in use.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rusqlite::{OptionalExtension, Transaction};
use selkie_net::address::{self, AddressError, SubnetRequest, overlap};
use selkie_net::network::{
    DEFAULT_MTU, DEFAULT_NETWORK, Isolation, Kind, Network, StaticRoute, Subnet,
};

use super::host_routes::{self, HostRoute};
use super::{StoredNetwork, all, insert, is_default};
use crate::Engine;
use crate::container::{ContainerId, fill_random, name};
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::state::now;

/// Names that mean something else to `--network`.
const MODES: [&str; 7] = [
    "container",
    "host",
    "none",
    "ns",
    "pasta",
    "private",
    "slirp4netns",
];

/// The smallest MTU IPv6 works with (RFC 8200), and IPv4 (RFC 791).
const LEAST_MTU: (u32, u32) = (1280, 68);

/// What `network create` takes.
#[derive(Debug, Clone, Default)]
pub struct NetworkOptions {
    /// A free `selkieN` when `None`.
    pub name: Option<String>,
    /// At most one of each family.
    pub subnets: Vec<SubnetRequest>,
    /// Add an IPv6 subnet when none is among `subnets`.
    pub ipv6: bool,
    /// No way out, and none in.
    pub internal: bool,
    /// No names of containers.
    pub disable_dns: bool,
    /// Whom its name server asks.
    pub dns_servers: Vec<IpAddr>,
    /// Routes of its containers.
    pub routes: Vec<StaticRoute>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--opt`: `mtu` and `isolate`.
    pub options: BTreeMap<String, String>,
}

impl From<AddressError> for Error {
    fn from(error: AddressError) -> Self {
        Self::new(ErrorKind::InvalidInput, error.to_string())
    }
}

impl Engine {
    /// Makes a network; it costs nothing until a container in it runs.
    ///
    /// # Errors
    /// `Conflict`: the name is taken. `InvalidInput`: a name, subnet or option that cannot be.
    pub fn create_network(&mut self, options: &NetworkOptions) -> Result<StoredNetwork> {
        if let Some(name) = &options.name {
            check_name(name)?;
        }
        if options.disable_dns && !options.dns_servers.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "cannot set --dns and --disable-dns on one network",
            ));
        }
        let routes = host_routes::read()?;
        self.database.write(Durability::PowerCut, |transaction| {
            ensure_default(transaction)?;
            let known = all(transaction)?;
            let name = match &options.name {
                Some(name) => name.clone(),
                None => free_name(&known),
            };
            if known.iter().any(|network| network.definition.name == name) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("network name {name} already used: network already exists"),
                ));
            }
            let subnets = subnets(options, &known, &routes)?;
            check_routes(&options.routes, &subnets)?;
            let network = StoredNetwork {
                definition: Network {
                    id: random_id()?,
                    kind: Kind::Bridge,
                    internal: options.internal,
                    isolation: isolation(&options.options)?,
                    mtu: mtu(&options.options, &subnets)?,
                    dns_enabled: !options.disable_dns,
                    dns_servers: options.dns_servers.clone(),
                    routes: options.routes.iter().map(whole_network).collect(),
                    name,
                    subnets,
                },
                created: now(),
                driver: "bridge".to_owned(),
                labels: options.labels.clone(),
                options: options.options.clone(),
            };
            insert(transaction, &network)?;
            Ok(network)
        })
    }

    /// Makes the default network unless it is there.
    pub(super) fn ensure_default_network(&mut self) -> Result<()> {
        let is_there = self.database.read(|connection| {
            Ok(connection
                .prepare_cached("SELECT 1 FROM network WHERE name = ?1")?
                .exists([DEFAULT_NETWORK])?)
        })?;
        if is_there {
            return Ok(());
        }
        self.database
            .write(Durability::ProcessCrash, ensure_default)
            .map(|_| ())
    }
}

/// The default network, made when it is not there.
pub(super) fn ensure_default(transaction: &Transaction<'_>) -> Result<Network> {
    let stored: Option<String> = transaction
        .prepare_cached("SELECT definition FROM network WHERE name = ?1")?
        .query_row([DEFAULT_NETWORK], |row| row.get(0))
        .optional()?;
    if let Some(json) = stored {
        return super::from_json(&json);
    }
    let mut used = nets(&all(transaction)?);
    used.extend(host_routes::read()?.iter().map(|route| route.net));
    let v4 = address::default_subnet_v4(&used)?;
    let subnets = vec![subnet(v4.into())?, random_v6(&used)?];
    let network = StoredNetwork {
        definition: Network {
            name: DEFAULT_NETWORK.to_owned(),
            id: random_id()?,
            kind: Kind::Routed,
            subnets,
            internal: false,
            isolation: Isolation::Isolated,
            mtu: DEFAULT_MTU,
            // Its containers cannot reach each other, so they need no names of each other.
            dns_enabled: false,
            dns_servers: Vec::new(),
            routes: Vec::new(),
        },
        created: now(),
        driver: "bridge".to_owned(),
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
    };
    insert(transaction, &network)?;
    Ok(network.definition)
}

fn random_id() -> Result<String> {
    Ok(ContainerId::random()?.to_string())
}

fn subnet(net: ipnet::IpNet) -> Result<Subnet> {
    Ok(address::subnet(&SubnetRequest {
        subnet: net,
        gateway: None,
        lease_range: None,
    })?)
}

fn random_v6(used: &[ipnet::IpNet]) -> Result<Subnet> {
    loop {
        let mut random = [0; 7];
        fill_random(&mut random)?;
        if let Some(net) = address::unique_local_subnet(random, used) {
            return subnet(net.into());
        }
    }
}

fn nets(networks: &[StoredNetwork]) -> Vec<ipnet::IpNet> {
    networks
        .iter()
        .flat_map(|network| &network.definition.subnets)
        .map(|subnet| subnet.subnet)
        .collect()
}

fn check_name(text: &str) -> Result<()> {
    name::check(text)?;
    if MODES.contains(&text) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "cannot create network with name {text:?} because it conflicts with a valid network mode"
            ),
        ));
    }
    if is_default(text) && text != DEFAULT_NETWORK {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "network name {text} already used: it is another name of the default network {DEFAULT_NETWORK}"
            ),
        ));
    }
    Ok(())
}

fn free_name(known: &[StoredNetwork]) -> String {
    let is_taken = |name: &str| known.iter().any(|network| network.definition.name == name);
    let mut number = 1;
    loop {
        let name = format!("{DEFAULT_NETWORK}{number}");
        if !is_taken(&name) {
            return name;
        }
        number += 1;
    }
}

/// IPv4 first, then IPv6.
fn subnets(
    options: &NetworkOptions,
    known: &[StoredNetwork],
    routes: &[HostRoute],
) -> Result<Vec<Subnet>> {
    let (mut v4, mut v6) = (None, None);
    for request in &options.subnets {
        let made = address::subnet(request)?;
        refuse_taken(&made, known, routes)?;
        let side = if made.gateway.is_ipv4() {
            &mut v4
        } else {
            &mut v6
        };
        if side.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "subnet {}: a network has at most one subnet of each family",
                    made.subnet
                ),
            )
            .with_hint("make a second network and connect containers to both"));
        }
        *side = Some(made);
    }
    let mut used = nets(known);
    used.extend(routes.iter().map(|route| route.net));
    if v4.is_none() && v6.is_none() {
        v4 = Some(subnet(address::free_subnet_v4(&used)?.into())?);
    }
    if options.ipv6 && v6.is_none() {
        v6 = Some(random_v6(&used)?);
    }
    Ok(v4.into_iter().chain(v6).collect())
}

/// Of the host's, only networks it is itself in count: a route to far away (a VPN's) may well cover
/// all private addresses.
fn refuse_taken(subnet: &Subnet, known: &[StoredNetwork], routes: &[HostRoute]) -> Result<()> {
    let net = &subnet.subnet;
    let holder = known
        .iter()
        .find(|network| {
            let subnets = network.definition.subnets.iter();
            subnets
                .map(|other| other.subnet)
                .any(|other| overlap(&other, net))
        })
        .map(|network| format!("network {}", network.definition.name))
        .or_else(|| {
            let route = routes
                .iter()
                .find(|route| route.on_link && overlap(&route.net, net))?;
            Some(format!("the host, on {} ({})", route.device, route.net))
        });
    match holder {
        None => Ok(()),
        Some(holder) => Err(AddressError::Taken(*net, holder).into()),
    }
}

/// Without host bits in its destination.
fn whole_network(route: &StaticRoute) -> StaticRoute {
    StaticRoute {
        destination: route.destination.trunc(),
        ..route.clone()
    }
}

/// The kernel takes only gateways that are on the link.
fn check_routes(routes: &[StaticRoute], subnets: &[Subnet]) -> Result<()> {
    for (index, route) in routes.iter().enumerate() {
        let StaticRoute {
            destination,
            gateway,
            metric,
        } = route;
        let is_way_there = |other: &StaticRoute| {
            (other.destination.trunc(), other.metric) == (destination.trunc(), *metric)
        };
        let why = if routes[..index].iter().any(is_way_there) {
            format!("there is another of metric {metric}")
        } else if gateway.is_ipv4() != destination.addr().is_ipv4() {
            "the gateway is of the other IP family".to_owned()
        } else if !subnets.iter().any(|net| net.subnet.contains(gateway)) {
            let subnets: Vec<String> = subnets.iter().map(|net| net.subnet.to_string()).collect();
            format!(
                "the gateway is not in the network's subnet {}",
                subnets.join(" or ")
            )
        } else {
            continue;
        };
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("route to {destination} by {gateway}: {why}"),
        ));
    }
    Ok(())
}

fn mtu(options: &BTreeMap<String, String>, subnets: &[Subnet]) -> Result<u32> {
    for key in options.keys() {
        if !matches!(key.as_str(), "mtu" | "isolate") {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("unsupported network option {key}"),
            )
            .with_hint("choose from mtu, isolate"));
        }
    }
    let Some(text) = options.get("mtu") else {
        return Ok(DEFAULT_MTU);
    };
    let has_v6 = subnets.iter().any(|subnet| subnet.gateway.is_ipv6());
    let least = if has_v6 { LEAST_MTU.0 } else { LEAST_MTU.1 };
    match text.parse() {
        Ok(0) => Ok(DEFAULT_MTU),
        Ok(mtu) if (least..=DEFAULT_MTU).contains(&mtu) => Ok(mtu),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("network option mtu={text}: choose from {least} to {DEFAULT_MTU}"),
        )),
    }
}

fn isolation(options: &BTreeMap<String, String>) -> Result<Isolation> {
    match options.get("isolate").map(String::as_str) {
        None | Some("true" | "strict" | "1") => Ok(Isolation::Isolated),
        Some("false" | "0") => Ok(Isolation::Open),
        Some(other) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("network option isolate={other}: choose from true, false, strict"),
        )),
    }
}
