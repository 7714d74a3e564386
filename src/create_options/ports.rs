//! `--publish`, `--expose` and their kin, in all the forms Docker and Podman know.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use selkie_engine::network::{PortPattern, choose_port};
use selkie_engine::options::{ExposedPorts, PortMapping, Protocol};

use crate::error::{CliError, Result};

/// Ports in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u16,
    count: u16,
}

/// One `--publish`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Publish {
    host_ip: Option<IpAddr>,
    /// `None`: wherever there is room.
    host: Option<Range>,
    container: Range,
    protocols: Vec<Protocol>,
}

/// All `--publish` flags. Where a range of the host is given for one port of the container, the first
/// free port of it is chosen now.
pub fn published(texts: &[String]) -> Result<Vec<PortMapping>> {
    published_beside(&[], "publish", texts)
}

/// [`published`] by another flag, of a container that has `known` published.
pub fn published_beside(
    known: &[PortMapping],
    flag: &str,
    texts: &[String],
) -> Result<Vec<PortMapping>> {
    let mut mappings: Vec<PortMapping> = known.to_vec();
    for text in texts {
        let publish = parse(text).map_err(|why| not_a_port(flag, text, &why))?;
        for protocol in publish.protocols {
            let mut mapping = PortMapping {
                host_ip: publish.host_ip,
                host_port: publish.host.map_or(0, |host| host.first),
                container_port: publish.container.first,
                count: publish.container.count,
                protocol,
            };
            if let Some(host) = publish.host
                && host.count > publish.container.count
            {
                mapping.host_port = choose_port(&mapping, host.count, &mappings)?;
            }
            mappings.push(mapping);
        }
    }
    Ok(mappings.split_off(known.len()))
}

/// Refuses what is no port to publish, without choosing any.
pub fn check(flag: &str, texts: &[String]) -> Result<()> {
    texts.iter().try_for_each(|text| {
        parse(text)
            .map(drop)
            .map_err(|why| not_a_port(flag, text, &why))
    })
}

/// All flags called so that name ports which are published: `PORT[/PROTOCOL]` of the container, or
/// what `--publish` took.
pub fn patterns(flag: &str, texts: &[String]) -> Result<Vec<PortPattern>> {
    let ends = |range: Range| -> RangeInclusive<u16> {
        range.first..=range.first.saturating_add(range.count - 1)
    };
    let mut patterns = Vec::new();
    for text in texts {
        let publish = parse(text).map_err(|why| not_a_port(flag, text, &why))?;
        patterns.extend(publish.protocols.iter().map(|protocol| PortPattern {
            text: text.clone(),
            host_ip: publish.host_ip,
            host: publish.host.map(ends),
            container: ends(publish.container),
            protocol: *protocol,
        }));
    }
    Ok(patterns)
}

fn not_a_port(flag: &str, text: &str, why: &str) -> CliError {
    CliError::new(format!("--{flag} {text}: {why}"))
        .with_hint("write [[ADDRESS:][HOST-PORT]:]PORT[/tcp|/udp], ranges as FIRST-LAST")
}

/// All `--expose` flags.
pub fn exposed(texts: &[String]) -> Result<Vec<ExposedPorts>> {
    let mut all = Vec::new();
    for text in texts {
        let refuse = |why: String| CliError::new(format!("--expose {text}: {why}"));
        let (ports, list) = protocols(text).map_err(refuse)?;
        let ports = range(ports).map_err(refuse)?;
        all.extend(list.into_iter().map(|protocol| ExposedPorts {
            port: ports.first,
            count: ports.count,
            protocol,
        }));
    }
    Ok(all)
}

/// `PORT[/PROTOCOL]` of the command line's `port`.
pub fn port_and_protocol(text: &str) -> std::result::Result<(u16, Protocol), String> {
    let (port, list) = protocols(text)?;
    match (range(port)?, list.as_slice()) {
        (Range { first, count: 1 }, [protocol]) => Ok((first, *protocol)),
        _ => Err(format!("{text:?} is not one port")),
    }
}

fn parse(text: &str) -> std::result::Result<Publish, String> {
    let (ports, protocols) = protocols(text)?;
    let (address, rest) = match ports.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest
                .split_once("]:")
                .ok_or("the bracket around the address is not closed")?;
            if !address.contains(':') {
                return Err(format!("[{address}] is no IPv6 address"));
            }
            let fields: Vec<&str> = rest.split(':').collect();
            (Some(address), fields)
        }
        None => {
            let fields: Vec<&str> = ports.split(':').collect();
            match fields[..] {
                [address, host, container] => (Some(address), vec![host, container]),
                _ => (None, fields),
            }
        }
    };
    let (host, container) = match rest[..] {
        [container] => (None, container),
        [host, container] => (Some(host), container),
        _ => {
            return Err("too many colons: an IPv6 address stands in brackets".to_owned());
        }
    };
    let host_ip = match address {
        None | Some("") => None,
        Some(address) => Some(
            address
                .parse::<IpAddr>()
                .map_err(|_| format!("{address:?} is no IP address of the host"))?,
        ),
    };
    let container = range(container)?;
    let host = match host {
        // Docker's `0` is a port that is free as well.
        None | Some("" | "0") => None,
        Some(host) => Some(range(host)?),
    };
    if let Some(host) = host
        && host.count != container.count
        && container.count != 1
    {
        return Err(format!(
            "host and container port ranges have different lengths: {} vs {}",
            host.count, container.count
        ));
    }
    Ok(Publish {
        host_ip,
        host,
        container,
        protocols,
    })
}

/// What follows the slash; TCP when nothing does.
fn protocols(text: &str) -> std::result::Result<(&str, Vec<Protocol>), String> {
    let Some((ports, list)) = text.split_once('/') else {
        return Ok((text, vec![Protocol::Tcp]));
    };
    let mut protocols = Vec::new();
    for word in list.split(',') {
        let protocol = match word.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => {
                return Err(
                    "SCTP cannot be published: what carries a login's ports knows TCP and UDP only"
                        .to_owned(),
                );
            }
            _ => return Err(format!("unrecognized protocol {word:?} in port mapping")),
        };
        if !protocols.contains(&protocol) {
            protocols.push(protocol);
        }
    }
    Ok((ports, protocols))
}

fn range(text: &str) -> std::result::Result<Range, String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(format!(
            "port numbers must be between 1 and 65535 (inclusive), got {text:?}"
        )),
    };
    let (first, last) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((first, last)) => (port(first)?, port(last)?),
    };
    if last < first {
        return Err(format!("port range {text} ends before it begins"));
    }
    Ok(Range {
        first,
        // At most 65535, as port 0 is none.
        count: last - first + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        let mappings = published(&[text.to_owned()]).unwrap();
        let texts: Vec<String> = mappings.iter().map(ToString::to_string).collect();
        texts.join(" ")
    }

    #[test]
    fn all_of_dockers_forms() {
        for (text, expected) in [
            ("80", "0.0.0.0:0->80/tcp"),
            ("8080:80", "0.0.0.0:8080->80/tcp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080->80/tcp"),
            ("127.0.0.1::80", "127.0.0.1:0->80/tcp"),
            (":80", "0.0.0.0:0->80/tcp"),
            ("0:80", "0.0.0.0:0->80/tcp"),
            ("::80", "0.0.0.0:0->80/tcp"),
            ("[::1]:8080:80", "[::1]:8080->80/tcp"),
            ("[::1]::80", "[::1]:0->80/tcp"),
            ("[::]:80", "[::]:0->80/tcp"),
            ("8000-8010:80-90", "0.0.0.0:8000-8010->80-90/tcp"),
            ("80-90", "0.0.0.0:0-10->80-90/tcp"),
            ("53:53/udp", "0.0.0.0:53->53/udp"),
            ("53:53/TCP,udp", "0.0.0.0:53->53/tcp 0.0.0.0:53->53/udp"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn one_of_a_range_is_chosen() {
        let mappings = published(&["39300-39390:80".into(), "39300-39390:81".into()]).unwrap();
        assert_eq!(mappings.len(), 2);
        assert_ne!(mappings[0].host_port, mappings[1].host_port);
        assert!(
            mappings.iter().all(|mapping| {
                (39300..=39390).contains(&mapping.host_port) && mapping.count == 1
            })
        );
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for (bad, word) in [
            ("", "between 1 and 65535"),
            ("x", "between 1 and 65535"),
            ("70000:80", "between 1 and 65535"),
            ("80:0", "between 1 and 65535"),
            ("80:+80", "between 1 and 65535"),
            ("90-80", "before it begins"),
            ("8080:80-81", "different lengths"),
            ("8000-8002:80-81", "different lengths"),
            ("80/sctp", "SCTP"),
            ("80/foo", "unrecognized protocol"),
            ("80/", "unrecognized protocol"),
            ("nowhere:80:80", "no IP address"),
            ("1:2:3:4", "brackets"),
            ("::1:80:80", "brackets"),
            ("[::1:80:80", "not closed"),
            ("[10.0.0.1]:80:80", "no IPv6 address"),
        ] {
            let error = published(&[bad.to_owned()]).unwrap_err();
            assert!(error.message.contains(word), "{bad}: {}", error.message);
        }
    }

    #[test]
    fn ports_to_take_back() {
        let seen = |text: &str| {
            let patterns = patterns("publish-rm", &[text.to_owned()]).unwrap();
            let all = patterns
                .into_iter()
                .map(|one| (one.host_ip, one.host, one.container, one.protocol));
            all.collect::<Vec<_>>()
        };
        assert_eq!(seen("80"), [(None, None, 80..=80, Protocol::Tcp)]);
        assert_eq!(seen("80-90/udp"), [(None, None, 80..=90, Protocol::Udp)]);
        assert_eq!(
            seen("[::1]:8080:80/tcp,udp"),
            [Protocol::Tcp, Protocol::Udp].map(|protocol| (
                Some("::1".parse().unwrap()),
                Some(8080..=8080),
                80..=80,
                protocol
            ))
        );
        let error = patterns("publish-rm", &["web".into()]).unwrap_err();
        assert!(error.message.starts_with("--publish-rm web"), "{error:?}");
    }

    #[test]
    fn exposures() {
        let seen = exposed(&["80".into(), "53/udp".into(), "90-92/tcp,udp".into()]).unwrap();
        let seen: Vec<_> = seen
            .iter()
            .map(|exposed| (exposed.port, exposed.count, exposed.protocol.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (80, 1, "tcp"),
                (53, 1, "udp"),
                (90, 3, "tcp"),
                (90, 3, "udp")
            ]
        );
        assert!(exposed(&["80:80".into()]).is_err());
        assert_eq!(port_and_protocol("80").unwrap(), (80, Protocol::Tcp));
        assert!(port_and_protocol("80-81").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse(&text);
            let _ = patterns("publish-rm", std::slice::from_ref(&text));
            let _ = exposed(&[text]);
        }

        #[test]
        fn near_misses_do_not_panic(text in "[0-9:./\\[\\]a-z-]{0,24}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_shown_is_what_was_asked(address in any::<IpAddr>(), host in 1u16..60000, container in 1u16..60000, count in 1u16..100, udp in any::<bool>()) {
            let shown_address = match address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            let range = |first: u16| format!("{first}-{}", first + count - 1);
            let protocol = if udp { "udp" } else { "tcp" };
            let text = format!("{shown_address}:{}:{}/{protocol}", range(host), range(container));
            let parsed = parse(&text).unwrap();
            prop_assert_eq!(parsed.host_ip, Some(address));
            prop_assert_eq!(parsed.host, Some(Range { first: host, count }));
            prop_assert_eq!(parsed.container, Range { first: container, count });
            prop_assert_eq!(parsed.protocols.len(), 1);
        }
    }
}
