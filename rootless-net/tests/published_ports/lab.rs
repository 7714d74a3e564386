//! Hosts and cables.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use selkie_net::forwarder::Target;

pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const HOST_V4_SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub const HOST_V6_SECOND: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7);
pub const CONTAINER_V4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
pub const CONTAINER_V4_SECOND: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);
pub const CONTAINER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 2);
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1);

/// A network namespace.
pub struct Machine(OwnedFd);

impl Machine {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap().into()
        });
        let machine = Self(made.join().unwrap());
        machine.ip("link set lo up");
        machine
    }

    /// Runs `body` there, in a thread of its own.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                body()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread there.
    pub fn enter(&self) {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.0.as_fd(), network).unwrap();
    }

    /// The namespace.
    pub fn namespace(&self) -> OwnedFd {
        self.0.try_clone().unwrap()
    }

    /// A path that means this namespace to a child of this process.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs commands of `ip`, one a line.
    pub fn ip(&self, commands: &str) {
        self.feed(&["ip", "-batch", "-"], commands);
    }

    fn ip_6(&self, commands: &str) {
        self.feed(&["ip", "-6", "-batch", "-"], commands);
    }

    fn feed(&self, command: &[&str], input: &str) {
        self.run(|| {
            let mut child = Command::new(command[0])
                .args(&command[1..])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(input.as_bytes()).unwrap();
            drop(stdin);
            assert!(child.wait().unwrap().success(), "{command:?}: {input}");
        });
    }

    fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{name}");
        self.run(|| std::fs::write(&path, value).unwrap());
    }
}

/// Everything: a client's machine, the host, and behind it the uplink namespace and a container.
pub struct Lab {
    pub client: Machine,
    pub host: Machine,
    pub uplink: Machine,
    pub container: Machine,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self {
            client: Machine::new(),
            host: Machine::new(),
            uplink: Machine::new(),
            container: Machine::new(),
        };
        lab.host.ip(&format!(
            "link add h0 type veth peer name c0 netns {}\n\
             link set h0 up\n\
             addr add {HOST_V4}/24 dev h0\n\
             addr add {HOST_V4_SECOND}/24 dev h0\n\
             addr add {HOST_V6}/64 dev h0 nodad\n\
             addr add {HOST_V6_SECOND}/64 dev h0 nodad\n",
            lab.client.path()
        ));
        lab.client.ip(&format!(
            "link set c0 up\n\
             addr add {CLIENT_V4}/24 dev c0\n\
             addr add {CLIENT_V6}/64 dev c0 nodad\n"
        ));
        lab.uplink.sysctl("net/ipv4/ip_forward", "1");
        lab.uplink.sysctl("net/ipv6/conf/all/forwarding", "1");
        lab.uplink.ip(&format!(
            "link add sv0 mtu 65520 type veth peer name eth0 mtu 65520 netns {}\n\
             link set sv0 up\n\
             addr add {GATEWAY_V4}/32 dev sv0\n\
             addr add {GATEWAY_V6}/128 dev sv0 nodad\n\
             route add {CONTAINER_V4}/32 dev sv0\n\
             route add {CONTAINER_V4_SECOND}/32 dev sv0\n\
             route add {CONTAINER_V6}/128 dev sv0\n\
             link add up0 type veth peer name up1\n\
             link set up0 up\n\
             link set up1 up\n\
             route add default dev up0\n\
             rule add fwmark 1 lookup 100\n\
             route add local default dev lo table 100\n",
            lab.container.path()
        ));
        lab.uplink.ip_6(
            "route add default dev up0\n\
             rule add fwmark 1 lookup 100\n\
             route add local default dev lo table 100\n",
        );
        lab.uplink.feed(
            &["nft", "-f", "-"],
            "table inet selkie {\n\
             chain catch {\n\
             type filter hook prerouting priority mangle\n\
             meta l4proto { tcp, udp } socket transparent 1 meta mark set 1 accept\n\
             }\n\
             chain forward {\n\
             type filter hook forward priority filter\n\
             ct state invalid drop\n\
             }\n\
             }\n",
        );
        lab.container.ip(&format!(
            "link set eth0 up\n\
             addr add {CONTAINER_V4}/32 dev eth0\n\
             addr add {CONTAINER_V4_SECOND}/32 dev eth0\n\
             addr add {CONTAINER_V6}/128 dev eth0 nodad\n\
             route add {GATEWAY_V4} dev eth0\n\
             route add default via {GATEWAY_V4} src {CONTAINER_V4}\n\
             route add {GATEWAY_V6} dev eth0\n"
        ));
        lab.container
            .ip_6(&format!("route add default via {GATEWAY_V6}\n"));
        lab
    }

    /// Gives the uplink namespace the host's addresses, as `pasta` does.
    pub fn copy_addresses_to_uplink(&self) {
        self.uplink.ip(&format!(
            "addr add {HOST_V4}/24 dev up0\naddr add {HOST_V6}/64 dev up0 nodad\n"
        ));
    }
}

/// The container, with both families.
pub fn target() -> Target {
    Target {
        v4: Some(CONTAINER_V4),
        v6: Some(CONTAINER_V6),
        gateway_v4: Some(GATEWAY_V4),
        gateway_v6: Some(GATEWAY_V6),
        subnets: vec!["10.88.0.0/16".parse().unwrap()],
    }
}

pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}
