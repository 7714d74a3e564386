//! What containers ask with the first packet of a connection, and what to answer it with.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{
    Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket,
    TransportSlice,
};
use rustix::io::Errno;

/// Hop limit of what is answered; it has one hop to go.
const HOPS: u8 = 64;

/// Both ends of a connection out of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub container: SocketAddr,
    pub remote: SocketAddr,
}

/// A packet that asks for a connection.
#[derive(Debug, Clone)]
pub(super) struct Syn {
    pub flow: Flow,
    packet: Box<[u8]>,
    sequence: u32,
}

impl Syn {
    /// `None` when `packet` is none: not IP, not whole, not TCP, or of another kind.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ip(packet).ok()?;
        let (source, destination): (IpAddr, IpAddr) = match sliced.net? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                )
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                )
            }
            NetSlice::Arp(_) => return None,
        };
        let TransportSlice::Tcp(tcp) = sliced.transport? else {
            return None;
        };
        let is_first = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
        is_first.then(|| Self {
            flow: Flow {
                container: SocketAddr::new(source, tcp.source_port()),
                remote: SocketAddr::new(destination, tcp.destination_port()),
            },
            packet: packet.into(),
            sequence: tcp.sequence_number(),
        })
    }

    /// As it came.
    pub(super) fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// The packet that tells the container why there is no connection.
    pub(super) fn refuse(&self, refusal: Refusal) -> Option<Vec<u8>> {
        let ip = self.ip()?;
        match refusal {
            Refusal::Reset => {
                let answer = ip
                    .tcp(
                        self.flow.remote.port(),
                        self.flow.container.port(),
                        0,
                        0,
                    )
                    .rst()
                    .ack(self.sequence.wrapping_add(1));
                let mut bytes = Vec::with_capacity(answer.size(0));
                answer.write(&mut bytes, &[]).ok()?;
                Some(bytes)
            }
            Refusal::Unreachable(what) if self.flow.remote.is_ipv4() => {
                let header = match what {
                    Unreachable::Network => DestUnreachableHeader::Network,
                    Unreachable::Host => DestUnreachableHeader::Host,
                    Unreachable::Prohibited => DestUnreachableHeader::FilterProhibited,
                };
                let answer = ip.icmpv4(Icmpv4Type::DestinationUnreachable(header));
                let mut bytes = Vec::with_capacity(answer.size(self.packet.len()));
                answer.write(&mut bytes, &self.packet).ok()?;
                Some(bytes)
            }
            Refusal::Unreachable(what) => {
                let code = match what {
                    Unreachable::Network => DestUnreachableCode::NoRoute,
                    Unreachable::Host => DestUnreachableCode::Address,
                    Unreachable::Prohibited => DestUnreachableCode::Prohibited,
                };
                let answer = ip.icmpv6(Icmpv6Type::DestinationUnreachable(code));
                let mut bytes = Vec::with_capacity(answer.size(self.packet.len()));
                answer.write(&mut bytes, &self.packet).ok()?;
                Some(bytes)
            }
        }
    }

    /// An answer's first header. `None` cannot be: both ends come from one packet.
    fn ip(&self) -> Option<PacketBuilderStep<etherparse::IpHeaders>> {
        match (self.flow.remote.ip(), self.flow.container.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                Some(PacketBuilder::ipv4(from.octets(), to.octets(), HOPS))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                Some(PacketBuilder::ipv6(from.octets(), to.octets(), HOPS))
            }
            _ => None,
        }
    }
}

/// How a container hears that there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// As from a host where nobody listens.
    Reset,
    /// As from a router (RFC 792, RFC 4443).
    Unreachable(Unreachable),
}

/// What a router cannot, or may not, reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    Network,
    Host,
    Prohibited,
}

impl Refusal {
    /// What the failure of the host's own attempt means to a container. `None`: nothing, as when packets
    /// are lost, so that it tries again.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error().map(Errno::from_raw_os_error)? {
            Errno::CONNREFUSED | Errno::CONNRESET => Some(Self::Reset),
            Errno::NETUNREACH | Errno::NETDOWN => Some(Self::Unreachable(Unreachable::Network)),
            Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Self::Unreachable(Unreachable::Host)),
            Errno::ACCESS | Errno::PERM => Some(Self::Unreachable(Unreachable::Prohibited)),
            // Such an address cannot be connected to.
            Errno::INVAL | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => {
                Some(Self::Unreachable(Unreachable::Network))
            }
            _ => None,
        }
    }
}

/// Whether a socket of the host's, connected to `remote`, leads away from what the host keeps for itself:
/// its loopback, by whatever name, and its links. The uplink's rules say so too.
pub(super) fn is_outside(remote: IpAddr) -> bool {
    match remote {
        IpAddr::V4(address) => is_outside_v4(address),
        IpAddr::V6(address) => is_outside_v6(address),
    }
}

fn is_outside_v4(address: Ipv4Addr) -> bool {
    // All of 0.0.0.0/8 is "this host" (RFC 1122, section 3.2.1.3).
    address.octets()[0] != 0
        && !address.is_loopback()
        && !address.is_link_local()
        && !address.is_multicast()
        && !address.is_broadcast()
}

fn is_outside_v6(address: Ipv6Addr) -> bool {
    // A socket takes a mapped address for the IPv4 one.
    address.to_ipv4_mapped().is_none()
        && !address.is_loopback()
        && !address.is_unspecified()
        && !address.is_unicast_link_local()
        && !address.is_multicast()
}
