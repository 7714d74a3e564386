//! What is answered to messages of all kinds, and how long answers get.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use proptest::prelude::*;

use super::*;

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
