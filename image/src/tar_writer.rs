//! Writes tar streams: ustar headers, PAX records where those do not suffice.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

const BLOCK: usize = 512;
/// Largest number of 7 and of 11 octal digits.
const MAX_OCTAL_7: u64 = 0o777_7777;
const MAX_OCTAL_11: u64 = 0o777_7777_7777;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'m> {
    /// Regular file of this many bytes.
    File(u64),
    /// Directory.
    Directory,
    /// Symbolic link to this target.
    Symlink(&'m [u8]),
    /// Hard link to an earlier member of this path.
    HardLink(&'m [u8]),
    /// Character device (major, minor).
    CharacterDevice(u32, u32),
    /// Block device (major, minor).
    BlockDevice(u32, u32),
    /// FIFO.
    Fifo,
}

/// One member's header.
#[derive(Debug, Clone, Copy)]
pub struct Member<'m> {
    /// Relative path; a directory's gets its final slash here.
    pub path: &'m [u8],
    /// What it is.
    pub kind: Kind<'m>,
    /// Permission, set-ID and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since the epoch.
    pub mtime: i64,
    /// Nanoseconds of it; not zero costs a PAX record.
    pub mtime_nsec: u32,
    /// Extended attributes, written as `SCHILY.xattr.NAME`.
    pub xattrs: &'m BTreeMap<Vec<u8>, Vec<u8>>,
}

static NO_XATTRS: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();

impl<'m> Member<'m> {
    /// A read-only file of root's at time 0, as archives of images hold.
    pub fn plain_file(path: &'m str, size: u64) -> Self {
        Self {
            path: path.as_bytes(),
            kind: Kind::File(size),
            mode: 0o444,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            xattrs: &NO_XATTRS,
        }
    }
}

/// Writes members one after the other.
#[derive(Debug)]
pub struct TarWriter<W: Write> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    /// Starts a stream.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// A member without content, or an empty file.
    pub fn member(&mut self, member: &Member<'_>) -> io::Result<()> {
        self.file(member, &mut io::empty())
    }

    /// A file and its content; fails when `content` is shorter than announced, and leaves in it
    /// what is beyond.
    pub fn file(&mut self, member: &Member<'_>, content: &mut dyn Read) -> io::Result<()> {
        self.file_with(member, |out| {
            let Kind::File(size) = member.kind else {
                return Ok(());
            };
            io::copy(&mut content.take(size), out).map(drop)
        })
    }

    /// A file whose content `write` produces: exactly as many bytes as announced.
    pub fn file_with(
        &mut self,
        member: &Member<'_>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        self.header(member)?;
        let size = match member.kind {
            Kind::File(size) => size,
            _ => 0,
        };
        let mut counted = Counted {
            out: &mut self.out,
            remaining: size,
        };
        write(&mut counted)?;
        if counted.remaining > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{} shrank by {} bytes while it was read",
                    member.path.escape_ascii(),
                    counted.remaining
                ),
            ));
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        // less than a block
        self.out.write_all(&[0; BLOCK][..padding as usize])
    }

    /// Writes the end mark and gives the stream back.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn header(&mut self, member: &Member<'_>) -> io::Result<()> {
        let mut records = Vec::new();
        let mut path = member.path.to_vec();
        if member.kind == Kind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        if path.len() > 100 {
            record(&mut records, b"path", &path);
        }
        let (flag, link, size, device) = match member.kind {
            Kind::File(size) => (b'0', &b""[..], size, (0, 0)),
            Kind::HardLink(target) => (b'1', target, 0, (0, 0)),
            Kind::Symlink(target) => (b'2', target, 0, (0, 0)),
            Kind::CharacterDevice(major, minor) => (b'3', &b""[..], 0, (major, minor)),
            Kind::BlockDevice(major, minor) => (b'4', &b""[..], 0, (major, minor)),
            Kind::Directory => (b'5', &b""[..], 0, (0, 0)),
            Kind::Fifo => (b'6', &b""[..], 0, (0, 0)),
        };
        if link.len() > 100 {
            record(&mut records, b"linkpath", link);
        }
        let large = |value: u64, max: u64, key: &[u8], records: &mut Vec<u8>| {
            if value > max {
                record(records, key, value.to_string().as_bytes());
            }
        };
        large(size, MAX_OCTAL_11, b"size", &mut records);
        large(member.uid.into(), MAX_OCTAL_7, b"uid", &mut records);
        large(member.gid.into(), MAX_OCTAL_7, b"gid", &mut records);
        let whole_mtime = u64::try_from(member.mtime)
            .ok()
            .filter(|time| *time <= MAX_OCTAL_11);
        if whole_mtime.is_none() || member.mtime_nsec > 0 {
            record(&mut records, b"mtime", pax_time(member).as_bytes());
        }
        for (name, value) in member.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        if !records.is_empty() {
            let mut header = Header::new(b"PaxHeaders/0", b'x', 0o644);
            header.octal(124, 12, records.len() as u64);
            self.out.write_all(&header.finish())?;
            records.resize(records.len().next_multiple_of(BLOCK), 0);
            self.out.write_all(&records)?;
        }
        let mut header = Header::new(&path, flag, member.mode & 0o7777);
        // what a PAX record says is left at the largest value that fits, for readers without PAX
        header.octal(108, 8, u64::from(member.uid).min(MAX_OCTAL_7));
        header.octal(116, 8, u64::from(member.gid).min(MAX_OCTAL_7));
        header.octal(124, 12, size.min(MAX_OCTAL_11));
        header.octal(136, 12, whole_mtime.unwrap_or(0));
        let link = &link[..link.len().min(100)];
        header.0[157..157 + link.len()].copy_from_slice(link);
        header.octal(329, 8, u64::from(device.0).min(MAX_OCTAL_7));
        header.octal(337, 8, u64::from(device.1).min(MAX_OCTAL_7));
        self.out.write_all(&header.finish())
    }
}

/// The reverse of how negative times are stored: `-2 s + 0.5·10⁹ ns` is `-1.5`.
fn pax_time(member: &Member<'_>) -> String {
    let total = i128::from(member.mtime) * 1_000_000_000 + i128::from(member.mtime_nsec);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    let (seconds, nanoseconds) = (total / 1_000_000_000, total % 1_000_000_000);
    if nanoseconds == 0 {
        return format!("{sign}{seconds}");
    }
    format!("{sign}{seconds}.{nanoseconds:09}")
}

/// Appends one PAX record, whose length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut digits = 1;
    while (rest + digits).to_string().len() > digits {
        digits += 1;
    }
    records.extend_from_slice(format!("{} ", rest + digits).as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

struct Header([u8; BLOCK]);

impl Header {
    fn new(path: &[u8], flag: u8, mode: u32) -> Self {
        let mut header = Self([0; BLOCK]);
        let path = &path[..path.len().min(100)];
        header.0[..path.len()].copy_from_slice(path);
        header.0[156] = flag;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header.octal(100, 8, mode.into());
        for (at, width) in [(108, 8), (116, 8), (124, 12), (136, 12)] {
            header.octal(at, width, 0);
        }
        header
    }

    fn octal(&mut self, at: usize, width: usize, value: u64) {
        let text = format!("{value:0digits$o}\0", digits = width - 1);
        self.0[at..at + width].copy_from_slice(text.as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

struct Counted<'c> {
    out: &'c mut dyn Write,
    remaining: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.remaining {
            return Err(io::Error::other(
                "a file grew while it was read into an archive",
            ));
        }
        let count = self.out.write(bytes)?;
        self.remaining -= count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer_tar::{EntryKind, LayerEntry, LayerSink, Limits, SinkError, read_tar};

    #[derive(Default)]
    struct Entries(Vec<(LayerEntry, Vec<u8>)>);

    impl LayerSink for Entries {
        fn raw(&mut self, _: &[u8]) -> Result<(), SinkError> {
            Ok(())
        }
        fn entry(
            &mut self,
            entry: LayerEntry,
            _: Option<&[(u64, u64)]>,
            content: &mut dyn Read,
        ) -> Result<(), SinkError> {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            self.0.push((entry, bytes));
            Ok(())
        }
    }

    fn read_back(stream: &[u8]) -> Vec<(LayerEntry, Vec<u8>)> {
        let mut entries = Entries::default();
        let mut stream = stream;
        read_tar(&mut stream, &Limits::default(), &mut entries).unwrap();
        entries.0
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_an_error() {
        let mut writer = TarWriter::new(Vec::new());
        let member = Member::plain_file("x", 10);
        assert!(writer.file(&member, &mut &b"short"[..]).is_err());
        let grown = writer.file_with(&member, |out| out.write_all(&[0; 11]));
        assert!(grown.is_err());
    }

    #[test]
    fn large_numbers_and_long_names_survive() {
        let long = b"d/".repeat(120);
        let xattrs = BTreeMap::from([(b"user.x".to_vec(), b"a\n=\0".to_vec())]);
        let member = Member {
            path: &long,
            kind: Kind::Directory,
            mode: 0o7755,
            uid: 4_000_000_000,
            gid: 3_000_000,
            mtime: -2,
            mtime_nsec: 500_000_000,
            xattrs: &xattrs,
        };
        let link = Member {
            path: b"link",
            kind: Kind::Symlink(&long),
            ..Member::plain_file("", 0)
        };
        let mut writer = TarWriter::new(Vec::new());
        writer.member(&member).unwrap();
        writer.member(&link).unwrap();
        let entries = read_back(&writer.finish().unwrap());
        let entry = &entries[0].0;
        assert_eq!(entry.path, long[..long.len() - 1]);
        assert_eq!((entry.uid, entry.gid), (4_000_000_000, 3_000_000));
        assert_eq!((entry.mtime, entry.mtime_nsec), (-2, 500_000_000));
        assert_eq!(entry.mode, 0o7755);
        assert_eq!(entry.xattrs, xattrs);
        assert_eq!(entries[1].0.kind, EntryKind::Symlink { target: long });
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            path in "[a-z]{1,3}(/[a-zé]{1,80}){0,4}",
            content: Vec<u8>,
            mode in 0u32..0o10000,
            uid in 0..u32::MAX,
            mtime: i32,
            mtime_nsec in 0u32..1_000_000_000,
        ) {
            let member = Member {
                path: path.as_bytes(),
                kind: Kind::File(content.len() as u64),
                mode,
                uid,
                gid: uid / 2,
                mtime: mtime.into(),
                mtime_nsec,
                xattrs: &NO_XATTRS,
            };
            let mut writer = TarWriter::new(Vec::new());
            writer.file(&member, &mut &content[..]).unwrap();
            let entries = read_back(&writer.finish().unwrap());
            let (entry, read) = &entries[0];
            prop_assert_eq!(&entry.path, path.as_bytes());
            prop_assert_eq!(read, &content);
            prop_assert_eq!((entry.mode, entry.uid, entry.gid), (mode, uid, uid / 2));
            prop_assert_eq!((entry.mtime, entry.mtime_nsec), (mtime.into(), mtime_nsec));
        }
    }
}
