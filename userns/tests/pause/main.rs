//! The pause process as a real login meets it. As root the tests make a throw-away account and run
//! as that; otherwise they run as the caller, who needs subordinate IDs.

mod login;
mod probe;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;

use libtest_mimic::{Arguments, Failed, Trial};
use login::{Login, Place, eventually, kill, named, processes_of, refusal, seen};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, rest)) = arguments.split_first()
        && first == "--probe"
    {
        return probe::run(rest);
    }
    let must = std::env::var_os("SELKIE_TEST_MUST").is_some_and(|must| must == "1");
    let mut trials = Vec::new();
    let mut add = |name: &'static str, possible: Result<(), String>, test: fn(Place<'_>)| {
        let trial = match possible {
            Err(why) if !must => {
                println!("skipped: {name}: {why}");
                Trial::test(name, || Ok(())).with_ignored_flag(true)
            }
            Err(why) => Trial::test(name, move || Err(Failed::from(why))),
            Ok(()) => Trial::test(name, move || {
                test(login()?.place(name));
                Ok(())
            }),
        };
        trials.push(trial);
    };
    for (name, test) in ANY_LOGIN {
        add(name, Ok(()), *test);
    }
    for (name, test) in WITH_RANGES {
        add(name, login::can_have_ranges(), *test);
    }
    let root = rustix::process::getuid().is_root();
    for (name, test) in AS_ROOT {
        // Without root this machine could not have run it, whatever must be.
        if root || !must {
            add(
                name,
                root.then_some(()).ok_or("needs root".to_owned()),
                *test,
            );
        }
    }
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    if let Some(Ok(login)) = LOGIN.get() {
        login.end();
    }
    conclusion.exit_code()
}

static LOGIN: OnceLock<Result<Login, String>> = OnceLock::new();

/// Prepared when the first test runs, so that listing and filtering make no account.
fn login() -> Result<&'static Login, Failed> {
    let prepared = LOGIN.get_or_init(Login::prepare).as_ref();
    prepared.map_err(|error| Failed::from(format!("cannot prepare a login: {error}")))
}

type Test = (&'static str, fn(Place<'_>));

const ANY_LOGIN: &[Test] = &[
    (
        "no_subordinate_ids_is_a_namespace_of_one",
        no_subordinate_ids_is_a_namespace_of_one,
    ),
    (
        "mistakes_in_the_files_are_errors",
        mistakes_in_the_files_are_errors,
    ),
    (
        "runtime_directories_of_others_are_refused",
        runtime_directories_of_others_are_refused,
    ),
    ("threads_are_refused", threads_are_refused),
    (
        "namespaces_switched_off_are_named",
        namespaces_switched_off_are_named,
    ),
    (
        "helpers_that_cannot_work_are_explained",
        helpers_that_cannot_work_are_explained,
    ),
];

const WITH_RANGES: &[Test] = &[
    ("first_and_second_join", first_and_second_join),
    (
        "a_hundred_first_joins_make_one_pause_process",
        a_hundred_first_joins_make_one_pause_process,
    ),
    (
        "the_pause_process_holds_nothing_of_its_maker",
        the_pause_process_holds_nothing_of_its_maker,
    ),
    (
        "a_command_survives_the_pause_process",
        a_command_survives_the_pause_process,
    ),
    (
        "monitors_lead_back_when_the_record_is_lost",
        monitors_lead_back_when_the_record_is_lost,
    ),
    ("container_inits_lead_back", container_inits_lead_back),
    (
        "dead_with_nobody_left_means_a_new_namespace",
        dead_with_nobody_left_means_a_new_namespace,
    ),
    (
        "a_deleted_runtime_directory_loses_nothing",
        a_deleted_runtime_directory_loses_nothing,
    ),
    (
        "a_recycled_pid_is_not_believed",
        a_recycled_pid_is_not_believed,
    ),
    ("joining_from_inside", joining_from_inside),
    (
        "a_shared_runtime_directory_belongs_to_the_outer_namespace",
        a_shared_runtime_directory_belongs_to_the_outer_namespace,
    ),
    ("killed_makers_leave_nothing", killed_makers_leave_nothing),
    (
        "changed_ranges_wait_until_nobody_uses_the_old",
        changed_ranges_wait_until_nobody_uses_the_old,
    ),
    (
        "the_current_directory_is_kept",
        the_current_directory_is_kept,
    ),
];

const AS_ROOT: &[Test] = &[
    (
        "another_primary_group_is_no_obstacle",
        another_primary_group_is_no_obstacle,
    ),
    ("nosuid_helpers_are_explained", nosuid_helpers_are_explained),
    (
        "mounts_come_in_and_do_not_go_out",
        mounts_come_in_and_do_not_go_out,
    ),
];

fn first_and_second_join(place: Place<'_>) {
    let first = place.join(&[]);
    assert_eq!((first.uid, first.gid), (0, 0));
    assert!(first.ids > 1);
    assert_eq!(first.single_id_reason, None);
    let ranges = place.login.ranges().unwrap();
    assert_eq!(first.first_subordinate, Some(ranges.uid[0].start));
    let second = place.join(&[]);
    assert_eq!(second.pause, first.pause);
    assert_eq!(second.user_namespace, first.user_namespace);
    assert_eq!(second.mount_namespace, first.mount_namespace);
    let status = place.probe(&["then=status"]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&status.stdout).trim(),
        first.pause.pid.to_string()
    );
    kill(first.pause.pid);
    let status = place.probe(&["then=status"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&status.stdout).trim(), "none");
}

fn a_hundred_first_joins_make_one_pause_process(place: Place<'_>) {
    let children: Vec<_> = (0..100)
        .map(|_| {
            place
                .probe(&[])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let pauses: std::collections::BTreeSet<_> = children
        .into_iter()
        .map(|child| seen(&child.wait_with_output().unwrap()).pause.pid)
        .collect();
    assert_eq!(pauses.len(), 1);
    assert_eq!(
        place.pause_processes(),
        pauses.into_iter().collect::<Vec<_>>()
    );
}

fn the_pause_process_holds_nothing_of_its_maker(place: Place<'_>) {
    // That output() of the first join returned shows that the pipes are closed.
    let pid = place.join(&[]).pause.pid;
    let targets = || {
        let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut targets: Vec<String> = links
            .filter_map(|link| std::fs::read_link(link.unwrap().path()).ok())
            .map(|target| target.display().to_string())
            .collect();
        targets.sort();
        targets
    };
    // It closes its two pipes to the maker when that has let it go.
    eventually("nothing but its record is open", || {
        targets()
            == [
                "/dev/null",
                "/dev/null",
                "/dev/null",
                "/memfd:selkie-pause (deleted)",
            ]
    });
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    let (parent, session) = (fields[1], fields[3]);
    assert_eq!(session, pid.to_string(), "leads its own session");
    assert_ne!(parent, std::process::id().to_string());
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let title = format!("selkie-pause {}", place.runtime().display());
    let shown = String::from_utf8_lossy(&command_line);
    assert_eq!(shown.trim_end_matches('\0'), title);
    assert_eq!(
        std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
}

fn a_command_survives_the_pause_process(place: Place<'_>) {
    let command = place.hold(&[]);
    let before = &command.seen;
    kill(before.pause.pid);
    let after = place.join(&[]);
    assert_ne!(after.pause, before.pause);
    assert_eq!(after.user_namespace, before.user_namespace);
    assert_eq!(after.mount_namespace, before.mount_namespace);
    assert_eq!(after.ids, before.ids);
    assert_eq!(place.pause_processes(), [after.pause.pid]);
}

fn monitors_lead_back_when_the_record_is_lost(place: Place<'_>) {
    let monitor = place.hold(&[]);
    kill(monitor.seen.pause.pid);
    std::fs::remove_dir_all(place.runtime()).unwrap();
    let own = monitor.seen.own;
    let list = place.file(
        "survivors",
        &format!("1 1\n{} {}\n", own.pid, own.start_time),
    );
    let after = place.join(&[&format!("survivors={}", list.display())]);
    assert_eq!(after.user_namespace, monitor.seen.user_namespace);
    assert_eq!(after.mount_namespace, monitor.seen.mount_namespace);
    assert_eq!(after.ids, monitor.seen.ids);
    assert_eq!(after.stale_ranges, None);
}

fn container_inits_lead_back(place: Place<'_>) {
    let first = place.join(&[]);
    // Two user namespaces below the pause process's, as a container in a container.
    let nested = [
        "unshare",
        "--user",
        "--map-root-user",
        "unshare",
        "--user",
        "--mount",
        "cat",
    ];
    let mut init = place
        .probe(&[&["then=exec", "--"], nested.as_slice()].concat())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = init.id() as i32;
    eventually("cat runs", || named(place.login.uid, "cat").contains(&pid));
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let identity = selkie_sys::process_identity::ProcessIdentity::of(pid).unwrap();
    kill(first.pause.pid);
    let list = place.file(
        "survivors",
        &format!("{} {}\n", identity.pid, identity.start_time),
    );
    let after = place.join(&[&format!("survivors={}", list.display())]);
    let init_mounts = std::fs::metadata(format!("/proc/{}/ns/mnt", identity.pid)).unwrap();
    drop(init.stdin.take());
    init.wait().unwrap();
    assert_eq!(after.user_namespace, first.user_namespace);
    let init_mounts = std::os::unix::fs::MetadataExt::ino(&init_mounts);
    assert_ne!(after.mount_namespace, init_mounts, "not the container's");
    assert_eq!(after.ids, first.ids);
}

fn dead_with_nobody_left_means_a_new_namespace(place: Place<'_>) {
    let first = place.join(&[]);
    kill(first.pause.pid);
    let second = place.join(&[]);
    assert_ne!(second.pause, first.pause);
    assert_eq!(second.ids, first.ids);
    assert_eq!(place.pause_processes(), [second.pause.pid]);
}

fn a_deleted_runtime_directory_loses_nothing(place: Place<'_>) {
    let first = place.join(&[]);
    std::fs::remove_dir_all(place.runtime()).unwrap();
    let second = place.join(&[]);
    assert_eq!(second.pause, first.pause);
    assert_eq!(second.mount_namespace, first.mount_namespace);
    // Only the record, and again damaged.
    std::fs::write(place.runtime().join("pause.json"), "{\"identity\":").unwrap();
    assert_eq!(place.join(&[]).pause, first.pause);
    std::fs::remove_file(place.runtime().join("pause.lock")).unwrap();
    assert_eq!(place.join(&[]).pause, first.pause);
    assert_eq!(place.pause_processes(), [first.pause.pid]);
}

fn a_recycled_pid_is_not_believed(place: Place<'_>) {
    let first = place.join(&[]);
    let record = place.runtime().join("pause.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let with = |pid: i32, start_time: u64| {
        let old = format!(
            "\"pid\":{},\"start_time\":{}",
            first.pause.pid, first.pause.start_time
        );
        assert!(text.contains(&old));
        text.replace(&old, &format!("\"pid\":{pid},\"start_time\":{start_time}"))
    };
    // The PID lives, but it is a later process.
    std::fs::write(&record, with(first.pause.pid, first.pause.start_time - 1)).unwrap();
    assert_eq!(place.join(&[]).pause, first.pause);
    // Another process of the login with the right start time, in the host's namespace …
    let mut cat = place
        .login
        .command(Path::new("cat"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let cat_pid = rustix::process::Pid::from_raw(cat.id() as i32).unwrap();
    eventually("cat runs", || {
        named(place.login.uid, "cat").contains(&(cat.id() as i32))
    });
    let cat_identity = selkie_sys::process_identity::ProcessIdentity::of(cat_pid).unwrap();
    std::fs::write(&record, with(cat_identity.pid, cat_identity.start_time)).unwrap();
    assert_eq!(place.join(&[]).pause, first.pause);
    drop(cat.stdin.take());
    cat.wait().unwrap();
    // … and in another namespace of the login.
    let mut other = place
        .login
        .command(Path::new("unshare"))
        .args(["--user", "--map-root-user", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("cat runs", || {
        named(place.login.uid, "cat").contains(&(other.id() as i32))
    });
    let other_pid = rustix::process::Pid::from_raw(other.id() as i32).unwrap();
    let identity = selkie_sys::process_identity::ProcessIdentity::of(other_pid).unwrap();
    std::fs::write(&record, with(identity.pid, identity.start_time)).unwrap();
    let after = place.join(&[]);
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_eq!(after.pause, first.pause);
    assert_eq!(after.user_namespace, first.user_namespace);
}

fn joining_from_inside(place: Place<'_>) {
    let first = place.join(&[]);
    let inner = plain_words_of(&place.probe(&[]));
    let mut command = place.probe(&["then=exec", "--"]);
    let inside = seen(&command.args(&inner).output().unwrap());
    assert_eq!(inside.pause, first.pause);
    assert_eq!(inside.mount_namespace, first.mount_namespace);
    // The pause process dies while a shell is inside: a command of that shell makes the next one.
    let mut command = place.probe(&["then=exec", "--", "sh", "-c"]);
    let script = format!(
        "kill -9 {pid}; while grep -qs '^State:.[^Z]' /proc/{pid}/status; do :; done; {}",
        inner.join(" "),
        pid = first.pause.pid
    );
    let healed = seen(&command.arg(script).output().unwrap());
    assert_eq!(healed.user_namespace, first.user_namespace);
    assert_eq!(healed.mount_namespace, first.mount_namespace);
    assert_ne!(healed.pause, first.pause);
    let outside = place.join(&[]);
    assert_eq!(outside.pause, healed.pause);
    assert_eq!(outside.ids, first.ids);
}

fn a_shared_runtime_directory_belongs_to_the_outer_namespace(place: Place<'_>) {
    let inner = plain_words_of(&place.probe(&[]));
    let nested = |words: &[String]| {
        let mut command = place.login.command(Path::new("unshare"));
        command.args(["--user", "--map-root-user"]).args(words);
        command.stdin(Stdio::null()).output().unwrap()
    };
    // Nobody was there before: a namespace inside the namespace.
    let inside = seen(&nested(&inner));
    assert_eq!(inside.ids, 1);
    let outside = place.join(&[]);
    assert_ne!(outside.user_namespace, inside.user_namespace);
    assert!(outside.ids > 1);
    assert_eq!(outside.strays, [inside.pause.pid]);
    kill(inside.pause.pid);
    assert_eq!(place.join(&[]).strays, Vec::<i32>::new());
    // Now the outer one is.
    let said = refusal(&nested(&inner));
    let expected = format!("held by process {}", outside.pause.pid);
    assert!(said.contains(&expected), "{said}");
    assert_eq!(place.join(&[]).pause, outside.pause);
}

fn killed_makers_leave_nothing(place: Place<'_>) {
    for round in 0..60u64 {
        let mut maker = place
            .probe(&[])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over what a creation takes; where it hits does not matter for the outcome.
        std::thread::sleep(std::time::Duration::from_micros(round * 200));
        let _ = maker.kill();
        maker.wait().unwrap();
        let _ = std::fs::remove_file(place.runtime().join("pause.lock"));
        eventually("half-made processes exit", || {
            let pauses = place.pause_processes();
            let others = named(place.login.uid, "probe").into_iter();
            pauses.len() <= 1 && others.filter(|pid| is_below(*pid, &place)).count() == 0
        });
        if round % 2 == 0 {
            for pid in place.pause_processes() {
                kill(pid);
            }
        }
    }
    let survivor = place.join(&[]);
    assert_eq!(place.pause_processes(), [survivor.pause.pid]);
}

/// True when a process's command line names the place.
fn is_below(pid: i32, place: &Place<'_>) -> bool {
    let dir = place.dir.display().to_string();
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&dir))
}

fn no_subordinate_ids_is_a_namespace_of_one(place: Place<'_>) {
    let empty = place.file("empty", "");
    let files = [
        format!("subuid={}", empty.display()),
        format!("subgid={}", empty.display()),
        format!(
            "nsswitch={}",
            place.file("nsswitch", "subid: files\n").display()
        ),
    ];
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let one = place.join(&files);
    assert_eq!((one.uid, one.gid, one.ids), (0, 0, 1));
    let reason = one.single_id_reason.unwrap();
    assert!(reason.contains("has no line for"), "{reason}");
    assert!(
        reason.contains(":100000:65536") || reason.contains("--add-subuids"),
        "{reason}"
    );
    let groups = place
        .probe(
            &[
                &files,
                ["then=exec", "--", "cat", "/proc/self/setgroups"].as_slice(),
            ]
            .concat(),
        )
        .output()
        .unwrap();
    assert_eq!(groups.stdout, b"deny\n");
}

fn mistakes_in_the_files_are_errors(place: Place<'_>) {
    let uid = place.login.uid;
    for (line, word) in [
        (format!("{uid}:x:1"), "is not a decimal number"),
        (format!("{uid}:{}:1000", uid - 5), "contains its own UID"),
        (
            format!("{uid}:100000:65536\n{uid}:165000:65536"),
            "which overlap",
        ),
        (
            format!("{uid}:100000:65536\nother:165000:65536"),
            "could reach each other's containers",
        ),
    ] {
        let file = place.file("subuid", &line);
        let nsswitch = place.file("nsswitch", "subid: files\n");
        let said = place.refusal(&[
            &format!("subuid={}", file.display()),
            &format!("nsswitch={}", nsswitch.display()),
        ]);
        assert!(said.contains(word), "{line}: {said}");
    }
    assert_eq!(place.pause_processes(), Vec::<i32>::new());
}

fn runtime_directories_of_others_are_refused(place: Place<'_>) {
    use std::os::unix::fs::PermissionsExt as _;
    let runtime = place.runtime();
    std::fs::create_dir(&runtime).unwrap();
    std::os::unix::fs::chown(&runtime, Some(place.login.uid), Some(place.login.gid)).unwrap();
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o750)).unwrap();
    let open = place.refusal(&[]);
    assert!(
        open.contains("others may enter it (mode 0750); chmod 0700"),
        "{open}"
    );
    std::fs::remove_dir(&runtime).unwrap();
    std::os::unix::fs::symlink("/tmp", &runtime).unwrap();
    let link = place.refusal(&[]);
    assert!(link.contains("symbolic link"), "{link}");
    std::fs::remove_file(&runtime).unwrap();
    if place.login.has_root() {
        std::fs::create_dir(&runtime).unwrap();
        let foreign = place.refusal(&[]);
        assert!(foreign.contains("it belongs to UID 0"), "{foreign}");
    }
}

fn threads_are_refused(place: Place<'_>) {
    let said = place.refusal(&["then=threads"]);
    assert!(
        said.contains("other threads run") || said.contains("2 threads running"),
        "{said}"
    );
}

fn helpers_that_cannot_work_are_explained(place: Place<'_>) {
    let uid = place.login.uid;
    let range = place.file("range", &format!("{uid}:3000000000:65536\n"));
    let tools = place.dir.join("tools");
    std::fs::create_dir(&tools).unwrap();
    let settings = [
        format!("subuid={}", range.display()),
        format!("subgid={}", range.display()),
        format!(
            "nsswitch={}",
            place.file("nsswitch", "subid: files\n").display()
        ),
        format!("tools={}", tools.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let missing = place.refusal(&settings);
    assert!(
        missing.starts_with("newuidmap is not installed (looked in /"),
        "{missing}"
    );
    // Not granted: the range is nobody's.
    let not_allowed = place.refusal(&settings[..3]);
    assert!(
        not_allowed.contains("does not allow the UIDs"),
        "{not_allowed}"
    );
    assert!(
        not_allowed.contains("3000000000-3000065535"),
        "{not_allowed}"
    );
    for tool in ["newuidmap", "newgidmap"] {
        let script = "#!/bin/sh\necho odd >&2\nexit 3\n";
        login::install(Path::new("/dev/stdin"), &tools.join(tool), script).unwrap();
    }
    let unprivileged = place.refusal(&settings);
    assert!(
        unprivileged.contains("has neither the set-user-ID bit"),
        "{unprivileged}"
    );
    assert!(
        unprivileged.contains("setcap cap_setuid=ep"),
        "{unprivileged}"
    );
    let sandboxed = refusal(
        &place
            .probe_under(&["--no-new-privs"], &settings)
            .output()
            .unwrap(),
    );
    assert!(sandboxed.contains("no_new_privs"), "{sandboxed}");
    assert_eq!(place.pause_processes(), Vec::<i32>::new());
}

fn changed_ranges_wait_until_nobody_uses_the_old(place: Place<'_>) {
    let login = place.login;
    let ranges = login.ranges().unwrap();
    let write = |name: &str, start: u32, count: u32| {
        place.file(name, &format!("{}:{start}:{count}\n", login.uid))
    };
    let both = |count| {
        write("subgid", ranges.gid[0].start, count);
        write("subuid", ranges.uid[0].start, count)
    };
    both(1000);
    let settings = [
        format!("subuid={}", place.dir.join("subuid").display()),
        format!("subgid={}", place.dir.join("subgid").display()),
        format!(
            "nsswitch={}",
            place.file("nsswitch", "subid: files\n").display()
        ),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let holder = place.hold(&settings);
    assert_eq!(holder.seen.ids, 1001);
    // Touched, but with the same meaning.
    both(1000);
    let touched = place.join(&settings);
    assert_eq!(
        (touched.pause, touched.stale_ranges),
        (holder.seen.pause, None)
    );
    both(2000);
    for _ in 0..2 {
        let kept = place.join(&settings);
        assert_eq!((kept.pause, kept.ids), (holder.seen.pause, 1001));
        assert!(kept.stale_ranges.unwrap().contains("have changed"));
    }
    // A mistake does not take the namespace away from those who use it.
    place.file("subuid", &format!("{}:oops:1\n", login.uid));
    let kept = place.join(&settings);
    assert!(kept.stale_ranges.unwrap().contains("`"));
    both(2000);
    let old = holder.seen.pause;
    drop(holder);
    let renewed = place.join(&settings);
    assert_eq!((renewed.ids, renewed.stale_ranges), (2001, None));
    assert_eq!(place.pause_processes(), [renewed.pause.pid]);
    assert_ne!(renewed.pause, old);
}

fn the_current_directory_is_kept(place: Place<'_>) {
    let dir = place.dir.join("wörk dir");
    std::fs::create_dir(&dir).unwrap();
    assert_eq!(
        seen(&place.probe(&[]).current_dir(&dir).output().unwrap()).cwd,
        dir
    );
    // A deleted directory has no path: `/` it is.
    let gone = place.dir.join("gone");
    std::fs::create_dir(&gone).unwrap();
    let mut command = Command::new("sh");
    let words = words_of(&place.probe(&[]));
    let script = "cd \"$1\" && rmdir \"$1\" && shift && exec \"$@\"";
    command
        .args(["-c", script, "sh"])
        .arg(&gone)
        .args(words)
        .stdin(Stdio::null());
    assert_eq!(seen(&command.output().unwrap()).cwd, Path::new("/"));
}

fn another_primary_group_is_no_obstacle(place: Place<'_>) {
    let first = place.join(&[]);
    let other = place.probe_under(&["--regid", "100"], &[]).output();
    let other = seen(&other.unwrap());
    assert_eq!(other.pause, first.pause);
    assert_eq!((other.uid, other.gid), (0, 0));
}

/// A script run as root in a mount namespace of its own.
fn in_private_mounts(propagation: &str, script: &str, arguments: &[&str]) -> std::process::Output {
    Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            propagation,
            "sh",
            "-euc",
            script,
            "sh",
        ])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn words_of(command: &Command) -> Vec<String> {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// Without the change of user in front.
fn plain_words_of(probe: &Command) -> Vec<String> {
    let words = words_of(probe);
    let program = words.iter().position(|word| word == "--probe").unwrap() - 1;
    words[program..].to_vec()
}

fn nosuid_helpers_are_explained(place: Place<'_>) {
    let tools = place.dir.join("tools");
    std::fs::create_dir(&tools).unwrap();
    let probe = place.probe(&[&format!("tools={}", tools.display())]);
    let script = "mount -t tmpfs -o nosuid,mode=755 none \"$1\"
                  cp -p /usr/bin/newuidmap /usr/bin/newgidmap \"$1\"; shift; exec \"$@\"";
    let words = words_of(&probe);
    let arguments: Vec<&str> = std::iter::once(tools.to_str().unwrap())
        .chain(words.iter().map(String::as_str))
        .collect();
    let said = refusal(&in_private_mounts("private", script, &arguments));
    assert!(
        said.contains("newuidmap is on a file system mounted nosuid"),
        "{said}"
    );
}

fn mounts_come_in_and_do_not_go_out(place: Place<'_>) {
    for name in ["early", "late", "inner"] {
        std::fs::create_dir(place.dir.join(name)).unwrap();
    }
    let join = words_of(&place.probe(&["then=exec", "--"]));
    let script = "dir=$1; shift
        \"$@\" true
        mount -t tmpfs none $dir/late
        touch $dir/late/seen
        \"$@\" ls $dir/late
        \"$@\" mount -t tmpfs none $dir/inner
        \"$@\" grep -c \" $dir/inner \" /proc/self/mountinfo
        grep -c \" $dir/inner \" /proc/self/mountinfo || true";
    let arguments: Vec<&str> = std::iter::once(place.dir.to_str().unwrap())
        .chain(join.iter().map(String::as_str))
        .collect();
    let output = in_private_mounts("shared", script, &arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "seen\n1\n0\n",
        "{said}"
    );
}

fn namespaces_switched_off_are_named(place: Place<'_>) {
    // The limit is per user namespace: in one of its own the login sets it, and nobody else's.
    let empty = place.file("empty", "");
    let probe = place.probe(&[
        &format!("subuid={}", empty.display()),
        &format!("subgid={}", empty.display()),
    ]);
    let output = place
        .login
        .command(Path::new("unshare"))
        .args(["--user", "--map-root-user", "sh", "-euc"])
        .arg("echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"")
        .arg("sh")
        .args(plain_words_of(&probe))
        .output()
        .unwrap();
    let said = refusal(&output);
    assert!(
        said.contains("switched off on this host (user.max_user_namespaces = 0)"),
        "{said}"
    );
    let uid = place.login.uid;
    assert!(
        !processes_of(uid)
            .into_iter()
            .any(|pid| is_below(pid, &place))
    );
}
