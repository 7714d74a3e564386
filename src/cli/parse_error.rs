//! What the parser says, in Podman's words and with its exit code.

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::error::{CliError, FAILURE};

use super::flag::BOOL;

/// Flags Podman or Docker have and Selkie does not have yet, with what they are waiting for.
/// Looked at only after parsing has failed.
const NOT_OFFERED: &[(&str, &str)] = &[
    ("--blkio-weight", LIMITS),
    ("--cgroup-parent", LIMITS),
    ("--cgroupns", LIMITS),
    ("--cgroups", LIMITS),
    ("--cpu-period", LIMITS),
    ("--cpu-quota", LIMITS),
    ("--cpu-shares", LIMITS),
    ("--cpus", LIMITS),
    ("--cpuset-cpus", LIMITS),
    ("--cpuset-mems", LIMITS),
    ("--device", "devices"),
    ("--gpus", "devices"),
    ("--health-cmd", "health checks"),
    ("--health-interval", "health checks"),
    ("--log-driver", "log drivers"),
    ("--log-opt", "log drivers"),
    ("--memory", LIMITS),
    ("-m", LIMITS),
    ("--memory-swap", LIMITS),
    ("--pids-limit", LIMITS),
    ("--platform", "other architectures"),
    ("--pod", "pods"),
    ("--preserve-fds", "passing descriptors to containers"),
    ("--privileged", "privileged containers"),
    ("--restart", "restart policies"),
    ("--secret", "secrets"),
    ("--shm-size", LIMITS),
    ("--systemd", "systemd in containers"),
    ("--tz", "time zones"),
];

const LIMITS: &str = "resource limits";

/// Turns a failure of the parser into ours. Requests for help and version are printed and give
/// the exit code instead.
pub fn explain(error: clap::Error) -> Result<u8, CliError> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print_help(&error.render().to_string())?;
            Ok(0)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            print_help(&error.render().to_string())?;
            Err(CliError::new("missing command"))
        }
        _ => Err(wording(&error)),
    }
}

/// Help for a command that was called without what it needs.
pub fn print_command_help(command: &mut Command) -> Result<(), CliError> {
    print_help(&command.render_help().to_string())
}

/// Switches take `=true` and `=false` as Podman's do; help need not say so at every one.
fn print_help(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    let text = text.replace(&format!("[=<{BOOL}>]"), &" ".repeat(BOOL.len() + 5));
    let text: String = text
        .lines()
        .flat_map(|line| [line.trim_end(), "\n"])
        .collect();
    crate::error::output(std::io::stdout().write_all(text.as_bytes()))
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => Some(texts.join(", ")),
        _ => None,
    }
}

fn wording(error: &clap::Error) -> CliError {
    let invalid = context(error, ContextKind::InvalidArg);
    let value = context(error, ContextKind::InvalidValue);
    let see = context_usage(error);
    match (error.kind(), invalid) {
        (ErrorKind::UnknownArgument, Some(flag)) => {
            let name = flag.split('=').next().unwrap_or_default();
            if let Some((_, wait)) = NOT_OFFERED.iter().find(|(known, _)| *known == name) {
                return CliError::new(format!("{name} is not offered yet: it comes with {wait}"));
            }
            let mut failure = CliError::new(format!("unknown flag: {flag}"));
            let near = context(error, ContextKind::SuggestedArg);
            failure.hint = Some(match near {
                Some(near) => format!("did you mean {near}? {see}"),
                None => see,
            });
            failure
        }
        (ErrorKind::InvalidSubcommand, _) => {
            let name = context(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            let near = context(error, ContextKind::SuggestedSubcommand);
            CliError::new(format!("unrecognized command: {name}")).with_hint(match near {
                Some(near) => format!("did you mean {near}? See selkie --help"),
                None => "see selkie --help".to_owned(),
            })
        }
        (ErrorKind::InvalidValue | ErrorKind::ValueValidation, Some(flag)) => {
            let value = value.unwrap_or_default();
            let flag = flag.replace(&format!("[=<{BOOL}>]"), "");
            if value.is_empty() {
                return CliError::new(format!("flag needs a value: {flag}")).with_hint(see);
            }
            let valid = context(error, ContextKind::ValidValue);
            let failure = CliError::new(format!("invalid value {value:?} for {flag}"));
            match valid {
                Some(valid) => failure.with_hint(format!("choose from {valid}")),
                None => match std::error::Error::source(error) {
                    Some(source) => failure.with_hint(source.to_string()),
                    None => failure.with_hint(see),
                },
            }
        }
        _ => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            CliError::new(first).with_hint(see).with_code(FAILURE)
        }
    }
}

/// `see selkie run --help`, from the usage line the parser attached.
fn context_usage(error: &clap::Error) -> String {
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string(),
        _ => String::new(),
    };
    let words: Vec<&str> = usage
        .split_whitespace()
        .skip_while(|word| *word != "selkie")
        .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        .collect();
    if words.is_empty() {
        return "see selkie --help".to_owned();
    }
    format!("see {} --help", words.join(" "))
}
