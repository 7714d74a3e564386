//! Why a port could not be published, said so that a person can do something about it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::holder::Holder;
use crate::port_mapping::Protocol;

/// A port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Of the host.
    pub address: IpAddr,
    /// Its number.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = SocketAddr::new(self.address, self.port);
        write!(f, "{address}/{}", self.protocol)
    }
}

/// Why nothing was published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishError {
    /// `EADDRINUSE`.
    #[error(
        "cannot publish port {port}: address already in use{}: \
         stop what uses it, or publish another port of the host",
        held_by(.holder.as_ref())
    )]
    InUse {
        /// The first that was.
        port: HostPort,
        /// By whom, where visible.
        holder: Option<Holder>,
    },
    /// `EACCES`.
    #[error(
        "cannot publish port {port}: permission denied: {}",
        privileged(.port, *.first_unprivileged)
    )]
    Privileged {
        /// The first that was.
        port: HostPort,
        /// Value of the sysctl `net.ipv4.ip_unprivileged_port_start`.
        first_unprivileged: Option<u16>,
    },
    /// `EADDRNOTAVAIL`.
    #[error(
        "cannot publish port {port}: cannot assign requested address: {} is no address of this host; \
         `ip address` lists those that are",
        .port.address
    )]
    NotLocal {
        /// The first that was.
        port: HostPort,
    },
    /// More sockets than this process may have.
    #[error(
        "cannot publish {ports} ports: only {free} more files may be open, of {limit} in all; \
         publish fewer, or raise the limit of open files (`ulimit -Hn`) and restart the network"
    )]
    TooMany {
        /// How many sockets would have been needed.
        ports: usize,
        /// How many there may be.
        free: usize,
        /// Hard limit of open files.
        limit: u64,
    },
    /// A mapping that is none.
    #[error("cannot publish {count} ports from {first} on: ports are numbered 1 to 65535")]
    BadRange {
        /// First port, of the host or the container.
        first: u16,
        /// How many.
        count: u16,
    },
    /// Anything else.
    #[error("cannot publish port {port}: {attempt}: {reason}")]
    Failed {
        /// At which.
        port: HostPort,
        /// What was attempted.
        attempt: String,
        /// The kernel's word.
        reason: String,
    },
}

impl PublishError {
    /// Looks for the process that holds the port among those the caller may inspect: whoever reported
    /// the error may not have been allowed to.
    pub fn look_for_process(&mut self) {
        if let Self::InUse {
            holder: Some(holder),
            ..
        } = self
        {
            holder.look_for_process();
        }
    }
}

fn held_by(holder: Option<&Holder>) -> String {
    holder.map_or_else(String::new, |holder| format!(" by {holder}"))
}

fn privileged(port: &HostPort, first: Option<u16>) -> String {
    match first {
        Some(first) if port.port < first => format!(
            "without root the first port is {first} (net.ipv4.ip_unprivileged_port_start): publish \
             one from there on, or have an administrator run \
             `sysctl net.ipv4.ip_unprivileged_port_start={}`",
            port.port
        ),
        _ => "a security policy of this host does not allow it".to_owned(),
    }
}

/// What went wrong at one port, before it is worded.
#[derive(Debug)]
pub(super) struct Refusal {
    pub attempt: &'static str,
    pub error: std::io::Error,
}

impl Refusal {
    pub fn errno(&self) -> Option<Errno> {
        self.error.raw_os_error().map(Errno::from_raw_os_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_tell_what_to_do() {
        let port = HostPort {
            protocol: Protocol::Tcp,
            address: "::".parse().unwrap(),
            port: 80,
        };
        let error = PublishError::Privileged {
            port,
            first_unprivileged: Some(1024),
        };
        assert_eq!(
            error.to_string(),
            "cannot publish port [::]:80/tcp: permission denied: without root the first port is 1024 \
             (net.ipv4.ip_unprivileged_port_start): publish one from there on, or have an \
             administrator run `sysctl net.ipv4.ip_unprivileged_port_start=80`"
        );
        let mut error = PublishError::InUse {
            port,
            holder: Some(Holder::Container("0123456789abcdef".into())),
        };
        error.look_for_process();
        assert!(
            error
                .to_string()
                .contains("in use by container 0123456789ab: stop")
        );
    }
}
