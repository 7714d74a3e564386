//! Finding and listing containers: rows say what exists, the kernel says what runs.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rusqlite::{OptionalExtension, Row};

use crate::Engine;
use crate::container::lease::parse_maps;
use crate::container::{Container, ContainerConfig, ContainerId, ExitRecord, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::open_dir;
use crate::state::{Observed, observe};

/// The columns [`RawRow::read`] takes, in its order.
const COLUMNS: &str = "id, name, image_id, created, config, lease, owned_by, exit, disposable";

/// A container's row as text.
struct RawRow {
    id: String,
    name: String,
    image_id: Option<String>,
    created: String,
    config: String,
    lease: Option<String>,
    owned_by: Option<String>,
    exit: Option<String>,
    disposable: bool,
}

impl RawRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            name: row.get(1)?,
            image_id: row.get(2)?,
            created: row.get(3)?,
            config: row.get(4)?,
            lease: row.get(5)?,
            owned_by: row.get(6)?,
            exit: row.get(7)?,
            disposable: row.get(8)?,
        })
    }
}

impl Engine {
    /// Finds one by full ID, unique ID prefix or name.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` when a prefix fits several.
    pub fn find_container(&self, name_or_id: &str) -> Result<ContainerId> {
        let found = self.database.read(|connection| {
            let exact: Option<String> = connection
                .prepare_cached("SELECT id FROM container WHERE name = ?1 OR id = ?1")?
                .query_row([name_or_id], |row| row.get(0))
                .optional()?;
            if let Some(id) = exact {
                return Ok(vec![id]);
            }
            let is_prefix = !name_or_id.is_empty()
                && name_or_id.len() < 64
                && name_or_id
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if !is_prefix {
                return Ok(Vec::new());
            }
            // `g` sorts after every hex digit.
            let mut statement = connection.prepare_cached(
                "SELECT id FROM container WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2",
            )?;
            let rows = statement.query_map([name_or_id], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<Vec<String>>>()?)
        })?;
        match found.as_slice() {
            [id] => stored_id(id),
            [] => Err(no_such_container(name_or_id)),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "more than one result for container name or ID {name_or_id}: give more digits"
                ),
            )),
        }
    }

    /// One container as it is now.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn container(&self, id: &ContainerId) -> Result<Container> {
        let row = self.database.read(|connection| {
            let row = connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM container WHERE id = ?1"))?
                .query_row([id.as_str()], RawRow::read)
                .optional()?;
            row.ok_or_else(|| no_such_container(id.as_str()))
        })?;
        Lister::new(self).container(row)
    }

    /// What was decided at its creation.
    pub(crate) fn stored_config(&self, id: &ContainerId) -> Result<ContainerConfig> {
        self.database.read(|connection| {
            let json: Option<String> = connection
                .prepare_cached("SELECT config FROM container WHERE id = ?1")?
                .query_row([id.as_str()], |row| row.get(0))
                .optional()?;
            let json = json.ok_or_else(|| no_such_container(id.as_str()))?;
            ContainerConfig::parse(&json, id.as_str())
        })
    }

    /// All containers, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn containers(&self) -> Result<Vec<Container>> {
        let rows = self.database.read(|connection| {
            let mut statement = connection.prepare(&format!(
                "SELECT {COLUMNS} FROM container ORDER BY created, id"
            ))?;
            let rows = statement.query_map([], RawRow::read)?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        })?;
        let lister = Lister::new(self);
        rows.into_iter().map(|row| lister.container(row)).collect()
    }

    /// Path of its log file (k8s-file format), which may not exist yet.
    pub fn log_path(&self, id: &ContainerId) -> PathBuf {
        self.config.container_dir(id).join("log")
    }

    /// What the files of its run and the kernel say.
    pub(crate) fn observe(&self, id: &ContainerId) -> Result<Observed> {
        let dir = self.config.containers_dir();
        if !dir.exists() {
            return Ok(Observed::Idle);
        }
        observe(open_dir(&dir)?.as_fd(), id.as_str())
    }
}

/// "No such container", as Podman words it.
pub(crate) fn no_such_container(name_or_id: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("no container with name or ID {name_or_id:?} found: no such container"),
    )
}

/// An ID from the database.
pub(crate) fn stored_id(text: &str) -> Result<ContainerId> {
    ContainerId::parse(text).ok_or_else(|| {
        Error::machine(
            "read the state database",
            format!("{text:?} is no container ID"),
        )
    })
}

/// Turns rows into containers; opens the directory of all of them once.
struct Lister<'e> {
    engine: &'e Engine,
    base: OnceCell<OwnedFd>,
}

impl<'e> Lister<'e> {
    fn new(engine: &'e Engine) -> Self {
        Self {
            engine,
            base: OnceCell::new(),
        }
    }

    fn observe(&self, id: &str) -> Result<Observed> {
        if self.base.get().is_none() {
            let dir = self.engine.config.containers_dir();
            if !dir.exists() {
                return Ok(Observed::Idle);
            }
            let _ = self.base.set(open_dir(&dir)?);
        }
        match self.base.get() {
            Some(base) => observe(base.as_fd(), id),
            None => Ok(Observed::Idle),
        }
    }

    fn container(&self, row: RawRow) -> Result<Container> {
        let config = ContainerConfig::parse(&row.config, &row.id)?;
        let last_exit: Option<ExitRecord> = match &row.exit {
            Some(json) => Some(serde_json::from_str(json).map_err(|error| {
                Error::machine(format!("read the exit record of {}", row.id), error)
            })?),
            None => None,
        };
        let mut container = Container {
            id: stored_id(&row.id)?,
            name: row.name,
            image_id: row.image_id.unwrap_or_default(),
            created: row.created,
            status: Status::Created,
            pid: 0,
            monitor_pid: 0,
            started: None,
            exit: None,
            maps: None,
            host_maps: None,
            disposable: row.disposable,
            config,
        };
        match self.observe(&row.id)? {
            Observed::Running(state) => {
                container.status = if self.is_being_stopped(&row.id)? {
                    Status::Stopping
                } else {
                    Status::Running
                };
                container.pid = state.init.pid;
                container.monitor_pid = if state.is_monitored() {
                    state.monitor.pid
                } else {
                    0
                };
                container.started = Some(state.started);
                container.exit = last_exit;
            }
            Observed::Ended(state, exit) => {
                container.status = Status::Exited;
                container.exit = Some(exit.unwrap_or_else(|| ExitRecord::unseen(&state.started)));
                container.started = Some(state.started);
            }
            Observed::Idle => {
                if let Some(exit) = last_exit {
                    container.status = Status::Exited;
                    container.started = Some(exit.started.clone());
                    container.exit = Some(exit);
                }
            }
        }
        // Without a lease (host mode, or taken back) the owners written last are what it would have.
        if let Some(json) = row.lease.or(row.owned_by) {
            let maps = parse_maps(&json, &row.id)?;
            container.host_maps = maps.compose(&self.engine.pause.host_maps).ok();
            container.maps = Some(maps);
        }
        Ok(container)
    }

    fn is_being_stopped(&self, id: &str) -> Result<bool> {
        match self.base.get() {
            Some(base) => crate::state::is_being_stopped(base.as_fd(), id),
            None => Ok(false),
        }
    }
}

impl ExitRecord {
    /// Of a run whose end nobody saw: its monitor had been killed.
    pub(crate) fn unseen(started: &str) -> Self {
        Self {
            code: -1,
            started: started.to_owned(),
            finished: crate::state::now(),
            error: Some("its monitor was killed before it ended, so nobody saw how".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestEngine;

    #[test]
    fn containers_are_found_by_name_id_and_unique_prefix() {
        let mut test = TestEngine::new();
        let first = test.container(0xab, "web", false);
        let second = test.container(0xac, "abab", false);
        let find = |text: &str| test.engine.find_container(text);
        assert_eq!(find("web").unwrap(), first);
        assert_eq!(find(first.as_str()).unwrap(), first);
        assert_eq!(find("ac").unwrap(), second);
        // A name wins over a prefix.
        assert_eq!(find("abab").unwrap(), second);
        assert_eq!(find("aba").unwrap(), first);
        assert_eq!(find("a").unwrap_err().kind, ErrorKind::InvalidInput);
        for nothing in ["", "ad", "we", "xyz", "%", "A"] {
            assert_eq!(
                find(nothing).unwrap_err().kind,
                ErrorKind::NotFound,
                "{nothing}"
            );
        }
    }

    #[test]
    fn status_is_what_the_kernel_says() {
        let mut test = TestEngine::new();
        let created = test.container(1, "created", false);
        let running = test.container(2, "running", false);
        let ended = test.container(3, "ended", false);
        let unseen = test.container(4, "unseen", false);
        test.record_run(&running, true);
        test.record_run(&ended, false);
        test.record_exit(&ended, 7);
        test.record_run(&unseen, false);
        let all = test.engine.containers().unwrap();
        let status: Vec<Status> = all.iter().map(|container| container.status).collect();
        assert_eq!(
            status,
            [
                Status::Created,
                Status::Running,
                Status::Exited,
                Status::Exited
            ]
        );
        let code = |id| {
            let exit = test.engine.container(id).unwrap().exit;
            exit.map(|exit| exit.code)
        };
        assert_eq!(code(&created), None);
        assert_eq!(code(&ended), Some(7));
        assert_eq!(code(&unseen), Some(-1));
        let own = rustix::process::getpid().as_raw_nonzero().get();
        assert_eq!((all[1].pid, all[1].monitor_pid), (own, 0));
        assert_eq!(
            test.engine
                .container(&ContainerId::from_bytes([9; 32]))
                .unwrap_err()
                .kind,
            ErrorKind::NotFound
        );
    }

    #[test]
    fn a_running_container_is_neither_removed_nor_started_again() {
        let mut test = TestEngine::new();
        let id = test.container(2, "running", false);
        test.record_run(&id, true);
        let engine = &mut test.engine;
        let error = engine.remove(&id, false, false).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        let error = engine
            .start(&id, crate::container::StartMode::Detached)
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(engine.container(&id).is_ok());
    }

    #[test]
    fn what_does_not_run_cannot_be_killed_attached_or_executed_in() {
        let mut test = TestEngine::new();
        let id = test.container(1, "idle", false);
        let engine = &test.engine;
        engine.stop(&id, None).unwrap();
        assert_eq!(engine.kill(&id, 9).unwrap_err().kind, ErrorKind::Conflict);
        assert_eq!(
            engine.kill(&id, 0).unwrap_err().kind,
            ErrorKind::InvalidInput
        );
        assert_eq!(engine.attach(&id).unwrap_err().kind, ErrorKind::Conflict);
        let options = crate::exec::ExecOptions {
            command: vec!["true".to_owned()],
            ..Default::default()
        };
        assert_eq!(
            engine.exec(&id, &options).unwrap_err().kind,
            ErrorKind::Conflict
        );
        let gone = ContainerId::from_bytes([9; 32]);
        assert_eq!(
            engine.stop(&gone, None).unwrap_err().kind,
            ErrorKind::NotFound
        );
        assert_eq!(engine.kill(&gone, 9).unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(
            engine.exec(&gone, &options).unwrap_err().kind,
            ErrorKind::NotFound
        );
    }
}
