//! What the engine tells the login's uplink while containers run. Everything here is told after it
//! has been put on record, so a failure leaves a record that the next start follows.
//!
//! A container's places are always told whole: the uplink compares, and changes what differs.

use std::os::fd::{AsFd, BorrowedFd};

use selkie_net::member::Member;
use selkie_net::network::{Attachment, Network};
use selkie_net::uplink::{self, Uplink, UplinkConfig, UplinkError};
use selkie_sys::process_identity::ProcessIdentity;

use super::connect::Connection;
use crate::EngineConfig;
use crate::error::{Error, ErrorKind, Result};

/// What a change is made to: a container that runs.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    /// Its init, in whose network namespace the interfaces are.
    pub init: ProcessIdentity,
    /// All of it after the change.
    pub member: &'a Member,
    /// Definitions of all networks it is in after the change.
    pub networks: &'a [Network],
}

/// A container that runs has been given a place in another network.
pub(crate) fn attach(
    config: &EngineConfig,
    live: &Live<'_>,
    added: &Attachment,
    network: &Network,
) -> Result<()> {
    tell(config, live, || {
        format!(
            "connect container {} to network {} as {}",
            live.member.container, network.name, added.interface
        )
    })
}

/// A container that runs is to lose its place in a network.
pub(crate) fn detach(
    config: &EngineConfig,
    live: &Live<'_>,
    removed: &Attachment,
    network: &Network,
) -> Result<()> {
    tell(config, live, || {
        format!(
            "disconnect container {} from network {} ({})",
            live.member.container, network.name, removed.interface
        )
    })
}

/// A container that runs is to have other ports published.
pub(crate) fn publish(config: &EngineConfig, live: &Live<'_>) -> Result<()> {
    tell(config, live, || {
        format!(
            "change the published ports of container {}",
            live.member.container
        )
    })
}

/// As far as can be, what is on record holds for a running container, after a change that failed.
pub(crate) fn recover(config: &EngineConfig, live: &Live<'_>) -> Result<()> {
    tell_by(config, live, crate::uplink::reattach, || {
        format!("recover the network of container {}", live.member.container)
    })
}

/// Makes a running container's place again from what is on record (`network reload`).
pub(crate) fn reload(config: &EngineConfig, live: &Live<'_>) -> Result<()> {
    tell(config, live, || {
        format!("reload the network of container {}", live.member.container)
    })
}

fn tell(config: &EngineConfig, live: &Live<'_>, attempt: impl Fn() -> String) -> Result<()> {
    tell_by(config, live, crate::uplink::attach, attempt)
}

/// How a running container is told of: configuration, places, PID and pidfd of its init.
type Call = fn(
    &UplinkConfig,
    &Connection,
    i32,
    BorrowedFd<'_>,
) -> std::result::Result<(Uplink, Vec<String>), UplinkError>;

fn tell_by(
    config: &EngineConfig,
    live: &Live<'_>,
    call: Call,
    attempt: impl Fn() -> String,
) -> Result<()> {
    let Some(init) = live.init.open()? else {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("{}: it has just ended", attempt()),
        ));
    };
    let connection = Connection {
        member: live.member.clone(),
        networks: live.networks.to_vec(),
        dedicated: None,
    };
    call(&config.uplink(), &connection, live.init.pid, init.as_fd())
        .map(drop)
        .map_err(|error| {
            let error = Error::from(error);
            Error {
                message: format!("{}: {}", attempt(), error.message),
                ..error
            }
        })
}

/// A network without containers is gone.
pub(crate) fn remove_bridge(config: &EngineConfig, network: &Network) -> Result<()> {
    match uplink::running(&config.uplink())? {
        Some(mut uplink) => Ok(uplink.remove_network(network)?),
        None => Ok(()),
    }
}

/// A network's definition has changed (name servers). Without an uplink nobody needs to know.
pub(crate) fn change_network(config: &EngineConfig, network: &Network) -> Result<()> {
    match uplink::running(&config.uplink())? {
        Some(mut uplink) => Ok(uplink.change_network(network)?),
        None => Ok(()),
    }
}
