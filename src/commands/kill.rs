//! `selkie kill`.

use clap::{ArgMatches, Command};
use selkie_engine::container::Status;

use super::targets::{self, Missing};
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, value};
use crate::create_options::signal;
use crate::error::Result;
use crate::session::Session;

/// The command.
pub const KILL: CommandSpec = CommandSpec {
    name: "kill",
    aliases: &[],
    about: "Send a signal to containers",
    examples: "Examples:
  selkie kill web
  selkie kill --signal HUP web",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .args(targets::flags("All running containers"))
        .arg(targets::id_file_flag())
        .arg(value("signal", "SIGNAL", "Name or number (default: KILL)").short('s'))
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    targets::check(matches)?;
    let number = signal::parse(matches.text("signal").unwrap_or("KILL"))?;
    let mut engine = session.open_engine()?;
    let chosen = targets::choose(&engine, matches, |container| {
        container.status == Status::Running
    })?;
    chosen.for_each(&mut engine, Missing::Refuse, |engine, id| {
        Ok(engine.kill(id, number)?)
    })
}
