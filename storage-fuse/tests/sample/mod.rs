//! Layers for tests: entries with contents, in a stream that looks like tar (512-byte heads and
//! padding) as far as the store can tell.
#![allow(dead_code, reason = "every test program uses its own part of this")]

use std::collections::BTreeMap;

use selkie_storage::layer::{NewEntry, NewEntryKind};
use selkie_storage::{Store, StoreError};
use sha2::{Digest, Sha256};

/// A directory in memory where there is one: each commit waits for the disk, and a busy one makes
/// tests slow.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// An entry and, for a file, its content.
#[derive(Debug, Clone)]
pub struct Sample {
    pub entry: NewEntry,
    pub content: Vec<u8>,
    pub parts: Option<Vec<(u64, u64)>>,
}

pub fn sample(path: &str, kind: NewEntryKind, mode: u32) -> Sample {
    Sample {
        entry: NewEntry {
            path: path.as_bytes().to_vec(),
            kind,
            uid: 0,
            gid: 0,
            mode,
            mtime: 1_600_000_000,
            mtime_nsec: 123_456_789,
            xattrs: BTreeMap::new(),
        },
        content: Vec::new(),
        parts: None,
    }
}

pub fn file(path: &str, content: impl AsRef<[u8]>) -> Sample {
    let content = content.as_ref().to_vec();
    let size = content.len() as u64;
    Sample {
        content,
        ..sample(path, NewEntryKind::File { size }, 0o644)
    }
}

pub fn directory(path: &str) -> Sample {
    sample(path, NewEntryKind::Directory, 0o755)
}

pub fn symlink(path: &str, target: &str) -> Sample {
    let target = target.as_bytes().to_vec();
    sample(path, NewEntryKind::Symlink { target }, 0o777)
}

pub fn hard_link(path: &str, target: &str) -> Sample {
    let target = target.as_bytes().to_vec();
    sample(path, NewEntryKind::HardLink { target }, 0o644)
}

pub fn whiteout(path: &str) -> Sample {
    sample(path, NewEntryKind::Whiteout, 0)
}

pub fn opaque(path: &str) -> Sample {
    sample(path, NewEntryKind::OpaqueDirectory, 0)
}

impl Sample {
    pub fn owned(mut self, uid: u32, gid: u32) -> Self {
        self.entry.uid = uid;
        self.entry.gid = gid;
        self
    }

    pub fn mode(mut self, mode: u32) -> Self {
        self.entry.mode = mode;
        self
    }

    pub fn mtime(mut self, seconds: i64) -> Self {
        self.entry.mtime = seconds;
        self
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.entry
            .xattrs
            .insert(name.as_bytes().to_vec(), value.to_vec());
        self
    }

    /// Only these parts are in the stream; the others must be zeros.
    pub fn sparse(mut self, parts: &[(u64, u64)]) -> Self {
        self.parts = Some(parts.to_vec());
        self
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!("{:?}", self.entry.path).into_bytes();
        head.resize(head.len().next_multiple_of(512), 0);
        head
    }

    fn padding(&self) -> Vec<u8> {
        vec![0; self.stored().len().next_multiple_of(512) - self.stored().len()]
    }

    fn stored(&self) -> Vec<u8> {
        match &self.parts {
            None => self.content.clone(),
            Some(parts) => parts
                .iter()
                .flat_map(|&(offset, length)| {
                    &self.content[offset as usize..(offset + length) as usize]
                })
                .copied()
                .collect(),
        }
    }
}

/// The stream the layer of these entries comes from.
pub fn stream(samples: &[Sample]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for sample in samples {
        bytes.extend(sample.head());
        bytes.extend(sample.stored());
        bytes.extend(sample.padding());
    }
    bytes.extend([0; 1024]);
    bytes
}

/// Diff ID of [`stream`].
pub fn diff_id(samples: &[Sample]) -> String {
    let digest = Sha256::digest(stream(samples));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Writes the layer and gives its diff ID.
pub fn write_layer(store: &Store, samples: &[Sample]) -> Result<String, StoreError> {
    let mut writer = store.new_layer()?;
    for sample in samples {
        writer.raw(&sample.head())?;
        writer.entry(
            sample.entry.clone(),
            sample.parts.as_deref(),
            &mut sample.content.as_slice(),
        )?;
        writer.raw(&sample.padding())?;
    }
    writer.raw(&[0; 1024])?;
    let diff_id = diff_id(samples);
    writer.commit(&diff_id)?;
    Ok(diff_id)
}

/// Writes layers, lowest first, and their index; gives the chain ID.
pub fn write_image(store: &Store, layers: &[&[Sample]]) -> Result<String, StoreError> {
    let diff_ids = layers
        .iter()
        .map(|samples| write_layer(store, samples))
        .collect::<Result<Vec<_>, _>>()?;
    store.build_image_index(&diff_ids)
}
