//! The state database (SQLite, WAL). Holds what must survive a reboot; what changes while a
//! container runs lives in files beside it (see `layout`).
//!
//! # Theory of operation
//! Every command opens the database, does one or two short transactions and closes it, and often it
//! is the only one that has it open. So what counts is the price of one lone open:
//! - A lone opener must replay the write-ahead log, so the log is kept short: commits that wait for
//!   the disk anyway, and monitors that have already told their clients everything, fold it back into
//!   the database once it is longer than [`TIDY_FRAMES`]. A hot command never pays for that.
//! - Closing does not checkpoint (two `fsync`s per command otherwise), which also leaves the log's
//!   files in place.
//! - Opening reads one page (`user_version`) and sets nothing that is already SQLite's default.
//!
//! Writers queue on a lock file (blocking `flock`: no polling, no starvation) and only then `BEGIN
//! IMMEDIATE`; nothing is streamed or waited for inside. Readers take no lock.
//!
//! A forked child must not use its parent's connection. [`Database::close`] drops it before a fork;
//! the next call opens a fresh one.

use std::cell::OnceCell;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::error::{Error, ErrorKind, Result};

/// A state database, opened when first used.
#[derive(Debug)]
pub struct Database {
    data_dir: PathBuf,
    connection: OnceCell<Connection>,
    lock: Option<OwnedFd>,
    fsync_commits: bool,
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

/// Pages in the write-ahead log from which [`Database::tidy`] folds it back.
const TIDY_FRAMES: i64 = 32;

/// A commit folds the log back itself from this many pages, in case nobody tidies.
const FORCED_CHECKPOINT_FRAMES: i64 = 2000;

/// How long emptying the log waits for those who read.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// How long SQLite waits for somebody who bypasses our queue (a checkpoint, a foreign tool).
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

impl Database {
    /// The database in `data_dir`, which is made (0700) when absent. Nothing is read yet.
    ///
    /// # Errors
    /// `data_dir` cannot be made, or does not belong to the login.
    pub fn open(data_dir: &Path) -> Result<Self> {
        make_private_dir(data_dir)?;
        Ok(Self {
            data_dir: data_dir.to_path_buf(),
            connection: OnceCell::new(),
            lock: None,
            fsync_commits: true,
        })
    }

    /// Reads without a lock.
    ///
    /// # Errors
    /// The database cannot be opened, is damaged or of a newer version; whatever `body` fails with.
    pub fn read<T>(&self, body: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        body(self.connection()?).map_err(|error| self.explain(error))
    }

    /// One short write transaction; rolled back when `body` fails.
    ///
    /// # Errors
    /// As [`Self::read`]; the disk is full or read-only.
    pub fn write<T>(
        &mut self,
        durability: Durability,
        body: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.connection()?;
        if self.lock.is_none() {
            self.lock = Some(open_lock(&self.data_dir)?);
        }
        let result = self.write_locked(durability, body);
        if let Some(lock) = &self.lock {
            // Only fails for a descriptor that is none, and closing releases the lock too.
            let _ = flock(lock, FlockOperation::Unlock);
        }
        result.map_err(|error| self.explain(error))
    }

    fn write_locked<T>(
        &mut self,
        durability: Durability,
        body: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        if let Some(lock) = &self.lock {
            rustix::io::retry_on_intr(|| flock(lock, FlockOperation::LockExclusive)).map_err(
                |errno| Error::machine("wait for other writers of the state database", errno),
            )?;
        }
        let Some(connection) = self.connection.get_mut() else {
            return Err(Error::machine("write the state database", "it is closed"));
        };
        let fsync = durability == Durability::PowerCut;
        if fsync != self.fsync_commits {
            connection.execute_batch(if fsync {
                "PRAGMA synchronous=FULL"
            } else {
                "PRAGMA synchronous=NORMAL"
            })?;
            self.fsync_commits = fsync;
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = body(&transaction)?;
        transaction.commit()?;
        if fsync {
            // The caller waits for the disk already; a failure here leaves a longer log, no more.
            let _ = checkpoint_from(connection, TIDY_FRAMES);
        }
        Ok(value)
    }

    /// Folds the write-ahead log back when it has grown long. For moments when nobody waits.
    pub fn tidy(&self) -> Result<()> {
        checkpoint_from(self.connection()?, TIDY_FRAMES).map_err(|error| self.explain(error.into()))
    }

    /// Folds the write-ahead log back whole and gives its space back, unless somebody keeps reading.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn empty_log(&mut self) -> Result<()> {
        self.connection()?;
        if self.lock.is_none() {
            self.lock = Some(open_lock(&self.data_dir)?);
        }
        let result = self.empty_log_locked();
        if let Some(lock) = &self.lock {
            let _ = flock(lock, FlockOperation::Unlock);
        }
        result.map_err(|error| self.explain(error))
    }

    fn empty_log_locked(&self) -> Result<()> {
        if let Some(lock) = &self.lock {
            rustix::io::retry_on_intr(|| flock(lock, FlockOperation::LockExclusive)).map_err(
                |errno| Error::machine("wait for other writers of the state database", errno),
            )?;
        }
        let connection = self.connection()?;
        connection.busy_timeout(LOG_PATIENCE)?;
        // That somebody reads is told in the answer, and is no error.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(connection.busy_timeout(BUSY_TIMEOUT)?)
    }

    /// Drops the connection and its memory (before a fork). The next use opens a new one.
    pub fn close(&mut self) {
        self.connection.take();
        self.lock = None;
        self.fsync_commits = true;
    }

    fn connection(&self) -> Result<&Connection> {
        if let Some(connection) = self.connection.get() {
            return Ok(connection);
        }
        let connection = self.connect().map_err(|error| self.explain(error))?;
        Ok(self.connection.get_or_init(|| connection))
    }

    fn connect(&self) -> Result<Connection> {
        // No SQLITE_OPEN_NOFOLLOW: it makes SQLite walk the whole path; the directory is private.
        let mut connection = Connection::open_with_flags(
            self.data_dir.join("state.db"),
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let mut version: usize = user_version(&connection)?;
        if version < MIGRATIONS.len() {
            let lock = open_lock(&self.data_dir)?;
            rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive)).map_err(
                |errno| Error::machine("wait for other writers of the state database", errno),
            )?;
            version = migrate(&mut connection)?;
        }
        if version > MIGRATIONS.len() {
            return Err(Error::new(
                ErrorKind::Machine,
                format!(
                    "the state database {} has format {version}, this Selkie knows up to {}",
                    self.data_dir.join("state.db").display(),
                    MIGRATIONS.len()
                ),
            )
            .with_hint("use the newer Selkie that wrote it"));
        }
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "wal_autocheckpoint", FORCED_CHECKPOINT_FRAMES)?;
        Ok(connection)
    }

    /// Puts the file's path into errors that came from SQLite without one.
    fn explain(&self, mut error: Error) -> Error {
        if error.message.starts_with(DATABASE_PREFIX) {
            let path = self.data_dir.join("state.db");
            error.message = error.message.replacen(
                DATABASE_PREFIX,
                &format!("state database {}: ", path.display()),
                1,
            );
        }
        error
    }
}

/// How errors of SQLite begin until [`Database::explain`] names the file.
const DATABASE_PREFIX: &str = "state database: ";

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let hint = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Some("free some space on that file system"),
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                Some("its directory must be writable: check mode, owner, quota and mount options")
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Some(
                "move the file away (with its -wal and -shm) to start afresh; `selkie system prune` then removes what belonged to it",
            ),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Some("another process holds it for very long: look for a stopped `selkie`")
            }
            _ => None,
        };
        let message = format!("{DATABASE_PREFIX}{error}");
        let error = Error::new(ErrorKind::Machine, message);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

fn user_version(connection: &Connection) -> Result<usize> {
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(version as usize)
}

/// Runs the missing migrations under the writers' lock; gives the version afterwards.
fn migrate(connection: &mut Connection) -> Result<usize> {
    // Cannot be changed inside a transaction; harmless to repeat.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = user_version(&transaction)?;
    for statements in MIGRATIONS.iter().skip(version) {
        transaction.execute_batch(statements)?;
    }
    let version = version.max(MIGRATIONS.len());
    transaction.pragma_update(None, "user_version", version as i64)?;
    transaction.commit()?;
    Ok(version)
}

/// Checkpoints when at least `frames` pages of the log are not in the database yet. The next writer
/// that nobody reads beside then starts the log over.
fn checkpoint_from(connection: &Connection, frames: i64) -> rusqlite::Result<()> {
    let (length, done): (i64, i64) =
        connection.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| {
            Ok((row.get(1)?, row.get(2)?))
        })?;
    if length - done >= frames {
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    }
    Ok(())
}

fn open_lock(data_dir: &Path) -> Result<OwnedFd> {
    let path = data_dir.join("state.lock");
    rustix::fs::open(
        &path,
        OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )
    .map_err(|errno| Error::machine(format!("open {}", path.display()), errno))
}

/// Makes `path` and its missing parents with mode 0700 and checks that it is the caller's alone to
/// write: others could plant a database or read secrets otherwise.
///
/// # Errors
/// It cannot be made, is no directory, belongs to somebody else, or others may write to it.
pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| {
                    Error::machine(format!("make directory {}", path.display()), error).with_hint(
                        "Selkie keeps its state there: the file system must be writable and have room",
                    )
                })?;
            std::fs::metadata(path)
        }
        other => other,
    }
    .map_err(|error| Error::machine(format!("look at {}", path.display()), error))?;
    let own = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != own || metadata.mode() & 0o022 != 0 {
        return Err(Error::new(
            ErrorKind::Machine,
            format!(
                "{} must be a directory of yours that others cannot write to (mode {:o}, owner {})",
                path.display(),
                metadata.mode() & 0o7777,
                metadata.uid()
            ),
        )
        .with_hint(format!("chmod 700 {0}, or remove it", path.display())));
    }
    Ok(())
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
CREATE INDEX image_name_image ON image_name(image_id);
CREATE INDEX image_digest ON image(manifest_digest);
CREATE TABLE container (
    id       TEXT PRIMARY KEY,              -- 64 hex digits
    name     TEXT NOT NULL UNIQUE,
    image_id TEXT REFERENCES image(id),     -- NULL with --rootfs
    created  TEXT NOT NULL,
    config   TEXT NOT NULL,                 -- JSON: container::ContainerConfig
    lease    TEXT,                          -- JSON: IdMaps held now; NULL when none or taken back
    owned_by TEXT,                          -- JSON: IdMaps the upper layer's owners are written in
    moving_to TEXT,                         -- JSON: IdMaps an unfinished change of owners goes to
    disposable INTEGER NOT NULL,            -- 1: to be removed as soon as it neither runs nor starts
    exit     TEXT                           -- JSON: container::ExitRecord of the last run
) STRICT;
CREATE TABLE volume (
    name     TEXT PRIMARY KEY,
    created  TEXT NOT NULL,
    anonymous INTEGER NOT NULL,
    labels   TEXT NOT NULL,
    owned_by TEXT,                          -- JSON: IdMaps its owners are written in; NULL: unused yet
    moving_to TEXT                          -- JSON: IdMaps an unfinished change of owners goes to
) STRICT;
CREATE TABLE volume_use (
    volume    TEXT NOT NULL REFERENCES volume(name),
    container TEXT NOT NULL REFERENCES container(id) ON DELETE CASCADE,
    PRIMARY KEY (volume, container)
) STRICT;
", "
CREATE TABLE network (
    name       TEXT PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,        -- 64 hex digits
    created    TEXT NOT NULL,
    definition TEXT NOT NULL,               -- JSON: selkie_net::network::Network
    driver     TEXT NOT NULL,
    labels     TEXT NOT NULL,
    options    TEXT NOT NULL                -- JSON: `--opt` as given
) STRICT;
CREATE TABLE network_lease (
    network   TEXT NOT NULL REFERENCES network(name),
    address   TEXT NOT NULL,
    container TEXT NOT NULL REFERENCES container(id) ON DELETE CASCADE,
    PRIMARY KEY (network, address)
) STRICT, WITHOUT ROWID;
CREATE INDEX network_lease_container ON network_lease(container);
"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn data_dir() -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("made/by/open");
        (temp, dir)
    }

    fn add_volume(database: &mut Database, name: &str) -> Result<()> {
        database.write(Durability::ProcessCrash, |transaction| {
            transaction.execute(
                "INSERT INTO volume (name, created, anonymous, labels) VALUES (?1, '', 0, '{}')",
                [name],
            )?;
            Ok(())
        })
    }

    fn volume_count(database: &Database) -> i64 {
        database
            .read(|connection| {
                Ok(connection.query_row("SELECT count(*) FROM volume", [], |row| row.get(0))?)
            })
            .unwrap()
    }

    #[test]
    fn what_is_written_is_there_after_closing_and_opening_again() {
        let (_temp, dir) = data_dir();
        let mut database = Database::open(&dir).unwrap();
        add_volume(&mut database, "one").unwrap();
        database.close();
        add_volume(&mut database, "two").unwrap();
        drop(database);
        assert_eq!(volume_count(&Database::open(&dir).unwrap()), 2);
        assert_eq!(
            std::fs::metadata(&dir).unwrap().permissions().mode() & 0o7777,
            0o700
        );
    }

    #[test]
    fn a_failing_body_leaves_nothing() {
        let (_temp, dir) = data_dir();
        let mut database = Database::open(&dir).unwrap();
        let result: Result<()> = database.write(Durability::PowerCut, |transaction| {
            transaction.execute(
                "INSERT INTO volume (name, created, anonymous, labels) VALUES ('x', '', 0, '{}')",
                [],
            )?;
            Err(Error::new(ErrorKind::Conflict, "no"))
        });
        assert_eq!(result.unwrap_err().kind, ErrorKind::Conflict);
        assert_eq!(volume_count(&database), 0);
        add_volume(&mut database, "after").unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let (_temp, dir) = data_dir();
        let mut database = Database::open(&dir).unwrap();
        add_volume(&mut database, "kept").unwrap();
        database
            .connection()
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        database.close();
        let error = add_volume(&mut database, "other").unwrap_err();
        assert!(error.message.contains("format 99"), "{}", error.message);
        assert!(error.hint.is_some());
        let raw = Connection::open(dir.join("state.db")).unwrap();
        let kept: i64 = raw
            .query_row("SELECT count(*) FROM volume", [], |row| row.get(0))
            .unwrap();
        assert_eq!((user_version(&raw).unwrap(), kept), (99, 1));
    }

    #[test]
    fn a_database_of_the_first_format_is_brought_up() {
        let (_temp, dir) = data_dir();
        make_private_dir(&dir).unwrap();
        let raw = Connection::open(dir.join("state.db")).unwrap();
        raw.execute_batch(MIGRATIONS[0]).unwrap();
        raw.pragma_update(None, "user_version", 1).unwrap();
        raw.execute(
            "INSERT INTO volume (name, created, anonymous, labels) VALUES ('old', '', 0, '{}')",
            [],
        )
        .unwrap();
        drop(raw);
        let mut database = Database::open(&dir).unwrap();
        assert_eq!(volume_count(&database), 1);
        let leases: i64 = database
            .read(|connection| {
                Ok(connection
                    .query_row("SELECT count(*) FROM network_lease", [], |row| row.get(0))?)
            })
            .unwrap();
        assert_eq!(leases, 0);
        add_volume(&mut database, "new").unwrap();
    }

    #[test]
    fn a_file_that_is_no_database_is_named() {
        let (_temp, dir) = data_dir();
        make_private_dir(&dir).unwrap();
        std::fs::write(dir.join("state.db"), "something else entirely ".repeat(400)).unwrap();
        let error = add_volume(&mut Database::open(&dir).unwrap(), "x").unwrap_err();
        assert!(error.message.contains("state.db"), "{}", error.message);
        assert!(error.hint.unwrap().contains("move the file away"));
    }

    #[test]
    fn a_directory_others_may_write_to_is_refused() {
        let (_temp, dir) = data_dir();
        make_private_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = Database::open(&dir).unwrap_err();
        assert!(error.message.contains("mode 777"), "{}", error.message);
    }

    #[test]
    fn many_writers_all_succeed_and_the_log_stays_short() {
        let (_temp, dir) = data_dir();
        add_volume(&mut Database::open(&dir).unwrap(), "first").unwrap();
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let dir = &dir;
                scope.spawn(move || {
                    for round in 0..25 {
                        let mut database = Database::open(dir).unwrap();
                        add_volume(&mut database, &format!("{writer}-{round}")).unwrap();
                        database.tidy().unwrap();
                    }
                });
            }
        });
        let mut database = Database::open(&dir).unwrap();
        assert_eq!(volume_count(&database), 201);
        // Alone again, the next writers start the log over.
        for round in 0..TIDY_FRAMES {
            add_volume(&mut database, &format!("alone-{round}")).unwrap();
            database.tidy().unwrap();
        }
        let log: i64 = database
            .connection()
            .unwrap()
            .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(1))
            .unwrap();
        assert!(log < 2 * TIDY_FRAMES, "{log} frames");
    }

    #[test]
    fn an_emptied_log_takes_no_space() {
        let (_temp, dir) = data_dir();
        let mut database = Database::open(&dir).unwrap();
        for round in 0..100 {
            add_volume(&mut database, &format!("volume-{round}")).unwrap();
        }
        let log = || std::fs::metadata(dir.join("state.db-wal")).unwrap().len();
        assert!(log() > 0);
        database.empty_log().unwrap();
        assert_eq!(log(), 0);
        assert_eq!(volume_count(&database), 100);
        add_volume(&mut database, "later").unwrap();
        assert_eq!(volume_count(&database), 101);
    }
}
