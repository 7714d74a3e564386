//! `exec`: a further process in a running container, a child of the calling command.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Spec;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use selkie_runtime::default_spec::Network;
use selkie_runtime::exec::ExecRequest;
use selkie_runtime::launch::{Launched, Stdio};
use selkie_sys::clone::{Side, exit_now, fork};
use selkie_userns::IdMaps;

use crate::Engine;
use crate::container::merge::set_env;
use crate::container::{ContainerConfig, ContainerId};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::{StartReport, open_null};
use crate::options::NetworkMode;
use crate::spec::{self, NetworkSpace};
use crate::state::{Observed, RunState};

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
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when the container does not run; `CommandNotFound` and
    /// `CommandNotExecutable` for the command.
    pub fn exec(&self, id: &ContainerId, options: &ExecOptions) -> Result<ExecProcess> {
        let (stdio, ours) = if options.terminal.is_some() {
            let size = options.terminal;
            (Stdio::Terminal { size }, None)
        } else {
            let (stdio, ours) = pipes(options.interactive)?;
            (stdio, Some(ours))
        };
        let launched = self.exec_with(id, options, stdio)?;
        let (stdin, stdout, stderr) = match ours {
            Some((stdin, stdout, stderr)) => (stdin, Some(stdout), Some(stderr)),
            None => (None, None, None),
        };
        Ok(ExecProcess {
            pid: launched.pid,
            pidfd: launched.pidfd,
            terminal: launched.terminal,
            stdin,
            stdout,
            stderr,
        })
    }

    /// Starts a process nobody watches (`exec -d`) with `/dev/null` as its streams; gives an ID.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn exec_detached(&mut self, id: &ContainerId, options: &ExecOptions) -> Result<String> {
        let session = ContainerId::random()?;
        let (report, report_end) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|errno| Error::machine("make a pipe to a process in between", errno))?;
        // What the child needs is read before the fork: a connection does not survive it.
        let prepared = self.exec_plan(id, options)?;
        self.database.close();
        // A process in between, so that nobody has to reap the command.
        match fork().map_err(|error| Error::machine("start the command detached", error))? {
            Side::Child => {
                drop(report);
                let _ = rustix::process::setsid();
                let started = null_streams()
                    .and_then(|stdio| self.exec_planned(&prepared, stdio))
                    .map(|_| ());
                StartReport::send(started.as_ref().copied(), report_end);
                exit_now(0)
            }
            Side::Parent { pidfd, .. } => {
                drop(report_end);
                let mut text = Vec::new();
                std::fs::File::from(report)
                    .read_to_end(&mut text)
                    .map_err(|error| Error::machine("hear from the detached command", error))?;
                wait_for(&pidfd)?;
                StartReport::parse(&text)?;
                Ok(session.to_string())
            }
        }
    }

    fn exec_with(&self, id: &ContainerId, options: &ExecOptions, stdio: Stdio) -> Result<Launched> {
        let plan = self.exec_plan(id, options)?;
        self.exec_planned(&plan, stdio)
    }

    /// The container's init, and the spec with the process that is to run beside it.
    fn exec_plan(&self, id: &ContainerId, options: &ExecOptions) -> Result<(RunState, Spec)> {
        let Observed::Running(state) = self.observe(id)? else {
            // Says "no such container" where that is the reason.
            self.container(id)?;
            return Err(not_running());
        };
        let config = exec_config(self.stored_config(id)?, options)?;
        let spec = spec::build(
            &self.config,
            &config,
            "",
            &IdMaps::default(),
            &self.pause.host_maps,
            &[],
            NetworkSpace {
                namespace: match config.options.network {
                    NetworkMode::Host => Network::Host,
                    _ => Network::Own,
                },
                ping: false,
            },
        )?;
        Ok((state, spec))
    }

    fn exec_planned(&self, (state, spec): &(RunState, Spec), stdio: Stdio) -> Result<Launched> {
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| Error::machine("prepare the command", "the spec names no process"))?;
        let seccomp = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.seccomp().as_ref());
        let started = selkie_runtime::exec::exec(ExecRequest {
            target: state.init,
            process,
            seccomp,
            stdio,
            cgroup: None,
            seccomp_cache_dir: Some(&self.config.cache_dir),
            preserve_fds: Vec::new(),
        })
        .and_then(|mut launched| {
            launched.start()?;
            Ok(launched)
        });
        // Whatever step noticed it, that the container ended meanwhile is the reason to tell.
        started.map_err(|error| match state.is_running() {
            true => error.into(),
            false => not_running(),
        })
    }
}

fn not_running() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "can only create exec sessions on running containers: container state improper",
    )
}

/// The container's configuration with what `exec` overrides.
fn exec_config(mut config: ContainerConfig, options: &ExecOptions) -> Result<ContainerConfig> {
    if options.command.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "must provide a non-empty command to start an exec session: invalid argument",
        ));
    }
    config.argv.clone_from(&options.command);
    if options.terminal.is_some() {
        // As for the container itself; the options may say otherwise.
        set_env(&mut config.env, "TERM".to_owned(), "xterm".to_owned());
    }
    for (name, value) in &options.env {
        set_env(&mut config.env, name.clone(), value.clone());
    }
    if let Some(workdir) = &options.workdir {
        config.workdir.clone_from(workdir);
    }
    if let Some(user) = &options.user {
        config.user.clone_from(user);
    }
    config.options.terminal = options.terminal.is_some();
    if options.privileged {
        config.options.cap_add = vec!["ALL".to_owned()];
        config.options.cap_drop.clear();
    }
    Ok(config)
}

type OurPipes = (Option<OwnedFd>, OwnedFd, OwnedFd);

/// Fresh pipes: the caller's own descriptors never enter a container.
fn pipes(interactive: bool) -> Result<(Stdio, OurPipes)> {
    let pipe = || {
        pipe_with(PipeFlags::CLOEXEC)
            .map_err(|errno| Error::machine("make a pipe for the command's streams", errno))
    };
    let (stdin, our_stdin) = if interactive {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (open_null()?, None)
    };
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    let stdio = Stdio::Streams {
        stdin,
        stdout,
        stderr,
    };
    Ok((stdio, (our_stdin, our_stdout, our_stderr)))
}

fn null_streams() -> Result<Stdio> {
    Ok(Stdio::Streams {
        stdin: open_null()?,
        stdout: open_null()?,
        stderr: open_null()?,
    })
}

impl ExecProcess {
    /// Reaps it: exit code, 128 + signal when killed.
    ///
    /// # Errors
    /// The kernel's; it is no child of the caller.
    pub fn wait(self) -> Result<i32> {
        wait_for(&self.pidfd)
    }
}

/// Reaps a child: exit code, 128 + signal when killed.
pub(crate) fn wait_for(pidfd: &OwnedFd) -> Result<i32> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                if let Some(code) = status.exit_status() {
                    return Ok(code);
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ok(128 + signal);
                }
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::machine("wait for the command", errno)),
        }
    }
}
