//! Finding a pause process whose record was lost, and the namespace of one that died.
//!
//! A namespace lives as long as anything is in it. When only its pause process dies, running
//! containers keep it, and a new pause process must go back there: a second namespace beside it
//! could neither signal nor enter those containers.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use selkie_sys::namespace::{self, NamespaceKey};
use selkie_sys::process_identity::{self, ProcessIdentity};

use super::creation::{Mounts, PROCESS_NAME, Place, title};
use super::record::{Record, name_of, parse_record};
use super::{OWN_USER_NAMESPACE, PauseError, PauseRequest};
use crate::id_map::{IdMap, IdMaps};

/// Deeper than the kernel nests user namespaces (32).
const DEEPEST_NESTING: usize = 33;

/// A living pause process made for this runtime directory, found by its name and by the record it
/// carries. What the record says is checked against the kernel: only the namespace right below our
/// own, made by this UID, in our PID namespace, counts; so no container can pose as one.
pub(super) fn lost_pause(runtime_dir: &Path) -> Result<Option<Record>, PauseError> {
    let own_user = NamespaceKey::at(OWN_USER_NAMESPACE)?;
    let own_pid = NamespaceKey::at("/proc/self/ns/pid")?;
    let name = name_of(runtime_dir);
    for pid in processes() {
        if !is_named_pause(pid) {
            continue;
        }
        let Some(mut record) = carried_record(pid) else {
            continue;
        };
        if record.runtime_dir != name
            || record.identity.pid != pid
            || NamespaceKey::at(&format!("/proc/{pid}/ns/pid")).ok() != Some(own_pid)
            || record.open_live()?.is_none()
        {
            continue;
        }
        let is_child_of_ours =
            open_namespace(pid, "user").is_some_and(|user| parent_key(&user) == Some(own_user));
        let mounts = NamespaceKey::at(&format!("/proc/{pid}/ns/mnt")).ok();
        if is_child_of_ours && mounts == Some(record.mount_namespace) {
            record.host_maps = maps_of(pid)?;
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// Running processes of the caller's UID and PID namespace that show themselves as pause processes
/// of this runtime directory.
pub(super) fn titled(runtime_dir: &Path) -> Vec<ProcessIdentity> {
    let uid = rustix::process::getuid().as_raw();
    let title = title(runtime_dir);
    let is_one = |pid: &i32| {
        rustix::fs::stat(format!("/proc/{pid}")).is_ok_and(|stat| stat.st_uid == uid)
            && is_named_pause(*pid)
            // Nothing but NULs follows. (A title cut off for want of room is not recognised.)
            && std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.strip_prefix(&*title).is_some_and(|rest| rest.iter().all(|byte| *byte == 0)))
            && in_own_pid_namespace(*pid)
    };
    processes()
        .filter(is_one)
        .filter_map(|pid| ProcessIdentity::of(rustix::process::Pid::from_raw(pid)?).ok())
        .filter(ProcessIdentity::is_running)
        .collect()
}

fn is_named_pause(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|comm| comm.trim_end() == PROCESS_NAME)
}

/// `NSpid` has a number for each PID namespace from `/proc`'s own down to the process's. Unlike
/// `/proc/PID/ns/pid` it can be read by anybody.
fn in_own_pid_namespace(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.is_some_and(|numbers| numbers.split_ascii_whitespace().count() == 1)
    })
}

/// The maps of a process's user namespace, as the kernel shows them to the caller.
pub(super) fn maps_of(pid: i32) -> Result<IdMaps, PauseError> {
    let read = |file| {
        let path = format!("/proc/{pid}/{file}");
        let text = std::fs::read_to_string(&path).map_err(|error| PauseError::UnreadableMaps {
            path: path.clone(),
            why: error.to_string(),
        })?;
        IdMap::parse_proc_text(&text).map_err(|error| PauseError::UnreadableMaps {
            path,
            why: error.to_string(),
        })
    };
    Ok(IdMaps {
        uid: read("uid_map")?,
        gid: read("gid_map")?,
    })
}

/// Where the namespace of the dead pause process lives on, if it does.
pub(super) fn surviving_place(
    dead: Option<&Record>,
    request: &PauseRequest,
) -> Result<Option<Place>, PauseError> {
    if let Some(dead) = dead {
        if let Some(place) = around_ourselves(dead)? {
            return Ok(Some(place));
        }
        if let Some(place) = around_own_commands(dead)? {
            return Ok(Some(place));
        }
    }
    let own_user = NamespaceKey::at(OWN_USER_NAMESPACE)?;
    for survivor in (request.find_survivors)(&request.survivors_dir) {
        if let Some(place) = around_survivor(survivor, own_user)? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// The caller runs inside the namespace already (`selkie unshare`).
fn around_ourselves(dead: &Record) -> Result<Option<Place>, PauseError> {
    if NamespaceKey::at(OWN_USER_NAMESPACE)? != dead.user_namespace {
        return Ok(None);
    }
    let same_mounts = NamespaceKey::at("/proc/self/ns/mnt")? == dead.mount_namespace;
    Ok(Some(Place::Existing {
        user: None,
        mounts: if same_mounts {
            Mounts::Stay
        } else {
            Mounts::Copy
        },
    }))
}

/// Another process of this very program is in it: a monitor, or a command that joined just before
/// the pause process died and is about to start a container there. The program file is compared
/// because the kernel gives numbers of dead namespaces to new ones, which may be another tool's.
fn around_own_commands(dead: &Record) -> Result<Option<Place>, PauseError> {
    let file_of = |path: String| {
        let stat = rustix::fs::stat(path).ok()?;
        Some((stat.st_dev, stat.st_ino))
    };
    let Some(own_program) = file_of("/proc/self/exe".to_owned()) else {
        return Ok(None);
    };
    let own_user = NamespaceKey::at(OWN_USER_NAMESPACE)?;
    let mut found = None;
    for pid in processes() {
        let user_link = format!("/proc/{pid}/ns/user");
        if NamespaceKey::at(&user_link).ok() != Some(dead.user_namespace)
            || file_of(format!("/proc/{pid}/exe")) != Some(own_program)
        {
            continue;
        }
        let Some(user) = open_namespace(pid, "user").and_then(|ns| pause_namespace(ns, own_user))
        else {
            continue;
        };
        if NamespaceKey::of(user.as_fd())? != dead.user_namespace {
            continue;
        }
        let mounts = open_namespace(pid, "mnt");
        match mounts {
            Some(mounts) if NamespaceKey::of(mounts.as_fd())? == dead.mount_namespace => {
                return Ok(Some(Place::Existing {
                    user: Some(user),
                    mounts: Mounts::Join(mounts),
                }));
            }
            _ => {
                found = Some(Place::Existing {
                    user: Some(user),
                    mounts: Mounts::Copy,
                });
            }
        }
    }
    Ok(found)
}

fn around_survivor(
    survivor: ProcessIdentity,
    own_user: NamespaceKey,
) -> Result<Option<Place>, PauseError> {
    let Some(pidfd) = survivor.open()? else {
        return Ok(None);
    };
    let pid = survivor.pid;
    let (Some(own), mounts) = (open_namespace(pid, "user"), open_namespace(pid, "mnt")) else {
        return Ok(None);
    };
    let survivors_user = NamespaceKey::of(own.as_fd())?;
    let Some(user) = pause_namespace(own, own_user) else {
        return Ok(None);
    };
    let user_key = NamespaceKey::of(user.as_fd())?;
    // A monitor lives in the pause process's mount namespace, a container's init in its own.
    let mounts = match mounts {
        Some(mounts)
            if user_key == survivors_user
                && owner_key(&mounts) == Some(user_key)
                && sees_host_root(pid)? =>
        {
            Mounts::Join(mounts)
        }
        _ => Mounts::Copy,
    };
    // Everything above was read by PID. If the process is still there, it was all its own.
    if process_identity::wait_for_exit(&pidfd, Some(std::time::Duration::ZERO))? {
        return Ok(None);
    }
    Ok(Some(Place::Existing {
        user: Some(user),
        mounts,
    }))
}

/// True when the pause process's namespace lies somewhere below `ancestor`, the caller's own.
pub(super) fn is_below(record: &Record, ancestor: NamespaceKey) -> bool {
    let mut next = open_namespace(record.identity.pid, "user");
    for _ in 0..DEEPEST_NESTING {
        let Some(current) = next else { return false };
        if NamespaceKey::of(current.as_fd()).ok() == Some(ancestor) {
            return true;
        }
        next = namespace::parent(current.as_fd()).ok();
    }
    false
}

/// True when anybody but the pause process is in its namespace or below it.
pub(super) fn anybody_in(record: &Record) -> Result<bool, PauseError> {
    let own_user = NamespaceKey::at(OWN_USER_NAMESPACE)?;
    for pid in processes() {
        if pid == record.identity.pid {
            continue;
        }
        // Nearly all processes are in the caller's own namespace: one stat each.
        match NamespaceKey::at(&format!("/proc/{pid}/ns/user")) {
            Ok(key) if key != own_user => {}
            _ => continue,
        }
        let mut next = open_namespace(pid, "user");
        for _ in 0..DEEPEST_NESTING {
            let Some(current) = next else { break };
            if NamespaceKey::of(current.as_fd())? == record.user_namespace {
                if runs(pid) {
                    return Ok(true);
                }
                break;
            }
            next = namespace::parent(current.as_fd()).ok();
        }
    }
    Ok(false)
}

/// The ancestor of `namespace` (or itself) right below our own, if this UID made it.
fn pause_namespace(namespace: OwnedFd, own_user: NamespaceKey) -> Option<OwnedFd> {
    let mut current = namespace;
    for _ in 0..DEEPEST_NESTING {
        // Fails at the top: then it is no descendant of ours.
        let parent = namespace::parent(current.as_fd()).ok()?;
        if NamespaceKey::of(parent.as_fd()).ok()? == own_user {
            let owner = namespace::owner_uid(current.as_fd()).ok()?;
            return (owner == rustix::process::getuid().as_raw()).then_some(current);
        }
        current = parent;
    }
    None
}

fn parent_key(namespace: &OwnedFd) -> Option<NamespaceKey> {
    let parent = namespace::parent(namespace.as_fd()).ok()?;
    NamespaceKey::of(parent.as_fd()).ok()
}

fn owner_key(namespace: &OwnedFd) -> Option<NamespaceKey> {
    let owner = namespace::owning_user_namespace(namespace.as_fd()).ok()?;
    NamespaceKey::of(owner.as_fd()).ok()
}

/// True when a process has the caller's own root directory and PID namespace: no container has.
fn sees_host_root(pid: i32) -> Result<bool, PauseError> {
    let file_of = |path: &str| {
        let stat = rustix::fs::stat(path).ok()?;
        Some((stat.st_dev, stat.st_ino))
    };
    let own_pid = NamespaceKey::at("/proc/self/ns/pid")?;
    Ok(file_of(&format!("/proc/{pid}/root")) == file_of("/")
        && NamespaceKey::at(&format!("/proc/{pid}/ns/pid")).ok() == Some(own_pid))
}

fn open_namespace(pid: i32, kind: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/ns/{kind}"), flags, Mode::empty()).ok()
}

/// The record in the memory file a pause process holds.
fn carried_record(pid: i32) -> Option<Record> {
    let link = format!("/memfd:{PROCESS_NAME} (deleted)");
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == &*link)
        })
        .and_then(|entry| {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::open(entry.path(), flags, Mode::empty()).ok()?;
            parse_record(file)
        })
}

/// False for zombies, which keep showing the user namespace they were in.
fn runs(pid: i32) -> bool {
    rustix::process::Pid::from_raw(pid)
        .and_then(|pid| ProcessIdentity::of(pid).ok())
        .is_some_and(|identity| identity.is_running())
}

/// PIDs of all processes the caller can see.
fn processes() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
