//! TCP connections out of containers, which the services make by the host's own TCP.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::ground::Ground;
use crate::hosts::{HOST, Hosts, PORT, WORLD};
use crate::login::{Container, Login, eventually, expect_contains, expect_eq};
use crate::network_faults::{heals, helpers};
use crate::online::{Mode, Place};
use crate::processes;

/// Where nobody listens.
const CLOSED: &str = "7999";

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("outgoing::what_a_container_hears", what_a_container_hears),
        ground.trial("outgoing::without_pasta", without_pasta),
        ground.trial("outgoing::services_are_killed", services_are_killed),
        ground.trial("outgoing::end_with_the_container", end_with_the_container),
        ground.trial("outgoing::end_with_the_network", end_with_the_network),
        ground.trial("outgoing::thousands_one_by_one", thousands_one_by_one),
        ground.trial("outgoing::without_tproxy", without_tproxy),
    ]
}

/// How a server in the world sees the container; tried once.
fn who(container: &Container<'_>, family: usize) -> Result<String> {
    container.exec(&["wire", "who", WORLD[family], PORT, "0"])
}

/// Why there is no connection, which is to be found out in less than a second.
fn refusal(container: &Container<'_>, family: usize, port: &str) -> Result<String> {
    let refused = container.try_exec(&["wire", "who", WORLD[family], port, "0"])?;
    ensure!(refused.code != 0, "connected: {refused:?}");
    Ok(refused.error())
}

fn what_a_container_hears(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    for mode in [Mode::Default, Mode::User] {
        let login = hosts.login(0)?;
        let place = Place::new(&login, mode, &[])?;
        let container = place.sleeper(&login)?;
        for family in [0, 1] {
            let said = format!("{mode:?}, {}", WORLD[family]);
            heals(&said, || {
                expect_eq(who(&container, family)?, HOST[family].to_owned())
            })?;
            let error = refusal(&container, family, CLOSED)?;
            expect_contains(error, "Connection refused").context(said)?;
        }
        hosts.set_routers(None)?;
        for family in [0, 1] {
            let error = refusal(&container, family, PORT)?;
            expect_contains(error, "Network is unreachable")
                .with_context(|| format!("{mode:?}, {} without a route", WORLD[family]))?;
        }
        hosts.set_routers(Some(crate::hosts::FAR))?;
        heals(&format!("{mode:?}, with a route again"), || {
            expect_eq(who(&container, 0)?, HOST[0].to_owned())
        })?;
    }
    Ok(())
}

/// Stopped, not ended: nobody notices, and nothing takes its place.
fn without_pasta(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let container = login.sleeper(&[])?;
    heals("by UDP at first", || {
        container
            .exec(&["wire", "udp", WORLD[0], PORT, "0"])
            .map(drop)
    })?;
    let pasta = helpers(&hosts, &login, &["pasta", "passt"]);
    ensure!(pasta.len() == 1, "{} of pasta run", pasta.len());
    processes::signal(pasta[0], Signal::STOP);
    let by_tcp = [who(&container, 0), who(&container, 1)];
    let by_udp = container.try_exec(&["wire", "udp", WORLD[0], PORT, "0"]);
    processes::signal(pasta[0], Signal::CONT);
    for (family, seen) in by_tcp.into_iter().enumerate() {
        expect_eq(seen?, HOST[family].to_owned())?;
    }
    ensure!(by_udp?.code != 0, "UDP does not need it either");
    Ok(())
}

fn services_are_killed(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let container = login.sleeper(&[])?;
    heals("out at first", || who(&container, 0).map(drop))?;
    for name in ["selkie-services", "selkie-uplink"] {
        for pid in helpers(&hosts, &login, &[name]) {
            processes::signal(pid, Signal::KILL);
        }
        heals(&format!("out after {name} was killed"), || {
            for family in [0, 1] {
                expect_eq(who(&container, family)?, HOST[family].to_owned())?;
            }
            Ok(())
        })?;
        is_by_services(&login)?;
    }
    Ok(())
}

fn is_by_services(login: &Login) -> Result<()> {
    let info = login.json(&["info", "--format", "{{json .Selkie.Network.Uplink}}"])?;
    ensure!(info["services"].is_i64(), "no uplink in {info}");
    ensure!(info["tcpByConnector"].is_null(), "{info}");
    Ok(())
}

/// How many descriptors the login's services have.
fn descriptors(hosts: &Hosts, login: &Login) -> Result<usize> {
    let services = helpers(hosts, login, &["selkie-services"]);
    let pid = services.first().context("no services run")?;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Connections that nobody ends.
const OPEN: usize = 20;

/// A container with those, and how many descriptors there were before.
fn with_open<'l>(
    hosts: &Hosts,
    login: &'l Login,
    options: &[&str],
) -> Result<(Container<'l>, usize)> {
    let before = login.sleeper(options)?;
    heals("out at first", || who(&before, 0).map(drop))?;
    let count = descriptors(hosts, login)?;
    let wire = format!(
        "wire stuck {} {PORT} {OPEN} 1000 & exec sleep 10000",
        WORLD[0]
    );
    let container = login.detached(&[options, &["busybox", "sh", "-c", &wire]].concat())?;
    // One to the world and one to the container.
    eventually("connections are open", || {
        Ok(descriptors(hosts, login)? >= count + 2 * OPEN)
    })?;
    Ok((container, count))
}

fn end_with_the_container(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let keeper = login.sleeper(&[])?;
    let (container, before) = with_open(&hosts, &login, &[])?;
    processes::signal(container.pid()?, Signal::KILL);
    eventually("its connections are closed", || {
        Ok(descriptors(&hosts, &login)? <= before)
    })?;
    who(&keeper, 0).map(drop)
}

fn end_with_the_network(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    login.ok(&["network", "create", "first"])?;
    login.ok(&["network", "create", "second"])?;
    let (container, before) = with_open(&hosts, &login, &["--network", "first"])?;
    login.ok(&["network", "connect", "second", &container.id])?;
    login.ok(&["network", "disconnect", "first", &container.id])?;
    // The second network has sockets for names.
    eventually("its connections are closed", || {
        Ok(descriptors(&hosts, &login)? < before + OPEN)
    })?;
    heals("out by the other network", || who(&container, 0).map(drop))
}

/// More than there are ports: each is used again while its last connection is still remembered.
fn thousands_one_by_one(ground: &'static Ground) -> Result<()> {
    const COUNT: &str = "2000";
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let few_ports = "net.ipv4.ip_local_port_range=40000 40200";
    let container = login.sleeper(&["--sysctl", few_ports])?;
    heals("out at first", || who(&container, 0).map(drop))?;
    for to in WORLD {
        let answered = container.exec(&["wire", "series", to, PORT, COUNT])?;
        ensure!(
            answered == COUNT,
            "{answered} of {COUNT} had an answer from {to}"
        );
    }
    Ok(())
}

/// A kernel without it, as far as anybody can tell: the rules that need it are refused.
fn without_tproxy(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let programs = login.home.join("programs");
    login.make_directory(&programs, 0o755)?;
    let fake = login.write("nft", FAKE_NFT)?;
    login.copy_program(&fake, &programs.join("nft"))?;
    let path = format!(
        "{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        programs.display()
    );
    let run = [
        "run", "--detach", "--name", "here", "busybox", "sleep", "10000",
    ];
    login.selkie(&run).env("PATH", &path).run()?.ok()?;
    let who = |family: usize| login.ok(&["exec", "here", "wire", "who", WORLD[family], PORT, "0"]);
    for (family, expected) in HOST.into_iter().enumerate() {
        heals(&format!("out to {}", WORLD[family]), || {
            expect_eq(who(family)?, expected.to_owned())
        })?;
    }
    let info = login.json(&["info", "--format", "{{json .Selkie.Network.Uplink}}"])?;
    let why = info["tcpByConnector"].as_str().unwrap_or_default();
    ensure!(why.contains("no such statement"), "{info}");
    let pasta = helpers(&hosts, &login, &["pasta", "passt"]);
    ensure!(pasta.len() == 1, "{} of pasta run", pasta.len());
    processes::signal(pasta[0], Signal::STOP);
    let seen = who(0);
    processes::signal(pasta[0], Signal::CONT);
    ensure!(seen.is_err(), "it was not by pasta");
    Ok(())
}

const FAKE_NFT: &str = r#"#!/bin/sh
rules=$(cat)
case $rules in
*'tproxy ip'*) echo "no such statement" >&2; exit 1 ;;
esac
printf '%s\n' "$rules" | exec /usr/sbin/nft "$@"
"#;
