//! `selkie attach`.

use clap::{ArgMatches, Command};
use selkie_engine::attach::ToContainer;
use selkie_engine::container::Status;

use super::{streams, targets};
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, positional, switch};
use crate::error::{CliError, Result};
use crate::session::Session;
use crate::terminal::{self, caller::Wishes};

/// The command.
pub const ATTACH: CommandSpec = CommandSpec {
    name: "attach",
    aliases: &[],
    about: "Connect to a running container",
    examples: "Examples:
  selkie attach web
  selkie attach --no-stdin --sig-proxy=false web",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(positional("container", "CONTAINER", "Name or ID"))
        .arg(switch("latest", "The container created last").short('l'))
        .arg(switch("no-stdin", "Do not connect standard input"))
        .args(streams::flags())
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let keys = streams::detach_keys(matches)?;
    let name = matches.text("container");
    if name.is_none() && !matches.on("latest") {
        return Err(CliError::new(
            "attach needs the name or id of one running container",
        ));
    }
    let engine = session.open_engine()?;
    let id = match name {
        Some(name) => engine.find_container(name)?,
        None => targets::latest(&engine)?.id,
    };
    let container = engine.container(&id)?;
    if container.status != Status::Running {
        return Err(CliError::new(format!(
            "you can only attach to running containers; {} is not",
            name.unwrap_or(id.short())
        ))
        .with_hint(format!("selkie start --attach {}", container.name)));
    }
    let options = container.config.options;
    let connection = engine.attach(&id)?;
    if options.terminal
        && let Some((rows, columns)) = terminal::size()
    {
        // The container's terminal takes the size of whoever came last.
        connection.send(ToContainer::Resize { rows, columns })?;
    }
    let wishes = Wishes {
        stdin: options.interactive && !matches.on("no-stdin"),
        stdout: true,
        stderr: true,
        terminal: options.terminal,
        detach_keys: keys,
        proxy_signals: matches.on("sig-proxy"),
    };
    streams::relay(&engine, &id, &connection, wishes, false)
}
