//! The OCI spec of a container as Podman would start it: mounts, namespaces, capabilities, masked
//! and read-only paths, limits. The engine fills in what differs between containers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace,
    LinuxNamespaceType, Mount, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Root,
    Spec, User,
};

use crate::launch::LaunchError;
use crate::seccomp_profile::{self, Profile, Surroundings};

/// The container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Network {
    /// A new one; it has a loopback device only until somebody connects it.
    #[default]
    Own,
    /// The caller's.
    Host,
    /// An existing one (`/proc/PID/ns/net`, or a file that one is mounted on).
    Existing(PathBuf),
}

/// The container's PID namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    #[default]
    Private,
    /// The caller's.
    Host,
}

/// System call filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The default profile for the container's capabilities.
    #[default]
    Default,
    /// No filter.
    Unconfined,
    /// A profile in the containers project's JSON form.
    Profile(String),
}

/// What differs between containers. `..Default::default()` fits for the rest.
#[derive(Debug, Clone, Default)]
pub struct DefaultSpec {
    /// Command and arguments.
    pub argv: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved inside the root; empty is root.
    pub user: String,
    /// Give it a terminal.
    pub terminal: bool,
    /// UTS host name.
    pub hostname: String,
    /// Root file system read-only.
    pub read_only_root: bool,
    /// `CAP_X`, `X` or `ALL`, any case.
    pub cap_add: Vec<String>,
    /// As `cap_add`; dropping wins where both name one.
    pub cap_drop: Vec<String>,
    /// Network namespace.
    pub network: Network,
    /// In a network namespace of its own, group 0 may ping (Podman's default); otherwise that is left to
    /// whoever connects it.
    pub ping: bool,
    /// PID namespace.
    pub pid: PidNamespace,
    /// (container ID, caller's ID, count).
    pub uid_maps: Vec<(u32, u32, u32)>,
    /// (container ID, caller's ID, count).
    pub gid_maps: Vec<(u32, u32, u32)>,
    /// Mounts after the default ones; one on a default destination replaces that.
    pub mounts: Vec<Mount>,
    /// Further paths to hide.
    pub mask: Vec<String>,
    /// Default masked or read-only paths to leave alone; `ALL` for all of them.
    pub unmask: Vec<String>,
    /// Name without `RLIMIT_` (`nofile`), soft, hard.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Namespaced sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// Filter.
    pub seccomp: Seccomp,
    /// No privileges gained by `exec`.
    pub no_new_privileges: bool,
    /// OCI annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What containers may do by default (Podman's list).
pub const DEFAULT_CAPABILITIES: [Capability; 11] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Hidden by default: they tell of the host or of other containers.
pub const MASKED_PATHS: [&str; 13] = [
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/fs/selinux",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
];

/// `RLIMIT_NOFILE`, soft and hard, where the caller's own hard limit is not lower.
const MOST_FILES: u64 = 1 << 20;

/// Read-only by default.
pub const READ_ONLY_PATHS: [&str; 6] = [
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// All capabilities `cap_add`/`cap_drop` may name.
pub const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// The default capabilities, plus `add`, minus `drop`. `ALL` in `add` starts from all of them, in
/// `drop` from none (then only what `add` names remains), as Podman does.
///
/// # Errors
/// [`LaunchError::InvalidSpec`] for an unknown name or one that is both added and dropped.
pub fn capabilities(add: &[String], drop: &[String]) -> Result<HashSet<Capability>, LaunchError> {
    let (add_all, added) = parse_capabilities(add)?;
    let (drop_all, dropped) = parse_capabilities(drop)?;
    if let Some(both) = added.intersection(&dropped).next() {
        return Err(LaunchError::InvalidSpec(format!(
            "capability {} cannot be both added and dropped",
            capability_name(*both)
        )));
    }
    if add_all && drop_all {
        return Err(LaunchError::InvalidSpec(
            "capability ALL cannot be both added and dropped".into(),
        ));
    }
    let mut set: HashSet<Capability> = match (add_all, drop_all) {
        (true, _) => ALL_CAPABILITIES.into_iter().collect(),
        (_, true) => HashSet::new(),
        _ => DEFAULT_CAPABILITIES.into_iter().collect(),
    };
    set.extend(&added);
    set.retain(|capability| !dropped.contains(capability));
    Ok(set)
}

/// The name with `CAP_`, upper case.
pub fn capability_name(capability: Capability) -> String {
    format!("CAP_{capability}")
}

fn parse_capabilities(names: &[String]) -> Result<(bool, HashSet<Capability>), LaunchError> {
    let mut all = false;
    let mut set = HashSet::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            all = true;
        } else {
            let capability = bare.parse().map_err(|_| {
                LaunchError::InvalidSpec(format!(
                    "{name:?} is no capability: see capabilities(7), e.g. NET_ADMIN"
                ))
            })?;
            set.insert(capability);
        }
    }
    Ok((all, set))
}

/// Parses a limit's name as `--ulimit` takes it (`nofile` or `RLIMIT_NOFILE`).
pub fn parse_ulimit_name(name: &str) -> Option<PosixRlimitType> {
    let lower = name.to_ascii_lowercase();
    Some(match lower.strip_prefix("rlimit_").unwrap_or(&lower) {
        "as" => PosixRlimitType::RlimitAs,
        "core" => PosixRlimitType::RlimitCore,
        "cpu" => PosixRlimitType::RlimitCpu,
        "data" => PosixRlimitType::RlimitData,
        "fsize" => PosixRlimitType::RlimitFsize,
        "locks" => PosixRlimitType::RlimitLocks,
        "memlock" => PosixRlimitType::RlimitMemlock,
        "msgqueue" => PosixRlimitType::RlimitMsgqueue,
        "nice" => PosixRlimitType::RlimitNice,
        "nofile" => PosixRlimitType::RlimitNofile,
        "nproc" => PosixRlimitType::RlimitNproc,
        "rss" => PosixRlimitType::RlimitRss,
        "rtprio" => PosixRlimitType::RlimitRtprio,
        "rttime" => PosixRlimitType::RlimitRttime,
        "sigpending" => PosixRlimitType::RlimitSigpending,
        "stack" => PosixRlimitType::RlimitStack,
        _ => return None,
    })
}

impl DefaultSpec {
    /// The complete spec. The limit of open files is the caller's
    /// hard one; others not named in `ulimits` are inherited.
    ///
    /// # Errors
    /// [`LaunchError::InvalidSpec`] for unknown capabilities or limits, or a bad seccomp profile.
    pub fn build(self) -> Result<Spec, LaunchError> {
        let capability_set = capabilities(&self.cap_add, &self.cap_drop)?;
        let seccomp = self.seccomp_rules(&capability_set)?;
        let rlimits = self.rlimits()?;
        let mounts = self.all_mounts();
        let (masked, read_only) = self.hidden_paths();

        // Users other than root keep nothing of the above across exec, unless it is ambient: they
        // get what was asked for by name. The launcher, which learns who the user is, gives these
        // to nobody else.
        let (add_all, added) = parse_capabilities(&self.cap_add)?;
        let mut ambient = capability_set.clone();
        ambient.retain(|capability| add_all || added.contains(capability));

        let mut user = User::default();
        // Root too is looked up, for its home and its supplementary groups.
        user.set_username(Some(if self.user.is_empty() {
            "0".into()
        } else {
            self.user
        }));
        let mut granted = LinuxCapabilities::default();
        granted
            .set_bounding(Some(capability_set.clone()))
            .set_effective(Some(capability_set.clone()))
            .set_permitted(Some(capability_set))
            .set_inheritable(Some(ambient.clone()))
            .set_ambient(Some(ambient));
        let mut process = Process::default();
        process
            .set_terminal(Some(self.terminal))
            .set_user(user)
            .set_args(Some(self.argv))
            .set_env(Some(
                self.env
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect(),
            ))
            .set_cwd(PathBuf::from(if self.cwd.is_empty() {
                "/"
            } else {
                &self.cwd
            }))
            .set_capabilities(Some(granted))
            .set_rlimits(Some(rlimits))
            .set_no_new_privileges(Some(self.no_new_privileges));

        let mut linux = Linux::default();
        linux
            .set_uid_mappings(Some(id_mappings(&self.uid_maps)))
            .set_gid_mappings(Some(id_mappings(&self.gid_maps)))
            .set_sysctl(Some(sysctls(
                self.sysctls,
                self.ping && self.network == Network::Own,
                self.pid,
            )))
            .set_resources(None)
            .set_namespaces(Some(namespaces(&self.network, self.pid)))
            .set_masked_paths(Some(masked))
            .set_readonly_paths(Some(read_only))
            .set_seccomp(seccomp);

        let mut root = Root::default();
        root.set_path(PathBuf::from("/"))
            .set_readonly(Some(self.read_only_root));
        let mut spec = Spec::default();
        spec.set_root(Some(root))
            .set_mounts(Some(mounts))
            .set_process(Some(process))
            .set_hostname(Some(self.hostname))
            .set_annotations(Some(self.annotations.into_iter().collect()))
            .set_linux(Some(linux));
        Ok(spec)
    }

    fn seccomp_rules(
        &self,
        capabilities: &HashSet<Capability>,
    ) -> Result<Option<oci_spec::runtime::LinuxSeccomp>, LaunchError> {
        let has = |name: &str| {
            let bare = name.strip_prefix("CAP_").unwrap_or(name);
            bare.parse()
                .is_ok_and(|capability: Capability| capabilities.contains(&capability))
        };
        Ok(match &self.seccomp {
            Seccomp::Unconfined => None,
            Seccomp::Default => Some(seccomp_profile::default_profile(&has)),
            Seccomp::Profile(json) => {
                let release = rustix::system::uname()
                    .release()
                    .to_string_lossy()
                    .into_owned();
                let kernel = seccomp_profile::parse_kernel(&release).ok_or_else(|| {
                    LaunchError::InvalidSpec(format!("cannot read the kernel release {release:?}"))
                })?;
                let architecture = seccomp_profile::host_architecture();
                let here = Surroundings {
                    capabilities: &has,
                    architecture,
                    kernel,
                };
                Some(Profile::parse(json)?.resolve(&here)?)
            }
        })
    }

    fn rlimits(&self) -> Result<Vec<PosixRlimit>, LaunchError> {
        let limit = |typ, soft, hard| {
            let limit = PosixRlimitBuilder::default().typ(typ).soft(soft).hard(hard);
            limit.build().expect("every field is set")
        };
        // As many files as we may give, up to Podman's default.
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let files = files.maximum.unwrap_or(MOST_FILES).min(MOST_FILES);
        let mut limits = vec![limit(PosixRlimitType::RlimitNofile, files, files)];
        for (name, soft, hard) in &self.ulimits {
            let typ = parse_ulimit_name(name).ok_or_else(|| {
                LaunchError::InvalidSpec(format!(
                    "{name:?} is no limit: see getrlimit(2), e.g. nofile"
                ))
            })?;
            if soft > hard {
                return Err(LaunchError::InvalidSpec(format!(
                    "limit {name}: the soft limit {soft} is above the hard limit {hard}"
                )));
            }
            limits.retain(|limit| limit.typ() != typ);
            limits.push(limit(typ, *soft, *hard));
        }
        Ok(limits)
    }

    fn all_mounts(&self) -> Vec<Mount> {
        let mut mounts = default_mounts(&self.network, self.pid);
        for mount in &self.mounts {
            mounts.retain(|default| default.destination() != mount.destination());
        }
        mounts.extend(self.mounts.iter().cloned());
        mounts
    }

    fn hidden_paths(&self) -> (Vec<String>, Vec<String>) {
        let unmask_all = self
            .unmask
            .iter()
            .any(|path| path.eq_ignore_ascii_case("ALL"));
        let kept = |path: &&str| {
            !unmask_all
                && !self
                    .unmask
                    .iter()
                    .any(|unmask| unmask_matches(unmask, path))
        };
        let mut masked: Vec<String> = MASKED_PATHS
            .iter()
            .copied()
            .filter(kept)
            .map(str::to_owned)
            .collect();
        masked.extend(self.mask.iter().cloned());
        let read_only = READ_ONLY_PATHS
            .iter()
            .copied()
            .filter(kept)
            .map(str::to_owned)
            .collect();
        (masked, read_only)
    }
}

/// `--security-opt unmask=` takes paths, or patterns with a `*` at the end (`/proc/*`).
fn unmask_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern.trim_end_matches('/') == path,
    }
}

fn id_mappings(maps: &[(u32, u32, u32)]) -> Vec<LinuxIdMapping> {
    let mapping = |(container, host, size): &(u32, u32, u32)| {
        LinuxIdMappingBuilder::default()
            .container_id(*container)
            .host_id(*host)
            .size(*size)
            .build()
            .expect("every field is set")
    };
    maps.iter().map(mapping).collect()
}

/// What was asked for, and with `ping` that group 0 may ping, since raw sockets need a capability that
/// containers do not have. Only through a `/proc` of its own, which
/// a container in the host's PID namespace has not.
fn sysctls(
    asked: BTreeMap<String, String>,
    ping: bool,
    pid: PidNamespace,
) -> HashMap<String, String> {
    const PING: &str = "net.ipv4.ping_group_range";
    let mut sysctls: HashMap<String, String> = asked.into_iter().collect();
    if ping && pid == PidNamespace::Private {
        let spelled_otherwise = PING.replace('.', "/");
        if !sysctls.contains_key(&spelled_otherwise) {
            sysctls.entry(PING.into()).or_insert_with(|| "0 0".into());
        }
    }
    sysctls
}

fn namespaces(network: &Network, pid: PidNamespace) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType as Type;
    let mut types = vec![Type::User, Type::Mount, Type::Ipc, Type::Uts, Type::Cgroup];
    if *network != Network::Host {
        types.push(Type::Network);
    }
    if pid == PidNamespace::Private {
        types.push(Type::Pid);
    }
    let namespace = |typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        if let (Type::Network, Network::Existing(path)) = (typ, network) {
            namespace.set_path(Some(path.clone()));
        }
        namespace
    };
    types.into_iter().map(namespace).collect()
}

fn default_mounts(network: &Network, pid: PidNamespace) -> Vec<Mount> {
    let proc = match pid {
        PidNamespace::Private => mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        // A proc of the caller's PID namespace cannot be mounted from below; it can be shown.
        PidNamespace::Host => mount(
            "/proc",
            "bind",
            "/proc",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev"],
        ),
    };
    let sys = match network {
        Network::Own => mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        // sysfs belongs to a network namespace: without an own one only the caller's can be shown.
        Network::Host | Network::Existing(_) => mount(
            "/sys",
            "bind",
            "/sys",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"],
        ),
    };
    let quiet = ["nosuid", "noexec", "nodev"];
    vec![
        proc,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"],
        ),
        sys,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &quiet),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536000"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ]
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(
            options.iter().map(|option| (*option).to_owned()).collect(),
        ));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(add: &[&str], drop: &[&str]) -> Result<Vec<String>, LaunchError> {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let set = capabilities(&owned(add), &owned(drop))?;
        let mut names: Vec<_> = set.into_iter().map(capability_name).collect();
        names.sort();
        Ok(names)
    }

    #[test]
    fn capability_arithmetic() {
        assert_eq!(names(&[], &[]).unwrap().len(), 11);
        assert_eq!(names(&["all"], &[]).unwrap().len(), 41);
        assert_eq!(names(&[], &["ALL"]).unwrap(), Vec::<String>::new());
        assert_eq!(names(&["net_admin"], &["all"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert_eq!(names(&["ALL"], &["CAP_SYS_ADMIN"]).unwrap().len(), 40);
        assert!(
            names(&["CAP_NET_RAW"], &[])
                .unwrap()
                .contains(&"CAP_NET_RAW".to_owned())
        );
        assert!(names(&["NO_SUCH"], &[]).is_err());
        assert!(names(&["CHOWN"], &["CHOWN"]).is_err());
        assert!(names(&["ALL"], &["ALL"]).is_err());
    }

    #[test]
    fn own_mounts_replace_default_ones_and_unmask_opens_paths() {
        let spec = DefaultSpec {
            mounts: vec![mount("/dev/shm", "tmpfs", "mine", &[])],
            unmask: vec!["/proc/*".into()],
            mask: vec!["/etc/secret".into()],
            ..Default::default()
        }
        .build()
        .unwrap();
        let mounts = spec.mounts().as_ref().unwrap();
        let shm: Vec<_> = mounts
            .iter()
            .filter(|m| m.destination().as_os_str() == "/dev/shm")
            .collect();
        assert_eq!(shm.len(), 1);
        assert_eq!(
            shm[0].source().as_deref(),
            Some(std::path::Path::new("mine"))
        );
        let linux = spec.linux().as_ref().unwrap();
        let masked = linux.masked_paths().as_ref().unwrap();
        assert!(!masked.iter().any(|path| path.starts_with("/proc")));
        assert!(masked.contains(&"/etc/secret".to_owned()));
        assert!(masked.contains(&"/sys/firmware".to_owned()));
        assert!(linux.readonly_paths().as_ref().unwrap().is_empty());
    }

    #[test]
    fn bad_limits_are_refused() {
        let with = |name: &str, soft, hard| {
            DefaultSpec {
                ulimits: vec![(name.into(), soft, hard)],
                ..Default::default()
            }
            .build()
        };
        assert!(with("nofile", 10, 20).is_ok());
        assert!(with("nofile", 20, 10).is_err());
        assert!(with("nofiles", 10, 10).is_err());
    }

    #[test]
    fn namespaces_follow_the_request() {
        let count = |network: &Network, pid| {
            let spec = DefaultSpec {
                network: network.clone(),
                pid,
                ..Default::default()
            }
            .build()
            .unwrap();
            spec.linux()
                .as_ref()
                .unwrap()
                .namespaces()
                .as_ref()
                .unwrap()
                .len()
        };
        assert_eq!(count(&Network::Own, PidNamespace::Private), 7);
        assert_eq!(count(&Network::Host, PidNamespace::Host), 5);
    }
}
