//! A pasta of its own for one container.
//!
//! With versions that can map the guest's address, the container has the host's own addresses and
//! routes, as with Podman, and finds the host at 169.254.1.2. With older ones it gets an address of
//! its own instead: only then is the host reachable at all, and a host without a default route is
//! no obstacle.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Features, NAME_SERVER, Options, Template, closed_ports};
use crate::network::{DEFAULT_MTU, HOST_ADDRESS};
use crate::port_mapping::{PortMapping, Protocol};

/// Addresses of a container that does not get the host's.
const OWN_IPV4: (Ipv4Addr, u8, Ipv4Addr) = (
    Ipv4Addr::new(169, 254, 2, 1),
    30,
    Ipv4Addr::new(169, 254, 2, 2),
);
const OWN_IPV6: (Ipv6Addr, Ipv6Addr) = (
    Ipv6Addr::new(0xfd07, 0x5e1, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
);

/// Where `host.containers.internal` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAt {
    /// At this address, which only the container knows.
    Address(IpAddr),
    /// At the address by which other hosts know it ([`crate::host_address`]).
    OwnAddress,
}

/// What to start and what to tell the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For [`super::start`].
    pub arguments: Vec<String>,
    /// What `resolv.conf` must name.
    pub name_servers: Vec<IpAddr>,
    /// What `/etc/hosts` must name.
    pub host: HostAt,
    /// What this version cannot do, to be said once.
    pub warnings: Vec<String>,
    /// The container gets the host's addresses and routes, so the host must have some, and another
    /// plan is needed if it has not ([`super::Cause::NoHostRoute`]): see [`Wish::own_addresses`].
    pub copies_host: bool,
}

/// What a container wants.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Given by the user.
    pub options: &'a Options,
    /// Published.
    pub ports: &'a [PortMapping],
    /// Not the host's addresses, even where that is possible.
    pub own_addresses: bool,
}

/// Why it cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotPlan {
    /// The version is too old for what the user asks for.
    #[error(
        "--network pasta: the installed pasta does not know {0}; install a newer passt, or leave it out"
    )]
    Unknown(&'static str),
    /// Ports are published and closed in one.
    #[error(
        "--network pasta: -p publishes {protocol} ports, but {option} says {value:?}; give one of them"
    )]
    Contradiction {
        /// Of the published port.
        protocol: Protocol,
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
    },
}

impl Wish<'_> {
    /// Podman's defaults, unless the options say otherwise.
    ///
    /// # Errors
    /// The options cannot be followed by this version, or contradict the published ports.
    pub fn plan(&self, features: &Features, template: &Template) -> Result<Plan, CannotPlan> {
        let options = self.options;
        if let Some(unknown) = options.names().find(|name| !features.knows(name)) {
            return Err(CannotPlan::Unknown(unknown));
        }
        let mut warnings = Vec::new();
        let mut arguments: Vec<String> = options.arguments().collect();
        let has_address = options.has("--address");
        let own = !has_address && (self.own_addresses || !features.can_map_guest_address());
        if own {
            arguments.extend(own_addresses(options, features, template));
            if !features.can_map_guest_address() {
                warnings.push(format!(
                    "the installed pasta does not know --map-guest-addr: the container has the \
                     address {} instead of the host's, and host.containers.internal is the host's \
                     own address; passt of 2024-08 or later does better",
                    OWN_IPV4.0
                ));
            }
        }
        if !options.has("--mtu") {
            arguments.push(format!("--mtu={DEFAULT_MTU}"));
        }
        let name_servers = self.name_servers(&mut arguments);
        if !options.maps_gateway {
            arguments.push("--no-map-gw".into());
        }
        let host = self.host(own, features, &mut arguments);
        self.publish(&mut arguments)?;
        Ok(Plan {
            arguments,
            name_servers,
            host,
            warnings,
            copies_host: !own && !has_address,
        })
    }

    fn name_servers(&self, arguments: &mut Vec<String>) -> Vec<IpAddr> {
        let given: Vec<IpAddr> = ["--dns-forward", "--dns"]
            .into_iter()
            .flat_map(|option| self.options.values(option))
            .filter_map(|value| value.parse().ok())
            .collect();
        if self.options.has("--dns-forward") || !given.is_empty() {
            return given;
        }
        arguments.push(format!("--dns-forward={NAME_SERVER}"));
        vec![NAME_SERVER.into()]
    }

    fn host(&self, own: bool, features: &Features, arguments: &mut Vec<String>) -> HostAt {
        let options = self.options;
        let given = |option| {
            options
                .values(option)
                .find_map(|value| value.parse::<IpAddr>().ok())
        };
        if let Some(address) = given("--map-guest-addr").or_else(|| given("--map-host-loopback")) {
            HostAt::Address(address)
        } else if own || options.has("--address") || !features.can_map_guest_address() {
            HostAt::OwnAddress
        } else {
            arguments.push(format!("--map-guest-addr={HOST_ADDRESS}"));
            HostAt::Address(HOST_ADDRESS.into())
        }
    }

    fn publish(&self, arguments: &mut Vec<String>) -> Result<(), CannotPlan> {
        let options = self.options;
        let mut is_closed = [true; 2];
        for (at, (protocol, short, long)) in [
            (Protocol::Tcp, "-t", "--tcp-ports"),
            (Protocol::Udp, "-u", "--udp-ports"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut ports = self
                .ports
                .iter()
                .filter(|port| port.protocol == protocol)
                .peekable();
            // One word for all ports does not go together with single ones.
            if ports.peek().is_some()
                && let Some(value) = options
                    .values(long)
                    .find(|value| matches!(*value, "none" | "auto" | "all"))
            {
                return Err(CannotPlan::Contradiction {
                    protocol,
                    option: long,
                    value: value.to_owned(),
                });
            }
            is_closed[at] = ports.peek().is_none() && !options.has(long);
            arguments.extend(ports.flat_map(|port| [short.to_owned(), specification(port)]));
        }
        arguments.extend(closed_ports(
            is_closed[0],
            is_closed[1],
            !options.has("--tcp-ns"),
            !options.has("--udp-ns"),
        ));
        Ok(())
    }
}

/// `ADDRESS/FIRST-LAST:FIRST-LAST`.
fn specification(port: &PortMapping) -> String {
    let last = |first: u16| first.saturating_add(port.count.saturating_sub(1));
    let address = port
        .host_ip
        .map_or(String::new(), |address| format!("{address}/"));
    format!(
        "{address}{}-{}:{}-{}",
        port.host_port,
        last(port.host_port),
        port.container_port,
        last(port.container_port)
    )
}

fn own_addresses(options: &Options, features: &Features, template: &Template) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| {
        if !options.has(option) {
            arguments.push(format!("{option}={value}"));
        }
    };
    add("--ns-ifname", "eth0".into());
    add("--interface", template.interface.clone());
    add("--mac-addr", super::MAC.into());
    // A gateway of the user's choice would not be in our subnets: then it is theirs to be right.
    let has_gateway = options.has("--gateway");
    add("--netmask", OWN_IPV4.1.to_string());
    if !options.has("--ipv6-only") {
        arguments.push(format!("--address={}", OWN_IPV4.0));
        if !has_gateway {
            arguments.push(format!("--gateway={}", OWN_IPV4.2));
        }
    }
    let takes_ipv6 = features.takes_two_addresses() || options.has("--ipv6-only");
    if takes_ipv6 && !options.has("--ipv4-only") {
        arguments.push(format!("--address={}", OWN_IPV6.0));
        if !has_gateway {
            arguments.push(format!("--gateway={}", OWN_IPV6.1));
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lo() -> Template {
        Template {
            interface: "lo".into(),
            has_link_local: false,
        }
    }

    fn port(text: &str, host: u16, container: u16, count: u16, protocol: Protocol) -> PortMapping {
        PortMapping {
            host_ip: (!text.is_empty()).then(|| text.parse().unwrap()),
            host_port: host,
            container_port: container,
            count,
            protocol,
        }
    }

    fn plan(options: &str, ports: &[PortMapping], lacks: &[&str]) -> Result<Plan, CannotPlan> {
        let options = options.parse().unwrap();
        let wish = Wish {
            options: &options,
            ports,
            own_addresses: false,
        };
        wish.plan(&Features::without(lacks), &lo())
    }

    #[test]
    fn podmans_defaults() {
        let plan = plan("", &[], &[]).unwrap();
        assert_eq!(
            plan.arguments.join(" "),
            "--mtu=65520 --dns-forward=169.254.1.1 --no-map-gw --map-guest-addr=169.254.1.2 \
             -t none -u none -T none -U none"
        );
        assert_eq!(plan.name_servers, [IpAddr::from([169, 254, 1, 1])]);
        assert_eq!(plan.host, HostAt::Address(HOST_ADDRESS.into()));
        assert!(plan.copies_host && plan.warnings.is_empty());
    }

    #[test]
    fn old_versions_get_an_address_of_their_own_and_it_is_said() {
        let plan = plan("", &[], &["--map-guest-addr", "--map-host-loopback"]).unwrap();
        let text = plan.arguments.join(" ");
        assert!(text.contains("--address=169.254.2.1"), "{text}");
        assert!(text.contains("--interface=lo"), "{text}");
        assert!(!text.contains("--map-guest-addr"), "{text}");
        assert_eq!(plan.host, HostAt::OwnAddress);
        assert_eq!(plan.warnings.len(), 1);
        assert!(!plan.copies_host);
    }

    #[test]
    fn options_override_defaults() {
        let plan = plan(
            "--map-gw,-t,auto,-a,10.0.2.0,-n,24,-g,10.0.2.2,--dns-forward,10.0.2.3,-m,1500",
            &[],
            &["--map-guest-addr"],
        )
        .unwrap();
        let text = plan.arguments.join(" ");
        assert!(!text.contains("--no-map-gw"), "{text}");
        assert!(!text.contains("-t none"), "{text}");
        assert!(text.contains("-u none"), "{text}");
        assert!(!text.contains("169.254"), "{text}");
        assert_eq!(plan.name_servers, [IpAddr::from([10, 0, 2, 3])]);
        assert_eq!(plan.host, HostAt::OwnAddress);
    }

    #[test]
    fn ports() {
        let ports = [
            port("", 8080, 80, 1, Protocol::Tcp),
            port("127.0.0.1", 9000, 9100, 3, Protocol::Tcp),
            port("::1", 53, 53, 1, Protocol::Udp),
        ];
        let text = plan("", &ports, &[]).unwrap().arguments.join(" ");
        let end = "-t 8080-8080:80-80 -t 127.0.0.1/9000-9002:9100-9102 -u ::1/53-53:53-53 \
                   -T none -U none";
        assert!(text.ends_with(end), "{text}");
        assert_eq!(
            plan("-t,none", &ports, &[]),
            Err(CannotPlan::Contradiction {
                protocol: Protocol::Tcp,
                option: "--tcp-ports",
                value: "none".into()
            })
        );
        assert!(plan("-t,8081", &ports, &[]).is_ok());
    }

    #[test]
    fn what_this_version_lacks_is_refused_when_asked_for() {
        assert_eq!(
            plan("--no-splice", &[], &["--no-splice"]),
            Err(CannotPlan::Unknown("--no-splice"))
        );
    }
}
