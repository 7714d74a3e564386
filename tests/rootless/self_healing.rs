//! Losing the pause process, a monitor or the runtime directory is boring.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::ground::Ground;
use crate::login::{Login, eventually, expect_eq};
use crate::processes;

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial(
            "self_healing::pause_killed_while_idle",
            pause_killed_while_idle,
        ),
        ground.trial(
            "self_healing::containers_survive_the_pause_process",
            containers_survive_the_pause_process,
        ),
        ground.trial(
            "self_healing::runtime_directory_deleted",
            runtime_directory_deleted,
        ),
        ground.trial("self_healing::monitor_killed", monitor_killed),
        ground.trial("self_healing::everything_killed", everything_killed),
        ground.trial(
            "self_healing::check_lists_and_prune_removes",
            check_lists_and_prune_removes,
        ),
        ground.trial(
            "self_healing::system_commands_by_flags",
            system_commands_by_flags,
        ),
    ]
}

/// The one pause process of a login with no command running.
fn pause_of(login: &Login) -> Result<i32> {
    let found = login.pause_processes();
    ensure!(found.len() == 1, "pause processes: {found:?}");
    Ok(found[0])
}

fn kill_and_wait(pid: i32) -> Result<()> {
    processes::signal(pid, Signal::KILL);
    eventually("the killed process is gone", || {
        Ok(!processes::is_alive(pid))
    })
}

fn pause_killed_while_idle(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    for _ in 0..3 {
        let pause = pause_of(&login)?;
        kill_and_wait(pause)?;
        expect_eq(login.ok(&["run", "--rm", "busybox", "echo", "x"])?, "x")?;
        ensure!(pause_of(&login)? != pause);
    }
    Ok(())
}

fn containers_survive_the_pause_process(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let container = login.detached(&[
        "busybox",
        "sh",
        "-c",
        "trap 'exit 9' TERM; while :; do echo tick; sleep 0.05; done",
    ])?;
    container.exec(&["sh", "-c", "echo kept >/file; chown 33 /file"])?;
    let pid = container.pid()?;
    kill_and_wait(pause_of(&login)?)?;
    ensure!(
        processes::is_alive(pid),
        "the container died with the pause process"
    );
    let lines = container.logs()?.lines().count();
    eventually("the log goes on", || {
        Ok(container.logs()?.lines().count() > lines)
    })?;
    expect_eq(container.pid()?, pid)?;
    expect_eq(container.exec(&["stat", "-c", "%u", "/file"])?, "33")?;
    // A second one, started now, has IDs of its own and the two do not meet.
    let second = login.sleeper(&[])?;
    let (first_map, second_map) = (
        processes::id_map(pid, "uid_map")?,
        processes::id_map(second.pid()?, "uid_map")?,
    );
    for (_, start, count) in &first_map {
        for (_, other, other_count) in &second_map {
            ensure!(
                start + count <= *other || other + other_count <= *start,
                "{first_map:?} meets {second_map:?}"
            );
        }
    }
    login.ok(&["stop", &container.id])?;
    ensure!(
        container.inspect("{{.State.ExitCode}}")? == "9",
        "the exit code was lost"
    );
    login.ok(&["start", &container.id])?;
    expect_eq(container.exec(&["cat", "/file"])?, "kept")?;
    Ok(())
}

fn runtime_directory_deleted(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let container = login.sleeper(&["--init"])?;
    let pid = container.pid()?;
    // What a tmp cleaner does.
    for entry in std::fs::read_dir(&login.runtime_dir)? {
        let path = entry?.path();
        if path.is_dir() {
            std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    expect_eq(login.ok(&["run", "--rm", "busybox", "echo", "x"])?, "x")?;
    ensure!(
        processes::is_alive(pid),
        "the container died with the runtime directory"
    );
    ensure!(
        container.pid()? == pid,
        "it is not known any more that it runs"
    );
    expect_eq(container.exec(&["echo", "x"])?, "x")?;
    login.ok(&["stop", &container.id])?;
    login.ok(&["rm", &container.id])?;
    Ok(())
}

fn monitor_killed(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let container = login.sleeper(&[])?;
    let monitors = login.monitors();
    ensure!(!monitors.is_empty(), "no monitor was found");
    for monitor in monitors {
        kill_and_wait(monitor)?;
    }
    // Whether it runs on or has ended with its monitor: ps, inspect and the kernel agree.
    let says = container.inspect("{{.State.Running}} {{.State.Pid}}")?;
    let (running, pid) = says.split_once(' ').context("two fields")?;
    if running == "true" {
        ensure!(processes::is_alive(pid.parse()?), "{says}");
        login.ok(&["kill", &container.id])?;
        login.ok(&["wait", &container.id])?;
    }
    login.ok(&["rm", "--force", &container.id])?;
    login.ok(&["system", "prune", "--force"])?;
    login.is_clean()?;
    Ok(())
}

fn everything_killed(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let name = "survivor";
    login.ok(&[
        "run",
        "--detach",
        "--name",
        name,
        "busybox",
        "sh",
        "-c",
        "[ -e /file ] || { echo kept >/file; chown 33:42 /file; }; sleep 1000",
    ])?;
    eventually("its file is written", || {
        Ok(login
            .selkie(&["exec", name, "test", "-s", "/file"])
            .run()?
            .code
            == 0)
    })?;
    // As a power cut without the disk: all processes at once, and no runtime directory after.
    login.end_background();
    for entry in std::fs::read_dir(&login.runtime_dir)?.flatten() {
        let _ = std::fs::remove_dir_all(entry.path());
    }
    let state = login.ok(&[
        "container",
        "inspect",
        "--format",
        "{{.State.Running}}",
        name,
    ])?;
    ensure!(state == "false", "{state}");
    ensure!(login.ok(&["ps", "--quiet"])?.is_empty());
    login.ok(&["start", name])?;
    expect_eq(
        login.ok(&["exec", name, "stat", "-c", "%u:%g", "/file"])?,
        "33:42",
    )?;
    login.ok(&["rm", "--force", "--time", "0", name])?;
    Ok(())
}

fn check_lists_and_prune_removes(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.is_clean()?;
    // Half a load: killed at a moment when it has certainly written something.
    // Files only: the store keeps its (at most 256) empty fan-out directories.
    let size = || -> Result<u64> {
        let data = login.data_dir();
        let data = data.to_string_lossy();
        let arguments = [&data, "-type", "f", "-printf", "%b\n"];
        let blocks = login.program("find", &arguments).run()?.text();
        Ok(blocks
            .lines()
            .filter_map(|count| count.parse::<u64>().ok())
            .sum::<u64>()
            * 512)
    };
    let before = size()?;
    let archive = ground.image("debian.oci.tar")?;
    let loading = login
        .selkie(&["load", "--input", &archive.to_string_lossy()])
        .spawn()?;
    eventually("the load has written something", || {
        Ok(size()? > before + 1_000_000)
    })?;
    loading.signal(Signal::KILL);
    loading.wait()?.code(137)?;
    ensure!(
        login.ok(&["images", "--quiet"])?.lines().count() == 1,
        "half an image is visible"
    );
    let check = login.selkie(&["system", "check"]).run()?;
    ensure!(
        check.code != 0,
        "nothing is listed after half a load: {check:?}"
    );
    login.ok(&["system", "prune", "--force"])?;
    let check = login.selkie(&["system", "check"]).run()?;
    ensure!(check.code == 0, "still there after prune: {check:?}");
    let after = size()?;
    ensure!(
        after < before + 500_000,
        "{before} bytes before, {after} after prune"
    );
    expect_eq(login.ok(&["run", "--rm", "busybox", "echo", "x"])?, "x")?;
    Ok(())
}

fn system_commands_by_flags(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["run", "--name", "stopped", "busybox", "true"])?;
    let running = login.sleeper(&[])?;
    // Without --force it asks, and no answer means no.
    let asked = login.selkie(&["system", "prune"]).stdin("n\n").run()?;
    ensure!(
        login.ok(&["ps", "--all", "--quiet"])?.lines().count() == 2,
        "{asked:?}"
    );
    login.ok(&["system", "prune", "--force"])?;
    let left = login.ok(&["ps", "--all", "--quiet", "--no-trunc"])?;
    ensure!(
        left == running.id,
        "prune removes stopped containers and no others: {left}"
    );
    ensure!(
        login.ok(&["images", "--quiet"])?.lines().count() == 1,
        "an image in use was pruned"
    );
    Ok(())
}
