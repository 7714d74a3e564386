//! How many descriptors may be spent on what clients ask for, so that none is missing where it would
//! hurt: the name server, and publishing, share the process.

use std::io;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is kept for everything but ports, connections and flows.
const RESERVE: u64 = 512;

/// Of one connection: two sockets.
const CONNECTION: u32 = 2;

/// A share of the process's descriptors, given back when dropped.
pub(super) type Share = OwnedSemaphorePermit;

/// The process's descriptors.
#[derive(Clone)]
pub(super) struct Descriptors {
    free: Arc<Semaphore>,
    limit: u64,
}

impl Descriptors {
    /// All this process may open: raises its soft limit to the hard one.
    pub fn of_this_process() -> io::Result<Self> {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum {
            let raised = Rlimit {
                current: maximum,
                maximum,
            };
            setrlimit(Resource::Nofile, raised)?;
        }
        let limit = maximum.unwrap_or(u64::from(u32::MAX));
        // A limit too small for the reserve: half of it.
        let free = limit.saturating_sub(RESERVE).max(limit / 2);
        let free = usize::try_from(free).unwrap_or(usize::MAX);
        Ok(Self {
            free: Arc::new(Semaphore::new(free.min(Semaphore::MAX_PERMITS))),
            limit,
        })
    }

    /// The process's limit (`RLIMIT_NOFILE`).
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// For one connection, when there are enough.
    pub async fn connection(&self) -> Option<Share> {
        self.free.clone().acquire_many_owned(CONNECTION).await.ok()
    }

    /// For one published port, if there are enough now: its socket, and a connection it has accepted
    /// while there is no room for it yet.
    pub fn listener(&self) -> Option<Share> {
        self.free.clone().try_acquire_many_owned(2).ok()
    }

    /// For one UDP flow, if there are enough now.
    pub fn flow(&self) -> Option<Share> {
        self.free.clone().try_acquire_owned().ok()
    }
}
