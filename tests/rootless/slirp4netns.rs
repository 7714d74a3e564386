//! `--network slirp4netns` beyond what every network is tried for (`online`): many connections, memory,
//! and who publishes ports.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::ground::Ground;
use crate::hosts::{HOST, Hosts, INSIDE, PORT, Side, WORLD};
use crate::login::{Container, Login, eventually, expect_contains, within};
use crate::network_faults::{heals, helpers};
use crate::online::{Mode, Place};
use crate::processes;

/// Memory of one slirp4netns, in kB, from which it refuses further connections, ...
const REFUSES: u64 = 512 << 10;
/// ... and from which it is ended, with what it may take until that is noticed.
const ENDS: u64 = (1 << 20) + (256 << 10);

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial(
            "slirp4netns::thousands_of_short_connections_all_succeed",
            thousands_of_short_connections_all_succeed,
        ),
        ground.trial(
            "slirp4netns::stuck_connections_are_capped",
            stuck_connections_are_capped,
        ),
        ground.trial(
            "slirp4netns::connections_that_get_stuck_later_are_capped",
            connections_that_get_stuck_later_are_capped,
        ),
        ground.trial("slirp4netns::port_handlers", port_handlers),
        ground.trial("slirp4netns::ports_heal", ports_heal),
    ]
}

/// The login's only slirp4netns.
fn program(hosts: &Hosts, login: &Login) -> Result<i32> {
    let pids = helpers(hosts, login, &["slirp4netns"]);
    ensure!(pids.len() == 1, "slirp4netns: {pids:?}");
    Ok(pids[0])
}

/// A field of `/proc/PID/status` in kB.
fn memory(pid: i32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim_start_matches(':')
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()
}

fn is_online(container: &Container<'_>) -> Result<()> {
    container
        .exec(&["wire", "who", WORLD[0], PORT, "0"])
        .map(drop)
}

/// Each of them leaves a descriptor for ten seconds.
fn thousands_of_short_connections_all_succeed(ground: &'static Ground) -> Result<()> {
    const COUNT: &str = "4000";
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let container = login.sleeper(&["--network", "slirp4netns"])?;
    let began = Instant::now();
    let answered = container.exec(&["wire", "series", WORLD[0], PORT, COUNT])?;
    ensure!(answered == COUNT, "{answered} of {COUNT} had an answer");
    let peak = memory(program(&hosts, &login)?, "VmHWM").context("no slirp4netns")?;
    println!("{COUNT} connections in {:?}, {peak} kB", began.elapsed());
    ensure!(peak < REFUSES, "it took {peak} kB");
    Ok(())
}

/// What was seen of the login's slirp4netns, which may be several one after the other.
#[derive(Debug, Default)]
struct Seen {
    /// Most memory of one, in kB.
    peak: u64,
    /// Whether its limit of descriptors was lowered.
    is_refusing: bool,
}

/// Watches while stuck connections are made in the container and kept.
fn watch_stuck(
    hosts: &Hosts,
    login: &Login,
    container: &Container<'_>,
    words: &[&str],
) -> Result<Seen> {
    let mut seen = Seen::default();
    let command = [&["wire", "stuck", WORLD[0], PORT], words].concat();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| container.exec(&command));
        while !client.is_finished() {
            for pid in helpers(hosts, login, &["slirp4netns"]) {
                seen.peak = seen.peak.max(memory(pid, "VmRSS").unwrap_or(0));
                seen.is_refusing |= is_refusing(pid).unwrap_or(false);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let client = client.join();
        let open = client.map_err(|_| anyhow::anyhow!("the client panicked"))??;
        println!("{open} connections: {seen:?}");
        Ok(seen)
    })
}

/// Whether the soft limit of descriptors is below the hard one.
fn is_refusing(pid: i32) -> Option<bool> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut numbers = line.split_ascii_whitespace();
    Some(numbers.next()? != numbers.next()?)
}

fn stuck_connections_are_capped(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let container = login.sleeper(&["--network", "slirp4netns"])?;
    let pid = program(&hosts, &login)?;
    let seen = watch_stuck(&hosts, &login, &container, &["4500", "4"])?;
    ensure!(seen.is_refusing && seen.peak >= REFUSES, "{seen:?}");
    ensure!(seen.peak < ENDS, "{seen:?}");
    // As soon as memory is back, and by the same process.
    heals("online after stuck connections ended", || {
        is_online(&container)
    })?;
    ensure!(
        program(&hosts, &login)? == pid,
        "slirp4netns is another one"
    );
    eventually("its limit is raised again", || {
        Ok(is_refusing(pid) == Some(false))
    })
}

/// Those that are open before the bound is reached can take more.
fn connections_that_get_stuck_later_are_capped(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let container = login.sleeper(&["--network", "slirp4netns"])?;
    let seen = watch_stuck(&hosts, &login, &container, &["6000", "12", "late"])?;
    ensure!(seen.peak < ENDS, "{seen:?}");
    // The client's end is ten thousand packets for a list of as many connections.
    within(
        Duration::from_secs(60),
        "online after too many connections got stuck",
        || Ok(is_online(&container).is_ok()),
    )
}

/// What they refuse, and how each of them says so.
fn port_handlers(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let run = |network: &str, port: &str| {
        let options = [
            "run",
            "--rm",
            "--network",
            network,
            "-p",
            port,
            "busybox",
            "true",
        ];
        login.refused(125, &options)
    };
    let both = ["slirp4netns", "slirp4netns:port_handler=slirp4netns"];
    let _taken = hosts.start(Side::Host, &["serve-at", HOST[0], "8088"])?;
    for network in both {
        let taken = format!("{}:8088:{INSIDE}", HOST[0]);
        expect_contains(run(network, &taken)?, "8088")?;
    }
    expect_contains(run(both[1], &format!("[::1]:8089:{INSIDE}"))?, "IPv4")?;
    // Two of them, and with one of another kind.
    let port = format!("8090:{INSIDE}");
    let holder = login.sleeper(&["--network", both[0], "-p", &port])?;
    for network in ["slirp4netns", "selkie"] {
        expect_contains(run(network, &port)?, "8090")?;
    }
    drop(holder);
    let place = Place::new(&login, Mode::Slirp4netns, &[&port])?;
    let server = place.server(&login, &[])?;
    hosts.ask(Side::Far, &["who", HOST[0], "8090"])?;
    ensure!(!helpers(&hosts, &login, &["selkie-ports"]).is_empty());
    drop(server);
    eventually("nobody publishes for a container that has ended", || {
        Ok(helpers(&hosts, &login, &["selkie-ports"]).is_empty())
    })
}

/// Whatever of it is killed.
fn ports_heal(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let port = format!("8080:{INSIDE}");
    let place = Place::new(&login, Mode::Slirp4netns, &[&port])?;
    let server = place.server(&login, &[])?;
    for names in [["selkie-ports"], ["slirp4netns"], ["selkie-uplink"]] {
        let killed = helpers(&hosts, &login, &names);
        ensure!(killed.len() == 1, "{names:?}: {killed:?}");
        processes::signal(killed[0], Signal::KILL);
        heals(&format!("out after {names:?} was killed"), || {
            is_online(&server)
        })?;
        heals(&format!("in after {names:?} was killed"), || {
            hosts
                .ask(Side::Far, &["who", HOST[0], "8080", "0"])
                .map(drop)
        })?;
        let now = helpers(
            &hosts,
            &login,
            &["selkie-ports", "slirp4netns", "selkie-uplink"],
        );
        ensure!(now.len() == 3, "{names:?}: {now:?}");
    }
    Ok(())
}
