//! The life of images, containers and volumes: what exists, who holds which IDs, what runs.
#![warn(missing_docs)]

pub mod attach;
mod capabilities;
pub mod container;
pub mod database;
pub mod disk_usage;
pub mod error;
pub mod exec;
pub mod export;
pub mod images;
pub mod info;
mod layout;
mod log_writer;
pub mod logs;
mod monitor;
pub mod network;
pub mod options;
mod own_program;
mod spec;
mod state;
pub mod system;
#[cfg(test)]
mod testing;
mod uplink;
pub mod volume;

use std::path::PathBuf;

use selkie_userns::pause::PauseRequest;

pub use error::{Error, ErrorKind, Result};
pub use selkie_userns::{IdExtent, IdMap, IdMaps};

/// Where this login's things are. Filled by the command line: libraries do not read the
/// environment.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Real UID of the login on the host.
    pub uid: u32,
    /// Its GID.
    pub gid: u32,
    /// Survives reboots: store, database, volumes, upper layers (`~/.local/share/selkie`).
    pub data_dir: PathBuf,
    /// Does not survive reboots, private 0700 (`$XDG_RUNTIME_DIR/selkie`): pause record, sockets,
    /// what runs. May vanish at any moment.
    pub run_dir: PathBuf,
    /// Compiled seccomp filters and the like (`~/.cache/selkie`).
    pub cache_dir: PathBuf,
    /// Where helpers such as `pasta` and `nft` are looked for.
    pub search_path: Vec<PathBuf>,
}

/// An open engine: the calling process is root in the login's pause namespace.
#[derive(Debug)]
pub struct Engine {
    /// As opened.
    pub config: EngineConfig,
    /// The joined pause namespace.
    pub pause: selkie_userns::pause::JoinedPause,
    /// Image store.
    pub store: selkie_storage::Store,
    /// State database.
    pub database: database::Database,
}

impl Engine {
    /// Joins the pause namespace (making it when needed), opens store and database.
    /// Must be called while the process has one thread.
    ///
    /// # Errors
    /// The namespace cannot be made or joined; a directory cannot be made or is not the login's;
    /// the store is of a newer version. The database is opened when first used.
    pub fn open(config: EngineConfig) -> Result<Self> {
        let pause = selkie_userns::pause::join(&config.pause_request())?;
        // From here on the caller is root in the namespace, where the login is UID 0.
        let database = database::Database::open(&config.data_dir)?;
        let store = selkie_storage::Store::open(&config.store_dir())?;
        Ok(Self {
            config,
            pause,
            store,
            database,
        })
    }
}

impl EngineConfig {
    fn pause_request(&self) -> PauseRequest {
        PauseRequest {
            runtime_dir: self.run_dir.clone(),
            find_survivors: state::survivors,
            survivors_dir: self.containers_dir(),
        }
    }
}
