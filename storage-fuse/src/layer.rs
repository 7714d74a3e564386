//! Layers: writing one from a stream of entries, and giving its exact tar stream back.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::store::{Store, StoreError};

/// What an entry of a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewEntryKind {
    /// Regular file; its content follows.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink {
        /// Where it points, verbatim.
        target: Vec<u8>,
    },
    /// Hard link to an earlier path of the same layer or of a lower one.
    HardLink {
        /// Clean relative path.
        target: Vec<u8>,
    },
    /// FIFO.
    Fifo,
    /// Character or block device: unprivileged users cannot make one, so it is kept in the index
    /// (for `save`) and not presented.
    Device,
    /// `.wh.NAME`: `path` (without the prefix) is gone.
    Whiteout,
    /// `.wh..wh..opq`: nothing of lower layers below `path` shows through.
    OpaqueDirectory,
}

/// One entry of a layer. `path` is clean: relative, no `.`/`..`/empty parts; the root is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// Raw bytes of the path.
    pub path: Vec<u8>,
    /// Its type.
    pub kind: NewEntryKind,
    /// Owner as the image says.
    pub uid: u32,
    /// Group as the image says.
    pub gid: u32,
    /// Permission, set-ID and sticky bits (07777).
    pub mode: u32,
    /// Modification time, seconds since the epoch.
    pub mtime: i64,
    /// Nanoseconds of it.
    pub mtime_nsec: u32,
    /// Extended attributes; `security.capability` in v2 form.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Writes one layer. Nothing is visible before [`LayerWriter::commit`]; dropping it leaves only
/// objects, which are garbage until something refers to them.
pub struct LayerWriter<'s> {
    _store: &'s Store,
}

impl Store {
    /// True when the layer with this diff ID (`sha256:…` of its tar) is complete in the store.
    pub fn has_layer(&self, diff_id: &str) -> bool {
        let _ = diff_id;
        todo!()
    }
    /// Starts a layer. Holds the store's shared lock, so no garbage collection runs meanwhile.
    pub fn new_layer(&self) -> Result<LayerWriter<'_>, StoreError> {
        todo!()
    }
    /// Writes the layer's tar stream exactly as it was read (its SHA-256 is the diff ID).
    pub fn write_layer_tar(&self, diff_id: &str, out: &mut dyn Write) -> Result<(), StoreError> {
        let _ = (diff_id, out);
        todo!()
    }
    /// Size in bytes of the layer's tar stream.
    pub fn layer_tar_size(&self, diff_id: &str) -> Result<u64, StoreError> {
        let _ = diff_id;
        todo!()
    }
}

impl LayerWriter<'_> {
    /// Bytes of the tar stream that are not file content (headers, padding, end), in order with
    /// calls of [`Self::entry`]: together they rebuild the stream.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let _ = bytes;
        todo!()
    }
    /// Adds an entry. For a file, `content` gives exactly its `size` bytes; `sparse_map` (offset,
    /// length) is given when the stream holds only those parts.
    pub fn entry(
        &mut self,
        entry: NewEntry,
        sparse_map: Option<&[(u64, u64)]>,
        content: &mut dyn Read,
    ) -> Result<(), StoreError> {
        let _ = (entry, sparse_map, content);
        todo!()
    }
    /// Makes the layer durable and visible under its verified diff ID.
    pub fn commit(self, diff_id: &str) -> Result<(), StoreError> {
        let _ = diff_id;
        todo!()
    }
}
