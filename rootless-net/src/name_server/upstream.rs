//! Forwarding: which servers are asked, in which order, and when the next one is.
//!
//! The first server is asked; another one as soon as that one fails (unreachable, SERVFAIL, REFUSED),
//! or has not answered for [`PATIENCE`]. A server that is only slow may still answer first: nothing
//! asked is given up before the end. One that was overtaken twice running is asked last for a while, so
//! that a dead first server costs two queries a second, and not each; once does not count, because
//! the next server need not know all that the first knows, and one datagram is easily lost. What comes
//! back is not kept: asking again is what makes a changed network visible.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::exchange::{Forwarded, exchange, response_code};
use super::host_resolvers::{HostResolvers, socket_address};
use crate::resolv_conf::{ResolvConf, ServerAddress};

/// How long a server may take before another one is asked as well.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a server that was overtaken is asked last.
const DEMOTION: Duration = Duration::from_secs(30);
/// How often a server is overtaken before that.
const MISSES: u32 = 2;
/// Of how many servers misses are remembered.
const MAX_KNOWN: usize = 64;
/// Longest time for one query. Clients have given up before.
const MAX_TIME: Duration = Duration::from_secs(30);
/// How many servers are asked at most; the C library takes three.
const MAX_SERVERS: usize = 8;

const SERVFAIL: u8 = 2;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// Everything that is asked elsewhere.
#[derive(Debug)]
pub(super) struct Upstream {
    host: HostResolvers,
    health: Mutex<Health>,
    /// For `options rotate`.
    turn: AtomicUsize,
}

/// What is known of servers.
#[derive(Debug, Default)]
struct Health {
    /// The host's file of which this is true.
    conf: Arc<ResolvConf>,
    /// How often a server was overtaken since it last answered, and until when that counts.
    missed: HashMap<SocketAddr, (u32, Instant)>,
}

struct Plan {
    servers: Vec<SocketAddr>,
    attempts: u32,
    time: Duration,
}

type Attempt<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<u8>>> + Send + 'a>>;

impl Upstream {
    pub(super) fn new(host: HostResolvers) -> Self {
        Self {
            host,
            health: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Asks `servers`, the host's if there are none. The answer has the client's ID; without any the
    /// query has failed.
    pub(super) async fn ask(&self, servers: &[IpAddr], query: &Forwarded) -> Option<Vec<u8>> {
        let plan = self.plan(servers);
        let end = Instant::now() + plan.time;
        let rounds = usize::try_from(plan.attempts).unwrap_or(1);
        let all = plan.servers.len() * rounds;
        let mut order = plan.servers.iter().copied().cycle().take(all);

        let mut running: Vec<(SocketAddr, Attempt<'_>)> = Vec::new();
        let mut overtaken: Vec<SocketAddr> = Vec::new();
        // Have answered, though with nothing better than a failure.
        let mut failed: Vec<SocketAddr> = Vec::new();
        let mut failure = None;
        loop {
            let next = order.find(|server| !failed.contains(server));
            if let Some(server) = next {
                running.push((server, Box::pin(exchange(server, query))));
            } else if running.is_empty() {
                return failure;
            }
            let pause = match next {
                Some(_) => end.min(Instant::now() + PATIENCE),
                None => end,
            };
            match timeout_at(pause, first_done(&mut running)).await {
                Ok((server, Ok(answer))) => {
                    if matches!(response_code(&answer), SERVFAIL | NOTIMP | REFUSED) {
                        failed.push(server);
                        failure = Some(answer);
                        continue;
                    }
                    self.settle(server, &overtaken);
                    return Some(answer);
                }
                Ok((server, Err(error))) => {
                    tracing::debug!("cannot ask name server {server}: {error}");
                }
                Err(_) if Instant::now() >= end => return failure,
                Err(_) => overtaken.extend(next),
            }
        }
    }

    fn plan(&self, servers: &[IpAddr]) -> Plan {
        let conf = if servers.is_empty() {
            self.host.current()
        } else {
            let scope = None;
            let servers = servers.iter().map(|&address| ServerAddress {
                address,
                scope: scope.clone(),
            });
            Arc::new(ResolvConf {
                servers: servers.collect(),
                ..ResolvConf::default()
            })
        };
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for server in conf.servers.iter().take(MAX_SERVERS) {
            match socket_address(server, self.host.port()) {
                Ok(address) if addresses.contains(&address) => {}
                Ok(address) => addresses.push(address),
                Err(error) => tracing::debug!("cannot ask name server {server:?}: {error}"),
            }
        }
        if conf.rotate() && !addresses.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let by = turn % addresses.len();
            addresses.rotate_left(by);
        }
        let mut health = self.health();
        if servers.is_empty() && !Arc::ptr_eq(&health.conf, &conf) {
            // Another network: what was dead in the last one may live in this one.
            health.missed.clear();
            health.conf = Arc::clone(&conf);
        }
        let now = Instant::now();
        // Stable: among those asked last, the order stays.
        addresses.sort_by_key(|address| health.is_demoted(address, now));
        Plan {
            servers: addresses,
            attempts: conf.attempts(),
            time: (conf.timeout() * conf.attempts()).min(MAX_TIME),
        }
    }

    /// One has answered, and earlier than these.
    fn settle(&self, answered: SocketAddr, overtaken: &[SocketAddr]) {
        let mut health = self.health();
        health.missed.remove(&answered);
        if health.missed.len() > MAX_KNOWN {
            health.missed.clear();
        }
        let until = Instant::now() + DEMOTION;
        for server in overtaken.iter().filter(|server| **server != answered) {
            let missed = health.missed.entry(*server).or_insert((0, until));
            *missed = (missed.0.saturating_add(1), until);
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    fn is_demoted(&self, server: &SocketAddr, now: Instant) -> bool {
        let missed = self.missed.get(server);
        missed.is_some_and(|(times, until)| *times >= MISSES && *until > now)
    }
}

/// Waits for one of them, which is then no longer among them. Without any it waits for ever.
async fn first_done(
    running: &mut Vec<(SocketAddr, Attempt<'_>)>,
) -> (SocketAddr, io::Result<Vec<u8>>) {
    poll_fn(|context| {
        for at in 0..running.len() {
            if let Poll::Ready(result) = running[at].1.as_mut().poll(context) {
                let (server, _) = running.swap_remove(at);
                return Poll::Ready((server, result));
            }
        }
        Poll::Pending
    })
    .await
}
