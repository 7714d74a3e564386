//! `inspect` of a container, in Podman's shape. What Selkie has not (pods, devices, resource
//! limits) is there with the value that says so, because scripts look it up.

use std::collections::BTreeMap;

use selkie_engine::container::{Container, Status};
use selkie_engine::images::Image;
use selkie_engine::options::{
    DnsServers, MountOption, MountSource, NetworkMode, PidMode, RootSource, SeccompOption,
    UsernsMode,
};
use selkie_engine::{Engine, IdExtent};
use serde::Serialize;

use super::network::{NetworkSettings, PortBindings, extra_host, port_bindings};
use super::{container, time};
use crate::error::Result;

/// The whole object.
#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectContainerData", rename_all = "PascalCase")]
pub struct InspectContainer {
    id: String,
    created: String,
    path: String,
    args: Vec<String>,
    state: State,
    image: String,
    image_digest: String,
    image_name: String,
    rootfs: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
    pod: String,
    resolv_conf_path: String,
    hostname_path: String,
    hosts_path: String,
    static_dir: String,
    #[serde(rename = "OCIConfigPath")]
    oci_config_path: String,
    #[serde(rename = "OCIRuntime")]
    oci_runtime: &'static str,
    conmon_pid_file: String,
    pid_file: String,
    name: String,
    restart_count: u32,
    driver: String,
    mount_label: String,
    process_label: String,
    app_armor_profile: String,
    effective_caps: Vec<String>,
    bounding_caps: Vec<String>,
    #[serde(rename = "ExecIDs")]
    exec_ids: Vec<String>,
    graph_driver: GraphDriver,
    mounts: Vec<Mount>,
    dependencies: Vec<String>,
    network_settings: NetworkSettings,
    namespace: String,
    is_infra: bool,
    is_service: bool,
    config: Config,
    host_config: HostConfig,
    slice: Slice,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectContainerState", rename_all = "PascalCase")]
struct State {
    oci_version: &'static str,
    status: &'static str,
    running: bool,
    paused: bool,
    restarting: bool,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    dead: bool,
    pid: i32,
    conmon_pid: i32,
    exit_code: i32,
    error: String,
    started_at: String,
    finished_at: String,
    health: Health,
    cgroup_path: String,
    checkpointed_at: &'static str,
    restored_at: &'static str,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.HealthCheckResults", rename_all = "PascalCase")]
struct Health {
    status: String,
    failing_streak: u32,
    log: Option<Vec<String>>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.DriverData", rename_all = "PascalCase")]
struct GraphDriver {
    name: &'static str,
    data: BTreeMap<String, String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectMount", rename_all = "PascalCase")]
struct Mount {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    source: String,
    destination: String,
    driver: &'static str,
    mode: String,
    options: Vec<String>,
    #[serde(rename = "RW")]
    rw: bool,
    propagation: &'static str,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectContainerConfig", rename_all = "PascalCase")]
struct Config {
    hostname: String,
    domainname: String,
    user: String,
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    tty: bool,
    open_stdin: bool,
    stdin_once: bool,
    env: Vec<String>,
    cmd: Vec<String>,
    image: String,
    volumes: Option<BTreeMap<String, String>>,
    working_dir: String,
    entrypoint: String,
    on_build: Option<String>,
    exposed_ports: BTreeMap<String, Empty>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    stop_signal: i32,
    create_command: Vec<String>,
    umask: &'static str,
    timeout: u32,
    stop_timeout: u32,
    passwd: bool,
    #[serde(rename = "sdNotifyMode")]
    sd_notify_mode: &'static str,
}

/// `{}`: Go's set of names is a map to these.
#[derive(Debug, Default, Serialize)]
struct Empty {}

#[derive(Debug, Default, Serialize)]
#[serde(
    rename = "define.InspectContainerHostConfig",
    rename_all = "PascalCase"
)]
struct HostConfig {
    binds: Vec<String>,
    cgroup_manager: String,
    cgroup_mode: String,
    #[serde(rename = "ContainerIDFile")]
    container_id_file: String,
    log_config: LogConfig,
    network_mode: String,
    port_bindings: PortBindings,
    restart_policy: RestartPolicy,
    auto_remove: bool,
    volume_driver: String,
    volumes_from: Option<Vec<String>>,
    cap_add: Vec<String>,
    cap_drop: Vec<String>,
    dns: Vec<String>,
    dns_options: Vec<String>,
    dns_search: Vec<String>,
    extra_hosts: Vec<String>,
    group_add: Vec<String>,
    ipc_mode: &'static str,
    cgroup: String,
    links: Option<Vec<String>>,
    oom_score_adj: i32,
    pid_mode: &'static str,
    privileged: bool,
    publish_all_ports: bool,
    readonly_rootfs: bool,
    security_opt: Vec<String>,
    tmpfs: BTreeMap<String, String>,
    #[serde(rename = "UTSMode")]
    uts_mode: &'static str,
    userns_mode: String,
    #[serde(rename = "IDMappings")]
    id_mappings: IdMappings,
    shm_size: u64,
    runtime: &'static str,
    init: bool,
    cgroup_parent: String,
    memory: u64,
    nano_cpus: u64,
    pids_limit: u64,
    devices: Vec<String>,
    ulimits: Vec<Ulimit>,
    sysctls: BTreeMap<String, String>,
    /// From here on limits there are none of, for scripts that look them up.
    cgroups: &'static str,
    console_size: [u32; 2],
    isolation: &'static str,
    cpu_shares: u64,
    cpu_period: u64,
    cpu_quota: i64,
    cpu_realtime_period: u64,
    cpu_realtime_runtime: i64,
    cpuset_cpus: &'static str,
    cpuset_mems: &'static str,
    cpu_count: u64,
    cpu_percent: u64,
    blkio_weight: u16,
    blkio_weight_device: Option<Vec<String>>,
    blkio_device_read_bps: Option<Vec<String>>,
    blkio_device_write_bps: Option<Vec<String>>,
    #[serde(rename = "BlkioDeviceReadIOps")]
    blkio_device_read_iops: Option<Vec<String>>,
    #[serde(rename = "BlkioDeviceWriteIOps")]
    blkio_device_write_iops: Option<Vec<String>>,
    disk_quota: u64,
    kernel_memory: i64,
    memory_reservation: i64,
    memory_swap: i64,
    memory_swappiness: i64,
    oom_kill_disable: bool,
    #[serde(rename = "IOMaximumIOps")]
    io_maximum_iops: u64,
    #[serde(rename = "IOMaximumBandwidth")]
    io_maximum_bandwidth: u64,
    cgroup_conf: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectLogConfig", rename_all = "PascalCase")]
struct LogConfig {
    #[serde(rename = "Type")]
    kind: &'static str,
    config: Option<BTreeMap<String, String>>,
    path: String,
    tag: String,
    size: &'static str,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectRestartPolicy", rename_all = "PascalCase")]
struct RestartPolicy {
    name: String,
    maximum_retry_count: u32,
}

/// Container ID, intermediate ID (0 is the login), count: as `--uidmap` takes them.
#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectIDMappings", rename_all = "PascalCase")]
struct IdMappings {
    uid_map: Vec<String>,
    gid_map: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectUlimit", rename_all = "PascalCase")]
struct Ulimit {
    name: String,
    soft: i64,
    hard: i64,
}

/// Selkie's own: which host IDs the container's IDs are. Empty while the container holds none.
#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectSlice", rename_all = "PascalCase")]
struct Slice {
    uid_map: Vec<Extent>,
    gid_map: Vec<Extent>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "define.InspectSliceExtent", rename_all = "PascalCase")]
struct Extent {
    #[serde(rename = "ContainerID")]
    container_id: u32,
    #[serde(rename = "HostID")]
    host_id: u32,
    size: u32,
}

/// Bytes of `/dev/shm`, as the default spec makes it.
const SHM_SIZE: u64 = 65_536_000;

impl InspectContainer {
    /// From what the engine knows; the image may be gone.
    pub fn new(engine: &Engine, of: &Container, image: Option<&Image>) -> Result<Self> {
        let options = &of.config.options;
        let capabilities = options.capabilities()?;
        let (path, args) = match of.config.argv.split_first() {
            Some((path, args)) => (path.clone(), args.to_vec()),
            None => (String::new(), Vec::new()),
        };
        Ok(Self {
            id: of.id.as_str().to_owned(),
            created: time::json_style(&of.created),
            path,
            args,
            state: state(of),
            image: of.image_id.clone(),
            image_digest: image.map(|image| image.digest.clone()).unwrap_or_default(),
            image_name: of.config.image_name.clone(),
            rootfs: match &options.root {
                Some(RootSource::Directory(path)) => path.display().to_string(),
                _ => String::new(),
            },
            oci_runtime: "selkie",
            name: of.name.clone(),
            driver: "overlay".to_owned(),
            effective_caps: capabilities.clone(),
            bounding_caps: capabilities,
            graph_driver: GraphDriver {
                name: "overlay",
                data: BTreeMap::new(),
            },
            mounts: options
                .mounts
                .iter()
                .filter_map(|mount| inspect_mount(engine, mount))
                .collect(),
            config: config(of),
            host_config: host_config(engine, of),
            network_settings: network_settings(engine, of)?,
            resolv_conf_path: etc_path(engine, of, "resolv.conf"),
            hostname_path: etc_path(engine, of, "hostname"),
            hosts_path: etc_path(engine, of, "hosts"),
            static_dir: engine
                .log_path(&of.id)
                .parent()
                .map(|directory| directory.display().to_string())
                .unwrap_or_default(),
            slice: slice(of),
            ..Self::default()
        })
    }

    /// Adds what `--size` measured.
    pub fn set_size(&mut self, size: container::DiskSize) {
        self.size_rw = Some(size.rw_size);
        self.size_root_fs = Some(size.root_fs_size);
    }
}

fn network_settings(engine: &Engine, of: &Container) -> Result<NetworkSettings> {
    let places = engine.container_networks(of)?;
    let sandbox = if of.pid > 0 && of.config.options.network != NetworkMode::Host {
        format!("/proc/{}/ns/net", of.pid)
    } else {
        String::new()
    };
    let options = &of.config.options;
    Ok(NetworkSettings::new(
        options,
        &places,
        of.id.short(),
        sandbox,
    ))
}

/// A file made for the container at its start; empty before that.
fn etc_path(engine: &Engine, of: &Container, name: &str) -> String {
    let directory = engine.log_path(&of.id).with_file_name("etc");
    let path = directory.join(name);
    if path.exists() {
        path.display().to_string()
    } else {
        String::new()
    }
}

fn state(of: &Container) -> State {
    let exit = of.exit.as_ref();
    let is_running = matches!(of.status, Status::Running | Status::Stopping);
    State {
        oci_version: "1.2.0",
        status: container::state(of.status),
        running: is_running,
        dead: false,
        pid: of.pid,
        conmon_pid: of.monitor_pid,
        // While it runs there is no exit code yet, whatever an earlier run's was.
        exit_code: exit.filter(|_| !is_running).map_or(0, |exit| exit.code),
        error: exit
            .filter(|_| !is_running)
            .and_then(|exit| exit.error.clone())
            .unwrap_or_default(),
        started_at: of
            .started
            .as_deref()
            .map_or_else(|| time::NEVER.to_owned(), time::json_style),
        finished_at: exit.map_or_else(
            || time::NEVER.to_owned(),
            |exit| time::json_style(&exit.finished),
        ),
        checkpointed_at: time::NEVER,
        restored_at: time::NEVER,
        ..State::default()
    }
}

fn config(of: &Container) -> Config {
    let options = &of.config.options;
    Config {
        hostname: options
            .hostname
            .clone()
            .unwrap_or_else(|| of.id.short().to_owned()),
        user: of.config.user.clone(),
        tty: options.terminal,
        open_stdin: options.interactive,
        env: of
            .config
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        cmd: of.config.argv.clone(),
        image: of.config.image_name.clone(),
        working_dir: of.config.workdir.clone(),
        entrypoint: options
            .entrypoint
            .as_ref()
            .map(|words| words.join(" "))
            .unwrap_or_default(),
        exposed_ports: options
            .expose
            .iter()
            .flat_map(|exposed| {
                let protocol = exposed.protocol;
                exposed
                    .ports()
                    .map(move |port| format!("{port}/{protocol}"))
            })
            .map(|port| (port, Empty {}))
            .collect(),
        labels: of.config.labels.clone(),
        annotations: options.annotations.clone(),
        stop_signal: of.config.stop_signal,
        create_command: options.create_command.clone(),
        umask: "0022",
        stop_timeout: of.config.stop_timeout,
        sd_notify_mode: "container",
        ..Config::default()
    }
}

fn host_config(engine: &Engine, of: &Container) -> HostConfig {
    let options = &of.config.options;
    let maps = of.maps.as_ref();
    HostConfig {
        binds: options.mounts.iter().filter_map(bind).collect(),
        log_config: LogConfig {
            kind: "k8s-file",
            path: engine.log_path(&of.id).display().to_string(),
            size: "0B",
            ..LogConfig::default()
        },
        network_mode: options.network.describe(),
        port_bindings: port_bindings(options),
        publish_all_ports: options.publish_all,
        dns: match &options.names.dns_servers {
            DnsServers::OfNetworks => Vec::new(),
            DnsServers::These(servers) => servers.iter().map(ToString::to_string).collect(),
            DnsServers::ImagesOwn => vec!["none".to_owned()],
        },
        dns_options: options.names.dns_options.clone(),
        dns_search: options.names.dns_search.clone().unwrap_or_default(),
        extra_hosts: options.names.extra_hosts.iter().map(extra_host).collect(),
        auto_remove: options.remove,
        cap_add: options.cap_add.clone(),
        cap_drop: options.cap_drop.clone(),
        ipc_mode: "private",
        pid_mode: match options.pid {
            PidMode::Private => "private",
            PidMode::Host => "host",
        },
        readonly_rootfs: options.read_only,
        security_opt: security_options(options),
        tmpfs: options
            .mounts
            .iter()
            .filter(|mount| mount.source == MountSource::Tmpfs)
            .map(|mount| (mount.destination.clone(), mount_options(mount).join(",")))
            .collect(),
        uts_mode: "private",
        userns_mode: userns_mode(&options.userns),
        id_mappings: IdMappings {
            uid_map: maps
                .map(|maps| mapping(maps.uid.extents()))
                .unwrap_or_default(),
            gid_map: maps
                .map(|maps| mapping(maps.gid.extents()))
                .unwrap_or_default(),
        },
        shm_size: SHM_SIZE,
        runtime: "oci",
        init: options.init,
        ulimits: options.ulimits.iter().map(ulimit).collect(),
        sysctls: options.sysctls.clone(),
        cgroups: "default",
        ..HostConfig::default()
    }
}

fn ulimit((name, soft, hard): &(String, u64, u64)) -> Ulimit {
    // No limit is -1, as Podman shows it.
    let shown = |limit: u64| i64::try_from(limit).unwrap_or(-1);
    Ulimit {
        name: format!("RLIMIT_{}", name.to_uppercase()),
        soft: shown(*soft),
        hard: shown(*hard),
    }
}

fn security_options(options: &selkie_engine::options::CreateOptions) -> Vec<String> {
    let mut texts = Vec::new();
    if options.no_new_privileges {
        texts.push("no-new-privileges".to_owned());
    }
    match options.seccomp {
        SeccompOption::Default => {}
        SeccompOption::Unconfined => texts.push("seccomp=unconfined".to_owned()),
        SeccompOption::Profile(_) => texts.push("seccomp=profile".to_owned()),
    }
    if !options.mask.is_empty() {
        texts.push(format!("mask={}", options.mask.join(":")));
    }
    if !options.unmask.is_empty() {
        texts.push(format!("unmask={}", options.unmask.join(":")));
    }
    texts
}

/// The flag that asks for this mode again.
fn userns_mode(mode: &UsernsMode) -> String {
    match mode {
        UsernsMode::AutoDefault | UsernsMode::Auto { size: None } => "auto".to_owned(),
        UsernsMode::Auto { size: Some(size) } => format!("auto:size={size}"),
        UsernsMode::KeepId { uid, gid, size } => {
            let options: Vec<String> = [("uid", uid), ("gid", gid), ("size", size)]
                .iter()
                .filter_map(|(name, value)| value.map(|value| format!("{name}={value}")))
                .collect();
            if options.is_empty() {
                "keep-id".to_owned()
            } else {
                format!("keep-id:{}", options.join(","))
            }
        }
        UsernsMode::Host => "host".to_owned(),
        UsernsMode::Nomap => "nomap".to_owned(),
        UsernsMode::Maps { .. } => "private".to_owned(),
    }
}

fn mount_options(mount: &MountOption) -> Vec<String> {
    let mut options = mount.options.clone();
    options.insert(0, if mount.read_only { "ro" } else { "rw" }.to_owned());
    options
}

/// Binds and volumes as `--volume` takes them.
fn bind(mount: &MountOption) -> Option<String> {
    let source = match &mount.source {
        MountSource::Bind(path) => path.display().to_string(),
        MountSource::Volume(name) => name.clone(),
        MountSource::AnonymousVolume | MountSource::Tmpfs => return None,
    };
    let options = mount_options(mount).join(",");
    Some(format!("{source}:{}:{options}", mount.destination))
}

/// Binds and volumes; Podman lists tmpfs elsewhere.
fn inspect_mount(engine: &Engine, mount: &MountOption) -> Option<Mount> {
    let (kind, name, source) = match &mount.source {
        MountSource::Bind(path) => ("bind", String::new(), path.display().to_string()),
        MountSource::Volume(name) => (
            "volume",
            name.clone(),
            engine
                .config
                .data_dir
                .join("volumes")
                .join(name)
                .join("_data")
                .display()
                .to_string(),
        ),
        MountSource::AnonymousVolume => ("volume", String::new(), String::new()),
        MountSource::Tmpfs => return None,
    };
    const PROPAGATION: &[&str] = &[
        "shared",
        "rshared",
        "slave",
        "rslave",
        "private",
        "unbindable",
    ];
    let propagation = PROPAGATION
        .iter()
        .find(|word| mount.options.iter().any(|option| option == *word));
    Some(Mount {
        kind,
        name,
        source,
        destination: mount.destination.clone(),
        driver: if kind == "volume" { "local" } else { "" },
        mode: String::new(),
        options: mount.options.clone(),
        rw: !mount.read_only,
        propagation: propagation.copied().unwrap_or("rprivate"),
    })
}

fn slice(of: &Container) -> Slice {
    let Some(maps) = &of.host_maps else {
        return Slice::default();
    };
    let extents = |extents: &[IdExtent]| {
        extents
            .iter()
            .map(|extent| Extent {
                container_id: extent.inside,
                host_id: extent.outside,
                size: extent.count,
            })
            .collect()
    };
    Slice {
        uid_map: extents(maps.uid.extents()),
        gid_map: extents(maps.gid.extents()),
    }
}

/// As `--uidmap` takes it.
fn mapping(extents: &[IdExtent]) -> Vec<String> {
    extents
        .iter()
        .map(|extent| format!("{}:{}:{}", extent.inside, extent.outside, extent.count))
        .collect()
}
