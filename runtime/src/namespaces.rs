//! The namespaces a spec asks for: which are new, who makes them, which exist already.

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::OFlags;
use selkie_sys::SysError;
use selkie_sys::clone::CloneNamespaces;

use crate::launch::LaunchError;
use crate::prepare::invalid;

/// Namespaces the child starts in, and those the launching process visits meanwhile so that the
/// child inherits them.
pub(crate) struct Namespaces {
    pub(crate) new: CloneNamespaces,
    /// Existing ones (`path` in the spec), open.
    pub(crate) joined: Vec<(LinuxNamespaceType, OwnedFd)>,
    /// The parent wants to connect the new network namespace.
    pub(crate) gives_network: bool,
}

impl Namespaces {
    pub(crate) fn of(spec: &Spec) -> Result<Self, LaunchError> {
        let mut namespaces = Self {
            // Always: what a container may do, it may do as root of its own user namespace.
            new: CloneNamespaces::USER | CloneNamespaces::MOUNT,
            joined: Vec::new(),
            gives_network: false,
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
