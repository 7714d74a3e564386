//! What a caller can ask of a new container: parsed meaning, not command-line text.

mod network;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use network::{DnsServers, ExposedPorts, ExtraHost, NameOptions, NetworkMode, NetworkRequest};
pub use selkie_net::network::{BadInterfaceName, BadMacAddress, InterfaceName, MacAddress};
pub use selkie_net::port_mapping::{PortMapping, Protocol};
use selkie_runtime::seccomp_profile::Profile;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootSource {
    /// Image name or ID as the user wrote it.
    Image(String),
    /// `--rootfs`: a directory of the login, used as it is.
    Directory(PathBuf),
}

/// `--userns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum UsernsMode {
    /// A slice of its own; `size` IDs contiguous when given.
    #[default]
    AutoDefault,
    /// `auto:size=N`.
    Auto {
        /// Contiguous IDs from 0.
        size: Option<u32>,
    },
    /// One container ID is the login, the rest a slice.
    KeepId {
        /// Container UID that is the login (default: the login's own UID).
        uid: Option<u32>,
        /// Container GID (default: the login's own).
        gid: Option<u32>,
        /// Contiguous IDs from 0.
        size: Option<u32>,
    },
    /// Container IDs are the pause namespace's.
    Host,
    /// A slice as in `auto`, and nothing maps to the login even with `--uidmap`-like extras; the
    /// current user is not mapped (Podman's `nomap`).
    Nomap,
    /// `--uidmap/--gidmap`: container ID, pause-namespace ID, count.
    Maps {
        /// UID triples.
        uid: Vec<(u32, u32, u32)>,
        /// GID triples.
        gid: Vec<(u32, u32, u32)>,
    },
}

/// `--pid`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PidMode {
    /// Its own.
    #[default]
    Private,
    /// The host's.
    Host,
}

/// One `--volume`, `--mount` or `--tmpfs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOption {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path in the container.
    pub destination: String,
    /// Read-only.
    pub read_only: bool,
    /// Further options as Podman knows them, checked (`exec`, `nosuid`, `size=…`, `mode=…`,
    /// `rbind`, `rshared`, …).
    pub options: Vec<String>,
    /// Copy the image's content into an empty named volume (default true; `nocopy` clears it).
    pub copy_up: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A host path, absolute.
    Bind(PathBuf),
    /// A named volume.
    Volume(String),
    /// A volume without a name, removed with `rm -v` and `--rm`.
    AnonymousVolume,
    /// Memory.
    Tmpfs,
}

/// `--security-opt seccomp=`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SeccompOption {
    /// The default profile.
    #[default]
    Default,
    /// No filter.
    Unconfined,
    /// A profile in the containers project's JSON form, read by the caller.
    Profile(String),
}

impl SeccompOption {
    /// A profile from its text.
    ///
    /// # Errors
    /// `InvalidInput`: it is no profile; the message says where.
    pub fn profile(text: String) -> Result<Self> {
        Profile::parse(&text)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?;
        Ok(Self::Profile(text))
    }
}

/// Everything `create` and `run` take, in one place.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CreateOptions {
    /// Image or directory; `None` is refused.
    pub root: Option<RootSource>,
    /// `--name`; a random one otherwise.
    pub name: Option<String>,
    /// Command and arguments after the image.
    pub command: Vec<String>,
    /// `--entrypoint` (empty vector: none).
    pub entrypoint: Option<Vec<String>>,
    /// `--env`/`--env-file`, resolved, in order.
    pub env: Vec<(String, String)>,
    /// `--unsetenv`: variables of the image to leave out.
    #[serde(default)]
    pub unset_env: Vec<String>,
    /// `--workdir`.
    pub workdir: Option<String>,
    /// `--user`.
    pub user: Option<String>,
    /// `--hostname`.
    pub hostname: Option<String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--annotation`.
    pub annotations: BTreeMap<String, String>,
    /// `--read-only`.
    pub read_only: bool,
    /// `--read-only-tmpfs=false`: no writable memory on `/run`, `/tmp` and `/var/tmp` then.
    #[serde(default)]
    pub read_only_bare: bool,
    /// Mounts in the order given.
    pub mounts: Vec<MountOption>,
    /// `--init`.
    pub init: bool,
    /// `--stop-signal` (number).
    pub stop_signal: Option<i32>,
    /// `--stop-timeout` in seconds (default 10).
    pub stop_timeout: Option<u32>,
    /// `--cap-add` (`CAP_` prefix, upper case, or `ALL`).
    pub cap_add: Vec<String>,
    /// `--cap-drop`.
    pub cap_drop: Vec<String>,
    /// `--privileged` is not offered yet; this is `--security-opt seccomp=`.
    pub seccomp: SeccompOption,
    /// `--security-opt no-new-privileges`.
    pub no_new_privileges: bool,
    /// `--security-opt mask=`.
    pub mask: Vec<String>,
    /// `--security-opt unmask=` (`ALL` or paths).
    pub unmask: Vec<String>,
    /// `--ulimit`: name (`nofile`), soft, hard.
    pub ulimits: Vec<(String, u64, u64)>,
    /// `--sysctl`.
    pub sysctls: BTreeMap<String, String>,
    /// `--network`.
    pub network: NetworkMode,
    /// `--publish`. Host port 0: a free one, chosen when the container is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// `--publish-all`: everything exposed, on host ports chosen when the container is made.
    #[serde(default)]
    pub publish_all: bool,
    /// `--expose`, and the image's once the container is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<ExposedPorts>,
    /// Names it knows and finds.
    #[serde(default)]
    pub names: NameOptions,
    /// `--pid`.
    pub pid: PidMode,
    /// `--userns`.
    pub userns: UsernsMode,
    /// `-t`.
    pub terminal: bool,
    /// `-i`: stdin stays open.
    pub interactive: bool,
    /// `--rm`.
    pub remove: bool,
    /// The full command line, for `inspect` (`Config.CreateCommand`).
    pub create_command: Vec<String>,
}
