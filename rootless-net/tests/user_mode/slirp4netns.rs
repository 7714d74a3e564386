//! slirp4netns for single containers.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use selkie_net::port_mapping::{PortMapping, Protocol};
use selkie_net::program::Program;
use selkie_net::slirp4netns::api::{PublishError, publish};
use selkie_net::slirp4netns::memory_guard::{Bounds, MemoryGuard, Verdict};
use selkie_net::slirp4netns::{LIMITS, Options, start};
use selkie_net::user_mode::{Lifetime, Limits, Process, Surroundings};

use crate::Test;
use crate::ground::*;

pub const TESTS: &[Test] = &[
    ("slirp4netns_out", out),
    ("slirp4netns_published_ports", published_ports),
    ("slirp4netns_is_bounded", is_bounded),
    ("slirp4netns_memory_is_guarded", memory_is_guarded),
    ("slirp4netns_gives_up_with_a_reason", gives_up_with_a_reason),
];

fn with_each(test: fn(&Ground, &Program)) -> Result<(), String> {
    can_open_tun()?;
    for program in programs("slirp4netns")? {
        in_host(|ground| test(ground, &program))?;
    }
    Ok(())
}

fn run(
    program: &Program,
    options: &str,
    limits: Limits,
    api_socket: Option<&std::path::Path>,
    namespace: &OwnedFd,
) -> Process {
    let around = Surroundings {
        network_namespace: namespace.as_fd(),
        environment: &[],
        lifetime: Lifetime::Owner,
    };
    let before = Instant::now();
    let options = options.parse().unwrap();
    let mut process = start(program, &options, limits, api_socket, "tap0", &around).unwrap();
    process.ready(PATIENCE).unwrap();
    eprintln!(
        "{}: ready after {:?}",
        program.path.display(),
        before.elapsed()
    );
    process
}

fn own_namespace() -> OwnedFd {
    std::fs::File::open("/proc/self/ns/net").unwrap().into()
}

fn out() -> Result<(), String> {
    with_each(|ground, program| {
        ground.serve(&own_namespace(), &[format!("127.0.0.1:{PRIVATE}")]);
        let namespace = empty_namespace();
        let mut process = run(program, "", LIMITS, None, &namespace);
        assert_eq!(ask_inside(&namespace, || who(FAR4, WHO)), HOST4);
        assert_eq!(ask_inside(&namespace, || who_udp(FAR4, WHO)), HOST4);
        let closed = ask_inside(&namespace, || who("10.0.2.2", PRIVATE));
        assert!(closed.parse::<std::net::IpAddr>().is_err(), "{closed}");
        // IPv6 comes by router advertisements.
        let end = Instant::now() + PATIENCE;
        while ask_inside(&namespace, || who(FAR6, WHO)) != HOST6 {
            assert!(Instant::now() < end, "no IPv6: {}", process.words());
        }
        process.kill();
        let open = empty_namespace();
        let options = "allow_host_loopback=true,cidr=10.9.0.0/24,enable_ipv6=false,mtu=1500";
        let addresses = options.parse::<Options>().unwrap().addresses();
        let _process = run(program, options, LIMITS, None, &open);
        let host = addresses.host.unwrap().to_string();
        assert_eq!(ask_inside(&open, || who(&host, PRIVATE)), "127.0.0.1");
    })
}

fn port(host_ip: &str, host_port: u16, protocol: Protocol) -> PortMapping {
    PortMapping {
        host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
        host_port,
        container_port: WHO,
        count: 2,
        protocol,
    }
}

fn published_ports() -> Result<(), String> {
    with_each(|ground, program| {
        let namespace = empty_namespace();
        let socket = ground.scratch.join("api");
        let _process = run(program, "", LIMITS, Some(&socket), &namespace);
        let container = Options::default().addresses().container;
        ground.serve(&namespace, &[format!("[::]:{WHO}")]);
        let ports = [
            port("", 8080, Protocol::Tcp),
            port("127.0.0.1", 8082, Protocol::Tcp),
            port("", 8084, Protocol::Udp),
        ];
        publish(&socket, &ports, container).unwrap();
        assert_eq!(ask_inside(&ground.far, || who(HOST4, 8080)), FAR4);
        assert_eq!(ask_inside(&ground.far, || who_udp(HOST4, 8084)), FAR4);
        assert_eq!(
            ask_inside(&ground.far, || who(HOST4, 8082)),
            "connection refused"
        );
        let local = ask_inside(&own_namespace(), || who("127.0.0.1", 8082));
        assert!(local.parse::<std::net::IpAddr>().is_ok(), "{local}");
        let taken = publish(&socket, &ports[..1], container).unwrap_err();
        assert!(
            matches!(taken, PublishError::Refused { port: 8080, .. }),
            "{taken}"
        );
        let other = PortMapping {
            host_ip: Some([192, 0, 2, 1].into()),
            ..port("", 8086, Protocol::Tcp)
        };
        let other = publish(&socket, &[other], container).unwrap_err();
        assert!(
            matches!(other, PublishError::Refused { port: 8086, .. }),
            "{other}"
        );
        eprintln!("{taken}\n{other}");
        let family = publish(&socket, &[port("::1", 8090, Protocol::Tcp)], container);
        assert!(matches!(family, Err(PublishError::Family(_))));
    })
}

/// More connections than it may have descriptors: the further ones fail, those there are stay, and
/// so does the program.
fn is_bounded() -> Result<(), String> {
    with_each(|_, program| {
        let namespace = empty_namespace();
        let limits = Limits {
            descriptors: Some(64),
            ..LIMITS
        };
        let mut process = run(program, "enable_ipv6=false", limits, None, &namespace);
        let text =
            std::fs::read_to_string(format!("/proc/{}/limits", process.pid().as_raw_nonzero()))
                .unwrap();
        for (limit, value) in [
            ("Max open files", "64"),
            ("Max address space", "17179869184"),
        ] {
            let line = text.lines().find(|line| line.starts_with(limit)).unwrap();
            assert!(line.contains(value), "{line}");
        }
        inside(&namespace, || {
            let address = format!("{FAR4}:{WHO}").parse().unwrap();
            let patience = Duration::from_millis(200);
            // Their servers close at once, these do not.
            let open: Vec<TcpStream> = (0..100)
                .filter_map(|_| TcpStream::connect_timeout(&address, patience).ok())
                .collect();
            assert!(open.len() < 100, "{}", open.len());
            assert!(open.len() > 30, "{}", open.len());
        });
        assert_eq!(process.wait(Duration::ZERO).unwrap(), None);
        let end = Instant::now() + PATIENCE;
        while ask_inside(&namespace, || who(FAR4, WHO)) != HOST4 {
            assert!(
                Instant::now() < end,
                "it does not recover: {}",
                process.words()
            );
        }
    })
}

/// Beyond its bounds it gets no further descriptors, and goes on with those it has.
fn memory_is_guarded() -> Result<(), String> {
    with_each(|_, program| {
        let namespace = empty_namespace();
        let mut process = run(program, "enable_ipv6=false", LIMITS, None, &namespace);
        let descriptors = || {
            let path = format!("/proc/{}/limits", process.pid().as_raw_nonzero());
            let text = std::fs::read_to_string(path).unwrap();
            let line = text.lines().find(|line| line.starts_with("Max open files"));
            let numbers = line.unwrap().split_ascii_whitespace().skip(3);
            let numbers: Vec<u64> = numbers.map_while(|word| word.parse().ok()).collect();
            (numbers[0], numbers[1])
        };
        let guard = |refuse, end| {
            let bounds = Bounds {
                refuse,
                accept: refuse,
                end,
            };
            MemoryGuard::new(&process, bounds).unwrap()
        };
        let (soft, hard) = descriptors();
        assert_eq!(soft, hard);
        assert_eq!(guard(1 << 30, 1 << 30).look().unwrap(), Verdict::Accepting);
        assert_eq!(guard(1, 1).look().unwrap(), Verdict::TooLarge);
        assert_eq!(descriptors(), (soft, hard));
        assert_eq!(guard(1, 1 << 30).look().unwrap(), Verdict::Refusing);
        let (lowered, same) = descriptors();
        assert!((256..300).contains(&lowered), "{lowered}");
        assert_eq!(same, hard);
        inside(&namespace, || {
            let address = format!("{FAR4}:{WHO}").parse().unwrap();
            let patience = Duration::from_millis(200);
            let open: Vec<TcpStream> = (0..280)
                .filter_map(|_| TcpStream::connect_timeout(&address, patience).ok())
                .collect();
            assert!((200..300).contains(&open.len()), "{}", open.len());
        });
        assert_eq!(process.wait(Duration::ZERO).unwrap(), None);
    })
}

fn gives_up_with_a_reason() -> Result<(), String> {
    with_each(|_, program| {
        let plain: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let around = Surroundings {
            network_namespace: plain.as_fd(),
            environment: &[],
            lifetime: Lifetime::Owner,
        };
        let options = Options::default();
        let mut process = start(program, &options, LIMITS, None, "tap0", &around).unwrap();
        let failure = process.ready(PATIENCE).unwrap_err().to_string();
        assert!(failure.contains("setns"), "{failure}");
    })
}
