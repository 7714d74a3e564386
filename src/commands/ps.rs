//! `selkie ps`.

use clap::{ArgMatches, Command};
use jiff::Timestamp;
use selkie_engine::Engine;
use selkie_engine::container::{Container, Status};

use super::filter::ContainerFilters;
use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags, choice, list, switch, value};
use crate::error::{CliError, Result};
use crate::format::container::{DiskSize, PsJson, PsRow};
use crate::format::list::{ListFormat, is_json, render_json};
use crate::go_template::{Method, Value, to_value};
use crate::session::Session;

/// The command.
pub const PS: CommandSpec = CommandSpec {
    name: "ps",
    aliases: &[],
    about: "List containers",
    examples: "Examples:
  selkie ps --all
  selkie ps --quiet --filter label=app=web
  selkie ps --format '{{.Names}} {{.Status}} {{.Slice}}'",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(switch("all", "Those that do not run too").short('a'))
        .arg(
            list(
                "filter",
                "KEY=VALUE",
                "Only those that match: id, name, status, exited, label, ancestor, volume, network, before, since, until",
            )
            .short('f'),
        )
        .arg(flag::format(
            "json, or a Go template (table TEMPLATE adds headings)",
        ))
        .arg(value("last", "N", "The N created last, whatever their state").short('n'))
        .arg(switch("latest", "The one created last, whatever its state").short('l'))
        .arg(switch("no-trunc", "Show whole IDs and commands").alias("notruncate"))
        .arg(switch("noheading", "Leave out the headings"))
        .arg(switch("quiet", "IDs only").short('q'))
        .arg(switch("size", "Measure what each takes on disk").short('s'))
        .arg(choice(
            "sort",
            "KEY",
            "Order by this (default: created)",
            &[
                "command",
                "created",
                "id",
                "image",
                "names",
                "runningfor",
                "status",
            ],
        ))
}

const DEFAULT: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";

const WITH_SIZE: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}";

const HEADINGS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("RunningFor", "CREATED"),
    ("CreatedHuman", "CREATED"),
    ("ImageID", "IMAGE ID"),
    ("PodName", "POD NAME"),
];

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let (quiet, full) = (matches.on("quiet"), matches.on("no-trunc"));
    let format = matches.text("format");
    if quiet && format.is_some() {
        return Err(CliError::new("--quiet and --format exclude each other"));
    }
    let measures = matches.on("size");
    if !measures && format.is_some_and(|format| format.contains(".Size")) {
        return Err(CliError::new("the field .Size needs --size"));
    }
    let last = match (matches.on("latest"), matches.number::<usize>("last")?) {
        (true, Some(_)) => return Err(CliError::new("--last and --latest exclude each other")),
        (true, None) => Some(1),
        (false, last) => last.filter(|last| *last > 0),
    };
    let engine = session.open_engine()?;
    let mut containers = engine.containers()?;
    let filters = ContainerFilters::parse(&matches.texts("filter"), &containers, &engine)?;
    let whatever_state = matches.on("all") || last.is_some() || filters.ask_for_state();
    containers.retain(|container| {
        let is_up = matches!(container.status, Status::Running | Status::Stopping);
        (whatever_state || is_up) && filters.accept(container)
    });
    if let Some(last) = last {
        let surplus = containers.len().saturating_sub(last);
        containers.drain(..surplus);
        containers.reverse();
    }
    sort(&mut containers, matches.text("sort"));
    let now = Timestamp::now();
    if quiet {
        let mut text = String::new();
        for container in &containers {
            text.push_str(if full {
                container.id.as_str()
            } else {
                container.id.short()
            });
            text.push('\n');
        }
        super::print(&text)?;
        return Ok(0);
    }
    let size = |container: &Container| -> Result<Option<DiskSize>> {
        measures.then(|| disk_size(&engine, container)).transpose()
    };
    if is_json(format) {
        let objects = containers
            .iter()
            .map(|container| Ok(PsJson::new(container, now, size(container)?)))
            .collect::<Result<Vec<PsJson>>>()?;
        super::print(&render_json(&objects)?)?;
        return Ok(0);
    }
    let rows = containers
        .iter()
        .map(|container| row(&PsRow::new(container, now, full, size(container)?)))
        .collect::<Result<Vec<Value>>>()?;
    let list = ListFormat {
        name: "ps",
        format,
        default: if measures { WITH_SIZE } else { DEFAULT },
        headings: HEADINGS,
        no_heading: matches.on("noheading"),
    };
    super::print(&list.render_values(rows, &row(&PsRow::default())?)?)?;
    Ok(0)
}

/// What a container takes on disk, measured.
pub fn disk_size(engine: &Engine, container: &Container) -> Result<DiskSize> {
    let image = engine.image(&container.image_id).ok();
    let own = engine.container_disk_usage(&container.id)?;
    Ok(DiskSize {
        rw_size: own,
        root_fs_size: own + image.map_or(0, |image| image.size),
    })
}

/// A row with Docker's `.Label "name"`.
fn row(row: &PsRow) -> Result<Value> {
    let value = to_value(row).map_err(|error| CliError::new(error.to_string()))?;
    let Value::Record(record) = &value else {
        return Ok(value);
    };
    let Some(Value::Map(labels)) = record.field("Labels") else {
        return Ok(value);
    };
    let mut record = (**record).clone();
    record.methods.push(Method {
        name: "Label",
        entries: labels.clone(),
    });
    Ok(Value::Record(record.into()))
}

fn sort(containers: &mut [Container], key: Option<&str>) {
    match key {
        // The engine gives the oldest first.
        None | Some("created") => {}
        Some("command") => containers.sort_by(|a, b| a.config.argv.cmp(&b.config.argv)),
        Some("id") => containers.sort_by(|a, b| a.id.cmp(&b.id)),
        Some("image") => containers.sort_by(|a, b| a.config.image_name.cmp(&b.config.image_name)),
        Some("names") => containers.sort_by(|a, b| a.name.cmp(&b.name)),
        Some("runningfor") => containers.sort_by(|a, b| a.started.cmp(&b.started)),
        Some(_) => containers.sort_by_key(|container| container.status as u8),
    }
}
