//! What is answered to whom, without sockets: `consider` on encoded queries.

mod messages;
mod names;

use std::net::IpAddr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::serve::Outcome;
use super::*;
use crate::network::Kind;

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
