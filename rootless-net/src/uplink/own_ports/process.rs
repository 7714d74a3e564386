//! The process itself: threads that listen and pass on, and one in the container's network namespace that
//! makes sockets.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::Pid;
use selkie_sys::errno::Attempt;

use super::super::service_process::ServiceFailure;
use super::super::service_process::inside::{self, Setup, Tools, other};
use crate::forwarder::{Forwarder, Limits, Sources, Target};
use crate::port_mapping::PortMapping;

/// Publishes and serves until the supervisor goes.
pub(super) fn run(
    channel: OwnedFd,
    parent: Pid,
    namespace: BorrowedFd<'_>,
    container: &str,
    mappings: &[PortMapping],
    target: Target,
) -> ! {
    let setup = Setup {
        name: c"selkie-ports",
        channel,
        parent,
        namespace,
        device: None,
        sources: Sources::Own,
        readable: &[],
    };
    inside::run(setup, async |tools: Tools| {
        let mut forwarder = Forwarder::new(tools.sockets, tools.tables, Limits::default())
            .attempt(|| "set up the forwarding of ports")
            .map_err(other)?;
        forwarder
            .publish(container, mappings, target)
            .map_err(ServiceFailure::Publish)?;
        tools.channel.answer(&Ok(Vec::new())).map_err(other)?;
        // It is asked for nothing more: what ends this is the end of the supervisor.
        tools.channel.request::<()>().await.map(drop).map_err(other)
    })
}
