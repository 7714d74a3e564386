//! `selkie inspect`, `selkie container inspect`, `selkie image inspect`; what every `inspect` does.

use clap::{ArgMatches, Command};
use selkie_engine::{Engine, ErrorKind};
use serde::Serialize;

use super::ps::disk_size;
use super::{network, targets, volume};
use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags, choice, positionals, switch};
use crate::error::{CliError, FAILURE, Result};
use crate::format::inspect_container::InspectContainer;
use crate::format::inspect_image::InspectImage;
use crate::format::json;
use crate::format::list::{is_json, unescape};
use crate::go_template::{Template, TemplateError, Value, to_value};
use crate::session::Session;

/// `inspect`: containers first, then images, volumes and networks.
pub const INSPECT: CommandSpec = CommandSpec {
    name: "inspect",
    aliases: &[],
    about: "Show everything about containers, images, volumes and networks",
    examples: "Examples:
  selkie inspect web
  selkie inspect --format '{{.State.Status}} {{.State.ExitCode}}' web
  selkie inspect --type network backend",
    flags,
    run: |session, matches| {
        let kind = match matches.text("type") {
            Some("container") => Kind::Container,
            Some("image") => Kind::Image,
            Some("volume") => Kind::Volume,
            Some("network") => Kind::Network,
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
    Volume,
    Network,
}

/// Where a name of any kind is looked for, in Podman's order.
const EVERYWHERE: [Kind; 4] = [Kind::Container, Kind::Image, Kind::Volume, Kind::Network];

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
                &["all", "container", "image", "volume", "network"],
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
    let mut engine = session.open_engine()?;
    if latest {
        names.insert(0, targets::latest(&engine)?.called);
    }
    let measures = matches!(kind, Kind::Any | Kind::Container) && matches.on("size");
    show(&names, matches, |name| {
        look_up(&mut engine, name, kind, measures)
    })
}

/// Shows what is found of `names`; those that are not there are errors after that.
pub fn show(
    names: &[String],
    matches: &ArgMatches,
    mut look_up: impl FnMut(&str) -> Result<Value>,
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

fn look_everywhere(engine: &mut Engine, name: &str, measures: bool) -> Result<Value> {
    for kind in EVERYWHERE {
        match look_up(engine, name, kind, measures) {
            Err(error) if error.kind == Some(ErrorKind::NotFound) => {}
            other => return other,
        }
    }
    Err(CliError::new(format!("no such object: {name:?}")))
}

fn look_up(engine: &mut Engine, name: &str, kind: Kind, measures: bool) -> Result<Value> {
    match kind {
        Kind::Any => look_everywhere(engine, name, measures),
        Kind::Container => {
            let container = engine.container(&engine.find_container(name)?)?;
            let image = engine.image(&container.image_id).ok();
            let mut object = InspectContainer::new(engine, &container, image.as_ref())?;
            if measures {
                object.set_size(disk_size(engine, &container)?);
            }
            value(&object)
        }
        Kind::Image => value(&InspectImage::new(&engine.image(name)?)),
        Kind::Volume => volume::inspected(engine, name),
        Kind::Network => network::inspected(engine, name),
    }
}

/// An object as templates see it.
pub fn value<T: Serialize>(object: &T) -> Result<Value> {
    to_value(object).map_err(|error| CliError::new(error.to_string()))
}
