//! Remembers which paths a layer has named, in eight bytes each.
//!
//! A set of keyed 64-bit hashes, the lowest bit of which tells directories from the rest. The key
//! is random, so an archive cannot aim for a collision; at two million entries a chance collision
//! has odds of about one in five million, and would refuse a good layer, never accept a bad one.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use super::{LayerError, Limits, member_path, printable};

/// Paths seen so far.
pub(super) struct SeenPaths {
    key: RandomState,
    hashes: HashSet<u64>,
    /// The directory of the last path, known to be one: members mostly come directory by directory.
    last_parent: Option<Vec<u8>>,
    limit: u64,
}

impl SeenPaths {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            key: RandomState::new(),
            hashes: HashSet::new(),
            last_parent: None,
            limit: limits.entries,
        }
    }

    /// Notes a member; refuses it when it repeats an earlier one (unless both are directories) or
    /// lies below something that is not a directory.
    pub(super) fn add(&mut self, path: &[u8], directory: bool) -> Result<(), LayerError> {
        self.add_parents(path)?;
        let Some((_, hash)) = self.prefixes(path).last() else {
            return Ok(()); // the root
        };
        let repeated =
            self.hashes.contains(&(hash & !1)) || (self.hashes.contains(&(hash | 1)) && !directory);
        if repeated {
            return Err(LayerError::entry(
                path,
                "its path occurs twice in the layer",
            ));
        }
        self.insert(hash, directory)
    }

    /// Refuses a hard-link target that leads through a non-directory of this layer.
    pub(super) fn check_target(&self, target: &[u8], of: &[u8]) -> Result<(), LayerError> {
        for (end, hash) in self.prefixes(target) {
            if end < target.len() && self.hashes.contains(&(hash & !1)) {
                let through = printable(&target[..end]);
                return Err(LayerError::entry(
                    of,
                    format!("its link target leads through \"{through}\", not a directory"),
                ));
            }
        }
        Ok(())
    }

    fn add_parents(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let (parent, _) = member_path::split(path);
        if parent.is_empty() || self.last_parent.as_deref() == Some(parent) {
            return Ok(());
        }
        for (end, hash) in self.prefixes(parent) {
            if self.hashes.contains(&(hash & !1)) {
                let through = printable(&path[..end]);
                return Err(LayerError::entry(
                    path,
                    format!("its path leads through \"{through}\", not a directory in this layer"),
                ));
            }
            self.insert(hash, true)?;
        }
        self.last_parent = Some(parent.to_vec());
        Ok(())
    }

    fn insert(&mut self, hash: u64, directory: bool) -> Result<(), LayerError> {
        self.hashes.insert((hash & !1) | u64::from(directory));
        if self.hashes.len() as u64 > self.limit {
            let limit = self.limit;
            return Err(LayerError::Limit(format!(
                "it has more than {limit} entries"
            )));
        }
        Ok(())
    }

    /// The hash of `path` and of each directory above it, shortest first, with their lengths.
    /// One pass, so that a deep path costs no more than a long one.
    fn prefixes<'p>(&self, path: &'p [u8]) -> impl Iterator<Item = (usize, u64)> + use<'p> {
        let mut hasher = self.key.build_hasher();
        let mut start = 0;
        path.split_inclusive(|byte| *byte == b'/')
            .map(move |component| {
                let name = component.strip_suffix(b"/").unwrap_or(component);
                hasher.write(name);
                hasher.write_u8(b'/');
                let end = start + name.len();
                start += component.len();
                (end, hasher.clone().finish())
            })
    }
}
