//! Processes named by (PID, start time), which PID reuse cannot forge, and pidfds made from it.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::errno::{Attempt, SysError, SysResult};

/// A process for as long as it lives: its PID in the host's (or caller's) PID namespace and its
/// start time in clock ticks since boot (`/proc/PID/stat` field 22, proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// PID as seen in `/proc` of the caller.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

impl ProcessIdentity {
    /// Reads the identity of a live process.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process.
    pub fn of(pid: Pid) -> SysResult<Self> {
        let raw = pid.as_raw_nonzero().get();
        let stat = read_stat(raw)
            .ok_or_else(|| SysError::new(format!("read /proc/{raw}/stat"), Errno::SRCH))?;
        let start_time = parse_start_time(&stat)
            .ok_or_else(|| SysError::new(format!("parse /proc/{raw}/stat"), Errno::INVAL))?;
        Ok(Self {
            pid: raw,
            start_time,
        })
    }

    /// The calling process.
    pub fn own() -> SysResult<Self> {
        Self::of(rustix::process::getpid())
    }

    /// A pidfd for it, or `None` when that process is gone (even if its PID lives again).
    /// A zombie still has an identity.
    pub fn open(&self) -> SysResult<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(SysError::new(format!("pidfd_open {pid:?}"), errno)),
        };
        // The pidfd pins the process; only now is comparing the start time free of races.
        match Self::of(pid) {
            Ok(found) if found == *self => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(error) if error.errno == Errno::SRCH => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// True while the process runs (a zombie does not).
    pub fn is_running(&self) -> bool {
        read_stat(self.pid).is_some_and(|stat| {
            parse_start_time(&stat) == Some(self.start_time)
                && !matches!(parse_state(&stat), Some('Z' | 'X'))
        })
    }
}

/// Waits until the process behind the pidfd has exited or `timeout` has passed.
/// `None` waits for ever. Returns true when it has exited.
pub fn wait_for_exit(
    pidfd: impl std::os::fd::AsFd,
    timeout: Option<std::time::Duration>,
) -> SysResult<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = timeout.map(|timeout| std::time::Instant::now() + timeout);
    loop {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).attempt(|| "poll a pidfd"),
        }
    }
}

/// Sends signal number `signal` to the process behind the pidfd (`pidfd_send_signal(2)`). Takes any
/// number, real-time signals included, since it is the receiver's meaning that counts.
///
/// # Errors
/// `ESRCH` when it has exited and been reaped, `EPERM`, `EINVAL` for a number that is no signal.
pub fn send_signal(pidfd: impl std::os::fd::AsFd, signal: i32) -> SysResult<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the call takes integers and a null pointer (no siginfo) and touches no memory of ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == -1 {
        return Err(SysError::last(format!("send signal {signal} to a process")));
    }
    Ok(())
}

/// The line of `/proc/PID/stat`, `None` when there is no such process. One read: the kernel makes
/// the line anew for every file, and its numbers and 64-byte name always fit.
fn read_stat(pid: i32) -> Option<String> {
    let path = format!("/proc/{pid}/stat");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut line = [0u8; 2048];
    let length = rustix::io::read(file, &mut line).ok()?;
    // Command names are bytes.
    Some(String::from_utf8_lossy(&line[..length]).into_owned())
}

/// The fields after the command name, which itself may hold spaces and parentheses.
fn after_comm(stat: &str) -> Option<&str> {
    stat.rfind(')').map(|end| &stat[end + 1..])
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // Field 22 of the line; the first after the command name is field 3.
    after_comm(stat)?
        .split_ascii_whitespace()
        .nth(22 - 3)?
        .parse()
        .ok()
}

fn parse_state(stat: &str) -> Option<char> {
    after_comm(stat)?
        .split_ascii_whitespace()
        .next()?
        .chars()
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_names_cannot_forge_fields() {
        let stat = "7 (a) Z 1 (b)) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_state(stat), Some('S'));
    }

    #[test]
    fn processes_with_a_name_that_is_no_text_have_an_identity() {
        let dir = tempfile::tempdir().unwrap();
        let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"s\xff) Z\n");
        let program = dir.path().join(name);
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program)
            .arg("60")
            .spawn()
            .unwrap();
        let identity = Pid::from_raw(child.id() as i32).map(ProcessIdentity::of);
        let running = identity
            .clone()
            .is_some_and(|found| found.unwrap().is_running());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(running);
        assert!(!identity.unwrap().unwrap().is_running());
    }

    #[test]
    fn own_identity_is_running_and_a_forged_start_time_is_not() {
        let own = ProcessIdentity::own().unwrap();
        assert!(own.is_running());
        assert!(own.open().unwrap().is_some());
        let forged = ProcessIdentity {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(!forged.is_running());
        assert!(forged.open().unwrap().is_none());
    }
}
