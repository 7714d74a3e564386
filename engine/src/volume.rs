//! Named volumes: directories of the login that containers share and that outlive them.
//!
//! A volume's files carry the owners of one set of ID maps (`owned_by`). Containers with the same
//! maps use it at the same time; for one with other maps the owners are changed first, which is only
//! done while nobody uses the volume. `moving_to` records such a change before it begins, so that a
//! crash in the middle is finished by the next user.

pub(crate) mod content;

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Row, Transaction};
use selkie_userns::IdMaps;
use serde::Serialize;

use crate::Engine;
use crate::container::lease::{maps_json, parse_maps};
use crate::container::{ContainerId, fill_random, name};
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{MountOption, MountSource};
use crate::state::now;

/// One named volume.
#[derive(Debug, Clone, Serialize)]
pub struct Volume {
    /// Its name (64 hex digits for an anonymous one).
    pub name: String,
    /// RFC 3339.
    pub created: String,
    /// True when made for a container that did not name it: goes away with `rm -v` and `--rm`.
    pub anonymous: bool,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// The directory it shows; made when it is first used.
    pub mountpoint: PathBuf,
    /// IDs of the containers that have it.
    pub users: Vec<String>,
    /// The maps its files' owners are written in; `None` before its first use.
    pub owned_by: Option<IdMaps>,
}

impl Engine {
    /// Makes a volume; with no name, one of 64 hex digits. Gives its name.
    ///
    /// # Errors
    /// `Conflict`: the name is taken; `InvalidInput`: a name that is none.
    pub fn create_volume(
        &mut self,
        name: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Result<String> {
        let name = match name {
            Some(given) => {
                name::check(given)?;
                given.to_owned()
            }
            None => random_name()?,
        };
        let labels = labels_json(labels)?;
        self.database.write(Durability::PowerCut, |transaction| {
            if exists(transaction, &name)? {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("volume with name {name} already exists: volume already exists"),
                ));
            }
            transaction.execute(
                "INSERT INTO volume (name, created, anonymous, labels) VALUES (?1, ?2, 0, ?3)",
                [&name, &now(), &labels],
            )?;
            Ok(())
        })?;
        content::make(&self.config, &name)?;
        Ok(name)
    }

    /// All volumes by name.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        self.database.read(|connection| {
            let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let mut statement = connection
                .prepare("SELECT volume, container FROM volume_use ORDER BY container")?;
            for row in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
                let (volume, container): (String, String) = row?;
                users.entry(volume).or_default().push(container);
            }
            let mut statement = connection.prepare(
                "SELECT name, created, anonymous, labels, owned_by FROM volume ORDER BY name",
            )?;
            let rows = statement.query_map([], RawVolume::read)?;
            rows.map(|row| {
                let row = row?;
                let users = users.remove(&row.name).unwrap_or_default();
                self.volume_from(row, users)
            })
            .collect()
        })
    }

    /// One volume by name or unique prefix of it.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` when a prefix fits several.
    pub fn volume(&self, name_or_prefix: &str) -> Result<Volume> {
        let mut fitting: Vec<Volume> = self
            .volumes()?
            .into_iter()
            .filter(|volume| volume.name.starts_with(name_or_prefix))
            .collect();
        if let Some(exact) = fitting
            .iter()
            .position(|volume| volume.name == name_or_prefix)
        {
            return Ok(fitting.swap_remove(exact));
        }
        match fitting.len() {
            1 if !name_or_prefix.is_empty() => Ok(fitting.swap_remove(0)),
            0 | 1 => Err(Error::new(
                ErrorKind::NotFound,
                format!("no volume with name {name_or_prefix:?} found: no such volume"),
            )),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("more than one result for volume name {name_or_prefix}: give more of it"),
            )),
        }
    }

    /// Removes a volume and its files; `force` removes the containers that have it first.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while a container has it.
    pub fn remove_volume(&mut self, name: &str, force: bool) -> Result<()> {
        let volume = self.volume(name)?;
        if !volume.users.is_empty() {
            if !force {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "volume {} is being used by the following container(s): {}: volume is being used",
                        volume.name,
                        volume.users.join(", ")
                    ),
                )
                .with_hint("remove those containers first, or use --force to remove them too"));
            }
            for user in &volume.users {
                if let Some(id) = ContainerId::parse(user) {
                    match self.remove(&id, true, false) {
                        Err(error) if error.kind == ErrorKind::NotFound => {}
                        other => other?,
                    }
                }
            }
        }
        self.drop_volumes(std::slice::from_ref(&volume.name))
    }

    /// Removes all volumes no container has; gives them.
    ///
    /// # Errors
    /// As [`Self::remove_volume`].
    pub fn prune_volumes(&mut self) -> Result<Vec<Volume>> {
        let mut removed = Vec::new();
        for volume in self.volumes()? {
            if !volume.users.is_empty() {
                continue;
            }
            match self.drop_volumes(std::slice::from_ref(&volume.name)) {
                Ok(()) => removed.push(volume),
                // A container began to use it, or somebody else removed it.
                Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Removes rows (while nobody uses them), then files.
    pub(crate) fn drop_volumes(&mut self, names: &[String]) -> Result<()> {
        self.database.write(Durability::PowerCut, |transaction| {
            for name in names {
                let used: Option<String> = transaction
                    .query_row(
                        "SELECT container FROM volume_use WHERE volume = ?1 LIMIT 1",
                        [name],
                        |row| row.get(0),
                    )
                    .optional()?;
                if let Some(container) = used {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!("volume {name} is being used by container {container}"),
                    ));
                }
                transaction.execute("DELETE FROM volume WHERE name = ?1", [name])?;
            }
            Ok(())
        })?;
        for name in names {
            self.remove_volume_files(name)?;
        }
        Ok(())
    }

    /// Removes the directory of a volume without a row.
    pub(crate) fn remove_volume_files(&self, name: &str) -> Result<()> {
        let dir = self.config.volumes_dir().join(name);
        selkie_storage::remove_tree(&dir)
            .map_err(|error| Error::machine(format!("remove volume {name}"), error))
    }

    fn volume_from(&self, row: RawVolume, users: Vec<String>) -> Result<Volume> {
        Ok(Volume {
            mountpoint: self.config.volume_data(&row.name),
            labels: serde_json::from_str(&row.labels).map_err(|error| {
                Error::machine(format!("read the labels of volume {}", row.name), error)
            })?,
            owned_by: match &row.owned_by {
                Some(json) => Some(parse_maps(json, &row.name)?),
                None => None,
            },
            name: row.name,
            created: row.created,
            anonymous: row.anonymous,
            users,
        })
    }
}

struct RawVolume {
    name: String,
    created: String,
    anonymous: bool,
    labels: String,
    owned_by: Option<String>,
}

impl RawVolume {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: row.get(0)?,
            created: row.get(1)?,
            anonymous: row.get(2)?,
            labels: row.get(3)?,
            owned_by: row.get(4)?,
        })
    }
}

fn labels_json(labels: &BTreeMap<String, String>) -> Result<String> {
    serde_json::to_string(labels).map_err(|error| Error::machine("write labels", error))
}

fn exists(connection: &Connection, name: &str) -> Result<bool> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM volume WHERE name = ?1")?
        .exists([name])?)
}

fn random_name() -> Result<String> {
    let mut bytes = [0u8; 32];
    fill_random(&mut bytes)?;
    Ok(ContainerId::from_bytes(bytes).to_string())
}

/// Gives each anonymous volume its name; those names.
pub(crate) fn name_anonymous(mounts: &mut [MountOption]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for mount in mounts {
        match &mount.source {
            MountSource::AnonymousVolume => {
                let name = random_name()?;
                names.push(name.clone());
                mount.source = MountSource::Volume(name);
            }
            MountSource::Volume(given) => name::check(given)?,
            MountSource::Bind(_) | MountSource::Tmpfs => {}
        }
    }
    Ok(names)
}

/// The volumes among `mounts`.
pub(crate) fn mounted_names(mounts: &[MountOption]) -> Vec<String> {
    let mut names: Vec<String> = mounts
        .iter()
        .filter_map(|mount| match &mount.source {
            MountSource::Volume(name) => Some(name.clone()),
            _ => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// All maps the files of these volumes may be owned in.
pub(crate) fn owners(connection: &Connection, names: &[String]) -> Result<Vec<IdMaps>> {
    let mut maps = Vec::new();
    for name in names {
        let row: Option<(Option<String>, Option<String>)> = connection
            .prepare_cached("SELECT owned_by, moving_to FROM volume WHERE name = ?1")?
            .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (owned_by, moving_to) = row.unwrap_or_default();
        for json in [owned_by, moving_to].into_iter().flatten() {
            maps.push(parse_maps(&json, name)?);
        }
    }
    Ok(maps)
}

/// Notes that a new container uses `names`, making those that do not exist.
pub(crate) fn use_volumes(
    transaction: &Transaction<'_>,
    container: &ContainerId,
    names: &[String],
    anonymous: &[String],
    created: &str,
) -> Result<()> {
    for name in names {
        transaction.execute(
            "INSERT OR IGNORE INTO volume (name, created, anonymous, labels) VALUES (?1, ?2, ?3, '{}')",
            rusqlite::params![name, created, anonymous.contains(name)],
        )?;
        transaction.execute(
            "INSERT INTO volume_use (volume, container) VALUES (?1, ?2)",
            [name, container.as_str()],
        )?;
    }
    Ok(())
}

/// A change of owners that must be made before a container starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    /// Which volume.
    pub volume: String,
    /// Owners change from the first to the second, then on to the third…
    pub through: Vec<IdMaps>,
}

/// Claims the volumes of a container that is about to start with `maps`: which of them must change
/// owners first. Records those changes as begun.
///
/// # Errors
/// `Conflict` when a running container uses one with other maps.
pub(crate) fn claim(
    transaction: &Transaction<'_>,
    container: &ContainerId,
    names: &[String],
    maps: &IdMaps,
    is_active: &dyn Fn(&str) -> bool,
) -> Result<Vec<Move>> {
    let mut moves = Vec::new();
    for name in names {
        let (owned_by, moving_to): (Option<String>, Option<String>) = transaction.query_row(
            "SELECT owned_by, moving_to FROM volume WHERE name = ?1",
            [name],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let mut through = Vec::new();
        for json in [&owned_by, &moving_to].into_iter().flatten() {
            through.push(parse_maps(json, name)?);
        }
        if through.last() != Some(maps) {
            through.push(maps.clone());
        }
        if owned_by.is_some() && through.len() > 1 {
            refuse_while_used(transaction, container, name, is_active)?;
            moves.push(Move {
                volume: name.clone(),
                through,
            });
        } else if owned_by.is_none() {
            set_owner(transaction, name, maps)?;
        }
        if let Some(next) = moves
            .last()
            .filter(|last| last.volume == *name)
            .and_then(|last| last.through.get(1))
        {
            transaction.execute(
                "UPDATE volume SET moving_to = ?2 WHERE name = ?1",
                [name, &maps_json(next)?],
            )?;
        }
    }
    Ok(moves)
}

/// Notes that a volume's files are owned in `maps` and no change is under way.
pub(crate) fn set_owner(transaction: &Transaction<'_>, name: &str, maps: &IdMaps) -> Result<()> {
    transaction.execute(
        "UPDATE volume SET owned_by = ?2, moving_to = NULL WHERE name = ?1",
        [name, &maps_json(maps)?],
    )?;
    Ok(())
}

fn refuse_while_used(
    transaction: &Transaction<'_>,
    container: &ContainerId,
    volume: &str,
    is_active: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let mut statement = transaction.prepare(
        "SELECT id, name FROM container JOIN volume_use ON container = id \
         WHERE volume = ?1 AND id IS NOT ?2",
    )?;
    let users = statement.query_map([volume, container.as_str()], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    for user in users {
        let (id, name): (String, String) = user?;
        if is_active(&id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "volume {volume} is in use by the running container {name}, which has other IDs: its files cannot belong to both slices at once"
                ),
            )
            .with_hint(format!(
                "stop {name} first, or run both with the same IDs (--userns=host)"
            )));
        }
    }
    Ok(())
}
