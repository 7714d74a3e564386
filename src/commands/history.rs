//! `selkie history`.

use clap::{ArgMatches, Command};
use jiff::Timestamp;
use selkie_engine::Engine;
use selkie_engine::images::Image;

use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags, positional, switch, switch_on};
use crate::error::{CliError, Result};
use crate::format::image::{HistoryJson, HistoryRow, Step, created};
use crate::format::list::{ListFormat, is_json, render_json};
use crate::session::Session;

/// The command.
pub const HISTORY: CommandSpec = CommandSpec {
    name: "history",
    aliases: &[],
    about: "Show how an image was made",
    examples: "Examples:
  selkie history debian
  selkie history --no-trunc --format '{{.CreatedBy}}' debian",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(positional("image", "IMAGE", "Name or ID"))
        .arg(flag::format(
            "json, or a Go template (table TEMPLATE adds headings)",
        ))
        .arg(switch_on("human", "Sizes and times in words").short('H'))
        .arg(switch("no-trunc", "Show whole IDs and commands").alias("notruncate"))
        .arg(switch("quiet", "IDs only").short('q'))
}

const DEFAULT: &str = "{{.ID}}\t{{.Created}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let name = matches
        .text("image")
        .ok_or_else(|| CliError::new("history needs the name or id of an image"))?;
    let engine = session.open_engine()?;
    let steps = steps(&engine, &engine.image(name)?)?;
    let format = matches.text("format");
    if is_json(format) {
        let objects: Vec<HistoryJson> = steps.iter().map(HistoryJson::new).collect();
        super::print(&render_json(&objects)?)?;
        return Ok(0);
    }
    let (now, full) = (Timestamp::now(), matches.on("no-trunc"));
    let human = matches.on("human");
    let rows: Vec<HistoryRow> = steps
        .iter()
        .map(|step| HistoryRow::new(step, now, full, human))
        .collect();
    let list = ListFormat {
        name: "history",
        format: if matches.on("quiet") {
            Some("{{.ID}}")
        } else {
            format
        },
        default: DEFAULT,
        headings: &[],
        no_heading: false,
    };
    super::print(&list.render(&rows, &HistoryRow::default())?)?;
    Ok(0)
}

/// Newest first. Layers the image's history does not speak of get a step each.
fn steps(engine: &Engine, image: &Image) -> Result<Vec<Step>> {
    let mut sizes = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let size = engine.store.layer_tar_size(layer);
        sizes.push(size.map_err(|error| CliError::new(error.to_string()))?);
    }
    let mut layers = sizes.into_iter();
    let mut steps: Vec<Step> = Vec::new();
    let unknown = |size: u64| Step {
        id: "<missing>".to_owned(),
        created: created(image),
        created_by: String::new(),
        size,
        comment: String::new(),
        tags: Vec::new(),
    };
    for entry in image.config.history().iter().flatten() {
        let is_empty = entry.empty_layer().unwrap_or(false);
        let size = if is_empty {
            0
        } else {
            layers.next().unwrap_or(0)
        };
        let mut step = unknown(size);
        if let Some(created) = entry.created() {
            step.created.clone_from(created);
        }
        step.created_by = entry.created_by().clone().unwrap_or_default();
        step.comment = entry.comment().clone().unwrap_or_default();
        steps.push(step);
    }
    steps.extend(layers.map(unknown));
    steps.reverse();
    if let Some(newest) = steps.first_mut() {
        newest.id.clone_from(&image.id);
        newest.tags.clone_from(&image.names);
    }
    Ok(steps)
}
