//! A running program that connects a network namespace with the host's from user space.
//!
//! Theory of operation. The program gets what it needs as descriptors, never as paths that it must
//! be allowed to walk: standard input is the network namespace (`/proc/self/fd/0` names it; `pasta`
//! has given up `CAP_SYS_PTRACE` before it opens the namespace, so that `/proc/PID/ns/net` of a
//! process with more capabilities than its own would be refused), standard error is a small sealed
//! memory file (bounded, and unlike a pipe it neither blocks nor kills a writer that nobody reads),
//! and readiness is a byte or the end of a pipe. It stays in the foreground: it is the caller's own
//! child, its pidfd is never a guess, and the kernel can kill it together with its owner.
//! [`spawn`] returns as soon as the process exists; [`Process::ready`] waits, so that the rest of a
//! container can be set up meanwhile.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, getppid, getrlimit,
    set_parent_process_death_signal, setrlimit, setsid, waitid,
};
use selkie_sys::clone::{Side, exit_now, fork};
use selkie_sys::errno::Attempt as _;
use selkie_sys::exec::PreparedCommand;
use selkie_sys::{SysError, SysResult, child};

/// Most that is kept of what the program says, in bytes. What comes later is lost: the first words
/// tell what went wrong.
const MOST_WORDS: u64 = 16 * 1024;

/// Exit code of a child that could not become the program.
const NOT_STARTED: i32 = 127;

/// When the program ends besides on its own and when its [`Process`] is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// With the thread that started it, however that ends.
    Owner,
    /// When somebody kills it.
    Unbound,
}

/// What the program finds around it.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The namespace it is to connect. It must belong to the caller's user namespace or to one below
    /// it. The caller's own network namespace is what it is connected with.
    pub network_namespace: BorrowedFd<'a>,
    /// Its whole environment.
    pub environment: &'a [CString],
    /// Whether it outlives its owner.
    pub lifetime: Lifetime,
}

/// Soft and hard limits (setrlimit(2)) of the program; `None` leaves the caller's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of address space.
    pub address_space: Option<u64>,
    /// Open descriptors. The soft limit is raised to this as far as the hard one permits.
    pub descriptors: Option<u64>,
}

/// Where the program says that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadyWire {
    /// Standard output; otherwise that goes where standard error goes.
    Stdout,
    /// Descriptor 3. Descriptor 4 is then a pipe whose end means that the program shall end.
    Three,
}

/// A program to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    /// Without the program's own name.
    pub(crate) arguments: Vec<OsString>,
    pub(crate) ready_wire: ReadyWire,
    pub(crate) limits: Limits,
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// The program gave up.
    #[error("{} ended {status} before the network was up{}", program.display(), said(words))]
    Ended {
        /// Its path.
        program: PathBuf,
        /// `with code 1`, `by signal 9`.
        status: String,
        /// What it said.
        words: String,
    },
    /// The program takes longer than the caller waits.
    #[error("{} was not ready after {} s{}", program.display(), waited.as_secs(), said(words))]
    Late {
        /// Its path.
        program: PathBuf,
        /// How long it had.
        waited: Duration,
        /// What it said until then.
        words: String,
    },
    /// The kernel refused something.
    #[error(transparent)]
    System(#[from] SysError),
}

impl Failure {
    /// What the program said, if it came that far.
    pub fn words(&self) -> &str {
        match self {
            Self::Ended { words, .. } | Self::Late { words, .. } => words,
            Self::System(_) => "",
        }
    }
}

fn said(words: &str) -> String {
    if words.is_empty() {
        String::new()
    } else {
        format!(": {}", words.replace('\n', "; "))
    }
}

/// A started program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    program: PathBuf,
    pid: Pid,
    pidfd: OwnedFd,
    words: OwnedFd,
    ready: OwnedFd,
    is_ready: bool,
    /// Its end tells the program to end.
    _exit: Option<OwnedFd>,
    status: Option<String>,
    is_left_alone: bool,
}

/// Starts the program and returns at once. The caller must have one thread.
pub(crate) fn spawn(launch: Launch<'_>, around: &Surroundings<'_>) -> SysResult<Process> {
    let path = c_string(launch.program.as_os_str().as_bytes().to_vec())?;
    let mut arguments = vec![path.clone()];
    for argument in launch.arguments {
        arguments.push(c_string(argument.into_vec())?);
    }
    let command = PreparedCommand::new(arguments, around.environment.to_vec());
    let pipe = || pipe_with(PipeFlags::CLOEXEC).attempt(|| "make a pipe");
    let words = memory_for_words()?;
    let (ready, ready_write) = pipe()?;
    let (stdout, exit) = match launch.ready_wire {
        ReadyWire::Stdout => (ready_write.as_fd(), None),
        ReadyWire::Three => (words.as_fd(), Some(pipe()?)),
    };
    let mut layout = vec![around.network_namespace, stdout, words.as_fd()];
    if let Some((exit_read, _)) = &exit {
        layout.extend([ready_write.as_fd(), exit_read.as_fd()]);
    }
    let owner = getpid();
    let (pid, pidfd) = match fork()? {
        Side::Parent { pid, pidfd } => (pid, pidfd),
        Side::Child => {
            let error = become_program(
                &command,
                &path,
                &layout,
                launch.limits,
                (around.lifetime == Lifetime::Owner).then_some(owner),
            );
            let text = format!("{error}\n");
            let _ = rustix::io::write(&words, text.as_bytes());
            exit_now(NOT_STARTED)
        }
    };
    Ok(Process {
        program: launch.program.to_owned(),
        pid,
        pidfd,
        ready,
        is_ready: false,
        _exit: exit.map(|(_, write)| write),
        words,
        status: None,
        is_left_alone: false,
    })
}

/// Runs in the child; returns only when it failed.
fn become_program(
    command: &PreparedCommand,
    path: &CString,
    layout: &[BorrowedFd<'_>],
    limits: Limits,
    dies_with: Option<Pid>,
) -> SysError {
    let prepare = || -> SysResult<()> {
        child::reset_signals();
        // Away from the terminal's ^C.
        setsid().attempt(|| "make a session")?;
        if let Some(owner) = dies_with {
            set_parent_process_death_signal(Some(Signal::KILL))
                .attempt(|| "ask to be killed with the parent")?;
            // It may have died before that.
            if getppid() != Some(owner) {
                exit_now(NOT_STARTED);
            }
        }
        // First out of the way of each other.
        let moved: Vec<OwnedFd> = layout
            .iter()
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 16))
            .collect::<Result<_, Errno>>()
            .attempt(|| "copy a descriptor")?;
        for (target, fd) in (0..).zip(&moved) {
            child::place_fd(fd.as_fd(), target)
                .attempt(|| format!("put a descriptor at {target}"))?;
        }
        let first_unwanted = moved.len() as i32;
        child::close_on_exec_from(first_unwanted).attempt(|| "mark descriptors close-on-exec")?;
        lower(Resource::As, limits.address_space)?;
        set_descriptors(limits.descriptors)
    };
    match prepare() {
        Err(error) => error,
        Ok(()) => SysError::new(
            format!("execute {}", path.to_string_lossy()),
            command.execute(path),
        ),
    }
}

/// Lowers a limit; one that is lower already stays.
fn lower(resource: Resource, most: Option<u64>) -> SysResult<()> {
    let Some(most) = most else {
        return Ok(());
    };
    let lower = |present: Option<u64>| Some(present.map_or(most, |present| present.min(most)));
    let present = getrlimit(resource);
    let limits = Rlimit {
        current: lower(present.current),
        maximum: lower(present.maximum),
    };
    setrlimit(resource, limits).attempt(|| format!("limit {resource:?} to {most}"))
}

fn set_descriptors(most: Option<u64>) -> SysResult<()> {
    let Some(most) = most else {
        return Ok(());
    };
    let most = getrlimit(Resource::Nofile)
        .maximum
        .map_or(most, |hard| hard.min(most));
    let limits = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(Resource::Nofile, limits).attempt(|| format!("limit descriptors to {most}"))
}

fn c_string(bytes: Vec<u8>) -> SysResult<CString> {
    CString::new(bytes).map_err(|_| SysError::new("pass an argument with a NUL byte", Errno::INVAL))
}

fn memory_for_words() -> SysResult<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let words = rustix::fs::memfd_create("words", flags).attempt(|| "make a memory file")?;
    rustix::fs::ftruncate(&words, MOST_WORDS).attempt(|| "size a memory file")?;
    rustix::fs::fcntl_add_seals(&words, SealFlags::GROW | SealFlags::SHRINK)
        .attempt(|| "seal a memory file")?;
    Ok(words)
}

impl Process {
    /// Its PID.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable once it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable once [`Self::ready`] will not wait: for the caller's own poll.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Waits until the network is up, at most for `patience`.
    ///
    /// # Errors
    /// [`Failure::Ended`] with its words when it gave up. It is dead then.
    pub fn ready(&mut self, patience: Duration) -> Result<(), Failure> {
        if self.is_ready {
            return Ok(());
        }
        if !is_readable(&self.ready, patience)? {
            return Err(Failure::Late {
                program: self.program.clone(),
                waited: patience,
                words: self.words(),
            });
        }
        let mut line = [0u8; 32];
        // Nothing to read, but readable: only its end closes the other side.
        if let Ok(1..) = rustix::io::read(&self.ready, &mut line) {
            self.is_ready = true;
            return Ok(());
        }
        let status = match self.wait(Duration::from_secs(2))? {
            Some(status) => status,
            None => {
                self.kill();
                "without a word".into()
            }
        };
        Err(Failure::Ended {
            program: self.program.clone(),
            status,
            words: self.words(),
        })
    }

    /// What it has said, without the noise: at most its first 16 KiB.
    pub fn words(&self) -> String {
        let mut bytes = vec![0; MOST_WORDS as usize];
        let mut filled = 0;
        while let Ok(length @ 1..) =
            rustix::io::pread(&self.words, &mut bytes[filled..], filled as u64)
        {
            filled += length;
        }
        let end = bytes.iter().rposition(|&byte| byte != 0);
        clean(&String::from_utf8_lossy(
            &bytes[..end.map_or(0, |at| at + 1)],
        ))
    }

    /// Waits for its end, at most for `patience`: `Some("with code 1")`, or `None` when it runs.
    pub fn wait(&mut self, patience: Duration) -> SysResult<Option<String>> {
        if self.status.is_none() && is_readable(&self.pidfd, patience)? {
            self.status = Some(reap(&self.pidfd)?);
        }
        Ok(self.status.clone())
    }

    /// Kills and reaps it. Connections through it end without a word; the interface it made is gone.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // It may have ended, which is what is wanted.
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            self.status = Some(reap(&self.pidfd).unwrap_or_else(|error| error.to_string()));
        }
    }

    /// Lets it run without this handle; whoever wants to find it again has taken its identity.
    pub fn leave_alone(mut self) -> Pid {
        self.is_left_alone = true;
        self.pid
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_left_alone {
            self.kill();
        }
    }
}

fn is_readable(fd: &OwnedFd, patience: Duration) -> SysResult<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        // The end of a pipe counts: poll reports it whether it is asked for or not.
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).attempt(|| "poll a program's pipe"),
        }
    }
}

fn reap(pidfd: &OwnedFd) -> SysResult<String> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return Ok(word(&status)),
            Ok(None) | Err(Errno::INTR) => {}
            // Reaped by somebody who waits for every child.
            Err(Errno::CHILD) => return Ok("unseen".into()),
            Err(errno) => return Err(errno).attempt(|| "wait for a program"),
        }
    }
}

fn word(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("with code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "in an odd way".into(),
    }
}

/// Without empty lines, what a system logger that is not there makes old versions of pasta say, and
/// slirp4netns's diary.
fn clean(text: &str) -> String {
    let is_noise = |line: &str| {
        line.trim().is_empty()
            || (line.starts_with("Failed to send ") && line.ends_with(" bytes to syslog"))
            || line.starts_with("api_handler: got request")
            || line.starts_with("sent tapfd=")
            || line.starts_with("received tapfd=")
    };
    let lines: Vec<&str> = text.lines().filter(|line| !is_noise(line)).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_no_word() {
        let said = "Failed to send 51 bytes to syslog\n\nNo external routable interface for IPv4\n\
                    sent tapfd=5 for tap0\nExternal interface not usable\n";
        assert_eq!(
            clean(said),
            "No external routable interface for IPv4\nExternal interface not usable"
        );
    }

    #[test]
    fn words_are_bounded_and_their_writer_is_not_hurt() {
        let words = memory_for_words().unwrap();
        let line = [b'x'; 1000];
        let mut kept = 0;
        let refused = loop {
            match rustix::io::write(&words, &line) {
                Ok(length) => kept += length as u64,
                Err(errno) => break errno,
            }
            assert!(kept <= MOST_WORDS);
        };
        assert_eq!(refused, Errno::PERM);
        assert!(kept > MOST_WORDS - 1000);
    }

    #[test]
    fn failures_tell_what_the_program_said() {
        let failure = Failure::Ended {
            program: "/usr/bin/pasta".into(),
            status: "with code 1".into(),
            words: "one\ntwo".into(),
        };
        assert_eq!(
            failure.to_string(),
            "/usr/bin/pasta ended with code 1 before the network was up: one; two"
        );
    }
}
