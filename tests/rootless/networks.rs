//! Networks as far as they are records: commands, places of containers, addresses, published ports
//! before anything runs. What flows through them is tested elsewhere.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::ground::Ground;
use crate::login::{Login, expect_contains, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("networks::commands", commands),
        ground.trial(
            "networks::the_default_one_is_always_there",
            the_default_one_is_always_there,
        ),
        ground.trial("networks::subnets_and_options", subnets_and_options),
        ground.trial("networks::refusals", refusals),
        ground.trial("networks::containers_in_networks", containers_in_networks),
        ground.trial("networks::connect_and_disconnect", connect_and_disconnect),
        ground.trial("networks::change_while_it_runs", change_while_it_runs),
        ground.trial(
            "networks::removal_of_networks_in_use",
            removal_of_networks_in_use,
        ),
        ground.trial("networks::published_ports", published_ports),
        ground.trial("networks::flags_that_conflict", flags_that_conflict),
        ground.trial("networks::names_in_etc", names_in_etc),
        ground.trial(
            "networks::addresses_of_a_crowd_all_differ",
            addresses_of_a_crowd_all_differ,
        ),
        ground.trial(
            "networks::networks_made_at_once_do_not_overlap",
            networks_made_at_once_do_not_overlap,
        ),
    ]
}

/// A private range that the tests' hosts are unlikely to be in.
const SUBNET: &str = "172.29.77.0/24";

fn commands(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    expect_eq(
        login.ok(&["network", "create", "--label", "kind=test", "one"])?,
        "one",
    )?;
    expect_eq(login.ok(&["network", "create"])?, "selkie1")?;
    let list = login.ok(&["network", "ls"])?;
    let lines: Vec<&str> = list.lines().collect();
    ensure!(
        lines.len() == 4 && lines[0] == "NETWORK ID    NAME        DRIVER",
        "{list}"
    );
    expect_eq(
        login.ok(&["network", "ls", "--quiet", "--filter", "label=kind=test"])?,
        "one",
    )?;
    expect_eq(
        login.ok(&["network", "ls", "-q", "-f", "dangling=true"])?,
        "one\nselkie1",
    )?;
    expect_eq(
        login.ok(&[
            "network",
            "ls",
            "--format",
            "{{.Name}} {{.Driver}} {{.Labels}}",
            "-f",
            "name=^one$",
        ])?,
        "one bridge kind=test",
    )?;
    let full = login.ok(&[
        "network",
        "ls",
        "--no-trunc",
        "--format",
        "{{.ID}}",
        "-f",
        "name=^one$",
    ])?;
    ensure!(full.len() == 64, "{full}");
    // By the beginning of its ID too.
    let seen = login.json(&["network", "inspect", &full[..9]])?;
    ensure!(
        seen[0]["name"] == "one" && seen[0]["id"] == full.as_str(),
        "{seen}"
    );
    ensure!(
        seen[0]["labels"]["kind"] == "test"
            && seen[0]["ipam_options"]["driver"] == "host-local"
            && seen[0]["containers"] == serde_json::json!({}),
        "{seen}"
    );
    let json = login.json(&["network", "ls", "--format", "json"])?;
    ensure!(json.as_array().is_some_and(|all| all.len() == 3), "{json}");
    login.ok(&["network", "exists", "one"])?;
    expect_eq(login.ok(&["network", "rm", "one"])?, "one")?;
    login.selkie(&["network", "exists", "one"]).run()?.code(1)?;
    expect_eq(login.ok(&["network", "prune", "--force"])?, "selkie1")?;
    expect_eq(login.ok(&["network", "ls", "--quiet"])?, "selkie")?;
    Ok(())
}

fn the_default_one_is_always_there(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let seen = login.json(&[
        "network", "inspect", "bridge", "podman", "default", "selkie",
    ])?;
    let all = seen.as_array().context("not a list")?;
    ensure!(
        all.len() == 4 && all.iter().all(|one| one == &all[0]),
        "{seen}"
    );
    ensure!(
        all[0]["name"] == "selkie"
            && all[0]["ipv6_enabled"] == true
            && all[0]["subnets"]
                .as_array()
                .is_some_and(|nets| nets.len() == 2),
        "{seen}"
    );
    for force in [
        &["network", "rm", "selkie"][..],
        &["network", "rm", "-f", "podman"],
    ] {
        expect_contains(login.refused(2, force)?, "cannot be removed")?;
    }
    // It survives everything of the login's that runs.
    login.end_background();
    let again = login.json(&["network", "inspect", "selkie"])?;
    ensure!(again[0] == all[0], "{again}");
    Ok(())
}

fn subnets_and_options(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&[
        "network",
        "create",
        "--subnet",
        SUBNET,
        "--gateway",
        "172.29.77.254",
        "--ip-range",
        "172.29.77.128/25",
        "--ipv6",
        "--internal",
        "-o",
        "mtu=1400",
        "--opt",
        "isolate=false",
        "--disable-dns",
        "one",
    ])?;
    let seen = login.json(&["network", "inspect", "one"])?;
    let one = &seen[0];
    ensure!(
        one["subnets"][0]
            == serde_json::json!({
                "subnet": SUBNET,
                "gateway": "172.29.77.254",
                "lease_range": {"start_ip": "172.29.77.129", "end_ip": "172.29.77.255"},
            }),
        "{one}"
    );
    ensure!(
        one["subnets"][1]["subnet"]
            .as_str()
            .is_some_and(|net| net.starts_with("fd") && net.ends_with("/64")),
        "{one}"
    );
    ensure!(
        one["internal"] == true
            && one["dns_enabled"] == false
            && one["options"] == serde_json::json!({"mtu": "1400", "isolate": "false"}),
        "{one}"
    );
    // Only IPv6 when only IPv6 is asked for.
    login.ok(&["network", "create", "--subnet", "fd77:1::/64", "six"])?;
    expect_eq(
        login.ok(&[
            "network",
            "inspect",
            "six",
            "--format",
            "{{range .Subnets}}{{.Subnet}} {{.Gateway}}{{end}}",
        ])?,
        "fd77:1::/64 fd77:1::1",
    )?;
    login.ok(&["network", "create", "--dns", "192.0.2.53", "asks"])?;
    login.ok(&[
        "network",
        "update",
        "asks",
        "--dns-add",
        "192.0.2.54,192.0.2.55",
        "--dns-drop",
        "192.0.2.53",
    ])?;
    let seen = login.json(&["network", "inspect", "asks"])?;
    ensure!(
        seen[0]["network_dns_servers"] == serde_json::json!(["192.0.2.54", "192.0.2.55"]),
        "{seen}"
    );
    Ok(())
}

fn refusals(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["network", "create", "--subnet", SUBNET, "one"])?;
    login.ok(&["network", "create", "--ignore", "one"])?;
    for (arguments, code, word) in [
        (&["network", "create", "one"][..], 125, "already used"),
        (&["network", "create", "host"], 125, "network mode"),
        (&["network", "create", "podman"], 125, "already used"),
        (&["network", "create", "a b"], 125, "names must match"),
        (
            &["network", "create", "--subnet", "172.29.77.128/25", "x"],
            125,
            "already used by network one",
        ),
        (
            &["network", "create", "--subnet", "127.0.0.0/24", "x"],
            125,
            "loopback",
        ),
        (
            &["network", "create", "--subnet", "10.0.0.0/31", "x"],
            125,
            "too small",
        ),
        (
            &["network", "create", "--subnet", "nonsense", "x"],
            125,
            "nonsense",
        ),
        (
            &["network", "create", "--gateway", "10.0.0.1", "x"],
            125,
            "without --subnet",
        ),
        (
            &[
                "network",
                "create",
                "--subnet",
                "172.29.78.0/24",
                "--gateway",
                "172.29.79.1",
                "x",
            ],
            125,
            "not in subnet",
        ),
        (
            &[
                "network",
                "create",
                "--subnet",
                "172.29.78.0/24",
                "--subnet",
                "172.29.79.0/24",
                "x",
            ],
            125,
            "at most one",
        ),
        (
            &["network", "create", "--driver", "macvlan", "x"],
            125,
            "macvlan",
        ),
        (
            &["network", "create", "--opt", "speed=high", "x"],
            125,
            "speed",
        ),
        (&["network", "create", "--opt", "mtu=9", "x"], 125, "mtu"),
        (
            &[
                "network",
                "create",
                "--disable-dns",
                "--dns",
                "192.0.2.1",
                "x",
            ],
            125,
            "--disable-dns",
        ),
        (&["network", "rm", "nope"], 1, "network not found"),
        (&["network", "rm"], 125, "at least one"),
        (&["network", "inspect", "nope"], 125, "network not found"),
        (
            &["network", "ls", "--filter", "colour=red"],
            125,
            "invalid filter",
        ),
        (&["network", "connect", "one"], 125, "container"),
        (
            &["network", "connect", "one", "nope"],
            125,
            "no such container",
        ),
        (&["network", "reload", "nope"], 125, "no such container"),
        (&["network", "update", "one"], 125, "--dns-add"),
        (
            &["network", "update", "one", "--dns-drop", "192.0.2.9"],
            125,
            "192.0.2.9",
        ),
    ] {
        let error = login
            .refused(code, arguments)
            .with_context(|| format!("{arguments:?}"))?;
        expect_contains(error, word)?;
    }
    login.ok(&["network", "rm", "--force", "nope"])?;
    Ok(())
}

fn containers_in_networks(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["network", "create", "--subnet", SUBNET, "one"])?;
    login.ok(&["network", "create", "two"])?;
    login.ok(&["create", "--name", "plain", "busybox"])?;
    login.ok(&[
        "create",
        "--name",
        "both",
        "--network",
        "one:ip=172.29.77.9,mac=02:00:00:00:77:09,alias=web,interface_name=lan",
        "--network",
        "two",
        "busybox",
    ])?;
    login.ok(&["create", "--name", "apart", "--network", "none", "busybox"])?;
    let names = |filter: &str| {
        login.ok(&[
            "ps",
            "-a",
            "--filter",
            filter,
            "--format",
            "{{.Names}} {{.Networks}}",
        ])
    };
    expect_eq(names("network=one")?, "both one,two")?;
    expect_eq(names("network=bridge")?, "plain selkie")?;
    expect_eq(names("network=none")?, "apart ")?;
    let seen = login.json(&["inspect", "both"])?;
    let settings = &seen[0]["NetworkSettings"];
    let one = &settings["Networks"]["one"];
    ensure!(
        one["MacAddress"] == "02:00:00:00:77:09"
            && one["IPAMConfig"]["IPv4Address"] == "172.29.77.9"
            && one["InterfaceName"] == "lan"
            && one["IPAddress"] == "",
        "{settings}"
    );
    ensure!(
        one["Aliases"]
            .as_array()
            .is_some_and(|all| all.contains(&Value::from("web"))),
        "{settings}"
    );
    ensure!(
        settings["Networks"]["two"]["InterfaceName"] == "eth0",
        "{settings}"
    );
    ensure!(settings["SandboxKey"] == "", "{settings}");
    expect_eq(
        login.ok(&[
            "inspect",
            "--format",
            "{{.HostConfig.NetworkMode}}",
            "plain",
            "both",
            "apart",
        ])?,
        "bridge\none,two\nnone",
    )?;
    // What runs has addresses.
    login.ok(&["start", "both"])?;
    login.ok(&[
        "run",
        "-d",
        "--name",
        "up",
        "--network",
        "one",
        "busybox",
        "sleep",
        "1000",
    ])?;
    let seen = login.json(&["network", "inspect", "one"])?;
    let members = seen[0]["containers"].as_object().context("no members")?;
    let up = members
        .values()
        .find(|member| member["name"] == "up")
        .context("not a member")?;
    let address = up["interfaces"]["eth0"]["subnets"][0]["ipnet"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        address.starts_with("172.29.77.") && address.ends_with("/24"),
        "{up}"
    );
    let shown = login.ok(&[
        "inspect",
        "--format",
        "{{.NetworkSettings.Networks.one.IPAddress}} {{.NetworkSettings.Networks.one.Gateway}}",
        "up",
    ])?;
    expect_eq(
        shown,
        format!("{} 172.29.77.1", address.trim_end_matches("/24")),
    )?;
    // The same address at the next start.
    login.ok(&["rm", "-f", "-t", "0", "both"])?;
    login.ok(&["stop", "-t", "0", "up"])?;
    login.ok(&["start", "up"])?;
    let again = login.ok(&[
        "inspect",
        "--format",
        "{{.NetworkSettings.Networks.one.IPAddress}}",
        "up",
    ])?;
    expect_eq(again, address.trim_end_matches("/24"))?;
    login.ok(&["rm", "-f", "-t", "0", "up", "plain", "apart"])?;
    login.is_clean()
}

fn connect_and_disconnect(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["network", "create", "--subnet", SUBNET, "one"])?;
    login.ok(&["create", "--name", "c", "busybox"])?;
    login.ok(&["create", "--name", "apart", "--network", "host", "busybox"])?;
    login.ok(&[
        "network",
        "connect",
        "--alias",
        "db",
        "--ip",
        "172.29.77.5",
        "one",
        "c",
    ])?;
    let networks = || login.ok(&["ps", "-a", "-f", "name=^c$", "--format", "{{.Networks}}"]);
    expect_eq(networks()?, "selkie,one")?;
    expect_contains(
        login.refused(125, &["network", "connect", "one", "c"])?,
        "already connected",
    )?;
    login.ok(&["network", "disconnect", "podman", "c"])?;
    expect_eq(networks()?, "one")?;
    expect_contains(
        login.refused(125, &["network", "disconnect", "selkie", "c"])?,
        "not connected",
    )?;
    login.ok(&["network", "disconnect", "one", "c"])?;
    expect_eq(networks()?, "")?;
    expect_contains(
        login.refused(125, &["network", "connect", "one", "apart"])?,
        "invalid network mode",
    )?;
    expect_contains(
        login.refused(
            125,
            &["network", "connect", "--ip", "172.29.78.5", "one", "c"],
        )?,
        "172.29.78.5",
    )?;
    expect_contains(
        login.refused(125, &["network", "reload", "c"])?,
        "no network",
    )?;
    Ok(())
}

/// Interfaces, routes, `/etc/resolv.conf` and names follow at once; a container that changed its own
/// `resolv.conf` keeps it.
fn change_while_it_runs(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["network", "create", "--subnet", SUBNET, "one"])?;
    login.ok(&[
        "run",
        "-d",
        "--name",
        "db",
        "--network",
        "one",
        "busybox",
        "sleep",
        "10000",
    ])?;
    login.ok(&["run", "-d", "--name", "c", "busybox", "sleep", "10000"])?;
    let inside = |command: &str| login.ok(&["exec", "c", "sh", "-c", command]);
    let resolv_conf = || inside("cat /etc/resolv.conf");
    let first = resolv_conf()?;
    ensure!(!first.contains("172.29.77.1"), "{first}");
    login.ok(&["network", "connect", "one", "c"])?;
    let interfaces = inside("ls /sys/class/net | sort | xargs")?;
    expect_eq(interfaces, "eth0 eth1 lo")?;
    expect_contains(resolv_conf()?, "nameserver 172.29.77.1")?;
    expect_contains(inside("nslookup db")?, "172.29.77.")?;
    expect_contains(inside("cat /etc/hosts")?, "172.29.77.")?;
    login.ok(&["network", "disconnect", "selkie", "c"])?;
    expect_contains(inside("ip route")?, "default via 172.29.77.1 dev eth1")?;
    expect_contains(inside("nslookup db")?, "172.29.77.")?;
    login.ok(&["network", "connect", "selkie", "c"])?;
    login.ok(&["network", "disconnect", "one", "c"])?;
    expect_eq(resolv_conf()?, first)?;
    ensure!(inside("nslookup db 2>&1; true")?.contains("can't find"));
    inside("echo nameserver 192.0.2.53 >/etc/resolv.conf")?;
    login.ok(&["network", "connect", "one", "c"])?;
    expect_eq(resolv_conf()?, "nameserver 192.0.2.53")?;
    login.ok(&["rm", "--force", "--time", "0", "c", "db"])?;
    login.ok(&["network", "rm", "one"])?;
    login.is_clean()
}

fn removal_of_networks_in_use(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["network", "create", "one"])?;
    login.ok(&["create", "--name", "c", "--network", "one", "busybox"])?;
    let error = login.refused(2, &["network", "rm", "one"])?;
    expect_contains(error.as_str(), "being used")?;
    expect_contains(error, "c")?;
    expect_eq(login.ok(&["network", "prune", "-f"])?, "")?;
    expect_eq(login.ok(&["network", "rm", "--force", "one"])?, "one")?;
    expect_eq(login.ok(&["ps", "-aq"])?, "")?;
    Ok(())
}

fn published_ports(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&[
        "create",
        "--name",
        "c",
        "-p",
        "18080:80",
        "-p",
        "127.0.0.1::81",
        "-p",
        "[::1]:18081:82/udp",
        "-p",
        "19000-19002:90-92",
        "--expose",
        "99/udp",
        "busybox",
    ])?;
    let list = login.ok(&["port", "c"])?;
    for line in [
        "80/tcp -> 0.0.0.0:18080",
        "82/udp -> [::1]:18081",
        "90/tcp -> 0.0.0.0:19000",
        "92/tcp -> 0.0.0.0:19002",
    ] {
        ensure!(
            list.lines().any(|seen| seen == line),
            "{line} is not in {list}"
        );
    }
    expect_eq(login.ok(&["port", "c", "80"])?, "0.0.0.0:18080")?;
    let chosen = login.ok(&["port", "c", "81/tcp"])?;
    let port: u16 = chosen
        .strip_prefix("127.0.0.1:")
        .context(chosen.clone())?
        .parse()?;
    ensure!(port > 0);
    login.refused(125, &["port", "c", "80/udp"])?;
    let column = login.ok(&["ps", "-a", "--format", "{{.Ports}}"])?;
    expect_contains(column.as_str(), "0.0.0.0:19000-19002->90-92/tcp")?;
    let seen = login.json(&["inspect", "c"])?;
    let ports = &seen[0]["NetworkSettings"]["Ports"];
    ensure!(
        ports["80/tcp"] == serde_json::json!([{"HostIp": "0.0.0.0", "HostPort": "18080"}])
            && ports["99/udp"].is_null()
            && ports.get("99/udp").is_some()
            && ports == &seen[0]["HostConfig"]["PortBindings"],
        "{ports}"
    );
    let json = login.json(&["ps", "-a", "--format", "json"])?;
    ensure!(
        json[0]["Ports"]
            .as_array()
            .is_some_and(|all| all.len() == 4),
        "{json}"
    );
    // Everything exposed, each on a port of its own.
    login.ok(&[
        "create", "--name", "all", "-P", "--expose", "80-84", "--expose", "53/udp", "busybox",
    ])?;
    let list = login.ok(&["port", "all"])?;
    let ends: BTreeSet<&str> = list
        .lines()
        .filter_map(|line| line.split(" -> ").nth(1))
        .collect();
    ensure!(ends.len() == 6, "{list}");
    // Of a range, one that is free.
    let listener = std::net::TcpListener::bind(("0.0.0.0", 0))?;
    let taken = listener.local_addr()?.port();
    let taken = taken.min(65_000);
    let range = format!("{taken}-{}:80", taken + 30);
    login.ok(&["create", "--name", "one-of", "-p", &range, "busybox"])?;
    let chosen = login.ok(&["port", "one-of", "80"])?;
    ensure!(chosen != format!("0.0.0.0:{taken}"), "{chosen} is in use");
    Ok(())
}

fn flags_that_conflict(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["network", "create", "one"])?;
    login.ok(&["network", "create", "two"])?;
    login.ok(&["create", "--name", "idle", "busybox"])?;
    for (flags, word) in [
        (
            &["--network", "host", "--network", "none"][..],
            "multiple networks",
        ),
        (
            &["--network", "host", "--ip", "10.0.0.5"],
            "--ip can only be set",
        ),
        (
            &["--network", "none", "--mac-address", "02:00:00:00:00:01"],
            "--mac-address",
        ),
        (
            &["--network", "host", "--network-alias", "x"],
            "--network-alias",
        ),
        (
            &["--network", "one,two", "--ip", "10.0.0.5"],
            "single network",
        ),
        (&["--network", "one", "--ip", "203.0.113.5"], "203.0.113.5"),
        (&["--network", "one:colour=red"], "colour"),
        (&["--network", "nope"], "network not found"),
        (&["--network", "container:nope"], "no such container"),
        (&["--network", "container:idle"], "does not run"),
        (&["--network", "ns:relative"], "absolute"),
        (&["--network", "slirp4netns:mtu=x"], "mtu"),
        (&["--mac-address", "01:00:00:00:00:00"], "MAC"),
        (&["-p", "80/sctp"], "SCTP"),
        (&["-p", "0:80:90"], "IP address"),
        (
            &["-p", "18080:80", "-p", "18080:81"],
            "conflicting port mappings",
        ),
        (&["-p", "8080-8082:80-81"], "different lengths"),
        (&["-p", "192.0.2.77::80"], "192.0.2.77"),
        (&["--expose", "x"], "between 1 and 65535"),
        (&["--dns", "none", "--dns", "192.0.2.1"], "not allowed"),
        (&["--dns", "dns.example"], "not an IP address"),
        (
            &["--network", "none", "--dns", "192.0.2.1"],
            "conflicting options",
        ),
        (&["--dns-search", "a b"], "resolv.conf"),
        (
            &["--no-hosts", "--add-host", "a:192.0.2.1"],
            "cannot be set together",
        ),
        (&["--add-host", "a"], "bad format"),
        (&["--add-host", "a:b"], "invalid IP address"),
    ] {
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(flags);
        all.extend_from_slice(&["busybox", "true"]);
        let error = login
            .refused(125, &all)
            .with_context(|| format!("{flags:?}"))?;
        expect_contains(error, word)?;
    }
    // As in Podman, what cannot be published is left out with a warning.
    let made = login
        .selkie(&[
            "create",
            "--name",
            "h",
            "--network",
            "host",
            "-p",
            "18080:80",
            "busybox",
        ])
        .run()?;
    expect_contains(made.error(), "Port mappings have been discarded")?;
    made.ok()?;
    expect_eq(login.ok(&["port", "h"])?, "")?;
    Ok(())
}

fn hosts_of(login: &Login, options: &[&str]) -> Result<String> {
    let mut all = vec!["run", "--rm"];
    all.extend_from_slice(options);
    all.extend_from_slice(&["busybox", "cat", "/etc/hosts"]);
    login.ok(&all)
}

fn names_in_etc(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let has = |text: &str, line: &str| -> Result<()> {
        ensure!(
            text.lines().any(|seen| seen == line),
            "{line:?} is not in {text}"
        );
        Ok(())
    };
    let hosts = hosts_of(
        &login,
        &["--network", "none", "--add-host", "a;b:192.0.2.7"],
    )?;
    has(&hosts, "192.0.2.7\ta b")?;
    let hosts = hosts_of(
        &login,
        &["--network", "host", "--add-host", "gate:host-gateway"],
    )?;
    has(&hosts, "127.0.0.1\tgate")?;
    login.ok(&["network", "create", "--subnet", SUBNET, "one"])?;
    let hosts = hosts_of(
        &login,
        &[
            "--network",
            "one:ip=172.29.77.7",
            "--hostname",
            "seal",
            "--name",
            "grey",
            "--add-host",
            "gate:host-gateway",
        ],
    )?;
    has(&hosts, "172.29.77.7\tseal grey")?;
    has(
        &hosts,
        "169.254.1.2\thost.containers.internal host.docker.internal",
    )?;
    has(&hosts, "169.254.1.2\tgate")?;
    // The image's own files stay when they are asked to.
    let script = "cat /etc/hosts /etc/hostname /etc/resolv.conf 2>/dev/null | grep -c seal";
    let kept = login
        .selkie(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--hostname",
            "seal",
            "--no-hosts",
            "--no-hostname",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .run()?;
    expect_eq(kept.text(), "0")?;
    let asked = login.ok(&[
        "run",
        "--rm",
        "--network",
        "host",
        "--dns",
        "192.0.2.53",
        "--dns-search",
        "example",
        "--dns-option",
        "ndots:3",
        "busybox",
        "cat",
        "/etc/resolv.conf",
    ])?;
    expect_eq(
        asked,
        "search example\nnameserver 192.0.2.53\noptions ndots:3",
    )?;
    Ok(())
}

fn addresses_of_a_crowd_all_differ(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    // Room for twelve, and no more.
    login.ok(&[
        "network",
        "create",
        "--subnet",
        SUBNET,
        "--ip-range",
        "172.29.77.10-172.29.77.21",
        "small",
    ])?;
    let starting = (0..12)
        .map(|_| {
            login
                .selkie(&[
                    "run",
                    "-d",
                    "--network",
                    "small",
                    "busybox",
                    "sleep",
                    "1000",
                ])
                .spawn()
        })
        .collect::<Result<Vec<_>>>()?;
    let mut ids = Vec::new();
    for running in starting {
        ids.push(running.wait()?.ok()?);
    }
    let mut addresses = BTreeSet::new();
    for id in &ids {
        addresses.insert(login.ok(&[
            "inspect",
            "--format",
            "{{.NetworkSettings.Networks.small.IPAddress}}",
            id,
        ])?);
    }
    ensure!(
        addresses.len() == 12 && !addresses.contains(""),
        "{addresses:?}"
    );
    let error = login.refused(
        125,
        &["run", "--rm", "--network", "small", "busybox", "true"],
    )?;
    expect_contains(error.as_str(), "172.29.77.10-172.29.77.21")?;
    expect_contains(error, "selkie network disconnect")?;
    // One that does not run makes room, and finds another place when it runs again.
    login.ok(&["stop", "-t", "0", &ids[0]])?;
    let mut freed = ids.split_off(11);
    freed.push(login.ok(&[
        "run",
        "-d",
        "--network",
        "small",
        "busybox",
        "sleep",
        "1000",
    ])?);
    login.refused(125, &["start", &ids[0]])?;
    login.ok(&["rm", "-f", "-t", "0", &freed[0]])?;
    login.ok(&["start", &ids[0]])?;
    login.ok(&["rm", "-f", "-t", "0", "--all"])?;
    login.is_clean()
}

fn networks_made_at_once_do_not_overlap(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let making = (0..20)
        .map(|index| {
            login
                .selkie(&["network", "create", "--ipv6", &format!("n{index}")])
                .spawn()
        })
        .collect::<Result<Vec<_>>>()?;
    for running in making {
        running.wait()?.ok()?;
    }
    let json = login.json(&["network", "ls", "--format", "json"])?;
    let subnets: BTreeSet<String> = json
        .as_array()
        .context("not a list")?
        .iter()
        .flat_map(|network| network["subnets"].as_array().cloned().unwrap_or_default())
        .map(|subnet| subnet["subnet"].to_string())
        .collect();
    ensure!(subnets.len() == 42, "{json}");
    Ok(())
}
