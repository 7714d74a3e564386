//! Published ports of a container: what the image exposes, free ports of the host where none was
//! named, and no port twice.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use crate::error::{Error, ErrorKind, Result};
use crate::options::{CreateOptions, ExposedPorts, PortMapping, Protocol};

/// Beginnings of a run of free ports that are tried.
const ATTEMPTS: u32 = 200;

/// Adds what an image exposes (`80`, `80/tcp`, `53/udp`, `8000-8010/tcp`) to what was asked for. What
/// is none of these is no port, and left out as Podman leaves it out.
pub(crate) fn add_exposed(options: &mut CreateOptions, image: &[String]) {
    for text in image {
        if let Some(exposed) = parse_exposed(text)
            && !options.expose.contains(&exposed)
        {
            options.expose.push(exposed);
        }
    }
}

/// `PORT[-PORT][/PROTOCOL]`.
pub(crate) fn parse_exposed(text: &str) -> Option<ExposedPorts> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last).then_some(())?;
    Some(ExposedPorts {
        port: first,
        count: (last - first).checked_add(1)?,
        protocol,
    })
}

/// Decides every host port of a new container.
///
/// # Errors
/// `InvalidInput`: a port twice, or a network mode that cannot publish; `Conflict`: none is free.
pub(crate) fn settle(options: &mut CreateOptions) -> Result<()> {
    if options.ports.is_empty() && !options.publish_all {
        return Ok(());
    }
    if !options.network.publishes() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "ports cannot be published with --network {}: it has no network of its own",
                options.network.describe()
            ),
        ));
    }
    if options.publish_all {
        publish_exposed(options);
    }
    settle_mappings(&mut options.ports)
}

/// Decides those host ports of `mappings` that are to be chosen.
///
/// # Errors
/// `InvalidInput`: a port twice; `Conflict`: none is free.
pub(super) fn settle_mappings(mappings: &mut Vec<PortMapping>) -> Result<()> {
    mappings.sort();
    mappings.dedup();
    refuse_conflicts(mappings)?;
    // Kept open until all are chosen, so that none is chosen twice.
    let mut reserved = Vec::new();
    for index in 0..mappings.len() {
        if mappings[index].host_port == 0 {
            let chosen = choose(&mappings[index], mappings, &mut reserved)?;
            mappings[index].host_port = chosen;
        }
    }
    mappings.sort();
    Ok(())
}

/// Publishes every exposed port that is not published yet.
fn publish_exposed(options: &mut CreateOptions) {
    for exposed in &options.expose {
        for port in exposed.ports() {
            let is_published = options.ports.iter().any(|mapping| {
                mapping.protocol == exposed.protocol
                    && mapping.pairs().any(|(_, container)| container == port)
            });
            if !is_published {
                options.ports.push(PortMapping {
                    host_ip: None,
                    host_port: 0,
                    container_port: port,
                    count: 1,
                    protocol: exposed.protocol,
                });
            }
        }
    }
}

fn refuse_conflicts(ports: &[PortMapping]) -> Result<()> {
    for (index, mapping) in ports.iter().enumerate() {
        if u32::from(mapping.container_port) + u32::from(mapping.count) > 0x1_0000
            || u32::from(mapping.host_port) + u32::from(mapping.count) > 0x1_0000
            || mapping.container_port == 0
            || mapping.count == 0
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "published port {}: port numbers are between 1 and 65535",
                    mapping
                ),
            ));
        }
        if let Some(other) = ports[..index].iter().find(|other| other.clashes(mapping)) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "conflicting port mappings {} and {}: one host port cannot lead to two places",
                    other, mapping
                ),
            ));
        }
    }
    Ok(())
}

/// The first free port of `among` ports from `mapping`'s host port on, none of which `taken` have.
///
/// # Errors
/// `Conflict`: all are in use.
pub fn choose_port(mapping: &PortMapping, among: u16, taken: &[PortMapping]) -> Result<u16> {
    let mut failure = None;
    for offset in 0..among {
        let Some(port) = mapping.host_port.checked_add(offset) else {
            break;
        };
        let candidate = PortMapping {
            host_port: port,
            ..mapping.clone()
        };
        if taken.iter().any(|other| other.clashes(&candidate)) {
            continue;
        }
        match reserve(&candidate, taken) {
            Ok(_) => return Ok(port),
            Err(error) => failure = Some(error),
        }
    }
    let cause = failure.map_or_else(String::new, |error| format!(": {error}"));
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "none of the {among} host ports from {} on is free for container port {}/{}{cause}",
            mapping.host_port, mapping.container_port, mapping.protocol
        ),
    ))
}

/// A socket that keeps a port.
#[allow(dead_code, reason = "held, not used")]
enum Reserved {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

fn choose(mapping: &PortMapping, all: &[PortMapping], reserved: &mut Vec<Reserved>) -> Result<u16> {
    let mut failure = None;
    for _ in 0..ATTEMPTS {
        match reserve(mapping, all) {
            Ok((port, sockets)) => {
                reserved.extend(sockets);
                return Ok(port);
            }
            // Another beginning may have room.
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => failure = Some(error),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let cause = failure.map_or_else(String::new, |error| format!(": {error}"));
    Err(Error::new(
        ErrorKind::Conflict,
        format!("no free host port found for {mapping}{cause}"),
    )
    .with_hint("name a host address of this machine and ports that are free: -p ADDRESS:PORT:PORT"))
}

/// Reserves `count` ports in a row from the mapping's host port on, or from where the kernel likes.
fn reserve(mapping: &PortMapping, all: &[PortMapping]) -> std::io::Result<(u16, Vec<Reserved>)> {
    let in_use = || std::io::Error::from(std::io::ErrorKind::AddrInUse);
    // A socket on all IPv6 addresses holds the port of both families.
    let anywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let (address, (socket, first)) = match mapping.host_ip {
        Some(address) => (address, bind(mapping.protocol, address, mapping.host_port)?),
        None => match bind(mapping.protocol, anywhere, mapping.host_port) {
            Ok(bound) => (anywhere, bound),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Err(error),
            // A kernel without IPv6.
            Err(_) => {
                let anywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
                (
                    anywhere,
                    bind(mapping.protocol, anywhere, mapping.host_port)?,
                )
            }
        },
    };
    let mut sockets = vec![socket];
    let candidate = PortMapping {
        host_port: first,
        ..mapping.clone()
    };
    if u32::from(first) + u32::from(mapping.count) > 0x1_0000
        || all.iter().any(|other| other.clashes(&candidate))
    {
        return Err(in_use());
    }
    for offset in 1..mapping.count {
        sockets.push(bind(mapping.protocol, address, first + offset)?.0);
    }
    Ok((first, sockets))
}

fn bind(protocol: Protocol, address: IpAddr, port: u16) -> std::io::Result<(Reserved, u16)> {
    let address = SocketAddr::new(address, port);
    Ok(match protocol {
        Protocol::Tcp => {
            let socket = TcpListener::bind(address)?;
            let port = socket.local_addr()?.port();
            (Reserved::Tcp(socket), port)
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(address)?;
            let port = socket.local_addr()?.port();
            (Reserved::Udp(socket), port)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::NetworkMode;
    use proptest::prelude::*;

    fn mapping(host: u16, container: u16, count: u16) -> PortMapping {
        PortMapping {
            host_ip: None,
            host_port: host,
            container_port: container,
            count,
            protocol: Protocol::Tcp,
        }
    }

    fn settled(ports: Vec<PortMapping>) -> Result<Vec<PortMapping>> {
        let mut options = CreateOptions {
            ports,
            ..Default::default()
        };
        settle(&mut options)?;
        Ok(options.ports)
    }

    #[test]
    fn what_images_expose() {
        let ports = |text: &str| parse_exposed(text).map(|e| (e.port, e.count, e.protocol));
        assert_eq!(ports("80"), Some((80, 1, Protocol::Tcp)));
        assert_eq!(ports("53/udp"), Some((53, 1, Protocol::Udp)));
        assert_eq!(ports("8000-8010/TCP"), Some((8000, 11, Protocol::Tcp)));
        for bad in ["", "0", "x", "80-70", "80/sctp", "80/", "65536", "-", "1-"] {
            assert_eq!(
                parse_exposed(bad).map(|e| e.port),
                (bad == "80/").then_some(80),
                "{bad}"
            );
        }
        let mut options = CreateOptions::default();
        add_exposed(
            &mut options,
            &["80/tcp".into(), "80".into(), "nonsense".into()],
        );
        assert_eq!(options.expose.len(), 1);
    }

    #[test]
    fn one_host_port_leads_to_one_place() {
        assert_eq!(
            settled(vec![mapping(8080, 80, 1), mapping(8080, 80, 1)])
                .unwrap()
                .len(),
            1
        );
        assert!(settled(vec![mapping(8080, 80, 3), mapping(8082, 90, 1)]).is_err());
        assert!(settled(vec![mapping(8080, 80, 2), mapping(8082, 90, 1)]).is_ok());
        let at = |address: &str| PortMapping {
            host_ip: Some(address.parse().unwrap()),
            ..mapping(8080, 81, 1)
        };
        assert!(settled(vec![at("127.0.0.1"), mapping(8080, 80, 1)]).is_err());
        assert!(settled(vec![at("127.0.0.1"), at("127.0.0.2")]).is_ok());
        assert!(settled(vec![at("0.0.0.0"), at("::1")]).is_ok());
        let udp = PortMapping {
            protocol: Protocol::Udp,
            ..mapping(8080, 81, 1)
        };
        assert!(settled(vec![udp, mapping(8080, 80, 1)]).is_ok());
        assert!(settled(vec![mapping(65535, 80, 2)]).is_err());
        assert!(settled(vec![mapping(80, 65535, 2)]).is_err());
    }

    #[test]
    fn free_ports_are_chosen_and_all_differ() {
        let chosen = settled(vec![
            mapping(0, 80, 1),
            mapping(0, 81, 4),
            mapping(0, 90, 1),
        ])
        .unwrap();
        let mut ports: Vec<u16> = chosen
            .iter()
            .flat_map(|mapping| mapping.pairs().map(|(host, _)| host))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 6);
        assert!(!ports.contains(&0));
        // What was chosen was free: it can be bound.
        for port in ports {
            TcpListener::bind(("127.0.0.1", port)).unwrap();
        }
    }

    #[test]
    fn all_that_is_exposed_is_published_once() {
        let mut options = CreateOptions {
            publish_all: true,
            ports: vec![mapping(18080, 80, 1)],
            ..Default::default()
        };
        add_exposed(
            &mut options,
            &["80".into(), "53/udp".into(), "90-91".into()],
        );
        settle(&mut options).unwrap();
        let mut published: Vec<_> = options
            .ports
            .iter()
            .map(|m| (m.container_port, m.protocol))
            .collect();
        published.sort();
        assert_eq!(
            published,
            [
                (53, Protocol::Udp),
                (80, Protocol::Tcp),
                (90, Protocol::Tcp),
                (91, Protocol::Tcp)
            ]
        );
    }

    #[test]
    fn modes_without_a_way_in_refuse() {
        let mut options = CreateOptions {
            network: NetworkMode::Host,
            ports: vec![mapping(8080, 80, 1)],
            ..Default::default()
        };
        assert_eq!(
            settle(&mut options).unwrap_err().kind,
            ErrorKind::InvalidInput
        );
    }

    #[test]
    fn an_address_that_is_not_ours_is_refused_with_the_reason() {
        let elsewhere = PortMapping {
            host_ip: Some("192.0.2.1".parse().unwrap()),
            ..mapping(0, 80, 1)
        };
        let error = settled(vec![elsewhere]).unwrap_err();
        assert!(
            error.message.contains("192.0.2.1") && error.hint.is_some(),
            "{error:?}"
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse_exposed(&text);
        }

        #[test]
        fn settled_ports_never_clash(list in proptest::collection::vec((1u16.., 1u16.., 1u16..50), 1..6)) {
            let list = list.into_iter().map(|(h, c, n)| mapping(h, c, n)).collect();
            if let Ok(ports) = settled(list) {
                for (index, one) in ports.iter().enumerate() {
                    prop_assert!(ports[..index].iter().all(|other| !one.clashes(other)));
                }
            }
        }
    }
}
