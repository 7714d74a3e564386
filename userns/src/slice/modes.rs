//! The ID maps of the `--userns` modes other than `auto`. (`nomap` is `auto`: a slice never
//! contains the login.)

use super::allocation::{Wanted, find};
use super::{Allocation, Exhausted, Lease, SliceRequest};
use crate::id_map::{IdExtent, IdMap, IdMapError, IdMaps};
use crate::subordinate_ids::IdKind;

/// `keep-id`: container UID `keep.0` and GID `keep.1` are the login, every other requested ID
/// belongs to a slice, found as by [`super::allocate`]. In the low block the IDs around the login
/// keep their distance to the slice's first, so that `base + ID` stays true for them.
pub fn keep_id_maps(
    pause_maps: &IdMaps,
    leases: &[Lease],
    avoid: &[IdMaps],
    uid: &SliceRequest,
    gid: &SliceRequest,
    keep: (u32, u32),
) -> Result<Allocation, Exhausted> {
    let around = |request, login| Wanted {
        request,
        login_at: Some(login),
    };
    find(
        pause_maps,
        leases,
        avoid,
        around(uid, keep.0),
        around(gid, keep.1),
    )
}

/// `host`: every container ID is the pause namespace's, 0 being the login. Shared by all who ask
/// for it, so it is no lease.
pub fn host_maps(pause_maps: &IdMaps) -> IdMaps {
    let identity = |map: &IdMap| {
        let extents = map.extents().iter().map(|extent| IdExtent {
            outside: extent.inside,
            ..*extent
        });
        // A valid map's inside IDs do not overlap and number no more extents than it has.
        IdMap::new(extents.collect()).unwrap_or_default()
    };
    IdMaps {
        uid: identity(&pause_maps.uid),
        gid: identity(&pause_maps.gid),
    }
}

/// True when a container with these maps has an ID that is the login itself, so that what it
/// creates under that ID belongs to the login on the host.
pub fn maps_login(maps: &IdMaps) -> bool {
    maps.uid.to_inside(0).is_some() || maps.gid.to_inside(0).is_some()
}

/// Why `--uidmap`/`--gidmap` cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CustomMapError {
    /// Neither option has a value.
    #[error("no ID map given; give --uidmap CONTAINER:PAUSE:COUNT (0:1:1000)")]
    Empty,
    /// Not a map at all.
    #[error("the {kind} map is not valid: {error}")]
    Invalid {
        /// Which map.
        kind: IdKind,
        /// Why.
        error: IdMapError,
    },
    /// It speaks of IDs the login does not have.
    #[error(
        "the {kind} map entry {extent} asks for IDs this login does not have; the second number \
         counts in the login's own namespace: 0 is the login, 1 to {last} are its subordinate {kind}s"
    )]
    OutsideNamespace {
        /// Which map.
        kind: IdKind,
        /// The entry.
        extent: IdExtent,
        /// Largest ID there is.
        last: u32,
    },
    /// A running container has some of the IDs.
    #[error(
        "the {kind} map entry {extent} takes IDs that {holder} holds; stop {holder}, or choose \
         others (selkie inspect shows which a container holds)"
    )]
    Held {
        /// Which map.
        kind: IdKind,
        /// The entry.
        extent: IdExtent,
        /// Whose they are.
        holder: String,
    },
}

/// `--uidmap`/`--gidmap`: triples of container ID, pause-namespace ID and count. If only one kind is
/// given, it serves for both, as in Podman. The caller may ask for ID 0, the login (see
/// [`maps_login`]), and any number of containers may have it; all other IDs must be free, and are
/// taken back from holders that do not run.
pub fn custom_maps(
    pause_maps: &IdMaps,
    leases: &[Lease],
    uid: &[(u32, u32, u32)],
    gid: &[(u32, u32, u32)],
) -> Result<Allocation, CustomMapError> {
    let (uid, gid) = match (uid.is_empty(), gid.is_empty()) {
        (true, true) => return Err(CustomMapError::Empty),
        (true, false) => (gid, gid),
        (false, true) => (uid, uid),
        (false, false) => (uid, gid),
    };
    let maps = IdMaps {
        uid: checked_map(IdKind::Uid, uid, &pause_maps.uid)?,
        gid: checked_map(IdKind::Gid, gid, &pause_maps.gid)?,
    };
    let mut reclaimed = Vec::new();
    for lease in leases {
        let clash = clash(&maps.uid, &lease.maps.uid)
            .map(|extent| (IdKind::Uid, extent))
            .or_else(|| clash(&maps.gid, &lease.maps.gid).map(|extent| (IdKind::Gid, extent)));
        match clash {
            None => {}
            Some(_) if lease.reclaimable => reclaimed.push(lease.holder.clone()),
            Some((kind, extent)) => {
                return Err(CustomMapError::Held {
                    kind,
                    extent,
                    holder: lease.holder.clone(),
                });
            }
        }
    }
    Ok(Allocation { maps, reclaimed })
}

fn checked_map(
    kind: IdKind,
    triples: &[(u32, u32, u32)],
    pause_map: &IdMap,
) -> Result<IdMap, CustomMapError> {
    let extents = triples.iter().map(|(inside, outside, count)| IdExtent {
        inside: *inside,
        outside: *outside,
        count: *count,
    });
    let map =
        IdMap::new(extents.collect()).map_err(|error| CustomMapError::Invalid { kind, error })?;
    // The pause namespace's IDs are contiguous from 0; only its host side has borders.
    let last = pause_map
        .extents()
        .iter()
        .map(|extent| extent.inside + (extent.count - 1));
    let last = last.max().unwrap_or(0);
    match map
        .extents()
        .iter()
        .find(|extent| extent.outside + (extent.count - 1) > last)
    {
        Some(extent) => Err(CustomMapError::OutsideNamespace {
            kind,
            extent: *extent,
            last,
        }),
        None => Ok(map),
    }
}

/// The entry of `map` that shares a pause-namespace ID other than 0 with `held`.
fn clash(map: &IdMap, held: &IdMap) -> Option<IdExtent> {
    let bounds = |extent: &IdExtent| (extent.outside.max(1), extent.outside + extent.count);
    map.extents()
        .iter()
        .find(|wanted| {
            let (start, end) = bounds(wanted);
            held.extents()
                .iter()
                .map(bounds)
                .any(|(held_start, held_end)| {
                    // An extent of ID 0 alone is empty here.
                    start.max(held_start) < end.min(held_end)
                })
        })
        .copied()
}
