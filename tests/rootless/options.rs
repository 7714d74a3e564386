//! Each option of `run` and `create` does its job.

use std::path::Path;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::login::{expect_contains, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("options::environment", environment),
        ground.trial("options::workdir", workdir),
        ground.trial("options::user", user),
        ground.trial("options::entrypoint", entrypoint),
        ground.trial("options::hostname_and_hosts", hostname_and_hosts),
        ground.trial("options::labels", labels),
        ground.trial("options::read_only", read_only),
        ground.trial("options::tmpfs", tmpfs),
        ground.trial("options::capabilities", capabilities),
        ground.trial("options::no_new_privileges", no_new_privileges),
        ground.trial("options::seccomp_profile", seccomp_profile),
        ground.trial("options::ulimits", ulimits),
        ground.trial("options::sysctls", sysctls),
        ground.trial("options::network", network),
        ground.trial("options::attach", attach),
        ground.trial("options::rootfs", rootfs),
        ground.trial("options::cidfile", cidfile),
        ground.trial("options::pull_never", pull_never),
        ground.trial(
            "options::devices_and_mounts_are_there",
            devices_and_mounts_are_there,
        ),
        ground.trial("options::init_process_is_first", init_process_is_first),
    ]
}

/// `run --rm OPTIONS busybox COMMAND`.
fn run(ground: &'static Ground, options: &[&str], command: &[&str]) -> Result<String> {
    let mut all = vec!["run", "--rm"];
    all.extend_from_slice(options);
    all.push("busybox");
    all.extend_from_slice(command);
    ground.login()?.ok(&all)
}

fn environment(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let file = login.write(
        &ground.unique("env"),
        "# comment\nFROM_FILE=file value\nBOTH=file\nFROM_CALLER\n\n",
    )?;
    let file = file.to_string_lossy();
    let seen = login
        .selkie(&[
            "run",
            "--rm",
            "--env",
            "A=1",
            "-e",
            "EMPTY=",
            "--env",
            "BOTH=option",
            "--env-file",
            &file,
            "--env",
            "FROM_CALLER2",
            "busybox",
            "env",
        ])
        .env("FROM_CALLER", "one")
        .env("FROM_CALLER2", "two")
        .env("NOT_ASKED", "x")
        .run()?
        .ok()?;
    for line in [
        "A=1",
        "EMPTY=",
        "BOTH=option",
        "FROM_FILE=file value",
        "FROM_CALLER=one",
        "FROM_CALLER2=two",
        "HOME=/root",
    ] {
        ensure!(
            seen.lines().any(|seen| seen == line),
            "{line} is not in {seen}"
        );
    }
    expect_contains(seen.as_str(), "PATH=/usr/local/sbin:")?;
    for name in ["HOSTNAME=", "container="] {
        expect_contains(seen.as_str(), name)?;
    }
    ensure!(
        !seen.contains("NOT_ASKED") && !seen.contains("XDG_RUNTIME_DIR"),
        "{seen}"
    );
    let terminal = run(ground, &["--tty"], &["env"])?;
    expect_contains(terminal, "TERM=xterm")?;
    Ok(())
}

fn workdir(ground: &'static Ground) -> Result<()> {
    expect_eq(run(ground, &[], &["pwd"])?, "/")?;
    expect_eq(run(ground, &["--workdir", "/owned"], &["pwd"])?, "/owned")?;
    // One that is not there is made (Docker) or refused by name (Podman).
    let login = ground.login()?;
    let finished = login
        .selkie(&["run", "--rm", "-w", "/made/for/this", "busybox", "pwd"])
        .run()?;
    if finished.code == 0 {
        expect_eq(finished.text().as_str(), "/made/for/this")?;
    } else {
        ensure!([125, 126, 127].contains(&finished.code), "{finished:?}");
        expect_contains(finished.error(), "/made/for/this")?;
    }
    ground.login()?.refused(
        125,
        &["run", "--rm", "--workdir", "relative", "busybox", "pwd"],
    )?;
    Ok(())
}

fn user(ground: &'static Ground) -> Result<()> {
    let ids = ["sh", "-c", "id -u; id -g; id -G; echo $HOME"];
    expect_eq(
        run(ground, &["--user", "worker"], &ids)?,
        "1000\n1000\n1000 44\n/home",
    )?;
    expect_eq(
        run(ground, &["--user", "worker:extra"], &ids)?,
        "1000\n44\n44\n/home",
    )?;
    expect_eq(
        run(ground, &["--user", "33"], &ids)?,
        "33\n33\n33 42\n/var/www",
    )?;
    expect_eq(
        run(ground, &["-u", "1000:33"], &ids)?,
        "1000\n33\n33\n/home",
    )?;
    // Unknown to the image: group 0 and home /.
    expect_eq(run(ground, &["--user", "12"], &ids)?, "12\n0\n0\n/")?;
    let login = ground.login()?;
    let error = login
        .refused(
            125,
            &["run", "--rm", "--user", "stranger", "busybox", "true"],
        )
        .or_else(|_| {
            login.refused(
                126,
                &["run", "--rm", "--user", "stranger", "busybox", "true"],
            )
        })?;
    expect_contains(error, "stranger")?;
    login
        .refused(
            125,
            &["run", "--rm", "--user", "4294967296", "busybox", "true"],
        )
        .or_else(|_| {
            login.refused(
                126,
                &["run", "--rm", "--user", "4294967296", "busybox", "true"],
            )
        })?;
    Ok(())
}

fn entrypoint(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    expect_eq(run(ground, &["--entrypoint", "echo"], &["a", "b"])?, "a b")?;
    expect_eq(
        run(ground, &["--entrypoint", r#"["echo", "x y"]"#], &["z"])?,
        "x y z",
    )?;
    // An empty one clears the image's.
    expect_eq(
        login.ok(&["run", "--rm", "--entrypoint", "", "rich", "echo", "plain"])?,
        "plain",
    )?;
    // A new one drops the image's command.
    ensure!(
        login
            .ok(&["run", "--rm", "--entrypoint", "echo", "rich"])?
            .is_empty()
    );
    Ok(())
}

fn hostname_and_hosts(ground: &'static Ground) -> Result<()> {
    let script = "hostname; echo $(cat /etc/hostname); cat /etc/hosts";
    let seen = run(
        ground,
        &["--hostname", "seal.example"],
        &["sh", "-c", script],
    )?;
    let lines: Vec<&str> = seen.lines().collect();
    ensure!(lines[..2] == ["seal.example", "seal.example"], "{seen}");
    expect_contains(seen.as_str(), "127.0.0.1")?;
    ensure!(
        lines[2..].iter().any(|line| line.contains("seal.example")),
        "{seen}"
    );
    // By default the first twelve digits of the ID.
    expect_eq(run(ground, &[], &["sh", "-c", "hostname | wc -c"])?, "13")?;
    // With the host's network, its name servers.
    let seen = run(ground, &["--network", "host"], &["cat", "/etc/resolv.conf"])?;
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for line in host.lines().filter(|line| line.starts_with("nameserver")) {
        expect_contains(seen.as_str(), line)?;
    }
    Ok(())
}

fn labels(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("labelled");
    let file = login.write(&ground.unique("labels"), "from=file\n")?;
    let file = file.to_string_lossy();
    login.ok(&[
        "create",
        "--name",
        &name,
        "--label",
        "a=1",
        "-l",
        "bare",
        "--label-file",
        &file,
        "--annotation",
        "note=x",
        "rich",
    ])?;
    let labels = login.json(&[
        "container",
        "inspect",
        "--format",
        "{{json .Config.Labels}}",
        &name,
    ])?;
    for (key, value) in [
        ("a", "1"),
        ("bare", ""),
        ("from", "file"),
        ("org.example.colour", "grey"),
    ] {
        ensure!(labels[key] == value, "{key}: {labels}");
    }
    let found = login.ok(&[
        "ps",
        "--all",
        "--filter",
        "label=a=1",
        "--filter",
        "label=bare",
        "--format",
        "{{.Names}}",
    ])?;
    ensure!(found == name, "{found}");
    login.ok(&["rm", &name])?;
    Ok(())
}

fn read_only(ground: &'static Ground) -> Result<()> {
    let script = "touch /x 2>/dev/null || echo root-read-only; touch /tmp/x && echo tmp; touch /dev/shm/x && echo shm; touch /run/x && echo run";
    expect_eq(
        run(ground, &["--read-only"], &["sh", "-c", script])?,
        "root-read-only\ntmp\nshm\nrun",
    )?;
    Ok(())
}

fn tmpfs(ground: &'static Ground) -> Result<()> {
    let script = "grep ' /scratch ' /proc/mounts; touch /scratch/x && stat -f -c %T /scratch";
    let seen = run(
        ground,
        &["--tmpfs", "/scratch:size=1m,mode=1777,noexec"],
        &["sh", "-c", script],
    )?;
    expect_contains(seen.as_str(), "tmpfs /scratch tmpfs")?;
    for option in ["noexec", "nosuid", "nodev", "size=1024k"] {
        expect_contains(seen.as_str(), option)?;
    }
    let full = run(
        ground,
        &["--tmpfs", "/scratch:size=1m"],
        &[
            "sh",
            "-c",
            "dd if=/dev/zero of=/scratch/x bs=1M count=2 2>&1 | grep -o 'No space left'",
        ],
    )?;
    ensure!(full.contains("No space left"));
    let mode = run(
        ground,
        &[
            "--mount",
            "type=tmpfs,destination=/scratch,tmpfs-mode=0700,tmpfs-size=2m",
        ],
        &["stat", "-c", "%a", "/scratch"],
    )?;
    ensure!(mode == "700", "{mode}");
    ground.login()?.refused(
        125,
        &[
            "run",
            "--rm",
            "--tmpfs",
            "/scratch:nonsense",
            "busybox",
            "true",
        ],
    )?;
    Ok(())
}

fn capabilities(ground: &'static Ground) -> Result<()> {
    let set = |options: &[&str]| -> Result<String> {
        let seen = run(
            ground,
            options,
            &["sh", "-c", "grep CapEff /proc/self/status"],
        )?;
        Ok(seen.trim_start_matches("CapEff:\t").to_owned())
    };
    expect_eq(set(&["--cap-drop", "ALL"])?, "0000000000000000")?;
    expect_eq(
        set(&["--cap-drop", "all", "--cap-add", "CHOWN"])?,
        "0000000000000001",
    )?;
    expect_eq(
        set(&["--cap-drop", "ALL", "--cap-add", "cap_net_raw,CAP_KILL"])?,
        "0000000000002020",
    )?;
    expect_eq(set(&["--cap-drop", "CHOWN"])?, "00000000800405fa")?;
    ensure!(set(&["--cap-add", "ALL"])?.ends_with("1ffffffffff"));
    ground.login()?.refused(
        125,
        &["run", "--rm", "--cap-add", "NONSENSE", "busybox", "true"],
    )?;
    // Added for a user other than root: kept by exec, as Podman does.
    let seen = run(
        ground,
        &["--user", "33", "--cap-add", "NET_RAW"],
        &["probe", "ids"],
    )?;
    expect_contains(seen.as_str(), "CapEff:\t0000000000002000")?;
    Ok(())
}

fn no_new_privileges(ground: &'static Ground) -> Result<()> {
    for option in [
        "no-new-privileges",
        "no-new-privileges:true",
        "no-new-privileges=true",
    ] {
        let seen = run(
            ground,
            &["--security-opt", option, "--user", "33"],
            &["probe-setuid", "ids"],
        )?;
        expect_contains(seen.as_str(), "euid=33")?;
        expect_contains(seen.as_str(), "NoNewPrivs:\t1")?;
    }
    let seen = run(ground, &["--user", "33"], &["probe-setuid", "ids"])?;
    expect_contains(seen.as_str(), "NoNewPrivs:\t0")?;
    ground.login()?.refused(
        125,
        &[
            "run",
            "--rm",
            "--security-opt",
            "nonsense=1",
            "busybox",
            "true",
        ],
    )?;
    Ok(())
}

fn seccomp_profile(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#;
    let file = login.write(&ground.unique("seccomp"), profile)?;
    let option = format!("seccomp={}", file.display());
    let seen = run(
        ground,
        &["--security-opt", &option],
        &["sh", "-c", "mkdir /x 2>&1 || true"],
    )?;
    expect_contains(seen, "not supported")?;
    let broken = login.write(&ground.unique("seccomp"), "{\"defaultAction\": 7}")?;
    for path in [broken.display().to_string(), "/no/such/profile".into()] {
        let option = format!("seccomp={path}");
        let error = login.refused(
            125,
            &["run", "--rm", "--security-opt", &option, "busybox", "true"],
        )?;
        expect_contains(error, &path)?;
    }
    Ok(())
}

fn ulimits(ground: &'static Ground) -> Result<()> {
    let seen = run(
        ground,
        &["--ulimit", "nofile=100:200", "--ulimit", "core=0"],
        &["sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c"],
    )?;
    ensure!(seen == "100\n200\n0", "{seen}");
    let login = ground.login()?;
    for bad in ["nonsense=1", "nofile=x", "nofile=9:3", "nofile"] {
        login.refused(125, &["run", "--rm", "--ulimit", bad, "busybox", "true"])?;
    }
    Ok(())
}

fn sysctls(ground: &'static Ground) -> Result<()> {
    let seen = run(
        ground,
        &[
            "--sysctl",
            "net.ipv4.ip_forward=1",
            "--sysctl",
            "kernel.msgmax=65536",
        ],
        &[
            "cat",
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/kernel/msgmax",
        ],
    )?;
    ensure!(seen == "1\n65536", "{seen}");
    let login = ground.login()?;
    // Not of a namespace: must not be tried on the host.
    login.refused(
        125,
        &[
            "run",
            "--rm",
            "--sysctl",
            "kernel.hostname2=x",
            "busybox",
            "true",
        ],
    )?;
    login.refused(
        125,
        &[
            "run",
            "--rm",
            "--sysctl",
            "vm.swappiness=1",
            "busybox",
            "true",
        ],
    )?;
    login.refused(
        125,
        &[
            "run",
            "--rm",
            "--network",
            "host",
            "--sysctl",
            "net.ipv4.ip_forward=1",
            "busybox",
            "true",
        ],
    )?;
    Ok(())
}

fn network(ground: &'static Ground) -> Result<()> {
    let own = |options: &[&str]| run(ground, options, &["readlink", "/proc/self/ns/net"]);
    let host = std::fs::read_link("/proc/self/ns/net")?;
    expect_eq(own(&["--network", "host"])?, host.to_string_lossy())?;
    let (first, second) = (own(&["--network", "none"])?, own(&["--network", "none"])?);
    ensure!(first != host.to_string_lossy(), "{first} {second}");
    let devices = run(
        ground,
        &["--network", "none"],
        &[
            "sh",
            "-c",
            "ls /sys/class/net; ip addr show lo | grep -o 127.0.0.1/8; ip link show lo | grep -o LOOPBACK,UP",
        ],
    )?;
    ensure!(devices == "lo\n127.0.0.1/8\nLOOPBACK,UP", "{devices}");
    ground.login()?.refused(
        125,
        &["run", "--rm", "--network", "nonsense", "busybox", "true"],
    )?;
    Ok(())
}

fn attach(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    for (streams, expected) in [
        (&[][..], ("out\n", "err\n")),
        (&["--attach", "stdout"][..], ("out\n", "")),
        (&["-a", "stderr"][..], ("", "err\n")),
        (&["-a", "stdout", "-a", "STDERR"][..], ("out\n", "err\n")),
    ] {
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(streams);
        all.extend_from_slice(&["busybox", "sh", "-c", "echo out; echo err >&2; exit 3"]);
        let finished = login.selkie(&all).run()?.code(3)?;
        let seen = (String::from_utf8_lossy(&finished.stdout), finished.error());
        ensure!((&*seen.0, &*seen.1) == expected, "{streams:?}: {seen:?}");
    }
    Ok(())
}

fn rootfs(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let root = login.home.join(ground.unique("rootfs"));
    login.make_directory(&root, 0o755)?;
    login.make_directory(&root.join("bin"), 0o755)?;
    login.copy_program(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    let directory = root.to_string_lossy();
    let seen = login.ok(&[
        "run",
        "--rm",
        "--userns",
        "host",
        "--rootfs",
        &directory,
        "/bin/busybox",
        "sh",
        "-c",
        "echo hello >/made; echo done",
    ])?;
    ensure!(seen == "done", "{seen}");
    // The directory is used as it is: what the container writes is in it, and the login's.
    let made = root.join("made");
    expect_eq(std::fs::read_to_string(&made)?, "hello\n")?;
    use std::os::unix::fs::MetadataExt;
    expect_eq(std::fs::metadata(&made)?.uid(), login.user.uid)?;
    login.refused(
        125,
        &[
            "run",
            "--rm",
            "--userns",
            "host",
            "--rootfs",
            "/no/such/directory",
            "true",
        ],
    )?;
    Ok(())
}

fn cidfile(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let path = login.home.join(ground.unique("cid"));
    let path = path.to_string_lossy();
    let id = login.ok(&["create", "--cidfile", &path, "busybox", "true"])?;
    expect_eq(std::fs::read_to_string(&*path)?.trim_end(), id.as_str())?;
    // One that is there is not overwritten, and nothing is made.
    let before = login.ok(&["ps", "--all", "--quiet"])?;
    login.refused(
        125,
        &[
            "create",
            "--cidfile",
            &path,
            "--name",
            "unmade",
            "busybox",
            "true",
        ],
    )?;
    login.refused(125, &["container", "inspect", "unmade"])?;
    ensure!(!before.is_empty());
    login.ok(&["rm", &id])?;
    Ok(())
}

fn pull_never(ground: &'static Ground) -> Result<()> {
    expect_eq(run(ground, &["--pull", "never"], &["echo", "x"])?, "x")?;
    expect_eq(run(ground, &["--pull=missing"], &["echo", "x"])?, "x")?;
    let login = ground.login()?;
    let error = login.refused(
        125,
        &["run", "--rm", "--pull", "never", "no-such-image", "true"],
    )?;
    expect_contains(error, "no-such-image")?;
    login.refused(
        125,
        &["run", "--rm", "--pull", "nonsense", "busybox", "true"],
    )?;
    Ok(())
}

fn devices_and_mounts_are_there(ground: &'static Ground) -> Result<()> {
    let script = r#"for device in null zero full random urandom tty; do [ -c /dev/$device ] || echo no /dev/$device; done
        for link in fd stdin stdout stderr; do [ -L /dev/$link ] || echo no /dev/$link; done
        echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c
        [ -d /dev/pts ] && [ -e /dev/ptmx ] || echo no pts
        stat -c %a /dev/shm
        grep -c ' /dev/mqueue ' /proc/mounts
        grep -o ' /sys sysfs ro' /proc/mounts
        mount | grep -c ' on / '
        ls /proc | grep -c '^[0-9]*$'"#;
    let seen = run(ground, &[], &["sh", "-c", script])?;
    let lines: Vec<&str> = seen.lines().collect();
    ensure!(
        lines[..6] == ["3", "5", "1777", "1", " /sys sysfs ro", "1"],
        "{seen}"
    );
    let processes: u32 = lines[6].parse()?;
    ensure!(
        processes <= 5,
        "{processes} processes are seen in a PID namespace of its own"
    );
    // Nothing of the host's mounts shows: every mount is at a place we know.
    let points = run(ground, &[], &["sh", "-c", "cut -d' ' -f2 /proc/mounts"])?;
    for point in points.lines() {
        let known = point == "/"
            || ["/proc", "/sys", "/dev", "/run/"]
                .iter()
                .any(|top| point.starts_with(top))
            || ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"].contains(&point);
        ensure!(known, "{point} is mounted in the container");
    }
    Ok(())
}

fn init_process_is_first(ground: &'static Ground) -> Result<()> {
    expect_eq(run(ground, &[], &["sh", "-c", "echo $$"])?, "1")?;
    let seen = run(ground, &["--init"], &["sh", "-c", "echo $$; echo $PPID"])?;
    ensure!(
        seen.lines().nth(1) == Some("1") && !seen.starts_with("1\n"),
        "{seen}"
    );
    Ok(())
}
