//! `selkie version`.

use clap::{ArgMatches, Command};
use serde::Serialize;

use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags};
use crate::error::{CliError, Result};
use crate::format::json;
use crate::format::list::{is_json, unescape};
use crate::go_template::{Template, to_value};
use crate::session::Session;

/// The command.
pub const VERSION: CommandSpec = CommandSpec {
    name: "version",
    aliases: &[],
    about: "Show the version",
    examples: "Examples:
  selkie version
  selkie version --format '{{.Client.Version}}'",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command.arg(flag::format("json, or a Go template").short('f'))
}

/// In Podman's shape.
#[derive(Debug, Serialize)]
#[serde(rename = "entities.SystemVersionReport", rename_all = "PascalCase")]
struct Report {
    client: Version,
}

/// One program's version.
#[derive(Debug, Serialize)]
#[serde(rename = "define.Version", rename_all = "PascalCase")]
pub struct Version {
    #[serde(rename = "APIVersion")]
    api_version: &'static str,
    version: &'static str,
    go_version: &'static str,
    git_commit: &'static str,
    built_time: &'static str,
    built: i64,
    os_arch: String,
    os: &'static str,
}

impl Version {
    /// Ours.
    pub fn own() -> Self {
        Self {
            api_version: env!("CARGO_PKG_VERSION"),
            version: env!("CARGO_PKG_VERSION"),
            go_version: "",
            git_commit: "",
            built_time: "",
            built: 0,
            os_arch: format!("linux/{}", architecture()),
            os: "linux",
        }
    }
}

/// The machine as Go and OCI call it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn run(_session: &Session, matches: &ArgMatches) -> Result<u8> {
    let report = Report {
        client: Version::own(),
    };
    let format = matches.text("format");
    if is_json(format) {
        super::print(&json::pretty(&report)?)?;
        return Ok(0);
    }
    if let Some(format) = format {
        super::print_line(&execute("version", format, &report)?)?;
        return Ok(0);
    }
    let version = &report.client;
    super::print(&format!(
        "Client:       Selkie\nVersion:      {}\nAPI Version:  {}\nOS/Arch:      {}\n",
        version.version, version.api_version, version.os_arch
    ))?;
    Ok(0)
}

/// A template over one object.
pub fn execute<T: Serialize>(name: &str, format: &str, data: &T) -> Result<String> {
    let run = || {
        let data = to_value(data)?;
        Template::parse(name, &unescape(format))?.execute(&data)
    };
    run().map_err(|error| CliError::new(error.to_string()))
}
