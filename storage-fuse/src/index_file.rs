//! The index file of an image (format 1). All integers are little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `SELKIE-I` |
//! | 8 | 4 | format, 1 |
//! | 12 | 4 | number of UIDs, then (16) of GIDs |
//! | 20 | 4 | number of inodes, then (24) of directory entries, (28) of objects |
//! | 32 | 8 | bytes of names and targets, then (40) of extended attributes |
//! | 48 | 8 | sum of the lengths of regular files in bytes |
//! | 56 | 32 | chain ID (SHA-256) |
//! | 88 | 32 | BLAKE3 of everything behind the IDs |
//! | 120 | 32 | BLAKE3 of the 120 bytes before and of the IDs |
//! | 152 | | UIDs, then GIDs, 4 bytes each, ascending |
//!
//! then, without gaps: inodes (48 bytes each), directory entries (16 each), objects (32 each), text,
//! extended attributes.
//!
//! * Inode: kind `u8`, 0, mode `u16`, UID `u32`, GID `u32`, number of links `u32`, mtime `i64`
//!   (seconds) and `u32` (nanoseconds), offset of its extended attributes `u32` (`0xffffffff`:
//!   none), length `u64`, two `u32` that depend on the kind: first entry and number of entries of a
//!   directory; index of a file's object; offset and length of a symbolic link's target in the text.
//!   Inode 0 is the root. A directory's number is greater than its parent's, so a walk ends.
//! * Entry: inode `u32`, offset of the name in the text `u32`, its length `u32`, 0 (`u32`). The
//!   entries of a directory are neighbours, sorted by name.
//! * Extended attributes of an inode: as in a layer's records (`layer_record.rs`).
//!
//! Opening reads the header and the IDs only, which is all that starting a container needs.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::encoding::{Put, Reader};
use crate::image_index::ImageIds;
use crate::layer::{MAX_DEPTH, MAX_ENTRIES, MAX_NAME, MAX_PATH};
use crate::layer_record::{Xattr, decode_xattrs};
use crate::object::ObjectId;
use crate::store::StoreError;

const MAGIC: &[u8; 8] = b"SELKIE-I";
const FORMAT: u32 = 1;
pub(crate) const HEADER_SIZE: usize = 152;
pub(crate) const INODE_SIZE: usize = 48;
pub(crate) const ENTRY_SIZE: usize = 16;
const OBJECT_SIZE: usize = 32;
pub(crate) const NO_XATTRS: u32 = u32::MAX;
/// `/etc/passwd` and `/etc/group` are read up to a mebibyte, so there cannot be more.
const MAX_IDS: u32 = 4 << 20;

pub(crate) mod kind {
    pub const FILE: u8 = 1;
    pub const DIRECTORY: u8 = 2;
    pub const SYMLINK: u8 = 3;
    pub const FIFO: u8 = 5;
    pub const DEVICE: u8 = 6;
}

/// The fixed part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub uid_count: u32,
    pub gid_count: u32,
    pub inode_count: u32,
    pub entry_count: u32,
    pub object_count: u32,
    pub text_size: u64,
    pub xattr_size: u64,
    pub content_size: u64,
    pub chain_id: Digest,
    pub body_checksum: [u8; 32],
}

impl Header {
    /// The header and the IDs, checksum included.
    pub fn encode(&self, ids: &ImageIds) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE);
        bytes.put(MAGIC);
        bytes.put_u32(FORMAT);
        bytes.put_u32(self.uid_count);
        bytes.put_u32(self.gid_count);
        bytes.put_u32(self.inode_count);
        bytes.put_u32(self.entry_count);
        bytes.put_u32(self.object_count);
        bytes.put_u64(self.text_size);
        bytes.put_u64(self.xattr_size);
        bytes.put_u64(self.content_size);
        bytes.put(&self.chain_id.0);
        bytes.put(&self.body_checksum);
        let mut id_bytes = Vec::new();
        for id in ids.uids.iter().chain(&ids.gids) {
            id_bytes.put_u32(*id);
        }
        let checksum = head_checksum(&bytes, &id_bytes);
        bytes.put(&checksum);
        bytes.put(&id_bytes);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<(Self, [u8; 32])> {
        let mut reader = Reader::new(bytes);
        if reader.array() != Some(*MAGIC) || reader.u32() != Some(FORMAT) {
            return None;
        }
        let header = Self {
            uid_count: reader.u32()?,
            gid_count: reader.u32()?,
            inode_count: reader.u32()?,
            entry_count: reader.u32()?,
            object_count: reader.u32()?,
            text_size: reader.u64()?,
            xattr_size: reader.u64()?,
            content_size: reader.u64()?,
            chain_id: Digest(reader.array()?),
            body_checksum: reader.array()?,
        };
        Some((header, reader.array()?))
    }

    fn ids_size(&self) -> usize {
        (self.uid_count as usize + self.gid_count as usize) * 4
    }

    /// Length of everything behind the IDs, if that is a sane number.
    fn body_size(&self) -> Option<usize> {
        let fixed = u64::from(self.inode_count) * INODE_SIZE as u64
            + u64::from(self.entry_count) * ENTRY_SIZE as u64
            + u64::from(self.object_count) * OBJECT_SIZE as u64;
        let size = fixed
            .checked_add(self.text_size)?
            .checked_add(self.xattr_size)?;
        usize::try_from(size).ok()
    }
}

fn head_checksum(header: &[u8], ids: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update(ids);
    *hasher.finalize().as_bytes()
}

fn damaged(path: &Path, what: impl Into<String>) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        what: what.into(),
    }
}

/// Reads header and IDs.
pub(crate) fn read_head(
    file: &File,
    path: &Path,
    chain_id: &Digest,
) -> Result<(Header, ImageIds), StoreError> {
    // One read gets everything of a common image.
    let mut buffer = vec![0; 4096];
    let length = read_up_to(file, &mut buffer, 0, path)?;
    buffer.truncate(length);
    let (header, checksum) =
        Header::decode(&buffer).ok_or_else(|| damaged(path, "it is not an image index"))?;
    if header.uid_count > MAX_IDS || header.gid_count > MAX_IDS {
        return Err(damaged(path, "it names too many IDs"));
    }
    let head_size = HEADER_SIZE + header.ids_size();
    if head_size > buffer.len() {
        let have = buffer.len();
        buffer.resize(head_size, 0);
        let more = read_up_to(file, &mut buffer[have..], have as u64, path)?;
        if have + more != head_size {
            return Err(damaged(path, "the list of IDs is cut short"));
        }
    }
    let ids = &buffer[HEADER_SIZE..head_size];
    if checksum != head_checksum(&buffer[..HEADER_SIZE - 32], ids) {
        return Err(damaged(path, "the header does not match its checksum"));
    }
    if header.chain_id != *chain_id {
        return Err(damaged(path, "it describes another image"));
    }
    let (uids, gids) = ids.split_at(header.uid_count as usize * 4);
    let set = |bytes: &[u8]| -> BTreeSet<u32> {
        bytes
            .chunks_exact(4)
            .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect()
    };
    let ids = ImageIds {
        uids: set(uids),
        gids: set(gids),
    };
    Ok((header, ids))
}

fn read_up_to(
    file: &File,
    mut buffer: &mut [u8],
    mut offset: u64,
    path: &Path,
) -> Result<usize, StoreError> {
    let wanted = buffer.len();
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => break,
            Ok(length) => {
                buffer = &mut buffer[length..];
                offset += length as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(StoreError::Io {
                    attempt: "read",
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(wanted - buffer.len())
}

/// The tables behind the header, read into memory and checked against their checksum.
#[derive(Debug)]
pub(crate) struct Body {
    path: PathBuf,
    bytes: Vec<u8>,
    entries: usize,
    objects: usize,
    text: usize,
    xattrs: usize,
}

/// One inode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inode<'a> {
    pub number: u32,
    pub kind: InodeKind<'a>,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    xattrs: u32,
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InodeKind<'a> {
    /// Length and, unless that is 0, object.
    File(u64, Option<ObjectId>),
    /// First entry and number of entries.
    Directory(u32, u32),
    Symlink(&'a [u8]),
    Fifo,
    Device,
}

impl Body {
    pub fn read(file: &File, path: &Path, header: &Header) -> Result<Self, StoreError> {
        let offset = (HEADER_SIZE + header.ids_size()) as u64;
        let length = file
            .metadata()
            .map_err(|source| StoreError::Io {
                attempt: "look at",
                path: path.to_owned(),
                source,
            })?
            .len();
        let size = header
            .body_size()
            .filter(|size| length.checked_sub(offset) == Some(*size as u64))
            .ok_or_else(|| damaged(path, "its length is not what its header says"))?;
        let mut bytes = vec![0; size];
        if read_up_to(file, &mut bytes, offset, path)? != size {
            return Err(damaged(path, "it is cut short"));
        }
        if header.body_checksum != *blake3::hash(&bytes).as_bytes() {
            return Err(damaged(path, "its content does not match its checksum"));
        }
        Self::new(path, bytes, header)
    }

    /// `bytes` has the length the header says.
    fn new(path: &Path, bytes: Vec<u8>, header: &Header) -> Result<Self, StoreError> {
        if u64::from(header.inode_count) > MAX_ENTRIES {
            return Err(damaged(path, "it has too many inodes"));
        }
        let entries = header.inode_count as usize * INODE_SIZE;
        let objects = entries + header.entry_count as usize * ENTRY_SIZE;
        let text = objects + header.object_count as usize * OBJECT_SIZE;
        let xattrs = text + header.text_size as usize;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            entries,
            objects,
            text,
            xattrs,
        })
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        damaged(&self.path, what)
    }

    /// Element `number` of the table between `start` and `end`.
    fn element<const SIZE: usize>(
        &self,
        start: usize,
        end: usize,
        number: u32,
    ) -> Option<&[u8; SIZE]> {
        let offset = (number as usize).checked_mul(SIZE)?;
        self.bytes.get(start..end)?.get(offset..)?.first_chunk()
    }

    fn text(&self, offset: u32, length: u32) -> Option<&[u8]> {
        self.bytes
            .get(self.text..self.xattrs)?
            .get(offset as usize..)?
            .get(..length as usize)
    }

    /// The inode with this number; 0 is the root.
    pub fn inode(&self, number: u32) -> Result<Inode<'_>, StoreError> {
        self.element::<INODE_SIZE>(0, self.entries, number)
            .and_then(|bytes| self.decode_inode(number, bytes))
            .ok_or_else(|| self.damaged(format!("inode {number} makes no sense")))
    }

    fn decode_inode(&self, number: u32, bytes: &[u8; INODE_SIZE]) -> Option<Inode<'_>> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8()?;
        reader.u8()?;
        let mode = reader.u16().filter(|mode| mode & !0o7777 == 0)?;
        let uid = reader.u32()?;
        let gid = reader.u32()?;
        let links = reader.u32()?;
        let mtime = reader.i64()?;
        let mtime_nsec = reader.u32().filter(|nsec| *nsec < 1_000_000_000)?;
        let xattrs = reader.u32()?;
        let size = reader.u64()?;
        let first = reader.u32()?;
        let second = reader.u32()?;
        let kind = match kind {
            kind::FILE if size == 0 => InodeKind::File(0, None),
            kind::FILE => {
                let object = self.element(self.objects, self.text, first)?;
                InodeKind::File(size, Some(ObjectId(*object)))
            }
            kind::DIRECTORY => InodeKind::Directory(first, second),
            kind::SYMLINK => InodeKind::Symlink(
                self.text(first, second)
                    .filter(|target| !target.is_empty() && target.len() <= MAX_PATH)?,
            ),
            kind::FIFO => InodeKind::Fifo,
            kind::DEVICE => InodeKind::Device,
            _ => return None,
        };
        Some(Inode {
            number,
            kind,
            mode,
            uid,
            gid,
            links,
            mtime,
            mtime_nsec,
            xattrs,
        })
    }

    /// Extended attributes of an inode.
    pub fn xattrs(&self, inode: &Inode<'_>) -> Result<Vec<Xattr<'_>>, StoreError> {
        if inode.xattrs == NO_XATTRS {
            return Ok(Vec::new());
        }
        self.bytes
            .get(self.xattrs..)
            .and_then(|bytes| bytes.get(inode.xattrs as usize..))
            .and_then(|bytes| decode_xattrs(&mut Reader::new(bytes)))
            .ok_or_else(|| {
                self.damaged(format!(
                    "the extended attributes of inode {} make no sense",
                    inode.number
                ))
            })
    }

    /// The directory entry with this number: name and inode.
    fn entry(&self, number: u32) -> Option<(&[u8], Inode<'_>)> {
        let bytes = self.element::<ENTRY_SIZE>(self.entries, self.objects, number)?;
        let mut reader = Reader::new(bytes);
        let inode = reader.u32()?;
        let name = self.text(reader.u32()?, reader.u32()?)?;
        let sane = !name.is_empty()
            && name.len() <= MAX_NAME
            && name != b"."
            && name != b".."
            && !name.iter().any(|&byte| byte == b'/' || byte == 0);
        sane.then_some((name, self.inode(inode).ok()?))
    }

    /// Names and inodes in a directory. Gives nothing for what is not a directory.
    pub fn children<'a>(
        &'a self,
        directory: &Inode<'_>,
    ) -> impl Iterator<Item = Result<(&'a [u8], Inode<'a>), StoreError>> + use<'a> {
        let (first, count) = match directory.kind {
            InodeKind::Directory(first, count) => (first, count),
            _ => (0, 0),
        };
        let parent = directory.number;
        (0..count).map(move |offset| {
            first
                .checked_add(offset)
                .and_then(|number| self.entry(number))
                // This is what keeps a walk from running in circles.
                .filter(|(_, inode)| {
                    inode.number > parent || !matches!(inode.kind, InodeKind::Directory(..))
                })
                .ok_or_else(|| {
                    self.damaged(format!(
                        "entry {offset} of directory {parent} makes no sense"
                    ))
                })
        })
    }

    /// The inode called `name` in a directory.
    pub fn child(
        &self,
        directory: &Inode<'_>,
        name: &[u8],
    ) -> Result<Option<Inode<'_>>, StoreError> {
        let InodeKind::Directory(first, count) = directory.kind else {
            return Ok(None);
        };
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, inode) = first
                .checked_add(middle)
                .and_then(|number| self.entry(number))
                .ok_or_else(|| self.damaged("a directory entry makes no sense"))?;
            match found.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(inode)),
            }
        }
        Ok(None)
    }

    /// Calls `visit` for every object.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> {
        self.bytes
            .get(self.objects..self.text)
            .unwrap_or_default()
            .chunks_exact(OBJECT_SIZE)
            .filter_map(|bytes| bytes.first_chunk().copied().map(ObjectId))
    }

    /// Guards a walk over everything: fails when it is deeper or longer than the file can justify
    /// (directories that share children would otherwise multiply).
    pub fn check_progress(&self, depth: usize, visited: usize) -> Result<(), StoreError> {
        if depth > MAX_DEPTH + 1 || visited > (self.objects - self.entries) / ENTRY_SIZE {
            return Err(self.damaged("its directories do not form a tree"));
        }
        Ok(())
    }
}
