//! What one invocation knows before it does anything: global flags, and how to open the engine.

use std::path::PathBuf;

use clap::ArgMatches;
use selkie_engine::{Engine, EngineConfig};

use crate::cli::flag::Flags;
use crate::environment::{self, Login};
use crate::error::Result;

/// Global flags of one invocation.
#[derive(Debug, Default)]
pub struct Session {
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
}

impl Session {
    /// From the matches of the whole tree.
    pub fn new(matches: &ArgMatches) -> Self {
        Self {
            data_dir: matches.text("root").map(PathBuf::from),
            run_dir: matches.text("runroot").map(PathBuf::from),
        }
    }

    /// Where this login's things are.
    pub fn engine_config(&self) -> Result<EngineConfig> {
        let login = Login::current()?;
        Ok(EngineConfig {
            uid: login.uid,
            gid: login.gid,
            data_dir: environment::data_dir(&login, self.data_dir.as_deref())?,
            run_dir: environment::run_dir(&login, self.run_dir.as_deref())?,
            cache_dir: environment::cache_dir(&login)?,
            search_path: environment::search_path(),
        })
    }

    /// Joins the login's namespace and opens its state. The process must have one thread.
    pub fn open_engine(&self) -> Result<Engine> {
        Ok(Engine::open(self.engine_config()?)?)
    }
}
