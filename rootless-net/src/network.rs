//! What a network is, and what a container's place in it is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Name of the network a container is in when nothing else is asked for.
pub const DEFAULT_NETWORK: &str = "selkie";

/// MTU of the uplink and of everything behind it: the largest that `pasta` takes.
pub const DEFAULT_MTU: u32 = 65520;

/// The address under which a container reaches the host (`host.containers.internal`).
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);

/// How containers of one network are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Each by a route of its own to the outside, and to no other container: the default network.
    Routed,
    /// To each other, through a bridge.
    Bridge,
}

/// Whether containers of two bridge networks may reach each other
/// (`--opt isolate`, netavark's meaning of `false`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Never.
    #[default]
    Isolated,
    /// When the other network is open as well.
    Open,
}

/// One subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Network address and prefix length, host bits zero.
    pub subnet: IpNet,
    /// Ours in this subnet: next hop and name server of its containers. Inside `subnet`.
    pub gateway: IpAddr,
    /// First and last address that containers may be given by themselves (`--ip-range`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_range: Option<(IpAddr, IpAddr)>,
}

/// A route that every container of a network has (`network create --route`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticRoute {
    /// Where it leads, host bits zero.
    pub destination: IpNet,
    /// By whom: in a subnet of the network.
    pub gateway: IpAddr,
    /// The lower of two routes to one place is taken.
    pub metric: u32,
}

/// A network as its login defined it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Unique per login.
    pub name: String,
    /// 64 hex digits.
    pub id: String,
    /// Routed or bridged.
    pub kind: Kind,
    /// At most one of each family, IPv4 first.
    pub subnets: Vec<Subnet>,
    /// No way out, and none in.
    #[serde(default)]
    pub internal: bool,
    /// Towards other bridge networks.
    #[serde(default)]
    pub isolation: Isolation,
    /// Bytes.
    pub mtu: u32,
    /// Whether the name server answers with names of containers (`--disable-dns`).
    pub dns_enabled: bool,
    /// Whom its name server asks instead of the host's servers (`network create --dns`).
    #[serde(default)]
    pub dns_servers: Vec<IpAddr>,
    /// In all of its containers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<StaticRoute>,
}

impl Network {
    /// Name of its bridge in the uplink namespace. What it begins with is what the firewall's fixed
    /// rules go by: `sb` with a way out, `si` internal, `so` open to other open ones, and `sn` both
    /// internal and open.
    pub fn bridge(&self) -> InterfaceName {
        let class = match (self.internal, self.isolation) {
            (false, Isolation::Isolated) => "sb",
            (true, Isolation::Isolated) => "si",
            (false, Isolation::Open) => "so",
            (true, Isolation::Open) => "sn",
        };
        InterfaceName::from_id(class, &self.id)
    }

    /// Its gateway address of one family.
    pub fn gateway_v4(&self) -> Option<Ipv4Addr> {
        self.subnets.iter().find_map(|subnet| match subnet.gateway {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    /// As [`Self::gateway_v4`].
    pub fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.subnets.iter().find_map(|subnet| match subnet.gateway {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        })
    }
}

/// A container's place in one network, decided down to the last digit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the network.
    pub network: String,
    /// Of the interface in the container (`eth0`).
    pub interface: InterfaceName,
    /// Its addresses with the prefix lengths of their subnets, at most one of each family.
    pub addresses: Vec<IpNet>,
    /// Of the interface in the container.
    pub mac: MacAddress,
    /// Names it has in this network besides its own (`--network-alias`).
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// Name of a network interface: 1 to 15 bytes, no `/`, no white space, neither `.` nor `..`
/// (the kernel's `dev_valid_name`), and no `:`, which stands for an alias.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// Why a text names no interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be an interface's name: 1 to 15 printable characters other than '/', ':' and spaces"
)]
pub struct BadInterfaceName(pub String);

impl InterfaceName {
    /// `prefix` and as many digits of a hexadecimal ID as fit.
    pub(crate) fn from_id(prefix: &str, id: &str) -> Self {
        let digits = 15 - prefix.len();
        Self(format!("{prefix}{}", &id[..id.len().min(digits)]))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = BadInterfaceName;

    fn from_str(text: &str) -> Result<Self, BadInterfaceName> {
        let fits = (1..=15).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':'))
            && !matches!(text, "." | "..");
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadInterfaceName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = BadInterfaceName;

    fn try_from(text: String) -> Result<Self, BadInterfaceName> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A unicast Ethernet address; its text is six pairs of hexadecimal digits with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Why a text is no address an interface can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no MAC address for an interface: like 02:42:ac:11:00:02, with an even first byte"
)]
pub struct BadMacAddress(pub String);

impl MacAddress {
    /// `None` for multicast and for all zeros, which no interface can have.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// A locally administered one out of any six bytes (random ones, or of a hash).
    pub fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfc) | 2;
        Self(bytes)
    }

    /// The bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = BadMacAddress;

    fn from_str(text: &str) -> Result<Self, BadMacAddress> {
        let bad = || BadMacAddress(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Self::new(bytes).ok_or_else(bad)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = BadMacAddress;

    fn try_from(text: String) -> Result<Self, BadMacAddress> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse_are_refused() {
        for good in ["eth0", "a", "abcdefghijklmno", "net-1.5@x"] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "abcdefghijklmnop", "a/b", "a b", "a:1", "ä"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_of_interfaces() {
        let address: MacAddress = "02:42:AC:11:00:02".parse().unwrap();
        assert_eq!(address.to_string(), "02:42:ac:11:00:02");
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "2:42:ac:11:0:2",
            "+2:42:ac:11:00:02",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
        assert_eq!(MacAddress::local([0xff; 6]).bytes()[0], 0xfe);
    }

    #[test]
    fn a_bridge_is_named_by_its_class_and_id() {
        let mut network = Network {
            name: "n".into(),
            id: "0123456789abcdef".repeat(4),
            kind: Kind::Bridge,
            subnets: Vec::new(),
            internal: false,
            isolation: Isolation::Isolated,
            mtu: DEFAULT_MTU,
            dns_enabled: true,
            dns_servers: Vec::new(),
            routes: Vec::new(),
        };
        assert_eq!(network.bridge().as_str(), "sb0123456789abc");
        network.internal = true;
        assert!(network.bridge().as_str().starts_with("si"));
        network.isolation = Isolation::Open;
        assert!(network.bridge().as_str().starts_with("sn"));
    }
}
