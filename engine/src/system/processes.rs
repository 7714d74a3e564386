//! Processes of this login's containers that nothing on record accounts for.
//!
//! Every process of a container is in a user namespace right below the login's own. Such a process is
//! accounted for when that namespace is the one of a running container's recorded init, or when its
//! parent is a monitor that is just starting it. Processes are listed before the records are read, so
//! whatever starts meanwhile is not in the list.
//!
//! A zombie keeps its namespace but is no process any more: it does not count.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use selkie_sys::namespace::{NamespaceKey, parent};
use selkie_sys::process_identity::{ProcessIdentity, send_signal};
use selkie_userns::IdMap;

use crate::Engine;
use crate::error::{Error, Result};
use crate::state;

/// One process.
pub(super) struct Stray {
    pub identity: ProcessIdentity,
    pub name: String,
    pub reason: String,
}

struct Candidate {
    identity: ProcessIdentity,
    parent: i32,
    name: String,
    namespace: NamespaceKey,
}

/// Finds them.
pub(super) fn strays(engine: &Engine) -> Result<Vec<Stray>> {
    if !is_in(engine)? {
        return Ok(Vec::new());
    }
    let own = NamespaceKey::at("/proc/self/ns/user")?;
    let mut candidates = Vec::new();
    for pid in pids()? {
        if let Some(candidate) = candidate(pid, own) {
            candidates.push(candidate);
        }
    }
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let known: HashSet<NamespaceKey> = state::survivors(&engine.config.containers_dir())
        .iter()
        .filter_map(|process| NamespaceKey::at(&format!("/proc/{}/ns/user", process.pid)).ok())
        .collect();
    Ok(candidates
        .into_iter()
        .filter(|candidate| !known.contains(&candidate.namespace))
        .filter(|candidate| !is_monitor(candidate.parent, own))
        .filter(|candidate| candidate.identity.is_running())
        .map(|candidate| Stray {
            identity: candidate.identity,
            name: candidate.name,
            reason: "it runs in the namespace of a container that does not exist or run any more"
                .to_owned(),
        })
        .collect())
}

/// Whether the caller really is in the login's namespace. Anywhere else, everybody's namespaces might
/// be right below its own.
fn is_in(engine: &Engine) -> Result<bool> {
    const MAP: &str = "/proc/self/uid_map";
    let text = std::fs::read_to_string(MAP)
        .map_err(|error| Error::machine(format!("read {MAP}"), error))?;
    Ok(IdMap::parse_proc_text(&text).is_ok_and(|map| map == engine.pause.host_maps.uid))
}

/// Kills every process in a user namespace, until there is none. For containers without a PID
/// namespace of their own, whose processes do not end with their init.
///
/// # Errors
/// `/proc` cannot be listed.
pub(crate) fn kill_all_in(namespace: NamespaceKey) -> Result<()> {
    // Each round kills all there are; only what forks between listing and killing needs another.
    for _ in 0..100 {
        let mut found = false;
        for pid in pids()? {
            if NamespaceKey::at(&format!("/proc/{pid}/ns/user")).ok() != Some(namespace) {
                continue;
            }
            let Some(identity) = rustix::process::Pid::from_raw(pid)
                .and_then(|pid| ProcessIdentity::of(pid).ok())
                .filter(ProcessIdentity::is_running)
            else {
                continue;
            };
            let Some(process) = identity.open()? else {
                continue;
            };
            // The PID may have changed hands before the pidfd pinned it.
            if NamespaceKey::at(&format!("/proc/{pid}/ns/user")).ok() == Some(namespace) {
                found = true;
                let _ = send_signal(&process, rustix::process::Signal::KILL.as_raw());
            }
        }
        if !found {
            return Ok(());
        }
    }
    Ok(())
}

fn pids() -> Result<Vec<i32>> {
    let failed = |error| Error::machine("list /proc", error);
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// The process, when its user namespace is a child of ours. Whatever cannot be read is somebody
/// else's, or gone.
fn candidate(pid: i32, own: NamespaceKey) -> Option<Candidate> {
    let path = format!("/proc/{pid}/ns/user");
    let namespace = NamespaceKey::at(&path).ok()?;
    if namespace == own {
        return None;
    }
    let fd: OwnedFd =
        rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let above = parent(fd.as_fd()).ok()?;
    if NamespaceKey::of(above.as_fd()).ok()? != own {
        return None;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    Some(Candidate {
        identity: ProcessIdentity::of(rustix::process::Pid::from_raw(pid)?).ok()?,
        parent: rest.split_ascii_whitespace().nth(1)?.parse().ok()?,
        name: name.to_owned(),
        namespace,
    })
}

/// A monitor of ours: nothing in a container can be in our user namespace.
fn is_monitor(pid: i32, own: NamespaceKey) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end() == "selkie-monitor"
        && NamespaceKey::at(&format!("/proc/{pid}/ns/user")).is_ok_and(|key| key == own)
}
