//! Where the host's own routes lead, so that no network is made over them.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::{Error, Result};

/// One route other than a default one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostRoute {
    /// Where it leads.
    pub net: IpNet,
    /// Out of which device.
    pub device: String,
    /// True when the host is in that network itself.
    pub on_link: bool,
}

/// Reads the host's main routing tables.
///
/// # Errors
/// They cannot be read.
pub(crate) fn read() -> Result<Vec<HostRoute>> {
    let mut routes = Vec::new();
    for (path, parse) in [
        ("/proc/net/route", parse_v4 as fn(&str) -> Option<HostRoute>),
        ("/proc/net/ipv6_route", parse_v6),
    ] {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::machine(format!("read {path}"), error)),
        };
        routes.extend(text.lines().filter_map(parse));
    }
    Ok(routes)
}

/// `eth0 0002A8C0 00000000 0001 0 0 0 00FFFFFF …`: addresses as the machine's own words.
fn parse_v4(line: &str) -> Option<HostRoute> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [device, destination, gateway, _, _, _, _, mask, ..] = fields[..] else {
        return None;
    };
    let address = |field: &str| {
        u32::from_str_radix(field, 16)
            .ok()
            .map(|word| Ipv4Addr::from(word.to_ne_bytes()))
    };
    let net = Ipv4Net::with_netmask(address(destination)?, address(mask)?).ok()?;
    (net.prefix_len() > 0).then(|| HostRoute {
        net: net.trunc().into(),
        device: device.to_owned(),
        on_link: gateway == "00000000",
    })
}

/// `DESTINATION LENGTH SOURCE LENGTH NEXT-HOP METRIC REFS USES FLAGS DEVICE`, all hexadecimal.
fn parse_v6(line: &str) -> Option<HostRoute> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [destination, length, _, _, next_hop, _, _, _, _, device] = fields[..] else {
        return None;
    };
    let address = Ipv6Addr::from(u128::from_str_radix(destination, 16).ok()?);
    let length = u8::from_str_radix(length, 16).ok()?;
    // Only unique local networks are ever chosen, and only there can anything be in the way.
    let is_private = address.segments()[0] & 0xfe00 == 0xfc00;
    (length > 0 && is_private).then_some(())?;
    Some(HostRoute {
        net: Ipv6Net::new(address, length).ok()?.trunc().into(),
        device: device.to_owned(),
        on_link: next_hop.bytes().all(|digit| digit == b'0'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        // As a little-endian machine writes them.
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let line = |destination: [u8; 4], gateway: [u8; 4], mask: [u8; 4]| {
            format!(
                "eth0\t{}\t{}\t0001\t0\t0\t100\t{}\t0\t0\t0",
                word(destination),
                word(gateway),
                word(mask)
            )
        };
        let route = parse_v4(&line([192, 168, 2, 0], [0; 4], [255, 255, 255, 0])).unwrap();
        assert_eq!(
            (route.net.to_string().as_str(), route.on_link),
            ("192.168.2.0/24", true)
        );
        let route = parse_v4(&line([10, 0, 0, 0], [192, 168, 2, 1], [255, 0, 0, 0])).unwrap();
        assert_eq!(
            (route.net.to_string().as_str(), route.on_link),
            ("10.0.0.0/8", false)
        );
        assert_eq!(parse_v4(&line([0; 4], [192, 168, 2, 1], [0; 4])), None);
        assert_eq!(
            parse_v4("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask"),
            None
        );

        let line = |destination: &str, length: &str, next: &str| {
            format!(
                "{destination} {length} {0} 00 {next} 00000100 00000001 00000000 00000001     eth0",
                "0".repeat(32)
            )
        };
        let private = "fd000001000000000000000000000000";
        let none = "0".repeat(32);
        let route = parse_v6(&line(private, "40", &none)).unwrap();
        assert_eq!(
            (route.net.to_string().as_str(), route.on_link),
            ("fd00:1::/64", true)
        );
        assert_eq!(
            parse_v6(&line("20010db8000000000000000000000000", "40", &none)),
            None
        );
        assert_eq!(parse_v6(&line(&none, "00", private)), None);
        assert_eq!(parse_v6(""), None);
    }

    #[test]
    fn the_machines_own_tables_are_readable() {
        read().unwrap();
    }
}
