//! `selkie exec`.

use clap::{ArgMatches, Command};
use selkie_engine::container::Status;
use selkie_engine::exec::ExecOptions;
use selkie_engine::{Engine, ErrorKind};

use super::{streams, targets};
use crate::cli::CommandSpec;
use crate::cli::flag::{COMMAND, Flags, list, object_and_command, switch, value};
use crate::create_options::variables::Variables;
use crate::environment;
use crate::error::{CliError, Result};
use crate::session::Session;
use crate::terminal::caller::Wishes;
use crate::terminal::exec::{Ended, relay};

/// The command.
pub const EXEC: CommandSpec = CommandSpec {
    name: "exec",
    aliases: &[],
    about: "Run a further command in a running container",
    examples: "Examples:
  selkie exec web ls /srv
  selkie exec -it web sh
  selkie exec --user 33 --env A=b web id",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(switch("detach", "Do not wait for it; print its ID").short('d'))
        .arg(streams::detach_keys_flag())
        .arg(
            list(
                "env",
                "NAME[=VALUE]",
                "Set a variable; NAME alone passes yours on",
            )
            .short('e'),
        )
        .arg(list(
            "env-file",
            "FILE",
            "Set variables from a file, one a line",
        ))
        .arg(switch("interactive", "Keep standard input open").short('i'))
        .arg(switch("latest", "In the container created last").short('l'))
        .arg(switch(
            "privileged",
            "Give it all capabilities of the container's user namespace",
        ))
        .arg(switch("tty", "Give it a terminal").short('t'))
        .arg(value("user", "USER[:GROUP]", "Run as this user of the container").short('u'))
        .arg(value("workdir", "DIR", "Directory to start in").short('w'))
        .override_usage("selkie exec [OPTIONS] CONTAINER COMMAND [ARG]...")
        .arg(object_and_command())
}

/// Rows and columns of a terminal nobody looks at.
const DEFAULT_SIZE: (u16, u16) = (24, 80);

/// Podman's exit code for `exec` in a container that does not run.
const NOT_RUNNING: u8 = 255;

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let mut command = matches.texts(COMMAND);
    let latest = matches.on("latest");
    if !latest && command.is_empty() {
        return Err(CliError::new(
            "exec needs a container's name or id and a command",
        ));
    }
    let name = (!latest).then(|| command.remove(0));
    if command.is_empty() {
        return Err(CliError::new("you must provide a command to exec"));
    }
    let mut engine = session.open_engine()?;
    let id = match &name {
        Some(name) => engine.find_container(name)?,
        None => targets::latest(&engine)?.id,
    };
    // Before standard input or a file is read.
    engine.protect_own_program_from(&id, std::env::args_os())?;
    let keys = streams::detach_keys(matches)?;
    let wants_terminal = matches.on("tty");
    let options = ExecOptions {
        command,
        env: variables(matches)?,
        workdir: matches.text("workdir").map(str::to_owned),
        user: matches.text("user").map(str::to_owned),
        privileged: matches.on("privileged"),
        terminal: wants_terminal.then(|| crate::terminal::size().unwrap_or(DEFAULT_SIZE)),
        interactive: matches.on("interactive"),
    };
    if matches.on("detach") {
        let session = engine.exec_detached(&id, &options);
        super::print_line(&session.map_err(|error| explain(error, &engine, &id))?)?;
        return Ok(0);
    }
    let process = engine
        .exec(&id, &options)
        .map_err(|error| explain(error, &engine, &id))?;
    let wishes = Wishes {
        stdin: options.interactive,
        stdout: true,
        stderr: true,
        terminal: wants_terminal,
        detach_keys: keys,
        proxy_signals: true,
    };
    Ok(match relay(process, wishes)? {
        Ended::Exited(code) => streams::exit_code(code),
        Ended::Detached => 0,
        Ended::Died(code) => code,
    })
}

fn variables(matches: &ArgMatches) -> Result<Vec<(String, String)>> {
    let (files, texts) = (matches.texts("env-file"), matches.texts("env"));
    if files.is_empty() && texts.is_empty() {
        return Ok(Vec::new());
    }
    let mut variables = Variables::default();
    let caller = environment::variables();
    for file in &files {
        variables.add_file(file, &caller)?;
    }
    for text in &texts {
        variables.add(text, &caller)?;
    }
    Ok(variables.into_entries())
}

fn explain(
    error: selkie_engine::Error,
    engine: &Engine,
    id: &selkie_engine::container::ContainerId,
) -> CliError {
    let is_stopped = || {
        engine
            .container(id)
            .is_ok_and(|container| container.status != Status::Running)
    };
    if error.kind == ErrorKind::Conflict && is_stopped() {
        return CliError::from(error).with_code(NOT_RUNNING);
    }
    error.into()
}
