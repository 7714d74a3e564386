//! What follows `--network slirp4netns:`, read: Podman's keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::Addresses;
use crate::network::{DEFAULT_MTU, InterfaceName};

/// Largest that slirp4netns takes.
const MOST_MTU: u32 = 65521;
/// Smallest an IPv6 link may have; with less, the interface has no IPv6 at all.
const LEAST_MTU: u32 = 1280;

/// Podman's defaults.
const DEFAULT_CIDR: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);

/// Where packets leave.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outbound<A> {
    Address(A),
    Interface(InterfaceName),
}

/// Who publishes ports, by Podman's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortHandler {
    /// A forwarder beside slirp4netns: fast, and clients appear with the container's own address. In
    /// Podman this is the program rootlesskit, here it is [`crate::forwarder`].
    Rootlesskit,
    /// slirp4netns itself: slow, and clients keep their addresses.
    Slirp4netns,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    allow_host_loopback: bool,
    cidr: Ipv4Net,
    mtu: u32,
    enable_ipv6: bool,
    enable_sandbox: bool,
    enable_seccomp: bool,
    outbound_ipv4: Option<Outbound<Ipv4Addr>>,
    outbound_ipv6: Option<Outbound<Ipv6Addr>>,
    port_handler: PortHandler,
}

/// Why a text cannot follow `--network slirp4netns:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOptions {
    /// There is no such key.
    #[error(
        "--network slirp4netns: unknown option {0:?}; there are allow_host_loopback, cidr, \
         enable_ipv6, enable_sandbox, enable_seccomp, mtu, outbound_addr, outbound_addr6 and \
         port_handler"
    )]
    Unknown(String),
    /// A value that its key cannot have.
    #[error("--network slirp4netns: {key}={value} is wrong: it must be {wanted}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What can be given.
        wanted: &'static str,
    },
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allow_host_loopback: false,
            cidr: DEFAULT_CIDR,
            mtu: DEFAULT_MTU,
            enable_ipv6: true,
            enable_sandbox: true,
            enable_seccomp: true,
            outbound_ipv4: None,
            outbound_ipv6: None,
            port_handler: PortHandler::Rootlesskit,
        }
    }
}

impl std::str::FromStr for Options {
    type Err = BadOptions;

    /// Reads what follows the colon; nothing is no options.
    fn from_str(text: &str) -> Result<Self, BadOptions> {
        let mut options = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| BadOptions::Unknown(word.to_owned()))?;
            options.set(key, value)?;
        }
        Ok(options)
    }
}

impl Options {
    fn set(&mut self, key: &str, value: &str) -> Result<(), BadOptions> {
        match key {
            "allow_host_loopback" => {
                self.allow_host_loopback = boolean("allow_host_loopback", value)?;
            }
            "enable_ipv6" => self.enable_ipv6 = boolean("enable_ipv6", value)?,
            "enable_sandbox" => self.enable_sandbox = boolean("enable_sandbox", value)?,
            "enable_seccomp" => self.enable_seccomp = boolean("enable_seccomp", value)?,
            "cidr" => self.cidr = cidr(value)?,
            "mtu" => self.mtu = mtu(value)?,
            "outbound_addr" => {
                let wanted = "an IPv4 address of the host or an interface's name";
                self.outbound_ipv4 = Some(outbound("outbound_addr", value, wanted)?);
            }
            "outbound_addr6" => {
                let wanted = "an IPv6 address of the host or an interface's name";
                self.outbound_ipv6 = Some(outbound("outbound_addr6", value, wanted)?);
            }
            "port_handler" => {
                self.port_handler = match value {
                    "rootlesskit" => PortHandler::Rootlesskit,
                    "slirp4netns" => PortHandler::Slirp4netns,
                    _ => return Err(wrong("port_handler", value, "rootlesskit or slirp4netns")),
                };
            }
            _ => return Err(BadOptions::Unknown(key.to_owned())),
        }
        Ok(())
    }

    /// The address with this number in the network; numbers below the network's size fit.
    fn host_number(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()) | number)
    }

    /// Where the container finds things. slirp4netns decides it so.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            container: self.host_number(100),
            name_server: self.host_number(3).into(),
            host: self
                .allow_host_loopback
                .then(|| IpAddr::from(self.host_number(2))),
        }
    }

    /// Who publishes ports.
    pub fn port_handler(&self) -> PortHandler {
        self.port_handler
    }

    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--mtu={}", self.mtu),
            format!("--cidr={}", self.cidr),
        ];
        for (wanted, option) in [
            (!self.allow_host_loopback, "--disable-host-loopback"),
            (self.enable_ipv6, "--enable-ipv6"),
            (self.enable_sandbox, "--enable-sandbox"),
            (self.enable_seccomp, "--enable-seccomp"),
        ] {
            if wanted {
                arguments.push(option.to_owned());
            }
        }
        let word4 = self.outbound_ipv4.as_ref().map(Outbound::to_string);
        let word6 = self.outbound_ipv6.as_ref().map(Outbound::to_string);
        arguments.extend(word4.map(|word| format!("--outbound-addr={word}")));
        arguments.extend(word6.map(|word| format!("--outbound-addr6={word}")));
        arguments
    }
}

impl<A: std::fmt::Display> std::fmt::Display for Outbound<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Interface(name) => name.fmt(f),
        }
    }
}

fn wrong(key: &'static str, value: &str, wanted: &'static str) -> BadOptions {
    BadOptions::Value {
        key,
        value: value.to_owned(),
        wanted,
    }
}

fn boolean(key: &'static str, value: &str) -> Result<bool, BadOptions> {
    value
        .parse()
        .map_err(|_| wrong(key, value, "true or false"))
}

fn mtu(value: &str) -> Result<u32, BadOptions> {
    value
        .parse()
        .ok()
        .filter(|mtu| (LEAST_MTU..=MOST_MTU).contains(mtu))
        .ok_or_else(|| wrong("mtu", value, "a number from 1280 to 65521"))
}

fn cidr(value: &str) -> Result<Ipv4Net, BadOptions> {
    // Its own addresses end in 2, 3 and 100.
    value
        .parse::<Ipv4Net>()
        .ok()
        .filter(|net| net.prefix_len() <= 25 && net.addr() == net.network())
        .ok_or_else(|| {
            wrong(
                "cidr",
                value,
                "an IPv4 network of at least 128 addresses, as in 10.0.2.0/24",
            )
        })
}

fn outbound<A: std::str::FromStr>(
    key: &'static str,
    value: &str,
    wanted: &'static str,
) -> Result<Outbound<A>, BadOptions> {
    if let Ok(address) = value.parse() {
        return Ok(Outbound::Address(address));
    }
    // An address of the other family is no interface.
    match value.parse::<InterfaceName>() {
        Ok(name) if value.parse::<IpAddr>().is_err() => Ok(Outbound::Interface(name)),
        _ => Err(wrong(key, value, wanted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_defaults() {
        let options: Options = "".parse().unwrap();
        assert_eq!(
            options.arguments().join(" "),
            "--mtu=65520 --cidr=10.0.2.0/24 --disable-host-loopback --enable-ipv6 --enable-sandbox \
             --enable-seccomp"
        );
        let addresses = options.addresses();
        assert_eq!(addresses.container, Ipv4Addr::new(10, 0, 2, 100));
        assert_eq!(addresses.name_server, IpAddr::from([10, 0, 2, 3]));
        assert_eq!(addresses.host, None);
        assert_eq!(options.port_handler(), PortHandler::Rootlesskit);
    }

    #[test]
    fn every_key() {
        let options: Options =
            "allow_host_loopback=true,cidr=10.9.0.0/16,mtu=1500,enable_ipv6=false,\
                                enable_sandbox=false,enable_seccomp=false,outbound_addr=192.0.2.7,\
                                outbound_addr6=eth0,port_handler=slirp4netns"
                .parse()
                .unwrap();
        assert_eq!(
            options.arguments().join(" "),
            "--mtu=1500 --cidr=10.9.0.0/16 --outbound-addr=192.0.2.7 --outbound-addr6=eth0"
        );
        assert_eq!(options.addresses().host, Some(IpAddr::from([10, 9, 0, 2])));
        assert_eq!(options.port_handler(), PortHandler::Slirp4netns);
    }

    #[test]
    fn wrong_ones_are_refused() {
        for text in [
            "mtu=0",
            "mtu=70000",
            "mtu=x",
            "cidr=10.0.2.1/24",
            "cidr=10.0.2.0/26",
            "cidr=fd00::/64",
            "enable_ipv6=yes",
            "outbound_addr=fd00::1",
            "outbound_addr6=192.0.2.1",
            "outbound_addr=a b",
            "port_handler=x",
        ] {
            let error = text.parse::<Options>().unwrap_err();
            assert!(matches!(error, BadOptions::Value { .. }), "{text}");
        }
        for text in ["mtu", "frobnicate=1", "--mtu=1500"] {
            let error = text.parse::<Options>().unwrap_err();
            assert!(matches!(error, BadOptions::Unknown(_)), "{text}");
        }
    }
}
