//! What the engine tells the login's uplink while containers run. Everything here is told after it
//! has been put on record, so a failure leaves a record that the next start follows.

use selkie_net::member::Member;
use selkie_net::network::{Attachment, Network};
use selkie_sys::process_identity::ProcessIdentity;

use crate::EngineConfig;
use crate::error::{Error, ErrorKind, Result};

/// What a change is made to: a container that runs.
#[derive(Debug)]
#[allow(dead_code, reason = "read by the uplink only")]
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
    Err(not_running(
        config,
        &format!(
            "connect container {} to network {} as {}",
            live.member.container, network.name, added.interface
        ),
    ))
}

/// A container that runs is to lose its place in a network.
pub(crate) fn detach(
    config: &EngineConfig,
    live: &Live<'_>,
    removed: &Attachment,
    network: &Network,
) -> Result<()> {
    Err(not_running(
        config,
        &format!(
            "disconnect container {} from network {} ({})",
            live.member.container, network.name, removed.interface
        ),
    ))
}

/// Makes a running container's place again from what is on record (`network reload`).
pub(crate) fn reload(config: &EngineConfig, live: &Live<'_>) -> Result<()> {
    Err(not_running(
        config,
        &format!("reload the network of container {}", live.member.container),
    ))
}

/// A network without containers is gone. Without an uplink it has no bridge to remove.
pub(crate) fn remove_bridge(_config: &EngineConfig, _network: &Network) -> Result<()> {
    Ok(())
}

/// A network's definition has changed (name servers). Without an uplink nobody needs to know.
pub(crate) fn change_network(_config: &EngineConfig, _network: &Network) -> Result<()> {
    Ok(())
}

fn not_running(config: &EngineConfig, attempt: &str) -> Error {
    Error::new(
        ErrorKind::Machine,
        format!(
            "{attempt}: the uplink does not run in {}",
            config.run_dir.display()
        ),
    )
}
