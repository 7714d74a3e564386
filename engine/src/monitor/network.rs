//! Which network namespace a container is started in, and what it is to find there.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use selkie_runtime::default_spec::Network;
use selkie_sys::namespace::NamespaceKey;

use super::Monitor;
use crate::container::ContainerId;
use crate::container::etc_files::Surroundings;
use crate::container::spare;
use crate::error::{Error, ErrorKind, Result};
use crate::network::connect::Connection;
use crate::network::own_connector::{self, OwnConnector};
use crate::options::NetworkMode;
use crate::state::Observed;
use crate::system::names_in;

impl Monitor<'_> {
    /// What connects the container, and what its files say of it.
    pub(super) fn places(&self) -> Result<(Option<Connection>, Surroundings)> {
        let launch = &self.launch;
        if let Some(connection) = &launch.connection {
            let around = Surroundings::of(connection);
            return Ok((Some(connection.clone()), around));
        }
        let options = &launch.config.options;
        let own = own_connector::plan(
            &self.engine.config,
            &launch.id,
            &options.network,
            &options.ports,
        )?;
        let Some(OwnConnector {
            connection,
            surroundings,
            warnings,
        }) = own
        else {
            return Ok((None, Surroundings::default()));
        };
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok((Some(connection), surroundings))
    }

    /// The network namespace, and where it is another container's, what keeps its path valid.
    pub(super) fn network(&self) -> Result<(Network, Option<OwnedFd>)> {
        match &self.launch.config.options.network {
            NetworkMode::Host => Ok((Network::Host, None)),
            NetworkMode::Namespace(path) => {
                self.forfeit_spare_of(path)?;
                Ok((Network::Existing(path.clone()), None))
            }
            NetworkMode::Container(id) => {
                let namespace = self.network_of(id)?;
                let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
                Ok((Network::Existing(path.into()), Some(namespace)))
            }
            _ => Ok((Network::Own, None)),
        }
    }

    fn network_of(&self, id: &str) -> Result<OwnedFd> {
        let attempt = || format!("share the network of container {id}");
        let not_running = || {
            Error::new(
                ErrorKind::Conflict,
                format!("{}: it does not run", attempt()),
            )
            .with_hint(format!("selkie start {}", &id[..id.len().min(12)]))
        };
        let other = ContainerId::parse(id).ok_or_else(not_running)?;
        let Observed::Running(state) = self.engine.observe(&other)? else {
            return Err(not_running());
        };
        let path = format!("/proc/{}/ns/net", state.init.pid);
        let namespace = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::machine(format!("{}: open {path}", attempt()), errno))?;
        // Now it is pinned, so what it belongs to cannot change any more.
        if !state.init.is_running() {
            return Err(not_running());
        }
        spare::forfeit(&self.engine.config, &other)?;
        Ok(namespace)
    }

    /// The namespace may be one of our containers'.
    fn forfeit_spare_of(&self, path: &Path) -> Result<()> {
        // One that cannot be looked at cannot be entered either, which is told where it is tried.
        let Ok(wanted) = NamespaceKey::at(&path.to_string_lossy()) else {
            return Ok(());
        };
        let paths = &self.engine.config;
        for name in names_in(&paths.containers_dir())? {
            let Some(id) = ContainerId::parse(&name) else {
                continue;
            };
            if let Ok(Observed::Running(state)) = self.engine.observe(&id)
                && NamespaceKey::at(&format!("/proc/{}/ns/net", state.init.pid))
                    .is_ok_and(|key| key == wanted)
            {
                spare::forfeit(paths, &id)?;
            }
        }
        Ok(())
    }
}
