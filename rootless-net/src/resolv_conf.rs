//! `resolv.conf`: the host's, read as the C library reads it, and a container's, written.

mod container;

use std::net::IpAddr;
use std::time::Duration;

pub use container::{
    BadDnsOption, ContainerResolvConf, DnsOptions, DnsServers, container_resolv_conf,
};

/// What glibc does when no option says otherwise (`RES_TIMEOUT`, `RES_DFLRETRY`).
const DEFAULT_TIMEOUT: u64 = 5;
const DEFAULT_ATTEMPTS: u32 = 2;
/// What glibc cuts larger values to (`RES_MAXRETRANS`, `RES_MAXRETRY`).
const MAX_TIMEOUT: u64 = 30;
const MAX_ATTEMPTS: u32 = 5;

/// A server of a `nameserver` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    /// Its address.
    pub address: IpAddr,
    /// What stands behind `%`: the interface of a link-local address, by name or number.
    pub scope: Option<String>,
}

/// A `resolv.conf`. Lines that mean nothing are passed over, as the C library does, so that reading
/// one cannot fail.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// `nameserver`, in their order. None is what an offline host may have.
    pub servers: Vec<ServerAddress>,
    /// The last of `search` and `domain`.
    pub search: Vec<String>,
    /// `options`, of all lines.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads a file's content.
    pub fn parse(content: &[u8]) -> Self {
        let text = String::from_utf8_lossy(content);
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.trim_start();
            if line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    conf.servers.extend(words.next().and_then(parse_server));
                }
                Some("domain") => {
                    conf.search = words.next().map(str::to_owned).into_iter().collect();
                }
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// How long one server may take (`options timeout:`).
    pub fn timeout(&self) -> Duration {
        let seconds = self.number("timeout:").unwrap_or(DEFAULT_TIMEOUT);
        Duration::from_secs(seconds.clamp(1, MAX_TIMEOUT))
    }

    /// How often all of them are asked (`options attempts:`).
    pub fn attempts(&self) -> u32 {
        let number = self.number("attempts:").and_then(|n| u32::try_from(n).ok());
        number.unwrap_or(DEFAULT_ATTEMPTS).clamp(1, MAX_ATTEMPTS)
    }

    /// Whether each query begins with another server (`options rotate`).
    pub fn rotate(&self) -> bool {
        self.options.iter().any(|option| option == "rotate")
    }

    fn number(&self, prefix: &str) -> Option<u64> {
        let values = self.options.iter().rev();
        values
            .filter_map(|option| option.strip_prefix(prefix))
            .find_map(|value| value.parse().ok())
    }
}

fn parse_server(word: &str) -> Option<ServerAddress> {
    let (address, scope) = match word.split_once('%') {
        Some((_, "")) => return None,
        Some((address, scope)) => (address, Some(scope.to_owned())),
        None => (word, None),
    };
    let address: IpAddr = address.parse().ok()?;
    if scope.is_some() && address.is_ipv4() {
        return None;
    }
    Some(ServerAddress { address, scope })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn servers(conf: &ResolvConf) -> Vec<String> {
        conf.servers
            .iter()
            .map(|server| match &server.scope {
                Some(scope) => format!("{}%{scope}", server.address),
                None => server.address.to_string(),
            })
            .collect()
    }

    #[test]
    fn what_distributions_write() {
        let conf = ResolvConf::parse(
            b"# made by something\n; and by another\n\nnameserver 127.0.0.53\n\
              nameserver\t2001:db8::1 # near\n  nameserver fe80::1%eth0\n\
              options edns0 trust-ad timeout:2\noptions attempts:4 rotate\n\
              domain old.example\nsearch corp.example  lab.corp.example\n",
        );
        assert_eq!(
            servers(&conf),
            ["127.0.0.53", "2001:db8::1", "fe80::1%eth0"]
        );
        assert_eq!(conf.search, ["corp.example", "lab.corp.example"]);
        assert_eq!(conf.timeout(), Duration::from_secs(2));
        assert_eq!(conf.attempts(), 4);
        assert!(conf.rotate());
        assert_eq!(conf.options[..2], ["edns0", "trust-ad"]);
    }

    #[test]
    fn the_last_of_domain_and_search_counts() {
        let conf = ResolvConf::parse(b"search a b\ndomain c\n");
        assert_eq!(conf.search, ["c"]);
        let conf = ResolvConf::parse(b"domain c\nsearch\n");
        assert!(conf.search.is_empty());
    }

    #[test]
    fn nonsense_is_passed_over_and_numbers_stay_in_bounds() {
        let conf = ResolvConf::parse(
            b"nameserver\nnameserver example\nnameserver 1.2.3.4%eth0\nnameserver fe80::1%\n\
              nameservers 1.1.1.1\n#nameserver 1.1.1.1\nnameserver 10.0.0.1\r\n\
              options timeout:0 attempts:99 timeout:x\n\xff\xfe\n",
        );
        assert_eq!(servers(&conf), ["10.0.0.1"]);
        assert_eq!(conf.timeout(), Duration::from_secs(1));
        assert_eq!(conf.attempts(), 5);
        let plain = ResolvConf::parse(b"");
        assert_eq!(
            (plain.timeout(), plain.attempts()),
            (Duration::from_secs(5), 2)
        );
        assert!(!plain.rotate());
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let conf = ResolvConf::parse(&bytes);
            prop_assert!(conf.timeout() >= Duration::from_secs(1));
            prop_assert!((1..=5).contains(&conf.attempts()));
        }
    }
}
