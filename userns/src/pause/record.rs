//! What is remembered about the pause process, and the private directory it is kept in.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use selkie_sys::errno::{Attempt, SysError};
use selkie_sys::namespace::{self, NamespaceKey};
use selkie_sys::process_identity::{self, ProcessIdentity};
use serde::{Deserialize, Serialize};

use super::PauseError;
use crate::id_map::IdMaps;
use crate::subordinate_ids::HostFiles;

const RECORD: &str = "pause.json";
const RECORD_BEING_WRITTEN: &str = "pause.json.new";
const LOCK: &str = "pause.lock";

/// A record is a few hundred bytes; with 340 extents each way about 40 kB.
const LARGEST_RECORD: u64 = 256 * 1024;

/// One pause process. Stored as JSON in the runtime directory and, for the case that the directory
/// is lost, in a memory file the pause process itself holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub identity: ProcessIdentity,
    pub user_namespace: NamespaceKey,
    pub mount_namespace: NamespaceKey,
    /// The user namespace its maps speak of: the one of who first made it.
    pub made_from: NamespaceKey,
    /// The directory it was made for: one login may have several (other `XDG_RUNTIME_DIR`s), and
    /// each has its own pause process. Lossy UTF-8, only ever compared.
    pub runtime_dir: String,
    pub host_maps: IdMaps,
    pub single_id_reason: Option<String>,
    /// The host's files as they were when `host_maps` was last compared with them.
    pub sources: Sources,
    pub stale_ranges: Option<String>,
}

impl Record {
    /// True for a caller in that user namespace: the pause process's own or the one around it.
    pub fn is_for(&self, caller: NamespaceKey) -> bool {
        [self.made_from, self.user_namespace].contains(&caller)
    }

    /// A pidfd for the pause process if it still lives and still is what the record says. Nothing
    /// but the kernel is believed: a recycled PID fails on its start time, another of the login's
    /// namespaces on its key, another login's on its owner.
    pub fn open_live(&self) -> Result<Option<OwnedFd>, PauseError> {
        let Some(pidfd) = self.identity.open()? else {
            return Ok(None);
        };
        let path = format!("/proc/{}/ns/user", self.identity.pid);
        let user = match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(user) => user,
            // A process of somebody else does not show its namespaces.
            Err(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM) => return Ok(None),
            Err(errno) => return Err(SysError::new(format!("open {path}"), errno).into()),
        };
        use std::os::fd::AsFd as _;
        let same = NamespaceKey::of(user.as_fd())? == self.user_namespace
            && namespace::owner_uid(user.as_fd())? == rustix::process::getuid().as_raw();
        // Where nobody reaps orphans (PID 1 of many containers) the dead stay visible as zombies,
        // with their user namespace.
        let dead = process_identity::wait_for_exit(&pidfd, Some(Duration::ZERO))?;
        Ok((same && !dead).then_some(pidfd))
    }
}

/// A file's state, cheap to compare. `None` means the file does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    inode: u64,
    size: i64,
    seconds: i64,
    nanoseconds: u64,
}

/// The files that decide which subordinate IDs a login has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sources([Option<Stamp>; 3]);

impl Sources {
    /// Equal to the state of no real host, so that the ranges are compared anew.
    pub fn unknown() -> Self {
        let never = Stamp {
            inode: 0,
            size: -1,
            seconds: 0,
            nanoseconds: 0,
        };
        Self([Some(never); 3])
    }

    pub fn now(host: &HostFiles) -> Self {
        Self([&host.subuid, &host.subgid, &host.nsswitch].map(|path| {
            rustix::fs::stat(path).ok().map(|stat| Stamp {
                inode: stat.st_ino,
                size: stat.st_size,
                seconds: stat.st_mtime,
                nanoseconds: stat.st_mtime_nsec,
            })
        }))
    }
}

/// The runtime directory, known to be the caller's own and closed to everybody else.
#[derive(Debug)]
pub(super) struct RuntimeDir {
    fd: OwnedFd,
    path: PathBuf,
}

/// Held while a pause process is looked for or made; other commands wait. Closing it lets go.
#[derive(Debug)]
pub(super) struct Lock {
    file: OwnedFd,
}

impl RuntimeDir {
    /// `None` when it does not exist.
    pub fn open(path: &Path) -> Result<Option<Self>, PauseError> {
        let untrusted = |why: String, fix: String| PauseError::RuntimeDirUntrusted {
            path: path.to_owned(),
            why,
            fix,
        };
        let remove = || format!("remove it: rm -r {}", path.display());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let why = "it or a part of its path is not a directory, or it is a symbolic link";
                return Err(untrusted(why.to_owned(), remove()));
            }
            Err(errno) => {
                return Err(SysError::new(format!("open {}", path.display()), errno).into());
            }
        };
        let stat = rustix::fs::fstat(&fd).attempt(|| format!("fstat {}", path.display()))?;
        let uid = rustix::process::getuid().as_raw();
        if stat.st_uid != uid {
            return Err(untrusted(
                format!("it belongs to UID {} and not to UID {uid}", stat.st_uid),
                "set XDG_RUNTIME_DIR to a directory of your own".to_owned(),
            ));
        }
        if stat.st_mode & 0o077 != 0 {
            return Err(untrusted(
                format!("others may enter it (mode {:04o})", stat.st_mode & 0o7777),
                format!("chmod 0700 {}", path.display()),
            ));
        }
        Ok(Some(Self {
            fd,
            path: path.to_owned(),
        }))
    }

    /// Makes it (and what is missing above it) with mode 0700 where needed.
    pub fn open_or_create(path: &Path) -> Result<Self, PauseError> {
        // A cleaner may remove it between the two steps; it does not do so three times.
        for _ in 0..3 {
            if let Some(dir) = Self::open(path)? {
                return Ok(dir);
            }
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .attempt(|| format!("make the runtime directory {}", path.display()))?;
        }
        Err(SysError::new(format!("open {}", path.display()), Errno::NOENT).into())
    }

    /// The record, or `None` when there is none or it is damaged.
    pub fn read(&self) -> Result<Option<Record>, PauseError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.fd, RECORD, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(self.error("open", RECORD, errno)),
        };
        Ok(parse_record(file))
    }

    /// Replaces the record as a whole.
    pub fn write(&self, record: &Record) -> Result<(), PauseError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(
            &self.fd,
            RECORD_BEING_WRITTEN,
            flags,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(|errno| self.error("write", RECORD_BEING_WRITTEN, errno))?;
        use std::io::Write as _;
        std::fs::File::from(file)
            .write_all(&serialise(record))
            .attempt(|| format!("write {}", self.path.join(RECORD_BEING_WRITTEN).display()))?;
        rustix::fs::renameat(&self.fd, RECORD_BEING_WRITTEN, &self.fd, RECORD)
            .map_err(|errno| self.error("rename to", RECORD, errno))
    }

    /// Waits for the lock. `None` when the directory vanished meanwhile and must be made again.
    pub fn lock(&self) -> Result<Option<Lock>, PauseError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.fd, LOCK, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.error("open", LOCK, errno)),
        };
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
            .map_err(|errno| self.error("lock", LOCK, errno))?;
        let lock = Lock { file };
        Ok(self.holds(&lock)?.then_some(lock))
    }

    /// True while `lock` is the file others would lock: neither it nor the directory was removed.
    pub fn holds(&self, lock: &Lock) -> Result<bool, PauseError> {
        let own =
            rustix::fs::fstat(&lock.file).map_err(|errno| self.error("fstat", LOCK, errno))?;
        match rustix::fs::stat(self.path.join(LOCK)) {
            Ok(current) => Ok((own.st_dev, own.st_ino) == (current.st_dev, current.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.error("stat", LOCK, errno)),
        }
    }

    fn error(&self, verb: &str, name: &str, errno: Errno) -> PauseError {
        SysError::new(format!("{verb} {}", self.path.join(name).display()), errno).into()
    }
}

pub(super) fn serialise(record: &Record) -> Vec<u8> {
    // Maps, strings and numbers: there is nothing in it that JSON cannot hold.
    serde_json::to_vec(record).unwrap_or_default()
}

/// Whatever cannot be understood is no record; the kernel is asked about the rest.
pub(super) fn parse_record(file: OwnedFd) -> Option<Record> {
    let mut bytes = Vec::with_capacity(2048);
    std::fs::File::from(file)
        .take(LARGEST_RECORD)
        .read_to_end(&mut bytes)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// How a runtime directory is written in a record.
pub(super) fn name_of(runtime_dir: &Path) -> String {
    runtime_dir.to_string_lossy().into_owned()
}
