//! Which addresses a container has: taken when it starts, kept while it exists, given to others when a
//! network has no more and its holder does not run.
//!
//! Rows of `network_lease` are made, taken back and checked only in write transactions. Whoever starts
//! a container holds its lock *before* the transaction in which it relies on them, and whoever takes
//! one back tries the holder's lock *inside* its transaction: so none is ever taken from a container
//! that is being started. `create` takes none, as in Podman: two containers may ask for one address as
//! long as only one of them runs.
//!
//! The default network is large, so an address is tried by the container's ID, and one INSERT answers.
//! Other networks give the lowest free one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rusqlite::{Connection as Database, Transaction};
use selkie_net::address;
use selkie_net::network::{Kind, Network, Subnet};

use crate::container::ContainerId;
use crate::error::{Error, ErrorKind, Result};
use crate::options::NetworkRequest;

/// Attempts by ID before the whole network is looked at.
const PROBES: u32 = 16;

/// Who wants addresses.
pub(crate) struct Holder<'a> {
    /// The container; its row must be there, and its lock be held.
    pub id: &'a ContainerId,
    /// Whether a container, given by its ID, runs or is being started.
    pub is_active: &'a dyn Fn(&str) -> bool,
}

/// All addresses a container holds, with their networks.
pub(crate) fn held(connection: &Database, id: &ContainerId) -> Result<Vec<(String, IpAddr)>> {
    let mut statement = connection
        .prepare_cached("SELECT network, address FROM network_lease WHERE container = ?1")?;
    let rows = statement.query_map([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.map(|row| {
        let (network, address): (String, String) = row?;
        Ok((network, parse(&address)?))
    })
    .collect()
}

/// Gives up what a container holds in one network.
pub(crate) fn release(
    transaction: &Transaction<'_>,
    id: &ContainerId,
    network: &str,
) -> Result<()> {
    transaction.execute(
        "DELETE FROM network_lease WHERE container = ?1 AND network = ?2",
        [id.as_str(), network],
    )?;
    Ok(())
}

/// The container's addresses in `network`, one of each of its subnets. `held` are those it has
/// already; they are kept where they suit.
///
/// # Errors
/// `Conflict`: the address asked for, or every address, is held by a container that runs.
pub(crate) fn take(
    transaction: &Transaction<'_>,
    holder: &Holder<'_>,
    network: &Network,
    request: &NetworkRequest,
    held: &[(String, IpAddr)],
) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::with_capacity(network.subnets.len());
    for subnet in &network.subnets {
        let asked = asked_for(request, subnet);
        let had = held.iter().find(|(name, address)| {
            *name == network.name
                && subnet.subnet.contains(address)
                && asked.is_none_or(|asked| asked == *address)
        });
        if let Some((_, address)) = had {
            addresses.push(*address);
            continue;
        }
        let address = match asked {
            Some(address) => take_this(transaction, holder, network, address)?,
            None => {
                let sibling = addresses.first().copied();
                take_any(transaction, holder, network, subnet, sibling)?
            }
        };
        addresses.push(address);
    }
    Ok(addresses)
}

/// What `request` says about one of the network's subnets.
fn asked_for(request: &NetworkRequest, subnet: &Subnet) -> Option<IpAddr> {
    if subnet.gateway.is_ipv4() {
        request.ip.map(IpAddr::V4)
    } else {
        request.ip6.map(IpAddr::V6)
    }
}

fn take_this(
    transaction: &Transaction<'_>,
    holder: &Holder<'_>,
    network: &Network,
    address: IpAddr,
) -> Result<IpAddr> {
    if claim(transaction, holder, network, address)? {
        return Ok(address);
    }
    let (id, name): (String, String) = transaction.query_row(
        "SELECT id, name FROM container JOIN network_lease ON container = id \
         WHERE network = ?1 AND address = ?2",
        [&network.name, &address.to_string()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if id != holder.id.as_str() && (holder.is_active)(&id) {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "IP address {address} of network {} is already in use by the running container {name}",
                network.name
            ),
        )
        .with_hint(format!("stop {name} first, or ask for another address")));
    }
    take_over(transaction, holder, network, address)?;
    Ok(address)
}

fn take_any(
    transaction: &Transaction<'_>,
    holder: &Holder<'_>,
    network: &Network,
    subnet: &Subnet,
    sibling: Option<IpAddr>,
) -> Result<IpAddr> {
    if network.kind == Kind::Routed {
        let seed = address::seed(holder.id.as_str());
        // The same host part in both families, for people who read addresses.
        let counterpart = network
            .subnets
            .first()
            .zip(sibling)
            .and_then(|(first, sibling)| address::counterpart(first, sibling, subnet));
        let probes = (0..PROBES).filter_map(|attempt| address::probe(subnet, seed, attempt));
        for address in counterpart.into_iter().chain(probes) {
            if claim(transaction, holder, network, address)? {
                return Ok(address);
            }
        }
    }
    let leases = all_in(transaction, network)?;
    let taken: BTreeSet<IpAddr> = leases.iter().map(|(address, _)| *address).collect();
    if let Some(address) = address::lowest_free(subnet, |address| taken.contains(&address))
        && claim(transaction, holder, network, address)?
    {
        return Ok(address);
    }
    // Only now is it worth asking the kernel about each holder.
    let reclaimable = leases.iter().find(|(address, id)| {
        is_given(subnet, *address) && id != holder.id.as_str() && !(holder.is_active)(id)
    });
    match reclaimable {
        Some((address, _)) => {
            take_over(transaction, holder, network, *address)?;
            Ok(*address)
        }
        None => Err(exhausted(network, subnet, leases.len())),
    }
}

/// Whether containers are given this address by themselves.
fn is_given(subnet: &Subnet, address: IpAddr) -> bool {
    subnet.subnet.contains(&address)
        && subnet
            .lease_range
            .is_none_or(|(first, last)| (first..=last).contains(&address))
}

fn exhausted(network: &Network, subnet: &Subnet, leases: usize) -> Error {
    let range = match subnet.lease_range {
        Some((first, last)) => format!("{first}-{last}"),
        None => subnet.subnet.to_string(),
    };
    Error::new(
        ErrorKind::Conflict,
        format!(
            "network {} has no free address in {range}: its {leases} leases belong to containers that run",
            network.name
        ),
    )
    .with_hint(format!(
        "stop a container or take one out (selkie network disconnect {} CONTAINER), or make a network with a larger --subnet or --ip-range",
        network.name
    ))
}

/// Takes an address nobody has; false when somebody has it.
fn claim(
    transaction: &Transaction<'_>,
    holder: &Holder<'_>,
    network: &Network,
    address: IpAddr,
) -> Result<bool> {
    let made = transaction
        .prepare_cached(
            "INSERT INTO network_lease (network, address, container) VALUES (?1, ?2, ?3) \
             ON CONFLICT DO NOTHING",
        )?
        .execute([
            network.name.as_str(),
            &address.to_string(),
            holder.id.as_str(),
        ])?;
    Ok(made == 1)
}

fn take_over(
    transaction: &Transaction<'_>,
    holder: &Holder<'_>,
    network: &Network,
    address: IpAddr,
) -> Result<()> {
    transaction.execute(
        "UPDATE network_lease SET container = ?3 WHERE network = ?1 AND address = ?2",
        [
            network.name.as_str(),
            &address.to_string(),
            holder.id.as_str(),
        ],
    )?;
    Ok(())
}

fn all_in(transaction: &Transaction<'_>, network: &Network) -> Result<Vec<(IpAddr, String)>> {
    let mut statement = transaction
        .prepare_cached("SELECT address, container FROM network_lease WHERE network = ?1")?;
    let rows = statement.query_map([&network.name], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.map(|row| {
        let (address, container): (String, String) = row?;
        Ok((parse(&address)?, container))
    })
    .collect()
}

fn parse(address: &str) -> Result<IpAddr> {
    address.parse().map_err(|_| {
        Error::machine(
            "read the state database",
            format!("{address:?} is no IP address"),
        )
    })
}
