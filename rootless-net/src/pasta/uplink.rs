//! The one pasta of a login's uplink.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Features, Template, closed_ports};
use crate::network::InterfaceName;

/// What the uplink namespace shall look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Of the interface pasta makes in it.
    pub interface: InterfaceName,
    /// Its IPv4 address and prefix length, and the gateway.
    pub ipv4: (Ipv4Addr, u8, Ipv4Addr),
    /// Its IPv6 address (always a /64), and the gateway, which may be link-local.
    pub ipv6: (Ipv6Addr, Ipv6Addr),
    /// Bytes.
    pub mtu: u32,
}

/// How to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For [`super::start`].
    pub arguments: Vec<String>,
    /// IPv6 will work. If not, this version needs to be started anew once
    /// [`Template::of_this_namespace`] finds a link-local address.
    pub has_ipv6: bool,
}

impl Uplink {
    /// Works with no route on the host, and goes on working when the host's routes change.
    pub fn plan(&self, features: &Features, template: &Template) -> Plan {
        let (address, prefix, gateway) = self.ipv4;
        let mut arguments: Vec<String> = Vec::with_capacity(32);
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("--ns-ifname", self.interface.to_string());
        add("--mtu", self.mtu.to_string());
        add("--address", address.to_string());
        add("--netmask", prefix.to_string());
        add("--gateway", gateway.to_string());
        if features.takes_two_addresses() {
            add("--address", self.ipv6.0.to_string());
            add("--gateway", self.ipv6.1.to_string());
        }
        arguments.extend(template.arguments());
        arguments.extend(closed_ports(true, true, true, true));
        let quiet = ["--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra"];
        arguments.extend(quiet.map(str::to_owned));
        Plan {
            arguments,
            has_ipv6: features.takes_two_addresses()
                && (features.needs_no_link_local() || template.has_link_local),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_says_whether_ipv6_will_work() {
        let uplink = Uplink {
            interface: "uplink0".parse().unwrap(),
            ipv4: (
                Ipv4Addr::new(169, 254, 2, 1),
                30,
                Ipv4Addr::new(169, 254, 2, 2),
            ),
            ipv6: ("fd07:5e1::2".parse().unwrap(), "fe80::1".parse().unwrap()),
            mtu: 65520,
        };
        let lo = Template {
            interface: "lo".into(),
            has_link_local: false,
        };
        let eth0 = Template {
            interface: "eth0".into(),
            has_link_local: true,
        };
        let old = Features::without(&["--map-host-loopback"]);
        let new = Features::without(&[]);
        assert!(!uplink.plan(&old, &lo).has_ipv6);
        assert!(uplink.plan(&old, &eth0).has_ipv6);
        let plan = uplink.plan(&new, &lo);
        assert!(plan.has_ipv6);
        let text = plan.arguments.join(" ");
        assert!(text.contains("--interface lo --mac-addr 9a:55:9a:55:9a:55"));
        assert!(!text.contains("--no-ndp"));
    }
}
