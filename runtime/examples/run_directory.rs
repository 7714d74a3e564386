//! Runs a command in a container whose root is a directory, as it is: for measuring what launching
//! costs, beside `crun run` of the same directory.
//!
//! ```text
//! unshare --user --map-root-user --map-auto --mount target/release/examples/run_directory [-t] [--init] DIR COMMAND...
//! ```
//!
//! The container's IDs are the caller's. Exits as the command does.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use selkie_runtime::default_spec::DefaultSpec;
use selkie_runtime::launch::{LaunchRequest, ProvidedRoot, Stdio, launch};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<u8> {
    let mut arguments = std::env::args().skip(1).peekable();
    let mut flag = |name: &str| arguments.next_if(|argument| argument == name).is_some();
    let terminal = flag("-t");
    let init = flag("--init");
    let directory = arguments.next().ok_or("no directory given")?;
    let cache = std::env::temp_dir().join("selkie-run-directory");
    let spec = DefaultSpec {
        argv: arguments.collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        hostname: "example".into(),
        user: "0".into(),
        terminal,
        uid_maps: own_map("/proc/self/uid_map")?,
        gid_maps: own_map("/proc/self/gid_map")?,
        ..Default::default()
    }
    .build()?;
    let duplicate =
        |fd: std::os::fd::BorrowedFd<'_>| -> std::io::Result<OwnedFd> { fd.try_clone_to_owned() };
    let stdio = if terminal {
        Stdio::Terminal { size: None }
    } else {
        Stdio::Streams {
            stdin: duplicate(rustix::stdio::stdin())?,
            stdout: duplicate(rustix::stdio::stdout())?,
            stderr: duplicate(rustix::stdio::stderr())?,
        }
    };
    let mut launched = launch(LaunchRequest {
        spec: &spec,
        stdio,
        provide_root: &mut |_| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let root = open_tree(rustix::fs::CWD, directory.as_str(), flags)?;
            Ok(ProvidedRoot { root })
        },
        connect_network: None,
        cgroup: None,
        init,
        seccomp_cache_dir: Some(&cache),
        preserve_fds: Vec::new(),
    })?;
    launched.start()?;
    if let Some(master) = launched.terminal.take() {
        // Ends with EIO when the last process has closed the terminal.
        let mut master = std::fs::File::from(master);
        let _ = std::io::copy(&mut master, &mut std::io::stdout());
    }
    let status = waitid(WaitId::Pid(launched.pid), WaitIdOptions::EXITED)?;
    let status = status.ok_or("the container process has no status")?;
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code as u8,
        (None, signal) => 128 + signal.unwrap_or(0) as u8,
    })
}

/// The caller's own IDs, each mapped to itself.
fn own_map(path: &str) -> Result<Vec<(u32, u32, u32)>> {
    let text = std::fs::read_to_string(path)?;
    let extent = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let inside: u32 = words.next()?.parse().ok()?;
        let count: u32 = words.nth(1)?.parse().ok()?;
        Some((inside, inside, count))
    };
    Ok(text.lines().filter_map(extent).collect())
}
