//! The chain of threads a layer passes through; see the parent module.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::{Expected, LayerError, LayerReport, LayerSink, Limits, read_tar};
use crate::digest::Digest;

/// Bytes of one buffer: large enough that passing it on costs nothing beside its use, small enough
/// to stay in the cache from the inflating to the hashing to the writing core.
const CHUNK: usize = 128 * 1024;
/// Buffers in the chain.
const CHUNKS: usize = 12;
/// Largest zstd window in powers of two, the default of the reference decoder: 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a stream is compressed, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of any number of members.
    Gzip,
    /// Zstandard, of any number of frames.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl Compression {
    /// Looks at the first bytes of a stream (six are enough; fewer are taken for uncompressed).
    pub fn detect(start: &[u8]) -> Result<Self, LayerError> {
        const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            _ if start.starts_with(ZSTD) => Ok(Self::Zstd),
            // a skippable frame, with which zstd:chunked may start
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            _ if start.starts_with(b"BZh") => Err(LayerError::Compression("bzip2")),
            _ if start.starts_with(b"\xfd7zXZ\0") => Err(LayerError::Compression("xz")),
            _ if start.starts_with(b"\x04\x22\x4d\x18") => Err(LayerError::Compression("lz4")),
            _ => Ok(Self::None),
        }
    }

    /// A reader of what `input` was before it was compressed.
    pub fn decoder<'r>(self, input: impl BufRead + 'r) -> io::Result<Box<dyn Read + 'r>> {
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(MultiGzDecoder::new(input)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }
}

/// Reads one layer to its end, compressed or not, into `sink`, and checks it against `expected`.
/// `progress` counts the bytes taken from `source`.
///
/// Without an expected digest nothing tells a stream that was cut between two members from a whole
/// one, so the end-of-archive mark is then required.
pub fn read_layer(
    source: &mut (dyn Read + Send),
    expected: &Expected,
    limits: &Limits,
    progress: Option<&AtomicU64>,
    sink: &mut dyn LayerSink,
) -> Result<LayerReport, LayerError> {
    let mut source = BufReader::with_capacity(
        CHUNK,
        Measured {
            inner: source,
            hash: Sha256::new(),
            size: 0,
            announced: expected.size,
            progress,
        },
    );
    let start = source.fill_buf().map_err(LayerError::Read)?;
    let compression = Compression::detect(start)?;

    let (to_hasher, from_inflater) = sync_channel(CHUNKS);
    let (to_parser, from_hasher) = sync_channel(CHUNKS);
    let (give_back, free) = channel();
    for _ in 0..CHUNKS {
        // the receiver is alive
        let _ = give_back.send(vec![0; CHUNK]);
    }
    thread::scope(|scope| {
        let inflater = thread::Builder::new()
            .name("inflate".to_owned())
            .spawn_scoped(scope, move || {
                let result = inflate(&mut source, compression, &free, &to_hasher);
                if let Err(error) = result {
                    let error = io::Error::new(error.kind(), format!("{compression}: {error}"));
                    let _ = to_hasher.send(Chunk::Failed(error));
                }
                source.into_inner().measured()
            })
            .map_err(LayerError::Read)?;
        let hasher = thread::Builder::new()
            .name("hash".to_owned())
            .spawn_scoped(scope, move || hash(&from_inflater, &to_parser))
            .map_err(LayerError::Read)?;
        let mut tar = ChunkReader {
            chunks: from_hasher,
            give_back,
            current: Vec::new(),
            position: 0,
            length: 0,
        };
        let content = read_tar(&mut tar, limits, sink);
        // ends the other threads when the parser gave up early
        drop(tar);
        let measured = inflater.join();
        let diff_id = hasher.join();
        let content = content?;
        let (Ok((digest, size)), Ok(diff_id)) = (measured, diff_id) else {
            return Err(LayerError::Read(io::Error::other("a thread panicked")));
        };
        let report = LayerReport {
            digest,
            size,
            compression,
            diff_id,
            content,
        };
        report.check(expected)?;
        Ok(report)
    })
}

impl LayerReport {
    fn check(&self, expected: &Expected) -> Result<(), LayerError> {
        let differ = |what, found: &dyn fmt::Display, expected: &dyn fmt::Display| {
            Err(LayerError::Mismatch {
                what,
                found: found.to_string(),
                expected: expected.to_string(),
            })
        };
        if let Some(size) = expected.size.filter(|size| *size != self.size) {
            return differ("size", &self.size, &size);
        }
        if let Some(digest) = expected.digest.filter(|digest| *digest != self.digest) {
            return differ("digest", &self.digest, &digest);
        }
        if let Some(diff_id) = expected.diff_id.filter(|diff_id| *diff_id != self.diff_id) {
            return differ("diff ID", &self.diff_id, &diff_id);
        }
        let known = expected.digest.is_some() || expected.diff_id.is_some();
        if !known && !self.content.end_mark {
            return Err(LayerError::Truncated {
                at: self.content.tar_bytes,
                within: "without the mark of its end".to_owned(),
            });
        }
        Ok(())
    }
}

enum Chunk {
    /// The first `usize` bytes of the buffer.
    Bytes(Vec<u8>, usize),
    Failed(io::Error),
}

fn inflate(
    source: &mut dyn BufRead,
    compression: Compression,
    free: &Receiver<Vec<u8>>,
    out: &SyncSender<Chunk>,
) -> io::Result<()> {
    let mut decoder = compression.decoder(source)?;
    // an error here means that the parser gave up: it has the reason
    while let Ok(mut buffer) = free.recv() {
        let mut length = 0;
        let mut result = Ok(());
        while length < buffer.len() {
            match decoder.read(&mut buffer[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let full = length == buffer.len();
        if out.send(Chunk::Bytes(buffer, length)).is_err() {
            return Ok(());
        }
        result?;
        if !full {
            return Ok(());
        }
    }
    Ok(())
}

fn hash(chunks: &Receiver<Chunk>, out: &SyncSender<Chunk>) -> Digest {
    let mut hash = Sha256::new();
    for chunk in chunks {
        if let Chunk::Bytes(buffer, length) = &chunk {
            hash.update(&buffer[..*length]);
        }
        if out.send(chunk).is_err() {
            break;
        }
    }
    Digest::finish(hash)
}

/// The parser's end of the chain.
struct ChunkReader {
    chunks: Receiver<Chunk>,
    give_back: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    length: usize,
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.length {
            match self.chunks.recv() {
                Ok(Chunk::Bytes(buffer, length)) => {
                    let used = std::mem::replace(&mut self.current, buffer);
                    // nobody wants it any more once the inflater is done
                    if !used.is_empty() {
                        let _ = self.give_back.send(used);
                    }
                    (self.position, self.length) = (0, length);
                }
                Ok(Chunk::Failed(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(&self.current[self.position..self.length])
    }

    fn consume(&mut self, count: usize) {
        self.position = (self.position + count).min(self.length);
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// Hashes and counts what is read through it.
struct Measured<'m> {
    inner: &'m mut (dyn Read + Send),
    hash: Sha256,
    size: u64,
    announced: Option<u64>,
    progress: Option<&'m AtomicU64>,
}

impl Measured<'_> {
    fn measured(self) -> (Digest, u64) {
        (Digest::finish(self.hash), self.size)
    }
}

impl Read for Measured<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.size += count as u64;
        if let Some(progress) = self.progress {
            progress.fetch_add(count as u64, Ordering::Relaxed);
        }
        // a stream that never ends must not be followed to its end
        if self
            .announced
            .is_some_and(|announced| self.size > announced)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is longer than announced",
            ));
        }
        Ok(count)
    }
}
