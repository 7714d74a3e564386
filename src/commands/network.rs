//! `selkie network connect|create|disconnect|exists|inspect|ls|prune|reload|rm|update`.

mod change;

use std::collections::BTreeMap;

use clap::ArgMatches;
use selkie_engine::container::Status;
use selkie_engine::network::{NetworkUser, StoredNetwork};
use selkie_engine::{Engine, ErrorKind};

use super::filter::{self, LabelFilter};
use super::{exists, inspect, prompt};
use crate::cli::CommandSpec;
use crate::cli::flag::{self, Flags, list, positionals, switch, value};
use crate::error::{CliError, Result, for_each};
use crate::format::list::{ListFormat, is_json, render_json};
use crate::format::network::{Member, NetworkData, NetworkRow};
use crate::format::time;
use crate::go_template::Value;
use crate::session::Session;

pub use change::{CONNECT, CREATE, DISCONNECT, RELOAD, UPDATE};

/// `network exists`.
pub const EXISTS: CommandSpec = CommandSpec {
    name: "exists",
    aliases: &[],
    about: "Exit with 0 if a network exists, with 1 if not",
    examples: "Examples:
  selkie network exists backend || selkie network create backend",
    flags: exists::flags,
    run: |session, matches| {
        let name = exists::name(matches)?;
        exists::answer(session.open_engine()?.network(name))
    },
};

/// `network inspect`.
pub const INSPECT: CommandSpec = CommandSpec {
    name: "inspect",
    aliases: &[],
    about: "Show everything about networks",
    examples: "Examples:
  selkie network inspect backend
  selkie network inspect --format '{{range .Subnets}}{{.Subnet}} {{end}}' backend",
    flags: inspect::common_flags,
    run: inspect,
};

/// `network ls`.
pub const LS: CommandSpec = CommandSpec {
    name: "ls",
    aliases: &["list"],
    about: "List networks",
    examples: "Examples:
  selkie network ls
  selkie network ls --quiet --filter dangling=true",
    flags: |command| {
        command
            .arg(
                list(
                    "filter",
                    "KEY=VALUE",
                    "Only those that match: name, id, label, driver, dangling, until",
                )
                .short('f'),
            )
            .arg(flag::format(
                "json, or a Go template (table TEMPLATE adds headings)",
            ))
            .arg(switch("no-trunc", "Show whole IDs"))
            .arg(switch("noheading", "Leave out the headings").short('n'))
            .arg(switch("quiet", "Names only").short('q'))
    },
    run: ls,
};

/// `network prune`.
pub const PRUNE: CommandSpec = CommandSpec {
    name: "prune",
    aliases: &[],
    about: "Remove networks that no container is in",
    examples: "Examples:
  selkie network prune --force
  selkie network prune --filter label=temporary",
    flags: |command| {
        command
            .arg(list(
                "filter",
                "KEY=VALUE",
                "Only those that match: label, until, and what selkie network ls knows",
            ))
            .arg(switch("force", "Do not ask").short('f'))
    },
    run: prune,
};

/// `network rm`.
pub const RM: CommandSpec = CommandSpec {
    name: "rm",
    aliases: &["remove"],
    about: "Remove networks",
    examples: "Examples:
  selkie network rm backend
  selkie network rm --force backend frontend",
    flags: |command| {
        command
            .arg(positionals("names", "NETWORK", "Names or IDs"))
            .arg(
                switch(
                    "force",
                    "Remove the containers in them too; names that do not exist are no error",
                )
                .short('f'),
            )
            .arg(
                value(
                    "time",
                    "SECONDS",
                    "With --force, seconds between stop signal and SIGKILL (default: at once)",
                )
                .short('t'),
            )
    },
    run: rm,
};

fn inspect(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let names = matches.texts("names");
    if names.is_empty() {
        return Err(CliError::new("you must provide at least one network name"));
    }
    let mut engine = session.open_engine()?;
    inspect::show(&names, matches, |name| inspected(&mut engine, name))
}

/// What `inspect` shows of a network.
pub fn inspected(engine: &mut Engine, name: &str) -> Result<Value> {
    let stored = engine.network(name)?;
    let users = engine.network_users()?.remove(&stored.definition.name);
    let members = members(engine, &stored, &users.unwrap_or_default())?;
    inspect::value(&NetworkData::new(&stored).with_members(members))
}

/// Those of `users` that run.
fn members(
    engine: &Engine,
    stored: &StoredNetwork,
    users: &[NetworkUser],
) -> Result<BTreeMap<String, Member>> {
    let network = &stored.definition;
    let mut members = BTreeMap::new();
    for user in users {
        let container = match engine.container(&user.id) {
            Ok(container) => container,
            // Removed since we looked.
            Err(error) if error.kind == ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        if !matches!(container.status, Status::Running | Status::Stopping) {
            continue;
        }
        let attachment = engine
            .container_networks(&container)?
            .into_iter()
            .find(|place| place.network.id == network.id)
            .and_then(|place| place.attachment);
        if let Some(attachment) = attachment {
            let member = Member::new(&user.name, network, &attachment);
            members.insert(user.id.as_str().to_owned(), member);
        }
    }
    Ok(members)
}

fn ls(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let filters = NetworkFilters::parse(&matches.texts("filter"))?;
    let (quiet, format) = (matches.on("quiet"), matches.text("format"));
    if quiet && format.is_some() {
        return Err(CliError::new("--quiet and --format exclude each other"));
    }
    let mut engine = session.open_engine()?;
    let users = engine.network_users()?;
    let networks: Vec<StoredNetwork> = engine
        .networks()?
        .into_iter()
        .filter(|network| filters.accept(network, users.contains_key(&network.definition.name)))
        .collect();
    if quiet {
        let names: Vec<String> = networks
            .into_iter()
            .map(|network| network.definition.name + "\n")
            .collect();
        super::print(&names.concat())?;
        return Ok(0);
    }
    if is_json(format) {
        let all: Vec<NetworkData> = networks.iter().map(NetworkData::new).collect();
        super::print(&render_json(&all)?)?;
        return Ok(0);
    }
    let full = matches.on("no-trunc");
    let rows: Vec<NetworkRow> = networks
        .iter()
        .map(|network| NetworkRow::new(network, full))
        .collect();
    let list = ListFormat {
        name: "list networks",
        format,
        default: "{{.ID}}\t{{.Name}}\t{{.Driver}}",
        headings: &[("ID", "NETWORK ID")],
        no_heading: matches.on("noheading"),
    };
    super::print(&list.render(&rows, &NetworkRow::default())?)?;
    Ok(0)
}

fn prune(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let filters = NetworkFilters::parse(&matches.texts("filter"))?;
    if !matches.on("force")
        && !prompt::confirm(
            "WARNING! This will remove all networks not used by at least one container.",
        )?
    {
        return Ok(0);
    }
    let mut engine = session.open_engine()?;
    for name in engine.prune_networks(|network| filters.accept(network, false))? {
        super::print_line(&name)?;
    }
    Ok(0)
}

fn rm(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let (names, force) = (matches.texts("names"), matches.on("force"));
    let seconds = matches.number::<u64>("time")?;
    if names.is_empty() {
        return Err(CliError::new("you must provide at least one network name"));
    }
    if seconds.is_some() && !force {
        return Err(CliError::new(
            "--force option must be specified to use the --time option",
        ));
    }
    let mut engine = session.open_engine()?;
    for_each(names, |name| {
        if let Some(seconds) = seconds {
            stop_users(&mut engine, name, seconds)?;
        }
        match engine.remove_network(name, force) {
            Ok(()) => super::print_line(name),
            Err(error) if force && error.kind == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(CliError::from(error).with_removal_code()),
        }
    })
}

/// Lets the containers in a network end by themselves before they are removed.
fn stop_users(engine: &mut Engine, network: &str, seconds: u64) -> Result<()> {
    let name = engine.network_name(network)?;
    let users = engine.network_users()?.remove(&name).unwrap_or_default();
    let ids: Vec<_> = users.into_iter().map(|user| user.id).collect();
    let timeout = Some(std::time::Duration::from_secs(seconds));
    for stopped in engine.stop_all(&ids, timeout) {
        match stopped {
            Err(error) if error.kind != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// `--filter` of networks.
#[derive(Debug, Default)]
struct NetworkFilters {
    names: Vec<regex_lite::Regex>,
    ids: Vec<String>,
    labels: Vec<LabelFilter>,
    drivers: Vec<String>,
    dangling: Option<bool>,
    until: Option<jiff::Timestamp>,
}

impl NetworkFilters {
    fn parse(texts: &[String]) -> Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            let (key, value, wanted) = filter::split(text)?;
            match key {
                "name" if wanted => {
                    filters
                        .names
                        .push(regex_lite::Regex::new(value).map_err(|error| {
                            CliError::new(format!(
                                "--filter {text}: not a regular expression: {error}"
                            ))
                        })?);
                }
                "id" if wanted => filters.ids.push(value.to_ascii_lowercase()),
                "label" => filters.labels.push(LabelFilter::parse(value, wanted)),
                "driver" if wanted => filters.drivers.push(value.to_owned()),
                "dangling" => {
                    let dangling: bool = value.parse().map_err(|_| {
                        CliError::new(format!("--filter {text}: write true or false"))
                    })?;
                    filters.dangling = Some(dangling == wanted);
                }
                "until" if wanted => filters.until = Some(filter::point_in_time(value)?),
                _ => {
                    return Err(
                        CliError::new(format!("--filter {text}: invalid filter {key:?}"))
                            .with_hint("choose from name, id, label, driver, dangling, until"),
                    );
                }
            }
        }
        Ok(filters)
    }

    fn accept(&self, network: &StoredNetwork, is_used: bool) -> bool {
        let definition = &network.definition;
        let created = time::parse(&network.created);
        // The default network is never in the way.
        let is_dangling = !is_used && !network.is_default();
        (self.names.is_empty()
            || self
                .names
                .iter()
                .any(|name| name.is_match(&definition.name)))
            && (self.ids.is_empty() || self.ids.iter().any(|id| definition.id.starts_with(id)))
            && self
                .labels
                .iter()
                .all(|label| label.accepts(&network.labels))
            && (self.drivers.is_empty() || self.drivers.contains(&network.driver))
            && self.dangling.is_none_or(|dangling| dangling == is_dangling)
            && self.until.is_none_or(|until| created <= Some(until))
    }
}
