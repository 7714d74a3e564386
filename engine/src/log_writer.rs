//! A container's log file, in the k8s-file format: one record per line of output,
//! `TIME STREAM F|P TEXT`, where `P` marks text whose line goes on in the next record.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};

use crate::error::{Error, Result};

/// Which of a container's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As written in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Appends output to a container's log; opens it with the first byte.
#[derive(Debug)]
pub(crate) struct LogWriter {
    dir: OwnedFd,
    file: Option<OwnedFd>,
    record: Vec<u8>,
}

impl LogWriter {
    /// For `log` in a container's directory.
    pub(crate) fn new(dir: OwnedFd) -> Self {
        Self {
            dir,
            file: None,
            record: Vec::new(),
        }
    }

    /// Appends what one read gave.
    ///
    /// # Errors
    /// The file cannot be opened or written (full disk); what did not fit is lost.
    pub(crate) fn append(&mut self, stream: Stream, output: &[u8]) -> Result<()> {
        if output.is_empty() {
            return Ok(());
        }
        let failed = |errno| Error::machine("write the container's log", errno);
        let file = match &self.file {
            Some(file) => file,
            None => {
                let file = openat(
                    &self.dir,
                    "log",
                    OFlags::WRONLY
                        | OFlags::APPEND
                        | OFlags::CREATE
                        | OFlags::NOFOLLOW
                        | OFlags::CLOEXEC,
                    Mode::RUSR | Mode::WUSR,
                )
                .map_err(failed)?;
                self.file.insert(file)
            }
        };
        self.record.clear();
        format_records(jiff::Timestamp::now(), stream, output, &mut self.record);
        let mut rest = self.record.as_slice();
        while !rest.is_empty() {
            let count =
                rustix::io::retry_on_intr(|| rustix::io::write(file, rest)).map_err(failed)?;
            rest = &rest[count..];
        }
        // A burst must not stay in memory for the rest of the container's life.
        if self.record.capacity() > 64 * 1024 {
            self.record = Vec::new();
        }
        Ok(())
    }
}

fn format_records(time: jiff::Timestamp, stream: Stream, output: &[u8], records: &mut Vec<u8>) {
    let prefix = format!(
        "{} {} ",
        time.strftime("%Y-%m-%dT%H:%M:%S.%9f+00:00"),
        stream.name()
    );
    for line in output.split_inclusive(|byte| *byte == b'\n') {
        records.extend_from_slice(prefix.as_bytes());
        match line.split_last() {
            Some((b'\n', text)) => {
                records.extend_from_slice(b"F ");
                records.extend_from_slice(text);
            }
            _ => {
                records.extend_from_slice(b"P ");
                records.extend_from_slice(line);
            }
        }
        records.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_parts_of_lines() {
        let mut records = Vec::new();
        let time = jiff::Timestamp::new(1_700_000_000, 5).unwrap();
        format_records(time, Stream::Stderr, b"one\n\ntw", &mut records);
        assert_eq!(
            String::from_utf8(records).unwrap(),
            "2023-11-14T22:13:20.000000005+00:00 stderr F one\n\
             2023-11-14T22:13:20.000000005+00:00 stderr F \n\
             2023-11-14T22:13:20.000000005+00:00 stderr P tw\n"
        );
    }

    #[test]
    fn the_file_appears_with_the_first_byte() {
        let temp = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        let mut log = LogWriter::new(dir.into());
        log.append(Stream::Stdout, b"").unwrap();
        assert!(!temp.path().join("log").exists());
        log.append(Stream::Stdout, b"a").unwrap();
        log.append(Stream::Stdout, b"b\n").unwrap();
        let text = std::fs::read_to_string(temp.path().join("log")).unwrap();
        let ends: Vec<&str> = text.lines().map(|line| &line[line.len() - 10..]).collect();
        assert_eq!(ends, ["stdout P a", "stdout F b"]);
    }
}
