//! `selkie start`.

use clap::{ArgMatches, Command};
use selkie_engine::Engine;
use selkie_engine::container::{ContainerId, StartMode, Status};

use super::streams;
use super::targets::{self, Chosen, Missing};
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, switch};
use crate::error::{CliError, Result};
use crate::session::Session;
use crate::terminal::{self, caller::Wishes};

/// The command.
pub const START: CommandSpec = CommandSpec {
    name: "start",
    aliases: &[],
    about: "Start containers that do not run",
    examples: "Examples:
  selkie start web
  selkie start --attach --interactive job",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .args(targets::flags("All containers that do not run"))
        // -a is --attach here, as in Podman and Docker.
        .mut_arg("all", |all| all.short(None))
        .arg(switch("attach", "Connect to its output, and pass its exit code on").short('a'))
        .arg(switch("interactive", "Connect standard input too").short('i'))
        .args(streams::flags())
}

const ONE_AT_A_TIME: &str = "you cannot start and attach multiple containers at once";

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    targets::check(matches)?;
    let keys = streams::detach_keys(matches)?;
    let interactive = matches.on("interactive");
    let attach = matches.on("attach") || interactive;
    if attach && (matches.texts("containers").len() > 1 || matches.on("all")) {
        return Err(CliError::new(ONE_AT_A_TIME));
    }
    let mut engine = session.open_engine()?;
    let chosen = targets::choose(&engine, matches, |container| {
        matches!(container.status, Status::Created | Status::Exited)
    })?;
    for id in chosen.ids(&engine) {
        engine.protect_own_program_from(&id, std::env::args_os())?;
    }
    if !attach {
        return chosen.for_each(&mut engine, Missing::Refuse, |engine, id| {
            if !is_running(engine, id)? {
                engine.start(id, StartMode::Detached)?;
            }
            Ok(())
        });
    }
    let id = match chosen {
        Chosen::Names(names) => engine.find_container(&names[0])?,
        Chosen::Found(targets) => match &targets[..] {
            [target] => target.id.clone(),
            _ => return Err(CliError::new(ONE_AT_A_TIME)),
        },
    };
    let options = engine.container(&id)?.config.options;
    let wishes = Wishes {
        stdin: interactive && options.interactive,
        stdout: true,
        stderr: true,
        terminal: options.terminal,
        detach_keys: keys,
        proxy_signals: matches.on("sig-proxy"),
    };
    let connection = if is_running(&engine, &id)? {
        Some(engine.attach(&id)?)
    } else {
        let size = options.terminal.then(terminal::size).flatten();
        engine.start(&id, StartMode::Attached { size })?.attach
    };
    match connection {
        Some(connection) => streams::relay(&engine, &id, &connection, wishes, false),
        None => Ok(streams::exit_code(engine.wait(&id)?)),
    }
}

fn is_running(engine: &Engine, id: &ContainerId) -> Result<bool> {
    Ok(engine.container(id)?.status == Status::Running)
}
