//! From an OCI spec to the script a container's first process runs.
//!
//! All that can be refused is refused here, before any process exists.

mod mounts;

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use selkie_sys::clone::CloneNamespaces;

use crate::id_maps::Map;
use crate::launch::LaunchError;
use crate::mount_options::root_propagation;
use crate::namespaces::Namespaces;
use crate::process_steps;
use crate::script::{Base, Slot, Step, Target};

pub(crate) type Result<T> = std::result::Result<T, LaunchError>;

pub(crate) fn invalid(message: impl Into<String>) -> LaunchError {
    LaunchError::InvalidSpec(message.into())
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
        // Here, while the parent writes the ID maps: it takes no time of its own.
        if later.contains(CloneNamespaces::NETWORK) {
            before_root.push(Step::Loopback);
            if namespaces.gives_network {
                before_root.push(Step::GiveNetwork);
            }
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

    /// Working directory, leaving the host's tree, the user, and read-only root.
    pub(crate) fn enter_root(&mut self, process: &Process) -> Result<()> {
        self.on_root
            .extend(process_steps::working_directory(process, true)?);
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
        self.on_root.push(Step::AwaitUser);
        let root = self.spec.root().as_ref();
        if root.and_then(|root| root.readonly()).unwrap_or(false) {
            self.on_root.push(Step::ReadOnlyRoot);
        }
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

pub(crate) fn c_string(bytes: &[u8], what: &str) -> Result<CString> {
    CString::new(bytes).map_err(|_| invalid(format!("{what:?} holds a NUL byte")))
}
