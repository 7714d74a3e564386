//! Makes files that can be read by offset out of those that cannot.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::Spool;
use crate::layer_tar::{Compression, LayerError};

/// Which side failed.
pub(super) enum SpoolError {
    Read(io::Error),
    Write(io::Error),
    Layer(LayerError),
}

/// Opens without blocking on a FIFO nobody writes to and without becoming a terminal's owner.
pub(super) fn open_for_reading(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// An unnamed file in `directory`, gone when closed, however we end.
pub(crate) fn temporary(directory: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok(file.into()),
        // file systems without O_TMPFILE, e.g. NFS
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    for attempt in 0..100 {
        let name = directory.join(format!(".spool-{}-{attempt}", std::process::id()));
        match rustix::fs::open(&name, flags | OFlags::CREATE | OFlags::EXCL, mode) {
            Ok(file) => {
                std::fs::remove_file(&name)?;
                return Ok(file.into());
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// `file` itself when it is an uncompressed regular file read from its start, else a copy.
pub(super) fn seekable(mut file: File, spool: &Spool) -> Result<File, SpoolError> {
    let regular = file.metadata().map_err(SpoolError::Read)?.is_file();
    let mut start = [0; 6];
    if regular && file.stream_position().map_err(SpoolError::Read)? == 0 {
        let length = file.read_at(&mut start, 0).map_err(SpoolError::Read)?;
        let compression = Compression::detect(&start[..length]).map_err(SpoolError::Layer)?;
        if compression == Compression::None {
            return Ok(file);
        }
    }
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SpoolError::Read(error)),
        }
    }
    let compression = Compression::detect(&start[..length]).map_err(SpoolError::Layer)?;
    let input = start[..length].chain(file);
    let mut input = compression
        .decoder(BufReader::with_capacity(128 * 1024, input))
        .map_err(SpoolError::Read)?;
    let mut copy = temporary(&spool.directory).map_err(SpoolError::Write)?;
    let mut buffer = vec![0; 128 * 1024];
    let mut copied = 0u64;
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SpoolError::Read(error)),
        };
        copied += count as u64;
        if copied > spool.limit {
            return Err(SpoolError::Layer(LayerError::Limit(format!(
                "the archive has more than the {} bytes there is room for",
                spool.limit
            ))));
        }
        copy.write_all(&buffer[..count])
            .map_err(SpoolError::Write)?;
    }
    copy.seek(SeekFrom::Start(0)).map_err(SpoolError::Write)?;
    Ok(copy)
}
