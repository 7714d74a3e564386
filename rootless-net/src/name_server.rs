//! The built-in name server.
//!
//! Theory of operation: each network has a UDP socket and a TCP listener per gateway address, made in
//! the uplink's network namespace by somebody else and served here, in the host's, where the host's
//! resolvers can be reached even if they listen on its loopback only. [`Views`] is what is known of
//! containers; nothing else is remembered, and nothing is cached.
//!
//! A query that arrives on a gateway of a network sees the names of that network, and of the other
//! networks that the asking container, found by the address it asks from, is in itself. In a routed
//! network (the default one) a container sees only its own names. A name is answered
//!
//! - as it is (`web`), behind its network's name (`web.backend`), and below [`SEARCH_DOMAIN`]
//!   (`web.dns.podman`), whatever the case, with the addresses of all containers that share it, in
//!   another order each time;
//! - with nothing, if it exists but has no record of the type asked for: nobody else is asked then;
//! - by address, with all names of the container; of an address in a subnet of ours that nobody has,
//!   there is no name;
//! - `host.containers.internal`, `host.docker.internal` and `gateway`, unless a container is called
//!   so, with [`crate::network::HOST_ADDRESS`].
//!
//! Everything else is forwarded as it came, except for the ID, and so is the answer. That goes for
//! single labels too, as with Podman and Docker: the host's resolver may know the names of its own
//! network. Only what is asked below [`SEARCH_DOMAIN`] is never forwarded. In an internal network
//! nothing is: what is not known there does not exist (NXDOMAIN, as netavark answers, upon which
//! clients go on to their next search domain at once; upon REFUSED or SERVFAIL they would ask again or
//! give up). That holds for a query on its gateway even if the asker is in another network as well,
//! because the address it comes from can be forged inside a bridge; the engine names the other
//! network's gateway to such a container, where the names of both are known. Networks without names
//! (`dns_enabled` false) forward only.
//!
//! All is done on `hickory-proto`'s codec and not with `hickory-server`, which answers from zones, and
//! which decodes and encodes what it forwards: here the answer belongs to whoever asks from where,
//! and what passes through must stay as it is, byte for byte. It would also bring with it a resolver,
//! and tasks and buffers per query that this process, counted against its login, need not have.

mod exchange;
mod host_resolvers;
mod message;
mod quota;
mod serve;
#[cfg(test)]
mod tests;
mod upstream;
mod views;

use std::sync::Arc;

pub use host_resolvers::{DNS_PORT, HostResolvers};
pub use views::{MemberView, NetworkView, NoSuchNetwork, SEARCH_DOMAIN, Views};

use quota::Quota;
use upstream::Upstream;

/// Forwarded queries without an answer yet: of all clients, and of one. Each may hold a few sockets.
const OUTSTANDING: (usize, usize) = (1024, 512);
/// TCP connections: of all clients, and of one.
const CONNECTIONS: (usize, usize) = (512, 128);

/// Serves names by [`Self::serve_udp`] and [`Self::serve_tcp`]. Clones are the same server: limits
/// hold for all of them together.
#[derive(Clone)]
pub struct NameServer {
    shared: Arc<Shared>,
}

struct Shared {
    views: Views,
    upstream: Upstream,
    outstanding: Arc<Quota>,
    connections: Arc<Quota>,
}

impl NameServer {
    /// Answers out of `views`, and asks `host` for the rest.
    pub fn new(views: Views, host: HostResolvers) -> Self {
        Self {
            shared: Arc::new(Shared {
                views,
                upstream: Upstream::new(host),
                outstanding: Quota::new(OUTSTANDING.0, OUTSTANDING.1),
                connections: Quota::new(CONNECTIONS.0, CONNECTIONS.1),
            }),
        }
    }
}
