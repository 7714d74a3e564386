//! The thread behind [`crate::layer::LayerWriter`].
//!
//! # Theory of operation
//!
//! The caller inflates and parses the archive; this thread hashes and writes objects and records, so
//! that the two overlap. Everything travels in order through one bounded channel as [`Batch`]es: a
//! buffer of bytes and a list saying what they are. Buffers come back through a second channel and
//! are used again, so memory is bounded by [`QUEUE`] + 2 of them whatever the layer, and nothing is
//! allocated per file but its entry. One thread, because order is what the two record files need,
//! and because inflating is slower than hashing and writing on every machine tried.
//!
//! A layer is only reported as stored once it is on disk, and the kernel by itself would start
//! writing when we have finished. So a large layer gets a second thread, which syncs the file system
//! whenever [`FLUSH`] bytes have come together.

use std::sync::mpsc::{Receiver, Sender, SyncSender};

use crate::layer::{NewEntry, NewEntryKind};
use crate::layer_record::{CompressedFile, HEADER_SIZE, Piece, encode_entry};
use crate::object::{LargeObject, ObjectWriter, Unsynced};
use crate::store::{IoContext, Store, StoreError};

/// Bytes in a batch.
pub(crate) const BATCH: usize = 1 << 20;
/// Bytes of entries (paths, attributes, sparse maps) in a batch: bounds their memory.
pub(crate) const BATCH_ENTRIES: usize = 1 << 20;
/// Batches waiting for the worker.
pub(crate) const QUEUE: usize = 8;

/// Bytes of content after which writing to disk starts.
const FLUSH: u64 = 64 << 20;

/// What the next bytes of a batch are.
#[derive(Debug)]
pub(crate) enum Item {
    /// So many bytes of the tar stream that are not content.
    Raw(usize),
    /// An entry, with its sparse map. A file's content follows.
    Entry(Box<NewEntry>, Option<Box<[(u64, u64)]>>),
    /// So many bytes of the current file.
    Content(usize),
}

/// Work for the thread.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Always [`BATCH`] bytes; the first `used` count.
    pub buffer: Box<[u8]>,
    pub used: usize,
    pub items: Vec<Item>,
    /// Bytes the items take.
    pub weight: usize,
}

impl Batch {
    pub fn new() -> Self {
        Self {
            buffer: vec![0; BATCH].into_boxed_slice(),
            used: 0,
            items: Vec::new(),
            weight: 0,
        }
    }

    pub fn space(&self) -> usize {
        BATCH - self.used
    }

    pub fn push_entry(&mut self, entry: NewEntry, parts: Option<&[(u64, u64)]>) {
        let target = match &entry.kind {
            NewEntryKind::Symlink { target } | NewEntryKind::HardLink { target } => target.len(),
            _ => 0,
        };
        let xattrs: usize = entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + size_of::<[Vec<u8>; 2]>())
            .sum();
        self.weight += size_of::<NewEntry>()
            + size_of::<Item>()
            + entry.path.len()
            + target
            + xattrs
            + parts.map_or(0, size_of_val);
        self.items
            .push(Item::Entry(Box::new(entry), parts.map(Box::from)));
    }
}

/// What the thread counted.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Totals {
    pub tar_size: u64,
    pub entry_count: u64,
    pub content_size: u64,
    pub has_whiteouts: bool,
}

/// Channels of the caller's side and the thread's result.
#[derive(Debug)]
pub(crate) struct Worker {
    pub work: SyncSender<Batch>,
    pub spare: Receiver<Batch>,
    thread: std::thread::JoinHandle<Result<Done, StoreError>>,
}

/// The finished but unnamed record files.
pub(crate) struct Done {
    pub entries: CompressedFile,
    pub stream: std::fs::File,
    pub objects: Unsynced,
    pub totals: Totals,
}

impl Worker {
    /// Starts the thread; it writes below the directory `temporary`.
    pub fn start(store: &Store, temporary: &str) -> Result<Self, StoreError> {
        let mut state = State {
            objects: ObjectWriter::new(store.clone(), temporary.to_owned()),
            entries: CompressedFile::create(store, &format!("{temporary}/entries"), HEADER_SIZE)?,
            stream: CompressedFile::create(store, &format!("{temporary}/stream"), 0)?,
            record: Vec::new(),
            current: None,
            totals: Totals::default(),
            flusher: None,
            store: store.clone(),
        };
        let (work, todo) = std::sync::mpsc::sync_channel::<Batch>(QUEUE);
        let (give_back, spare): (Sender<Batch>, _) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("layer-writer".to_owned())
            .spawn(move || {
                let result = todo.into_iter().try_for_each(|mut batch| {
                    state.process(&mut batch)?;
                    // The caller may have stopped listening; then the buffer is just dropped.
                    let _ = give_back.send(batch);
                    state.flush_sometimes()
                });
                // Whatever happened: no thread outlives this one.
                let flushed = state.flusher.take().map_or(Ok(()), Flusher::join);
                result.and(flushed)?;
                state.finish()
            })
            .on("start a thread to write a layer to", || {
                store.root().to_owned()
            })?;
        Ok(Self {
            work,
            spare,
            thread,
        })
    }

    /// Lets the thread finish what was sent and gives its result.
    pub fn join(self) -> Result<Done, StoreError> {
        drop(self.work);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

struct State {
    objects: ObjectWriter,
    entries: CompressedFile,
    stream: CompressedFile,
    record: Vec<u8>,
    current: Option<CurrentFile>,
    totals: Totals,
    flusher: Option<Flusher>,
    store: Store,
}

/// Writes to disk in the background what has been written so far, each time it is told to.
struct Flusher {
    tell: SyncSender<()>,
    thread: std::thread::JoinHandle<Result<(), StoreError>>,
}

impl Flusher {
    fn start(store: &Store) -> Result<Self, StoreError> {
        let store = store.clone();
        // Being told while it is at work once is enough.
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let root = store.root().to_owned();
        let thread = std::thread::Builder::new()
            .name("layer-flusher".to_owned())
            .spawn(move || told.iter().try_for_each(|()| store.sync()))
            .on("start a thread to write a layer to", || root)?;
        Ok(Self { tell, thread })
    }

    /// Waits until it has done what it was told, and gives what went wrong: the kernel reports a
    /// failed write only once.
    fn join(self) -> Result<(), StoreError> {
        drop(self.tell);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

struct CurrentFile {
    entry: Box<NewEntry>,
    parts: Option<Box<[(u64, u64)]>>,
    size: u64,
    large: Option<LargeObject>,
}

impl State {
    fn process(&mut self, batch: &mut Batch) -> Result<(), StoreError> {
        let mut rest = &batch.buffer[..batch.used];
        for item in batch.items.drain(..) {
            match item {
                Item::Raw(length) => {
                    let (bytes, after) = rest.split_at(length);
                    rest = after;
                    self.stream.write_piece(&Piece::Raw(bytes))?;
                    self.totals.tar_size += length as u64;
                }
                Item::Entry(entry, parts) => self.start_entry(entry, parts)?,
                Item::Content(length) => {
                    let (bytes, after) = rest.split_at(length);
                    rest = after;
                    self.content(bytes)?;
                }
            }
        }
        batch.used = 0;
        batch.weight = 0;
        Ok(())
    }

    fn start_entry(
        &mut self,
        entry: Box<NewEntry>,
        parts: Option<Box<[(u64, u64)]>>,
    ) -> Result<(), StoreError> {
        match entry.kind {
            NewEntryKind::File { size } if size > 0 => {
                self.current = Some(CurrentFile {
                    entry,
                    parts,
                    size,
                    large: None,
                });
                return Ok(());
            }
            NewEntryKind::Whiteout | NewEntryKind::OpaqueDirectory => {
                self.totals.has_whiteouts = true;
            }
            _ => {}
        }
        self.record(&entry, None)
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        // The caller sends content only after a file's entry and never more than its size.
        let Some(mut file) = self.current.take() else {
            return Err(StoreError::Invalid(
                "file content came without a file".to_owned(),
            ));
        };
        let object = if bytes.len() as u64 == file.size && file.parts.is_none() {
            self.objects.store_small(bytes)?
        } else {
            let mut large = match file.large.take() {
                Some(large) => large,
                None => self.objects.begin(file.size, file.parts.clone())?,
            };
            self.objects.append(&mut large, bytes)?;
            if large.missing() > 0 {
                file.large = Some(large);
                self.current = Some(file);
                return Ok(());
            }
            self.objects.finish(large)?
        };
        self.stream
            .write_piece(&Piece::Content(object, file.size, file.parts.as_deref()))?;
        self.totals.content_size = self.totals.content_size.saturating_add(file.size);
        self.totals.tar_size += match &file.parts {
            Some(parts) => parts.iter().map(|(_, length)| length).sum(),
            None => file.size,
        };
        self.record(&file.entry, Some(&object))
    }

    fn record(
        &mut self,
        entry: &NewEntry,
        object: Option<&crate::object::ObjectId>,
    ) -> Result<(), StoreError> {
        self.record.clear();
        encode_entry(entry, object, &mut self.record);
        self.totals.entry_count += 1;
        self.entries.write(&self.record)
    }

    fn flush_sometimes(&mut self) -> Result<(), StoreError> {
        if !self.objects.has_written(FLUSH) {
            return Ok(());
        }
        let flusher = match &self.flusher {
            Some(flusher) => flusher,
            None => self.flusher.insert(Flusher::start(&self.store)?),
        };
        // Full: it has been told already. Disconnected: it has failed, as joining it will show.
        let _ = flusher.tell.try_send(());
        Ok(())
    }

    fn finish(mut self) -> Result<Done, StoreError> {
        let totals = self.totals;
        self.stream.write_piece(&Piece::End(totals.tar_size))?;
        Ok(Done {
            entries: self.entries,
            stream: self.stream.finish(&[])?,
            objects: self.objects.into_unsynced(),
            totals,
        })
    }
}
