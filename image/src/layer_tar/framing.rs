//! Cuts a tar stream into members; every byte goes to the sink, as `raw` or as content.

use std::io::{self, BufRead, Read};

use super::extensions::{Extensions, PaxFields};
use super::header::{self, BLOCK, Block, Header};
use super::member_path::{self, Meaning};
use super::seen_paths::SeenPaths;
use super::sparse::{self, Parts, Pax1Map};
use super::{EntryKind, LayerEntry, LayerError, LayerSink, Limits, TarReport, printable};

/// Reads an uncompressed tar stream to its very end.
pub fn read_tar(
    input: &mut dyn BufRead,
    limits: &Limits,
    sink: &mut dyn LayerSink,
) -> Result<TarReport, LayerError> {
    let mut framing = Framing {
        input: Input {
            inner: input,
            offset: 0,
            limit: limits.tar_bytes,
            failure: None,
        },
        sink,
        limits,
        seen: SeenPaths::new(limits),
        report: TarReport::default(),
    };
    framing.run()?;
    framing.report.tar_bytes = framing.input.offset;
    Ok(framing.report)
}

/// The stream with its position and bound.
struct Input<'i> {
    inner: &'i mut dyn BufRead,
    offset: u64,
    limit: u64,
    /// Why a read made by the sink failed: the sink sees only an `io::Error`.
    failure: Option<LayerError>,
}

impl Input<'_> {
    fn fill(&mut self) -> Result<&[u8], LayerError> {
        loop {
            match self.inner.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        // asked again because of the borrow; the bytes are there, so this does not read
        self.inner.fill_buf().map_err(LayerError::Read)
    }

    fn consume(&mut self, count: usize) -> Result<(), LayerError> {
        self.inner.consume(count);
        self.offset += count as u64;
        if self.offset > self.limit {
            return Err(too_many_bytes(self.limit));
        }
        Ok(())
    }

    /// One block; `None` at the end of the stream.
    fn block(&mut self, within: &str) -> Result<Option<Block>, LayerError> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let available = self.fill()?;
            let count = available.len().min(BLOCK - have);
            if count == 0 {
                if have == 0 {
                    return Ok(None);
                }
                return Err(self.truncated(within));
            }
            block[have..have + count].copy_from_slice(&available[..count]);
            have += count;
            self.consume(count)?;
        }
        Ok(Some(block))
    }

    fn truncated(&self, within: &str) -> LayerError {
        LayerError::Truncated {
            at: self.offset,
            within: within.to_owned(),
        }
    }
}

fn too_many_bytes(limit: u64) -> LayerError {
    LayerError::Limit(format!(
        "uncompressed it has more than the {limit} bytes there is room for"
    ))
}

/// The content of one file, for the sink: what the stream holds, and zeros for holes.
struct Content<'c, 'i> {
    input: &'c mut Input<'i>,
    path: &'c [u8],
    size: u64,
    position: u64,
    /// What the stream holds of the file and was not read yet, ascending.
    parts: &'c [(u64, u64)],
}

impl Content<'_, '_> {
    /// How many bytes follow that are alike, and whether the stream has them.
    fn run(&mut self) -> (u64, bool) {
        while let Some((offset, length)) = self.parts.first() {
            if self.position < *offset {
                return (offset - self.position, false);
            }
            let left = offset + length - self.position;
            if left > 0 {
                return (left, true);
            }
            self.parts = &self.parts[1..];
        }
        (self.size - self.position, false)
    }
}

impl Read for Content<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (run, stored) = self.run();
        let wanted = buffer.len().min(usize::try_from(run).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..wanted];
        if !stored {
            buffer.fill(0);
            self.position += wanted as u64;
            return Ok(wanted);
        }
        let path = self.path;
        let mut step = |input: &mut Input<'_>| {
            let available = input.fill()?;
            let count = available.len().min(wanted);
            if count == 0 {
                return Err(input.truncated(&format!("within \"{}\"", printable(path))));
            }
            buffer[..count].copy_from_slice(&available[..count]);
            input.consume(count)?;
            Ok(count)
        };
        match step(self.input) {
            Ok(count) => {
                self.position += count as u64;
                Ok(count)
            }
            Err(failure) => {
                let error = io::Error::other(failure.to_string());
                self.input.failure = Some(failure);
                Err(error)
            }
        }
    }
}

struct Framing<'f> {
    input: Input<'f>,
    sink: &'f mut dyn LayerSink,
    limits: &'f Limits,
    seen: SeenPaths,
    report: TarReport,
}

/// What the data after a header is.
enum Data {
    /// Content of a regular file: all of it, or these parts of it.
    Content(Option<Parts>),
    /// Of no meaning here; kept as raw bytes.
    Opaque,
}

impl Framing<'_> {
    fn run(&mut self) -> Result<(), LayerError> {
        let mut extensions = Extensions::default();
        loop {
            let at = self.input.offset;
            let fault = |what: String| LayerError::Header { at, what };
            let Some(block) = self.input.block("within a header")? else {
                return Ok(());
            };
            if header::is_zero(&block) {
                return self.end(&block);
            }
            let header = Header::parse(&block).map_err(fault)?;
            self.raw(&block)?;
            match header.kind {
                b'x' => {
                    let data = self.small(&header, "PAX header")?;
                    extensions.pax = PaxFields::parse(&data).map_err(fault)?;
                }
                b'L' => {
                    let data = self.small(&header, "long name")?;
                    extensions.long_name = Some(header::text(&data).to_vec());
                }
                b'K' => {
                    let data = self.small(&header, "long link name")?;
                    extensions.long_link = Some(header::text(&data).to_vec());
                }
                // a global header applies to all members, yet the readers of other engines give it
                // no effect (it is there for comments, as `git archive` writes)
                b'g' => drop(self.small(&header, "global PAX header")?),
                _ => self.member(&header, &block, at, std::mem::take(&mut extensions))?,
            }
        }
    }

    /// After the first zero block: a second one or the end of the stream, then only zeros.
    fn end(&mut self, first: &Block) -> Result<(), LayerError> {
        self.raw(first)?;
        let at = self.input.offset;
        match self.input.block("within the end mark")? {
            None => {}
            Some(second) if header::is_zero(&second) => self.raw(&second)?,
            Some(_) => {
                return Err(LayerError::Header {
                    at,
                    what: "a single block of zeros stands before it".to_owned(),
                });
            }
        }
        self.report.end_mark = true;
        loop {
            let at = self.input.offset;
            let available = self.input.fill()?;
            if available.is_empty() {
                return Ok(());
            }
            if let Some(position) = available.iter().position(|byte| *byte != 0) {
                return Err(LayerError::TrailingData(at + position as u64));
            }
            let count = available.len();
            let result = self.sink.raw(available);
            result.map_err(|source| sink_failure(b"", source))?;
            self.input.consume(count)?;
        }
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        let result = self.sink.raw(bytes);
        result.map_err(|source| sink_failure(b"", source))
    }

    /// The data of an extended header, which is kept in memory and therefore bounded.
    fn small(&mut self, header: &Header, what: &str) -> Result<Vec<u8>, LayerError> {
        let limit = self.limits.header_bytes;
        let size = u64::try_from(header.size)
            .ok()
            .filter(|size| *size <= limit);
        let size = size.ok_or_else(|| {
            let size = header.size;
            LayerError::Limit(format!("a {what} of {size} bytes; {limit} are allowed"))
        })?;
        let mut data = Vec::new();
        while (data.len() as u64) < size {
            let within = format!("within a {what}");
            let block = self.input.block(&within)?;
            let block = block.ok_or_else(|| self.input.truncated(&within))?;
            data.extend_from_slice(&block);
        }
        self.raw(&data)?;
        // bounded by `limit`, which fits
        data.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(data)
    }

    fn member(
        &mut self,
        header: &Header,
        block: &Block,
        at: u64,
        mut extensions: Extensions,
    ) -> Result<(), LayerError> {
        let fault = |what: String| LayerError::Header { at, what };
        let pax_sparse = extensions.pax.take_sparse().map_err(fault)?;
        let mut pax = extensions.pax;
        let mut name = extensions
            .long_name
            .or(pax.path.take())
            .unwrap_or_else(|| header.name.clone());
        if let Some(replaced) = pax_sparse.as_ref().and_then(|sparse| sparse.name.clone()) {
            name = replaced;
        }
        let stored = match pax.size {
            Some(size) => size,
            None => u64::try_from(header.size)
                .map_err(|_| LayerError::entry(&name, "its size is negative"))?,
        };
        let is_link = matches!(header.kind, b'1' | b'2');
        let has_data = !is_link && !matches!(header.kind, b'3'..=b'6');
        let mut stored = if has_data { stored } else { 0 };

        let mut parts = None;
        let mut size = stored;
        if header.kind == b'S' {
            let (map, real_size) = self.old_sparse_map(header, block, &name, at)?;
            (parts, size) = (Some(map), real_size);
        } else if let Some(sparse) = pax_sparse.filter(|_| has_data) {
            size = sparse.size.unwrap_or(stored);
            parts = Some(match sparse.parts {
                Some(parts) => parts,
                None => self.pax_1_map(&name, &mut stored)?,
            });
        }
        if let Some(map) = parts {
            let checked = sparse::check(map, size, stored);
            parts = Some(checked.map_err(|what| LayerError::entry(&name, what))?);
        }
        self.check_sizes(&name, stored, size)?;

        let meaning = member_path::read(&name)?;
        let (path, kind) = match meaning {
            Meaning::Ignored => return self.opaque_data(stored),
            Meaning::Whiteout(path) => (path, EntryKind::Whiteout),
            Meaning::Opaque(path) => (path, EntryKind::OpaqueDirectory),
            Meaning::Plain(path) => {
                let link = extensions
                    .long_link
                    .or(pax.link_path.take())
                    .unwrap_or_else(|| header.link_name.clone());
                let kind = self.kind(header.kind, &name, &path, link, size)?;
                self.seen.add(&path, kind == EntryKind::Directory)?;
                (path, kind)
            }
        };
        let owner = |value: Option<u64>, plain: i64, what: &str| {
            let value = value.or_else(|| u64::try_from(plain).ok());
            let value = value.and_then(|value| u32::try_from(value).ok());
            value.filter(|id| *id != u32::MAX).ok_or_else(|| {
                LayerError::entry(&name, format!("its {what} is not an ID (0 to 4294967294)"))
            })
        };
        let (mtime, mtime_nsec) = pax.mtime.unwrap_or((header.mtime, 0));
        let entry = LayerEntry {
            uid: owner(pax.uid, header.uid, "owner")?,
            gid: owner(pax.gid, header.gid, "group")?,
            mode: (header.mode & 0o7777) as u32,
            mtime,
            mtime_nsec,
            xattrs: pax.take_xattrs(&path, &mut self.report)?,
            path,
            kind,
        };
        let data = match entry.kind {
            EntryKind::File { .. } => Data::Content(parts),
            _ => Data::Opaque,
        };
        self.give(entry, stored, data)
    }

    fn kind(
        &mut self,
        flag: u8,
        name: &[u8],
        path: &[u8],
        link: Vec<u8>,
        size: u64,
    ) -> Result<EntryKind, LayerError> {
        let kind = match flag {
            // before ustar, a slash at the end of the name made a directory
            0 if name.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File { size },
            b'1' => {
                let target = member_path::read_target(name, &link)?;
                if target == path {
                    return Err(LayerError::entry(name, "it is a hard link to itself"));
                }
                self.seen.check_target(&target, name)?;
                EntryKind::HardLink { target }
            }
            b'2' => {
                if link.is_empty() || link.len() > member_path::MAX_PATH {
                    return Err(LayerError::entry(
                        name,
                        "its link target is empty or too long",
                    ));
                }
                EntryKind::Symlink { target: link }
            }
            b'3' | b'4' => EntryKind::Device,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            _ => {
                let flag = [flag].escape_ascii().to_string();
                return Err(LayerError::entry(
                    name,
                    format!("members of type \"{flag}\" are unknown"),
                ));
            }
        };
        if path.is_empty() && kind != EntryKind::Directory {
            return Err(LayerError::entry(name, "the root is not a directory"));
        }
        Ok(kind)
    }

    fn check_sizes(&mut self, name: &[u8], stored: u64, size: u64) -> Result<(), LayerError> {
        let left = self.limits.content_bytes - self.report.content_bytes;
        if size > left {
            return Err(LayerError::Limit(format!(
                "with the {size} bytes of \"{}\" its files have more than the {} bytes there is room for",
                printable(name),
                self.limits.content_bytes
            )));
        }
        self.report.content_bytes += size;
        // known from the header already: no need to write what cannot fit
        if stored > self.input.limit.saturating_sub(self.input.offset) {
            return Err(too_many_bytes(self.input.limit));
        }
        Ok(())
    }

    fn old_sparse_map(
        &mut self,
        header: &Header,
        block: &Block,
        name: &[u8],
        at: u64,
    ) -> Result<(Parts, u64), LayerError> {
        let fault = |what: String| LayerError::Header { at, what };
        if !header.gnu {
            return Err(fault("a GNU sparse file without a GNU header".to_owned()));
        }
        let (mut parts, size, mut extended) = sparse::old_header(block).map_err(fault)?;
        let start = self.input.offset;
        while extended {
            let block = self.map_block(name, start)?;
            extended = sparse::old_extension(&block, &mut parts).map_err(fault)?;
        }
        Ok((parts, size))
    }

    /// Takes the map that starts the data off it.
    fn pax_1_map(&mut self, name: &[u8], stored: &mut u64) -> Result<Parts, LayerError> {
        let start = self.input.offset;
        let mut map = Pax1Map::default();
        loop {
            *stored = stored
                .checked_sub(BLOCK as u64)
                .ok_or_else(|| LayerError::entry(name, "its sparse map is longer than its data"))?;
            let block = self.map_block(name, start)?;
            let parts = map.add(&block);
            if let Some(parts) = parts.map_err(|what| LayerError::entry(name, what))? {
                return Ok(parts);
            }
        }
    }

    fn map_block(&mut self, name: &[u8], start: u64) -> Result<Block, LayerError> {
        if self.input.offset - start >= self.limits.header_bytes {
            return Err(LayerError::Limit(format!(
                "the sparse map of \"{}\" has more than {} bytes",
                printable(name),
                self.limits.header_bytes
            )));
        }
        let within = "within a sparse map";
        let block = self.input.block(within)?;
        let block = block.ok_or_else(|| self.input.truncated(within))?;
        self.raw(&block)?;
        Ok(block)
    }

    fn give(&mut self, entry: LayerEntry, stored: u64, data: Data) -> Result<(), LayerError> {
        self.report.entries += 1;
        if self.report.entries > self.limits.entries {
            return Err(LayerError::Limit(format!(
                "it has more than {} entries",
                self.limits.entries
            )));
        }
        self.report.devices += u64::from(entry.kind == EntryKind::Device);
        let path = entry.path.clone();
        let Data::Content(parts) = data else {
            let result = self.sink.entry(entry, None, &mut io::empty());
            result.map_err(|source| sink_failure(&path, source))?;
            return self.opaque_data(stored);
        };
        let size = match entry.kind {
            EntryKind::File { size } => size,
            _ => stored,
        };
        let whole = [(0, size)];
        let mut content = Content {
            input: &mut self.input,
            path: &path,
            size,
            position: 0,
            parts: parts.as_deref().unwrap_or(&whole),
        };
        let result = self.sink.entry(entry, parts.as_deref(), &mut content);
        let unread = size - content.position;
        if let Some(failure) = self.input.failure.take() {
            return Err(failure);
        }
        result.map_err(|source| sink_failure(&path, source))?;
        if unread > 0 {
            let source = format!("{unread} bytes of its content were not taken");
            return Err(sink_failure(&path, source.into()));
        }
        self.padding(stored)
    }

    /// Data without meaning: raw bytes, of any length.
    fn opaque_data(&mut self, stored: u64) -> Result<(), LayerError> {
        for _ in 0..stored.div_ceil(BLOCK as u64) {
            let within = "within the data of a member";
            let block = self.input.block(within)?;
            let block = block.ok_or_else(|| self.input.truncated(within))?;
            self.raw(&block)?;
        }
        Ok(())
    }

    fn padding(&mut self, stored: u64) -> Result<(), LayerError> {
        let mut missing = (stored.next_multiple_of(BLOCK as u64) - stored) as usize;
        while missing > 0 {
            let available = self.input.fill()?;
            let count = available.len().min(missing);
            if count == 0 {
                return Err(self.input.truncated("within the padding of a member"));
            }
            let result = self.sink.raw(&available[..count]);
            result.map_err(|source| sink_failure(b"", source))?;
            self.input.consume(count)?;
            missing -= count;
        }
        Ok(())
    }
}

fn sink_failure(path: &[u8], source: super::SinkError) -> LayerError {
    LayerError::Sink {
        at: match path {
            b"" => String::new(),
            _ => format!("'s entry \"{}\"", printable(path)),
        },
        source,
    }
}
