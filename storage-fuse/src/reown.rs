//! Giving a tree to another slice.
//!
//! # Theory of operation
//!
//! An owner is translated from what the old maps make of it to what the new ones do; an ID that the
//! old maps do not know is left alone. POSIX ACLs name IDs, too, and are translated; so is the root
//! ID of version 3 capabilities. Times stay as they are: no step touches them.
//!
//! `chown` clears set-ID bits and file capabilities, and a crash between it and their restoration
//! must not lose them. So a first pass lists the files that have any, by inode number, in a journal
//! beside the tree (`NAME.reown`, out of any container's reach); the second pass restores from it
//! whatever it finds moved, by itself or by a pass that was cut short. The journal is removed last.
//! It holds a hash of the two maps, so that a stale one is not taken for ours.
//!
//! The caller is root of the user namespace that both maps are written in terms of.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;
use selkie_userns::{IdMap, IdMaps};

use crate::encoding::{Put, Reader};
use crate::store::{IoContext, StoreError, unique_name};
use crate::tree_walk::{Visitor, walk};

const CAPABILITY: &CStr = c"security.capability";
const ACLS: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];
const SET_IDS: u32 = 0o6000;
/// Larger than any value the kernel holds.
const XATTR_SIZE_MAX: usize = 64 * 1024;

/// Changes every owner in the tree at `root` from what `old` maps to what `new` maps (both
/// container ↔ pause namespace), keeping set-ID bits, capabilities (v3 root IDs too), ACLs and
/// times. A missing `root` is no error. Idempotent after a crash when the two maps share no outside
/// ID: already moved inodes are left.
pub fn reown_tree(root: &Path, old: &IdMaps, new: &IdMaps) -> Result<(), StoreError> {
    const ATTEMPT: &str = "change the owners in";
    let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
        return Err(Errno::INVAL).on(ATTEMPT, || root.to_owned());
    };
    let opened = rustix::fs::open(
        parent,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let parent = match opened {
        Err(Errno::NOENT) => return Ok(()),
        other => other.on(ATTEMPT, || root.to_owned())?,
    };
    match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.on(ATTEMPT, || root.to_owned())?,
    };
    // Names from a path hold no NUL.
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL);
    let name = name.on(ATTEMPT, || root.to_owned())?;
    let mut journal_name = name.to_bytes().to_vec();
    journal_name.extend_from_slice(b".reown");
    let journal_path = || root.with_file_name(std::ffi::OsStr::from_bytes(&journal_name));

    let special = match read_journal(&parent, &journal_name, old, new) {
        Some(special) => special,
        None => {
            let mut survey = Survey::default();
            walk(parent.as_fd(), name.clone(), root, &mut survey)?;
            if !survey.special.is_empty() {
                write_journal(&parent, &journal_name, &survey.special, old, new)
                    .on("write", journal_path)?;
            }
            survey.special
        }
    };
    let mut pass = Pass {
        old,
        new,
        // With disjoint maps a second visit finds nothing to do.
        seen: shares_ids(old, new).then(HashSet::new),
        special,
    };
    pass.name(parent.as_fd(), &name)
        .on(Pass::ATTEMPT, || root.to_owned())?;
    walk(parent.as_fd(), name, root, &mut pass)?;
    if !pass.special.is_empty() {
        rustix::fs::unlinkat(&parent, journal_name.as_slice(), AtFlags::empty())
            .on("remove", journal_path)?;
    }
    Ok(())
}

fn shares_ids(old: &IdMaps, new: &IdMaps) -> bool {
    let end = |first: u32, count: u32| u64::from(first) + u64::from(count);
    let overlap = |a: &IdMap, b: &IdMap| {
        a.extents().iter().any(|a| {
            b.extents().iter().any(|b| {
                u64::from(a.outside) < end(b.outside, b.count)
                    && u64::from(b.outside) < end(a.outside, a.count)
            })
        })
    };
    overlap(&old.uid, &new.uid) || overlap(&old.gid, &new.gid)
}

/// What `chown` would lose of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Special {
    mode: u32,
    /// Value of `security.capability` as it was before; empty when there is none.
    capability: Vec<u8>,
}

/// By device and inode.
type SpecialFiles = HashMap<(u64, u64), Special>;

/// First pass: finds special files.
#[derive(Default)]
struct Survey {
    special: SpecialFiles,
}

impl Visitor for Survey {
    const ATTEMPT: &'static str = "look at";

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        _: FileType,
    ) -> Result<bool, Errno> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(true),
            FileType::RegularFile => {}
            _ => return Ok(false),
        }
        let fd = open_inode(directory, name)?;
        let capability = get_xattr(fd.as_fd(), CAPABILITY)?;
        if stat.st_mode & SET_IDS != 0 || capability.is_some() {
            let special = Special {
                mode: stat.st_mode & 0o7777,
                capability: capability.unwrap_or_default(),
            };
            self.special.insert((stat.st_dev, stat.st_ino), special);
        }
        Ok(false)
    }

    fn leave(&mut self, _: BorrowedFd<'_>, _: &CStr) -> Result<bool, Errno> {
        Ok(false)
    }
}

/// Second pass: changes owners.
struct Pass<'m> {
    old: &'m IdMaps,
    new: &'m IdMaps,
    /// Inodes with several names that are done, when a second visit would move them again.
    seen: Option<HashSet<(u64, u64)>>,
    special: SpecialFiles,
}

impl Visitor for Pass<'_> {
    const ATTEMPT: &'static str = "change the owner of";

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        _: FileType,
    ) -> Result<bool, Errno> {
        self.name(directory, name)
    }

    fn leave(&mut self, _: BorrowedFd<'_>, _: &CStr) -> Result<bool, Errno> {
        Ok(false)
    }
}

impl Pass<'_> {
    /// Changes what is called `name`; true when it is a directory.
    fn name(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if matches!(kind, FileType::RegularFile | FileType::Directory) {
            let fd = open_inode(directory, name)?;
            self.inode(fd.as_fd(), kind == FileType::Directory)?;
        } else if self.is_new(&stat)
            && let Some((uid, gid)) = self.translate(&stat)
        {
            rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(kind == FileType::Directory)
    }

    /// False when a hard link has led here before.
    fn is_new(&mut self, stat: &Stat) -> bool {
        match &mut self.seen {
            Some(seen) if stat.st_nlink > 1 => seen.insert((stat.st_dev, stat.st_ino)),
            _ => true,
        }
    }

    /// The new owner, when there is one.
    fn translate(&self, stat: &Stat) -> Option<(Option<Uid>, Option<Gid>)> {
        let uid = moved(stat.st_uid, &self.old.uid, &self.new.uid);
        let gid = moved(stat.st_gid, &self.old.gid, &self.new.gid);
        (uid.is_some() || gid.is_some()).then(|| (uid.map(Uid::from_raw), gid.map(Gid::from_raw)))
    }

    /// Changes a regular file or a directory.
    fn inode(&mut self, fd: BorrowedFd<'_>, is_directory: bool) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(fd)?;
        if !is_directory && !self.is_new(&stat) {
            return Ok(());
        }
        if let Some((uid, gid)) = self.translate(&stat) {
            self.translate_acls(fd)?;
            rustix::fs::fchown(fd, uid, gid)?;
        }
        if !is_directory && let Some(special) = self.special.get(&(stat.st_dev, stat.st_ino)) {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(special.mode))?;
            if !special.capability.is_empty() {
                let value = self.translate_capability(&special.capability);
                rustix::fs::fsetxattr(fd, CAPABILITY, &value, XattrFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Translates the root ID of version 3 capabilities (`struct vfs_ns_cap_data`,
    /// linux/capability.h); as read by the caller it is in terms of its own user namespace.
    fn translate_capability(&self, value: &[u8]) -> Vec<u8> {
        let mut value = value.to_vec();
        if let Some((_, root)) = value.split_first_chunk_mut::<20>()
            && let Ok(bytes) = <[u8; 4]>::try_from(&*root)
            && let Some(id) = moved(u32::from_le_bytes(bytes), &self.old.uid, &self.new.uid)
        {
            root.copy_from_slice(&id.to_le_bytes());
        }
        value
    }

    /// Translates the IDs in POSIX ACLs (`struct posix_acl_xattr_entry`: tag and permissions `u16`,
    /// ID `u32`, behind a `u32` version). Done before the owner changes: then a pass that is cut
    /// short in between does it again, which changes nothing.
    fn translate_acls(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        for name in ACLS {
            let Some(value) = get_xattr(fd, name)? else {
                continue;
            };
            let changed = translate_acl(&value, self.old, self.new);
            if changed != value {
                rustix::fs::fsetxattr(fd, name, &changed, XattrFlags::empty())?;
            }
        }
        Ok(())
    }
}

fn translate_acl(value: &[u8], old: &IdMaps, new: &IdMaps) -> Vec<u8> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let mut reader = Reader::new(value);
    let mut changed = Vec::with_capacity(value.len());
    changed.put(reader.take(4).unwrap_or_default());
    while let (Some(tag), Some(permissions), Some(id)) = (reader.u16(), reader.u16(), reader.u32())
    {
        let translated = match tag {
            USER => moved(id, &old.uid, &new.uid),
            GROUP => moved(id, &old.gid, &new.gid),
            _ => None,
        };
        changed.put_u16(tag);
        changed.put_u16(permissions);
        changed.put_u32(translated.unwrap_or(id));
    }
    changed
}

/// What becomes of an outside ID; `None` when it stays.
fn moved(id: u32, old: &IdMap, new: &IdMap) -> Option<u32> {
    new.to_outside(old.to_inside(id)?)
        .filter(|moved| *moved != id)
}

fn open_inode(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        directory,
        name,
        // Should it have become a FIFO meanwhile, opening it does not wait.
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
}

/// `None` when the inode has no such attribute or the file system knows none.
fn get_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let mut small = [0; 256];
    match rustix::fs::fgetxattr(fd, name, &mut small) {
        Ok(length) => Ok(Some(small[..length].to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_SIZE_MAX];
            let length = rustix::fs::fgetxattr(fd, name, large.as_mut_slice())?;
            large.truncate(length);
            Ok(Some(large))
        }
        Err(errno) => Err(errno),
    }
}

/// Ties a journal to the maps it was written for.
fn maps_hash(old: &IdMaps, new: &IdMaps) -> [u8; 32] {
    let mut bytes = Vec::new();
    for map in [&old.uid, &old.gid, &new.uid, &new.gid] {
        bytes.put_u32(map.extents().len() as u32);
        for extent in map.extents() {
            bytes.put_u32(extent.inside);
            bytes.put_u32(extent.outside);
            bytes.put_u32(extent.count);
        }
    }
    *blake3::hash(&bytes).as_bytes()
}

/// Records of device `u64`, inode `u64`, mode `u32`, capability (`u16` length, bytes), between the
/// hash of the maps and a BLAKE3 of everything before. Complete once it has its name.
fn write_journal(
    parent: &OwnedFd,
    name: &[u8],
    special: &SpecialFiles,
    old: &IdMaps,
    new: &IdMaps,
) -> std::io::Result<()> {
    let mut bytes = maps_hash(old, new).to_vec();
    for ((device, inode), special) in special {
        bytes.put_u64(*device);
        bytes.put_u64(*inode);
        bytes.put_u32(special.mode);
        bytes.put_u16(special.capability.len() as u16);
        bytes.put(&special.capability);
    }
    let checksum = *blake3::hash(&bytes).as_bytes();
    bytes.put(&checksum);
    let temporary = format!("reown-{}", unique_name().map_err(std::io::Error::other)?);
    let mut file: std::fs::File = rustix::fs::openat(
        parent,
        &temporary,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )?
    .into();
    std::io::Write::write_all(&mut file, &bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(rustix::fs::renameat(parent, &temporary, parent, name)?))
        .and_then(|()| Ok(rustix::fs::fsync(parent)?))
        .inspect_err(|_| {
            // Garbage beside the tree, removed with it, if even this fails.
            let _ = rustix::fs::unlinkat(parent, &temporary, AtFlags::empty());
        })
}

/// `None` when there is no journal for these maps.
fn read_journal(parent: &OwnedFd, name: &[u8], old: &IdMaps, new: &IdMaps) -> Option<SpecialFiles> {
    let mut file: std::fs::File = rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?
    .into();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).ok()?;
    let (bytes, checksum) = bytes.split_last_chunk::<32>()?;
    let mut reader = Reader::new(bytes);
    if blake3::hash(bytes).as_bytes() != checksum || reader.array() != Some(maps_hash(old, new)) {
        return None;
    }
    let mut special = SpecialFiles::new();
    while !reader.is_empty() {
        let inode = (reader.u64()?, reader.u64()?);
        let mode = reader.u32()?;
        let capability = reader.short_bytes()?.to_vec();
        special.insert(inode, Special { mode, capability });
    }
    Some(special)
}
