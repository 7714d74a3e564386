//! `network create --route`: routes that all containers of a network have.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::hosts::{HOST, Hosts, INSIDE, PORT, WORLD};
use crate::login::{Login, expect_contains, expect_eq};
use crate::online::is_serving;

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("network_routes::on_record", on_record),
        ground.trial(
            "network_routes::what_is_behind_a_container",
            what_is_behind_a_container,
        ),
    ]
}

fn on_record(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&[
        "network",
        "create",
        "--subnet",
        "172.29.78.0/24",
        "--route",
        "10.8.1.2/16,172.29.78.7",
        "--route",
        "0.0.0.0/0,172.29.78.8,5",
        "routes",
    ])?;
    let seen = login.json(&["network", "inspect", "routes"])?;
    ensure!(
        seen[0]["routes"]
            == serde_json::json!([
                {"destination": "10.8.0.0/16", "gateway": "172.29.78.7", "metric": 100},
                {"destination": "0.0.0.0/0", "gateway": "172.29.78.8", "metric": 5},
            ]),
        "{seen}"
    );
    for (flag, value, word) in [
        ("--interface-name", "br0", "cannot be named"),
        ("--route", "x", "--route x"),
        ("--route", "10.8.0.0/16", "not a route"),
        ("--route", "10.8.0.0/16,172.29.79.7,high", "not a route"),
        (
            "--route",
            "10.8.0.0/16,192.0.2.1",
            "not in the network's subnet",
        ),
        ("--route", "fd00:8::/64,192.0.2.1", "other IP family"),
    ] {
        let error = login
            .refused(125, &["network", "create", flag, value, "x"])
            .with_context(|| format!("{flag} {value}"))?;
        expect_contains(error, word)?;
    }
    two_ways_are_refused(&login)
}

fn two_ways_are_refused(login: &Login) -> Result<()> {
    let [first, second] = ["10.8.0.0/16,172.29.79.7", "10.8.1.0/16,172.29.79.8"];
    let create = ["network", "create", "--subnet", "172.29.79.0/24", "--route"];
    let twice = [&create[..], &[first, "--route", second, "twice"]].concat();
    let error = login.refused(125, &twice)?;
    expect_contains(error, "there is another of metric 100")?;
    login.ok(&[&create[..], &[first, "other"]].concat())?;
    let subnet = "172.29.80.0/24";
    let later = "10.8.0.0/16,172.29.80.7,200";
    login.ok(&[
        "network", "create", "--subnet", subnet, "--route", later, "later",
    ])?;
    let both = |second| {
        [
            "create",
            "--network",
            "routes",
            "--network",
            second,
            "busybox",
        ]
    };
    let error = login.refused(125, &both("other"))?;
    expect_contains(
        error,
        "networks routes and other both have a route to 10.8.0.0/16",
    )?;
    let id = login.ok(&both("later"))?;
    let error = login.refused(125, &["network", "connect", "other", &id])?;
    expect_contains(error, "a container in both would have two ways there")
}

/// A container that has more networks behind it than its own address is reached by them, also after its
/// neighbours' places were made again.
fn what_is_behind_a_container(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    login.ok(&[
        "network",
        "create",
        "--subnet",
        "172.29.77.0/24",
        "--subnet",
        "fd77:77::/64",
        "--route",
        "10.8.0.0/16,172.29.77.9",
        "--route",
        "fd77:8::/64,fd77:77::9",
        "vpn",
    ])?;
    let addresses = ["10.8.0.1", "fd77:8::1"];
    let script = format!(
        "for address in {}; do ip address add $address dev lo; done; exec wire serve {INSIDE}",
        addresses.join(" ")
    );
    let router = login.detached(&[
        "--network",
        "vpn:ip=172.29.77.9,ip6=fd77:77::9",
        "--cap-add",
        "NET_ADMIN",
        "busybox",
        "sh",
        "-c",
        &script,
    ])?;
    is_serving(&router)?;
    let client = login.sleeper(&["--network", "vpn"])?;
    for _ in 0..2 {
        for address in addresses {
            client.exec(&["wire", "who", address, INSIDE])?;
        }
        login.ok(&["network", "reload", &client.id, &router.id])?;
    }
    // The way out is what it was.
    expect_eq(client.exec(&["wire", "who", WORLD[0], PORT])?, HOST[0])
}
