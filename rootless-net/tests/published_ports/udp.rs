//! Datagrams.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use selkie_net::forwarder::Limits;
use selkie_net::port_mapping::Protocol;

use crate::Test;
use crate::host::{Host, mapping};
use crate::lab::*;

pub const TESTS: &[Test] = &[
    ("udp_clients_keep_their_address", clients_keep_their_address),
    ("udp_clients_on_the_host_are_served", clients_on_the_host),
    (
        "udp_answers_come_from_where_they_were_asked",
        answers_from_the_right_address,
    ),
    ("udp_datagrams_of_every_size", every_size),
    ("udp_a_closed_port_may_open", a_closed_port_may_open),
    ("udp_flows_are_bounded_and_end", flows_are_bounded_and_end),
    ("udp_one_client_speaks_to_two_ports", one_client_two_ports),
];

const PORT: u16 = 5300;

/// Answers every datagram with its sender's address and its length, and large ones with themselves.
fn server(lab: &Lab, address: impl Into<IpAddr>, port: u16) {
    let address = at(address, port);
    let socket = lab.container.run(|| UdpSocket::bind(address)).unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            let (length, sender) = socket.recv_from(&mut buffer).unwrap();
            let answer = format!("{sender} {length}");
            let large = length > answer.len();
            let answer = if large {
                &buffer[..length]
            } else {
                answer.as_bytes()
            };
            // Nobody may be there any more.
            let _ = socket.send_to(answer, sender);
        }
    });
}

/// A socket that takes datagrams from `to` only.
fn client(machine: &Machine, to: SocketAddr) -> UdpSocket {
    machine.run(|| {
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind(at(any, 0)).unwrap();
        socket.connect(to).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    })
}

fn ask(socket: &UdpSocket, question: &[u8]) -> String {
    socket.send(question).unwrap();
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn published(lab: &Lab) -> Host {
    let host = Host::new(lab);
    let ports = [mapping(Protocol::Udp, PORT, 53)];
    host.publish("c", &ports, target()).unwrap();
    host
}

fn clients_keep_their_address() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, 53);
    server(&lab, CONTAINER_V6, 53);
    let _host = published(&lab);
    for (to, own) in [
        (at(HOST_V4, PORT), IpAddr::V4(CLIENT_V4)),
        (at(HOST_V6, PORT), IpAddr::V6(CLIENT_V6)),
    ] {
        let socket = client(&lab.client, to);
        let port = socket.local_addr().unwrap().port();
        for _ in 0..3 {
            assert_eq!(ask(&socket, b"hello"), format!("{} 5", at(own, port)));
        }
    }
}

fn clients_on_the_host() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, 53);
    server(&lab, CONTAINER_V6, 53);
    let _host = published(&lab);
    for (to, seen) in [
        (at(Ipv4Addr::LOCALHOST, PORT), IpAddr::V4(GATEWAY_V4)),
        (at(Ipv6Addr::LOCALHOST, PORT), IpAddr::V6(GATEWAY_V6)),
        (at(HOST_V4, PORT), IpAddr::V4(HOST_V4)),
    ] {
        let answer = ask(&client(&lab.host, to), b"hello");
        let sender: SocketAddr = answer.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(sender.ip(), seen);
    }
}

fn answers_from_the_right_address() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, 53);
    server(&lab, CONTAINER_V6, 53);
    let _host = published(&lab);
    // A connected socket hears nobody else.
    for to in [
        at(HOST_V4, PORT),
        at(HOST_V4_SECOND, PORT),
        at(HOST_V6, PORT),
        at(HOST_V6_SECOND, PORT),
    ] {
        assert!(ask(&client(&lab.client, to), b"hello").ends_with(" 5"));
    }
    // One socket that speaks to both hears each.
    let socket = lab
        .client
        .run(|| UdpSocket::bind(at(CLIENT_V4, 0)))
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    for to in [at(HOST_V4, PORT), at(HOST_V4_SECOND, PORT)] {
        socket.send_to(b"hello", to).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 100]).unwrap().1, to);
    }
}

fn every_size() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, 53);
    server(&lab, CONTAINER_V6, 53);
    let _host = published(&lab);
    let socket = client(&lab.client, at(HOST_V4, PORT));
    assert!(ask(&socket, b"").ends_with(" 0"));
    for (to, largest) in [(at(HOST_V4, PORT), 65507), (at(HOST_V6, PORT), 65527)] {
        let socket = client(&lab.client, to);
        for length in [100, 1472, 1473, 9000, 40000, largest] {
            let said: Vec<u8> = (0..length).map(|place: usize| (place / 7) as u8).collect();
            socket.send(&said).unwrap();
            let mut heard = vec![0; 65536];
            let count = socket
                .recv(&mut heard)
                .unwrap_or_else(|error| panic!("{length} bytes to {to}: {error}"));
            assert!(heard[..count] == said, "{length} became {count}");
        }
    }
}

fn a_closed_port_may_open() {
    let lab = Lab::new();
    let _host = published(&lab);
    let socket = client(&lab.client, at(HOST_V4, PORT));
    for _ in 0..3 {
        socket.send(b"anybody?").unwrap();
    }
    socket.set_nonblocking(true).unwrap();
    assert_eq!(
        socket.recv(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    server(&lab, CONTAINER_V4, 53);
    socket.set_nonblocking(false).unwrap();
    // The earlier ones may have come late enough to be answered.
    let mut answer = ask(&socket, b"hello");
    while answer.ends_with(" 8") {
        answer = ask(&socket, b"hello");
    }
    assert!(answer.ends_with(" 5"));
}

fn sockets_in(machine: &Machine) -> usize {
    machine.run(|| {
        let table = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
        let of_flows = |line: &&str| line.contains(&format!(":{:04X} ", 53));
        table.lines().skip(1).filter(of_flows).count()
    })
}

fn flows_are_bounded_and_end() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, 53);
    let limits = Limits {
        flows_per_port: 4,
        udp_idle: Duration::from_millis(500),
        udp_idle_answered: Duration::from_millis(500),
    };
    let host = Host::with_limits(&lab, limits);
    let ports = [mapping(Protocol::Udp, PORT, 53)];
    host.publish("c", &ports, target()).unwrap();
    let clients: Vec<UdpSocket> = (0..20)
        .map(|_| client(&lab.client, at(HOST_V4, PORT)))
        .collect();
    for _ in 0..2 {
        for socket in &clients {
            assert!(ask(socket, b"hello").ends_with(" 5"));
            // One more may be about to be closed.
            assert!(sockets_in(&lab.uplink) <= 5);
        }
    }
    while sockets_in(&lab.uplink) != 0 {
        thread::sleep(Duration::from_millis(20));
    }
    assert!(ask(&clients[0], b"hello").ends_with(" 5"));
}

fn one_client_two_ports() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, 53);
    server(&lab, CONTAINER_V4, 54);
    let host = Host::new(&lab);
    let ports = [
        mapping(Protocol::Udp, 5300, 53),
        mapping(Protocol::Udp, 5301, 54),
    ];
    host.publish("c", &ports, target()).unwrap();
    let socket = lab
        .client
        .run(|| UdpSocket::bind(at(CLIENT_V4, 0)))
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    for to in [at(HOST_V4, 5300), at(HOST_V4, 5301), at(HOST_V4, 5300)] {
        socket.send_to(b"hello", to).unwrap();
        let mut heard = [0; 100];
        let (length, from) = socket.recv_from(&mut heard).unwrap();
        assert_eq!(from, to);
        let seen = std::str::from_utf8(&heard[..length]).unwrap();
        assert!(seen.starts_with("192.0.2.7:"), "{seen}");
    }
}
