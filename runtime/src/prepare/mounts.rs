//! Mounts and devices of a spec, as steps.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, Mount};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use selkie_sys::SysError;
use selkie_sys::clone::CloneNamespaces;
use selkie_sys::mount::set_attributes;

use super::{Preparation, Result, c_string, invalid};
use crate::child::DEVICES;
use crate::in_root::{self, Kind};
use crate::mount_options::{MountOptions, attribute};
use crate::script::{Base, NewFileSystem, Slot, Step, Target};

impl Preparation<'_> {
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
        let mut file_system = self.new_file_system(mount, kind, &options, shown)?;
        let slot = self.empty_slot();
        let target = self.target(mount.destination())?;
        // Read-only from the start, unless something is to be put in first.
        let is_dev = shown == "/dev" && kind == "tmpfs";
        let late = file_system.attributes as u64 & attribute::READ_ONLY;
        let filled_first = (is_dev || options.copy_up) && late != 0;
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

    pub(super) fn host_device(&mut self, name: &str) -> Result<Slot> {
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
