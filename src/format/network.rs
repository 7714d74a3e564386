//! Networks and published ports, in Podman's shape.

use std::collections::BTreeMap;

use selkie_engine::network::{Attachment, ContainerNetwork, Kind, Network, StoredNetwork};
use selkie_engine::options::{CreateOptions, ExtraHost, PortMapping};
use serde::Serialize;

use super::time;

/// A network for `network inspect` and JSON.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "entities.NetworkInspectReport")]
pub struct NetworkData {
    name: String,
    id: String,
    driver: String,
    network_interface: String,
    created: String,
    subnets: Vec<SubnetData>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<RouteData>,
    ipv6_enabled: bool,
    internal: bool,
    dns_enabled: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    network_dns_servers: Vec<String>,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    ipam_options: BTreeMap<&'static str, &'static str>,
    /// Only `inspect` has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<BTreeMap<String, Member>>,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "types.Subnet")]
struct SubnetData {
    subnet: String,
    gateway: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_range: Option<LeaseRange>,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "types.Route")]
struct RouteData {
    destination: String,
    gateway: String,
    metric: u32,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "types.LeaseRange")]
struct LeaseRange {
    start_ip: String,
    end_ip: String,
}

/// A running container in a network.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "entities.NetworkContainerInfo")]
pub struct Member {
    name: String,
    interfaces: BTreeMap<String, Interface>,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "types.NetInterface")]
struct Interface {
    subnets: Vec<NetAddress>,
    mac_address: String,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "types.NetAddress")]
struct NetAddress {
    ipnet: String,
    gateway: String,
}

impl NetworkData {
    /// Without containers.
    pub fn new(stored: &StoredNetwork) -> Self {
        let network = &stored.definition;
        Self {
            name: network.name.clone(),
            id: network.id.clone(),
            driver: stored.driver.clone(),
            network_interface: match network.kind {
                Kind::Bridge => network.bridge().to_string(),
                // Its containers have a route each, and no bridge.
                Kind::Routed => String::new(),
            },
            created: time::json_style(&stored.created),
            subnets: network
                .subnets
                .iter()
                .map(|subnet| SubnetData {
                    subnet: subnet.subnet.to_string(),
                    gateway: subnet.gateway.to_string(),
                    lease_range: subnet.lease_range.map(|(first, last)| LeaseRange {
                        start_ip: first.to_string(),
                        end_ip: last.to_string(),
                    }),
                })
                .collect(),
            routes: network
                .routes
                .iter()
                .map(|route| RouteData {
                    destination: route.destination.to_string(),
                    gateway: route.gateway.to_string(),
                    metric: route.metric,
                })
                .collect(),
            ipv6_enabled: network.gateway_v6().is_some(),
            internal: network.internal,
            dns_enabled: network.dns_enabled,
            network_dns_servers: network
                .dns_servers
                .iter()
                .map(ToString::to_string)
                .collect(),
            labels: stored.labels.clone(),
            options: stored.options.clone(),
            ipam_options: BTreeMap::from([("driver", "host-local")]),
            containers: None,
        }
    }

    /// With the containers that run in it, by ID.
    pub fn with_members(mut self, members: BTreeMap<String, Member>) -> Self {
        self.containers = Some(members);
        self
    }
}

impl Member {
    /// A container called so, in this place.
    pub fn new(name: &str, network: &Network, attachment: &Attachment) -> Self {
        let interface = Interface {
            subnets: attachment
                .addresses
                .iter()
                .map(|address| NetAddress {
                    ipnet: address.to_string(),
                    gateway: network
                        .subnets
                        .iter()
                        .find(|subnet| subnet.subnet.contains(&address.addr()))
                        .map(|subnet| subnet.gateway.to_string())
                        .unwrap_or_default(),
                })
                .collect(),
            mac_address: attachment.mac.to_string(),
        };
        Self {
            name: name.to_owned(),
            interfaces: BTreeMap::from([(attachment.interface.to_string(), interface)]),
        }
    }
}

/// A row of `network ls`.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "networks.ListPrintReports", rename_all = "PascalCase")]
pub struct NetworkRow {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    driver: String,
    network_interface: String,
    created: String,
    subnets: Vec<SubnetRow>,
    #[serde(rename = "IPv6Enabled")]
    ipv6_enabled: bool,
    internal: bool,
    #[serde(rename = "DNSEnabled")]
    dns_enabled: bool,
    #[serde(rename = "NetworkDNSServers")]
    network_dns_servers: Vec<String>,
    labels: String,
    options: BTreeMap<String, String>,
    #[serde(rename = "IPAMOptions")]
    ipam_options: BTreeMap<&'static str, &'static str>,
}

#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "types.Subnet", rename_all = "PascalCase")]
struct SubnetRow {
    subnet: String,
    gateway: String,
}

impl NetworkRow {
    /// One network's row; its ID is cut unless `full`.
    pub fn new(stored: &StoredNetwork, full: bool) -> Self {
        let data = NetworkData::new(stored);
        let labels: Vec<String> = data
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Self {
            id: match data.id.get(..12) {
                Some(short) if !full => short.to_owned(),
                _ => data.id,
            },
            name: data.name,
            driver: data.driver,
            network_interface: data.network_interface,
            created: time::go_style(&stored.created),
            subnets: data
                .subnets
                .into_iter()
                .map(|subnet| SubnetRow {
                    subnet: subnet.subnet,
                    gateway: subnet.gateway,
                })
                .collect(),
            ipv6_enabled: data.ipv6_enabled,
            internal: data.internal,
            dns_enabled: data.dns_enabled,
            network_dns_servers: data.network_dns_servers,
            labels: labels.join(","),
            options: data.options,
            ipam_options: data.ipam_options,
        }
    }
}

/// `NetworkSettings` of a container.
#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectNetworkSettings", rename_all = "PascalCase")]
pub struct NetworkSettings {
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    gateway: String,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    global_ipv6_prefix_len: u8,
    mac_address: String,
    bridge: String,
    #[serde(rename = "SandboxID")]
    sandbox_id: String,
    hairpin_mode: bool,
    #[serde(rename = "LinkLocalIPv6Address")]
    link_local_ipv6_address: String,
    #[serde(rename = "LinkLocalIPv6PrefixLen")]
    link_local_ipv6_prefix_len: u8,
    ports: PortBindings,
    sandbox_key: String,
    networks: BTreeMap<String, Place>,
}

/// By `80/tcp`: where it is published; `null` for a port that is only exposed.
pub type PortBindings = BTreeMap<String, Option<Vec<HostPort>>>;

/// One end of a published port.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
#[serde(rename = "define.InspectHostPort", rename_all = "PascalCase")]
pub struct HostPort {
    host_ip: String,
    host_port: String,
}

/// A container's place in a network.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "define.InspectAdditionalNetwork", rename_all = "PascalCase")]
struct Place {
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    gateway: String,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    global_ipv6_prefix_len: u8,
    mac_address: String,
    #[serde(rename = "NetworkID")]
    network_id: String,
    driver_opts: Option<BTreeMap<String, String>>,
    #[serde(rename = "IPAMConfig")]
    ipam_config: Option<IpamConfig>,
    links: Option<Vec<String>>,
    aliases: Vec<String>,
    /// Selkie's own: what the interface in the container is called.
    interface_name: String,
}

/// What was asked for.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "define.InspectIPAMConfig")]
struct IpamConfig {
    #[serde(rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: String,
}

impl Place {
    fn new(place: &ContainerNetwork, short_id: &str) -> Self {
        let network = &place.network;
        let mut aliases = vec![short_id.to_owned()];
        aliases.extend(place.request.aliases.iter().cloned());
        let request = &place.request;
        let mut this = Self {
            network_id: network.name.clone(),
            aliases,
            ipam_config: (request.ip.is_some() || request.ip6.is_some()).then(|| IpamConfig {
                ipv4_address: request.ip.map(|ip| ip.to_string()).unwrap_or_default(),
                ipv6_address: request.ip6.map(|ip| ip.to_string()).unwrap_or_default(),
            }),
            mac_address: request.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            interface_name: request
                .interface
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            ..Self::default()
        };
        let Some(attachment) = &place.attachment else {
            return this;
        };
        this.mac_address = attachment.mac.to_string();
        for address in &attachment.addresses {
            let (text, length) = (address.addr().to_string(), address.prefix_len());
            if address.addr().is_ipv4() {
                (this.ip_address, this.ip_prefix_len) = (text, length);
                this.gateway = network
                    .gateway_v4()
                    .map(|address| address.to_string())
                    .unwrap_or_default();
            } else {
                (this.global_ipv6_address, this.global_ipv6_prefix_len) = (text, length);
                this.ipv6_gateway = network
                    .gateway_v6()
                    .map(|address| address.to_string())
                    .unwrap_or_default();
            }
        }
        this
    }
}

impl NetworkSettings {
    /// Of a container in these networks; `sandbox` is its network namespace while it runs.
    pub fn new(
        options: &CreateOptions,
        places: &[ContainerNetwork],
        short_id: &str,
        sandbox: String,
    ) -> Self {
        let networks: BTreeMap<String, Place> = places
            .iter()
            .map(|place| (place.network.name.clone(), Place::new(place, short_id)))
            .collect();
        // As Podman, the old fields are about the default network, when it is the only one.
        let only = match places {
            [one] if one.network.kind == Kind::Routed => {
                networks.get(&one.network.name).cloned().unwrap_or_default()
            }
            _ => Place::default(),
        };
        Self {
            gateway: only.gateway,
            ip_address: only.ip_address,
            ip_prefix_len: only.ip_prefix_len,
            ipv6_gateway: only.ipv6_gateway,
            global_ipv6_address: only.global_ipv6_address,
            global_ipv6_prefix_len: only.global_ipv6_prefix_len,
            mac_address: only.mac_address,
            ports: port_bindings(options),
            sandbox_key: sandbox,
            networks,
            ..Self::default()
        }
    }
}

/// Every published port, and every exposed one.
pub fn port_bindings(options: &CreateOptions) -> PortBindings {
    let mut bindings = PortBindings::new();
    for exposed in &options.expose {
        for port in exposed.ports() {
            bindings.insert(format!("{port}/{}", exposed.protocol), None);
        }
    }
    for mapping in &options.ports {
        for (host, container) in mapping.pairs() {
            bindings
                .entry(format!("{container}/{}", mapping.protocol))
                .or_default()
                .get_or_insert_default()
                .push(HostPort {
                    host_ip: host_address(mapping),
                    host_port: host.to_string(),
                });
        }
    }
    bindings
}

fn host_address(mapping: &PortMapping) -> String {
    mapping
        .host_ip
        .map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string())
}

/// `0.0.0.0:8080->80/tcp, …`, as `ps` shows them.
pub fn port_column(ports: &[PortMapping]) -> String {
    let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// A published port in the JSON of `ps`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename = "types.PortMapping")]
pub struct PortJson {
    host_ip: String,
    container_port: u16,
    host_port: u16,
    range: u16,
    protocol: &'static str,
}

impl PortJson {
    /// All of a container's; `None` when it has none, as in Podman.
    pub fn all(ports: &[PortMapping]) -> Option<Vec<Self>> {
        let all: Vec<Self> = ports
            .iter()
            .map(|mapping| Self {
                host_ip: mapping
                    .host_ip
                    .map(|address| address.to_string())
                    .unwrap_or_default(),
                container_port: mapping.container_port,
                host_port: mapping.host_port,
                range: mapping.count,
                protocol: mapping.protocol.as_str(),
            })
            .collect();
        (!all.is_empty()).then_some(all)
    }
}

/// `--add-host` as it was given.
pub fn extra_host(host: &ExtraHost) -> String {
    let address = host
        .address
        .map_or_else(|| "host-gateway".to_owned(), |address| address.to_string());
    format!("{}:{address}", host.names.join(";"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use selkie_engine::options::{ExposedPorts, Protocol};

    fn mapping(host: u16, container: u16, count: u16) -> PortMapping {
        PortMapping {
            host_ip: None,
            host_port: host,
            container_port: container,
            count,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn ports_by_their_names() {
        let options = CreateOptions {
            ports: vec![mapping(8080, 80, 2), mapping(9090, 80, 1)],
            expose: vec![
                ExposedPorts {
                    port: 80,
                    count: 1,
                    protocol: Protocol::Tcp,
                },
                ExposedPorts {
                    port: 53,
                    count: 1,
                    protocol: Protocol::Udp,
                },
            ],
            ..CreateOptions::default()
        };
        assert_eq!(
            serde_json::to_string(&port_bindings(&options)).unwrap(),
            r#"{"53/udp":null,"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"0.0.0.0","HostPort":"9090"}],"81/tcp":[{"HostIp":"0.0.0.0","HostPort":"8081"}]}"#
        );
        assert_eq!(
            port_column(&options.ports),
            "0.0.0.0:8080-8081->80-81/tcp, 0.0.0.0:9090->80/tcp"
        );
        assert_eq!(PortJson::all(&options.ports).unwrap().len(), 2);
        assert!(PortJson::all(&[]).is_none());
    }
}
