//! What a hostile image or a hostile process in a container might try.

#[path = "support/mod.rs"]
mod support;

use selkie_runtime::launch::LaunchError;
use support::*;

fn main() -> std::process::ExitCode {
    run_tests(&[
        ("links_for_mount_points_stay_inside", links_stay_inside),
        (
            "databases_are_not_followed_out",
            databases_are_not_followed_out,
        ),
        ("magic_links_are_not_commands", magic_links_are_not_commands),
        (
            "magic_links_are_no_directories",
            magic_links_are_no_directories,
        ),
        (
            "a_waiting_process_cannot_be_looked_into",
            waiting_process_is_closed,
        ),
        ("the_init_cannot_be_looked_into", the_init_is_closed),
        (
            "the_pts_of_an_exec_is_the_containers",
            replaced_devpts_is_refused,
        ),
        (
            "nothing_of_the_host_can_be_unmounted",
            nothing_can_be_uncovered,
        ),
        ("hostile_databases", hostile_databases),
    ])
}

/// Every way to point a mount point out of the image.
fn links_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let outside_path = outside.path().to_str().unwrap();
    let up = format!("../../../../../../../../..{outside_path}");
    for target in [outside_path, &up, "/proc/self/root/tmp", "/proc/self/cwd"] {
        for destination in ["proc", "dev", "sys"] {
            let image = Image::new();
            std::fs::remove_dir(image.path(destination)).unwrap();
            image.link(target, destination);
            // Whether it starts or not: nothing happens outside.
            if let Ok(output) = image.try_run(sh("cat /proc/mounts")) {
                assert!(
                    output.out.is_empty() || output.out.contains(" / "),
                    "{output:?}"
                );
            }
        }
        let image = Image::new();
        image.link(target, "escape");
        let run = command(&["true"]).mount("tmpfs", "tmpfs", "/escape/made", &[]);
        let _ = image.try_run(run);
        let run = command(&["true"]).spec(|spec| spec.cwd = "/escape/made".into());
        let _ = image.try_run(run);
        let run = command(&["true"]).spec(|spec| spec.mask = vec!["/escape/x".into()]);
        let _ = image.try_run(run);
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    let image = Image::new();
    let run = command(&["true"]).mount("tmpfs", "tmpfs", "/tmp/../../../../made", &[]);
    assert_eq!(image.run(run).code, 0);
    assert!(image.path("made").is_dir());
    // A loop is an error, not a hang.
    image.link("loop", "loop");
    let error = image
        .try_run(command(&["true"]).mount("tmpfs", "tmpfs", "/loop/x", &[]))
        .unwrap_err();
    assert!(error.to_string().starts_with("mount on /loop/x"), "{error}");
}

fn databases_are_not_followed_out() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(outside.path(), "evil:x:66:66::/evil:\n").unwrap();
    let image = Image::new();
    std::fs::remove_file(image.path("etc/passwd")).unwrap();
    image.link(outside.path().to_str().unwrap(), "etc/passwd");
    let error = image.try_run(command(&["true"]).user("evil")).unwrap_err();
    assert!(matches!(error, LaunchError::User(_)), "{error}");
    // Without a database root is still root.
    assert_eq!(image.sh("id -u"), "0\n");
}

fn magic_links_are_not_commands() {
    let image = Image::new();
    image.link("/proc/self/exe", "bin/itself");
    image.link("/proc/self/fd/3", "bin/descriptor");
    for name in [
        "itself",
        "descriptor",
        "/proc/self/exe",
        "/proc/self/fd/3/bin/sh",
    ] {
        match image.try_run(command(&[name, "-c", "echo ran"])) {
            Err(LaunchError::CommandNotExecutable(..) | LaunchError::CommandNotFound(_)) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    let container = image.sleeper(command(&["sleep", "100"]));
    for name in ["itself", "/proc/self/exe"] {
        match container.try_exec(command(&[name])) {
            Err(LaunchError::CommandNotExecutable(..)) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// CVE-2024-21626: a working directory that is a descriptor of the launcher's.
fn magic_links_are_no_directories() {
    let image = Image::new();
    let container = image.sleeper(command(&["sleep", "100"]));
    for number in 3..20 {
        for path in [
            format!("/proc/self/fd/{number}"),
            format!("/proc/self/fd/{number}/.."),
        ] {
            let run = || {
                let path = path.clone();
                sh("pwd").spec(|spec| spec.cwd = path)
            };
            assert!(image.try_run(run()).is_err(), "{path}");
            assert!(container.try_exec(run()).is_err(), "{path}");
        }
    }
}

/// CVE-2016-9962: a process about to exec in the container, with the launcher's memory and
/// descriptors, seen by the container's root.
fn waiting_process_is_closed() {
    let image = Image::new();
    let with_ptrace =
        || command(&["sleep", "100"]).spec(|spec| spec.cap_add = vec!["SYS_PTRACE".into()]);
    let container = image.sleeper(with_ptrace());
    let (launched, _pipes) = container.prepare(command(&["true"])).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", launched.pid.as_raw_nonzero()));
    let status = status.unwrap();
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inside = inside
        .unwrap()
        .split_whitespace()
        .last()
        .unwrap()
        .to_owned();
    let look = format!(
        "for f in environ maps; do cat /proc/{inside}/$f && echo $f; done; \
         readlink /proc/{inside}/exe && echo exe; ls /proc/{inside}/fd && echo fd; \
         ls /proc/{inside}/root/ && echo root; test -d /proc/{inside} && echo there"
    );
    let output = container
        .try_exec(sh(&look).spec(|spec| spec.cap_add = vec!["SYS_PTRACE".into()]))
        .unwrap();
    assert_eq!(output.out, "there\n", "{output:?}");
    // What everybody may read says nothing either.
    let cmdline = container.exec(&format!("cat /proc/{inside}/cmdline"));
    assert_eq!(cmdline.trim_end_matches('\0'), "selkie-exec");
    let pid = launched.pid;
    drop(launched);
    wait(pid);
}

fn the_init_is_closed() {
    let image = Image::new();
    let run = command(&["sleep", "100"])
        .init()
        .spec(|spec| spec.cap_add = vec!["SYS_PTRACE".into()]);
    let container = image.sleeper(run);
    let look = "for f in environ maps; do cat /proc/1/$f && echo $f; done; \
        readlink /proc/1/exe && echo exe; ls /proc/1/fd && echo fd; ls /proc/1/root/ && echo root; \
        echo done";
    let look = sh(look).spec(|spec| spec.cap_add = vec!["SYS_PTRACE".into()]);
    assert_eq!(container.try_exec(look).unwrap().out, "done\n");
    assert_eq!(
        container.exec("cat /proc/1/cmdline").trim_end_matches('\0'),
        "selkie-init"
    );
    // It holds no more than the container may.
    let status = container
        .exec("grep -E '^Cap(Prm|Eff|Bnd)' /proc/1/status")
        .replace('\t', "");
    let set = "00000000800c05fb";
    assert_eq!(
        status,
        format!("CapPrm:{set}\nCapEff:{set}\nCapBnd:{set}\n")
    );
}

/// A container whose root puts something else where its terminals are.
fn replaced_devpts_is_refused() {
    let image = Image::new();
    let admin = |run: Run| run.spec(|spec| spec.cap_add = vec!["SYS_ADMIN".into()]);
    let script = "mount -t tmpfs none /dev/pts && touch /dev/pts/ptmx && sleep 100";
    let container = image.sleeper(admin(sh(script)));
    let mounted = || {
        let mounts = container.exec("cat /proc/mounts");
        mounts
            .lines()
            .any(|line| line.starts_with("none /dev/pts tmpfs"))
    };
    eventually("the devpts is covered", mounted);
    let error = container.try_exec(sh("tty").terminal(1, 1)).unwrap_err();
    assert!(
        error.to_string().starts_with("make a terminal in /dev/pts"),
        "{error}"
    );
}

/// Even with CAP_SYS_ADMIN: what covers something cannot be taken away to see what is below.
fn nothing_can_be_uncovered() {
    let image = Image::new();
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir(host.path().join("below")).unwrap();
    let script = "ls /proc/1/root/.. | grep -c -x bin; umount / && echo root gone; echo done";
    let run = sh(script).spec(|spec| spec.cap_add = vec!["SYS_ADMIN".into()]);
    assert_eq!(image.run(run).out, "1\ndone\n");
}

fn hostile_databases() {
    let image = Image::new();
    let table = [
        "root:x:0:0:root:/ro\u{0}ot:/bin/sh\n".to_owned(),
        format!("root:x:0:0:root:/{}:/bin/sh\n", "x".repeat(10_000)),
    ];
    for passwd in table {
        image.write("etc/passwd", &passwd);
        let error = image.try_run(command(&["true"])).unwrap_err();
        assert!(error.to_string().contains("home directory"), "{error}");
    }
    image.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    let groups: String = (0..4999).map(|n| format!("g{n}:x:{n}:root\n")).collect();
    image.write("etc/group", &groups);
    let error = image.try_run(command(&["true"])).unwrap_err();
    assert!(error.to_string().contains("4096 at most"), "{error}");
    std::fs::remove_file(image.path("etc/passwd")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        image.path("etc/passwd"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let error = image.try_run(command(&["true"])).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}
