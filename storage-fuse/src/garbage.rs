//! Files of the store nothing refers to: finding and removing them.
//!
//! What is live is for the caller to say (its database knows the images). The caller takes
//! [`Store::lock_exclusive`] first and reads its database under it: otherwise an image that
//! finishes loading in between would be taken for garbage.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::{Digest, parse_hex};
use crate::layer_record::EntryReader;
use crate::object::ObjectId;
use crate::store::{ExclusiveLock, IoContext, Store, StoreError};
use crate::tmpfs_metacopy::discard_tree;
use crate::tree_name::TreeName;

/// Files of the store nothing refers to.
#[derive(Debug, Default, Clone)]
pub struct Garbage {
    /// Objects, layers, indexes, temporary files, metadata trees; absolute paths.
    pub paths: Vec<PathBuf>,
    /// Their size on disk in bytes (of directories: without what is in them).
    pub bytes: u64,
}

impl Store {
    /// What is on disk beyond what the given images (top chain IDs) and layers (diff IDs) need.
    /// Live images or layers that the store does not have are no error here.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a live layer or index cannot be read: what it needs is unknown
    /// then, so nothing may be called garbage.
    pub fn find_garbage(
        &self,
        _lock: &ExclusiveLock,
        live_images: &BTreeSet<String>,
        live_layers: &BTreeSet<String>,
    ) -> Result<Garbage, StoreError> {
        let parse = |set: &BTreeSet<String>| -> Result<HashSet<Digest>, StoreError> {
            set.iter().map(|text| Digest::parse(text)).collect()
        };
        let images = parse(live_images)?;
        let layers = parse(live_layers)?;
        let objects = self.live_objects(&images, &layers)?;
        let mut garbage = Garbage::default();
        self.sweep("tmp", &mut garbage, |_| false)?;
        self.sweep("layers", &mut garbage, |name| {
            name.strip_suffix(".entries")
                .or_else(|| name.strip_suffix(".stream"))
                .and_then(parse_hex)
                .is_some_and(|hex| layers.contains(&Digest(hex)))
        })?;
        self.sweep("images", &mut garbage, |name| {
            name.strip_suffix(".index")
                .and_then(parse_hex)
                .is_some_and(|hex| images.contains(&Digest(hex)))
        })?;
        self.sweep("trees", &mut garbage, |name| {
            TreeName::parse(name).is_some_and(|tree| images.contains(&tree.chain_id))
        })?;
        for fan in self.list("objects")?.1 {
            self.sweep(&format!("objects/{fan}"), &mut garbage, |name| {
                parse_hex(&format!("{fan}{name}"))
                    .is_some_and(|hex| objects.contains(&ObjectId(hex)))
            })?;
        }
        Ok(garbage)
    }

    /// Removes what [`Self::find_garbage`] lists, and says what it was.
    pub fn remove_garbage(
        &self,
        lock: &ExclusiveLock,
        live_images: &BTreeSet<String>,
        live_layers: &BTreeSet<String>,
    ) -> Result<Garbage, StoreError> {
        let garbage = self.find_garbage(lock, live_images, live_layers)?;
        let trees = self.path("trees");
        // In this order: layers and indexes go before the objects they name, and a layer's entries
        // before its stream, so that whoever is killed here leaves nothing that looks whole.
        for path in &garbage.paths {
            match path
                .strip_prefix(&trees)
                .ok()
                .and_then(|name| name.to_str())
            {
                Some(name) => discard_tree(self, name)?,
                None => crate::remove_tree::remove_tree(path)?,
            }
        }
        Ok(garbage)
    }

    fn live_objects(
        &self,
        images: &HashSet<Digest>,
        layers: &HashSet<Digest>,
    ) -> Result<HashSet<ObjectId>, StoreError> {
        let mut objects = HashSet::new();
        for layer in layers {
            let mut entries = match EntryReader::open(self, layer) {
                Ok(entries) => entries,
                Err(StoreError::Missing { .. }) => continue,
                Err(error) => return Err(error),
            };
            while let Some(stored) = entries.next()? {
                objects.extend(stored.object);
            }
        }
        for image in images {
            match self.open_image_index(&image.text()) {
                Ok(index) => objects.extend(index.objects()?),
                Err(StoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(objects)
    }

    /// Adds what is in `directory` and not `live`.
    fn sweep(
        &self,
        directory: &str,
        garbage: &mut Garbage,
        live: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        let (fd, names) = self.list(directory)?;
        for name in names {
            if live(&name) {
                continue;
            }
            let path = self.path(directory).join(&name);
            match rustix::fs::statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => garbage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno).on("look at", || path),
            }
            garbage.paths.push(path);
        }
        Ok(())
    }

    /// Names in a directory of the store, and the directory. Names that are not UTF-8 are not ours
    /// and are left alone.
    fn list(&self, directory: &str) -> Result<(OwnedFd, Vec<String>), StoreError> {
        let path = || self.path(directory);
        let fd = rustix::fs::openat(
            self.directory(),
            directory,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        )
        .on("open", path)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd).on("list", path)? {
            if let Ok(name) = entry.on("list", path)?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok((fd, names))
    }
}
