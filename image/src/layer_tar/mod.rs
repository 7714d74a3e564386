//! Reading a layer: decompression, digests, tar with GNU and PAX extensions, hostile input.
//!
//! # Theory of operation
//! A layer passes through a chain of three threads joined by short queues of recycled buffers, so
//! that memory does not depend on the layer and two or three cores are busy ([`pipeline`]):
//!
//! ```text
//! source ─▶ SHA-256 of what came, inflate ─▶ SHA-256 of the tar ─▶ parse, write to the sink
//! ```
//!
//! The last step runs on the caller's thread ([`framing`]). It cuts the tar into 512-byte blocks
//! itself: every byte that is not the content of a regular file goes to [`LayerSink::raw`], every
//! member to [`LayerSink::entry`], in the order of the stream, so a sink that keeps both can give
//! back the very same bytes, and with them the same diff ID.
//!
//! # What is refused
//! Nothing here writes files, so an archive cannot escape anywhere; still, whatever has no single
//! meaning is refused rather than guessed at: `..` in a path or hard-link target, NUL bytes, paths
//! that lead through a non-directory of the same layer (the link-then-write trick), a path given
//! twice (only directories may repeat), whiteouts of `.` or `..`, unknown member types, numbers
//! that are negative or too large, data after the end. [`Limits`] bounds what a small file can
//! expand to. Framing follows the reader that other engines use (Go's `archive/tar`), so that one
//! layer cannot be two different trees.
//!
//! The sink sees entries before the digests are known to be right: it must not publish anything
//! until [`read_layer`] has returned `Ok`.

mod attributes;
mod extensions;
mod framing;
mod header;
mod member_path;
mod pax;
mod pipeline;
pub(crate) mod scan;
mod seen_paths;
mod sparse;

use std::collections::BTreeMap;
use std::io::Read;

use crate::digest::Digest;

pub use framing::read_tar;
pub use pipeline::{Compression, read_layer};

/// What an entry of a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file; its content follows.
    File {
        /// Length in bytes, holes included.
        size: u64,
    },
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink {
        /// Where it points, verbatim; never empty.
        target: Vec<u8>,
    },
    /// Hard link.
    HardLink {
        /// Clean relative path of the other name, in this layer or a lower one.
        target: Vec<u8>,
    },
    /// FIFO.
    Fifo,
    /// Character or block device.
    Device,
    /// `.wh.NAME`: what lower layers have at `path` (the prefix is gone from it) is deleted.
    Whiteout,
    /// `.wh..wh..opq`: what lower layers have below `path` is deleted.
    OpaqueDirectory,
}

/// One entry of a layer. `path` is clean: relative, no `.`, `..` or empty components; the root is
/// empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerEntry {
    /// Raw bytes of the path.
    pub path: Vec<u8>,
    /// Its type.
    pub kind: EntryKind,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission, set-ID and sticky bits (07777).
    pub mode: u32,
    /// Modification time, seconds since the epoch.
    pub mtime: i64,
    /// Nanoseconds of it, below 10⁹.
    pub mtime_nsec: u32,
    /// Extended attributes; `security.capability` in v2 form, whatever form it came in.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Why a sink failed.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Takes a layer apart from the reader's side.
pub trait LayerSink {
    /// Bytes of the tar stream that are not file content (headers, padding, end).
    fn raw(&mut self, bytes: &[u8]) -> Result<(), SinkError>;
    /// One entry. For a file, `content` gives its `size` bytes, all of which must be read. With
    /// `sparse_map` (offset and length, ascending, none empty) the stream holds only these parts;
    /// the rest are holes, given as zeros. For other kinds `content` is empty.
    fn entry(
        &mut self,
        entry: LayerEntry,
        sparse_map: Option<&[(u64, u64)]>,
        content: &mut dyn Read,
    ) -> Result<(), SinkError>;
}

/// Bounds on one layer.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of the uncompressed tar stream. The engine sets this to the free space of the store's
    /// disk: what is larger could not be stored, so a bomb ends here before it fills the disk.
    pub tar_bytes: u64,
    /// Entries, counting directories that are only implied by paths.
    pub entries: u64,
    /// Bytes of one PAX header, GNU long name or sparse map.
    pub header_bytes: u64,
    /// Bytes of all files, holes included: a sparse file costs nothing to declare, but everybody
    /// who copies it pays for its holes. Set by the engine like `tar_bytes`.
    pub content_bytes: u64,
}

impl Default for Limits {
    /// 1 TiB of tar and of content, a million entries, 1 MiB headers.
    fn default() -> Self {
        Self {
            tar_bytes: 1 << 40,
            entries: 1 << 20,
            header_bytes: 1 << 20,
            content_bytes: 1 << 40,
        }
    }
}

/// What a layer must turn out to be. Unset: not checked.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Digest of the stream as it comes, compressed or not.
    pub digest: Option<Digest>,
    /// Its length in bytes.
    pub size: Option<u64>,
    /// Digest of the uncompressed tar.
    pub diff_id: Option<Digest>,
}

/// What a layer turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerReport {
    /// Digest of the stream as it came.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// How it was compressed.
    pub compression: Compression,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// What the tar held.
    pub content: TarReport,
}

/// What a tar stream held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TarReport {
    /// Length of the stream in bytes.
    pub tar_bytes: u64,
    /// Entries given to the sink.
    pub entries: u64,
    /// Bytes of their files, holes included.
    pub content_bytes: u64,
    /// Device nodes among them.
    pub devices: u64,
    /// Extended attributes left out because they steer overlay file systems.
    pub overlay_xattrs: u64,
    /// Whether the end-of-archive mark was there (the last thing a truncated stream loses).
    pub end_mark: bool,
}

/// Why a layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Reading or decompressing failed.
    #[error("cannot read the layer: {0}")]
    Read(#[source] std::io::Error),
    /// A compression that layers do not use.
    #[error("the layer is compressed with {0}; gzip, zstd and no compression are supported")]
    Compression(&'static str),
    /// The stream ends in the middle.
    #[error("the layer is truncated: it ends at byte {at} {within}")]
    Truncated {
        /// Length of what there was.
        at: u64,
        /// What was being read.
        within: String,
    },
    /// A header block makes no sense.
    #[error("the layer is not a valid tar archive: header at byte {at}: {what}")]
    Header {
        /// Offset of the block in the uncompressed stream.
        at: u64,
        /// What is wrong with it.
        what: String,
    },
    /// An entry that is refused.
    #[error("the layer's entry \"{path}\" is refused: {what}")]
    Entry {
        /// Its path, unprintable bytes escaped.
        path: String,
        /// Why.
        what: String,
    },
    /// There is more than is allowed.
    #[error("the layer is too large: {0}")]
    Limit(String),
    /// Something other than zeros follows the end of the archive.
    #[error("the layer has data after its end, at byte {0}")]
    TrailingData(u64),
    /// It is not what was announced.
    #[error("the layer is not what it should be: its {what} is {found}, expected {expected}")]
    Mismatch {
        /// `digest`, `size` or `diff ID`.
        what: &'static str,
        /// As computed.
        found: String,
        /// As announced.
        expected: String,
    },
    /// The sink failed.
    #[error("cannot store the layer{at}: {source}")]
    Sink {
        /// At which entry, worded to follow "the layer"; empty outside entries.
        at: String,
        /// Why.
        source: SinkError,
    },
}

impl LayerError {
    fn entry(path: &[u8], what: impl Into<String>) -> Self {
        Self::Entry {
            path: printable(path),
            what: what.into(),
        }
    }
}

/// The value of a `security.capability` attribute in the form layers have it (revision 2, of no
/// particular user namespace). `None` when it is not one.
pub fn portable_capability(value: &[u8]) -> Option<Vec<u8>> {
    attributes::capability_v2(value)
}

/// A path as it can be shown: bytes that could steer a terminal are escaped.
fn printable(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => path.escape_ascii().to_string(),
    }
}
