//! Containers cannot harm each other nor the login, even in one PID namespace.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::login::{Container, Login, eventually, expect_contains, expect_eq};
use crate::processes;

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("isolation::twenty_disjoint_slices", twenty_disjoint_slices),
        ground.trial(
            "isolation::attacks_work_where_they_may",
            attacks_work_where_they_may,
        ),
        ground.trial(
            "isolation::cannot_attack_another_container",
            cannot_attack_another_container,
        ),
        ground.trial(
            "isolation::cannot_attack_the_login",
            cannot_attack_the_login,
        ),
        ground.trial(
            "isolation::cannot_attack_pause_or_monitor",
            cannot_attack_pause_or_monitor,
        ),
        ground.trial(
            "isolation::a_path_to_another_s_files_is_useless",
            a_path_to_anothers_files_is_useless,
        ),
        ground.trial(
            "isolation::a_path_through_proc_is_useless",
            a_path_through_proc_is_useless,
        ),
        ground.trial("isolation::no_descriptor_leaks_in", no_descriptor_leaks_in),
        ground.trial(
            "isolation::default_capabilities_are_podman_s",
            default_capabilities_are_podmans,
        ),
        ground.trial("isolation::seccomp_filter_is_on", seccomp_filter_is_on),
        ground.trial(
            "isolation::sensitive_paths_are_masked",
            sensitive_paths_are_masked,
        ),
        ground.trial(
            "isolation::the_program_is_read_only_where_the_login_is",
            the_program_is_read_only_where_the_login_is,
        ),
        ground.trial(
            "isolation::the_engine_s_binary_is_safe",
            the_engines_binary_is_safe,
        ),
    ]
}

fn twenty_disjoint_slices(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let started: Vec<_> = (0..20)
        .map(|_| {
            login
                .selkie(&["run", "--detach", "busybox", "sleep", "10000"])
                .spawn()
        })
        .collect::<Result<_>>()?;
    let ids: Vec<String> = started
        .into_iter()
        .map(|running| running.wait()?.ok())
        .collect::<Result<_>>()?;
    let result = check_disjoint(login, &ids);
    let mut remove = vec!["rm", "--force", "--time", "0"];
    remove.extend(ids.iter().map(String::as_str));
    login.ok(&remove)?;
    result
}

fn check_disjoint(login: &Login, ids: &[String]) -> Result<()> {
    for file in ["uid_map", "gid_map"] {
        let mut owner_of: BTreeMap<u32, &str> = BTreeMap::new();
        for id in ids {
            let pid = login
                .ok(&["inspect", "--format", "{{.State.Pid}}", id])?
                .parse()?;
            for (_, outside, count) in processes::id_map(pid, file)? {
                for host_id in outside..outside + count {
                    if let Some(other) = owner_of.insert(host_id, id) {
                        bail!("{file}: host ID {host_id} is in {other} and in {id}");
                    }
                }
            }
        }
        let own = if file == "uid_map" {
            login.user.uid
        } else {
            login.user.gid
        };
        ensure!(
            !owner_of.contains_key(&own),
            "{file}: a container has the login's own ID"
        );
        ensure!(owner_of.keys().all(|id| login.user.owns_uid(*id)));
    }
    Ok(())
}

/// Options that take away all that could hide a missing ID barrier.
const UNCONFINED: [&str; 8] = [
    "--pid",
    "host",
    "--security-opt",
    "seccomp=unconfined",
    "--security-opt",
    "unmask=ALL",
    "--cap-add",
    "ALL",
];

/// Starts `probe victim`; gives its PID on the host.
fn victim<'l>(login: &'l Login, options: &[&str], secret: &str) -> Result<(Container<'l>, i32)> {
    let mut all = options.to_vec();
    all.extend_from_slice(&["busybox", "probe", "victim", secret]);
    let container = login.detached(&all)?;
    let pid = container.pid()?;
    eventually("the victim is ready", || Ok(!container.logs()?.is_empty()))?;
    Ok((container, pid))
}

/// Every attempt must have been made and denied.
fn ensure_all_denied(attempts: &str, least: usize) -> Result<()> {
    ensure!(
        attempts.lines().count() >= least,
        "not every attack was tried: {attempts}"
    );
    // Scheduling and limits included: each line is one attempt.
    let came_through: Vec<&str> = attempts
        .lines()
        .filter(|line| !line.contains(" denied E"))
        .collect();
    ensure!(came_through.is_empty(), "came through: {came_through:?}");
    Ok(())
}

/// What anyone may do to any process of a host: world-readable facts and opening a pidfd.
fn without_harmless(attempts: &str) -> String {
    attempts
        .lines()
        .filter(|line| !line.starts_with("setns"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Proves that the attacker's tools work: against a process of its own container they do.
fn attacks_work_where_they_may(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let mut options = UNCONFINED.to_vec();
    options.extend_from_slice(&["busybox", "sh", "-c", "probe victim x >/tmp/pid & while [ ! -s /tmp/pid ]; do :; done; probe attack $(cat /tmp/pid)"]);
    let mut all = vec!["run", "--rm"];
    all.extend(options);
    let attempts = login.ok(&all)?;
    for attempt in [
        "kill-0",
        "kill-usr1",
        "tgkill",
        "pidfd-send-signal",
        "ptrace-attach",
        "process-vm-readv",
        "open-environ",
        "open-mem",
        "open-maps",
        "open-root",
        "open-fd",
        "open-ns/user",
    ] {
        expect_contains(attempts.as_str(), &format!("{attempt} succeeded"))?;
    }
    Ok(())
}

fn cannot_attack_another_container(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    // In its own PID namespace, in the host's, and with the attacker's kind of options.
    for options in [&[][..], &["--pid", "host"][..], &UNCONFINED[..]] {
        let (container, pid) = victim(login, options, "treasure")?;
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(&UNCONFINED);
        let pid_text = pid.to_string();
        all.extend_from_slice(&["busybox", "probe", "attack", &pid_text]);
        let attempts = login.ok(&all)?;
        ensure_all_denied(&without_harmless(&attempts), 22)?;
        ensure!(processes::is_alive(pid), "the victim did not survive");
        expect_eq(container.inspect("{{.State.Status}}")?, "running")?;
    }
    Ok(())
}

fn cannot_attack_the_login(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    // A process of the login itself, outside of any namespace: a `sleep` in its shell.
    let process = login.program("sleep", &["10000"]).spawn()?;
    let pid = process.pid();
    let pid_text = pid.to_string();
    let mut all = vec!["run", "--rm"];
    all.extend_from_slice(&UNCONFINED);
    all.extend_from_slice(&["busybox", "probe", "attack", &pid_text]);
    let attempts = login.ok(&all)?;
    ensure_all_denied(&without_harmless(&attempts), 22)?;
    ensure!(processes::is_alive(pid));
    process.signal(rustix::process::Signal::KILL);
    process.wait()?.code(137)?;
    Ok(())
}

fn cannot_attack_pause_or_monitor(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let _target = login.sleeper(&[])?;
    let background = login.background_processes();
    ensure!(
        background.len() >= 2,
        "expected a pause process and a monitor, found {background:?}"
    );
    for pid in background {
        let pid_text = pid.to_string();
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(&UNCONFINED);
        all.extend_from_slice(&["busybox", "probe", "attack", &pid_text]);
        let attempts = login.ok(&all)?;
        ensure_all_denied(&without_harmless(&attempts), 22)?;
        ensure!(processes::is_alive(pid));
    }
    Ok(())
}

/// Files of the login's data directory that belong to one of its subordinate IDs.
fn slice_files(directory: &std::path::Path, found: &mut Vec<PathBuf>, login: &Login) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.uid() != login.user.uid && login.user.owns_uid(metadata.uid()) {
            found.push(entry.path());
        }
        if metadata.is_dir() {
            slice_files(&entry.path(), found, login);
        }
    }
}

fn a_path_to_anothers_files_is_useless(ground: &'static Ground) -> Result<()> {
    ground.needs_root("look for the other container's files")?;
    let login = ground.fresh_login_with_busybox()?;
    let container = login.sleeper(&[])?;
    container.exec(&[
        "sh",
        "-c",
        "umask 077; echo treasure >/secret; mkdir /vault; echo deep >/vault/file",
    ])?;
    let mut files = Vec::new();
    slice_files(&login.data_dir(), &mut files, &login);
    let secret = files
        .iter()
        .find(|path| path.ends_with("secret"))
        .context("the secret is not in the data directory")?;
    let below_data = secret.strip_prefix(login.data_dir())?;
    // Handed the whole data directory: keep-id lets a container have a host directory. Its root
    // has every capability over the login's own files there, and still none over another slice's.
    let volume = format!("{}:/handed", login.data_dir().display());
    for name in [below_data.to_path_buf(), below_data.with_file_name("vault")] {
        let path = format!("/handed/{}", name.display());
        let attempts = login.ok(&[
            "run",
            "--rm",
            "--userns",
            "keep-id",
            "--user",
            "0",
            "--cap-add",
            "ALL",
            "--security-opt",
            "seccomp=unconfined",
            "--volume",
            &volume,
            "busybox",
            "probe",
            "open",
            &path,
        ])?;
        ensure_all_denied(&attempts, 6).with_context(|| path.clone())?;
    }
    expect_eq(container.exec(&["cat", "/secret"])?, "treasure")?;
    Ok(())
}

fn a_path_through_proc_is_useless(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let (container, pid) = victim(login, &[], "treasure")?;
    container.exec(&["sh", "-c", "echo open-to-all >/open; chmod 666 /open"])?;
    for path in ["open", "etc/passwd", "", "proc/self/environ"] {
        let path = format!("/proc/{pid}/root/{path}");
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(&UNCONFINED);
        all.extend_from_slice(&["busybox", "probe", "open", &path]);
        ensure_all_denied(&login.ok(&all)?, 6)?;
    }
    expect_eq(container.exec(&["cat", "/open"])?, "open-to-all")?;
    Ok(())
}

fn no_descriptor_leaks_in(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    // The caller has descriptors open that the container must not get: one to a directory of the
    // host, one to a file, both without close-on-exec.
    let script = format!(
        "exec 7</ 8</etc/passwd 9>/dev/null; exec {} run --rm busybox probe fds",
        login_binary(ground)
    );
    let seen = login.program("sh", &["-c", &script]).run()?.ok()?;
    let numbers: Vec<&str> = seen
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    ensure!(numbers == ["0", "1", "2"], "open in the container: {seen}");
    // Nor through `exec`, nor with the monitor between.
    let container = login.sleeper(&[])?;
    let script = format!(
        "exec 7</ 8</etc/passwd; exec {} exec {} probe fds",
        login_binary(ground),
        container.id
    );
    let seen = login.program("sh", &["-c", &script]).run()?.ok()?;
    ensure!(seen.lines().count() == 3, "open in exec: {seen}");
    let init = format!("/proc/{}/fd", container.pid()?);
    if ground.is_root {
        for entry in std::fs::read_dir(init)? {
            let target = std::fs::read_link(entry?.path())?;
            let target = target.to_string_lossy();
            ensure!(
                target.starts_with("pipe:")
                    || target.starts_with("/dev/null")
                    || target.starts_with("socket:"),
                "the container's first process has {target} open"
            );
        }
    }
    Ok(())
}

fn login_binary(ground: &Ground) -> String {
    ground.binary.display().to_string()
}

/// Podman's default set, containers.conf(5): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL,
/// NET_BIND_SERVICE, SETFCAP, SETGID, SETPCAP, SETUID, SYS_CHROOT.
const DEFAULT_CAPABILITIES: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;

fn default_capabilities_are_podmans(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let set = format!("{DEFAULT_CAPABILITIES:016x}");
    let root = login.ok(&["run", "--rm", "busybox", "probe", "ids"])?;
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        expect_contains(root.as_str(), &format!("{name}:\t{set}"))?;
    }
    for name in ["CapInh", "CapAmb"] {
        expect_contains(root.as_str(), &format!("{name}:\t0000000000000000"))?;
    }
    let user = login.ok(&["run", "--rm", "--user", "33", "busybox", "probe", "ids"])?;
    expect_contains(user.as_str(), "CapEff:\t0000000000000000")?;
    expect_contains(user.as_str(), &format!("CapBnd:\t{set}"))?;
    // exec gets the same.
    let container = login.sleeper(&[])?;
    expect_contains(
        container.exec(&["probe", "ids"])?,
        &format!("CapEff:\t{set}"),
    )
}

fn seccomp_filter_is_on(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let run = |options: &[&str], script: &str| {
        let mut all = vec!["run", "--rm", "--cap-add", "SYS_ADMIN"];
        all.extend_from_slice(options);
        all.extend_from_slice(&["busybox", "sh", "-c", script]);
        login.selkie(&all).run()
    };
    expect_contains(run(&[], "probe ids")?.ok()?, "Seccomp:\t2")?;
    expect_contains(
        run(&["--security-opt", "seccomp=unconfined"], "probe ids")?.ok()?,
        "Seccomp:\t0",
    )?;
    let container = login.sleeper(&[])?;
    expect_contains(container.exec(&["probe", "ids"])?, "Seccomp:\t2")?;
    Ok(())
}

fn sensitive_paths_are_masked(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&[])?;
    let mounts = container.exec(&["cat", "/proc/self/mountinfo"])?;
    for path in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/acpi",
        "/proc/scsi",
        "/sys/firmware",
    ] {
        let exists = std::path::Path::new(path).exists();
        ensure!(
            !exists || mounts.contains(&format!(" {path} ")),
            "{path} is not masked"
        );
    }
    for path in [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ] {
        if !std::path::Path::new(path).exists() {
            continue;
        }
        let line = mounts
            .lines()
            .find(|line| line.contains(&format!(" {path} ")))
            .with_context(|| format!("{path} is not a mount of its own"))?;
        expect_contains(line, " ro,")?;
    }
    expect_eq(
        container.exec(&["sh", "-c", "cat /proc/keys | wc -c"])?,
        "0",
    )?;
    let denied = container.try_exec(&["sh", "-c", "echo 1 >/proc/sys/kernel/core_uses_pid"])?;
    ensure!(denied.code != 0, "/proc/sys is writable");
    let unmasked = login.ok(&[
        "run",
        "--rm",
        "--security-opt",
        "unmask=ALL",
        "busybox",
        "cat",
        "/proc/self/mountinfo",
    ])?;
    ensure!(!unmasked.contains(" /proc/keys "), "{unmasked}");
    let masked = login.ok(&[
        "run",
        "--rm",
        "--security-opt",
        "mask=/owned",
        "busybox",
        "ls",
        "/owned",
    ])?;
    ensure!(masked.is_empty(), "{masked}");
    Ok(())
}

/// Our program file, executed inside by a script that names it as its interpreter, can be opened
/// there; what keeps it from being written must not be that it is being executed, which ends.
fn the_program_is_read_only_where_the_login_is(ground: &'static Ground) -> Result<()> {
    ground.needs_root("look through another process's program")?;
    let login = ground.fresh_login_with_busybox()?;
    let own = login.home.join("selkie");
    login.copy_program(&ground.binary, &own)?;
    let is_read_only = |pid: i32| -> Result<bool> {
        let flags = rustix::fs::statvfs(format!("/proc/{pid}/exe"))?.f_flag;
        Ok(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    };
    for (mode, must) in [
        ("--userns auto", false),
        ("--userns keep-id", true),
        ("--userns host", true),
        ("--uidmap 0:1:100 --uidmap 100:0:1", true),
    ] {
        // Without a network, whose supervisor is for a moment a fork of a monitor.
        // As `run` does it, and as `start` does. The variables come through a pipe, which can be
        // read only once, though the program may be executed twice.
        let name = ground.unique("exposed");
        let before = login.monitors();
        let script = format!(
            "set -e; selkie={}; \
             echo MARK=here | $selkie create --name {name} --network none --env-file /dev/stdin {mode} busybox sleep 10000; \
             $selkie start {name} >&2; \
             echo MARK=here | $selkie run --detach --network none --env-file /dev/stdin {mode} busybox sleep 10000",
            own.display()
        );
        let ids = login.program("sh", &["-c", &script]).run()?.ok()?;
        let id = ids.lines().last().context("no ID")?;
        let mut processes = login.monitors();
        processes.retain(|pid| !before.contains(pid));
        ensure!(processes.len() >= 2, "{mode}: {processes:?}");
        let execution = login
            .program(
                &own,
                &[
                    "exec",
                    "--interactive",
                    id,
                    "sh",
                    "-c",
                    "echo $MARK; exec sleep 1000",
                ],
            )
            .streams(
                std::process::Stdio::piped(),
                std::process::Stdio::piped(),
                std::process::Stdio::null(),
            )
            .spawn()?;
        execution.read_until("here\n")?;
        processes.push(execution.pid());
        for pid in processes {
            let found = is_read_only(pid)
                .with_context(|| format!("{mode}: process {pid} ({})", processes::name(pid)))?;
            expect_eq((pid, found), (pid, must)).with_context(|| mode)?;
        }
        execution.signal(rustix::process::Signal::KILL);
        login.ok(&["rm", "--force", "--time", "0", id, &name])?;
    }
    Ok(())
}

fn the_engines_binary_is_safe(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    // A copy that the login itself may write: what protects it must not be its owner.
    let before = std::fs::read(&ground.binary)?;
    let own = login.home.join(ground.unique("selkie"));
    login.copy_program(&ground.binary, &own)?;
    for mode in ["auto", "host", "keep-id"] {
        // /proc/self/exe as the entry point is how a container has re-entered its engine before.
        let mut all = vec!["run", "--rm", "--userns", mode, "--user", "0"];
        all.extend_from_slice(&UNCONFINED[2..]);
        all.extend_from_slice(&["--entrypoint", "/proc/self/exe", "busybox", "--version"]);
        let finished = login.program(&own, &all).run()?;
        ensure!(
            !finished.text().contains("selkie"),
            "{mode}: the engine ran inside the container: {}",
            finished.text()
        );
        let mut all = vec!["run", "--rm", "--userns", mode, "--user", "0"];
        all.extend_from_slice(&UNCONFINED);
        let script = "for exe in /proc/[0-9]*/exe; do case $(readlink $exe) in *selkie*) echo x >>$exe && echo wrote $exe; esac; done 2>/dev/null; true";
        all.extend_from_slice(&["busybox", "sh", "-c", script]);
        let seen = login.program(&own, &all).run()?.ok()?;
        ensure!(seen.is_empty(), "{mode}: {seen}");
    }
    ensure!(std::fs::read(&own)? == before, "the binary has changed");
    Ok(())
}
