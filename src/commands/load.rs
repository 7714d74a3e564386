//! `selkie load`, `selkie pull`: images from archives and directories.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::{ArgMatches, Command};
use selkie_engine::Engine;
use selkie_engine::images::{LoadSource, Loaded, TransportReference};

use super::progress::LayerProgress;
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, choice, positionals, switch, value};
use crate::error::{CliError, Result};
use crate::session::Session;

/// `load`.
pub const LOAD: CommandSpec = CommandSpec {
    name: "load",
    aliases: &[],
    about: "Load images from an archive or a directory",
    examples: "Examples:
  selkie load --input debian.tar
  selkie load --input oci-archive:debian.tar
  gunzip --stdout debian.tar.gz | selkie load",
    flags: |command| {
        command
            .arg(
                value(
                    "input",
                    "FILE",
                    "Read this file or directory, or TRANSPORT:PATH[:IMAGE] (default: standard input)",
                )
                .short('i'),
            )
            .arg(switch("quiet", "Show no progress").short('q'))
    },
    run: load,
};

/// `pull`.
pub const PULL: CommandSpec = CommandSpec {
    name: "pull",
    aliases: &[],
    about: "Get an image from an archive or a directory (registries are not there yet)",
    examples: "Examples:
  selkie pull oci-archive:debian.tar
  selkie pull oci:layout:debian
  selkie pull docker-archive:busybox.tar",
    flags: pull_flags,
    run: pull,
};

fn pull_flags(command: Command) -> Command {
    command
        .arg(positionals(
            "images",
            "TRANSPORT:PATH",
            "oci-archive:, docker-archive:, oci: or dir: with a path",
        ))
        .arg(
            choice(
                "policy",
                "POLICY",
                "always reads what is named; missing and never keep to what is stored",
                &["always", "missing", "never"],
            )
            .default_value("always"),
        )
        .arg(switch("quiet", "Show no progress").short('q'))
}

fn load(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let source = match matches.text("input") {
        Some(input) => source(input)?,
        None => LoadSource::Stream(standard_input("selkie load --input FILE")?),
    };
    let mut engine = session.open_engine()?;
    for loaded in take(&mut engine, source, matches.on("quiet"))? {
        if loaded.names.is_empty() {
            super::print_line(&format!("Loaded image: sha256:{}", loaded.id))?;
        }
        for name in &loaded.names {
            super::print_line(&format!("Loaded image: {name}"))?;
        }
    }
    Ok(0)
}

fn pull(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let images = matches.texts("images");
    if images.is_empty() {
        return Err(CliError::new("pull needs what to pull, as TRANSPORT:PATH"));
    }
    let policy = matches.text("policy").unwrap_or("always");
    let mut engine = session.open_engine()?;
    for image in images {
        if !TransportReference::looks_like(&image) {
            // The name of an image: only what is stored can answer.
            if policy != "always" && engine.image_exists(&image)? {
                super::print_line(&engine.image(&image)?.id)?;
                continue;
            }
            return Err(no_registries(&image));
        }
        if policy != "always" {
            return Err(CliError::new(format!(
                "--policy {policy} is for image names; {image} names a file or directory"
            )));
        }
        for loaded in take(&mut engine, source(&image)?, matches.on("quiet"))? {
            super::print_line(&loaded.id)?;
        }
    }
    Ok(0)
}

fn no_registries(image: &str) -> CliError {
    CliError::new(format!(
        "pull {image}: registries cannot be reached by this version"
    ))
    .with_hint(
        "copy the image to a file where a registry can be reached (skopeo copy \
             docker://… oci-archive:FILE), then: selkie load --input FILE",
    )
}

/// A path, or `TRANSPORT:PATH`, with the path made absolute.
pub fn source(text: &str) -> Result<LoadSource> {
    if !TransportReference::looks_like(text) || std::path::Path::new(text).exists() {
        return Ok(LoadSource::Path(absolute(text)?));
    }
    let mut reference: TransportReference = text
        .parse()
        .map_err(|error| CliError::new(format!("{error}")))?;
    reference.path = std::path::absolute(&reference.path)
        .map_err(|error| CliError::new(format!("{}: {error}", reference.path.display())))?;
    Ok(LoadSource::Reference(reference))
}

/// As the shell's current directory has it.
pub fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| CliError::new(format!("{path}: {error}")))
}

/// Standard input, unless a person sits there.
pub fn standard_input(instead: &str) -> Result<File> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(
            CliError::new("cannot read an archive from the terminal").with_hint(format!(
                "{instead}, or redirect an archive to standard input"
            )),
        );
    }
    let own = stdin.as_fd().try_clone_to_owned();
    own.map(File::from)
        .map_err(|error| CliError::new(format!("read standard input: {error}")))
}

/// Loads, and makes ready what the first container of each image would otherwise wait for.
fn take(engine: &mut Engine, source: LoadSource, quiet: bool) -> Result<Vec<Loaded>> {
    let mut progress = LayerProgress::new(quiet);
    let loaded = engine.load(source, &mut |event| progress.show(event));
    progress.finish();
    let loaded = loaded?;
    for image in &loaded {
        for note in &image.notes {
            eprintln!("Note: {note}");
        }
        // The first start would make it otherwise; that one also says what is missing if it cannot.
        if let Err(error) = engine.prepare_image(&image.chain_id) {
            tracing::info!("prepare {}: {error}", image.id);
        }
    }
    Ok(loaded)
}
