//! `selkie unshare`.

use std::os::unix::process::CommandExt;
use std::process;

use clap::{ArgMatches, Command};

use crate::cli::CommandSpec;
use crate::cli::flag::{COMMAND, Flags, object_and_command};
use crate::environment;
use crate::error::{CliError, NOT_EXECUTABLE, NOT_FOUND, Result};
use crate::session::Session;

/// The command.
pub const UNSHARE: CommandSpec = CommandSpec {
    name: "unshare",
    aliases: &[],
    about: "Run a command (default: your shell) as root of your own user namespace",
    examples: "Examples:
  selkie unshare cat /proc/self/uid_map
  selkie unshare rm -r directory-of-a-container
  selkie unshare",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .override_usage("selkie unshare [COMMAND [ARG]...]")
        .arg(object_and_command())
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let command = matches.texts(COMMAND);
    // What the engine holds open is close-on-exec; being in the namespace is what stays.
    let _engine = session.open_engine()?;
    let mut process = match command.split_first() {
        Some((program, arguments)) => {
            let mut process = process::Command::new(program);
            process.args(arguments);
            process
        }
        None => process::Command::new(environment::shell()),
    };
    let error = process.exec();
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    let program = process.get_program().to_string_lossy();
    Err(CliError::new(format!("run {program}: {error}")).with_code(code))
}
