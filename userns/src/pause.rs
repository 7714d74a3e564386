//! The pause process: one per login, holding its user namespace and mount namespace.
//!
//! Theory of operation. Writing ID maps needs two set-user-ID helpers and costs milliseconds, so it
//! is done once per login: a process that does nothing keeps the namespaces, and every command
//! joins them with one `setns` on its pidfd. A file in the runtime directory says which process.
//!
//! *Nearly always* ([`join`]'s hot path, about 30 system calls): read the record, see that the
//! process is the recorded one (`Record::open_live`), that the host's subordinate ID
//! files are unchanged, join, go back to the working directory. No lock.
//!
//! *Else* (`establish`), under an exclusive lock: look again; look for a pause process whose
//! record was deleted; look for running containers whose pause process died and put a new one into
//! their namespace; only then make a new namespace. So losing the process, the record or the
//! directory costs the next command a few milliseconds and running containers nothing.
//!
//! When the login's ranges change on the host, the old namespace stays in use while anything runs
//! in it ([`JoinedPause::stale_ranges`] says so) and is replaced by the first command that finds it
//! empty. Only changes of the files are noticed; ranges that change inside a directory service are
//! seen by the next pause process.

mod creation;
mod denied;
mod error;
mod record;
mod search;

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::ThreadNameSpaceType;
use selkie_sys::SysError;
use selkie_sys::errno::Attempt;
use selkie_sys::namespace::{self, NamespaceKey};
use selkie_sys::process_identity::{self, ProcessIdentity};

use crate::id_map::IdMaps;
use crate::subordinate_ids::{self, HostFiles, Login, SubordinateIdError, SubordinateIds};
use creation::Place;
pub use error::PauseError;
use record::{Record, RuntimeDir, Sources};

/// Where the runtime state of the calling login lives. The login is the caller's real UID and GID.
#[derive(Debug, Clone)]
pub struct PauseRequest {
    /// Private directory (0700, the login's) for the pause record and its lock. Recreated if gone.
    pub runtime_dir: PathBuf,
    /// Processes of running containers (their monitors and inits, newest first) in which the
    /// namespace may be found again when the pause process is dead. Asked only then.
    pub find_survivors: fn(&std::path::Path) -> Vec<ProcessIdentity>,
    /// Handed to `find_survivors`: the engine's run directory.
    pub survivors_dir: PathBuf,
}

/// Proof that the calling process is root in the login's pause namespace.
#[derive(Debug, Clone)]
pub struct JoinedPause {
    /// The pause process.
    pub identity: ProcessIdentity,
    /// Pause namespace ID (inside) ↔ host ID (outside); inside 0 is the login.
    pub host_maps: IdMaps,
    /// True when the login has no usable subordinate IDs and so only ID 0 is mapped.
    pub single_id: bool,
    /// Why there are none, with the fix, when `single_id`.
    pub single_id_reason: Option<String>,
    /// The login's subordinate IDs on the host are no longer those of `host_maps`, but something
    /// still runs in the namespace, so it is kept: what changed, and what to do.
    pub stale_ranges: Option<String>,
}

/// The pause process as `info` shows it.
#[derive(Debug, Clone)]
pub struct PauseStatus {
    /// The process.
    pub identity: ProcessIdentity,
    /// As in [`JoinedPause`].
    pub host_maps: IdMaps,
    /// As in [`JoinedPause`].
    pub single_id_reason: Option<String>,
    /// As in [`JoinedPause`].
    pub stale_ranges: Option<String>,
}

const OWN_USER_NAMESPACE: &str = "/proc/self/ns/user";

/// How often a join starts over when the ground moves under it.
const ATTEMPTS: usize = 10;

/// Joins the login's pause namespace, making it first where needed. Must run while the caller has
/// one thread. Afterwards the caller is UID 0 with all capabilities in that namespace, in its mount
/// namespace, in the same current directory (`/` if it had none that could be named).
pub fn join(request: &PauseRequest) -> Result<JoinedPause, PauseError> {
    join_on(request, &HostFiles::default())
}

/// [`join`] on a host whose files are elsewhere (for tests).
pub fn join_on(request: &PauseRequest, host: &HostFiles) -> Result<JoinedPause, PauseError> {
    let directory = WorkingDirectory::remember();
    if let Some(recorded) = up_to_date_record(request, host)?
        && enter(&recorded.record, &recorded.pidfd)?
    {
        directory.restore()?;
        return Ok(recorded.record.into_joined());
    }
    for _ in 0..ATTEMPTS {
        let Some(record) = establish(request, host)? else {
            continue;
        };
        let Some(pidfd) = record.open_live()? else {
            continue;
        };
        if enter(&record, &pidfd)? {
            directory.restore()?;
            return Ok(record.into_joined());
        }
    }
    Err(PauseError::Vanishing {
        runtime_dir: request.runtime_dir.clone(),
    })
}

/// The login's pause process if it has one on record. Changes nothing and joins nothing.
pub fn status(request: &PauseRequest) -> Result<Option<PauseStatus>, PauseError> {
    let Some(dir) = RuntimeDir::open(&request.runtime_dir)? else {
        return Ok(None);
    };
    let Some(record) = dir.read()? else {
        return Ok(None);
    };
    Ok(record.open_live()?.map(|_| PauseStatus {
        identity: record.identity,
        host_maps: record.host_maps,
        single_id_reason: record.single_id_reason,
        stale_ranges: record.stale_ranges,
    }))
}

/// Living pause processes made for this runtime directory other than `current`, which no command
/// will ever join: left by a race with whatever emptied the directory, or made by a command that
/// shared it from another user namespace. Works inside the joined namespace too, from where the
/// namespaces of such a process cannot be seen, so it goes by owner, name and command line, all of
/// which processes of the same login could imitate.
pub fn strays(
    request: &PauseRequest,
    current: &ProcessIdentity,
) -> Result<Vec<ProcessIdentity>, PauseError> {
    let mut strays = search::titled(&request.runtime_dir);
    strays.retain(|found| found != current);
    Ok(strays)
}

impl Record {
    fn into_joined(self) -> JoinedPause {
        JoinedPause {
            identity: self.identity,
            single_id: self.single_id_reason.is_some(),
            host_maps: self.host_maps,
            single_id_reason: self.single_id_reason,
            stale_ranges: self.stale_ranges,
        }
    }
}

struct Recorded {
    record: Record,
    pidfd: OwnedFd,
}

/// The hot path's look: a record, its process alive, nothing on the host changed since.
fn up_to_date_record(
    request: &PauseRequest,
    host: &HostFiles,
) -> Result<Option<Recorded>, PauseError> {
    let Some(dir) = RuntimeDir::open(&request.runtime_dir)? else {
        return Ok(None);
    };
    let Some(record) = dir.read()? else {
        return Ok(None);
    };
    if record.stale_ranges.is_some()
        || record.sources != Sources::now(host)
        || !record.is_for(NamespaceKey::at(OWN_USER_NAMESPACE)?)
    {
        return Ok(None);
    }
    Ok(record.open_live()?.map(|pidfd| Recorded { record, pidfd }))
}

/// Moves the caller into the pause process's namespaces. False when the process has just died.
fn enter(record: &Record, pidfd: &OwnedFd) -> Result<bool, PauseError> {
    let both = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
    match namespace::join(pidfd.as_fd(), both) {
        Ok(()) => {}
        Err(error) if error.errno == Errno::SRCH => return Ok(false),
        Err(error) if error.errno == Errno::INVAL => {
            // The kernel says EINVAL both to threads and to who is already there.
            let threads = rustix::fs::stat("/proc/self/task").map_or(1, |stat| stat.st_nlink - 2);
            if threads != 1 {
                return Err(PauseError::Threads { count: threads });
            }
            if NamespaceKey::at(OWN_USER_NAMESPACE)? != record.user_namespace {
                return Err(error.into());
            }
            match namespace::join(pidfd.as_fd(), ThreadNameSpaceType::MOUNT) {
                Err(error) if error.errno == Errno::SRCH => return Ok(false),
                joined => joined?,
            }
        }
        Err(error) => return Err(error.into()),
    }
    // A shell after newgrp(1) or sg(1) brings a primary group that is not mapped.
    let root = rustix::process::Gid::ROOT;
    if rustix::process::getegid() != root || rustix::process::getgid() != root {
        rustix::thread::set_thread_res_gid(root, root, root)
            .attempt(|| "take group 0 of the login's user namespace")?;
    }
    Ok(true)
}

/// Finds or makes the pause process and puts it on record. `None`: the runtime directory was
/// removed or the found process died meanwhile, so start over.
fn establish(request: &PauseRequest, host: &HostFiles) -> Result<Option<Record>, PauseError> {
    let dir = RuntimeDir::open_or_create(&request.runtime_dir)?;
    let Some(lock) = dir.lock()? else {
        return Ok(None);
    };
    let sources = Sources::now(host);
    let recorded = dir.read()?;
    let own_user = NamespaceKey::at(OWN_USER_NAMESPACE)?;
    let recorded_lives = match &recorded {
        None => false,
        Some(record) if record.is_for(own_user) => record.open_live()?.is_some(),
        // Two namespaces share a runtime directory. The outer one's processes are in charge of it.
        Some(record) if !record.identity.is_running() || search::is_below(record, own_user) => {
            false
        }
        Some(record) => {
            return Err(PauseError::OtherNamespace {
                pid: record.identity.pid,
            });
        }
    };
    let living = if recorded_lives {
        recorded.clone()
    } else {
        search::lost_pause(&request.runtime_dir)?
    };
    if let Some(living) = living {
        match judge(living.clone(), request, host, &sources)? {
            Some(kept) => {
                if !dir.holds(&lock)? {
                    return Ok(None);
                }
                if recorded.as_ref() != Some(&kept) {
                    dir.write(&kept)?;
                }
                return Ok(Some(kept));
            }
            // Ended before its successor is made, so that no crash in between leaves two.
            None => end(&living)?,
        }
    } else if let Some(place) = search::surviving_place(recorded.as_ref(), request)? {
        let created = creation::create(&place, &request.runtime_dir, host)?;
        let record = record_of_survivor(&created, request, recorded.as_ref())?;
        return match judge(record, request, host, &sources)? {
            Some(record) => put_on_record(&dir, &lock, created, record),
            // The last survivor has just ended.
            None => Ok(None),
        };
    }
    let ranges = ranges_on_host(rustix::process::getgid().as_raw(), host)?;
    let place = Place::Fresh(ranges.maps.clone());
    let created = creation::create(&place, &request.runtime_dir, host)?;
    let record = Record {
        host_maps: ranges.maps,
        single_id_reason: ranges.single_id_reason,
        sources,
        ..blank_record(&created, request)?
    };
    put_on_record(&dir, &lock, created, record)
}

/// What the host says a login's pause namespace should map.
struct RangesOnHost {
    maps: IdMaps,
    single_id_reason: Option<String>,
}

fn ranges_on_host(gid: u32, host: &HostFiles) -> Result<RangesOnHost, SubordinateIdError> {
    let login = Login {
        uid: rustix::process::getuid().as_raw(),
        gid,
    };
    let (ids, single_id_reason) = match subordinate_ids::lookup(login, host) {
        Ok(ids) => (ids, None),
        Err(error) if error.is_absence() => (SubordinateIds::default(), Some(error.to_string())),
        Err(error) => return Err(error),
    };
    Ok(RangesOnHost {
        maps: ids.pause_maps(login)?,
        single_id_reason,
    })
}

/// Decides whether a living pause process still fits the host's subordinate IDs: its record, which
/// may have to be written anew, or `None` when its ranges are outdated and nobody is in it.
fn judge(
    record: Record,
    request: &PauseRequest,
    host: &HostFiles,
    sources: &Sources,
) -> Result<Option<Record>, PauseError> {
    let unchanged = record.sources == *sources;
    // From inside, the login is UID 0 and the host's files speak of somebody else.
    let inside = NamespaceKey::at(OWN_USER_NAMESPACE)? == record.user_namespace;
    if inside || (unchanged && record.stale_ranges.is_none()) {
        return Ok(Some(record));
    }
    let occupied = (request.find_survivors)(&request.survivors_dir)
        .iter()
        .any(ProcessIdentity::is_running)
        || search::anybody_in(&record)?;
    if unchanged && occupied {
        return Ok(Some(record));
    }
    // Whichever group the login happens to have now (newgrp) must not count as a change.
    let own_gid = rustix::process::getgid().as_raw();
    let gid = record.host_maps.gid.to_outside(0).unwrap_or(own_gid);
    let changed = match ranges_on_host(gid, host) {
        Ok(ranges) if ranges.maps == record.host_maps => {
            return Ok(Some(Record {
                sources: sources.clone(),
                single_id_reason: ranges.single_id_reason,
                stale_ranges: None,
                ..record
            }));
        }
        Ok(_) if !occupied => return Ok(None),
        Ok(ranges) => ranges.single_id_reason.unwrap_or_else(|| {
            let uid = rustix::process::getuid();
            format!("the subordinate IDs of UID {uid} on this host have changed")
        }),
        Err(error) if !occupied => return Err(error.into()),
        Err(error) => error.to_string(),
    };
    Ok(Some(Record {
        sources: sources.clone(),
        stale_ranges: Some(format!(
            "{changed}; the IDs from before stay in use until all containers and other selkie \
             commands of this login have ended"
        )),
        ..record
    }))
}

/// A record of what is known right after creation; the maps are to be filled in.
fn blank_record(created: &creation::Created, request: &PauseRequest) -> Result<Record, PauseError> {
    let pid = created.identity.pid;
    Ok(Record {
        identity: created.identity,
        user_namespace: NamespaceKey::at(&format!("/proc/{pid}/ns/user"))?,
        mount_namespace: NamespaceKey::at(&format!("/proc/{pid}/ns/mnt"))?,
        made_from: NamespaceKey::at(OWN_USER_NAMESPACE)?,
        runtime_dir: record::name_of(&request.runtime_dir),
        host_maps: IdMaps::default(),
        single_id_reason: None,
        sources: Sources::unknown(),
        stale_ranges: None,
    })
}

/// A record for a new pause process in a namespace that outlived the old one.
fn record_of_survivor(
    created: &creation::Created,
    request: &PauseRequest,
    dead: Option<&Record>,
) -> Result<Record, PauseError> {
    let blank = blank_record(created, request)?;
    let host_maps = search::maps_of(created.identity.pid)?;
    let dead = dead
        .filter(|dead| dead.user_namespace == blank.user_namespace && dead.host_maps == host_maps);
    Ok(match dead {
        Some(dead) => Record {
            identity: blank.identity,
            // A new process made from inside is still the outside's to use.
            mount_namespace: blank.mount_namespace,
            ..dead.clone()
        },
        None => Record {
            single_id_reason: (host_maps.uid.id_count() == 1).then(|| {
                "running containers were started when this login had no subordinate IDs".to_owned()
            }),
            host_maps,
            ..blank
        },
    })
}

/// Writes the record and lets the process stay.
fn put_on_record(
    dir: &RuntimeDir,
    lock: &record::Lock,
    created: creation::Created,
    record: Record,
) -> Result<Option<Record>, PauseError> {
    created.carry(&record)?;
    if !dir.holds(lock)? {
        return Ok(None);
    }
    dir.write(&record)?;
    created.release()?;
    Ok(Some(record))
}

/// Ends a pause process nobody needs any more.
fn end(record: &Record) -> Result<(), PauseError> {
    let Some(pidfd) = record.open_live()? else {
        return Ok(());
    };
    match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => {
            let attempt = format!("end the pause process {}", record.identity.pid);
            return Err(SysError::new(attempt, errno).into());
        }
    }
    process_identity::wait_for_exit(&pidfd, None)?;
    Ok(())
}

/// The caller's current directory, by path: an open descriptor of it would lead back into the
/// mount namespace that was left.
struct WorkingDirectory(Option<(PathBuf, (u64, u64))>);

impl WorkingDirectory {
    /// A deleted or unreachable directory has no path to come back to.
    fn remember() -> Self {
        let path = rustix::process::getcwd(Vec::with_capacity(256))
            .ok()
            .map(|path| PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes())))
            .filter(|path| path.is_absolute());
        Self(path.and_then(|path| Some((path, file_of(Path::new("."))?))))
    }

    /// Goes there; `setns` has put the process at `/`.
    fn restore(self) -> Result<(), PauseError> {
        let Some((path, before)) = self.0 else {
            return Ok(());
        };
        let error = |path, why| Err(PauseError::WorkingDirectory { path, why });
        if let Err(errno) = rustix::process::chdir(&path) {
            return error(path, errno.to_string());
        }
        if file_of(Path::new(".")) != Some(before) {
            return error(path, "another directory is mounted there".to_owned());
        }
        Ok(())
    }
}

/// Device and inode.
fn file_of(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::stat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}
