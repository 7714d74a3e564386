//! A container as the uplink is told of it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::network::Attachment;
use crate::port_mapping::PortMapping;

/// Everything that connects one container, decided by the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its ID, 64 hex digits.
    pub container: String,
    /// The names it has in each of its networks: its name, its short ID, what joined it.
    pub names: Vec<String>,
    /// Its interfaces, in their order.
    pub attachments: Vec<Attachment>,
    /// Its published ports.
    pub ports: Vec<PortMapping>,
    /// Whom the name server asks for it instead of the host's servers (`--dns`); empty: those.
    #[serde(default)]
    pub dns_servers: Vec<IpAddr>,
}
