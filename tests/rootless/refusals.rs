//! Bad input and bad places: a clear error, the right exit code, nothing left behind.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::ground::Ground;
use crate::login::{Login, expect_contains, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("refusals::bad_input", bad_input),
        ground.trial("refusals::nothing_is_left_behind", nothing_is_left_behind),
        ground.trial(
            "refusals::commands_that_cannot_run",
            commands_that_cannot_run,
        ),
        ground.trial("refusals::unknown_things", unknown_things),
        ground.trial("refusals::wrong_id_maps", wrong_id_maps),
        ground.trial("refusals::full_disk", full_disk),
        ground.trial("refusals::read_only_home", read_only_home),
        ground.trial(
            "refusals::store_of_a_newer_version",
            store_of_a_newer_version,
        ),
        ground.trial(
            "refusals::database_of_a_newer_version",
            database_of_a_newer_version,
        ),
        ground.trial("refusals::odd_environment", odd_environment),
        ground.trial(
            "refusals::every_accepted_flag_does_its_job",
            every_accepted_flag_does_its_job,
        ),
    ]
}

/// Arguments, exit code, and a word the error must contain.
const BAD: &[(&[&str], i32, &str)] = &[
    (
        &["run", "--rm", "no-such-image", "true"],
        125,
        "no-such-image",
    ),
    (&["run", "--rm", "UPPER/CASE", "true"], 125, "UPPER"),
    (&["run", "--rm", "bad name", "true"], 125, "bad name"),
    (&["run", "--rm", "busybox:", "true"], 125, "busybox:"),
    (
        &["run", "--rm", "busybox@sha256:12", "true"],
        125,
        "sha256:12",
    ),
    (&["run", "--rm", "", "true"], 125, ""),
    (&["run", "--rm"], 125, ""),
    (
        &["run", "--rm", "--name", "in/valid", "busybox", "true"],
        125,
        "in/valid",
    ),
    (
        &["run", "--rm", "--name", "-dash", "busybox", "true"],
        125,
        "",
    ),
    (
        &["run", "--rm", "--no-such-flag", "busybox", "true"],
        125,
        "--no-such-flag",
    ),
    (
        &["run", "--rm", "--stop-timeout", "soon", "busybox", "true"],
        125,
        "soon",
    ),
    (
        &["run", "--rm", "--stop-timeout", "-5", "busybox", "true"],
        125,
        "",
    ),
    (
        &[
            "run",
            "--rm",
            "--stop-signal",
            "SIGNONSENSE",
            "busybox",
            "true",
        ],
        125,
        "SIGNONSENSE",
    ),
    (
        &["run", "--rm", "--stop-signal", "99", "busybox", "true"],
        125,
        "99",
    ),
    (
        &["run", "--rm", "--userns", "nonsense", "busybox", "true"],
        125,
        "nonsense",
    ),
    (
        &["run", "--rm", "--userns", "auto:size=0", "busybox", "true"],
        125,
        "0",
    ),
    (
        &[
            "run",
            "--rm",
            "--userns",
            "auto:size=many",
            "busybox",
            "true",
        ],
        125,
        "many",
    ),
    (
        &[
            "run",
            "--rm",
            "--userns",
            "auto:size=4000000000",
            "busybox",
            "true",
        ],
        125,
        "4000000000",
    ),
    (
        &[
            "run",
            "--rm",
            "--userns",
            "keep-id:nonsense=1",
            "busybox",
            "true",
        ],
        125,
        "nonsense",
    ),
    (
        &[
            "run",
            "--rm",
            "--env-file",
            "/no/such/file",
            "busybox",
            "true",
        ],
        125,
        "/no/such/file",
    ),
    (&["run", "--rm", "--env", "=x", "busybox", "true"], 125, ""),
    (
        &["run", "--rm", "--workdir", "relative", "busybox", "true"],
        125,
        "relative",
    ),
    (
        &["run", "--rm", "--hostname", "a b", "busybox", "true"],
        125,
        "",
    ),
    (
        &["run", "--rm", "--label", "=x", "busybox", "true"],
        125,
        "",
    ),
    (
        &["run", "--rm", "--tmpfs", "relative", "busybox", "true"],
        125,
        "relative",
    ),
    (
        &["run", "--rm", "--tmpfs", "/x:size=big", "busybox", "true"],
        125,
        "big",
    ),
    (
        &[
            "run",
            "--rm",
            "--volume",
            "/nowhere/at/all:/x",
            "--userns",
            "host",
            "busybox",
            "true",
        ],
        125,
        "/nowhere/at/all",
    ),
    (
        &["run", "--rm", "--cap-drop", "NONSENSE", "busybox", "true"],
        125,
        "NONSENSE",
    ),
    (
        &[
            "run",
            "--rm",
            "--security-opt",
            "seccomp=/no/such/profile",
            "busybox",
            "true",
        ],
        125,
        "/no/such/profile",
    ),
    (
        &["run", "--rm", "--ulimit", "nofile=-7", "busybox", "true"],
        125,
        "",
    ),
    (
        &["run", "--rm", "--sysctl", "nonsense", "busybox", "true"],
        125,
        "nonsense",
    ),
    (
        &["run", "--rm", "--network", "bridge9", "busybox", "true"],
        125,
        "bridge9",
    ),
    (
        &["run", "--rm", "--pid", "nonsense", "busybox", "true"],
        125,
        "nonsense",
    ),
    (
        &[
            "run", "--rm", "--detach", "--attach", "stdout", "busybox", "true",
        ],
        125,
        "",
    ),
    (
        &[
            "run",
            "--rm",
            "--cidfile",
            "/no/such/directory/cid",
            "busybox",
            "true",
        ],
        125,
        "/no/such/directory",
    ),
    (
        &["run", "--rm", "--user", "nobody-here", "busybox", "true"],
        126,
        "nobody-here",
    ),
    (&["create", "--name", "", "no-such-image"], 125, ""),
    (&["ps", "--last", "x"], 125, "x"),
    (&["stop", "--time", "soon", "x"], 125, "soon"),
    (&["stop"], 125, ""),
    (&["logs"], 125, ""),
    (&["exec", "only-a-name"], 125, ""),
    (&["rm"], 125, ""),
    (&["tag", "busybox", "Bad/Name"], 125, "Bad/Name"),
    (
        &["load", "--input", "/no/such/archive"],
        125,
        "/no/such/archive",
    ),
    (&["load", "--input", "/dev/null"], 125, "/dev/null"),
    (
        &["save", "no-such-image", "--output", "/dev/null"],
        125,
        "no-such-image",
    ),
    (
        &["save", "--format", "nonsense", "busybox"],
        125,
        "nonsense",
    ),
    (
        &["save", "--output", "/no/such/directory/file", "busybox"],
        125,
        "/no/such/directory",
    ),
    (&["volume", "create", "in/valid"], 125, "in/valid"),
    (&["no-such-command"], 125, "no-such-command"),
    (&["inspect"], 125, ""),
    (&["--no-such-flag", "ps"], 125, "--no-such-flag"),
];

fn bad_input(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let mut wrong = Vec::new();
    for (arguments, code, word) in BAD {
        let checked = login
            .refused(*code, arguments)
            .and_then(|error| expect_contains(error, word));
        if let Err(error) = checked {
            wrong.push(format!("{arguments:?}: {error}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Everything a login has: containers, images, volumes; and `system check` finds nothing else.
fn everything(login: &Login) -> Result<String> {
    login.is_clean()?;
    Ok([
        login.ok(&["ps", "--all", "--quiet"])?,
        login.ok(&["images", "--quiet"])?,
        login.ok(&["volume", "ls", "--quiet"])?,
    ]
    .join("\n--\n"))
}

fn nothing_is_left_behind(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["run", "--rm", "busybox", "true"])?;
    let before = everything(&login)?;
    for (arguments, ..) in BAD {
        login.selkie(arguments).run()?;
        let after = everything(&login)?;
        ensure!(before == after, "{arguments:?} left something: {after}");
    }
    for command in [
        &["no-such-command"][..],
        &["/owned"][..],
        &["not-a-program"][..],
    ] {
        let mut all = vec!["run", "--rm", "busybox"];
        all.extend_from_slice(command);
        login.selkie(&all).run()?;
        let after = everything(&login)?;
        ensure!(before == after, "{command:?} left something: {after}");
    }
    Ok(())
}

fn commands_that_cannot_run(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    for (command, code) in [
        (&["no-such-command"][..], 127),
        (&["/no/such/command"][..], 127),
        (&["not-executable"][..], 126),
        (&["/bin/not-executable"][..], 126),
        (&["/owned"][..], 126),
        (&["not-a-program"][..], 126),
    ] {
        let mut all = vec!["run", "--rm", "busybox"];
        all.extend_from_slice(command);
        let finished = login.selkie(&all).run()?;
        // A name without a slash that is found nowhere executable is "not found" to some.
        if command == ["not-executable"] && finished.code == 127 {
            continue;
        }
        let error = finished.refused(code)?;
        expect_contains(error, command[0])?;
    }
    // The same through create and start: the container stays, and says why.
    let name = ground.unique("cannot");
    login.ok(&["create", "--name", &name, "busybox", "no-such-command"])?;
    let finished = login.selkie(&["start", &name]).run()?;
    ensure!([125, 127].contains(&finished.code), "{finished:?}");
    expect_eq(
        login.ok(&[
            "container",
            "inspect",
            "--format",
            "{{.State.ExitCode}}",
            &name,
        ])?,
        "127",
    )?;
    login.ok(&["rm", &name])?;
    // And a detached run says it at once.
    login.refused(
        127,
        &["run", "--rm", "--detach", "busybox", "no-such-command"],
    )?;
    Ok(())
}

fn unknown_things(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    for (command, code) in [
        (&["start"][..], 125),
        (&["stop"][..], 125),
        (&["kill"][..], 125),
        (&["rm"][..], 1),
        (&["logs"][..], 125),
        (&["wait"][..], 125),
        (&["attach"][..], 125),
        (&["inspect"][..], 125),
        (&["container", "inspect"][..], 125),
        (&["image", "inspect"][..], 125),
        (&["volume", "inspect"][..], 125),
        (&["volume", "rm"][..], 1),
        (&["rmi"][..], 1),
        (&["export"][..], 125),
        (&["save"][..], 125),
    ] {
        let mut all = command.to_vec();
        all.push("no-such-thing");
        let error = login.refused(code, &all)?;
        expect_contains(error.as_str(), "no-such-thing")?;
        ensure!(
            ["no such", "not known"]
                .iter()
                .any(|word| error.to_lowercase().contains(word)),
            "{command:?}: {error}"
        );
    }
    Ok(())
}

fn wrong_id_maps(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let beyond = format!("0:{}:10", login.user.subuids.1 + 10);
    for options in [
        &["--uidmap", "nonsense"][..],
        &["--uidmap", "0:1"][..],
        &["--uidmap", "0:1:0"][..],
        &["--uidmap", "0:1:-5"][..],
        &["--uidmap", "0:1:5000000000"][..],
        &["--uidmap", "0:1:10", "--uidmap", "5:100:10"][..],
        &["--uidmap", "0:1:10", "--uidmap", "100:5:10"][..],
        &["--uidmap", &beyond][..],
        &["--uidmap", "1:1:10"][..],
        &["--gidmap", "0:1"][..],
        &["--userns", "host", "--uidmap", "0:1:10"][..],
        &["--userns", "keep-id:uid=4294967295"][..],
    ] {
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(options);
        all.extend_from_slice(&["busybox", "true"]);
        // Podman tells some of them only once the container is being made (126).
        let finished = login.selkie(&all).run()?;
        let code = if finished.code == 126 { 126 } else { 125 };
        finished
            .refused(code)
            .with_context(|| format!("{options:?}"))?;
    }
    Ok(())
}

/// A mount that goes when dropped.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whatever still uses it keeps it until it ends.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn mount_tmpfs(login: &Login, options: &str) -> Result<Mounted> {
    let options = format!(
        "{options},mode=755,uid={},gid={}",
        login.user.uid, login.user.gid
    );
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount(
        "tmpfs",
        &login.home,
        "tmpfs",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .context("mount a tmpfs as home")?;
    rustix::mount::mount_change(&login.home, MountPropagationFlags::PRIVATE)?;
    Ok(Mounted(login.home.clone()))
}

fn full_disk(ground: &'static Ground) -> Result<()> {
    ground.needs_root("mount a small file system")?;
    // Too small for the image, then just large enough and filled by a container, then out of inodes.
    for size in ["size=300k", "size=1m", "size=2m", "size=100m,nr_inodes=16"] {
        let login = ground.fresh_login()?;
        let _mounted = mount_tmpfs(&login, size)?;
        let archive = ground.image("busybox.oci.tar")?;
        let error = login
            .refused(125, &["load", "--input", &archive.to_string_lossy()])
            .with_context(|| size.to_owned())?;
        expect_contains(error, "space")?;
        // What can be said without writing is still said, and what is left is listed and removed.
        let images = login.selkie(&["images", "--quiet"]).run()?;
        ensure!(images.text().is_empty(), "{images:?}");
    }
    let login = ground.fresh_login()?;
    let mounted = mount_tmpfs(&login, "size=24m")?;
    login.load("busybox.oci.tar")?;
    let filled = login
        .selkie(&[
            "run",
            "--name",
            "filler",
            "busybox",
            "sh",
            "-c",
            "dd if=/dev/zero of=/big bs=64k 2>&1 | grep -o 'No space left on device'",
        ])
        .run()?;
    expect_contains(filled.text(), "No space left on device")
        .with_context(|| format!("{filled:?}"))?;
    login.ok(&["ps", "--all"])?;
    let next = login
        .selkie(&["run", "--rm", "busybox", "echo", "x"])
        .run()?;
    // The kernel's words, or SQLite's where the state database was the one to notice.
    let said = ["No space left", "disk is full"];
    ensure!(
        next.code == 0 || said.iter().any(|words| next.error().contains(words)),
        "{next:?}"
    );
    // Where not even the database can grow, removing is refused in so many words; with a little
    // room everything works again.
    let removed = login.selkie(&["rm", "--force", "filler"]).run()?;
    if removed.code != 0 {
        expect_contains(removed.refused(125)?, "space")?;
        rustix::mount::mount_remount(&login.home, MountFlags::empty(), c"size=32m")
            .context("make the file system larger")?;
        login.ok(&["rm", "--force", "filler"])?;
    }
    expect_eq(login.ok(&["run", "--rm", "busybox", "echo", "x"])?, "x")?;
    login.ok(&["system", "prune", "--force"])?;
    login.is_clean()?;
    login.end();
    drop(mounted);
    Ok(())
}

fn read_only_home(ground: &'static Ground) -> Result<()> {
    ground.needs_root("mount a home read-only")?;
    // Empty and read-only: nothing to show, nothing can be made.
    let login = ground.fresh_login()?;
    let mounted = mount_tmpfs(&login, "size=1m")?;
    let remount = || rustix::mount::mount_remount(&login.home, MountFlags::RDONLY, c"");
    remount()?;
    let archive = ground.image("busybox.oci.tar")?;
    let error = login.refused(125, &["load", "--input", &archive.to_string_lossy()])?;
    expect_contains(error.as_str(), "Read-only file system")?;
    expect_contains(error, &login.home.to_string_lossy())?;
    login.refused(125, &["run", "--rm", "busybox", "true"])?;
    drop(mounted);
    // Made read-only with images in it.
    let login = ground.fresh_login()?;
    let mounted = mount_tmpfs(&login, "size=24m")?;
    login.load("busybox.oci.tar")?;
    login.end_background();
    rustix::mount::mount_remount(&login.home, MountFlags::RDONLY, c"")
        .context("make it read-only")?;
    let finished = login.selkie(&["run", "--rm", "busybox", "true"]).run()?;
    if finished.code != 0 {
        let error = finished.refused(125)?;
        ensure!(
            error.contains("Read-only file system") || error.contains("readonly"),
            "{error}"
        );
    }
    drop(mounted);
    Ok(())
}

/// Writes a number one thousand over what is there into the store's version file.
fn store_of_a_newer_version(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let mut versions = Vec::new();
    find_named(&login.data_dir(), "version", &mut versions);
    let version = versions
        .first()
        .context("the store has no file named version")?;
    let before = std::fs::read_to_string(version)?;
    let digits: String = before.chars().filter(char::is_ascii_digit).collect();
    let newer = before.replace(&digits, &format!("{}", digits.parse::<u64>()? + 1000));
    std::fs::write(version, &newer)?;
    let archive = ground.image("rich.oci.tar")?;
    for arguments in [
        &["run", "--rm", "busybox", "true"][..],
        &["images"][..],
        &["load", "--input", &archive.to_string_lossy()][..],
    ] {
        let error = login.refused(125, arguments)?;
        expect_contains(error.as_str(), "newer")?;
    }
    ensure!(
        std::fs::read_to_string(version)? == newer,
        "the version file was overwritten"
    );
    std::fs::write(version, before)?;
    expect_eq(login.ok(&["run", "--rm", "busybox", "echo", "x"])?, "x")?;
    Ok(())
}

fn find_named(directory: &std::path::Path, name: &str, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => find_named(&entry.path(), name, found),
            Ok(_) if entry.file_name().to_string_lossy().to_lowercase() == name => {
                found.push(entry.path())
            }
            _ => {}
        }
    }
}

fn database_of_a_newer_version(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.end_background();
    // SQLite's user_version is the four bytes at offset 60 of the file; no journal must be pending.
    let mut databases = Vec::new();
    for entry in std::fs::read_dir(login.data_dir())?.flatten() {
        if std::fs::read(entry.path()).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3\0")) {
            databases.push(entry.path());
        }
    }
    let database = databases
        .first()
        .context("no SQLite database in the data directory")?;
    let script = format!(
        "import sqlite3; c=sqlite3.connect({:?}); c.execute('pragma user_version=4711'); c.commit(); c.close()",
        database.to_string_lossy()
    );
    login.program("python3", &["-c", &script]).run()?.ok()?;
    for arguments in [&["run", "--rm", "busybox", "true"][..], &["ps"][..]] {
        let error = login.refused(125, arguments)?;
        expect_contains(error, "newer")?;
    }
    Ok(())
}

fn odd_environment(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let echo = ["run", "--rm", "busybox", "echo", "x"];
    // Without a session: as under su, cron, ssh and Slurm.
    expect_eq(
        login
            .selkie(&echo)
            .env_remove("XDG_RUNTIME_DIR")
            .run()?
            .ok()?,
        "x",
    )?;
    expect_eq(
        login
            .selkie(&echo)
            .env("XDG_RUNTIME_DIR", "/no/such/directory")
            .run()?
            .ok()?,
        "x",
    )?;
    // One that is another's must not be used.
    expect_eq(
        login
            .selkie(&echo)
            .env("XDG_RUNTIME_DIR", "/root")
            .run()?
            .ok()?,
        "x",
    )?;
    expect_eq(
        login.selkie(&echo).env("XDG_RUNTIME_DIR", "").run()?.ok()?,
        "x",
    )?;
    expect_eq(login.selkie(&echo).env_remove("PATH").run()?.ok()?, "x")?;
    expect_eq(
        login
            .selkie(&echo)
            .env("TERM", "nonsense")
            .env("LANG", "nonsense")
            .run()?
            .ok()?,
        "x",
    )?;
    // HOME unset: the password file's, or a refusal that says so.
    let finished = login.selkie(&["ps"]).env_remove("HOME").run()?;
    if finished.code != 0 {
        finished.refused(125)?;
    }
    Ok(())
}

/// Flags that only later work gives a meaning must be refused, not ignored.
fn every_accepted_flag_does_its_job(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    for flags in [
        &["--memory", "64m"][..],
        &["--cpus", "1"][..],
        &["--pids-limit", "10"][..],
        &["--restart", "always"][..],
        &["--health-cmd", "true"][..],
        &["--device", "/dev/fuse"][..],
        &["--pod", "x"][..],
        &["--secret", "x"][..],
        &["--privileged"][..],
    ] {
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(flags);
        all.extend_from_slice(&["busybox", "true"]);
        let error = login
            .refused(125, &all)
            .with_context(|| format!("{flags:?}"))?;
        expect_contains(error, flags[0].trim_start_matches('-'))?;
    }
    Ok(())
}
