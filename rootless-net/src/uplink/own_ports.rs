//! Published ports of a container with a slirp4netns of its own, where that does not publish them
//! itself: a confined process per such container, a child of the supervisor's.
//!
//! It listens on the host and makes connections again in the *container's* network namespace, to the
//! container's own address, as Podman's rootlesskit does. There is no gateway there through which
//! answers to a client's address would come back, so clients appear with the container's address.
//! It does without slirp4netns and outlives it: connections go on when that is started anew.

mod process;

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::namespace::failure;
use super::protocol::Failure;
use super::service_process::ServiceProcess;
use crate::forwarder::Target;
use crate::port_mapping::PortMapping;

/// Between two attempts to start what cannot be started.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct OwnPorts {
    container: String,
    mappings: Vec<PortMapping>,
    target: Target,
    process: Option<ServiceProcess>,
    is_ready: bool,
    retry_at: Option<Instant>,
}

impl OwnPorts {
    /// Of the container with this ID, whose own address in its namespace is `address`.
    pub(super) fn new(container: &str, mappings: Vec<PortMapping>, address: Ipv4Addr) -> Self {
        Self {
            container: container.to_owned(),
            mappings,
            target: Target {
                v4: Some(address),
                ..Target::default()
            },
            process: None,
            is_ready: false,
            retry_at: None,
        }
    }

    /// Starts the process unless it runs. `namespace` is the container's.
    pub(super) fn start(&mut self, namespace: &OwnedFd) -> Result<(), Failure> {
        self.retry_at = None;
        if self.process.is_some() {
            return Ok(());
        }
        self.is_ready = false;
        let (container, mappings, target) = (&self.container, &self.mappings, &self.target);
        let process = ServiceProcess::fork("the container's port forwarder", |channel, parent| {
            process::run(
                channel,
                parent,
                namespace.as_fd(),
                container,
                mappings,
                target.clone(),
            )
        });
        self.process = Some(process.map_err(failure)?);
        Ok(())
    }

    /// Waits until the ports are published.
    pub(super) fn ready(&mut self) -> Result<(), Failure> {
        if self.is_ready {
            return Ok(());
        }
        let Some(process) = &mut self.process else {
            return Err(Failure {
                message: "the container's port forwarder does not run".into(),
                hint: None,
            });
        };
        let published = process.ready();
        self.is_ready = published.is_ok();
        if !self.is_ready {
            self.process = None;
        }
        published
    }

    /// The process has ended.
    pub(super) fn ended(&mut self) {
        self.process = None;
        self.retry_at = Some(Instant::now());
    }

    /// Starts it again; what went wrong. Somebody else may have taken a port meanwhile.
    pub(super) fn restart(&mut self, namespace: &OwnedFd) -> Result<(), Failure> {
        let restarted = self.start(namespace).and_then(|()| self.ready());
        if restarted.is_err() {
            self.retry_at = Some(Instant::now() + PAUSE);
        }
        restarted
    }

    /// When to [`Self::restart`] it.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Readable once the process has ended, where it has served.
    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        let process = self.process.as_ref().filter(|_| self.is_ready);
        process.map(ServiceProcess::pidfd)
    }
}
