//! `newuidmap` and `newgidmap`: the host's privileged helpers that write the ID maps of a login's
//! own user namespace after checking them against its subordinate IDs (newuidmap(1)).
//!
//! Both run at once: each spends its time starting up and reading account files, and they do not
//! depend on each other. When one fails, the host is examined for the reason, since the helpers'
//! own words are at best "write to uid_map failed: Operation not permitted".

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, StatVfsMountFlags};
use rustix::io::Errno;

use crate::id_map::{IdMap, IdMaps};
use crate::subordinate_ids::{HostFiles, IdKind};

/// Why the maps could not be written. Every text ends with the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapHelperError {
    /// Not installed.
    #[error(
        "{tool} is not installed (looked in {looked_in}); install the package uidmap (Debian, \
         Ubuntu), shadow-utils (Fedora, RHEL) or shadow (others)"
    )]
    Missing {
        /// `newuidmap` or `newgidmap`.
        tool: &'static str,
        /// Directories, separated by `:`.
        looked_in: String,
    },
    /// Installed, but it cannot gain the privilege it needs.
    #[error(
        "{} has neither the set-user-ID bit of root nor the file capability {capability}, so it \
         cannot write ID maps; as root: setcap {capability}=ep {} (or chmod u+s, or reinstall the \
         package uidmap)",
        .path.display(), .path.display()
    )]
    NotPrivileged {
        /// The helper.
        path: PathBuf,
        /// `cap_setuid` or `cap_setgid`.
        capability: &'static str,
    },
    /// Its file system ignores set-user-ID bits and file capabilities.
    #[error(
        "{} is on a file system mounted nosuid, so it runs without privilege; as root: mount -o \
         remount,suid the file system it is on, or install it elsewhere",
        .path.display()
    )]
    NosuidMount {
        /// The helper.
        path: PathBuf,
    },
    /// The caller has `no_new_privs`, which its children inherit.
    #[error(
        "{tool} cannot gain privilege because this process has no_new_privs set (a sandbox, \
         `setpriv --no-new-privs`, NoNewPrivileges= of a systemd unit, or a container without \
         set-user-ID programs); start Selkie outside of it once, later commands join what it made"
    )]
    NoNewPrivileges {
        /// `newuidmap` or `newgidmap`.
        tool: &'static str,
    },
    /// The helper does not grant the range to this login.
    #[error(
        "{tool} does not allow {wanted} for this login ({said}); check its lines in /etc/subuid \
         and /etc/subgid, or `getsubids` where /etc/nsswitch.conf names another source"
    )]
    RangeNotAllowed {
        /// `newuidmap` or `newgidmap`.
        tool: &'static str,
        /// The host ranges asked for.
        wanted: String,
        /// What it said.
        said: String,
    },
    /// The IDs exist on the host but not in the user namespace the caller is in.
    #[error(
        "this process is itself in a user namespace that does not contain the {kind} range \
         {wanted}; give the outer container more IDs, or a smaller range to the login inside it"
    )]
    OutsideOwnNamespace {
        /// Which IDs.
        kind: IdKind,
        /// The range.
        wanted: String,
    },
    /// It could not be started.
    #[error("cannot run {}: {errno}; see that it is an intact program of this machine's kind", .path.display())]
    NotStarted {
        /// The helper.
        path: PathBuf,
        /// The kernel's word.
        errno: Errno,
    },
    /// None of the known reasons.
    #[error("{tool} failed ({status}): {said}; run it by hand to see more: {tool} PID {arguments}")]
    Failed {
        /// `newuidmap` or `newgidmap`.
        tool: &'static str,
        /// How it ended.
        status: String,
        /// What it said.
        said: String,
        /// The map as arguments.
        arguments: String,
    },
}

struct Helper<'a> {
    tool: &'static str,
    kind: IdKind,
    capability: &'static str,
    /// Bit of that capability (linux/capability.h).
    capability_bit: u32,
    map: &'a IdMap,
    path: PathBuf,
}

/// Has both maps of process `pid`'s user namespace written. `pid` must have just been put into a
/// new user namespace by this login, and must be dumpable.
pub fn write_maps(pid: i32, maps: &IdMaps, host: &HostFiles) -> Result<(), MapHelperError> {
    let helper = |tool, kind, capability, capability_bit, map| match host.find_tool(tool) {
        Some(path) => Ok(Helper {
            tool,
            kind,
            capability,
            capability_bit,
            map,
            path,
        }),
        None => Err(MapHelperError::Missing {
            tool,
            looked_in: host
                .tool_dirs
                .iter()
                .map(|dir| dir.display().to_string())
                .collect::<Vec<_>>()
                .join(":"),
        }),
    };
    let uid = helper("newuidmap", IdKind::Uid, "cap_setuid", 7, &maps.uid)?;
    let gid = helper("newgidmap", IdKind::Gid, "cap_setgid", 6, &maps.gid)?;
    let started_uid = uid.start(pid);
    let started_gid = gid.start(pid);
    // Both are waited for before either is judged, so that no zombie stays.
    let done_uid = started_uid.and_then(|child| uid.finish(child));
    let done_gid = started_gid.and_then(|child| gid.finish(child));
    done_uid.and(done_gid)
}

impl Helper<'_> {
    fn arguments(&self) -> Vec<String> {
        self.map
            .extents()
            .iter()
            .flat_map(|extent| [extent.inside, extent.outside, extent.count])
            .map(|number| number.to_string())
            .collect()
    }

    fn start(&self, pid: i32) -> Result<Child, MapHelperError> {
        Command::new(&self.path)
            .arg(pid.to_string())
            .args(self.arguments())
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| MapHelperError::NotStarted {
                path: self.path.clone(),
                errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
            })
    }

    fn finish(&self, child: Child) -> Result<(), MapHelperError> {
        let output = child
            .wait_with_output()
            .map_err(|error| MapHelperError::NotStarted {
                path: self.path.clone(),
                errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
            })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(self.explain(&output.status.to_string(), said.trim()))
    }

    fn explain(&self, status: &str, said: &str) -> MapHelperError {
        let wanted = || {
            let ranges = self.map.extents().iter().map(|extent| {
                format!("{}-{}", extent.outside, extent.outside + (extent.count - 1))
            });
            ranges.collect::<Vec<_>>().join(", ")
        };
        if said.contains("not allowed") {
            return MapHelperError::RangeNotAllowed {
                tool: self.tool,
                wanted: format!("the {}s {}", self.kind, wanted()),
                said: said.to_owned(),
            };
        }
        if rustix::thread::no_new_privs() == Ok(true) {
            return MapHelperError::NoNewPrivileges { tool: self.tool };
        }
        if rustix::fs::statvfs(&self.path)
            .is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOSUID))
        {
            return MapHelperError::NosuidMount {
                path: self.path.clone(),
            };
        }
        if !is_set_user_id_root(&self.path) && !has_capability(&self.path, self.capability_bit) {
            return MapHelperError::NotPrivileged {
                path: self.path.clone(),
                capability: self.capability,
            };
        }
        if let Some(wanted) = self.outside_own_namespace() {
            return MapHelperError::OutsideOwnNamespace {
                kind: self.kind,
                wanted,
            };
        }
        MapHelperError::Failed {
            tool: self.tool,
            status: status.to_owned(),
            said: if said.is_empty() {
                "it said nothing"
            } else {
                said
            }
            .to_owned(),
            arguments: self.arguments().join(" "),
        }
    }

    /// The first wanted range that has no number in the caller's own user namespace.
    fn outside_own_namespace(&self) -> Option<String> {
        let file = match self.kind {
            IdKind::Uid => "/proc/self/uid_map",
            IdKind::Gid => "/proc/self/gid_map",
        };
        let own = IdMap::parse_proc_text(&std::fs::read_to_string(file).ok()?).ok()?;
        let inside_own = |id| own.to_outside(id).is_some();
        self.map.extents().iter().find_map(|extent| {
            let last = extent.outside + (extent.count - 1);
            (!inside_own(extent.outside) || !inside_own(last))
                .then(|| format!("{}-{last}", extent.outside))
        })
    }
}

fn is_set_user_id_root(path: &Path) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| {
        stat.st_uid == 0 && Mode::from_raw_mode(stat.st_mode).contains(Mode::SUID)
    })
}

/// Reads `security.capability` (`struct vfs_cap_data`: version and flags, then the low words of
/// the permitted and inheritable sets, all little-endian).
fn has_capability(path: &Path, bit: u32) -> bool {
    let mut data = [0u8; 24];
    match rustix::fs::getxattr(path, "security.capability", &mut data) {
        Ok(length) if length >= 8 => {
            let permitted = u32::from_le_bytes([data[4], data[5], data[6], data[7]]);
            permitted & (1 << bit) != 0
        }
        _ => false,
    }
}
