//! `--network pasta` and `--network slirp4netns`: a connector of the container's own, planned before the
//! container is made, since its `/etc/hosts` and `/etc/resolv.conf` follow from it.

use std::net::IpAddr;

use selkie_net::member::Member;
use selkie_net::netlink::Netlink;
use selkie_net::pasta::dedicated::{HostAt, Wish};
use selkie_net::pasta::{self, Template};
use selkie_net::port_mapping::PortMapping;
use selkie_net::slirp4netns;
use selkie_net::uplink::{Dedicated, known_features};

use super::connect::Connection;
use crate::EngineConfig;
use crate::container::ContainerId;
use crate::container::etc_files::Surroundings;
use crate::database::make_private_dir;
use crate::error::{Error, ErrorKind, Result};
use crate::options::NetworkMode;

/// What to start, and what the container is told.
#[derive(Debug)]
pub(crate) struct OwnConnector {
    /// For the uplink's supervisor, which looks after it.
    pub connection: Connection,
    /// For the container's files.
    pub surroundings: Surroundings,
    /// To be shown to the user.
    pub warnings: Vec<String>,
}

/// Whether the options can be followed, as far as can be told without the program.
///
/// # Errors
/// `InvalidInput`.
pub(crate) fn check(network: &NetworkMode) -> Result<()> {
    match network {
        NetworkMode::Pasta(words) => pasta_options(words).map(drop),
        NetworkMode::Slirp4netns(words) => slirp_options(words).map(drop),
        _ => Ok(()),
    }
}

fn invalid(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, error.to_string())
}

fn pasta_options(words: &[String]) -> Result<pasta::Options> {
    words.join(",").parse().map_err(invalid)
}

fn slirp_options(words: &[String]) -> Result<slirp4netns::Options> {
    words.join(",").parse().map_err(invalid)
}

/// The plan; `None` for other modes.
///
/// # Errors
/// The program is not installed or too old for what is asked (`Machine`, `InvalidInput`).
pub(crate) fn plan(
    config: &EngineConfig,
    id: &ContainerId,
    network: &NetworkMode,
    ports: &[PortMapping],
) -> Result<Option<OwnConnector>> {
    let (dedicated, surroundings, warnings) = match network {
        NetworkMode::Pasta(words) => with_pasta(config, words, ports)?,
        NetworkMode::Slirp4netns(words) => with_slirp4netns(config, words, ports)?,
        _ => return Ok(None),
    };
    Ok(Some(OwnConnector {
        connection: Connection {
            member: Member {
                container: id.to_string(),
                names: Vec::new(),
                attachments: Vec::new(),
                // The connector publishes them.
                ports: Vec::new(),
                dns_servers: Vec::new(),
            },
            networks: Vec::new(),
            dedicated: Some(dedicated),
        },
        surroundings,
        warnings,
    }))
}

type Planned = (Dedicated, Surroundings, Vec<String>);

fn with_pasta(config: &EngineConfig, words: &[String], ports: &[PortMapping]) -> Result<Planned> {
    let options = pasta_options(words)?;
    let program = pasta::find(&config.search_path).map_err(not_installed)?;
    let dir = config.uplink().dir;
    make_private_dir(&dir)?;
    let features = known_features(&dir, &program)
        .map_err(|error| Error::new(ErrorKind::Machine, error.to_string()))?;
    // Without a route to copy, it must have addresses of its own.
    let has_route = Netlink::open()?.default_routes()?.0;
    let plan = Wish {
        options: &options,
        ports,
        own_addresses: !has_route,
    }
    .plan(&features, &Template::of_this_namespace())
    .map_err(invalid)?;
    let host = match plan.host {
        HostAt::Address(address) => Some(address),
        HostAt::OwnAddress => selkie_net::host_address(),
    };
    let surroundings = Surroundings {
        // The host's own, or one it gives itself: known only once it runs.
        addresses: Vec::new(),
        forwarders: plan.name_servers,
        host,
        ..Surroundings::default()
    };
    let dedicated = Dedicated::Pasta {
        program: program.path,
        arguments: plan.arguments,
    };
    Ok((dedicated, surroundings, plan.warnings))
}

fn with_slirp4netns(
    config: &EngineConfig,
    words: &[String],
    ports: &[PortMapping],
) -> Result<Planned> {
    let options = slirp_options(words)?;
    let program = slirp4netns::find(&config.search_path).map_err(not_installed)?;
    let addresses = options.addresses();
    let surroundings = Surroundings {
        addresses: vec![IpAddr::V4(addresses.container)],
        forwarders: vec![addresses.name_server],
        host: addresses.host.or_else(selkie_net::host_address),
        ..Surroundings::default()
    };
    let dedicated = Dedicated::Slirp4netns {
        program: program.path,
        options: words.join(","),
        ports: ports.to_vec(),
    };
    Ok((dedicated, surroundings, Vec::new()))
}

fn not_installed(error: selkie_net::program::NotFound) -> Error {
    Error::new(ErrorKind::Machine, error.to_string()).with_hint(format!(
        "an admin must install the package {}; the default network may do without it",
        error.package
    ))
}
