//! Tests that change their whole process, so that each runs in one of its own.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use selkie_net::forwarder::sandbox::{FileAccess, Sandbox};
use selkie_net::forwarder::{Forwarder, HostTables, Limits, PublishError, Sources};
use selkie_net::port_mapping::{PortMapping, Protocol};

use crate::Test;
use crate::host::{Host, mapping};
use crate::lab::*;
use crate::tcp::{connect, echo, server};

pub const TESTS: &[Test] = &[
    ("the_sandbox_holds_and_forwards", || again("sandbox")),
    ("out_of_descriptors_clients_wait", || again("shortage")),
];

fn again(name: &str) {
    let status = Command::new("/proc/self/exe")
        .args(["--alone", name])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{name}: {status}, see above");
}

pub fn run(name: &str) {
    match name {
        "sandbox" => sandbox(),
        "shortage" => shortage(),
        other => panic!("{other}"),
    }
}

/// The forwarder as its process is: set up, confined, and then at work. What speaks with it are other
/// threads, which the sandbox does not leave out either; so they are set up before.
fn sandbox() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, echo);
    let readable = tempfile::tempdir().unwrap();
    let file = readable.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 192.0.2.53\n").unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    lab.host.enter();
    let blocker = std::net::TcpListener::bind(at(HOST_V4, 8079)).unwrap();
    let tables = HostTables::open();
    let places = [
        readable.path().to_owned(),
        PathBuf::from("/nonexistent/place"),
    ];
    let sandbox = Sandbox {
        readable: &places,
        parent: rustix::process::getppid().unwrap(),
    };
    let (sockets, files) = sandbox.enter(lab.uplink.namespace(), Sources::Any).unwrap();

    // What it needs.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut forwarder = Forwarder::new(sockets.clone(), tables, Limits::default()).unwrap();
        let ports = [mapping(Protocol::Tcp, 8080, 80)];
        forwarder.publish("c", &ports, target()).unwrap();
        let mut stream = tokio::net::TcpStream::connect(at(HOST_V4, 8080))
            .await
            .unwrap();
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        stream.write_all(b"ping").await.unwrap();
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ping");
        let name_server = sockets.bind_udp(at(GATEWAY_V4, 53)).await.unwrap();
        assert_eq!(name_server.local_addr().unwrap(), at(GATEWAY_V4, 53));
        let held = sockets.listen_tcp(at(GATEWAY_V6, 53)).await.unwrap();
        // As of a process before this one that is still ending.
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(held);
        };
        let (waited, ()) = tokio::join!(sockets.listen_tcp(at(GATEWAY_V6, 53)), let_go);
        waited.unwrap();
        let error = forwarder.publish("c", &[mapping(Protocol::Tcp, 443, 80)], target());
        assert!(matches!(
            error,
            Err(PublishError::Privileged {
                first_unprivileged: Some(1024),
                ..
            })
        ));
        let error = forwarder.publish("c", &[mapping(Protocol::Tcp, 8079, 80)], target());
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("in use by a process of this login")
        );
    });
    drop(blocker);
    assert!(
        std::fs::read_to_string(&file)
            .unwrap()
            .contains("192.0.2.53")
    );

    // What it does not. The old threads are not Landlock's matter, all else concerns them as well.
    let denied = |errno: Errno, what: &str| {
        assert!(
            matches!(errno, Errno::PERM | Errno::ACCESS),
            "{what}: {errno}"
        );
    };
    if files == FileAccess::Unconfined {
        println!("skipped in part: this kernel has no Landlock");
    } else {
        let refused = |result: std::io::Result<()>, what: &str| {
            assert_eq!(
                result.unwrap_err().kind(),
                ErrorKind::PermissionDenied,
                "{what}"
            );
        };
        refused(File::open("/etc/passwd").map(drop), "read another file");
        refused(File::open(outside.path()).map(drop), "read one's own file");
        refused(std::fs::write(&file, ""), "write what may be read");
        refused(
            File::create(readable.path().join("new")).map(drop),
            "make a file",
        );
        refused(std::fs::remove_file(&file), "remove a file");
    }
    let executed = Command::new("/proc/self/exe")
        .arg("--list")
        .stdin(Stdio::null())
        .spawn();
    denied(errno_of(executed.map(drop)), "execute");
    let namespace = lab.host.namespace();
    let network = Some(rustix::thread::LinkNameSpaceType::Network);
    let entered =
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), network);
    denied(entered.unwrap_err(), "setns");
    let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
    assert_eq!(unshared.unwrap_err(), nix::errno::Errno::EPERM);
    for domain in [
        socket2::Domain::UNIX,
        socket2::Domain::PACKET,
        socket2::Domain::from(16),
    ] {
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None);
        denied(errno_of(socket.map(drop)), "another kind of socket");
    }
    let raw = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, None);
    denied(errno_of(raw.map(drop)), "a raw socket");
    let mode = std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o777));
    denied(errno_of(mode), "change a mode");
    let traced = nix::sys::signal::kill(nix::unistd::getppid(), None);
    assert!(
        files == FileAccess::Unconfined || traced.is_err(),
        "signal another process"
    );
    let capabilities = rustix::thread::capabilities(None).unwrap();
    assert!(capabilities.effective.is_empty() && capabilities.permitted.is_empty());
    // Threads still start, and have nothing more.
    let name = std::thread::spawn(|| UdpSocket::bind("0.0.0.0:0").map(drop))
        .join()
        .unwrap();
    name.unwrap();
}

fn errno_of(result: std::io::Result<()>) -> Errno {
    Errno::from_raw_os_error(result.unwrap_err().raw_os_error().unwrap())
}

/// With room for a few connections only, the others wait, and all are served in the end.
fn shortage() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, echo);
    let small = Rlimit {
        current: Some(400),
        maximum: Some(600),
    };
    setrlimit(Resource::Nofile, small).unwrap();
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, 8080, 80)];
    host.publish("c", &ports, target()).unwrap();
    assert_eq!(getrlimit(Resource::Nofile).current, Some(600));
    let too_many = PortMapping {
        host_port: 9000,
        count: 1000,
        ..ports[0].clone()
    };
    match host.publish("c", &[too_many], target()).unwrap_err() {
        PublishError::TooMany { ports, free, limit } => {
            assert_eq!((ports, limit), (2000, 600));
            assert!(free < 300);
        }
        other => panic!("{other}"),
    }
    let mut streams: Vec<TcpStream> = (0..100)
        .map(|_| connect(&lab.client, at(HOST_V4, 8080)))
        .collect();
    for stream in &mut streams {
        stream.write_all(b"ping").unwrap();
    }
    for mut stream in streams {
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"ping");
    }
}
