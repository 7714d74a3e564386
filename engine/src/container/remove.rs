//! Removing containers: the row first, then what it stood for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rusqlite::OptionalExtension;
use selkie_storage::remove_tree;

use crate::container::ContainerId;
use crate::container::list::{no_such_container, stored_id};
use crate::container::spare;
use crate::database::{Database, Durability};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::LockedContainer;
use crate::state::{Observed, observe};
use crate::{Engine, EngineConfig};

/// How long a forced removal waits for the monitor to finish after the kill.
const PATIENCE: Duration = Duration::from_secs(30);

impl Engine {
    /// Removes it; `force` kills it first, `volumes` removes its anonymous volumes too.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it runs and `force` is not given; `InvalidInput` while others share its
    /// network.
    pub fn remove(&mut self, id: &ContainerId, force: bool, volumes: bool) -> Result<()> {
        if let Some(dependents) = self.dependents()?.remove(id) {
            let ids: Vec<&str> = dependents.iter().map(ContainerId::as_str).collect();
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "container {id} has dependent containers which must be removed before it: {}: \
                     they share its network",
                    ids.join(", ")
                ),
            )
            .with_hint("selkie rm --depend removes them too"));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if !self.has_row(id)? {
                return Err(no_such_container(id.as_str()));
            }
            if let Observed::Running(state) = self.observe(id)? {
                if !force {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!(
                            "cannot remove container {id} as it is running - running or paused containers cannot be removed without force: container state improper"
                        ),
                    )
                    .with_hint("stop it first, or use --force"));
                }
                self.kill_and_wait(&state)?;
            }
            if let Some(lock) = LockedContainer::try_lock(&self.config, id)? {
                // Only the lock's holder can be sure that nobody has started it meanwhile.
                if matches!(
                    observe(std::os::fd::AsFd::as_fd(&lock), ".")?,
                    Observed::Running(_)
                ) {
                    continue;
                }
                return self.remove_locked(id, lock, volumes);
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("container {id} is held by another command for very long"),
                ));
            }
            // Its monitor is finishing (a disposable one removes it itself), or somebody starts it.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Removes a container whose lock the caller holds and which does not run.
    pub(crate) fn remove_locked(
        &mut self,
        id: &ContainerId,
        lock: LockedContainer,
        volumes: bool,
    ) -> Result<()> {
        let removed = remove_row_and_files(&mut self.database, &self.config, id, volumes);
        drop(lock);
        removed
    }

    /// Those that share the network of another (`--network container:`), oldest first, by the container
    /// whose network it is.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn dependents(&self) -> Result<HashMap<ContainerId, Vec<ContainerId>>> {
        self.database.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, config ->> '$.options.network.Container' AS owner FROM container \
                 WHERE owner IS NOT NULL ORDER BY created, id",
            )?;
            let mut dependents: HashMap<_, Vec<_>> = HashMap::new();
            for row in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
                let (id, owner): (String, String) = row?;
                dependents
                    .entry(stored_id(&owner)?)
                    .or_default()
                    .push(stored_id(&id)?);
            }
            Ok(dependents)
        })
    }

    fn has_row(&self, id: &ContainerId) -> Result<bool> {
        self.database.read(|connection| {
            let row: Option<i64> = connection
                .prepare_cached("SELECT 1 FROM container WHERE id = ?1")?
                .query_row([id.as_str()], |row| row.get(0))
                .optional()?;
            Ok(row.is_some())
        })
    }
}

/// Deletes the row (its lease and volume uses with it), then the files, then the anonymous volumes
/// nobody else has. The caller holds the container's lock.
pub(crate) fn remove_row_and_files(
    database: &mut Database,
    paths: &EngineConfig,
    id: &ContainerId,
    volumes: bool,
) -> Result<()> {
    let orphaned = delete_row(database, id, volumes)?;
    remove_files(paths, id, &orphaned)
}

/// A container's row.
const DELETE: &str = "DELETE FROM container WHERE id = ?1";

/// The anonymous volumes that nobody but a container has.
const ORPHANED: &str = "SELECT volume FROM volume_use JOIN volume ON name = volume \
     WHERE container = ?1 AND anonymous = 1 AND NOT EXISTS ( \
       SELECT 1 FROM volume_use AS other \
       WHERE other.volume = volume_use.volume AND other.container <> ?1)";

/// Opens the database and reads in it what [`delete_row`] will need, when somebody waits for that.
pub(crate) fn prepare_to_delete(database: &Database) -> Result<()> {
    database.read(|connection| {
        connection.prepare_cached(ORPHANED)?;
        connection.prepare_cached(DELETE)?;
        Ok(())
    })
}

/// Deletes the row, and those of its anonymous volumes that nobody else has if `volumes`: their
/// names. From here on the container does not exist; its files are garbage.
pub(crate) fn delete_row(
    database: &mut Database,
    id: &ContainerId,
    volumes: bool,
) -> Result<Vec<String>> {
    database.write(Durability::ProcessCrash, |transaction| {
        let mut orphaned = Vec::new();
        if volumes {
            let mut statement = transaction.prepare_cached(ORPHANED)?;
            let rows = statement.query_map([id.as_str()], |row| row.get::<_, String>(0))?;
            for row in rows {
                orphaned.push(row?);
            }
        }
        transaction.prepare_cached(DELETE)?.execute([id.as_str()])?;
        for volume in &orphaned {
            transaction.execute("DELETE FROM volume WHERE name = ?1", [volume])?;
        }
        Ok(orphaned)
    })
}

/// Removes the files of a container without a row and of the named volumes, and the socket that a
/// killed monitor has left.
pub(crate) fn remove_files(
    paths: &EngineConfig,
    id: &ContainerId,
    volumes: &[String],
) -> Result<()> {
    let _ = rustix::fs::unlink(paths.attach_dir().join(id.as_str()));
    let dir = paths.container_dir(id);
    spare::remove_directory(&dir)
        .map_err(|error| Error::machine(format!("remove container {id}"), error))?;
    for volume in volumes {
        remove_tree(&paths.volumes_dir().join(volume))
            .map_err(|error| Error::machine(format!("remove volume {volume}"), error))?;
    }
    Ok(())
}
