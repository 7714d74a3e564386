//! `selkie import`: an image from a tar of a root file system.

use clap::{ArgMatches, Command};
use selkie_engine::images::{ImportOptions, ImportSource, LoadSource};

use super::load::{source, standard_input};
use super::progress::LayerProgress;
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, list, positionals, switch, value};
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command.
pub const IMPORT: CommandSpec = CommandSpec {
    name: "import",
    aliases: &[],
    about: "Make an image from a tar of a root file system",
    examples: "Examples:
  selkie import rootfs.tar.gz mine:1.0
  selkie import --change 'CMD [\"/bin/sh\"]' --change 'ENV A=b' rootfs.tar mine
  tar --create --directory rootfs . | selkie import - mine",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(positionals(
            "what",
            "PATH [NAME]",
            "A tar file or - for standard input, and a name",
        ))
        .arg(
            list(
                "change",
                "INSTRUCTION",
                "Apply CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR",
            )
            .short('c'),
        )
        .arg(value("message", "TEXT", "Say this in the image's history").short('m'))
        .arg(switch("quiet", "Show no progress").short('q'))
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let what = matches.texts("what");
    let (path, name) = match what.as_slice() {
        [path] => (path, None),
        [path, name] => (path, Some(name.clone())),
        _ => {
            return Err(CliError::new(
                "import needs a tar file (or -) and at most one name",
            ));
        }
    };
    let from = if path == "-" {
        ImportSource::Stream(standard_input("selkie import FILE")?)
    } else {
        match source(path)? {
            LoadSource::Path(path) => ImportSource::Path(path),
            _ => {
                return Err(CliError::new(format!("import {path}: not a path"))
                    .with_hint("images in archives are loaded: selkie load --input"));
            }
        }
    };
    let options = ImportOptions {
        name,
        changes: matches.texts("change"),
        message: matches.text("message").map(str::to_owned),
    };
    let mut engine = session.open_engine()?;
    let mut progress = LayerProgress::new(matches.on("quiet"));
    let imported = engine.import(from, &options, &mut |event| progress.show(event));
    progress.finish();
    let imported = imported?;
    for note in &imported.notes {
        eprintln!("Note: {note}");
    }
    if let Err(error) = engine.prepare_image(&imported.chain_id) {
        tracing::info!("prepare {}: {error}", imported.id);
    }
    super::print_line(&format!("sha256:{}", imported.id))?;
    Ok(0)
}
