//! The address under which the host itself can be reached from inside.
//!
//! `host.containers.internal` is one fixed address ([`crate::network::HOST_ADDRESS`]) which the uplink's
//! rules translate to whatever address the host has at the moment, so that `/etc/hosts` in containers
//! stays true when the host moves to another network.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::namespace::load_rules;
use super::protocol::Failure;
use crate::network::HOST_ADDRESS;

/// The host's own IPv4 address towards the outside; `None` while it is offline. Connecting a datagram
/// socket sends nothing: the kernel only looks for a route (to an address of documentation, RFC 5737).
pub(super) fn current() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_unspecified() && !address.is_loopback() => Some(address),
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
