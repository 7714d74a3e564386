//! Single requests of a batch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use crate::network::{InterfaceName, MacAddress};

/// One request, the words for its failure, and which failures are none.
#[derive(Debug)]
pub struct Request {
    pub(super) attempt: String,
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
    pub(super) tolerated: &'static [Errno],
}

impl Request {
    fn new(attempt: String, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self {
            attempt,
            message,
            flags,
            tolerated: &[],
        }
    }

    fn tolerating(self, tolerated: &'static [Errno]) -> Self {
        Self { tolerated, ..self }
    }

    /// A veth pair: `name` here, `peer` with `mac` in `namespace`. Neither is up.
    pub fn veth(
        name: &InterfaceName,
        peer: &InterfaceName,
        mac: MacAddress,
        mtu: u32,
        namespace: BorrowedFd<'_>,
    ) -> Self {
        let mut inside = LinkMessage::default();
        inside.attributes = vec![
            LinkAttribute::IfName(peer.to_string()),
            LinkAttribute::Address(mac.bytes().to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
            ]),
        ];
        Self::new(
            format!("make the interface {peer} of a container ({name} in the uplink)"),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// A bridge without spanning tree and multicast snooping, which would make a new port wait.
    /// One that exists stays.
    pub fn bridge(name: &InterfaceName, mac: MacAddress, mtu: u32) -> Self {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::Address(mac.bytes().to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::ForwardDelay(0),
                    InfoBridge::StpState(BridgeStpState::Disabled),
                    InfoBridge::MulticastSnooping(false),
                ])),
            ]),
        ];
        Self::new(
            format!("make the bridge {name}"),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .tolerating(&[Errno::EXIST])
    }

    /// Sets the longest packet that fits a link, in bytes.
    pub fn mtu(index: u32, mtu: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        Self::new(
            format!("set the MTU of the link {index} to {mtu}"),
            RouteNetlinkMessage::SetLink(message),
            0,
        )
    }

    /// Brings a link up, and makes it a port of a bridge where one is given.
    pub fn up(index: u32, bridge: Option<u32>) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message
            .attributes
            .extend(bridge.map(LinkAttribute::Controller));
        Self::new(
            format!("bring up the link {index}"),
            RouteNetlinkMessage::SetLink(message),
            0,
        )
    }

    /// Has a bridge forward nothing more from or to one of its ports. Removing the port would make the
    /// kernel wait for a grace period, with everybody who changes links waiting too.
    pub fn disable_port(index: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::State(
                BridgePortState::Disabled,
            )])),
        ]));
        Self::new(
            format!("disable the bridge port {index}"),
            RouteNetlinkMessage::NewLink(message),
            0,
        )
        .tolerating(&[Errno::NODEV])
    }

    /// Removes a link; its peer goes with it. One that is gone is no failure.
    pub fn remove_link(index: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Self::new(
            format!("remove the link {index}"),
            RouteNetlinkMessage::DelLink(message),
            0,
        )
        .tolerating(&[Errno::NODEV])
    }

    /// Gives a link an address that is usable at once (no duplicate address detection, which takes
    /// a second). The address with its prefix length also says which subnet is on the link.
    pub fn address(index: u32, address: IpNet) -> Self {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix_len();
        message.header.family = family(address.addr());
        message.header.scope = match address.addr() {
            IpAddr::V6(address) if address.is_unicast_link_local() => AddressScope::Link,
            _ => AddressScope::Universe,
        };
        message.attributes.push(match address.addr() {
            // IFA_LOCAL is the address itself; without it a /32 would be a peer's.
            IpAddr::V4(_) => AddressAttribute::Local(address.addr()),
            IpAddr::V6(_) => AddressAttribute::Address(address.addr()),
        });
        if let IpNet::V4(address) = address {
            message
                .attributes
                .push(AddressAttribute::Address(address.addr().into()));
        } else {
            message.header.flags = AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        Self::new(
            format!("give the link {index} the address {address}"),
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .tolerating(&[Errno::EXIST])
    }

    /// A route to `destination` over a link, through `gateway` where one is given.
    pub fn route(destination: IpNet, index: u32, gateway: Option<IpAddr>) -> Self {
        Self::route_with_metric(destination, index, gateway, None)
    }

    /// [`Self::route`] that another one with a lower metric goes before.
    pub fn route_with_metric(
        destination: IpNet,
        index: u32,
        gateway: Option<IpAddr>,
        metric: Option<u32>,
    ) -> Self {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination.addr());
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = match (gateway, destination) {
            (None, IpNet::V4(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if destination.prefix_len() > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(destination.addr().into()));
        }
        message.attributes.push(RouteAttribute::Oif(index));
        message
            .attributes
            .extend(gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
        message
            .attributes
            .extend(metric.map(RouteAttribute::Priority));
        Self::new(
            format!("make the route to {destination} over the link {index}"),
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// A route, in `table` instead of the main one.
    pub fn in_table(mut self, table: u8) -> Self {
        if let RouteNetlinkMessage::NewRoute(message) = &mut self.message {
            message.header.table = table;
        }
        self
    }

    /// In table `table`: everything is local, so that packets sent there come to sockets of ours.
    pub fn local_default(v6: bool, loopback: u32, table: u8) -> Self {
        let mut message = RouteMessage::default();
        message.header.address_family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        message.header.table = table;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
        message.attributes.push(RouteAttribute::Oif(loopback));
        Self::new(
            format!("make everything local in routing table {table}"),
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Packets with this mark are routed by `table`.
    pub fn rule(v6: bool, mark: u32, table: u8) -> Self {
        let mut message = RuleMessage::default();
        message.header.family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        message.header.table = table;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![RuleAttribute::FwMark(mark)];
        Self::new(
            format!("route packets marked {mark} by table {table}"),
            RouteNetlinkMessage::NewRule(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .tolerating(&[Errno::EXIST])
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// All of one family.
pub(crate) fn default_destination(v6: bool) -> IpNet {
    let any: IpAddr = if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    // Zero is a prefix length of both families.
    IpNet::new_assert(any, 0)
}
