//! Finding room.

use super::{Allocation, Exhausted, Lease, SliceRequest};
use crate::id_map::{IdExtent, IdMap, IdMaps};
use crate::subordinate_ids::IdKind;

/// Free pieces shorter than this are of no use to a low block, so strays go there first.
const FRAGMENT: u32 = super::DEFAULT_LOW_BLOCK;

/// Finds free IDs for UIDs and GIDs. `pause_maps` is the pause namespace's own map (its inside IDs
/// other than 0 are the pool; a low block never spans two of its host-side extents), `leases` what
/// is held, oldest first, `avoid` maps whose IDs must not be chosen although nobody holds them.
///
/// When there is no room, reclaimable leases are taken back, the oldest first, and no more than
/// needed. The result depends on the arguments only.
pub fn allocate(
    pause_maps: &IdMaps,
    leases: &[Lease],
    avoid: &[IdMaps],
    uid: &SliceRequest,
    gid: &SliceRequest,
) -> Result<Allocation, Exhausted> {
    let plain = |request| Wanted {
        request,
        login_at: None,
    };
    find(pause_maps, leases, avoid, plain(uid), plain(gid))
}

/// A slice, and the container ID that is to be the login instead of a part of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub request: &'a SliceRequest,
    pub login_at: Option<u32>,
}

impl Wanted<'_> {
    fn strays(&self) -> impl Iterator<Item = u32> + '_ {
        let beyond = self.request.strays.range(self.request.low_block..).copied();
        beyond.filter(|id| Some(*id) != self.login_at)
    }
}

/// [`allocate`], and for `keep-id` with the login in its place.
pub(super) fn find(
    pause_maps: &IdMaps,
    leases: &[Lease],
    avoid: &[IdMaps],
    uid: Wanted<'_>,
    gid: Wanted<'_>,
) -> Result<Allocation, Exhausted> {
    let search = Search {
        leases,
        uid: Pool::new(IdKind::Uid, &pause_maps.uid, leases, avoid, |maps| {
            &maps.uid
        }),
        gid: Pool::new(IdKind::Gid, &pause_maps.gid, leases, avoid, |maps| {
            &maps.gid
        }),
        uid_wanted: uid,
        gid_wanted: gid,
    };
    let mut taken_back = vec![false; leases.len()];
    if let Some(maps) = search.place(&taken_back) {
        return Ok(Allocation {
            maps,
            reclaimed: Vec::new(),
        });
    }
    let reclaimable: Vec<usize> = (0..leases.len())
        .filter(|index| leases[*index].reclaimable)
        .collect();
    let oldest = |count: usize| {
        let mut taken_back = vec![false; leases.len()];
        for index in &reclaimable[..count] {
            taken_back[*index] = true;
        }
        taken_back
    };
    // Whether everything reclaimable suffices decides; then more never hurts, so bisect.
    let all = oldest(reclaimable.len());
    if search.place(&all).is_none() {
        return Err(search.exhausted(&all));
    }
    let (mut too_few, mut enough) = (0, reclaimable.len());
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        match search.place(&oldest(middle)) {
            Some(_) => enough = middle,
            None => too_few = middle,
        }
    }
    taken_back.copy_from_slice(&oldest(enough));
    // The newest of them was needed. Of the others some may have been in vain.
    for index in reclaimable[..enough.saturating_sub(1)].iter().rev() {
        taken_back[*index] = false;
        if search.place(&taken_back).is_none() {
            taken_back[*index] = true;
        }
    }
    let maps = search
        .place(&taken_back)
        .ok_or_else(|| search.exhausted(&taken_back))?;
    let reclaimed = leases
        .iter()
        .zip(&taken_back)
        .filter(|(_, taken_back)| **taken_back)
        .map(|(lease, _)| lease.holder.clone())
        .collect();
    Ok(Allocation { maps, reclaimed })
}

struct Search<'a> {
    leases: &'a [Lease],
    uid: Pool,
    gid: Pool,
    uid_wanted: Wanted<'a>,
    gid_wanted: Wanted<'a>,
}

impl Search<'_> {
    fn place(&self, taken_back: &[bool]) -> Option<IdMaps> {
        Some(IdMaps {
            uid: place_in(self.uid.gaps(taken_back), self.uid_wanted)?,
            gid: place_in(self.gid.gaps(taken_back), self.gid_wanted)?,
        })
    }

    /// Why there is no room even then.
    fn exhausted(&self, taken_back: &[bool]) -> Exhausted {
        let uids_fit = place_in(self.uid.gaps(taken_back), self.uid_wanted).is_some();
        let (pool, wanted) = match uids_fit {
            true => (&self.gid, self.gid_wanted),
            false => (&self.uid, self.uid_wanted),
        };
        let mut counts = vec![0u64; self.leases.len()];
        for held in &pool.held {
            if let Some(index) = held.lease.filter(|index| !taken_back[*index]) {
                counts[index] += u64::from(held.end - held.start);
            }
        }
        let mut holders: Vec<(String, u64)> = self
            .leases
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(lease, count)| (lease.holder.clone(), count))
            .collect();
        holders.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let gaps = pool.gaps(taken_back);
        Exhausted {
            kind: pool.kind,
            wanted: u64::from(wanted.request.low_block) + wanted.strays().count() as u64,
            low_block: wanted.request.low_block,
            pool: pool
                .arenas
                .iter()
                .map(|arena| u64::from(arena.length()))
                .sum(),
            free: gaps.iter().map(|gap| u64::from(gap.length())).sum(),
            largest_gap: gaps.iter().map(Gap::length).max().unwrap_or(0),
            holders,
        }
    }
}

/// The IDs for containers and who holds which of them, sorted once and then swept as often as
/// needed.
struct Pool {
    kind: IdKind,
    /// Pieces that are contiguous on the host too, by start.
    arenas: Vec<Gap>,
    /// By start; may overlap.
    held: Vec<Held>,
}

/// IDs `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    start: u32,
    end: u32,
}

impl Gap {
    fn length(&self) -> u32 {
        self.end - self.start
    }
}

#[derive(Debug, Clone, Copy)]
struct Held {
    start: u32,
    end: u32,
    /// `None`: to be avoided whatever is taken back.
    lease: Option<usize>,
}

impl Pool {
    fn new(
        kind: IdKind,
        pause_map: &IdMap,
        leases: &[Lease],
        avoid: &[IdMaps],
        of_kind: impl Fn(&IdMaps) -> &IdMap,
    ) -> Self {
        // Ends never overflow: no map contains the ID 4294967295.
        let arenas = pause_map
            .extents()
            .iter()
            .map(|extent| Gap {
                // The login itself is in nobody's pool.
                start: extent.inside.max(1),
                end: extent.inside + extent.count,
            })
            .filter(|arena| arena.start < arena.end)
            .collect();
        let leased = leases
            .iter()
            .enumerate()
            .map(|(index, lease)| (Some(index), of_kind(&lease.maps)));
        let avoided = avoid.iter().map(|maps| (None, of_kind(maps)));
        let mut held: Vec<Held> = leased
            .chain(avoided)
            .flat_map(|(lease, map)| {
                map.extents().iter().map(move |extent| Held {
                    start: extent.outside.max(1),
                    end: extent.outside + extent.count,
                    lease,
                })
            })
            .filter(|held| held.start < held.end)
            .collect();
        held.sort_unstable_by_key(|held| held.start);
        Self { kind, arenas, held }
    }

    /// What is free if those leases are taken back, by start.
    fn gaps(&self, taken_back: &[bool]) -> Vec<Gap> {
        let mut held = self
            .held
            .iter()
            .filter(|held| !held.lease.is_some_and(|index| taken_back[index]))
            .peekable();
        let mut gaps = Vec::new();
        // Everything before this is in use by what was already looked at.
        let mut used_to = 0;
        for arena in &self.arenas {
            let mut free_from = arena.start.max(used_to);
            while let Some(next) = held.next_if(|held| held.start < arena.end) {
                if next.start > free_from {
                    gaps.push(Gap {
                        start: free_from,
                        end: next.start,
                    });
                }
                free_from = free_from.max(next.end);
                used_to = used_to.max(next.end);
            }
            if free_from < arena.end {
                gaps.push(Gap {
                    start: free_from,
                    end: arena.end,
                });
            }
        }
        gaps
    }
}

/// `None` when it does not fit, or only in more extents than a map can have.
fn place_in(mut gaps: Vec<Gap>, wanted: Wanted<'_>) -> Option<IdMap> {
    let low_block = wanted.request.low_block;
    let mut extents = Vec::new();
    if low_block > 0 {
        let place = gaps.iter_mut().find(|gap| gap.length() >= low_block)?;
        extents.push(IdExtent {
            inside: 0,
            outside: place.start,
            count: low_block,
        });
        place.start += low_block;
    }
    let stray_count = u32::try_from(wanted.strays().count()).ok()?;
    let pieces = place_strays(gaps, stray_count)?;
    let outside = pieces.iter().flat_map(|piece| piece.start..piece.end);
    // Neighbours are merged by the map.
    extents.extend(
        wanted
            .strays()
            .zip(outside)
            .map(|(inside, outside)| IdExtent {
                inside,
                outside,
                count: 1,
            }),
    );
    if let Some(login_at) = wanted.login_at {
        put_login(&mut extents, login_at);
    }
    IdMap::new(extents).ok()
}

/// Makes container ID `id` the login. The IDs around it keep their distance to the slice's first,
/// so what it would have been stays unused.
fn put_login(extents: &mut Vec<IdExtent>, id: u32) {
    if let Some(around) = extents.iter().position(|extent| {
        id.checked_sub(extent.inside)
            .is_some_and(|by| by < extent.count)
    }) {
        let whole = extents.remove(around);
        let before = id - whole.inside;
        let after = whole.count - before - 1;
        if before > 0 {
            extents.push(IdExtent {
                count: before,
                ..whole
            });
        }
        if after > 0 {
            extents.push(IdExtent {
                inside: id + 1,
                outside: whole.outside + before + 1,
                count: after,
            });
        }
    }
    extents.push(IdExtent {
        inside: id,
        outside: 0,
        count: 1,
    });
}

/// Pieces that together are `count` IDs, in as few pieces as can be: the tightest fragment that
/// takes them all, else the top end of the highest gap that does, else the longest gaps there are.
fn place_strays(mut gaps: Vec<Gap>, count: u32) -> Option<Vec<Gap>> {
    if count == 0 {
        return Some(Vec::new());
    }
    let fragment = gaps
        .iter()
        .filter(|gap| (count..FRAGMENT).contains(&gap.length()))
        .min_by_key(|gap| gap.length());
    if let Some(fragment) = fragment {
        return Some(vec![Gap {
            start: fragment.start,
            end: fragment.start + count,
        }]);
    }
    if let Some(top) = gaps.iter().rev().find(|gap| gap.length() >= count) {
        return Some(vec![Gap {
            start: top.end - count,
            end: top.end,
        }]);
    }
    gaps.sort_by_key(|gap| std::cmp::Reverse(gap.length()));
    let mut pieces = Vec::new();
    let mut missing = count;
    for gap in gaps {
        let take = gap.length().min(missing);
        pieces.push(Gap {
            start: gap.start,
            end: gap.start + take,
        });
        missing -= take;
        if missing == 0 {
            return Some(pieces);
        }
    }
    None
}
