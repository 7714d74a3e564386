//! The life of containers: run, create, start, stop, kill, rm, ps, logs, exec, wait, attach.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::ground::Ground;
use crate::login::{eventually, expect_contains, expect_eq};
use crate::processes;

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial(
            "containers::exit_codes_pass_through",
            exit_codes_pass_through,
        ),
        ground.trial("containers::streams_are_kept_apart", streams_are_kept_apart),
        ground.trial(
            "containers::stdin_reaches_only_interactive_ones",
            stdin_reaches_only_interactive_ones,
        ),
        ground.trial(
            "containers::large_streams_arrive_whole",
            large_streams_arrive_whole,
        ),
        ground.trial("containers::rm_leaves_nothing", rm_leaves_nothing),
        ground.trial("containers::created_then_started", created_then_started),
        ground.trial("containers::start_attached", start_attached),
        ground.trial("containers::restarted_keeps_files", restarted_keeps_files),
        ground.trial(
            "containers::stop_sends_the_stop_signal",
            stop_sends_the_stop_signal,
        ),
        ground.trial(
            "containers::stop_kills_after_the_timeout",
            stop_kills_after_the_timeout,
        ),
        ground.trial("containers::stop_takes_several", stop_takes_several),
        ground.trial("containers::kill_sends_signals", kill_sends_signals),
        ground.trial("containers::signals_are_forwarded", signals_are_forwarded),
        ground.trial(
            "containers::rm_refuses_running_ones",
            rm_refuses_running_ones,
        ),
        ground.trial(
            "containers::rm_refuses_whose_network_is_shared",
            rm_refuses_whose_network_is_shared,
        ),
        ground.trial("containers::wait_gives_exit_codes", wait_gives_exit_codes),
        ground.trial("containers::logs_keep_both_streams", logs_keep_both_streams),
        ground.trial("containers::logs_follow", logs_follow),
        ground.trial("containers::exec_does_its_flags", exec_does_its_flags),
        ground.trial(
            "containers::exec_ends_with_its_container",
            exec_ends_with_its_container,
        ),
        ground.trial("containers::attach_shows_output", attach_shows_output),
        ground.trial(
            "containers::attach_does_not_stop_it",
            attach_does_not_stop_it,
        ),
        ground.trial(
            "containers::found_by_prefix_and_name",
            found_by_prefix_and_name,
        ),
        ground.trial(
            "containers::zombies_are_reaped_with_init",
            zombies_are_reaped_with_init,
        ),
        ground.trial(
            "containers::detached_ones_outlive_the_caller",
            detached_ones_outlive_the_caller,
        ),
        ground.trial("containers::export_gives_its_files", export_gives_its_files),
    ]
}

fn exit_codes_pass_through(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    for code in [0, 1, 42, 125, 126, 127, 255] {
        let script = format!("exit {code}");
        login
            .selkie(&["run", "--rm", "busybox", "sh", "-c", &script])
            .run()?
            .code(code)?;
    }
    // Killed by a signal: 128 + its number.
    login
        .selkie(&["run", "--rm", "--init", "busybox", "sh", "-c", "kill -9 $$"])
        .run()?
        .code(137)?;
    let container = login.sleeper(&[])?;
    for code in [0, 3, 255] {
        let script = format!("exit {code}");
        container.try_exec(&["sh", "-c", &script])?.code(code)?;
    }
    container.try_exec(&["sh", "-c", "kill -9 $$"])?.code(137)?;
    container.try_exec(&["no-such-command"])?.code(127)?;
    container.try_exec(&["/owned"])?.code(126)?;
    Ok(())
}

fn streams_are_kept_apart(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let script = "echo out; echo err >&2";
    let finished = login
        .selkie(&["run", "--rm", "busybox", "sh", "-c", script])
        .run()?
        .code(0)?;
    ensure!(
        finished.stdout == b"out\n" && finished.stderr == b"err\n",
        "{finished:?}"
    );
    let container = login.sleeper(&[])?;
    let finished = container.try_exec(&["sh", "-c", script])?.code(0)?;
    ensure!(
        finished.stdout == b"out\n" && finished.stderr == b"err\n",
        "{finished:?}"
    );
    Ok(())
}

fn stdin_reaches_only_interactive_ones(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let run = |flags: &[&str]| -> Result<String> {
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(flags);
        all.extend_from_slice(&["busybox", "cat"]);
        login.selkie(&all).stdin("typed").run()?.ok()
    };
    expect_eq(run(&["--interactive"])?, "typed")?;
    expect_eq(run(&["-i"])?, "typed")?;
    ensure!(run(&[])?.is_empty());
    let container = login.sleeper(&[])?;
    let typed = login
        .selkie(&["exec", "-i", &container.id, "cat"])
        .stdin("typed")
        .run()?
        .ok()?;
    expect_eq(typed, "typed")?;
    ensure!(
        login
            .selkie(&["exec", &container.id, "cat"])
            .stdin("typed")
            .run()?
            .ok()?
            .is_empty()
    );
    Ok(())
}

fn large_streams_arrive_whole(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    // More than any pipe or socket buffer, through every kind of relay.
    let input: Vec<u8> = (0..8 * 1024 * 1024u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let echoed = login
        .selkie(&["run", "--rm", "-i", "busybox", "cat"])
        .stdin(input.clone())
        .run()?
        .code(0)?;
    ensure!(
        echoed.stdout == input,
        "run: {} of {} bytes, or others",
        echoed.stdout.len(),
        input.len()
    );
    let container = login.sleeper(&[])?;
    let echoed = login
        .selkie(&["exec", "-i", &container.id, "cat"])
        .stdin(input.clone())
        .run()?
        .code(0)?;
    ensure!(
        echoed.stdout == input,
        "exec: {} of {} bytes, or others",
        echoed.stdout.len(),
        input.len()
    );
    let both = login
        .selkie(&[
            "run",
            "--rm",
            "busybox",
            "sh",
            "-c",
            "dd if=/dev/zero bs=1M count=8 2>/dev/null | tee /dev/stderr",
        ])
        .run()?
        .code(0)?;
    ensure!(
        both.stdout.len() == 8 << 20 && both.stderr.len() == 8 << 20,
        "{} and {}",
        both.stdout.len(),
        both.stderr.len()
    );
    Ok(())
}

fn rm_leaves_nothing(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["run", "--rm", "busybox", "sh", "-c", "echo x >/file"])?;
    login
        .selkie(&["run", "--rm", "busybox", "false"])
        .run()?
        .code(1)?;
    let detached = login.ok(&["run", "--rm", "--detach", "busybox", "true"])?;
    eventually("the detached --rm container is gone", || {
        Ok(login.ok(&["ps", "--all", "--quiet"])?.is_empty())
    })?;
    login.refused(125, &["container", "inspect", &detached])?;
    eventually("its monitor has ended", || {
        Ok(login.background_processes().len() == 1)
    })?;
    login.is_clean()
}

fn created_then_started(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("made");
    let id = login.ok(&[
        "create",
        "--name",
        &name,
        "busybox",
        "sh",
        "-c",
        "echo ran; exit 5",
    ])?;
    expect_eq(
        login.ok(&[
            "container",
            "inspect",
            "--format",
            "{{.State.Status}} {{.State.Pid}}",
            &name,
        ])?,
        "created 0",
    )?;
    let filter = format!("name={name}");
    ensure!(
        login
            .ok(&["ps", "--quiet", "--filter", &filter])?
            .is_empty(),
        "ps shows what does not run"
    );
    expect_eq(
        login.ok(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter])?,
        id,
    )?;
    ensure!(
        login.ok(&["start", &name])? == name,
        "start prints what it was given"
    );
    expect_eq(login.ok(&["wait", &name])?, "5")?;
    let state = login.ok(&[
        "container",
        "inspect",
        "--format",
        "{{.State.Status}} {{.State.ExitCode}}",
        &name,
    ])?;
    ensure!(state == "exited 5", "{state}");
    expect_eq(login.ok(&["logs", &name])?, "ran")?;
    expect_eq(login.ok(&["rm", &name])?, name.as_str())?;
    login.refused(1, &["rm", &name])?;
    Ok(())
}

fn start_attached(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("attached");
    login.ok(&[
        "create",
        "--interactive",
        "--name",
        &name,
        "busybox",
        "sh",
        "-c",
        "read line; echo got $line; exit 9",
    ])?;
    for _ in 0..2 {
        let finished = login
            .selkie(&["start", "--attach", "--interactive", &name])
            .stdin("word\n")
            .run()?
            .code(9)?;
        ensure!(finished.text() == "got word", "{finished:?}");
    }
    login.ok(&["rm", &name])?;
    Ok(())
}

fn restarted_keeps_files(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("again");
    let script = "touch /runs && echo x >>/runs && wc -l </runs";
    let first = login.ok(&["run", "--name", &name, "busybox", "sh", "-c", script])?;
    let second = login.ok(&["start", "--attach", &name])?;
    let third = login.ok(&["start", "--attach", &name])?;
    ensure!(
        [first.as_str(), &second, &third] == ["1", "2", "3"],
        "{first} {second} {third}"
    );
    login.ok(&["rm", &name])?;
    Ok(())
}

fn stop_sends_the_stop_signal(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    for (options, signal, code) in [
        (&[][..], "15", 42),
        (&["--stop-signal", "SIGINT"][..], "2", 0),
        (&["--stop-signal", "10"][..], "10", 0),
    ] {
        let mut all = options.to_vec();
        let script = format!(
            "trap 'echo {signal}; exit {code}' {signal}; echo ready; while :; do sleep 0.05; done"
        );
        all.extend_from_slice(&["busybox", "sh", "-c", &script]);
        let container = login.detached(&all)?;
        eventually("it is ready", || Ok(container.logs()?.contains("ready")))?;
        expect_eq(login.ok(&["stop", &container.id])?, container.id.as_str())?;
        expect_eq(
            container.inspect("{{.State.Status}} {{.State.ExitCode}}")?,
            format!("exited {code}"),
        )?;
        expect_contains(container.logs()?, signal)?;
        // Stopping what is stopped is no error.
        login.ok(&["stop", &container.id])?;
    }
    Ok(())
}

fn stop_kills_after_the_timeout(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    for (run, stop) in [
        (&["--stop-timeout", "1"][..], &["stop"][..]),
        (&[][..], &["stop", "--time", "0"][..]),
        (&[][..], &["stop", "-t", "1"][..]),
    ] {
        let mut all = run.to_vec();
        all.extend_from_slice(&["busybox", "sh", "-c", deaf]);
        let container = login.detached(&all)?;
        eventually("it is ready", || Ok(container.logs()?.contains("ready")))?;
        let mut all = stop.to_vec();
        all.push(&container.id);
        login.ok(&all)?;
        expect_eq(container.inspect("{{.State.ExitCode}}")?, "137")?;
    }
    Ok(())
}

fn stop_takes_several(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let (first, second) = (login.sleeper(&["--init"])?, login.sleeper(&["--init"])?);
    let stopped = login.ok(&["stop", "--time", "3", &first.id, &second.id])?;
    ensure!(stopped.lines().count() == 2, "{stopped}");
    for container in [&first, &second] {
        expect_eq(container.inspect("{{.State.Status}}")?, "exited")?;
    }
    let error = login.refused(1, &["rm", &first.id, "no-such-container", &second.id])?;
    expect_contains(error, "no-such-container")?;
    Ok(())
}

fn kill_sends_signals(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.detached(&["busybox", "probe", "signals"])?;
    eventually("it is ready", || Ok(container.logs()?.contains("ready")))?;
    for (name, number) in [
        ("HUP", "1"),
        ("SIGUSR1", "10"),
        ("12", "12"),
        ("sigwinch", "28"),
    ] {
        login.ok(&["kill", "--signal", name, &container.id])?;
        eventually("the signal arrives", || {
            Ok(container.logs()?.lines().any(|line| line == number))
        })?;
    }
    login.ok(&["kill", "-s", "TERM", &container.id])?;
    expect_eq(login.ok(&["wait", &container.id])?, "42")?;
    login.refused(125, &["kill", &container.id])?;
    login.refused(125, &["kill", "--signal", "NONSENSE", &container.id])?;
    // Without a signal it is SIGKILL.
    let container = login.sleeper(&[])?;
    login.ok(&["kill", &container.id])?;
    expect_eq(login.ok(&["wait", &container.id])?, "137")?;
    Ok(())
}

fn signals_are_forwarded(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let running = login
        .selkie(&["run", "--rm", "busybox", "probe", "signals"])
        .spawn()?;
    running.read_until("ready\n")?;
    for (signal, number) in [
        (Signal::HUP, "1\n"),
        (Signal::USR2, "12\n"),
        (Signal::INT, "2\n"),
    ] {
        running.signal(signal);
        running.read_until(number)?;
    }
    running.signal(Signal::TERM);
    running.wait()?.code(42)?;
    // Unless told not to: then the command itself ends, and the container goes on.
    let name = ground.unique("unproxied");
    let running = login
        .selkie(&[
            "run",
            "--sig-proxy=false",
            "--name",
            &name,
            "busybox",
            "probe",
            "signals",
        ])
        .spawn()?;
    running.read_until("ready\n")?;
    running.signal(Signal::TERM);
    running.wait()?;
    expect_eq(
        login.ok(&[
            "container",
            "inspect",
            "--format",
            "{{.State.Running}}",
            &name,
        ])?,
        "true",
    )?;
    login.ok(&["rm", "--force", &name])?;
    Ok(())
}

fn rm_refuses_whose_network_is_shared(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    // The first one's network is the second one's, and that is the third one's.
    let make = || -> Result<Vec<String>> {
        let mut ids: Vec<String> = Vec::new();
        for name in ["first", "second", "third"] {
            let network = match ids.last() {
                Some(id) => format!("container:{id}"),
                None => "bridge".to_owned(),
            };
            ids.push(login.ok(&[
                "run",
                "--detach",
                "--name",
                name,
                "--network",
                &network,
                "busybox",
                "sleep",
                "10000",
            ])?);
        }
        Ok(ids)
    };
    let ids = make()?;
    for words in [&["rm", "first"][..], &["rm", "--force", "first"]] {
        let error = login.refused(125, words)?;
        let expected = format!(
            "container {} has dependent containers which must be removed before it: {}",
            ids[0], ids[1]
        );
        expect_contains(error.as_str(), &expected)?;
        expect_contains(error, "--depend")?;
    }
    // What was refused goes on.
    expect_eq(login.ok(&["ps", "-q"])?.lines().count(), 3)?;
    // Running ones need --force too.
    let error = login.refused(125, &["rm", "--depend", "first"])?;
    expect_contains(error, "as it is running")?;
    expect_eq(login.ok(&["ps", "-q"])?.lines().count(), 3)?;
    let removed = login.ok(&["rm", "--force", "--time", "0", "--depend", "first"])?;
    let expected: Vec<&str> = ids.iter().rev().map(String::as_str).collect();
    expect_eq(removed.lines().collect::<Vec<_>>(), expected)?;
    // All of them at once, whatever the order they are named in.
    for words in [
        &["rm", "-f", "-t", "0", "first", "second", "third"][..],
        &["rm", "-f", "-t", "0", "--all"],
    ] {
        make()?;
        login.ok(words)?;
        expect_eq(login.ok(&["ps", "-aq"])?, "")?;
    }
    for words in [
        &["container", "prune", "--force"][..],
        &["system", "prune", "--force"],
    ] {
        make()?;
        login.ok(&["stop", "-t", "0", "--all"])?;
        login.ok(words)?;
        expect_eq(login.ok(&["ps", "-aq"])?, "")?;
    }
    login.is_clean()
}

fn rm_refuses_running_ones(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&[])?;
    let pid = container.pid()?;
    let error = login.refused(2, &["rm", &container.id])?;
    expect_contains(error, "running")?;
    expect_eq(container.inspect("{{.State.Status}}")?, "running")?;
    login.ok(&["rm", "--force", &container.id])?;
    ensure!(!processes::is_alive(pid), "rm --force left process {pid}");
    login.refused(125, &["container", "inspect", &container.id])?;
    // --ignore makes an unknown container no error.
    login.ok(&["rm", "--force", "--ignore", &container.id])?;
    Ok(())
}

fn wait_gives_exit_codes(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let (three, four) = (
        login.detached(&["busybox", "sh", "-c", "sleep 0.3; exit 3"])?,
        login.detached(&["busybox", "sh", "-c", "exit 4"])?,
    );
    expect_eq(login.ok(&["wait", &three.id, &four.id])?, "3\n4")?;
    // Asked again, it still knows.
    expect_eq(login.ok(&["wait", &three.id])?, "3")?;
    login.refused(125, &["wait", "no-such-container"])?;
    Ok(())
}

fn logs_keep_both_streams(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.detached(&[
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done; printf unfinished",
    ])?;
    login.ok(&["wait", &container.id])?;
    let finished = login.selkie(&["logs", &container.id]).run()?.code(0)?;
    ensure!(
        finished.text() == "out 1\nout 2\nout 3\nout 4\nout 5\nunfinished",
        "{finished:?}"
    );
    ensure!(
        finished.error().trim_end() == "err 1\nerr 2\nerr 3\nerr 4\nerr 5",
        "{finished:?}"
    );
    let tail = login
        .selkie(&["logs", "--tail", "2", &container.id])
        .run()?
        .code(0)?;
    ensure!(
        tail.text().lines().count() + tail.error().lines().count() == 2,
        "{tail:?}"
    );
    let stamped = login.ok(&["logs", "--timestamps", &container.id])?;
    for line in stamped.lines() {
        ensure!(
            line.starts_with("20") && line.contains('T'),
            "no time in {line:?}"
        );
    }
    ensure!(
        login
            .ok(&["logs", "--since", "2030-01-01T00:00:00Z", &container.id])?
            .is_empty()
    );
    Ok(())
}

fn logs_follow(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.detached(&[
        "busybox",
        "sh",
        "-c",
        "echo first; while [ ! -e /go ]; do sleep 0.05; done; echo last",
    ])?;
    let follower = login.selkie(&["logs", "--follow", &container.id]).spawn()?;
    follower.read_until("first\n")?;
    container.exec(&["touch", "/go"])?;
    follower.read_until("last\n")?;
    // It ends with the container.
    follower.wait()?.code(0)?;
    Ok(())
}

fn exec_does_its_flags(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&["--env", "INNER=image", "--workdir", "/tmp"])?;
    let exec = |flags: &[&str], command: &[&str]| {
        let mut all = vec!["exec"];
        all.extend_from_slice(flags);
        all.push(&container.id);
        all.extend_from_slice(command);
        login.ok(&all)
    };
    expect_eq(
        exec(&[], &["sh", "-c", "echo $INNER; pwd; hostname"])?,
        format!("image\n/tmp\n{}", &container.id[..12]),
    )?;
    expect_eq(
        exec(
            &["--env", "INNER=exec", "-e", "MORE=1"],
            &["sh", "-c", "echo $INNER $MORE"],
        )?,
        "exec 1",
    )?;
    expect_eq(exec(&["--workdir", "/owned"], &["pwd"])?, "/owned")?;
    expect_eq(exec(&["--user", "www-data"], &["id", "-un"])?, "www-data")?;
    expect_eq(
        exec(&["--user", "33:42"], &["sh", "-c", "id -u; id -g"])?,
        "33\n42",
    )?;
    expect_contains(
        exec(&["--privileged"], &["probe", "ids"])?,
        "CapEff:\t000001ffffffffff",
    )?;
    exec(&["--detach"], &["touch", "/detached"])?;
    eventually("the detached command has run", || {
        Ok(container.try_exec(&["test", "-e", "/detached"])?.code == 0)
    })?;
    login.refused(125, &["exec", "no-such-container", "true"])?;
    // Under Podman 126 with runc, 127 with crun.
    let nowhere = [
        "exec",
        "--workdir",
        "/no/such/directory",
        &container.id,
        "true",
    ];
    let finished = login.selkie(&nowhere).run()?;
    ensure!([126, 127].contains(&finished.code), "{finished:?}");
    expect_contains(finished.error(), "/no/such/directory")?;
    login.ok(&["stop", "--time", "0", &container.id])?;
    login.refused(255, &["exec", &container.id, "true"])?;
    Ok(())
}

fn exec_ends_with_its_container(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&[])?;
    let running = login
        .selkie(&["exec", &container.id, "sh", "-c", "echo up; sleep 1000"])
        .spawn()?;
    running.read_until("up\n")?;
    login.ok(&["kill", &container.id])?;
    running.wait()?.code(137)?;
    Ok(())
}

fn attach_shows_output(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.detached(&[
        "--interactive",
        "busybox",
        "sh",
        "-c",
        "read line; echo got $line; exit 6",
    ])?;
    let finished = login
        .selkie(&["attach", &container.id])
        .stdin("word\n")
        .run()?;
    // Docker ends with the container's code, Podman with 0.
    ensure!([0, 6].contains(&finished.code), "{finished:?}");
    ensure!(finished.text() == "got word", "{finished:?}");
    login.refused(125, &["attach", &container.id])?;
    Ok(())
}

fn attach_does_not_stop_it(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.detached(&[
        "busybox",
        "sh",
        "-c",
        "while :; do echo tick; sleep 0.05; done",
    ])?;
    let watcher = login
        .selkie(&["attach", "--no-stdin", &container.id])
        .spawn()?;
    let second = login
        .selkie(&["attach", "--no-stdin", &container.id])
        .spawn()?;
    watcher.read_until("tick\n")?;
    second.read_until("tick\n")?;
    // A watcher that dies without a word must not disturb the container.
    watcher.signal(Signal::KILL);
    watcher.wait()?.code(137)?;
    second.read_until("tick\n")?;
    second.signal(Signal::KILL);
    second.wait()?.code(137)?;
    expect_eq(container.inspect("{{.State.Running}}")?, "true")?;
    let lines = container.logs()?.lines().count();
    eventually("the log grows on", || {
        Ok(container.logs()?.lines().count() > lines)
    })
}

fn found_by_prefix_and_name(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("findme");
    let container = login.sleeper(&["--name", &name])?;
    for word in [&container.id[..], &container.id[..12], &name] {
        expect_eq(
            login.ok(&["container", "inspect", "--format", "{{.Id}}", word])?,
            container.id.as_str(),
        )?;
    }
    let error = login.refused(125, &["run", "--name", &name, "busybox", "true"])?;
    expect_contains(error.as_str(), &name)?;
    Ok(())
}

fn zombies_are_reaped_with_init(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let orphan = "(sleep 0.1 &) ; sleep 1000";
    let container = login.detached(&["--init", "busybox", "sh", "-c", orphan])?;
    let comm = container.exec(&["cat", "/proc/1/cmdline"])?;
    ensure!(!comm.starts_with("sh"), "PID 1 is the command itself");
    eventually("the orphan is gone", || {
        Ok(!container.exec(&["ps", "-o", "stat,comm"])?.contains("Z"))
    })?;
    // The init passes signals on and ends as its child does.
    let container = login.detached(&["--init", "busybox", "probe", "signals"])?;
    eventually("it is ready", || Ok(container.logs()?.contains("ready")))?;
    login.ok(&["kill", "--signal", "USR1", &container.id])?;
    eventually("the signal is passed on", || {
        Ok(container.logs()?.contains("10"))
    })?;
    login.ok(&["stop", &container.id])?;
    expect_eq(container.inspect("{{.State.ExitCode}}")?, "42")?;
    Ok(())
}

fn detached_ones_outlive_the_caller(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    // The caller's whole session is killed, as when a terminal is closed.
    let name = ground.unique("outlives");
    let script = format!(
        "{} run -d --name {name} busybox sleep 1000; trap : HUP; kill -HUP 0; kill -KILL 0",
        ground.binary.display()
    );
    login
        .program("setsid", &["--wait", "sh", "-c", &script])
        .run()?
        .code(137)?;
    expect_eq(
        login.ok(&[
            "container",
            "inspect",
            "--format",
            "{{.State.Running}}",
            &name,
        ])?,
        "true",
    )?;
    login.ok(&["rm", "--force", "--time", "0", &name])?;
    Ok(())
}

fn export_gives_its_files(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("exported");
    login.ok(&[
        "run",
        "--name",
        &name,
        "busybox",
        "sh",
        "-c",
        "echo new >/new; rm /owned/42; chown 33:42 /new",
    ])?;
    let archive = login.home.join(ground.unique("export"));
    let archive = archive.to_string_lossy();
    login.ok(&["export", "--output", &archive, &name])?;
    let listing = login
        .program("tar", &["--numeric-owner", "-tvf", &archive])
        .run()?
        .ok()?;
    let line = |path: &str| {
        listing
            .lines()
            .find(|line| line.ends_with(path))
            .map(str::to_owned)
    };
    ensure!(
        line(" new").is_some_and(|line| line.contains("33/42")),
        "{listing}"
    );
    ensure!(
        line(" owned/33").is_some_and(|line| line.contains("33/33")),
        "{listing}"
    );
    ensure!(line("owned/42").is_none(), "a removed file was exported");
    ensure!(
        line("bin/probe-setuid").is_some_and(|line| line.starts_with("-rwsr-xr-x")),
        "{listing}"
    );
    // Without --output it goes to standard output; and it can be imported again.
    let piped = login.selkie(&["export", &name]).run()?.code(0)?;
    ensure!(
        piped.stdout.len() > 1_000_000,
        "{} bytes",
        piped.stdout.len()
    );
    let image = ground.unique("imported");
    login.ok(&["import", &archive, &image])?;
    expect_eq(
        login.ok(&[
            "run",
            "--rm",
            &image,
            "/bin/sh",
            "-c",
            "cat /new; stat -c '%u:%g' /new",
        ])?,
        "new\n33:42",
    )?;
    login.ok(&["rm", &name])?;
    login.ok(&["rmi", &image])?;
    Ok(())
}
