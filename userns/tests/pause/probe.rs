//! The process under test: joins, says what it sees, and perhaps stays.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::process::{getegid, geteuid};
use selkie_sys::namespace::NamespaceKey;
use selkie_sys::process_identity::ProcessIdentity;
use selkie_userns::pause::{PauseRequest, join_on, status, strays};
use selkie_userns::subordinate_ids::HostFiles;
use serde::{Deserialize, Serialize};

/// What a probe saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub own: ProcessIdentity,
    pub pause: ProcessIdentity,
    pub user_namespace: u64,
    pub mount_namespace: u64,
    pub ids: u64,
    /// Host UID of inside UID 1.
    pub first_subordinate: Option<u32>,
    pub uid: u32,
    pub gid: u32,
    pub cwd: PathBuf,
    pub single_id_reason: Option<String>,
    pub stale_ranges: Option<String>,
    /// As seen from inside.
    pub strays: Vec<i32>,
}

/// Arguments `KEY=VALUE...` and, for `then=exec`, a command after `--`.
pub fn run(arguments: &[String]) -> ExitCode {
    let value = |key: &str| {
        arguments
            .iter()
            .take_while(|argument| *argument != "--")
            .find_map(|argument| argument.strip_prefix(key)?.strip_prefix('='))
    };
    let mut host = HostFiles::default();
    for (key, file) in [
        ("subuid", &mut host.subuid),
        ("subgid", &mut host.subgid),
        ("nsswitch", &mut host.nsswitch),
    ] {
        if let Some(path) = value(key) {
            *file = path.into();
        }
    }
    if let Some(dir) = value("tools") {
        host.tool_dirs = vec![dir.into()];
    }
    let request = PauseRequest {
        runtime_dir: value("runtime").unwrap_or_default().into(),
        find_survivors,
        survivors_dir: value("survivors").unwrap_or_default().into(),
    };
    if value("then") == Some("status") {
        match status(&request) {
            Ok(Some(found)) => println!("{}", found.identity.pid),
            Ok(None) => println!("none"),
            Err(error) => println!("{error}"),
        }
        return ExitCode::SUCCESS;
    }
    if value("then") == Some("threads") {
        std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(60)));
    }
    let joined = match join_on(&request, &host) {
        Ok(joined) => joined,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if value("then") == Some("exec") {
        let command = arguments.iter().skip_while(|argument| *argument != "--");
        let command: Vec<_> = command.skip(1).collect();
        let error = std::process::Command::new(command[0])
            .args(&command[1..])
            .exec();
        eprintln!("{}: {error}", command[0]);
        return ExitCode::FAILURE;
    }
    let seen = Seen {
        own: ProcessIdentity::own().unwrap(),
        pause: joined.identity,
        user_namespace: NamespaceKey::at("/proc/self/ns/user").unwrap().inode,
        mount_namespace: NamespaceKey::at("/proc/self/ns/mnt").unwrap().inode,
        ids: joined.host_maps.uid.id_count(),
        first_subordinate: joined.host_maps.uid.to_outside(1),
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        cwd: std::env::current_dir().unwrap(),
        single_id_reason: joined.single_id_reason,
        stale_ranges: joined.stale_ranges,
        strays: strays(&request, &joined.identity)
            .unwrap()
            .into_iter()
            .map(|stray| stray.pid)
            .collect(),
    };
    println!("{}", serde_json::to_string(&seen).unwrap());
    if value("then") == Some("hold") {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
    ExitCode::SUCCESS
}

/// Lines `PID START_TIME` of a file.
fn find_survivors(list: &Path) -> Vec<ProcessIdentity> {
    let text = std::fs::read_to_string(list).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (pid, start_time) = line.split_once(' ')?;
            Some(ProcessIdentity {
                pid: pid.parse().ok()?,
                start_time: start_time.parse().ok()?,
            })
        })
        .collect()
}
