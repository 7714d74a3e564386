//! The threads that pass on connections: the one that accepts them, and others that take turns with it.
//!
//! A connection stays with the thread it was given to, so that its bytes stay with one processor; many
//! connections use several. Each thread waits for its own sockets only.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// Threads in all, on machines that have as many processors: clients are not to take all of a large one.
const MOST: usize = 4;

/// What a thread needs beyond what it waits with.
const STACK: usize = 256 * 1024;

/// See the module. The other threads end when this is dropped, and with them their connections.
#[derive(Debug)]
pub(super) struct Workers {
    all: Vec<Handle>,
    next: AtomicUsize,
    _running: watch::Sender<()>,
}

impl Workers {
    /// The caller's runtime, and a thread for each further processor. Where none can be started, the
    /// caller does it alone.
    pub(super) fn start() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let (running, stop) = watch::channel(());
        let mut all = vec![Handle::current()];
        for _ in 1..processors.min(MOST) {
            match start_one(stop.clone()) {
                Ok(handle) => all.push(handle),
                Err(error) => {
                    tracing::warn!(%error, "fewer threads serve published ports");
                    break;
                }
            }
        }
        Self {
            all,
            next: AtomicUsize::new(0),
            _running: running,
        }
    }

    /// Whose turn it is.
    pub(super) fn next(&self) -> &Handle {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        &self.all[turn % self.all.len()]
    }
}

fn start_one(mut stop: watch::Receiver<()>) -> std::io::Result<Handle> {
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let handle = runtime.handle().clone();
    let run = move || {
        // An error: the sender is gone.
        runtime.block_on(async { while stop.changed().await.is_ok() {} });
    };
    thread::Builder::new()
        .name("ports".into())
        .stack_size(STACK)
        .spawn(run)?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_their_turn_and_end() {
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let workers = Workers::start();
            let count = workers.all.len();
            assert!((1..=MOST).contains(&count));
            let here = thread::current().id();
            let mut seen = Vec::new();
            for _ in 0..count {
                seen.push(
                    workers
                        .next()
                        .spawn(async { thread::current().id() })
                        .await
                        .unwrap(),
                );
            }
            assert!(seen.contains(&here));
            for (index, one) in seen.iter().enumerate() {
                assert!(!seen[..index].contains(one), "{seen:?}");
            }
            let others: Vec<Handle> = workers.all[1..].to_vec();
            let left: Vec<_> = others
                .iter()
                .map(|other| other.spawn(std::future::pending::<()>()))
                .collect();
            drop(workers);
            for task in left {
                assert!(task.await.unwrap_err().is_cancelled());
            }
        });
    }
}
