//! `load`, and `pull` from archives and directories.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Transaction, params};
use selkie_image::digest::Digest;
use selkie_image::layer_tar::{
    EntryKind, Expected, LayerEntry, LayerError, LayerReport, LayerSink, Limits, SinkError,
    read_layer,
};
use selkie_image::manifest::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, Manifest};
use selkie_image::platform::Platform;
use selkie_image::transport::{
    Input, RawManifest, Source, SourceImage, SourceLayer, Spool, TransportError, TransportReference,
};
use selkie_storage::layer::{LayerWriter, NewEntry, NewEntryKind};
use selkie_storage::{Store, StoreError};

use crate::Engine;
use crate::database::{Database, Durability};
use crate::error::{Error, ErrorKind, Result};

impl From<TransportError> for Error {
    fn from(error: TransportError) -> Self {
        let kind = match &error {
            TransportError::Io { .. } => ErrorKind::Machine,
            TransportError::NoSuchImage { .. } => ErrorKind::NotFound,
            _ => ErrorKind::InvalidInput,
        };
        Self::new(kind, error.to_string())
    }
}

/// Where images come from.
#[derive(Debug)]
pub enum LoadSource {
    /// A file or directory in any form we know, told apart by looking. Absolute.
    Path(PathBuf),
    /// A stream, e.g. standard input.
    Stream(File),
    /// `TRANSPORT:PATH[:IMAGE]`.
    Reference(TransportReference),
}

/// One image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Image ID (64 hex).
    pub id: String,
    /// Names it got, normalised.
    pub names: Vec<String>,
    /// Index in the store, for [`Engine::prepare_image`].
    pub chain_id: String,
    /// What the user should know: e.g. device nodes that were skipped.
    pub notes: Vec<String>,
}

/// How a load goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadEvent<'e> {
    /// A layer is about to be read.
    Layer {
        /// Its diff ID.
        diff_id: &'e str,
        /// Bytes to read.
        size: u64,
        /// True when the store has it: nothing is read then.
        present: bool,
    },
    /// So many bytes of the current layer were read.
    Read(u64),
    /// The current layer is stored.
    LayerDone,
}

/// What is told while loading.
pub(super) type Progress<'p> = &'p mut dyn FnMut(LoadEvent<'_>);

impl Engine {
    /// Loads all images of an archive or directory (or the one a reference selects). All of them
    /// appear at once when everything is on disk, or none does.
    ///
    /// # Errors
    /// `InvalidInput` when what comes is broken, hostile or not an image; `Machine` when it cannot be
    /// read or stored. The images and names that were there are unchanged then.
    pub fn load(&mut self, source: LoadSource, progress: Progress<'_>) -> Result<Vec<Loaded>> {
        load(&self.store, &mut self.database, source, progress)
    }
}

fn load(
    store: &Store,
    database: &mut Database,
    source: LoadSource,
    progress: Progress<'_>,
) -> Result<Vec<Loaded>> {
    let spool = Spool {
        directory: store.root().join("tmp"),
        limit: free_bytes(store.root())?,
    };
    // no garbage collection until the rows are there
    let _lock = store.lock_shared()?;
    let (source, selector) = match source {
        LoadSource::Path(path) => (Source::detect(Input::Path(path), &spool), None),
        LoadSource::Stream(file) => (Source::detect(Input::Stream(file), &spool), None),
        LoadSource::Reference(reference) => (Source::open(&reference, &spool), reference.image),
    };
    let source = source?;
    let mut rows: Vec<NewImage> = Vec::new();
    for image in source.images(selector.as_ref(), &Platform::host())? {
        let row = store_image(store, &source, image, progress)?;
        match rows.iter_mut().find(|earlier| earlier.id == row.id) {
            // an OCI index lists an image once for each of its names
            Some(earlier) => {
                earlier.names.extend(row.names);
                earlier.notes.extend(row.notes);
            }
            None => rows.push(row),
        }
    }
    database.write(Durability::PowerCut, |transaction| {
        rows.iter().try_for_each(|row| row.insert(transaction))
    })?;
    Ok(rows.into_iter().map(NewImage::into_loaded).collect())
}

/// A row to be written.
pub(super) struct NewImage {
    pub id: String,
    pub names: Vec<String>,
    pub raw_config: Vec<u8>,
    pub manifest: RawManifest,
    /// False when the manifest is our own making, which must not replace one that came.
    pub manifest_came: bool,
    pub chain_id: String,
    pub layers: Vec<String>,
    pub size: u64,
    pub notes: Vec<String>,
}

impl NewImage {
    /// Writes the row and moves the names to it.
    pub(super) fn insert(&self, transaction: &Transaction<'_>) -> Result<()> {
        let update = if self.manifest_came {
            "DO UPDATE SET manifest = excluded.manifest, manifest_type = excluded.manifest_type, \
             manifest_digest = excluded.manifest_digest"
        } else {
            "DO NOTHING"
        };
        let sql = format!(
            "INSERT INTO image (id, config, manifest, manifest_type, manifest_digest, chain_id, \
             layers, size, loaded) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
             ON CONFLICT (id) {update}"
        );
        let layers = serde_json::to_string(&self.layers)
            .map_err(|error| Error::machine("write the list of layers", error))?;
        transaction.execute(
            &sql,
            params![
                self.id,
                self.raw_config,
                self.manifest.bytes,
                self.manifest.media_type,
                Digest::of(&self.manifest.bytes).to_string(),
                self.chain_id,
                layers,
                i64::try_from(self.size).unwrap_or(i64::MAX),
                jiff::Timestamp::now().to_string(),
            ],
        )?;
        for name in &self.names {
            transaction.execute(
                "INSERT INTO image_name (name, image_id) VALUES (?1, ?2) \
                 ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id",
                params![name, self.id],
            )?;
        }
        Ok(())
    }

    pub(super) fn into_loaded(self) -> Loaded {
        Loaded {
            id: self.id,
            names: self.names,
            chain_id: self.chain_id,
            notes: self.notes,
        }
    }
}

/// Brings one image's layers and index into the store.
fn store_image(
    store: &Store,
    source: &Source,
    image: SourceImage,
    progress: Progress<'_>,
) -> Result<NewImage> {
    let mut notes = Vec::new();
    let mut layers = Vec::new();
    for layer in &image.layers {
        let diff_id = layer.diff_id.to_string();
        if !layers.contains(&diff_id) {
            store_source_layer(store, source, layer, &diff_id, &mut notes, progress)?;
        }
        layers.push(diff_id);
    }
    let chain_id = store.build_image_index(&layers).map_err(invalid_image)?;
    let size = store.open_image_index(&chain_id)?.content_size();
    let id = image.id();
    let manifest_came = image.manifest.is_some();
    let manifest = match image.manifest {
        Some(manifest) => manifest,
        None => docker_manifest(store, &image.raw_config, &image.layers)?,
    };
    let stored = |name: selkie_image::name::ImageName| name.into_stored().to_string();
    Ok(NewImage {
        id: id.hex(),
        names: image.names.into_iter().map(stored).collect(),
        raw_config: image.raw_config,
        manifest,
        manifest_came,
        chain_id,
        layers,
        size,
        notes,
    })
}

fn store_source_layer(
    store: &Store,
    source: &Source,
    layer: &SourceLayer,
    diff_id: &str,
    notes: &mut Vec<String>,
    progress: Progress<'_>,
) -> Result<()> {
    let present = store.has_layer(diff_id);
    let mut opened = source.open_layer(layer)?;
    progress(LoadEvent::Layer {
        diff_id,
        size: opened.size,
        present,
    });
    if !present {
        let (report, writer) = write_layer(store, &mut opened.reader, &layer.expected, progress)
            .map_err(|error| error.in_layer(diff_id))?;
        writer.commit(diff_id)?;
        notes.extend(layer_notes(&report));
    }
    progress(LoadEvent::LayerDone);
    Ok(())
}

/// The manifest of an image that came without one: what Podman makes, in which layers count as
/// compressed although digest and size are those of the plain tar.
fn docker_manifest(
    store: &Store,
    raw_config: &[u8],
    layers: &[SourceLayer],
) -> Result<RawManifest> {
    let blob = |media_type: String, digest: Digest, size: u64| Descriptor {
        media_type,
        digest,
        size,
        annotations: None,
        platform: None,
    };
    let layers = layers
        .iter()
        .map(|layer| {
            let size = store.layer_tar_size(&layer.diff_id.to_string())?;
            Ok(blob(format!("{DOCKER_LAYER}.gzip"), layer.diff_id, size))
        })
        .collect::<Result<_>>()?;
    let config = blob(
        DOCKER_CONFIG.to_owned(),
        Digest::of(raw_config),
        raw_config.len() as u64,
    );
    let manifest = Manifest {
        media_type: DOCKER_MANIFEST.to_owned(),
        config,
        layers,
    };
    Ok(RawManifest {
        bytes: manifest.to_bytes(),
        media_type: manifest.media_type,
    })
}

/// What to tell the user about a layer.
pub(super) fn layer_notes(report: &LayerReport) -> Vec<String> {
    let mut notes = Vec::new();
    match report.content.devices {
        0 => {}
        1 => notes.push("1 device node skipped: a login cannot make one".to_owned()),
        count => notes.push(format!(
            "{count} device nodes skipped: a login cannot make them"
        )),
    }
    match report.content.overlay_xattrs {
        0 => {}
        count => notes.push(format!(
            "{count} overlay attributes left out: they would change what other files show"
        )),
    }
    notes
}

/// Why a layer was not written.
pub(super) struct LayerFailure(LayerError);

impl LayerFailure {
    /// Names the layer.
    pub(super) fn in_layer(self, layer: &str) -> Error {
        let kind = match &self.0 {
            LayerError::Read(_) => ErrorKind::Machine,
            LayerError::Sink { source, .. } => match source.downcast_ref::<StoreError>() {
                Some(StoreError::Invalid(_)) => ErrorKind::InvalidInput,
                _ => ErrorKind::Machine,
            },
            _ => ErrorKind::InvalidInput,
        };
        let error = Error::new(kind, format!("layer {layer}: {}", self.0));
        match self.0 {
            LayerError::Limit(_) => error.with_hint(
                "if the image is what it should be, free some space on the store's file system",
            ),
            _ => error,
        }
    }
}

pub(super) fn invalid_image(error: StoreError) -> Error {
    let kind = match error {
        StoreError::Invalid(_) => ErrorKind::InvalidInput,
        _ => ErrorKind::Machine,
    };
    Error::new(kind, format!("put the layers together: {error}"))
}

/// Bytes that may still be written where `path` is.
pub(super) fn free_bytes(path: &Path) -> Result<u64> {
    let status = rustix::fs::statvfs(path).map_err(|errno| {
        Error::machine(format!("look at the disk of {}", path.display()), errno)
    })?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

/// Reads a layer into the store without making it visible yet.
pub(super) fn write_layer<'s>(
    store: &'s Store,
    source: &mut (dyn Read + Send),
    expected: &Expected,
    progress: Progress<'_>,
) -> std::result::Result<(LayerReport, LayerWriter<'s>), LayerFailure> {
    let outside = |source: SinkError| {
        let at = String::new();
        LayerFailure(LayerError::Sink { at, source })
    };
    let free = free_bytes(store.root()).map_err(|error| outside(error.into()))?;
    let limits = Limits {
        tar_bytes: free,
        content_bytes: free,
        ..Limits::default()
    };
    let writer = store.new_layer().map_err(|error| outside(error.into()))?;
    let read = AtomicU64::new(0);
    let mut sink = StoreSink {
        writer,
        read: &read,
        told: 0,
        progress,
    };
    let report =
        read_layer(source, expected, &limits, Some(&read), &mut sink).map_err(LayerFailure)?;
    Ok((report, sink.writer))
}

/// Hands entries on to the store, and tells how far it is in between.
struct StoreSink<'s, 'p> {
    writer: LayerWriter<'s>,
    /// Bytes taken from the source so far.
    read: &'p AtomicU64,
    /// Of which this many were told.
    told: u64,
    progress: Progress<'p>,
}

/// Bytes between two messages about progress.
const PROGRESS_STEP: u64 = 1 << 20;

impl StoreSink<'_, '_> {
    fn tell(&mut self) {
        let read = self.read.load(Ordering::Relaxed);
        if read >= self.told + PROGRESS_STEP {
            self.told = read;
            (self.progress)(LoadEvent::Read(read));
        }
    }
}

impl LayerSink for StoreSink<'_, '_> {
    fn raw(&mut self, bytes: &[u8]) -> std::result::Result<(), SinkError> {
        self.tell();
        Ok(self.writer.raw(bytes)?)
    }

    fn entry(
        &mut self,
        entry: LayerEntry,
        sparse_map: Option<&[(u64, u64)]>,
        content: &mut dyn Read,
    ) -> std::result::Result<(), SinkError> {
        let entry = NewEntry {
            path: entry.path,
            kind: match entry.kind {
                EntryKind::File { size } => NewEntryKind::File { size },
                EntryKind::Directory => NewEntryKind::Directory,
                EntryKind::Symlink { target } => NewEntryKind::Symlink { target },
                EntryKind::HardLink { target } => NewEntryKind::HardLink { target },
                EntryKind::Fifo => NewEntryKind::Fifo,
                EntryKind::Device => NewEntryKind::Device,
                EntryKind::Whiteout => NewEntryKind::Whiteout,
                EntryKind::OpaqueDirectory => NewEntryKind::OpaqueDirectory,
            },
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            mtime: entry.mtime,
            mtime_nsec: entry.mtime_nsec,
            xattrs: entry.xattrs,
        };
        Ok(self.writer.entry(entry, sparse_map, content)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use selkie_image::changes::Changes;
    use selkie_image::config::for_import;
    use selkie_image::tar_writer::{Kind, Member, TarWriter};

    use super::*;

    struct Place {
        _temp: tempfile::TempDir,
        store: Store,
        database: Database,
    }

    impl Place {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            Self {
                store: Store::open(&temp.path().join("store")).unwrap(),
                database: Database::open(&temp.path().join("data")).unwrap(),
                _temp: temp,
            }
        }
        fn load(&mut self, archive: &[u8]) -> Result<Vec<Loaded>> {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(archive).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            let source = LoadSource::Stream(file);
            load(&self.store, &mut self.database, source, &mut |_| {})
        }
        fn names(&self) -> Vec<(String, String)> {
            let sql = "SELECT name, image_id FROM image_name ORDER BY name";
            let query = |connection: &rusqlite::Connection| {
                let mut statement = connection.prepare(sql)?;
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
            };
            self.database.read(query).unwrap()
        }
        /// What the store has beyond what images of the database need.
        fn garbage(&self) -> Vec<PathBuf> {
            let lock = self.store.lock_exclusive().unwrap();
            let live = crate::images::live(&self.database).unwrap();
            let garbage = self
                .store
                .find_garbage(&lock, &live.chain_ids, &live.layers);
            garbage.unwrap().paths
        }
    }

    fn layer(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        for (path, content) in files {
            let member = Member::plain_file(path, content.len() as u64);
            tar.file(&member, &mut content.as_bytes()).unwrap();
        }
        let device = Member {
            kind: Kind::CharacterDevice(1, 3),
            ..Member::plain_file("null", 0)
        };
        tar.member(&device).unwrap();
        tar.finish().unwrap()
    }

    /// A docker-archive of one image with one layer.
    fn archive(name: &str, layer: &[u8], diff_id: Digest) -> Vec<u8> {
        let config = for_import(&diff_id, "2024-01-01T00:00:00Z", name, &Changes::default());
        let manifest = format!(r#"[{{"Config":"c","RepoTags":["{name}"],"Layers":["l"]}}]"#);
        let mut tar = TarWriter::new(Vec::new());
        for (path, bytes) in [
            ("l", layer),
            ("c", &config[..]),
            ("manifest.json", manifest.as_bytes()),
        ] {
            let member = Member::plain_file(path, bytes.len() as u64);
            tar.file(&member, &mut &bytes[..]).unwrap();
        }
        tar.finish().unwrap()
    }

    #[test]
    fn loading_again_moves_names_and_keeps_the_image() {
        let mut place = Place::new();
        let one = layer(&[("one", "1")]);
        let loaded = place.load(&archive("x:1", &one, Digest::of(&one))).unwrap();
        assert_eq!(loaded[0].names, ["localhost/x:1"]);
        assert_eq!(loaded[0].notes.len(), 1, "{:?}", loaded[0].notes);
        let again = place.load(&archive("x:1", &one, Digest::of(&one))).unwrap();
        assert_eq!(again[0].id, loaded[0].id);
        let two = layer(&[("two", "2")]);
        let other = place.load(&archive("x:1", &two, Digest::of(&two))).unwrap();
        assert_ne!(other[0].id, loaded[0].id);
        let expected = ("localhost/x:1".to_owned(), other[0].id.clone());
        assert_eq!(place.names(), [expected]);
        assert!(place.garbage().is_empty());
        let find = |name: &str| {
            place
                .database
                .read(|connection| crate::images::find(connection, name))
        };
        assert_eq!(find("x:1").unwrap().0.id, other[0].id);
        assert!(find(&loaded[0].id).unwrap().0.names.is_empty());
    }

    #[test]
    fn what_fails_leaves_rows_as_they_were_and_only_garbage() {
        let mut place = Place::new();
        let good = layer(&[("good", "1")]);
        place
            .load(&archive("x:1", &good, Digest::of(&good)))
            .unwrap();
        let before = place.names();
        let through_a_file = layer(&[("a", "1"), ("a/b", "2")]);
        let mut cut = layer(&[("cut", &"c".repeat(5000))]);
        let cut_digest = Digest::of(&cut);
        cut.truncate(2048);
        let trailing = [good.clone(), b"x".to_vec()].concat();
        for (layer, diff_id, word) in [
            (&good, Digest::of(b"other"), "diff ID"),
            (
                &through_a_file,
                Digest::of(&through_a_file),
                "not a directory",
            ),
            (&cut, cut_digest, "truncated"),
            (&trailing, Digest::of(&trailing), "after its end"),
        ] {
            let error = place.load(&archive("x:1", layer, diff_id)).unwrap_err();
            assert!(error.message.contains(word), "{error}");
            assert!(error.message.contains(&diff_id.to_string()), "{error}");
            assert_eq!(error.kind, ErrorKind::InvalidInput);
            assert_eq!(place.names(), before);
            assert!(!place.store.has_layer(&diff_id.to_string()));
        }
        let error = place.load(b"not an archive").unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidInput);
    }
}
