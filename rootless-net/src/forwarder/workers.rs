//! Threads that take turns in passing on long connections (see [`super::passing`]), beside the one that takes
//! them. Each waits for its own sockets only.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// How many there are on machines with more processors: clients are not to take all of a large one.
const MOST: usize = 3;

/// What a thread needs beyond what it waits with.
const STACK: usize = 256 * 1024;

/// See the module. They are started when the first is wanted, and end when this is dropped, and with them
/// their connections.
#[derive(Debug)]
pub(super) struct Workers {
    count: usize,
    started: OnceLock<Started>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Started {
    all: Vec<Handle>,
    _running: watch::Sender<()>,
}

impl Workers {
    /// One for each processor but the first.
    pub(super) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            count: (processors - 1).min(MOST),
            started: OnceLock::new(),
            next: AtomicUsize::new(0),
        }
    }

    /// Whether there are any.
    pub(super) fn are_there(&self) -> bool {
        self.count > 0
    }

    /// Whose turn it is; `None` when there are none, or none could be started.
    pub(super) fn next(&self) -> Option<&Handle> {
        let all = &self.started.get_or_init(|| start(self.count)).all;
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        all.get(turn.checked_rem(all.len())?)
    }
}

fn start(count: usize) -> Started {
    let (running, stop) = watch::channel(());
    let mut all = Vec::new();
    for _ in 0..count {
        match start_one(stop.clone()) {
            Ok(handle) => all.push(handle),
            Err(error) => {
                tracing::warn!(%error, "fewer threads pass on connections");
                break;
            }
        }
    }
    Started {
        all,
        _running: running,
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
        .name("connections".into())
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
            let workers = Workers {
                count: 2,
                ..Workers::new()
            };
            assert!(workers.are_there());
            let mut seen = vec![thread::current().id()];
            for _ in 0..2 {
                let worker = workers.next().unwrap();
                seen.push(
                    worker
                        .spawn(async { thread::current().id() })
                        .await
                        .unwrap(),
                );
            }
            for (index, one) in seen.iter().enumerate() {
                assert!(!seen[..index].contains(one), "{seen:?}");
            }
            let left: Vec<_> = [workers.next(), workers.next()]
                .into_iter()
                .map(|worker| worker.unwrap().spawn(std::future::pending::<()>()))
                .collect();
            drop(workers);
            for task in left {
                assert!(task.await.unwrap_err().is_cancelled());
            }
        });
    }

    #[test]
    fn one_processor_needs_none() {
        let alone = Workers {
            count: 0,
            ..Workers::new()
        };
        assert!(!alone.are_there() && alone.next().is_none());
    }
}
