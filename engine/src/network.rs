//! Networks: which there are, who is in them, and with which address.
//!
//! # Theory of operation
//! A network is a row: its definition decides everything that the uplink makes of it. Which networks
//! a container is in stands in the container's own configuration (`options.network`), by name; there
//! is no second list of that to disagree with. What is handed out, an address, is a row of
//! `network_lease`: its key is (network, address), so no two containers ever have one, and it goes
//! with its container's row. See [`lease`] for when it is taken and taken back.
//!
//! The *default network* is made by whoever needs it first, and cannot be removed.

mod change;
pub(crate) mod connect;
mod create;
mod host_routes;
pub(crate) mod lease;
pub(crate) mod own_connector;
pub(crate) mod ports;
mod publish;
pub(crate) mod uplink_calls;

use std::collections::BTreeMap;
use std::net::IpAddr;

use rusqlite::{Connection as Database, OptionalExtension, Row, Transaction};
use selkie_net::network::DEFAULT_NETWORK;
use serde::Serialize;

use crate::Engine;
use crate::container::ContainerId;
use crate::container::list::stored_id;
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{NetworkMode, NetworkRequest};

pub use connect::ContainerNetwork;
pub use create::NetworkOptions;
pub use ports::choose_port;
pub use publish::{PortChanges, PortPattern};
pub use selkie_net::address::{SubnetRequest, range_of};
pub use selkie_net::network::{Attachment, Kind, Network, StaticRoute, Subnet};

/// Other names of the default network: Docker's and Podman's.
const DEFAULT_ALIASES: [&str; 3] = ["default", "bridge", "podman"];

/// A network, and what is remembered of its making.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredNetwork {
    /// What it is.
    pub definition: Network,
    /// RFC 3339.
    pub created: String,
    /// `bridge`.
    pub driver: String,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--opt`, as given.
    pub options: BTreeMap<String, String>,
}

impl StoredNetwork {
    /// True for the one that is always there.
    pub fn is_default(&self) -> bool {
        self.definition.name == DEFAULT_NETWORK
    }
}

/// A container in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkUser {
    /// Its ID.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// The place it asks for.
    pub request: NetworkRequest,
}

impl Engine {
    /// All networks by name, the default one among them.
    ///
    /// # Errors
    /// The database cannot be read, or the default network cannot be made.
    pub fn networks(&mut self) -> Result<Vec<StoredNetwork>> {
        self.ensure_default_network()?;
        self.database.read(all)
    }

    /// One network by name, alias of the default one, or unique beginning of its ID.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` when a beginning fits several.
    pub fn network(&mut self, name_or_id: &str) -> Result<StoredNetwork> {
        if is_default(name_or_id) {
            self.ensure_default_network()?;
        }
        self.database
            .read(|connection| find(connection, name_or_id))
    }

    /// The name of the network that is called so: by its name, an alias or the beginning of its ID.
    /// What is called so by nobody keeps the name.
    ///
    /// # Errors
    /// `InvalidInput` when a beginning fits several.
    pub fn network_name(&self, name_or_id: &str) -> Result<String> {
        if is_default(name_or_id) {
            return Ok(DEFAULT_NETWORK.to_owned());
        }
        match self
            .database
            .read(|connection| find(connection, name_or_id))
        {
            Ok(network) => Ok(network.definition.name),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(name_or_id.to_owned()),
            Err(error) => Err(error),
        }
    }

    /// Who is in which network, by name of the network; containers in the order of their making.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn network_users(&self) -> Result<BTreeMap<String, Vec<NetworkUser>>> {
        self.database.read(users)
    }

    /// Removes a network; `force` removes the containers that are in it first.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while a container is in it, and always for the default network.
    pub fn remove_network(&mut self, name_or_id: &str, force: bool) -> Result<()> {
        let network = self.network(name_or_id)?.definition;
        if network.name == DEFAULT_NETWORK {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("default network {} cannot be removed", network.name),
            ));
        }
        if force {
            let users = self.network_users()?.remove(&network.name);
            for user in users.unwrap_or_default() {
                match self.remove(&user.id, true, false) {
                    Err(error) if error.kind == ErrorKind::NotFound => {}
                    other => other?,
                }
            }
        }
        self.database.write(Durability::PowerCut, |transaction| {
            if let Some(users) = users(transaction)?.get(&network.name) {
                let names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "{:?} has associated containers with it ({}). Use -f to forcibly delete containers and pods: network is being used",
                        network.name,
                        names.join(", ")
                    ),
                )
                .with_hint(format!(
                    "take them out with selkie network disconnect {}, or remove them too with --force",
                    network.name
                )));
            }
            transaction.execute("DELETE FROM network WHERE name = ?1", [&network.name])?;
            Ok(())
        })?;
        uplink_calls::remove_bridge(&self.config, &network)
    }

    /// Removes all networks no container is in and `wanted` accepts; their names.
    ///
    /// # Errors
    /// As [`Self::remove_network`].
    pub fn prune_networks(
        &mut self,
        wanted: impl Fn(&StoredNetwork) -> bool,
    ) -> Result<Vec<String>> {
        let users = self.network_users()?;
        let mut removed = Vec::new();
        for network in self.networks()? {
            let name = network.definition.name.clone();
            if network.is_default() || users.contains_key(&name) || !wanted(&network) {
                continue;
            }
            match self.remove_network(&name, false) {
                Ok(()) => removed.push(name),
                // A container has come, or somebody else has removed it, since we looked.
                Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Changes whom a network's name server asks: servers to add and to take away.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for a network without names, or a server it does not have.
    pub fn update_network(
        &mut self,
        name_or_id: &str,
        add: &[IpAddr],
        drop: &[IpAddr],
    ) -> Result<()> {
        let name = self.network(name_or_id)?.definition.name;
        let network = self.database.write(Durability::PowerCut, |transaction| {
            let mut network = find(transaction, &name)?.definition;
            if !network.dns_enabled && network.name != DEFAULT_NETWORK {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("cannot set name servers of network {name}: DNS is disabled for it"),
                ));
            }
            for server in drop {
                let before = network.dns_servers.len();
                network.dns_servers.retain(|known| known != server);
                if network.dns_servers.len() == before {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        format!("network {name} has no name server {server} to drop"),
                    ));
                }
            }
            for server in add {
                if !network.dns_servers.contains(server) {
                    network.dns_servers.push(*server);
                }
            }
            transaction.execute(
                "UPDATE network SET definition = ?2 WHERE name = ?1",
                [&name, &to_json(&network)?],
            )?;
            Ok(network)
        })?;
        uplink_calls::change_network(&self.config, &network)
    }
}

/// True for the default network's name and aliases.
pub fn is_default(name: &str) -> bool {
    name == DEFAULT_NETWORK || DEFAULT_ALIASES.contains(&name)
}

const COLUMNS: &str = "created, definition, driver, labels, options";

struct RawNetwork {
    created: String,
    definition: String,
    driver: String,
    labels: String,
    options: String,
}

impl RawNetwork {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            created: row.get(0)?,
            definition: row.get(1)?,
            driver: row.get(2)?,
            labels: row.get(3)?,
            options: row.get(4)?,
        })
    }

    fn parse(self) -> Result<StoredNetwork> {
        Ok(StoredNetwork {
            definition: from_json(&self.definition)?,
            created: self.created,
            driver: self.driver,
            labels: from_json(&self.labels)?,
            options: from_json(&self.options)?,
        })
    }
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|error| Error::machine("read a network in the state database", error))
}

fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::machine("write a network", error))
}

fn all(connection: &Database) -> Result<Vec<StoredNetwork>> {
    let mut statement =
        connection.prepare(&format!("SELECT {COLUMNS} FROM network ORDER BY name"))?;
    let rows = statement.query_map([], RawNetwork::read)?;
    rows.map(|row| row?.parse()).collect()
}

/// By name, alias or beginning of the ID. The default network must have been made.
fn find(connection: &Database, name_or_id: &str) -> Result<StoredNetwork> {
    let name = if is_default(name_or_id) {
        DEFAULT_NETWORK
    } else {
        name_or_id
    };
    let exact = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM network WHERE name = ?1"))?
        .query_row([name], RawNetwork::read)
        .optional()?;
    if let Some(row) = exact {
        return row.parse();
    }
    let is_prefix = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut fitting = Vec::new();
    if is_prefix {
        // `g` sorts after every hex digit.
        let mut statement = connection.prepare(&format!(
            "SELECT {COLUMNS} FROM network WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2"
        ))?;
        for row in statement.query_map([name], RawNetwork::read)? {
            fitting.push(row?);
        }
    }
    match (fitting.pop(), fitting.is_empty()) {
        (Some(row), true) => row.parse(),
        (None, _) => Err(Error::new(
            ErrorKind::NotFound,
            format!("unable to find network with name or ID {name_or_id}: network not found"),
        )
        .with_hint("selkie network ls shows those there are, selkie network create makes one")),
        (Some(_), false) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("more than one result for network name or ID {name_or_id}: give more digits"),
        )),
    }
}

fn users(connection: &Database) -> Result<BTreeMap<String, Vec<NetworkUser>>> {
    let mut users: BTreeMap<String, Vec<NetworkUser>> = BTreeMap::new();
    let mut statement = connection.prepare(
        "SELECT id, name, config -> '$.options.network' FROM container ORDER BY created, id",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    for row in rows {
        let (id, name, mode): (String, String, String) = row?;
        let NetworkMode::Networks(requests) = from_json(&mode)? else {
            continue;
        };
        for request in requests {
            let user = NetworkUser {
                id: stored_id(&id)?,
                name: name.clone(),
                request,
            };
            users
                .entry(user.request.name.clone())
                .or_default()
                .push(user);
        }
    }
    Ok(users)
}

fn insert(transaction: &Transaction<'_>, network: &StoredNetwork) -> Result<()> {
    transaction.execute(
        "INSERT INTO network (name, id, created, definition, driver, labels, options) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        [
            &network.definition.name,
            &network.definition.id,
            &network.created,
            &to_json(&network.definition)?,
            &network.driver,
            &to_json(&network.labels)?,
            &to_json(&network.options)?,
        ],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
