//! Publishing, taking back, and being refused.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use selkie_net::forwarder::{Holder, PublishError, Target};
use selkie_net::port_mapping::{PortMapping, Protocol};

use crate::Test;
use crate::host::{Host, mapping};
use crate::lab::*;
use crate::tcp::{connect, echo, listen, server};

pub const TESTS: &[Test] = &[
    ("ranges_lead_to_ranges", ranges),
    ("a_host_address_is_the_only_one", a_host_address),
    ("conflicts_name_the_holder", conflicts),
    ("refused_is_refused_as_a_whole", all_or_nothing),
    ("privileged_ports_name_the_sysctl", privileged),
    ("strange_addresses_and_ranges_are_refused", strange),
    (
        "a_mapping_taken_back_keeps_its_connections",
        mapping_taken_back,
    ),
    (
        "a_container_that_is_gone_loses_its_connections",
        container_gone,
    ),
    ("a_container_that_moves_is_followed", container_moves),
];

fn tcp(port: u16) -> PortMapping {
    mapping(Protocol::Tcp, port, 80)
}

fn refused(machine: &Machine, port: u16) -> bool {
    let to = at(HOST_V4, port);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match machine.run(|| TcpStream::connect(to)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return true,
            // Whatever was under way when it was closed may end otherwise.
            other => eprintln!("connecting to {to}: {other:?}"),
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn answers(stream: &mut TcpStream) -> bool {
    let mut heard = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut heard).is_ok() && &heard == b"ping"
}

fn ranges() {
    let lab = Lab::new();
    for port in 7000..7020 {
        let listener = lab
            .container
            .run(|| TcpListener::bind(at(CONTAINER_V4, port)))
            .unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                write!(stream.unwrap(), "{port}").unwrap();
            }
        });
    }
    let host = Host::new(&lab);
    let range = PortMapping {
        count: 20,
        host_port: 9000,
        container_port: 7000,
        ..tcp(0)
    };
    host.publish("c", std::slice::from_ref(&range), target())
        .unwrap();
    for offset in 0..20 {
        let mut heard = String::new();
        connect(&lab.client, at(HOST_V4, 9000 + offset))
            .read_to_string(&mut heard)
            .unwrap();
        assert_eq!(heard, (7000 + offset).to_string());
    }
    assert!(refused(&lab.client, 8999) && refused(&lab.client, 9020));
    assert!(host.unpublish_mapping("c", &range));
    assert!(!host.unpublish_mapping("c", &range));
    assert!((9000..9020).all(|port| refused(&lab.client, port)));
}

fn a_host_address() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, echo);
    let host = Host::new(&lab);
    let second = PortMapping {
        host_ip: Some(HOST_V4_SECOND.into()),
        ..tcp(8080)
    };
    host.publish("c", &[second], target()).unwrap();
    assert!(answers(&mut connect(&lab.client, at(HOST_V4_SECOND, 8080))));
    assert!(refused(&lab.client, 8080));
    // Another container may have the same port on another address.
    let first = PortMapping {
        host_ip: Some(HOST_V4.into()),
        ..tcp(8080)
    };
    host.publish("d", &[first], target()).unwrap();
    assert!(answers(&mut connect(&lab.client, at(HOST_V4, 8080))));
}

fn conflicts() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let listener = lab
        .host
        .run(|| TcpListener::bind(at(Ipv4Addr::LOCALHOST, 8080)))
        .unwrap();
    let mut error = host.publish("c", &[tcp(8080)], target()).unwrap_err();
    // The forwarder's thread without capabilities may not see it; this one may.
    error.look_for_process();
    let me = std::process::id().cast_signed();
    match &error {
        PublishError::InUse {
            port,
            holder: Some(Holder::Socket {
                own: true, process, ..
            }),
        } => {
            assert_eq!(port.to_string(), "0.0.0.0:8080/tcp");
            assert!(
                matches!(process, Some((pid, _)) if *pid == me),
                "{process:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    let text = error.to_string();
    let expected =
        format!("cannot publish port 0.0.0.0:8080/tcp: address already in use by process {me} (");
    assert!(text.starts_with(&expected), "{text}");
    drop(listener);
    let _datagrams = lab.host.run(|| UdpSocket::bind(at(HOST_V6, 8080))).unwrap();
    host.publish("c", &[tcp(8080)], target()).unwrap();
    let error = host
        .publish("d", &[mapping(Protocol::Udp, 8080, 80)], target())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("[::]:8080/udp: address already in use by "),
        "{error}"
    );
    let error = host.publish("d", &[tcp(8080)], target()).unwrap_err();
    assert!(
        error.to_string().contains("in use by container c: "),
        "{error}"
    );
}

fn all_or_nothing() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let _listener = lab
        .host
        .run(|| TcpListener::bind(at(HOST_V4, 8085)))
        .unwrap();
    let range = PortMapping {
        count: 10,
        ..tcp(8080)
    };
    let error = host
        .publish("c", &[tcp(7000), range], target())
        .unwrap_err();
    assert!(matches!(error, PublishError::InUse { port, .. } if port.port == 8085));
    for port in [7000, 8080, 8084, 8086] {
        assert!(refused(&lab.client, port));
        lab.host
            .run(|| TcpListener::bind(at(HOST_V4, port)))
            .unwrap();
    }
}

fn privileged() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let error = host.publish("c", &[tcp(443)], target()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("0.0.0.0:443/tcp: permission denied"),
        "{text}"
    );
    assert!(
        text.contains("net.ipv4.ip_unprivileged_port_start=443"),
        "{text}"
    );
    lab.host
        .run(|| std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "443"))
        .unwrap();
    host.publish("c", &[tcp(443)], target()).unwrap();
    let error = host.publish("c", &[tcp(442)], target()).unwrap_err();
    assert!(matches!(
        error,
        PublishError::Privileged {
            first_unprivileged: Some(443),
            ..
        }
    ));
}

fn strange() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let elsewhere: IpAddr = "198.51.100.1".parse().unwrap();
    let mapping = PortMapping {
        host_ip: Some(elsewhere),
        ..tcp(8080)
    };
    let error = host.publish("c", &[mapping], target()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("198.51.100.1 is no address of this host"),
        "{error}"
    );
    for mapping in [
        PortMapping {
            count: 0,
            ..tcp(8080)
        },
        PortMapping {
            count: 2,
            ..tcp(65535)
        },
        PortMapping {
            container_port: 65000,
            count: 1000,
            ..tcp(8080)
        },
        tcp(0),
    ] {
        let error = host.publish("c", &[mapping], target()).unwrap_err();
        assert!(matches!(error, PublishError::BadRange { .. }), "{error}");
    }
}

fn mapping_taken_back() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, echo);
    let host = Host::new(&lab);
    host.publish("c", &[tcp(8080), tcp(8081)], target())
        .unwrap();
    let mut stream = connect(&lab.client, at(HOST_V4, 8080));
    assert!(answers(&mut stream));
    assert!(host.unpublish_mapping("c", &tcp(8080)));
    assert!(refused(&lab.client, 8080));
    assert!(answers(&mut stream));
    assert!(answers(&mut connect(&lab.client, at(HOST_V4, 8081))));
    // The port is free at once, for anybody.
    host.publish("d", &[tcp(8080)], target()).unwrap();
    assert!(answers(&mut connect(&lab.client, at(HOST_V4, 8080))));
}

fn container_gone() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, echo);
    let host = Host::new(&lab);
    host.publish("c", &[tcp(8080)], target()).unwrap();
    host.publish("d", &[tcp(8081)], target()).unwrap();
    let mut stream = connect(&lab.client, at(HOST_V4, 8080));
    let mut other = connect(&lab.client, at(HOST_V4, 8081));
    assert!(answers(&mut stream) && answers(&mut other));
    host.unpublish("c");
    assert!(refused(&lab.client, 8080));
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(answers(&mut other));
    host.publish("e", &[tcp(8080)], target()).unwrap();
}

fn container_moves() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, echo);
    server(&lab, CONTAINER_V6, echo);
    let second = listen(&lab, CONTAINER_V4_SECOND);
    let host = Host::new(&lab);
    host.publish("c", &[tcp(8080)], target()).unwrap();
    let mut four = connect(&lab.client, at(HOST_V4, 8080));
    let mut six = connect(&lab.client, at(HOST_V6, 8080));
    assert!(answers(&mut four) && answers(&mut six));
    host.retarget(
        "c",
        Target {
            v4: Some(CONTAINER_V4_SECOND),
            ..target()
        },
    );
    assert_eq!(
        four.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert!(answers(&mut six));
    let _client = connect(&lab.client, at(HOST_V4, 8080));
    assert_eq!(second.accept().unwrap().1.ip(), CLIENT_V4);
}
