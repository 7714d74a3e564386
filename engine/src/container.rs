//! Containers: create, start, stop, kill, remove, wait, list.

use std::collections::BTreeMap;

use selkie_userns::IdMaps;
use serde::{Deserialize, Serialize};

use crate::attach::AttachConnection;
use crate::error::{Error, Result};
use crate::options::CreateOptions;

pub(crate) mod create;
pub(crate) mod etc_files;
pub(crate) mod lease;
pub(crate) mod list;
pub(crate) mod merge;
pub(crate) mod name;
pub(crate) mod remove;
mod root_view;
pub(crate) mod spare;
pub(crate) mod start;
mod stop;

pub use merge::signal_number;

/// 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId(String);

impl ContainerId {
    /// A new one.
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0u8; 32];
        fill_random(&mut bytes)?;
        Ok(Self::from_bytes(bytes))
    }
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = bytes
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|digit| char::from(DIGITS[usize::from(digit)]))
            .collect();
        Self(digits)
    }
    /// From a database row or a directory's name; `None` when it is not 64 hex digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 64 && digits).then(|| Self(text.to_owned()))
    }
    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The first 12 digits.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
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

impl ContainerConfig {
    /// From the JSON of a database row; `of` is the container's ID.
    pub(crate) fn parse(json: &str, of: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|error| {
            Error::machine(format!("read the configuration of container {of}"), error)
        })
    }
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
    /// True when it goes away with the end of its run (`--rm`, started).
    pub disposable: bool,
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

/// Random bytes from the kernel.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::io::retry_on_intr(|| {
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
        })
        .map_err(|errno| Error::machine("get random bytes from the kernel", errno))?;
    }
    Ok(())
}
