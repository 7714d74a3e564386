use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| net(text)).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn request(text: &str) -> SubnetRequest {
    SubnetRequest {
        subnet: net(text),
        gateway: None,
        lease_range: None,
    }
}

fn plain(text: &str) -> Subnet {
    subnet(&request(text)).unwrap()
}

#[test]
fn user_networks_begin_at_10_89_and_avoid_what_is_in_use() {
    let free = |used: &[&str]| free_subnet_v4(&nets(used)).map(|net| net.to_string());
    assert_eq!(free(&[]).unwrap(), "10.89.0.0/24");
    assert_eq!(free(&["10.89.0.0/24"]).unwrap(), "10.89.1.0/24");
    assert_eq!(
        free(&["10.89.0.128/25", "10.89.1.1/32"]).unwrap(),
        "10.89.2.0/24"
    );
    assert_eq!(free(&["10.88.0.0/15"]).unwrap(), "10.90.0.0/24");
    assert_eq!(free(&["10.0.0.0/8"]).unwrap(), "172.16.0.0/24");
    assert_eq!(
        free(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/23"]).unwrap(),
        "192.168.2.0/24"
    );
    assert_eq!(
        free(&[
            "10.88.0.0/13",
            "10.96.0.0/11",
            "10.128.0.0/9",
            "172.0.0.0/8",
            "192.168.0.0/16"
        ])
        .unwrap(),
        "10.0.0.0/24"
    );
    assert_eq!(free(&["0.0.0.0/0"]).unwrap_err(), AddressError::Exhausted);
}

#[test]
fn the_default_network_makes_way_for_the_hosts_routes() {
    let default = |used: &[&str]| default_subnet_v4(&nets(used)).map(|net| net.to_string());
    assert_eq!(default(&["10.89.0.0/16"]).unwrap(), "10.88.0.0/16");
    assert_eq!(default(&["10.88.3.0/24"]).unwrap(), "10.192.0.0/16");
    assert_eq!(
        default(&["10.88.3.0/24", "10.192.0.0/10"]).unwrap(),
        "10.89.0.0/16"
    );
    assert_eq!(default(&["10.0.0.0/8"]).unwrap(), "172.16.0.0/16");
    assert_eq!(
        default(&["10.0.0.0/8", "172.16.0.0/12", "192.168.1.0/24"]).unwrap(),
        "192.168.16.0/20"
    );
}

#[test]
fn random_subnets_are_unique_local() {
    let made = unique_local_subnet([1, 2, 3, 4, 5, 6, 7], &[]).unwrap();
    assert_eq!(made.to_string(), "fd01:203:405:607::/64");
    assert_eq!(
        unique_local_subnet([1, 2, 3, 4, 5, 6, 7], &[net("fd01:203:405::/48")]),
        None
    );
}

#[test]
fn subnets_are_completed_and_checked() {
    let made = plain("10.1.2.3/24");
    assert_eq!(made.subnet, net("10.1.2.0/24"));
    assert_eq!(made.gateway, ip("10.1.2.1"));
    assert_eq!(plain("fd00:7::9/64").gateway, ip("fd00:7::1"));
    for (text, word) in [
        ("10.0.0.0/31", "too small"),
        ("10.0.0.0/32", "too small"),
        ("fd00::/127", "too small"),
        ("127.1.0.0/16", "loopback"),
        ("169.254.0.0/20", "link-local"),
        ("0.0.0.0/0", "no network"),
        ("230.0.0.0/24", "multicast"),
        ("::/64", "loopback"),
        ("fe80::/64", "link-local"),
        ("ff02::/64", "multicast"),
    ] {
        let error = subnet(&request(text)).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
    let with_gateway = |gateway: &str| {
        subnet(&SubnetRequest {
            gateway: Some(ip(gateway)),
            ..request("10.1.2.0/24")
        })
    };
    assert_eq!(
        with_gateway("10.1.2.254").unwrap().gateway,
        ip("10.1.2.254")
    );
    for bad in ["10.1.3.1", "10.1.2.0", "10.1.2.255", "fd00::1"] {
        assert!(with_gateway(bad).is_err(), "{bad}");
    }
    let with_range = |first: &str, last: &str| {
        subnet(&SubnetRequest {
            lease_range: Some((ip(first), ip(last))),
            ..request("10.1.2.0/24")
        })
    };
    assert!(with_range("10.1.2.7", "10.1.2.7").is_ok());
    assert!(with_range("10.1.2.8", "10.1.2.7").is_err());
    assert!(with_range("10.1.2.8", "10.1.3.7").is_err());
    assert_eq!(
        range_of(&net("10.1.2.128/25")),
        (ip("10.1.2.129"), ip("10.1.2.255"))
    );
    assert_eq!(
        range_of(&net("10.1.2.7/32")),
        (ip("10.1.2.7"), ip("10.1.2.7"))
    );
}

#[test]
fn the_lowest_free_address_is_given() {
    let subnet = plain("10.1.2.0/29");
    let taken = |taken: &[&str]| {
        let taken: Vec<IpAddr> = taken.iter().map(|text| ip(text)).collect();
        lowest_free(&subnet, move |address| taken.contains(&address))
    };
    assert_eq!(taken(&[]), Some(ip("10.1.2.2")));
    assert_eq!(taken(&["10.1.2.2", "10.1.2.4"]), Some(ip("10.1.2.3")));
    let all = ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"];
    assert_eq!(taken(&all), None);
    let ranged = Subnet {
        lease_range: Some((ip("10.1.2.5"), ip("10.1.2.7"))),
        ..subnet.clone()
    };
    assert_eq!(lowest_free(&ranged, |_| false), Some(ip("10.1.2.5")));
    assert_eq!(
        lowest_free(&ranged, |address| address == ip("10.1.2.5")),
        Some(ip("10.1.2.6"))
    );
    assert_eq!(
        lowest_free(&ranged, |address| address >= ip("10.1.2.5")),
        None
    );
}

#[test]
fn what_a_container_asks_for_is_checked() {
    let subnet = plain("10.1.2.0/24");
    assert!(check_static(&subnet, ip("10.1.2.77")).is_ok());
    for (bad, word) in [
        ("10.1.2.0", "own address"),
        ("10.1.2.1", "gateway"),
        ("10.1.2.255", "broadcast"),
        ("10.1.3.1", "not in subnet"),
        ("fd00::5", "not in subnet"),
    ] {
        let error = check_static(&subnet, ip(bad)).unwrap_err().to_string();
        assert!(error.contains(word), "{bad}: {error}");
    }
}

#[test]
fn the_counterpart_has_the_same_host_part() {
    let (four, six) = (plain("10.88.0.0/16"), plain("fd00:1::/64"));
    assert_eq!(
        counterpart(&four, ip("10.88.1.2"), &six),
        Some(ip("fd00:1::102"))
    );
    assert_eq!(counterpart(&four, ip("10.88.0.1"), &six), None);
    assert_eq!(counterpart(&four, ip("10.87.0.1"), &six), None);
}

#[test]
fn macs_differ_by_container_and_network_and_stay() {
    let mac = |container: &str, network: &str| default_mac(container, network);
    assert_eq!(mac("a", "n"), mac("a", "n"));
    assert_ne!(mac("a", "n"), mac("b", "n"));
    assert_ne!(mac("a", "n"), mac("a", "m"));
    assert_ne!(mac("ab", "c"), mac("a", "bc"));
}

fn any_subnet() -> impl Strategy<Value = Subnet> {
    let four = (any::<u32>(), 8u8..=30).prop_map(|(address, prefix)| {
        let address = Ipv4Addr::from(0x0a00_0000 | (address & 0x00ff_ffff));
        IpNet::V4(Ipv4Net::new(address, prefix).unwrap())
    });
    let six = (any::<u64>(), 48u8..=126).prop_map(|(low, prefix)| {
        let address = Ipv6Addr::from((0xfd00_0001u128 << 96) | u128::from(low));
        IpNet::V6(Ipv6Net::new(address, prefix).unwrap())
    });
    prop_oneof![four, six].prop_map(|net| {
        subnet(&SubnetRequest {
            subnet: net,
            gateway: None,
            lease_range: None,
        })
        .unwrap()
    })
}

proptest! {
    #[test]
    fn free_subnets_overlap_nothing(used in proptest::collection::vec((any::<u32>(), 8u8..=32), 0..40)) {
        let used: Vec<IpNet> = used
            .into_iter()
            .map(|(address, prefix)| IpNet::V4(Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 | address >> 8), prefix).unwrap()))
            .collect();
        for made in [free_subnet_v4(&used), default_subnet_v4(&used)].into_iter().flatten() {
            prop_assert!(used.iter().all(|used| !overlap(used, &IpNet::V4(made))), "{made}");
            prop_assert!(made.network().is_private());
        }
    }

    #[test]
    fn given_addresses_are_ones_a_container_could_ask_for(subnet in any_subnet(), seed in any::<u64>(), attempt in 0u32..1000) {
        let found = probe(&subnet, seed, attempt).unwrap();
        prop_assert!(check_static(&subnet, found).is_ok(), "{found}");
        let found = lowest_free(&subnet, |_| false).unwrap();
        prop_assert!(check_static(&subnet, found).is_ok(), "{found}");
    }

    #[test]
    fn a_small_pool_is_given_out_to_the_last(prefix in 26u8..=30) {
        let subnet = plain(&format!("10.1.2.0/{prefix}"));
        let mut taken = BTreeSet::new();
        while let Some(address) = lowest_free(&subnet, |address| taken.contains(&address)) {
            prop_assert!(taken.insert(address));
        }
        prop_assert_eq!(taken.len(), (1usize << (32 - prefix)) - 3);
    }

    #[test]
    fn ranges_are_kept_to(low in 2u8..120, length in 0u8..100) {
        let bounds = (ip(&format!("10.1.2.{low}")), ip(&format!("10.1.2.{}", low + length)));
        let subnet = subnet(&SubnetRequest { lease_range: Some(bounds), ..request("10.1.2.0/24") }).unwrap();
        for attempt in 0..50 {
            let found = probe(&subnet, 12345, attempt).unwrap();
            prop_assert!(bounds.0 <= found && found <= bounds.1);
        }
    }

    #[test]
    fn any_mac_is_one_an_interface_can_have(container in ".*", network in ".*") {
        let mac = default_mac(&container, &network);
        prop_assert_eq!(MacAddress::new(mac.bytes()), Some(mac));
        let _ = seed(&container);
    }
}
