//! The process that serves names and published ports: its parent's side.

mod process;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use selkie_sys::errno::SysResult;
use serde::{Deserialize, Serialize};

use super::service_process::ServiceProcess;
use crate::member::Member;
use crate::network::Network;

/// What the services are told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ServiceRequest {
    /// Names and ports of a container, all of them.
    Attach {
        /// The container.
        member: Member,
        /// Those it is in.
        networks: Vec<Network>,
        /// What of its ports that cannot be had.
        ports: Ports,
    },
    /// It has ended.
    Detach {
        /// Its ID.
        container: String,
    },
    /// A network's definition has changed.
    ChangeNetwork {
        /// As it is now.
        network: Network,
    },
    /// A network is no more.
    RemoveNetwork {
        /// Its name.
        name: String,
    },
}

/// What becomes of a container with published ports that cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ports {
    /// An error, and nothing is published.
    AllOrNothing,
    /// The others are published.
    ThoseThereAre,
}

/// Forks it; `requests` is the interface by which containers ask for connections. The caller has one
/// thread.
pub(super) fn start(
    uplink: BorrowedFd<'_>,
    requests: Option<OwnedFd>,
    resolv_conf: &Path,
) -> SysResult<ServiceProcess> {
    ServiceProcess::fork("the uplink's services", |channel, parent| {
        process::run(channel, uplink, requests, resolv_conf, parent)
    })
}
