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
    /// First port of the host. Never 0: a free one has been chosen where none was given.
    pub host_port: u16,
    /// First port of the container.
    pub container_port: u16,
    /// How many ports, at least 1.
    pub count: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
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
