//! The host's side of a published port: its sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::publish_error::{HostPort, Refusal};
use crate::port_mapping::{PortMapping, Protocol};

/// Connections the kernel completes before they are accepted; it has a limit of its own
/// (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// Bytes of datagrams that may wait until this process gets to run; the kernel grants no more than
/// net.core.rmem_max.
const QUEUE: usize = 4 << 20;

/// A socket on a port of the host, and the container's port it stands for.
pub(super) struct Listening {
    pub socket: OwnedFd,
    pub container_port: u16,
}

/// Addresses to listen on: all of both families where none is given.
pub(super) fn addresses(mapping: &PortMapping) -> Vec<IpAddr> {
    match mapping.host_ip {
        Some(address) => vec![address],
        None => {
            let mut all = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
            if host_has_v6() {
                all.push(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
            }
            all
        }
    }
}

/// Whether the kernel knows IPv6 at all (`ipv6.disable=1` makes it not). Where it is merely switched
/// off for every interface, listening does no harm, and it may be switched on.
fn host_has_v6() -> bool {
    match Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), None) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() != Some(Errno::AFNOSUPPORT.raw_os_error()),
    }
}

/// Opens a socket on one port of the host.
pub(super) fn open(at: &HostPort) -> Result<OwnedFd, Refusal> {
    let attempt = |attempt| move |error: io::Error| Refusal { attempt, error };
    let address = SocketAddr::new(at.address, at.port);
    let domain = Domain::for_address(address);
    let kind = match at.protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), None)
        .map_err(attempt("make a socket"))?;
    prepare(&socket, at).map_err(attempt("set up a socket"))?;
    socket.bind(&address.into()).map_err(attempt("bind"))?;
    if at.protocol == Protocol::Tcp {
        socket.listen(BACKLOG).map_err(attempt("listen"))?;
    }
    Ok(socket.into())
}

fn prepare(socket: &Socket, at: &HostPort) -> io::Result<()> {
    if at.address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if at.protocol == Protocol::Udp {
        socket.set_recv_buffer_size(QUEUE)?;
    }
    match (at.protocol, at.address) {
        (Protocol::Tcp, _) => {
            // Connections of an earlier publication may still be in TIME_WAIT.
            socket.set_reuse_address(true)?;
            // Accepted sockets inherit it.
            socket.set_tcp_nodelay(true)?;
        }
        (Protocol::Udp, IpAddr::V4(_)) => setsockopt(socket, Ipv4PacketInfo, &true)?,
        (Protocol::Udp, IpAddr::V6(_)) => setsockopt(socket, Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}
