//! Short ways to write down flags, so that a command's flags read like a table.

use clap::{Arg, ArgAction, ArgMatches, builder::PossibleValue};

use crate::error::{CliError, Result};

/// Where `--help` stands among a command's flags: last.
const HELP_ORDER: usize = 998;

/// Shown nowhere: help removes it, so that `--rm[=<BOOL>]` reads `--rm`.
pub const BOOL: &str = "BOOL";

/// `--name`, off by default; `--name=false` is understood as in Podman.
pub fn switch(name: &'static str, help: &'static str) -> Arg {
    switch_with_default(name, help, "false")
}

/// A switch that is on unless `--name=false` says otherwise.
pub fn switch_on(name: &'static str, help: &'static str) -> Arg {
    switch_with_default(name, help, "true")
}

fn switch_with_default(name: &'static str, help: &'static str, default: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .value_name(BOOL)
        .value_parser(parse_bool)
        .default_value(default)
        .default_missing_value("true")
        .hide_default_value(true)
}

/// The spellings Go's `strconv.ParseBool` knows.
fn parse_bool(text: &str) -> std::result::Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

/// `--name VALUE`, given once (the last one counts).
pub fn value(name: &'static str, placeholder: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(placeholder)
        .help(help)
        .allow_hyphen_values(true)
}

/// `--name VALUE`, given as often as wanted.
pub fn list(name: &'static str, placeholder: &'static str, help: &'static str) -> Arg {
    value(name, placeholder, help).action(ArgAction::Append)
}

/// A positional argument that may be missing; commands say themselves what they need.
pub fn positional(name: &'static str, placeholder: &'static str, help: &'static str) -> Arg {
    Arg::new(name).value_name(placeholder).help(help)
}

/// Any number of positional arguments.
pub fn positionals(name: &'static str, placeholder: &'static str, help: &'static str) -> Arg {
    positional(name, placeholder, help).num_args(0..)
}

/// An object followed by a command line that belongs to the container: nothing after the object is
/// taken for a flag of ours. The command's usage line tells what they are.
pub fn object_and_command() -> Arg {
    Arg::new(COMMAND)
        .num_args(0..)
        .trailing_var_arg(true)
        .hide(true)
}

/// ID of [`object_and_command`].
pub const COMMAND: &str = "command";

/// `--format`.
pub fn format(help: &'static str) -> Arg {
    value("format", "FORMAT", help)
}

/// `--help` without `-h`, for commands where that is another flag.
pub fn help_flag() -> Arg {
    Arg::new("help")
        .long("help")
        .help("Print help")
        .display_order(HELP_ORDER)
        .action(ArgAction::Help)
}

/// `--name VALUE` with only a few values.
pub fn choice(
    name: &'static str,
    placeholder: &'static str,
    help: &'static str,
    values: &'static [&'static str],
) -> Arg {
    value(name, placeholder, help).value_parser(clap::builder::PossibleValuesParser::new(
        values.iter().map(|value| PossibleValue::new(*value)),
    ))
}

/// Reading matches by flag name.
pub trait Flags {
    /// The last value of a flag.
    fn text(&self, name: &str) -> Option<&str>;
    /// All values of a flag or positional.
    fn texts(&self, name: &str) -> Vec<String>;
    /// A switch.
    fn on(&self, name: &str) -> bool;
    /// A value parsed, with the flag named in the error.
    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>>;
}

impl Flags for ArgMatches {
    fn text(&self, name: &str) -> Option<&str> {
        self.get_one::<String>(name).map(String::as_str)
    }
    fn texts(&self, name: &str) -> Vec<String> {
        self.get_many::<String>(name)
            .map(|values| values.cloned().collect())
            .unwrap_or_default()
    }
    fn on(&self, name: &str) -> bool {
        self.get_one::<bool>(name).copied().unwrap_or(false)
    }
    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        self.text(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| CliError::new(format!("--{name} {text}: not a number in range")))
            })
            .transpose()
    }
}
