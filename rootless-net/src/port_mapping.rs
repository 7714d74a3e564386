//! Published ports: which address and port of the host leads to which port of a container.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One `--publish`: `count` ports from `host_port` on lead to as many from `container_port` on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortMapping {
    /// Address of the host to listen on; `None`: all addresses of both families.
    pub host_ip: Option<IpAddr>,
    /// First port of the host. 0 only in what is asked for: a free one is chosen when the container
    /// is made.
    pub host_port: u16,
    /// First port of the container.
    pub container_port: u16,
    /// How many ports, at least 1.
    pub count: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl fmt::Display for PortMapping {
    /// As `ps` shows it: `0.0.0.0:8080->80/tcp`, `[::1]:8000-8002->80-82/udp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            None => f.write_str("0.0.0.0")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]")?,
        }
        let range = |first: u16| match self.count {
            0 | 1 => first.to_string(),
            count => format!("{first}-{}", u32::from(first) + u32::from(count) - 1),
        };
        let (host, container) = (range(self.host_port), range(self.container_port));
        write!(f, ":{host}->{container}/{}", self.protocol)
    }
}

impl PortMapping {
    /// (host port, container port) of each of its ports.
    pub fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let (host, container) = (self.host_port, self.container_port);
        (0..self.count).map(move |offset| {
            (
                host.saturating_add(offset),
                container.saturating_add(offset),
            )
        })
    }

    /// Each of its ports as a mapping of its own.
    pub fn singles(&self) -> impl Iterator<Item = Self> + '_ {
        self.pairs().map(|(host_port, container_port)| Self {
            host_port,
            container_port,
            count: 1,
            ..self.clone()
        })
    }

    /// Whether both want the same port of the host. One whose host port is yet to be chosen wants none.
    pub fn clashes(&self, other: &Self) -> bool {
        let same_address = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => {
                a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()))
            }
            _ => true,
        };
        let end = |mapping: &Self| u32::from(mapping.host_port) + u32::from(mapping.count);
        self.protocol == other.protocol
            && self.host_port != 0
            && other.host_port != 0
            && same_address
            && u32::from(self.host_port) < end(other)
            && u32::from(other.host_port) < end(self)
    }

    /// What is left of it without those of its ports for which `is_taken` (host port, container port).
    pub fn without(&self, is_taken: impl Fn(u16, u16) -> bool) -> Vec<Self> {
        let mut left: Vec<Self> = Vec::new();
        for single in self.singles() {
            if is_taken(single.host_port, single.container_port) {
                continue;
            }
            match left.last_mut() {
                Some(last) if last.host_port.checked_add(last.count) == Some(single.host_port) => {
                    last.count += 1;
                }
                _ => left.push(single),
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_shown_as_podman_shows_them() {
        let mut mapping = PortMapping {
            host_ip: None,
            host_port: 8080,
            container_port: 80,
            count: 1,
            protocol: Protocol::Tcp,
        };
        assert_eq!(mapping.to_string(), "0.0.0.0:8080->80/tcp");
        mapping.count = 3;
        mapping.protocol = Protocol::Udp;
        mapping.host_ip = Some("::1".parse().unwrap());
        assert_eq!(mapping.to_string(), "[::1]:8080-8082->80-82/udp");
        assert_eq!(
            mapping.pairs().collect::<Vec<_>>(),
            [(8080, 80), (8081, 81), (8082, 82)]
        );
    }

    #[test]
    fn ranges_come_apart_where_a_port_is_taken() {
        let range = PortMapping {
            host_ip: None,
            host_port: 65530,
            container_port: 80,
            count: 6,
            protocol: Protocol::Tcp,
        };
        let left = |taken: &[u16]| -> Vec<String> {
            let left = range.without(|_, container| taken.contains(&container));
            left.iter().map(ToString::to_string).collect()
        };
        assert_eq!(left(&[]), [range.to_string()]);
        assert_eq!(
            left(&[81, 82]),
            ["0.0.0.0:65530->80/tcp", "0.0.0.0:65533-65535->83-85/tcp"]
        );
        assert_eq!(left(&[80, 85]), ["0.0.0.0:65531-65534->81-84/tcp"]);
        assert!(left(&[80, 81, 82, 83, 84, 85]).is_empty());
    }
}
