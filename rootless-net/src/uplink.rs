//! The uplink: what connects a login's containers with each other and with the world.
//!
//! Theory of operation. One network namespace per login and host network namespace, owned by the
//! login's pause namespace, that no container is in:
//!
//! ```text
//!  container   container      container   container            host's namespace
//!    eth0        eth0           eth0        eth0
//!     │           │              │           │         services: names, published ports
//!  ┌──│───────────│──────────────│───────────│──────────────┐   (sockets on both sides)
//!  │ sv…         sv…            sp…         sp…             │
//!  │  └─ routed ──┴──┐           └── sb… ────┘ a bridge     │
//!  │          rules: who may reach whom         syn0 ───────┼── services: TCP connections out
//!  │                                         uplink0 ───────┼── pasta (or slirp4netns): all else
//!  └────────────────────────────────────────────────────────┘
//! ```
//!
//! Processes, all of the login, none with a privilege on the host:
//! - The *supervisor* ([`supervisor`]) makes the namespace, loads the rules, connects and disconnects
//!   containers on request, and mends what breaks: pasta when it dies or when the host gains a way out
//!   in a family it had none in, the services when they die.
//! - The *connector* (pasta) carries packets between `uplink0` and sockets of the host.
//! - The *services* ([`services`]) answer names, relay published ports, and make the TCP connections that
//!   containers ask for ([`crate::forwarder`]). They read what strangers send, so they are confined: no
//!   files but `resolv.conf`, no programs.
//! - A container with a connector of its own that does not publish its ports itself has a forwarder beside
//!   it ([`own_ports`]).
//!
//! The supervisor is started by the first command that needs it ([`connect`]) and ends ten seconds
//! after its last container. It keeps nothing on disk: the engine says what a container has, and says it again
//! when asked to. The namespace is kept by a mount of itself in the pause process's mount namespace, so
//! a supervisor that is killed leaves it and all links in it to its successor. Everyone who needs the
//! uplink holds a connection to the supervisor, whose end tells them to find the successor and to
//! attach again, which changes nothing where all is as it should be.
//!
//! When a container ends, the kernel removes its veth pairs with its namespace; the supervisor holds a
//! pidfd of its init and forgets it then. So nothing needs to be undone by whoever is killed.

mod client;
mod connector;
mod container_sysctls;
mod host_address;
mod namespace;
mod own_ports;
mod protocol;
mod service_process;
mod services;
mod supervisor;
mod trunk;
mod wiring;

use std::path::PathBuf;

use selkie_sys::errno::SysResult;
use selkie_sys::namespace::NamespaceKey;

pub use client::{Uplink, UplinkError};
pub use connector::{Dedicated, known_features};
pub use protocol::{Failure, Status};

/// Where an uplink lives and what it is made with.
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// Private directory (0700) on a local disk; below it one directory per pause namespace and host
    /// network namespace.
    pub dir: PathBuf,
    /// Where to look for `pasta`, `slirp4netns` and `nft`.
    pub search_path: Vec<PathBuf>,
    /// The host's, read again whenever it changes.
    pub resolv_conf: PathBuf,
}

impl UplinkConfig {
    /// The directory of the uplink towards the host network namespace that the caller is in. A login may
    /// have several pause namespaces (one per runtime directory), none of which has rights in another.
    pub(crate) fn place(&self) -> SysResult<PathBuf> {
        let host = NamespaceKey::at("/proc/self/ns/net")?;
        let pause = NamespaceKey::at("/proc/self/ns/user")?;
        Ok(self.dir.join(format!("{}-{}", host.inode, pause.inode)))
    }

    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        self.search_path
            .iter()
            .map(|dir| dir.join(program))
            .find(|path| {
                rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
            })
    }
}

/// The login's uplink, started when it does not run. The caller is root in the pause namespace, in
/// its mount namespace, in the host's network namespace, and has one thread.
///
/// # Errors
/// See [`UplinkError`].
pub fn connect(config: &UplinkConfig) -> Result<Uplink, UplinkError> {
    client::connect_or_start(config)
}

/// The login's uplink if it runs.
///
/// # Errors
/// The socket is there and cannot be connected to.
pub fn running(config: &UplinkConfig) -> Result<Option<Uplink>, UplinkError> {
    client::connect_running(&config.place()?)
}

/// Uplinks that were left behind: directories below `config.dir` in which no supervisor answers.
///
/// # Errors
/// The directory cannot be read.
pub fn leftovers(config: &UplinkConfig) -> SysResult<Vec<PathBuf>> {
    client::leftovers(config)
}

/// Removes what [`leftovers`] found.
pub fn remove_leftover(dir: &std::path::Path) -> SysResult<()> {
    client::remove_leftover(dir)
}
