//! What `info` tells about host, store and login, in Podman's JSON shape where that has a place for
//! it; what only Selkie has is under `selkie`.

mod network;

use std::collections::BTreeMap;
use std::path::Path;

use selkie_runtime::default_spec::{capabilities, capability_name};
use selkie_userns::IdMap;
use serde::Serialize;

use crate::Engine;
use crate::container::Status;
use crate::container::lease::parse_maps;
use crate::error::{Error, Result};
pub use network::{NetworkInfo, UplinkInfo};

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// The machine and the login's place on it.
    pub host: HostInfo,
    /// Images and containers.
    pub store: StoreInfo,
    /// What Podman has no place for.
    pub selkie: SelkieInfo,
    /// This program.
    pub version: VersionInfo,
}

/// The machine and the login's place on it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostInfo {
    /// As Go names it (`amd64`).
    pub arch: String,
    /// `v1` or `v2`.
    pub cgroup_version: String,
    /// Controllers the login may use.
    pub cgroup_controllers: Vec<String>,
    /// Number of processors.
    pub cpus: usize,
    /// From `/etc/os-release`.
    pub distribution: Distribution,
    /// The host's name.
    pub hostname: String,
    /// Pause namespace ↔ host.
    pub id_mappings: IdMappings,
    /// Kernel release.
    pub kernel: String,
    /// Where containers' output goes.
    pub log_driver: String,
    /// Bytes.
    pub mem_free: u64,
    /// Bytes.
    pub mem_total: u64,
    /// Bytes.
    pub swap_free: u64,
    /// Bytes.
    pub swap_total: u64,
    /// What runs containers.
    pub oci_runtime: OciRuntime,
    /// Always `linux`.
    pub os: String,
    /// Whether this is only a client of a service.
    pub service_is_remote: bool,
    /// What confines containers.
    pub security: Security,
    /// `1h 42m 56s`.
    pub uptime: String,
}

/// From `/etc/os-release`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Distribution {
    /// `ID`.
    pub distribution: String,
    /// `VERSION_ID`.
    pub version: String,
    /// `VERSION_CODENAME`.
    pub codename: String,
}

/// Pause namespace ↔ host.
#[derive(Debug, Clone, Serialize)]
pub struct IdMappings {
    /// Group IDs.
    pub gidmap: Vec<IdMapping>,
    /// User IDs.
    pub uidmap: Vec<IdMapping>,
}

/// One extent; its fields are Podman's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdMapping {
    /// First ID in the namespace.
    pub container_id: u32,
    /// First ID on the host.
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// What runs containers.
#[derive(Debug, Clone, Serialize)]
pub struct OciRuntime {
    /// Always `selkie`: built in.
    pub name: String,
    /// This program.
    pub path: String,
    /// Its version.
    pub version: String,
}

/// What confines containers.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Security {
    /// Whether AppArmor profiles are applied.
    pub apparmor_enabled: bool,
    /// Default capabilities.
    pub capabilities: String,
    /// Always: a login's containers.
    pub rootless: bool,
    /// Whether the kernel filters system calls.
    pub seccomp_enabled: bool,
    /// Built in.
    pub seccomp_profile_path: String,
    /// Whether SELinux labels are applied.
    pub selinux_enabled: bool,
}

/// Images and containers.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreInfo {
    /// How many containers.
    pub container_store: ContainerCounts,
    /// The presenter in use.
    pub graph_driver_name: String,
    /// Where everything is.
    pub graph_root: String,
    /// Bytes of that file system.
    pub graph_root_allocated: u64,
    /// Bytes of it in use by anybody.
    pub graph_root_used: u64,
    /// What presenters need, and whether this host has it (`true`, or what the kernel answered).
    pub graph_status: BTreeMap<String, String>,
    /// How many images.
    pub image_store: ImageCounts,
    /// What does not survive a reboot.
    pub run_root: String,
    /// Named volumes.
    pub volume_path: String,
}

/// How many containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ContainerCounts {
    /// All.
    pub number: usize,
    /// Always 0 as yet.
    pub paused: usize,
    /// Running.
    pub running: usize,
    /// The others.
    pub stopped: usize,
}

/// How many images.
#[derive(Debug, Clone, Serialize)]
pub struct ImageCounts {
    /// All.
    pub number: usize,
}

/// What Podman has no place for.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SelkieInfo {
    /// PID of the login's pause process.
    pub pause_pid: i32,
    /// Why the login has a single ID only, when it has.
    pub single_id_reason: Option<String>,
    /// That the host's ranges for the login have changed meanwhile, when they have.
    pub stale_ranges: Option<String>,
    /// The subordinate IDs and who has them.
    pub slices: SliceInfo,
    /// What connects containers.
    pub network: NetworkInfo,
}

/// The subordinate IDs and who has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceInfo {
    /// User IDs for containers.
    pub pool: u64,
    /// Held by containers.
    pub held: u64,
    /// Held by none.
    pub free: u64,
    /// How many containers hold some.
    pub holders: usize,
}

/// This program.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VersionInfo {
    /// Selkie's.
    pub version: String,
    /// `linux/amd64`.
    pub os_arch: String,
    /// `linux`.
    pub os: String,
}

impl Engine {
    /// Collects everything; tries features out, so not for hot paths.
    ///
    /// # Errors
    /// The database cannot be read, or `/proc` is not there.
    pub fn info(&self) -> Result<Info> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let arch = go_architecture(std::env::consts::ARCH).to_owned();
        Ok(Info {
            host: self.host_info(&version, &arch)?,
            store: self.store_info()?,
            selkie: SelkieInfo {
                pause_pid: self.pause.identity.pid,
                single_id_reason: self.pause.single_id_reason.clone(),
                stale_ranges: self.pause.stale_ranges.clone(),
                slices: self.slice_info()?,
                network: self.network_info()?,
            },
            version: VersionInfo {
                version,
                os_arch: format!("linux/{arch}"),
                os: "linux".to_owned(),
            },
        })
    }

    fn host_info(&self, version: &str, arch: &str) -> Result<HostInfo> {
        let uname = rustix::system::uname();
        let memory = read("/proc/meminfo")?;
        let bytes = |name| memory_field(&memory, name).unwrap_or(0);
        let (cgroup_version, cgroup_controllers) = cgroups();
        let status = read("/proc/self/status")?;
        let granted = capabilities(&[], &[])?;
        let mut names: Vec<String> = granted.into_iter().map(capability_name).collect();
        names.sort();
        Ok(HostInfo {
            arch: arch.to_owned(),
            cgroup_version,
            cgroup_controllers,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            distribution: distribution(&read("/etc/os-release").unwrap_or_default()),
            hostname: uname.nodename().to_string_lossy().into_owned(),
            id_mappings: IdMappings {
                gidmap: mappings(&self.pause.host_maps.gid),
                uidmap: mappings(&self.pause.host_maps.uid),
            },
            kernel: uname.release().to_string_lossy().into_owned(),
            log_driver: "k8s-file".to_owned(),
            mem_free: bytes("MemFree"),
            mem_total: bytes("MemTotal"),
            swap_free: bytes("SwapFree"),
            swap_total: bytes("SwapTotal"),
            oci_runtime: OciRuntime {
                name: "selkie".to_owned(),
                path: std::env::current_exe()
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
                version: version.to_owned(),
            },
            os: "linux".to_owned(),
            service_is_remote: false,
            security: Security {
                apparmor_enabled: false,
                capabilities: names.join(","),
                rootless: true,
                seccomp_enabled: status.lines().any(|line| line.starts_with("Seccomp:")),
                seccomp_profile_path: "default".to_owned(),
                selinux_enabled: false,
            },
            uptime: uptime(&read("/proc/uptime")?),
        })
    }

    fn store_info(&self) -> Result<StoreInfo> {
        let space = rustix::fs::statvfs(&self.config.data_dir).map_err(|errno| {
            Error::machine(
                format!("ask for the space at {}", self.config.data_dir.display()),
                errno,
            )
        })?;
        let used = space.f_blocks.saturating_sub(space.f_bfree);
        let mut counts = ContainerCounts::default();
        for container in self.containers()? {
            counts.number += 1;
            match container.status {
                Status::Running | Status::Stopping => counts.running += 1,
                Status::Created | Status::Exited => counts.stopped += 1,
            }
        }
        let images = self.database.read(|connection| {
            let number: i64 =
                connection.query_row("SELECT count(*) FROM image", [], |row| row.get(0))?;
            Ok(number)
        })?;
        Ok(StoreInfo {
            container_store: counts,
            graph_driver_name: selkie_storage::presenter::choose(None)?.name().to_owned(),
            graph_root: self.config.data_dir.display().to_string(),
            graph_root_allocated: space.f_blocks.saturating_mul(space.f_frsize),
            graph_root_used: used.saturating_mul(space.f_frsize),
            graph_status: selkie_storage::presenter::probe(&self.store)
                .into_iter()
                .map(|feature| {
                    let answer = feature.result.err().unwrap_or_else(|| "true".to_owned());
                    (feature.name.to_owned(), answer)
                })
                .collect(),
            image_store: ImageCounts {
                number: usize::try_from(images).unwrap_or(0),
            },
            run_root: self.config.run_dir.display().to_string(),
            volume_path: self.config.volumes_dir().display().to_string(),
        })
    }

    fn slice_info(&self) -> Result<SliceInfo> {
        let pool = self.pause.host_maps.uid.id_count().saturating_sub(1);
        self.database.read(|connection| {
            let mut info = SliceInfo {
                pool,
                held: 0,
                free: pool,
                holders: 0,
            };
            let mut statement =
                connection.prepare("SELECT id, lease FROM container WHERE lease IS NOT NULL")?;
            for row in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
                let (id, lease): (String, String) = row?;
                let maps = parse_maps(&lease, &id)?;
                // The login itself is nobody's.
                let login = u64::from(maps.uid.to_inside(0).is_some());
                info.holders += 1;
                info.held += maps.uid.id_count() - login;
            }
            info.free = pool.saturating_sub(info.held);
            Ok(info)
        })
    }
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| Error::machine(format!("read {path}"), error))
}

fn mappings(map: &IdMap) -> Vec<IdMapping> {
    map.extents()
        .iter()
        .map(|extent| IdMapping {
            container_id: extent.inside,
            host_id: extent.outside,
            size: extent.count,
        })
        .collect()
}

/// Go's name of an architecture.
fn go_architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Bytes of a `/proc/meminfo` line.
fn memory_field(table: &str, name: &str) -> Option<u64> {
    let line = table
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Version of the hierarchy at `/sys/fs/cgroup`, and the controllers given to the caller there.
fn cgroups() -> (String, Vec<String>) {
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return ("v1".to_owned(), Vec::new());
    }
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/");
    let controllers = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/cgroup.controllers"))
        .unwrap_or_default();
    (
        "v2".to_owned(),
        controllers
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect(),
    )
}

/// Fields of os-release(5), shell quotes removed.
fn distribution(os_release: &str) -> Distribution {
    let field = |name: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches(['"', '\'']).to_owned())
            .unwrap_or_default()
    };
    Distribution {
        distribution: field("ID"),
        version: field("VERSION_ID"),
        codename: field("VERSION_CODENAME"),
    }
}

/// The first number of `/proc/uptime`, in words.
fn uptime(text: &str) -> String {
    let seconds = text
        .split(['.', ' '])
        .next()
        .and_then(|seconds| seconds.parse::<u64>().ok())
        .unwrap_or(0);
    format!(
        "{}h {}m {}s",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_kernel_and_the_distribution() {
        let memory = "MemTotal:       24684084 kB\nMemFree:              12 kB\n";
        assert_eq!(memory_field(memory, "MemFree"), Some(12 * 1024));
        assert_eq!(memory_field(memory, "Mem"), None);
        let release = "NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n";
        let found = distribution(release);
        assert_eq!(
            (found.distribution.as_str(), found.version.as_str()),
            ("debian", "12")
        );
        assert_eq!(uptime("6176.43 100.0\n"), "1h 42m 56s");
        assert_eq!(uptime(""), "0h 0m 0s");
        assert_eq!(go_architecture("x86_64"), "amd64");
    }
}
