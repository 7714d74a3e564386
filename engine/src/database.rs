//! The state database (SQLite, WAL). Holds what must survive a reboot; what changes while a
//! container runs lives in files beside it (see `container`).
//!
//! Writers queue on a lock file (blocking `flock`, fair and without polling), then use one short
//! `BEGIN IMMEDIATE`; nothing is streamed or waited for inside. Checkpoints on close are off, since
//! every command would pay two `fsync`s for them; the log is kept short instead.

use std::path::Path;

use rusqlite::{Connection, Transaction};

use crate::error::Result;

/// An open state database.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
}

/// How sure a committed change must be to survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On disk when the call returns: for what the user is told was done (`load`, `create`, `tag`).
    PowerCut,
    /// Survives any crash of processes; after a power cut the last changes may be undone as a whole
    /// (`run --rm` and other things that do not outlive a boot).
    ProcessCrash,
}

impl Database {
    /// Opens or makes the database in `data_dir` and brings its schema up to date.
    /// A schema newer than ours is an error, and nothing is touched.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let _ = data_dir;
        todo!()
    }
    /// Reads without a lock.
    pub fn read<T>(&self, body: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        body(&self.connection)
    }
    /// One short write transaction; rolled back when `body` fails.
    pub fn write<T>(
        &mut self,
        durability: Durability,
        body: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let _ = (durability, body);
        todo!()
    }
}

/// Schema by version; opening runs the missing ones in order. Times are RFC 3339 text, digests are
/// `sha256:hex`, JSON columns hold serde forms of the types named.
pub const MIGRATIONS: &[&str] = &["
CREATE TABLE image (
    id              TEXT PRIMARY KEY,       -- hex SHA-256 of the config
    config          BLOB NOT NULL,          -- the config as it came, byte for byte
    manifest        BLOB NOT NULL,          -- the manifest as it came (or was made), byte for byte
    manifest_type   TEXT NOT NULL,          -- its media type
    manifest_digest TEXT NOT NULL,
    chain_id        TEXT NOT NULL,          -- index in the store
    layers          TEXT NOT NULL,          -- JSON array of diff IDs, lowest first
    size            INTEGER NOT NULL,       -- bytes of content after flattening
    loaded          TEXT NOT NULL
) STRICT;
CREATE TABLE image_name (
    name     TEXT PRIMARY KEY,              -- normalised, with tag
    image_id TEXT NOT NULL REFERENCES image(id)
) STRICT;
CREATE TABLE container (
    id       TEXT PRIMARY KEY,              -- 64 hex digits
    name     TEXT NOT NULL UNIQUE,
    image_id TEXT REFERENCES image(id),     -- NULL with --rootfs
    created  TEXT NOT NULL,
    config   TEXT NOT NULL,                 -- JSON: container::ContainerConfig
    lease    TEXT,                          -- JSON: IdMaps held now; NULL when none or taken back
    owned_by TEXT,                          -- JSON: IdMaps the upper layer's owners are written in
    exit     TEXT                           -- JSON: container::ExitRecord of the last run
) STRICT;
CREATE TABLE volume (
    name     TEXT PRIMARY KEY,
    created  TEXT NOT NULL,
    anonymous INTEGER NOT NULL,
    labels   TEXT NOT NULL,
    owned_by TEXT                           -- JSON: IdMaps its owners are written in
) STRICT;
CREATE TABLE volume_use (
    volume    TEXT NOT NULL REFERENCES volume(name),
    container TEXT NOT NULL REFERENCES container(id) ON DELETE CASCADE,
    PRIMARY KEY (volume, container)
) STRICT;
"];
