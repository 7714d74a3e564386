//! Reading a container's log (k8s-file format, see `log_writer`): from a time, the last so many lines,
//! and on as the container goes on writing.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::time::Duration;

use jiff::Timestamp;

use crate::Engine;
use crate::container::ContainerId;
use crate::error::{Error, Result};
use crate::state::Observed;

pub use crate::log_writer::Stream;

/// Which records are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container stops.
    pub follow: bool,
    /// None older than this.
    pub since: Option<Timestamp>,
    /// None newer than this.
    pub until: Option<Timestamp>,
    /// Only the last so many lines of what is there already.
    pub tail: Option<usize>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// When it was written.
    pub time: Timestamp,
    /// To which stream.
    pub stream: Stream,
    /// The text, with its newline when it ends a line.
    pub text: Vec<u8>,
}

/// How often a followed log is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Gives a container's log record by record.
#[derive(Debug)]
pub struct LogReader<'e> {
    engine: &'e Engine,
    id: ContainerId,
    options: LogOptions,
    file: Option<BufReader<File>>,
    /// What there is of a record whose end is not written yet.
    partial: Vec<u8>,
}

impl Engine {
    /// Opens a container's log.
    ///
    /// # Errors
    /// `NotFound`; the file cannot be read.
    pub fn logs(&self, id: &ContainerId, options: LogOptions) -> Result<LogReader<'_>> {
        self.container(id)?;
        let mut reader = LogReader {
            engine: self,
            id: id.clone(),
            options,
            file: None,
            partial: Vec::new(),
        };
        reader.open()?;
        if let (Some(lines), Some(file)) = (options.tail, &mut reader.file) {
            let start = start_of_tail(file.get_mut(), lines)
                .map_err(|error| Error::machine("read the container's log", error))?;
            file.seek(SeekFrom::Start(start))
                .map_err(|error| Error::machine("read the container's log", error))?;
        }
        Ok(reader)
    }
}

impl LogReader<'_> {
    /// The next record; `None` at the end, which with `follow` is the end of the container.
    ///
    /// # Errors
    /// The file cannot be read. Records that are none (cut short by a full disk) are skipped.
    pub fn next_record(&mut self) -> Result<Option<LogRecord>> {
        loop {
            // Asked before reading: what is written until the end is read in the rounds after.
            let running = self.options.follow && self.is_running()?;
            while let Some(line) = self.next_line()? {
                let Some(record) = parse_record(&line) else {
                    continue;
                };
                if self.options.since.is_some_and(|since| record.time < since) {
                    continue;
                }
                if self.options.until.is_some_and(|until| record.time > until) {
                    return Ok(None);
                }
                return Ok(Some(record));
            }
            let is_over = self
                .options
                .until
                .is_some_and(|until| Timestamp::now() > until);
            if !running || is_over {
                return Ok(None);
            }
            std::thread::sleep(INTERVAL);
        }
    }

    fn is_running(&self) -> Result<bool> {
        Ok(matches!(
            self.engine.observe(&self.id)?,
            Observed::Running(_)
        ))
    }

    /// The log appears with the container's first output.
    fn open(&mut self) -> Result<()> {
        let path = self.engine.log_path(&self.id);
        match File::open(&path) {
            Ok(file) => self.file = Some(BufReader::with_capacity(64 * 1024, file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::machine(format!("open {}", path.display()), error));
            }
        }
        Ok(())
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>> {
        if self.file.is_none() {
            self.open()?;
        }
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        file.read_until(b'\n', &mut self.partial)
            .map_err(|error| Error::machine("read the container's log", error))?;
        if self.partial.last() != Some(&b'\n') {
            return Ok(None);
        }
        self.partial.pop();
        Ok(Some(std::mem::take(&mut self.partial)))
    }
}

/// `TIME STREAM F|P TEXT`.
fn parse_record(line: &[u8]) -> Option<LogRecord> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let ends_line = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    let mut text = parts.next()?.to_vec();
    if ends_line {
        text.push(b'\n');
    }
    Some(LogRecord { time, stream, text })
}

/// Where the last `lines` lines of the container begin. Its lines end in `F` records; text after the
/// last of them is a line too.
fn start_of_tail(file: &mut File, lines: usize) -> std::io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    // Backwards by blocks, until enough lines are certain to be in `text`.
    let mut start = end;
    let mut text: Vec<u8> = Vec::new();
    loop {
        let records: Vec<(usize, &[u8])> = record_starts(&text, start == 0);
        let mut wanted = lines;
        // The newest record belongs to the last line, whether it ends it or not.
        for (index, (_, record)) in records.iter().enumerate().rev() {
            let is_newest = index + 1 == records.len();
            if !is_newest && ends_line(record) {
                wanted -= 1;
                if wanted == 0 {
                    return Ok(start + records[index + 1].0 as u64);
                }
            }
        }
        if start == 0 {
            return Ok(0);
        }
        let block = BLOCK.min(start);
        start -= block;
        file.seek(SeekFrom::Start(start))?;
        let mut longer = vec![0; block as usize];
        file.read_exact(&mut longer)?;
        longer.append(&mut text);
        text = longer;
    }
}

/// Each whole record in `text` with its offset; the first bytes are one only when `from_start`.
fn record_starts(text: &[u8], from_start: bool) -> Vec<(usize, &[u8])> {
    let mut offset = 0;
    let mut records = Vec::new();
    for (index, record) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if index > 0 || from_start {
            records.push((offset, record));
        }
        offset += record.len();
    }
    records
}

fn ends_line(record: &[u8]) -> bool {
    record
        .split(|byte| *byte == b' ')
        .nth(2)
        .is_some_and(|tag| tag == b"F" || tag == b"F\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[test]
    fn records_are_parsed_and_damaged_ones_refused() {
        let record = parse_record(b"2023-11-14T22:13:20.000000005+00:00 stderr P a b ").unwrap();
        assert_eq!(record.stream, Stream::Stderr);
        assert_eq!(record.text, b"a b ");
        assert_eq!(record.time.as_nanosecond(), 1_700_000_000_000_000_005);
        let empty = parse_record(b"2023-11-14T22:13:20.000000005+00:00 stdout F ").unwrap();
        assert_eq!(empty.text, b"\n");
        for bad in [
            &b""[..],
            b"x",
            b"2023-11-14T22:13:20Z stdout F",
            b"2023-11-14T22:13:20Z stdin F x",
            b"2023-11-14T22:13:20Z stdout X x",
            b"yesterday stdout F x",
        ] {
            assert_eq!(parse_record(bad), None);
        }
    }

    fn tail_text(records: &[(bool, usize)], lines: usize) -> (Vec<u8>, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        let mut all: Vec<Vec<u8>> = Vec::new();
        for (index, (full, length)) in records.iter().enumerate() {
            let tag = if *full { "F" } else { "P" };
            let text = format!("{index}{}", "x".repeat(*length));
            writeln!(file, "2023-11-14T22:13:20Z stdout {tag} {text}").unwrap();
            all.push(text.into_bytes());
        }
        let start = start_of_tail(&mut file, lines).unwrap();
        file.seek(SeekFrom::Start(start)).unwrap();
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        let got = rest
            .split(|byte| *byte == b'\n')
            .filter_map(parse_record)
            .flat_map(|record| record.text)
            .collect();
        // The same by the obvious way: put the text together, cut it into lines, take the last.
        let whole: Vec<u8> = all
            .iter()
            .zip(records)
            .flat_map(|(text, (full, _))| text.iter().copied().chain(full.then_some(b'\n')))
            .collect();
        let parts: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        let expected = parts[parts.len().saturating_sub(lines)..].concat();
        (got, expected)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_tail_is_the_last_lines(
            records in proptest::collection::vec((any::<bool>(), 0usize..40_000), 0..12),
            lines in 0usize..8,
        ) {
            let (got, expected) = tail_text(&records, lines);
            prop_assert_eq!(got, expected);
        }
    }
}
