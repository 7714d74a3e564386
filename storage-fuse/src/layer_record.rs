//! The two files of a layer on disk (format 1). All integers are little-endian.
//!
//! # `H.entries`
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `SELKIE-L` |
//! | 8 | 4 | format, 1 |
//! | 12 | 4 | flags: bit 0, the layer has whiteouts or opaque directories |
//! | 16 | 32 | diff ID (SHA-256) |
//! | 48 | 8 | length of the tar stream in bytes |
//! | 56 | 8 | number of entries |
//! | 64 | 8 | sum of the lengths of its regular files in bytes |
//! | 72 | 32 | BLAKE3 of the 72 bytes before |
//!
//! then one zstd frame (with checksum) of records, each a `u32` length and so many bytes:
//! kind `u8`, mode `u16`, UID `u32`, GID `u32`, mtime `i64` (seconds) and `u32` (nanoseconds), path
//! (`u16` length, bytes), then for a file its length `u64` and, unless that is 0, its object (32
//! bytes), for a link its target (`u16` length, bytes); then the extended attributes: `u16` count,
//! each `u16` length and name, `u32` length and value.
//!
//! # `H.stream`
//!
//! One zstd frame (with checksum) of pieces, each a tag `u8` and: 1 = bytes of the stream that are
//! not content (`u32` length, bytes); 2 = a whole object (32 bytes, length `u64`); 3 = parts of an
//! object (32 bytes, length `u64`, `u32` count, each offset `u64` and length `u64`); 0 = the end
//! (length of the whole stream `u64`).

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::PathBuf;

use crate::digest::Digest;
use crate::encoding::{Put, Reader};
use crate::layer::{NewEntry, NewEntryKind};
use crate::object::ObjectId;
use crate::store::{IoContext, Store, StoreError};

const MAGIC: &[u8; 8] = b"SELKIE-L";
const FORMAT: u32 = 1;
const HAS_WHITEOUTS: u32 = 1;
/// Bytes before the compressed records.
pub(crate) const HEADER_SIZE: usize = 104;
/// Larger records are not written (see the limits in [`crate::layer`]), so they are damage.
const MAX_RECORD: usize = 1 << 20;
/// Raw pieces longer than this are split when they are written.
const MAX_RAW: usize = 1 << 20;

/// What an `entries` file says about its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerHeader {
    pub diff_id: Digest,
    pub tar_size: u64,
    pub entry_count: u64,
    pub content_size: u64,
    pub has_whiteouts: bool,
}

impl LayerHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE);
        bytes.put(MAGIC);
        bytes.put_u32(FORMAT);
        bytes.put_u32(if self.has_whiteouts { HAS_WHITEOUTS } else { 0 });
        bytes.put(&self.diff_id.0);
        bytes.put_u64(self.tar_size);
        bytes.put_u64(self.entry_count);
        bytes.put_u64(self.content_size);
        let checksum = blake3::hash(&bytes);
        bytes.put(checksum.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "the header is cut short";
        let mut reader = Reader::new(bytes);
        if reader.array() != Some(*MAGIC) {
            return Err("it is not a layer");
        }
        if reader.u32() != Some(FORMAT) {
            return Err("unknown format");
        }
        let flags = reader.u32().ok_or(SHORT)?;
        let header = Self {
            diff_id: Digest(reader.array().ok_or(SHORT)?),
            tar_size: reader.u64().ok_or(SHORT)?,
            entry_count: reader.u64().ok_or(SHORT)?,
            content_size: reader.u64().ok_or(SHORT)?,
            has_whiteouts: flags & HAS_WHITEOUTS != 0,
        };
        let checksum: [u8; 32] = reader.array().ok_or(SHORT)?;
        if checksum != *blake3::hash(&bytes[..HEADER_SIZE - 32]).as_bytes() {
            return Err("the header does not match its checksum");
        }
        Ok(header)
    }
}

/// File names of a layer below the store's root: (`entries`, `stream`).
pub(crate) fn paths(diff_id: &Digest) -> (String, String) {
    let hex = diff_id.hex();
    (
        format!("layers/{hex}.entries"),
        format!("layers/{hex}.stream"),
    )
}

/// One entry as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredEntry {
    pub entry: NewEntry,
    /// For regular files that are not empty.
    pub object: Option<ObjectId>,
}

mod kind {
    pub const FILE: u8 = 1;
    pub const DIRECTORY: u8 = 2;
    pub const SYMLINK: u8 = 3;
    pub const HARD_LINK: u8 = 4;
    pub const FIFO: u8 = 5;
    pub const DEVICE: u8 = 6;
    pub const WHITEOUT: u8 = 7;
    pub const OPAQUE: u8 = 8;
}

/// Appends one record to `out`.
pub(crate) fn encode_entry(entry: &NewEntry, object: Option<&ObjectId>, out: &mut Vec<u8>) {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(match entry.kind {
        NewEntryKind::File { .. } => kind::FILE,
        NewEntryKind::Directory => kind::DIRECTORY,
        NewEntryKind::Symlink { .. } => kind::SYMLINK,
        NewEntryKind::HardLink { .. } => kind::HARD_LINK,
        NewEntryKind::Fifo => kind::FIFO,
        NewEntryKind::Device => kind::DEVICE,
        NewEntryKind::Whiteout => kind::WHITEOUT,
        NewEntryKind::OpaqueDirectory => kind::OPAQUE,
    });
    out.put_u16((entry.mode & 0o7777) as u16);
    out.put_u32(entry.uid);
    out.put_u32(entry.gid);
    out.put_i64(entry.mtime);
    out.put_u32(entry.mtime_nsec);
    put_short_bytes(out, &entry.path);
    match &entry.kind {
        NewEntryKind::File { size } => {
            out.put_u64(*size);
            if let Some(object) = object {
                out.put(&object.0);
            }
        }
        NewEntryKind::Symlink { target } | NewEntryKind::HardLink { target } => {
            put_short_bytes(out, target);
        }
        _ => {}
    }
    encode_xattrs(&entry.xattrs, out);
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Lengths were checked against the limits in [`crate::layer`], which fit a `u16`.
fn put_short_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u16(bytes.len() as u16);
    out.put(bytes);
}

/// Extended attributes as records and indexes hold them.
pub(crate) fn encode_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>, out: &mut Vec<u8>) {
    out.put_u16(xattrs.len() as u16);
    for (name, value) in xattrs {
        put_short_bytes(out, name);
        out.put_u32(value.len() as u32);
        out.put(value);
    }
}

/// Name and value.
pub(crate) type Xattr<'a> = (&'a [u8], &'a [u8]);

/// Reads what [`encode_xattrs`] wrote.
pub(crate) fn decode_xattrs<'a>(reader: &mut Reader<'a>) -> Option<Vec<Xattr<'a>>> {
    let count = reader.u16()?;
    (0..count)
        .map(|_| {
            let name = reader.short_bytes()?;
            let length = reader.u32()?;
            Some((name, reader.take(length as usize)?))
        })
        .collect()
}

fn decode_entry(bytes: &[u8]) -> Option<StoredEntry> {
    let mut reader = Reader::new(bytes);
    let tag = reader.u8()?;
    let mode = reader.u16()?.into();
    let uid = reader.u32()?;
    let gid = reader.u32()?;
    let mtime = reader.i64()?;
    let mtime_nsec = reader.u32()?;
    let path = reader.short_bytes()?.to_vec();
    let mut object = None;
    let kind = match tag {
        kind::FILE => {
            let size = reader.u64()?;
            if size > 0 {
                object = Some(ObjectId(reader.array()?));
            }
            NewEntryKind::File { size }
        }
        kind::DIRECTORY => NewEntryKind::Directory,
        kind::SYMLINK => NewEntryKind::Symlink {
            target: reader.short_bytes()?.to_vec(),
        },
        kind::HARD_LINK => NewEntryKind::HardLink {
            target: reader.short_bytes()?.to_vec(),
        },
        kind::FIFO => NewEntryKind::Fifo,
        kind::DEVICE => NewEntryKind::Device,
        kind::WHITEOUT => NewEntryKind::Whiteout,
        kind::OPAQUE => NewEntryKind::OpaqueDirectory,
        _ => return None,
    };
    let xattrs = decode_xattrs(&mut reader)?
        .into_iter()
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect();
    reader.is_empty().then_some(StoredEntry {
        entry: NewEntry {
            path,
            kind,
            uid,
            gid,
            mode,
            mtime,
            mtime_nsec,
            xattrs,
        },
        object,
    })
}

/// One piece of the tar stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Bytes that are not content.
    Raw(&'a [u8]),
    /// An object of this length, or parts of it (offset, length).
    Content(ObjectId, u64, Option<&'a [(u64, u64)]>),
    /// The end, with the length of the whole.
    End(u64),
}

impl Piece<'_> {
    pub fn encode(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let mut head = Vec::with_capacity(64);
        match self {
            Piece::Raw(bytes) => {
                for bytes in bytes.chunks(MAX_RAW) {
                    head.clear();
                    head.put_u8(1);
                    head.put_u32(bytes.len() as u32);
                    out.write_all(&head)?;
                    out.write_all(bytes)?;
                }
                return Ok(());
            }
            Piece::Content(object, size, None) => {
                head.put_u8(2);
                head.put(&object.0);
                head.put_u64(*size);
            }
            Piece::Content(object, size, Some(parts)) => {
                head.put_u8(3);
                head.put(&object.0);
                head.put_u64(*size);
                head.put_u32(parts.len() as u32);
                for (offset, length) in *parts {
                    head.put_u64(*offset);
                    head.put_u64(*length);
                }
            }
            Piece::End(total) => {
                head.put_u8(0);
                head.put_u64(*total);
            }
        }
        out.write_all(&head)
    }
}

/// Compressed output that counts nothing and knows where it goes (for errors).
pub(crate) struct CompressedFile {
    encoder: zstd::stream::write::Encoder<'static, BufWriter<std::fs::File>>,
    pub path: PathBuf,
}

impl CompressedFile {
    /// `header` bytes are left free at the start.
    pub fn create(store: &Store, relative: &str, header: usize) -> Result<Self, StoreError> {
        let path = store.path(relative);
        let mut file = BufWriter::with_capacity(64 * 1024, store.create_file(relative)?.into());
        let encoder = file
            .write_all(&vec![0; header])
            // Level 1: headers and padding shrink by a factor of ten at any level, and this runs
            // on the thread that writes all objects.
            .and_then(|()| zstd::stream::write::Encoder::new(file, 1))
            .and_then(|mut encoder| {
                encoder.include_checksum(true)?;
                Ok(encoder)
            })
            .on("write", || path.clone())?;
        Ok(Self { encoder, path })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.encoder
            .write_all(bytes)
            .on("write", || self.path.clone())
    }

    pub fn write_piece(&mut self, piece: &Piece<'_>) -> Result<(), StoreError> {
        piece
            .encode(&mut self.encoder)
            .on("write", || self.path.clone())
    }

    /// Ends the frame and fills the gap left at the start. The file is not on disk yet.
    pub fn finish(self, header: &[u8]) -> Result<std::fs::File, StoreError> {
        let file = self
            .encoder
            .finish()
            .and_then(|buffer| buffer.into_inner().map_err(std::io::Error::from))
            .on("write", || self.path.clone())?;
        std::os::unix::fs::FileExt::write_all_at(&file, header, 0)
            .on("write", || self.path.clone())?;
        Ok(file)
    }
}

type Decoder = zstd::stream::read::Decoder<'static, BufReader<std::fs::File>>;

/// Reads the entries of a stored layer one by one.
pub(crate) struct EntryReader {
    pub header: LayerHeader,
    decoder: Decoder,
    path: PathBuf,
    left: u64,
    buffer: Vec<u8>,
}

impl EntryReader {
    pub fn open(store: &Store, diff_id: &Digest) -> Result<Self, StoreError> {
        let (relative, _) = paths(diff_id);
        let path = store.path(&relative);
        let (file, header) = open_entries(store, diff_id)?;
        Ok(Self {
            header,
            decoder: decoder(file, &path)?,
            path,
            left: header.entry_count,
            buffer: Vec::new(),
        })
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    fn read_exact(&mut self, length: usize) -> Result<(), StoreError> {
        self.buffer.resize(length, 0);
        self.decoder
            .read_exact(&mut self.buffer)
            .map_err(|error| self.damaged(error.to_string()))
    }

    /// The next entry; `None` after the last one.
    pub fn next(&mut self) -> Result<Option<StoredEntry>, StoreError> {
        if self.left == 0 {
            // Reading on to the end of the frame makes the decoder compare its checksum.
            self.buffer.resize(1, 0);
            return match self.decoder.read(&mut self.buffer) {
                Ok(0) => Ok(None),
                Ok(_) => Err(self.damaged("it has more entries than its header says")),
                Err(error) => Err(self.damaged(error.to_string())),
            };
        }
        self.left -= 1;
        self.read_exact(4)?;
        let length = Reader::new(&self.buffer).u32().unwrap_or(u32::MAX) as usize;
        if length > MAX_RECORD {
            return Err(self.damaged(format!("an entry of {length} bytes")));
        }
        self.read_exact(length)?;
        decode_entry(&self.buffer)
            .map(Some)
            .ok_or_else(|| self.damaged("an entry makes no sense"))
    }
}

/// Opens an `entries` file and reads its header.
pub(crate) fn open_entries(
    store: &Store,
    diff_id: &Digest,
) -> Result<(std::fs::File, LayerHeader), StoreError> {
    let (relative, _) = paths(diff_id);
    let mut file = store
        .open_file(&relative)?
        .ok_or_else(|| missing(store, diff_id))?;
    let damaged = |what: &str| StoreError::Damaged {
        path: store.path(&relative),
        what: what.to_owned(),
    };
    let mut bytes = [0; HEADER_SIZE];
    file.read_exact(&mut bytes)
        .map_err(|error| damaged(&error.to_string()))?;
    let header = LayerHeader::decode(&bytes).map_err(damaged)?;
    if header.diff_id != *diff_id {
        return Err(damaged("it holds another layer"));
    }
    Ok((file, header))
}

fn missing(store: &Store, diff_id: &Digest) -> StoreError {
    StoreError::Missing {
        store: store.root().to_owned(),
        what: format!("layer {}", diff_id.text()),
    }
}

fn decoder(file: std::fs::File, path: &std::path::Path) -> Result<Decoder, StoreError> {
    Decoder::new(file)
        .map(Decoder::single_frame)
        .on("read", || path.to_owned())
}

/// Reads the pieces of a stored layer's tar stream one by one.
pub(crate) struct PieceReader {
    decoder: Decoder,
    path: PathBuf,
    bytes: Vec<u8>,
    parts: Vec<(u64, u64)>,
}

impl PieceReader {
    pub fn open(store: &Store, diff_id: &Digest) -> Result<Self, StoreError> {
        let (_, relative) = paths(diff_id);
        let file = store
            .open_file(&relative)?
            .ok_or_else(|| missing(store, diff_id))?;
        let path = store.path(relative);
        Ok(Self {
            decoder: decoder(file, &path)?,
            path,
            bytes: Vec::new(),
            parts: Vec::new(),
        })
    }

    pub fn damaged(&self, what: impl Into<String>) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        self.decoder
            .read_exact(&mut bytes)
            .map_err(|error| self.damaged(error.to_string()))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, StoreError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, StoreError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next piece.
    pub fn next(&mut self) -> Result<Piece<'_>, StoreError> {
        match self.array()? {
            [0] => {
                let total = self.u64()?;
                // Reading on to the end of the frame makes the decoder compare its checksum.
                match self.decoder.read(&mut [0]) {
                    Ok(0) => Ok(Piece::End(total)),
                    Ok(_) => Err(self.damaged("something follows its end")),
                    Err(error) => Err(self.damaged(error.to_string())),
                }
            }
            [1] => {
                let length = self.u32()? as usize;
                if length > MAX_RAW {
                    return Err(self.damaged(format!("a piece of {length} bytes")));
                }
                self.bytes.resize(length, 0);
                self.decoder
                    .read_exact(&mut self.bytes)
                    .map_err(|error| StoreError::Damaged {
                        path: self.path.clone(),
                        what: error.to_string(),
                    })?;
                Ok(Piece::Raw(&self.bytes))
            }
            [2] => Ok(Piece::Content(ObjectId(self.array()?), self.u64()?, None)),
            [3] => {
                let object = ObjectId(self.array()?);
                let size = self.u64()?;
                let count = self.u32()?;
                self.parts.clear();
                for _ in 0..count {
                    let part = (self.u64()?, self.u64()?);
                    self.parts.push(part);
                }
                Ok(Piece::Content(object, size, Some(&self.parts)))
            }
            [tag] => Err(self.damaged(format!("a piece of unknown kind {tag}"))),
        }
    }
}
