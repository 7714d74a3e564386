//! The host as others know it.

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
