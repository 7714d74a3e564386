//! Limits on what is held for clients, in all and for each of them, so that none can take everything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::views::Asker;

/// How many passes may be out.
#[derive(Debug)]
pub(super) struct Quota {
    all: usize,
    each: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by: HashMap<Asker, usize>,
}

/// Permission to hold one more; given back when dropped.
#[derive(Debug)]
pub(super) struct Pass {
    quota: Arc<Quota>,
    asker: Asker,
}

impl Quota {
    /// `all` passes, at most `each` of them for one asker.
    pub(super) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            each,
            held: Mutex::default(),
        })
    }

    /// One more for `asker`, if its share and the whole allow.
    pub(super) fn enter(self: &Arc<Self>, asker: &Asker) -> Option<Pass> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.all >= self.all {
            return None;
        }
        let count = held.by.entry(asker.clone()).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        held.all += 1;
        Some(Pass {
            quota: Arc::clone(self),
            asker: asker.clone(),
        })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut held = self
            .quota
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.all -= 1;
        if let Some(count) = held.by.get_mut(&self.asker) {
            *count -= 1;
            if *count == 0 {
                held.by.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_room_for_others() {
        let quota = Quota::new(3, 2);
        let greedy = Asker::Container("a".into());
        let modest = Asker::Stranger("n".into());
        let first = quota.enter(&greedy).unwrap();
        let _second = quota.enter(&greedy).unwrap();
        assert!(quota.enter(&greedy).is_none());
        let third = quota.enter(&modest).unwrap();
        assert!(quota.enter(&modest).is_none());
        drop(first);
        assert!(quota.enter(&greedy).is_some());
        drop(third);
        assert_eq!(quota.held.lock().unwrap().by.len(), 1);
    }
}
