use super::*;
use crate::options::ExtraHost;

fn names<'a>(name: &'a str, host_name: &'a str, options: &'a NameOptions) -> Names<'a> {
    Names {
        name,
        host_name,
        options,
    }
}

fn online() -> Surroundings {
    Surroundings {
        addresses: vec!["10.88.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        name_servers: Vec::new(),
        forwarders: vec!["10.88.0.1".parse().unwrap()],
        host: Some("169.254.1.2".parse().unwrap()),
    }
}

#[test]
fn without_a_network_only_the_container_is_known() {
    let options = NameOptions::default();
    let files = EtcFiles::new(
        &NetworkMode::None,
        &Surroundings::default(),
        names("calm_seal", "0123456789ab", &options),
        None,
    )
    .unwrap();
    assert_eq!(
        files.hosts.unwrap(),
        "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\t0123456789ab calm_seal\n"
    );
    assert_eq!(files.hostname.unwrap(), "0123456789ab\n");
    assert_eq!(files.resolv_conf, None);
}

#[test]
fn on_the_hosts_network_its_hosts_are_kept() {
    let options = NameOptions::default();
    let text = |base: &str| {
        hosts(
            base,
            &NetworkMode::Host,
            &Surroundings::default(),
            names("x", "rock", &options),
        )
    };
    let base = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n10.0.0.1 rock # me";
    assert_eq!(text(base), format!("{base}\n"));
    assert_eq!(
        text("10.0.0.1 other"),
        "10.0.0.1 other\n127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\trock\n"
    );
}

#[test]
fn in_networks_it_knows_itself_and_the_host() {
    let options = NameOptions {
        extra_hosts: vec![
            ExtraHost {
                names: vec!["db".into(), "db.example".into()],
                address: Some("10.1.1.1".parse().unwrap()),
            },
            ExtraHost {
                names: vec!["gate".into()],
                address: None,
            },
        ],
        ..NameOptions::default()
    };
    let text = |base: &str| {
        hosts(
            base,
            &NetworkMode::default(),
            &online(),
            names("web", "abc", &options),
        )
    };
    assert_eq!(
        text("127.0.0.1 localhost\n"),
        "10.1.1.1\tdb db.example\n169.254.1.2\tgate\n127.0.0.1 localhost\n::1\tlocalhost\n\
         169.254.1.2\thost.containers.internal host.docker.internal\n\
         10.88.0.5\tabc web\nfd00::5\tabc web\n"
    );
    // What was given before wins, and a comment gives nothing.
    let given = text("1.2.3.4 web host.docker.internal # abc\n");
    assert!(given.contains("\n10.88.0.5\tabc\n"), "{given}");
    assert!(
        given.contains("169.254.1.2\thost.containers.internal\n"),
        "{given}"
    );
}

#[test]
fn files_can_be_left_to_the_image() {
    let options = NameOptions {
        no_hosts: true,
        no_hostname: true,
        dns_servers: DnsServers::ImagesOwn,
        ..NameOptions::default()
    };
    let files = EtcFiles::new(
        &NetworkMode::default(),
        &online(),
        names("web", "abc", &options),
        None,
    )
    .unwrap();
    assert_eq!(
        (files.hosts, files.hostname, files.resolv_conf),
        (None, None, None)
    );
}

#[test]
fn the_files_of_a_shared_network_are_shared() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("hosts"), "10.88.0.9\tother\n").unwrap();
    std::fs::write(temp.path().join("resolv.conf"), "nameserver 10.88.0.1\n").unwrap();
    let options = NameOptions::default();
    let files = EtcFiles::new(
        &NetworkMode::Container("x".into()),
        &Surroundings::default(),
        names("web", "abc", &options),
        Some(temp.path()),
    )
    .unwrap();
    assert_eq!(files.hosts.unwrap(), "10.88.0.9\tother\n");
    assert_eq!(files.resolv_conf.unwrap(), "nameserver 10.88.0.1\n");
    assert_eq!(files.hostname.unwrap(), "abc\n");
}

#[test]
fn changes_touch_only_their_own_lines() {
    let old = "10.1.1.1\tdb\n10.88.0.5\tabc web\nfd00::5\tabc web\n10.88.0.5\tmine";
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(
        change_hosts(
            old,
            &[address("10.89.0.2")],
            &[address("10.88.0.5"), address("fd00::5")],
            &["abc", "web"]
        ),
        "10.1.1.1\tdb\n10.88.0.5\tmine\n10.89.0.2\tabc web\n"
    );
    let temp = tempfile::tempdir().unwrap();
    change_hosts_file(temp.path(), &[address("10.89.0.2")], &[], &["abc"]).unwrap();
    assert!(!temp.path().join("etc").exists());
    std::fs::create_dir(temp.path().join("etc")).unwrap();
    let file = temp.path().join("etc/hosts");
    std::fs::write(&file, old).unwrap();
    change_hosts_file(temp.path(), &[], &[address("10.88.0.5")], &["abc"]).unwrap();
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "10.1.1.1\tdb\nfd00::5\tabc web\n10.88.0.5\tmine\n"
    );
}

#[test]
fn a_link_planted_in_place_of_a_file_is_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let victim = temp.path().join("victim");
    std::fs::write(&victim, "mine").unwrap();
    std::fs::create_dir(temp.path().join("etc")).unwrap();
    std::os::unix::fs::symlink(&victim, temp.path().join("etc/hosts")).unwrap();
    let dir = std::fs::File::open(temp.path()).unwrap();
    let options = NameOptions::default();
    let files = EtcFiles::new(
        &NetworkMode::None,
        &Surroundings::default(),
        names("a", "b", &options),
        None,
    )
    .unwrap();
    assert!(
        files
            .write(dir.as_fd(), temp.path(), &IdMaps::default())
            .is_err()
    );
    assert!(change_hosts_file(temp.path(), &[], &[], &[]).is_err());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
}

#[test]
fn the_host_has_an_address_by_the_mode() {
    let nowhere = Surroundings::default();
    let gateway = |mode: &NetworkMode| host_gateway(mode, &nowhere).map(|a| a.to_string());
    assert_eq!(gateway(&NetworkMode::Host).unwrap(), "127.0.0.1");
    assert_eq!(gateway(&NetworkMode::default()).unwrap(), "169.254.1.2");
    assert_eq!(gateway(&NetworkMode::None), None);
}
