//! `selkie system df`.

use clap::ArgMatches;
use selkie_engine::Engine;
use selkie_engine::container::Status;
use serde::Serialize;

use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags};
use crate::error::Result;
use crate::format::list::{ListFormat, is_json, render_json};
use crate::format::size;
use crate::session::Session;

/// The command.
pub const DF: CommandSpec = CommandSpec {
    name: "df",
    aliases: &[],
    about: "Show what images, containers and volumes take on disk",
    examples: "Examples:
  selkie system df
  selkie system df --format json",
    flags: |command| {
        command.arg(flag::format(
            "json, or a Go template (table TEMPLATE adds headings)",
        ))
    },
    run,
};

/// One line, by Podman's names.
#[derive(Debug, Default, Serialize)]
#[serde(rename = "system.dfSummary", rename_all = "PascalCase")]
struct Summary {
    #[serde(rename = "Type")]
    kind: &'static str,
    total: usize,
    active: usize,
    size: String,
    reclaimable: String,
    raw_size: u64,
    raw_reclaimable: u64,
}

/// How many things there are, how many are in use, and their bytes.
#[derive(Debug, Default)]
struct Tally {
    total: usize,
    active: usize,
    bytes: u64,
    reclaimable: u64,
}

impl Tally {
    fn add(&mut self, is_active: bool, bytes: u64) {
        self.total += 1;
        self.bytes += bytes;
        if is_active {
            self.active += 1;
        } else {
            self.reclaimable += bytes;
        }
    }

    fn summary(self, kind: &'static str) -> Summary {
        let percent = (self.reclaimable * 100)
            .checked_div(self.bytes)
            .unwrap_or(0);
        Summary {
            kind,
            total: self.total,
            active: self.active,
            size: size::dense(self.bytes),
            reclaimable: format!("{} ({percent}%)", size::dense(self.reclaimable)),
            raw_size: self.bytes,
            raw_reclaimable: self.reclaimable,
        }
    }
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let engine = session.open_engine()?;
    let rows = [
        images(&engine)?.summary("Images"),
        containers(&engine)?.summary("Containers"),
        volumes(&engine)?.summary("Local Volumes"),
    ];
    let format = matches.text("format");
    if is_json(format) {
        super::print(&render_json(&rows)?)?;
        return Ok(0);
    }
    let list = ListFormat {
        name: "df",
        format,
        default: "{{.Type}}\t{{.Total}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
        headings: &[],
        no_heading: false,
    };
    super::print(&list.render(&rows, &Summary::default())?)?;
    Ok(0)
}

fn images(engine: &Engine) -> Result<Tally> {
    let containers = engine.containers()?;
    let mut tally = Tally::default();
    for image in engine.images()? {
        let is_used = containers
            .iter()
            .any(|container| container.image_id == image.id);
        tally.add(is_used, image.size);
    }
    Ok(tally)
}

fn containers(engine: &Engine) -> Result<Tally> {
    let mut tally = Tally::default();
    for container in engine.containers()? {
        let is_up = matches!(container.status, Status::Running | Status::Stopping);
        tally.add(is_up, engine.container_disk_usage(&container.id)?);
    }
    Ok(tally)
}

fn volumes(engine: &Engine) -> Result<Tally> {
    let mut tally = Tally::default();
    for volume in engine.volumes()? {
        let bytes = engine.volume_disk_usage(&volume.name)?;
        tally.add(!volume.users.is_empty(), bytes);
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_use_is_reclaimable() {
        let mut tally = Tally::default();
        tally.add(true, 1_000_000);
        tally.add(false, 3_000_000);
        let summary = tally.summary("Images");
        assert_eq!((summary.total, summary.active), (2, 1));
        assert_eq!(summary.size, "4MB");
        assert_eq!(summary.reclaimable, "3MB (75%)");
        assert_eq!(Tally::default().summary("Images").reclaimable, "0B (0%)");
    }
}
