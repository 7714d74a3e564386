//! `exec`: a further process in a running container, a child of the calling command.

use std::os::fd::OwnedFd;

use rustix::process::Pid;

use crate::Engine;
use crate::container::ContainerId;
use crate::error::Result;

/// What `exec` takes.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// Command and arguments.
    pub command: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// `--workdir`; the container's otherwise.
    pub workdir: Option<String>,
    /// `--user`; the container's otherwise.
    pub user: Option<String>,
    /// `--privileged`: all capabilities of the container's user namespace.
    pub privileged: bool,
    /// Terminal of this size (rows, columns), when one is wanted.
    pub terminal: Option<(u16, u16)>,
    /// Keep stdin open.
    pub interactive: bool,
}

/// A started process; the caller relays its streams and then calls [`ExecProcess::wait`].
#[derive(Debug)]
pub struct ExecProcess {
    /// PID on the host.
    pub pid: Pid,
    /// For `poll` and signals.
    pub pidfd: OwnedFd,
    /// Terminal master, when one was asked for; then the three below are `None`.
    pub terminal: Option<OwnedFd>,
    /// Write end, when interactive.
    pub stdin: Option<OwnedFd>,
    /// Read end.
    pub stdout: Option<OwnedFd>,
    /// Read end.
    pub stderr: Option<OwnedFd>,
}

impl Engine {
    /// Starts a process and returns once it has been `exec`ed.
    pub fn exec(&self, id: &ContainerId, options: &ExecOptions) -> Result<ExecProcess> {
        let _ = (id, options);
        todo!()
    }
    /// Starts a process nobody watches (`exec -d`) with `/dev/null` as its streams; gives an ID.
    pub fn exec_detached(&self, id: &ContainerId, options: &ExecOptions) -> Result<String> {
        let _ = (id, options);
        todo!()
    }
}

impl ExecProcess {
    /// Reaps it: exit code, 128 + signal when killed.
    pub fn wait(self) -> Result<i32> {
        todo!()
    }
}
