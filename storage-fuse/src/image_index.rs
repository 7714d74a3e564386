//! The flattened tree of an image in one file. Its format is described in `index_file.rs`.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::digest::Digest;
use crate::flatten::flatten;
use crate::index_file::{Body, Header, InodeKind, read_head};
use crate::index_writer::write_index;
use crate::object::ObjectId;
use crate::store::{IoContext, Store, StoreError, unique_name};

/// Symbolic links followed in one path, as many as the kernel does.
const MAX_LINKS: u32 = 40;
/// Most that [`ImageIndex::read_file`] reads, in bytes.
const READ_LIMIT: u64 = 1 << 20;

/// An image's flattened tree. Opening reads the header; the tree is read when it is first needed.
#[derive(Debug)]
pub struct ImageIndex {
    file: File,
    path: PathBuf,
    header: Header,
    ids: ImageIds,
    body: OnceLock<Body>,
}

/// All owners of an image: of its files and named in its `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageIds {
    /// User IDs.
    pub uids: BTreeSet<u32>,
    /// Group IDs.
    pub gids: BTreeSet<u32>,
}

/// File name of an index below the store's root.
pub(crate) fn index_path(chain_id: &Digest) -> String {
    format!("images/{}.index", chain_id.hex())
}

impl Store {
    /// Flattens `layers` (diff IDs, lowest first), resolving whiteouts, and stores the index
    /// durably under the top chain ID, which it returns. Does nothing when it is there. Without
    /// layers it is an empty image.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the layers' entries make no tree, [`StoreError::Missing`] when
    /// the store lacks a layer.
    pub fn build_image_index(&self, layers: &[String]) -> Result<String, StoreError> {
        let layers = layers
            .iter()
            .map(|layer| Digest::parse(layer))
            .collect::<Result<Vec<_>, _>>()?;
        let chain_id = Digest::chain(&layers);
        let path = index_path(&chain_id);
        let _lock = self.lock_shared()?;
        if self.has_file(&path) {
            return Ok(chain_id.text());
        }
        let tree = flatten(self, &layers)?;
        let temporary = format!("tmp/index-{}", unique_name()?);
        let result = write_index(self, &tree, chain_id, &temporary).and_then(|()| {
            rustix::fs::renameat(self.directory(), &temporary, self.directory(), &path)
                .on("make", || self.path(&path))?;
            self.sync_directory("images")?;
            Ok(chain_id.text())
        });
        if result.is_err() {
            // What cannot be removed now is garbage that `system prune` finds.
            let _ =
                rustix::fs::unlinkat(self.directory(), &temporary, rustix::fs::AtFlags::empty());
        }
        result
    }

    /// Opens an index.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is none for that chain ID.
    pub fn open_image_index(&self, chain_id: &str) -> Result<ImageIndex, StoreError> {
        let digest = Digest::parse(chain_id)?;
        let relative = index_path(&digest);
        let file = self
            .open_file(&relative)?
            .ok_or_else(|| StoreError::Missing {
                store: self.root().to_owned(),
                what: format!("image with chain ID {chain_id}"),
            })?;
        let path = self.path(&relative);
        let (header, ids) = read_head(&file, &path, &digest)?;
        Ok(ImageIndex {
            file,
            path,
            header,
            ids,
            body: OnceLock::new(),
        })
    }
}

impl ImageIndex {
    /// Owners in it (stored in its header, so this does not walk the tree).
    pub fn ids(&self) -> ImageIds {
        self.ids.clone()
    }

    /// Sum of the file sizes in bytes.
    pub fn content_size(&self) -> u64 {
        self.header.content_size
    }

    /// Number of inodes.
    pub fn inode_count(&self) -> u64 {
        self.header.inode_count.into()
    }

    /// The content of a regular file, following symlinks inside the tree (at most 1 MiB is read).
    /// `None` when there is no such file. For `/etc/passwd` before anything is mounted.
    pub fn read_file(&self, store: &Store, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let body = self.body()?;
        let found = walk_path(
            body.inode(0)?,
            path.as_bytes(),
            |directory, name| body.child(directory, name),
            |inode| {
                Ok(match inode.kind {
                    InodeKind::Symlink(target) => Some(target.to_vec()),
                    _ => None,
                })
            },
        )?;
        match found.map(|inode| inode.kind) {
            Some(InodeKind::File(size, Some(object))) => {
                crate::object::read(store, &object, size, READ_LIMIT).map(Some)
            }
            Some(InodeKind::File(_, None)) => Ok(Some(Vec::new())),
            _ => Ok(None),
        }
    }

    /// Every object its files need.
    pub fn objects(&self) -> Result<impl Iterator<Item = ObjectId>, StoreError> {
        Ok(self.body()?.objects())
    }

    /// The tree, read on first use.
    pub(crate) fn body(&self) -> Result<&Body, StoreError> {
        if let Some(body) = self.body.get() {
            return Ok(body);
        }
        let body = Body::read(&self.file, &self.path, &self.header)?;
        Ok(self.body.get_or_init(|| body))
    }
}

/// Finds `path` below `root`, following symbolic links but never leaving the root (as in a chroot).
/// `child` looks a name up in a directory (`None` for what is not a directory), `link` gives a
/// symbolic link's target. `None`: no such file, or too many links.
pub(crate) fn walk_path<N: Clone>(
    root: N,
    path: &[u8],
    mut child: impl FnMut(&N, &[u8]) -> Result<Option<N>, StoreError>,
    mut link: impl FnMut(&N) -> Result<Option<Vec<u8>>, StoreError>,
) -> Result<Option<N>, StoreError> {
    let reversed = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|&byte| byte == b'/')
            .rev()
            .map(<[u8]>::to_vec)
            .collect()
    };
    let mut above = Vec::new();
    let mut here = root.clone();
    let mut pending = reversed(path);
    let mut links = 0;
    while let Some(name) = pending.pop() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                here = above.pop().unwrap_or_else(|| root.clone());
                continue;
            }
            _ => {}
        }
        let Some(found) = child(&here, &name)? else {
            return Ok(None);
        };
        match link(&found)? {
            None => above.push(std::mem::replace(&mut here, found)),
            Some(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Ok(None);
                }
                if target.starts_with(b"/") {
                    above.clear();
                    here = root.clone();
                }
                pending.extend(reversed(&target));
            }
        }
    }
    Ok(Some(here))
}
