//! Many commands at once.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::login::{Login, Running, eventually, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial(
            "crowds::three_hundred_runs_at_once",
            three_hundred_runs_at_once,
        ),
        ground.trial(
            "crowds::a_hundred_first_commands_make_one_pause_process",
            a_hundred_first_commands_make_one_pause_process,
        ),
        ground.trial("crowds::mixed_commands", mixed_commands),
        ground.trial(
            "crowds::loads_of_one_image_at_once",
            loads_of_one_image_at_once,
        ),
        ground.trial("crowds::two_logins_at_once", two_logins_at_once),
    ]
}

/// Starts all of them before any is waited for.
fn all_at_once(
    login: &Login,
    count: usize,
    arguments: impl Fn(usize) -> Vec<String>,
) -> Result<Vec<Running>> {
    (0..count)
        .map(|index| {
            let arguments = arguments(index);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            login.selkie(&arguments).spawn()
        })
        .collect()
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn three_hundred_runs_at_once(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let running = all_at_once(&login, 300, |index| {
        words(&format!("run --rm busybox echo number {index}"))
    })?;
    let mut failures = Vec::new();
    for (index, running) in running.into_iter().enumerate() {
        let finished = running.wait()?;
        if finished.code != 0 || finished.text() != format!("number {index}") {
            failures.push(format!("{index}: {finished:?}"));
        }
    }
    ensure!(
        failures.is_empty(),
        "{} of 300 failed, the first: {}",
        failures.len(),
        failures[0]
    );
    ensure!(login.ok(&["ps", "--all", "--quiet"])?.is_empty());
    login.is_clean()?;
    Ok(())
}

fn a_hundred_first_commands_make_one_pause_process(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login()?;
    let running = all_at_once(&login, 100, |_| {
        words("unshare readlink /proc/self/ns/user")
    })?;
    let mut namespaces = BTreeSet::new();
    for running in running {
        namespaces.insert(running.wait()?.ok()?);
    }
    ensure!(namespaces.len() == 1, "the commands ran in {namespaces:?}");
    let left = login.background_processes();
    ensure!(
        left.len() == 1,
        "one pause process expected, found {left:?}"
    );
    // And again when it has been killed under them.
    login.end_background();
    let running = all_at_once(&login, 100, |_| words("ps --all"))?;
    for running in running {
        running.wait()?.ok()?;
    }
    let left = login.background_processes();
    ensure!(
        left.len() == 1,
        "one pause process expected, found {left:?}"
    );
    Ok(())
}

fn mixed_commands(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let container = login.sleeper(&["--name", "target"])?;
    let kinds = [
        "run --rm busybox true",
        "exec target true",
        "ps --all --format json",
        "images",
        "create --name made-NUMBER busybox true",
        "run --name ran-NUMBER busybox true",
        "run --detach --rm busybox true",
        "tag busybox tag-NUMBER",
        "container inspect target",
        "volume create volume-NUMBER",
    ];
    let running = all_at_once(&login, 150, |index| {
        words(&kinds[index % kinds.len()].replace("NUMBER", &index.to_string()))
    })?;
    for (index, running) in running.into_iter().enumerate() {
        let finished = running.wait()?;
        ensure!(finished.code == 0, "{index}: {finished:?}");
    }
    drop(container);
    // The detached ones end when they like.
    eventually("only the 30 kept containers are left", || {
        Ok(login.ok(&["ps", "--all", "--quiet"])?.lines().count() == 30)
    })?;
    expect_eq(login.ok(&["volume", "ls", "--quiet"])?.lines().count(), 15)?;
    login.ok(&["rm", "--all"])?;
    login.is_clean()?;
    Ok(())
}

fn loads_of_one_image_at_once(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login()?;
    let archive = ground.image("rich.oci.tar")?;
    let running = all_at_once(&login, 10, |_| {
        vec![
            "load".into(),
            "--input".into(),
            archive.display().to_string(),
        ]
    })?;
    for running in running {
        running.wait()?.ok()?;
    }
    expect_eq(login.ok(&["images", "--quiet"])?.lines().count(), 1)?;
    ensure!(login.ok(&["run", "--rm", "rich"])?.contains("hello"));
    login.is_clean()?;
    Ok(())
}

fn two_logins_at_once(ground: &'static Ground) -> Result<()> {
    let (first, second) = (ground.login()?, ground.other_login()?);
    let runs: Vec<(&Login, Running)> = [first, second]
        .into_iter()
        .flat_map(|login| (0..20).map(move |_| login))
        .map(|login| {
            Ok((
                login,
                login
                    .selkie(&["run", "--rm", "busybox", "cat", "/proc/self/uid_map"])
                    .spawn()?,
            ))
        })
        .collect::<Result<_>>()?;
    for (_, running) in runs {
        running.wait()?.ok()?;
    }
    // Each login's containers hold only that login's IDs.
    for login in [first, second] {
        let container = login.sleeper(&[])?;
        for (_, outside, count) in crate::processes::id_map(container.pid()?, "uid_map")? {
            ensure!(login.user.owns_uid(outside) && login.user.owns_uid(outside + count - 1));
        }
    }
    Ok(())
}
