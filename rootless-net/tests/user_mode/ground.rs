//! A host of its own for every test: a user and mount namespace like the login's, in it the network
//! namespaces `host` (where the test's process is, with a veth and default routes) and `far` (with
//! servers), and as many empty ones as a test wants. Nothing of the real host's network is touched,
//! and the whole of it is gone with its last process.
//!
//! Root gives the namespace a made-up login's ID; anybody else maps their own.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Gid, Pid, Signal, Uid, WaitOptions, kill_process, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use selkie_net::program::Program;
use selkie_sys::clone::{CloneNamespaces, Side, clone3, exit_now, fork};

pub const HOST4: &str = "10.77.0.1";
pub const HOST6: &str = "fd77::1";
pub const FAR4: &str = "10.77.0.2";
pub const FAR6: &str = "fd77::2";
/// A server that tells its client's address, in `far` and, by the same number, wherever started.
pub const WHO: u16 = 7000;
/// As [`WHO`], on the loopback of `host` only.
pub const PRIVATE: u16 = 7001;

/// Only a hang takes this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Ground {
    pub scratch: PathBuf,
    pub far: OwnedFd,
}

/// Runs `body` in the namespace described above. It runs in another process.
pub fn in_host(body: impl FnOnce(&Ground)) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let is_root = rustix::process::getuid().is_root();
    let (login, group) = if is_root {
        (54321, 54321)
    } else {
        (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        )
    };
    let scratch = tempfile::tempdir().map_err(|error| text(&error))?;
    std::os::unix::fs::chown(scratch.path(), Some(login), Some(group))
        .map_err(|error| text(&error))?;
    let (reader, writer) = pipe();
    let new = CloneNamespaces::USER | CloneNamespaces::MOUNT | CloneNamespaces::NETWORK;
    let Side::Parent { pid, .. } = clone3(new, None).map_err(|error| text(&error))? else {
        drop(writer);
        let _ = rustix::io::read(&reader, &mut [0u8; 1]);
        exit_now(run(|| {
            become_root();
            let ground = build(scratch.path().to_owned());
            body(&ground);
        }));
    };
    let process = pid.as_raw_nonzero();
    let write = |file: &str, content: &str| {
        std::fs::write(format!("/proc/{process}/{file}"), content)
            .map_err(|error| format!("{file}: {error}"))
    };
    write("setgroups", "deny")?;
    write("uid_map", &format!("0 {login} 1\n"))?;
    write("gid_map", &format!("0 {group} 1\n"))?;
    rustix::io::write(&writer, b"x").map_err(|error| text(&error))?;
    drop(writer);
    let status = wait(pid);
    assert!(status == 0, "the test failed, see above");
    Ok(())
}

fn build(scratch: PathBuf) -> Ground {
    let private = rustix::mount::MountPropagationFlags::PRIVATE;
    let all = private | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", all).unwrap();
    ip(&["link", "set", "lo", "up"]);
    let far = empty_namespace();
    let far_path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&far));
    // By descriptor, which iproute2 takes as a path only from a process that has it: a helper's PID
    // would do as well, but there is none.
    rustix::io::fcntl_setfd(&far, rustix::io::FdFlags::empty()).unwrap();
    ip(&[
        "link", "add", "h0", "type", "veth", "peer", "name", "f0", "netns", &far_path,
    ]);
    for address in [format!("{HOST4}/24"), format!("{HOST6}/64")] {
        address_of("h0", &address);
    }
    ip(&["link", "set", "h0", "up"]);
    add_default_routes();
    inside(&far, || {
        ip(&["link", "set", "lo", "up"]);
        for address in [format!("{FAR4}/24"), format!("{FAR6}/64")] {
            address_of("f0", &address);
        }
        ip(&["link", "set", "f0", "up"]);
    });
    let ground = Ground { scratch, far };
    ground.wait_for_link_local();
    ground.serve(&ground.far, &[format!("[::]:{WHO}")]);
    ground
}

pub fn add_default_routes() {
    ip(&["route", "add", "default", "via", FAR4]);
    ip(&["-6", "route", "add", "default", "via", FAR6]);
}

pub fn remove_default_routes() {
    ip(&["route", "del", "default"]);
    ip(&["-6", "route", "del", "default"]);
}

fn address_of(interface: &str, address: &str) {
    let nodad: &[&str] = if address.contains(':') {
        &["nodad"]
    } else {
        &[]
    };
    ip(&[&["address", "add", address, "dev", interface], nodad].concat());
}

pub fn ip(arguments: &[&str]) {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("run ip(8)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {said}");
}

/// A network namespace nobody is in.
pub fn empty_namespace() -> OwnedFd {
    let (reader, writer) = pipe();
    let Side::Parent { pid, .. } = clone3(CloneNamespaces::NETWORK, None).unwrap() else {
        drop(writer);
        let _ = rustix::io::read(&reader, &mut [0u8; 1]);
        exit_now(0)
    };
    let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
    let namespace = std::fs::File::open(path).unwrap().into();
    drop(writer);
    wait(pid);
    namespace
}

/// Runs `body` in a network namespace, in another process; it must not fail.
pub fn inside(namespace: &OwnedFd, body: impl FnOnce()) {
    let Side::Parent { pid, .. } = fork().unwrap() else {
        exit_now(run(|| {
            enter(namespace);
            body();
        }))
    };
    assert_eq!(wait(pid), 0, "failed in a network namespace, see above");
}

/// As [`inside`], with what `body` gives.
pub fn ask_inside(namespace: &OwnedFd, body: impl FnOnce() -> String) -> String {
    let (reader, writer) = pipe();
    inside(namespace, || {
        let answer = body();
        rustix::io::write(&writer, answer.as_bytes()).unwrap();
    });
    drop(writer);
    let mut text = String::new();
    std::fs::File::from(reader)
        .read_to_string(&mut text)
        .unwrap();
    text
}

fn enter(namespace: &OwnedFd) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// Whom the server at this address sees, or why it cannot be asked.
pub fn who(address: &str, port: u16) -> String {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let mut stream = match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
        Ok(stream) => stream,
        Err(error) => return error.kind().to_string(),
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    if let Err(error) = stream.write_all(b"who") {
        return error.kind().to_string();
    }
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Ok(_) => answer,
        Err(error) => error.kind().to_string(),
    }
}

/// As [`who`], by datagrams.
pub fn who_udp(address: &str, port: u16) -> String {
    let address: IpAddr = address.parse().unwrap();
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    if let Err(error) = socket.send_to(b"who", (address, port)) {
        return error.kind().to_string();
    }
    let mut answer = [0; 64];
    match socket.recv(&mut answer) {
        Ok(length) => String::from_utf8_lossy(&answer[..length]).into_owned(),
        Err(error) => error.kind().to_string(),
    }
}

impl Ground {
    /// Starts servers by TCP and UDP in a namespace that tell their clients who they are. They end
    /// with the test.
    pub fn serve(&self, namespace: &OwnedFd, addresses: &[String]) {
        for address in addresses {
            let (reader, writer) = pipe();
            let owner = rustix::process::getpid();
            if let Side::Child = fork().unwrap() {
                exit_now(run(|| {
                    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
                    assert_eq!(rustix::process::getppid(), Some(owner));
                    enter(namespace);
                    let tcp = TcpListener::bind(address.as_str()).unwrap();
                    // Room for many that say nothing and wait for their turn.
                    rustix::net::listen(&tcp, 4096).unwrap();
                    let udp = UdpSocket::bind(address.as_str()).unwrap();
                    rustix::io::write(&writer, b"x").unwrap();
                    drop((reader, writer));
                    std::thread::spawn(move || serve_datagrams(&udp));
                    for stream in tcp.incoming() {
                        let mut stream = stream.unwrap();
                        // Debian 12's pasta holds back what a server says before its client did.
                        let _ = stream.read(&mut [0; 64]);
                        let peer = plain(stream.peer_addr().unwrap().ip());
                        let _ = stream.write_all(peer.as_bytes());
                    }
                }));
            }
            drop(writer);
            assert_eq!(rustix::io::read(&reader, &mut [0u8; 1]), Ok(1));
        }
    }

    /// The kernel gives the address a moment after the other side is up.
    fn wait_for_link_local(&self) {
        let end = Instant::now() + PATIENCE;
        while !selkie_net::pasta::Template::of_this_namespace().has_link_local {
            assert!(Instant::now() < end, "no link-local address");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn serve_datagrams(socket: &UdpSocket) {
    let mut question = [0; 64];
    while let Ok((_, peer)) = socket.recv_from(&mut question) {
        let _ = socket.send_to(plain(peer.ip()).as_bytes(), peer);
    }
}

fn plain(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

/// The programs by this name to test: the installed one and those that `SELKIE_TEST_OTHER_PROGRAMS`,
/// a search list, has.
pub fn programs(name: &'static str) -> Result<Vec<Program>, String> {
    let other = std::env::var_os("SELKIE_TEST_OTHER_PROGRAMS").unwrap_or_default();
    let installed = std::env::split_paths("/usr/local/bin:/usr/bin:/bin").collect::<Vec<_>>();
    let first = Program::find(name, name, &installed);
    let others = std::env::split_paths(&other).filter_map(|dir| Program::at(&dir.join(name)));
    let all: Vec<Program> = first.into_iter().chain(others).collect();
    if all.is_empty() {
        return Err(format!("{name} is not installed"));
    }
    Ok(all)
}

pub fn can_open_tun() -> Result<(), String> {
    let node = Path::new("/dev/net/tun");
    match std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(node)
    {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{}: {error}; chmod 0666 it", node.display())),
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn run(body: impl FnOnce()) -> i32 {
    i32::from(catch_unwind(AssertUnwindSafe(body)).is_err())
}

fn become_root() {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).unwrap();
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).unwrap();
    let dumpable = rustix::process::DumpableBehavior::Dumpable;
    rustix::process::set_dumpable_behavior(dumpable).unwrap();
}

/// Exit code, or 128 + signal.
pub fn wait(pid: Pid) -> i32 {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(Some((_, status))) => {
                return status
                    .exit_status()
                    .unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or_default());
            }
            other => panic!("waitpid: {other:?}"),
        }
    }
}

pub fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
}
