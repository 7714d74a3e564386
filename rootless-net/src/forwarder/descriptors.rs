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

/// That of a connection out of a container.
pub(super) struct OutgoingShare {
    _outgoing: OwnedSemaphorePermit,
    _free: Share,
}

/// The process's descriptors.
#[derive(Clone)]
pub(super) struct Descriptors {
    free: Arc<Semaphore>,
    /// Connections out of containers that there may be more: they leave half for those who come in.
    outgoing: Arc<Semaphore>,
    most_outgoing: usize,
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
        let free = free.min(Semaphore::MAX_PERMITS);
        let most_outgoing = free / 2 / CONNECTION as usize;
        Ok(Self {
            free: Arc::new(Semaphore::new(free)),
            outgoing: Arc::new(Semaphore::new(most_outgoing)),
            most_outgoing,
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

    /// For one connection out of a container, if there are enough now.
    pub fn outgoing(&self) -> Option<OutgoingShare> {
        Some(OutgoingShare {
            _outgoing: self.outgoing.clone().try_acquire_owned().ok()?,
            _free: self.free.clone().try_acquire_many_owned(CONNECTION).ok()?,
        })
    }

    /// How many connections out one container may have, so that others can have some too.
    pub fn outgoing_of_one(&self) -> usize {
        self.most_outgoing / 2
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_leave_half_to_those_who_come_in() {
        let descriptors = Descriptors::of_this_process().unwrap();
        let most = descriptors.most_outgoing;
        assert!(descriptors.outgoing_of_one() * 2 <= most);
        let mut taken = Vec::new();
        while let Some(share) = descriptors.outgoing() {
            taken.push(share);
        }
        assert_eq!(taken.len(), most);
        assert!(descriptors.free.available_permits() >= most * CONNECTION as usize);
        taken.pop();
        assert!(descriptors.outgoing().is_some());
    }
}
