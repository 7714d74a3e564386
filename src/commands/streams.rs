//! Being connected to a container: flags and relays that `run`, `start` and `attach` share.

use std::cell::Cell;

use clap::{Arg, ArgMatches};
use selkie_engine::Engine;
use selkie_engine::attach::AttachConnection;
use selkie_engine::container::ContainerId;

use crate::cli::flag::{Flags, switch_on, value};
use crate::error::{CliError, FAILURE, Result};
use crate::terminal::attach::{self, Ended, Target};
use crate::terminal::caller::Wishes;
use crate::terminal::detach_keys;

/// `--detach-keys` and `--sig-proxy`.
pub fn flags() -> [Arg; 2] {
    [
        detach_keys_flag(),
        switch_on("sig-proxy", "Pass signals on to the container"),
    ]
}

/// `--detach-keys`.
pub fn detach_keys_flag() -> Arg {
    value(
        "detach-keys",
        "KEYS",
        "Keys that end the connection and leave everything running (default: ctrl-p,ctrl-q; empty: none)",
    )
}

/// `--detach-keys` parsed; wrong ones are refused before anything is started.
pub fn detach_keys(matches: &ArgMatches) -> Result<Vec<u8>> {
    detach_keys::parse(matches.text("detach-keys").unwrap_or(detach_keys::DEFAULT))
}

const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;

/// A container the caller is connected to.
struct Connected<'e> {
    engine: &'e Engine,
    id: &'e ContainerId,
    /// Started by this command, so it ends as a program at the head of a pipe would.
    is_ours: bool,
    broke: Cell<bool>,
}

impl Target for Connected<'_> {
    fn signal(&self, number: i32) {
        if let Err(error) = self.engine.kill(self.id, number) {
            tracing::debug!("passing signal {number} on: {error}");
        }
    }

    /// `selkie run … | head`: a program of ours would have got SIGPIPE. The kernel does not let
    /// that end the first process of a PID namespace, so what it would have done is done for it: a
    /// program that handles or ignores the signal goes on, another ends.
    fn output_lost(&self) -> bool {
        if !self.is_ours {
            return false;
        }
        let Ok(container) = self.engine.container(self.id) else {
            return true;
        };
        match disposition(container.pid, SIGPIPE) {
            Some(Disposition::Handled) => self.signal(SIGPIPE),
            Some(Disposition::Default) => {
                self.broke.set(true);
                self.signal(SIGKILL);
            }
            Some(Disposition::Ignored) | None => {}
        }
        true
    }
}

/// What a process does with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disposition {
    Default,
    Ignored,
    Handled,
}

fn disposition(pid: i32, signal: i32) -> Option<Disposition> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse_disposition(&status, signal)
}

fn parse_disposition(status: &str, signal: i32) -> Option<Disposition> {
    let has = |field: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(field))?;
        let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
        Some((mask >> (signal - 1)) & 1 == 1)
    };
    Some(match (has("SigIgn:")?, has("SigCgt:")?) {
        (true, _) => Disposition::Ignored,
        (_, true) => Disposition::Handled,
        _ => Disposition::Default,
    })
}

/// Relays until the container ends or the caller leaves; gives the command's exit code.
/// `is_ours`: this command has started it.
pub fn relay(
    engine: &Engine,
    id: &ContainerId,
    connection: &AttachConnection,
    wishes: Wishes,
    is_ours: bool,
) -> Result<u8> {
    let target = Connected {
        engine,
        id,
        is_ours,
        broke: Cell::new(false),
    };
    match attach::relay(connection, wishes, &target)? {
        Ended::Exited(_) if target.broke.get() => Ok(128 + SIGPIPE as u8),
        Ended::Exited(code) => Ok(exit_code(code)),
        Ended::Detached => Ok(0),
        Ended::Died(code) => Ok(code),
        Ended::Lost => Err(CliError::new(format!(
            "the connection to container {} was lost: its monitor has gone",
            id.short()
        ))
        .with_hint(format!(
            "selkie ps -a --filter id={} shows what became of it",
            id.short()
        ))),
    }
}

/// A container's exit code as ours. -1 (nobody saw it end) is a failure of the tool.
pub fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dispositions_are_read_from_the_masks() {
        let status = "Name:\tx\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000004002\n";
        for (signal, expected) in [
            (13, Disposition::Ignored),
            (2, Disposition::Handled),
            (15, Disposition::Handled),
            (1, Disposition::Default),
        ] {
            assert_eq!(
                parse_disposition(status, signal),
                Some(expected),
                "{signal}"
            );
        }
        assert_eq!(parse_disposition("", 1), None);
    }
}
