//! `selkie create`, and what it shares with `run`.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use clap::ArgMatches;
use selkie_engine::{Engine, ErrorKind};

use crate::cli::CommandSpec;
use crate::cli::flag::Flags;
use crate::create_options;
use crate::error::{CliError, Result};
use crate::session::Session;

/// The command.
pub const CREATE: CommandSpec = CommandSpec {
    name: "create",
    aliases: &[],
    about: "Make a container without starting it",
    examples: "Examples:
  selkie create --name job busybox sh -c 'echo done'
  selkie start --attach job",
    flags: |command| {
        create_options::flags(command)
            .override_usage("selkie create [OPTIONS] IMAGE [COMMAND [ARG]...]")
    },
    run,
};

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let new = create_options::parse(matches)?;
    let id_file = new.id_file.as_deref().map(IdFile::reserve).transpose()?;
    let mut engine = session.open_engine()?;
    if new.replace {
        remove_namesake(&mut engine, new.options.name.as_deref())?;
    }
    if !matches.on("quiet") {
        warn_of_single_id(&engine);
    }
    let id = engine.create(new.options)?;
    if let Some(id_file) = id_file {
        id_file.write(id.as_str())?;
    }
    super::print_line(id.as_str())?;
    Ok(0)
}

/// A login without subordinate IDs gets containers of one ID, which many images do not expect.
pub fn warn_of_single_id(engine: &Engine) {
    if let Some(reason) = &engine.pause.single_id_reason {
        tracing::warn!("the container has a single user ID: {reason}");
    }
}

/// `--replace`.
pub fn remove_namesake(engine: &mut Engine, name: Option<&str>) -> Result<()> {
    let Some(name) = name else { return Ok(()) };
    match engine.find_container(name) {
        // An ID's beginning may look like the name; only the name counts.
        Ok(id) if engine.container(&id)?.name == name => Ok(engine.remove(&id, true, true)?),
        Ok(_) => Ok(()),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `--cidfile`: made before the container, so that a container never lacks it, and removed again
/// when there is no container.
pub struct IdFile {
    path: PathBuf,
    file: File,
    written: bool,
}

impl IdFile {
    /// Makes the file, which must not exist.
    pub fn reserve(path: &str) -> Result<Self> {
        let refuse = |error: std::io::Error| CliError::new(format!("--cidfile {path}: {error}"));
        let file = File::create_new(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                CliError::new(format!("--cidfile {path}: the container ID file exists"))
                    .with_hint("its container may still be there; remove the file if it is not")
            }
            _ => refuse(error),
        })?;
        Ok(Self {
            path: std::path::absolute(path).map_err(refuse)?,
            file,
            written: false,
        })
    }

    /// Writes the ID.
    pub fn write(mut self, id: &str) -> Result<()> {
        self.written = true;
        self.file.write_all(id.as_bytes()).map_err(|error| {
            CliError::new(format!(
                "write the container ID to {}: {error}",
                self.path.display()
            ))
        })
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.written {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_file_is_there_only_with_a_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        let name = path.to_str().unwrap();
        drop(IdFile::reserve(name).unwrap());
        assert!(!path.exists());
        IdFile::reserve(name).unwrap().write("abc").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abc");
        assert!(IdFile::reserve(name).is_err());
    }
}
