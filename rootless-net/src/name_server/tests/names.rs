//! Which names are known to whom.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::*;
use crate::network::HOST_ADDRESS;

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
    assert_eq!(
        a(&server, "front", "10.89.0.3", "db.back"),
        is(&["10.89.1.4"])
    );
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
