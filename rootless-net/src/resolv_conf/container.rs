//! A container's `/etc/resolv.conf`, as Podman 5 with netavark writes it.
//!
//! Where one of its networks has names, the built-in name server is the only server in the file, and
//! servers given with `--dns` are whom that one asks on the container's behalf. Where none has names,
//! servers given with `--dns` are in the file; without any, what connects the container forwards
//! (`pasta --dns-forward`, the uplink's name server), after which those of the host's servers may
//! follow that can be reached from inside.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ResolvConf;

/// `--dns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DnsServers {
    /// Not given.
    #[default]
    Inherited,
    /// `none`: the image's `resolv.conf` stays as it is.
    Image,
    /// These, in this order.
    Given(Vec<IpAddr>),
}

/// `--dns`, `--dns-search` and `--dns-option`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsOptions {
    /// Whom to ask.
    pub servers: DnsServers,
    /// Instead of the networks' and the host's search domains; a single `.` stands for none at all.
    pub search: Vec<String>,
    /// Instead of the host's options.
    pub options: Vec<String>,
}

/// Why one of the three flags cannot be what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDnsOption {
    /// No address.
    #[error("--dns {0:?} is no IP address: give one, or 'none' to keep the image's resolv.conf")]
    Server(String),
    /// `none` and more.
    #[error("--dns none keeps the image's resolv.conf: no other --dns can be given beside it")]
    ServerBesideNone,
    /// A domain that cannot stand in `resolv.conf`.
    #[error(
        "--dns-search {0:?} is no domain: letters, digits, '-', '_' and dots, at most 63 in a label"
    )]
    Search(String),
    /// `.` and more.
    #[error("--dns-search . means no search domains: no other can be given beside it")]
    SearchBesideNone,
    /// An option that cannot stand in `resolv.conf`.
    #[error("--dns-option {0:?} is no option of resolv.conf: one word like 'ndots:2'")]
    Option(String),
}

impl DnsOptions {
    /// Out of the flags' values.
    ///
    /// # Errors
    /// One of them would not mean in a `resolv.conf` what was asked.
    pub fn parse(
        servers: &[String],
        search: &[String],
        options: &[String],
    ) -> Result<Self, BadDnsOption> {
        let servers = match servers {
            [] => DnsServers::Inherited,
            [only] if only == "none" => DnsServers::Image,
            several if several.iter().any(|server| server == "none") => {
                return Err(BadDnsOption::ServerBesideNone);
            }
            several => DnsServers::Given(
                several
                    .iter()
                    .map(|text| {
                        text.parse()
                            .map_err(|_| BadDnsOption::Server(text.to_owned()))
                    })
                    .collect::<Result<_, _>>()?,
            ),
        };
        if search.len() > 1 && search.iter().any(|domain| domain == ".") {
            return Err(BadDnsOption::SearchBesideNone);
        }
        if let Some(bad) = search.iter().find(|domain| !is_search_domain(domain)) {
            return Err(BadDnsOption::Search(bad.clone()));
        }
        let is_word =
            |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if let Some(bad) = options.iter().find(|option| !is_word(option)) {
            return Err(BadDnsOption::Option(bad.clone()));
        }
        Ok(Self {
            servers,
            search: search.to_vec(),
            options: options.to_vec(),
        })
    }

    /// Whom the built-in name server asks for this container instead of the network's or the host's
    /// servers; empty: no others.
    pub fn upstream(&self) -> &[IpAddr] {
        match &self.servers {
            DnsServers::Given(servers) => servers,
            DnsServers::Inherited | DnsServers::Image => &[],
        }
    }
}

fn is_search_domain(domain: &str) -> bool {
    let rest = domain.strip_suffix('.').unwrap_or(domain);
    domain == "."
        || (domain.len() <= 253
            && domain.bytes().any(|byte| byte.is_ascii_alphabetic())
            && rest.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            }))
}

/// What a container's `resolv.conf` is made of.
#[derive(Debug, Clone)]
pub struct ContainerResolvConf<'a> {
    /// Addresses of the name server in those of its networks that have names. An internal network's
    /// belong here only when all are internal: that name server forwards nothing, and the others
    /// know the internal network's names as well.
    pub name_servers: Vec<IpAddr>,
    /// Who forwards where no network has names.
    pub forwarders: Vec<IpAddr>,
    /// Whether the host's servers follow the forwarders; only those that are not the host's own
    /// loopback, nor on a link that the container is not on.
    pub host_servers: bool,
    /// Whether the container has IPv6; the host's IPv6 servers are left out without it.
    pub ipv6: bool,
    /// Search domains of its networks ([`crate::name_server::SEARCH_DOMAIN`] where there are names).
    pub network_search: Vec<String>,
    /// The host's file.
    pub host: &'a ResolvConf,
    /// What the user asked for.
    pub asked: &'a DnsOptions,
}

impl<'a> ContainerResolvConf<'a> {
    /// Without networks, of which the caller adds what there is.
    pub fn new(host: &'a ResolvConf, asked: &'a DnsOptions) -> Self {
        Self {
            name_servers: Vec::new(),
            forwarders: Vec::new(),
            host_servers: false,
            ipv6: false,
            network_search: Vec::new(),
            host,
            asked,
        }
    }
}

/// The file's content; `None` where the image's is to stay (`--dns none`).
pub fn container_resolv_conf(of: &ContainerResolvConf<'_>) -> Option<String> {
    let servers: Vec<IpAddr> = match &of.asked.servers {
        DnsServers::Image => return None,
        _ if !of.name_servers.is_empty() => of.name_servers.clone(),
        DnsServers::Given(given) => given.clone(),
        DnsServers::Inherited => {
            let host = of.host.servers.iter().filter(|_| of.host_servers);
            let reachable = host
                .filter(|server| server.scope.is_none())
                .map(|server| server.address)
                .filter(|address| reachable(*address, of.ipv6));
            of.forwarders.iter().copied().chain(reachable).collect()
        }
    };
    let search: Vec<&str> = match of.asked.search.as_slice() {
        [] => {
            let domains = of.network_search.iter().chain(&of.host.search);
            domains.map(String::as_str).collect()
        }
        [only] if only == "." => Vec::new(),
        asked => asked.iter().map(String::as_str).collect(),
    };
    let options = if of.asked.options.is_empty() {
        &of.host.options
    } else {
        &of.asked.options
    };

    let mut text = String::new();
    let mut seen: Vec<&str> = Vec::new();
    for domain in search {
        if domain != "." && !seen.contains(&domain) {
            seen.push(domain);
        }
    }
    if !seen.is_empty() {
        text.push_str(&format!("search {}\n", seen.join(" ")));
    }
    let mut written: Vec<IpAddr> = Vec::new();
    for server in servers {
        if !written.contains(&server) {
            text.push_str(&format!("nameserver {server}\n"));
            written.push(server);
        }
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    Some(text)
}

fn reachable(address: IpAddr, ipv6: bool) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => {
            ipv6 && !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "search example.com\nnameserver 192.0.2.1\noptions edns0\n";

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn asked(servers: &[&str], search: &[&str], options: &[&str]) -> DnsOptions {
        DnsOptions::parse(&strings(servers), &strings(search), &strings(options)).unwrap()
    }

    fn write(
        host: &str,
        asked: &DnsOptions,
        change: impl FnOnce(&mut ContainerResolvConf<'_>),
    ) -> String {
        let host = ResolvConf::parse(host.as_bytes());
        let mut of = ContainerResolvConf::new(&host, asked);
        change(&mut of);
        container_resolv_conf(&of).unwrap()
    }

    // Without a network's name server: what containers-common's own tests of `resolvconf.New` expect
    // of the same hosts and flags.
    #[test]
    fn flags_replace_what_the_host_has() {
        type Flag = &'static [&'static str];
        let table: [(Flag, Flag, Flag, &str); 6] = [
            (&[], &[], &[], HOST),
            (
                &["192.0.2.7", "192.0.2.8"],
                &[],
                &[],
                "search example.com\nnameserver 192.0.2.7\nnameserver 192.0.2.8\noptions edns0\n",
            ),
            (
                &[],
                &[],
                &["ndots:2"],
                "search example.com\nnameserver 192.0.2.1\noptions ndots:2\n",
            ),
            (
                &[],
                &["test.com"],
                &[],
                "search test.com\nnameserver 192.0.2.1\noptions edns0\n",
            ),
            (&[], &["."], &[], "nameserver 192.0.2.1\noptions edns0\n"),
            (
                &["192.0.2.7"],
                &["."],
                &["ndots:2", "rotate"],
                "nameserver 192.0.2.7\noptions ndots:2 rotate\n",
            ),
        ];
        for (servers, search, options, expected) in table {
            let asked = asked(servers, search, options);
            let text = write(HOST, &asked, |of| of.host_servers = true);
            assert_eq!(text, expected, "{asked:?}");
        }
    }

    #[test]
    fn where_there_are_names_their_server_is_the_only_one() {
        let gateway: [IpAddr; 2] = ["10.89.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let on_network = |asked: &DnsOptions| {
            write(HOST, asked, |of| {
                of.name_servers = gateway.to_vec();
                of.network_search = vec!["dns.podman".into()];
                of.host_servers = true;
            })
        };
        let expected = "search dns.podman example.com\nnameserver 10.89.0.1\nnameserver fd00::1\noptions edns0\n";
        assert_eq!(on_network(&DnsOptions::default()), expected);
        let own = asked(&["192.0.2.7"], &[], &[]);
        assert_eq!(on_network(&own), expected);
        assert_eq!(own.upstream(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert!(on_network(&asked(&[], &["lab"], &[])).starts_with("search lab\nnameserver 10"));
        assert!(on_network(&asked(&[], &["."], &[])).starts_with("nameserver 10.89.0.1\n"));
    }

    #[test]
    fn servers_of_the_host_that_a_container_cannot_reach_are_left_out() {
        let host = "nameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\n\
                    nameserver fe80::2\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n";
        let forwarder: [IpAddr; 1] = ["169.254.1.1".parse().unwrap()];
        let default = DnsOptions::default();
        let of_pasta = |ipv6| {
            write(host, &default, |of| {
                of.forwarders = forwarder.to_vec();
                of.host_servers = true;
                of.ipv6 = ipv6;
            })
        };
        assert_eq!(
            of_pasta(true),
            "nameserver 169.254.1.1\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n"
        );
        assert_eq!(
            of_pasta(false),
            "nameserver 169.254.1.1\nnameserver 192.0.2.1\n"
        );
        let alone = write(host, &default, |of| of.forwarders = forwarder.to_vec());
        assert_eq!(alone, "nameserver 169.254.1.1\n");
    }

    // What Podman 4.3.1 wrote with `--network slirp4netns` on a host with this one server.
    #[test]
    fn without_names_given_servers_come_instead_of_the_forwarder() {
        let slirp = |asked: &DnsOptions| {
            write("nameserver 192.0.2.1\n", asked, |of| {
                of.forwarders = vec!["10.0.2.3".parse().unwrap()];
                of.host_servers = true;
            })
        };
        assert_eq!(
            slirp(&asked(&[], &["lab"], &["ndots:3"])),
            "search lab\nnameserver 10.0.2.3\nnameserver 192.0.2.1\noptions ndots:3\n"
        );
        assert_eq!(
            slirp(&asked(&["192.0.2.9", "fd00::9"], &["."], &[])),
            "nameserver 192.0.2.9\nnameserver fd00::9\n"
        );
    }

    #[test]
    fn none_leaves_the_image_its_file() {
        let asked = asked(&["none"], &["lab"], &[]);
        let host = ResolvConf::parse(HOST.as_bytes());
        let of = ContainerResolvConf::new(&host, &asked);
        assert_eq!(container_resolv_conf(&of), None);
    }

    #[test]
    fn what_would_not_mean_what_it_says_is_refused() {
        let parse = |a: &[&str], b: &[&str], c: &[&str]| {
            DnsOptions::parse(&strings(a), &strings(b), &strings(c)).unwrap_err()
        };
        assert_eq!(
            parse(&["none", "1.1.1.1"], &[], &[]),
            BadDnsOption::ServerBesideNone
        );
        assert_eq!(
            parse(&[], &[".", "lab"], &[]),
            BadDnsOption::SearchBesideNone
        );
        for bad in ["", "8.8.8", "example.com", "1.1.1.1\nsearch evil"] {
            assert_eq!(parse(&[bad], &[], &[]), BadDnsOption::Server(bad.into()));
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            "..",
            "a..b",
            "a b",
            "a\nnameserver 1.1.1.1",
            "42",
            "ä",
            &long,
        ] {
            assert_eq!(parse(&[], &[bad], &[]), BadDnsOption::Search(bad.into()));
        }
        for bad in ["", "a b", "ndots:1\nnameserver 1.1.1.1"] {
            assert_eq!(parse(&[], &[], &[bad]), BadDnsOption::Option(bad.into()));
        }
        asked(&["fd00::1"], &["a-b_c.example."], &["use-vc"]);
    }
}
