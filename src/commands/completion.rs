//! `selkie completion`.

use clap::{ArgMatches, Command, ValueEnum};
use clap_complete::Shell;

use super::export::write_file;
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, positional, value};
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command.
pub const COMPLETION: CommandSpec = CommandSpec {
    name: "completion",
    aliases: &[],
    about: "Print a shell's completion script",
    examples: "Examples:
  source <(selkie completion bash)
  selkie completion --file ~/.config/fish/completions/selkie.fish fish",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(positional(
            "shell",
            "SHELL",
            "bash, zsh, fish, elvish or powershell",
        ))
        .arg(value("file", "FILE", "Write to FILE instead of standard output").short('f'))
}

fn run(_session: &Session, matches: &ArgMatches) -> Result<u8> {
    let name = matches.text("shell").unwrap_or_default();
    let shell = Shell::from_str(name, true).map_err(|_| {
        CliError::new(format!("no completion for the shell {name:?}"))
            .with_hint("choose from bash, zsh, fish, elvish, powershell")
    })?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::cli::tree(), "selkie", &mut script);
    match matches.text("file") {
        Some(path) => write_file(path, |file| {
            file.write_all(&script)
                .map_err(|error| CliError::new(format!("write {path}: {error}")))
        })?,
        None => super::print(&String::from_utf8_lossy(&script))?,
    }
    Ok(0)
}
