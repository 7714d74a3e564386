//! Keeps the memory of a slirp4netns that runs within bounds.
//!
//! What a connection costs is known only once it is stuck: a closed one that libslirp remembers for ten
//! seconds (TIME_WAIT) has a descriptor and 380 kB of address space, but no memory to speak of; one
//! whose reader sleeps while its writer does not takes 0.3 MB or more. So neither a limit of descriptors
//! nor one of address space is a limit of memory that short connections in quick succession would not
//! hit. The guard looks at the resident memory itself, a few times a second. Beyond
//! [`Bounds::refuse`] it lowers the limit of descriptors of the running process to those it has: the
//! container sees new connections refused, and those there are go on, until memory is back below
//! [`Bounds::accept`]. Connections that were opened first and got stuck later can still take more: at
//! [`Bounds::end`] the program has to be started anew.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use selkie_sys::SysResult;
use selkie_sys::errno::{Attempt as _, SysError};

use super::LIMITS;
use crate::user_mode::Process;

/// Between two looks. What slirp4netns can take in between is what it can copy: some 100 MB.
const PERIOD: Duration = Duration::from_millis(200);

/// How many descriptors the limit leaves beyond the highest one in use. It polls all of them at once,
/// and poll(2) fails, and with it slirp4netns, when they are more than the limit. While the limit is
/// being lowered it may open further ones; this many it cannot.
const HEADROOM: u64 = 256;

/// Amounts of resident memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// From here on no further connection is accepted.
    pub refuse: u64,
    /// Below this they are again.
    pub accept: u64,
    /// From here on it has to end.
    pub end: u64,
}

/// What is measured: 1500 connections stuck in both directions take 512 MB.
pub const BOUNDS: Bounds = Bounds {
    refuse: 512 << 20,
    accept: 384 << 20,
    end: 1 << 30,
};

/// How a slirp4netns does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It accepts connections.
    Accepting,
    /// It has enough.
    Refusing,
    /// It must end.
    TooLarge,
}

/// Watches one process, which the caller has not reaped: its PID is its own as long as this lives.
#[derive(Debug)]
pub struct MemoryGuard {
    pid: Pid,
    statm: OwnedFd,
    bounds: Bounds,
    /// Hard limit of descriptors, which the soft one is when nothing is refused.
    most: Option<u64>,
    is_refusing: bool,
    next: Instant,
}

impl MemoryGuard {
    /// For a process that the caller's own thread has started with [`super::start`].
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn new(process: &Process, bounds: Bounds) -> SysResult<Self> {
        let pid = process.pid();
        let path = format!("/proc/{}/statm", pid.as_raw_nonzero());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self {
            pid,
            statm: rustix::fs::open(&path, flags, Mode::empty())
                .attempt(|| format!("open {path}"))?,
            bounds,
            most: lower(getrlimit(Resource::Nofile).maximum, LIMITS.descriptors),
            is_refusing: false,
            next: Instant::now() + PERIOD,
        })
    }

    /// When to look next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Looks, and lowers or raises its limit.
    ///
    /// # Errors
    /// It has ended.
    pub fn look(&mut self) -> SysResult<Verdict> {
        self.next = Instant::now() + PERIOD;
        let resident = self.resident()?;
        if resident >= self.bounds.end {
            return Ok(Verdict::TooLarge);
        }
        if resident >= self.bounds.refuse {
            // Again each time, since connections that ended have made room for others.
            self.refuse()?;
            self.is_refusing = true;
        } else if self.is_refusing && resident < self.bounds.accept {
            self.set_limit(self.most)?;
            self.is_refusing = false;
        }
        Ok(if self.is_refusing {
            Verdict::Refusing
        } else {
            Verdict::Accepting
        })
    }

    fn resident(&self) -> SysResult<u64> {
        let mut text = [0u8; 128];
        let length = rustix::io::pread(&self.statm, &mut text, 0)
            .attempt(|| "read the memory of slirp4netns")?;
        let pages = std::str::from_utf8(&text[..length])
            .ok()
            .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
            .ok_or_else(|| SysError::new("understand the memory of slirp4netns", Errno::BADMSG))?;
        Ok(pages * rustix::param::page_size() as u64)
    }

    fn refuse(&self) -> SysResult<()> {
        let mut limit = self.highest_descriptor()? + HEADROOM;
        loop {
            self.set_limit(lower(self.most, Some(limit)))?;
            let highest = self.highest_descriptor()?;
            if highest < limit {
                return Ok(());
            }
            limit = highest + HEADROOM;
        }
    }

    fn highest_descriptor(&self) -> SysResult<u64> {
        let path = format!("/proc/{}/fd", self.pid.as_raw_nonzero());
        let entries = std::fs::read_dir(&path).attempt(|| format!("read {path}"))?;
        Ok(entries
            .map_while(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .max()
            .unwrap_or(0))
    }

    fn set_limit(&self, soft: Option<u64>) -> SysResult<()> {
        let limit = Rlimit {
            current: soft,
            maximum: self.most,
        };
        prlimit(Some(self.pid), Resource::Nofile, limit)
            .map(drop)
            .attempt(|| format!("limit the descriptors of slirp4netns to {soft:?}"))
    }
}

/// The lower of two limits; `None` is no limit.
fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
