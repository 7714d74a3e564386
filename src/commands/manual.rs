//! `selkie man`: writes the manual pages, for packagers.

use std::path::Path;

use clap::{ArgMatches, Command};

use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, positional};
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command; not shown in help.
pub const MANUAL: CommandSpec = CommandSpec {
    name: "man",
    aliases: &[],
    about: "Write the manual pages into a directory",
    examples: "Examples:
  selkie man /usr/local/share/man/man1",
    flags: |command| command.arg(positional("directory", "DIR", "Where; made if absent")),
    run,
};

fn run(_session: &Session, matches: &ArgMatches) -> Result<u8> {
    let directory = matches
        .text("directory")
        .ok_or_else(|| CliError::new("man needs a directory to write to"))?;
    let directory = Path::new(directory);
    std::fs::create_dir_all(directory)
        .map_err(|error| CliError::new(format!("make {}: {error}", directory.display())))?;
    let mut tree = crate::cli::tree().disable_help_subcommand(true);
    tree.build();
    page(&tree, "selkie", directory)?;
    Ok(0)
}

/// The page of a command and those of its subcommands.
fn page(command: &Command, name: &str, directory: &Path) -> Result<()> {
    let path = directory.join(format!("{name}.1"));
    let failed =
        |error: std::io::Error| CliError::new(format!("write {}: {error}", path.display()));
    let mut text = Vec::new();
    // Building the tree has given every command its full name (selkie-run).
    clap_mangen::Man::new(command.clone())
        .render(&mut text)
        .map_err(failed)?;
    std::fs::write(&path, &text).map_err(failed)?;
    for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        let name = format!("{name}-{}", subcommand.get_name());
        page(subcommand, &name, directory)?;
    }
    Ok(())
}
