//! `selkie rm`.

use std::cmp::Reverse;
use std::collections::HashMap;

use clap::{ArgMatches, Command};
use selkie_engine::container::ContainerId;
use selkie_engine::{Engine, ErrorKind};

use super::stop;
use super::targets::{self, Chosen, Missing, Target};
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, switch};
use crate::error::{CliError, Result};
use crate::session::Session;

/// By the container whose network they share.
type Dependents = HashMap<ContainerId, Vec<ContainerId>>;

/// The command.
pub const RM: CommandSpec = CommandSpec {
    name: "rm",
    aliases: &["remove"],
    about: "Remove containers",
    examples: "Examples:
  selkie rm job
  selkie rm --force --time 0 web
  selkie rm --force --depend database
  selkie rm --all",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .args(targets::flags("All containers"))
        .arg(targets::id_file_flag())
        // -f is --force here, as in Podman and Docker.
        .mut_arg("filter", |filter| filter.short(None))
        .arg(switch(
            "depend",
            "Remove those first that share the network of one of them",
        ))
        .arg(
            switch(
                "force",
                "Stop running ones first; names that do not exist are no error",
            )
            .short('f'),
        )
        .arg(switch("ignore", "Names that do not exist are no error").short('i'))
        .arg(switch("volumes", "Remove their anonymous volumes too").short('v'))
        .arg(stop::time_flag())
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    targets::check(matches)?;
    let timeout = stop::timeout(matches)?;
    let (force, volumes) = (matches.on("force"), matches.on("volumes"));
    if timeout.is_some() && !force {
        return Err(CliError::new("--time needs --force"));
    }
    let missing = if force || matches.on("ignore") {
        Missing::Ignore
    } else {
        Missing::RefuseRemoval
    };
    let mut engine = session.open_engine()?;
    let chosen = targets::choose(&engine, matches, |_| true)?;
    let dependents = engine.dependents()?;
    let chosen = if matches.on("depend") {
        with_dependents(&engine, chosen, &dependents, missing)?
    } else {
        dependents_first(&engine, chosen, &dependents)
    };
    // What will be refused goes on.
    let ids = chosen.ids(&engine);
    let is_removable = |id: &ContainerId| {
        let mut all = dependents.get(id).into_iter().flatten();
        all.all(|dependent| ids.contains(dependent))
    };
    if force {
        let removable = ids.iter().filter(|id| is_removable(id)).cloned();
        stop::stop_together(&engine, &removable.collect::<Vec<_>>(), timeout);
    }
    chosen.for_each(&mut engine, missing, |engine, id| {
        if force && is_removable(id) {
            // Politely, as Podman does: the stop signal first.
            engine.stop(id, timeout)?;
        }
        Ok(engine.remove(id, force, volumes)?)
    })
}

/// Those and all that share a network with them, by whatever detour; in an order in which none is in
/// the way of another.
fn with_dependents(
    engine: &Engine,
    chosen: Chosen,
    dependents: &Dependents,
    missing: Missing,
) -> Result<Chosen> {
    let mut queue = match chosen {
        Chosen::Found(targets) => targets.into_iter().map(|target| target.id).collect(),
        Chosen::Names(names) => {
            let mut ids = Vec::new();
            for name in names {
                match engine.find_container(&name) {
                    Ok(id) => ids.push(id),
                    Err(error)
                        if error.kind == ErrorKind::NotFound && missing == Missing::Ignore => {}
                    Err(error) => return Err(CliError::from(error).with_removal_code()),
                }
            }
            ids
        }
    };
    let mut found: Vec<Target> = Vec::new();
    while let Some(id) = queue.pop() {
        if found.iter().any(|target| target.id == id) {
            continue;
        }
        queue.extend(dependents.get(&id).into_iter().flatten().cloned());
        found.push(Target {
            called: id.as_str().to_owned(),
            id,
        });
    }
    Ok(dependents_first(engine, Chosen::Found(found), dependents))
}

/// In an order in which none is in the way of another: one that shares a network is younger than the
/// container whose network it is, so those with dependents come last, and the younger ones first.
fn dependents_first(engine: &Engine, chosen: Chosen, dependents: &Dependents) -> Chosen {
    if dependents.is_empty() {
        return chosen;
    }
    let age = |id: &ContainerId| {
        let is_shared = dependents.contains_key(id);
        is_shared.then(|| engine.container(id).ok().map(|one| Reverse(one.created)))
    };
    match chosen {
        Chosen::Names(mut names) => {
            names.sort_by_cached_key(|name| age(&engine.find_container(name).ok()?));
            Chosen::Names(names)
        }
        Chosen::Found(mut targets) => {
            targets.sort_by_cached_key(|target| age(&target.id));
            Chosen::Found(targets)
        }
    }
}
