//! `selkie volume create|exists|inspect|ls|prune|rm`.

use std::collections::BTreeMap;

use clap::ArgMatches;
use selkie_engine::Engine;
use selkie_engine::volume::Volume;
use serde::Serialize;

use super::filter::{self, LabelFilter};
use super::{exists, inspect, prompt};
use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags, list, positional, positionals, switch, value};
use crate::create_options::variables;
use crate::error::{CliError, Result, for_each};
use crate::format::list::{ListFormat, is_json, render_json};
use crate::format::time;
use crate::go_template::Value;
use crate::session::Session;

/// `volume create`.
pub const CREATE: CommandSpec = CommandSpec {
    name: "create",
    aliases: &[],
    about: "Make a volume",
    examples: "Examples:
  selkie volume create data
  selkie volume create --label app=web",
    flags: |command| {
        command
            .arg(positional(
                "name",
                "NAME",
                "Its name (default: a random one)",
            ))
            .arg(value("driver", "DRIVER", "Only this one is offered: local").short('d'))
            .arg(switch("ignore", "A volume of that name is no error"))
            .arg(list("label", "NAME[=VALUE]", "Add a label").short('l'))
    },
    run: create,
};

/// `volume exists`.
pub const EXISTS: CommandSpec = CommandSpec {
    name: "exists",
    aliases: &[],
    about: "Exit with 0 if a volume exists, with 1 if not",
    examples: "Examples:
  selkie volume exists data || selkie volume create data",
    flags: exists::flags,
    run: |session, matches| {
        let name = exists::name(matches)?;
        exists::answer(session.open_engine()?.volume(name))
    },
};

/// `volume inspect`.
pub const INSPECT: CommandSpec = CommandSpec {
    name: "inspect",
    aliases: &[],
    about: "Show everything about volumes",
    examples: "Examples:
  selkie volume inspect data
  selkie volume inspect --format '{{.Mountpoint}}' data",
    flags: |command| inspect::common_flags(command).arg(switch("all", "All volumes").short('a')),
    run: inspect,
};

/// `volume ls`.
pub const LS: CommandSpec = CommandSpec {
    name: "ls",
    aliases: &["list"],
    about: "List volumes",
    examples: "Examples:
  selkie volume ls
  selkie volume ls --quiet --filter dangling=true",
    flags: |command| {
        command
            .arg(filter_flag().short('f'))
            .arg(flag::format(
                "json, or a Go template (table TEMPLATE adds headings)",
            ))
            .arg(switch("noheading", "Leave out the headings").short('n'))
            .arg(switch("quiet", "Names only").short('q'))
    },
    run: ls,
};

/// `volume prune`.
pub const PRUNE: CommandSpec = CommandSpec {
    name: "prune",
    aliases: &[],
    about: "Remove volumes that no container has",
    examples: "Examples:
  selkie volume prune --force
  selkie volume prune --filter label=temporary",
    flags: |command| {
        command
            .arg(filter_flag())
            .arg(switch("force", "Do not ask").short('f'))
    },
    run: prune,
};

/// `volume rm`.
pub const RM: CommandSpec = CommandSpec {
    name: "rm",
    aliases: &["remove"],
    about: "Remove volumes",
    examples: "Examples:
  selkie volume rm data
  selkie volume rm --all --force",
    flags: |command| {
        command
            .arg(positionals("names", "VOLUME", "Names"))
            .arg(switch("all", "All volumes").short('a'))
            .arg(
                switch(
                    "force",
                    "Remove the containers that have them too; names that do not exist are no error",
                )
                .short('f'),
            )
    },
    run: rm,
};

fn filter_flag() -> clap::Arg {
    list(
        "filter",
        "KEY=VALUE",
        "Only those that match: name, label, dangling, driver, scope, since, until",
    )
}

/// A volume in Podman's shape, for templates and JSON alike.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "define.InspectVolumeData", rename_all = "PascalCase")]
struct VolumeData {
    name: String,
    driver: &'static str,
    mountpoint: String,
    created_at: String,
    labels: BTreeMap<String, String>,
    scope: &'static str,
    options: BTreeMap<String, String>,
    mount_count: usize,
    needs_copy_up: bool,
    anonymous: bool,
}

impl VolumeData {
    fn new(volume: &Volume) -> Self {
        Self {
            name: volume.name.clone(),
            driver: "local",
            mountpoint: volume.mountpoint.display().to_string(),
            created_at: time::json_style(&volume.created),
            labels: volume.labels.clone(),
            scope: "local",
            options: BTreeMap::new(),
            mount_count: volume.users.len(),
            needs_copy_up: volume.owned_by.is_none(),
            anonymous: volume.anonymous,
        }
    }
}

fn create(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let driver = matches.text("driver").unwrap_or("local");
    if driver != "local" {
        return Err(CliError::new(format!("--driver {driver} is not offered"))
            .with_hint("volumes are directories: local"));
    }
    let labels = variables::labels(&[], &matches.texts("label"))?;
    let name = matches.text("name");
    let mut engine = session.open_engine()?;
    let made = match (engine.create_volume(name, &labels), name) {
        (Err(error), Some(name))
            if matches.on("ignore") && error.kind == selkie_engine::ErrorKind::Conflict =>
        {
            name.to_owned()
        }
        (made, _) => made?,
    };
    super::print_line(&made)?;
    Ok(0)
}

fn inspect(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let mut names = matches.texts("names");
    let all = matches.on("all");
    if names.is_empty() != all {
        return Err(CliError::new("you must provide volume names, or --all"));
    }
    let engine = session.open_engine()?;
    if all {
        names = engine
            .volumes()?
            .into_iter()
            .map(|volume| volume.name)
            .collect();
    }
    inspect::show(&names, matches, |name| inspected(&engine, name))
}

/// What `inspect` shows of a volume.
pub fn inspected(engine: &Engine, name: &str) -> Result<Value> {
    inspect::value(&VolumeData::new(&engine.volume(name)?))
}

fn ls(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let filters = VolumeFilters::parse(&matches.texts("filter"))?;
    let (quiet, format) = (matches.on("quiet"), matches.text("format"));
    if quiet && format.is_some() {
        return Err(CliError::new("--quiet and --format exclude each other"));
    }
    let engine = session.open_engine()?;
    let rows: Vec<VolumeData> = engine
        .volumes()?
        .iter()
        .filter(|volume| filters.accept(volume))
        .map(VolumeData::new)
        .collect();
    if quiet {
        let names: Vec<String> = rows.into_iter().map(|row| row.name + "\n").collect();
        super::print(&names.concat())?;
        return Ok(0);
    }
    if is_json(format) {
        super::print(&render_json(&rows)?)?;
        return Ok(0);
    }
    let list = ListFormat {
        name: "list volume",
        format,
        default: "{{.Driver}}\t{{.Name}}",
        headings: &[("Name", "VOLUME NAME"), ("Mountpoint", "MOUNT POINT")],
        no_heading: matches.on("noheading"),
    };
    super::print(&list.render(&rows, &VolumeData::default())?)?;
    Ok(0)
}

fn prune(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let filters = VolumeFilters::parse(&matches.texts("filter"))?;
    if !matches.on("force")
        && !prompt::confirm(
            "WARNING! This will remove all volumes not used by at least one container.",
        )?
    {
        return Ok(0);
    }
    let mut engine = session.open_engine()?;
    let unused: Vec<String> = engine
        .volumes()?
        .into_iter()
        .filter(|volume| volume.users.is_empty() && filters.accept(volume))
        .map(|volume| volume.name)
        .collect();
    for_each(unused, |name| match engine.remove_volume(name, false) {
        Ok(()) => super::print_line(name),
        // A container has taken it, or somebody has removed it, since we looked.
        Err(error)
            if matches!(
                error.kind,
                selkie_engine::ErrorKind::Conflict | selkie_engine::ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    })
}

fn rm(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let mut names = matches.texts("names");
    let (all, force) = (matches.on("all"), matches.on("force"));
    if names.is_empty() != all {
        return Err(CliError::new("you must provide volume names, or --all"));
    }
    let mut engine = session.open_engine()?;
    if all {
        names = engine
            .volumes()?
            .into_iter()
            .map(|volume| volume.name)
            .collect();
    }
    for_each(names, |name| match engine.remove_volume(name, force) {
        Ok(()) => super::print_line(name),
        Err(error) if force && error.kind == selkie_engine::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CliError::from(error).with_removal_code()),
    })
}

/// `--filter` of volumes.
#[derive(Debug, Default)]
struct VolumeFilters {
    names: Vec<regex_lite::Regex>,
    labels: Vec<LabelFilter>,
    dangling: Option<bool>,
    never: bool,
    since: Option<jiff::Timestamp>,
    until: Option<jiff::Timestamp>,
}

impl VolumeFilters {
    fn parse(texts: &[String]) -> Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            let (key, value, wanted) = filter::split(text)?;
            match key {
                "name" if wanted => {
                    filters
                        .names
                        .push(regex_lite::Regex::new(value).map_err(|error| {
                            CliError::new(format!(
                                "--filter {text}: not a regular expression: {error}"
                            ))
                        })?);
                }
                "label" => filters.labels.push(LabelFilter::parse(value, wanted)),
                "dangling" => {
                    let dangling: bool = value.parse().map_err(|_| {
                        CliError::new(format!("--filter {text}: write true or false"))
                    })?;
                    filters.dangling = Some(dangling == wanted);
                }
                // There is one driver and one scope, both called local.
                "driver" | "scope" => filters.never |= (value == "local") != wanted,
                "since" | "after" if wanted => filters.since = Some(filter::point_in_time(value)?),
                "until" if wanted => filters.until = Some(filter::point_in_time(value)?),
                _ => {
                    return Err(
                        CliError::new(format!("--filter {text}: invalid volume filter")).with_hint(
                            "choose from name, label, dangling, driver, scope, since, until",
                        ),
                    );
                }
            }
        }
        Ok(filters)
    }

    fn accept(&self, volume: &Volume) -> bool {
        let created = time::parse(&volume.created);
        !self.never
            && (self.names.is_empty() || self.names.iter().any(|name| name.is_match(&volume.name)))
            && self
                .labels
                .iter()
                .all(|label| label.accepts(&volume.labels))
            && self
                .dangling
                .is_none_or(|dangling| dangling == volume.users.is_empty())
            && self.since.is_none_or(|since| created > Some(since))
            && self.until.is_none_or(|until| created <= Some(until))
    }
}
