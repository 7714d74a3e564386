//! What a `pasta` can, found by trying.
//!
//! Options are read in order and the first unknown one ends the program, so one run tells of one
//! missing option: it is taken out and the rest is tried again until `--help`, the last, is reached.
//! That touches nothing and takes about 2 ms each. Old versions send their help to the system log as
//! well; the answer is worth remembering for as long as the [`Program`] is the same.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use selkie_sys::errno::Attempt as _;
use serde::{Deserialize, Serialize};

use crate::program::Program;

/// What is tried, with a value where one belongs. Each thing here is one that somebody's decision
/// depends on.
const TRIED: &[(&str, Option<&str>)] = &[
    ("--dns-forward", Some("169.254.1.1")),
    ("--dns-host", Some("192.0.2.1")),
    ("--map-guest-addr", Some("169.254.1.2")),
    ("--map-host-loopback", Some("169.254.1.3")),
    ("--host-lo-to-ns-lo", None),
    ("--no-splice", None),
];

/// Without these there is no use for it.
const NEEDED: &[&str] = &[
    "--config-net",
    "--netns-only",
    "--no-map-gw",
    "--foreground",
];

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Long options that were tried and are unknown to it.
    lacks: BTreeSet<String>,
    /// It takes an IPv4 and an IPv6 address.
    two_addresses: bool,
}

/// What was found out about a `pasta` is that it cannot be used, or nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProbeError {
    /// Too old.
    #[error("{path} is too old: it does not know {option}; install a newer passt")]
    TooOld {
        /// Where it is.
        path: String,
        /// What it does not know.
        option: String,
    },
    /// It did something else than to print its help.
    #[error("cannot find out what {path} can: {said}")]
    Odd {
        /// Where it is.
        path: String,
        /// What it said.
        said: String,
    },
    /// It cannot be run.
    #[error(transparent)]
    System(#[from] selkie_sys::SysError),
}

impl Features {
    /// Tries the program.
    ///
    /// # Errors
    /// It lacks what cannot be done without, or it is something else.
    pub fn probe(program: &Program) -> Result<Self, ProbeError> {
        let path = program.path.display().to_string();
        let mut lacks = BTreeSet::new();
        loop {
            let mut arguments = vec!["--quiet"];
            arguments.extend(NEEDED);
            for (option, value) in TRIED.iter().filter(|(option, _)| !lacks.contains(*option)) {
                arguments.push(option);
                arguments.extend(value);
            }
            match run(program, &arguments)? {
                Answer::Help => break,
                Answer::Unknown(option) if NEEDED.contains(&option.as_str()) => {
                    return Err(ProbeError::TooOld { path, option });
                }
                // Each run takes one away, so this ends.
                Answer::Unknown(option) if TRIED.iter().any(|(tried, _)| *tried == option) => {
                    if !lacks.insert(option.clone()) {
                        return Err(ProbeError::Odd { path, said: option });
                    }
                }
                Answer::Unknown(said) | Answer::Other(said) => {
                    return Err(ProbeError::Odd { path, said });
                }
            }
        }
        let twice = ["-a", "169.254.2.1", "-a", "fd00::1"];
        let two_addresses = matches!(run(program, &twice)?, Answer::Help);
        Ok(Self {
            lacks,
            two_addresses,
        })
    }

    /// Whether it knows one of the tried long options; `true` for one that is not tried.
    pub fn knows(&self, option: &str) -> bool {
        !self.lacks.contains(option)
    }

    /// It can show the host under an address of our choice while the namespace has the host's own.
    pub fn can_map_guest_address(&self) -> bool {
        self.knows("--map-guest-addr")
    }

    /// It takes an IPv4 and an IPv6 address.
    pub fn takes_two_addresses(&self) -> bool {
        self.two_addresses
    }

    /// It serves a family that the host has no route for (2024-08 and later).
    pub fn needs_no_link_local(&self) -> bool {
        self.knows("--map-host-loopback")
    }

    /// Those tried options that it does not know.
    pub fn lacking(&self) -> impl Iterator<Item = &str> {
        self.lacks.iter().map(String::as_str)
    }

    /// Of a version that knows everything but what is named.
    #[cfg(test)]
    pub(super) fn without(lacks: &[&str]) -> Self {
        Self {
            lacks: lacks.iter().map(|option| (*option).to_owned()).collect(),
            two_addresses: true,
        }
    }
}

enum Answer {
    Help,
    Unknown(String),
    Other(String),
}

fn run(program: &Program, arguments: &[&str]) -> Result<Answer, ProbeError> {
    let output = Command::new(&program.path)
        .args(arguments)
        .arg("--help")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .attempt(|| format!("run {}", program.path.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Old versions print their help as an error.
    let is_help = output.status.success() || said.lines().any(|line| line.starts_with("Usage: "));
    Ok(match unknown_option(&said) {
        Some(option) => Answer::Unknown(option),
        None if is_help => Answer::Help,
        None => Answer::Other(said.lines().next().unwrap_or_default().to_owned()),
    })
}

/// The option in `pasta: unrecognized option '--name'`, as all of getopt's families word it.
pub(super) fn unknown_option(said: &str) -> Option<String> {
    let line = said.lines().find(|line| {
        line.contains("unrecognized option")
            || line.contains("unknown option")
            || line.contains("invalid option")
    })?;
    let option = line.rsplit([' ', ':']).next()?;
    let option = option.trim_matches(['\'', '`', '"', '‘', '’']);
    (!option.is_empty()).then(|| option.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_several_c_libraries() {
        for said in [
            "/usr/bin/pasta: unrecognized option '--no-splice'\nUsage: …",
            "pasta: unrecognized option: --no-splice",
            "pasta: unrecognized option '--no-splice'",
        ] {
            assert_eq!(unknown_option(said).as_deref(), Some("--no-splice"));
        }
        assert_eq!(
            unknown_option("pasta: invalid option -- 'H'").as_deref(),
            Some("H")
        );
        assert_eq!(unknown_option("Invalid MTU: x"), None);
    }
}
