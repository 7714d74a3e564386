//! Looking again before going to sleep.
//!
//! What one side of a long connection says comes in pieces with short pauses between them. To sleep in each
//! costs more than the pause: the thread gives up its processor, and the sender has to wake it, every time.
//! So its pump looks a few times more, for about as long as moving what came before has taken, and lets
//! others run in between: the sender, perhaps.
//!
//! Only long connections do it, on threads of their own (all do where there is one processor). Where many
//! short ones come on a busy processor, whoever wakes from sleep goes before the others, and whoever lets
//! them run comes after them.

/// How often it looks at most.
const MOST: usize = 50;

/// Bytes that are moved in about the time of one look, which is of the order of a microsecond.
const BYTES: usize = 1024;

/// How often a pump is still going to look. See the module.
#[derive(Debug, Default)]
pub(super) struct Patience {
    left: usize,
}

impl Patience {
    /// So much came.
    pub(super) fn renew(&mut self, bytes: usize) {
        self.left = (bytes / BYTES).min(MOST);
    }

    /// Nothing came: lets others run, and takes notice of what has come for any connection of this thread.
    /// Returns whether to look again instead of going to sleep.
    pub(super) async fn look_again(&mut self) -> bool {
        let Some(left) = self.left.checked_sub(1) else {
            return false;
        };
        self.left = left;
        rustix::thread::sched_yield();
        tokio::task::yield_now().await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it looks.
    fn looks(patience: &mut Patience) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            let mut count = 0;
            while patience.look_again().await {
                count += 1;
            }
            count
        })
    }

    #[test]
    fn it_is_earned_and_bounded() {
        let mut patience = Patience::default();
        assert_eq!(looks(&mut patience), 0);
        patience.renew(BYTES - 1);
        assert_eq!(looks(&mut patience), 0);
        patience.renew(20 * BYTES);
        assert_eq!(looks(&mut patience), 20);
        assert_eq!(looks(&mut patience), 0);
        patience.renew(usize::MAX);
        assert_eq!(looks(&mut patience), MOST);
    }
}
