//! `selkie save`.

use std::io::IsTerminal;

use clap::{ArgMatches, Command};
use selkie_engine::images::{SaveFormat, SaveItem, SaveTarget};

use super::load::absolute;
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, choice, positionals, switch, value};
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command.
pub const SAVE: CommandSpec = CommandSpec {
    name: "save",
    aliases: &[],
    about: "Write images to an archive or a directory",
    examples: "Examples:
  selkie save --output debian.tar debian
  selkie save --format oci-archive --output debian.tar debian
  selkie save --multi-image-archive --output both.tar debian busybox",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(positionals(
            "images",
            "IMAGE",
            "An image, and further names it gets in the archive",
        ))
        .arg(value("output", "PATH", "Write there (default: standard output)").short('o'))
        .arg(
            choice(
                "format",
                "FORMAT",
                "What to write",
                &["docker-archive", "oci-archive", "docker-dir", "oci-dir"],
            )
            .default_value("docker-archive"),
        )
        .arg(switch("compress", "Compress the layers of a docker-dir"))
        .arg(switch(
            "uncompressed",
            "Do not compress the layers of OCI formats",
        ))
        .arg(
            switch(
                "multi-image-archive",
                "Every argument is an image of its own",
            )
            .short('m'),
        )
        .arg(switch("quiet", "Show no progress (there is none)").short('q'))
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let format = match matches.text("format") {
        Some("oci-archive") => SaveFormat::OciArchive,
        Some("docker-dir") => SaveFormat::DockerDirectory,
        Some("oci-dir") => SaveFormat::OciDirectory,
        _ => SaveFormat::DockerArchive,
    };
    if matches.on("compress") && format != SaveFormat::DockerDirectory {
        return Err(CliError::new(
            "--compress can only be set when --format is docker-dir",
        ));
    }
    if matches.on("uncompressed")
        && !matches!(format, SaveFormat::OciArchive | SaveFormat::OciDirectory)
    {
        return Err(CliError::new(
            "--uncompressed can only be set for OCI formats",
        ));
    }
    let compress = match format {
        SaveFormat::DockerArchive => false,
        SaveFormat::DockerDirectory => matches.on("compress"),
        SaveFormat::OciArchive | SaveFormat::OciDirectory => !matches.on("uncompressed"),
    };
    let mut names = matches.texts("images").into_iter();
    let item = |image| SaveItem {
        image,
        extra_names: Vec::new(),
    };
    let Some(first) = names.next() else {
        return Err(CliError::new("save needs the name or id of an image"));
    };
    let items: Vec<SaveItem> = if matches.on("multi-image-archive") {
        std::iter::once(first).chain(names).map(item).collect()
    } else {
        vec![SaveItem {
            image: first,
            extra_names: names.collect(),
        }]
    };
    let engine_of = || session.open_engine();
    match matches.text("output") {
        Some(path) if path != "-" => {
            let path = absolute(path)?;
            engine_of()?.save(&items, format, compress, SaveTarget::Path(&path))?;
        }
        _ => {
            let mut stdout = std::io::stdout();
            if stdout.is_terminal() {
                return Err(CliError::new("refusing to save to the terminal")
                    .with_hint("use --output FILE, or redirect standard output"));
            }
            engine_of()?.save(&items, format, compress, SaveTarget::Stream(&mut stdout))?;
        }
    }
    Ok(0)
}
