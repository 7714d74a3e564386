//! Which containers a command is about: names, `--all`, `--latest`, `--filter`.

use clap::{Arg, ArgMatches};
use selkie_engine::container::{Container, ContainerId};
use selkie_engine::{Engine, ErrorKind};

use super::filter::ContainerFilters;
use crate::cli::flag::{Flags, list, positionals, switch};
use crate::error::{CliError, Result};

/// A container and what the person called it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Printed when the command has done its work.
    pub called: String,
    /// Which.
    pub id: ContainerId,
}

/// `CONTAINER...`, `--all`, `--latest`, `--filter`.
pub fn flags(all: &'static str) -> [Arg; 4] {
    [
        positionals("containers", "CONTAINER", "Names or IDs"),
        switch("all", all).short('a'),
        switch("latest", "The container created last").short('l'),
        list(
            "filter",
            "KEY=VALUE",
            "Only containers that match, as in selkie ps",
        )
        .short('f'),
    ]
}

/// `--cidfile`: names from the files that `run` and `create` wrote.
pub fn id_file_flag() -> Arg {
    list(
        "cidfile",
        "FILE",
        "The container whose ID is in FILE, as run --cidfile wrote it",
    )
}

/// Files given to the flag of [`id_file_flag`], by commands that have it.
fn id_files(matches: &ArgMatches) -> Vec<String> {
    let files = matches.try_get_many::<String>("cidfile").ok().flatten();
    files
        .map(|files| files.cloned().collect())
        .unwrap_or_default()
}

/// What the flags of [`flags`] choose. Names are not looked up yet: each may fail by itself.
#[derive(Debug)]
pub enum Chosen {
    /// As the person wrote them.
    Names(Vec<String>),
    /// Found by `--all`, `--latest` or `--filter`.
    Found(Vec<Target>),
}

/// Refuses flags that choose nothing, before anything is opened.
pub fn check(matches: &ArgMatches) -> Result<()> {
    let has_names = !matches.texts("containers").is_empty() || !id_files(matches).is_empty();
    let (all, latest) = (matches.on("all"), matches.on("latest"));
    let has_filters = !matches.texts("filter").is_empty();
    if has_names && (all || latest || has_filters) {
        return Err(CliError::new(
            "--all, --latest and --filter cannot be combined with names",
        ));
    }
    if !has_names && !all && !latest && !has_filters {
        return Err(CliError::new("you must provide at least one name or id"));
    }
    Ok(())
}

/// Reads the flags; `every` says which containers `--all` means.
pub fn choose(
    engine: &Engine,
    matches: &ArgMatches,
    every: impl Fn(&Container) -> bool,
) -> Result<Chosen> {
    let mut names = matches.texts("containers");
    for file in id_files(matches) {
        let id = std::fs::read_to_string(&file)
            .map_err(|error| CliError::new(format!("--cidfile {file}: {error}")))?;
        names.push(id.trim_end().to_owned());
    }
    if !names.is_empty() {
        return Ok(Chosen::Names(names));
    }
    if matches.on("latest") {
        return Ok(Chosen::Found(vec![latest(engine)?]));
    }
    let containers = engine.containers()?;
    let filters = ContainerFilters::parse(&matches.texts("filter"), &containers, engine)?;
    Ok(Chosen::Found(
        containers
            .iter()
            .filter(|container| every(container) && filters.accept(container))
            .map(target)
            .collect(),
    ))
}

/// The container created last.
pub fn latest(engine: &Engine) -> Result<Target> {
    match engine.containers()?.last() {
        Some(container) => Ok(target(container)),
        None => Err(CliError::new("no containers to choose the latest from")),
    }
}

fn target(container: &Container) -> Target {
    Target {
        called: container.id.as_str().to_owned(),
        id: container.id.clone(),
    }
}

/// What to make of names that do not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// They are errors.
    Refuse,
    /// They are errors with the exit code of `rm`.
    RefuseRemoval,
    /// They are passed over.
    Ignore,
}

impl Chosen {
    /// Those of them that exist.
    pub fn ids(&self, engine: &Engine) -> Vec<ContainerId> {
        match self {
            Self::Names(names) => names
                .iter()
                .filter_map(|name| engine.find_container(name).ok())
                .collect(),
            Self::Found(targets) => targets.iter().map(|target| target.id.clone()).collect(),
        }
    }

    /// Runs `action` on each, prints what it was called when it worked, and goes on after
    /// failures; gives the exit code of the last one.
    pub fn for_each(
        self,
        engine: &mut Engine,
        missing: Missing,
        mut action: impl FnMut(&mut Engine, &ContainerId) -> Result<()>,
    ) -> Result<u8> {
        let targets = match self {
            Self::Names(names) => names.into_iter().map(|name| (name, None)).collect(),
            Self::Found(targets) => targets
                .into_iter()
                .map(|target| (target.called, Some(target.id)))
                .collect::<Vec<_>>(),
        };
        let mut code = 0;
        for (called, id) in targets {
            let found = match id {
                Some(id) => Ok(id),
                None => engine.find_container(&called).map_err(CliError::from),
            };
            match found.and_then(|id| action(engine, &id)) {
                Ok(()) => super::print_line(&called)?,
                Err(error)
                    if error.kind == Some(ErrorKind::NotFound) && missing == Missing::Ignore => {}
                Err(error) => {
                    let error = match missing {
                        Missing::Refuse => error,
                        _ => error.with_removal_code(),
                    };
                    error.print();
                    code = error.code;
                }
            }
        }
        Ok(code)
    }
}
