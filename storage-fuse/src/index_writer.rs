//! Writing a flattened tree as an index file ([`crate::index_file`] describes it).
//!
//! Inodes are numbered breadth first, which makes a directory's entries neighbours and its number
//! smaller than those of the directories in it. Each table is written by one pass over that order,
//! so nothing but the order is held in memory beside the tree.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};

use crate::digest::Digest;
use crate::encoding::Put;
use crate::flatten::{Node, NodeId, NodeKind, ROOT, Tree};
use crate::image_index::ImageIds;
use crate::index_file::{HEADER_SIZE, Header, INODE_SIZE, kind};
use crate::store::{IoContext, Store, StoreError};

const UNNUMBERED: u32 = u32::MAX;
/// More of `/etc/passwd` or `/etc/group` is not looked at.
const DATABASE_LIMIT: u64 = 1 << 20;

/// Numbers by node, and nodes by number.
struct Order {
    nodes: Vec<NodeId>,
    numbers: Vec<u32>,
    links: Vec<u32>,
}

/// Writes the index of `tree` to the new file `relative`, durably.
pub(crate) fn write_index(
    store: &Store,
    tree: &Tree,
    chain_id: Digest,
    relative: &str,
) -> Result<(), StoreError> {
    let order = Order::new(tree);
    let mut ids = ImageIds::default();
    let mut content_size = 0u64;
    for node in order.iter(tree) {
        ids.uids.insert(node.uid);
        ids.gids.insert(node.gid);
        if let NodeKind::File(size, _) = node.kind {
            content_size = content_size.saturating_add(size);
        }
    }
    add_database_ids(store, tree, &mut ids)?;

    let mut file: File = store.create_file(relative)?.into();
    let path = || store.path(relative);
    let head_size = HEADER_SIZE + (ids.uids.len() + ids.gids.len()) * 4;
    file.seek(SeekFrom::Start(head_size as u64))
        .on("write", path)?;
    let mut out = Output {
        file: BufWriter::with_capacity(256 * 1024, &file),
        hasher: blake3::Hasher::new(),
    };
    let body = write_body(&mut out, tree, &order).on("write", path)?;
    let body_checksum = *out.hasher.finalize().as_bytes();
    out.file.flush().on("write", path)?;
    drop(out);
    let header = Header {
        uid_count: ids.uids.len() as u32,
        gid_count: ids.gids.len() as u32,
        inode_count: order.nodes.len() as u32,
        entry_count: body.entries,
        object_count: body.objects,
        text_size: body.text,
        xattr_size: tree.xattrs.len() as u64,
        content_size,
        chain_id,
        body_checksum,
    };
    std::os::unix::fs::FileExt::write_all_at(&file, &header.encode(&ids), 0).on("write", path)?;
    file.sync_all().on("write to disk", path)
}

impl Order {
    fn new(tree: &Tree) -> Self {
        let mut numbers = vec![UNNUMBERED; tree.node_count()];
        let mut nodes = vec![ROOT];
        let mut links = vec![1];
        numbers[ROOT as usize] = 0;
        let mut next = 0;
        while let Some(&id) = nodes.get(next) {
            next += 1;
            let NodeKind::Directory(children) = &tree.node(id).kind else {
                continue;
            };
            for &child in children.values() {
                let number = &mut numbers[child as usize];
                if *number == UNNUMBERED {
                    *number = nodes.len() as u32;
                    nodes.push(child);
                    links.push(1);
                } else {
                    links[*number as usize] += 1;
                }
            }
        }
        Self {
            nodes,
            numbers,
            links,
        }
    }

    fn iter<'t>(&self, tree: &'t Tree) -> impl Iterator<Item = &'t Node> {
        self.nodes.iter().map(|&id| tree.node(id))
    }
}

struct Output<'f> {
    file: BufWriter<&'f File>,
    hasher: blake3::Hasher,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
}

struct BodySizes {
    entries: u32,
    objects: u32,
    text: u64,
}

fn write_body(out: &mut Output<'_>, tree: &Tree, order: &Order) -> std::io::Result<BodySizes> {
    let mut sizes = BodySizes {
        entries: 0,
        objects: 0,
        text: 0,
    };
    let mut record = Vec::with_capacity(INODE_SIZE);
    for (node, links) in order.iter(tree).zip(&order.links) {
        let (tag, size, first, second) = match &node.kind {
            NodeKind::File(size, None) => (kind::FILE, *size, 0, 0),
            NodeKind::File(size, Some(_)) => {
                sizes.objects += 1;
                (kind::FILE, *size, sizes.objects - 1, 0)
            }
            NodeKind::Directory(children) => {
                let first = sizes.entries;
                sizes.entries += children.len() as u32;
                (kind::DIRECTORY, 0, first, children.len() as u32)
            }
            NodeKind::Symlink(target) => {
                let offset = sizes.text as u32;
                sizes.text += target.len() as u64;
                (kind::SYMLINK, 0, offset, target.len() as u32)
            }
            NodeKind::Fifo => (kind::FIFO, 0, 0, 0),
            NodeKind::Device => (kind::DEVICE, 0, 0, 0),
        };
        record.clear();
        record.put_u8(tag);
        record.put_u8(0);
        record.put_u16(node.mode);
        record.put_u32(node.uid);
        record.put_u32(node.gid);
        record.put_u32(*links);
        record.put_i64(node.mtime);
        record.put_u32(node.mtime_nsec);
        record.put_u32(node.xattrs);
        record.put_u64(size);
        record.put_u32(first);
        record.put_u32(second);
        out.write(&record)?;
    }
    // In the text, names follow the link targets.
    for (name, child) in entries(tree, order) {
        record.clear();
        record.put_u32(order.numbers[child as usize]);
        record.put_u32(sizes.text as u32);
        record.put_u32(name.len() as u32);
        record.put_u32(0);
        out.write(&record)?;
        sizes.text += name.len() as u64;
    }
    for node in order.iter(tree) {
        if let NodeKind::File(_, Some(object)) = &node.kind {
            out.write(&object.0)?;
        }
    }
    for node in order.iter(tree) {
        if let NodeKind::Symlink(target) = &node.kind {
            out.write(target)?;
        }
    }
    for (name, _) in entries(tree, order) {
        out.write(name)?;
    }
    out.write(&tree.xattrs)?;
    Ok(sizes)
}

/// All directory entries in the order of the table.
fn entries<'t>(tree: &'t Tree, order: &Order) -> impl Iterator<Item = (&'t [u8], NodeId)> {
    order
        .iter(tree)
        .filter_map(|node| match &node.kind {
            NodeKind::Directory(children) => Some(children),
            _ => None,
        })
        .flatten()
        .map(|(name, &child)| (&**name, child))
}

/// Adds the IDs that `/etc/passwd` and `/etc/group` name: a program may switch to one that owns
/// no file.
fn add_database_ids(store: &Store, tree: &Tree, ids: &mut ImageIds) -> Result<(), StoreError> {
    let read = |path: &str| -> Result<Vec<u8>, StoreError> {
        match tree.find_file(path.as_bytes())? {
            Some((size, object)) => crate::object::read(store, &object, size, DATABASE_LIMIT),
            None => Ok(Vec::new()),
        }
    };
    for line in read("etc/passwd")?.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b':');
        ids.uids.extend(fields.nth(2).and_then(parse_id));
        ids.gids.extend(fields.next().and_then(parse_id));
    }
    for line in read("etc/group")?.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b':');
        ids.gids.extend(fields.nth(2).and_then(parse_id));
    }
    Ok(())
}

fn parse_id(field: &[u8]) -> Option<u32> {
    // 4294967295 is "no ID" (chown(2)).
    std::str::from_utf8(field)
        .ok()?
        .parse()
        .ok()
        .filter(|id| *id != u32::MAX)
}
