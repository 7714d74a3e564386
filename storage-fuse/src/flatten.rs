//! Putting layers on top of each other: one tree from many, as the OCI image specification
//! (`layer.md`) has it.
//!
//! Whiteouts and opaque directories of a layer act on the layers below it, wherever they stand in
//! the archive, so they are applied in a first pass. Then its entries are added in order; of
//! duplicates the last wins, as when an archive is extracted. No symbolic link is ever followed: an
//! entry below a link that its own layer made is refused; a link or file of a lower layer in that
//! place gives way to a directory, as it would under an overlay of extracted layers.

use std::collections::{BTreeMap, HashMap};

use crate::digest::Digest;
use crate::image_index::walk_path;
use crate::index_file::NO_XATTRS;
use crate::layer::{MAX_ENTRIES, NewEntry, NewEntryKind, check_entry};
use crate::layer_record::{EntryReader, StoredEntry, encode_xattrs};
use crate::object::ObjectId;
use crate::store::{Store, StoreError};

/// Bytes of all names, link targets and extended attributes of an image, so that a hostile one
/// cannot fill the memory.
const MAX_TEXT: usize = 48 << 20;

/// Index of a node in [`Tree::nodes`].
pub(crate) type NodeId = u32;

/// The root's.
pub(crate) const ROOT: NodeId = 0;

/// A flattened image in memory.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Replaced and removed nodes stay here, unreachable.
    nodes: Vec<Node>,
    /// Encoded sets of extended attributes, each once.
    pub xattrs: Vec<u8>,
    known_xattrs: HashMap<Vec<u8>, u32>,
    /// Number of the layer being added.
    layer: u32,
    text: usize,
}

/// One inode.
#[derive(Debug)]
pub(crate) struct Node {
    pub uid: u32,
    pub gid: u32,
    pub mode: u16,
    pub mtime: i64,
    pub mtime_nsec: u32,
    /// Offset in [`Tree::xattrs`] or [`NO_XATTRS`].
    pub xattrs: u32,
    /// The layer it comes from.
    layer: u32,
    pub kind: NodeKind,
}

/// What an inode is.
#[derive(Debug)]
pub(crate) enum NodeKind {
    File(u64, Option<ObjectId>),
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    Symlink(Box<[u8]>),
    Fifo,
    Device,
}

impl NodeKind {
    fn name(&self) -> &'static str {
        match self {
            NodeKind::File(..) => "a file",
            NodeKind::Directory(_) => "a directory",
            NodeKind::Symlink(_) => "a symbolic link",
            NodeKind::Fifo => "a FIFO",
            NodeKind::Device => "a device",
        }
    }
}

/// Flattens stored layers, lowest first.
pub(crate) fn flatten(store: &Store, layers: &[Digest]) -> Result<Tree, StoreError> {
    let mut tree = Tree::new();
    for layer in layers {
        tree.layer += 1;
        let mut entries = EntryReader::open(store, layer)?;
        if entries.header.has_whiteouts {
            while let Some(stored) = entries.next()? {
                tree.hide(&stored.entry);
            }
            entries = EntryReader::open(store, layer)?;
        }
        while let Some(stored) = entries.next()? {
            let path = stored.entry.path.clone();
            check_entry(&stored.entry)
                .and_then(|()| tree.add(stored))
                .map_err(|problem| {
                    StoreError::Invalid(format!(
                        "entry `{}` of layer {}: {problem}",
                        path.escape_ascii(),
                        layer.text()
                    ))
                })?;
        }
    }
    Ok(tree)
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    // An empty path is the root itself.
    path.split(|&byte| byte == b'/')
        .filter(|component| !component.is_empty())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

impl Tree {
    fn new() -> Self {
        Self {
            nodes: vec![Node {
                uid: 0,
                gid: 0,
                mode: 0o755,
                mtime: 0,
                mtime_nsec: 0,
                xattrs: NO_XATTRS,
                layer: 0,
                kind: NodeKind::Directory(BTreeMap::new()),
            }],
            xattrs: Vec::new(),
            known_xattrs: HashMap::new(),
            layer: 0,
            text: 0,
        }
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// Nodes ever made; the reachable ones are fewer.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    fn children(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, NodeId>> {
        match &self.node(id).kind {
            NodeKind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Box<[u8]>, NodeId>> {
        match &mut self.nodes[id as usize].kind {
            NodeKind::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// Finds a path without following links.
    fn find(&self, path: &[u8]) -> Option<NodeId> {
        components(path).try_fold(ROOT, |id, name| self.children(id)?.get(name).copied())
    }

    /// Finds a file for its content, following links inside the tree.
    pub fn find_file(&self, path: &[u8]) -> Result<Option<(u64, ObjectId)>, StoreError> {
        let found = walk_path(
            ROOT,
            path,
            |&id, name| {
                Ok(self
                    .children(id)
                    .and_then(|children| children.get(name).copied()))
            },
            |&id| {
                Ok(match &self.node(id).kind {
                    NodeKind::Symlink(target) => Some(target.to_vec()),
                    _ => None,
                })
            },
        )?;
        Ok(found.and_then(|id| match self.node(id).kind {
            NodeKind::File(size, Some(object)) => Some((size, object)),
            _ => None,
        }))
    }

    /// First pass: whiteouts and opaque directories.
    fn hide(&mut self, entry: &NewEntry) {
        match entry.kind {
            NewEntryKind::Whiteout => {
                let (parent, name) = split(&entry.path);
                if let Some(children) = self.find(parent).and_then(|id| self.children_mut(id)) {
                    children.remove(name);
                }
            }
            NewEntryKind::OpaqueDirectory => {
                if let Some(children) = self.find(&entry.path).and_then(|id| self.children_mut(id))
                {
                    children.clear();
                }
            }
            _ => {}
        }
    }

    /// Second pass: everything else.
    fn add(&mut self, stored: StoredEntry) -> Result<(), String> {
        let StoredEntry { entry, object } = stored;
        let kind = match entry.kind {
            NewEntryKind::Whiteout | NewEntryKind::OpaqueDirectory => return Ok(()),
            NewEntryKind::HardLink { ref target } => {
                let id = self.find(target).ok_or_else(|| {
                    format!(
                        "a hard link to `{}`, which does not exist",
                        target.escape_ascii()
                    )
                })?;
                if self.children(id).is_some() {
                    return Err(format!(
                        "a hard link to `{}`, which is a directory",
                        target.escape_ascii()
                    ));
                }
                return self.link(&entry, id);
            }
            NewEntryKind::File { size } => NodeKind::File(size, object),
            NewEntryKind::Directory => NodeKind::Directory(BTreeMap::new()),
            NewEntryKind::Symlink { ref target } => {
                self.count_text(target.len())?;
                NodeKind::Symlink(target.as_slice().into())
            }
            NewEntryKind::Fifo => NodeKind::Fifo,
            NewEntryKind::Device => NodeKind::Device,
        };
        let node = Node {
            uid: entry.uid,
            gid: entry.gid,
            mode: (entry.mode & 0o7777) as u16,
            mtime: entry.mtime,
            mtime_nsec: entry.mtime_nsec,
            xattrs: self.intern_xattrs(&entry.xattrs)?,
            layer: self.layer,
            kind,
        };
        if matches!(node.kind, NodeKind::Directory(_))
            && let Some(id) = self.find(&entry.path)
            && self.children(id).is_some()
        {
            // A directory stays with what is in it; only its attributes are new.
            let old = &mut self.nodes[id as usize];
            let kind = std::mem::replace(&mut old.kind, NodeKind::Fifo);
            *old = Node { kind, ..node };
            return Ok(());
        }
        // Made first, so that an error leaves no dangling name.
        let id = self.new_node(node)?;
        self.link(&entry, id)
    }

    fn link(&mut self, entry: &NewEntry, id: NodeId) -> Result<(), String> {
        let (parent, name) = split(&entry.path);
        let parent = self.make_directories(parent, entry)?;
        self.count_text(name.len())?;
        if let Some(children) = self.children_mut(parent) {
            children.insert(name.into(), id);
        }
        Ok(())
    }

    /// Finds the directory `path`, making what is missing of it (0755, root, the entry's time).
    fn make_directories(&mut self, path: &[u8], entry: &NewEntry) -> Result<NodeId, String> {
        let mut id = ROOT;
        for name in components(path) {
            let found = self.children(id).and_then(|children| children.get(name));
            if let Some(&found) = found {
                let node = self.node(found);
                if matches!(node.kind, NodeKind::Directory(_)) {
                    id = found;
                    continue;
                }
                if node.layer == self.layer {
                    return Err(format!(
                        "it lies below `{}`, which the same layer made {}",
                        name.escape_ascii(),
                        node.kind.name()
                    ));
                }
            }
            let made = self.new_node(Node {
                uid: 0,
                gid: 0,
                mode: 0o755,
                mtime: entry.mtime,
                mtime_nsec: entry.mtime_nsec,
                xattrs: NO_XATTRS,
                layer: self.layer,
                kind: NodeKind::Directory(BTreeMap::new()),
            })?;
            self.count_text(name.len())?;
            if let Some(children) = self.children_mut(id) {
                children.insert(name.into(), made);
            }
            id = made;
        }
        Ok(id)
    }

    fn new_node(&mut self, node: Node) -> Result<NodeId, String> {
        if self.nodes.len() as u64 >= MAX_ENTRIES {
            return Err(format!(
                "the image has more than {MAX_ENTRIES} files, the most an image may have"
            ));
        }
        let id = self.nodes.len() as NodeId;
        self.nodes.push(node);
        Ok(id)
    }

    fn intern_xattrs(&mut self, xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<u32, String> {
        if xattrs.is_empty() {
            return Ok(NO_XATTRS);
        }
        let mut encoded = Vec::new();
        encode_xattrs(xattrs, &mut encoded);
        if let Some(&offset) = self.known_xattrs.get(&encoded) {
            return Ok(offset);
        }
        // Held twice: as the key and in the table.
        self.count_text(2 * encoded.len())?;
        let offset = self.xattrs.len() as u32;
        self.xattrs.extend_from_slice(&encoded);
        self.known_xattrs.insert(encoded, offset);
        Ok(offset)
    }

    fn count_text(&mut self, bytes: usize) -> Result<(), String> {
        self.text += bytes;
        if self.text > MAX_TEXT {
            return Err(format!(
                "the image's names, link targets and extended attributes take more than {} MiB",
                MAX_TEXT >> 20
            ));
        }
        Ok(())
    }
}
