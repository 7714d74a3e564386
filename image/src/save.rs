//! Writes images into archives and directories, in the forms `podman save --format` knows.
//!
//! Layers come from a [`LayerSource`] as uncompressed tar streams of known length. Docker-archives
//! hold them like that and can be streamed to a pipe. The other forms are content-addressed: a
//! compressed blob's name is known only when it is written, so it is written to a temporary file
//! first (archives) or renamed afterwards (directories).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::layer_tar::SinkError;
use crate::manifest::{
    DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, Manifest, OCI_CONFIG, OCI_LAYER,
    OCI_MANIFEST,
};
use crate::name::ImageName;
use crate::tar_writer::{Kind, Member, TarWriter};
use crate::transport::spool;

/// Bytes collected before a write: layers come in many small pieces.
const BUFFER: usize = 128 * 1024;

/// Gives layers' tar streams.
pub trait LayerSource {
    /// Length in bytes.
    fn tar_size(&self, diff_id: &Digest) -> Result<u64, SinkError>;
    /// The stream, whose SHA-256 is `diff_id`.
    fn write_tar(&self, diff_id: &Digest, out: &mut dyn Write) -> Result<(), SinkError>;
}

/// One image to write.
#[derive(Debug, Clone)]
pub struct SavedImage {
    /// Names it gets in the archive.
    pub names: Vec<ImageName>,
    /// Bytes of its config.
    pub config: Vec<u8>,
    /// Diff IDs of its layers, lowest first.
    pub layers: Vec<Digest>,
}

/// Form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// `docker-archive`.
    Docker,
    /// `oci-archive`.
    Oci,
}

/// Form of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryFormat {
    /// `docker-dir`: one image only.
    Docker,
    /// `oci-dir`.
    Oci,
}

/// Why images cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Writing failed.
    #[error("write {path}: {source}")]
    Write {
        /// Where to.
        path: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// A layer could not be had.
    #[error("read layer {diff_id}: {source}")]
    Layer {
        /// Which one.
        diff_id: Digest,
        /// Why.
        source: SinkError,
    },
    /// Something that cannot be.
    #[error("{0}")]
    Refused(String),
}

/// Writes an archive to a stream. `compress` (OCI only) makes gzip layers, for which `spool` is a
/// directory for temporary files.
pub fn save_archive(
    images: &[SavedImage],
    format: ArchiveFormat,
    compress: bool,
    out: &mut dyn Write,
    spool: &Path,
    layers: &dyn LayerSource,
) -> Result<(), SaveError> {
    let mut buffered = BufWriter::with_capacity(BUFFER, out);
    let mut archive = Archive {
        tar: TarWriter::new(&mut buffered),
        written: BTreeSet::new(),
        spool,
    };
    match format {
        ArchiveFormat::Docker => docker_archive(images, &mut archive, layers)?,
        ArchiveFormat::Oci => {
            // Skopeo run by an ordinary user cannot make directories that the archive leaves out:
            // it would give them to root.
            for directory in ["blobs", "blobs/sha256"] {
                let member = Member {
                    kind: Kind::Directory,
                    mode: 0o755,
                    ..Member::plain_file(directory, 0)
                };
                archive.tar.member(&member).map_err(to_stream)?;
            }
            oci_layout(images, compress, &mut archive, layers)?;
        }
    }
    let out = archive.tar.finish().map_err(to_stream)?;
    out.flush().map_err(to_stream)
}

/// Writes a directory, which must not exist or be empty. It appears whole or not at all.
pub fn save_directory(
    images: &[SavedImage],
    format: DirectoryFormat,
    compress: bool,
    directory: &Path,
    layers: &dyn LayerSource,
) -> Result<(), SaveError> {
    let failed = |source| SaveError::Write {
        path: directory.display().to_string(),
        source,
    };
    let parent = match directory.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    if directory.exists() {
        let mut entries = std::fs::read_dir(directory).map_err(failed)?;
        if entries.next().is_some() {
            return Err(SaveError::Refused(format!(
                "{} is not empty: name a new directory",
                directory.display()
            )));
        }
    }
    let temporary = parent.join(format!(".selkie-save-{}", std::process::id()));
    std::fs::create_dir(&temporary).map_err(failed)?;
    let mut target = Directory {
        root: temporary.clone(),
        blobs: match format {
            DirectoryFormat::Oci => "blobs/sha256/",
            DirectoryFormat::Docker => "",
        },
    };
    let result = (|| {
        match (format, images) {
            (DirectoryFormat::Oci, _) => {
                std::fs::create_dir_all(temporary.join("blobs/sha256")).map_err(failed)?;
                oci_layout(images, compress, &mut target, layers)?;
            }
            (DirectoryFormat::Docker, [image]) => {
                docker_directory(image, compress, &mut target, layers)?;
            }
            (DirectoryFormat::Docker, _) => {
                return Err(SaveError::Refused(
                    "a docker-dir holds exactly one image".to_owned(),
                ));
            }
        }
        std::fs::rename(&temporary, directory).map_err(failed)
    })();
    if result.is_err() {
        // the reason is on its way; what cannot be removed now is not worth another
        let _ = std::fs::remove_dir_all(&temporary);
    }
    result
}

fn to_stream(source: io::Error) -> SaveError {
    SaveError::Write {
        path: "the archive".to_owned(),
        source,
    }
}

/// Takes the files of a layout.
trait Target {
    /// A small file.
    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), SaveError>;
    /// A layer as a blob; where it went.
    fn layer(
        &mut self,
        diff_id: &Digest,
        compress: bool,
        layers: &dyn LayerSource,
    ) -> Result<Blob, SaveError>;
}

#[derive(Debug, Clone, Copy)]
struct Blob {
    digest: Digest,
    size: u64,
}

impl Blob {
    fn descriptor(self, media_type: impl Into<String>) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest: self.digest,
            size: self.size,
            annotations: None,
            platform: None,
        }
    }
}

struct Archive<'a> {
    tar: TarWriter<&'a mut dyn Write>,
    written: BTreeSet<String>,
    spool: &'a Path,
}

impl Archive<'_> {
    fn layer_file(
        &mut self,
        path: &str,
        diff_id: &Digest,
        layers: &dyn LayerSource,
    ) -> Result<u64, SaveError> {
        let of_layer = |source| SaveError::Layer {
            diff_id: *diff_id,
            source,
        };
        let size = layers.tar_size(diff_id).map_err(of_layer)?;
        if self.written.insert(path.to_owned()) {
            let mut failure = None;
            let result = self
                .tar
                .file_with(&Member::plain_file(path, size), |mut out| {
                    let mut out = Remembering::new(&mut out);
                    let result = layers.write_tar(diff_id, &mut out);
                    let write_failure = out.failure.take();
                    if let (Err(source), None) = (result, &write_failure) {
                        failure = Some(of_layer(source));
                    }
                    write_failure.map_or(Ok(()), Err)
                });
            if let Some(failure) = failure {
                return Err(failure);
            }
            result.map_err(to_stream)?;
        }
        Ok(size)
    }
}

impl Target for Archive<'_> {
    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), SaveError> {
        if !self.written.insert(path.to_owned()) {
            return Ok(());
        }
        let member = Member::plain_file(path, bytes.len() as u64);
        self.tar.file(&member, &mut &bytes[..]).map_err(to_stream)
    }

    fn layer(
        &mut self,
        diff_id: &Digest,
        compress: bool,
        layers: &dyn LayerSource,
    ) -> Result<Blob, SaveError> {
        if !compress {
            let path = crate::transport::blob_file(diff_id);
            let size = self.layer_file(&path, diff_id, layers)?;
            let digest = *diff_id;
            return Ok(Blob { digest, size });
        }
        let failed = |source| SaveError::Write {
            path: self.spool.display().to_string(),
            source,
        };
        let mut file = spool::temporary(self.spool).map_err(failed)?;
        let blob = compressed(diff_id, layers, &file).map_err(|error| error.on(self.spool))?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let path = crate::transport::blob_file(&blob.digest);
        if self.written.insert(path.clone()) {
            let member = Member::plain_file(&path, blob.size);
            self.tar.file(&member, &mut file).map_err(to_stream)?;
        }
        Ok(blob)
    }
}

struct Directory {
    root: PathBuf,
    blobs: &'static str,
}

impl Target for Directory {
    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), SaveError> {
        let path = self.root.join(path);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)
        };
        write().map_err(|source| SaveError::Write {
            path: path.display().to_string(),
            source,
        })
    }

    fn layer(
        &mut self,
        diff_id: &Digest,
        compress: bool,
        layers: &dyn LayerSource,
    ) -> Result<Blob, SaveError> {
        let temporary = self.root.join(format!("{}layer", self.blobs));
        let failed = |source| SaveError::Write {
            path: temporary.display().to_string(),
            source,
        };
        let file = File::create(&temporary).map_err(failed)?;
        let written = if compress {
            compressed(diff_id, layers, &file)
        } else {
            plain(diff_id, layers, &file)
        };
        let blob = written.map_err(|error| error.on(&temporary))?;
        let path = self
            .root
            .join(format!("{}{}", self.blobs, blob.digest.hex()));
        std::fs::rename(&temporary, path).map_err(failed)?;
        Ok(blob)
    }
}

/// A failure on one side of a copy from a layer to a file.
enum CopyError {
    Layer(SaveError),
    Write(io::Error),
}

impl CopyError {
    fn on(self, path: &Path) -> SaveError {
        match self {
            Self::Layer(error) => error,
            Self::Write(source) => SaveError::Write {
                path: path.display().to_string(),
                source,
            },
        }
    }
}

fn copy(diff_id: &Digest, layers: &dyn LayerSource, out: &mut dyn Write) -> Result<(), CopyError> {
    let mut out = Remembering::new(out);
    let result = layers.write_tar(diff_id, &mut out);
    if let Some(failure) = out.failure {
        return Err(CopyError::Write(failure));
    }
    result.map_err(|source| {
        CopyError::Layer(SaveError::Layer {
            diff_id: *diff_id,
            source,
        })
    })
}

fn plain(diff_id: &Digest, layers: &dyn LayerSource, file: &File) -> Result<Blob, CopyError> {
    let mut out = Hashing::new(file);
    copy(diff_id, layers, &mut out)?;
    out.finish()
}

fn compressed(diff_id: &Digest, layers: &dyn LayerSource, file: &File) -> Result<Blob, CopyError> {
    let mut encoder = GzEncoder::new(Hashing::new(file), flate2::Compression::default());
    copy(diff_id, layers, &mut encoder)?;
    encoder.finish().map_err(CopyError::Write)?.finish()
}

/// Hashes and counts what is written through it.
struct Hashing<'h> {
    file: BufWriter<&'h File>,
    hash: Sha256,
    size: u64,
}

impl<'h> Hashing<'h> {
    fn new(file: &'h File) -> Self {
        Self {
            file: BufWriter::with_capacity(BUFFER, file),
            hash: Sha256::new(),
            size: 0,
        }
    }
    fn finish(mut self) -> Result<Blob, CopyError> {
        self.file.flush().map_err(CopyError::Write)?;
        Ok(Blob {
            digest: Digest::finish(self.hash),
            size: self.size,
        })
    }
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the error of a failed write: the layer source would pass it on as its own.
struct Remembering<'r> {
    out: &'r mut dyn Write,
    failure: Option<io::Error>,
}

impl<'r> Remembering<'r> {
    fn new(out: &'r mut dyn Write) -> Self {
        Self { out, failure: None }
    }
}

impl Write for Remembering<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failure = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // what is written here holds nothing that JSON cannot say
    serde_json::to_vec(value).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerItem {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

fn docker_archive(
    images: &[SavedImage],
    archive: &mut Archive<'_>,
    layers: &dyn LayerSource,
) -> Result<(), SaveError> {
    let mut items = Vec::new();
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for image in images {
        let config = format!("{}.json", Digest::of(&image.config).hex());
        let mut files = Vec::new();
        for diff_id in &image.layers {
            let path = format!("{}.tar", diff_id.hex());
            archive.layer_file(&path, diff_id, layers)?;
            files.push(path);
        }
        archive.file(&config, &image.config)?;
        let mut repo_tags = Vec::new();
        for name in &image.names {
            let Some(tag) = name.tag() else {
                continue; // this form has no place for digests
            };
            repo_tags.push(format!("{}:{tag}", name.repository()));
            if let Some(top) = image.layers.last() {
                let tags = repositories.entry(name.repository()).or_default();
                tags.insert(tag.to_owned(), top.hex());
            }
        }
        items.push(DockerItem {
            config,
            repo_tags,
            layers: files,
        });
    }
    archive.file("manifest.json", &json(&items))?;
    archive.file("repositories", &json(&repositories))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OciIndex {
    schema_version: u32,
    manifests: Vec<Descriptor>,
}

fn oci_layout(
    images: &[SavedImage],
    compress: bool,
    target: &mut dyn Target,
    layers: &dyn LayerSource,
) -> Result<(), SaveError> {
    let media_type = format!("{OCI_LAYER}{}", if compress { "+gzip" } else { "" });
    // layers that images share are compressed once
    let mut done: BTreeMap<Digest, Blob> = BTreeMap::new();
    let mut manifests = Vec::new();
    for image in images {
        let mut descriptors = Vec::new();
        for diff_id in &image.layers {
            let blob = match done.get(diff_id) {
                Some(blob) => *blob,
                None => target.layer(diff_id, compress, layers)?,
            };
            done.insert(*diff_id, blob);
            descriptors.push(blob.descriptor(&media_type));
        }
        let config = put(target, &image.config)?.descriptor(OCI_CONFIG);
        let manifest = Manifest {
            media_type: OCI_MANIFEST.to_owned(),
            config,
            layers: descriptors,
        };
        let manifest = put(target, &manifest.to_bytes())?.descriptor(OCI_MANIFEST);
        if image.names.is_empty() {
            manifests.push(manifest.clone());
        }
        for name in &image.names {
            let key = crate::transport::REF_NAME.to_owned();
            let annotations = BTreeMap::from([(key, name.to_string())]);
            manifests.push(Descriptor {
                annotations: Some(annotations),
                ..manifest.clone()
            });
        }
    }
    let index = OciIndex {
        schema_version: 2,
        manifests,
    };
    target.file("index.json", &json(&index))?;
    target.file("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#)
}

fn put(target: &mut dyn Target, bytes: &[u8]) -> Result<Blob, SaveError> {
    let digest = Digest::of(bytes);
    target.file(&crate::transport::blob_file(&digest), bytes)?;
    let size = bytes.len() as u64;
    Ok(Blob { digest, size })
}

fn docker_directory(
    image: &SavedImage,
    compress: bool,
    target: &mut dyn Target,
    layers: &dyn LayerSource,
) -> Result<(), SaveError> {
    let media_type = format!("{DOCKER_LAYER}{}", if compress { ".gzip" } else { "" });
    let mut descriptors = Vec::new();
    for diff_id in &image.layers {
        let blob = target.layer(diff_id, compress, layers)?;
        descriptors.push(blob.descriptor(&media_type));
    }
    let digest = Digest::of(&image.config);
    target.file(&digest.hex(), &image.config)?;
    let config = Blob {
        digest,
        size: image.config.len() as u64,
    };
    let manifest = Manifest {
        media_type: DOCKER_MANIFEST.to_owned(),
        config: config.descriptor(DOCKER_CONFIG),
        layers: descriptors,
    };
    target.file("manifest.json", &manifest.to_bytes())?;
    target.file("version", b"Directory Transport Version: 1.1\n")
}
