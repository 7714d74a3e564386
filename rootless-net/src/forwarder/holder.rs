//! Who holds a port that is in use, as far as it can be seen.
//!
//! The kernel's tables (proc_net_tcp(5)) tell the socket's inode and its owner's UID to anybody. Which
//! process that is stands in `/proc/PID/fd`, which a process can only look into with `ptrace` rights
//! over the other: from inside a login's namespace that means processes inside it, and from inside a
//! sandbox none. So the table is read where the port could not be bound, and the process is looked for
//! by whoever can see more.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::port_mapping::Protocol;

/// How many lines of a table are looked at: listening sockets come first.
const LINES: usize = 200_000;

/// How many descriptors of other processes are looked at.
const DESCRIPTORS: usize = 200_000;

/// Who holds a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// A container of this login, by a port published here.
    Container(String),
    /// Some socket.
    Socket {
        /// Its inode number.
        inode: u64,
        /// Whether its owner is this login (rather than one that has no number here).
        own: bool,
        /// PID and name of the process that has it open, where that could be seen.
        process: Option<(i32, String)>,
    },
}

impl Holder {
    /// Looks for the process that has the socket open among those the caller may inspect.
    pub fn look_for_process(&mut self) {
        if let Self::Socket { inode, process, .. } = self
            && process.is_none()
        {
            *process = process_with_socket(*inode);
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(id) => write!(f, "container {}", &id[..id.len().min(12)]),
            Self::Socket {
                process: Some((pid, name)),
                ..
            } => write!(f, "process {pid} ({name})"),
            Self::Socket { own: true, .. } => f.write_str("a process of this login"),
            Self::Socket { own: false, .. } => f.write_str("a process of another login"),
        }
    }
}

/// The host's tables of sockets and its first port for everybody, opened while that is allowed.
#[derive(Debug, Default)]
pub struct HostTables {
    tcp: Vec<File>,
    udp: Vec<File>,
    first_unprivileged: Option<File>,
}

impl HostTables {
    /// Opens those of the caller's network namespace. What cannot be opened is done without.
    pub fn open() -> Self {
        let all = |paths: [&str; 2]| paths.into_iter().flat_map(File::open).collect();
        Self {
            tcp: all(["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]),
            udp: all(["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"]),
            first_unprivileged: File::open("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok(),
        }
    }

    /// The first port that needs no privilege.
    pub fn first_unprivileged_port(&self) -> Option<u16> {
        let mut file = self.first_unprivileged.as_ref()?;
        file.rewind().ok()?;
        std::io::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Who is in the way of binding `address` and `port`.
    pub fn holder(&self, protocol: Protocol, address: IpAddr, port: u16) -> Option<Holder> {
        let (tables, listening) = match protocol {
            Protocol::Tcp => (&self.tcp, Some(0x0a)),
            Protocol::Udp => (&self.udp, None),
        };
        let uid = rustix::process::geteuid().as_raw();
        tables.iter().find_map(|mut table| {
            table.rewind().ok()?;
            let lines = BufReader::new(table).lines().skip(1).take(LINES);
            let entries = lines.map_while(Result::ok);
            let held = entries
                .filter_map(|line| Entry::parse(&line))
                .find(|entry| {
                    entry.port == port
                        && listening.is_none_or(|state| entry.state == state)
                        && collide(entry.address, address)
                })?;
            Some(Holder::Socket {
                inode: held.inode,
                own: held.uid == uid,
                process: process_with_socket(held.inode),
            })
        })
    }
}

/// Whether two sockets with these addresses would be in each other's way.
pub(super) fn collide(held: IpAddr, wanted: IpAddr) -> bool {
    let all_v6 = held == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match (held.to_canonical(), wanted.to_canonical()) {
        (IpAddr::V4(held), IpAddr::V4(wanted)) => {
            held == wanted || held.is_unspecified() || wanted.is_unspecified()
        }
        (IpAddr::V6(held), IpAddr::V6(wanted)) => {
            held == wanted || held.is_unspecified() || wanted.is_unspecified()
        }
        // A socket on all of IPv6 may have all of IPv4 as well; the tables do not tell.
        (_, IpAddr::V4(_)) => all_v6,
        _ => false,
    }
}

/// One line of a table.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    address: IpAddr,
    port: u16,
    state: u8,
    uid: u32,
    inode: u64,
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        let state = fields.nth(1)?;
        let uid = fields.nth(3)?;
        let inode = fields.nth(1)?;
        Some(Self {
            address: parse_address(address)?,
            port: u16::from_str_radix(port, 16).ok()?,
            state: u8::from_str_radix(state, 16).ok()?,
            uid: uid.parse().ok()?,
            inode: inode.parse().ok()?,
        })
    }
}

/// The words of an address in network order, each printed as a number of this machine.
fn parse_address(text: &str) -> Option<IpAddr> {
    let mut bytes = [0u8; 16];
    let words = text.as_bytes().chunks(8);
    if !text.is_ascii() || !matches!(text.len(), 8 | 32) {
        return None;
    }
    for (word, place) in words.zip(bytes.chunks_mut(4)) {
        let word = std::str::from_utf8(word).ok()?;
        place.copy_from_slice(&u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
    }
    if text.len() == 8 {
        let [a, b, c, d, ..] = bytes;
        Some(Ipv4Addr::new(a, b, c, d).into())
    } else {
        Some(Ipv6Addr::from(bytes).into())
    }
}

fn process_with_socket(inode: u64) -> Option<(i32, String)> {
    let wanted = format!("socket:[{inode}]");
    let mut left = DESCRIPTORS;
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|pid| pid.parse().ok())
        else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            left = left.checked_sub(1)?;
            let Ok(target) = std::fs::read_link(descriptor.path()) else {
                // All of them, then.
                break;
            };
            if target.as_os_str() == wanted.as_str() {
                let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
                let name = name.trim_end().escape_debug().to_string();
                return Some((pid, name));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_the_tables() {
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  \
                  1000        0 48225 1 ffff8881 100 0 0 10 0";
        let entry = Entry::parse(v4).unwrap();
        assert_eq!((entry.port, entry.state), (8080, 10));
        assert_eq!((entry.uid, entry.inode), (1000, 48225));
        #[cfg(target_endian = "little")]
        assert_eq!(entry.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let v6 = "   1: 00000000000000000000000001000000:0035 0:0 07 0:0 00:0 0 0 0 9";
        let entry = Entry::parse(v6).unwrap();
        #[cfg(target_endian = "little")]
        assert_eq!(entry.address, IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!((entry.port, entry.inode), (53, 9));
    }

    #[test]
    fn holders_are_found_with_their_process() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::]:0").unwrap();
        let tables = HostTables::open();
        let me = std::process::id().cast_signed();
        let find = |protocol, address: &str, port| match tables.holder(
            protocol,
            address.parse().unwrap(),
            port,
        ) {
            Some(Holder::Socket {
                own: true,
                process: Some((pid, _)),
                ..
            }) => Some(pid),
            _ => None,
        };
        let port = tcp.local_addr().unwrap().port();
        assert_eq!(find(Protocol::Tcp, "127.0.0.1", port), Some(me));
        assert_eq!(find(Protocol::Tcp, "0.0.0.0", port), Some(me));
        assert_eq!(find(Protocol::Tcp, "127.0.0.2", port), None);
        let port = udp.local_addr().unwrap().port();
        assert_eq!(find(Protocol::Udp, "::1", port), Some(me));
        assert_eq!(find(Protocol::Udp, "0.0.0.0", port), Some(me));
        assert!(tables.first_unprivileged_port().is_some());
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "\\PC{0,200}", address in "[0-9A-Fa-f]{0,40}") {
            let _ = Entry::parse(&line);
            let _ = parse_address(&address);
            let _ = Entry::parse(&format!("0: {address}:{address} {line}"));
        }
    }
}
