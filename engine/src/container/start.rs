//! Starting a container: the lock, the IDs, the owners, then the monitor.

use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rusqlite::OptionalExtension;
use rustix::pipe::{PipeFlags, pipe_with};
use selkie_storage::container_layer::reown_tree;
use selkie_storage::image_index::ImageIds;
use selkie_sys::clone::{Side, exit_now, fork};
use selkie_userns::IdMaps;

use crate::Engine;
use crate::attach::{AttachConnection, ServerEnd};
use crate::container::create::{Created, is_active};
use crate::container::lease::{Terms, acquire, maps_json, parse_maps, plan};
use crate::container::list::no_such_container;
use crate::container::spare::Lot;
use crate::container::{ContainerConfig, ContainerId, ExitRecord, StartMode, Started};
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::LockedContainer;
use crate::monitor::{Monitor, StartReport};
use crate::network::connect::{self, Connection, Who};
use crate::options::RootSource;
use crate::state::{self, Observed, observe};
use crate::volume;

/// How long a start waits for whoever holds the container's lock while it does not run: a monitor
/// that finishes, or another command at work.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a lock somebody holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// Everything a monitor needs to run a container.
#[derive(Debug)]
pub(crate) struct Launch {
    pub id: ContainerId,
    pub name: String,
    pub config: ContainerConfig,
    pub chain_id: Option<String>,
    pub maps: IdMaps,
    /// Its places in networks, when it is in some and its command is to run.
    pub connection: Option<Connection>,
    pub lock: LockedContainer,
    /// It goes away with the end of this run.
    pub disposable: bool,
    /// Its part in spares.
    pub lot: Option<Lot>,
}

/// What a container that does not run is prepared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Its command is to run: volumes are claimed, and `--rm` begins to count.
    Run,
    /// Only its files are looked at.
    Look,
}

impl Engine {
    /// Starts a created or exited container. Already running: an error of kind `Conflict`.
    ///
    /// # Errors
    /// `NotFound`; `Conflict`; `CommandNotFound` and `CommandNotExecutable` for its command.
    pub fn start(&mut self, id: &ContainerId, mode: StartMode) -> Result<Started> {
        let launch = self.prepare(id, Purpose::Run)?;
        self.launch(launch, mode).inspect_err(|error| {
            self.record_failed_start(id, error);
        })
    }

    /// Starts a container that [`Engine::run`] has just made.
    pub(crate) fn start_created(&mut self, created: Created, mode: StartMode) -> Result<Started> {
        let launch = Launch {
            disposable: created.config.options.remove,
            id: created.id,
            name: created.name,
            config: created.config,
            chain_id: created.chain_id,
            maps: created.maps,
            connection: created.connection,
            lock: created.lock,
            lot: created.lot,
        };
        let names = volume::mounted_names(&launch.config.options.mounts);
        if !names.is_empty() {
            let Self {
                config: ref paths,
                ref mut database,
                ..
            } = *self;
            let moves = database.write(Durability::ProcessCrash, |transaction| {
                volume::claim(transaction, &launch.id, &names, &launch.maps, &|id| {
                    is_active(paths, id)
                })
            })?;
            self.move_volumes(&moves)?;
        }
        self.launch(launch, mode)
    }

    /// Locks a container that does not run; waits for those who are busy with it.
    ///
    /// # Errors
    /// `Conflict` when it runs, or somebody stays busy with it for very long.
    fn lock_idle(&self, id: &ContainerId) -> Result<LockedContainer> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let lock = LockedContainer::try_lock(&self.config, id)?;
            if let Observed::Running(_) = self.observe(id)? {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("container {id} is already running: container state improper"),
                ));
            }
            match lock {
                Some(lock) => return Ok(lock),
                None if Instant::now() > deadline => {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!("container {id} is being started or removed by another command"),
                    ));
                }
                None => std::thread::sleep(LOCK_INTERVAL),
            }
        }
    }

    /// Gets lock, IDs and owners right.
    pub(crate) fn prepare(&mut self, id: &ContainerId, purpose: Purpose) -> Result<Launch> {
        if !self.exists(id)? {
            return Err(no_such_container(id.as_str()));
        }
        let lock = self.lock_idle(id)?;
        let ended = match observe(lock.as_fd(), ".")? {
            Observed::Ended(state, exit) => {
                Some(exit.unwrap_or_else(|| ExitRecord::unseen(&state.started)))
            }
            _ => None,
        };
        let row = self.start_row(id)?;
        let image_ids = match &row.chain_id {
            Some(chain_id) => self.store.open_image_index(chain_id)?.ids(),
            None => ImageIds::default(),
        };
        let login = (self.config.uid, self.config.gid);
        let (names, disposable) = match purpose {
            Purpose::Run => (
                volume::mounted_names(&row.config.options.mounts),
                row.config.options.remove,
            ),
            Purpose::Look => (Vec::new(), false),
        };

        let Self {
            config: ref paths,
            ref pause,
            ref mut database,
            ..
        } = *self;
        let is_active = |id: &str| is_active(paths, id);
        let (maps, through, moves, connection) =
            database.write(Durability::ProcessCrash, |transaction| {
                let (lease, owned_by, moving_to): (Option<String>, Option<String>, Option<String>) =
                    transaction
                        .query_row(
                            "SELECT lease, owned_by, moving_to FROM container WHERE id = ?1",
                            [id.as_str()],
                            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
                        )
                        .optional()?
                        .ok_or_else(|| no_such_container(id.as_str()))?;
                let mut through = Vec::new();
                for json in [&owned_by, &moving_to].into_iter().flatten() {
                    through.push(parse_maps(json, id.as_str())?);
                }
                let maps = match &lease {
                    Some(json) => parse_maps(json, id.as_str())?,
                    None => {
                        let mut avoid = through.clone();
                        avoid.extend(volume::owners(transaction, &names)?);
                        let plan = plan(&row.config, &image_ids, &avoid, pause, login)?;
                        let terms = Terms {
                            pause,
                            own: Some(id.as_str()),
                            preferred: through.last(),
                            avoid: &avoid,
                            is_active: &is_active,
                        };
                        let got = acquire(transaction, &plan, &terms)?;
                        if got.exclusive {
                            transaction.execute(
                                "UPDATE container SET lease = ?2 WHERE id = ?1",
                                [id.as_str(), &maps_json(&got.maps)?],
                            )?;
                        }
                        got.maps
                    }
                };
                if through.last() != Some(&maps) {
                    through.push(maps.clone());
                }
                if let Some(next) = through.get(1) {
                    transaction.execute(
                        "UPDATE container SET moving_to = ?2 WHERE id = ?1",
                        [id.as_str(), &maps_json(next)?],
                    )?;
                }
                if disposable {
                    transaction.execute(
                        "UPDATE container SET disposable = 1 WHERE id = ?1",
                        [id.as_str()],
                    )?;
                }
                if let Some(exit) = &ended {
                    record_exit(transaction, id, exit)?;
                }
                let moves = volume::claim(transaction, id, &names, &maps, &is_active)?;
                let connection = match purpose {
                    Purpose::Run => {
                        let who = Who {
                            id,
                            name: &row.name,
                            options: &row.config.options,
                        };
                        connect::connect_again(transaction, &who, &is_active)?
                    }
                    Purpose::Look => None,
                };
                Ok((maps, through, moves, connection))
            })?;
        state::clear(lock.as_fd())?;
        for pair in through.windows(2) {
            self.move_layer(id, &lock, &pair[0], &pair[1])?;
        }
        self.move_volumes(&moves)?;
        Ok(Launch {
            id: id.clone(),
            name: row.name,
            config: row.config,
            chain_id: row.chain_id,
            maps,
            connection,
            lock,
            disposable,
            lot: None,
        })
    }

    fn exists(&self, id: &ContainerId) -> Result<bool> {
        self.database.read(|connection| {
            Ok(connection
                .prepare_cached("SELECT 1 FROM container WHERE id = ?1")?
                .exists([id.as_str()])?)
        })
    }

    fn start_row(&self, id: &ContainerId) -> Result<StartRow> {
        self.database.read(|connection| {
            let row: Option<(String, String, Option<String>)> = connection
                .prepare_cached(
                    "SELECT container.name, container.config, chain_id FROM container \
                     LEFT JOIN image ON image.id = image_id WHERE container.id = ?1",
                )?
                .query_row([id.as_str()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()?;
            let (name, config, chain_id) = row.ok_or_else(|| no_such_container(id.as_str()))?;
            Ok(StartRow {
                name,
                config: ContainerConfig::parse(&config, id.as_str())?,
                chain_id,
            })
        })
    }

    /// Changes the owners of a container's upper layer and records it.
    fn move_layer(
        &mut self,
        id: &ContainerId,
        lock: &LockedContainer,
        from: &IdMaps,
        to: &IdMaps,
    ) -> Result<()> {
        let json = maps_json(to)?;
        let set_moving = |engine: &mut Self, sql: &str| {
            engine
                .database
                .write(Durability::ProcessCrash, |transaction| {
                    transaction.execute(sql, [id.as_str(), &json])?;
                    Ok(())
                })
        };
        set_moving(self, "UPDATE container SET moving_to = ?2 WHERE id = ?1")?;
        let upper = lock.path.join("upper");
        if upper.exists() {
            reown_tree(&upper, from, to)?;
        }
        set_moving(
            self,
            "UPDATE container SET owned_by = ?2, moving_to = NULL WHERE id = ?1",
        )
    }

    /// Changes the owners of volumes' files and records it.
    fn move_volumes(&mut self, moves: &[volume::Move]) -> Result<()> {
        for volume::Move { volume, through } in moves {
            for pair in through.windows(2) {
                let json = maps_json(&pair[1])?;
                self.database
                    .write(Durability::ProcessCrash, |transaction| {
                        transaction.execute(
                            "UPDATE volume SET moving_to = ?2 WHERE name = ?1",
                            [volume, &json],
                        )?;
                        Ok(())
                    })?;
                let data = self.config.volume_data(volume);
                if data.exists() {
                    reown_tree(&data, &pair[0], &pair[1])?;
                }
                self.database
                    .write(Durability::ProcessCrash, |transaction| {
                        volume::set_owner(transaction, volume, &pair[1])
                    })?;
            }
        }
        Ok(())
    }

    /// Forks the monitor and waits until the command runs, or has been found not to.
    fn launch(&mut self, launch: Launch, mode: StartMode) -> Result<Started> {
        let id = launch.id.clone();
        self.check_shared_network(&launch.config.options.network)?;
        let (report, report_end) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|errno| Error::machine("make a pipe to the monitor", errno))?;
        let (attach, client, size) = match mode {
            StartMode::Detached => (None, None, None),
            StartMode::Attached { size } => {
                let (ours, theirs) = AttachConnection::pair()?;
                (Some(ours), Some(ServerEnd::new(theirs)), size)
            }
        };
        // A connection does not survive a fork, and its memory would stay with the monitor.
        self.database.close();
        match fork().map_err(|error| Error::machine("start the container's monitor", error))? {
            Side::Child => {
                drop((report, attach));
                Monitor::new(self, launch, client, size, report_end).run();
                exit_now(0)
            }
            Side::Parent { .. } => {
                drop((report_end, client, launch));
                let mut text = Vec::new();
                std::fs::File::from(report)
                    .read_to_end(&mut text)
                    .map_err(|error| Error::machine("hear from the container's monitor", error))?;
                StartReport::parse(&text)?;
                Ok(Started { id, attach })
            }
        }
    }

    /// Keeps why a start failed, for `ps` and `inspect`; that it failed is told by other means.
    fn record_failed_start(&mut self, id: &ContainerId, error: &Error) {
        let code = match error.kind {
            ErrorKind::CommandNotFound => 127,
            ErrorKind::CommandNotExecutable => 126,
            ErrorKind::Conflict | ErrorKind::NotFound => return,
            ErrorKind::InvalidInput | ErrorKind::Machine => 125,
        };
        let now = state::now();
        let exit = ExitRecord {
            code,
            started: now.clone(),
            finished: now,
            error: Some(error.message.clone()),
        };
        let recorded = self
            .database
            .write(Durability::ProcessCrash, |transaction| {
                // It never became a run, so `--rm` does not apply.
                transaction.execute(
                    "UPDATE container SET disposable = 0 WHERE id = ?1",
                    [id.as_str()],
                )?;
                record_exit(transaction, id, &exit)
            });
        if let Err(error) = recorded {
            tracing::warn!("record the failed start of {id}: {error}");
        }
    }
}

struct StartRow {
    name: String,
    config: ContainerConfig,
    chain_id: Option<String>,
}

/// Writes how a run ended.
pub(crate) fn record_exit(
    transaction: &rusqlite::Transaction<'_>,
    id: &ContainerId,
    exit: &ExitRecord,
) -> Result<()> {
    let json = serde_json::to_string(exit)
        .map_err(|error| Error::machine("write an exit record", error))?;
    transaction.execute(
        "UPDATE container SET exit = ?2 WHERE id = ?1",
        [id.as_str(), &json],
    )?;
    Ok(())
}

impl Launch {
    /// True when its directory was a spare, with its root file system mounted.
    pub(crate) fn is_from_spare(&self) -> bool {
        self.lot.as_ref().is_some_and(|lot| lot.taken)
    }

    /// The directory given with `--rootfs`.
    pub(crate) fn root_directory(&self) -> Option<&std::path::Path> {
        match &self.config.options.root {
            Some(RootSource::Directory(path)) => Some(path),
            _ => None,
        }
    }
}
