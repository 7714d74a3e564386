//! Where published ports lead, and which address the container sees.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A container as published ports reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Address of the uplink namespace in the network of [`Self::v4`]: the source of clients that
    /// cannot be shown with their own. Without one, none can: the source is the kernel's choice.
    pub gateway_v4: Option<Ipv4Addr>,
    /// As [`Self::gateway_v4`].
    pub gateway_v6: Option<Ipv6Addr>,
    /// What the container believes to be on its links and would not answer by way of the gateway.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
}

/// How one client reaches the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    /// The container.
    pub destination: IpAddr,
    /// What the container shall see.
    pub source: SocketAddr,
}

impl Target {
    /// The way of `client`, whose address is kept where answers to it come back through the gateway.
    /// `None` when the container has no address.
    pub(super) fn path(&self, client: SocketAddr) -> Option<Path> {
        let v4 = self.v4.map(IpAddr::V4);
        let v6 = self.v6.map(IpAddr::V6);
        let destination = if client.is_ipv4() {
            v4.or(v6)
        } else {
            v6.or(v4)
        }?;
        let gateway: IpAddr = match destination {
            IpAddr::V4(_) => self.gateway_v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
            IpAddr::V6(_) => self.gateway_v6.unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
        };
        let is_kept = client.is_ipv4() == destination.is_ipv4()
            && !gateway.is_unspecified()
            && self.is_far(client.ip());
        let source = if is_kept {
            // Without flow and scope, which mean nothing in another namespace.
            SocketAddr::new(client.ip(), client.port())
        } else {
            SocketAddr::new(gateway, 0)
        };
        Some(Path {
            destination,
            source,
        })
    }

    /// The way to the container's address of the other family, where it has one; the client's address
    /// cannot be kept on it.
    pub(super) fn other_path(&self, path: &Path) -> Option<Path> {
        let (destination, gateway): (IpAddr, IpAddr) = match path.destination {
            IpAddr::V4(_) => (
                self.v6?.into(),
                self.gateway_v6.unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
            ),
            IpAddr::V6(_) => (
                self.v4?.into(),
                self.gateway_v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
            ),
        };
        Some(Path {
            destination,
            source: SocketAddr::new(gateway, 0),
        })
    }

    /// Whether `destination` is still the container's.
    pub(super) fn has(&self, destination: IpAddr) -> bool {
        match destination {
            IpAddr::V4(address) => self.v4 == Some(address),
            IpAddr::V6(address) => self.v6 == Some(address),
        }
    }

    /// Whether the container sends what is for `client` to its gateway.
    fn is_far(&self, client: IpAddr) -> bool {
        let elsewhere = match client {
            IpAddr::V4(address) => {
                address.is_loopback()
                    || address.is_link_local()
                    || address.is_multicast()
                    || address.is_broadcast()
            }
            IpAddr::V6(address) => {
                address.is_loopback()
                    || address.is_unicast_link_local()
                    || address.is_multicast()
                    || address.to_ipv4_mapped().is_some()
            }
        };
        !elsewhere
            && !client.is_unspecified()
            && !self.has(client)
            && !self.subnets.iter().any(|subnet| subnet.contains(&client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> Target {
        Target {
            v4: Some(Ipv4Addr::new(10, 88, 0, 2)),
            v6: Some("fd00::2".parse().unwrap()),
            gateway_v4: Some(Ipv4Addr::new(10, 88, 0, 1)),
            gateway_v6: Some("fd00::1".parse().unwrap()),
            subnets: vec!["10.88.0.0/16".parse().unwrap()],
        }
    }

    fn seen(target: &Target, client: &str) -> Option<(String, String)> {
        let path = target.path(client.parse().unwrap())?;
        Some((path.source.to_string(), path.destination.to_string()))
    }

    fn pair(source: &str, destination: &str) -> Option<(String, String)> {
        Some((source.to_owned(), destination.to_owned()))
    }

    #[test]
    fn clients_elsewhere_keep_their_address() {
        let client = "192.0.2.7:4711";
        assert_eq!(seen(&both(), client), pair(client, "10.88.0.2"));
        let client = "[2001:db8::7]:4711";
        assert_eq!(seen(&both(), client), pair(client, "fd00::2"));
    }

    #[test]
    fn clients_that_no_answer_would_reach_come_from_the_gateway() {
        for client in [
            "127.0.0.1:9",
            "169.254.3.4:9",
            "10.88.0.2:9",
            "10.88.7.7:9",
            "0.0.0.0:9",
        ] {
            assert_eq!(seen(&both(), client), pair("10.88.0.1:0", "10.88.0.2"));
        }
        for client in ["[::1]:9", "[fe80::1%3]:9", "[fd00::2]:9"] {
            assert_eq!(seen(&both(), client), pair("[fd00::1]:0", "fd00::2"));
        }
    }

    #[test]
    fn without_a_gateway_the_kernel_chooses_the_source() {
        let alone = Target {
            v4: Some(Ipv4Addr::new(10, 0, 2, 100)),
            ..Target::default()
        };
        for client in [
            "192.0.2.7:4711",
            "127.0.0.1:9",
            "[2001:db8::7]:1",
            "[::1]:1",
        ] {
            assert_eq!(seen(&alone, client), pair("0.0.0.0:0", "10.0.2.100"));
        }
    }

    #[test]
    fn another_family_comes_from_the_gateway() {
        let v4 = Target { v6: None, ..both() };
        assert_eq!(
            seen(&v4, "[2001:db8::7]:1"),
            pair("10.88.0.1:0", "10.88.0.2")
        );
        let v6 = Target { v4: None, ..both() };
        assert_eq!(seen(&v6, "192.0.2.7:1"), pair("[fd00::1]:0", "fd00::2"));
        assert_eq!(seen(&Target::default(), "192.0.2.7:1"), None);
    }
}
