//! Runs a command in the container whose init has the given PID: for measuring what `exec` costs.
//!
//! ```text
//! exec_in [-t] PID COMMAND...
//! ```
//!
//! Start it in the user namespace that the container was launched from. Exits as the command does.

use std::process::ExitCode;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use selkie_runtime::default_spec::DefaultSpec;
use selkie_runtime::exec::{ExecRequest, exec};
use selkie_runtime::launch::Stdio;
use selkie_sys::process_identity::ProcessIdentity;

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
    let terminal = arguments.next_if(|argument| argument == "-t").is_some();
    let pid = arguments.next().ok_or("no PID given")?.parse()?;
    let pid = Pid::from_raw(pid).ok_or("the PID is 0")?;
    let cache = std::env::temp_dir().join("selkie-run-directory");
    let spec = DefaultSpec {
        argv: arguments.collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        user: "0".into(),
        uid_maps: vec![(0, 0, 1)],
        gid_maps: vec![(0, 0, 1)],
        terminal,
        ..Default::default()
    }
    .build()?;
    let stdio = if terminal {
        Stdio::Terminal { size: None }
    } else {
        Stdio::Streams {
            stdin: rustix::stdio::stdin().try_clone_to_owned()?,
            stdout: rustix::stdio::stdout().try_clone_to_owned()?,
            stderr: rustix::stdio::stderr().try_clone_to_owned()?,
        }
    };
    let mut launched = exec(ExecRequest {
        target: ProcessIdentity::of(pid)?,
        process: spec.process().as_ref().ok_or("no process")?,
        seccomp: spec.linux().as_ref().and_then(|l| l.seccomp().as_ref()),
        stdio,
        cgroup: None,
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
    let status = status.ok_or("the process has no status")?;
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code as u8,
        (None, signal) => 128 + signal.unwrap_or(0) as u8,
    })
}
