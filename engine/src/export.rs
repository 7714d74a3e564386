//! A directory tree as a tar stream, owners as its container sees them.
//!
//! The tree belongs to a container and may be hostile and change meanwhile. Everything is opened
//! from the tree's root with `openat2` without following any link, so nothing outside can get in.
//! What is mounted inside the tree is not entered; its mount point is written empty. Sockets have no
//! place in a tar and are left out, as by other tools.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use selkie_image::layer_tar::portable_capability;
use selkie_image::tar_writer::{Kind, Member, TarWriter};
use selkie_userns::IdMaps;

use crate::error::{Error, Result};

/// Who owns what nobody in the container owns (the kernel's overflow ID).
const NOBODY: u32 = 65534;
/// Bytes collected before a write.
const BUFFER: usize = 128 * 1024;
/// Attributes that are written, as Podman: those that mean the same elsewhere.
const CAPABILITY: &str = "security.capability";
const USER: &str = "user.";
const OVERLAY: &str = "user.overlay.";

/// Writes everything below `root`, in the order of names, without an entry for the root itself.
/// Owners are translated from what the caller sees to the IDs inside `maps`.
///
/// # Errors
/// The tree cannot be read, or `out` not written.
pub fn write_tar(root: BorrowedFd<'_>, maps: &IdMaps, out: &mut dyn Write) -> Result<()> {
    let mut export = Export {
        root,
        maps,
        tar: TarWriter::new(BufWriter::with_capacity(BUFFER, out)),
        links: HashMap::new(),
    };
    // a directory's names are pushed in reverse, so that they come off in order
    let mut pending = Vec::new();
    export.list(b"", &mut pending)?;
    while let Some(path) = pending.pop() {
        export.entry(&path, &mut pending)?;
    }
    let failed = |error: io::Error| Error::machine("write the archive", error);
    export.tar.finish().map_err(failed)?.flush().map_err(failed)
}

struct Export<'e> {
    root: BorrowedFd<'e>,
    maps: &'e IdMaps,
    tar: TarWriter<BufWriter<&'e mut dyn Write>>,
    /// First path of each file with several names, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
}

fn failed<E: std::fmt::Display>(attempt: &str, path: &[u8]) -> impl FnOnce(E) -> Error {
    let attempt = format!("{attempt} /{} of the tree", path.escape_ascii());
    move |error| Error::machine(attempt, error)
}

impl Export<'_> {
    fn open(&self, path: &[u8], flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat2(self.root, path, flags, Mode::empty(), resolve)
    }

    /// Adds the names in a directory to what is to be done. A directory that is gone has none.
    fn list(&self, path: &[u8], pending: &mut Vec<Vec<u8>>) -> Result<()> {
        let directory = match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(failed("list", path)(errno)),
        };
        let before = pending.len();
        for entry in Dir::new(directory).map_err(failed("list", path))? {
            let entry = entry.map_err(failed("list", path))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let mut child = path.to_vec();
            if !child.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(name);
            pending.push(child);
        }
        pending[before..].sort_unstable_by(|a, b| b.cmp(a));
        Ok(())
    }

    fn entry(&mut self, path: &[u8], pending: &mut Vec<Vec<u8>>) -> Result<()> {
        let found = match self.open(path, OFlags::PATH) {
            Ok(found) => found,
            // removed since it was listed
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(Errno::XDEV) => return self.mount_point(path),
            Err(errno) => return Err(failed("open", path)(errno)),
        };
        let stat = rustix::fs::fstat(&found).map_err(failed("look at", path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let xattrs = self.xattrs(path)?;
                self.write(path, Kind::Directory, &stat, &xattrs)?;
                self.list(path, pending)
            }
            FileType::RegularFile => self.file(path, &stat),
            FileType::Symlink => {
                if let Some(first) = self.earlier_name(path, &stat) {
                    return self.write(path, Kind::HardLink(&first), &stat, &BTreeMap::new());
                }
                let target = rustix::fs::readlinkat(&found, "", Vec::new());
                let target = target.map_err(failed("read the link", path))?;
                let kind = Kind::Symlink(target.to_bytes());
                self.write(path, kind, &stat, &BTreeMap::new())
            }
            FileType::Fifo => self.write(path, Kind::Fifo, &stat, &BTreeMap::new()),
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                let major = rustix::fs::major(stat.st_rdev);
                let minor = rustix::fs::minor(stat.st_rdev);
                let kind = match kind {
                    FileType::BlockDevice => Kind::BlockDevice(major, minor),
                    _ => Kind::CharacterDevice(major, minor),
                };
                self.write(path, kind, &stat, &BTreeMap::new())
            }
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    /// What lies under a mount cannot be seen from here: an empty directory or file takes its place.
    fn mount_point(&mut self, path: &[u8]) -> Result<()> {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = match slash {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let parent = self
            .open(parent, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(failed("open", parent))?;
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("look at", path))?;
        let (kind, mode) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => (Kind::Directory, 0o755),
            _ => (Kind::File(0), 0o644),
        };
        let no_xattrs = BTreeMap::new();
        let member = Member {
            mode,
            uid: 0,
            gid: 0,
            ..self.member(path, kind, &stat, &no_xattrs)
        };
        self.tar.member(&member).map_err(failed("write", path))
    }

    fn file(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        if let Some(first) = self.earlier_name(path, stat) {
            return self.write(path, Kind::HardLink(&first), stat, &BTreeMap::new());
        }
        // without waiting, should it have become a pipe
        let file = match self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(failed("open", path)(errno)),
        };
        let stat = rustix::fs::fstat(&file).map_err(failed("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let xattrs = read_xattrs(file.as_fd(), path)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let member = self.member(path, Kind::File(size), &stat, &xattrs);
        let mut content = Padded {
            file: file.into(),
            missing: size,
        };
        self.tar
            .file(&member, &mut content)
            .map_err(failed("copy", path))
    }

    /// The path under which a file was written already, if it was.
    fn earlier_name(&mut self, path: &[u8], stat: &Stat) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&identity) {
            return Some(first.clone());
        }
        self.links.insert(identity, path.to_vec());
        None
    }

    fn xattrs(&self, directory: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        match self.open(directory, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => read_xattrs(fd.as_fd(), directory),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(BTreeMap::new()),
            Err(errno) => Err(failed("open", directory)(errno)),
        }
    }

    fn member<'m>(
        &self,
        path: &'m [u8],
        kind: Kind<'m>,
        stat: &Stat,
        xattrs: &'m BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Member<'m> {
        Member {
            path,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: self.maps.uid.to_inside(stat.st_uid).unwrap_or(NOBODY),
            gid: self.maps.gid.to_inside(stat.st_gid).unwrap_or(NOBODY),
            mtime: stat.st_mtime,
            // a PAX header for nearly every file would double the headers; Podman drops them too
            mtime_nsec: 0,
            xattrs,
        }
    }

    fn write(
        &mut self,
        path: &[u8],
        kind: Kind<'_>,
        stat: &Stat,
        xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<()> {
        let member = self.member(path, kind, stat, xattrs);
        self.tar.member(&member).map_err(failed("write", path))
    }
}

fn read_xattrs(fd: BorrowedFd<'_>, path: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut xattrs = BTreeMap::new();
    let mut names = Vec::new();
    loop {
        match rustix::fs::flistxattr(fd, &mut names) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(xattrs),
            Ok(length) if length <= names.len() => {
                names.truncate(length);
                break;
            }
            // the first call asks for the length; it may grow until the second
            Ok(length) => names.resize(length, 0),
            Err(Errno::RANGE) => names.clear(),
            Err(errno) => return Err(failed("list attributes of", path)(errno)),
        }
    }
    let mut value = vec![0; 64 * 1024];
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let Ok(text) = std::str::from_utf8(name) else {
            continue; // neither of the two kinds
        };
        if text != CAPABILITY && (!text.starts_with(USER) || text.starts_with(OVERLAY)) {
            continue;
        }
        let length = match rustix::fs::fgetxattr(fd, text, &mut value[..]) {
            Ok(length) => length,
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(failed("read an attribute of", path)(errno)),
        };
        let value = &value[..length];
        let value = if text == CAPABILITY {
            match portable_capability(value) {
                Some(value) => value,
                None => continue, // the kernel would not honour it either
            }
        } else {
            value.to_vec()
        };
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

/// A file of the length it had when its header was written: zeros follow when it has shrunk since,
/// as with other tools.
struct Padded {
    file: File,
    missing: u64,
}

impl Read for Padded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.missing).unwrap_or(usize::MAX);
        let wanted = wanted.min(buffer.len());
        let buffer = &mut buffer[..wanted];
        let count = match self.file.read(buffer)? {
            0 => {
                buffer.fill(0);
                wanted
            }
            count => count,
        };
        self.missing -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use selkie_image::layer_tar::{EntryKind, LayerEntry, LayerSink, Limits, SinkError, read_tar};
    use selkie_userns::IdMap;

    use super::*;

    #[derive(Default)]
    struct Entries(Vec<(LayerEntry, Vec<u8>)>);

    impl LayerSink for Entries {
        fn raw(&mut self, _: &[u8]) -> std::result::Result<(), SinkError> {
            Ok(())
        }
        fn entry(
            &mut self,
            entry: LayerEntry,
            _: Option<&[(u64, u64)]>,
            content: &mut dyn Read,
        ) -> std::result::Result<(), SinkError> {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            self.0.push((entry, bytes));
            Ok(())
        }
    }

    fn export(root: &std::path::Path, maps: &IdMaps) -> Vec<(LayerEntry, Vec<u8>)> {
        let root = File::open(root).unwrap();
        let mut tar = Vec::new();
        write_tar(root.as_fd(), maps, &mut tar).unwrap();
        let mut entries = Entries::default();
        read_tar(&mut &tar[..], &Limits::default(), &mut entries).unwrap();
        entries.0
    }

    #[test]
    fn a_tree_is_written_in_order_with_links_and_inside_owners() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        let outside = temp.path().join("outside");
        std::fs::create_dir_all(root.join("b/deep")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "secret").unwrap();
        std::fs::write(root.join("b/file"), "content").unwrap();
        let mode = std::fs::Permissions::from_mode(0o4750);
        std::fs::set_permissions(root.join("b/file"), mode).unwrap();
        std::fs::hard_link(root.join("b/file"), root.join("c")).unwrap();
        symlink(&outside, root.join("a")).unwrap();
        symlink("../../..", root.join("b/deep/up")).unwrap();
        let fifo = rustix::fs::CWD;
        rustix::fs::mkfifoat(fifo, root.join("z"), Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();

        let (uid, gid) = {
            let user = (rustix::process::geteuid(), rustix::process::getegid());
            (user.0.as_raw(), user.1.as_raw())
        };
        let maps = IdMaps {
            uid: IdMap::single(33, uid, 1).unwrap(),
            gid: IdMap::single(7, gid + 1, 1).unwrap(),
        };
        let entries = export(&root, &maps);
        let seen: Vec<_> = entries
            .iter()
            .map(|(entry, _)| std::str::from_utf8(&entry.path).unwrap())
            .collect();
        assert_eq!(seen, ["a", "b", "b/deep", "b/deep/up", "b/file", "c", "z"]);
        let outside = outside.into_os_string().into_encoded_bytes();
        assert_eq!(entries[0].0.kind, EntryKind::Symlink { target: outside });
        let (file, content) = &entries[4];
        assert_eq!(content, b"content");
        assert_eq!(file.mode, 0o4750);
        // the map knows the owner, but not the group
        assert_eq!((file.uid, file.gid), (33, NOBODY));
        let target = b"b/file".to_vec();
        assert_eq!(entries[5].0.kind, EntryKind::HardLink { target });
    }

    #[test]
    fn a_file_that_shrank_is_filled_up() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let mut read = Vec::new();
        Padded { file, missing: 5 }.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"abc\0\0");
    }
}
