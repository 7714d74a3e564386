//! The process itself, as far as all of them are alike.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::process::Pid;
use selkie_sys::clone::exit_now;
use selkie_sys::errno::{Attempt, SysError, SysResult};
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::super::namespace::failure;
use super::super::protocol::{receive, send};
use super::{Answer, ServiceFailure};
use crate::forwarder::sandbox::Sandbox;
use crate::forwarder::{HostTables, Sources, UplinkSockets};

/// What a process is made of.
pub(in super::super) struct Setup<'a> {
    /// In `ps`. Shorter than the kernel's 16 bytes.
    pub name: &'static CStr,
    /// To the supervisor.
    pub channel: OwnedFd,
    /// The supervisor, with which it ends.
    pub parent: Pid,
    /// What else it is to have, which [`Tools`] give it.
    pub device: Option<OwnedFd>,
    /// Where its sockets for containers are made.
    pub namespace: BorrowedFd<'a>,
    /// With what addresses those send.
    pub sources: Sources,
    /// Files and directories it goes on reading.
    pub readable: &'a [PathBuf],
}

/// What it works with.
pub(in super::super) struct Tools {
    pub channel: Channel,
    pub sockets: UplinkSockets,
    pub tables: HostTables,
    pub device: Option<OwnedFd>,
}

/// Confines the forked process and has it `serve` until that ends. A failure is the answer to the
/// supervisor.
pub(in super::super) fn run(
    mut setup: Setup<'_>,
    serve: impl AsyncFnOnce(Tools) -> Result<(), ServiceFailure>,
) -> ! {
    let _ = rustix::thread::set_name(setup.name);
    let _ = selkie_sys::child::hide_command_line(setup.name);
    let served = confine(&setup)
        .map_err(other)
        .and_then(|(sockets, tables)| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()
                .attempt(|| "start a service's runtime")
                .map_err(other)?;
            runtime.block_on(async {
                let tools = Tools {
                    channel: Channel::new(&setup.channel).map_err(other)?,
                    sockets,
                    tables,
                    device: setup.device.take(),
                };
                serve(tools).await
            })
        });
    match served {
        Ok(()) => exit_now(0),
        Err(error) => {
            let failed: Answer = Err(error);
            let _ = send(setup.channel.as_fd(), &failed, &[]);
            exit_now(1)
        }
    }
}

/// A failure that is none of publishing.
pub(in super::super) fn other(error: SysError) -> ServiceFailure {
    ServiceFailure::Other(failure(error))
}

fn confine(setup: &Setup<'_>) -> SysResult<(UplinkSockets, HostTables)> {
    let namespace = setup
        .namespace
        .try_clone_to_owned()
        .attempt(|| "duplicate a descriptor")?;
    let mut kept = vec![setup.channel.as_fd(), namespace.as_fd()];
    kept.extend(setup.device.as_ref().map(AsFd::as_fd));
    selkie_sys::slim::close_all_except(&kept)?;
    let tables = HostTables::open();
    let sandbox = Sandbox {
        readable: setup.readable,
        parent: setup.parent,
    };
    let (sockets, _) = sandbox
        .enter(namespace, setup.sources)
        .map_err(|error| SysError::new(error.to_string(), Errno::PERM))?;
    rustix::io::ioctl_fionbio(&setup.channel, true).attempt(|| "make a channel non-blocking")?;
    Ok((sockets, tables))
}

/// To the supervisor.
pub(in super::super) struct Channel {
    // Tokio knows sockets of packets only as datagram ones, which are read the same way.
    socket: UnixDatagram,
}

impl Channel {
    fn new(channel: &OwnedFd) -> SysResult<Self> {
        let socket = channel
            .try_clone()
            .map(std::os::unix::net::UnixDatagram::from)
            .and_then(UnixDatagram::from_std)
            .attempt(|| "watch the channel to the supervisor")?;
        Ok(Self { socket })
    }

    /// The next request; `None` when the supervisor has gone.
    pub(in super::super) async fn request<R: DeserializeOwned>(&self) -> SysResult<Option<R>> {
        // Room for the longest message is too much to keep.
        let mut buffer = Vec::new();
        loop {
            self.socket
                .readable()
                .await
                .attempt(|| "watch the channel to the supervisor")?;
            let received = self.socket.try_io(Interest::READABLE, || {
                receive::<R>(&self.socket, &mut buffer).map_err(Into::into)
            });
            match received {
                Ok(message) => return Ok(message.map(|(request, _)| request)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).attempt(|| "hear from the supervisor"),
            }
        }
    }

    /// The supervisor reads each answer before it asks again, so there is room.
    pub(in super::super) fn answer(&self, answer: &Answer) -> SysResult<()> {
        send(self.socket.as_fd(), answer, &[])
    }
}
