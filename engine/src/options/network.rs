//! What a caller can ask of a new container's network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use selkie_net::network::{DEFAULT_NETWORK, InterfaceName, MacAddress};
use selkie_net::port_mapping::Protocol;
use serde::{Deserialize, Serialize};

/// `--network`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// Only a loopback device of its own.
    None,
    /// The host's network.
    Host,
    /// A place in each of these networks; in none of them, it is like [`Self::None`] until it is
    /// connected.
    Networks(Vec<NetworkRequest>),
    /// A `pasta` of its own, with these options.
    Pasta(Vec<String>),
    /// A `slirp4netns` of its own, with these options.
    Slirp4netns(Vec<String>),
    /// The network of another container: its ID (its name, until the container is made).
    Container(String),
    /// An existing network namespace.
    Namespace(PathBuf),
}

impl Default for NetworkMode {
    fn default() -> Self {
        Self::Networks(vec![NetworkRequest::of(DEFAULT_NETWORK)])
    }
}

impl NetworkMode {
    /// The networks it asks for.
    pub fn requests(&self) -> &[NetworkRequest] {
        match self {
            Self::Networks(requests) => requests,
            _ => &[],
        }
    }

    /// True when ports can be published: it has a network of its own, and one that leads outside.
    pub fn publishes(&self) -> bool {
        matches!(
            self,
            Self::Networks(_) | Self::Pasta(_) | Self::Slirp4netns(_)
        )
    }
}

/// The place wanted in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// Name of the network (also its ID or an alias, until the container is made).
    pub name: String,
    /// `ip=` (IPv4): this address and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// `ip=` (IPv6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// `mac=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// `alias=`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// `interface_name=`; chosen when the container is made or connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceName>,
}

impl NetworkRequest {
    /// Any place in the network called so.
    pub fn of(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ip: None,
            ip6: None,
            mac: None,
            aliases: Vec::new(),
            interface: None,
        }
    }
}

/// `--expose`: ports that the container serves, published only by `--publish-all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExposedPorts {
    /// First port.
    pub port: u16,
    /// How many, at least 1.
    pub count: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl ExposedPorts {
    /// Each of them.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        (0..self.count).map(move |offset| self.port.saturating_add(offset))
    }
}

/// `--dns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DnsServers {
    /// Those of the networks it is in.
    #[default]
    OfNetworks,
    /// These.
    These(Vec<IpAddr>),
    /// `none`: `/etc/resolv.conf` stays the image's.
    ImagesOwn,
}

/// `--add-host NAME:ADDRESS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraHost {
    /// The name, or several.
    pub names: Vec<String>,
    /// Its address; `None`: the host's own (`host-gateway`).
    pub address: Option<IpAddr>,
}

/// Names: what the container's `/etc/hosts` and `/etc/resolv.conf` say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NameOptions {
    /// `--dns`.
    #[serde(default)]
    pub dns_servers: DnsServers,
    /// `--dns-search`; `Some` of nothing: no search domains (`.`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_search: Option<Vec<String>>,
    /// `--dns-option`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_options: Vec<String>,
    /// `--add-host`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<ExtraHost>,
    /// `--no-hosts`: `/etc/hosts` stays the image's.
    #[serde(default)]
    pub no_hosts: bool,
    /// `--no-hostname`: `/etc/hostname` stays the image's.
    #[serde(default)]
    pub no_hostname: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_written_before_there_were_networks_are_read() {
        let read = |text: &str| serde_json::from_str::<NetworkMode>(text).unwrap();
        assert_eq!(read("\"None\""), NetworkMode::None);
        assert_eq!(read("\"Host\""), NetworkMode::Host);
    }

    #[test]
    fn a_container_is_online_unless_told_otherwise() {
        let mode = NetworkMode::default();
        assert_eq!(mode.requests(), [NetworkRequest::of("selkie")]);
        assert!(mode.publishes() && !NetworkMode::Host.publishes());
        assert_eq!(
            serde_json::to_string(&mode).unwrap(),
            r#"{"Networks":[{"name":"selkie"}]}"#
        );
    }
}
