use std::collections::BTreeMap;
use std::net::IpAddr;

use super::connect::{Connection, Who, connect_again};
use super::*;
use crate::container::create::is_active;
use crate::options::CreateOptions;
use crate::testing::{TestEngine, container_config};

fn options(name: &str) -> NetworkOptions {
    NetworkOptions {
        name: Some(name.to_owned()),
        ..NetworkOptions::default()
    }
}

fn with_subnet(name: &str, subnet: &str) -> NetworkOptions {
    NetworkOptions {
        subnets: vec![SubnetRequest {
            subnet: subnet.parse().unwrap(),
            gateway: None,
            lease_range: None,
        }],
        ..options(name)
    }
}

fn in_network(name: &str) -> NetworkRequest {
    NetworkRequest::of(name)
}

/// Gives a container of the tests other networks.
fn set_networks(test: &mut TestEngine, id: &ContainerId, mode: NetworkMode) -> Result<()> {
    test.engine
        .database
        .write(Durability::ProcessCrash, |transaction| {
            let mut mode = mode;
            connect::settle(transaction, &mut mode)?;
            let config = container_config(CreateOptions {
                network: mode,
                ..CreateOptions::default()
            });
            transaction.execute(
                "UPDATE container SET config = ?2 WHERE id = ?1",
                [id.as_str(), &serde_json::to_string(&config).unwrap()],
            )?;
            Ok(())
        })
}

/// What starting the container would take.
fn start(test: &mut TestEngine, id: &ContainerId) -> Result<Option<Connection>> {
    let container = test.engine.container(id)?;
    let Engine {
        config, database, ..
    } = &mut test.engine;
    database.write(Durability::ProcessCrash, |transaction| {
        let who = Who {
            id,
            name: &container.name,
            options: &container.config.options,
        };
        connect_again(transaction, &who, &|id| is_active(config, id))
    })
}

fn addresses(connection: Option<Connection>) -> Vec<String> {
    let attachments = connection.unwrap().member.attachments;
    let nets = attachments
        .iter()
        .flat_map(|attachment| &attachment.addresses);
    nets.map(ToString::to_string).collect()
}

fn container_in(test: &mut TestEngine, digit: u8, requests: &[NetworkRequest]) -> ContainerId {
    let id = test.container(digit, &format!("c{digit}"), false);
    set_networks(test, &id, NetworkMode::Networks(requests.to_vec())).unwrap();
    id
}

#[test]
fn the_default_network_is_always_there_and_stays() {
    let mut test = TestEngine::new();
    let engine = &mut test.engine;
    let all = engine.networks().unwrap();
    assert_eq!(all.len(), 1);
    let default = &all[0];
    assert!(default.is_default() && default.definition.kind == Kind::Routed);
    assert_eq!(default.definition.subnets.len(), 2);
    for name in [
        "selkie",
        "default",
        "bridge",
        "podman",
        &default.definition.id[..7],
    ] {
        assert_eq!(&engine.network(name).unwrap(), default, "{name}");
    }
    for force in [false, true] {
        let error = engine.remove_network("bridge", force).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
    }
    assert_eq!(
        engine.prune_networks(|_| true).unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn networks_are_made_listed_found_and_removed() {
    let mut test = TestEngine::new();
    let engine = &mut test.engine;
    let one = engine.create_network(&options("one")).unwrap();
    assert_eq!(one.definition.subnets.len(), 1);
    assert_eq!(engine.network("one").unwrap(), one);
    assert_eq!(engine.network(&one.definition.id[..12]).unwrap(), one);
    let error = engine.create_network(&options("one")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    let unnamed = engine.create_network(&NetworkOptions::default()).unwrap();
    assert_eq!(unnamed.definition.name, "selkie1");
    assert_ne!(unnamed.definition.subnets, one.definition.subnets);
    let six = engine
        .create_network(&NetworkOptions {
            ipv6: true,
            internal: true,
            labels: BTreeMap::from([("a".into(), "b".into())]),
            options: BTreeMap::from([
                ("isolate".into(), "false".into()),
                ("mtu".into(), "1400".into()),
            ]),
            ..options("six")
        })
        .unwrap();
    assert_eq!(six.definition.subnets.len(), 2);
    assert_eq!(six.definition.mtu, 1400);
    assert!(six.definition.bridge().as_str().starts_with("sn"));
    let names: Vec<String> = engine
        .networks()
        .unwrap()
        .into_iter()
        .map(|network| network.definition.name)
        .collect();
    assert_eq!(names, ["one", "selkie", "selkie1", "six"]);
    engine.remove_network("one", false).unwrap();
    assert_eq!(engine.network("one").unwrap_err().kind, ErrorKind::NotFound);
    let pruned = engine
        .prune_networks(|network| network.labels.contains_key("a"))
        .unwrap();
    assert_eq!(pruned, ["six"]);
}

#[test]
fn networks_that_cannot_be_are_refused() {
    let mut test = TestEngine::new();
    let engine = &mut test.engine;
    engine
        .create_network(&with_subnet("first", "10.201.0.0/16"))
        .unwrap();
    let opt = |key: &str, value: &str| NetworkOptions {
        options: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        ..options("x")
    };
    let mut twice = with_subnet("x", "10.202.0.0/24");
    twice
        .subnets
        .extend(with_subnet("x", "10.203.0.0/24").subnets);
    for (bad, word) in [
        (options("host"), "network mode"),
        (options("-x"), "names must match"),
        (options("bridge"), "already used"),
        (
            with_subnet("x", "10.201.7.0/24"),
            "already used by network first",
        ),
        (twice, "at most one"),
        (opt("mtu", "70000"), "mtu"),
        (opt("mtu", "12"), "mtu"),
        (opt("isolate", "maybe"), "isolate"),
        (opt("com.example", "1"), "unsupported network option"),
        (
            NetworkOptions {
                disable_dns: true,
                dns_servers: vec!["1.1.1.1".parse().unwrap()],
                ..options("x")
            },
            "--disable-dns",
        ),
    ] {
        let error = engine.create_network(&bad).unwrap_err();
        assert!(error.message.contains(word), "{error}");
    }
    assert_eq!(engine.networks().unwrap().len(), 2);
}

#[test]
fn a_network_in_use_is_removed_only_by_force() {
    let mut test = TestEngine::new();
    test.engine.create_network(&options("one")).unwrap();
    let id = container_in(&mut test, 1, &[in_network("one"), in_network("bridge")]);
    let users = test.engine.network_users().unwrap();
    assert_eq!(users["one"][0].name, "c1");
    assert_eq!(users["selkie"].len(), 1);
    let error = test.engine.remove_network("one", false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains("c1"), "{error}");
    assert!(test.engine.prune_networks(|_| true).unwrap().is_empty());
    test.engine.remove_network("one", true).unwrap();
    assert_eq!(
        test.engine.container(&id).unwrap_err().kind,
        ErrorKind::NotFound
    );
}

#[test]
fn requests_are_settled() {
    let mut test = TestEngine::new();
    test.engine
        .create_network(&with_subnet("one", "10.201.0.0/24"))
        .unwrap();
    let id = test.container(1, "c1", false);
    let named = |interface: &str| NetworkRequest {
        interface: Some(interface.parse().unwrap()),
        ..in_network("one")
    };
    set_networks(
        &mut test,
        &id,
        NetworkMode::Networks(vec![in_network("podman"), named("eth0")]),
    )
    .unwrap();
    let config = test.engine.container(&id).unwrap().config;
    let seen: Vec<(&str, &str)> = config
        .options
        .network
        .requests()
        .iter()
        .map(|request| {
            (
                request.name.as_str(),
                request.interface.as_ref().unwrap().as_str(),
            )
        })
        .collect();
    assert_eq!(seen, [("selkie", "eth1"), ("one", "eth0")]);
    let with_ip = |ip: &str| NetworkRequest {
        ip: Some(ip.parse().unwrap()),
        ..in_network("one")
    };
    let with_alias = |alias: &str| NetworkRequest {
        aliases: vec![alias.to_owned()],
        ..in_network("one")
    };
    let six = NetworkRequest {
        ip6: Some("fd00::9".parse().unwrap()),
        ..in_network("one")
    };
    for (bad, word) in [
        (vec![in_network("nope")], "network not found"),
        (vec![in_network("default"), in_network("selkie")], "twice"),
        (vec![named("lo")], "lo"),
        (vec![with_ip("10.202.0.1")], "10.202.0.1"),
        (vec![with_ip("10.201.0.1")], "gateway"),
        (vec![six], "no IPv6"),
        (vec![with_alias("a b")], "alias"),
        (vec![with_alias("")], "alias"),
    ] {
        let error = set_networks(&mut test, &id, NetworkMode::Networks(bad)).unwrap_err();
        assert!(error.message.contains(word), "{error}");
    }
}

#[test]
fn addresses_are_taken_at_start_and_kept() {
    let mut test = TestEngine::new();
    test.engine
        .create_network(&with_subnet("one", "10.201.0.0/24"))
        .unwrap();
    let first = container_in(&mut test, 1, &[in_network("one"), in_network("selkie")]);
    let second = container_in(&mut test, 2, &[in_network("one")]);
    let got = start(&mut test, &first).unwrap().unwrap();
    assert_eq!(got.networks.len(), 2);
    assert_eq!(got.member.names, ["c1", "010101010101"]);
    let attachments = &got.member.attachments;
    assert_eq!(attachments[0].interface.as_str(), "eth0");
    assert_eq!(attachments[0].addresses[0].to_string(), "10.201.0.2/24");
    assert_eq!(attachments[1].addresses.len(), 2);
    assert_ne!(attachments[0].mac, attachments[1].mac);
    assert_eq!(
        addresses(start(&mut test, &second).unwrap()),
        ["10.201.0.3/24"]
    );
    // The same again at the next start, and as the uplink is told afterwards.
    assert_eq!(start(&mut test, &first).unwrap().unwrap(), got);
    assert_eq!(test.engine.connection(&first).unwrap().unwrap(), got);
    // They go with the container.
    test.engine.remove(&first, false, false).unwrap();
    let third = container_in(&mut test, 3, &[in_network("one")]);
    assert_eq!(
        addresses(start(&mut test, &third).unwrap()),
        ["10.201.0.2/24"]
    );
}

#[test]
fn the_default_network_costs_two_inserts_and_spreads() {
    let mut test = TestEngine::new();
    test.engine.networks().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for digit in 0..20 {
        let id = container_in(&mut test, digit, &[in_network("selkie")]);
        let got = addresses(start(&mut test, &id).unwrap());
        assert_eq!(got.len(), 2);
        assert!(got.into_iter().all(|address| seen.insert(address)));
    }
    let leases: i64 = test
        .engine
        .database
        .read(|connection| {
            Ok(connection.query_row("SELECT count(*) FROM network_lease", [], |row| row.get(0))?)
        })
        .unwrap();
    assert_eq!(leases, 40);
}

#[test]
fn a_full_network_takes_from_those_that_do_not_run() {
    let mut test = TestEngine::new();
    // Two addresses for containers.
    let mut small = with_subnet("small", "10.201.0.0/24");
    small.subnets[0].lease_range =
        Some(("10.201.0.8".parse().unwrap(), "10.201.0.9".parse().unwrap()));
    test.engine.create_network(&small).unwrap();
    let [first, second, third] =
        [1, 2, 3].map(|digit| container_in(&mut test, digit, &[in_network("small")]));
    assert_eq!(
        addresses(start(&mut test, &first).unwrap()),
        ["10.201.0.8/24"]
    );
    assert_eq!(
        addresses(start(&mut test, &second).unwrap()),
        ["10.201.0.9/24"]
    );
    test.record_run(&first, true);
    assert_eq!(
        addresses(start(&mut test, &third).unwrap()),
        ["10.201.0.9/24"]
    );
    test.record_run(&third, true);
    let error = start(&mut test, &second).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains("10.201.0.8-10.201.0.9"), "{error}");
    assert!(
        error
            .hint
            .unwrap()
            .contains("selkie network disconnect small")
    );
    // An address outside of the range can still be asked for.
    let fourth = container_in(
        &mut test,
        4,
        &[NetworkRequest {
            ip: Some("10.201.0.77".parse().unwrap()),
            ..in_network("small")
        }],
    );
    assert_eq!(
        addresses(start(&mut test, &fourth).unwrap()),
        ["10.201.0.77/24"]
    );
}

#[test]
fn an_address_asked_for_is_got_unless_its_holder_runs() {
    let mut test = TestEngine::new();
    test.engine
        .create_network(&with_subnet("one", "10.201.0.0/24"))
        .unwrap();
    let asks = NetworkRequest {
        ip: Some("10.201.0.7".parse().unwrap()),
        mac: Some("02:00:00:00:00:07".parse().unwrap()),
        ..in_network("one")
    };
    let first = container_in(&mut test, 1, std::slice::from_ref(&asks));
    let second = container_in(&mut test, 2, &[asks]);
    let got = start(&mut test, &first).unwrap().unwrap();
    assert_eq!(
        got.member.attachments[0].mac.to_string(),
        "02:00:00:00:00:07"
    );
    assert_eq!(
        addresses(start(&mut test, &second).unwrap()),
        ["10.201.0.7/24"]
    );
    test.record_run(&second, true);
    let error = start(&mut test, &first).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(
        error.message.contains("c2") && error.message.contains("10.201.0.7"),
        "{error}"
    );
}

#[test]
fn containers_that_do_not_run_are_connected_on_record() {
    let mut test = TestEngine::new();
    test.engine.create_network(&options("one")).unwrap();
    let id = container_in(&mut test, 1, &[in_network("selkie")]);
    let engine = &mut test.engine;
    engine.connect_network(&id, in_network("one")).unwrap();
    let again = engine.connect_network(&id, in_network("one")).unwrap_err();
    assert_eq!(again.kind, ErrorKind::Conflict);
    let again = engine
        .connect_network(&id, in_network("bridge"))
        .unwrap_err();
    assert_eq!(again.kind, ErrorKind::Conflict);
    let places = engine
        .container_networks(&engine.container(&id).unwrap())
        .unwrap();
    assert_eq!(places.len(), 2);
    assert_eq!(
        places[1].request.interface.as_ref().unwrap().as_str(),
        "eth1"
    );
    assert!(places.iter().all(|place| place.attachment.is_none()));
    engine.disconnect_network(&id, "podman", false).unwrap();
    assert!(engine.disconnect_network(&id, "podman", false).is_err());
    // The first name is free again.
    engine.connect_network(&id, in_network("default")).unwrap();
    let container = engine.container(&id).unwrap();
    let names: Vec<_> = container
        .config
        .options
        .network
        .requests()
        .iter()
        .map(|request| {
            (
                request.name.as_str(),
                request.interface.as_ref().unwrap().as_str(),
            )
        })
        .collect();
    assert_eq!(names, [("one", "eth1"), ("selkie", "eth0")]);
    assert_eq!(
        engine.reload_network(&id).unwrap_err().kind,
        ErrorKind::Conflict
    );
}

#[test]
fn a_failed_change_of_a_running_container_is_not_on_record() {
    let mut test = TestEngine::new();
    test.engine.create_network(&options("one")).unwrap();
    test.engine.create_network(&options("two")).unwrap();
    let id = container_in(&mut test, 1, &[in_network("one")]);
    start(&mut test, &id).unwrap();
    test.record_run(&id, true);
    let engine = &mut test.engine;
    let before = engine.connection(&id).unwrap();
    // No uplink runs in this test.
    assert!(engine.connect_network(&id, in_network("two")).is_err());
    assert_eq!(engine.connection(&id).unwrap(), before);
    assert!(engine.disconnect_network(&id, "one", false).is_err());
    assert_eq!(engine.connection(&id).unwrap(), before);
    engine.disconnect_network(&id, "one", true).unwrap();
    assert_eq!(engine.connection(&id).unwrap().unwrap().networks, []);
    assert_eq!(
        engine.remove_network("two", false).map_err(|e| e.kind),
        Ok(())
    );
}

#[test]
fn other_modes_are_in_no_network() {
    let mut test = TestEngine::new();
    test.engine.create_network(&options("one")).unwrap();
    let id = test.container(1, "c1", false);
    set_networks(&mut test, &id, NetworkMode::Host).unwrap();
    assert_eq!(start(&mut test, &id).unwrap(), None);
    let engine = &mut test.engine;
    let error = engine.connect_network(&id, in_network("one")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidInput);
    assert!(error.hint.unwrap().contains("--network host"));
    let shares = NetworkMode::Container(id.to_string());
    let error = engine.check_shared_network(&shares).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains("c1"), "{error}");
    test.record_run(&id, true);
    test.engine.check_shared_network(&shares).unwrap();
}

#[test]
fn name_servers_of_a_network_can_change() {
    let mut test = TestEngine::new();
    let engine = &mut test.engine;
    engine.create_network(&options("one")).unwrap();
    engine
        .create_network(&NetworkOptions {
            disable_dns: true,
            ..options("mute")
        })
        .unwrap();
    let [a, b]: [IpAddr; 2] = ["9.9.9.9", "fd00::53"].map(|text| text.parse().unwrap());
    engine.update_network("one", &[a, b, a], &[]).unwrap();
    assert_eq!(
        engine.network("one").unwrap().definition.dns_servers,
        [a, b]
    );
    engine.update_network("one", &[], &[a]).unwrap();
    assert_eq!(engine.network("one").unwrap().definition.dns_servers, [b]);
    assert!(engine.update_network("one", &[], &[a]).is_err());
    assert!(engine.update_network("mute", &[a], &[]).is_err());
}
