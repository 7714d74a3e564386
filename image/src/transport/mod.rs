//! Where images come from and go to: archives and directories in the forms other tools use.
//!
//! A [`TransportReference`] is the text a user types (`oci-archive:FILE:NAME`). A [`Source`] is an
//! opened archive or directory: it lists its images and opens their layers, verifying manifests and
//! configs on the way (layers are verified while they are read, see
//! [`crate::layer_tar::read_layer`]). The writing side is [`crate::save`].
//!
//! Archives are never unpacked: their headers are scanned once and blobs are then read by offset,
//! several at a time if wanted. What cannot be read by offset (a pipe, a compressed archive) is
//! first copied to an unnamed temporary file in a directory of the caller's choice.

mod archive;
mod directory;
mod docker_archive;
mod docker_directory;
mod oci_layout;
mod reference;
pub(crate) mod spool;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::layer_tar::{Expected, LayerError};
use crate::manifest::{MAX_DOCUMENT, ManifestError};
use crate::name::{ImageName, NameError};
use crate::platform::Platform;

use archive::ArchiveFiles;
use directory::DirectoryFiles;

pub(crate) use oci_layout::{REF_NAME, blob_file};
pub use reference::{Selector, Transport, TransportReference};

/// Why an archive or directory of images cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Input or output failed.
    #[error("{attempt} {path}: {source}")]
    Io {
        /// What was attempted, e.g. `open`.
        attempt: &'static str,
        /// On what.
        path: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// The text names no transport we know, or not in its form.
    #[error("{0}")]
    BadReference(String),
    /// It is not what it should be.
    #[error("{path} holds no images: {why}")]
    NotImages {
        /// Which file or directory.
        path: String,
        /// What is missing or wrong.
        why: String,
    },
    /// A file it refers to is not in it.
    #[error("{path} is incomplete: {file} is missing")]
    Missing {
        /// Which archive or directory.
        path: String,
        /// Which file in it.
        file: String,
    },
    /// A file in it is not what its digest or size says.
    #[error("{path} is damaged: {file} {what}")]
    Damaged {
        /// Which archive or directory.
        path: String,
        /// Which file in it.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A manifest, index or config in it is refused.
    #[error("{path}: {source}")]
    Manifest {
        /// Which archive or directory.
        path: String,
        /// Why.
        source: ManifestError,
    },
    /// A name in it is not one.
    #[error("{path}: {source}")]
    Name {
        /// Which archive or directory.
        path: String,
        /// Why.
        source: NameError,
    },
    /// The image asked for is not in it.
    #[error("{path} has no image {wanted}; it has {available}")]
    NoSuchImage {
        /// Which archive or directory.
        path: String,
        /// As asked.
        wanted: String,
        /// Names in it.
        available: String,
    },
    /// The archive's own framing is broken.
    #[error("{path}: {source}")]
    Archive {
        /// Which archive.
        path: String,
        /// Why.
        source: LayerError,
    },
}

/// A file opened in an archive or directory.
pub struct OpenFile {
    /// Its length in bytes.
    pub size: u64,
    /// Its content.
    pub reader: Box<dyn Read + Send>,
}

/// Files by relative path, in an archive or a directory.
trait Files: Send + Sync {
    /// Opens a regular file; `None` when there is none of that path.
    fn open(&self, path: &str) -> Result<Option<OpenFile>, TransportError>;
}

/// Where to read from.
#[derive(Debug)]
pub enum Input {
    /// A file or directory.
    Path(PathBuf),
    /// A stream, e.g. standard input.
    Stream(File),
}

/// Where temporary copies go and how large they may get.
#[derive(Debug, Clone)]
pub struct Spool {
    /// A directory on a disk with room (never a memory file system).
    pub directory: PathBuf,
    /// Most bytes to write there.
    pub limit: u64,
}

/// A manifest as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawManifest {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its media type.
    pub media_type: String,
}

/// One image of a source.
#[derive(Debug, Clone)]
pub struct SourceImage {
    /// Its names, normalised; short ones as `localhost/…`.
    pub names: Vec<ImageName>,
    /// Its manifest; `None` in docker-archives, which have none.
    pub manifest: Option<RawManifest>,
    /// Bytes of its config, whose digest is the image's ID.
    pub raw_config: Vec<u8>,
    /// The config parsed.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<SourceLayer>,
}

/// One layer of an image in a source.
#[derive(Debug, Clone)]
pub struct SourceLayer {
    file: String,
    /// What it must turn out to be; `diff_id` is always there.
    pub expected: Expected,
    /// The same diff ID.
    pub diff_id: Digest,
}

impl SourceImage {
    /// SHA-256 of the config.
    pub fn id(&self) -> Digest {
        Digest::of(&self.raw_config)
    }
}

/// An opened archive or directory.
pub struct Source {
    /// As shown in errors.
    path: String,
    files: Box<dyn Files>,
    transport: Transport,
}

impl Source {
    /// Opens what a reference names.
    pub fn open(reference: &TransportReference, spool: &Spool) -> Result<Self, TransportError> {
        let path = reference.path.clone();
        Self::new(Input::Path(path), Some(reference.transport), spool)
    }

    /// Opens an archive or directory of any kind, found out by looking.
    pub fn detect(input: Input, spool: &Spool) -> Result<Self, TransportError> {
        Self::new(input, None, spool)
    }

    fn new(
        input: Input,
        transport: Option<Transport>,
        spool: &Spool,
    ) -> Result<Self, TransportError> {
        let (path, file) = match input {
            Input::Stream(file) => ("standard input".to_owned(), file),
            Input::Path(path) => {
                let shown = path.display().to_string();
                let file = spool::open_for_reading(&path).map_err(io_error("open", &shown))?;
                (shown, file)
            }
        };
        let metadata = file.metadata().map_err(io_error("examine", &path))?;
        let files: Box<dyn Files> = if metadata.is_dir() {
            Box::new(DirectoryFiles::new(file, &path))
        } else {
            let file = spool::seekable(file, spool).map_err(|error| match error {
                spool::SpoolError::Read(source) => io_error("read", &path)(source),
                spool::SpoolError::Write(source) => {
                    io_error("copy to", &spool.directory.display().to_string())(source)
                }
                spool::SpoolError::Layer(source) => TransportError::Archive {
                    path: path.clone(),
                    source,
                },
            })?;
            Box::new(ArchiveFiles::scan(file, &path)?)
        };
        let transport = match transport {
            None => detect(&*files, metadata.is_dir(), &path)?,
            Some(transport) if transport.is_archive() == metadata.is_dir() => {
                let kind = if metadata.is_dir() {
                    "a directory"
                } else {
                    "not a directory"
                };
                return Err(TransportError::NotImages {
                    why: format!("{transport}: does not fit, since it is {kind}"),
                    path,
                });
            }
            Some(transport) => transport,
        };
        Ok(Self {
            path,
            files,
            transport,
        })
    }

    /// What it turned out to be.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Its images, or the one selected. Manifests and configs are verified. From an index of
    /// several platforms the manifest for `platform` is taken.
    pub fn images(
        &self,
        selector: Option<&Selector>,
        platform: &Platform,
    ) -> Result<Vec<SourceImage>, TransportError> {
        match self.transport {
            Transport::OciArchive | Transport::OciDirectory => {
                oci_layout::images(self, selector, platform)
            }
            Transport::DockerArchive => docker_archive::images(self, selector),
            Transport::DockerDirectory => docker_directory::image(self, platform),
        }
    }

    /// Opens a layer for reading from its start, compressed as it is.
    pub fn open_layer(&self, layer: &SourceLayer) -> Result<OpenFile, TransportError> {
        self.require(&layer.file)
    }

    fn require(&self, file: &str) -> Result<OpenFile, TransportError> {
        self.files
            .open(file)?
            .ok_or_else(|| TransportError::Missing {
                path: self.path.clone(),
                file: file.to_owned(),
            })
    }

    /// A whole manifest, index or config; its digest is checked when one is given.
    fn document(&self, file: &str, digest: Option<&Digest>) -> Result<Vec<u8>, TransportError> {
        let opened = self.require(file)?;
        let damaged = |what: String| TransportError::Damaged {
            path: self.path.clone(),
            file: file.to_owned(),
            what,
        };
        if opened.size > MAX_DOCUMENT {
            return Err(damaged(format!(
                "has {} bytes; {MAX_DOCUMENT} are allowed for manifests and configs",
                opened.size
            )));
        }
        let mut bytes = Vec::new();
        opened
            .reader
            .take(MAX_DOCUMENT)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", &format!("{file} in {}", self.path)))?;
        if let Some(expected) = digest {
            let found = Digest::of(&bytes);
            if found != *expected {
                return Err(damaged(format!("has digest {found}, expected {expected}")));
            }
        }
        Ok(bytes)
    }

    fn manifest_error(&self) -> impl Fn(ManifestError) -> TransportError {
        let path = self.path.clone();
        move |source| TransportError::Manifest {
            path: path.clone(),
            source,
        }
    }

    fn malformed(
        &self,
        what: &'static str,
    ) -> impl FnOnce(serde_json::Error) -> TransportError + use<> {
        let path = self.path.clone();
        move |source| TransportError::Manifest {
            path,
            source: ManifestError::Malformed { what, source },
        }
    }

    /// Reads the config and ties each layer to its file and its diff ID.
    fn assemble(
        &self,
        names: Vec<ImageName>,
        manifest: RawManifest,
        parsed: &crate::manifest::Manifest,
        blob_file: impl Fn(&Digest) -> String,
    ) -> Result<SourceImage, TransportError> {
        let config_file = blob_file(&parsed.config.digest);
        let raw_config = self.document(&config_file, Some(&parsed.config.digest))?;
        let config = ImageConfig::parse(&raw_config).map_err(self.manifest_error())?;
        config
            .check_layer_count(parsed.layers.len())
            .map_err(self.manifest_error())?;
        let layers = parsed
            .layers
            .iter()
            .zip(&config.diff_ids)
            .map(|(layer, diff_id)| SourceLayer {
                file: blob_file(&layer.digest),
                expected: Expected {
                    digest: Some(layer.digest),
                    size: Some(layer.size),
                    diff_id: Some(*diff_id),
                },
                diff_id: *diff_id,
            })
            .collect();
        Ok(SourceImage {
            names,
            manifest: Some(manifest),
            raw_config,
            config,
            layers,
        })
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}", self.transport, self.path)
    }
}

/// Docker writes both its own `manifest.json` and an OCI layout into one archive, and the latter
/// may name blobs of other platforms that are not there: so the former counts.
fn detect(files: &dyn Files, directory: bool, path: &str) -> Result<Transport, TransportError> {
    let has = |file: &str| Ok::<_, TransportError>(files.open(file)?.is_some());
    Ok(
        match (directory, has("manifest.json")?, has("index.json")?) {
            (false, true, _) => Transport::DockerArchive,
            (false, false, true) => Transport::OciArchive,
            (true, _, true) => Transport::OciDirectory,
            (true, true, false) => Transport::DockerDirectory,
            (_, false, false) => {
                return Err(TransportError::NotImages {
                path: path.to_owned(),
                why: "there is neither manifest.json nor index.json in it (a root file system is taken by `import`)".to_owned(),
            });
            }
        },
    )
}

fn io_error(attempt: &'static str, path: &str) -> impl FnOnce(io::Error) -> TransportError + use<> {
    let path = path.to_owned();
    move |source| TransportError::Io {
        attempt,
        path,
        source,
    }
}

fn path_is_plain(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, std::path::Component::Normal(_)))
}

fn no_such_image(source: &Source, selector: Option<&Selector>, names: &[&str]) -> TransportError {
    match selector {
        None => TransportError::NotImages {
            path: source.path.clone(),
            why: "its list of images is empty".to_owned(),
        },
        Some(selector) => TransportError::NoSuchImage {
            path: source.path.clone(),
            wanted: selector.to_string(),
            available: match names {
                [] => "no names".to_owned(),
                names => names.join(", "),
            },
        },
    }
}
