//! From an OCI spec to the script a child runs, its maps and its namespaces.
//!
//! All that can be refused is refused here, before any process exists.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use oci_spec::runtime::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, LinuxSeccomp, Mount,
    PosixRlimitType, Process, Spec,
};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Resource, Rlimit};
use selkie_sys::SysError;
use selkie_sys::clone::CloneNamespaces;
use selkie_sys::exec::PreparedCommand;
use selkie_sys::mount::set_attributes;

use crate::capabilities;
use crate::child::DEVICES;
use crate::in_root::{self, Kind};
use crate::launch::LaunchError;
use crate::mount_options::{MountOptions, attribute, root_propagation};
use crate::script::{Base, NewFileSystem, Slot, Step, Target};
use crate::seccomp_filter;
use crate::user_database::UserError;

type Result<T> = std::result::Result<T, LaunchError>;

pub(crate) fn invalid(message: impl Into<String>) -> LaunchError {
    LaunchError::InvalidSpec(message.into())
}

/// Namespaces the child starts in, and those the launching process visits meanwhile so that the
/// child inherits them.
pub(crate) struct Namespaces {
    pub(crate) new: CloneNamespaces,
    /// Existing ones (`path` in the spec), open.
    pub(crate) joined: Vec<(LinuxNamespaceType, OwnedFd)>,
}

impl Namespaces {
    pub(crate) fn of(spec: &Spec) -> Result<Self> {
        let mut namespaces = Self {
            // Always: what a container may do, it may do as root of its own user namespace.
            new: CloneNamespaces::USER | CloneNamespaces::MOUNT,
            joined: Vec::new(),
        };
        let listed = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
        for namespace in listed.into_iter().flatten() {
            let kind = namespace.typ();
            let flag = match kind {
                LinuxNamespaceType::Mount => CloneNamespaces::MOUNT,
                LinuxNamespaceType::Cgroup => CloneNamespaces::CGROUP,
                LinuxNamespaceType::Uts => CloneNamespaces::UTS,
                LinuxNamespaceType::Ipc => CloneNamespaces::IPC,
                LinuxNamespaceType::User => CloneNamespaces::USER,
                LinuxNamespaceType::Pid => CloneNamespaces::PID,
                LinuxNamespaceType::Network => CloneNamespaces::NETWORK,
                LinuxNamespaceType::Time => {
                    return Err(invalid("time namespaces are not supported"));
                }
            };
            match namespace.path() {
                None => namespaces.new |= flag,
                Some(_) if kind == LinuxNamespaceType::Mount => {
                    return Err(invalid(
                        "joining an existing mount namespace is not supported",
                    ));
                }
                Some(path) => {
                    namespaces.new.remove(flag);
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
                    let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(
                        |errno| {
                            SysError::new(
                                format!("open the {kind} namespace {}", path.display()),
                                errno,
                            )
                        },
                    )?;
                    namespaces.joined.push((kind, fd));
                }
            }
        }
        Ok(namespaces)
    }

    /// Those the parent does not wait for: it needs the child's user namespace at once, and a PID
    /// namespace can only be cloned into. A network namespace alone takes the kernel longer than
    /// all others together.
    pub(crate) fn made_by_child(&self) -> CloneNamespaces {
        self.new & !Self::MADE_BY_CLONE
    }

    pub(crate) fn made_by_clone(&self) -> CloneNamespaces {
        self.new & Self::MADE_BY_CLONE
    }

    const MADE_BY_CLONE: CloneNamespaces = CloneNamespaces::USER
        .union(CloneNamespaces::PID)
        .union(CloneNamespaces::MOUNT);

    pub(crate) fn has(&self, flag: CloneNamespaces, kind: LinuxNamespaceType) -> bool {
        self.new.contains(flag) || self.joined.iter().any(|(joined, _)| *joined == kind)
    }
}

/// One of the two ID maps.
#[derive(Debug, Clone)]
pub(crate) struct Map(Vec<LinuxIdMapping>);

impl Map {
    /// What `/proc/PID/uid_map` says.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(|line| {
            let mut words = line.split_ascii_whitespace();
            let mut word = || words.next()?.parse::<u32>().ok();
            LinuxIdMappingBuilder::default()
                .container_id(word()?)
                .host_id(word()?)
                .size(word()?)
                .build()
                .ok()
        });
        lines.collect::<Option<Vec<_>>>().map(Self)
    }

    pub(crate) fn of(kind: &str, mappings: &Option<Vec<LinuxIdMapping>>) -> Result<Self> {
        match mappings {
            Some(mappings) if !mappings.is_empty() => Ok(Self(mappings.clone())),
            _ => Err(invalid(format!("the spec has no {kind} mappings"))),
        }
    }

    /// The text for `/proc/PID/uid_map`.
    pub(crate) fn to_proc_text(&self) -> String {
        use std::fmt::Write;
        let mut text = String::with_capacity(self.0.len() * 24);
        for m in &self.0 {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{} {} {}", m.container_id(), m.host_id(), m.size());
        }
        text
    }

    /// The ID on the launching side.
    pub(crate) fn to_outside(&self, inside: u32) -> Option<u32> {
        self.0.iter().find_map(|m| {
            let offset = inside.checked_sub(m.container_id())?;
            (offset < m.size()).then(|| m.host_id().checked_add(offset))?
        })
    }

    /// 0 when mapped, else the lowest mapped ID.
    pub(crate) fn acting_root(&self) -> u32 {
        let ids = self.0.iter().map(LinuxIdMapping::container_id);
        ids.min().unwrap_or(0)
    }

    pub(crate) fn is_single(&self) -> bool {
        self.0.len() == 1 && self.0[0].size() == 1
    }

    /// Refuses an ID that the map lacks.
    pub(crate) fn check(&self, kind: &'static str, id: u32) -> std::result::Result<(), UserError> {
        if self.to_outside(id).is_some() {
            return Ok(());
        }
        let ranges = self.0.iter().map(|m| match m.size() {
            1 => m.container_id().to_string(),
            size => {
                let last = m.container_id().saturating_add(size.saturating_sub(1));
                format!("{}-{last}", m.container_id())
            }
        });
        Err(UserError::NotMapped {
            kind,
            id,
            mapped: ranges.collect::<Vec<_>>().join(", "),
        })
    }
}

/// Builds the list of steps and the table of mounts.
pub(crate) struct Preparation<'a> {
    spec: &'a Spec,
    namespaces: &'a Namespaces,
    gid_map: &'a Map,
    /// Steps that do not need the root: the child does them while its parent provides it.
    before_root: Vec<Step>,
    /// Steps on the root.
    on_root: Vec<Step>,
    pub(crate) slots: Vec<Option<OwnedFd>>,
    /// Mounts made by the script itself, by destination, in order.
    made: Vec<(String, Base)>,
    null: Option<Slot>,
    proc: Option<Slot>,
    devpts: Option<Slot>,
}

/// Parts of a spec that this runtime does not do, so that they are never silently left undone.
fn refuse_unsupported(spec: &Spec) -> Result<()> {
    let hooks = spec.hooks().as_ref();
    if hooks.is_some_and(|hooks| *hooks != oci_spec::runtime::Hooks::default()) {
        return Err(invalid("hooks are not supported"));
    }
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if let Some(process) = spec.process() {
        if given(process.apparmor_profile()) || given(process.selinux_label()) {
            return Err(invalid(
                "AppArmor profiles and SELinux labels are not supported",
            ));
        }
        if process.scheduler().is_some() || process.io_priority().is_some() {
            return Err(invalid(
                "process.scheduler and ioPriority are not supported",
            ));
        }
    }
    if let Some(linux) = spec.linux() {
        if given(linux.mount_label()) {
            return Err(invalid("linux.mountLabel is not supported"));
        }
        if linux.intel_rdt().is_some() || linux.time_offsets().is_some() {
            return Err(invalid("linux.intelRdt and timeOffsets are not supported"));
        }
        if linux.net_devices().as_ref().is_some_and(|d| !d.is_empty())
            || linux.memory_policy().is_some()
        {
            return Err(invalid(
                "linux.netDevices and memoryPolicy are not supported",
            ));
        }
    }
    Ok(())
}

impl<'a> Preparation<'a> {
    pub(crate) fn new(
        spec: &'a Spec,
        namespaces: &'a Namespaces,
        uid_map: &Map,
        gid_map: &'a Map,
    ) -> Result<Self> {
        refuse_unsupported(spec)?;
        let mut before_root = Vec::new();
        let later = namespaces.made_by_child();
        if !later.is_empty() {
            before_root.push(Step::Unshare(later));
        }
        // Before the process stops being dumpable.
        let process = spec.process().as_ref();
        before_root.extend(process.and_then(Process::oom_score_adj).map(Step::OomScore));
        before_root.push(Step::AssumeRoot {
            uid: uid_map.acting_root(),
            gid: gid_map.acting_root(),
        });
        before_root.push(Step::NewSession);
        Ok(Self {
            spec,
            namespaces,
            gid_map,
            before_root,
            on_root: Vec::new(),
            slots: Vec::new(),
            made: Vec::new(),
            null: None,
            proc: None,
            devpts: None,
        })
    }

    fn empty_slot(&mut self) -> Slot {
        self.slots.push(None);
        self.slots.len() - 1
    }

    fn filled_slot(&mut self, mount: OwnedFd) -> Slot {
        self.slots.push(Some(mount));
        self.slots.len() - 1
    }

    /// The target for an absolute path inside the container. Below a mount of our own making the
    /// path starts there; anywhere else it starts at the root and may meet an image's links.
    fn target(&self, path: &Path) -> Result<Target> {
        let shown = path.display().to_string();
        if !path.is_absolute() {
            return Err(invalid(format!("{shown}: not an absolute path")));
        }
        let plain = path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let found = self
            .made
            .iter()
            .rev()
            .filter(|_| plain)
            .find_map(|(destination, base)| Some((base, path.strip_prefix(destination).ok()?)));
        let (base, rest) = match found {
            // The mount point itself: what is mounted there next covers it as a whole.
            Some((_, rest)) if rest.as_os_str().is_empty() => (Base::Root, path),
            Some((base @ Base::Mount(_), rest)) => (*base, rest),
            Some((Base::Root, _)) | None => (Base::Root, path),
        };
        let rest = rest.strip_prefix("/").unwrap_or(rest);
        let text = rest.as_os_str().as_encoded_bytes();
        let text = if text.is_empty() { b"." } else { text };
        Ok(Target {
            base,
            path: c_string(text, &shown)?,
            shown,
        })
    }

    pub(crate) fn names(&mut self) -> Result<()> {
        let own_uts = self
            .namespaces
            .has(CloneNamespaces::UTS, LinuxNamespaceType::Uts);
        for (name, what) in [
            (self.spec.hostname(), "hostname"),
            (self.spec.domainname(), "domainname"),
        ] {
            let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else {
                continue;
            };
            if !own_uts {
                return Err(invalid(format!(
                    "{what} {name:?} needs a UTS namespace of the container's own"
                )));
            }
            self.before_root.push(match what {
                "hostname" => Step::HostName(name.clone()),
                _ => Step::DomainName(name.clone()),
            });
        }
        Ok(())
    }

    pub(crate) fn mounts(&mut self) -> Result<()> {
        let spec = self.spec;
        for mount in spec.mounts().iter().flatten() {
            self.mount(mount)?;
        }
        let dev_is_mounted = self.made.iter().any(|(path, _)| path == "/dev");
        if !dev_is_mounted {
            let target = self.target(Path::new("/dev"))?;
            self.dev_nodes(target)?;
        }
        Ok(())
    }

    fn mount(&mut self, mount: &Mount) -> Result<()> {
        let destination = mount.destination();
        let shown = destination.display().to_string();
        if !destination.is_absolute() || destination == Path::new("/") {
            return Err(invalid(format!(
                "mount destination {shown:?}: must be an absolute path below /"
            )));
        }
        let empty = |m: &Option<Vec<LinuxIdMapping>>| m.as_ref().is_none_or(Vec::is_empty);
        if !empty(mount.uid_mappings()) || !empty(mount.gid_mappings()) {
            return Err(invalid(format!(
                "{shown}: ID mappings of single mounts are not supported"
            )));
        }
        let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default());
        let kind = mount.typ().as_deref().unwrap_or_default();
        match kind {
            "bind" | "rbind" | "none" | "" => self.bind(mount, options, &shown),
            _ if options.bind.is_some() => self.bind(mount, options, &shown),
            "cgroup" | "cgroup2" => self.cgroup(mount, options, &shown),
            _ => self.file_system(mount, kind, options, &shown),
        }
    }

    /// The parent opens the source, since only it may be able to reach it.
    fn bind(&mut self, mount: &Mount, options: MountOptions, shown: &str) -> Result<()> {
        if let Some((key, _)) = options.data.first() {
            return Err(invalid(format!(
                "{shown}: unknown option {key:?} for a bind mount"
            )));
        }
        if options.copy_up {
            return Err(invalid(format!("{shown}: tmpcopyup is for tmpfs only")));
        }
        let source = mount.source().as_deref().filter(|path| path.is_absolute());
        let source = source
            .ok_or_else(|| invalid(format!("{shown}: a bind mount needs an absolute source")))?;
        let recursive = options.bind == Some(true) || mount.typ().as_deref() == Some("rbind");
        let detached = open_source(source, recursive)?;
        for (attributes, tree) in options.bind_attributes() {
            set_attributes(detached.as_fd(), attributes, tree)?;
        }
        let kind = kind_of(&detached, source)?;
        let slot = self.filled_slot(detached);
        let target = self.target(mount.destination())?;
        self.on_root.push(Step::Attach { slot, target, kind });
        // What is mounted here later starts from the root again.
        self.made.push((shown.to_owned(), Base::Root));
        Ok(())
    }

    fn file_system(
        &mut self,
        mount: &Mount,
        kind: &str,
        options: MountOptions,
        shown: &str,
    ) -> Result<()> {
        if options.copy_up && kind != "tmpfs" {
            return Err(invalid(format!("{shown}: tmpcopyup is for tmpfs only")));
        }
        let file_system = self.new_file_system(mount, kind, &options, shown)?;
        let slot = self.empty_slot();
        let mut target = self.target(mount.destination())?;
        // Read-only from the start, unless something is to be put in first.
        let is_dev = shown == "/dev" && kind == "tmpfs";
        let late = file_system.attributes as u64 & attribute::READ_ONLY;
        let filled_first = (is_dev || options.copy_up) && late != 0;
        let mut file_system = file_system;
        if filled_first {
            file_system.attributes &= !(attribute::READ_ONLY as u32);
        }
        self.before_root.push(Step::Create {
            slot,
            file_system,
            otherwise: None,
        });
        if options.copy_up {
            let target = target.clone();
            self.on_root.push(Step::CopyUp { slot, target });
        }
        target.shown = shown.to_owned();
        self.on_root.push(Step::Attach {
            slot,
            target,
            kind: Kind::Directory,
        });
        match kind {
            "proc" => self.proc = Some(slot),
            "devpts" => self.devpts = Some(slot),
            _ => {}
        }
        // A copied-up tmpfs holds an image's links again.
        let base = if options.copy_up {
            Base::Root
        } else {
            Base::Mount(slot)
        };
        self.made.push((shown.to_owned(), base));
        if is_dev {
            let inside = Target {
                base: Base::Mount(slot),
                path: c".".into(),
                shown: shown.to_owned(),
            };
            self.dev_nodes(inside)?;
        }
        if filled_first {
            self.on_root.push(Step::Restrict {
                slot,
                attributes: late,
                recursive: false,
                shown: shown.to_owned(),
            });
        }
        Ok(())
    }

    fn new_file_system(
        &self,
        mount: &Mount,
        kind: &str,
        options: &MountOptions,
        shown: &str,
    ) -> Result<NewFileSystem> {
        let mut parameters = Vec::with_capacity(options.data.len() + 1);
        if let Some(source) = mount.source() {
            let source = c_string(source.as_os_str().as_encoded_bytes(), shown)?;
            parameters.push((c"source".into(), Some(source)));
        }
        for (key, value) in &options.data {
            // The usual `gid=5` (tty) cannot be where that group is not mapped.
            let unmapped_tty = kind == "devpts"
                && key == "gid"
                && value
                    .as_deref()
                    .and_then(|gid| gid.parse().ok())
                    .is_some_and(|gid| self.gid_map.to_outside(gid).is_none());
            if unmapped_tty {
                continue;
            }
            let value = value
                .as_ref()
                .map(|value| c_string(value.as_bytes(), shown));
            parameters.push((c_string(key.as_bytes(), shown)?, value.transpose()?));
        }
        Ok(NewFileSystem {
            kind: c_string(kind.as_bytes(), shown)?,
            parameters,
            attributes: (options.set | options.set_recursive) as u32,
        })
    }

    /// cgroup v2 only. In a cgroup namespace of its own the container sees its subtree; where the
    /// kernel does not give one, an empty read-only directory stands in. Without such a namespace
    /// it sees the host's hierarchy, as every process of the host does.
    fn cgroup(&mut self, mount: &Mount, mut options: MountOptions, shown: &str) -> Result<()> {
        options.data.clear();
        let target = self.target(mount.destination())?;
        let attributes = options.set | options.set_recursive;
        let slot = self.empty_slot();
        if self.namespaces.new.contains(CloneNamespaces::CGROUP) {
            let file_system = self.new_file_system(mount, "cgroup2", &options, shown)?;
            let otherwise = NewFileSystem {
                kind: c"tmpfs".into(),
                parameters: vec![(c"mode".into(), Some(c"555".into()))],
                attributes: (attributes | attribute::READ_ONLY) as u32,
            };
            self.before_root.push(Step::Create {
                slot,
                file_system,
                otherwise: Some(otherwise),
            });
        } else {
            self.before_root.push(Step::CloneHostPath {
                slot,
                path: c"/sys/fs/cgroup".into(),
                recursive: true,
            });
            self.before_root.push(Step::Restrict {
                slot,
                attributes,
                recursive: true,
                shown: shown.to_owned(),
            });
        }
        self.on_root.push(Step::Attach {
            slot,
            target,
            kind: Kind::Directory,
        });
        self.made.push((shown.to_owned(), Base::Root));
        Ok(())
    }

    /// Links and nodes of the `/dev` at `target`.
    fn dev_nodes(&mut self, target: Target) -> Result<()> {
        let base = target.base;
        let populate = Step::PopulateDev { target };
        // A tmpfs of our own can be filled before it is attached.
        match base {
            Base::Mount(_) => self.before_root.push(populate),
            Base::Root => self.on_root.push(populate),
        }
        for device in DEVICES {
            let name = device.to_string_lossy();
            let slot = self.host_device(&name)?;
            let path = if base == Base::Root { "dev/" } else { "" };
            let shown = format!("/dev/{name}");
            self.on_root.push(Step::Attach {
                slot,
                target: Target {
                    base,
                    path: c_string(format!("{path}{name}").as_bytes(), &shown)?,
                    shown,
                },
                kind: Kind::File,
            });
            if device == c"null" {
                self.null = Some(slot);
            }
        }
        Ok(())
    }

    fn host_device(&mut self, name: &str) -> Result<Slot> {
        let slot = self.empty_slot();
        let path = format!("/dev/{name}");
        self.before_root.push(Step::CloneHostPath {
            slot,
            path: c_string(path.as_bytes(), &path)?,
            recursive: false,
        });
        Ok(slot)
    }

    /// `linux.devices`: unprivileged users cannot make nodes, so the host's are bound.
    pub(crate) fn devices(&mut self) -> Result<()> {
        use oci_spec::runtime::LinuxDeviceType;
        use rustix::fs::{FileType, major, minor};
        let linux = self.spec.linux().as_ref();
        let devices = linux.and_then(|linux| linux.devices().as_ref());
        for device in devices.into_iter().flatten() {
            let path = device.path();
            let shown = path.display().to_string();
            if DEVICES
                .iter()
                .any(|d| shown == format!("/dev/{}", d.to_string_lossy()))
            {
                continue;
            }
            let detached = open_source(path, false)?;
            let stat = rustix::fs::fstat(&detached)
                .map_err(|errno| SysError::new(format!("stat {shown}"), errno))?;
            let wanted = match device.typ() {
                LinuxDeviceType::B => FileType::BlockDevice,
                LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
                other => return Err(invalid(format!("{shown}: device type {other:?}"))),
            };
            if FileType::from_raw_mode(stat.st_mode) != wanted
                || i64::from(major(stat.st_rdev)) != device.major()
                || i64::from(minor(stat.st_rdev)) != device.minor()
            {
                return Err(invalid(format!(
                    "{shown}: the host has no device {}:{} there",
                    device.major(),
                    device.minor()
                )));
            }
            let slot = self.filled_slot(detached);
            let target = self.target(path)?;
            self.on_root.push(Step::Attach {
                slot,
                target,
                kind: Kind::File,
            });
        }
        Ok(())
    }

    pub(crate) fn terminal(&mut self, size: Option<(u16, u16)>) -> Result<()> {
        let slot = self
            .devpts
            .ok_or_else(|| invalid("a terminal needs a devpts mount on /dev/pts"))?;
        let console = self.target(Path::new("/dev/console"))?;
        self.on_root.push(Step::OpenTerminal {
            slot,
            size,
            console: Some(console),
        });
        Ok(())
    }

    /// Sysctls, then masked and read-only paths, which cover `/proc/sys`.
    pub(crate) fn hide_paths(&mut self) -> Result<()> {
        let Some(linux) = self.spec.linux() else {
            return Ok(());
        };
        let mut sysctls: Vec<_> = linux.sysctl().iter().flatten().collect();
        sysctls.sort();
        for (name, value) in sysctls {
            let path = self.sysctl_path(name)?;
            let slot = self
                .proc
                .ok_or_else(|| invalid(format!("sysctl {name} needs a proc mount on /proc")))?;
            self.on_root.push(Step::Sysctl {
                slot,
                path,
                value: value.clone(),
                name: name.clone(),
            });
        }
        let masked = linux.masked_paths().iter().flatten();
        for path in masked {
            let target = self.target(Path::new(path))?;
            let null = match self.null {
                Some(null) => null,
                None => self.host_device("null")?,
            };
            self.null = Some(null);
            self.on_root.push(Step::Mask { target, null });
        }
        for path in linux.readonly_paths().iter().flatten() {
            let target = self.target(Path::new(path))?;
            self.on_root.push(Step::ReadOnly { target });
        }
        Ok(())
    }

    /// Only what the container's own namespaces hold may be set; anything else would be refused by
    /// the kernel, or worse, be the host's.
    fn sysctl_path(&self, name: &str) -> Result<CString> {
        let dotted = name.replace('/', ".");
        let (flag, kind) = if dotted.starts_with("net.") {
            (CloneNamespaces::NETWORK, LinuxNamespaceType::Network)
        } else if ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|prefix| dotted.starts_with(prefix))
            || dotted == "kernel.sem"
        {
            (CloneNamespaces::IPC, LinuxNamespaceType::Ipc)
        } else if dotted == "kernel.domainname" {
            (CloneNamespaces::UTS, LinuxNamespaceType::Uts)
        } else {
            return Err(invalid(format!(
                "sysctl {name} is not namespaced: it would change the host's kernel"
            )));
        };
        if !self.namespaces.has(flag, kind) {
            return Err(invalid(format!(
                "sysctl {name} belongs to the {kind} namespace, and this container uses the host's"
            )));
        }
        let path = if name.contains('/') {
            name.to_owned()
        } else {
            name.replace('.', "/")
        };
        if path.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(invalid(format!("sysctl {name:?}: not a name")));
        }
        c_string(format!("sys/{path}").as_bytes(), name)
    }

    /// Working directory, read-only root, and leaving the host's tree.
    pub(crate) fn enter_root(&mut self, process: &Process) -> Result<()> {
        self.on_root.extend(working_directory(process, true)?);
        let root = self.spec.root().as_ref();
        if root.and_then(|root| root.readonly()).unwrap_or(false) {
            self.on_root.push(Step::ReadOnlyRoot);
        }
        let linux = self.spec.linux().as_ref();
        let propagation = linux
            .and_then(|linux| linux.rootfs_propagation().as_deref())
            .filter(|name| !name.is_empty());
        let (propagation, recursive) = match propagation {
            None => (0, false),
            Some(name) => root_propagation(name)
                .ok_or_else(|| invalid(format!("rootfsPropagation {name:?} is unknown")))?,
        };
        self.on_root.push(Step::Pivot {
            propagation,
            recursive,
        });
        Ok(())
    }

    /// The steps so far, in order.
    pub(crate) fn into_steps(self) -> (Vec<Step>, Vec<Option<OwnedFd>>) {
        let mut steps = self.before_root;
        steps.push(Step::AttachRoot);
        steps.extend(self.on_root);
        (steps, self.slots)
    }
}

/// A private copy of the mount at `source`, detached.
fn open_source(source: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(rustix::fs::CWD, source, flags).map_err(|errno| {
        let why = match errno {
            Errno::INVAL if !recursive => {
                " (there are mounts below it, which only rbind takes along)"
            }
            _ => "",
        };
        let attempt = format!("open bind source {}{why}", source.display());
        SysError::new(attempt, errno).into()
    })
}

fn kind_of(fd: &OwnedFd, path: &Path) -> Result<Kind> {
    match in_root::is_directory(fd.as_fd()) {
        Ok(true) => Ok(Kind::Directory),
        Ok(false) => Ok(Kind::File),
        Err(errno) => Err(SysError::new(format!("stat {}", path.display()), errno).into()),
    }
}

pub(crate) fn c_string(bytes: &[u8], what: &str) -> Result<CString> {
    CString::new(bytes).map_err(|_| invalid(format!("{what:?} holds a NUL byte")))
}

/// `process.rlimits` and the other limits, as steps.
fn limits(process: &Process) -> Vec<Step> {
    let mut steps = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let finite = |value: u64| (value != u64::MAX).then_some(value);
        steps.push(Step::Limit {
            resource: resource(limit.typ()),
            limit: Rlimit {
                current: finite(limit.soft()),
                maximum: finite(limit.hard()),
            },
            name: limit.typ().to_string(),
        });
    }
    steps
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// Where commands are looked for when the environment has no PATH (Podman's default).
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command with its environment, and the paths to try.
pub(crate) fn command(process: &Process) -> Result<(PreparedCommand, Vec<CString>)> {
    let arguments = process.args().as_deref().unwrap_or_default();
    let name = arguments
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| invalid("no command given (process.args is empty)"))?;
    let environment = process.env().as_deref().unwrap_or_default();
    let candidates = if name.contains('/') {
        vec![c_string(name.as_bytes(), name)?]
    } else {
        let path = environment
            .iter()
            .find_map(|entry| entry.strip_prefix("PATH="));
        let path = path.unwrap_or(DEFAULT_PATH);
        path.split(':')
            // As execvp(3): an empty element is the working directory.
            .map(|dir| if dir.is_empty() { "." } else { dir })
            .map(|dir| c_string(format!("{dir}/{name}").as_bytes(), name))
            .collect::<Result<_>>()?
    };
    let strings = |texts: &[String]| {
        texts
            .iter()
            .map(|text| c_string(text.as_bytes(), text))
            .collect::<Result<Vec<_>>>()
    };
    let command = PreparedCommand::new(strings(arguments)?, strings(environment)?);
    Ok((command, candidates))
}

/// Opens `process.cwd`, unless that is the root, where the process is anyway.
pub(crate) fn working_directory(process: &Process, create: bool) -> Result<Option<Step>> {
    let cwd = process.cwd();
    let shown = cwd.display().to_string();
    let relative = cwd.strip_prefix("/").map_err(|_| {
        invalid(format!(
            "working directory {shown:?}: must be an absolute path"
        ))
    })?;
    let relative = relative.as_os_str().as_encoded_bytes();
    if relative.is_empty() {
        return Ok(None);
    }
    Ok(Some(Step::OpenWorkingDirectory {
        path: c_string(relative, &shown)?,
        create,
        shown,
    }))
}

/// The step that loads the compiled filter.
pub(crate) fn filter(
    rules: Option<&LinuxSeccomp>,
    cache_dir: Option<&Path>,
) -> Result<Option<Step>> {
    let Some(rules) = rules else { return Ok(None) };
    Ok(Some(Step::Seccomp {
        program: seccomp_filter::compiled(rules, cache_dir)?,
        flags: seccomp_filter::filter_flags(rules),
    }))
}

/// The steps after the root is entered and the user known, for `launch` and `exec` alike.
pub(crate) fn final_steps(
    process: &Process,
    gid_map_is_single: bool,
    init: bool,
    filter: Option<Step>,
) -> Vec<Step> {
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let named = process.user().username().is_some();
    let sets = process.capabilities().as_ref();
    let mut credentials = capabilities::credentials(sets, named, no_new_privileges);
    credentials.setgroups_may_be_denied = gid_map_is_single;
    credentials.keep_sys_admin = filter.is_some() && !no_new_privileges;

    let mut steps = limits(process);
    steps.extend([
        Step::PlaceDescriptors,
        Step::BecomeUser {
            credentials,
            umask: process.user().umask().unwrap_or(0o022),
        },
        Step::Gate,
    ]);
    if init {
        steps.push(Step::Init);
    }
    steps.push(Step::FindCommand);
    steps.extend(filter);
    steps.push(Step::Execute);
    steps
}
