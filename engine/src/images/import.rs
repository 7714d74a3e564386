//! `import`: a root file system in a tar becomes an image of one layer.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use selkie_image::changes::Changes;
use selkie_image::config;
use selkie_image::digest::Digest;
use selkie_image::layer_tar::Expected;
use selkie_image::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use selkie_image::name::Reference;
use selkie_image::transport::RawManifest;

use super::load::{LoadEvent, Loaded, NewImage, Progress, layer_notes, write_layer};
use crate::Engine;
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};

/// What Podman says of an import that nobody commented on.
const DEFAULT_MESSAGE: &str = "imported from tarball";

/// What `import` takes besides the tar.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Name the image gets; none when absent.
    pub name: Option<String>,
    /// `--change` instructions in order.
    pub changes: Vec<String>,
    /// `--message`.
    pub message: Option<String>,
}

/// The tar to import.
#[derive(Debug)]
pub enum ImportSource {
    /// A file.
    Path(PathBuf),
    /// A stream, e.g. standard input.
    Stream(File),
}

impl Engine {
    /// Makes an image from a tar of a root file system, compressed or not.
    ///
    /// # Errors
    /// As [`Self::load`]; `InvalidInput` for a bad name or change.
    pub fn import(
        &mut self,
        source: ImportSource,
        options: &ImportOptions,
        progress: Progress<'_>,
    ) -> Result<Loaded> {
        let invalid = |error: String| Error::new(ErrorKind::InvalidInput, error);
        let changes =
            Changes::parse(&options.changes).map_err(|error| invalid(error.to_string()))?;
        let name = match &options.name {
            None => None,
            Some(name) => {
                let name: Reference = name.parse().map_err(|error| invalid(format!("{error}")))?;
                if name.digest().is_some() {
                    return Err(invalid(format!(
                        "image name {name}: a digest cannot be chosen, only a tag"
                    )));
                }
                Some(name.into_local().to_string())
            }
        };
        let (shown, file) = match source {
            ImportSource::Stream(file) => ("standard input".to_owned(), file),
            ImportSource::Path(path) => {
                let shown = path.display().to_string();
                let file = File::open(&path)
                    .map_err(|error| Error::machine(format!("open {shown}"), error))?;
                (shown, file)
            }
        };
        let metadata = file
            .metadata()
            .map_err(|error| Error::machine(format!("look at {shown}"), error))?;
        if metadata.is_dir() {
            return Err(invalid(format!(
                "{shown} is a directory, not a tar archive"
            )));
        }
        // so that importing a file twice gives the same image
        let created = if metadata.is_file() {
            metadata.modified().ok()
        } else {
            None
        };
        let created = created.and_then(|time| jiff::Timestamp::try_from(time).ok());
        let created = created.unwrap_or_else(jiff::Timestamp::now).to_string();
        let message = options.message.as_deref().unwrap_or(DEFAULT_MESSAGE);

        let _lock = self.store.lock_shared()?;
        progress(LoadEvent::Layer {
            diff_id: "",
            size: if metadata.is_file() {
                metadata.len()
            } else {
                0
            },
            present: false,
        });
        let mut source: Box<dyn Read + Send> = Box::new(file);
        let (report, writer) =
            write_layer(&self.store, &mut source, &Expected::default(), progress)
                .map_err(|error| error.in_layer(&shown))?;
        let diff_id = report.diff_id.to_string();
        writer.commit(&diff_id)?;
        progress(LoadEvent::LayerDone);

        let layers = vec![diff_id];
        let chain_id = self
            .store
            .build_image_index(&layers)
            .map_err(super::load::invalid_image)?;
        let raw_config = config::for_import(&report.diff_id, &created, message, &changes);
        let id = Digest::of(&raw_config);
        let blob = |media_type: &str, digest: Digest, size: u64| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: None,
            platform: None,
        };
        let manifest = Manifest {
            media_type: OCI_MANIFEST.to_owned(),
            config: blob(OCI_CONFIG, id, raw_config.len() as u64),
            layers: vec![blob(OCI_LAYER, report.diff_id, report.content.tar_bytes)],
        };
        let image = NewImage {
            id: id.hex(),
            names: name.into_iter().collect(),
            raw_config,
            manifest: RawManifest {
                bytes: manifest.to_bytes(),
                media_type: manifest.media_type,
            },
            manifest_came: false,
            size: self.store.open_image_index(&chain_id)?.content_size(),
            chain_id,
            layers,
            notes: layer_notes(&report),
        };
        self.database.write(Durability::PowerCut, |transaction| {
            image.insert(transaction)
        })?;
        Ok(image.into_loaded())
    }
}
