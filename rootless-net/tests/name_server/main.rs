//! The name server on real sockets of the loopback, with servers of the test for the outside.

mod fake_upstream;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fake_upstream::{FakeUpstream, Manner};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RecordType};
use selkie_net::name_server::{HostResolvers, MemberView, NameServer, NetworkView, Views};
use selkie_net::network::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// After this long something hangs. Nothing here is measured.
const HANGS: Duration = Duration::from_secs(60);

/// A name server for one network, whose members have addresses of the loopback.
struct Site {
    views: Views,
    resolv_conf: PathBuf,
    udp: SocketAddr,
    tcp: SocketAddr,
    /// Where the machine has IPv6.
    udp6: Option<SocketAddr>,
    serving: JoinSet<std::io::Error>,
    _temp: tempfile::TempDir,
}

impl Site {
    /// Asks the servers of a `resolv.conf` with this content on this port.
    async fn start(resolv_conf: &str, port: u16) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("resolv.conf");
        std::fs::write(&path, resolv_conf).unwrap();
        let views = Views::new();
        views.set_network(NetworkView {
            network: "front".into(),
            kind: Kind::Bridge,
            internal: false,
            dns_enabled: true,
            servers: Vec::new(),
            subnets: vec!["127.0.1.0/24".parse().unwrap()],
        });
        let join = |container: &str, names: &[&str], addresses: &[&str]| {
            let member = MemberView {
                container: container.into(),
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
                servers: Vec::new(),
            };
            views.set_member("front", member).unwrap();
        };
        join("c1", &["web"], &["127.0.1.1", "::1"]);
        join("c2", &["db"], &["127.0.1.2"]);
        let server = NameServer::new(views.clone(), HostResolvers::new(&path).on_port(port));
        let udp = UdpSocket::bind("127.0.1.254:0").await.unwrap();
        let udp6 = UdpSocket::bind("[::1]:0").await.ok();
        let tcp = TcpListener::bind("127.0.1.254:0").await.unwrap();
        let mut site = Self {
            views,
            resolv_conf: path,
            udp: udp.local_addr().unwrap(),
            udp6: udp6.as_ref().map(|udp6| udp6.local_addr().unwrap()),
            tcp: tcp.local_addr().unwrap(),
            serving: JoinSet::new(),
            _temp: temp,
        };
        let network = || "front".to_owned();
        site.serving.spawn(server.clone().serve_udp(udp, network()));
        if let Some(udp6) = udp6 {
            let serve = server.clone().serve_udp(udp6, network());
            site.serving.spawn(serve);
        }
        site.serving.spawn(server.serve_tcp(tcp, network()));
        site
    }

    /// By UDP from 127.0.1.`host`.
    async fn ask_from(&self, host: u8, query: &[u8]) -> Vec<u8> {
        let source = Ipv4Addr::new(127, 0, 1, host);
        exchange(source.into(), self.udp, query).await
    }

    async fn ask(&self, name: &str) -> Message {
        decode(&self.ask_from(1, &query(name)).await)
    }

    async fn connect(&self, host: u8) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let source = Ipv4Addr::new(127, 0, 1, host);
        socket.bind((source, 0).into()).unwrap();
        socket.connect(self.tcp).await.unwrap()
    }
}

async fn exchange(source: IpAddr, server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((source, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(query).await.unwrap();
    let mut room = vec![0; 65535];
    let receive = tokio::time::timeout(HANGS, socket.recv(&mut room));
    let length = receive.await.expect("an answer").unwrap();
    room.truncate(length);
    assert_eq!(room[..2], query[..2], "the ID of the query");
    room
}

async fn send_framed(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap();
    stream.write_u16(length).await.unwrap();
    stream.write_all(message).await.unwrap();
}

async fn receive_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let receive = async {
        let length = stream.read_u16().await.ok()?;
        let mut message = vec![0; usize::from(length)];
        stream.read_exact(&mut message).await.ok()?;
        Some(message)
    };
    tokio::time::timeout(HANGS, receive)
        .await
        .expect("an answer or the end")
}

fn build(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(format!("{name}.")).unwrap();
    message.add_query(Query::query(name, kind));
    message
}

fn query(name: &str) -> Vec<u8> {
    build(name, RecordType::A).to_vec().unwrap()
}

fn decode(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).unwrap()
}

fn addresses(message: &Message) -> Vec<String> {
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    let data = message.answers.iter().map(|record| record.data.ip_addr());
    data.map(|address| address.expect("an address").to_string())
        .collect()
}

#[tokio::test]
async fn names_by_udp_and_tcp_over_both_families() {
    let site = Site::start("", 53).await;
    assert_eq!(addresses(&site.ask("web").await), ["127.0.1.1"]);
    match site.udp6 {
        Some(server) => {
            let aaaa = build("WEB.front", RecordType::AAAA).to_vec().unwrap();
            let answer = exchange("::1".parse().unwrap(), server, &aaaa).await;
            assert_eq!(addresses(&decode(&answer)), ["::1"]);
        }
        None => eprintln!("SKIPPED over IPv6: this machine has no ::1"),
    }

    // Several on one connection, the second and third sent before the first is answered.
    let mut stream = site.connect(2).await;
    for name in ["db", "web", "unknown.dns.podman"] {
        send_framed(&mut stream, &query(name)).await;
    }
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(decode(&receive_framed(&mut stream).await.unwrap()));
    }
    assert_eq!(addresses(&answers[0]), ["127.0.1.2"]);
    assert_eq!(addresses(&answers[1]), ["127.0.1.1"]);
    assert_eq!(answers[2].metadata.response_code, ResponseCode::NXDomain);

    // As soon as it is told.
    site.views.remove_container("c1");
    assert_eq!(
        site.ask("web.dns.podman").await.metadata.response_code,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn what_is_forwarded_passes_byte_for_byte() {
    let upstream = FakeUpstream::start(1, 0, Manner::Answer).await;
    let site = Site::start("nameserver 127.0.0.1\n", upstream.port()).await;
    let mut ids = std::collections::HashSet::new();
    let mut ports = std::collections::HashSet::new();
    for _ in 0..20 {
        let mut message = build("Host.Example.COM", RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(4000).set_dnssec_ok(true);
        let cookie = EdnsOption::Unknown(10, b"12345678".to_vec());
        edns.options_mut().insert(cookie);
        message.set_edns(edns);
        message.metadata.checking_disabled = true;
        let query = message.to_vec().unwrap();
        let answer = site.ask_from(1, &query).await;
        let seen = upstream.seen();
        let seen = seen.last().unwrap();
        assert_eq!(seen.message[2..], query[2..]);
        let expected = fake_upstream::answer(&seen.message, &[Ipv4Addr::LOCALHOST]);
        assert_eq!(answer[2..], expected[2..]);
        let option = decode(&answer).edns.unwrap();
        assert!(option.option(EdnsCode::Cookie).is_some());
        ids.insert(seen.message[..2].to_vec());
        ports.insert(seen.source.port());
    }
    // 20 random numbers out of so many: that most differ is certain enough.
    assert!(ids.len() > 15 && ports.len() > 15, "{ids:?} {ports:?}");
}

#[tokio::test]
async fn a_server_that_fails_is_followed_by_the_next() {
    let second = FakeUpstream::start(2, 0, Manner::Answer).await;
    let port = second.port();
    // 127.0.0.3 is nobody.
    let conf = "nameserver 127.0.0.3\nnameserver 127.0.0.1\nnameserver 127.0.0.2\n";
    let first = FakeUpstream::start(1, port, Manner::Silent).await;
    let site = Site::start(conf, port).await;
    for manner in [
        Manner::Code(ResponseCode::ServFail),
        Manner::Code(ResponseCode::Refused),
        Manner::Silent,
    ] {
        first.behave(manner);
        let answer = site.ask("example.com").await;
        assert_eq!(addresses(&answer), ["127.0.0.2"], "{manner:?}");
    }
    // That there is no such name is an answer.
    first.behave(Manner::Code(ResponseCode::NXDomain));
    let before = second.seen().len();
    let answer = site.ask("example.com").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(second.seen().len(), before);

    second.behave(Manner::Code(ResponseCode::ServFail));
    first.behave(Manner::Code(ResponseCode::Refused));
    let answer = site.ask("example.com").await;
    let code = answer.metadata.response_code;
    assert!(matches!(
        code,
        ResponseCode::ServFail | ResponseCode::Refused
    ));
}

#[tokio::test]
async fn a_dead_server_is_asked_last_until_the_file_changes() {
    let alive = FakeUpstream::start(2, 0, Manner::Answer).await;
    let dead = FakeUpstream::start(1, alive.port(), Manner::Silent).await;
    let site = Site::start("nameserver 127.0.0.1\nnameserver 127.0.0.2\n", alive.port()).await;
    for _ in 0..2 {
        assert_eq!(addresses(&site.ask("example.com").await), ["127.0.0.2"]);
    }
    let before = dead.seen().len();
    assert!(before >= 2);
    for _ in 0..5 {
        assert_eq!(addresses(&site.ask("example.com").await), ["127.0.0.2"]);
    }
    assert_eq!(dead.seen().len(), before);
    dead.behave(Manner::Answer);
    let conf = "search x\nnameserver 127.0.0.1\nnameserver 127.0.0.2\n";
    std::fs::write(&site.resolv_conf, conf).unwrap();
    assert_eq!(addresses(&site.ask("example.com").await), ["127.0.0.1"]);
}

#[tokio::test]
async fn a_slow_server_may_still_answer_first() {
    let slow = FakeUpstream::start(1, 0, Manner::After(Duration::from_millis(2500))).await;
    let silent = FakeUpstream::start(2, slow.port(), Manner::Silent).await;
    let site = Site::start("nameserver 127.0.0.1\nnameserver 127.0.0.2\n", slow.port()).await;
    assert_eq!(addresses(&site.ask("example.com").await), ["127.0.0.1"]);
    assert!(!silent.seen().is_empty());
}

#[tokio::test]
async fn rotate_begins_with_another_server_each_time() {
    let one = FakeUpstream::start(1, 0, Manner::Answer).await;
    let _two = FakeUpstream::start(2, one.port(), Manner::Answer).await;
    let conf = "options rotate\nnameserver 127.0.0.1\nnameserver 127.0.0.2\n";
    let site = Site::start(conf, one.port()).await;
    for expected in ["127.0.0.1", "127.0.0.2", "127.0.0.1"] {
        assert_eq!(addresses(&site.ask("example.com").await), [expected]);
    }
}

#[tokio::test]
async fn an_answer_to_something_else_is_none() {
    let upstream = FakeUpstream::start(1, 0, Manner::Forged).await;
    let site = Site::start("nameserver 127.0.0.1\n", upstream.port()).await;
    assert_eq!(addresses(&site.ask("example.com").await), ["127.0.0.1"]);
}

#[tokio::test]
async fn truncated_answers_lead_to_tcp() {
    let upstream = FakeUpstream::start(1, 0, Manner::Truncated).await;
    let site = Site::start("nameserver 127.0.0.1\n", upstream.port()).await;
    let answer = site.ask("example.com").await;
    assert!(answer.metadata.truncation && answer.answers.is_empty());
    assert!(upstream.seen().iter().all(|seen| !seen.tcp));

    let mut stream = site.connect(1).await;
    let query = query("example.com");
    send_framed(&mut stream, &query).await;
    let answer = receive_framed(&mut stream).await.unwrap();
    assert_eq!(answer[..2], query[..2]);
    let answer = decode(&answer);
    assert_eq!(addresses(&answer).len(), 200);
    assert!(!answer.metadata.truncation);
    assert!(upstream.seen().iter().any(|seen| seen.tcp));
}

#[tokio::test]
async fn an_answer_longer_than_the_client_takes_is_cut() {
    let upstream = FakeUpstream::start(1, 0, Manner::Long(100)).await;
    let site = Site::start("nameserver 127.0.0.1\n", upstream.port()).await;
    let plain = query("example.com");
    let answer = site.ask_from(1, &plain).await;
    assert_eq!(answer.len(), plain.len());
    let answer = decode(&answer);
    assert!(answer.metadata.truncation && answer.answers.is_empty());
    assert_eq!(answer.queries.len(), 1);

    let mut large = build("example.com", RecordType::A);
    large
        .set_edns(Edns::new())
        .edns
        .as_mut()
        .unwrap()
        .set_max_payload(4096);
    let answer = decode(&site.ask_from(1, &large.to_vec().unwrap()).await);
    assert_eq!(addresses(&answer).len(), 100);
}

#[tokio::test]
async fn resolv_conf_may_change_and_vanish_while_running() {
    let one = FakeUpstream::start(1, 0, Manner::Answer).await;
    let _two = FakeUpstream::start(2, one.port(), Manner::Answer).await;
    let site = Site::start("", one.port()).await;
    let servfail = |answer: Message| {
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(answer.queries.len(), 1);
    };
    // Offline at first.
    servfail(site.ask("example.com").await);
    std::fs::write(&site.resolv_conf, "nameserver 127.0.0.1\n").unwrap();
    assert_eq!(addresses(&site.ask("example.com").await), ["127.0.0.1"]);

    std::fs::write(&site.resolv_conf, "nameserver 127.0.0.2\n").unwrap();
    assert_eq!(addresses(&site.ask("example.com").await), ["127.0.0.2"]);

    let target = site.resolv_conf.with_file_name("stub-resolv.conf");
    let link = site.resolv_conf.with_file_name("link");
    std::fs::write(&target, "nameserver 127.0.0.1\n").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    std::fs::rename(&link, &site.resolv_conf).unwrap();
    assert_eq!(addresses(&site.ask("example.com").await), ["127.0.0.1"]);

    std::fs::remove_file(&target).unwrap();
    servfail(site.ask("example.com").await);
    assert_eq!(addresses(&site.ask("web").await), ["127.0.1.1"]);
    std::fs::write(&target, "nameserver 127.0.0.2\n").unwrap();
    assert_eq!(addresses(&site.ask("example.com").await), ["127.0.0.2"]);
}

#[tokio::test]
async fn servers_of_a_network_and_of_a_container_come_before_the_hosts() {
    let host = FakeUpstream::start(1, 0, Manner::Answer).await;
    let _network = FakeUpstream::start(2, host.port(), Manner::Answer).await;
    let _container = FakeUpstream::start(3, host.port(), Manner::Answer).await;
    let site = Site::start("nameserver 127.0.0.1\n", host.port()).await;
    site.views.set_network(NetworkView {
        network: "front".into(),
        kind: Kind::Bridge,
        internal: false,
        dns_enabled: true,
        servers: vec![[127, 0, 0, 2].into()],
        subnets: Vec::new(),
    });
    let member = MemberView {
        container: "c2".into(),
        names: vec!["db".into()],
        addresses: vec![[127, 0, 1, 2].into()],
        servers: vec![[127, 0, 0, 3].into()],
    };
    site.views.set_member("front", member).unwrap();
    let query = query("example.com");
    let from = async |source| addresses(&decode(&site.ask_from(source, &query).await));
    assert_eq!(from(1).await, ["127.0.0.2"]);
    assert_eq!(from(2).await, ["127.0.0.3"]);
}

#[tokio::test]
async fn two_hundred_lookups_at_once() {
    let upstream = FakeUpstream::start(1, 0, Manner::After(Duration::from_millis(200))).await;
    let site = Site::start("nameserver 127.0.0.1\n", upstream.port()).await;
    let mut asking = JoinSet::new();
    for number in 0..200 {
        let server = site.udp;
        asking.spawn(async move {
            let source = IpAddr::from([127, 0, 1, 1]);
            let name = format!("host{number}.example.com");
            let outside = exchange(source, server, &query(&name)).await;
            assert_eq!(addresses(&decode(&outside)), ["127.0.0.1"]);
            let inside = exchange(source, server, &query("db")).await;
            assert_eq!(addresses(&decode(&inside)), ["127.0.1.2"]);
        });
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap();
    }
    assert_eq!(upstream.seen().len(), 200);
}

#[tokio::test]
async fn ended_means_that_sockets_are_free_again() {
    let upstream = FakeUpstream::start(1, 0, Manner::Silent).await;
    let mut site = Site::start("nameserver 127.0.0.1\n", upstream.port()).await;
    let socket = UdpSocket::bind("127.0.1.1:0").await.unwrap();
    socket
        .send_to(&query("example.com"), site.udp)
        .await
        .unwrap();
    let mut stream = site.connect(1).await;
    send_framed(&mut stream, &query("example.com")).await;
    while upstream.seen().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    site.serving.shutdown().await;
    UdpSocket::bind(site.udp).await.unwrap();
    assert_eq!(receive_framed(&mut stream).await, None);
}

#[tokio::test]
async fn hostile_clients_stop_nobody() {
    let site = Site::start("", 53).await;
    let socket = UdpSocket::bind("127.0.1.1:0").await.unwrap();
    let mut bytes: u64 = 1;
    for length in 0..300 {
        let noise: Vec<u8> = (0..length)
            .map(|_| {
                bytes = bytes.wrapping_mul(6364136223846793005).wrapping_add(1);
                bytes.to_be_bytes()[1]
            })
            .collect();
        socket.send_to(&noise, site.udp).await.unwrap();
        if length % 20 == 0 {
            assert_eq!(addresses(&site.ask("db").await), ["127.0.1.2"]);
        }
    }
    // More announced than is ever looked at; an answer instead of a query; half a message.
    let mut stream = site.connect(1).await;
    stream.write_all(b"\xff\xff\0\0").await.unwrap();
    assert_eq!(receive_framed(&mut stream).await, None);
    let mut stream = site.connect(1).await;
    let answer = build("db", RecordType::A).into_response().to_vec().unwrap();
    send_framed(&mut stream, &answer).await;
    assert_eq!(receive_framed(&mut stream).await, None);
    let mut stream = site.connect(1).await;
    stream.write_all(b"\0\x20\0\0").await.unwrap();
    assert_eq!(receive_framed(&mut stream).await, None);
    assert_eq!(addresses(&site.ask("db").await), ["127.0.1.2"]);
}

#[tokio::test]
async fn connections_of_one_client_leave_room_for_others() {
    let site = Site::start("", 53).await;
    let mut held = Vec::new();
    // One after the other, each proven to be served.
    for _ in 0..128 {
        let mut stream = site.connect(1).await;
        send_framed(&mut stream, &query("db")).await;
        assert!(receive_framed(&mut stream).await.is_some());
        held.push(stream);
    }
    let mut beyond = site.connect(1).await;
    let _ = beyond.write_all(b"\0").await;
    assert_eq!(receive_framed(&mut beyond).await, None);
    let mut other = site.connect(2).await;
    send_framed(&mut other, &query("web")).await;
    let answer = receive_framed(&mut other).await.unwrap();
    assert_eq!(addresses(&decode(&answer)), ["127.0.1.1"]);
}
