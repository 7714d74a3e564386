//! The network under what goes wrong: helpers killed, routes and resolvers replaced, cables pulled,
//! machines that start offline, everything killed at once. Traffic must flow again by itself; how
//! long that took is printed, and only a hang fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::ground::Ground;
use crate::hosts::{FAR, HOST, Hosts, INSIDE, OTHER_ROUTER, PORT, SECOND_HOST, Side, WORLD};
use crate::login::{Container, Login, eventually, within};
use crate::online::{Mode, Place};
use crate::processes;

/// Far beyond what is promised.
const PATIENCE: Duration = Duration::from_secs(10);

const MODES: [Mode; 2] = [Mode::Default, Mode::User];

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial(
            "network_faults::a_killed_pasta_is_replaced",
            a_killed_pasta_is_replaced,
        ),
        ground.trial("network_faults::routes_are_replaced", routes_are_replaced),
        ground.trial("network_faults::the_cable_is_changed", the_cable_is_changed),
        ground.trial(
            "network_faults::the_resolver_is_replaced",
            the_resolver_is_replaced,
        ),
        ground.trial("network_faults::offline_at_start", offline_at_start),
        ground.trial(
            "network_faults::a_killed_update_leaves_a_record_that_holds",
            a_killed_update_leaves_a_record_that_holds,
        ),
        ground.trial(
            "network_faults::everything_is_killed_and_nothing_stays",
            everything_is_killed_and_nothing_stays,
        ),
        ground.trial(
            "network_faults::the_last_container_takes_the_network_along",
            the_last_container_takes_the_network_along,
        ),
    ]
}

/// The login's processes by these names. Other tests run with the same user, but not on this host.
pub fn helpers(hosts: &Hosts, login: &Login, names: &[&str]) -> Vec<i32> {
    processes::all()
        .into_iter()
        .filter(|process| login.user.owns_uid(process.uid))
        .map(|process| process.pid)
        .filter(|pid| hosts.holds(*pid))
        .filter(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            names
                .iter()
                .any(|wanted| name.trim_end().starts_with(wanted))
        })
        .collect()
}

const PASTA: &[&str] = &["pasta", "passt"];

/// Waits until it is so and prints how long that took.
pub fn heals(what: &str, mut is_so: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let mut last = String::new();
    let healed = within(PATIENCE, what, || match is_so() {
        Ok(()) => Ok(true),
        Err(error) => {
            last = format!("{error:#}");
            Ok(false)
        }
    });
    healed.with_context(|| last)?;
    println!("{what}: after {} ms", start.elapsed().as_millis());
    Ok(())
}

/// Out by both families and protocols, each tried once: TCP is the services' affair, UDP pasta's.
fn is_online(container: &Container<'_>, seen_as: [&str; 2]) -> Result<()> {
    for (to, expected) in WORLD.into_iter().zip(seen_as) {
        for verb in ["who", "udp"] {
            let seen = container.exec(&["wire", verb, to, PORT, "0"])?;
            ensure!(
                seen == expected,
                "{verb}: got {seen:?}, expected {expected:?}"
            );
        }
    }
    Ok(())
}

fn a_killed_pasta_is_replaced(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    for mode in MODES {
        let login = hosts.login(0)?;
        let port = format!("8080:{INSIDE}");
        let place = Place::new(&login, mode, &[&port])?;
        let server = place.server(&login, &[])?;
        let plain = login.sleeper(&[])?;
        hosts.ask(Side::Far, &["who", HOST[0], "8080"])?;
        heals(&format!("{mode:?}: online at first"), || {
            is_online(&plain, HOST)
        })?;
        for _ in 0..3 {
            let killed = helpers(&hosts, &login, PASTA);
            ensure!(!killed.is_empty(), "no pasta runs");
            for pid in &killed {
                processes::signal(*pid, Signal::KILL);
            }
            heals(&format!("{mode:?}: out after pasta was killed"), || {
                is_online(&plain, HOST)?;
                is_online(&server, HOST)
            })?;
            heals(&format!("{mode:?}: in after pasta was killed"), || {
                let seen = hosts.ask(Side::Far, &["who", HOST[0], "8080", "0"])?;
                ensure!(seen == FAR[0], "{seen}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn routes_are_replaced(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    for mode in MODES {
        let login = hosts.login(0)?;
        let place = Place::new(&login, mode, &[])?;
        let container = place.run(&login, &[], &["sleep", "10000"])?;
        heals(&format!("{mode:?}: online at first"), || {
            is_online(&container, HOST)
        })?;
        hosts.set_routers(Some(OTHER_ROUTER))?;
        heals(&format!("{mode:?}: after the router was replaced"), || {
            is_online(&container, HOST)
        })?;
        hosts.set_routers(None)?;
        let gone = container.try_exec(&["wire", "who", WORLD[0], PORT, "0"])?;
        ensure!(gone.code != 0, "online without a route: {gone:?}");
        hosts.set_routers(Some(FAR))?;
        heals(&format!("{mode:?}: after the routes came back"), || {
            is_online(&container, HOST)
        })?;
    }
    Ok(())
}

fn the_cable_is_changed(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let container = login.sleeper(&[])?;
    heals("online at first", || is_online(&container, HOST))?;
    hosts.move_to_second_cable()?;
    heals("after the cable was changed", || {
        is_online(&container, SECOND_HOST)
    })
}

fn the_resolver_is_replaced(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let _other = hosts.name_server(OTHER_ROUTER[0], &[FAR[0]])?;
    for mode in MODES {
        hosts.set_resolv_conf(&format!("nameserver {}\n", FAR[0]))?;
        let login = hosts.login(0)?;
        let place = Place::new(&login, mode, &[])?;
        let container = place.run(&login, &[], &["sleep", "10000"])?;
        let knows = |address: &str| {
            let seen = container.exec(&["wire", "lookup", "world.test"])?;
            ensure!(seen.lines().any(|line| line == address), "{seen}");
            Ok(())
        };
        heals(&format!("{mode:?}: a name at first"), || knows(WORLD[0]))?;
        hosts.set_resolv_conf(&format!("nameserver {}\n", OTHER_ROUTER[0]))?;
        heals(
            &format!("{mode:?}: after the resolver was replaced"),
            || knows(FAR[0]),
        )?;
    }
    Ok(())
}

fn offline_at_start(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    for mode in MODES {
        hosts.set_routers(None)?;
        hosts.set_resolv_conf("")?;
        let login = hosts.login(0)?;
        let place = Place::new(&login, mode, &[])?;
        let container = place.run(&login, &[], &["sleep", "10000"])?;
        let offline = container.try_exec(&["wire", "who", WORLD[0], PORT, "0"])?;
        ensure!(offline.code != 0, "online without a route: {offline:?}");
        hosts.set_routers(Some(FAR))?;
        hosts.set_resolv_conf(&format!("nameserver {}\n", FAR[0]))?;
        heals(&format!("{mode:?}: online after an offline start"), || {
            is_online(&container, HOST)?;
            container.exec(&["wire", "lookup", "world.test"]).map(drop)
        })?;
    }
    Ok(())
}

/// An update dies after it has put a port on record that another process has taken. When the uplink has
/// to be made again, the container has all but that one; and once it is free, asking again is enough.
fn a_killed_update_leaves_a_record_that_holds(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    for mode in MODES {
        let login = hosts.login(0)?;
        let place = Place::new(&login, mode, &["8080:7000"])?;
        let server = place.server(&login, &["--name", "web"])?;
        let taken = hosts.start(Side::Host, &["serve", "8090"])?;
        let supervisor = helpers(&hosts, &login, &["selkie-uplink"]);
        ensure!(supervisor.len() == 1, "{supervisor:?}");
        processes::signal(supervisor[0], Signal::STOP);
        let words = [
            "update",
            "--publish-add",
            "8090:7000",
            "--publish-add",
            "8091:7000",
            "web",
        ];
        let update = login.selkie(&words).spawn()?;
        eventually("the update is on record", || {
            Ok(login.ok(&["port", "web"])?.contains("8090"))
        })?;
        update.signal(Signal::KILL);
        update.wait()?;
        processes::signal(supervisor[0], Signal::KILL);
        for port in ["8080", "8091"] {
            heals(
                &format!("{mode:?}: {port} after the uplink was killed"),
                || {
                    let seen = hosts.ask(Side::Far, &["who", HOST[0], port, "0"])?;
                    ensure!(seen == FAR[0], "{seen}");
                    is_online(&server, HOST)
                },
            )?;
        }
        let words = ["update", "--publish-add", "8090:7000", "web"];
        let error = login.refused(125, &words)?;
        ensure!(error.contains("in use"), "{error}");
        drop(taken);
        login.ok(&words)?;
        hosts.ask(Side::Far, &["who", HOST[0], "8090"])?;
        login.ok(&["update", "--publish-rm", "8090:7000", "web"])?;
        ensure!(
            hosts
                .ask(Side::Far, &["who", HOST[0], "8090", "0"])
                .is_err()
        );
    }
    Ok(())
}

/// All processes of the login die at once, as when a session is killed. What they leave is found
/// and removed, and the next container is online.
fn everything_is_killed_and_nothing_stays(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let port = format!("8080:{INSIDE}");
    for mode in [
        Mode::Default,
        Mode::Pasta,
        Mode::Slirp4netns,
        Mode::Slirp4netnsPorts,
        Mode::User,
    ] {
        let place = Place::new(&login, mode, &[&port])?;
        let server = place.server(&login, &["--name", "killed"])?;
        heals(&format!("{mode:?}: in at first"), || {
            hosts
                .ask(Side::Far, &["who", HOST[0], "8080", "0"])
                .map(drop)
        })?;
        login.end_background();
        let left = helpers(&hosts, &login, &["pasta", "passt", "slirp4netns", "selkie"]);
        ensure!(left.is_empty(), "{mode:?}: outlive the login: {left:?}");
        login.ok(&["rm", "--force", "--time", "0", &server.id])?;
        login.ok(&["system", "prune", "--force"])?;
        login.is_clean()?;
        // Address, name and port are free again.
        let again = place.server(&login, &["--name", "killed"])?;
        heals(&format!("{mode:?}: in again"), || {
            hosts
                .ask(Side::Far, &["who", HOST[0], "8080", "0"])
                .map(drop)
        })?;
        drop(again);
        if mode == Mode::User {
            login.ok(&["network", "rm", "first"])?;
        }
    }
    login.is_clean()
}

/// No helper stays without a container that needs it.
fn the_last_container_takes_the_network_along(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    for mode in [Mode::Default, Mode::Pasta, Mode::Slirp4netns, Mode::User] {
        let place = Place::new(&login, mode, &[])?;
        let container = place.run(&login, &[], &["sleep", "10000"])?;
        let names = ["pasta", "passt", "slirp4netns"];
        ensure!(
            !helpers(&hosts, &login, &names).is_empty(),
            "{mode:?}: no helper runs"
        );
        drop(container);
        eventually(&format!("the helpers of {mode:?} end"), || {
            Ok(helpers(&hosts, &login, &names).is_empty())
        })?;
        login.is_clean()?;
    }
    Ok(())
}
