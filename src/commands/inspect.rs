//! `selkie inspect`, `selkie container inspect`, `selkie image inspect`.

use clap::{ArgMatches, Command};
use selkie_engine::{Engine, ErrorKind};
use serde::Serialize;

use super::ps::disk_size;
use super::targets;
use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags, choice, positionals, switch};
use crate::error::{CliError, FAILURE, Result};
use crate::format::inspect_container::InspectContainer;
use crate::format::inspect_image::InspectImage;
use crate::format::json;
use crate::format::list::{is_json, unescape};
use crate::go_template::{Template, TemplateError, Value, to_value};
use crate::session::Session;

/// `inspect`: containers first, then images, then volumes.
pub const INSPECT: CommandSpec = CommandSpec {
    name: "inspect",
    aliases: &[],
    about: "Show everything about containers and images",
    examples: "Examples:
  selkie inspect web
  selkie inspect --format '{{.State.Status}} {{.State.ExitCode}}' web
  selkie inspect --type image busybox",
    flags,
    run: |session, matches| {
        let kind = match matches.text("type") {
            Some("container") => Kind::Container,
            Some("image") => Kind::Image,
            _ => Kind::Any,
        };
        run(session, matches, kind, matches.on("latest"))
    },
};

/// `container inspect`.
pub const CONTAINER_INSPECT: CommandSpec = CommandSpec {
    name: "inspect",
    aliases: &[],
    about: "Show everything about containers",
    examples: "Examples:
  selkie container inspect web
  selkie container inspect --format '{{json .Slice}}' web",
    flags: container_flags,
    run: |session, matches| run(session, matches, Kind::Container, false),
};

/// `image inspect`.
pub const IMAGE_INSPECT: CommandSpec = CommandSpec {
    name: "inspect",
    aliases: &[],
    about: "Show everything about images",
    examples: "Examples:
  selkie image inspect busybox
  selkie image inspect --format '{{.Config.Cmd}}' busybox",
    flags: common_flags,
    run: |session, matches| run(session, matches, Kind::Image, false),
};

/// What may be meant by a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    Container,
    Image,
}

/// Flags of every `inspect`.
pub fn common_flags(command: Command) -> Command {
    command
        .arg(positionals("names", "NAME", "Names or IDs"))
        .arg(flag::format("json, or a Go template").short('f'))
}

fn flags(command: Command) -> Command {
    container_flags(command)
        .arg(
            choice(
                "type",
                "TYPE",
                "Look only among these",
                &["all", "container", "image"],
            )
            .short('t'),
        )
        .arg(switch("latest", "The container created last").short('l'))
}

/// As [`common_flags`], for what containers have.
fn container_flags(command: Command) -> Command {
    common_flags(command).arg(switch("size", "Measure what a container takes on disk").short('s'))
}

fn run(session: &Session, matches: &ArgMatches, kind: Kind, latest: bool) -> Result<u8> {
    let mut names = matches.texts("names");
    if names.is_empty() && !latest {
        return Err(CliError::new("you must provide at least one name or id"));
    }
    let engine = session.open_engine()?;
    if latest {
        names.insert(0, targets::latest(&engine)?.called);
    }
    let measures = kind != Kind::Image && matches.on("size");
    show(&names, matches, |name| {
        look_up(&engine, name, kind, measures)
    })
}

/// Shows what is found of `names`; those that are not there are errors after that.
pub fn show(
    names: &[String],
    matches: &ArgMatches,
    look_up: impl Fn(&str) -> Result<Value>,
) -> Result<u8> {
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for name in names {
        match look_up(name) {
            Ok(object) => found.push(object),
            Err(error) => failures.push(error),
        }
    }
    super::print(&text(&found, matches.text("format"))?)?;
    for failure in &failures {
        failure.print();
    }
    Ok(if failures.is_empty() { 0 } else { FAILURE })
}

/// All objects as JSON, or the template's text for each.
fn text(found: &[Value], format: Option<&str>) -> Result<String> {
    let Some(format) = format.filter(|format| !format.is_empty() && !is_json(Some(format))) else {
        return json::pretty(found);
    };
    let failed = |error: TemplateError| CliError::new(error.to_string());
    let template = Template::parse("inspect", &unescape(format)).map_err(failed)?;
    let mut text = String::new();
    for object in found {
        text.push_str(&template.execute(object).map_err(failed)?);
        text.push('\n');
    }
    Ok(text)
}

fn look_up(engine: &Engine, name: &str, kind: Kind, measures: bool) -> Result<Value> {
    if kind != Kind::Image {
        match engine.find_container(name) {
            Ok(id) => {
                let container = engine.container(&id)?;
                let image = engine.image(&container.image_id).ok();
                let mut object = InspectContainer::new(engine, &container, image.as_ref())?;
                if measures {
                    object.set_size(disk_size(engine, &container)?);
                }
                return value(&object);
            }
            Err(error) if kind == Kind::Any && error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    match engine.image(name) {
        Ok(image) => value(&InspectImage::new(&image)),
        Err(error) if kind == Kind::Any && error.kind == ErrorKind::NotFound => {
            Err(CliError::new(format!("no such object: {name:?}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// An object as templates see it.
pub fn value<T: Serialize>(object: &T) -> Result<Value> {
    to_value(object).map_err(|error| CliError::new(error.to_string()))
}
