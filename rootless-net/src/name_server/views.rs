//! What the name server knows: networks, who is in them under which names, and what an asking
//! container may see of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hickory_proto::rr::{Name, RecordType};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::network::{HOST_ADDRESS, Kind, Network};

/// Domain under which the names of all networks can be asked for as well (`web.dns.podman`), Podman's.
/// As first search domain of a container it spares names without a dot the way through the host's
/// search domains.
pub const SEARCH_DOMAIN: &str = "dns.podman";

/// Names of the host, unless a container is called so.
const HOST_NAMES: [&str; 3] = [
    "host.containers.internal",
    "host.docker.internal",
    "gateway",
];

/// A network as the name server is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// Its name.
    pub network: String,
    /// In a routed one, containers do not see each other's names either.
    pub kind: Kind,
    /// Nothing is forwarded.
    pub internal: bool,
    /// Whether names of containers are answered; otherwise all is forwarded.
    pub dns_enabled: bool,
    /// Whom to ask instead of the host's servers; empty: those.
    pub servers: Vec<IpAddr>,
    /// Its addresses: reverse lookups of those that nobody has end here.
    pub subnets: Vec<IpNet>,
}

impl From<&Network> for NetworkView {
    fn from(network: &Network) -> Self {
        Self {
            network: network.name.clone(),
            kind: network.kind,
            internal: network.internal,
            dns_enabled: network.dns_enabled,
            servers: network.dns_servers.clone(),
            subnets: network.subnets.iter().map(|subnet| subnet.subnet).collect(),
        }
    }
}

/// A container's place in one network as the name server is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// The container's ID.
    pub container: String,
    /// All its names in this network, the first of them foremost (reverse lookups list them all).
    pub names: Vec<String>,
    /// Its addresses in this network.
    pub addresses: Vec<IpAddr>,
    /// Whom to ask for it instead of the network's and the host's servers (`--dns`); empty: those.
    pub servers: Vec<IpAddr>,
}

/// A member was told of a network that was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name server knows no network {0}, so no container can have names in it: tell it of the network first"
)]
pub struct NoSuchNetwork(pub String);

/// All views. Clones are the same views.
#[derive(Clone, Default)]
pub struct Views(Arc<Mutex<Tables>>);

/// Who asks, as far as the address it asks from tells. Limits are counted by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    /// The container of this ID.
    Container(Arc<str>),
    /// Somebody else in this network.
    Stranger(Arc<str>),
}

/// What a question deserves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// These; none if the name has no such records.
    Addresses(Vec<IpAddr>),
    /// These names of the address asked for.
    Names(Vec<String>),
    /// There is no such name, and nobody else can know it.
    NoSuchName,
    /// To be asked of these servers, of the host's where there are none.
    Forward(Arc<[IpAddr]>),
    /// Nobody here to answer.
    Refused,
}

#[derive(Default)]
struct Tables {
    networks: HashMap<Arc<str>, NetworkTable>,
    /// The networks of each container.
    containers: HashMap<Arc<str>, Vec<Arc<str>>>,
}

struct NetworkTable {
    view: NetworkView,
    servers: Arc<[IpAddr]>,
    members: HashMap<Arc<str>, Member>,
    /// By name in lower case.
    names: HashMap<Box<str>, Sharers>,
    addresses: HashMap<IpAddr, Arc<str>>,
}

struct Member {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    servers: Arc<[IpAddr]>,
}

/// The containers that have one name.
#[derive(Default)]
struct Sharers {
    containers: Vec<Arc<str>>,
    /// How often they were asked for, each record type by itself: clients ask for A and AAAA in turn,
    /// and one count for both would give each of them the same order for ever.
    turns: [usize; 2],
}

impl Views {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A network is there, or is another now. Its members stay.
    pub fn set_network(&self, view: NetworkView) {
        let tables = &mut *self.lock();
        let servers = view.servers.as_slice().into();
        match tables.networks.get_mut(view.network.as_str()) {
            Some(table) => {
                table.view = view;
                table.servers = servers;
            }
            None => {
                let table = NetworkTable {
                    servers,
                    members: HashMap::new(),
                    names: HashMap::new(),
                    addresses: HashMap::new(),
                    view,
                };
                let name = table.view.network.as_str().into();
                tables.networks.insert(name, table);
            }
        }
    }

    /// A network is gone with all that is known of its members. Without effect if unknown.
    pub fn remove_network(&self, network: &str) {
        let tables = &mut *self.lock();
        if let Some(table) = tables.networks.remove(network) {
            for container in table.members.keys() {
                forget_membership(&mut tables.containers, container, network);
            }
        }
    }

    /// A container is in a network, or is there with other names or addresses now.
    ///
    /// # Errors
    /// The network is unknown.
    pub fn set_member(&self, network: &str, view: MemberView) -> Result<(), NoSuchNetwork> {
        let tables = &mut *self.lock();
        let Some((network, _)) = tables.networks.get_key_value(network) else {
            return Err(NoSuchNetwork(network.to_owned()));
        };
        let network = Arc::clone(network);
        let container: Arc<str> = match tables.containers.get_key_value(view.container.as_str()) {
            Some((known, _)) => Arc::clone(known),
            None => view.container.as_str().into(),
        };
        let memberships = tables.containers.entry(Arc::clone(&container)).or_default();
        if !memberships.contains(&network) {
            memberships.push(Arc::clone(&network));
        }
        if let Some(table) = tables.networks.get_mut(&network) {
            table.remove(&container);
            table.insert(container, view);
        }
        Ok(())
    }

    /// A container has left a network. Without effect if it was not in it.
    pub fn remove_member(&self, network: &str, container: &str) {
        let tables = &mut *self.lock();
        if let Some(table) = tables.networks.get_mut(network) {
            table.remove(container);
        }
        forget_membership(&mut tables.containers, container, network);
    }

    /// A container has left all its networks. Without effect if unknown.
    pub fn remove_container(&self, container: &str) {
        let tables = &mut *self.lock();
        for network in tables.containers.remove(container).unwrap_or_default() {
            if let Some(table) = tables.networks.get_mut(&network) {
                table.remove(container);
            }
        }
    }

    /// Who asks `network`'s name server from `source`.
    pub(super) fn asker(&self, network: &str, source: IpAddr) -> Asker {
        let tables = self.lock();
        match tables.networks.get_key_value(network) {
            None => Asker::Stranger(network.into()),
            Some((name, table)) => match table.addresses.get(&source) {
                Some(container) => Asker::Container(Arc::clone(container)),
                None => Asker::Stranger(Arc::clone(name)),
            },
        }
    }

    /// What becomes of a question for `name`, asked in `network` by `asker`.
    pub(super) fn decide(
        &self,
        network: &str,
        asker: &Asker,
        name: &Name,
        record_type: RecordType,
    ) -> Verdict {
        let tables = &mut *self.lock();
        let Some(here) = tables.networks.get(network) else {
            return Verdict::Refused;
        };
        let asker = match asker {
            Asker::Container(container) => Some(container),
            Asker::Stranger(_) => None,
        };
        let otherwise = if here.view.internal {
            Verdict::NoSuchName
        } else {
            Verdict::Forward(here.servers_for(asker))
        };
        if !here.view.dns_enabled {
            return otherwise;
        }
        let internal = here.view.internal;
        let visible = tables.visible(network, asker);

        if let Ok(net) = name.parse_arpa_name()
            && net.prefix_len() == net.max_prefix_len()
        {
            return match tables.reverse(&visible, asker, net.addr()) {
                Some(names) if wants(record_type, RecordType::PTR) => Verdict::Names(names),
                Some(_) => Verdict::Addresses(Vec::new()),
                None if tables.is_ours(&visible, net.addr()) => Verdict::NoSuchName,
                None => otherwise,
            };
        }

        let Some(name) = lower_case(name) else {
            return otherwise;
        };
        let (short, under_ours) = match name.strip_suffix(SEARCH_DOMAIN) {
            Some("") => return Verdict::Addresses(Vec::new()),
            Some(front) if front.ends_with('.') => (&front[..front.len() - 1], true),
            _ => (name.as_str(), false),
        };
        if let Some(addresses) = tables.forward(&visible, asker, short, record_type) {
            return Verdict::Addresses(addresses);
        }
        if !internal && HOST_NAMES.contains(&name.as_str()) {
            let wanted = wants(record_type, RecordType::A);
            let addresses = wanted.then_some(IpAddr::V4(HOST_ADDRESS));
            return Verdict::Addresses(addresses.into_iter().collect());
        }
        if under_ours {
            return Verdict::NoSuchName;
        }
        otherwise
    }

    #[cfg(test)]
    pub(super) fn is_without_members(&self) -> bool {
        let tables = self.lock();
        tables.containers.is_empty()
            && tables.networks.values().all(|table| {
                table.members.is_empty() && table.names.is_empty() && table.addresses.is_empty()
            })
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        // Every change leaves the tables whole, so that a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    /// The networks whose names `asker` sees when it asks in `network`: that one first.
    fn visible(&self, network: &str, asker: Option<&Arc<str>>) -> Vec<Arc<str>> {
        let here = self.networks.get_key_value(network);
        let mut visible: Vec<Arc<str>> =
            here.map(|(name, _)| Arc::clone(name)).into_iter().collect();
        let others = asker.and_then(|asker| self.containers.get(asker));
        visible.extend(
            others
                .into_iter()
                .flatten()
                .filter(|other| &***other != network)
                .filter(|other| {
                    let table = self.networks.get(*other);
                    table.is_some_and(|table| table.view.dns_enabled)
                })
                .cloned(),
        );
        visible
    }

    /// The addresses of `name`; `None` if nobody has the name.
    fn forward(
        &mut self,
        visible: &[Arc<str>],
        asker: Option<&Arc<str>>,
        name: &str,
        record_type: RecordType,
    ) -> Option<Vec<IpAddr>> {
        let v4 = wants(record_type, RecordType::A);
        let v6 = wants(record_type, RecordType::AAAA);
        let mut known = false;
        let mut addresses = Vec::new();
        let mut turn = None;
        for network in visible {
            let Some(table) = self.networks.get_mut(network) else {
                continue;
            };
            let with_network = name
                .len()
                .checked_sub(table.view.network.len())
                .filter(|at| name.is_char_boundary(*at))
                .map(|at| name.split_at(at))
                .filter(|(_, end)| end.eq_ignore_ascii_case(&table.view.network))
                .and_then(|(front, _)| front.strip_suffix('.'));
            for candidate in [Some(name), with_network].into_iter().flatten() {
                let Some(sharers) = table.names.get_mut(candidate) else {
                    continue;
                };
                let seen = |container: &&Arc<str>| {
                    table.view.kind == Kind::Bridge || Some(*container) == asker
                };
                let mut found = false;
                for container in sharers.containers.iter().filter(seen) {
                    found = true;
                    let member = table.members.get(container);
                    for address in member.iter().flat_map(|member| &member.addresses) {
                        let wanted = if address.is_ipv4() { v4 } else { v6 };
                        if wanted && !addresses.contains(address) {
                            addresses.push(*address);
                        }
                    }
                }
                if found && (v4 || v6) && turn.is_none() {
                    let count = &mut sharers.turns[usize::from(v6)];
                    turn = Some(*count);
                    *count = count.wrapping_add(1);
                }
                known |= found;
            }
        }
        if let (Some(turn), true) = (turn, addresses.len() > 1) {
            let by = turn % addresses.len();
            addresses.rotate_left(by);
        }
        known.then_some(addresses)
    }

    fn reverse(
        &self,
        visible: &[Arc<str>],
        asker: Option<&Arc<str>>,
        address: IpAddr,
    ) -> Option<Vec<String>> {
        for network in visible {
            let Some(table) = self.networks.get(network) else {
                continue;
            };
            if let Some(container) = table.addresses.get(&address)
                && (table.view.kind == Kind::Bridge || Some(container) == asker)
                && let Some(member) = table.members.get(container)
            {
                return Some(member.names.clone());
            }
        }
        let internal = visible
            .first()
            .and_then(|here| self.networks.get(here))
            .is_some_and(|here| here.view.internal);
        (address == HOST_ADDRESS && !internal).then(|| vec![HOST_NAMES[0].to_owned()])
    }

    fn is_ours(&self, visible: &[Arc<str>], address: IpAddr) -> bool {
        visible
            .iter()
            .filter_map(|network| self.networks.get(network))
            .any(|table| table.view.subnets.iter().any(|net| net.contains(&address)))
    }
}

impl NetworkTable {
    fn insert(&mut self, container: Arc<str>, view: MemberView) {
        for name in &view.names {
            let sharers = self.names.entry(key(name)).or_default();
            if !sharers.containers.contains(&container) {
                sharers.containers.push(Arc::clone(&container));
            }
        }
        for address in &view.addresses {
            self.addresses.insert(*address, Arc::clone(&container));
        }
        let member = Member {
            names: view.names,
            addresses: view.addresses,
            servers: view.servers.into(),
        };
        self.members.insert(container, member);
    }

    fn remove(&mut self, container: &str) {
        let Some(member) = self.members.remove(container) else {
            return;
        };
        for name in &member.names {
            let name = key(name);
            if let Some(sharers) = self.names.get_mut(&name) {
                sharers.containers.retain(|other| **other != *container);
                if sharers.containers.is_empty() {
                    self.names.remove(&name);
                }
            }
        }
        for address in &member.addresses {
            // Somebody else may have been given it in the meantime.
            if self
                .addresses
                .get(address)
                .is_some_and(|holder| **holder == *container)
            {
                self.addresses.remove(address);
            }
        }
    }

    fn servers_for(&self, asker: Option<&Arc<str>>) -> Arc<[IpAddr]> {
        let member = asker.and_then(|asker| self.members.get(asker));
        let own = member.map(|member| &member.servers);
        let servers = own.filter(|own| !own.is_empty()).unwrap_or(&self.servers);
        Arc::clone(servers)
    }
}

fn forget_membership(
    containers: &mut HashMap<Arc<str>, Vec<Arc<str>>>,
    container: &str,
    network: &str,
) {
    if let Some(networks) = containers.get_mut(container) {
        networks.retain(|other| **other != *network);
        if networks.is_empty() {
            containers.remove(container);
        }
    }
}

fn key(name: &str) -> Box<str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.to_ascii_lowercase().into()
}

/// The text of a name in lower case, without the last dot; `None` for one that no text of ours can
/// equal, because a label holds a dot or other than ASCII.
fn lower_case(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            if !byte.is_ascii_graphic() || *byte == b'.' {
                return None;
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    Some(text)
}

fn wants(asked: RecordType, record_type: RecordType) -> bool {
    asked == record_type || asked == RecordType::ANY
}
