//! What all containers of the uplink share: its namespace, the links in it, the connector and the
//! services.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use selkie_sys::errno::Attempt;

use super::connector::Connector;
use super::namespace::{self, failure};
use super::protocol::Failure;
use super::service_process::ServiceProcess;
use super::services::{self, Ports, ServiceRequest};
use super::wiring::Wiring;
use super::{UplinkConfig, host_address};
use crate::member::Member;
use crate::network::{Attachment, Kind, Network};

/// Between two attempts to start services that cannot be started.
const SERVICES_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Trunk {
    namespace: OwnedFd,
    nft: PathBuf,
    wiring: Wiring,
    /// Towards the host.
    pub(super) connector: Connector,
    /// By which containers ask for connections.
    requests: Option<OwnedFd>,
    /// Why they do not.
    no_requests: Option<String>,
    services: Option<ServiceProcess>,
    services_retry: Option<Instant>,
    /// The host's, as the rules have it.
    host: Option<std::net::Ipv4Addr>,
}

impl Trunk {
    /// In the namespace kept at `anchor`, or a new one.
    pub(super) fn new(config: &UplinkConfig, anchor: &Path) -> Result<Self, Failure> {
        let nft = config.find("nft").ok_or_else(|| Failure {
            message: "nft is not installed, and containers cannot be kept apart without it".into(),
            hint: Some(
                "an admin must install the package nftables; `--network pasta` works without"
                    .into(),
            ),
        })?;
        let namespace = match namespace::open_kept(anchor).map_err(failure)? {
            Some(kept) => kept,
            None => namespace::make(anchor).map_err(failure)?,
        };
        let made = Self::in_namespace(config, nft, namespace);
        if made.is_err() {
            namespace::release(anchor);
        }
        made
    }

    fn in_namespace(
        config: &UplinkConfig,
        nft: PathBuf,
        namespace: OwnedFd,
    ) -> Result<Self, Failure> {
        // First, since it takes longest.
        let of_connector = namespace
            .try_clone()
            .attempt(|| "duplicate a descriptor")
            .map_err(failure)?;
        let mut connector = Connector::of_uplink(config, of_connector)?;
        connector.start();
        let requests = namespace::make_requests_interface(namespace.as_fd());
        let (requests, no_interface) = match requests {
            Ok(requests) => (Some(requests), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let mut services = start_services(namespace.as_fd(), requests.as_ref(), config)?;
        let no_rules = namespace::prepare(namespace.as_fd(), &nft)?;
        services.ready()?;
        let host = host_address::current();
        host_address::translate_to(host, namespace.as_fd(), &nft)?;
        Ok(Self {
            wiring: Wiring::new(namespace.as_fd()).map_err(failure)?,
            namespace,
            nft,
            connector,
            requests,
            no_requests: no_interface.or(no_rules),
            services: Some(services),
            services_retry: None,
            host,
        })
    }

    /// Connects a container; `before` is what it was connected as. When it fails, a container that was
    /// not connected is not. Gives warnings.
    pub(super) fn attach(
        &mut self,
        before: Option<(&Member, &[Network])>,
        member: &Member,
        networks: &[Network],
        ports: Ports,
        namespace: BorrowedFd<'_>,
    ) -> Result<Vec<String>, Failure> {
        let container = &member.container;
        let pairs = pairs(member, networks)?;
        if let Some((old, old_networks)) = before {
            // Interfaces it is not to have any more, or has with other addresses.
            for attachment in &old.attachments {
                let network = old_networks.iter().find(|n| n.name == attachment.network);
                if let Some(network) = network
                    && !member.attachments.contains(attachment)
                {
                    self.wiring
                        .disconnect(container, network)
                        .map_err(failure)?;
                }
            }
        }
        let result = self
            .wiring
            .connect(container, &pairs, namespace)
            .map_err(failure)
            .and_then(|()| self.serve(member, networks, ports));
        if result.is_err() && before.is_none() {
            for (_, network) in &pairs {
                let _ = self.wiring.disconnect(container, network);
            }
            self.tell_services(&ServiceRequest::Detach {
                container: container.clone(),
            });
        }
        result
    }

    /// Has the services answer for a container; which of its ports they do not, and why.
    fn serve(
        &mut self,
        member: &Member,
        networks: &[Network],
        ports: Ports,
    ) -> Result<Vec<String>, Failure> {
        let Some(services) = &mut self.services else {
            return Err(Failure {
                message: "the uplink's services do not run".into(),
                hint: Some("they are being started again: try again".into()),
            });
        };
        services.call(&ServiceRequest::Attach {
            member: member.clone(),
            networks: networks.to_vec(),
            ports,
        })
    }

    /// Where an answer would help nobody.
    fn tell_services(&mut self, request: &ServiceRequest) {
        if let Some(services) = &mut self.services {
            // When they are dead, their successors are told what is.
            let _ = services.call(request);
        }
    }

    /// What the kernel does not do when a container ends.
    pub(super) fn forget(&mut self, container: &str, networks: &[Network]) {
        self.tell_services(&ServiceRequest::Detach {
            container: container.to_owned(),
        });
        for network in networks.iter().filter(|n| n.kind == Kind::Bridge) {
            // Another container may have its address before the kernel has removed it.
            if self.wiring.silence(container, network).is_err() {
                let _ = self.wiring.disconnect(container, network);
            }
        }
    }

    /// Takes a container's interfaces away.
    pub(super) fn disconnect(
        &mut self,
        container: &str,
        networks: &[Network],
    ) -> Result<(), Failure> {
        for network in networks {
            self.wiring
                .disconnect(container, network)
                .map_err(failure)?;
        }
        Ok(())
    }

    pub(super) fn change_network(&mut self, network: Network) -> Result<(), Failure> {
        match &mut self.services {
            Some(services) => services
                .call(&ServiceRequest::ChangeNetwork { network })
                .map(drop),
            // Their successors are told what is then.
            None => Ok(()),
        }
    }

    pub(super) fn remove_network(&mut self, network: &Network) -> Result<(), Failure> {
        self.tell_services(&ServiceRequest::RemoveNetwork {
            name: network.name.clone(),
        });
        self.wiring.remove_bridge(network).map_err(failure)
    }

    /// Has the rules know the host's present address.
    pub(super) fn follow_host(&mut self) {
        let host = host_address::current();
        if host != self.host
            && host_address::translate_to(host, self.namespace.as_fd(), &self.nft).is_ok()
        {
            self.host = host;
        }
    }

    /// See [`super::protocol::Status::tcp_by_connector`].
    pub(super) fn tcp_by_connector(&self) -> Option<&str> {
        self.no_requests.as_deref()
    }

    pub(super) fn services_pid(&self) -> Option<i32> {
        self.services.as_ref().map(ServiceProcess::pid)
    }

    pub(super) fn services_pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.services.as_ref().map(ServiceProcess::pidfd)
    }

    /// When to try again to start the services.
    pub(super) fn services_retry_at(&self) -> Option<Instant> {
        self.services_retry
    }

    /// Starts the services anew and tells them of all containers; what went wrong.
    pub(super) fn restart_services<'a>(
        &mut self,
        config: &UplinkConfig,
        containers: impl Iterator<Item = (&'a Member, &'a [Network])>,
    ) -> Vec<String> {
        self.services = None;
        self.services_retry = None;
        let started = start_services(self.namespace.as_fd(), self.requests.as_ref(), config)
            .and_then(|mut services| services.ready().map(|()| services));
        match started {
            Ok(services) => self.services = Some(services),
            Err(failure) => {
                self.services_retry = Some(Instant::now() + SERVICES_PAUSE);
                return vec![failure.message];
            }
        }
        // A port that somebody else has taken meanwhile stays lost; its container goes on.
        containers
            .flat_map(|(member, networks)| {
                self.serve(member, networks, Ports::ThoseThereAre)
                    .unwrap_or_else(|failure| vec![failure.message])
            })
            .collect()
    }
}

fn start_services(
    namespace: BorrowedFd<'_>,
    requests: Option<&OwnedFd>,
    config: &UplinkConfig,
) -> Result<ServiceProcess, Failure> {
    let requests = requests
        .map(OwnedFd::try_clone)
        .transpose()
        .attempt(|| "duplicate a descriptor")
        .map_err(failure)?;
    services::start(namespace, requests, &config.resolv_conf).map_err(failure)
}

/// Each attachment with its network.
fn pairs<'a>(
    member: &'a Member,
    networks: &'a [Network],
) -> Result<Vec<(&'a Attachment, &'a Network)>, Failure> {
    member
        .attachments
        .iter()
        .map(|attachment| {
            networks
                .iter()
                .find(|network| network.name == attachment.network)
                .map(|network| (attachment, network))
                .ok_or_else(|| Failure {
                    message: format!("network {} is not known", attachment.network),
                    hint: None,
                })
        })
        .collect()
}
