//! `selkie images`.

use clap::{ArgMatches, Command};
use jiff::Timestamp;
use regex_lite::Regex;
use selkie_engine::images::Image;

use super::filter::{self, LabelFilter};
use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags, choice, list, positional, switch};
use crate::error::{CliError, Result};
use crate::format::image::{ImageJson, ImageRow, created, labels, split_name};
use crate::format::list::{ListFormat, is_json, render_json};
use crate::format::time;
use crate::session::Session;

/// The command.
pub const IMAGES: CommandSpec = CommandSpec {
    name: "images",
    aliases: &[],
    about: "List images",
    examples: "Examples:
  selkie images
  selkie images --filter dangling=true --quiet
  selkie images --format '{{.Repository}}:{{.Tag}} {{.Size}}'",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(positional("name", "NAME", "Only this one"))
        .arg(
            switch(
                "all",
                "As without it: there are no intermediate images to show",
            )
            .short('a'),
        )
        .arg(switch("digests", "Show digests"))
        .arg(
            list(
                "filter",
                "KEY=VALUE",
                "Only those that match: reference, label, dangling, id, before, since, until",
            )
            .short('f'),
        )
        .arg(flag::format(
            "json, or a Go template (table TEMPLATE adds headings)",
        ))
        .arg(switch("no-trunc", "Show whole IDs").alias("notruncate"))
        .arg(switch("noheading", "Leave out the headings").short('n'))
        .arg(switch("quiet", "IDs only").short('q'))
        .arg(choice(
            "sort",
            "KEY",
            "Order by this (default: created)",
            &["created", "id", "repository", "size", "tag"],
        ))
}

const DEFAULT: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const WITH_DIGESTS: &str =
    "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

const HEADINGS: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedTime", "CREATED AT"),
];

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let engine = session.open_engine()?;
    let mut images = engine.images()?;
    let containers = engine.containers()?;
    let filters = ImageFilters::parse(&matches.texts("filter"), &images)?;
    images.retain(|image| filters.accept(image));
    if let Some(name) = matches.text("name") {
        images.retain_mut(|image| keep_name(image, name));
    }
    let uses = |image: &Image| {
        containers
            .iter()
            .filter(|container| container.image_id == image.id)
            .count()
    };
    let format = matches.text("format");
    if is_json(format) {
        let objects: Vec<ImageJson> = images
            .iter()
            .map(|image| ImageJson::new(image, uses(image)))
            .collect();
        super::print(&render_json(&objects)?)?;
        return Ok(0);
    }
    let (now, full) = (Timestamp::now(), matches.on("no-trunc"));
    let mut rows: Vec<ImageRow> = images
        .iter()
        .flat_map(|image| ImageRow::rows(image, uses(image), now, full))
        .collect();
    sort(&mut rows, matches.text("sort").unwrap_or("created"));
    if matches.on("quiet") {
        let mut ids: Vec<String> = rows.into_iter().map(|row| row.id + "\n").collect();
        // One image of several names is still one ID.
        ids.dedup();
        super::print(&ids.concat())?;
        return Ok(0);
    }
    let list = ListFormat {
        name: "images",
        format,
        default: if matches.on("digests") {
            WITH_DIGESTS
        } else {
            DEFAULT
        },
        headings: HEADINGS,
        no_heading: matches.on("noheading"),
    };
    super::print(&list.render(&rows, &ImageRow::default())?)?;
    Ok(0)
}

/// `images NAME`: only the names that are called so.
fn keep_name(image: &mut Image, wanted: &str) -> bool {
    image.names.retain(|name| is_called(name, wanted));
    !image.names.is_empty()
}

/// Whether `wanted` is the name or its end after a slash, with or without the tag.
fn is_called(name: &str, wanted: &str) -> bool {
    let ends = |name: &str| {
        name.strip_suffix(wanted)
            .is_some_and(|before| before.is_empty() || before.ends_with('/'))
    };
    ends(name) || ends(split_name(name).0)
}

fn sort(rows: &mut [ImageRow], key: &str) {
    match key {
        "id" => rows.sort_by(|a, b| a.id.cmp(&b.id)),
        "repository" => rows.sort_by(|a, b| a.repository.cmp(&b.repository)),
        "size" => rows.sort_by_key(|row| row.bytes),
        "tag" => rows.sort_by(|a, b| a.tag.cmp(&b.tag)),
        _ => rows.sort_by_key(|row| std::cmp::Reverse(row.created_seconds)),
    }
}

/// `--filter` of images.
#[derive(Debug, Default)]
pub struct ImageFilters {
    references: Vec<Regex>,
    labels: Vec<LabelFilter>,
    ids: Vec<String>,
    dangling: Option<bool>,
    before: Option<i64>,
    since: Option<i64>,
    until: Option<i64>,
}

impl ImageFilters {
    /// Parses flags; `before=` and `since=` look other images up.
    pub fn parse(texts: &[String], images: &[Image]) -> Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            filters.add(text, images)?;
        }
        Ok(filters)
    }

    fn add(&mut self, text: &str, images: &[Image]) -> Result<()> {
        let (key, value, wanted) = filter::split(text)?;
        match key {
            "reference" if wanted => self.references.push(glob(value)?),
            "label" => self.labels.push(LabelFilter::parse(value, wanted)),
            "id" if wanted => self
                .ids
                .push(value.trim_start_matches("sha256:").to_owned()),
            "dangling" => {
                let dangling: bool = value
                    .parse()
                    .map_err(|_| CliError::new(format!("--filter {text}: write true or false")))?;
                self.dangling = Some(dangling == wanted);
            }
            "before" if wanted => self.before = Some(created_of(text, value, images)?),
            "since" | "after" if wanted => self.since = Some(created_of(text, value, images)?),
            "until" if wanted => self.until = Some(filter::point_in_time(value)?.as_second()),
            _ => {
                return Err(
                    CliError::new(format!("--filter {text}: invalid filter")).with_hint(
                        "choose from reference, label, dangling, id, before, since, until",
                    ),
                );
            }
        }
        Ok(())
    }

    /// Whether an image matches.
    pub fn accept(&self, image: &Image) -> bool {
        let made = time::seconds(Some(&created(image)));
        let is_called = |pattern: &Regex| {
            image.names.iter().any(|name| {
                [name.as_str(), split_name(name).0]
                    .into_iter()
                    .flat_map(endings)
                    .any(|ending| pattern.is_match(ending))
            })
        };
        (self.references.is_empty() || self.references.iter().any(is_called))
            && self
                .labels
                .iter()
                .all(|label| label.accepts(&labels(image)))
            && (self.ids.is_empty() || self.ids.iter().any(|id| image.id.starts_with(id)))
            && self
                .dangling
                .is_none_or(|dangling| dangling == image.names.is_empty())
            && self.before.is_none_or(|before| made < before)
            && self.since.is_none_or(|since| made > since)
            && self.until.is_none_or(|until| made <= until)
    }
}

/// A name and what is left of it after each slash.
fn endings(name: &str) -> impl Iterator<Item = &str> {
    std::iter::once(name).chain(name.match_indices('/').map(|(at, _)| &name[at + 1..]))
}

fn created_of(text: &str, wanted: &str, images: &[Image]) -> Result<i64> {
    images
        .iter()
        .find(|image| {
            image.names.iter().any(|name| is_called(name, wanted))
                || (!wanted.is_empty() && image.id.starts_with(wanted))
        })
        .map(|image| time::seconds(Some(&created(image))))
        .ok_or_else(|| CliError::new(format!("--filter {text}: no such image: {wanted}")))
}

/// `*` and `?` as in file names; neither crosses a slash.
fn glob(pattern: &str) -> Result<Regex> {
    let mut expression = String::from("^");
    for character in pattern.chars() {
        match character {
            '*' => expression.push_str("[^/]*"),
            '?' => expression.push_str("[^/]"),
            other => expression.push_str(&regex_lite::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    expression.push('$');
    Regex::new(&expression)
        .map_err(|error| CliError::new(format!("--filter reference={pattern}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_their_end() {
        for (wanted, expected) in [
            ("busybox", true),
            ("localhost/busybox", true),
            ("busybox:latest", true),
            ("box", false),
            ("busybox:v1", false),
        ] {
            let found = is_called("localhost/busybox:latest", wanted);
            assert_eq!(found, expected, "{wanted}");
        }
    }

    #[test]
    fn globs_stay_between_slashes() {
        assert!(glob("busy*").unwrap().is_match("busybox"));
        assert!(!glob("local*").unwrap().is_match("localhost/busybox"));
        assert!(glob("b?sy.ox").unwrap().is_match("busy.ox"));
        assert!(!glob("b?sy.ox").unwrap().is_match("busybox"));
        assert!(endings("a/b/c").eq(["a/b/c", "b/c", "c"]));
    }
}
