//! `--dns --dns-search --dns-option --add-host --no-hosts --no-hostname`.

use std::net::IpAddr;

use selkie_engine::options::{DnsServers, ExtraHost, NameOptions, NetworkMode};

use crate::error::{CliError, Result};

/// The flags, as given.
#[derive(Debug, Default)]
pub struct NameFlags {
    /// `--dns`.
    pub dns: Vec<String>,
    /// `--dns-search`.
    pub search: Vec<String>,
    /// `--dns-option`.
    pub options: Vec<String>,
    /// `--add-host`.
    pub hosts: Vec<String>,
    /// `--no-hosts`.
    pub no_hosts: bool,
    /// `--no-hostname`.
    pub no_hostname: bool,
}

/// What they mean together, in this network.
pub fn parse(flags: &NameFlags, network: &NetworkMode) -> Result<NameOptions> {
    if flags.no_hosts && !flags.hosts.is_empty() {
        return Err(CliError::new(
            "--no-hosts and --add-host cannot be set together",
        ));
    }
    let is_shared = matches!(network, NetworkMode::Container(_));
    if is_shared || *network == NetworkMode::None {
        for (name, given) in [
            ("dns", &flags.dns),
            ("dns-search", &flags.search),
            ("dns-option", &flags.options),
        ] {
            if !given.is_empty() {
                return Err(CliError::new(format!(
                    "conflicting options: {name} and the network mode: {}",
                    network.describe()
                )));
            }
        }
    }
    if is_shared && !flags.hosts.is_empty() {
        return Err(CliError::new(format!(
            "conflicting options: add-host and the network mode: {}",
            network.describe()
        ))
        .with_hint("/etc/hosts is the other container's: give --add-host to that one"));
    }
    let options = NameOptions {
        dns_servers: servers(&flags.dns)?,
        dns_search: search(&flags.search)?,
        dns_options: flags
            .options
            .iter()
            .map(|text| word("dns-option", text))
            .collect::<Result<_>>()?,
        extra_hosts: flags
            .hosts
            .iter()
            .map(|text| extra_host(text))
            .collect::<Result<_>>()?,
        no_hosts: flags.no_hosts,
        no_hostname: flags.no_hostname,
    };
    if options.dns_servers == DnsServers::ImagesOwn
        && !(flags.search.is_empty() && flags.options.is_empty())
    {
        return Err(CliError::new(
            "--dns none leaves /etc/resolv.conf to the image, so --dns-search and --dns-option cannot be set with it",
        ));
    }
    let has_no_host = matches!(network, NetworkMode::None | NetworkMode::Namespace(_));
    if has_no_host
        && options
            .extra_hosts
            .iter()
            .any(|host| host.address.is_none())
    {
        return Err(CliError::new(format!(
            "--add-host with host-gateway: --network {} knows no way to the host",
            network.describe()
        )));
    }
    Ok(options)
}

fn servers(texts: &[String]) -> Result<DnsServers> {
    if texts.iter().any(|text| text == "none") {
        return match texts.len() {
            1 => Ok(DnsServers::ImagesOwn),
            _ => Err(CliError::new(
                "none is not allowed to be specified with other DNS ip addresses",
            )),
        };
    }
    if texts.is_empty() {
        return Ok(DnsServers::OfNetworks);
    }
    let servers = texts
        .iter()
        .map(|text| {
            text.parse::<IpAddr>()
                .map_err(|_| CliError::new(format!("--dns {text}: not an IP address")))
        })
        .collect::<Result<_>>()?;
    Ok(DnsServers::These(servers))
}

fn search(texts: &[String]) -> Result<Option<Vec<String>>> {
    if texts.iter().any(|text| text == ".") {
        return match texts.len() {
            1 => Ok(Some(Vec::new())),
            _ => Err(CliError::new(
                "--dns-search . (no search domains) excludes others",
            )),
        };
    }
    if texts.is_empty() {
        return Ok(None);
    }
    let domains = texts.iter().map(|text| word("dns-search", text));
    domains.collect::<Result<_>>().map(Some)
}

/// A word of `/etc/resolv.conf`: anything else would begin another line or word there.
fn word(flag: &str, text: &str) -> Result<String> {
    let is_word = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    if is_word && !text.starts_with(['#', ';']) {
        return Ok(text.to_owned());
    }
    Err(CliError::new(format!(
        "--{flag} {text:?}: not a word of /etc/resolv.conf"
    )))
}

/// `NAME[;NAME…]:ADDRESS`, also with `=`; the address may be `host-gateway`.
fn extra_host(text: &str) -> Result<ExtraHost> {
    let bad = || CliError::new(format!("bad format for add-host: {text:?}"));
    let split = text.find([':', '=']).ok_or_else(bad)?;
    let (names, address) = (&text[..split], &text[split + 1..]);
    let names: Vec<String> = names.split(';').map(str::to_owned).collect();
    let is_name = |name: &String| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    if !names.iter().all(is_name) {
        return Err(bad().with_hint("write NAME:ADDRESS, or NAME:host-gateway"));
    }
    let address = match address {
        "host-gateway" => None,
        address => {
            let bare = address
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
                .unwrap_or(address);
            Some(bare.parse().map_err(|_| {
                CliError::new(format!("invalid IP address in add-host: {address:?}"))
            })?)
        }
    };
    Ok(ExtraHost { names, address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn online(flags: NameFlags) -> Result<NameOptions> {
        parse(&flags, &NetworkMode::default())
    }

    #[test]
    fn servers_domains_and_options() {
        let options = online(NameFlags {
            dns: texts(&["9.9.9.9", "fd00::53"]),
            search: texts(&["a.example", "b"]),
            options: texts(&["ndots:2"]),
            ..NameFlags::default()
        })
        .unwrap();
        assert!(matches!(options.dns_servers, DnsServers::These(servers) if servers.len() == 2));
        assert_eq!(options.dns_search.unwrap(), ["a.example", "b"]);
        assert_eq!(options.dns_options, ["ndots:2"]);
        let none = |dns: &[&str], search: &[&str]| {
            online(NameFlags {
                dns: texts(dns),
                search: texts(search),
                ..NameFlags::default()
            })
        };
        assert_eq!(
            none(&["none"], &[]).unwrap().dns_servers,
            DnsServers::ImagesOwn
        );
        assert_eq!(none(&[], &["."]).unwrap().dns_search, Some(Vec::new()));
        for (dns, search) in [
            (&["none", "1.1.1.1"][..], &[][..]),
            (&["none"], &["a"]),
            (&["dns.example"], &[]),
            (&[], &[".", "a"]),
            (&[], &["a b"]),
            (&[], &["a\nnameserver 6.6.6.6"]),
            (&[], &[""]),
        ] {
            assert!(none(dns, search).is_err(), "{dns:?} {search:?}");
        }
    }

    #[test]
    fn hosts() {
        let host = |text: &str| {
            extra_host(text).map(|host| (host.names.join(" "), host.address.map(|a| a.to_string())))
        };
        let seen = |names: &str, address: &str| (names.to_owned(), Some(address.to_owned()));
        assert_eq!(host("a:1.2.3.4").unwrap(), seen("a", "1.2.3.4"));
        assert_eq!(host("a=1.2.3.4").unwrap(), seen("a", "1.2.3.4"));
        assert_eq!(host("a:::1").unwrap(), seen("a", "::1"));
        assert_eq!(host("a:[fd00::1]").unwrap(), seen("a", "fd00::1"));
        assert_eq!(host("a;b.c:1.2.3.4").unwrap(), seen("a b.c", "1.2.3.4"));
        assert_eq!(host("a:host-gateway").unwrap(), ("a".to_owned(), None));
        for bad in [
            "foo",
            "foo:bar",
            ":1.2.3.4",
            "a b:1.2.3.4",
            "a\n:1.2.3.4",
            "a;:1.2.3.4",
            "a:",
        ] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_that_have_no_use_for_them_refuse() {
        let with = |flags: &NameFlags, mode: &NetworkMode| parse(flags, mode).map(|_| ());
        let dns = NameFlags {
            dns: texts(&["1.1.1.1"]),
            ..NameFlags::default()
        };
        let hosts = NameFlags {
            hosts: texts(&["a:host-gateway"]),
            ..NameFlags::default()
        };
        let both = NameFlags {
            hosts: texts(&["a:1.2.3.4"]),
            no_hosts: true,
            ..NameFlags::default()
        };
        let shared = NetworkMode::Container("x".into());
        assert!(with(&dns, &NetworkMode::None).is_err());
        assert!(with(&dns, &shared).is_err());
        assert!(with(&dns, &NetworkMode::Host).is_ok());
        assert!(with(&hosts, &shared).is_err());
        assert!(with(&hosts, &NetworkMode::None).is_err());
        assert!(with(&hosts, &NetworkMode::Host).is_ok());
        assert!(with(&both, &NetworkMode::Host).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let one = vec![text];
            let _ = online(NameFlags { dns: one.clone(), ..NameFlags::default() });
            let _ = online(NameFlags { search: one.clone(), options: one.clone(), ..NameFlags::default() });
            let _ = online(NameFlags { hosts: one, ..NameFlags::default() });
        }

        #[test]
        fn no_host_breaks_its_line(text in ".*") {
            if let Ok(host) = extra_host(&text) {
                prop_assert!(host.names.iter().all(|name| !name.contains(char::is_whitespace)));
            }
        }
    }
}
