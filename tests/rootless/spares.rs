//! What a `--rm` container that changed nothing leaves to the next one, and what it does not.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::login::{Login, eventually, expect_eq};
use crate::processes;

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("spares::are_taken_again", are_taken_again),
        ground.trial("spares::what_was_changed_is_gone", what_was_changed_is_gone),
        ground.trial("spares::names_are_each_ones_own", names_are_each_ones_own),
        ground.trial(
            "spares::only_containers_apart_leave_them",
            only_containers_apart_leave_them,
        ),
        ground.trial(
            "spares::dead_ones_are_listed_and_removed",
            dead_ones_are_listed_and_removed,
        ),
        ground.trial(
            "spares::those_online_have_their_own",
            those_online_have_their_own,
        ),
        ground.trial(
            "spares::those_that_had_company_leave_none",
            those_that_had_company_leave_none,
        ),
        ground.trial("spares::go_with_their_image", go_with_their_image),
    ]
}

fn spares(login: &Login) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(login.data_dir().join("spares")) {
        Ok(entries) => Ok(entries
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Runs a shell script in a container of the kind that may leave a spare, and waits until its
/// monitor is done.
fn run(login: &Login, script: &str) -> Result<String> {
    run_with(login, &[], script)
}

fn run_with(login: &Login, options: &[&str], script: &str) -> Result<String> {
    let mut words = vec!["run", "--rm"];
    if !options.contains(&"--network") {
        words.extend(["--network", "none"]);
    }
    words.extend_from_slice(options);
    words.extend_from_slice(&["busybox", "sh", "-c", script]);
    let said = login.ok(&words).with_context(|| script.to_owned())?;
    monitors_have_ended(login)?;
    Ok(said)
}

/// The uplink of those with a network stays a while.
fn monitors_have_ended(login: &Login) -> Result<()> {
    eventually("the monitor has ended", || {
        let mut monitors = login.monitors().into_iter();
        Ok(!monitors.any(|pid| processes::name(pid) == "selkie-monitor"))
    })
}

/// Leaves exactly one spare.
fn leave_one(login: &Login) -> Result<PathBuf> {
    run(login, "true")?;
    let mut found = spares(login)?;
    ensure!(found.len() == 1, "spares: {found:?}");
    found.pop().context("just counted")
}

fn inode(path: &PathBuf) -> Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(
        path,
    )?))
}

fn are_taken_again(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let first = inode(&leave_one(&login)?)?;
    // Reading, computing and talking change nothing.
    expect_eq(run(&login, "cat /etc/hosts >/dev/null; echo out")?, "out")?;
    let second = spares(&login)?;
    ensure!(second.len() == 1, "spares: {second:?}");
    expect_eq(inode(&second[0])?, first)?;
    // A command that is not there is no run.
    login.refused(
        127,
        &["run", "--rm", "--network", "none", "busybox", "nowhere"],
    )?;
    login.is_clean()?;
    let first = inode(&leave_one(&login)?)?;
    // One that holds the spare while another wants it.
    let held = login.detached(&["--rm", "--network", "none", "busybox", "sleep", "3600"])?;
    ensure!(spares(&login)?.is_empty(), "the spare was not taken");
    expect_eq(
        inode(&login.data_dir().join("containers").join(&held.id))?,
        first,
    )?;
    expect_eq(
        login.ok(&["run", "--rm", "--network", "none", "busybox", "echo", "x"])?,
        "x",
    )?;
    drop(held);
    login.is_clean()
}

fn what_was_changed_is_gone(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    // All there is, but for what is mounted: name, mode, owners, size, links.
    let listing = || {
        let names = ["--name", "same", "--hostname", "same"];
        let script = "find / -xdev -exec stat -c '%n %a %u %g %s %h %F' {} + \
                      | grep -v -e '^/dev ' -e '^/proc ' -e '^/sys ' | sort";
        run_with(&login, &names, script)
    };
    let untouched = listing()?;
    ensure!(untouched.contains("/run/.containerenv"), "{untouched}");
    ensure!(
        spares(&login)?.is_empty(),
        "a listing shows in access times"
    );
    for change in [
        "echo x >/tmp/file",
        "echo x >/tmp/file; rm /tmp/file",
        "mkdir /new && rmdir /new",
        "chmod 700 /etc",
        "chmod 755 /etc",
        "chown 1:1 /run",
        "touch /run",
        "touch /",
        "echo evil >>/etc/hosts",
        "echo evil >/etc/hostname",
        "chmod 777 /run/.containerenv",
        "ln -s /proc /run/link",
        "rm -r /home",
        "mv /home /house && mv /house /home",
        "echo x:x:0:0::/:/bin/sh >>/etc/passwd",
        "ls / >/dev/null",
    ] {
        let spare = inode(&leave_one(&login)?)?;
        run(&login, change)?;
        ensure!(
            spares(&login)?.is_empty(),
            "a spare ({spare}) is left after `{change}`"
        );
        leave_one(&login)?;
        expect_eq(listing()?, untouched.as_str()).with_context(|| change.to_owned())?;
    }
    login.is_clean()
}

fn names_are_each_ones_own(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let mut seen = None;
    for name in ["a-rather-long-name-to-begin-with", "b", "another-one"] {
        let said = run_with(
            &login,
            &["--name", name, "--hostname", &format!("host-{name}")],
            "cat /etc/hostname /etc/hosts; hostname",
        )?;
        let expected = format!(
            "host-{name}\n127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\thost-{name} {name}\nhost-{name}"
        );
        expect_eq(said, expected)?;
        let found = spares(&login)?;
        ensure!(found.len() == 1, "spares: {found:?}");
        let inode = inode(&found[0])?;
        ensure!(seen.is_none_or(|seen| seen == inode), "not taken again");
        seen = Some(inode);
    }
    Ok(())
}

fn only_containers_apart_leave_them(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    for options in [
        &["--volume", "shared:/shared"][..],
        &["--volume", "/anonymous"],
        &["--tmpfs", "/memory"],
        &["--network", "host"],
        &["--pid", "host"],
        &["--userns", "host"],
        &["--userns", "keep-id"],
        &["--cap-add", "SYS_ADMIN"],
        &["--security-opt", "seccomp=unconfined"],
        &["--security-opt", "unmask=ALL"],
        &["--read-only"],
        &["--workdir", "/made for it"],
    ] {
        run_with(&login, options, "true")?;
        let found = spares(&login)?;
        ensure!(found.is_empty(), "{options:?} left {found:?}");
        // Nor do they take one.
        let before = leave_one(&login)?;
        run_with(&login, options, "true")?;
        expect_eq(spares(&login)?, vec![before])?;
        run(&login, "touch /")?;
    }
    // Kept, but for its like only.
    run_with(&login, &["--workdir", "/made"], "true")?;
    leave_one(&login).err().context("two kinds, two spares")?;
    ensure!(
        run(&login, "ls -d /made 2>&1 || true")?.contains("No such file"),
        "a working directory of another container"
    );
    expect_eq(run_with(&login, &["--workdir", "/made"], "pwd")?, "/made")?;
    login.is_clean()
}

fn those_online_have_their_own(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["network", "create", "one"])?;
    login.ok(&["network", "create", "two"])?;
    let apart = inode(&leave_one(&login)?)?;
    let script = "cat /etc/hostname; tail -n 1 /etc/hosts; cat /etc/resolv.conf";
    let online = |network: &str, name: &str| -> Result<(String, u64)> {
        let options = ["--network", network, "--name", name, "--hostname", name];
        let said = run_with(&login, &options, script)?;
        let found: Vec<PathBuf> = spares(&login)?;
        let inodes = found.iter().map(inode).collect::<Result<Vec<_>>>()?;
        let mut others = inodes.iter().filter(|inode| **inode != apart);
        let other = others.next().context("no spare of one with a network")?;
        ensure!(others.next().is_none() && found.len() == 2, "{found:?}");
        Ok((said, *other))
    };
    let address = |said: &str, name: &str| -> Result<String> {
        let line = said.lines().nth(1).context("no last line of hosts")?;
        let (address, names) = line.split_once('\t').context("an address and names")?;
        expect_eq(names, name)?;
        Ok(address.to_owned())
    };
    // Files of one network are not seen in the other, also where they are shorter.
    let (said, spare) = online("one", "a-rather-long-name")?;
    ensure!(said.starts_with("a-rather-long-name\n"), "{said}");
    ensure!(said.contains("search dns.podman"), "{said}");
    let first = address(&said, "a-rather-long-name")?;
    let (said, again) = online("two", "b")?;
    expect_eq(again, spare)?;
    ensure!(said.starts_with("b\n"), "{said}");
    ensure!(address(&said, "b")? != first, "{said}");
    ensure!(!said.contains("rather"), "{said}");
    let (_, again) = online("bridge", "c")?;
    expect_eq(again, spare)?;
    // One without has no resolv.conf, and takes its own kind.
    ensure!(
        run(&login, "grep resolv.conf /proc/self/mounts || echo none")? == "none",
        "a file of a network"
    );
    expect_eq(spares(&login)?.len(), 2)?;

    // Files that changed while it ran are not passed on.
    let moves = login.detached(&[
        "--rm",
        "--network",
        "one",
        "--name",
        "moves",
        "busybox",
        "sleep",
        "3600",
    ])?;
    login.ok(&["network", "connect", "two", "moves"])?;
    login.ok(&["kill", "moves"])?;
    monitors_have_ended(&login)?;
    drop(moves);
    expect_eq(spares(&login)?.len(), 1)?;
    login.ok(&["network", "rm", "one", "two"])?;
    login.is_clean()
}

/// Processes of two containers in one network namespace can pass each other descriptors.
fn those_that_had_company_leave_none(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    for network in ["none", "bridge"] {
        for is_by_path in [false, true] {
            let host =
                login.detached(&["--rm", "--network", network, "busybox", "sleep", "3600"])?;
            let pid = login.ok(&["inspect", "--format", "{{.State.Pid}}", &host.id])?;
            let join = if is_by_path {
                format!("ns:/proc/{pid}/ns/net")
            } else {
                format!("container:{}", host.id)
            };
            login.ok(&["run", "--rm", "--network", &join, "busybox", "true"])?;
            login.ok(&["kill", &host.id])?;
            monitors_have_ended(&login)?;
            drop(host);
            ensure!(
                spares(&login)?.is_empty(),
                "{network}, joined by {join}: {:?}",
                spares(&login)
            );
        }
    }
    // Killed, it would have left one.
    let alone = login.detached(&["--rm", "--network", "none", "busybox", "sleep", "3600"])?;
    login.ok(&["kill", &alone.id])?;
    monitors_have_ended(&login)?;
    drop(alone);
    expect_eq(spares(&login)?.len(), 1)?;
    login.is_clean()
}

fn dead_ones_are_listed_and_removed(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let spare = leave_one(&login)?;
    login.is_clean()?;
    let root = spare.join("root");
    login.ok(&["unshare", "umount", &root.to_string_lossy()])?;
    let listed = login.selkie(&["system", "check"]).run()?.code(1)?;
    ensure!(
        listed.text().contains(&*spare.to_string_lossy()),
        "{listed:?}"
    );
    // Nobody takes it.
    expect_eq(run(&login, "echo x")?, "x")?;
    ensure!(spare.exists(), "a dead spare was taken");
    login.ok(&["system", "prune", "--force"])?;
    ensure!(!spare.exists(), "prune left {}", spare.display());
    login.is_clean()
}

fn go_with_their_image(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    leave_one(&login)?;
    login.ok(&["rmi", "busybox"])?;
    ensure!(spares(&login)?.is_empty(), "{:?}", spares(&login));
    login.load("busybox.oci.tar")?;
    expect_eq(
        run(&login, "cat /etc/passwd | head -n 1 | cut -d : -f 1")?,
        "root",
    )?;
    leave_one(&login)?;
    login.is_clean()
}
