//! Raw mode of the caller's terminal, undone on every way out: `drop`, panic, and (because the
//! relay loops receive signals as data and return) signals.

use std::sync::{Mutex, Once};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::{CliError, Result};

/// The mode to go back to, where a panic can find it. There is one terminal on standard input.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input's terminal in raw mode until dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Switches standard input's terminal to raw mode. Remembers the mode before.
    pub fn enter() -> Result<Self> {
        restore_on_panic();
        let failed = |errno| CliError::new(format!("set the terminal to raw mode: {errno}"));
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        if let Ok(mut saved) = BEFORE.lock() {
            *saved = Some(before);
        }
        // From here on drop restores, also when setting fails half-way.
        let guard = Self(());
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // try_lock: a panic while the lock is held must not wait for itself.
    let before = match BEFORE.try_lock() {
        Ok(mut saved) => saved.take(),
        Err(_) => None,
    };
    if let Some(before) = before {
        // The terminal may be gone (hang-up); then there is nothing to restore.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &before);
    }
}

/// A panic aborts in release builds, so no destructor would run.
fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
    });
}
