//! Containers as their processes see them, launched for real.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use selkie_runtime::default_spec::{Network, PidNamespace, Seccomp};
use selkie_runtime::launch::{LaunchError, LaunchRequest, ProvidedRoot, Stdio, launch};
use support::*;

fn main() -> std::process::ExitCode {
    run_tests(&[
        ("streams_and_exit_codes", streams_and_exit_codes),
        ("environment_and_home", environment_and_home),
        ("users", users),
        ("namespaces_are_its_own", namespaces_are_its_own),
        ("capabilities_as_podman", capabilities_as_podman),
        ("no_new_privileges", no_new_privileges),
        ("seccomp_filters", seccomp_filters),
        ("limits_and_umask", limits_and_umask),
        ("terminals", terminals),
        ("init_reaps_and_forwards", init_reaps_and_forwards),
        ("signals_are_reset", signals_are_reset),
        ("descriptors_do_not_leak", descriptors_do_not_leak),
        ("the_gate_holds", the_gate_holds),
        ("commands_that_cannot_run", commands_that_cannot_run),
        ("failing_steps_are_worded", failing_steps_are_worded),
        ("bad_specs_are_refused", bad_specs_are_refused),
        (
            "a_failing_root_leaves_nothing",
            a_failing_root_leaves_nothing,
        ),
        ("host_namespaces", host_namespaces),
        (
            "existing_namespaces_are_joined",
            existing_namespaces_are_joined,
        ),
        ("one_id_is_enough", one_id_is_enough),
        ("all_ids_at_once", all_ids_at_once),
    ])
}

fn streams_and_exit_codes() {
    let image = Image::new();
    let output = image.run(sh("echo out; echo err >&2; exit 7"));
    assert_eq!(
        (output.code, &*output.out, &*output.err),
        (7, "out\n", "err\n")
    );
    assert_eq!(image.run(command(&["true"])).code, 0);
    assert_eq!(
        image.run(sh("kill -9 $$; sleep 1")).code,
        0,
        "PID 1 takes no signal from itself"
    );
    // The pipes belong to the container's user: they can be opened again.
    let again = sh("echo again > /dev/stdout").user("33");
    assert_eq!(image.run(again).ok(), "again\n");
}

fn environment_and_home() {
    let image = Image::new();
    assert_eq!(image.run(command(&["env"])).ok(), "PATH=/bin\nHOME=/root\n");
    assert_eq!(
        image.run(command(&["env"]).user("www-data")).ok(),
        "PATH=/bin\nHOME=/var/www\n"
    );
    let given = command(&["env"]).spec(|spec| spec.env = vec![("HOME".into(), "/x".into())]);
    // Without PATH the default one is searched.
    assert_eq!(image.run(given).ok(), "HOME=/x\n");
    assert_eq!(image.sh("hostname"), "box\n");
}

fn users() {
    let image = Image::new();
    let table = [
        ("", "0:0:0 10"),
        ("root", "0:0:0 10"),
        ("33", "33:33:33 50"),
        ("www-data:wheel", "33:10:10"),
        ("1234:56", "1234:56:56"),
    ];
    for (user, expected) in table {
        let found = image
            .run(sh("echo $(id -u):$(id -g):$(id -G)").user(user))
            .ok();
        assert_eq!(found.trim(), expected, "{user}");
    }
    let error = |user| {
        image
            .try_run(command(&["true"]).user(user))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error("nosuch"),
        "unable to find user nosuch: no matching entries in passwd file"
    );
    let unmapped = error("7000");
    assert!(
        unmapped.contains("user ID 7000 is not mapped"),
        "{unmapped}"
    );
    assert!(unmapped.contains("--userns=auto:size=7001"), "{unmapped}");
    // What the host's side sees.
    let owner = image.run(sh("touch /tmp/mine").user("33:33"));
    assert_eq!(owner.code, 0, "{owner:?}");
    use std::os::unix::fs::MetadataExt;
    // The image's own tree stores container IDs.
    assert_eq!(std::fs::metadata(image.path("tmp/mine")).unwrap().uid(), 33);
}

fn namespaces_are_its_own() {
    let image = Image::new();
    let script = "for n in user mnt pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done";
    let inside = image.sh(script);
    assert_eq!(inside.lines().count(), 7);
    for name in ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let ours = ours.to_str().unwrap();
        assert!(!inside.contains(ours), "{name} is shared");
    }
    assert_eq!(image.sh("echo $$; ps -o pid= | wc -l"), "1\n3\n");
    assert_eq!(
        image.sh("cat /proc/self/uid_map").split_whitespace().last(),
        Some("5000")
    );
    // The login's processes and mounts are nowhere to be seen.
    assert_eq!(image.sh("cat /proc/mounts | grep -c ' / '").trim(), "1");
}

/// As `podman run` (rootless, 4.3) shows them in /proc/self/status: bounding, effective, ambient.
fn capabilities_as_podman() {
    let image = Image::new();
    let sets = |run: Run| -> BTreeMap<String, String> {
        let out = image.run(run).ok();
        let lines = out.lines().filter_map(|line| line.split_once(":\t"));
        lines
            .map(|(k, v)| (k.to_owned(), v.trim_start_matches('0').to_owned()))
            .collect()
    };
    let show = || sh("grep ^Cap /proc/self/status");
    let expect = |run: Run, expected: [&str; 5]| {
        let found = sets(run);
        let names = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        for (name, value) in names.into_iter().zip(expected) {
            assert_eq!(found[name], value, "{name} of {found:?}");
        }
    };
    expect(show(), ["", "800405fb", "800405fb", "800405fb", ""]);
    expect(show().user("33"), ["", "", "", "800405fb", ""]);
    let add = |run: Run| run.spec(|spec| spec.cap_add = vec!["net_admin".into()]);
    expect(add(show()), ["", "800415fb", "800415fb", "800415fb", ""]);
    expect(
        add(show().user("33")),
        ["1000", "1000", "1000", "800415fb", "1000"],
    );
    let none = show().spec(|spec| spec.cap_drop = vec!["ALL".into()]);
    expect(none, ["", "", "", "", ""]);
}

fn no_new_privileges() {
    let image = Image::new();
    let show = || sh("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status");
    assert_eq!(image.run(show()).ok(), "NoNewPrivs:\t0\nSeccomp:\t2\n");
    let strict = show().spec(|spec| spec.no_new_privileges = true).user("33");
    assert_eq!(image.run(strict).ok(), "NoNewPrivs:\t1\nSeccomp:\t2\n");
    let free = show().spec(|spec| spec.seccomp = Seccomp::Unconfined);
    assert_eq!(image.run(free).ok(), "NoNewPrivs:\t0\nSeccomp:\t0\n");
}

fn seccomp_filters() {
    let image = Image::new();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
        [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
    let with = |nnp| {
        sh("mkdir /tmp/x").spec(|spec| {
            spec.seccomp = Seccomp::Profile(profile.into());
            spec.no_new_privileges = nnp;
        })
    };
    for no_new_privileges in [false, true] {
        let output = image.run(with(no_new_privileges));
        assert!(
            output.err.contains("Function not implemented"),
            "{output:?}"
        );
    }
    // The default profile allows few personalities; without a filter anybody may have any.
    let personality = || command(&["linux64", "-R", "true"]);
    assert_ne!(image.run(personality()).code, 0);
    let free = personality().spec(|spec| spec.seccomp = Seccomp::Unconfined);
    assert_eq!(image.run(free).code, 0);
    // A filter that forbids nearly everything the setup needs still loads: it comes last.
    let narrow = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
        [{"names": ["capset", "setresuid", "setgroups", "openat2", "move_mount", "recvmsg",
                    "sendmsg", "clone3"],
          "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    let narrow = command(&["true"]).spec(|spec| spec.seccomp = Seccomp::Profile(narrow.into()));
    assert_eq!(image.run(narrow).code, 0);
}

fn limits_and_umask() {
    let image = Image::new();
    let run = sh("ulimit -n; ulimit -Hn; umask").spec(|spec| {
        spec.ulimits = vec![("nofile".into(), 100, 200)];
    });
    assert_eq!(image.run(run).ok(), "100\n200\n0022\n");
    let run = sh("umask; cat /proc/self/oom_score_adj").edit(|spec| {
        let process = spec.process_mut().as_mut().unwrap();
        process.set_oom_score_adj(Some(500));
        process.user_mut().set_umask(Some(0o77));
    });
    assert_eq!(image.run(run).ok(), "0077\n500\n");
}

fn terminals() {
    let image = Image::new();
    let script = "tty; stty size; test -c /dev/console && echo console; \
        echo through-tty > /dev/tty; stat -c %u $(tty); ps -o sid= -o pid= | head -1";
    let output = image.run(sh(script).terminal(33, 132).user("33"));
    let out = output.out.replace('\r', "");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[..5],
        ["/dev/pts/0", "33 132", "console", "through-tty", "33"],
        "{out}"
    );
    // A terminal needs a devpts.
    let run = sh("true").terminal(1, 1).edit(|spec| {
        let mounts = spec.mounts_mut().as_mut().unwrap();
        mounts.retain(|mount| mount.typ().as_deref() != Some("devpts"));
    });
    assert!(matches!(
        image.try_run(run),
        Err(LaunchError::InvalidSpec(_))
    ));
}

fn init_reaps_and_forwards() {
    let image = Image::new();
    assert_eq!(image.run(sh("exit 9").init()).code, 9);
    assert_eq!(image.run(sh("kill -9 $$").init()).code, 128 + 9);
    // An orphan is reaped: no zombie is left.
    let orphan = "(sleep 0.1 &) ; sleep 0.4; ps -o stat= | grep -c Z";
    assert_eq!(image.run(sh(orphan).init()).out, "0\n");
    // The command gets what is sent to PID 1.
    let (mut launched, mut pipes) = image
        .launch(sh("trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done").init())
        .unwrap();
    launched.start().unwrap();
    let mut out = pipes.out.take().unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(&mut out, &mut ready).unwrap();
    rustix::process::pidfd_send_signal(&launched.pidfd, rustix::process::Signal::TERM).unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut out, &mut rest).unwrap();
    assert_eq!((rest.as_str(), wait(launched.pid)), ("got\n", 5));
    // A missing command is found out all the same.
    let missing = image.try_run(command(&["nosuch"]).init());
    assert!(matches!(missing, Err(LaunchError::CommandNotFound(_))));
}

fn signals_are_reset() {
    let image = Image::new();
    let show = || command(&["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    let none = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
    assert_eq!(image.run(show()).ok(), none);
    assert_eq!(image.run(show().init()).ok(), none);
    let container = image.sleeper(command(&["sleep", "100"]));
    assert_eq!(container.try_exec(show()).unwrap().ok(), none);
}

fn descriptors_do_not_leak() {
    let image = Image::new();
    let mut leaks = Vec::new();
    for _ in 0..5 {
        let leak: OwnedFd = std::fs::File::open("/").unwrap().into();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        leaks.push(leak);
    }
    // The shell lists its own, without forking for it.
    let list = "cd /proc/self/fd; for f in *; do test -e $f && echo $f; done; true";
    assert_eq!(image.sh(list), "0\n1\n2\n");
    for init in [false, true] {
        let run = Run { init, ..sh(list) };
        assert_eq!(image.run(run).ok(), "0\n1\n2\n");
    }
    // Preserved ones are numbered from 3, in order, whatever numbers they had.
    let file = |content: &str| -> OwnedFd {
        use std::io::{Seek, Write};
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.rewind().unwrap();
        file.into()
    };
    let (first, second) = (file("first\n"), file("second\n"));
    assert!(first.as_raw_fd() > 3);
    let run = Run {
        preserve_fds: vec![second, first],
        ..sh("cat <&3; cat <&4; cd /proc/self/fd; for f in *; do test -e $f && echo $f; done; true")
    };
    assert_eq!(image.run(run).ok(), "second\nfirst\n0\n1\n2\n3\n4\n");
    let running = image.sleeper(command(&["sleep", "100"]));
    assert_eq!(running.exec(list), "0\n1\n2\n");
    drop(leaks);
}

fn the_gate_holds() {
    let image = Image::new();
    // Set up, but not started: nothing of the command has happened.
    let (launched, _pipes) = image.launch(sh("echo > /tmp/ran")).unwrap();
    assert!(launched.identity.is_running());
    assert!(!image.path("tmp/ran").exists());
    let pid = launched.pid;
    drop(launched);
    assert_eq!(wait(pid), 1, "without its launcher it gives up");
    assert!(!image.path("tmp/ran").exists());

    // The same when the launcher dies.
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    match selkie_sys::clone::fork().unwrap() {
        selkie_sys::clone::Side::Child => {
            let (launched, _pipes) = image.launch(command(&["true"])).unwrap();
            let pid = launched.pid.as_raw_nonzero().get();
            rustix::io::write(&writer, &pid.to_ne_bytes()).unwrap();
            selkie_sys::clone::exit_now(0);
        }
        selkie_sys::clone::Side::Parent { pid, .. } => {
            drop(writer);
            let mut orphan = [0; 4];
            assert_eq!(rustix::io::read(&reader, &mut orphan), Ok(4));
            wait(pid);
            let status = format!("/proc/{}/status", i32::from_ne_bytes(orphan));
            eventually("the orphan ends", || {
                std::fs::read_to_string(&status).map_or(true, |status| status.contains("State:\tZ"))
            });
        }
    }
}

fn commands_that_cannot_run() {
    let image = Image::new();
    image.program("bin/no-interpreter", "#!/no/such/interpreter\n");
    image.program("bin/no-format", "just text");
    image.write("bin/no-permission", "#!/bin/sh\n");
    let error = |argv: &[&str]| image.try_run(command(argv)).unwrap_err();
    assert!(matches!(error(&["nosuch"]), LaunchError::CommandNotFound(name) if name == "nosuch"));
    assert!(matches!(
        error(&["/no/such"]),
        LaunchError::CommandNotFound(_)
    ));
    let interpreter = error(&["no-interpreter"]);
    assert!(matches!(interpreter, LaunchError::InterpreterNotFound(_)));
    assert!(
        interpreter
            .to_string()
            .contains("no such file or directory")
    );
    let not_executable = |argv, expected| match error(argv) {
        LaunchError::CommandNotExecutable(_, errno) => assert_eq!(errno, expected, "{argv:?}"),
        other => panic!("{argv:?}: {other}"),
    };
    not_executable(&["no-format"], Errno::NOEXEC);
    not_executable(&["no-permission"], Errno::ACCESS);
    not_executable(&["/tmp"], Errno::ACCESS);
    not_executable(&["/etc/passwd/x"], Errno::NOTDIR);
    assert!(matches!(error(&[]), LaunchError::InvalidSpec(_)));
    assert!(matches!(error(&["a\0b"]), LaunchError::InvalidSpec(_)));
}

fn failing_steps_are_worded() {
    let image = Image::new();
    let host = host_directory();
    let source = host.path().to_str().unwrap();
    let error = |run| image.try_run(run).unwrap_err().to_string();
    let run = || command(&["true"]);
    let table = [
        (
            run().mount("bind", source, "/etc/passwd", &["rbind"]),
            "mount on /etc/passwd (there is a file, what is mounted is a directory)",
        ),
        (
            run().mount("bind", "/bin/busybox", "/tmp", &["bind"]),
            "mount on /tmp (there is a directory, what is mounted is not one)",
        ),
        (
            run().mount("bind", "/no/such/source", "/tmp", &["bind"]),
            "open bind source /no/such/source",
        ),
        (
            run().mount("tmpfs", "tmpfs", "/tmp", &["size=many"]),
            "make a tmpfs with option size=many",
        ),
        (
            run().mount("tmpfs", "tmpfs", "/tmp", &["nonsense"]),
            "make a tmpfs with option nonsense",
        ),
        (run().mount("nofs", "none", "/tmp", &[]), "make a nofs"),
        (
            run().mount("tmpfs", "tmpfs", "/etc/passwd/x", &[]),
            "mount on /etc/passwd/x",
        ),
        (
            run().spec(|spec| spec.ulimits = vec![("nofile".into(), 1 << 40, 1 << 40)]),
            "set RLIMIT_NOFILE to",
        ),
    ];
    for (run, expected) in table {
        let message = error(run);
        assert!(
            message.starts_with(expected),
            "{message:?} is not {expected:?}"
        );
    }
}

fn bad_specs_are_refused() {
    let image = Image::new();
    let run = || command(&["true"]);
    let table: [(Run, &str); 8] = [
        (
            run().mount("tmpfs", "tmpfs", "relative", &[]),
            "must be an absolute path",
        ),
        (
            run().mount("tmpfs", "tmpfs", "/", &[]),
            "must be an absolute path below /",
        ),
        (
            run().mount("bind", "relative", "/mnt", &[]),
            "needs an absolute source",
        ),
        (
            run().mount("bind", "/tmp", "/mnt", &["rbind", "idmap"]),
            "unknown option \"idmap\"",
        ),
        (
            run().mount("bind", "/tmp", "/mnt", &["tmpcopyup"]),
            "tmpcopyup is for tmpfs only",
        ),
        (run().spec(|spec| spec.uid_maps.clear()), "no UID mappings"),
        (
            run().edit(|spec| {
                spec.process_mut()
                    .as_mut()
                    .unwrap()
                    .set_apparmor_profile(Some("x".into()));
            }),
            "AppArmor",
        ),
        (
            run().edit(|spec| {
                spec.linux_mut()
                    .as_mut()
                    .unwrap()
                    .set_rootfs_propagation(Some("odd".into()));
            }),
            "rootfsPropagation",
        ),
    ];
    for (run, expected) in table {
        match image.try_run(run) {
            Err(LaunchError::InvalidSpec(message)) => {
                assert!(message.contains(expected), "{message:?} lacks {expected:?}");
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
}

fn a_failing_root_leaves_nothing() {
    let spec = command(&["true"]).spec.build().unwrap();
    let null = || -> OwnedFd { std::fs::File::open("/dev/null").unwrap().into() };
    let stdio = || Stdio::Streams {
        stdin: null(),
        stdout: null(),
        stderr: null(),
    };
    let request = |provide: &mut dyn FnMut() -> Option<OwnedFd>| {
        launch(LaunchRequest {
            spec: &spec,
            stdio: stdio(),
            provide_root: &mut |_| match provide() {
                Some(root) => Ok(ProvidedRoot { root }),
                None => Err("no root today".into()),
            },
            connect_network: None,
            cgroup: None,
            init: false,
            seccomp_cache_dir: None,
            preserve_fds: Vec::new(),
        })
    };
    let error = request(&mut || None).unwrap_err();
    assert_eq!(error.to_string(), "no root today");
    // Not a mount: the child fails while the parent goes on.
    let error = request(&mut || Some(null())).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("attach the container's root file system"),
        "{error}"
    );
    let children = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
    assert_eq!(children.unwrap_err(), Errno::CHILD, "no child is left");
}

fn host_namespaces() {
    let image = Image::new();
    let namespace = |name: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        format!("{}\n", link.display())
    };
    let script = "readlink /proc/self/ns/net; ls /sys/class/net | grep -x lo; \
        touch /sys/kernel/x || echo kept";
    let run = sh(script).spec(|spec| spec.network = Network::Host);
    assert_eq!(
        image.run(run).ok(),
        format!("{}lo\nkept\n", namespace("net"))
    );
    let script =
        "readlink /proc/self/ns/pid; test -d /proc/$$ && echo proc; kill -0 1 || echo kept";
    let run = sh(script).spec(|spec| spec.pid = PidNamespace::Host);
    assert_eq!(
        image.run(run).ok(),
        format!("{}proc\nkept\n", namespace("pid"))
    );
}

fn existing_namespaces_are_joined() {
    use oci_spec::runtime::LinuxNamespaceType as Type;
    let image = Image::new();
    let first = image.sleeper(command(&["sleep", "100"]));
    let pid = first.launched.pid.as_raw_nonzero().get();
    let link = |name: &str| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        link.display().to_string()
    };
    // `edit` is a plain function: the PID goes through the environment of this process.
    PEER.store(pid, std::sync::atomic::Ordering::Relaxed);
    let join = |kinds: fn(Type) -> bool| {
        JOINED.with(|joined| joined.set(Some(kinds)));
        sh("for n in user net ipc pid mnt; do readlink /proc/self/ns/$n; done").edit(|spec| {
            let pid = PEER.load(std::sync::atomic::Ordering::Relaxed);
            let kinds = JOINED.with(std::cell::Cell::get).unwrap();
            let linux = spec.linux_mut().as_mut().unwrap();
            for namespace in linux.namespaces_mut().as_mut().unwrap() {
                if kinds(namespace.typ()) {
                    let path = format!("/proc/{pid}/ns/{}", namespace.typ());
                    namespace.set_path(Some(path.into()));
                }
            }
        })
    };
    let same = |out: &str| -> Vec<bool> {
        let names = ["user", "net", "ipc", "pid", "mnt"];
        out.lines()
            .zip(names)
            .map(|(line, name)| line == link(name))
            .collect()
    };
    // A pod: everything but the mounts.
    let pod = |kind| matches!(kind, Type::User | Type::Network | Type::Ipc | Type::Pid);
    let out = image.run(join(pod)).ok();
    assert_eq!(same(&out), [true, true, true, true, false], "{out}");
    // The network alone belongs to a user namespace that a third one knows nothing of.
    let error = image.try_run(join(|kind| kind == Type::Mount)).unwrap_err();
    assert!(matches!(error, LaunchError::InvalidSpec(_)), "{error}");
    // In namespaces that are there already, failing is worded too.
    PEER.store(1, std::sync::atomic::Ordering::Relaxed);
    let error = image
        .try_run(join(|kind| kind == Type::Network))
        .unwrap_err();
    assert!(error.to_string().contains("net namespace"), "{error}");
}

static PEER: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);

type KindFilter = fn(oci_spec::runtime::LinuxNamespaceType) -> bool;

thread_local! {
    static JOINED: std::cell::Cell<Option<KindFilter>> = const { std::cell::Cell::new(None) };
}

fn one_id_is_enough() {
    let image = Image::new();
    let single = |run: Run| {
        run.spec(|spec| {
            spec.uid_maps = vec![(0, 0, 1)];
            spec.gid_maps = vec![(0, 0, 1)];
        })
    };
    // Group 10 (wheel) and devpts' group 5 are not mapped; neither keeps root from starting.
    assert_eq!(
        image.run(single(sh("id -u; id -G; ls /dev/pts"))).ok(),
        "0\n0\nptmx\n"
    );
    let error = image.try_run(single(sh("true")).user("33")).unwrap_err();
    assert!(
        error.to_string().contains("user ID 33 is not mapped"),
        "{error}"
    );
}

/// One extent for what our own map has in two.
fn all_ids_at_once() {
    let image = Image::new();
    let run = sh("cat /proc/self/uid_map /proc/self/gid_map | sed 's/  */ /g'").spec(|spec| {
        spec.uid_maps = vec![(0, 0, 65537)];
        spec.gid_maps = vec![(0, 0, 65537)];
    });
    assert_eq!(image.run(run).ok(), " 0 0 1\n 1 1 65536\n".repeat(2));
    let error = image
        .try_run(sh("true").spec(|spec| spec.uid_maps = vec![(0, 70000, 10)]))
        .unwrap_err();
    assert!(
        error.to_string().contains("write \"0 70000 10\" to /proc/"),
        "{error}"
    );
}
