//! Whom a container must not reach. Every test first shows that the target does answer somebody
//! else, so that silence is a wall and not a missing server.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::hosts::{CLOUD, HOST, Hosts, INSIDE, PORT, Side, WORLD};
use crate::login::{Container, Login};
use crate::online::{Mode, Place, Row, addresses_in};

/// Of a server on the host's loopback.
const PRIVATE: &str = "7001";

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial(
            "network_isolation::default_network_containers_do_not_meet",
            default_network_containers_do_not_meet,
        ),
        ground.trial(
            "network_isolation::user_networks_do_not_meet",
            user_networks_do_not_meet,
        ),
        ground.trial(
            "network_isolation::the_hosts_loopback_is_closed",
            the_hosts_loopback_is_closed,
        ),
        ground.trial("network_isolation::logins_do_not_meet", logins_do_not_meet),
        ground.trial(
            "network_isolation::link_local_services_are_closed",
            link_local_services_are_closed,
        ),
        ground.trial(
            "network_isolation::link_local_addresses_end_at_the_network",
            link_local_addresses_end_at_the_network,
        ),
        ground.trial(
            "network_isolation::gateways_only_tell_names",
            gateways_only_tell_names,
        ),
        ground.trial(
            "network_isolation::internal_networks_have_no_way_out",
            internal_networks_have_no_way_out,
        ),
    ]
}

/// All addresses of the container but its loopback's and link-local ones.
fn addresses(container: &Container<'_>) -> Result<Vec<String>> {
    addresses_of_scope(container, "global")
}

fn addresses_of_scope(container: &Container<'_>, scope: &str) -> Result<Vec<String>> {
    let text = container.exec(&["ip", "-o", "address", "show", "scope", scope])?;
    let found: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            words.find(|word| *word == "inet" || *word == "inet6")?;
            Some(words.next()?.split('/').next()?.to_owned())
        })
        .collect();
    ensure!(!found.is_empty(), "no addresses in {text:?}");
    Ok(found)
}

/// No port in the range takes a connection, and the server's none by UDP either.
fn is_closed(from: &Container<'_>, to: &str, first: &str, last: &str) -> Result<()> {
    let open = from.exec(&["wire", "scan", to, first, last])?;
    ensure!(open.is_empty(), "open: {}", open.replace('\n', ", "));
    let udp = from.try_exec(&["wire", "udp", to, INSIDE, "1"])?;
    ensure!(udp.code != 0, "UDP went through: {udp:?}");
    Ok(())
}

fn is_unreachable(row: &mut Row, from: &Container<'_>, to: &[String]) {
    for address in to {
        row.cell(address, is_closed(from, address, "6900", "7100"));
        row.cell(address, is_closed(from, address, "1", "256"));
        let ping = from.try_exec(&["wire", "ping", address, "0"]);
        let silent = ping.and_then(|ping| {
            ensure!(ping.code != 0, "it answers pings");
            Ok(())
        });
        row.cell(address, silent);
    }
}

/// That it does serve: to itself, at the very address.
fn serves_itself(server: &Container<'_>, addresses: &[String]) -> Result<()> {
    for address in addresses {
        server.exec(&["wire", "who", address, INSIDE])?;
        server.exec(&["wire", "udp", address, INSIDE])?;
        server.exec(&["wire", "ping", address])?;
    }
    Ok(())
}

fn default_network_containers_do_not_meet(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let place = Place::new(&login, Mode::Default, &[])?;
    let server = place.server(&login, &[])?;
    let client = login.sleeper(&[])?;
    let targets = addresses(&server)?;
    serves_itself(&server, &targets)?;
    let mut row = Row::default();
    is_unreachable(&mut row, &client, &targets);
    // A route of one's own making does not help either.
    for target in &targets {
        let added = client.try_exec(&["ip", "route", "add", target, "dev", "eth0"])?;
        if added.code == 0 {
            row.cell("with a route", is_closed(&client, target, "6900", "7100"));
        }
    }
    row.end()
}

fn user_networks_do_not_meet(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let place = Place::new(&login, Mode::User, &[])?;
    let server = place.server(&login, &["--name", "web"])?;
    login.ok(&["network", "create", "--ipv6", "other"])?;
    let targets = addresses(&server)?;
    serves_itself(&server, &targets)?;
    let mut row = Row::default();
    for network in ["other", "selkie"] {
        let client = login.sleeper(&["--network", network])?;
        is_unreachable(&mut row, &client, &targets);
        let name = client.try_exec(&["wire", "lookup", "web"])?;
        let unknown = if name.code == 0 {
            Err(anyhow::anyhow!("{network} knows the name: {name:?}"))
        } else {
            Ok(())
        };
        row.cell("its name", unknown);
    }
    row.end()
}

fn the_hosts_loopback_is_closed(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let _v4 = hosts.start(Side::Host, &["serve-at", "127.0.0.1", PRIVATE])?;
    let _v6 = hosts.start(Side::Host, &["serve-at", "::1", PRIVATE])?;
    let wire = hosts.wire_path();
    for address in ["127.0.0.1", "::1"] {
        login
            .program(wire, &["who", address, PRIVATE])
            .run()?
            .ok()?;
    }
    let mut row = Row::default();
    for mode in [Mode::Default, Mode::Pasta, Mode::Slirp4netns, Mode::User] {
        let place = Place::new(&login, mode, &[])?;
        let client = place.run(&login, &[], &["sleep", "10000"])?;
        let mut targets = gateways(&client)?;
        let known = [
            "127.0.0.1",
            "::1",
            "169.254.1.1",
            "169.254.1.2",
            "169.254.2.2",
        ];
        targets.extend(known.into_iter().chain(HOST).map(str::to_owned));
        for target in targets {
            row.cell(
                &format!("{mode:?}: {target}"),
                is_closed(&client, &target, PRIVATE, PRIVATE),
            );
        }
    }
    row.end()
}

/// IPv4 gateways and, where they are not link-local, IPv6 ones.
fn gateways(container: &Container<'_>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let text = container.exec(&["ip", family, "route", "show"])?;
        for line in text.lines().filter(|line| line.starts_with("default")) {
            let mut words = line.split_ascii_whitespace();
            if words.any(|word| word == "via")
                && let Some(gateway) = words.next()
                && !gateway.starts_with("fe80")
            {
                found.push(gateway.to_owned());
            }
        }
    }
    Ok(found)
}

fn logins_do_not_meet(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let (login, other) = (hosts.login(0)?, hosts.login(1)?);
    let mut row = Row::default();
    for mode in [Mode::Default, Mode::User] {
        let place = Place::new(&login, mode, &[])?;
        let server = place.server(&login, &[])?;
        let targets = addresses(&server)?;
        serves_itself(&server, &targets)?;
        // One of these may have the very same address in its own login: then it reaches itself,
        // where nothing listens.
        let client = other.sleeper(&[])?;
        for target in &targets {
            row.cell(
                &format!("{mode:?}: {target}"),
                is_closed(&client, target, "6900", "7100"),
            );
        }
        // Nor the other login itself, from outside any container.
        let wire = hosts.wire_path();
        for target in &targets {
            let reached = other.program(wire, &["who", target, INSIDE, "0"]).run()?;
            let closed = if reached.code == 0 {
                Err(anyhow::anyhow!("{reached:?}"))
            } else {
                Ok(())
            };
            row.cell(&format!("{mode:?}: {target} from the other login"), closed);
        }
    }
    row.end()
}

fn link_local_services_are_closed(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let wire = hosts.wire_path();
    login.program(wire, &["who", CLOUD, PORT]).run()?.ok()?;
    let mut row = Row::default();
    for mode in [Mode::Default, Mode::User] {
        let place = Place::new(&login, mode, &[])?;
        let client = place.run(&login, &[], &["sleep", "10000"])?;
        client.exec(&["wire", "who", WORLD[0], PORT])?;
        row.cell(
            &format!("{mode:?}"),
            is_closed(&client, CLOUD, "6900", "7100"),
        );
    }
    row.end()
}

/// With an address that every link has, only those on the same link are reached: in a network the
/// others that are in it, on the default one nobody; and of the gateway nothing.
fn link_local_addresses_end_at_the_network(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let mut row = Row::default();
    for network in ["first", "second"] {
        login.ok(&["network", "create", "--ipv6", network])?;
    }
    for mode in [Mode::Default, Mode::User] {
        let own = match mode {
            Mode::User => "first",
            _ => "selkie",
        };
        let server = login.detached(&["--network", own, "busybox", "wire", "serve", INSIDE])?;
        crate::online::is_serving(&server)?;
        let target = link_local(&server)?;
        serves_itself(&server, std::slice::from_ref(&target))?;
        for network in ["first", "second", "selkie"] {
            let client = login.sleeper(&["--network", network])?;
            if network == own && mode == Mode::User {
                // Neighbours.
                client.exec(&["wire", "who", &target, INSIDE])?;
                client.exec(&["wire", "udp", &target, INSIDE])?;
            } else {
                let mut cells = Row::default();
                is_unreachable(&mut cells, &client, std::slice::from_ref(&target));
                row.cell(&format!("from {network} to {own}"), cells.end());
            }
        }
    }
    for network in ["selkie", "first"] {
        let client = login.sleeper(&["--network", network])?;
        let gateway = link_local_of_gateway(&client)?;
        // It is there.
        client.exec(&["wire", "ping", &gateway])?;
        for [first, last] in [["1", "1024"], ["6900", "7100"]] {
            let open = client.exec(&["wire", "scan", &gateway, first, last])?;
            let closed = if open.is_empty() {
                Ok(())
            } else {
                Err(anyhow::anyhow!("open: {}", open.replace('\n', ", ")))
            };
            row.cell(&format!("gateway of {network}"), closed);
        }
    }
    row.end()
}

/// The container's own, once the kernel is sure that nobody else has it.
fn link_local(container: &Container<'_>) -> Result<String> {
    let mut found = String::new();
    crate::login::eventually("a link-local address is there", || {
        let seen = container.exec(&[
            "ip", "-o", "address", "show", "dev", "eth0", "scope", "link",
        ])?;
        Ok(!seen.contains("tentative") && {
            found = addresses_of_scope(container, "link")
                .unwrap_or_default()
                .concat();
            !found.is_empty()
        })
    })?;
    Ok(format!("{found}%eth0"))
}

/// Made of its hardware address, as the kernel makes them (RFC 4291, appendix A).
fn link_local_of_gateway(container: &Container<'_>) -> Result<String> {
    let gateway = gateways(container)?
        .into_iter()
        .find(|gateway| gateway.contains(':'))
        .context("no IPv6 gateway")?;
    container.exec(&["wire", "ping", &gateway])?;
    let neighbours = container.exec(&["ip", "-6", "neigh", "show", &gateway])?;
    let text = neighbours
        .split_ascii_whitespace()
        .skip_while(|word| *word != "lladdr")
        .nth(1)
        .with_context(|| format!("no hardware address of {gateway} in {neighbours:?}"))?;
    let bytes = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<std::result::Result<Vec<u8>, _>>()?;
    let [a, b, c, d, e, f] = <[u8; 6]>::try_from(bytes)
        .map_err(|_| anyhow::anyhow!("{text:?} is no hardware address"))?;
    let a = a ^ 2;
    Ok(format!(
        "fe80::{a:02x}{b:02x}:{c:02x}ff:fe{d:02x}:{e:02x}{f:02x}%eth0"
    ))
}

fn gateways_only_tell_names(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    // On everything the host has: a gateway must not lead there.
    let _all = hosts.start(Side::Host, &["serve", PRIVATE])?;
    let mut row = Row::default();
    for mode in [Mode::Default, Mode::User] {
        let place = Place::new(&login, mode, &[])?;
        let client = place.run(&login, &[], &["sleep", "10000"])?;
        let found = gateways(&client)?;
        ensure!(!found.is_empty(), "{mode:?}: no gateway");
        for gateway in found {
            for [first, last] in [["1", "1024"], ["6900", "7100"]] {
                let open = client.exec(&["wire", "scan", &gateway, first, last])?;
                let only_names = if open.is_empty() || open == "53" {
                    Ok(())
                } else {
                    Err(anyhow::anyhow!("open: {}", open.replace('\n', ", ")))
                };
                row.cell(&format!("{mode:?}: {gateway}"), only_names);
            }
        }
    }
    row.end()
}

fn internal_networks_have_no_way_out(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login: Login = hosts.login(0)?;
    login.ok(&["network", "create", "--ipv6", "--internal", "inner"])?;
    let server = login.detached(&[
        "--network",
        "inner",
        "--name",
        "web",
        "busybox",
        "wire",
        "serve",
        INSIDE,
    ])?;
    crate::online::is_serving(&server)?;
    let client = login.sleeper(&["--network", "inner"])?;
    client.exec(&["wire", "who", "web", INSIDE])?;
    ensure!(addresses_in(&server, "inner")?.len() == 2);
    let mut row = Row::default();
    for address in WORLD.into_iter().chain(HOST) {
        row.cell(address, is_closed(&client, address, PORT, PORT));
    }
    row.end()
}
