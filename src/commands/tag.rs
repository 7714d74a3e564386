//! `selkie tag`, `selkie untag`.

use clap::ArgMatches;

use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, positionals};
use crate::error::{CliError, Result};
use crate::session::Session;

/// `tag`.
pub const TAG: CommandSpec = CommandSpec {
    name: "tag",
    aliases: &[],
    about: "Give an image further names",
    examples: "Examples:
  selkie tag debian mine:1.0
  selkie tag 0123456789ab registry.example/team/app:latest",
    flags: |command| {
        command.arg(positionals(
            "names",
            "IMAGE NAME",
            "An image, and the names it gets",
        ))
    },
    run: tag,
};

/// `untag`.
pub const UNTAG: CommandSpec = CommandSpec {
    name: "untag",
    aliases: &[],
    about: "Take names away from an image, all of them if none is given",
    examples: "Examples:
  selkie untag mine:1.0
  selkie untag 0123456789ab mine:1.0",
    flags: |command| {
        command.arg(positionals(
            "names",
            "IMAGE [NAME]",
            "An image, and the names it loses",
        ))
    },
    run: untag,
};

fn tag(session: &Session, matches: &ArgMatches) -> Result<u8> {
    match matches.texts("names").as_slice() {
        [image, names @ ..] if !names.is_empty() => {
            session.open_engine()?.tag(image, names)?;
            Ok(0)
        }
        _ => Err(CliError::new("tag needs an image and at least one name")),
    }
}

fn untag(session: &Session, matches: &ArgMatches) -> Result<u8> {
    match matches.texts("names").as_slice() {
        [image, names @ ..] => {
            session.open_engine()?.untag(image, names)?;
            Ok(0)
        }
        [] => Err(CliError::new("untag needs an image")),
    }
}
