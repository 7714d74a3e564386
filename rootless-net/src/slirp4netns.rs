//! Starting `slirp4netns`, which connects a network namespace with the host's without privileges:
//! the fallback where there is no `pasta`, and what `--network slirp4netns` asks for.
//!
//! It starts in about 6 ms, but every connection may buffer half a megabyte in it: 3000 stuck ones
//! made it 1.2 GB large. When an allocation fails it aborts, and all of the container's connections
//! with it, so address space is only the second limit: the first is descriptors, since a connection
//! is one, and the container merely sees further ones refused.

pub mod api;
mod options;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;

use selkie_sys::SysResult;

pub use self::options::{BadOptions, Options};
use crate::program::{NotFound, Program};
use crate::user_mode::{Launch, Limits, Process, ReadyWire, Surroundings, spawn};

/// What is measured: 1024 descriptors in use by connections stuck in both directions take 526 MB of
/// address space, 0.4 GB of it resident.
pub const LIMITS: Limits = Limits {
    address_space: Some(768 << 20),
    descriptors: Some(1024),
};

/// Finds `slirp4netns`.
///
/// # Errors
/// It is not installed.
pub fn find(search: &[std::path::PathBuf]) -> Result<Program, NotFound> {
    Program::find("slirp4netns", "slirp4netns", search)
}

/// Where the container finds things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Its own.
    pub container: std::net::Ipv4Addr,
    /// What `resolv.conf` must name.
    pub name_server: IpAddr,
    /// What `/etc/hosts` must name; `None`: the address by which other hosts know the host
    /// ([`crate::host_address`]), which is reachable like any other.
    pub host: Option<IpAddr>,
}

/// Starts it and returns at once; `interface` is what it makes in the namespace. The caller must have one thread. Once it is ready, published ports
/// are set up through `api_socket` ([`api::publish`]); only needed for that, and its directory must
/// be the caller's own.
///
/// # Errors
/// The kernel made no process. What slirp4netns itself does not like is told by [`Process::ready`].
pub fn start(
    program: &Program,
    options: &Options,
    limits: Limits,
    api_socket: Option<&Path>,
    interface: &str,
    around: &Surroundings<'_>,
) -> SysResult<Process> {
    let mut arguments: Vec<OsString> = [
        "--configure",
        "--netns-type=path",
        "--ready-fd=3",
        "--exit-fd=4",
    ]
    .map(OsString::from)
    .into();
    arguments.extend(options.arguments().into_iter().map(OsString::from));
    if let Some(socket) = api_socket {
        arguments.push("--api-socket".into());
        arguments.push(socket.into());
    }
    arguments.extend(["/proc/self/fd/0", interface].map(OsString::from));
    let launch = Launch {
        program: &program.path,
        arguments,
        ready_wire: ReadyWire::Three,
        limits,
    };
    spawn(launch, around)
}
