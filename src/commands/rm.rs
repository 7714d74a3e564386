//! `selkie rm`.

use clap::{ArgMatches, Command};

use super::stop;
use super::targets::{self, Missing};
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, switch};
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command.
pub const RM: CommandSpec = CommandSpec {
    name: "rm",
    aliases: &["remove"],
    about: "Remove containers",
    examples: "Examples:
  selkie rm job
  selkie rm --force --time 0 web
  selkie rm --all",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .args(targets::flags("All containers"))
        .arg(targets::id_file_flag())
        // -f is --force here, as in Podman and Docker.
        .mut_arg("filter", |filter| filter.short(None))
        .arg(
            switch(
                "force",
                "Stop running ones first; names that do not exist are no error",
            )
            .short('f'),
        )
        .arg(switch("ignore", "Names that do not exist are no error").short('i'))
        .arg(switch("volumes", "Remove their anonymous volumes too").short('v'))
        .arg(stop::time_flag())
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    targets::check(matches)?;
    let timeout = stop::timeout(matches)?;
    let (force, volumes) = (matches.on("force"), matches.on("volumes"));
    if timeout.is_some() && !force {
        return Err(CliError::new("--time needs --force"));
    }
    let missing = if force || matches.on("ignore") {
        Missing::Ignore
    } else {
        Missing::RefuseRemoval
    };
    let mut engine = session.open_engine()?;
    let chosen = targets::choose(&engine, matches, |_| true)?;
    if force {
        stop::stop_together(&engine, &chosen, timeout);
    }
    chosen.for_each(&mut engine, missing, |engine, id| {
        if force {
            // Politely, as Podman does: the stop signal first.
            engine.stop(id, timeout)?;
        }
        Ok(engine.remove(id, force, volumes)?)
    })
}
