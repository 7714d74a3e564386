//! `selkie update`: ports published and taken back while containers run, and while they do not.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::hosts::{FAR, HOST, Hosts, INSIDE, Side};
use crate::login::{Login, expect_contains, expect_eq};
use crate::online::{Mode, Place, Row, is_serving};

const MODES: [Mode; 3] = [Mode::Default, Mode::User, Mode::TwoNetworks];

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial(
            "updates::ports_come_and_go_while_it_runs",
            ports_come_and_go_while_it_runs,
        ),
        ground.trial("updates::a_range_loses_a_port", a_range_loses_a_port),
        ground.trial(
            "updates::connections_outlive_their_port",
            connections_outlive_their_port,
        ),
        ground.trial("updates::a_port_leads_elsewhere", a_port_leads_elsewhere),
        ground.trial("updates::all_or_nothing", all_or_nothing),
        ground.trial("updates::one_that_does_not_run", one_that_does_not_run),
        ground.trial("updates::several_at_once", several_at_once),
        ground.trial("updates::refusals", refusals),
    ]
}

/// Whether somebody answers there, tried once.
fn answers(hosts: &Hosts, side: Side, to: &str, port: &str) -> bool {
    hosts.ask(side, &["who", to, port, "0"]).is_ok()
}

fn ports_come_and_go_while_it_runs(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let mut row = Row::default();
    for mode in MODES {
        let login = hosts.login(0)?;
        let place = Place::new(&login, mode, &[])?;
        let server = place.server(&login, &["--name", "web"])?;
        ensure!(!answers(&hosts, Side::Far, HOST[0], "8080"));
        let printed = login.ok(&[
            "update",
            "--publish-add",
            &format!("8080:{INSIDE}/tcp,udp"),
            "--publish-add",
            &format!("127.0.0.1:8081:{INSIDE}"),
            "--publish-add",
            &format!("[::1]:8082:{INSIDE}"),
            "web",
        ])?;
        expect_eq(printed, "web")?;
        for family in 0..2 {
            for verb in ["who", "udp"] {
                let seen = hosts.ask(Side::Far, &[verb, HOST[family], "8080"])?;
                let same = expect_eq(seen, FAR[family]);
                row.cell(&format!("{mode:?}: {verb} {} from far", HOST[family]), same);
            }
        }
        for (address, port) in [
            ("127.0.0.1", "8080"),
            ("127.0.0.1", "8081"),
            ("::1", "8082"),
        ] {
            login
                .program(hosts.wire_path(), &["who", address, port])
                .run()?
                .ok()?;
        }
        ensure!(!answers(&hosts, Side::Host, HOST[0], "8081"));
        expect_eq(
            login.ok(&["port", "web"])?,
            "7000/tcp -> 0.0.0.0:8080\n7000/udp -> 0.0.0.0:8080\n7000/tcp -> 127.0.0.1:8081\n\
             7000/tcp -> [::1]:8082",
        )?;
        let column = login.ok(&["ps", "--filter", "name=^web$", "--format", "{{.Ports}}"])?;
        expect_contains(column, "0.0.0.0:8080->7000/udp")?;
        let shown = server.inspect("{{json .NetworkSettings.Ports}}")?;
        expect_contains(shown, "\"8082\"")?;

        login.ok(&[
            "container",
            "update",
            "--publish-rm",
            &format!("8080:{INSIDE}"),
            "--publish-rm",
            &format!("{INSIDE}/udp"),
            "web",
        ])?;
        ensure!(!answers(&hosts, Side::Far, HOST[0], "8080"), "{mode:?}");
        let silent = hosts.ask(Side::Far, &["udp", HOST[0], "8080", "1"]);
        ensure!(silent.is_err(), "{mode:?}: UDP goes on: {silent:?}");
        expect_eq(
            login.ok(&["port", "web"])?,
            "7000/tcp -> 127.0.0.1:8081\n7000/tcp -> [::1]:8082",
        )?;
        ensure!(answers(&hosts, Side::Host, "127.0.0.1", "8081"));
        login.ok(&["update", "--publish-rm", INSIDE, "web"])?;
        expect_eq(login.ok(&["port", "web"])?, "")?;
        ensure!(!answers(&hosts, Side::Host, "127.0.0.1", "8081"));
        // The port is anybody's.
        drop(hosts.start(Side::Host, &["serve", "8080"])?);
    }
    row.end()
}

fn a_range_loses_a_port(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let server = login.detached(&[
        "--name",
        "web",
        "-p",
        "8000-8002:7000-7002",
        "busybox",
        "wire",
        "serve",
        "7000",
        "7001",
        "7002",
    ])?;
    is_serving(&server)?;
    login.ok(&["update", "--publish-rm", "7001", "web"])?;
    for (port, open) in [("8000", true), ("8001", false), ("8002", true)] {
        ensure!(answers(&hosts, Side::Far, HOST[0], port) == open, "{port}");
    }
    expect_eq(
        login.ok(&["ps", "--format", "{{.Ports}}"])?,
        "0.0.0.0:8000->7000/tcp, 0.0.0.0:8002->7002/tcp",
    )?;
    // One of a range of the host, beside what is taken.
    login.ok(&["update", "--publish-add", "8000-8009:7001", "web"])?;
    expect_eq(login.ok(&["port", "web", "7001"])?, "0.0.0.0:8001")?;
    login.ok(&["update", "--publish-add", "7001", "web"])?;
    let ends = login.ok(&["port", "web", "7001"])?;
    let chosen = ends
        .lines()
        .filter_map(|line| line.strip_prefix("0.0.0.0:"))
        .find(|port| *port != "8001")
        .context(ends.clone())?;
    ensure!(
        chosen != "0" && answers(&hosts, Side::Far, HOST[0], chosen),
        "{chosen}"
    );
    // The same again is nothing new.
    login.ok(&["update", "--publish-add", "8000:7000", "web"])?;
    expect_eq(login.ok(&["port", "web", "7000"])?, "0.0.0.0:8000")?;
    login.ok(&["update", "--publish-rm", "7000-7002", "web"])?;
    expect_eq(login.ok(&["port", "web"])?, "")
}

fn connections_outlive_their_port(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    for mode in [Mode::Default, Mode::User] {
        let login = hosts.login(0)?;
        let port = format!("8080:{INSIDE}");
        let place = Place::new(&login, mode, &[&port])?;
        let server = place.server(&login, &["--name", "web"])?;
        let go = login.home.join("go");
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/8080 && echo connected
             until [ -e {} ]; do sleep 0.05; done
             echo who >&3; cat <&3",
            go.display()
        );
        let client = login.program("bash", &["-c", &script]).spawn()?;
        client.read_until("connected")?;
        // It is the container's too.
        hosts.ask(Side::Host, &["who", "127.0.0.1", "8080"])?;
        login.ok(&["update", "--publish-rm", &port, "web"])?;
        ensure!(!answers(&hosts, Side::Host, "127.0.0.1", "8080"));
        login.write("go", "")?;
        let heard = client.wait()?.ok()?;
        ensure!(
            heard.trim().parse::<std::net::IpAddr>().is_ok(),
            "{mode:?}: the connection is gone: {heard:?}"
        );
        drop(server);
    }
    Ok(())
}

fn a_port_leads_elsewhere(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let server = login.detached(&[
        "--name",
        "web",
        "-p",
        "8080:7000",
        "busybox",
        "wire",
        "serve",
        "7000",
    ])?;
    is_serving(&server)?;
    expect_contains(
        login.refused(125, &["update", "--publish-add", "8080:7001", "web"])?,
        "conflicting port mappings",
    )?;
    // Nobody listens inside, so who connects is turned away.
    login.ok(&[
        "update",
        "--publish-rm",
        "7000",
        "--publish-add",
        "8080:7001",
        "web",
    ])?;
    ensure!(!answers(&hosts, Side::Far, HOST[0], "8080"));
    // From everywhere to one address, and back.
    let narrow = format!("{}:8080:7000", HOST[0]);
    login.ok(&[
        "update",
        "--publish-rm",
        "7001",
        "--publish-add",
        &narrow,
        "web",
    ])?;
    ensure!(answers(&hosts, Side::Far, HOST[0], "8080"));
    ensure!(!answers(&hosts, Side::Host, "127.0.0.1", "8080"));
    login.ok(&[
        "update",
        "--publish-rm",
        &narrow,
        "--publish-add",
        "8080:7000",
        "web",
    ])?;
    ensure!(answers(&hosts, Side::Host, "127.0.0.1", "8080"));
    Ok(())
}

fn all_or_nothing(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    let place = Place::new(&login, Mode::Default, &[])?;
    let server = place.server(&login, &["--name", "web", "-p", "8080:7000"])?;
    let other = place.server(&login, &["--name", "other", "-p", "8090:7000"])?;
    let wire = hosts.wire_path();
    let taker = login.program(wire, &["serve", "8091"]).spawn()?;
    taker.read_until("ready")?;
    let is_as_before = || -> Result<()> {
        expect_eq(login.ok(&["port", "web"])?, "7000/tcp -> 0.0.0.0:8080")?;
        ensure!(answers(&hosts, Side::Far, HOST[0], "8080"), "8080 is lost");
        for port in ["8081", "8082"] {
            ensure!(!answers(&hosts, Side::Far, HOST[0], port), "{port} stayed");
        }
        Ok(())
    };
    let container = format!("container {}", &other.id[..12]);
    for (port, holder) in [
        ("8090:7000", container.as_str()),
        ("8091:7000", "a process of this login"),
    ] {
        let error = login.refused(
            125,
            &[
                "update",
                "--publish-add",
                "8081:7000",
                "--publish-add",
                port,
                "web",
            ],
        )?;
        expect_contains(error.as_str(), "address already in use")?;
        expect_contains(error, holder)?;
        is_as_before()?;
        // What was to be taken back is there again, also where it had to make room.
        login.refused(
            125,
            &[
                "update",
                "--publish-rm",
                "7000",
                "--publish-add",
                port,
                "--publish-add",
                "8080:7001",
                "web",
            ],
        )?;
        is_as_before()?;
    }
    let error = login.refused(125, &["update", "--publish-add", "80:7000", "web"])?;
    expect_contains(error, "ip_unprivileged_port_start")?;
    let error = login.refused(
        125,
        &["update", "--publish-add", "192.0.2.77:8082:7000", "web"],
    )?;
    expect_contains(error, "no address of this host")?;
    let error = login.refused(
        125,
        &[
            "update",
            "--publish-add",
            "8081:7000",
            "--publish-rm",
            "9000:7000",
            "web",
        ],
    )?;
    expect_contains(error, "0.0.0.0:8080->7000/tcp")?;
    is_as_before()?;
    drop(server);
    taker.signal(rustix::process::Signal::TERM);
    taker.wait().map(drop)
}

fn one_that_does_not_run(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    for (name, network) in [
        ("net", "bridge"),
        ("pasta", "pasta"),
        ("slirp", "slirp4netns"),
    ] {
        login.ok(&[
            "create",
            "--name",
            name,
            "--network",
            network,
            "-p",
            "8080:7000",
            "busybox",
            "wire",
            "serve",
            "7000",
        ])?;
        login.ok(&[
            "update",
            "--publish-rm",
            "8080:7000",
            "--publish-add",
            "8081:7000",
            name,
        ])?;
        expect_eq(login.ok(&["port", name])?, "7000/tcp -> 0.0.0.0:8081")?;
        login.ok(&["start", name])?;
        hosts.ask(Side::Far, &["who", HOST[0], "8081"])?;
        ensure!(!answers(&hosts, Side::Far, HOST[0], "8080"), "{name}");
        login.ok(&["stop", "--time", "0", name])?;
        login.ok(&["update", "--publish-add", "7000/udp", name])?;
        login.ok(&["start", name])?;
        hosts.ask(Side::Far, &["who", HOST[0], "8081"])?;
        let chosen = login.ok(&["port", name, "7000/udp"])?;
        let port = chosen.rsplit(':').next().unwrap_or_default();
        hosts.ask(Side::Far, &["udp", HOST[0], port])?;
        login.ok(&["rm", "--force", "--time", "0", name])?;
    }
    login.is_clean()
}

/// Commands that change one container at the same time do not undo each other.
fn several_at_once(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login: Login = hosts.login(0)?;
    let place = Place::new(&login, Mode::Default, &[])?;
    let _server = place.server(&login, &["--name", "web"])?;
    let _taken = hosts.start(Side::Host, &["serve", "8099"])?;
    let running = (0..12)
        .map(|index| {
            // Every third one wants what cannot be had.
            let last = if index % 3 == 0 { 8099 } else { 8100 + index };
            let first = format!("{}:{INSIDE}", 8200 + index);
            let last = format!("{last}:{INSIDE}");
            let words = [
                "update",
                "--publish-add",
                &first,
                "--publish-add",
                &last,
                "web",
            ];
            Ok((index, login.selkie(&words).spawn()?))
        })
        .collect::<Result<Vec<_>>>()?;
    for (index, running) in running {
        let expected = if index % 3 == 0 { 125 } else { 0 };
        running.wait()?.code(expected)?;
    }
    let list = login.ok(&["port", "web"])?;
    ensure!(list.lines().count() == 16, "{list}");
    for index in 0..12 {
        let port = (8200 + index).to_string();
        let is_open = answers(&hosts, Side::Far, HOST[0], &port);
        ensure!(is_open == (index % 3 != 0), "{port}: {is_open}");
    }
    Ok(())
}

fn refusals(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["create", "--name", "plain", "busybox"])?;
    let owner = login.sleeper(&["--name", "owner"])?;
    let joined = format!("container:{}", owner.id);
    for (name, network) in [
        ("host", "host"),
        ("none", "none"),
        ("joined", joined.as_str()),
    ] {
        login.ok(&["create", "--name", name, "--network", network, "busybox"])?;
    }
    for (arguments, word) in [
        (&["update", "plain"][..], "--publish-add"),
        (&["update", "--publish-add", "8080:80"], "at least one name"),
        (
            &["update", "--publish-add", "8080:80", "nope"],
            "no such container",
        ),
        (&["update", "--memory", "1g", "plain"], "resource limits"),
        (&["update", "--publish", "8080:80", "plain"], "unknown flag"),
        (
            &["update", "--publish-add", "x", "plain"],
            "--publish-add x",
        ),
        (&["update", "--publish-add", "80/sctp", "plain"], "SCTP"),
        (&["update", "--publish-rm", "0", "plain"], "--publish-rm 0"),
        (
            &["update", "--publish-rm", "80", "plain"],
            "it has published nothing",
        ),
        (
            &["update", "--publish-add", "8080:80", "host"],
            "no network of its own",
        ),
        (
            &["update", "--publish-add", "8080:80", "none"],
            "no network of its own",
        ),
        (
            &["update", "--publish-add", "8080:80", "joined"],
            "the other container's",
        ),
    ] {
        let error = login
            .refused(125, arguments)
            .with_context(|| format!("{arguments:?}"))?;
        expect_contains(error, word)?;
    }
    for network in ["pasta", "slirp4netns"] {
        if !Path::new("/usr/bin").join(network).exists() {
            println!("{network} is not installed: left out");
            continue;
        }
        let own = login.sleeper(&["--network", network, "-p", "18080:80"])?;
        let error = login.refused(125, &["update", "--publish-rm", "80", &own.id])?;
        expect_contains(error.as_str(), "while it runs")?;
        expect_contains(error, "selkie stop")?;
        expect_eq(login.ok(&["port", &own.id])?, "80/tcp -> 0.0.0.0:18080")?;
    }
    // The others are dealt with all the same.
    login
        .selkie(&["update", "--publish-add", "18081:80", "nope", "plain"])
        .run()?
        .code(125)?;
    expect_eq(login.ok(&["port", "plain"])?, "80/tcp -> 0.0.0.0:18081")
}
