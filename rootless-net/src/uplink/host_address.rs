//! The address under which the host itself can be reached from inside.
//!
//! `host.containers.internal` is one fixed address ([`crate::network::HOST_ADDRESS`]) which the uplink's
//! rules translate to whatever address the host has at the moment, so that `/etc/hosts` in containers
//! stays true when the host moves to another network.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::namespace::load_rules;
use super::protocol::Failure;
use crate::network::HOST_ADDRESS;

/// The host's own IPv4 address towards the outside; `None` while it is offline.
pub(super) fn current() -> Option<Ipv4Addr> {
    match crate::host_address() {
        Some(IpAddr::V4(address)) => Some(address),
        _ => None,
    }
}

/// Has packets for the fixed address go to `host`.
pub(super) fn translate_to(
    host: Option<Ipv4Addr>,
    uplink: BorrowedFd<'_>,
    nft: &Path,
) -> Result<(), Failure> {
    let mut rules = String::from("flush chain inet selkie host_address\n");
    if let Some(host) = host {
        rules.push_str(&format!(
            "add rule inet selkie host_address iifname {{ \"sv*\", \"sb*\", \"so*\" }} ip daddr {HOST_ADDRESS} dnat ip to {host}\n"
        ));
    }
    load_rules(uplink, nft, &rules)
}
