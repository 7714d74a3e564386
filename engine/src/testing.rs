//! An engine in a temporary directory, for tests of what needs no namespace.

use std::os::fd::AsFd;
use std::path::Path;

use selkie_sys::process_identity::ProcessIdentity;
use selkie_userns::pause::JoinedPause;
use selkie_userns::{IdExtent, IdMap, IdMaps};

use crate::container::{ContainerConfig, ContainerId, ExitRecord};
use crate::database::{Database, Durability};
use crate::layout::LockedContainer;
use crate::options::CreateOptions;
use crate::state::{RunState, boot_id, commit_state, now, prepare_state, write_exit};
use crate::{Engine, EngineConfig};

/// Removed with its directory.
pub(crate) struct TestEngine {
    pub engine: Engine,
    _directory: tempfile::TempDir,
}

impl TestEngine {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = paths(directory.path());
        let engine = Engine {
            pause: pause(65_536),
            store: selkie_storage::Store::open(&config.store_dir()).unwrap(),
            database: Database::open(&config.data_dir).unwrap(),
            config,
        };
        Self {
            engine,
            _directory: directory,
        }
    }

    /// A container with a row and a directory. The digit makes its ID.
    pub(crate) fn container(&mut self, digit: u8, name: &str, disposable: bool) -> ContainerId {
        let id = ContainerId::from_bytes([digit; 32]);
        let config = serde_json::to_string(&container_config(CreateOptions::default())).unwrap();
        self.engine
            .database
            .write(Durability::ProcessCrash, |transaction| {
                transaction.execute(
                    "INSERT INTO container (id, name, created, config, disposable) \
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                    rusqlite::params![id.as_str(), name, now(), config, disposable],
                )?;
                Ok(())
            })
            .unwrap();
        drop(LockedContainer::make(&self.engine.config, &id).unwrap());
        id
    }

    /// Records a run by the test's own process (alive), or by one that is gone.
    pub(crate) fn record_run(&self, id: &ContainerId, alive: bool) -> RunState {
        let own = ProcessIdentity::own().unwrap();
        let state = RunState {
            boot: boot_id().unwrap().to_owned(),
            monitor: ProcessIdentity {
                start_time: own.start_time + 1,
                ..own
            },
            init: ProcessIdentity {
                start_time: own.start_time + u64::from(!alive),
                ..own
            },
            started: now(),
        };
        let lock = self.lock(id);
        prepare_state(lock.as_fd(), &state).unwrap();
        commit_state(lock.as_fd()).unwrap();
        drop(lock);
        state
    }

    /// Records an end that the database does not know.
    pub(crate) fn record_exit(&self, id: &ContainerId, code: i32) {
        let exit = ExitRecord {
            code,
            started: now(),
            finished: now(),
            error: None,
        };
        write_exit(self.lock(id).as_fd(), &exit).unwrap();
    }

    pub(crate) fn lock(&self, id: &ContainerId) -> LockedContainer {
        LockedContainer::try_lock(&self.engine.config, id)
            .unwrap()
            .unwrap()
    }
}

/// Where a test's login has its things.
pub(crate) fn paths(directory: &Path) -> EngineConfig {
    EngineConfig {
        uid: 1000,
        gid: 1000,
        data_dir: directory.join("data"),
        run_dir: directory.join("run"),
        cache_dir: directory.join("cache"),
        search_path: Vec::new(),
    }
}

/// A login with `pool` subordinate IDs.
pub(crate) fn pause(pool: u32) -> JoinedPause {
    let extent = |inside, outside, count| IdExtent {
        inside,
        outside,
        count,
    };
    let side = || IdMap::new(vec![extent(0, 1000, 1), extent(1, 100_000, pool)]).unwrap();
    JoinedPause {
        identity: ProcessIdentity::own().unwrap(),
        host_maps: IdMaps {
            uid: side(),
            gid: side(),
        },
        single_id: false,
        single_id_reason: None,
        stale_ranges: None,
    }
}

/// A configuration with nothing special.
pub(crate) fn container_config(options: CreateOptions) -> ContainerConfig {
    ContainerConfig {
        options,
        image_name: String::new(),
        argv: vec!["true".to_owned()],
        env: vec![],
        workdir: "/".to_owned(),
        user: String::new(),
        labels: Default::default(),
        stop_signal: 15,
        stop_timeout: 10,
    }
}
