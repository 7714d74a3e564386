//! `--network` and what belongs to it: `--ip --ip6 --mac-address --network-alias`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use selkie_engine::options::{NetworkMode, NetworkRequest};

use crate::error::{CliError, Result};

/// Flags about the place in a network, as given.
#[derive(Debug, Default)]
pub struct PlaceFlags<'a> {
    /// `--ip`.
    pub ip: Option<&'a str>,
    /// `--ip6`.
    pub ip6: Option<&'a str>,
    /// `--mac-address`.
    pub mac: Option<&'a str>,
    /// `--network-alias`.
    pub aliases: &'a [String],
}

/// Options that `slirp4netns:` takes, and whether they are switches.
const SLIRP_OPTIONS: [(&str, bool); 7] = [
    ("allow_host_loopback", true),
    ("cidr", false),
    ("enable_ipv6", true),
    ("mtu", false),
    ("outbound_addr", false),
    ("outbound_addr6", false),
    ("port_handler", false),
];

/// What all `--network` flags say together.
pub fn parse(texts: &[String], place: &PlaceFlags<'_>) -> Result<NetworkMode> {
    let mut requests: Vec<NetworkRequest> = Vec::new();
    let mut mode = None;
    for text in texts {
        match parse_one(text)? {
            NetworkMode::Networks(more) => {
                for request in more {
                    // As in Podman, the last one counts.
                    requests.retain(|known| known.name != request.name);
                    requests.push(request);
                }
            }
            other => mode = Some(other),
        }
    }
    let mut mode = match mode {
        Some(mode) if texts.len() > 1 => {
            return Err(CliError::new(format!(
                "cannot set multiple networks without bridge network mode, selected mode {}",
                mode.describe()
            ))
            .with_hint("give one mode, or the names of several networks"));
        }
        Some(mode) => mode,
        None if texts.is_empty() => NetworkMode::default(),
        None => NetworkMode::Networks(requests),
    };
    add_place(&mut mode, place)?;
    Ok(mode)
}

fn parse_one(text: &str) -> Result<NetworkMode> {
    let refuse = |why: String| CliError::new(format!("--network {text}: {why}"));
    let (name, options) = match text.split_once(':') {
        Some((name, options)) => (name, Some(options)),
        None => (text, None),
    };
    let words = || split_options(options.unwrap_or_default());
    let alone = |mode: NetworkMode| match options {
        None => Ok(mode),
        Some(_) => Err(refuse(format!("{name} takes no options"))),
    };
    match name {
        "" if options.is_none() => Ok(NetworkMode::default()),
        "private" => alone(NetworkMode::default()),
        "none" => alone(NetworkMode::None),
        "host" => alone(NetworkMode::Host),
        "container" => match options {
            None | Some("") => Err(refuse("must be container:NAME".to_owned())),
            Some(container) => Ok(NetworkMode::Container(container.to_owned())),
        },
        "ns" => match options {
            Some(path) if path.starts_with('/') => Ok(NetworkMode::Namespace(PathBuf::from(path))),
            _ => Err(refuse("must be ns:PATH with an absolute path".to_owned())),
        },
        "pasta" => Ok(NetworkMode::Pasta(words())),
        "slirp4netns" => {
            let words = words();
            for word in &words {
                check_slirp_option(word).map_err(refuse)?;
            }
            Ok(NetworkMode::Slirp4netns(words))
        }
        _ => match options {
            // Names only, as Podman 3 wrote several networks.
            None => name
                .split(',')
                .map(|name| request(name, "").map_err(refuse))
                .collect::<Result<Vec<_>>>()
                .map(NetworkMode::Networks),
            Some(options) => {
                let request = request(name, options).map_err(refuse)?;
                Ok(NetworkMode::Networks(vec![request]))
            }
        },
    }
}

fn split_options(options: &str) -> Vec<String> {
    options
        .split(',')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn check_slirp_option(word: &str) -> std::result::Result<(), String> {
    let Some((name, value)) = word.split_once('=') else {
        return Err(format!("option {word:?} needs a value: NAME=VALUE"));
    };
    let is_bool = matches!(value, "true" | "false");
    match SLIRP_OPTIONS.iter().find(|(known, _)| *known == name) {
        Some((_, false)) if !value.is_empty() => {}
        Some((_, true)) if is_bool => {}
        Some(_) => return Err(format!("invalid value {value:?} of {name}")),
        None => {
            let known: Vec<&str> = SLIRP_OPTIONS.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "unknown option {name:?}: choose from {}",
                known.join(", ")
            ));
        }
    }
    if name == "mtu" && value.parse::<u16>().map_or(true, |mtu| mtu < 68) {
        return Err(format!("mtu {value} is not between 68 and 65535"));
    }
    if name == "port_handler" && !matches!(value, "rootlesskit" | "slirp4netns") {
        return Err(format!(
            "port_handler {value}: choose from rootlesskit, slirp4netns"
        ));
    }
    Ok(())
}

/// `NAME[:ip=…,mac=…]`.
fn request(name: &str, options: &str) -> std::result::Result<NetworkRequest, String> {
    if name.is_empty() {
        return Err("a network's name is missing".to_owned());
    }
    let mut request = NetworkRequest::of(name);
    for word in split_options(options) {
        let Some((key, value)) = word.split_once('=') else {
            return Err(format!("option {word:?} needs a value: NAME=VALUE"));
        };
        let invalid = || format!("{value:?} is no IP address");
        match key {
            "ip" => match value.parse::<IpAddr>().map_err(|_| invalid())? {
                IpAddr::V4(address) => request.ip = Some(address),
                IpAddr::V6(address) => request.ip6 = Some(address),
            },
            "ip6" => request.ip6 = Some(value.parse().map_err(|_| invalid())?),
            "mac" => {
                request.mac = Some(value.parse().map_err(|error| format!("{error}"))?);
            }
            "alias" if value.is_empty() => return Err("alias cannot be empty".to_owned()),
            "alias" => request.aliases.push(value.to_owned()),
            "interface_name" => {
                request.interface = Some(value.parse().map_err(|error| format!("{error}"))?);
            }
            _ => {
                return Err(format!(
                    "unknown option {key:?}: choose from ip, ip6, mac, alias, interface_name"
                ));
            }
        }
    }
    Ok(request)
}

/// `--ip` and the like say more about the one network there is.
fn add_place(mode: &mut NetworkMode, place: &PlaceFlags<'_>) -> Result<()> {
    let flags = [
        ("ip", place.ip.is_some()),
        ("ip6", place.ip6.is_some()),
        ("mac-address", place.mac.is_some()),
        ("network-alias", !place.aliases.is_empty()),
    ];
    let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) else {
        return Ok(());
    };
    let NetworkMode::Networks(requests) = mode else {
        return Err(CliError::new(format!(
            "--{flag} can only be set when the network mode is bridge: invalid argument"
        ))
        .with_hint(format!(
            "--network {} has no place in a network to say this of",
            mode.describe()
        )));
    };
    for request in requests.iter_mut() {
        for alias in place.aliases {
            if !request.aliases.contains(alias) {
                request.aliases.push(alias.clone());
            }
        }
    }
    if *flag == "network-alias" {
        return Ok(());
    }
    let [request] = requests.as_mut_slice() else {
        return Err(CliError::new(format!(
            "--{flag} can only be set for a single network: invalid argument"
        ))
        .with_hint("say it of each: --network NAME:ip=ADDRESS,mac=ADDRESS"));
    };
    if let Some(text) = place.ip {
        let address: Ipv4Addr = text
            .parse()
            .map_err(|_| CliError::new(format!("--ip {text}: not an IPv4 address")))?;
        request.ip = Some(address);
    }
    if let Some(text) = place.ip6 {
        let address: Ipv6Addr = text
            .parse()
            .map_err(|_| CliError::new(format!("--ip6 {text}: not an IPv6 address")))?;
        request.ip6 = Some(address);
    }
    if let Some(text) = place.mac {
        request.mac = Some(
            text.parse()
                .map_err(|error| CliError::new(format!("--mac-address: {error}")))?,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn mode(words: &[&str]) -> Result<NetworkMode> {
        parse(&texts(words), &PlaceFlags::default())
    }

    fn names(words: &[&str]) -> Vec<String> {
        let mode = mode(words).unwrap();
        let requests = mode.requests().iter();
        requests.map(|request| request.name.clone()).collect()
    }

    #[test]
    fn modes() {
        assert_eq!(mode(&[]).unwrap(), NetworkMode::default());
        assert_eq!(mode(&["private"]).unwrap(), NetworkMode::default());
        assert_eq!(mode(&["none"]).unwrap(), NetworkMode::None);
        assert_eq!(mode(&["host"]).unwrap(), NetworkMode::Host);
        assert_eq!(
            mode(&["container:web"]).unwrap(),
            NetworkMode::Container("web".into())
        );
        assert_eq!(
            mode(&["ns:/run/x"]).unwrap(),
            NetworkMode::Namespace("/run/x".into())
        );
        assert_eq!(mode(&["pasta"]).unwrap(), NetworkMode::Pasta(vec![]));
        assert_eq!(
            mode(&["pasta:--map-gw,-T,5201"]).unwrap(),
            NetworkMode::Pasta(texts(&["--map-gw", "-T", "5201"]))
        );
        assert_eq!(
            mode(&["slirp4netns:mtu=1400,enable_ipv6=true"]).unwrap(),
            NetworkMode::Slirp4netns(texts(&["mtu=1400", "enable_ipv6=true"]))
        );
        assert_eq!(names(&["bridge"]), ["bridge"]);
        assert_eq!(names(&["a,b"]), ["a", "b"]);
        assert_eq!(names(&["a", "b:alias=x", "a"]), ["b", "a"]);
    }

    #[test]
    fn places() {
        let mode = mode(&[
            "a:ip=10.0.0.5,ip6=fd00::5,mac=02:00:00:00:00:05,alias=x,alias=y,interface_name=lan",
        ])
        .unwrap();
        let request = &mode.requests()[0];
        assert_eq!(request.ip, Some(Ipv4Addr::new(10, 0, 0, 5)));
        assert_eq!(request.ip6.unwrap().to_string(), "fd00::5");
        assert_eq!(request.mac.unwrap().to_string(), "02:00:00:00:00:05");
        assert_eq!(request.aliases, ["x", "y"]);
        assert_eq!(request.interface.as_ref().unwrap().as_str(), "lan");

        let flags = PlaceFlags {
            ip: Some("10.0.0.9"),
            mac: Some("02-00-00-00-00-09"),
            aliases: &texts(&["x", "z"]),
            ..PlaceFlags::default()
        };
        let mode = parse(&texts(&["a:alias=x"]), &flags).unwrap();
        let request = &mode.requests()[0];
        assert_eq!(request.ip, Some(Ipv4Addr::new(10, 0, 0, 9)));
        assert_eq!(request.aliases, ["x", "z"]);
        let said = |words: &[&str]| parse(&texts(words), &flags).unwrap_err().message;
        assert!(said(&["a", "b"]).contains("single network"));
        assert!(said(&["host"]).contains("--ip can only be set"));
        let aliases = PlaceFlags {
            aliases: &texts(&["x"]),
            ..PlaceFlags::default()
        };
        assert!(parse(&texts(&["a", "b"]), &aliases).is_ok());
        assert!(parse(&texts(&["none"]), &aliases).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for (bad, word) in [
            (&["host", "none"][..], "multiple networks"),
            (&["a", "host"], "multiple networks"),
            (&["none:x"], "takes no options"),
            (&["container"], "container:NAME"),
            (&["container:"], "container:NAME"),
            (&["ns:relative"], "absolute"),
            (&["a,"], "name is missing"),
            (&["a:ip=x"], "no IP address"),
            (&["a:ip6=10.0.0.1"], "no IP address"),
            (&["a:mac=1"], "MAC"),
            (&["a:mac=01:00:00:00:00:00"], "MAC"),
            (&["a:alias="], "empty"),
            (&["a:colour=red"], "unknown option"),
            (&["a:ip"], "needs a value"),
            (&["a:interface_name=far/too"], "interface"),
            (&["slirp4netns:mtu=x"], "mtu"),
            (&["slirp4netns:enable_ipv6=maybe"], "enable_ipv6"),
            (&["slirp4netns:speed=1"], "unknown option"),
            (&["slirp4netns:port_handler=x"], "port_handler"),
        ] {
            let error = mode(bad).unwrap_err().message;
            assert!(error.contains(word), "{bad:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(list in proptest::collection::vec(".*", 0..3), flag in ".*") {
            let flags = PlaceFlags { ip: Some(&flag), mac: Some(&flag), ..PlaceFlags::default() };
            let _ = parse(&list, &flags);
            let _ = parse(&list, &PlaceFlags::default());
        }

        #[test]
        fn addresses_are_understood(ip in any::<Ipv4Addr>(), ip6 in any::<Ipv6Addr>()) {
            let mode = mode(&[&format!("n:ip={ip},ip6={ip6}")]).unwrap();
            prop_assert_eq!(mode.requests()[0].ip, Some(ip));
            prop_assert_eq!(mode.requests()[0].ip6, Some(ip6));
        }
    }
}
