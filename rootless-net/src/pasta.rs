//! Starting `pasta` (of the passt project), which connects a network namespace with the host's
//! without privileges.
//!
//! It serves two purposes: one for the *uplink* of a login ([`uplink`]), and one of its own for a
//! container that asks for it ([`dedicated`]). What a version can is found by trying ([`features`]);
//! distributions patch, and Debian's does not know its own version.
//!
//! Facts about both Debian 12's (2023-03) and Debian 13's (2025-05), all of them tried:
//! - With `-i ANY-INTERFACE -M MAC` and addresses of our choice, it starts without a default route
//!   on the host and works as soon as there is one: its sockets are not tied to that interface. Old
//!   versions then give up IPv6 unless that interface has a link-local address ([`Template`]).
//! - `--no-ndp` makes a `fe80::` gateway unreachable, so it is never passed by ourselves.
//! - `--map-guest-addr` means the host only while the namespace has the host's own address. With
//!   another, the host's own address is simply reachable.
//! - `-t none` together with any other `-t` is an error.
//! - Debian 12's holds back what a server behind a published port says first until its client has
//!   said something; not from the host's loopback, and not later versions.
//! - Debian 13's is slow to take what a namespace sends by TCP: behind a veth with an MTU of 1500,
//!   8 MB did not arrive in 20 s; with 65520 they took 1.5 to 3.5 s, and 0.1 to 0.3 s when the sender's
//!   `net.ipv4.tcp_wmem` ended at 128 kB or less. Debian 12's takes 0.1 s in either case.
//! - Of a published range, Debian 12's is content when it can listen on one port.
//! - Its `--help` is cut short when it goes into a pipe, and so is `--version`.

pub mod dedicated;
pub mod features;
mod options;
pub mod uplink;
mod words;

use std::ffi::OsString;
use std::net::Ipv4Addr;

use selkie_sys::SysResult;

pub use self::features::Features;
pub use self::options::{BadOptions, Options};
pub use self::words::{Cause, cause};
use crate::program::{NotFound, Program};
use crate::user_mode::{Launch, Limits, Process, ReadyWire, Surroundings, spawn};

/// Where queries go that pasta forwards to the host's name server.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The Ethernet address pasta shows; newer versions' own default. Given so that it is not taken from
/// an interface that has none.
const MAC: &str = "9a:55:9a:55:9a:55";

/// Finds `pasta`.
///
/// # Errors
/// It is not installed.
pub fn find(search: &[std::path::PathBuf]) -> Result<Program, NotFound> {
    Program::find("pasta", "passt", search)
}

/// Starts it with what [`uplink`] or [`dedicated`] has planned, and returns at once. The caller must
/// have one thread.
///
/// # Errors
/// The kernel made no process. What pasta itself does not like is told by [`Process::ready`];
/// [`cause`] knows what that means.
pub fn start(
    program: &Program,
    arguments: &[String],
    around: &Surroundings<'_>,
) -> SysResult<Process> {
    let fixed = [
        "--foreground",
        "--quiet",
        "--config-net",
        "--netns-only",
        "--netns",
        "/proc/self/fd/0",
        "--pid",
        "/proc/self/fd/1",
    ];
    let launch = Launch {
        program: &program.path,
        arguments: fixed
            .into_iter()
            .map(OsString::from)
            .chain(arguments.iter().map(OsString::from))
            .collect(),
        ready_wire: ReadyWire::Stdout,
        limits: Limits::default(),
    };
    spawn(launch, around)
}

/// The interface that pasta is told to take as its model, where it insists on one. Nothing is bound
/// to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its name.
    pub interface: String,
    /// Whether it has a link-local address, without which old versions give up IPv6.
    pub has_link_local: bool,
}

impl Template {
    /// The best one of the caller's network namespace: the oldest with a link-local address, or else
    /// the loopback.
    pub fn of_this_namespace() -> Self {
        // Not there without IPv6.
        let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6");
        Self::from_if_inet6(&addresses.unwrap_or_default())
    }

    /// Lines are: address, index, prefix length, scope, flags (all hexadecimal), name.
    fn from_if_inet6(text: &str) -> Self {
        const LINK_SCOPE: &str = "20";
        const TENTATIVE: u32 = 0x40;
        const DUPLICATE: u32 = 0x08;
        let usable = text.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [_, index, _, scope, flags, name] = fields[..] else {
                return None;
            };
            let flags = u32::from_str_radix(flags, 16).ok()?;
            let fits = scope == LINK_SCOPE && flags & (TENTATIVE | DUPLICATE) == 0;
            fits.then_some((u32::from_str_radix(index, 16).ok()?, name))
        });
        match usable.min() {
            Some((_, name)) => Self {
                interface: name.to_owned(),
                has_link_local: true,
            },
            None => Self {
                interface: "lo".into(),
                has_link_local: false,
            },
        }
    }

    fn arguments(&self) -> [String; 4] {
        ["--interface", &self.interface, "--mac-addr", MAC].map(str::to_owned)
    }
}

/// No port leads anywhere, in either direction, but those given.
fn closed_ports(tcp: bool, udp: bool, tcp_out: bool, udp_out: bool) -> Vec<String> {
    let all = [("-t", tcp), ("-u", udp), ("-T", tcp_out), ("-U", udp_out)];
    all.into_iter()
        .filter(|(_, is_closed)| *is_closed)
        .flat_map(|(option, _)| [option.to_owned(), "none".to_owned()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_the_oldest_interface_with_a_usable_link_local_address() {
        let text = "\
fd000000000000000000000000000002 04 40 00 80     eth0
fe8000000000000000fc00fffe000001 07 40 20 80     wlan0
fe8000000000000000fc00fffe000002 05 40 20 80     eth1
fe8000000000000000fc00fffe000003 03 40 20 c0     tentative
fe8000000000000000fc00fffe000004 02 40 20 88     duplicate
00000000000000000000000000000001 01 80 10 80       lo
odd
";
        let template = Template::from_if_inet6(text);
        assert_eq!(template.interface, "eth1");
        assert!(template.has_link_local);
        let none = Template::from_if_inet6("00000000000000000000000000000001 01 80 10 80 lo\n");
        assert_eq!(
            (none.interface.as_str(), none.has_link_local),
            ("lo", false)
        );
    }
}
