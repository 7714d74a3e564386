//! pasta for the uplink and for single containers.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use selkie_net::host_address;
use selkie_net::pasta::dedicated::{HostAt, Plan, Wish};
use selkie_net::pasta::uplink::Uplink;
use selkie_net::pasta::{Cause, Features, Options, Template, cause, start};
use selkie_net::port_mapping::{PortMapping, Protocol};
use selkie_net::program::Program;
use selkie_net::user_mode::{Lifetime, Process, Surroundings};
use selkie_sys::clone::{Side, exit_now, fork};

use crate::Test;
use crate::ground::*;

pub const TESTS: &[Test] = &[
    ("pasta_uplink", uplink),
    ("pasta_uplink_without_routes", uplink_without_routes),
    ("pasta_dedicated", dedicated),
    ("pasta_dedicated_without_routes", dedicated_without_routes),
    ("pasta_published_ports", published_ports),
    ("pasta_gives_up_with_a_reason", gives_up_with_a_reason),
    ("pasta_dies_with_its_owner", dies_with_its_owner),
    ("pasta_inherits_nothing", inherits_nothing),
    ("pasta_of_another_kind", another_kind),
];

/// In a host of its own for each installed pasta.
fn with_each(test: fn(&Ground, &Program, &Features)) -> Result<(), String> {
    can_open_tun()?;
    for program in programs("pasta")? {
        let features = Features::probe(&program).unwrap();
        let lacking: Vec<&str> = features.lacking().collect();
        eprintln!("{} lacks {lacking:?}", program.path.display());
        in_host(|ground| test(ground, &program, &features))?;
    }
    Ok(())
}

fn launch(program: &Program, arguments: &[String], namespace: &OwnedFd) -> Process {
    let around = Surroundings {
        network_namespace: namespace.as_fd(),
        environment: &[],
        lifetime: Lifetime::Owner,
    };
    start(program, arguments, &around).unwrap()
}

fn run(program: &Program, arguments: &[String], namespace: &OwnedFd) -> Process {
    let before = Instant::now();
    let mut process = launch(program, arguments, namespace);
    process.ready(PATIENCE).unwrap();
    eprintln!(
        "{}: ready after {:?}",
        program.path.display(),
        before.elapsed()
    );
    process
}

fn start_uplink(program: &Program, features: &Features, namespace: &OwnedFd) -> Process {
    let uplink = Uplink {
        interface: "uplink0".parse().unwrap(),
        ipv4: ([169, 254, 2, 1].into(), 30, [169, 254, 2, 2].into()),
        ipv6: ("fd07:5e1::2".parse().unwrap(), "fe80::1".parse().unwrap()),
        mtu: 65520,
    };
    let plan = uplink.plan(features, &Template::of_this_namespace());
    assert!(plan.has_ipv6, "{plan:?}");
    run(program, &plan.arguments, namespace)
}

fn plan(options: &str, ports: &[PortMapping], features: &Features) -> Plan {
    let options: Options = options.parse().unwrap();
    let wish = Wish {
        options: &options,
        ports,
        own_addresses: false,
    };
    wish.plan(features, &Template::of_this_namespace()).unwrap()
}

/// First packets may be lost while neighbours are found and addresses become usable.
fn eventually(
    namespace: &OwnedFd,
    ask: fn(&str, u16) -> String,
    address: &str,
    port: u16,
) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask_inside(namespace, || ask(address, port));
        if is_address(&answer) || Instant::now() > end {
            return answer;
        }
    }
}

fn is_address(answer: &str) -> bool {
    answer.parse::<std::net::IpAddr>().is_ok()
}

/// Out by both families and protocols; the host's loopback is closed.
fn reaches_far(namespace: &OwnedFd) {
    assert_eq!(eventually(namespace, who, FAR4, WHO), HOST4);
    assert_eq!(eventually(namespace, who, FAR6, WHO), HOST6);
    assert_eq!(ask_inside(namespace, || who_udp(FAR4, WHO)), HOST4);
    assert_eq!(ask_inside(namespace, || who_udp(FAR6, WHO)), HOST6);
}

fn own_namespace() -> OwnedFd {
    std::fs::File::open("/proc/self/ns/net").unwrap().into()
}

fn uplink() -> Result<(), String> {
    with_each(|ground, program, features| {
        ground.serve(
            &own_namespace(),
            &[format!("127.0.0.1:{PRIVATE}"), format!("{HOST4}:{WHO}")],
        );
        let namespace = empty_namespace();
        let mut process = start_uplink(program, features, &namespace);
        reaches_far(&namespace);
        // The host by the address that others know.
        assert_eq!(host_address().unwrap().to_string(), HOST4);
        assert_eq!(ask_inside(&namespace, || who(HOST4, WHO)), HOST4);
        for closed in ["169.254.2.2", "169.254.1.2", "127.0.0.1"] {
            let answer = ask_inside(&namespace, || who(closed, PRIVATE));
            assert!(!is_address(&answer), "{closed}: {answer}");
        }
        // A new one takes over when it dies.
        process.kill();
        let _second = start_uplink(program, features, &namespace);
        reaches_far(&namespace);
    })
}

fn uplink_without_routes() -> Result<(), String> {
    with_each(|_, program, features| {
        remove_default_routes();
        let namespace = empty_namespace();
        let _process = start_uplink(program, features, &namespace);
        add_default_routes();
        reaches_far(&namespace);
    })
}

fn dedicated() -> Result<(), String> {
    with_each(|ground, program, features| {
        ground.serve(
            &own_namespace(),
            &[format!("127.0.0.1:{PRIVATE}"), format!("{HOST4}:{WHO}")],
        );
        let namespace = empty_namespace();
        let plan = plan("", &[], features);
        let _process = run(program, &plan.arguments, &namespace);
        reaches_far(&namespace);
        assert_eq!(plan.warnings.is_empty(), features.can_map_guest_address());
        let host = match plan.host {
            HostAt::Address(address) => address,
            HostAt::OwnAddress => host_address().unwrap(),
        };
        let answer = ask_inside(&namespace, || who(&host.to_string(), WHO));
        assert_eq!(answer, HOST4);
        let closed = ask_inside(&namespace, || who(&host.to_string(), PRIVATE));
        assert!(!is_address(&closed), "{closed}");
    })
}

fn dedicated_without_routes() -> Result<(), String> {
    with_each(|_, program, features| {
        remove_default_routes();
        let namespace = empty_namespace();
        let plan = plan("", &[], features);
        let mut process = launch(program, &plan.arguments, &namespace);
        if let Err(failure) = process.ready(PATIENCE) {
            assert!(plan.copies_host, "{failure}");
            assert_eq!(cause(&failure), Cause::NoHostRoute, "{failure}");
            let wish = Wish {
                options: &Options::default(),
                ports: &[],
                own_addresses: true,
            };
            let second = wish.plan(features, &Template::of_this_namespace()).unwrap();
            process = run(program, &second.arguments, &namespace);
        }
        add_default_routes();
        reaches_far(&namespace);
        drop(process);
    })
}

fn port(host_ip: &str, host_port: u16, protocol: Protocol) -> PortMapping {
    PortMapping {
        host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
        host_port,
        container_port: WHO,
        count: 1,
        protocol,
    }
}

fn published_ports() -> Result<(), String> {
    with_each(|ground, program, features| {
        let namespace = empty_namespace();
        let ports = [
            port("", 8080, Protocol::Tcp),
            port("127.0.0.1", 8081, Protocol::Tcp),
            port("", 8082, Protocol::Udp),
        ];
        let plan = plan("", &ports, features);
        let _process = run(program, &plan.arguments, &namespace);
        ground.serve(&namespace, &[format!("[::]:{WHO}")]);
        // From another host, with its own address.
        assert_eq!(eventually(&ground.far, who, HOST4, 8080), FAR4);
        assert_eq!(eventually(&ground.far, who, HOST6, 8080), FAR6);
        assert_eq!(eventually(&ground.far, who_udp, HOST4, 8082), FAR4);
        assert_eq!(eventually(&ground.far, who_udp, HOST6, 8082), FAR6);
        assert_eq!(
            ask_inside(&ground.far, || who(HOST4, 8081)),
            "connection refused"
        );
        // From the host.
        for (address, port) in [("127.0.0.1", 8080), ("127.0.0.1", 8081), (HOST4, 8080)] {
            let answer = ask_inside(&own_namespace(), || who(address, port));
            assert!(is_address(&answer), "{address}:{port}: {answer}");
        }
    })
}

fn gives_up_with_a_reason() -> Result<(), String> {
    with_each(|ground, program, features| {
        ground.serve(&own_namespace(), &["[::]:8080".to_owned()]);
        let namespace = empty_namespace();
        let failure = |options: &str, ports: &[PortMapping]| {
            let plan = plan(options, ports, features);
            let mut process = launch(program, &plan.arguments, &namespace);
            let failure = process.ready(PATIENCE).unwrap_err();
            assert!(process.wait(PATIENCE).unwrap().is_some());
            eprintln!("{failure}");
            failure
        };
        for (address, taken) in [("", 8080), ("192.0.2.1", 8081)] {
            let failure = failure("", &[port(address, taken, Protocol::Tcp)]);
            let cause = cause(&failure);
            let text = match &cause {
                Cause::Port(text) => text.as_str(),
                _ => "",
            };
            assert!(text.contains(&taken.to_string()), "{cause:?}: {failure}");
        }
        let failure = failure("--mtu,99999999", &[]);
        assert!(failure.to_string().contains("MTU"), "{failure}");
        let plain = std::fs::File::open("/dev/null").unwrap().into();
        let mut process = launch(program, &plan("", &[], features).arguments, &plain);
        let failure = process.ready(PATIENCE).unwrap_err();
        assert_eq!(cause(&failure), Cause::Namespace, "{failure}");
        // Not there any more.
        let gone = Program {
            path: ground.scratch.join("pasta"),
            ..program.clone()
        };
        let failure = launch(&gone, &[], &namespace).ready(PATIENCE).unwrap_err();
        let said = failure.to_string();
        assert!(said.contains("No such file or directory"), "{said}");
    })
}

fn dies_with_its_owner() -> Result<(), String> {
    with_each(|_, program, features| {
        for lifetime in [Lifetime::Owner, Lifetime::Unbound] {
            let namespace = empty_namespace();
            let arguments = plan("", &[], features).arguments;
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let Side::Parent { pid: owner, .. } = fork().unwrap() else {
                let around = Surroundings {
                    network_namespace: namespace.as_fd(),
                    environment: &[],
                    lifetime,
                };
                let mut process = start(program, &arguments, &around).unwrap();
                process.ready(PATIENCE).unwrap();
                let pid = process.pid().as_raw_nonzero().get();
                rustix::io::write(&writer, &pid.to_ne_bytes()).unwrap();
                std::thread::sleep(PATIENCE);
                exit_now(0)
            };
            let mut pid = [0; 4];
            assert_eq!(rustix::io::read(&reader, &mut pid), Ok(4));
            let pid = rustix::process::Pid::from_raw(i32::from_ne_bytes(pid)).unwrap();
            let flags = rustix::process::PidfdFlags::empty();
            let pidfd = rustix::process::pidfd_open(pid, flags).unwrap();
            kill(owner);
            wait(owner);
            let ends = |patience| {
                selkie_sys::process_identity::wait_for_exit(&pidfd, Some(patience)).unwrap()
            };
            if lifetime == Lifetime::Owner {
                assert!(ends(PATIENCE), "it outlives its owner");
            } else {
                assert!(!ends(Duration::from_millis(300)), "it died with its owner");
                kill(pid);
                assert!(ends(PATIENCE));
            }
        }
    })
}

/// What a program gets: the namespace, the pipe, the memory file. What else it has it has opened.
fn inherits_nothing() -> Result<(), String> {
    with_each(|ground, _, _| {
        let secret = std::fs::File::create(ground.scratch.join("secret")).unwrap();
        let flags = rustix::io::FdFlags::empty();
        rustix::io::fcntl_setfd(&secret, flags).unwrap();
        let script = ground.scratch.join("script");
        let text = "#!/bin/sh\nls -l /proc/$$/fd >&2\nps -o sid= -p $$ >&2\nenv >&2\necho ready\n\
                    exec sleep 100\n";
        std::fs::write(&script, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let program = Program::at(&script).unwrap();
        let namespace = empty_namespace();
        let around = Surroundings {
            network_namespace: namespace.as_fd(),
            environment: &[c"MARK=1".to_owned()],
            lifetime: Lifetime::Owner,
        };
        let mut process = start(&program, &[], &around).unwrap();
        process.ready(PATIENCE).unwrap();
        let words = process.words();
        assert!(words.contains("0 -> net:["), "{words}");
        assert!(words.contains("1 -> pipe:"), "{words}");
        assert!(words.contains("2 -> /memfd:words"), "{words}");
        assert!(!words.contains("secret"), "{words}");
        assert!(words.contains("MARK=1"), "{words}");
        assert!(!words.contains("HOME="), "{words}");
        drop(secret);
    })
}

fn another_kind() -> Result<(), String> {
    let Some(program) = Program::at("/bin/false".as_ref()) else {
        return Err("no /bin/false".into());
    };
    let error = Features::probe(&program).unwrap_err();
    assert!(error.to_string().contains("/bin/false"), "{error}");
    Ok(())
}
