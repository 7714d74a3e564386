//! Images of the login: finding, loading, saving, naming, removing.
//!
//! An image is a row: its config and manifest byte for byte, its names in a table of their own. Its
//! files are in the store under its chain ID and its layers' diff IDs. The row is written last, when
//! the store is durable, and deleted first; so whatever the store has beyond what rows name is
//! garbage, of an interrupted load or removal.

mod history;
mod import;
mod load;
mod naming;
mod removal;
mod save;

use std::collections::BTreeSet;

use oci_spec::image::ImageConfiguration;
use rusqlite::{Connection, OptionalExtension, Row, params};
use selkie_image::name::{ImageName, Reference, is_full_id, is_id_prefix};

use crate::Engine;
use crate::database::Database;
use crate::error::{Error, ErrorKind, Result};

pub use history::HistoryEntry;
pub use import::{ImportOptions, ImportSource};
pub use load::{LoadEvent, LoadSource, Loaded};
pub use removal::Removed;
pub use save::{SaveFormat, SaveItem, SaveTarget};
pub use selkie_image::transport::TransportReference;

/// One stored image.
#[derive(Debug, Clone)]
pub struct Image {
    /// 64 hex digits: SHA-256 of the config.
    pub id: String,
    /// Normalised names with tags, sorted.
    pub names: Vec<String>,
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// Parsed config.
    pub config: ImageConfiguration,
    /// The config as it came.
    pub raw_config: Vec<u8>,
    /// The manifest as it came.
    pub raw_manifest: Vec<u8>,
    /// Media type of the manifest.
    pub manifest_type: String,
    /// Index in the store.
    pub chain_id: String,
    /// Diff IDs, lowest first.
    pub layers: Vec<String>,
    /// Bytes of content.
    pub size: u64,
    /// When it was loaded here, RFC 3339.
    pub loaded: String,
}

/// What the store must keep: see `Store::find_garbage`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LiveImages {
    /// Chain IDs of images.
    pub chain_ids: BTreeSet<String>,
    /// Diff IDs of their layers.
    pub layers: BTreeSet<String>,
}

const COLUMNS: &str = "image.id, config, manifest, manifest_type, manifest_digest, chain_id, \
                       layers, size, loaded";

impl Engine {
    /// Finds an image by name (short names match `localhost/` first, as Podman), ID or prefix, or
    /// name@digest.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for what is neither a name nor an ID; `Conflict` when a short
    /// name or an ID prefix fits several images.
    pub fn image(&self, name_or_id: &str) -> Result<Image> {
        Ok(self.find_image(name_or_id)?.0)
    }

    /// As [`Self::image`], and the stored name by which it was found, if it was by one.
    pub fn find_image(&self, name_or_id: &str) -> Result<(Image, Option<String>)> {
        self.database
            .read(|connection| find(connection, name_or_id))
    }

    /// True when [`Self::image`] finds it. Other failures are errors.
    pub fn image_exists(&self, name_or_id: &str) -> Result<bool> {
        match self.image(name_or_id) {
            Ok(_) => Ok(true),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All images, newest first (by the time in their configs).
    pub fn images(&self) -> Result<Vec<Image>> {
        let mut images = self.database.read(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM image ORDER BY loaded DESC, id");
            let mut statement = connection.prepare_cached(&sql)?;
            let stored = statement.query_map([], Stored::from_row)?;
            let stored = stored.collect::<rusqlite::Result<Vec<_>>>()?;
            let mut images = stored
                .into_iter()
                .map(|stored| stored.parse(Vec::new()))
                .collect::<Result<Vec<_>>>()?;
            let mut names =
                connection.prepare_cached("SELECT image_id, name FROM image_name ORDER BY name")?;
            let mut rows = names.query([])?;
            while let Some(row) = rows.next()? {
                let id: String = row.get(0)?;
                // a name of an image loaded since the first query waits for the next call
                if let Some(image) = images.iter_mut().find(|image| image.id == id) {
                    image.names.push(row.get(1)?);
                }
            }
            Ok(images)
        })?;
        images.sort_by_cached_key(|image| std::cmp::Reverse(image.created()));
        Ok(images)
    }

    /// What the store must keep. Read it under the store's exclusive lock.
    pub fn live_images(&self) -> Result<LiveImages> {
        live(&self.database)
    }

    /// Makes what all containers of an image share, so that the first one starts as fast as the
    /// others. Starting does it too when needed.
    pub fn prepare_image(&self, chain_id: &str) -> Result<()> {
        let presenter = selkie_storage::presenter::choose(None)?;
        Ok(presenter.prepare(&self.store, chain_id, self.pause.single_id)?)
    }
}

impl Image {
    /// When it was made, as its config says.
    pub fn created(&self) -> Option<jiff::Timestamp> {
        self.config.created().as_ref()?.parse().ok()
    }

    /// `repository@digest` for each repository it has a name in.
    pub fn repo_digests(&self) -> Vec<String> {
        let Ok(digest) = self.digest.parse() else {
            return Vec::new();
        };
        let digests: BTreeSet<_> = self
            .names
            .iter()
            .filter_map(|name| name.parse::<ImageName>().ok())
            .map(|name| name.with_digest(digest).to_string())
            .collect();
        digests.into_iter().collect()
    }
}

fn live(database: &Database) -> Result<LiveImages> {
    database.read(|connection| {
        let mut live = LiveImages::default();
        let mut statement = connection.prepare("SELECT id, chain_id, layers FROM image")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let id: String = row.get(0)?;
            live.chain_ids.insert(row.get(1)?);
            live.layers
                .extend(parse_layers(&id, &row.get::<_, String>(2)?)?);
        }
        Ok(live)
    })
}

/// A row, its JSON not parsed yet.
struct Stored {
    id: String,
    raw_config: Vec<u8>,
    raw_manifest: Vec<u8>,
    manifest_type: String,
    digest: String,
    chain_id: String,
    layers: String,
    size: i64,
    loaded: String,
}

impl Stored {
    /// Reads [`COLUMNS`].
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            raw_config: row.get(1)?,
            raw_manifest: row.get(2)?,
            manifest_type: row.get(3)?,
            digest: row.get(4)?,
            chain_id: row.get(5)?,
            layers: row.get(6)?,
            size: row.get(7)?,
            loaded: row.get(8)?,
        })
    }

    fn parse(self, names: Vec<String>) -> Result<Image> {
        let config = serde_json::from_slice(&self.raw_config)
            .map_err(|error| damaged(&self.id, "config", error))?;
        let layers = parse_layers(&self.id, &self.layers)?;
        Ok(Image {
            id: self.id,
            names,
            digest: self.digest,
            config,
            raw_config: self.raw_config,
            raw_manifest: self.raw_manifest,
            manifest_type: self.manifest_type,
            chain_id: self.chain_id,
            layers,
            size: u64::try_from(self.size).unwrap_or(0),
            loaded: self.loaded,
        })
    }
}

fn parse_layers(id: &str, json: &str) -> Result<Vec<String>> {
    serde_json::from_str(json).map_err(|error| damaged(id, "list of layers", error))
}

fn damaged(id: &str, what: &str, error: serde_json::Error) -> Error {
    Error::machine(
        format!("read the {what} of image {id} in the state database"),
        error,
    )
}

fn not_found(name_or_id: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("{name_or_id}: image not known"),
    )
}

/// See [`Engine::image`]. Two queries when a name fits, which is what `run` does.
fn find(connection: &Connection, name_or_id: &str) -> Result<(Image, Option<String>)> {
    let id = name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id);
    if is_full_id(id) {
        let found = one(connection, "FROM image WHERE image.id = ?1", id)?;
        let (stored, _) = found.ok_or_else(|| not_found(name_or_id))?;
        return Ok((with_names(connection, stored)?, None));
    }
    let reference: Reference = name_or_id
        .parse()
        .map_err(|error| Error::new(ErrorKind::InvalidInput, format!("{error}")))?;
    if let Some(found) = by_name(connection, &reference)? {
        return Ok(found);
    }
    // after the names, as Podman does: an image may be called `beef`
    if is_id_prefix(name_or_id)
        && let Some(stored) = by_id_prefix(connection, name_or_id)?
    {
        return Ok((with_names(connection, stored)?, None));
    }
    if let Some(suffix) = reference.lookup_suffix()
        && let Some(found) = by_suffix(connection, name_or_id, &suffix)?
    {
        return Ok(found);
    }
    Err(not_found(name_or_id))
}

/// One row of `COLUMNS` and perhaps the name in a tenth.
fn one(
    connection: &Connection,
    rest: &str,
    parameter: &str,
) -> Result<Option<(Stored, Option<String>)>> {
    let sql = format!("SELECT {COLUMNS}, NULL {rest}");
    let mut statement = connection.prepare_cached(&sql)?;
    Ok(statement
        .query_row([parameter], |row| Ok((Stored::from_row(row)?, row.get(9)?)))
        .optional()?)
}

fn with_names(connection: &Connection, stored: Stored) -> Result<Image> {
    let mut statement = connection
        .prepare_cached("SELECT name FROM image_name WHERE image_id = ?1 ORDER BY name")?;
    let names = statement.query_map([&stored.id], |row| row.get(0))?;
    let names = names.collect::<rusqlite::Result<_>>()?;
    stored.parse(names)
}

fn by_name(
    connection: &Connection,
    reference: &Reference,
) -> Result<Option<(Image, Option<String>)>> {
    let candidates: Vec<_> = reference
        .lookup_candidates([])
        .into_iter()
        .map(|name| name.into_stored().to_string())
        .collect();
    // at most two without search registries; a missing second one repeats the first
    let first = &candidates[0];
    let second = candidates.get(1).unwrap_or(first);
    let sql = format!(
        "SELECT {COLUMNS}, name FROM image_name JOIN image ON image.id = image_id \
         WHERE name IN (?1, ?2) ORDER BY name <> ?1 LIMIT 1"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let found = statement
        .query_row(params![first, second], |row| {
            Ok((Stored::from_row(row)?, row.get(9)?))
        })
        .optional()?;
    if let Some((stored, name)) = found {
        return Ok(Some((with_names(connection, stored)?, name)));
    }
    let Some(digest) = reference.digest() else {
        return Ok(None);
    };
    // the digest says exactly which image; whatever its repository is called here
    let by_digest = "FROM image WHERE manifest_digest = ?1 ORDER BY loaded LIMIT 1";
    match one(connection, by_digest, &digest.to_string())? {
        Some((stored, _)) => Ok(Some((with_names(connection, stored)?, None))),
        None => Ok(None),
    }
}

fn by_id_prefix(connection: &Connection, prefix: &str) -> Result<Option<Stored>> {
    let sql = format!("SELECT {COLUMNS} FROM image WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT 2");
    let mut statement = connection.prepare_cached(&sql)?;
    // `g` follows the last hexadecimal digit
    let found = statement
        .query_map(params![prefix, format!("{prefix}g")], Stored::from_row)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    if found.len() > 1 {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("image ID {prefix} is ambiguous: several images start with it"),
        )
        .with_hint("give more digits"));
    }
    Ok(found.into_iter().next())
}

fn by_suffix(
    connection: &Connection,
    asked: &str,
    suffix: &str,
) -> Result<Option<(Image, Option<String>)>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, image_id FROM image_name \
         WHERE substr(name, -length(?1)) = ?1 ORDER BY name",
    )?;
    let found = statement
        .query_map([suffix], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(String, String)>>>()?;
    let Some((name, id)) = found.first() else {
        return Ok(None);
    };
    if found.iter().any(|(_, other)| other != id) {
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("image name {asked} is ambiguous: {}", names.join(", ")),
        )
        .with_hint("give the full name"));
    }
    let Some((stored, _)) = one(connection, "FROM image WHERE image.id = ?1", id)? else {
        return Ok(None);
    };
    Ok(Some((with_names(connection, stored)?, Some(name.clone()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(start: &str) -> String {
        format!("{start:0<64}")
    }

    fn database(images: &[(&str, &[&str])]) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        for statements in crate::database::MIGRATIONS {
            connection.execute_batch(statements).unwrap();
        }
        for (id, names) in images {
            let config =
                r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
            connection
                .execute(
                    "INSERT INTO image VALUES (?1, ?2, x'', '', 'sha256:' || ?1, 'c', '[]', 0, '')",
                    params![hex(id), config.as_bytes()],
                )
                .unwrap();
            for name in *names {
                connection
                    .execute(
                        "INSERT INTO image_name VALUES (?1, ?2)",
                        params![name, hex(id)],
                    )
                    .unwrap();
            }
        }
        connection
    }

    /// Expected results: what Podman 4.3 does with the same names.
    #[test]
    fn images_are_found_as_podman_finds_them() {
        let connection = database(&[
            ("1257", &["localhost/t1:v1", "quay.io/a/t2:latest"]),
            (
                "98",
                &["localhost/1257:latest", "docker.io/library/hub:latest"],
            ),
            ("99", &["quay.io/hub:latest"]),
            ("abc", &[]),
        ]);
        let one = hex("1257");
        let digest = format!("sha256:{one}");
        for (asked, id) in [
            ("t2", "1257"),
            ("a/t2", "1257"),
            ("t1:v1", "1257"),
            ("quay.io/a/t2", "1257"),
            (&one, "1257"),
            (&digest, "1257"),
            ("12", "1257"),
            ("125700", "1257"),
            ("1257", "98"), // a name comes before an ID
            ("hub", "98"),  // Docker Hub comes before other registries
            ("ab", "abc"),
            (&format!("t2@{digest}"), "1257"),
            (&format!("other:x@{digest}"), "1257"),
        ] {
            let (image, _) = find(&connection, asked).unwrap();
            assert_eq!(image.id, hex(id), "{asked}");
        }
        for (asked, kind) in [
            ("t1", ErrorKind::NotFound), // has no tag `latest`
            ("o/a/t2", ErrorKind::NotFound),
            ("t2:v1", ErrorKind::NotFound),
            ("docker.io/library/t1:v1", ErrorKind::NotFound),
            ("sha256:1257", ErrorKind::NotFound),
            (&hex("77"), ErrorKind::NotFound),
            ("9", ErrorKind::Conflict),
            ("/t2", ErrorKind::InvalidInput),
            ("T1", ErrorKind::InvalidInput),
            ("", ErrorKind::InvalidInput),
        ] {
            let error = find(&connection, asked).unwrap_err();
            assert_eq!(error.kind, kind, "{asked}: {error}");
        }
        let names = find(&connection, "t2").unwrap();
        assert_eq!(names.0.names, ["localhost/t1:v1", "quay.io/a/t2:latest"]);
        assert_eq!(names.1.as_deref(), Some("quay.io/a/t2:latest"));
        assert_eq!(find(&connection, "12").unwrap().1, None);
        let repo_digests = names.0.repo_digests();
        assert_eq!(
            repo_digests,
            [
                format!("localhost/t1@{digest}"),
                format!("quay.io/a/t2@{digest}")
            ]
        );
    }

    #[test]
    fn a_short_name_that_fits_several_images_is_ambiguous() {
        let connection = database(&[("1", &["a.io/x:latest"]), ("2", &["b.io/x:latest"])]);
        let error = find(&connection, "x").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(
            error.message.contains("a.io/x:latest, b.io/x:latest"),
            "{error}"
        );
    }
}
