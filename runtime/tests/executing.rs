//! Further processes in running containers.

#[path = "support/mod.rs"]
mod support;

use selkie_runtime::launch::LaunchError;
use support::*;

fn main() -> std::process::ExitCode {
    run_tests(&[
        ("it_is_in_the_container", it_is_in_the_container),
        ("users_and_capabilities", users_and_capabilities),
        ("terminals", terminals),
        ("errors", errors),
        ("below_an_init", below_an_init),
        ("it_is_the_callers_child", it_is_the_callers_child),
        ("the_dead_are_not_joined", the_dead_are_not_joined),
    ])
}

fn it_is_in_the_container() {
    let image = Image::new();
    let container = image.sleeper(command(&["sleep", "100"]));
    let pid = container.launched.pid.as_raw_nonzero();
    let script = "for n in user mnt pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done";
    let inside = container.exec(script);
    let names = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"];
    for (line, name) in inside.lines().zip(names) {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(line, link.to_str().unwrap());
    }
    assert_eq!(
        container.exec("hostname; cat /proc/1/cmdline"),
        "box\nsleep\u{0}100\u{0}"
    );
    container.exec("touch /tmp/seen");
    assert!(image.path("tmp/seen").exists());
}

fn users_and_capabilities() {
    let image = Image::new();
    let container = image.sleeper(command(&["sleep", "100"]));
    let show =
        || sh("id -u; id -G; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status");
    let run = |run: Run| container.try_exec(run).unwrap().ok().replace('\t', " ");
    assert_eq!(
        run(show()),
        "0\n0 10\nCapEff: 00000000800405fb\nCapBnd: 00000000800405fb\nNoNewPrivs: 0\nSeccomp: 2\n"
    );
    let strict = show()
        .user("www-data")
        .spec(|spec| spec.no_new_privileges = true);
    assert_eq!(
        run(strict),
        "33\n33 50\nCapEff: 0000000000000000\nCapBnd: 00000000800405fb\nNoNewPrivs: 1\nSeccomp: 2\n"
    );
    let home = sh("echo $HOME; pwd; ulimit -n; umask")
        .user("33")
        .spec(|spec| {
            spec.cwd = "/tmp".into();
            spec.ulimits = vec![("nofile".into(), 99, 99)];
        });
    assert_eq!(run(home), "/var/www\n/tmp\n99\n0022\n");
    // As any process of that user, it can open its pipes again.
    assert_eq!(
        run(sh("echo again > /dev/stderr; echo more > /dev/stdout").user("33")),
        "more\n"
    );
}

fn terminals() {
    let image = Image::new();
    let container = image.sleeper(command(&["sleep", "100"]));
    let run = sh("tty; stty size; stat -c %u $(tty)")
        .terminal(20, 70)
        .user("33");
    let out = container.try_exec(run).unwrap().out.replace('\r', "");
    assert_eq!(out, "/dev/pts/0\n20 70\n33\n");
}

fn errors() {
    let image = Image::new();
    image.write("bin/no-permission", "");
    let container = image.sleeper(command(&["sleep", "100"]));
    let error = |run| container.try_exec(run).unwrap_err();
    assert!(matches!(
        error(command(&["nosuch"])),
        LaunchError::CommandNotFound(_)
    ));
    assert!(matches!(
        error(command(&["no-permission"])),
        LaunchError::CommandNotExecutable(..)
    ));
    assert!(matches!(
        error(sh("true").user("nosuch")),
        LaunchError::User(_)
    ));
    match error(sh("true").spec(|spec| spec.cwd = "/no/such".into())) {
        LaunchError::WorkingDirectory { path, errno } => {
            assert_eq!(
                (path.as_str(), errno),
                ("/no/such", rustix::io::Errno::NOENT)
            );
        }
        other => panic!("{other}"),
    }
    assert!(!image.path("no").exists());
    assert_eq!(container.try_exec(sh("exit 3")).unwrap().code, 3);
    assert_eq!(container.try_exec(sh("kill -9 $$")).unwrap().code, 128 + 9);
}

fn below_an_init() {
    let image = Image::new();
    let container = image.sleeper(command(&["sleep", "100"]).init());
    assert_eq!(
        container
            .exec("ps -o pid=,comm= | head -2")
            .replace(' ', ""),
        "1selkie-init\n2sleep\n"
    );
}

fn it_is_the_callers_child() {
    let image = Image::new();
    let container = image.sleeper(command(&["sleep", "100"]));
    let (launched, _pipes) = container.prepare(command(&["true"])).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", launched.pid.as_raw_nonzero()));
    let parent = format!("PPid:\t{}\n", std::process::id());
    assert!(status.unwrap().contains(&parent));
    let pid = launched.pid;
    drop(launched);
    assert_eq!(wait(pid), 1, "not started, it gives up");
}

fn the_dead_are_not_joined() {
    let image = Image::new();
    let mut container = image.sleeper(command(&["sleep", "100"]));
    let identity = container.launched.identity;
    container.launched.identity.start_time += 1;
    let error = container.try_exec(sh("true")).unwrap_err();
    assert!(
        matches!(error, LaunchError::NotRunning(pid) if pid == identity.pid),
        "{error}"
    );
}
