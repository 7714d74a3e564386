//! `selkie container prune`.

use clap::ArgMatches;
use selkie_engine::ErrorKind;
use selkie_engine::container::Status;

use super::filter::ContainerFilters;
use super::prompt;
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, list, switch};
use crate::error::{Result, for_each};
use crate::session::Session;

/// The command.
pub const CONTAINER_PRUNE: CommandSpec = CommandSpec {
    name: "prune",
    aliases: &[],
    about: "Remove all containers that do not run",
    examples: "Examples:
  selkie container prune
  selkie container prune --force --filter until=24h",
    flags: |command| {
        command
            .arg(list(
                "filter",
                "KEY=VALUE",
                "Only containers that match, as in selkie ps",
            ))
            .arg(switch("force", "Do not ask").short('f'))
    },
    run,
};

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    if !matches.on("force")
        && !prompt::confirm("WARNING! This will remove all non running containers.")?
    {
        return Ok(0);
    }
    let mut engine = session.open_engine()?;
    let containers = engine.containers()?;
    let filters = ContainerFilters::parse(&matches.texts("filter"), &containers, &engine)?;
    let idle = containers.into_iter().filter(|container| {
        matches!(container.status, Status::Created | Status::Exited) && filters.accept(container)
    });
    let idle: Vec<_> = idle.map(|container| container.id).collect();
    // Youngest first: one that shares a network is younger than the container whose network it is.
    for_each(idle.iter().rev().map(|id| id.as_str()), |name| {
        let found = engine.find_container(name);
        match found.and_then(|id| engine.remove(&id, false, true)) {
            Ok(()) => super::print_line(name),
            // It has been started or removed since we looked.
            Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
}
