//! `selkie stop`.

use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use selkie_engine::Engine;
use selkie_engine::container::{ContainerId, Status};

use super::targets::{self, Missing};
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, switch, value};
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command.
pub const STOP: CommandSpec = CommandSpec {
    name: "stop",
    aliases: &[],
    about: "Stop containers: their stop signal, and SIGKILL after a while",
    examples: "Examples:
  selkie stop web
  selkie stop --time 2 web database
  selkie stop --all",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .args(targets::flags("All running containers"))
        .arg(targets::id_file_flag())
        .arg(switch("ignore", "Names that do not exist are no error").short('i'))
        .arg(time_flag())
}

/// `--time`, which Docker calls `--timeout`.
pub fn time_flag() -> Arg {
    value(
        "time",
        "SECONDS",
        "Seconds before SIGKILL (default: the container's own; -1: wait for ever)",
    )
    .short('t')
    .alias("timeout")
}

/// `--time` read.
pub fn timeout(matches: &ArgMatches) -> Result<Option<Duration>> {
    match matches.text("time") {
        None => Ok(None),
        // Longer than any process lives.
        Some("-1") => Ok(Some(Duration::from_secs(u32::MAX.into()))),
        Some(text) => match text.parse::<u32>() {
            Ok(seconds) => Ok(Some(Duration::from_secs(seconds.into()))),
            Err(_) => Err(CliError::new(format!(
                "--time {text}: not a number of seconds"
            ))),
        },
    }
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    targets::check(matches)?;
    let timeout = timeout(matches)?;
    let missing = if matches.on("ignore") {
        Missing::Ignore
    } else {
        Missing::Refuse
    };
    let mut engine = session.open_engine()?;
    let chosen = targets::choose(&engine, matches, |container| {
        matches!(container.status, Status::Running | Status::Stopping)
    })?;
    stop_together(&engine, &chosen.ids(&engine), timeout);
    chosen.for_each(&mut engine, missing, |engine, id| {
        Ok(engine.stop(id, timeout)?)
    })
}

/// Several stop at once, so that the slowest decides how long it takes. What goes wrong here goes
/// wrong again, and is told, when each is looked after by itself.
pub fn stop_together(engine: &Engine, ids: &[ContainerId], timeout: Option<Duration>) {
    if ids.len() > 1 {
        engine.stop_all(ids, timeout);
    }
}
