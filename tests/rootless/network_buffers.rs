//! How much TCP receives ahead in containers: not so much that pasta loses count.

use anyhow::{Context, Result};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::hosts::Hosts;
use crate::login::{Login, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("network_buffers::are_bounded", are_bounded),
        ground.trial(
            "network_buffers::what_was_asked_for_stays",
            what_was_asked_for_stays,
        ),
    ]
}

const FILE: &str = "/proc/sys/net/ipv4/tcp_rmem";

/// Of pasta's 16 MB.
const MOST: u64 = 8 << 20;

fn largest(buffers: &str) -> Result<u64> {
    let last = buffers.split_whitespace().last().context(FILE)?;
    Ok(last.parse()?)
}

fn are_bounded(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    login.ok(&["network", "create", "mine"])?;
    let wanted = largest(&std::fs::read_to_string(FILE)?)?.min(MOST);
    for network in ["private", "mine", "pasta"] {
        let seen = login.ok(&["run", "--rm", "--network", network, "busybox", "cat", FILE])?;
        expect_eq(largest(&seen)?.to_string(), wanted.to_string()).context(network)?;
    }
    Ok(())
}

fn what_was_asked_for_stays(ground: &'static Ground) -> Result<()> {
    let hosts = Hosts::new(ground)?;
    let login = hosts.login(0)?;
    login.ok(&["network", "create", "mine"])?;
    let asked = ["--sysctl", "net.ipv4.tcp_rmem=4096 131072 20971520"];
    let is_kept = |login: &Login, id: &str| {
        let seen = login.ok(&["exec", id, "cat", FILE])?;
        expect_eq(largest(&seen)?.to_string(), "20971520")
    };
    for network in ["mine", "pasta"] {
        let container = login.sleeper(&[&asked[..], &["--network", network]].concat())?;
        is_kept(&login, &container.id).context(network)?;
    }
    let container = login.sleeper(&[&asked[..], &["--network", "mine"]].concat())?;
    login.ok(&["network", "create", "other"])?;
    login.ok(&["network", "connect", "other", &container.id])?;
    login.ok(&["network", "reload", &container.id])?;
    is_kept(&login, &container.id)
}
