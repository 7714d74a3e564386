//! The networks of one login: the uplink, user networks, names, published ports.
//!
//! All containers of a login that are online share one network namespace that none of them is in, the
//! *uplink*: it holds the bridges of user networks and one end of a veth pair per container, and one
//! `pasta` connects it with the host. [`uplink`] tells how it lives. Who is in which network, and with
//! which address, is the engine's to decide and to remember; this crate makes it so.
#![warn(missing_docs)]

pub mod member;
pub mod network;
pub mod pasta;
pub mod port_mapping;
pub mod program;
pub mod slirp4netns;
pub mod user_mode;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// The address of the host by which others know it: the one the kernel would choose towards the
/// rest of the world in the caller's network namespace, IPv4 first. `None` while there is no route.
pub fn host_address() -> Option<IpAddr> {
    // Of the documentation's ranges, and no packet is sent: connecting a datagram socket is a
    // question about routes.
    let ask = |own: IpAddr, far: IpAddr| {
        let socket = UdpSocket::bind((own, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        let address = socket.local_addr().ok()?.ip();
        (!address.is_loopback() && !address.is_unspecified()).then_some(address)
    };
    ask(
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::new(192, 0, 2, 1).into(),
    )
    .or_else(|| {
        ask(
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        )
    })
}
