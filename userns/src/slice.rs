//! Slices: which IDs of the pause namespace a container gets. Pure arithmetic; who holds what is
//! kept by the engine's database and handed in.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id_map::{IdMap, IdMaps};

/// How many IDs the smallest slice that Selkie plans by itself takes.
pub const SMALLEST_SLICE: u32 = 145;

/// The container-side IDs that must be mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceRequest {
    /// `0..low_block` is mapped contiguously (one extent, contiguous on the host too).
    pub low_block: u32,
    /// Single IDs beyond it, e.g. 65534.
    pub strays: BTreeSet<u32>,
}

/// One holder of leased IDs, for allocation and for the error that names holders.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Container ID or name shown to the user.
    pub holder: String,
    /// The leased IDs (outside = pause-namespace side).
    pub maps: IdMaps,
    /// True when the holder does not run, so the lease may be taken back.
    pub reclaimable: bool,
}

/// What [`allocate`] found.
#[derive(Debug, Clone)]
pub struct Allocation {
    /// Container ID (inside) ↔ pause-namespace ID (outside).
    pub maps: IdMaps,
    /// Holders (as in [`Lease::holder`]) whose leases were taken back to make room.
    pub reclaimed: Vec<String>,
}

/// No room: says how many IDs were wanted, how many are free, and who holds the rest.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no room for a slice")]
pub struct Exhausted {}

/// Finds free IDs for UIDs and GIDs. `pause_maps` is the pause namespace's own map (its inside IDs
/// other than 0 are the pool; a low block never spans two of its host-side extents), `leases` what
/// is held, `avoid` maps whose IDs must not be chosen although nobody holds them.
pub fn allocate(
    pause_maps: &IdMaps,
    leases: &[Lease],
    avoid: &[IdMaps],
    uid: &SliceRequest,
    gid: &SliceRequest,
) -> Result<Allocation, Exhausted> {
    let _ = (pause_maps, leases, avoid, uid, gid, IdMap::default());
    todo!()
}
