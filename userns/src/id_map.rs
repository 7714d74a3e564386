//! ID maps as `/proc/PID/uid_map` knows them (user_namespaces(7)).

use serde::{Deserialize, Serialize};

/// One line of a map: `count` IDs from `inside` in the child namespace are `outside` in its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdExtent {
    /// First ID in the child namespace.
    pub inside: u32,
    /// First ID in the parent namespace.
    pub outside: u32,
    /// How many consecutive IDs.
    pub count: u32,
}

/// Extents sorted by `inside`; neither side overlaps itself; at most 340 (kernel limit).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct IdMap(Vec<IdExtent>);

/// The UID and the GID map of one user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct IdMaps {
    /// User IDs.
    pub uid: IdMap,
    /// Group IDs.
    pub gid: IdMap,
}

/// Why extents do not make a map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// Two extents share an ID on the named side.
    #[error("extents {0:?} and {1:?} overlap on the {2} side")]
    Overlap(IdExtent, IdExtent, &'static str),
    /// An extent is empty or runs past 4294967294.
    #[error("extent {0:?} is empty or runs past the largest ID")]
    BadExtent(IdExtent),
    /// More extents than the kernel takes.
    #[error("{0} extents; the kernel takes 340 at most")]
    TooMany(usize),
}

impl IdMap {
    /// Sorts, merges neighbours and checks.
    pub fn new(extents: Vec<IdExtent>) -> Result<Self, IdMapError> {
        let _ = extents;
        todo!()
    }
    /// The extents, sorted by `inside`.
    pub fn extents(&self) -> &[IdExtent] {
        &self.0
    }
    /// Parent-side ID of a child-side one.
    pub fn to_outside(&self, inside: u32) -> Option<u32> {
        let _ = inside;
        todo!()
    }
    /// Child-side ID of a parent-side one.
    pub fn to_inside(&self, outside: u32) -> Option<u32> {
        let _ = outside;
        todo!()
    }
    /// How many IDs it maps.
    pub fn id_count(&self) -> u64 {
        self.0.iter().map(|extent| u64::from(extent.count)).sum()
    }
    /// The text written to `/proc/PID/uid_map`.
    pub fn to_proc_text(&self) -> String {
        todo!()
    }
}
