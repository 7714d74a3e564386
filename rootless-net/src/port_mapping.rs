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
}
