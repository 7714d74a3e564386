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

/// How many bytes of a packet an ICMP message about it has: its headers, and no more than fits the
/// smallest datagram that everybody takes (RFC 1122, section 3.2.2).
const QUOTED: usize = 500;

/// Bytes of the longest headers before that.
const HEADERS: usize = 40 + 20;

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
        let cause = &self.packet[..self.packet.len().min(QUOTED)];
        let mut bytes = Vec::with_capacity(HEADERS + cause.len());
        match refusal {
            Refusal::Reset => ip
                .tcp(self.flow.remote.port(), self.flow.container.port(), 0, 0)
                .rst()
                .ack(self.sequence.wrapping_add(1))
                .write(&mut bytes, &[]),
            Refusal::Unreachable(what) if self.flow.remote.is_ipv4() => {
                let header = match what {
                    Unreachable::Network => DestUnreachableHeader::Network,
                    Unreachable::Host => DestUnreachableHeader::Host,
                    Unreachable::Prohibited => DestUnreachableHeader::FilterProhibited,
                };
                ip.icmpv4(Icmpv4Type::DestinationUnreachable(header))
                    .write(&mut bytes, cause)
            }
            Refusal::Unreachable(what) => {
                let code = match what {
                    Unreachable::Network => DestUnreachableCode::NoRoute,
                    Unreachable::Host => DestUnreachableCode::Address,
                    Unreachable::Prohibited => DestUnreachableCode::Prohibited,
                };
                ip.icmpv6(Icmpv6Type::DestinationUnreachable(code))
                    .write(&mut bytes, cause)
            }
        }
        .ok()?;
        Some(bytes)
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

#[cfg(test)]
mod tests {
    use etherparse::TcpSlice;
    use proptest::prelude::*;

    use super::*;

    fn v4() -> PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ipv4([10, 88, 0, 2], [192, 0, 2, 7], 63)
    }

    fn v6() -> PacketBuilderStep<etherparse::IpHeaders> {
        let container: Ipv6Addr = "fd00::2".parse().unwrap();
        let remote: Ipv6Addr = "2001:db8::7".parse().unwrap();
        PacketBuilder::ipv6(container.octets(), remote.octets(), 63)
    }

    fn syn(ip: PacketBuilderStep<etherparse::IpHeaders>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let tcp = ip.tcp(40000, 443, u32::MAX, 64240).syn();
        tcp.write(&mut bytes, &[]).unwrap();
        bytes
    }

    #[test]
    fn requests_are_told_from_other_packets() {
        let flow = |container: &str, remote: &str| Flow {
            container: container.parse().unwrap(),
            remote: remote.parse().unwrap(),
        };
        let bytes = syn(v4());
        let request = Syn::parse(&bytes).unwrap();
        assert_eq!(request.flow, flow("10.88.0.2:40000", "192.0.2.7:443"));
        assert_eq!(request.packet(), bytes);
        let request = Syn::parse(&syn(v6())).unwrap();
        assert_eq!(request.flow, flow("[fd00::2]:40000", "[2001:db8::7]:443"));

        let others = [
            v4().tcp(1, 2, 3, 4).syn().ack(5),
            v4().tcp(1, 2, 3, 4).ack(5).psh(),
            v4().tcp(1, 2, 3, 4).syn().rst(),
            v4().tcp(1, 2, 3, 4).syn().fin(),
            v6().tcp(1, 2, 3, 4).rst(),
        ];
        for other in others {
            let mut bytes = Vec::new();
            other.write(&mut bytes, b"payload").unwrap();
            assert!(Syn::parse(&bytes).is_none());
        }
        let mut datagram = Vec::new();
        v4().udp(1, 2).write(&mut datagram, b"payload").unwrap();
        assert!(Syn::parse(&datagram).is_none());
    }

    #[test]
    fn a_reset_answers_the_very_packet() {
        for ip in [v4(), v6()] {
            let request = Syn::parse(&syn(ip)).unwrap();
            let bytes = request.refuse(Refusal::Reset).unwrap();
            let answer = SlicedPacket::from_ip(&bytes).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = answer.transport else {
                panic!("no TCP");
            };
            assert!(tcp.rst() && tcp.ack() && !tcp.syn());
            // One after its number, which is the last there is.
            assert_eq!(tcp.acknowledgment_number(), 0);
            assert_eq!((tcp.source_port(), tcp.destination_port()), (443, 40000));
            assert_eq!(checksum(&bytes, &tcp), tcp.checksum());
        }
    }

    fn checksum(packet: &[u8], tcp: &TcpSlice<'_>) -> u16 {
        let header = tcp.to_header();
        match SlicedPacket::from_ip(packet).unwrap().net.unwrap() {
            NetSlice::Ipv4(ip) => header
                .calc_checksum_ipv4_raw(ip.header().source(), ip.header().destination(), &[])
                .unwrap(),
            NetSlice::Ipv6(ip) => header
                .calc_checksum_ipv6_raw(ip.header().source(), ip.header().destination(), &[])
                .unwrap(),
            NetSlice::Arp(_) => unreachable!(),
        }
    }

    #[test]
    fn a_router_says_what_cannot_be_reached() {
        for (what, code_v4, code_v6) in [
            (Unreachable::Network, 0, 0),
            (Unreachable::Host, 1, 3),
            (Unreachable::Prohibited, 13, 1),
        ] {
            for (ip, kind, code) in [(v4(), 3, code_v4), (v6(), 1, code_v6)] {
                let bytes = syn(ip);
                let request = Syn::parse(&bytes).unwrap();
                let answer = request.refuse(Refusal::Unreachable(what)).unwrap();
                let sliced = SlicedPacket::from_ip(&answer).unwrap();
                let (seen, payload) = match sliced.transport.unwrap() {
                    TransportSlice::Icmpv4(icmp) => {
                        ((icmp.type_u8(), icmp.code_u8()), icmp.payload().to_vec())
                    }
                    TransportSlice::Icmpv6(icmp) => {
                        ((icmp.type_u8(), icmp.code_u8()), icmp.payload().to_vec())
                    }
                    _ => panic!("no ICMP"),
                };
                assert_eq!(seen, (kind, code));
                // Whose it is, the container finds by the packet.
                assert_eq!(payload, bytes);
            }
        }
    }

    #[test]
    fn a_long_request_is_quoted_in_part() {
        for (ip, headers) in [(v4(), 28), (v6(), 48)] {
            let mut bytes = Vec::new();
            let tcp = ip.tcp(40000, 443, 1, 64240).syn();
            tcp.write(&mut bytes, &[7; 60_000]).unwrap();
            let request = Syn::parse(&bytes).unwrap();
            let refusal = Refusal::Unreachable(Unreachable::Host);
            let answer = request.refuse(refusal).unwrap();
            assert_eq!(answer.len(), headers + QUOTED);
            assert_eq!(answer[headers..], bytes[..QUOTED]);
        }
    }

    #[test]
    fn only_failures_that_mean_something_are_told() {
        let of = |errno: Errno| Refusal::of(&errno.into());
        assert_eq!(of(Errno::CONNREFUSED), Some(Refusal::Reset));
        assert_eq!(
            of(Errno::HOSTUNREACH),
            Some(Refusal::Unreachable(Unreachable::Host))
        );
        for silent in [Errno::TIMEDOUT, Errno::MFILE, Errno::NOBUFS, Errno::AGAIN] {
            assert_eq!(of(silent), None, "{silent}");
        }
    }

    #[test]
    fn what_the_host_keeps_for_itself_is_not_outside() {
        for inside in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:192.0.2.7",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!is_outside(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["192.0.2.7", "10.0.0.1", "2001:db8::7", "fd00::1"] {
            assert!(is_outside(outside.parse().unwrap()), "{outside}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Syn::parse(&bytes);
        }

        #[test]
        fn damaged_requests_are_none_or_answered(
            place in 0usize..40, value: u8, is_v4: bool, cut in 0usize..61,
        ) {
            let mut bytes = syn(if is_v4 { v4() } else { v6() });
            bytes[place] = value;
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Some(request) = Syn::parse(&bytes) {
                prop_assert!(request.refuse(Refusal::Reset).is_some());
                prop_assert!(request.refuse(Refusal::Unreachable(Unreachable::Host)).is_some());
            }
        }
    }
}
