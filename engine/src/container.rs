//! Containers: create, start, stop, kill, remove, wait, list.

use std::collections::BTreeMap;
use std::time::Duration;

use selkie_userns::IdMaps;
use serde::{Deserialize, Serialize};

use crate::Engine;
use crate::attach::AttachConnection;
use crate::error::Result;
use crate::options::CreateOptions;

/// 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId(String);

impl ContainerId {
    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The first 12 digits.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// What a container is doing, as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    Created,
    /// Its init runs.
    Running,
    /// Being stopped.
    Stopping,
    /// Its init has ended.
    Exited,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code; 128 + signal when killed; -1 when nobody saw it end.
    pub code: i32,
    /// RFC 3339.
    pub started: String,
    /// RFC 3339.
    pub finished: String,
    /// Why it could not start, if it could not.
    pub error: Option<String>,
}

/// What `create` decided, kept in the database; `start` needs nothing else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// As asked.
    pub options: CreateOptions,
    /// The image's full name at creation, or empty.
    pub image_name: String,
    /// Command line that runs: entrypoint and command, image defaults applied.
    pub argv: Vec<String>,
    /// Environment, image defaults applied.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub workdir: String,
    /// User as resolved from options and image (`user[:group]`).
    pub user: String,
    /// Labels, image labels included.
    pub labels: BTreeMap<String, String>,
    /// Signal number that stops it.
    pub stop_signal: i32,
    /// Seconds before SIGKILL.
    pub stop_timeout: u32,
}

/// One container for `ps` and `inspect`.
#[derive(Debug, Clone)]
pub struct Container {
    /// ID.
    pub id: ContainerId,
    /// Name.
    pub name: String,
    /// Image ID (64 hex), empty with `--rootfs`.
    pub image_id: String,
    /// RFC 3339.
    pub created: String,
    /// What was decided at creation.
    pub config: ContainerConfig,
    /// Now.
    pub status: Status,
    /// PID of init on the host while running, else 0.
    pub pid: i32,
    /// PID of the monitor while running, else 0.
    pub monitor_pid: i32,
    /// RFC 3339 of the current or last start.
    pub started: Option<String>,
    /// The last finished run.
    pub exit: Option<ExitRecord>,
    /// Container ↔ pause namespace.
    pub maps: Option<IdMaps>,
    /// Container ↔ host.
    pub host_maps: Option<IdMaps>,
}

/// Whether `start` connects the caller to the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartMode {
    /// Nobody attached.
    Detached,
    /// The caller gets an [`AttachConnection`] that misses nothing. `rows`/`columns`: the caller's
    /// terminal, if it has one.
    Attached {
        /// First terminal size.
        size: Option<(u16, u16)>,
    },
}

/// A running container just started.
#[derive(Debug)]
pub struct Started {
    /// ID.
    pub id: ContainerId,
    /// Present when asked for.
    pub attach: Option<AttachConnection>,
}

impl Engine {
    /// Makes a container without starting it.
    pub fn create(&mut self, options: CreateOptions) -> Result<ContainerId> {
        let _ = options;
        todo!()
    }
    /// Makes and starts in one go (`run`): fewer steps than `create` then `start`.
    pub fn run(&mut self, options: CreateOptions, mode: StartMode) -> Result<Started> {
        let _ = (options, mode);
        todo!()
    }
    /// Starts a created or exited container. Already running: an error of kind `Conflict`.
    pub fn start(&mut self, id: &ContainerId, mode: StartMode) -> Result<Started> {
        let _ = (id, mode);
        todo!()
    }
    /// Connects to a running container's streams.
    pub fn attach(&self, id: &ContainerId) -> Result<AttachConnection> {
        let _ = id;
        todo!()
    }
    /// Sends the stop signal, waits `timeout` (its own when `None`), then SIGKILL; returns when it
    /// has ended. Not running: does nothing.
    pub fn stop(&self, id: &ContainerId, timeout: Option<Duration>) -> Result<()> {
        let _ = (id, timeout);
        todo!()
    }
    /// Sends a signal to init. Not running: `Conflict`.
    pub fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        let _ = (id, signal);
        todo!()
    }
    /// Removes it; `force` kills it first, `volumes` removes its anonymous volumes too.
    pub fn remove(&mut self, id: &ContainerId, force: bool, volumes: bool) -> Result<()> {
        let _ = (id, force, volumes);
        todo!()
    }
    /// Waits until it does not run and gives its exit code.
    pub fn wait(&self, id: &ContainerId) -> Result<i32> {
        let _ = id;
        todo!()
    }
    /// Finds one by full ID, unique ID prefix or name.
    pub fn find_container(&self, name_or_id: &str) -> Result<ContainerId> {
        let _ = name_or_id;
        todo!()
    }
    /// One container as it is now.
    pub fn container(&self, id: &ContainerId) -> Result<Container> {
        let _ = id;
        todo!()
    }
    /// All containers, oldest first.
    pub fn containers(&self) -> Result<Vec<Container>> {
        todo!()
    }
    /// Path of its log file (k8s-file format), which may not exist yet.
    pub fn log_path(&self, id: &ContainerId) -> std::path::PathBuf {
        let _ = id;
        todo!()
    }
    /// The container's root file system as a tar stream (`export`); it may run or not.
    pub fn export(&mut self, id: &ContainerId, out: &mut dyn std::io::Write) -> Result<()> {
        let _ = (id, out);
        todo!()
    }
}
