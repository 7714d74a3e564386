//! What launching and `exec` share on the parent's side: descriptors handed over, the channel, and
//! a child that is killed and reaped unless it has got through its setup.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use selkie_sys::errno::Attempt;
use selkie_sys::fd_passing::{receive_one, send_one};
use selkie_sys::process_identity::ProcessIdentity;
use selkie_sys::{SysError, SysResult};

use crate::launch::{LaunchError, Launched, Stdio};
use crate::protocol::{Failure, MAX_GROUPS, Tag, encode_user};
use crate::script::{ScriptStdio, Step, execute_detail};
use crate::user_database::ResolvedUser;

/// The steps of a child's script with the command's name: turns what the child reports into words.
#[derive(Debug)]
pub(crate) struct Wording {
    pub(crate) steps: Vec<Step>,
    pub(crate) command: String,
}

impl Wording {
    pub(crate) fn error(&self, failure: Failure) -> LaunchError {
        let Failure {
            step,
            errno,
            detail,
        } = failure;
        match (self.steps.get(step as usize), detail) {
            (Some(Step::FindCommand | Step::Execute), execute_detail::NOT_FOUND) => {
                LaunchError::CommandNotFound(self.command.clone())
            }
            (Some(Step::FindCommand | Step::Execute), execute_detail::NO_INTERPRETER) => {
                LaunchError::InterpreterNotFound(self.command.clone())
            }
            (Some(Step::FindCommand | Step::Execute), _) => {
                LaunchError::CommandNotExecutable(self.command.clone(), errno)
            }
            (Some(Step::OpenWorkingDirectory { shown, .. }), _) => LaunchError::WorkingDirectory {
                path: shown.clone(),
                errno,
            },
            (Some(step), detail) => LaunchError::Step {
                step: step.describe(detail),
                errno,
            },
            (None, _) => protocol_error(),
        }
    }
}

/// Descriptors of the new process, all numbered so high that laying them out in the child cannot
/// overwrite one that is still to be laid out.
pub(crate) struct Handover {
    pub(crate) stdio: ScriptStdio,
    pub(crate) preserve_fds: Vec<OwnedFd>,
    /// First number the new process does not get.
    floor: RawFd,
}

impl Handover {
    pub(crate) fn new(stdio: Stdio, preserve_fds: Vec<OwnedFd>) -> SysResult<Self> {
        let floor = 3 + preserve_fds.len() as RawFd;
        let stdio = match stdio {
            Stdio::Streams {
                stdin,
                stdout,
                stderr,
            } => ScriptStdio::Streams([
                raise(stdin, floor)?,
                raise(stdout, floor)?,
                raise(stderr, floor)?,
            ]),
            Stdio::Terminal { .. } => ScriptStdio::Terminal,
        };
        let preserve_fds = preserve_fds.into_iter().map(|fd| raise(fd, floor));
        Ok(Self {
            stdio,
            preserve_fds: preserve_fds.collect::<SysResult<_>>()?,
            floor,
        })
    }

    /// The socket pair of [`crate::protocol`]: the parent's end and the child's.
    pub(crate) fn channel(&self) -> SysResult<(OwnedFd, OwnedFd)> {
        let (parent, child) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .attempt(|| "make a socket pair")?;
        Ok((parent, raise(child, self.floor)?))
    }
}

fn raise(fd: OwnedFd, floor: RawFd) -> SysResult<OwnedFd> {
    if fd.as_raw_fd() >= floor {
        return Ok(fd);
    }
    rustix::io::fcntl_dupfd_cloexec(&fd, floor).attempt(|| "duplicate a descriptor")
}

/// Gives the pipes among the process's streams to its user, so that `/dev/stdout` and its like can
/// be opened again from inside, whoever the user is. Everything else (terminals, files, sockets)
/// belongs to the login and stays as it is.
pub(crate) fn give_pipes(stdio: &ScriptStdio, uid: u32, gid: u32) -> SysResult<()> {
    use rustix::fs::{FileType, Gid, Uid, fchown, fstat};
    let ScriptStdio::Streams(streams) = stdio else {
        return Ok(());
    };
    for stream in streams {
        let stat = fstat(stream).attempt(|| "stat a stream")?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
            continue;
        }
        match fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
            // A pipe of somebody else's, inherited: it works, it only cannot be opened again.
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => return Err(SysError::new("give a pipe to the container's user", errno)),
        }
    }
    Ok(())
}

/// A child that performs a script. Dropped before [`Setup::finish`], it is killed and reaped.
pub(crate) struct Setup {
    pid: Pid,
    /// `None` once finished.
    pidfd: Option<OwnedFd>,
    channel: Option<OwnedFd>,
    wording: Option<Wording>,
}

impl Setup {
    pub(crate) fn new(pid: Pid, pidfd: OwnedFd, channel: OwnedFd, wording: Wording) -> Self {
        Self {
            pid,
            pidfd: Some(pidfd),
            channel: Some(channel),
            wording: Some(wording),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a message; when the child has already failed, its reason is the error.
    pub(crate) fn tell(
        &self,
        message: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), LaunchError> {
        let Some(channel) = &self.channel else {
            return Err(protocol_error());
        };
        match send_one(channel.as_fd(), message, fd) {
            Ok(()) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => match self.hear() {
                Ok(_) => Err(protocol_error()),
                Err(error) => Err(error),
            },
            Err(errno) => Err(SysError::new("talk to the container process", errno).into()),
        }
    }

    /// Who to be, once it is known.
    pub(crate) fn tell_user(&self, user: &ResolvedUser) -> Result<(), LaunchError> {
        if user.groups.len() > MAX_GROUPS {
            return Err(LaunchError::InvalidSpec(format!(
                "the user is in {} groups; {MAX_GROUPS} at most are supported",
                user.groups.len()
            )));
        }
        let home = format!("HOME={}\0", user.home);
        let terminators = home.bytes().filter(|&byte| byte == 0).count();
        if terminators != 1 || home.len() > 4096 {
            return Err(LaunchError::InvalidSpec(
                "the user's home directory in /etc/passwd is no usable path".into(),
            ));
        }
        let message = encode_user(user.uid, user.gid, &user.groups, home.as_bytes());
        self.tell(&message, None)
    }

    /// The child's next message that is not a failure.
    fn hear(&self) -> Result<(Tag, Option<OwnedFd>), LaunchError> {
        let (Some(channel), Some(wording)) = (&self.channel, &self.wording) else {
            return Err(protocol_error());
        };
        let mut message = [0; Failure::LENGTH];
        let (length, fd) = receive_one(channel.as_fd(), &mut message)
            .attempt(|| "listen to the container process")?;
        match &message[..length] {
            [] => Err(LaunchError::Step {
                step: "set up the container (its process was killed)".into(),
                errno: Errno::SRCH,
            }),
            [tag] if *tag == Tag::Ready as u8 => Ok((Tag::Ready, None)),
            [tag] if *tag == Tag::Terminal as u8 => Ok((Tag::Terminal, fd)),
            [tag] if *tag == Tag::Network as u8 => Ok((Tag::Network, fd)),
            bytes => Err(match Failure::decode(bytes) {
                Some(failure) => wording.error(failure),
                None => protocol_error(),
            }),
        }
    }

    /// Waits for the child's network namespace.
    pub(crate) fn network(&self) -> Result<OwnedFd, LaunchError> {
        match self.hear()? {
            (Tag::Network, Some(namespace)) => Ok(namespace),
            _ => Err(protocol_error()),
        }
    }

    pub(crate) fn pidfd(&self) -> Result<BorrowedFd<'_>, LaunchError> {
        let pidfd = self.pidfd.as_ref().map(AsFd::as_fd);
        pidfd.ok_or_else(protocol_error)
    }

    /// Waits until the child stands at the gate.
    pub(crate) fn finish(mut self) -> Result<Launched, LaunchError> {
        let identity = ProcessIdentity::of(self.pid)?;
        let mut terminal = None;
        while let (Tag::Terminal, fd) = self.hear()? {
            terminal = fd;
        }
        match (self.pidfd.take(), self.channel.take(), self.wording.take()) {
            (Some(pidfd), Some(gate), Some(wording)) => Ok(Launched {
                pid: self.pid,
                identity,
                pidfd,
                terminal,
                mount_namespace: None,
                gate,
                wording,
            }),
            _ => Err(protocol_error()),
        }
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        let Some(pidfd) = &self.pidfd else { return };
        // It may be dead already; either way it is our child and is to be reaped.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
        let reap = || waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        let _ = rustix::io::retry_on_intr(reap);
    }
}

pub(crate) fn protocol_error() -> LaunchError {
    LaunchError::Step {
        step: "understand the container process (this is a bug)".into(),
        errno: Errno::PROTO,
    }
}
