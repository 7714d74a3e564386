//! The uplink's network namespace: made, prepared once, and kept by a mount of itself.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use selkie_sys::clone::CloneNamespaces;
use selkie_sys::errno::{Attempt, SysError, SysResult};

use super::protocol::Failure;
use crate::netlink::{self, Netlink, Request, default_destination};

/// `f_type` of a namespace file (`NSFS_MAGIC`, linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// Mark of packets for sockets with a client's address, and the routing table they go by.
const TRANSPARENT: (u32, u8) = (1, 100);

/// The same of packets that ask for a connection.
const REQUESTS: (u32, u8) = (2, 101);

/// That of [`REQUESTS_INTERFACE`]: whatever containers send fits it.
const LARGEST_MTU: u32 = 65_535;

/// Interface for those (`forwarder/outgoing.rs`).
const REQUESTS_INTERFACE: &str = "syn0";

/// Interface towards the host.
pub(super) const UPLINK_INTERFACE: &str = "uplink0";

const RULES: &str = include_str!("rules.nft");

const OUTGOING_RULES: &str = include_str!("rules_outgoing.nft");

/// Opens the namespace kept at `anchor`; `None` when none is kept there.
pub(super) fn open_kept(anchor: &Path) -> SysResult<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(anchor, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno).attempt(|| format!("open {}", anchor.display())),
    };
    let kind = rustix::fs::fstatfs(&file).attempt(|| format!("statfs {}", anchor.display()))?;
    Ok((kind.f_type as u64 == NSFS_MAGIC).then_some(file))
}

/// Makes a namespace and keeps it by mounting it on the file `anchor`.
pub(super) fn make(anchor: &Path) -> SysResult<OwnedFd> {
    std::fs::File::create(anchor).attempt(|| format!("make {}", anchor.display()))?;
    let make = || {
        selkie_sys::child::unshare(CloneNamespaces::NETWORK)
            .attempt(|| "make a network namespace")?;
        let own = "/proc/thread-self/ns/net";
        rustix::mount::mount(own, anchor, c"", MountFlags::BIND, None)
            .attempt(|| format!("mount a network namespace on {}", anchor.display()))?;
        rustix::fs::open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .attempt(|| format!("open {own}"))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .spawn_scoped(scope, make)
            .attempt(|| "start a thread")?;
        thread
            .join()
            .unwrap_or_else(|_| Err(SysError::new("make the uplink", Errno::CANCELED)))
    })
}

/// Makes the interface by which containers ask for connections. That of a supervisor that was killed goes
/// with its services, which are being killed.
pub(super) fn make_requests_interface(namespace: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    netlink::in_namespace(namespace, || {
        let mut tries = 0;
        loop {
            match selkie_sys::tun::make(REQUESTS_INTERFACE) {
                Err(error) if error.errno == Errno::BUSY && tries < 100 => tries += 1,
                other => return other,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    })
}

/// Lets go of the namespace kept at `anchor`.
pub(super) fn release(anchor: &Path) {
    // Whatever stays is found by `system check`.
    let _ = rustix::mount::unmount(anchor, UnmountFlags::DETACH);
    let _ = std::fs::remove_file(anchor);
}

/// Everything that is done once: forwarding, routing of marked packets, the rules. The answer is why
/// the rules by which containers ask for connections are not among them, where they are not.
///
/// # Errors
/// `nft` is missing, or the kernel lacks what the rules need.
pub(super) fn prepare(namespace: BorrowedFd<'_>, nft: &Path) -> Result<Option<String>, Failure> {
    let mut netlink = netlink::in_namespace(namespace, || {
        // Bridges are for their ports' traffic alone; absent where the kernel has no br_netfilter.
        for file in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let path = format!("/proc/sys/net/bridge/{file}");
            if Path::new(&path).exists() {
                write_sysctl(&path, "0")?;
            }
        }
        write_sysctl("/proc/sys/net/ipv4/ip_forward", "1")?;
        // The rules see to it, with exceptions of their own.
        write_sysctl("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
        write_sysctl("/proc/sys/net/ipv4/conf/default/rp_filter", "0")?;
        // It would find the socket of a connection that has ended for a packet that asks for the next one
        // between the same ports, and the kernel does not forward what has a socket.
        write_sysctl("/proc/sys/net/ipv4/tcp_early_demux", "0")?;
        // All connections made in here end at a container of this machine, where nothing is lost and
        // spreading packets over time (BBR, the default of some hosts) costs a seventh of the throughput.
        write_sysctl("/proc/sys/net/ipv4/tcp_congestion_control", "reno")?;
        if Path::new("/proc/sys/net/ipv6").exists() {
            write_sysctl("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
            write_sysctl("/proc/sys/net/ipv6/conf/default/accept_ra", "0")?;
        }
        // Ports below 1024 are nobody's in here; the name server has 53.
        write_sysctl("/proc/sys/net/ipv4/ip_unprivileged_port_start", "53")?;
        Netlink::open()
    })
    .map_err(failure)?;
    let (mark, table) = TRANSPARENT;
    let v6 = Path::new("/proc/sys/net/ipv6").exists();
    let mut requests = vec![Request::up(LOOPBACK, None)];
    for v6 in [Some(false), v6.then_some(true)].into_iter().flatten() {
        requests.push(Request::rule(v6, mark, table));
        requests.push(Request::local_default(v6, LOOPBACK, table));
    }
    let has_requests = if let Some(index) = netlink.index_of(REQUESTS_INTERFACE).map_err(failure)? {
        let (mark, table) = REQUESTS;
        requests.push(Request::mtu(index, LARGEST_MTU));
        requests.push(Request::up(index, None));
        for v6 in [Some(false), v6.then_some(true)].into_iter().flatten() {
            requests.push(Request::rule(v6, mark, table));
            requests.push(Request::route(default_destination(v6), index, None).in_table(table));
        }
        true
    } else {
        false
    };
    netlink.batch(requests).map_err(failure)?;
    // Adding it first makes removing it right whether it was there or not.
    let rules = format!("table inet selkie\ndelete table inet selkie\n{RULES}");
    // Without them, what is for the outside goes by way of the connector.
    let with_outgoing = if has_requests {
        load_rules(namespace, nft, &format!("{rules}{OUTGOING_RULES}"))
    } else {
        Err(Failure {
            message: format!("there is no {REQUESTS_INTERFACE}"),
            hint: None,
        })
    };
    if with_outgoing.is_err() {
        load_rules(namespace, nft, &rules)?;
    }
    netlink::in_namespace(namespace, || {
        let settings = [
            // Connections through pasta and slirp4netns have no kernel's TCP on their other side: what
            // looks out of window to the tracker is in order, and would be dropped as nobody's.
            ("tcp_be_liberal", "1"),
            // The container's kernel sums up every byte that comes in; once is enough.
            ("checksum", "0"),
        ];
        for (name, value) in settings {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            if Path::new(&path).exists() {
                write_sysctl(&path, value)?;
            }
        }
        Ok(())
    })
    .map_err(failure)?;
    Ok(with_outgoing.err().map(|failure| failure.message))
}

/// Runs `nft -f -` in the namespace.
pub(super) fn load_rules(
    namespace: BorrowedFd<'_>,
    nft: &Path,
    rules: &str,
) -> Result<(), Failure> {
    let run = || -> SysResult<(bool, String)> {
        let mut child = Command::new(nft)
            .args(["-f", "-"])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .attempt(|| format!("run {}", nft.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // When it has died its own words say more.
            let _ = stdin.write_all(rules.as_bytes());
        }
        let output = child
            .wait_with_output()
            .attempt(|| format!("wait for {}", nft.display()))?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok((output.status.success(), words))
    };
    match netlink::in_namespace(namespace, run) {
        Ok((true, _)) => Ok(()),
        Ok((false, words)) => Err(Failure {
            message: format!("load the uplink's firewall rules: nft: {words}"),
            hint: Some(
                "the kernel needs nf_tables with nat, masquerade, fib and socket expressions (modules nft_masq, nft_fib_inet, nft_socket); `--network pasta` works without"
                    .into(),
            ),
        }),
        Err(error) => Err(failure(error)),
    }
}

fn write_sysctl(path: &str, value: &str) -> SysResult<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .attempt(|| format!("open {path}"))?;
    rustix::io::write(file.as_fd(), value.as_bytes())
        .attempt(|| format!("write {value} to {path}"))?;
    Ok(())
}

/// As a failure without advice.
pub(super) fn failure(error: SysError) -> Failure {
    Failure {
        message: error.to_string(),
        hint: None,
    }
}
