//! `selkie system check|prune`, `selkie info`.

use clap::ArgMatches;
use selkie_engine::Engine;
use selkie_engine::container::Status;
use selkie_engine::system::{Leftover, LeftoverKind};
use serde::Serialize;

use super::{prompt, version};
use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags, switch};
use crate::error::{Result, for_each};
use crate::format::json;
use crate::format::list::{ListFormat, is_json, render_json};
use crate::session::Session;

/// `system check`.
pub const CHECK: CommandSpec = CommandSpec {
    name: "check",
    aliases: &[],
    about: "List what crashes left behind; exit with 1 if there is anything",
    examples: "Examples:
  selkie system check
  selkie system check --format json",
    flags: |command| {
        command
            .arg(flag::format(
                "json, or a Go template (table TEMPLATE adds headings)",
            ))
            .arg(switch("quiet", "Only the exit code").short('q'))
    },
    run: check,
};

/// `system prune`.
pub const PRUNE: CommandSpec = CommandSpec {
    name: "prune",
    aliases: &[],
    about: "Remove stopped containers, unnamed images and what crashes left behind",
    examples: "Examples:
  selkie system prune --force
  selkie system prune --all --volumes",
    flags: |command| {
        command
            .arg(switch("all", "Remove all images no container uses").short('a'))
            .arg(switch("volumes", "Remove volumes no container uses, too"))
            .arg(switch("force", "Do not ask").short('f'))
    },
    run: prune,
};

/// `info`.
pub const INFO: CommandSpec = CommandSpec {
    name: "info",
    aliases: &[],
    about: "Show what this host offers and what Selkie makes of it",
    examples: "Examples:
  selkie info
  selkie info --format '{{.Host.Kernel}}'
  selkie info --format json",
    flags: |command| command.arg(flag::format("json, or a Go template").short('f')),
    run: info,
};

/// A leftover as a row.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    kind: LeftoverKind,
    what: String,
    reason: String,
}

impl From<Leftover> for Row {
    fn from(leftover: Leftover) -> Self {
        Self {
            kind: leftover.kind,
            what: leftover.what,
            reason: leftover.reason,
        }
    }
}

fn check(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let leftovers = session.open_engine()?.system_check()?;
    let rows: Vec<Row> = leftovers.into_iter().map(Row::from).collect();
    let code = u8::from(!rows.is_empty());
    let format = matches.text("format");
    if matches.on("quiet") {
        return Ok(code);
    }
    if is_json(format) {
        super::print(&render_json(&rows)?)?;
        return Ok(code);
    }
    if rows.is_empty() && format.is_none() {
        return Ok(code);
    }
    let example = Row {
        kind: LeftoverKind::Process,
        what: String::new(),
        reason: String::new(),
    };
    let list = ListFormat {
        name: "check",
        format,
        default: "{{.Kind}}\t{{.What}}\t{{.Reason}}",
        headings: &[],
        no_heading: false,
    };
    super::print(&list.render(&rows, &example)?)?;
    if format.is_none() {
        eprintln!("Remove them with: selkie system prune");
    }
    Ok(code)
}

fn prune(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let (all, volumes) = (matches.on("all"), matches.on("volumes"));
    let mut warning = "WARNING! This command removes:\n  - all stopped containers\n".to_owned();
    warning += if all {
        "  - all images without at least one container associated with them\n"
    } else {
        "  - all dangling images\n"
    };
    if volumes {
        warning += "  - all volumes not used by at least one container\n";
    }
    warning += "  - everything that crashes left behind";
    if !matches.on("force") && !prompt::confirm(&warning)? {
        return Ok(0);
    }
    let mut engine = session.open_engine()?;
    let mut code = remove_stopped(&mut engine)?;
    let (removed, _) = engine.prune_images(all)?;
    for id in removed
        .iter()
        .filter_map(|removed| removed.deleted.as_ref())
    {
        super::print_line(id)?;
    }
    if volumes {
        let unused = engine.volumes()?;
        let unused = unused.into_iter().filter(|volume| volume.users.is_empty());
        code = code.max(for_each(unused.map(|volume| volume.name), |name| {
            engine.remove_volume(name, false)?;
            super::print_line(name)
        })?);
    }
    for leftover in engine.system_prune()? {
        super::print_line(&leftover.what)?;
    }
    Ok(code)
}

fn remove_stopped(engine: &mut Engine) -> Result<u8> {
    let stopped: Vec<_> = engine
        .containers()?
        .into_iter()
        .filter(|container| matches!(container.status, Status::Created | Status::Exited))
        .map(|container| container.id)
        .collect();
    let mut code = 0;
    // Youngest first: one that shares a network is younger than the container whose network it is.
    for id in stopped.into_iter().rev() {
        match engine.remove(&id, false, false) {
            Ok(()) => super::print_line(id.as_str())?,
            // Started or removed by somebody since we looked.
            Err(error)
                if matches!(
                    error.kind,
                    selkie_engine::ErrorKind::Conflict | selkie_engine::ErrorKind::NotFound
                ) => {}
            Err(error) => {
                let error = crate::error::CliError::from(error);
                error.print();
                code = error.code;
            }
        }
    }
    Ok(code)
}

fn info(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let info = session.open_engine()?.info()?;
    match matches.text("format") {
        Some(format) if !is_json(Some(format)) => {
            super::print_line(&version::execute("info", format, &info)?)?;
        }
        _ => super::print(&json::pretty(&info)?)?,
    }
    Ok(0)
}
