//! A stand-in for a login's pause namespace, and busybox containers launched from it.
//!
//! Launching needs a process with one thread, so the test programs run without libtest's threads
//! and every test in a process of its own. Root writes that process's maps itself (and gives it a
//! made-up login's IDs); anybody else goes through `newuidmap`.
#![allow(dead_code, reason = "every test program uses its own part of this")]

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, fsconfig_create, fsmount,
    fsopen, mount_change,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Pid, Uid, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, waitid};
use selkie_runtime::default_spec::DefaultSpec;
use selkie_runtime::exec::{ExecRequest, exec};
use selkie_runtime::launch::{LaunchError, LaunchRequest, Launched, ProvidedRoot, Stdio, launch};
use selkie_sys::clone::{CloneNamespaces, Side, clone3, exit_now};
use selkie_sys::mount::{clone_detached, set_idmap};

/// First ID of the container's slice in the pause namespace, and how many.
pub const SLICE: (u32, u32) = (1000, 5000);

/// Why a test cannot run here.
pub type Skip = String;

/// Runs the named tests one after the other. A test that cannot run here is shown as ignored, or
/// fails when `SELKIE_TEST_MUST` is 1.
pub fn run_tests(tests: &[(&'static str, fn())]) -> std::process::ExitCode {
    run(tests, in_pause_namespace)
}

fn run(
    tests: &[(&'static str, fn())],
    ground: impl Fn(fn()) -> Result<(), Skip> + Copy + Send + 'static,
) -> std::process::ExitCode {
    let mut arguments = libtest_mimic::Arguments::from_args();
    arguments.test_threads = Some(1);
    let must = std::env::var_os("SELKIE_TEST_MUST").is_some_and(|value| value == "1");
    let trials = tests
        .iter()
        .map(|&(name, body)| {
            libtest_mimic::Trial::ignorable_test(name, move || match ground(body) {
                Ok(()) => Ok(libtest_mimic::Completion::Completed),
                Err(reason) if must => Err(reason.into()),
                Err(reason) => Ok(libtest_mimic::Completion::ignored_with(reason)),
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// As [`run_tests`] for what only the host's root can prepare: the bodies run in the host's
/// namespaces, in a process of their own. `possible` says why not, where they cannot.
pub fn run_root_tests(
    possible: fn() -> Result<(), Skip>,
    tests: &[(&'static str, fn())],
) -> std::process::ExitCode {
    if !rustix::process::getuid().is_root() {
        // Not what SELKIE_TEST_MUST means: this user could not run them anywhere.
        eprintln!("skipped: needs root");
        return std::process::ExitCode::SUCCESS;
    }
    run(tests, move |body| {
        possible()?;
        let pid = match selkie_sys::clone::fork().map_err(|error| error.to_string())? {
            Side::Parent { pid, .. } => pid,
            Side::Child => exit_now(catch_unwind(AssertUnwindSafe(body)).is_err().into()),
        };
        assert!(wait(pid) == 0, "the test failed, see above");
        Ok(())
    })
}

/// Login's ID and first subordinate ID, for users and groups.
fn identity() -> Result<[(u32, u32); 2], Skip> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    if uid.is_root() {
        return Ok([(54321, 2_000_000); 2]);
    }
    let name = Command::new("id").arg("-un").output();
    let name = name.map_err(|error| format!("id: {error}"))?.stdout;
    let name = String::from_utf8_lossy(&name).trim().to_owned();
    let first = |path: &str| -> Result<u32, Skip> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        lines
            .find(|fields| fields[0] == name || fields[0] == uid.as_raw().to_string())
            .and_then(|fields| fields.get(1)?.parse().ok())
            .ok_or_else(|| format!("{path} gives {name} no IDs"))
    };
    Ok([
        (uid.as_raw(), first("/etc/subuid")?),
        (gid.as_raw(), first("/etc/subgid")?),
    ])
}

fn in_pause_namespace(body: fn()) -> Result<(), Skip> {
    if !Path::new("/bin/busybox").exists() {
        return Err("/bin/busybox is missing (package busybox-static)".into());
    }
    let identity = identity()?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| error.to_string())?;
    let side = clone3(CloneNamespaces::USER | CloneNamespaces::MOUNT, None)
        .map_err(|error| error.to_string())?;
    let Side::Parent { pid, .. } = side else {
        drop(writer);
        if rustix::io::read(&reader, &mut [0u8; 1]) != Ok(1) {
            exit_now(9);
        }
        let run = || {
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).unwrap();
            rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).unwrap();
            let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", all).unwrap();
            body();
        };
        exit_now(catch_unwind(AssertUnwindSafe(run)).is_err().into());
    };
    let mapped = write_maps(pid, &identity);
    if mapped.is_ok() {
        rustix::io::write(&writer, b"x").map_err(|error| error.to_string())?;
    }
    drop(writer);
    let code = wait(pid);
    mapped?;
    assert!(code == 0, "the test failed, see above");
    Ok(())
}

fn write_maps(pid: Pid, identity: &[(u32, u32); 2]) -> Result<(), Skip> {
    let process = pid.as_raw_nonzero().to_string();
    let files = [("uid_map", "newuidmap"), ("gid_map", "newgidmap")];
    for ((file, program), (own, first)) in files.into_iter().zip(identity) {
        if rustix::process::getuid().is_root() {
            let text = format!("0 {own} 1\n1 {first} 65536\n");
            std::fs::write(format!("/proc/{process}/{file}"), text)
                .map_err(|error| format!("{file}: {error}"))?;
            continue;
        }
        let (own, first) = (own.to_string(), first.to_string());
        let output = Command::new(program)
            .args([&process, "0", &own, "1", "1", &first, "65536"])
            .output()
            .map_err(|error| format!("{program}: {error}"))?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{program}: {error}"));
        }
    }
    Ok(())
}

/// Exit code, or 128 + signal.
pub fn wait(pid: Pid) -> i32 {
    let ended = || waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
    exit_code(&rustix::io::retry_on_intr(ended).unwrap().unwrap())
}

fn exit_code(status: &WaitIdStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap(),
    }
}

/// Polls until `condition` holds; gives up after ten seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("never happened: {what}");
}

/// A root file system with busybox, and how to run it. Owners in it are container IDs.
pub struct Image {
    tree: OwnedFd,
}

/// How a process ended and what it wrote.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Output {
    /// Standard output of a process that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }
}

impl Image {
    pub fn new() -> Self {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        let attributes = MountAttrFlags::empty();
        let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).unwrap();
        let image = Self { tree };
        for directory in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
            std::fs::create_dir(image.path(directory)).unwrap();
        }
        std::fs::copy("/bin/busybox", image.path("bin/busybox")).unwrap();
        let commands = [
            "sh", "id", "cat", "ls", "ps", "sleep", "true", "false", "mkdir", "touch", "stat",
            "readlink", "grep", "kill", "stty", "tty", "pwd", "env", "hostname", "mount", "umount",
            "unshare", "yes", "head", "wc", "rm", "ln", "test", "chown", "find", "sed", "awk",
            "linux64",
        ];
        for command in commands {
            image.link("busybox", &format!("bin/{command}"));
        }
        image.write(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/var/www:/bin/sh\n",
        );
        image.write(
            "etc/group",
            "root:x:0:\nwheel:x:10:root\nwww-data:x:33:\nstaff:x:50:www-data\n",
        );
        use std::os::unix::fs::PermissionsExt;
        let open = std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(image.path("tmp"), open).unwrap();
        image
    }

    /// Where a file of the image is for the test, through our own descriptor.
    pub fn path(&self, relative: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!(
            "/proc/self/fd/{}/{relative}",
            self.tree.as_raw_fd()
        ))
    }

    pub fn write(&self, relative: &str, content: &str) {
        std::fs::write(self.path(relative), content).unwrap();
    }

    /// An executable file.
    pub fn program(&self, relative: &str, content: &str) {
        use std::os::unix::fs::PermissionsExt;
        self.write(relative, content);
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path(relative), executable).unwrap();
    }

    pub fn link(&self, target: &str, relative: &str) {
        std::os::unix::fs::symlink(target, self.path(relative)).unwrap();
    }

    /// The root for a container: its slice's IDs where the image has 0 and up.
    pub fn root_for(&self, user_namespace: std::os::fd::BorrowedFd<'_>) -> ProvidedRoot {
        let root = clone_detached(self.tree.as_fd(), true).unwrap();
        set_idmap(root.as_fd(), user_namespace).unwrap();
        ProvidedRoot { root }
    }

    /// Launches without starting; the caller reads the pipes.
    pub fn launch(&self, run: Run) -> Result<(Launched, Pipes), LaunchError> {
        let mut spec = run.spec.build()?;
        (run.edit)(&mut spec);
        let (stdio, pipes) = streams(run.terminal);
        let launched = launch(LaunchRequest {
            spec: &spec,
            stdio,
            provide_root: &mut |user_namespace| Ok(self.root_for(user_namespace)),
            connect_network: None,
            cgroup: run.cgroup.as_ref().map(AsFd::as_fd),
            init: run.init,
            seccomp_cache_dir: None,
            preserve_fds: run.preserve_fds,
        })?;
        Ok((launched, pipes))
    }

    /// Launches, starts and waits.
    pub fn try_run(&self, run: Run) -> Result<Output, LaunchError> {
        let (launched, pipes) = self.launch(run)?;
        finish(launched, pipes)
    }

    /// Runs what must start.
    #[track_caller]
    pub fn run(&self, run: Run) -> Output {
        self.try_run(run).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A shell script as root with the defaults; its standard output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.run(sh(script)).ok()
    }

    /// A container that sleeps until it is dropped.
    pub fn sleeper(&self, run: Run) -> Sleeper {
        let (mut launched, pipes) = self.launch(run).unwrap();
        launched.start().unwrap();
        Sleeper { launched, pipes }
    }
}

/// A running container, killed when dropped.
pub struct Sleeper {
    pub launched: Launched,
    pub pipes: Pipes,
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let kill = rustix::process::Signal::KILL;
        let _ = rustix::process::pidfd_send_signal(&self.launched.pidfd, kill);
        // The init of a PID namespace ends only when all in it are reaped, and after a failed
        // assertion processes run by `exec` may be left.
        while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::empty()) {
            if pid == self.launched.pid {
                break;
            }
        }
    }
}

impl Sleeper {
    /// Prepares a command in it.
    pub fn prepare(&self, run: Run) -> Result<(Launched, Pipes), LaunchError> {
        let mut spec = run.spec.build()?;
        (run.edit)(&mut spec);
        let (stdio, pipes) = streams(run.terminal);
        let linux = spec.linux().as_ref();
        let launched = exec(ExecRequest {
            target: self.launched.identity,
            process: spec.process().as_ref().unwrap(),
            seccomp: linux.and_then(|linux| linux.seccomp().as_ref()),
            stdio,
            cgroup: run.cgroup.as_ref().map(AsFd::as_fd),
            seccomp_cache_dir: None,
            preserve_fds: run.preserve_fds,
        })?;
        Ok((launched, pipes))
    }

    pub fn try_exec(&self, run: Run) -> Result<Output, LaunchError> {
        let (launched, pipes) = self.prepare(run)?;
        finish(launched, pipes)
    }

    #[track_caller]
    pub fn exec(&self, script: &str) -> String {
        let output = self.try_exec(sh(script));
        output.unwrap_or_else(|error| panic!("{error}")).ok()
    }
}

/// The test's ends.
pub struct Pipes {
    pub out: Option<std::fs::File>,
    pub err: Option<std::fs::File>,
}

fn streams(terminal: Option<(u16, u16)>) -> (Stdio, Pipes) {
    if terminal.is_some() {
        let none = Pipes {
            out: None,
            err: None,
        };
        return (Stdio::Terminal { size: terminal }, none);
    }
    let stdin = std::fs::File::open("/dev/null").unwrap();
    let (out, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (err, stderr) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let stdio = Stdio::Streams {
        stdin: stdin.into(),
        stdout,
        stderr,
    };
    let pipes = Pipes {
        out: Some(out.into()),
        err: Some(err.into()),
    };
    (stdio, pipes)
}

/// Starts, reads everything and reaps.
pub fn finish(mut launched: Launched, mut pipes: Pipes) -> Result<Output, LaunchError> {
    if let Err(error) = launched.start() {
        wait(launched.pid);
        return Err(error);
    }
    let mut out = Vec::new();
    if let Some(master) = launched.terminal.take() {
        // Ends with EIO when the last process has closed the terminal.
        let _ = std::fs::File::from(master).read_to_end(&mut out);
    }
    if let Some(mut pipe) = pipes.out.take() {
        pipe.read_to_end(&mut out).unwrap();
    }
    let mut err = Vec::new();
    if let Some(mut pipe) = pipes.err.take() {
        pipe.read_to_end(&mut err).unwrap();
    }
    Ok(Output {
        code: wait(launched.pid),
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    })
}

/// One container to run.
pub struct Run {
    pub spec: DefaultSpec,
    pub edit: fn(&mut oci_spec::runtime::Spec),
    pub terminal: Option<(u16, u16)>,
    pub init: bool,
    pub preserve_fds: Vec<OwnedFd>,
    pub cgroup: Option<OwnedFd>,
}

/// A command with the defaults.
pub fn command(argv: &[&str]) -> Run {
    Run {
        spec: DefaultSpec {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: vec![("PATH".into(), "/bin".into())],
            hostname: "box".into(),
            uid_maps: vec![(0, SLICE.0, SLICE.1)],
            gid_maps: vec![(0, SLICE.0, SLICE.1)],
            ..Default::default()
        },
        edit: |_| {},
        terminal: None,
        init: false,
        preserve_fds: Vec::new(),
        cgroup: None,
    }
}

/// A shell script with the defaults.
pub fn sh(script: &str) -> Run {
    command(&["sh", "-c", script])
}

impl Run {
    pub fn spec(mut self, change: impl FnOnce(&mut DefaultSpec)) -> Self {
        change(&mut self.spec);
        self
    }
    /// Changes the built spec.
    pub fn edit(self, edit: fn(&mut oci_spec::runtime::Spec)) -> Self {
        Self { edit, ..self }
    }
    pub fn user(self, user: &str) -> Self {
        let user = user.to_owned();
        self.spec(|spec| spec.user = user)
    }
    pub fn init(self) -> Self {
        Self { init: true, ..self }
    }
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.spec.terminal = true;
        self.terminal = Some((rows, columns));
        self
    }
    pub fn mount(self, kind: &str, source: &str, destination: &str, options: &[&str]) -> Self {
        let mut mount = oci_spec::runtime::Mount::default();
        mount
            .set_typ(Some(kind.to_owned()))
            .set_source(Some(source.into()))
            .set_destination(destination.into())
            .set_options(Some(options.iter().map(|&o| o.to_owned()).collect()));
        self.spec(|spec| spec.mounts.push(mount))
    }
}

/// A directory of the host's that everybody may write to.
pub fn host_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory.path(), open).unwrap();
    directory
}
