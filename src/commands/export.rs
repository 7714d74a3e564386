//! `selkie export`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};

use clap::{ArgMatches, Command};

use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, positional, value};
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command.
pub const EXPORT: CommandSpec = CommandSpec {
    name: "export",
    aliases: &[],
    about: "Write a container's root file system as a tar archive",
    examples: "Examples:
  selkie export --output root.tar web
  selkie export web | tar -t",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(positional("container", "CONTAINER", "Name or ID"))
        .arg(value("output", "FILE", "Write to FILE instead of standard output").short('o'))
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let name = matches
        .text("container")
        .ok_or_else(|| CliError::new("export needs the name or id of one container"))?;
    let output = matches.text("output");
    refuse_terminal(output)?;
    let mut engine = session.open_engine()?;
    let id = engine.find_container(name)?;
    match output {
        Some(path) => write_file(path, |file| Ok(engine.export(&id, file)?))?,
        None => engine.export(&id, &mut std::io::stdout())?,
    }
    Ok(0)
}

/// An archive on the screen helps nobody.
pub fn refuse_terminal(output: Option<&str>) -> Result<()> {
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(
            CliError::new("refusing to write an archive to the terminal")
                .with_hint("name a file with --output, or send standard output elsewhere"),
        );
    }
    Ok(())
}

/// Writes a file that is complete or not there: what fails half-way is removed again.
pub fn write_file(path: &str, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let file =
        File::create(path).map_err(|error| CliError::new(format!("create {path}: {error}")))?;
    let mut file = BufWriter::with_capacity(1 << 16, file);
    let written = write(&mut file).and_then(|()| {
        file.flush()
            .map_err(|error| CliError::new(format!("write {path}: {error}")))
    });
    // Not a device or a pipe that somebody named.
    if written.is_err() && std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        let _ = std::fs::remove_file(path);
    }
    written
}
