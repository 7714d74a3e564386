//! Layers: writing one from a stream of entries, and giving its exact tar stream back.
//!
//! A layer is kept as its entries (what image indexes are made from) and as a recipe for its tar
//! stream: the bytes that are not file content, and references to objects. The formats are in
//! `layer_record.rs`, the thread that writes them is in `layer_worker.rs`.
//!
//! Entries come from archives that may be hostile. Each is checked here on its own; how entries fit
//! together (a file used as a directory, links to nothing, …) is checked when layers are flattened
//! ([`crate::image_index`]), since that depends on the layers below.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use rustix::fs::{AtFlags, Mode};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::layer_record::{LayerHeader, Piece, PieceReader, open_entries, paths};
use crate::layer_worker::{BATCH_ENTRIES, Batch, Done, Item, Worker};
use crate::object::SMALL;
use crate::store::{IoContext, SharedLock, Store, StoreError, unique_name};

/// Entries of one layer, and inodes of one image. A tree of that many files takes about a gigabyte
/// of kernel memory to present.
pub const MAX_ENTRIES: u64 = 1 << 20;
/// Bytes in a path (`PATH_MAX` with its NUL).
pub const MAX_PATH: usize = 4095;
/// Bytes in one component of a path (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Components in a path: the tree is walked with one open directory for each.
pub const MAX_DEPTH: usize = 500;
/// Bytes in the value of an extended attribute (`XATTR_SIZE_MAX`).
pub const MAX_XATTR_VALUE: usize = 64 * 1024;
/// Bytes of all names and values of one inode's extended attributes.
pub const MAX_XATTRS: usize = 128 * 1024;
/// Parts of a sparse file.
pub const MAX_SPARSE_PARTS: usize = 1 << 20;

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
    /// (and, byte for byte, in the tar stream for `save`) and not presented.
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
///
/// While it lives a second thread runs; it has ended when `commit` or `drop` returns.
#[derive(Debug)]
pub struct LayerWriter<'s> {
    store: &'s Store,
    temporary: String,
    worker: Option<Worker>,
    batch: Batch,
    entries: u64,
    failed: bool,
    _lock: SharedLock,
}

impl Store {
    /// True when the layer with this diff ID (`sha256:…` of its tar) is complete in the store.
    pub fn has_layer(&self, diff_id: &str) -> bool {
        Digest::parse(diff_id).is_ok_and(|diff_id| self.has_file(&paths(&diff_id).0))
    }

    /// Starts a layer. Holds the store's shared lock, so no garbage collection runs meanwhile.
    pub fn new_layer(&self) -> Result<LayerWriter<'_>, StoreError> {
        let lock = self.lock_shared()?;
        let temporary = format!("tmp/layer-{}", unique_name()?);
        rustix::fs::mkdirat(self.directory(), &temporary, Mode::RWXU)
            .on("make", || self.path(&temporary))?;
        let mut writer = LayerWriter {
            store: self,
            temporary,
            worker: None,
            batch: Batch::new(),
            entries: 0,
            failed: false,
            _lock: lock,
        };
        // Only now, so that a failure removes the directory again.
        writer.worker = Some(Worker::start(self, &writer.temporary)?);
        Ok(writer)
    }

    /// Writes the layer's tar stream exactly as it was read (its SHA-256 is the diff ID).
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when what was written does not have that digest after all; `out`
    /// must be thrown away then.
    pub fn write_layer_tar(&self, diff_id: &str, out: &mut dyn Write) -> Result<(), StoreError> {
        let diff_id = Digest::parse(diff_id)?;
        let mut pieces = PieceReader::open(self, &diff_id)?;
        let mut out = HashingWriter {
            out,
            hasher: Sha256::new(),
            length: 0,
        };
        let mut buffer = vec![0; 256 * 1024];
        let total = loop {
            match pieces.next()? {
                Piece::Raw(bytes) => out.write(bytes)?,
                Piece::Content(id, size, parts) => {
                    let mut file = crate::object::open(self, &id, size)?;
                    let path = || self.path(id.path());
                    match parts {
                        None => out.copy(&mut file, size, &mut buffer, path)?,
                        Some(parts) => {
                            for &(offset, length) in parts {
                                std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset))
                                    .on("read", path)?;
                                out.copy(&mut file, length, &mut buffer, path)?;
                            }
                        }
                    }
                }
                Piece::End(total) => break total,
            }
        };
        if total != out.length || Digest(out.hasher.finalize().into()) != diff_id {
            return Err(pieces.damaged(
                "what it describes does not have the layer's digest (an object may be damaged)",
            ));
        }
        Ok(())
    }

    /// Size in bytes of the layer's tar stream.
    pub fn layer_tar_size(&self, diff_id: &str) -> Result<u64, StoreError> {
        let (_, header) = open_entries(self, &Digest::parse(diff_id)?)?;
        Ok(header.tar_size)
    }
}

struct HashingWriter<'a> {
    out: &'a mut dyn Write,
    hasher: Sha256,
    length: u64,
}

impl HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.out
            .write_all(bytes)
            .on("write a layer's tar stream to", || "the output".into())
    }

    fn copy(
        &mut self,
        file: &mut std::fs::File,
        mut length: u64,
        buffer: &mut [u8],
        path: impl Fn() -> std::path::PathBuf,
    ) -> Result<(), StoreError> {
        while length > 0 {
            let want = length.min(buffer.len() as u64) as usize;
            file.read_exact(&mut buffer[..want]).on("read", &path)?;
            self.write(&buffer[..want])?;
            length -= want as u64;
        }
        Ok(())
    }
}

impl LayerWriter<'_> {
    /// Bytes of the tar stream that are not file content (headers, padding, end), in order with
    /// calls of [`Self::entry`]: together they rebuild the stream.
    pub fn raw(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            self.make_space(1)?;
            let length = bytes.len().min(self.batch.space());
            let (head, rest) = bytes.split_at(length);
            self.batch.buffer[self.batch.used..][..length].copy_from_slice(head);
            self.batch.used += length;
            match self.batch.items.last_mut() {
                Some(Item::Raw(before)) => *before += length,
                _ => self.batch.items.push(Item::Raw(length)),
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Adds an entry. For a file, `content` gives exactly its `size` bytes; `sparse_map` (offset,
    /// length) is given when the stream holds only those parts (the others must read as zeros).
    pub fn entry(
        &mut self,
        entry: NewEntry,
        sparse_map: Option<&[(u64, u64)]>,
        content: &mut dyn Read,
    ) -> Result<(), StoreError> {
        check_entry(&entry).map_err(|problem| invalid(&entry.path, problem))?;
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(StoreError::Invalid(format!(
                "the layer has more than {MAX_ENTRIES} entries, the most a layer may have"
            )));
        }
        let NewEntryKind::File { size } = entry.kind else {
            self.make_space(0)?;
            self.batch.push_entry(entry, None);
            return Ok(());
        };
        if let Some(parts) = sparse_map {
            check_sparse_map(parts, size).map_err(|problem| invalid(&entry.path, problem))?;
        }
        // A small file must not straddle two batches: it is stored in one go.
        self.make_space(if size <= SMALL { size as usize } else { 1 })?;
        let path = entry.path.clone();
        self.batch.push_entry(entry, sparse_map);
        let result = self.content(size, content, &path);
        self.failed |= result.is_err();
        result
    }

    fn content(
        &mut self,
        size: u64,
        content: &mut dyn Read,
        path: &[u8],
    ) -> Result<(), StoreError> {
        let mut left = size;
        while left > 0 {
            self.make_space(1)?;
            let length = left.min(self.batch.space() as u64) as usize;
            content
                .read_exact(&mut self.batch.buffer[self.batch.used..][..length])
                .on("read from the archive", || {
                    String::from_utf8_lossy(path).into_owned().into()
                })?;
            self.batch.used += length;
            self.batch.items.push(Item::Content(length));
            left -= length as u64;
        }
        Ok(())
    }

    /// Sends the batch on unless it has room for so many more bytes and for an item.
    fn make_space(&mut self, bytes: usize) -> Result<(), StoreError> {
        if self.batch.space() < bytes || self.batch.weight >= BATCH_ENTRIES {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), StoreError> {
        if self.failed {
            return Err(after_failure());
        }
        let Some(worker) = &self.worker else {
            return Err(after_failure());
        };
        let next = worker.spare.try_recv().unwrap_or_else(|_| Batch::new());
        let full = std::mem::replace(&mut self.batch, next);
        if worker.work.send(full).is_ok() {
            return Ok(());
        }
        // The worker has stopped early: its result says why.
        self.failed = true;
        match self.worker.take().map(Worker::join) {
            Some(Err(error)) => Err(error),
            _ => Err(after_failure()),
        }
    }

    /// Makes the layer durable and visible under its verified diff ID.
    pub fn commit(mut self, diff_id: &str) -> Result<(), StoreError> {
        let diff_id = Digest::parse(diff_id)?;
        self.send()?;
        let done = match self.worker.take() {
            Some(worker) => worker.join()?,
            None => return Err(after_failure()),
        };
        let Done {
            entries,
            stream,
            objects,
            totals,
        } = done;
        let entries = entries.finish(
            &LayerHeader {
                diff_id,
                tar_size: totals.tar_size,
                entry_count: totals.entry_count,
                content_size: totals.content_size,
                has_whiteouts: totals.has_whiteouts,
            }
            .encode(),
        )?;
        objects.sync(self.store)?;
        let (final_entries, final_stream) = paths(&diff_id);
        let directory = self.store.directory();
        for (name, file, target) in [
            ("stream", stream, final_stream),
            ("entries", entries, final_entries),
        ] {
            let source = format!("{}/{name}", self.temporary);
            rustix::fs::fsync(file).on("write to disk", || self.store.path(&source))?;
            rustix::fs::renameat(directory, source, directory, &target)
                .on("make", || self.store.path(&target))?;
        }
        self.store.sync_directory("layers")
    }
}

impl Drop for LayerWriter<'_> {
    fn drop(&mut self) {
        // Nothing may be written to the directory any more when it is removed.
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
        let directory = self.store.directory();
        // What cannot be removed now is garbage that `system prune` finds.
        if let Err(error) = rustix::fs::unlinkat(directory, &self.temporary, AtFlags::REMOVEDIR)
            && error == rustix::io::Errno::NOTEMPTY
            && let Err(error) = crate::remove_tree::remove_tree_at(
                directory,
                self.temporary.as_bytes(),
                &self.store.path(&self.temporary),
            )
        {
            tracing::warn!("{error}");
        }
    }
}

fn after_failure() -> StoreError {
    StoreError::Invalid("the layer cannot be written on: an earlier part failed".to_owned())
}

fn invalid(path: &[u8], problem: impl std::fmt::Display) -> StoreError {
    StoreError::Invalid(format!(
        "entry `{}` of the layer: {problem}",
        path.escape_ascii()
    ))
}

/// Checks an entry by itself.
pub(crate) fn check_entry(entry: &NewEntry) -> Result<(), String> {
    check_path(&entry.path)?;
    if entry.path.is_empty()
        && !matches!(
            entry.kind,
            NewEntryKind::Directory | NewEntryKind::OpaqueDirectory
        )
    {
        return Err("the root of an image must be a directory".to_owned());
    }
    match &entry.kind {
        NewEntryKind::Symlink { target } => check_link_target(target)?,
        NewEntryKind::HardLink { target } => {
            check_path(target).map_err(|problem| format!("its link target: {problem}"))?;
        }
        NewEntryKind::File { size } if i64::try_from(*size).is_err() => {
            return Err(format!("a file of {size} bytes"));
        }
        _ => {}
    }
    // -1 means "leave it" to chown and is no ID (chown(2)).
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err("the owner 4294967295 is not an ID".to_owned());
    }
    if entry.mode & !0o7777 != 0 {
        return Err(format!("the mode {:o} has bits beyond 7777", entry.mode));
    }
    if entry.mtime_nsec >= 1_000_000_000 {
        return Err(format!("a time with {} nanoseconds", entry.mtime_nsec));
    }
    let mut total = 0;
    for (name, value) in &entry.xattrs {
        if name.is_empty() || name.len() > MAX_NAME || name.contains(&0) {
            return Err(format!(
                "the extended attribute name `{}` is empty, over 255 bytes long or has a NUL byte",
                name.escape_ascii()
            ));
        }
        if name == b"user." {
            return Err("the extended attribute `user.` has no name".to_owned());
        }
        if name == b"security.capability" && !is_capability_v2(value) {
            return Err("its file capabilities are not in the form of version 2".to_owned());
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err(format!(
                "the extended attribute `{}` has {} bytes, the kernel takes {MAX_XATTR_VALUE}",
                name.escape_ascii(),
                value.len()
            ));
        }
        total += name.len() + value.len();
    }
    if total > MAX_XATTRS {
        return Err(format!(
            "extended attributes of {total} bytes together, over {MAX_XATTRS}"
        ));
    }
    Ok(())
}

/// `struct vfs_cap_data` (linux/capability.h): the revision is in the top byte of the first word.
fn is_capability_v2(value: &[u8]) -> bool {
    value.len() == 20 && value[3] == 2
}

fn check_link_target(target: &[u8]) -> Result<(), String> {
    if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
        return Err(format!(
            "the target of the symbolic link is empty, over {MAX_PATH} bytes long or has a NUL byte"
        ));
    }
    Ok(())
}

fn check_path(path: &[u8]) -> Result<(), String> {
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > MAX_PATH {
        return Err(format!("a path of {} bytes, over {MAX_PATH}", path.len()));
    }
    let mut depth = 0;
    for component in path.split(|&byte| byte == b'/') {
        depth += 1;
        if component.is_empty() || component == b"." || component == b".." {
            return Err("the path is absolute or has empty, `.` or `..` components".to_owned());
        }
        if component.contains(&0) {
            return Err("the path has a NUL byte".to_owned());
        }
        if component.len() > MAX_NAME {
            return Err(format!(
                "a name of {} bytes, over {MAX_NAME}",
                component.len()
            ));
        }
    }
    if depth > MAX_DEPTH {
        return Err(format!("{depth} directories deep, over {MAX_DEPTH}"));
    }
    Ok(())
}

fn check_sparse_map(parts: &[(u64, u64)], size: u64) -> Result<(), String> {
    if parts.len() > MAX_SPARSE_PARTS {
        return Err(format!("a sparse file of {} parts", parts.len()));
    }
    let mut end = 0;
    for &(offset, length) in parts {
        let next = offset.checked_add(length);
        match next {
            Some(next) if offset >= end && next <= size => end = next,
            _ => return Err("the map of the sparse file makes no sense".to_owned()),
        }
    }
    Ok(())
}
