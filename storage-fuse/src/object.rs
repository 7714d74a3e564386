//! Objects: file contents by BLAKE3 digest, mode 0400, owned by the login.
//!
//! An object is written under a temporary name and renamed once complete, so a name in `objects/`
//! means whole content (after a power cut: content of the right length, see [`crate::store`]).
//! Contents up to [`SMALL`] bytes arrive in one piece: they are hashed in memory first and written
//! only when the store lacks them. Larger ones are written while they are hashed.

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::hex;
use crate::store::{IoContext, Store, StoreError};

/// Contents up to this many bytes are hashed before they are written.
pub(crate) const SMALL: u64 = 128 * 1024;

/// Name of an object: BLAKE3 of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u8; 32]);

impl ObjectId {
    /// Path below the store's root.
    pub(crate) fn path(&self) -> String {
        format!("objects{}", self.redirect())
    }

    /// Path below `objects/`, as the overlay file system's redirect wants it: `/xx/yyyy…`.
    pub(crate) fn redirect(&self) -> String {
        let mut text = hex(&self.0);
        text.insert(2, '/');
        text.insert(0, '/');
        text
    }
}

/// Opens an object of known length for reading.
pub(crate) fn open(store: &Store, id: &ObjectId, size: u64) -> Result<std::fs::File, StoreError> {
    let path = id.path();
    let file = store.open_file(&path)?.ok_or_else(|| StoreError::Damaged {
        path: store.path(&path),
        what: "a layer refers to it, but it is gone".to_owned(),
    })?;
    let found = rustix::fs::fstat(&file)
        .on("look at", || store.path(&path))?
        .st_size;
    if u64::try_from(found) != Ok(size) {
        return Err(StoreError::Damaged {
            path: store.path(&path),
            what: format!("it has {found} bytes, the layer says {size}"),
        });
    }
    Ok(file)
}

/// Reads a whole object, but at most `limit` bytes of it.
pub(crate) fn read(
    store: &Store,
    id: &ObjectId,
    size: u64,
    limit: u64,
) -> Result<Vec<u8>, StoreError> {
    let mut content = Vec::new();
    open(store, id, size)?
        .take(limit)
        .read_to_end(&mut content)
        .on("read", || store.path(id.path()))?;
    Ok(content)
}

/// Up to so many objects of a layer are brought to disk one by one. Beyond that the whole file system
/// is synced, which costs less than so many single calls, but waits for what others write, too.
const SYNC_SINGLY: usize = 32;

/// Objects of a layer that may not be on disk yet: also those that were there, since whoever wrote
/// them may still be at work, or have been killed.
#[derive(Debug)]
pub(crate) enum Unsynced {
    /// These.
    Few(Vec<OwnedFd>),
    /// More than are kept open.
    Many,
}

/// Writes the objects of one layer.
#[derive(Debug)]
pub(crate) struct ObjectWriter {
    store: Store,
    /// The writer's own directory below the root.
    temporary: String,
    /// What this writer has already seen or stored: saves asking the file system again.
    known: HashSet<ObjectId>,
    next_name: u64,
    unsynced: Unsynced,
    /// Bytes written since somebody last asked.
    written: u64,
}

impl ObjectWriter {
    pub fn new(store: Store, temporary: String) -> Self {
        Self {
            store,
            temporary,
            known: HashSet::new(),
            next_name: 0,
            unsynced: Unsynced::Few(Vec::new()),
            written: 0,
        }
    }

    /// Bytes written since the last call that gave true, compared with `threshold`.
    pub fn has_written(&mut self, threshold: u64) -> bool {
        let enough = self.written >= threshold;
        if enough {
            self.written = 0;
        }
        enough
    }

    /// Ends writing; what it refers to is still to be brought to disk.
    pub fn into_unsynced(self) -> Unsynced {
        self.unsynced
    }

    /// Stores content that is in memory.
    pub fn store_small(&mut self, content: &[u8]) -> Result<ObjectId, StoreError> {
        let id = ObjectId(*blake3::hash(content).as_bytes());
        if self.is_stored(&id, content.len() as u64)? {
            return Ok(id);
        }
        let (name, file) = self.create()?;
        self.write(&file, &name, content)?;
        self.publish(&name, file, id)?;
        Ok(id)
    }

    /// Starts content that comes in pieces. `parts` are the ranges that hold data; the others are
    /// zeros and become holes.
    pub fn begin(
        &mut self,
        size: u64,
        parts: Option<Box<[(u64, u64)]>>,
    ) -> Result<LargeObject, StoreError> {
        let (name, file) = self.create()?;
        Ok(LargeObject {
            name,
            file,
            hasher: blake3::Hasher::new(),
            size,
            offset: 0,
            parts,
            next_part: 0,
        })
    }

    /// Takes the next piece.
    pub fn append(&mut self, object: &mut LargeObject, piece: &[u8]) -> Result<(), StoreError> {
        object.hasher.update(piece);
        if object.parts.is_none() {
            self.write(&object.file, &object.name, piece)?;
        } else {
            self.append_sparse(object, piece)?;
        }
        object.offset += piece.len() as u64;
        Ok(())
    }

    fn append_sparse(&mut self, object: &mut LargeObject, piece: &[u8]) -> Result<(), StoreError> {
        let base = object.offset;
        let end = base + piece.len() as u64;
        let slice = |from: u64, to: u64| &piece[(from - base) as usize..(to - base) as usize];
        let mut done = base;
        while let Some(&(start, length)) = object
            .parts
            .as_deref()
            .and_then(|parts| parts.get(object.next_part))
        {
            let from = start.clamp(done, end);
            let to = (start + length).clamp(done, end);
            self.expect_hole(slice(done, from))?;
            if from < to {
                rustix::fs::seek(&object.file, rustix::fs::SeekFrom::Start(from))
                    .on("write", || self.store.path(&object.name))?;
                self.write(&object.file, &object.name, slice(from, to))?;
            }
            done = to;
            if start + length > end {
                break;
            }
            object.next_part += 1;
        }
        self.expect_hole(slice(done, end))
    }

    /// Data in a hole would be hashed but not written: an object under a wrong name.
    fn expect_hole(&self, bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        Err(StoreError::Invalid(
            "a sparse file has data outside the parts its map names".to_owned(),
        ))
    }

    /// Ends it: all bytes have come.
    pub fn finish(&mut self, object: LargeObject) -> Result<ObjectId, StoreError> {
        let id = ObjectId(*object.hasher.finalize().as_bytes());
        if object.parts.is_some() {
            // A hole at the end is not written, only counted in the length.
            rustix::fs::ftruncate(&object.file, object.size)
                .on("write", || self.store.path(&object.name))?;
        }
        if self.is_stored(&id, object.size)? {
            rustix::fs::unlinkat(self.store.directory(), &object.name, AtFlags::empty())
                .on("remove", || self.store.path(&object.name))?;
        } else {
            self.publish(&object.name, object.file, id)?;
        }
        Ok(id)
    }

    fn is_stored(&mut self, id: &ObjectId, size: u64) -> Result<bool, StoreError> {
        if self.known.contains(id) {
            return Ok(true);
        }
        let path = id.path();
        match rustix::fs::statat(self.store.directory(), &path, AtFlags::SYMLINK_NOFOLLOW) {
            // An object nobody refers to yet may have been cut short by a power cut.
            Ok(stat) if u64::try_from(stat.st_size) == Ok(size) => {
                self.known.insert(*id);
                if let Some(files) = self.unsynced.few() {
                    files.push(open(&self.store, id, size)?.into());
                }
                Ok(true)
            }
            Ok(_) | Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno).on("look for", || self.store.path(path)),
        }
    }

    fn create(&mut self) -> Result<(String, OwnedFd), StoreError> {
        let name = format!("{}/{}", self.temporary, self.next_name);
        self.next_name += 1;
        let file = rustix::fs::openat(
            self.store.directory(),
            &name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::RUSR,
        )
        .on("make", || self.store.path(&name))?;
        Ok((name, file))
    }

    fn write(&mut self, file: &OwnedFd, name: &str, mut content: &[u8]) -> Result<(), StoreError> {
        self.written += content.len() as u64;
        while !content.is_empty() {
            match rustix::io::write(file, content) {
                Ok(written) => content = &content[written..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).on("write", || self.store.path(name)),
            }
        }
        Ok(())
    }

    fn publish(&mut self, name: &str, file: OwnedFd, id: ObjectId) -> Result<(), StoreError> {
        let directory = self.store.directory();
        let path = id.path();
        let mut result = rustix::fs::renameat(directory, name, directory, &path);
        if result == Err(Errno::NOENT) {
            let parent = &path[.."objects/xx".len()];
            match rustix::fs::mkdirat(directory, parent, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).on("make", || self.store.path(parent)),
            }
            result = rustix::fs::renameat(directory, name, directory, &path);
        }
        result.on("make", || self.store.path(&path))?;
        self.known.insert(id);
        if let Some(files) = self.unsynced.few() {
            files.push(file);
        }
        Ok(())
    }
}

impl Unsynced {
    /// The list to add one more to, unless it is too long already.
    fn few(&mut self) -> Option<&mut Vec<OwnedFd>> {
        if matches!(self, Unsynced::Few(files) if files.len() >= SYNC_SINGLY) {
            *self = Unsynced::Many;
        }
        match self {
            Unsynced::Few(files) => Some(files),
            Unsynced::Many => None,
        }
    }

    /// Brings the objects to disk.
    pub fn sync(self, store: &Store) -> Result<(), StoreError> {
        match self {
            Unsynced::Many => store.sync(),
            Unsynced::Few(files) => files.iter().try_for_each(|file| {
                rustix::fs::fsync(file).on("write to disk", || store.path("objects"))
            }),
        }
    }
}

/// Content that is being written in pieces.
#[derive(Debug)]
pub(crate) struct LargeObject {
    name: String,
    file: OwnedFd,
    hasher: blake3::Hasher,
    size: u64,
    offset: u64,
    parts: Option<Box<[(u64, u64)]>>,
    next_part: usize,
}

impl LargeObject {
    /// Bytes still to come.
    pub fn missing(&self) -> u64 {
        self.size - self.offset
    }
}
