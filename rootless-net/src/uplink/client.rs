//! Finding the supervisor, starting it, talking to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use selkie_sys::errno::{Attempt, SysError, SysResult};

use super::connector::Dedicated;
use super::protocol::{Failure, Reply, Request, Status, receive, send};
use super::{UplinkConfig, namespace, supervisor};
use crate::member::Member;
use crate::network::Network;

/// Name of the supervisor's socket in the uplink's directory.
pub(super) const SOCKET: &str = "control";

/// The file that the uplink's namespace is mounted on.
pub(super) const ANCHOR: &str = "netns";

/// Held by whoever starts or ends a supervisor.
pub(super) const LOCK: &str = "lock";

/// Why the uplink could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The supervisor says so, or could not be started.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The supervisor went away in between; attaching again finds or makes its successor.
    #[error("the uplink's supervisor went away")]
    Lost,
}

/// A connection to the login's uplink. It reads as closed when the supervisor has gone.
#[derive(Debug)]
pub struct Uplink {
    socket: OwnedFd,
}

impl Uplink {
    /// Connects a container as `member` says; where it is connected already, changes what differs. Instead of
    /// places in networks it may have a connector of its own, `dedicated`.
    /// `network_namespace` is the container's, `init` a pidfd. Gives warnings to be shown once.
    ///
    /// # Errors
    /// A port is taken; an interface cannot be made.
    pub fn attach(
        &mut self,
        member: &Member,
        networks: &[Network],
        dedicated: Option<&Dedicated>,
        network_namespace: BorrowedFd<'_>,
        init: BorrowedFd<'_>,
    ) -> Result<Vec<String>, UplinkError> {
        self.begin_attach(member, networks, dedicated, network_namespace, init)?;
        self.finish()
    }

    /// As [`Self::attach`], for a container that runs and has lost its uplink: published ports that others
    /// have taken since are left out, with a warning.
    ///
    /// # Errors
    /// An interface cannot be made.
    pub fn reattach(
        &mut self,
        member: &Member,
        networks: &[Network],
        dedicated: Option<&Dedicated>,
        network_namespace: BorrowedFd<'_>,
        init: BorrowedFd<'_>,
    ) -> Result<Vec<String>, UplinkError> {
        let request = Request::Attach {
            member: member.clone(),
            networks: networks.to_vec(),
            dedicated: dedicated.cloned(),
            reconnects: true,
        };
        self.send(&request, &[network_namespace, init])?;
        self.finish()
    }

    /// As [`Self::attach`], without waiting for the answer, which [`Self::finish`] does.
    ///
    /// # Errors
    /// The request cannot be sent.
    pub fn begin_attach(
        &mut self,
        member: &Member,
        networks: &[Network],
        dedicated: Option<&Dedicated>,
        network_namespace: BorrowedFd<'_>,
        init: BorrowedFd<'_>,
    ) -> Result<(), UplinkError> {
        let request = Request::Attach {
            member: member.clone(),
            networks: networks.to_vec(),
            dedicated: dedicated.cloned(),
            reconnects: false,
        };
        self.send(&request, &[network_namespace, init])
    }

    /// Waits for the answer to [`Self::begin_attach`].
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn finish(&mut self) -> Result<Vec<String>, UplinkError> {
        match self.receive()? {
            Reply::Done { warnings } => Ok(warnings),
            Reply::Failed(failure) => Err(failure.into()),
            Reply::Status(_) => Err(UplinkError::Lost),
        }
    }

    /// Disconnects a container.
    ///
    /// # Errors
    /// An interface cannot be removed.
    pub fn detach(&mut self, container: &str) -> Result<(), UplinkError> {
        self.send(
            &Request::Detach {
                container: container.to_owned(),
            },
            &[],
        )?;
        self.finish().map(drop)
    }

    /// Has the name server of a network that is in use go by its changed definition.
    ///
    /// # Errors
    /// The services do not run.
    pub fn change_network(&mut self, network: &Network) -> Result<(), UplinkError> {
        self.send(
            &Request::ChangeNetwork {
                network: network.clone(),
            },
            &[],
        )?;
        self.finish().map(drop)
    }

    /// Removes the bridge of a network nobody is in.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_network(&mut self, network: &Network) -> Result<(), UplinkError> {
        self.send(
            &Request::RemoveNetwork {
                network: network.clone(),
            },
            &[],
        )?;
        self.finish().map(drop)
    }

    /// How it is.
    ///
    /// # Errors
    /// The supervisor has gone.
    pub fn status(&mut self) -> Result<Status, UplinkError> {
        self.send(&Request::Status, &[])?;
        match self.receive()? {
            Reply::Status(status) => Ok(status),
            Reply::Failed(failure) => Err(failure.into()),
            Reply::Done { .. } => Err(UplinkError::Lost),
        }
    }

    fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), UplinkError> {
        send(self.socket.as_fd(), request, fds).map_err(|error| match error.errno {
            Errno::PIPE | Errno::CONNRESET => UplinkError::Lost,
            _ => error.into(),
        })
    }

    fn receive(&self) -> Result<Reply, UplinkError> {
        match receive(&self.socket, &mut Vec::new())? {
            Some((reply, _)) => Ok(reply),
            None => Err(UplinkError::Lost),
        }
    }
}

impl AsFd for Uplink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Uplink> for OwnedFd {
    fn from(uplink: Uplink) -> Self {
        uplink.socket
    }
}

pub(super) fn connect_running(place: &Path) -> Result<Option<Uplink>, UplinkError> {
    let dir = match open_dir(place) {
        Ok(dir) => dir,
        Err(error) if error.errno == Errno::NOENT => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let socket = socket(SocketFlags::CLOEXEC)?;
    match rustix::net::connect(&socket, &address(dir.as_fd())?) {
        Ok(()) => Ok(Some(Uplink { socket })),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(errno) => {
            Err(SysError::new(format!("connect to {}/{SOCKET}", place.display()), errno).into())
        }
    }
}

pub(super) fn connect_or_start(config: &UplinkConfig) -> Result<Uplink, UplinkError> {
    let place = config.place()?;
    if let Some(uplink) = connect_running(&place)? {
        return Ok(uplink);
    }
    // Held by one starter at a time, and by a supervisor that is about to end.
    let lock = lock(&place)?;
    if let Some(uplink) = connect_running(&place)? {
        return Ok(uplink);
    }
    supervisor::start(config, &place)?;
    drop(lock);
    connect_running(&place)?.ok_or(UplinkError::Lost)
}

/// Waits for the lock of an uplink's directory, which is made where it is missing.
pub(super) fn lock(place: &Path) -> SysResult<OwnedFd> {
    let path = place.join(LOCK);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(place)
            .attempt(|| format!("make {}", place.display()))?;
        let lock = match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
            // A supervisor that ends takes the directory along.
            Err(Errno::NOENT) => continue,
            opened => opened.attempt(|| format!("open {}", path.display()))?,
        };
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
            .attempt(|| format!("lock {}", path.display()))?;
        if is_at(&lock, &path) {
            return Ok(lock);
        }
    }
}

/// Whether the file at `path` is this one still.
pub(super) fn is_at(file: &OwnedFd, path: &Path) -> bool {
    match (rustix::fs::fstat(file), rustix::fs::stat(path)) {
        (Ok(held), Ok(there)) => (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino),
        _ => false,
    }
}

/// Removes an uplink's directory and what is in it. Its lock must be held; whoever waits for that makes
/// the directory anew.
pub(super) fn remove_place(place: &Path) -> SysResult<()> {
    namespace::release(&place.join(ANCHOR));
    std::fs::remove_dir_all(place).attempt(|| format!("remove {}", place.display()))
}

/// The supervisor's listening socket.
pub(super) fn listen(place: &Path) -> SysResult<OwnedFd> {
    let dir = open_dir(place)?;
    let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    // The lock is held, so an old one is nobody's.
    match rustix::fs::unlinkat(&dir, SOCKET, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).attempt(|| format!("remove {}/{SOCKET}", place.display())),
    }
    rustix::net::bind(&socket, &address(dir.as_fd())?)
        .attempt(|| format!("make the socket {}/{SOCKET}", place.display()))?;
    // As many as may start at once: beyond it, connecting waits.
    rustix::net::listen(&socket, 1024).attempt(|| "listen for commands")?;
    Ok(socket)
}

fn open_dir(path: &Path) -> SysResult<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).attempt(|| format!("open {}", path.display()))
}

fn socket(flags: SocketFlags) -> SysResult<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .attempt(|| "make a socket")?;
    Ok(socket)
}

/// Through `/proc/self/fd`, since paths of sockets may have 107 bytes only.
fn address(dir: BorrowedFd<'_>) -> SysResult<SocketAddrUnix> {
    use std::os::fd::AsRawFd;
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
        .attempt(|| "name the uplink's socket")
}

pub(super) fn leftovers(config: &UplinkConfig) -> SysResult<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(&config.dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).attempt(|| format!("read {}", config.dir.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry
            .attempt(|| format!("read {}", config.dir.display()))?
            .path();
        if path.is_dir() && matches!(connect_running(&path), Ok(None)) && !is_locked(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

/// True while a command starts a supervisor there.
fn is_locked(place: &Path) -> bool {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(place.join(LOCK), flags, Mode::empty())
        .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err())
}

pub(super) fn remove_leftover(dir: &Path) -> SysResult<()> {
    let lock = lock(dir)?;
    if !matches!(connect_running(dir), Ok(None)) {
        return Ok(());
    }
    remove_place(dir)?;
    drop(lock);
    Ok(())
}
