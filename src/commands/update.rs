//! `selkie update`: what can change of a container that exists.

use clap::{ArgMatches, Command};
use selkie_engine::Engine;
use selkie_engine::container::ContainerId;
use selkie_engine::network::{PortChanges, PortPattern};

use super::targets::{Chosen, Missing};
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, list, positionals};
use crate::create_options::ports;
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command.
pub const UPDATE: CommandSpec = CommandSpec {
    name: "update",
    aliases: &[],
    about: "Change the published ports of containers, also while they run",
    examples: "Examples:
  selkie update --publish-add 8080:80 web
  selkie update --publish-rm 80 --publish-add 127.0.0.1:8080:80 web
  selkie update --publish-rm 8081:80 --publish-rm 53/udp web",
    flags,
    run,
};

const PUBLISH_ADD: &str = "publish-add";
const PUBLISH_RM: &str = "publish-rm";

fn flags(command: Command) -> Command {
    command
        .arg(positionals("containers", "CONTAINER", "Names or IDs"))
        .arg(list(
            PUBLISH_ADD,
            "PORT",
            "Publish [[ADDRESS:][HOST-PORT]:]PORT[/PROTOCOL] as well, as run --publish does",
        ))
        .arg(list(
            PUBLISH_RM,
            "PORT",
            "Take back what is published of the container's PORT[/PROTOCOL], or only [ADDRESS:]HOST-PORT:PORT; \
             connections made already go on",
        ))
}

/// Everything to change, as given.
struct Changes {
    publish_add: Vec<String>,
    publish_rm: Vec<PortPattern>,
}

impl Changes {
    fn parse(matches: &ArgMatches) -> Result<Self> {
        let changes = Self {
            publish_add: matches.texts(PUBLISH_ADD),
            publish_rm: ports::patterns(PUBLISH_RM, &matches.texts(PUBLISH_RM))?,
        };
        if changes.publish_add.is_empty() && changes.publish_rm.is_empty() {
            return Err(CliError::new("nothing to change was given")
                .with_hint("published ports can change: --publish-add, --publish-rm"));
        }
        Ok(changes)
    }

    fn make(&self, engine: &mut Engine, id: &ContainerId) -> Result<()> {
        let known = engine.container(id)?.config.options.ports;
        let changes = PortChanges {
            remove: self.publish_rm.clone(),
            add: ports::published_beside(&known, PUBLISH_ADD, &self.publish_add)?,
        };
        Ok(engine.update_ports(id, &changes)?)
    }
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let changes = Changes::parse(matches)?;
    let names = matches.texts("containers");
    if names.is_empty() {
        return Err(CliError::new("you must provide at least one name or id"));
    }
    // What is wrong with a port is so for every container.
    ports::check(PUBLISH_ADD, &changes.publish_add)?;
    let mut engine = session.open_engine()?;
    Chosen::Names(names).for_each(&mut engine, Missing::Refuse, |engine, id| {
        changes.make(engine, id)
    })
}
