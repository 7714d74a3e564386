//! `selkie run`.

use clap::{ArgMatches, Command};
use selkie_engine::container::StartMode;

use super::create::{IdFile, remove_namesake, warn_of_single_id};
use super::streams;
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, list, switch};
use crate::create_options;
use crate::error::{CliError, Result};
use crate::session::Session;
use crate::terminal::{self, caller::Wishes};

/// The command.
pub const RUN: CommandSpec = CommandSpec {
    name: "run",
    aliases: &[],
    about: "Run a command in a new container",
    examples: "Examples:
  selkie run --rm busybox echo hello
  selkie run -it --rm debian bash
  selkie run -d --name web -v data:/srv/data web-server",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    create_options::flags(command)
        .override_usage("selkie run [OPTIONS] IMAGE [COMMAND [ARG]...]")
        .arg(switch("detach", "Leave it running and print its ID").short('d'))
        .arg(
            list(
                "attach",
                "STREAM",
                "Connect only these: stdin, stdout, stderr",
            )
            .short('a'),
        )
        .args(streams::flags())
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let userns = create_options::userns(matches)?;
    let mut engine = session.open_engine()?;
    // Before standard input or a file is read.
    engine.protect_own_program(&userns, std::env::args_os())?;
    let new = create_options::parse(matches)?;
    let is_detached = matches.on("detach");
    let attach = matches.texts("attach");
    if is_detached && !attach.is_empty() {
        return Err(CliError::new("--detach and --attach exclude each other"));
    }
    let (has_terminal, interactive) = (new.options.terminal, new.options.interactive);
    let mut wishes = Wishes {
        stdin: interactive,
        stdout: true,
        stderr: true,
        terminal: has_terminal,
        detach_keys: streams::detach_keys(matches)?,
        proxy_signals: matches.on("sig-proxy"),
    };
    keep_only(&attach, &mut wishes)?;
    let id_file = new.id_file.as_deref().map(IdFile::reserve).transpose()?;
    if new.replace {
        remove_namesake(&mut engine, new.options.name.as_deref())?;
    }
    let mode = if is_detached {
        StartMode::Detached
    } else {
        StartMode::Attached {
            size: has_terminal.then(terminal::size).flatten(),
        }
    };
    let is_quiet = matches.on("quiet");
    if !is_quiet {
        warn_of_single_id(&engine);
    }
    let wants_keys = has_terminal && wishes.stdin && !is_detached && !is_quiet;
    if wants_keys && !rustix::termios::isatty(std::io::stdin()) {
        tracing::warn!(
            "The input device is not a TTY. The --tty and --interactive flags might not work properly"
        );
    }
    let started = engine.run(new.options, mode)?;
    if let Some(id_file) = id_file {
        id_file.write(started.id.as_str())?;
    }
    if is_detached {
        super::print_line(started.id.as_str())?;
        return Ok(0);
    }
    match started.attach {
        Some(connection) => streams::relay(&engine, &started.id, &connection, wishes, true),
        None => Ok(streams::exit_code(engine.wait(&started.id)?)),
    }
}

/// `--attach`: only the streams named, standard input being one of them also without
/// `--interactive`'s other half.
fn keep_only(names: &[String], wishes: &mut Wishes) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut kept = (false, false, false);
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "stdin" => kept.0 = true,
            "stdout" => kept.1 = true,
            "stderr" => kept.2 = true,
            _ => {
                return Err(CliError::new(format!("--attach {name}: no such stream"))
                    .with_hint("choose from stdin, stdout, stderr"));
            }
        }
    }
    if kept.0 && !wishes.stdin {
        return Err(CliError::new("--attach stdin needs --interactive"));
    }
    (wishes.stdin, wishes.stdout, wishes.stderr) = kept;
    Ok(())
}
