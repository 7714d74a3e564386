//! Two hosts on one cable: `host`, where the logins of a test are, and `far`, where the rest of the
//! world is. Each is a network namespace; `host` is a mount namespace as well, so that its
//! `/etc/resolv.conf` is its own and can be replaced under running programs.
//!
//! ```text
//!   host                                   far
//!   eth0 198.51.100.1  2001:db8:77::1 ──── eth0 198.51.100.2 .3  2001:db8:77::2 ::3   routers
//!   eth1 203.0.113.1   2001:db8:78::1 ──── eth1 203.0.113.2      2001:db8:78::2       (down at first)
//!                                          lo   100.64.9.9       2001:db8:ffff::9     "the internet"
//!                                               169.254.169.254                        "the cloud"
//! ```
//! All of it is gone with the last process in it; nothing touches the real host's network.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::ground::Ground;
use crate::login::Login;

pub const HOST: [&str; 2] = ["198.51.100.1", "2001:db8:77::1"];
pub const FAR: [&str; 2] = ["198.51.100.2", "2001:db8:77::2"];
/// Another router on the same cable.
pub const OTHER_ROUTER: [&str; 2] = ["198.51.100.3", "2001:db8:77::3"];
pub const SECOND_HOST: [&str; 2] = ["203.0.113.1", "2001:db8:78::1"];
pub const SECOND_ROUTER: [&str; 2] = ["203.0.113.2", "2001:db8:78::2"];
/// Behind the routers, so that a default route is needed.
pub const WORLD: [&str; 2] = ["100.64.9.9", "2001:db8:ffff::9"];
pub const CLOUD: &str = "169.254.169.254";
/// Servers of `far`, on all of its addresses.
pub const PORT: &str = "7000";
/// What every server in a container listens on.
pub const INSIDE: &str = "7000";

/// A process that does nothing but hold namespaces. It ends when its standard input does, which is
/// when the harness ends, however that ends.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    fn new(kinds: &[&str]) -> Result<Self> {
        let mut child = Command::new("unshare")
            .args(kinds)
            .args(["sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let stdout = child.stdout.take().context("no output of unshare")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "unshare {kinds:?} failed");
        Ok(Self(child))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid().to_string(), "--net", "--mount"])
            .args(["--", program])
            .stdin(Stdio::null());
        command
    }

    /// A script of commands, all of which must succeed.
    fn script(&self, script: &str) -> Result<()> {
        let output = self.command("sh").args(["-ec", script]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{script}\nfailed: {said}");
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of a test; ends with it.
#[derive(Debug)]
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Host,
    Far,
}

/// See the module.
pub struct Hosts {
    ground: &'static Ground,
    wire: PathBuf,
    servers: Vec<Server>,
    scratch: PathBuf,
    host: Holder,
    far: Holder,
}

impl Hosts {
    /// Makes both, with servers and a name server in `far` that `host` uses.
    pub fn new(ground: &'static Ground) -> Result<Self> {
        ground.needs_root("make a second host")?;
        for program in ["ip", "unshare", "nsenter"] {
            ground.needs_program(program)?;
        }
        let scratch = ground.scratch.join(ground.unique("hosts"));
        for directory in ["upper", "work"] {
            std::fs::create_dir_all(scratch.join(directory))?;
        }
        let mut hosts = Self {
            ground,
            wire: ground.image("wire")?,
            servers: Vec::new(),
            host: Holder::new(&["--net", "--mount", "--propagation", "private"])?,
            far: Holder::new(&["--net", "--mount", "--propagation", "private"])?,
            scratch,
        };
        hosts.cable()?;
        // Not a bind mount of the file: programs that write a new one rename it into place.
        let directory = hosts.scratch.display();
        hosts.host.script(&format!(
            "mount -t overlay -o lowerdir=/etc,upperdir={directory}/upper,workdir={directory}/work \
             overlay /etc"
        ))?;
        hosts.set_resolv_conf(&format!("nameserver {}\n", FAR[0]))?;
        let world = hosts.start(Side::Far, &["serve", PORT])?;
        let names = hosts.name_server(FAR[0], &[WORLD[0], WORLD[1]])?;
        hosts.servers = vec![world, names];
        Ok(hosts)
    }

    fn cable(&self) -> Result<()> {
        let far = self.far.pid();
        let [host4, host6] = HOST;
        let [second4, second6] = SECOND_HOST;
        // As distributions set it: whoever may ping on the host may do so for a container.
        self.host.script(&format!(
            "ip link set lo up
             for n in 0 1; do
                 ip link add eth$n type veth peer name eth$n netns {far}
                 sysctl -qw net.ipv6.conf.eth$n.accept_dad=0
             done
             ip address add {host4}/24 dev eth0
             ip address add {host6}/64 dev eth0 nodad
             ip address add {second4}/24 dev eth1
             ip address add {second6}/64 dev eth1 nodad
             ip link set eth0 up
             sysctl -qw net.ipv4.ping_group_range='0 2147483647'"
        ))?;
        let mut lines = String::from(
            "ip link set lo up
             ip link set eth0 up; ip link set eth1 up
             sysctl -qw net.ipv4.ping_group_range='0 2147483647'\n",
        );
        // Only the first of an interface is a source address.
        for (device, addresses) in [
            ("eth0", &[FAR, OTHER_ROUTER][..]),
            ("eth1", &[SECOND_ROUTER]),
        ] {
            for ([v4, v6], life) in addresses.iter().zip(["", " preferred_lft 0"]) {
                lines += &format!("ip address add {v4}/24 dev {device}\n");
                lines += &format!("ip address add {v6}/64 dev {device} nodad{life}\n");
            }
        }
        for alone in [WORLD[0], CLOUD] {
            lines += &format!("ip address add {alone}/32 dev lo\n");
        }
        lines += &format!("ip address add {}/128 dev lo nodad\n", WORLD[1]);
        self.far.script(&lines)?;
        self.set_routers(Some(FAR))
    }

    /// Replaces both default routes; `None` takes them away.
    pub fn set_routers(&self, routers: Option<[&str; 2]>) -> Result<()> {
        self.host.script(&match routers {
            Some([v4, v6]) => {
                format!("ip route replace default via {v4}; ip -6 route replace default via {v6}")
            }
            None => "ip route del default; ip -6 route del default".to_owned(),
        })
    }

    /// Pulls the first cable and plugs in the second: another interface, address and router.
    pub fn move_to_second_cable(&self) -> Result<()> {
        self.host
            .script("ip link set eth1 up; ip link set eth0 down")?;
        self.set_routers(Some(SECOND_ROUTER))
    }

    /// Replaces `/etc/resolv.conf` of `host`, by renaming as programs do.
    pub fn set_resolv_conf(&self, text: &str) -> Result<()> {
        let etc = PathBuf::from(format!("/proc/{}/root/etc", self.host.pid()));
        let new = etc.join("resolv.conf.new");
        std::fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        std::fs::rename(&new, etc.join("resolv.conf"))?;
        Ok(())
    }

    /// Starts a name server in `far` that knows `world.test` by these addresses.
    pub fn name_server(&self, at: &str, addresses: &[&str]) -> Result<Server> {
        let zone: Vec<String> = addresses
            .iter()
            .map(|address| format!("world.test={address}"))
            .collect();
        let mut arguments = vec!["dns", at];
        arguments.extend(zone.iter().map(String::as_str));
        self.start(Side::Far, &arguments)
    }

    /// Starts a server (`wire serve`, `serve-at`, `dns`) and waits until it listens.
    pub fn start(&self, side: Side, arguments: &[&str]) -> Result<Server> {
        let mut child = self
            .wire(side, arguments)
            .stdout(Stdio::piped())
            .spawn()
            .context("start wire")?;
        let stdout = child.stdout.take().context("no output of wire")?;
        let server = Server(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "wire {arguments:?} failed on {side:?}");
        Ok(server)
    }

    /// The program that [`Self::ask`] runs, for logins to run.
    pub fn wire_path(&self) -> &std::path::Path {
        &self.wire
    }

    fn wire(&self, side: Side, arguments: &[&str]) -> Command {
        let holder = match side {
            Side::Host => &self.host,
            Side::Far => &self.far,
        };
        let mut command = holder.command(&self.wire.to_string_lossy());
        command.args(arguments);
        command
    }

    /// Runs `wire` to its end: its output, or why it failed.
    pub fn ask(&self, side: Side, arguments: &[&str]) -> Result<String> {
        let output = self.wire(side, arguments).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        ensure!(
            output.status.success(),
            "wire {} on {side:?}: {} {}",
            arguments.join(" "),
            text(&output.stdout),
            text(&output.stderr)
        );
        Ok(text(&output.stdout))
    }

    /// Whether a process is in the network namespace of `host`.
    pub fn holds(&self, pid: i32) -> bool {
        let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        match (namespace(pid), namespace(self.host.pid())) {
            (Ok(one), Ok(other)) => one == other,
            _ => false,
        }
    }

    /// A login on `host` with the `busybox` image, of the first or second user.
    pub fn login(&self, user: usize) -> Result<Login> {
        let user = self
            .ground
            .users
            .get(user)
            .context("needs a second user")?
            .clone();
        let login = Login::new(self.ground, user, "online")?.on_host(self.host.pid());
        login.load("busybox.oci.tar")?;
        Ok(login)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // Mounts below go with the mount namespace; the directory may linger until then, and
        // scripts/test removes it.
        self.servers.clear();
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}
