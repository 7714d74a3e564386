//! What is answered to whom, without sockets: `consider` on encoded queries.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;

use super::serve::Outcome;
use super::*;
use crate::network::{HOST_ADDRESS, Kind};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn network(name: &str, subnet: &str) -> NetworkView {
    NetworkView {
        network: name.into(),
        kind: Kind::Bridge,
        internal: false,
        dns_enabled: true,
        servers: Vec::new(),
        subnets: vec![subnet.parse().unwrap()],
    }
}

fn member(container: &str, names: &[&str], addresses: &[&str]) -> MemberView {
    MemberView {
        container: container.into(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        servers: Vec::new(),
    }
}

/// Two networks and one container in both, an internal one, and the routed default one.
fn site() -> (Views, NameServer) {
    let views = Views::new();
    views.set_network(network("front", "10.89.0.0/24"));
    views.set_network(network("back", "10.89.1.0/24"));
    views.set_network(NetworkView {
        internal: true,
        ..network("vault", "10.89.2.0/24")
    });
    views.set_network(NetworkView {
        kind: Kind::Routed,
        ..network("selkie", "10.88.0.0/16")
    });
    let join = |network: &str, view: MemberView| views.set_member(network, view).unwrap();
    join(
        "front",
        member("c1", &["Web", "c1", "site"], &["10.89.0.2", "fd00::2"]),
    );
    join("front", member("c2", &["api", "c2"], &["10.89.0.3"]));
    join(
        "back",
        member("c2", &["api", "c2", "service"], &["10.89.1.3"]),
    );
    join(
        "back",
        member("c3", &["db", "c3", "store.example.com"], &["10.89.1.4"]),
    );
    join("vault", member("c3", &["db", "c3"], &["10.89.2.4"]));
    join("vault", member("c4", &["key", "c4"], &["10.89.2.5"]));
    join("selkie", member("c5", &["lone", "c5"], &["10.88.0.5"]));
    join("selkie", member("c6", &["other", "c6"], &["10.88.0.6"]));
    let server = NameServer::new(
        views.clone(),
        HostResolvers::new("/nonexistent/resolv.conf"),
    );
    (views, server)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

#[derive(Debug, PartialEq)]
enum Said {
    /// Response code and records.
    Is(ResponseCode, Vec<String>),
    Forwarded(Vec<IpAddr>),
    Nothing,
}

fn decode(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).unwrap()
}

fn records(message: &Message) -> Vec<String> {
    let texts = message.answers.iter().map(|record| {
        assert_eq!(record.ttl, 0);
        assert!(
            record.name.eq_case(message.queries[0].name()),
            "case is kept"
        );
        match &record.data {
            RData::A(a) => a.to_string(),
            RData::AAAA(aaaa) => aaaa.to_string(),
            RData::PTR(ptr) => ptr.to_string(),
            other => panic!("{other:?}"),
        }
    });
    texts.collect()
}

fn ask(server: &NameServer, network: &str, source: &str, name: &str, kind: RecordType) -> Said {
    let query = query(name, kind);
    match server.consider(network, ip(source), &query.to_vec().unwrap(), true) {
        Outcome::Silence => Said::Nothing,
        Outcome::Forward(forwarding) => Said::Forwarded(forwarding.servers.to_vec()),
        Outcome::Answer(bytes) => {
            let answer = decode(&bytes);
            assert_eq!(answer.metadata.id, query.metadata.id);
            assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
            let records = records(&answer);
            Said::Is(answer.metadata.response_code, records)
        }
    }
}

fn a(server: &NameServer, network: &str, source: &str, name: &str) -> Said {
    ask(server, network, source, name, RecordType::A)
}

fn is(records: &[&str]) -> Said {
    let records = records.iter().map(|record| (*record).to_owned());
    Said::Is(ResponseCode::NoError, records.collect())
}

fn no_such_name() -> Said {
    Said::Is(ResponseCode::NXDomain, Vec::new())
}

const FORWARDED: Said = Said::Forwarded(Vec::new());

#[test]
fn a_name_has_several_forms() {
    let (_, server) = site();
    for name in [
        "web",
        "WEB",
        "web.front",
        "Web.Front",
        "web.dns.podman",
        "web.front.dns.podman",
        "site",
    ] {
        assert_eq!(
            a(&server, "front", "10.89.0.3", name),
            is(&["10.89.0.2"]),
            "{name}"
        );
    }
    assert_eq!(
        a(&server, "back", "10.89.1.3", "store.example.com"),
        is(&["10.89.1.4"])
    );
    assert_eq!(a(&server, "front", "10.89.0.3", "example.com"), FORWARDED);
    assert_eq!(a(&server, "front", "10.89.0.3", "front"), FORWARDED);
    assert_eq!(a(&server, "front", "10.89.0.3", "xfront"), FORWARDED);
    assert_eq!(a(&server, "front", "10.89.0.3", "unknown"), FORWARDED);
    assert_eq!(a(&server, "front", "10.89.0.3", "unknown.front"), FORWARDED);
    assert_eq!(
        a(&server, "front", "10.89.0.3", "unknown.dns.podman"),
        no_such_name()
    );
    assert_eq!(a(&server, "front", "10.89.0.3", "dns.podman"), is(&[]));
    assert_eq!(a(&server, "front", "10.89.0.3", "xdns.podman"), FORWARDED);
    assert_eq!(a(&server, "front", "10.89.0.3", "."), FORWARDED);
}

#[test]
fn a_known_name_without_the_type_is_not_asked_elsewhere() {
    let (_, server) = site();
    let here = |name, kind| ask(&server, "front", "10.89.0.2", name, kind);
    assert_eq!(here("web", RecordType::AAAA), is(&["fd00::2"]));
    assert_eq!(here("api", RecordType::AAAA), is(&[]));
    assert_eq!(here("api", RecordType::MX), is(&[]));
    assert_eq!(here("api", RecordType::HTTPS), is(&[]));
    let Said::Is(ResponseCode::NoError, mut both) = here("web", RecordType::ANY) else {
        panic!()
    };
    both.sort();
    assert_eq!(both, ["10.89.0.2", "fd00::2"]);
    assert_eq!(here("example.com", RecordType::MX), FORWARDED);
}

#[test]
fn one_sees_the_names_of_ones_own_networks_only() {
    let (views, server) = site();
    // c2 is in both networks, c1 in one.
    assert_eq!(a(&server, "front", "10.89.0.3", "db"), is(&["10.89.1.4"]));
    assert_eq!(a(&server, "back", "10.89.1.3", "web"), is(&["10.89.0.2"]));
    assert_eq!(a(&server, "front", "10.89.0.2", "db"), FORWARDED);
    assert_eq!(a(&server, "front", "10.89.0.2", "db.back"), FORWARDED);
    assert_eq!(a(&server, "front", "10.89.0.2", "api"), is(&["10.89.0.3"]));
    assert_eq!(a(&server, "front", "10.89.0.2", "service"), FORWARDED);
    // An address that nobody has, and another network's.
    assert_eq!(a(&server, "front", "10.89.0.99", "db"), FORWARDED);
    assert_eq!(a(&server, "front", "10.89.0.99", "web"), is(&["10.89.0.2"]));
    assert_eq!(a(&server, "front", "10.89.1.4", "db"), FORWARDED);
    // c3 of `back` sees the names of its internal network there.
    assert_eq!(a(&server, "back", "10.89.1.4", "key"), is(&["10.89.2.5"]));
    // Its name is the same in both.
    let Said::Is(_, both) = a(&server, "back", "10.89.1.4", "db") else {
        panic!()
    };
    assert_eq!(both.len(), 2);

    views.remove_member("back", "c2");
    assert_eq!(a(&server, "front", "10.89.0.3", "db"), FORWARDED);
    assert_eq!(
        a(&server, "nowhere", "10.89.0.3", "web"),
        Said::Is(ResponseCode::Refused, vec![])
    );
}

#[test]
fn the_default_network_tells_nobody_of_others() {
    let (_, server) = site();
    assert_eq!(
        a(&server, "selkie", "10.88.0.5", "lone"),
        is(&["10.88.0.5"])
    );
    assert_eq!(a(&server, "selkie", "10.88.0.5", "other"), FORWARDED);
    assert_eq!(a(&server, "selkie", "10.88.0.77", "other"), FORWARDED);
    let ptr = |name| ask(&server, "selkie", "10.88.0.5", name, RecordType::PTR);
    assert_eq!(ptr("5.0.88.10.in-addr.arpa"), is(&["lone.", "c5."]));
    assert_eq!(ptr("6.0.88.10.in-addr.arpa"), no_such_name());
}

#[test]
fn an_internal_network_forwards_nothing() {
    let (_, server) = site();
    assert_eq!(a(&server, "vault", "10.89.2.5", "db"), is(&["10.89.2.4"]));
    for name in ["example.com", "unknown", "host.containers.internal", "."] {
        assert_eq!(
            a(&server, "vault", "10.89.2.5", name),
            no_such_name(),
            "{name}"
        );
    }
    // Not even for one that is in another network too: its address here proves nothing.
    assert_eq!(
        a(&server, "vault", "10.89.2.4", "example.com"),
        no_such_name()
    );
    let ptr = |name| ask(&server, "vault", "10.89.2.5", name, RecordType::PTR);
    assert_eq!(ptr("4.2.89.10.in-addr.arpa"), is(&["db.", "c3."]));
    assert_eq!(ptr("1.113.0.203.in-addr.arpa"), no_such_name());
    assert_eq!(ptr("2.1.254.169.in-addr.arpa"), no_such_name());
}

#[test]
fn without_names_all_is_forwarded() {
    let (views, server) = site();
    views.set_network(NetworkView {
        dns_enabled: false,
        servers: vec![ip("192.0.2.53")],
        ..network("front", "10.89.0.0/24")
    });
    let there = || Said::Forwarded(vec![ip("192.0.2.53")]);
    for name in ["web", "web.dns.podman", "gateway", "example.com"] {
        assert_eq!(a(&server, "front", "10.89.0.3", name), there(), "{name}");
    }
    // Nor does another network show them.
    assert_eq!(a(&server, "back", "10.89.1.3", "web"), FORWARDED);
}

#[test]
fn whom_to_ask_is_the_containers_then_the_networks_then_the_hosts_choice() {
    let (views, server) = site();
    assert_eq!(a(&server, "front", "10.89.0.2", "example.com"), FORWARDED);
    views.set_network(NetworkView {
        servers: vec![ip("192.0.2.53")],
        ..network("front", "10.89.0.0/24")
    });
    let by = |server: &str| Said::Forwarded(vec![ip(server)]);
    assert_eq!(
        a(&server, "front", "10.89.0.2", "example.com"),
        by("192.0.2.53")
    );
    let own = MemberView {
        servers: vec![ip("192.0.2.54")],
        ..member("c1", &["web"], &["10.89.0.2"])
    };
    views.set_member("front", own).unwrap();
    assert_eq!(
        a(&server, "front", "10.89.0.2", "example.com"),
        by("192.0.2.54")
    );
    assert_eq!(
        a(&server, "front", "10.89.0.3", "example.com"),
        by("192.0.2.53")
    );
}

#[test]
fn reverse_lookups_list_the_names() {
    let (views, server) = site();
    let ptr = |name: &str| ask(&server, "front", "10.89.0.3", name, RecordType::PTR);
    assert_eq!(ptr("2.0.89.10.in-addr.arpa"), is(&["Web.", "c1.", "site."]));
    assert_eq!(
        ptr(&format!("2.{}0.0.d.f.ip6.arpa", "0.".repeat(27))),
        is(&["Web.", "c1.", "site."])
    );
    // Of a network it shares with that container, and of one it does not.
    assert_eq!(
        ptr("4.1.89.10.in-addr.arpa"),
        is(&["db.", "c3.", "store.example.com."])
    );
    assert_eq!(ptr("4.2.89.10.in-addr.arpa"), FORWARDED);
    assert_eq!(ptr("200.0.89.10.in-addr.arpa"), no_such_name());
    assert_eq!(ptr("1.113.0.203.in-addr.arpa"), FORWARDED);
    assert_eq!(ptr("0.89.10.in-addr.arpa"), FORWARDED);
    assert_eq!(
        ptr("2.1.254.169.in-addr.arpa"),
        is(&["host.containers.internal."])
    );
    assert_eq!(ptr("not.an.address.in-addr.arpa"), FORWARDED);
    assert_eq!(
        ask(
            &server,
            "front",
            "10.89.0.3",
            "2.0.89.10.in-addr.arpa",
            RecordType::A
        ),
        is(&[])
    );
    // What is no name in the DNS cannot be answered with.
    let long = "x".repeat(64);
    views
        .set_member("front", member("c1", &[&long, "web"], &["10.89.0.2"]))
        .unwrap();
    assert_eq!(ptr("2.0.89.10.in-addr.arpa"), is(&["web."]));
}

#[test]
fn the_host_has_names_unless_a_container_has_them() {
    let (views, server) = site();
    let host = HOST_ADDRESS.to_string();
    for name in [
        "host.containers.internal",
        "Host.Docker.Internal",
        "gateway",
    ] {
        assert_eq!(
            a(&server, "front", "10.89.0.3", name),
            is(&[&host]),
            "{name}"
        );
        assert_eq!(
            ask(&server, "front", "10.89.0.3", name, RecordType::AAAA),
            is(&[])
        );
    }
    views
        .set_member("front", member("c7", &["gateway"], &["10.89.0.7"]))
        .unwrap();
    assert_eq!(
        a(&server, "front", "10.89.0.3", "gateway"),
        is(&["10.89.0.7"])
    );
}

#[test]
fn containers_that_share_a_name_take_turns() {
    let (views, server) = site();
    for last in 10..13 {
        let (id, address) = (format!("r{last}"), format!("10.89.0.{last}"));
        views
            .set_member(
                "front",
                member(&id, &["pool"], &[&address, &format!("fd00::{last}")]),
            )
            .unwrap();
    }
    let mut firsts = Vec::new();
    for _ in 0..3 {
        let Said::Is(_, addresses) = a(&server, "front", "10.89.0.3", "pool") else {
            panic!()
        };
        assert_eq!(addresses.len(), 3);
        firsts.push(addresses[0].clone());
        // As clients do in between.
        ask(&server, "front", "10.89.0.3", "pool", RecordType::AAAA);
    }
    firsts.sort();
    assert_eq!(firsts, ["10.89.0.10", "10.89.0.11", "10.89.0.12"]);

    views.remove_container("r10");
    views.remove_member("front", "r11");
    assert_eq!(
        a(&server, "front", "10.89.0.3", "pool"),
        is(&["10.89.0.12"])
    );
    views.remove_container("r12");
    assert_eq!(a(&server, "front", "10.89.0.3", "pool"), FORWARDED);
}

#[test]
fn changes_leave_nothing_behind() {
    let (views, server) = site();
    // Another name and address for the same container, its old address for another one.
    views
        .set_member("front", member("c1", &["shop"], &["10.89.0.9"]))
        .unwrap();
    views
        .set_member("front", member("c8", &["new"], &["10.89.0.2"]))
        .unwrap();
    assert_eq!(a(&server, "front", "10.89.0.3", "web"), FORWARDED);
    assert_eq!(a(&server, "front", "10.89.0.3", "shop"), is(&["10.89.0.9"]));
    // An address that passed from one to the other before the first one left.
    views
        .set_member("front", member("c9", &["heir"], &["10.89.0.9"]))
        .unwrap();
    views.remove_member("front", "c1");
    let ptr = |name| ask(&server, "front", "10.89.0.3", name, RecordType::PTR);
    assert_eq!(ptr("9.0.89.10.in-addr.arpa"), is(&["heir."]));

    views.remove_network("front");
    views.set_network(network("front", "10.89.0.0/24"));
    assert_eq!(a(&server, "front", "10.89.0.3", "shop"), FORWARDED);
    assert_eq!(a(&server, "back", "10.89.1.3", "new"), FORWARDED);
    for container in ["c2", "c3", "c4", "c5", "c6"] {
        views.remove_container(container);
        views.remove_container(container);
    }
    assert!(views.is_without_members());
    let lost = views.set_member("gone", member("c1", &["web"], &["10.89.0.2"]));
    assert_eq!(lost, Err(NoSuchNetwork("gone".into())));
    assert!(views.is_without_members());
}

fn raw(server: &NameServer, bytes: &[u8]) -> Option<Vec<u8>> {
    match server.consider("vault", ip("10.89.2.5"), bytes, true) {
        Outcome::Silence => None,
        Outcome::Answer(answer) => Some(answer),
        Outcome::Forward(_) => panic!("forwarded out of an internal network"),
    }
}

#[test]
fn what_is_no_proper_query_is_refused_or_ignored() {
    let (_, server) = site();
    let code = |message: &Message| {
        let bytes = raw(&server, &message.to_vec().unwrap());
        bytes.map(|bytes| decode(&bytes).metadata.response_code)
    };
    let good = query("key", RecordType::A);
    assert_eq!(code(&good), Some(ResponseCode::NoError));

    let answer = good.clone().into_response();
    assert_eq!(code(&answer), None);
    assert_eq!(raw(&server, &good.to_vec().unwrap()[..11]), None);
    assert_eq!(raw(&server, b""), None);

    let mut update = good.clone();
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update), Some(ResponseCode::NotImp));

    let mut two = good.clone();
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two), Some(ResponseCode::FormErr));
    let mut none = good.clone();
    none.queries.clear();
    assert_eq!(code(&none), Some(ResponseCode::FormErr));

    let mut bytes = good.to_vec().unwrap();
    bytes.truncate(bytes.len() - 1);
    assert_eq!(
        decode(&raw(&server, &bytes).unwrap())
            .metadata
            .response_code,
        ResponseCode::FormErr
    );
    // A name that points at itself, and counts beyond what is there.
    let looping = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01";
    assert_eq!(
        decode(&raw(&server, looping).unwrap())
            .metadata
            .response_code,
        ResponseCode::FormErr
    );
    let counting = b"\0\x01\x01\0\xff\xff\xff\xff\xff\xff\xff\xff\0\0\x01\0\x01";
    assert_eq!(raw(&server, counting).unwrap().len(), 12);
    let mut long = good.to_vec().unwrap();
    long.resize(5000, 0);
    assert_eq!(
        decode(&raw(&server, &long).unwrap()).metadata.response_code,
        ResponseCode::FormErr
    );

    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&query("key", kind)), Some(ResponseCode::Refused));
    }
    let mut chaos = query("version.bind", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), Some(ResponseCode::Refused));

    let mut newer = good.clone();
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    // 16 has two names.
    assert_eq!(
        code(&newer).map(u16::from),
        Some(u16::from(ResponseCode::BADVERS))
    );
}

#[test]
fn an_answer_is_as_long_as_the_client_takes() {
    let (views, server) = site();
    for last in 0..=255u8 {
        let address = Ipv4Addr::new(10, 89, 3, last).to_string();
        let view = member(&format!("m{last}"), &["many"], &[&address]);
        views.set_member("front", view).unwrap();
    }
    let ask = |payload: Option<u16>, udp| {
        let mut query = query("many", RecordType::A);
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            query.set_edns(edns);
        }
        let query = query.to_vec().unwrap();
        match server.consider("front", ip("10.89.0.3"), &query, udp) {
            Outcome::Answer(bytes) => {
                let message = decode(&bytes);
                assert_eq!(message.edns.is_some(), payload.is_some());
                (
                    bytes.len(),
                    message.answers.len(),
                    message.metadata.truncation,
                )
            }
            _ => panic!(),
        }
    };
    // 22 bytes of header and question, 16 per address, 11 for EDNS.
    assert_eq!(ask(None, true), (502, 30, true));
    assert_eq!(ask(Some(100), true), (497, 29, true));
    assert_eq!(ask(Some(1232), true), (1217, 74, true));
    // Beyond some records the encoder no longer shortens names.
    let (length, count, truncated) = ask(Some(65535), true);
    assert!(
        length <= 4096 && count > 200 && truncated,
        "{length} {count}"
    );
    let (_, count, truncated) = ask(None, false);
    assert_eq!((count, truncated), (256, false));
}

#[test]
fn one_client_may_not_have_everything_asked() {
    let (_, server) = site();
    let query = query("example.com", RecordType::A).to_vec().unwrap();
    let consider = |source: &str| server.consider("front", ip(source), &query, true);
    let mut running: Vec<_> = (0..OUTSTANDING.1).map(|_| consider("10.89.0.2")).collect();
    let is_forwarded = |outcome: &Outcome| matches!(outcome, Outcome::Forward(_));
    assert!(running.iter().all(is_forwarded));
    match consider("10.89.0.2") {
        Outcome::Answer(bytes) => {
            assert_eq!(
                decode(&bytes).metadata.response_code,
                ResponseCode::ServFail
            );
        }
        _ => panic!("over its share"),
    }
    assert!(is_forwarded(&consider("10.89.0.3")));
    running.pop();
    assert!(is_forwarded(&consider("10.89.0.2")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_it_panic_or_amplify(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (_, server) = site();
        if let Some(answer) = raw(&server, &bytes) {
            prop_assert!(answer.len() <= 12.max(bytes.len() + 11));
        }
    }

    // Near to what is right, so that more of it is looked at.
    #[test]
    fn no_damaged_query_makes_it_panic_or_amplify(
        name in "[a-z]{1,20}(\\.[a-z]{1,20}){0,3}",
        kind in any::<u16>(),
        edns in any::<bool>(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let (_, server) = site();
        let mut query = query(&name, RecordType::from(kind));
        if edns {
            query.set_edns(Edns::new());
        }
        let mut bytes = query.to_vec().unwrap();
        for (at, value) in &damage {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        if damage.len() == 3 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Some(answer) = raw(&server, &bytes) {
            prop_assert!(answer.len() <= 12.max(bytes.len() + 11));
        }
    }
}
