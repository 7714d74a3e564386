//! `save`: images into archives and directories.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use selkie_image::digest::Digest;
use selkie_image::layer_tar::SinkError;
use selkie_image::name::{ImageName, Reference};
use selkie_image::save::{
    ArchiveFormat, DirectoryFormat, LayerSource, SaveError, SavedImage, save_archive,
    save_directory,
};
use selkie_storage::Store;

use super::Image;
use crate::Engine;
use crate::error::{Error, ErrorKind, Result};

impl From<SaveError> for Error {
    fn from(error: SaveError) -> Self {
        let kind = match &error {
            SaveError::Refused(_) => ErrorKind::InvalidInput,
            SaveError::Write { .. } | SaveError::Layer { .. } => ErrorKind::Machine,
        };
        Self::new(kind, error.to_string())
    }
}

/// `save --format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveFormat {
    /// `docker-archive`, the default: one tar, layers not compressed.
    DockerArchive,
    /// `oci-archive`: one tar.
    OciArchive,
    /// `docker-dir`: a directory with one image.
    DockerDirectory,
    /// `oci-dir`: a directory.
    OciDirectory,
}

impl SaveFormat {
    /// True for the two that are one file.
    pub fn is_archive(self) -> bool {
        matches!(self, Self::DockerArchive | Self::OciArchive)
    }
}

/// One image to save.
#[derive(Debug, Clone, Default)]
pub struct SaveItem {
    /// Name or ID. A name goes into the archive.
    pub image: String,
    /// Further names it gets in the archive (they need not exist here).
    pub extra_names: Vec<String>,
}

/// Where to.
pub enum SaveTarget<'t> {
    /// A file (for archives) or directory (for the others). Absolute. A file that exists is
    /// replaced; a directory must be empty.
    Path(&'t Path),
    /// A stream, for archives only.
    Stream(&'t mut dyn Write),
}

impl Engine {
    /// Writes images out. `compress`: gzip layers, for all formats but `DockerArchive`.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for what the format cannot do; `Machine`. A file appears whole or
    /// not at all.
    pub fn save(
        &self,
        items: &[SaveItem],
        format: SaveFormat,
        compress: bool,
        target: SaveTarget<'_>,
    ) -> Result<()> {
        let invalid = |text: &str| Err(Error::new(ErrorKind::InvalidInput, text));
        if compress && format == SaveFormat::DockerArchive {
            return invalid("a docker-archive holds uncompressed layers");
        }
        // keeps the layers from being removed meanwhile
        let _lock = self.store.lock_shared()?;
        let images = self.collect(items)?;
        let layers = StoredLayers(&self.store);
        let spool = self.store.root().join("tmp");
        let archive = |out: &mut dyn Write| {
            let format = match format {
                SaveFormat::OciArchive => ArchiveFormat::Oci,
                _ => ArchiveFormat::Docker,
            };
            Ok(save_archive(
                &images, format, compress, out, &spool, &layers,
            )?)
        };
        match target {
            SaveTarget::Stream(out) if format.is_archive() => archive(out),
            SaveTarget::Stream(_) => invalid("a directory format needs the name of a directory"),
            SaveTarget::Path(path) if format.is_archive() => write_file(path, archive),
            SaveTarget::Path(path) => {
                let format = match format {
                    SaveFormat::OciDirectory => DirectoryFormat::Oci,
                    _ => DirectoryFormat::Docker,
                };
                Ok(save_directory(&images, format, compress, path, &layers)?)
            }
        }
    }

    fn collect(&self, items: &[SaveItem]) -> Result<Vec<SavedImage>> {
        let mut found: Vec<(Image, SavedImage)> = Vec::new();
        for item in items {
            let (image, name) = self.find_image(&item.image)?;
            let mut names = Vec::new();
            for text in name.iter().chain(&item.extra_names) {
                let name: Reference = text
                    .parse()
                    .map_err(|error| Error::new(ErrorKind::InvalidInput, format!("{error}")))?;
                names.push(name.into_local());
            }
            let index = match found.iter().position(|(known, _)| known.id == image.id) {
                Some(index) => index,
                None => {
                    let layers = image
                        .layers
                        .iter()
                        .map(|text| text.parse())
                        .collect::<std::result::Result<Vec<Digest>, _>>()
                        .map_err(|error| Error::machine("read the list of layers", error))?;
                    let saved = SavedImage {
                        names: Vec::new(),
                        config: image.raw_config.clone(),
                        layers,
                    };
                    found.push((image, saved));
                    found.len() - 1
                }
            };
            let all: &mut Vec<ImageName> = &mut found[index].1.names;
            for name in names {
                if !all.contains(&name) {
                    all.push(name);
                }
            }
        }
        Ok(found.into_iter().map(|(_, saved)| saved).collect())
    }
}

/// Gives `write` a temporary file beside `path`, which then takes its place. What is no regular file
/// (a pipe, a terminal) is written to directly.
fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::machine(format!("write {}", path.display()), error);
    let special = match std::fs::metadata(path) {
        Ok(metadata) => !metadata.is_file(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(failed(error)),
    };
    if special {
        let mut file = File::options().write(true).open(path).map_err(failed)?;
        return write(&mut file);
    }
    // through a symbolic link, not over it
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let temporary: PathBuf = path.with_file_name(name);
    let mut file = File::create_new(&temporary).map_err(failed)?;
    let result = write(&mut file).and_then(|()| std::fs::rename(&temporary, &path).map_err(failed));
    if result.is_err() {
        // the reason is on its way; what cannot be removed now is not worth another
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

struct StoredLayers<'s>(&'s Store);

impl LayerSource for StoredLayers<'_> {
    fn tar_size(&self, diff_id: &Digest) -> std::result::Result<u64, SinkError> {
        Ok(self.0.layer_tar_size(&diff_id.to_string())?)
    }
    fn write_tar(
        &self,
        diff_id: &Digest,
        out: &mut dyn Write,
    ) -> std::result::Result<(), SinkError> {
        Ok(self.0.write_layer_tar(&diff_id.to_string(), out)?)
    }
}
