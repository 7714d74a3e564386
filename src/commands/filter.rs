//! `--filter KEY=VALUE` of `ps` and its relatives: values of one key are alternatives, keys must
//! all match.

use std::collections::BTreeMap;

use jiff::Timestamp;
use regex_lite::Regex;
use selkie_engine::Engine;
use selkie_engine::container::{Container, Status};
use selkie_engine::options::MountSource;

use crate::error::{CliError, Result};
use crate::format::container::state;
use crate::format::time;

/// Filters on containers, ready to be asked.
#[derive(Debug, Default)]
pub struct ContainerFilters {
    ids: Vec<Regex>,
    names: Vec<Regex>,
    statuses: Vec<String>,
    exit_codes: Vec<i32>,
    labels: Vec<LabelFilter>,
    ancestors: Vec<String>,
    volumes: Vec<String>,
    networks: Vec<String>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

/// `label=NAME`, `label=NAME=VALUE`, and `label!=…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelFilter {
    name: String,
    value: Option<String>,
    wanted: bool,
}

impl LabelFilter {
    /// Parses what follows `label=` or `label!=`.
    pub fn parse(text: &str, wanted: bool) -> Self {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        Self {
            name: name.to_owned(),
            value,
            wanted,
        }
    }

    /// Whether labels match.
    pub fn accepts(&self, labels: &BTreeMap<String, String>) -> bool {
        let matches = match (&self.value, labels.get(&self.name)) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(value), Some(found)) => value == found,
        };
        matches == self.wanted
    }
}

/// `KEY=VALUE` or `KEY!=VALUE`; the last says whether it shall match.
pub fn split(text: &str) -> Result<(&str, &str, bool)> {
    let (key, value) = text.split_once('=').ok_or_else(|| {
        CliError::new(format!("--filter {text}: invalid filter")).with_hint("write KEY=VALUE")
    })?;
    Ok(match key.strip_suffix('!') {
        Some(key) => (key, value, false),
        None => (key, value, true),
    })
}

/// Podman's states; those Selkie's containers are never in match nothing.
const STATES: &[&str] = &[
    "configured",
    "created",
    "exited",
    "initialized",
    "paused",
    "removing",
    "running",
    "stopped",
    "stopping",
    "unknown",
];

impl ContainerFilters {
    /// Parses flags; `before=` and `since=` look other containers up, `ancestor=` images.
    pub fn parse(texts: &[String], containers: &[Container], engine: &Engine) -> Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            filters.add(text, containers, engine)?;
        }
        Ok(filters)
    }

    fn add(&mut self, text: &str, containers: &[Container], engine: &Engine) -> Result<()> {
        let (key, value, wanted) = split(text)?;
        let refuse = |why: String| CliError::new(format!("--filter {text}: {why}"));
        if !wanted && key != "label" {
            return Err(refuse("only label can be negated".to_owned()));
        }
        match key {
            "id" => self.ids.push(regex(text, &format!("^{value}"))?),
            "name" => self.names.push(regex(text, value)?),
            "status" if STATES.contains(&value) => self.statuses.push(value.to_owned()),
            "status" => {
                return Err(refuse(format!("unknown container state: {value}"))
                    .with_hint("choose from created, running, stopping, exited"));
            }
            "exited" => self.exit_codes.push(
                value
                    .parse()
                    .map_err(|_| refuse(format!("{value:?} is not an exit code")))?,
            ),
            "label" => self.labels.push(LabelFilter::parse(value, wanted)),
            // An image that is not here any more can still be named as it was.
            "ancestor" => self.ancestors.push(match engine.image(value) {
                Ok(image) => image.id,
                Err(_) => value.to_owned(),
            }),
            "volume" => self.volumes.push(value.to_owned()),
            "before" => self.before = Some(created(text, value, containers)?),
            "since" => self.since = Some(created(text, value, containers)?),
            "until" => self.until = Some(point_in_time(value)?),
            "network" => self.networks.push(engine.network_name(value)?),
            "pod" | "health" | "restart-policy" => {
                return Err(refuse(format!("{key} is not offered yet")));
            }
            _ => {
                return Err(refuse(format!("{key} is an invalid filter")).with_hint(
                    "choose from id, name, status, exited, label, ancestor, volume, network, before, \
                     since, until",
                ));
            }
        }
        Ok(())
    }

    /// Whether a container matches.
    pub fn accept(&self, container: &Container) -> bool {
        any(&self.ids, |id| id.is_match(container.id.as_str()))
            && any(&self.names, |name| name.is_match(&container.name))
            && any(&self.statuses, |wanted| {
                has_status(container.status, wanted)
            })
            && any(&self.exit_codes, |code| {
                container.status == Status::Exited
                    && container
                        .exit
                        .as_ref()
                        .is_some_and(|exit| exit.code == *code)
            })
            && self
                .labels
                .iter()
                .all(|label| label.accepts(&container.config.labels))
            && any(&self.ancestors, |ancestor| is_from(container, ancestor))
            && any(&self.volumes, |volume| has_volume(container, volume))
            && any(&self.networks, |network| is_in_network(container, network))
            && self.is_in_time(container)
    }

    /// Whether the filters ask for containers that do not run, so that `--all` goes without saying.
    pub fn ask_for_state(&self) -> bool {
        !self.statuses.is_empty() || !self.exit_codes.is_empty()
    }

    fn is_in_time(&self, container: &Container) -> bool {
        let Some(created) = time::parse(&container.created) else {
            return true;
        };
        self.before.is_none_or(|before| created < before)
            && self.since.is_none_or(|since| created > since)
            && self.until.is_none_or(|until| created <= until)
    }
}

fn any<T>(filters: &[T], matches: impl Fn(&T) -> bool) -> bool {
    filters.is_empty() || filters.iter().any(matches)
}

fn has_status(status: Status, wanted: &str) -> bool {
    match wanted {
        "stopped" => status == Status::Exited,
        "configured" => status == Status::Created,
        wanted => state(status) == wanted,
    }
}

fn is_from(container: &Container, ancestor: &str) -> bool {
    container.image_id == ancestor
        || (ancestor.len() >= 12 && container.image_id.starts_with(ancestor))
        || container.config.image_name == ancestor
}

/// By the network's name, or by the mode as `inspect` shows it.
fn is_in_network(container: &Container, network: &str) -> bool {
    let mode = &container.config.options.network;
    mode.requests()
        .iter()
        .any(|request| request.name == network)
        || (mode.requests().is_empty() && mode.describe() == network)
}

fn has_volume(container: &Container, volume: &str) -> bool {
    container.config.options.mounts.iter().any(|mount| {
        mount.destination == volume
            || match &mount.source {
                MountSource::Volume(name) => name == volume,
                MountSource::Bind(path) => path.as_os_str() == volume,
                _ => false,
            }
    })
}

fn regex(text: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| {
        CliError::new(format!(
            "--filter {text}: not a regular expression: {error}"
        ))
    })
}

fn created(text: &str, name_or_id: &str, containers: &[Container]) -> Result<Timestamp> {
    containers
        .iter()
        .find(|container| {
            container.name == name_or_id
                || (!name_or_id.is_empty() && container.id.as_str().starts_with(name_or_id))
        })
        .and_then(|container| time::parse(&container.created))
        .ok_or_else(|| CliError::new(format!("--filter {text}: no such container: {name_or_id}")))
}

/// RFC 3339 (also without zone or time), seconds since 1970, or a duration back from now (`10m`).
pub fn point_in_time(text: &str) -> Result<Timestamp> {
    if let Some(time) = time::parse(text) {
        return Ok(time);
    }
    if let Ok(local) = text.parse::<jiff::civil::DateTime>()
        && let Ok(zoned) = local.to_zoned(jiff::tz::TimeZone::system())
    {
        return Ok(zoned.timestamp());
    }
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|seconds| seconds.is_finite());
    if let Some(time) =
        seconds.and_then(|seconds| Timestamp::from_nanosecond((seconds * 1e9) as i128).ok())
    {
        return Ok(time);
    }
    go_duration(text)
        .and_then(|back| Timestamp::now().checked_sub(back).ok())
        .ok_or_else(|| {
            CliError::new(format!("{text:?} is not a time")).with_hint(
                "write 2026-01-31T12:00:00Z, seconds since 1970, or how long ago: 90s, 10m, 1h30m",
            )
        })
}

/// Go's durations: `1h30m`, `1.5s`, `250ms`.
fn go_duration(text: &str) -> Option<jiff::SignedDuration> {
    let mut rest = text;
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|digits| *digits > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let length = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let factor = match &rest[..length] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * factor;
        rest = &rest[length..];
    }
    jiff::SignedDuration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        for (text, wanted, expected) in [
            ("a", true, true),
            ("a=1", true, true),
            ("a=2", true, false),
            ("b", true, false),
            ("a", false, false),
            ("a=2", false, true),
            ("b", false, true),
        ] {
            let filter = LabelFilter::parse(text, wanted);
            assert_eq!(filter.accepts(&labels), expected, "{text} {wanted}");
        }
        assert_eq!(split("label!=a=b").unwrap(), ("label", "a=b", false));
        assert!(split("label").is_err());
    }

    #[test]
    fn times_in_all_their_spellings() {
        let time = |text: &str| point_in_time(text).unwrap().as_second();
        assert_eq!(time("1970-01-01T00:01:00Z"), 60);
        assert_eq!(time("60"), 60);
        assert_eq!(time("60.9"), 60);
        assert!(time("1h30m") < time("1h"));
        assert_eq!(
            go_duration("1h30m"),
            Some(jiff::SignedDuration::from_secs(5400))
        );
        assert_eq!(
            go_duration("1.5s"),
            Some(jiff::SignedDuration::from_millis(1500))
        );
        for bad in ["", "h", "1x", "1h30", "yesterday", "1..2s", "inf", "nan"] {
            assert!(point_in_time(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_time_panics(text in ".*") {
            let _ = point_in_time(&text);
        }
    }
}
