//! The login whose namespaces are joined: a throw-away account when the tests run as root, else
//! whoever runs them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use selkie_userns::subordinate_ids::{self, HostFiles, SubordinateIds};

use crate::probe::Seen;

pub struct Login {
    pub uid: u32,
    pub gid: u32,
    pub name: String,
    /// The account was made for these tests.
    made: bool,
    /// Where the login can reach it.
    program: PathBuf,
    /// Readable by all; the login's own things are below.
    dir: tempfile::TempDir,
}

impl Login {
    pub fn prepare() -> Result<Self, String> {
        let dir = tempfile::Builder::new()
            .prefix("selkie-userns-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .map_err(|error| error.to_string())?;
        let program = dir.path().join("probe");
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        install(&own, &program, "")?;
        let made = rustix::process::getuid().is_root();
        let (uid, gid, name) = if made {
            let name = format!("selkie-ut{}", std::process::id());
            account_tool("useradd", &["-M", "-U", "-d", "/nonexistent", &name])?;
            let id = |option: &str| {
                let output = Command::new("id").args([option, name.as_str()]).output();
                let output = output.map_err(|error| error.to_string())?;
                let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                text.parse::<u32>()
                    .map_err(|error| format!("id {option} {name}: {error}"))
            };
            (id("-u")?, id("-g")?, name)
        } else {
            let uid = rustix::process::getuid().as_raw();
            (uid, rustix::process::getgid().as_raw(), uid.to_string())
        };
        Ok(Self {
            uid,
            gid,
            name,
            made,
            program,
            dir,
        })
    }

    /// True when the tests may act as root for what an admin does.
    pub fn has_root(&self) -> bool {
        self.made
    }

    /// The login's subordinate IDs on this host.
    pub fn ranges(&self) -> Result<SubordinateIds, String> {
        ranges_of(self.uid, self.gid)
    }

    /// A new directory of the login's own.
    pub fn place(&self, name: &str) -> Place<'_> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(self.uid), Some(self.gid)).unwrap();
        Place { login: self, dir }
    }

    /// A program run as the login.
    pub fn command(&self, program: &Path) -> Command {
        self.command_under(program, &[])
    }

    /// With further setpriv(1) options.
    pub fn command_under(&self, program: &Path, options: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        if self.made {
            command.args(["--reuid", &self.uid.to_string(), "--clear-groups"]);
            if !options.contains(&"--regid") {
                command.args(["--regid", &self.gid.to_string()]);
            }
        }
        command.args(options).arg(program);
        command.current_dir(self.dir.path());
        command
    }

    /// Removes the account and all directories.
    pub fn end(&self) {
        if let Err(error) = std::fs::remove_dir_all(self.dir.path()) {
            eprintln!("{} stays behind: {error}", self.dir.path().display());
        }
        if self.made
            && let Err(error) = account_tool("userdel", &[&self.name])
        {
            eprintln!("the account {} stays behind: {error}", self.name);
        }
    }
}

/// Whether there will be subordinate IDs: a new account gets some, a caller must have them.
pub fn can_have_ranges() -> Result<(), String> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    match uid.is_root() {
        true => Ok(()),
        false => ranges_of(uid.as_raw(), gid.as_raw()).map(|_| ()),
    }
}

fn ranges_of(uid: u32, gid: u32) -> Result<SubordinateIds, String> {
    let login = subordinate_ids::Login { uid, gid };
    subordinate_ids::lookup(login, &HostFiles::default()).map_err(|error| error.to_string())
}

/// useradd and userdel do not wait for each other's lock.
fn account_tool(tool: &str, arguments: &[&str]) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let output = Command::new(tool).args(arguments).output();
        let output = output.map_err(|error| format!("{tool}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!(
                "{tool}: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Makes an executable file. Not by writing it ourselves: what another test's thread starts meanwhile
/// would inherit the descriptor, and what anybody has open for writing cannot be executed.
pub fn install(from: &Path, to: &Path, input: &str) -> Result<(), String> {
    let mut install = Command::new("install")
        .args(["-m", "0755"])
        .args([from, to])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("install: {error}"))?;
    let mut stdin = install.stdin.take().ok_or("install: no standard input")?;
    std::io::Write::write_all(&mut stdin, input.as_bytes()).map_err(|error| error.to_string())?;
    drop(stdin);
    let status = install.wait().map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("install {}: {status}", to.display()));
    }
    Ok(())
}

/// A directory of one test, with its own runtime directory and so its own pause process.
pub struct Place<'a> {
    pub login: &'a Login,
    pub dir: PathBuf,
}

impl Place<'_> {
    pub fn runtime(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn probe(&self, settings: &[&str]) -> Command {
        self.probe_under(&[], settings)
    }

    pub fn probe_under(&self, setpriv: &[&str], settings: &[&str]) -> Command {
        let mut command = self.login.command_under(&self.login.program, setpriv);
        command
            .arg("--probe")
            .arg(format!("runtime={}", self.runtime().display()))
            .args(settings)
            .stdin(Stdio::null());
        command
    }

    /// Joins and says what it saw.
    pub fn join(&self, settings: &[&str]) -> Seen {
        seen(&self.probe(settings).output().unwrap())
    }

    /// The error a join ends with.
    pub fn refusal(&self, settings: &[&str]) -> String {
        refusal(&self.probe(settings).output().unwrap())
    }

    /// A process that joins and stays.
    pub fn hold(&self, settings: &[&str]) -> Holder {
        let settings = [settings, &["then=hold"]].concat();
        let mut child = self
            .probe(&settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        Holder {
            seen: serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}")),
            stdin: child.stdin.take(),
            child,
        }
    }

    /// The pause processes made for this place's runtime directory.
    pub fn pause_processes(&self) -> Vec<i32> {
        let name = self.runtime().display().to_string();
        let own = |pid: &i32| {
            let links = std::fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten();
            links.filter_map(Result::ok).any(|link| {
                let is_record = std::fs::read_link(link.path()).is_ok_and(|target| {
                    target.to_string_lossy().starts_with("/memfd:selkie-pause")
                });
                is_record
                    && std::fs::read_to_string(link.path()).is_ok_and(|text| text.contains(&name))
            })
        };
        named(self.login.uid, "selkie-pause")
            .into_iter()
            .filter(own)
            .collect()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for pid in self.pause_processes() {
            kill(pid);
        }
    }
}

/// Ends when dropped.
pub struct Holder {
    pub seen: Seen,
    stdin: Option<ChildStdin>,
    child: Child,
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

pub fn seen(output: &Output) -> Seen {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn refusal(output: &Output) -> String {
    assert!(
        !output.status.success(),
        "it joined: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// PIDs of a user's processes with that name.
pub fn named(uid: u32, name: &str) -> Vec<i32> {
    processes_of(uid)
        .into_iter()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() == name)
        })
        .collect()
}

/// PIDs of a user's processes.
pub fn processes_of(uid: u32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries
        .filter(|entry| {
            use std::os::unix::fs::MetadataExt as _;
            entry.metadata().is_ok_and(|metadata| metadata.uid() == uid)
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Kills a process and waits until it is gone.
pub fn kill(pid: i32) {
    let pid = Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    eventually("the process is gone", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    });
}

/// Waits for something that must become true; the time is only a bound for a hang.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
