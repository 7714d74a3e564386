//! A container's interfaces and a network's bridge.
//!
//! Every interface of a container is one end of a veth pair whose other end is in the uplink. On the
//! *routed* network that end has the gateway's addresses itself and a route to the container's: no two
//! containers share a link. On a bridged network it is a port of the bridge, which has the gateway's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use rustix::io::Errno;
use selkie_sys::errno::{SysError, SysResult};

use super::container_sysctls::ContainerSysctls;
use crate::netlink::{Netlink, Request, default_destination, in_namespace};
use crate::network::{Attachment, InterfaceName, Kind, MacAddress, Network};

/// The uplink's links, as far as this supervisor has made or met them.
#[derive(Debug)]
pub(super) struct Wiring {
    netlink: Netlink,
    /// Index of each network's bridge.
    bridges: HashMap<InterfaceName, u32>,
}

impl Wiring {
    pub(super) fn new(uplink: BorrowedFd<'_>) -> SysResult<Self> {
        Ok(Self {
            netlink: Netlink::open_in(uplink)?,
            bridges: HashMap::new(),
        })
    }

    /// Connects the container in `namespace` by all of its attachments. What is there already stays.
    pub(super) fn connect(
        &mut self,
        container: &str,
        attachments: &[(&Attachment, &Network)],
        namespace: BorrowedFd<'_>,
    ) -> SysResult<()> {
        if attachments.is_empty() {
            return Ok(());
        }
        let mut inside = open_container(namespace)?;
        let mut has_default = (false, false);
        for (attachment, network) in attachments {
            let is_there = inside.index_of(attachment.interface.as_str())?.is_some();
            self.connect_one(container, attachment, network, is_there, namespace)?;
            let index = inside
                .index_of(attachment.interface.as_str())?
                .ok_or_else(|| {
                    SysError::new(
                        format!("find {} in the container", attachment.interface),
                        Errno::NODEV,
                    )
                })?;
            inside.batch(inner_requests(attachment, network, index, &mut has_default))?;
        }
        Ok(())
    }

    /// The uplink's side of one attachment. `is_there`: the container has its side.
    fn connect_one(
        &mut self,
        container: &str,
        attachment: &Attachment,
        network: &Network,
        is_there: bool,
        namespace: BorrowedFd<'_>,
    ) -> SysResult<()> {
        let bridge = match network.kind {
            Kind::Routed => None,
            Kind::Bridge => Some(self.bridge(network)?),
        };
        let name = uplink_end(container, network);
        match self.netlink.index_of(name.as_str())? {
            Some(_) if is_there => return Ok(()),
            // Of the container's run before, whose namespace the kernel has not got round to yet.
            Some(index) => self.netlink.batch(vec![Request::remove_link(index)])?,
            None => {}
        }
        self.netlink.batch(vec![Request::veth(
            &name,
            &attachment.interface,
            attachment.mac,
            network.mtu,
            namespace,
        )])?;
        let index = self.index(&name)?;
        let mut requests = vec![Request::up(index, bridge)];
        if network.kind == Kind::Routed {
            for subnet in &network.subnets {
                requests.push(Request::address(index, IpNet::from(subnet.gateway)));
            }
            for address in &attachment.addresses {
                requests.push(Request::route(IpNet::from(address.addr()), index, None));
            }
        }
        let wired = self.netlink.batch(requests);
        if wired.is_err() {
            // The whole pair goes, so that nothing half-made is met later.
            let _ = self.netlink.batch(vec![Request::remove_link(index)]);
        }
        wired
    }

    /// Takes a container's interface in `network` away.
    pub(super) fn disconnect(&mut self, container: &str, network: &Network) -> SysResult<()> {
        let name = uplink_end(container, network);
        match self.netlink.index_of(name.as_str())? {
            Some(index) => self.netlink.batch(vec![Request::remove_link(index)]),
            None => Ok(()),
        }
    }

    /// A container has ended: its place in a bridged network must answer for its address no more, also
    /// before the kernel gets round to removing it.
    pub(super) fn silence(&mut self, container: &str, network: &Network) -> SysResult<()> {
        let name = uplink_end(container, network);
        match self.netlink.index_of(name.as_str())? {
            Some(index) => self.netlink.batch(vec![Request::disable_port(index)]),
            None => Ok(()),
        }
    }

    /// Takes a network's bridge away.
    pub(super) fn remove_bridge(&mut self, network: &Network) -> SysResult<()> {
        let name = network.bridge();
        self.bridges.remove(&name);
        match self.netlink.index_of(name.as_str())? {
            Some(index) => self.netlink.batch(vec![Request::remove_link(index)]),
            None => Ok(()),
        }
    }

    /// Makes sure that a network's bridge is there.
    fn bridge(&mut self, network: &Network) -> SysResult<u32> {
        let name = network.bridge();
        if let Some(index) = self.bridges.get(&name) {
            return Ok(*index);
        }
        let mac = MacAddress::local(id_bytes(&network.id));
        self.netlink
            .batch(vec![Request::bridge(&name, mac, network.mtu)])?;
        let index = self.index(&name)?;
        let mut requests: Vec<Request> = network
            .subnets
            .iter()
            .map(|subnet| {
                let length = subnet.subnet.prefix_len();
                let gateway = IpNet::new(subnet.gateway, length)
                    .unwrap_or_else(|_| IpNet::from(subnet.gateway));
                Request::address(index, gateway)
            })
            .collect();
        requests.push(Request::up(index, None));
        self.netlink.batch(requests)?;
        self.bridges.insert(name, index);
        Ok(index)
    }

    fn index(&mut self, name: &InterfaceName) -> SysResult<u32> {
        self.netlink
            .index_of(name.as_str())?
            .ok_or_else(|| SysError::new(format!("find the link {name}"), Errno::NODEV))
    }
}

/// A conversation with a container's namespace, which gets its settings before.
pub(super) fn open_container(namespace: BorrowedFd<'_>) -> SysResult<Netlink> {
    let sysctls = ContainerSysctls::decide()?;
    in_namespace(namespace, || {
        sysctls.set();
        Netlink::open()
    })
}

/// What the container's end needs. The first network with a way out has the default routes.
fn inner_requests(
    attachment: &Attachment,
    network: &Network,
    index: u32,
    has_default: &mut (bool, bool),
) -> Vec<Request> {
    let mut requests: Vec<Request> = attachment
        .addresses
        .iter()
        .map(|address| Request::address(index, *address))
        .collect();
    requests.push(Request::up(index, None));
    // The container by which a route leads has none by itself.
    let is_own = |gateway: IpAddr| attachment.addresses.iter().any(|own| own.addr() == gateway);
    requests.extend(
        network
            .routes
            .iter()
            .filter(|route| !is_own(route.gateway))
            .map(|route| {
                let (gateway, metric) = (Some(route.gateway), Some(route.metric));
                Request::route_with_metric(route.destination, index, gateway, metric)
            }),
    );
    if network.internal {
        return requests;
    }
    for address in &attachment.addresses {
        let v6 = matches!(address, IpNet::V6(_));
        let has = if v6 {
            &mut has_default.1
        } else {
            &mut has_default.0
        };
        let gateway: Option<IpAddr> = if v6 {
            network.gateway_v6().map(IpAddr::from)
        } else {
            network.gateway_v4().map(IpAddr::from)
        };
        if !*has && gateway.is_some() {
            *has = true;
            requests.push(Request::route(default_destination(v6), index, gateway));
        }
    }
    requests
}

/// The uplink's end of a container's interface in `network`: `sv` where it is routed and so the only
/// one of the container, `sp` (a port) with digits of both IDs else.
pub(super) fn uplink_end(container: &str, network: &Network) -> InterfaceName {
    match network.kind {
        Kind::Routed => InterfaceName::from_id("sv", container),
        Kind::Bridge => {
            let ids = format!(
                "{}{}",
                &container[..container.len().min(8)],
                &network.id[..network.id.len().min(5)]
            );
            InterfaceName::from_id("sp", &ids)
        }
    }
}

fn id_bytes(id: &str) -> [u8; 6] {
    let mut bytes = [0; 6];
    for (byte, pair) in bytes.iter_mut().zip(id.as_bytes().chunks(2)) {
        let text = std::str::from_utf8(pair).unwrap_or("0");
        *byte = u8::from_str_radix(text, 16).unwrap_or(0);
    }
    bytes
}
