//! `selkie container exists`, `selkie image exists`.

use clap::{ArgMatches, Command};
use selkie_engine::ErrorKind;

use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, positional};
use crate::error::{CliError, Result};
use crate::session::Session;

/// `container exists`.
pub const CONTAINER_EXISTS: CommandSpec = CommandSpec {
    name: "exists",
    aliases: &[],
    about: "Exit with 0 if a container exists, with 1 if not",
    examples: "Examples:
  selkie container exists web || selkie run -d --name web web-server",
    flags,
    run: |session, matches| {
        let name = name(matches)?;
        answer(session.open_engine()?.find_container(name))
    },
};

/// `image exists`.
pub const IMAGE_EXISTS: CommandSpec = CommandSpec {
    name: "exists",
    aliases: &[],
    about: "Exit with 0 if an image exists, with 1 if not",
    examples: "Examples:
  selkie image exists busybox || selkie load --input busybox.tar",
    flags,
    run: |session: &Session, matches| {
        let name = name(matches)?;
        answer(session.open_engine()?.image(name))
    },
};

/// The one name.
pub fn flags(command: Command) -> Command {
    command.arg(positional("name", "NAME", "Name or ID"))
}

/// The one name, read.
pub fn name(matches: &ArgMatches) -> Result<&str> {
    matches
        .text("name")
        .ok_or_else(|| CliError::new("exists needs one name or id"))
}

/// 0 for found, 1 for not.
pub fn answer<T>(found: selkie_engine::Result<T>) -> Result<u8> {
    match found {
        Ok(_) => Ok(0),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error.into()),
    }
}
