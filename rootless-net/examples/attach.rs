//! Connects the network namespaces of given processes to an uplink and says how long it took.
//!
//! `unshare -Urm --map-auto … attach DIR PID…`
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use selkie_net::member::Member;
use selkie_net::network::{Attachment, DEFAULT_MTU, Kind, MacAddress, Network, Subnet};
use selkie_net::port_mapping::{PortMapping, Protocol};
use selkie_net::uplink::{UplinkConfig, connect};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: attach DIR PID…")?;
    let config = UplinkConfig {
        dir: dir.into(),
        search_path: ["/usr/bin", "/usr/sbin"].map(Into::into).to_vec(),
        resolv_conf: "/etc/resolv.conf".into(),
    };
    let network = |name: &str, kind, third: u8| -> Result<Network, Box<dyn std::error::Error>> {
        Ok(Network {
            name: name.into(),
            id: format!("{third:02x}").repeat(32),
            kind,
            subnets: vec![
                Subnet {
                    subnet: format!("10.88.{third}.0/24").parse()?,
                    gateway: format!("10.88.{third}.1").parse()?,
                    lease_range: None,
                },
                Subnet {
                    subnet: format!("fd88:{third}::/64").parse()?,
                    gateway: format!("fd88:{third}::1").parse()?,
                    lease_range: None,
                },
            ],
            internal: false,
            isolation: Default::default(),
            mtu: DEFAULT_MTU,
            dns_enabled: true,
            dns_servers: Vec::new(),
            routes: Vec::new(),
        })
    };
    let networks = [
        network("routed", Kind::Routed, 0)?,
        network("bridged", Kind::Bridge, 1)?,
    ];
    for (number, pid) in arguments.enumerate() {
        let host = number as u8 + 2;
        let raw: i32 = pid.parse()?;
        let namespace = rustix::fs::open(
            format!("/proc/{raw}/ns/net"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let pidfd = pidfd_open(Pid::from_raw(raw).ok_or("PID")?, PidfdFlags::empty())?;
        let attachments = networks
            .iter()
            .enumerate()
            .map(|(third, network)| {
                Ok(Attachment {
                    network: network.name.clone(),
                    interface: format!("eth{third}").parse()?,
                    addresses: vec![
                        format!("10.88.{third}.{host}/24").parse()?,
                        format!("fd88:{third}::{host}/64").parse()?,
                    ],
                    mac: MacAddress::local([2, 0, 0, 0, third as u8, host]),
                    aliases: Vec::new(),
                })
            })
            .collect::<Result<Vec<_>, Box<dyn std::error::Error>>>()?;
        let member = Member {
            container: format!("{raw:064x}").chars().rev().collect(),
            names: vec![format!("c{number}")],
            attachments,
            ports: vec![PortMapping {
                host_ip: None,
                host_port: 8080 + number as u16,
                container_port: 80,
                count: 1,
                protocol: Protocol::Tcp,
            }],
            dns_servers: Vec::new(),
        };
        let begin = Instant::now();
        let mut uplink = connect(&config)?;
        let connected = begin.elapsed();
        let warnings = uplink.attach(&member, &networks, None, namespace.as_fd(), pidfd.as_fd())?;
        println!(
            "{pid}: connect {connected:?}, in all {:?} {warnings:?}",
            begin.elapsed()
        );
        println!("{:?}", uplink.status()?);
    }
    Ok(())
}
