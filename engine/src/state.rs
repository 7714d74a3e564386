//! What changes while a container runs: small files in its directory, read by everyone, believed
//! only as far as the kernel agrees.
//!
//! - `state`: who runs it, written by the monitor after init exists and before it executes the
//!   command; removed when the run's end is in the database.
//!   Whoever changes the networks or ports of the running container holds the file's lock (`flock`).
//! - `exit`: how the run ended, written as soon as init is gone, so that it survives even when the
//!   database cannot be written (full disk); removed with `state`.
//! - `stopping`: who is stopping it, while somebody is.
//!
//! So: no `state` means not running; a `state` whose init lives means running, whoever else died; a
//! `state` whose init is gone means ended, and `exit` tells how, if the monitor lived to see it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, renameat, unlinkat};
use rustix::io::Errno;
use selkie_sys::process_identity::ProcessIdentity;
use serde::{Deserialize, Serialize};

use crate::container::ExitRecord;
use crate::error::{Error, Result};
use crate::layout::write_over;

/// Who runs a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Kernel's ID of the boot it runs in: PIDs and start times repeat after the next.
    pub boot: String,
    /// Its monitor.
    pub monitor: ProcessIdentity,
    /// PID 1 inside.
    pub init: ProcessIdentity,
    /// RFC 3339.
    pub started: String,
}

/// What is known about a container's run without the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Observed {
    /// No run, or one whose end is in the database.
    Idle,
    /// Its init lives, or its monitor has yet to write how it ended.
    Running(RunState),
    /// Its init is gone; what its monitor wrote about that, if it did.
    Ended(RunState, Option<ExitRecord>),
}

/// Marks a container as being stopped by the calling process, while that lives.
pub(crate) fn mark_stopping(dir: BorrowedFd<'_>) -> Result<()> {
    let own =
        ProcessIdentity::own().map_err(|error| Error::machine("look at the own process", error))?;
    write_whole(dir, STOPPING, STOPPING_NEW, &own)
}

/// True when whoever called [`mark_stopping`] is still at it.
pub(crate) fn is_being_stopped(base: BorrowedFd<'_>, dir: &str) -> Result<bool> {
    let stopper = read_whole::<ProcessIdentity>(base, dir, STOPPING)?;
    Ok(stopper.is_some_and(|stopper| stopper.is_running()))
}

/// Waits for the lock that changes of a running container take, one after another: its `state` file.
/// `None` when it does not run any more.
pub(crate) fn lock_run(container_dir: &Path) -> Result<Option<OwnedFd>> {
    let path = container_dir.join(STATE);
    let attempt = || format!("lock {}", path.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(Error::machine(attempt(), errno)),
    };
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
        .map_err(|errno| Error::machine(attempt(), errno))?;
    Ok(Some(file))
}

const STOPPING: &str = "stopping";
const STOPPING_NEW: &str = "stopping.new";
const STATE: &str = "state";
const STATE_NEW: &str = "state.new";
const EXIT: &str = "exit";
const EXIT_NEW: &str = "exit.new";

/// Writes `state` in a container's directory beforehand; [`commit_state`] makes it count.
pub(crate) fn prepare_state(dir: BorrowedFd<'_>, state: &RunState) -> Result<()> {
    write_new(dir, STATE_NEW, state)
}

/// Makes what [`prepare_state`] wrote the container's `state`.
pub(crate) fn commit_state(dir: BorrowedFd<'_>) -> Result<()> {
    rename(dir, STATE_NEW, STATE)
}

/// Writes `exit` in a container's directory, whole or not at all.
pub(crate) fn write_exit(dir: BorrowedFd<'_>, exit: &ExitRecord) -> Result<()> {
    write_whole(dir, EXIT, EXIT_NEW, exit)
}

/// Forgets the run; its end must be in the database.
pub(crate) fn clear(dir: BorrowedFd<'_>) -> Result<()> {
    // `exit` last: while `state` is there it must not look as if nobody saw the end.
    for name in [STOPPING, STATE_NEW, STATE, EXIT] {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                return Err(Error::machine(
                    format!("remove `{name}` of a container"),
                    errno,
                ));
            }
        }
    }
    Ok(())
}

/// Makes the directory of an ended container without a row one for another container.
pub(crate) fn retire(dir: BorrowedFd<'_>) -> Result<()> {
    for name in ["log", STOPPING, EXIT] {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                let attempt = format!("remove `{name}` of a container");
                return Err(Error::machine(attempt, errno));
            }
        }
    }
    // Kept as a file, not as a record: nobody reads it by that name.
    rename(dir, STATE, STATE_NEW)
}

/// Reads `state` and `exit` below `dir` (relative to `base`) and asks the kernel.
///
/// # Errors
/// A file is there and cannot be read. A damaged one counts as absent: it was cut short by a power
/// cut, after which nothing of it runs.
pub(crate) fn observe(base: BorrowedFd<'_>, dir: &str) -> Result<Observed> {
    let Some(state) = read_whole::<RunState>(base, dir, STATE)? else {
        return Ok(Observed::Idle);
    };
    if state.is_running() {
        return Ok(Observed::Running(state));
    }
    // Asked before the exit file is looked for: a monitor that lives has yet to write it, and one
    // that is gone will not.
    let is_monitored = state.is_monitored();
    match read_whole(base, dir, EXIT)? {
        Some(exit) => Ok(Observed::Ended(state, Some(exit))),
        // The monitor may have finished between our two looks: then `state` is gone too.
        None => match read_whole::<RunState>(base, dir, STATE)? {
            Some(again) if again == state && is_monitored => Ok(Observed::Running(state)),
            Some(again) if again == state => Ok(Observed::Ended(state, None)),
            Some(newer) if newer.is_running() => Ok(Observed::Running(newer)),
            Some(newer) => Ok(Observed::Ended(newer, None)),
            None => Ok(Observed::Idle),
        },
    }
}

impl RunState {
    /// True while init lives.
    pub(crate) fn is_running(&self) -> bool {
        boot_id().is_ok_and(|boot| boot == self.boot) && self.init.is_running()
    }

    /// True while the monitor lives.
    pub(crate) fn is_monitored(&self) -> bool {
        boot_id().is_ok_and(|boot| boot == self.boot) && self.monitor.is_running()
    }
}

/// Monitors and inits of running containers below `containers_dir`, newest first. In their
/// namespaces the login's own may be found again when its pause process is dead, so this must work
/// without database and outside of that namespace.
pub(crate) fn survivors(containers_dir: &Path) -> Vec<ProcessIdentity> {
    let Ok(base) = crate::layout::open_dir(containers_dir) else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(containers_dir) else {
        return Vec::new();
    };
    let mut running: Vec<RunState> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| read_whole::<RunState>(base.as_fd(), &name, STATE).ok()?)
        .filter(|state| state.is_running() || state.is_monitored())
        .collect();
    running.sort_by_key(|state| std::cmp::Reverse(state.monitor.start_time));
    running
        .iter()
        .flat_map(|state| [state.monitor, state.init])
        .filter(ProcessIdentity::is_running)
        .collect()
}

/// The kernel's random ID of this boot.
pub(crate) fn boot_id() -> Result<&'static str> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(boot);
    }
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH)
        .map_err(|error| Error::machine(format!("read {PATH}"), error))?;
    Ok(BOOT.get_or_init(|| text.trim_end().to_owned()))
}

/// Now, RFC 3339 in UTC.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn write_whole(
    dir: BorrowedFd<'_>,
    name: &str,
    temporary: &str,
    value: &impl Serialize,
) -> Result<()> {
    write_new(dir, temporary, value)?;
    rename(dir, temporary, name)
}

fn rename(dir: BorrowedFd<'_>, temporary: &str, name: &str) -> Result<()> {
    renameat(dir, temporary, dir, name)
        .map_err(|errno| Error::machine(format!("write `{name}` of a container"), errno))
}

fn write_new(dir: BorrowedFd<'_>, temporary: &str, value: &impl Serialize) -> Result<()> {
    let attempt = || format!("write `{temporary}` of a container");
    let json = serde_json::to_vec(value).map_err(|error| Error::machine(attempt(), error))?;
    let file = openat(
        dir,
        temporary,
        OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )
    .map_err(|errno| Error::machine(attempt(), errno))?;
    write_over(file.as_fd(), &json).map_err(|errno| Error::machine(attempt(), errno))
}

fn read_whole<T: for<'de> Deserialize<'de>>(
    base: BorrowedFd<'_>,
    dir: &str,
    name: &str,
) -> Result<Option<T>> {
    let path = format!("{dir}/{name}");
    let file = match openat(
        base,
        &path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    ) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(Error::machine(format!("open {path}"), errno)),
    };
    let mut buffer = [0u8; 4096];
    let mut length = 0;
    loop {
        let count =
            rustix::io::retry_on_intr(|| rustix::io::read(file.as_fd(), &mut buffer[length..]))
                .map_err(|errno| Error::machine(format!("read {path}"), errno))?;
        length += count;
        // Ours are far smaller than the buffer; a fuller one is not ours and does not parse.
        if count == 0 || length == buffer.len() {
            return Ok(serde_json::from_slice(&buffer[..length]).ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_state(dir: BorrowedFd<'_>, state: &RunState) -> Result<()> {
        prepare_state(dir, state)?;
        commit_state(dir)
    }

    fn own_state() -> RunState {
        let own = ProcessIdentity::own().unwrap();
        RunState {
            boot: boot_id().unwrap().to_owned(),
            monitor: own,
            init: own,
            started: now(),
        }
    }

    fn container_dir() -> (tempfile::TempDir, std::fs::File) {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("c")).unwrap();
        let dir = std::fs::File::open(temp.path().join("c")).unwrap();
        (temp, dir)
    }

    fn look(temp: &tempfile::TempDir) -> Observed {
        let base = std::fs::File::open(temp.path()).unwrap();
        observe(base.as_fd(), "c").unwrap()
    }

    #[test]
    fn the_kernel_is_believed_and_not_the_file() {
        let (temp, dir) = container_dir();
        assert_eq!(look(&temp), Observed::Idle);

        let state = own_state();
        write_state(dir.as_fd(), &state).unwrap();
        assert_eq!(look(&temp), Observed::Running(state.clone()));

        let mut recycled = state.clone();
        recycled.init.start_time += 1;
        write_state(dir.as_fd(), &recycled).unwrap();
        // Its monitor lives and has not written the end yet.
        assert_eq!(look(&temp), Observed::Running(recycled.clone()));
        recycled.monitor.start_time += 1;
        write_state(dir.as_fd(), &recycled).unwrap();
        assert_eq!(look(&temp), Observed::Ended(recycled, None));

        let mut last_boot = state;
        last_boot.boot = "another".to_owned();
        write_state(dir.as_fd(), &last_boot).unwrap();
        assert_eq!(look(&temp), Observed::Ended(last_boot, None));
    }

    #[test]
    fn the_exit_record_is_found_and_cleared() {
        let (temp, dir) = container_dir();
        let mut state = own_state();
        state.init.start_time += 1;
        let exit = ExitRecord {
            code: 3,
            started: state.started.clone(),
            finished: now(),
            error: None,
        };
        write_state(dir.as_fd(), &state).unwrap();
        write_exit(dir.as_fd(), &exit).unwrap();
        assert_eq!(look(&temp), Observed::Ended(state, Some(exit)));
        clear(dir.as_fd()).unwrap();
        assert_eq!(look(&temp), Observed::Idle);
        assert_eq!(std::fs::read_dir(temp.path().join("c")).unwrap().count(), 0);
    }

    #[test]
    fn a_file_cut_short_counts_as_absent() {
        let (temp, _dir) = container_dir();
        std::fs::write(temp.path().join("c/state"), r#"{"boot":"x","mon"#).unwrap();
        assert_eq!(look(&temp), Observed::Idle);
    }
}
