//! Connections.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use selkie_net::forwarder::Target;
use selkie_net::port_mapping::Protocol;

use crate::Test;
use crate::host::{Host, mapping};
use crate::lab::*;

pub const TESTS: &[Test] = &[
    ("tcp_clients_keep_their_address", clients_keep_their_address),
    ("tcp_clients_on_the_host_are_served", clients_on_the_host),
    ("tcp_reaches_the_other_family", the_other_family),
    ("tcp_finds_a_server_of_one_family", a_server_of_one_family),
    ("tcp_privileged_client_ports", privileged_client_ports),
    ("tcp_half_close_is_passed_on", half_close),
    ("tcp_resets_are_passed_on", resets),
    ("tcp_last_words_before_a_reset_arrive", last_words),
    ("tcp_refusals_are_resets", refusals),
    ("tcp_200_connections_at_once", many_at_once),
    ("tcp_100_megabytes_both_ways", a_lot_both_ways),
    (
        "tcp_a_client_that_does_not_read_stops_nobody",
        a_stalled_client,
    ),
];

const PORT: u16 = 8080;

/// Listens in the container.
pub fn listen(lab: &Lab, address: impl Into<IpAddr>) -> TcpListener {
    let address = at(address, 80);
    lab.container.run(|| TcpListener::bind(address)).unwrap()
}

/// A server in the container that serves each connection in a thread.
pub fn server(
    lab: &Lab,
    address: impl Into<IpAddr>,
    serve: impl Fn(TcpStream) -> io::Result<()> + Send + Clone + 'static,
) {
    let listener = listen(lab, address);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), serve.clone());
            // Clients of some tests go away early.
            thread::spawn(move || drop(serve(stream)));
        }
    });
}

/// Tells every client which address it has, and ends.
fn tell_peer(mut stream: TcpStream) -> io::Result<()> {
    write!(stream, "{}", stream.peer_addr()?)
}

pub fn echo(stream: TcpStream) -> io::Result<()> {
    io::copy(&mut &stream, &mut &stream)?;
    stream.shutdown(Shutdown::Write)
}

/// Connects from `machine`, with patience for a hanging test only.
pub fn connect(machine: &Machine, to: SocketAddr) -> TcpStream {
    let stream = machine.run(|| TcpStream::connect(to)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

fn peer_seen(machine: &Machine, to: SocketAddr) -> SocketAddr {
    let mut text = String::new();
    connect(machine, to).read_to_string(&mut text).unwrap();
    text.parse().unwrap()
}

fn clients_keep_their_address() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, tell_peer);
    server(&lab, CONTAINER_V6, tell_peer);
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    for (address, to) in [
        (IpAddr::V4(CLIENT_V4), at(HOST_V4, PORT)),
        (IpAddr::V4(CLIENT_V4), at(HOST_V4_SECOND, PORT)),
        (IpAddr::V6(CLIENT_V6), at(HOST_V6, PORT)),
    ] {
        let mut stream = connect(&lab.client, to);
        let own = stream.local_addr().unwrap();
        assert_eq!(own.ip(), address);
        let mut seen = String::new();
        stream.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, own.to_string());
    }
    // The host's own addresses are as good, whether the uplink namespace has them as well or not.
    assert_eq!(peer_seen(&lab.host, at(HOST_V4, PORT)).ip(), HOST_V4);
    lab.copy_addresses_to_uplink();
    assert_eq!(peer_seen(&lab.host, at(HOST_V4, PORT)).ip(), HOST_V4);
    assert_eq!(peer_seen(&lab.host, at(HOST_V6, PORT)).ip(), HOST_V6);
}

fn clients_on_the_host() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, tell_peer);
    server(&lab, CONTAINER_V6, tell_peer);
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    let seen = peer_seen(&lab.host, at(Ipv4Addr::LOCALHOST, PORT));
    assert_eq!(seen.ip(), GATEWAY_V4);
    let seen = peer_seen(&lab.host, at(Ipv6Addr::LOCALHOST, PORT));
    assert_eq!(seen.ip(), GATEWAY_V6);
}

fn the_other_family() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, tell_peer);
    server(&lab, CONTAINER_V6, tell_peer);
    let host = Host::new(&lab);
    let only_v4 = Target {
        v6: None,
        ..target()
    };
    let only_v6 = Target {
        v4: None,
        ..target()
    };
    host.publish("four", &[mapping(Protocol::Tcp, 8084, 80)], only_v4)
        .unwrap();
    host.publish("six", &[mapping(Protocol::Tcp, 8086, 80)], only_v6)
        .unwrap();
    assert_eq!(peer_seen(&lab.client, at(HOST_V6, 8084)).ip(), GATEWAY_V4);
    assert_eq!(peer_seen(&lab.client, at(HOST_V4, 8086)).ip(), GATEWAY_V6);
}

/// The container has both families and its server one, as many have that bind 0.0.0.0.
fn a_server_of_one_family() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, tell_peer);
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    assert_eq!(peer_seen(&lab.client, at(HOST_V4, PORT)).ip(), CLIENT_V4);
    assert_eq!(peer_seen(&lab.client, at(HOST_V6, PORT)).ip(), GATEWAY_V4);
}

fn privileged_client_ports() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, tell_peer);
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    let mut stream: TcpStream = lab.client.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.bind(&at(CLIENT_V4, 1001).into()).unwrap();
        socket.connect(&at(HOST_V4, PORT).into()).unwrap();
        socket.into()
    });
    let mut seen = String::new();
    stream.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, at(CLIENT_V4, 1001).to_string());
}

fn half_close() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        write!(stream, "{} bytes", all.len())
    });
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    let mut stream = connect(&lab.client, at(HOST_V4, PORT));
    stream.write_all(&[7; 300_000]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "300000 bytes");
}

fn reset_now(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

fn resets() {
    let lab = Lab::new();
    let listener = listen(&lab, CONTAINER_V4);
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    let pair = || {
        let client = connect(&lab.client, at(HOST_V4, PORT));
        let (server, _) = listener.accept().unwrap();
        (client, server)
    };
    let is_reset = |mut stream: TcpStream| {
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    };
    // Often, for it depends on how far the forwarder has come with the connection.
    for _ in 0..200 {
        let (client, server) = pair();
        reset_now(client);
        is_reset(server);
        let (client, server) = pair();
        reset_now(server);
        is_reset(client);
    }
    // Also where nobody reads any more from the side that is reset.
    let (mut client, server) = pair();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    reset_now(server);
    while client.write(&[0]).is_ok() {
        thread::yield_now();
    }
}

fn last_words() {
    let lab = Lab::new();
    let words = vec![b'.'; 100_000];
    let answer = words.clone();
    server(&lab, CONTAINER_V4, move |mut stream| {
        // Refuses after the first byte, answers, and closes with the rest unread: a reset.
        stream.read_exact(&mut [0])?;
        stream.write_all(&answer)
    });
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    let mut stream = connect(&lab.client, at(HOST_V4, PORT));
    stream.write_all(&[7; 50_000]).unwrap();
    let mut heard = vec![0; words.len()];
    stream.read_exact(&mut heard).unwrap();
    assert!(heard == words);
    let end = stream.read(&mut [0]);
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

fn refusals() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    for to in [at(HOST_V4, PORT), at(HOST_V6, PORT)] {
        let end = connect(&lab.client, to).read(&mut [0]);
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

fn many_at_once() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, echo);
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    let streams: Vec<TcpStream> = lab.client.run(|| {
        (0..200)
            .map(|_| TcpStream::connect(at(HOST_V4, PORT)).unwrap())
            .collect()
    });
    thread::scope(|scope| {
        for (number, mut stream) in streams.into_iter().enumerate() {
            scope.spawn(move || {
                let said = vec![number as u8; 64 * 1024];
                let mut speaker = stream.try_clone().unwrap();
                let copy = said.clone();
                let speaking = thread::spawn(move || {
                    speaker.write_all(&copy).unwrap();
                    speaker.shutdown(Shutdown::Write).unwrap();
                });
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).unwrap();
                assert!(heard == said);
                speaking.join().unwrap();
            });
        }
    });
}

const CHUNK: usize = 1 << 20;

/// Writes `chunks` different MiB and gives their hash.
fn speak(mut stream: impl Write, seed: u64, chunks: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut state = seed;
    let mut chunk: Vec<u8> = Vec::with_capacity(CHUNK);
    while chunk.len() < CHUNK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.extend(state.to_ne_bytes());
    }
    for number in 0..chunks {
        chunk[..8].copy_from_slice(&number.to_ne_bytes());
        stream.write_all(&chunk).unwrap();
        hasher.write(&chunk);
    }
    hasher.finish()
}

fn hear(mut stream: impl Read) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    loop {
        // Whole chunks, since the hash depends on where the pieces end.
        let mut filled = 0;
        while filled < CHUNK {
            match stream.read(&mut chunk[filled..]).unwrap() {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return (total, hasher.finish());
        }
        hasher.write(&chunk[..filled]);
        total += filled;
    }
}

fn a_lot_both_ways() {
    let lab = Lab::new();
    let listener = listen(&lab, CONTAINER_V4);
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    let client = connect(&lab.client, at(HOST_V4, PORT));
    let (server, _) = listener.accept().unwrap();
    thread::scope(|scope| {
        let both = [(&client, 1), (&server, 2)];
        let [up, down] = both.map(|(stream, seed)| {
            let said = scope.spawn(move || {
                let hash = speak(stream, seed, 100);
                stream.shutdown(Shutdown::Write).unwrap();
                hash
            });
            (said, scope.spawn(move || hear(stream)))
        });
        let [up, down] =
            [up, down].map(|(said, heard)| (said.join().unwrap(), heard.join().unwrap()));
        assert_eq!(up.1, (100 * CHUNK, down.0));
        assert_eq!(down.1, (100 * CHUNK, up.0));
    });
}

fn a_stalled_client() {
    let lab = Lab::new();
    server(&lab, CONTAINER_V4, |stream| {
        speak(&stream, 3, 30);
        stream.shutdown(Shutdown::Write)
    });
    let host = Host::new(&lab);
    let ports = [mapping(Protocol::Tcp, PORT, 80)];
    host.publish("c", &ports, target()).unwrap();
    let stalled: Vec<TcpStream> = (0..50)
        .map(|_| connect(&lab.client, at(HOST_V4, PORT)))
        .collect();
    let expected = (30 * CHUNK, speak(io::sink(), 3, 30));
    assert_eq!(hear(connect(&lab.client, at(HOST_V4, PORT))), expected);
    for stream in stalled {
        assert_eq!(hear(stream), expected);
    }
}
