//! `selkie rmi`, `selkie image prune`.

use clap::{ArgMatches, Command};
use selkie_engine::ErrorKind;
use selkie_engine::images::Removed;

use super::prompt;
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, positionals, switch};
use crate::error::{CliError, Result, for_each};
use crate::format::size;
use crate::session::Session;

/// `rmi`, `image rm`.
pub const RMI: CommandSpec = CommandSpec {
    name: "rmi",
    aliases: &[],
    about: "Remove images, or one name of an image that has several",
    examples: "Examples:
  selkie rmi debian
  selkie rmi --force 0123456789ab
  selkie rmi --all",
    flags,
    run,
};

/// `image prune`.
pub const PRUNE: CommandSpec = CommandSpec {
    name: "prune",
    aliases: &[],
    about: "Remove images without a name that no container uses",
    examples: "Examples:
  selkie image prune --force
  selkie image prune --all",
    flags: |command| {
        command
            .arg(switch("all", "Those with a name too").short('a'))
            .arg(switch("force", "Do not ask").short('f'))
    },
    run: prune,
};

fn flags(command: Command) -> Command {
    command
        .arg(positionals("images", "IMAGE", "Names or IDs"))
        .arg(switch("all", "All images").short('a'))
        .arg(switch("force", "All names, and the containers that use it, too").short('f'))
        .arg(switch("ignore", "Images that do not exist are no error").short('i'))
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let mut images = matches.texts("images");
    let (all, force) = (matches.on("all"), matches.on("force"));
    if images.is_empty() && !all {
        return Err(CliError::new("image name or ID must be specified"));
    }
    if !images.is_empty() && all {
        return Err(CliError::new("when using --all, no image may be named"));
    }
    let ignore = matches.on("ignore");
    let mut engine = session.open_engine()?;
    if all {
        images = engine.images()?.into_iter().map(|image| image.id).collect();
    }
    for_each(images, |image| {
        match engine.remove_image(image, force || all) {
            Ok(removed) => show(&removed),
            Err(error) if ignore && error.kind == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(CliError::from(error).with_removal_code()),
        }
    })
}

fn show(removed: &Removed) -> Result<()> {
    for name in &removed.untagged {
        super::print_line(&format!("Untagged: {name}"))?;
    }
    if let Some(id) = &removed.deleted {
        super::print_line(&format!("Deleted: {id}"))?;
    }
    Ok(())
}

fn prune(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let all = matches.on("all");
    let warning = if all {
        "WARNING! This command removes all images without at least one container associated with them."
    } else {
        "WARNING! This command removes all dangling images."
    };
    if !matches.on("force") && !prompt::confirm(warning)? {
        return Ok(0);
    }
    let (removed, freed) = session.open_engine()?.prune_images(all)?;
    for id in removed
        .iter()
        .filter_map(|removed| removed.deleted.as_ref())
    {
        super::print_line(id)?;
    }
    if freed > 0 {
        eprintln!("Freed {}", size::short(freed));
    }
    Ok(0)
}
