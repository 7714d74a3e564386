//! `selkie wait`.

use clap::{ArgMatches, Command};
use selkie_engine::ErrorKind;

use super::targets;
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, choice, positionals, switch};
use crate::error::{CliError, Result, for_each};
use crate::session::Session;

/// The command.
pub const WAIT: CommandSpec = CommandSpec {
    name: "wait",
    aliases: &[],
    about: "Wait until containers have ended and print their exit codes",
    examples: "Examples:
  selkie wait job
  selkie wait first second",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(positionals("containers", "CONTAINER", "Names or IDs"))
        .arg(switch("latest", "The container created last").short('l'))
        .arg(switch("ignore", "Print -1 for names that do not exist"))
        .arg(choice(
            "condition",
            "STATE",
            "Only the end can be waited for: stopped or exited",
            &["stopped", "exited"],
        ))
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let (mut names, latest) = (matches.texts("containers"), matches.on("latest"));
    if names.is_empty() && !latest {
        return Err(CliError::new("you must provide at least one name or id"));
    }
    let engine = session.open_engine()?;
    if latest {
        names.push(targets::latest(&engine)?.called);
    }
    let ignore = matches.on("ignore");
    for_each(names, |name| match engine.find_container(name) {
        Err(error) if ignore && error.kind == ErrorKind::NotFound => super::print_line("-1"),
        found => super::print_line(&engine.wait(&found?)?.to_string()),
    })
}
