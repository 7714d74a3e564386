//! Ending containers and waiting for their end, from any process of the login, whether their
//! monitor lives or not.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;
use selkie_sys::process_identity::{ProcessIdentity, send_signal, wait_for_exit};

use crate::Engine;
use crate::attach::{AttachConnection, FromContainer, MAX_PAYLOAD, ToContainer};
use crate::container::{ContainerId, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::open_dir;
use crate::state::{Observed, RunState, mark_stopping};

/// How long a monitor may take to put an end on record before its container counts as unseen.
const MONITOR_PATIENCE: Duration = Duration::from_secs(10);

/// A container that has been sent its stop signal.
struct Stopping {
    name: String,
    signal: i32,
    timeout: Duration,
    since: Instant,
    /// `None` when it did not run.
    state: Option<RunState>,
    /// `None` when it has ended already.
    init: Option<OwnedFd>,
}

impl Engine {
    /// Connects to a running container's streams.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it does not run or its monitor is dead.
    pub fn attach(&self, id: &ContainerId) -> Result<AttachConnection> {
        let state = match self.observe(id)? {
            Observed::Running(state) => state,
            _ => {
                self.container(id)?;
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "you can only attach to running containers",
                ));
            }
        };
        self.connect(id, &state)?.ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                format!("container {id} has lost its monitor, and with it its streams"),
            )
            .with_hint(
                "it runs on and can be stopped, killed and executed in; restart it to attach",
            )
        })
    }

    /// Sends the stop signal, waits `timeout` (its own when `None`), then SIGKILL; returns when it
    /// has ended. Not running: does nothing.
    ///
    /// # Errors
    /// `NotFound`; the kernel refuses a signal.
    pub fn stop(&self, id: &ContainerId, timeout: Option<Duration>) -> Result<()> {
        let stopping = self.begin_stop(id, timeout)?;
        self.finish_stop(stopping)
    }

    /// [`Self::stop`] for several at once: all get their signal first, so that the slowest decides
    /// how long it takes. One result for each, in their order.
    pub fn stop_all(&self, ids: &[ContainerId], timeout: Option<Duration>) -> Vec<Result<()>> {
        let begun: Vec<Result<Stopping>> =
            ids.iter().map(|id| self.begin_stop(id, timeout)).collect();
        begun
            .into_iter()
            .map(|stopping| self.finish_stop(stopping?))
            .collect()
    }

    fn begin_stop(&self, id: &ContainerId, timeout: Option<Duration>) -> Result<Stopping> {
        let container = self.container(id)?;
        let mut stopping = Stopping {
            name: container.name,
            signal: container.config.stop_signal,
            timeout: timeout.unwrap_or(Duration::from_secs(container.config.stop_timeout.into())),
            since: Instant::now(),
            state: None,
            init: None,
        };
        if let Observed::Running(state) = self.observe(id)? {
            stopping.init = open_process(&state.init)?;
            stopping.state = Some(state);
        }
        if let Some(init) = &stopping.init {
            if let Ok(dir) = open_dir(&self.config.container_dir(id)) {
                // Only shown by `ps`; stopping goes on without it.
                let _ = mark_stopping(dir.as_fd());
            }
            send(init, stopping.signal)?;
        }
        Ok(stopping)
    }

    fn finish_stop(&self, stopping: Stopping) -> Result<()> {
        if let Some(init) = &stopping.init {
            let left = stopping.timeout.saturating_sub(stopping.since.elapsed());
            if !wait_for_exit(init, Some(left))? {
                tracing::warn!(
                    "stop signal {} failed to stop container {} in {} seconds, resorting to SIGKILL",
                    stopping.signal,
                    stopping.name,
                    stopping.timeout.as_secs()
                );
                send(init, Signal::KILL.as_raw())?;
                wait_for_exit(init, None)?;
            }
        }
        match &stopping.state {
            Some(state) => self.wait_until_recorded(state),
            None => Ok(()),
        }
    }

    /// Sends a signal to init. Not running: `Conflict`.
    ///
    /// # Errors
    /// `NotFound`; `Conflict`; `InvalidInput` for a number that is no signal.
    pub fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{signal} is no signal"),
            ));
        }
        let init = match self.observe(id)? {
            Observed::Running(state) => open_process(&state.init)?,
            _ => None,
        };
        match init {
            Some(init) => send(&init, signal),
            None => {
                let status = match self.container(id)?.status {
                    Status::Created => "created",
                    Status::Running => "running",
                    Status::Stopping => "stopping",
                    Status::Exited => "exited",
                };
                Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "can only kill running containers. {id} is in state {status}: container state improper"
                    ),
                ))
            }
        }
    }

    /// Waits until it does not run and gives its exit code.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn wait(&self, id: &ContainerId) -> Result<i32> {
        loop {
            let container = self.container(id)?;
            let Observed::Running(state) = self.observe(id)? else {
                match container.exit {
                    Some(exit) if container.status == Status::Exited => return Ok(exit.code),
                    // Podman waits for a container that has not been started yet, too.
                    _ => {
                        std::thread::sleep(Duration::from_millis(100));
                        continue;
                    }
                }
            };
            // The monitor tells the code also when the container is gone afterwards (`--rm`).
            if let Some(code) = self
                .connect(id, &state)?
                .and_then(|monitor| last_word(&monitor))
            {
                return Ok(code);
            }
            if let Some(init) = open_process(&state.init)? {
                wait_for_exit(&init, None)?;
            }
            self.wait_until_recorded(&state)?;
        }
    }

    /// Kills init and waits until its end is on record.
    pub(crate) fn kill_and_wait(&self, state: &RunState) -> Result<()> {
        if let Some(init) = open_process(&state.init)? {
            send(&init, Signal::KILL.as_raw())?;
            wait_for_exit(&init, None)?;
        }
        self.wait_until_recorded(state)
    }

    /// Waits until the monitor of a container whose init has ended is done.
    fn wait_until_recorded(&self, state: &RunState) -> Result<()> {
        if !state.is_monitored() {
            return Ok(());
        }
        if let Some(monitor) = open_process(&state.monitor)? {
            wait_for_exit(&monitor, Some(MONITOR_PATIENCE))?;
        }
        Ok(())
    }

    /// Connects to the monitor, having it make its socket again if that has been cleaned away.
    fn connect(&self, id: &ContainerId, state: &RunState) -> Result<Option<AttachConnection>> {
        let dir = self.config.attach_dir();
        if let Some(connection) = AttachConnection::connect(&dir, id.as_str())? {
            return Ok(Some(connection));
        }
        if !state.is_monitored() {
            return Ok(None);
        }
        let Some(monitor) = open_process(&state.monitor)? else {
            return Ok(None);
        };
        send(&monitor, Signal::HUP.as_raw())?;
        for _ in 0..100 {
            if let Some(connection) = AttachConnection::connect(&dir, id.as_str())? {
                return Ok(Some(connection));
            }
            if wait_for_exit(&monitor, Some(Duration::from_millis(10)))? {
                break;
            }
        }
        Ok(None)
    }
}

/// Listens to a monitor until it tells the exit code; `None` when it dies before.
fn last_word(monitor: &AttachConnection) -> Option<i32> {
    monitor.send(ToContainer::ExitOnly).ok()?;
    let mut buffer = vec![0; MAX_PAYLOAD + 1];
    loop {
        match monitor.receive(&mut buffer) {
            Ok(Some(FromContainer::Exited(code))) => return Some(code),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

fn open_process(identity: &ProcessIdentity) -> Result<Option<OwnedFd>> {
    Ok(identity.open()?)
}

fn send(process: &impl AsFd, signal: i32) -> Result<()> {
    match send_signal(process, signal) {
        Ok(()) => Ok(()),
        Err(error) if error.errno == Errno::SRCH => Ok(()),
        Err(error) => Err(error.into()),
    }
}
