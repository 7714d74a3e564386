//! Commands that make networks and change who is in them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::ArgMatches;
use selkie_engine::network::{NetworkOptions, StaticRoute, SubnetRequest, range_of};
use selkie_engine::options::NetworkRequest;
use selkie_engine::{Engine, ErrorKind};

use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, list, positional, positionals, switch, value};
use crate::commands::targets;
use crate::create_options::variables;
use crate::error::{CliError, Result, for_each};
use crate::session::Session;

/// Podman's metric of routes that are given none.
const ROUTE_METRIC: u32 = 100;

/// `network create`.
pub const CREATE: CommandSpec = CommandSpec {
    name: "create",
    aliases: &[],
    about: "Make a network",
    examples: "Examples:
  selkie network create backend
  selkie network create --subnet 10.90.0.0/24 --ip-range 10.90.0.128/25 --ipv6 backend
  selkie network create --internal --opt mtu=1400 quiet
  selkie network create --subnet 10.90.0.0/24 --route 10.8.0.0/16,10.90.0.7 vpn",
    flags: |command| {
        command
            .arg(positional(
                "name",
                "NAME",
                "Its name (default: selkie and a number)",
            ))
            .arg(switch(
                "disable-dns",
                "Do not answer with names of containers",
            ))
            .arg(list(
                "dns",
                "ADDRESS",
                "Name server to ask for all other names",
            ))
            .arg(value("driver", "DRIVER", "Only this one is offered: bridge").short('d'))
            .arg(list(
                "gateway",
                "ADDRESS",
                "Gateway of a --subnet (default: its first address)",
            ))
            .arg(switch("ignore", "A network of that name is no error"))
            .arg(
                value(
                    "interface-name",
                    "NAME",
                    "Refused: bridges are inside the login's own uplink, named by what they are",
                )
                .hide(true),
            )
            .arg(switch("internal", "No way out of it, and none in"))
            .arg(list(
                "ip-range",
                "RANGE",
                "Give containers addresses of this part of a --subnet: CIDR, or FIRST-LAST",
            ))
            .arg(value(
                "ipam-driver",
                "DRIVER",
                "Only this one is offered: host-local",
            ))
            .arg(switch("ipv6", "An IPv6 subnet as well"))
            .arg(list("label", "NAME[=VALUE]", "Add a label"))
            .arg(list("opt", "NAME=VALUE", "mtu=BYTES, or isolate=true|false").short('o'))
            .arg(list(
                "route",
                "CIDR,GATEWAY[,METRIC]",
                "Route that its containers have, by a gateway in a --subnet (default metric: 100)",
            ))
            .arg(list(
                "subnet",
                "CIDR",
                "Its subnet; once for each of IPv4 and IPv6",
            ))
    },
    run: create,
};

/// `network connect`.
pub const CONNECT: CommandSpec = CommandSpec {
    name: "connect",
    aliases: &[],
    about: "Put a container into a network",
    examples: "Examples:
  selkie network connect backend web
  selkie network connect --alias db --ip 10.90.0.7 backend database",
    flags: |command| {
        command
            .arg(positionals("names", "NETWORK CONTAINER", "Names or IDs"))
            .arg(list(
                "alias",
                "NAME",
                "Further name of the container in this network",
            ))
            .arg(value(
                "interface-name",
                "NAME",
                "Name of the interface in the container (default: the first free eth0, eth1, …)",
            ))
            .arg(value("ip", "ADDRESS", "IPv4 address"))
            .arg(value("ip6", "ADDRESS", "IPv6 address"))
            .arg(value("mac-address", "ADDRESS", "MAC address"))
    },
    run: connect,
};

/// `network disconnect`.
pub const DISCONNECT: CommandSpec = CommandSpec {
    name: "disconnect",
    aliases: &[],
    about: "Take a container out of a network",
    examples: "Examples:
  selkie network disconnect backend web",
    flags: |command| {
        command
            .arg(positionals("names", "NETWORK CONTAINER", "Names or IDs"))
            .arg(switch("force", "Also when the running container cannot be reached").short('f'))
    },
    run: |session, matches| {
        let (network, container) = pair(matches)?;
        let mut engine = session.open_engine()?;
        let id = engine.find_container(&container)?;
        engine.disconnect_network(&id, &network, matches.on("force"))?;
        Ok(0)
    },
};

/// `network reload`.
pub const RELOAD: CommandSpec = CommandSpec {
    name: "reload",
    aliases: &[],
    about: "Make the network of running containers again, as it is on record",
    examples: "Examples:
  selkie network reload web
  selkie network reload --all",
    flags: |command| {
        command.args(targets::flags(
            "All running containers that are in a network",
        ))
    },
    run: reload,
};

/// `network update`.
pub const UPDATE: CommandSpec = CommandSpec {
    name: "update",
    aliases: &[],
    about: "Change the name servers that a network asks",
    examples: "Examples:
  selkie network update backend --dns-add 9.9.9.9 --dns-drop 1.1.1.1",
    flags: |command| {
        command
            .arg(positional("name", "NETWORK", "Name or ID"))
            .arg(list("dns-add", "ADDRESS", "Add this name server"))
            .arg(list("dns-drop", "ADDRESS", "Take this name server away"))
    },
    run: update,
};

fn create(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let driver = matches.text("driver").unwrap_or("bridge");
    if driver != "bridge" {
        return Err(
            CliError::new(format!("unsupported driver {driver}: invalid argument")).with_hint(
                "bridge is offered; macvlan and ipvlan need a device of the host, which no login has",
            ),
        );
    }
    if let Some(driver) = matches.text("ipam-driver")
        && driver != "host-local"
    {
        return Err(CliError::new(format!(
            "unsupported ipam driver {driver}: invalid argument"
        ))
        .with_hint("addresses are given out by Selkie itself: host-local"));
    }
    if matches.text("interface-name").is_some() {
        return Err(CliError::new(
            "--interface-name: the bridge cannot be named: its name tells the login's firewall what it may do",
        )
        .with_hint(
            "no host has such a bridge: it is inside the uplink, and network inspect shows its name",
        ));
    }
    let options = NetworkOptions {
        name: matches.text("name").map(str::to_owned),
        subnets: subnets(
            &matches.texts("subnet"),
            &matches.texts("gateway"),
            &matches.texts("ip-range"),
        )?,
        ipv6: matches.on("ipv6"),
        internal: matches.on("internal"),
        disable_dns: matches.on("disable-dns"),
        dns_servers: addresses("dns", &matches.texts("dns"))?,
        routes: routes(&matches.texts("route"))?,
        labels: variables::labels(&[], &matches.texts("label"))?,
        options: driver_options(&matches.texts("opt"))?,
    };
    let mut engine = session.open_engine()?;
    let name = match (engine.create_network(&options), &options.name) {
        (Ok(made), _) => made.definition.name,
        (Err(error), Some(name))
            if matches.on("ignore")
                && error.kind == ErrorKind::Conflict
                && engine.network(name).is_ok() =>
        {
            name.clone()
        }
        (Err(error), _) => return Err(error.into()),
    };
    crate::commands::print_line(&name)?;
    Ok(0)
}

/// Each gateway and range belongs to the subnet it lies in.
fn subnets(
    subnets: &[String],
    gateways: &[String],
    ranges: &[String],
) -> Result<Vec<SubnetRequest>> {
    let mut requests = subnets
        .iter()
        .map(|text| {
            let subnet = text.parse().map_err(|_| {
                CliError::new(format!("--subnet {text}: not a subnet"))
                    .with_hint("write it as 10.90.0.0/24 or fd00:90::/64")
            })?;
            Ok(SubnetRequest {
                subnet,
                gateway: None,
                lease_range: None,
            })
        })
        .collect::<Result<Vec<SubnetRequest>>>()?;
    for gateway in addresses("gateway", gateways)? {
        let request = home(&mut requests, gateway, "gateway")?;
        if request.gateway.replace(gateway).is_some() {
            return Err(CliError::new(format!(
                "--gateway {gateway}: subnet {} has one already",
                request.subnet
            )));
        }
    }
    for text in ranges {
        let (first, last) = range(text)?;
        let request = home(&mut requests, first, "ip-range")?;
        if request.lease_range.replace((first, last)).is_some() {
            return Err(CliError::new(format!(
                "--ip-range {text}: subnet {} has one already",
                request.subnet
            )));
        }
    }
    Ok(requests)
}

fn home<'r>(
    requests: &'r mut [SubnetRequest],
    address: IpAddr,
    flag: &str,
) -> Result<&'r mut SubnetRequest> {
    if requests.is_empty() {
        return Err(CliError::new(format!(
            "cannot set --{flag} without --subnet"
        )));
    }
    let subnets: Vec<String> = requests
        .iter()
        .map(|request| request.subnet.trunc().to_string())
        .collect();
    requests
        .iter_mut()
        .find(|request| request.subnet.contains(&address))
        .ok_or_else(|| {
            CliError::new(format!(
                "{flag} {address} not in subnet {}",
                subnets.join(" or ")
            ))
        })
}

/// `10.90.0.128/25` or `10.90.0.100-10.90.0.200`.
fn range(text: &str) -> Result<(IpAddr, IpAddr)> {
    let bad = || {
        CliError::new(format!("--ip-range {text}: not a range"))
            .with_hint("write it as 10.90.0.128/25 or 10.90.0.100-10.90.0.200")
    };
    if let Some((first, last)) = text.split_once('-') {
        let address = |text: &str| text.parse::<IpAddr>().map_err(|_| bad());
        return Ok((address(first)?, address(last)?));
    }
    Ok(range_of(&text.parse().map_err(|_| bad())?))
}

/// `10.0.0.0/8,10.90.0.7` or `10.0.0.0/8,10.90.0.7,50`.
fn routes(texts: &[String]) -> Result<Vec<StaticRoute>> {
    let route = |text: &str| {
        let mut fields = text.split(',');
        let route = StaticRoute {
            destination: fields.next()?.parse().ok()?,
            gateway: fields.next()?.parse().ok()?,
            metric: match fields.next() {
                Some(metric) => metric.parse().ok()?,
                None => ROUTE_METRIC,
            },
        };
        fields.next().is_none().then_some(route)
    };
    texts
        .iter()
        .map(|text| {
            route(text).ok_or_else(|| {
                CliError::new(format!("--route {text}: not a route")).with_hint(
                    "write it as 10.0.0.0/8,10.90.0.7 or, with a metric, 10.0.0.0/8,10.90.0.7,50",
                )
            })
        })
        .collect()
}

fn addresses(flag: &str, texts: &[String]) -> Result<Vec<IpAddr>> {
    texts
        .iter()
        .flat_map(|text| text.split(','))
        .map(|text| {
            text.parse()
                .map_err(|_| CliError::new(format!("--{flag} {text}: not an IP address")))
        })
        .collect()
}

fn driver_options(texts: &[String]) -> Result<BTreeMap<String, String>> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(CliError::new(format!("--opt {text}: write NAME=VALUE"))),
        })
        .collect()
}

fn pair(matches: &ArgMatches) -> Result<(String, String)> {
    match <[String; 2]>::try_from(matches.texts("names")) {
        Ok([network, container]) => Ok((network, container)),
        Err(_) => Err(CliError::new(
            "a network and a container are needed, in this order",
        )),
    }
}

fn connect(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let (network, container) = pair(matches)?;
    let mut request = NetworkRequest::of(network);
    request.ip = parsed(matches, "ip")?;
    request.ip6 = parsed(matches, "ip6")?;
    request.mac = parsed(matches, "mac-address")?;
    request.interface = parsed(matches, "interface-name")?;
    request.aliases = matches.texts("alias");
    let mut engine = session.open_engine()?;
    let id = engine.find_container(&container)?;
    engine.connect_network(&id, request)?;
    Ok(0)
}

/// A flag's value as something with a text form.
fn parsed<T: std::str::FromStr>(matches: &ArgMatches, flag: &str) -> Result<Option<T>>
where
    T::Err: std::fmt::Display,
{
    matches
        .text(flag)
        .map(|text| {
            text.parse()
                .map_err(|error| CliError::new(format!("--{flag} {text}: {error}")))
        })
        .transpose()
}

fn reload(session: &Session, matches: &ArgMatches) -> Result<u8> {
    use selkie_engine::container::Status;
    targets::check(matches)?;
    let mut engine = session.open_engine()?;
    let chosen = targets::choose(&engine, matches, |container| {
        container.status == Status::Running
            && !container.config.options.network.requests().is_empty()
    })?;
    let names: Vec<String> = match chosen {
        targets::Chosen::Names(names) => names,
        targets::Chosen::Found(found) => found.into_iter().map(|target| target.called).collect(),
    };
    for_each(names, |name| reload_one(&mut engine, name))
}

fn reload_one(engine: &mut Engine, name: &str) -> Result<()> {
    let id = engine.find_container(name)?;
    engine.reload_network(&id)?;
    crate::commands::print_line(id.as_str())
}

fn update(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let name = matches
        .text("name")
        .ok_or_else(|| CliError::new("a network is needed"))?;
    let add = addresses("dns-add", &matches.texts("dns-add"))?;
    let drop = addresses("dns-drop", &matches.texts("dns-drop"))?;
    if add.is_empty() && drop.is_empty() {
        return Err(CliError::new(
            "nothing to change: give --dns-add or --dns-drop",
        ));
    }
    session.open_engine()?.update_network(name, &add, &drop)?;
    crate::commands::print_line(name)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn gateways_and_ranges_find_their_subnets() {
        let made = subnets(
            &texts(&["10.90.0.0/24", "fd00:90::/64"]),
            &texts(&["fd00:90::9,10.90.0.254"]),
            &texts(&["10.90.0.128/25", "fd00:90::100-fd00:90::1ff"]),
        )
        .unwrap();
        assert_eq!(made[0].gateway.unwrap().to_string(), "10.90.0.254");
        assert_eq!(made[1].gateway.unwrap().to_string(), "fd00:90::9");
        let (first, last) = made[0].lease_range.unwrap();
        assert_eq!(
            (first.to_string(), last.to_string()),
            ("10.90.0.129".into(), "10.90.0.255".into())
        );
        assert!(made[1].lease_range.is_some());
        for (nets, gateways, ranges) in [
            (&[][..], &["10.0.0.1"][..], &[][..]),
            (&[], &[], &["10.0.0.0/25"]),
            (&["10.90.0.0/24"], &["10.91.0.1"], &[]),
            (&["10.90.0.0/24"], &["10.90.0.1", "10.90.0.2"], &[]),
            (&["10.90.0.0/24"], &[], &["10.90.0.0/25", "10.90.0.128/25"]),
            (&["10.90.0.0/24"], &[], &["x"]),
            (&["10.90.0.0"], &[], &[]),
        ] {
            assert!(
                subnets(&texts(nets), &texts(gateways), &texts(ranges)).is_err(),
                "{nets:?} {gateways:?} {ranges:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let one = vec![text.clone()];
            let _ = range(&text);
            let _ = routes(&one);
            let _ = driver_options(&one);
            let _ = subnets(&one, &one, &one);
        }
    }
}
