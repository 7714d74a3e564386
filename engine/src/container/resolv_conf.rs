//! `/etc/resolv.conf` of a container: whom it asks is its networks' business or the caller's; search
//! domains and options are the host's unless the caller says otherwise.

use std::net::IpAddr;

use crate::options::{DnsServers, NameOptions};

/// The text. `servers` are those of its networks; with none of them, and none asked for, the host's
/// stay.
pub(crate) fn resolv_conf(of_host: &str, servers: &[IpAddr], options: &NameOptions) -> String {
    let servers = match &options.dns_servers {
        DnsServers::These(servers) => servers.as_slice(),
        DnsServers::OfNetworks | DnsServers::ImagesOwn => servers,
    };
    let keeps_servers = servers.is_empty();
    let keeps_search = options.dns_search.is_none();
    let keeps_options = options.dns_options.is_empty();
    if keeps_servers && keeps_search && keeps_options {
        return of_host.to_owned();
    }
    let mut text = String::new();
    match &options.dns_search {
        Some(domains) if domains.is_empty() => text.push_str("search .\n"),
        Some(domains) => text.push_str(&format!("search {}\n", domains.join(" "))),
        // The last one counts, and `domain` is an older word for it (resolv.conf(5)).
        None => {
            if let Some(domains) = lines(of_host, &["search", "domain"]).last() {
                text.push_str(&format!("search {}\n", domains.join(" ")));
            }
        }
    }
    if keeps_servers {
        for words in lines(of_host, &["nameserver"]) {
            text.push_str(&format!("nameserver {}\n", words.join(" ")));
        }
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let words: Vec<&str> = if keeps_options {
        lines(of_host, &["options"]).flatten().collect()
    } else {
        options.dns_options.iter().map(String::as_str).collect()
    };
    if !words.is_empty() {
        text.push_str(&format!("options {}\n", words.join(" ")));
    }
    text
}

/// What follows a keyword, for each line that begins with one of `keywords` and says something.
fn lines<'t>(text: &'t str, keywords: &'t [&str]) -> impl Iterator<Item = Vec<&'t str>> {
    text.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        keywords.contains(&words.next()?).then_some(())?;
        let words: Vec<&str> = words
            .take_while(|word| !word.starts_with(['#', ';']))
            .collect();
        (!words.is_empty()).then_some(words)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# made by something\ndomain old.example\nsearch a.example b.example ; x\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\noptions edns0 trust-ad\n";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_answer_and_the_host_says_where_to_look() {
        let options = NameOptions::default();
        assert_eq!(
            resolv_conf(HOST, &[ip("10.88.0.1")], &options),
            "search a.example b.example\nnameserver 10.88.0.1\noptions edns0 trust-ad\n"
        );
        assert_eq!(resolv_conf(HOST, &[], &options), HOST);
        assert_eq!(
            resolv_conf("", &[ip("fd00::1")], &options),
            "nameserver fd00::1\n"
        );
    }

    #[test]
    fn the_caller_decides() {
        let options = NameOptions {
            dns_servers: DnsServers::These(vec![ip("9.9.9.9")]),
            dns_search: Some(vec!["c.example".into()]),
            dns_options: vec!["ndots:3".into()],
            ..NameOptions::default()
        };
        assert_eq!(
            resolv_conf(HOST, &[ip("10.88.0.1")], &options),
            "search c.example\nnameserver 9.9.9.9\noptions ndots:3\n"
        );
        let nowhere = NameOptions {
            dns_search: Some(Vec::new()),
            ..NameOptions::default()
        };
        assert_eq!(
            resolv_conf(HOST, &[], &nowhere),
            "search .\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\noptions edns0 trust-ad\n"
        );
    }
}
