//! A login: one user with a home and a runtime directory, and the commands it gives.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::ground::{Ground, User};
use crate::processes;

/// Only a hang takes this long: tests never measure time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Set in every command, so that what a command leaves running can be told from other logins'.
const TAG: &str = "SELKIE_TEST_LOGIN";

/// See the module.
#[derive(Debug)]
pub struct Login {
    pub user: User,
    pub home: PathBuf,
    pub runtime_dir: PathBuf,
    tag: String,
    binary: PathBuf,
    directory: PathBuf,
    is_root: bool,
    /// PID of a process whose network and mount namespaces are the login's host.
    host: Option<i32>,
}

impl Login {
    /// Makes the login's directories.
    pub fn new(ground: &Ground, user: User, kind: &str) -> Result<Self> {
        let tag = ground.unique(&format!("{}-{kind}", user.name));
        let directory = ground.scratch.join(&tag);
        let login = Self {
            home: directory.join("home"),
            runtime_dir: directory.join("run"),
            binary: ground.binary.clone(),
            is_root: ground.is_root,
            host: None,
            user,
            tag,
            directory,
        };
        std::fs::create_dir(&login.directory)
            .with_context(|| format!("make {}", login.directory.display()))?;
        for (path, mode) in [(&login.home, 0o755), (&login.runtime_dir, 0o700)] {
            login.make_directory(path, mode)?;
        }
        Ok(login)
    }

    /// The same login on another host: everything it runs from now on is in the network and mount
    /// namespaces of the process `host`. Only as root, and before its first command.
    pub fn on_host(mut self, host: i32) -> Self {
        assert!(self.is_root);
        self.host = Some(host);
        self
    }

    /// Makes a directory that belongs to the login.
    pub fn make_directory(&self, path: &Path, mode: u32) -> Result<()> {
        std::fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        if self.is_root {
            std::os::unix::fs::chown(path, Some(self.user.uid), Some(self.user.gid))?;
        }
        Ok(())
    }

    /// Writes a file that belongs to the login, below its home.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.home.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        if self.is_root {
            std::os::unix::fs::chown(&path, Some(self.user.uid), Some(self.user.gid))?;
        }
        Ok(path)
    }

    /// Copies a program to `path`, for the login. Not by writing it ourselves: a command that another
    /// test starts meanwhile would inherit the descriptor, and what anybody has open for writing
    /// cannot be executed.
    pub fn copy_program(&self, from: &Path, path: &Path) -> Result<()> {
        let mut install = Command::new("install");
        install.args(["-m", "0755"]);
        if self.is_root {
            install.args(["-o", &self.user.uid.to_string()]);
            install.args(["-g", &self.user.gid.to_string()]);
        }
        let status = install
            .arg(from)
            .arg(path)
            .status()
            .context("run install")?;
        ensure!(status.success(), "install {}: {status}", path.display());
        Ok(())
    }

    /// Any program, as this login, in its home, with a clean environment.
    pub fn program(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Call<'_> {
        let program = program.as_ref();
        let mut command = match self.host {
            None => Command::new(program),
            Some(host) => self.enter(host, program),
        };
        command
            .args(arguments)
            .current_dir(&self.home)
            .env_clear()
            .env("HOME", &self.home)
            .env("USER", &self.user.name)
            .env("LOGNAME", &self.user.name)
            .env("SHELL", "/bin/sh")
            .env("LANG", "C.UTF-8")
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("XDG_RUNTIME_DIR", &self.runtime_dir)
            .env(TAG, &self.tag)
            .stdin(Stdio::null());
        if self.is_root && self.host.is_none() {
            command.uid(self.user.uid).gid(self.user.gid);
        }
        let name = Path::new(program).file_name().unwrap_or(program);
        Call {
            label: format!("{} {}", name.to_string_lossy(), arguments.join(" ")),
            command,
            stdin: None,
            _login: self,
        }
    }

    /// It has to be root to enter the host, so nsenter(1), which becomes the program, also takes the
    /// login's identity.
    fn enter(&self, host: i32, program: &OsStr) -> Command {
        let mut command = Command::new("/usr/bin/nsenter");
        command.args(["--target", &host.to_string(), "--net", "--mount"]);
        command.arg(format!("--wdns={}", self.home.display()));
        command.args(["--setgid", &self.user.gid.to_string()]);
        command.args(["--setuid", &self.user.uid.to_string(), "--"]);
        command.arg(program);
        command
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// `selkie ARGUMENTS`.
    pub fn selkie(&self, arguments: &[&str]) -> Call<'_> {
        self.program(&self.binary, arguments)
    }

    /// Runs `selkie ARGUMENTS`, which must succeed; gives its output without the last line end.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        self.selkie(arguments).run()?.ok()
    }

    /// Runs `selkie ARGUMENTS`, which must fail with `code` and a clear error; gives the error.
    pub fn refused(&self, code: i32, arguments: &[&str]) -> Result<String> {
        self.selkie(arguments).run()?.refused(code)
    }

    /// Runs `selkie ARGUMENTS` and parses its output as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = self.ok(arguments)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// `system check` must find nothing, at the latest once the monitors of containers that have
    /// just ended are done: they tell their clients of the end before they remove the files.
    pub fn is_clean(&self) -> Result<()> {
        let mut said = String::new();
        let clean = eventually("system check finds nothing", || {
            let is_working = !self.monitors().is_empty();
            let check = self.selkie(&["system", "check"]).run()?;
            said = format!("{check:?}");
            ensure!(check.code == 0 || is_working, "left behind: {said}");
            Ok(check.code == 0)
        });
        clean.with_context(|| said)
    }

    /// Loads one of the ground's images.
    pub fn load(&self, archive: &str) -> Result<()> {
        let path = Path::new(&std::env::var("SELKIE_TEST_IMAGES")?).join(archive);
        self.ok(&["load", "--quiet", "--input", &path.to_string_lossy()])?;
        Ok(())
    }

    /// Starts a container in the background; removed when the guard is dropped.
    /// `arguments` are what follows `run -d`.
    pub fn detached(&self, arguments: &[&str]) -> Result<Container<'_>> {
        let mut all = vec!["run", "--detach"];
        all.extend_from_slice(arguments);
        let id = self.ok(&all)?;
        ensure!(
            id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "run --detach printed {id:?}, not an ID"
        );
        Ok(Container { id, login: self })
    }

    /// A container that sleeps; `options` come before the image.
    pub fn sleeper(&self, options: &[&str]) -> Result<Container<'_>> {
        let mut all = options.to_vec();
        all.extend_from_slice(&["busybox", "sleep", "10000"]);
        self.detached(&all)
    }

    /// Processes that commands of this login left running (pause process, monitors): those with
    /// the tag in their environment, or the runtime directory in their command line. Processes in
    /// containers are their descendants.
    pub fn background_processes(&self) -> Vec<i32> {
        let tag = format!("{TAG}={}", self.tag);
        processes::all()
            .into_iter()
            .filter(|process| self.user.owns_uid(process.uid))
            .map(|process| process.pid)
            .filter(|pid| {
                processes::environment_has(*pid, &tag)
                    || processes::command_line(*pid).contains(&*self.runtime_dir.to_string_lossy())
            })
            .collect()
    }

    /// Pause processes; more than one is a fault.
    pub fn pause_processes(&self) -> Vec<i32> {
        self.background_processes()
            .into_iter()
            .filter(|pid| processes::command_line(*pid).starts_with("selkie-pause"))
            .collect()
    }

    /// Monitors and commands that run: all but the pause process.
    pub fn monitors(&self) -> Vec<i32> {
        let pause = self.pause_processes();
        self.background_processes()
            .into_iter()
            .filter(|pid| !pause.contains(pid))
            .collect()
    }

    /// The directory everything durable of this login lives in.
    pub fn data_dir(&self) -> PathBuf {
        self.home.join(".local/share/selkie")
    }

    /// Kills everything the login left running.
    pub fn end_background(&self) {
        // Killing a monitor may let its container's end be noticed by another: repeat until quiet.
        for _ in 0..50 {
            let background = self.background_processes();
            if background.is_empty() {
                return;
            }
            let all: Vec<i32> = background
                .into_iter()
                .flat_map(processes::descendants)
                .collect();
            for pid in &all {
                processes::signal(*pid, Signal::KILL);
            }
            // One that is ending shows no environment any more, and holds its locks and ports still.
            // Not for long: without root there may be some that this user may not kill.
            let _ = within(
                Duration::from_millis(500),
                "what was killed has ended",
                || Ok(all.iter().all(|pid| processes::has_ended(*pid))),
            );
        }
    }

    /// Kills everything the login left running and, as root, removes its directories.
    pub fn end(&self) {
        self.end_background();
        if self.is_root {
            // A leftover is found by scripts/test, which removes the whole scratch directory.
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// A fresh login ends with its test; shared ones live as long as the harness.
impl Drop for Login {
    fn drop(&mut self) {
        self.end();
    }
}

/// A running container of a test.
pub struct Container<'l> {
    pub id: String,
    login: &'l Login,
}

impl Container<'_> {
    /// PID of its first process on the host.
    pub fn pid(&self) -> Result<i32> {
        self.inspect("{{.State.Pid}}")?
            .parse()
            .context("State.Pid is not a number")
    }
    /// One field by template.
    pub fn inspect(&self, template: &str) -> Result<String> {
        self.login
            .ok(&["container", "inspect", "--format", template, &self.id])
    }
    /// `exec`, which must succeed.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        let mut all = vec!["exec", &self.id];
        all.extend_from_slice(command);
        self.login.ok(&all)
    }
    /// `exec` with its result.
    pub fn try_exec(&self, command: &[&str]) -> Result<Finished> {
        let mut all = vec!["exec", &self.id];
        all.extend_from_slice(command);
        self.login.selkie(&all).run()
    }
    /// Everything it has written to standard output until now.
    pub fn logs(&self) -> Result<String> {
        self.login.ok(&["logs", &self.id])
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // A test that removed it itself leaves nothing to remove, which is not a failure.
        let _ = self
            .login
            .selkie(&["rm", "--force", "--time", "0", &self.id])
            .run();
    }
}

/// A command about to run.
pub struct Call<'l> {
    label: String,
    command: Command,
    stdin: Option<Vec<u8>>,
    _login: &'l Login,
}

impl Call<'_> {
    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }
    /// Removes one.
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }
    /// Gives it this on standard input, then end of file.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(input.into());
        self.command.stdin(Stdio::piped());
        self
    }
    /// Gives it these streams, e.g. a terminal.
    pub fn streams(mut self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Self {
        self.command.stdin(stdin).stdout(stdout).stderr(stderr);
        self
    }
    /// Runs it to its end.
    pub fn run(self) -> Result<Finished> {
        self.spawn()?.wait()
    }
    /// Starts it with its output collected in the background.
    pub fn spawn(mut self) -> Result<Running> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn_with_streams()
    }
    /// Starts it with the streams given before.
    pub fn spawn_with_streams(mut self) -> Result<Running> {
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("start {}", self.label))?;
        if let (Some(bytes), Some(mut stdin)) = (self.stdin, child.stdin.take()) {
            // A command that ends early closes its side: that is its right.
            std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        }
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Running {
            label: self.label,
            stdout: child.stdout.take().map(collect),
            stderr: child.stderr.take().map(collect),
            child,
            pidfd,
        })
    }
}

/// Reads a stream to its end in a thread.
fn collect(mut stream: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A command that runs.
pub struct Running {
    label: String,
    child: Child,
    pidfd: rustix::fd::OwnedFd,
    stdout: Option<mpsc::Receiver<Vec<u8>>>,
    stderr: Option<mpsc::Receiver<Vec<u8>>>,
}

impl Running {
    /// Its PID.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }
    /// Sends it a signal. It may have ended: then nothing happens.
    pub fn signal(&self, signal: Signal) {
        processes::signal(self.pid(), signal);
    }
    /// Waits for a piece of output that contains `wanted`, and gives all of it up to there.
    pub fn read_until(&self, wanted: &str) -> Result<String> {
        let stdout = self.stdout.as_ref().context("output is not collected")?;
        let mut seen = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&seen);
            if text.contains(wanted) {
                return Ok(text.into_owned());
            }
            match stdout.recv_timeout(PATIENCE) {
                Ok(bytes) => seen.extend(bytes),
                Err(_) => bail!("{}: no {wanted:?} in its output {text:?}", self.label),
            }
        }
    }
    /// Waits for its end and the end of its output.
    pub fn wait(mut self) -> Result<Finished> {
        let timeout = rustix::event::Timespec {
            tv_sec: PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        let mut fds = [rustix::event::PollFd::new(
            &self.pidfd,
            rustix::event::PollFlags::IN,
        )];
        if rustix::event::poll(&mut fds, Some(&timeout))? == 0 {
            self.child.kill()?;
            let so_far = self.stderr.take().map(drain_now).unwrap_or_default();
            bail!(
                "{}: did not end within {PATIENCE:?}; said: {}",
                self.label,
                String::from_utf8_lossy(&so_far)
            );
        }
        let status = self.child.wait()?;
        let drain = |stream: Option<mpsc::Receiver<Vec<u8>>>, name: &str| -> Result<Vec<u8>> {
            let Some(stream) = stream else {
                return Ok(Vec::new());
            };
            let mut bytes = Vec::new();
            loop {
                match stream.recv_timeout(Duration::from_secs(20)) {
                    Ok(piece) => bytes.extend(piece),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(bytes),
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        bail!(
                            "{}: ended, but something it left running holds its {name} open",
                            self.label
                        )
                    }
                }
            }
        };
        Ok(Finished {
            code: exit_code(status),
            stdout: drain(self.stdout.take(), "standard output")?,
            stderr: drain(self.stderr.take(), "standard error")?,
            label: self.label,
        })
    }
}

fn drain_now(stream: mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    stream.try_iter().flatten().collect()
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A command that has ended.
#[derive(Clone)]
pub struct Finished {
    label: String,
    /// Exit code; 128 + signal when it was killed.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl std::fmt::Debug for Finished {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            to,
            "`{}` ended with {}\nstdout: {}\nstderr: {}",
            self.label,
            self.code,
            self.text(),
            self.error()
        )
    }
}

impl Finished {
    /// Its output without the last line end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout)
            .trim_end_matches('\n')
            .to_owned()
    }
    /// What it said on standard error.
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
    /// It must have ended with this code.
    pub fn code(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "expected exit code {code}: {self:?}");
        Ok(self)
    }
    /// It must have succeeded; gives its output.
    pub fn ok(self) -> Result<String> {
        Ok(self.code(0)?.text())
    }
    /// It must have failed with this code and one clear error; gives the error.
    pub fn refused(self, code: i32) -> Result<String> {
        let label = self.label.clone();
        let finished = self.code(code)?;
        let error = finished.error();
        ensure!(!error.trim().is_empty(), "{label}: failed without a word");
        for crash in [
            "panicked",
            "not yet implemented",
            "RUST_BACKTRACE",
            "unwrap",
        ] {
            ensure!(!error.contains(crash), "{label}: crashed: {error}");
        }
        ensure!(
            error.lines().count() <= 12,
            "{label}: a wall of text: {error}"
        );
        Ok(error)
    }
}

/// Waits until something is so. `what` completes "waiting until …".
pub fn eventually(what: &str, is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    within(PATIENCE, what, is_so)
}

/// [`eventually`] with a shorter patience, for what must heal by itself.
pub fn within(
    patience: Duration,
    what: &str,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = std::time::Instant::now() + patience;
    while !is_so()? {
        ensure!(
            std::time::Instant::now() < deadline,
            "gave up waiting until {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Both must be the same; the error shows them.
pub fn expect_eq<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug>(
    seen: T,
    expected: U,
) -> Result<()> {
    ensure!(seen == expected, "got {seen:?}, expected {expected:?}");
    Ok(())
}

/// `text` must contain `part`.
pub fn expect_contains(text: impl Deref<Target = str>, part: &str) -> Result<()> {
    ensure!(text.contains(part), "{part:?} is not in {:?}", &*text);
    Ok(())
}
