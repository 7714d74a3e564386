//! Files below a directory.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Files, OpenFile, TransportError, io_error, path_is_plain};

pub(super) struct DirectoryFiles {
    directory: File,
    shown: String,
}

impl DirectoryFiles {
    pub(super) fn new(directory: File, shown: &str) -> Self {
        Self {
            directory,
            shown: shown.to_owned(),
        }
    }
}

impl Files for DirectoryFiles {
    fn open(&self, path: &str) -> Result<Option<OpenFile>, TransportError> {
        let shown = format!("{path} in {}", self.shown);
        if !path_is_plain(Path::new(path)) {
            return Ok(None);
        }
        // the directory may come from anybody: its symbolic links must not lead out of it, and a
        // FIFO in it must not stop us
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(io_error("open", &shown)(error.into())),
        };
        let metadata = file.metadata().map_err(io_error("examine", &shown))?;
        if !metadata.is_file() {
            return Ok(None);
        }
        Ok(Some(OpenFile {
            size: metadata.len(),
            reader: Box::new(file),
        }))
    }
}
