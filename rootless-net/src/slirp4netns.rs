//! Starting `slirp4netns`, which connects a network namespace with the host's without privileges:
//! the fallback where there is no `pasta`, and what `--network slirp4netns` asks for.
//!
//! It starts in about 6 ms, but every connection may buffer half a megabyte in it: 3000 stuck ones
//! made it 1.2 GB large. When an allocation fails it aborts, and all of the container's connections
//! with it, so a [`memory_guard`] watches over what it really uses, and the limits here are only the
//! last resort.

pub mod api;
pub mod memory_guard;
mod options;

use std::ffi::{CString, OsString};
use std::net::IpAddr;
use std::path::Path;

use selkie_sys::SysResult;

pub use self::options::{BadOptions, Options, PortHandler};
use crate::program::{NotFound, Program};
use crate::user_mode::{Launch, Limits, Process, ReadyWire, Surroundings, spawn};

/// A descriptor stays for ten seconds after its connection has ended, with 380 kB of address space: as
/// many as 3000 connections a second need, and the address space of all of them.
pub const LIMITS: Limits = Limits {
    address_space: Some(16 << 30),
    descriptors: Some(32 << 10),
};

/// Has the GNU C library map each connection's buffers (128 kB) for themselves. From its heap, which it
/// would take them from after the first have been given back, they come with memory that others have
/// written to, and count as resident: 1.9 GB instead of 0.1 GB after ten seconds of a thousand connections
/// each. Packets (up to 64 kB) stay in the heap, which is not to shrink after each. Another C library
/// does not mind it.
const ALLOCATOR: [&std::ffi::CStr; 2] = [
    c"MALLOC_MMAP_THRESHOLD_=131072",
    c"MALLOC_TRIM_THRESHOLD_=8388608",
];

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
    let mut environment: Vec<CString> = around.environment.to_vec();
    environment.extend(ALLOCATOR.map(CString::from));
    let around = Surroundings {
        environment: &environment,
        ..*around
    };
    let launch = Launch {
        program: &program.path,
        arguments,
        ready_wire: ReadyWire::Three,
        limits,
    };
    spawn(launch, &around)
}
