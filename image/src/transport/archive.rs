//! Files inside a tar, found by one scan of its headers and read by offset.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{Files, OpenFile, TransportError, io_error};
use crate::layer_tar::LayerError;
use crate::layer_tar::scan::{ArchiveMember, MemberKind, next_member};

/// Most files in an archive of images.
const MAX_FILES: usize = 100_000;
/// Longest chain of links that is followed.
const MAX_LINKS: usize = 8;

pub(super) struct ArchiveFiles {
    file: Arc<File>,
    members: HashMap<Vec<u8>, Location>,
    shown: String,
}

enum Location {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

impl ArchiveFiles {
    /// Reads all headers.
    pub(super) fn scan(file: File, shown: &str) -> Result<Self, TransportError> {
        let refused = |source| TransportError::Archive {
            path: shown.to_owned(),
            source,
        };
        let length = file.metadata().map_err(io_error("examine", shown))?.len();
        let mut members = HashMap::new();
        let mut offset = 0;
        while let Some((member, next)) = next_member(&file, length, offset).map_err(refused)? {
            offset = next;
            let ArchiveMember { path, kind } = member;
            let location = match kind {
                MemberKind::File { offset, size } => Location::File { offset, size },
                MemberKind::Link(target) => Location::Link(target),
                MemberKind::Other => continue,
            };
            if members.len() >= MAX_FILES {
                return Err(refused(LayerError::Limit(format!(
                    "the archive has more than {MAX_FILES} files; this is no archive of images"
                ))));
            }
            if members.insert(path.clone(), location).is_some() {
                return Err(TransportError::Damaged {
                    path: shown.to_owned(),
                    file: path.escape_ascii().to_string(),
                    what: "is in it twice".to_owned(),
                });
            }
        }
        Ok(Self {
            file: Arc::new(file),
            members,
            shown: shown.to_owned(),
        })
    }
}

impl Files for ArchiveFiles {
    fn open(&self, path: &str) -> Result<Option<OpenFile>, TransportError> {
        let mut path = path.as_bytes();
        for _ in 0..MAX_LINKS {
            match self.members.get(path) {
                None => return Ok(None),
                Some(Location::Link(target)) => path = target,
                Some(Location::File { offset, size }) => {
                    return Ok(Some(OpenFile {
                        size: *size,
                        reader: Box::new(Section {
                            file: Arc::clone(&self.file),
                            offset: *offset,
                            remaining: *size,
                        }),
                    }));
                }
            }
        }
        Err(TransportError::Damaged {
            path: self.shown.clone(),
            file: path.escape_ascii().to_string(),
            what: "is a link that leads in a circle".to_owned(),
        })
    }
}

/// A part of a file, with a position of its own.
struct Section {
    file: Arc<File>,
    offset: u64,
    remaining: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(wanted);
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if count == 0 {
            // it was long enough when it was scanned
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}
