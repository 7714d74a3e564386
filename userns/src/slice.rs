//! Slices: which IDs of the pause namespace a container gets. Pure arithmetic; who holds what is
//! kept by the engine's database and handed in.
//!
//! Theory of operation. A container image uses few IDs: those below about a hundred, perhaps a
//! handful of high ones, and 65534. So a slice is *sparse*: one contiguous **low block** from
//! container ID 0, and **strays**, single IDs that are mapped one by one. [`plan_slice`] decides
//! which IDs an image needs, [`allocate`] finds room for them. The pool is everything in the pause
//! namespace but its ID 0, the login itself, which no slice ever contains.
//!
//! Low blocks go to the lowest free place that holds them; strays fill small holes, else they
//! stack up from the top end. So the middle stays in one piece, and 65,536 IDs hold about 450
//! containers. Stopped containers' leases are taken back only when there is no room otherwise.

mod allocation;
mod modes;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id_map::IdMaps;
use crate::subordinate_ids::IdKind;

pub use allocation::allocate;
pub use modes::{CustomMapError, custom_maps, host_maps, keep_id_maps, maps_login};

/// Container IDs `0..DEFAULT_LOW_BLOCK` are always mapped: distributions' own system users, and
/// room for those that installing packages adds.
pub const DEFAULT_LOW_BLOCK: u32 = 128;

/// The last system users that `useradd --system` hands out (it counts down from 999), and the first
/// regular ones (from 1000 up): always mapped, so that both work in every container.
pub const USUAL_NEW_USERS: std::ops::RangeInclusive<u32> = 994..=1009;

/// `nobody` and `nogroup`.
pub const NOBODY: u32 = 65_534;

/// How many IDs the smallest slice that [`plan_slice`] plans by itself takes.
pub const SMALLEST_SLICE: u32 =
    DEFAULT_LOW_BLOCK + (*USUAL_NEW_USERS.end() - *USUAL_NEW_USERS.start() + 1) + 1;

/// The container-side IDs that must be mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceRequest {
    /// `0..low_block` is mapped contiguously (one extent, contiguous on the host too).
    pub low_block: u32,
    /// Single IDs beyond it, e.g. 65534. Those below `low_block` are in it already.
    pub strays: BTreeSet<u32>,
}

/// One holder of leased IDs, for allocation and for the error that names holders.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Container ID or name shown to the user.
    pub holder: String,
    /// The leased IDs (outside = pause-namespace side). ID 0, the login, is held by nobody.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exhausted {
    /// What there is no room for.
    pub kind: IdKind,
    /// How many were wanted.
    pub wanted: u64,
    /// How many of them had to be in one piece.
    pub low_block: u32,
    /// How many the login has for containers.
    pub pool: u64,
    /// How many of those are free, counting what stopped containers hold.
    pub free: u64,
    /// The longest free piece.
    pub largest_gap: u32,
    /// Running holders and how many each holds, the largest first.
    pub holders: Vec<(String, u64)>,
}

impl std::error::Error for Exhausted {}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind;
        if self.pool == 0 {
            return write!(
                f,
                "no room for a slice: this login has no subordinate {kind}s to make one from; get \
                 a range (docs/subuid.md), or run with --userns=host as the only ID there is"
            );
        }
        write!(
            f,
            "no room for a slice: {} {kind}s are wanted, {} of them in one piece; of the login's \
             {}, {} are free, at most {} in one piece",
            self.wanted, self.low_block, self.pool, self.free, self.largest_gap
        )?;
        const NAMED: usize = 5;
        for (index, (holder, count)) in self.holders.iter().take(NAMED).enumerate() {
            let lead = if index == 0 { "; held by" } else { "," };
            write!(f, "{lead} {holder} ({count})")?;
        }
        if let Some(more) = self.holders.len().checked_sub(NAMED + 1) {
            write!(f, " and {} more running containers", more + 1)?;
        }
        let whole = u64::from(self.low_block).max(self.wanted);
        if self.free >= whole && self.largest_gap >= self.low_block {
            write!(
                f,
                "; the free ones lie in more pieces than one ID map can hold (340)"
            )?;
        }
        write!(
            f,
            "; stop containers that are not needed, ask for fewer IDs (--userns=auto:size=N), or \
             get a larger range (docs/subuid.md)"
        )
    }
}

/// Most runs of strays [`plan_slice`] asks for, well below the kernel's 340 extents.
const MOST_RUNS: usize = 300;

/// A plan joins runs of strays over at most this many unused IDs.
const MOST_FILLERS: u64 = 65_536;

/// The next image ID this close above the low block is taken into it.
const NEAR: u32 = 64;

/// Which IDs a container of an image needs.
///
/// `image_ids` are the owners in the image, `wanted` others the caller will use (`--user 5000`).
/// Without `size` the low block is at least [`DEFAULT_LOW_BLOCK`] and goes on while the image's
/// system IDs (below 1000) lie close together; everything beyond is a stray: the image's other IDs,
/// [`USUAL_NEW_USERS`] and [`NOBODY`]. With `size` the low block is exactly that, and the image's
/// IDs beyond it stay unmapped, as the user said.
pub fn plan_slice(
    image_ids: impl IntoIterator<Item = u32>,
    wanted: &[u32],
    size: Option<u32>,
) -> SliceRequest {
    let mut strays: BTreeSet<u32> = wanted.iter().copied().collect();
    strays.insert(NOBODY);
    let low_block = match size {
        Some(size) => size,
        None => {
            strays.extend(image_ids);
            let system = strays.range(DEFAULT_LOW_BLOCK..1000);
            let low_block = system.fold(DEFAULT_LOW_BLOCK, |end, id| {
                if id - end < NEAR { id + 1 } else { end }
            });
            strays.extend(USUAL_NEW_USERS);
            low_block
        }
    };
    // The kernel's "no ID" is in no map.
    strays.remove(&u32::MAX);
    let mut strays = strays.split_off(&low_block);
    join_runs(&mut strays);
    SliceRequest { low_block, strays }
}

/// An image with very many scattered IDs would need more extents than the kernel takes: fills the
/// smallest gaps between them until it does not, if that costs a sensible number of IDs.
fn join_runs(strays: &mut BTreeSet<u32>) {
    let mut gaps: Vec<(u32, u32)> = strays
        .iter()
        .zip(strays.iter().skip(1))
        .filter(|(id, next)| *next - *id > 1)
        .map(|(id, next)| (next - id - 1, id + 1))
        .collect();
    let Some(too_many) = (gaps.len() + 1).checked_sub(MOST_RUNS) else {
        return;
    };
    gaps.sort_unstable();
    let fillers: u64 = gaps[..too_many].iter().map(|gap| u64::from(gap.0)).sum();
    if fillers <= MOST_FILLERS {
        for (length, start) in &gaps[..too_many] {
            strays.extend(*start..start + length);
        }
    }
}

#[cfg(test)]
mod tests;
