//! Changes to the networks of containers that exist: on record at once, and told to the uplink when the
//! container runs. A change that the uplink refuses is taken off the record again.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rusqlite::{Connection as Database, OptionalExtension, Transaction};
use selkie_net::network::Attachment;
use selkie_sys::process_identity::ProcessIdentity;

use super::connect::{
    Connection, attachment, free_interface, name_interfaces, refuse_two_ways, settle_one,
};
use super::find;
use super::lease::{self, Holder};
use super::uplink_calls::{self, Live};
use crate::Engine;
use crate::container::create::is_active;
use crate::container::etc_files::{Surroundings, change_hosts_file, change_resolv_conf_file};
use crate::container::list::no_such_container;
use crate::container::{ContainerConfig, ContainerId};
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::LockedContainer;
use crate::options::{NetworkMode, NetworkRequest};
use crate::state::{Observed, lock_run, observe};

/// How long a change waits for whoever holds a container's lock while it does not run.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

impl Engine {
    /// Puts a container into a network; at once when it runs.
    ///
    /// # Errors
    /// `NotFound`; `Conflict`: it is in it already, or no address is left; `InvalidInput`: it has
    /// another `--network` mode, or asks for what cannot be.
    pub fn connect_network(&mut self, id: &ContainerId, mut request: NetworkRequest) -> Result<()> {
        let held = self.hold(id)?;
        let before = self.connection(id)?;
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
            if !network.routes.is_empty() {
                let mut all = Vec::with_capacity(requests.len() + 1);
                for other in requests.iter() {
                    all.push(find(transaction, &other.name)?.definition);
                }
                refuse_two_ways(&all.iter().chain([&network]).collect::<Vec<_>>())?;
            }
            if !wanted {
                request.interface = free_interface(requests)?;
            }
            requests.push(request.clone());
            name_interfaces(requests)?;
            store(transaction, id, &stored)?;
            // One that does not run gets its addresses when it starts.
            let added = match &held {
                Held::Running(..) => {
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
        let (Held::Running(init, _), Some(added)) = (&held, added) else {
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
        self.change_hosts(id, &added, true, &names)?;
        self.change_resolv_conf(id, before.as_ref())
    }

    /// After a change of a running container's networks, which were `before`.
    fn change_resolv_conf(&self, id: &ContainerId, before: Option<&Connection>) -> Result<()> {
        let (Some(before), Some(after)) = (before, self.connection(id)?) else {
            return Ok(());
        };
        let options = self.container(id)?.config.options;
        change_resolv_conf_file(
            &self.config.container_dir(id),
            &options.network,
            (&Surroundings::of(before), &Surroundings::of(&after)),
            &options.names,
        )
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
        if let (Held::Running(init, _), Some(removed)) = (&held, &place.attachment) {
            let before = self.connection(id)?;
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
            self.change_resolv_conf(id, before.as_ref())?;
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
    pub(super) fn tell(
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

    /// The lock of a container that runs against other changes, or of one that does not, so that nobody
    /// starts it meanwhile.
    pub(super) fn hold(&self, id: &ContainerId) -> Result<Held> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            if let Observed::Running(state) = self.observe(id)? {
                let Some(lock) = lock_run(&self.config.container_dir(id))? else {
                    continue;
                };
                // Another run may have begun since we looked.
                match self.observe(id)? {
                    Observed::Running(now) if now.init == state.init => {
                        return Ok(Held::Running(state.init, lock));
                    }
                    _ => continue,
                }
            }
            if let Some(lock) = LockedContainer::try_lock(&self.config, id)? {
                match observe(lock.as_fd(), ".")? {
                    // By a monitor that has yet to write the end, or is dead.
                    Observed::Running(_) => {}
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
}

/// A container while it is changed.
pub(super) enum Held {
    /// Its init, and the lock of its run.
    Running(
        ProcessIdentity,
        #[allow(dead_code, reason = "held, not looked at")] OwnedFd,
    ),
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
pub(super) fn stored(database: &Database, id: &ContainerId) -> Result<(String, ContainerConfig)> {
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

pub(super) fn store(
    transaction: &Transaction<'_>,
    id: &ContainerId,
    config: &ContainerConfig,
) -> Result<()> {
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
