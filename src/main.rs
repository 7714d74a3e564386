//! `selkie`: parse, call the engine, print. The only place that reads the environment and the
//! terminal, and that turns errors into text, hint and exit code.
//!
//! Nothing here starts a thread: the engine joins the login's user namespace, which only a process
//! with one thread may do.

mod cli;
mod commands;
mod create_options;
mod environment;
mod error;
mod format;
mod go_template;
mod log;
mod session;
mod terminal;

use std::mem::ManuallyDrop;
use std::process::ExitCode;

use error::{CliError, Result};

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.print();
            ExitCode::from(error.code)
        }
    }
}

fn run() -> Result<u8> {
    let words: Vec<_> = std::env::args_os().collect();
    // Never freed: the process ends with it.
    if let Some(matches) = cli::quick_matches(&words).map(ManuallyDrop::new)
        && let Some((command, arguments)) = cli::find(&matches)
    {
        log::start(&matches);
        return (command.run)(&session::Session::new(&matches), arguments);
    }
    let mut tree = cli::tree();
    let matches = match tree.try_get_matches_from_mut(words) {
        Ok(matches) => matches,
        Err(error) => return cli::parse_error::explain(error),
    };
    log::start(&matches);
    match cli::find(&matches) {
        Some((command, arguments)) => (command.run)(&session::Session::new(&matches), arguments),
        None => {
            let mut group = matches
                .subcommand_name()
                .and_then(|name| tree.find_subcommand(name).cloned())
                .unwrap_or(tree);
            cli::parse_error::print_command_help(&mut group)?;
            Err(CliError::new("missing command"))
        }
    }
}
