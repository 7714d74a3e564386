//! Which IDs a container gets, and from whom they are taken when there are no free ones.
//!
//! A lease is the `lease` column of a container's row: made, taken back and checked only in write
//! transactions, so two containers never hold one ID. Whoever starts a container holds its lock
//! *before* the transaction in which it relies on the lease, and whoever takes a lease back tries that
//! lock *inside* its transaction: so a lease is never taken from a container that is being started.

use std::collections::BTreeSet;

use rusqlite::Transaction;
use selkie_storage::image_index::ImageIds;
use selkie_userns::pause::JoinedPause;
use selkie_userns::slice::{Lease, SliceRequest, allocate};
use selkie_userns::{IdExtent, IdMap, IdMaps};

use crate::container::ContainerConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::options::UsernsMode;

/// IDs every slice has contiguously from 0: room for the system users that package scripts add.
const SMALLEST_LOW_BLOCK: u32 = 256;

/// Image IDs from here on become single IDs instead of widening the low block.
const FIRST_STRAY: u32 = 1000;

/// IDs every slice has beside the low block: the first regular user and `nobody`.
const USUAL_STRAYS: [u32; 2] = [1000, 65534];

/// More single IDs than this and the low block grows over the lowest of them: the kernel takes 340
/// extents, and an ID map is searched for each ownership check.
const MOST_STRAYS: usize = 256;

/// What a container's ID maps must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// These, shared with whoever else has them; nobody holds them.
    Shared(IdMaps),
    /// These, asked for by number; not while a slice holds some of them.
    Explicit(IdMaps),
    /// A slice of its own.
    Slice {
        /// User IDs wanted.
        uid: SliceRequest,
        /// Group IDs wanted.
        gid: SliceRequest,
        /// Container UID and GID that are the login's own.
        keep: Option<(u32, u32)>,
    },
}

/// Decides what `config` needs. `image` are the image's owners, `also` maps whose container-side IDs
/// must be there too (those of its volumes and of its own upper layer).
///
/// # Errors
/// `InvalidInput`: maps that are none or leave the login's range, or a slice where the login has no
/// subordinate IDs to cut it from.
pub(crate) fn plan(
    config: &ContainerConfig,
    image: &ImageIds,
    also: &[IdMaps],
    pause: &JoinedPause,
    login: (u32, u32),
) -> Result<Plan> {
    let mode = &config.options.userns;
    if pause.single_id {
        return plan_single_id(mode, pause, login);
    }
    let (size, keep) = match mode {
        UsernsMode::AutoDefault | UsernsMode::Nomap => (None, None),
        UsernsMode::Auto { size } => (*size, None),
        UsernsMode::KeepId { uid, gid, size } => (
            *size,
            Some((uid.unwrap_or(login.0), gid.unwrap_or(login.1))),
        ),
        UsernsMode::Host => return Ok(Plan::Shared(identity(&pause.host_maps)?)),
        UsernsMode::Maps { uid, gid } => {
            let maps = IdMaps {
                uid: explicit_map(uid, &pause.host_maps.uid, "--uidmap")?,
                gid: explicit_map(gid, &pause.host_maps.gid, "--gidmap")?,
            };
            return Ok(Plan::Explicit(maps));
        }
    };
    let (user, group) = numeric_user(&config.user);
    let request = |ids: &BTreeSet<u32>, extra: Option<u32>, side: fn(&IdMaps) -> &IdMap| {
        let mut wanted: BTreeSet<u32> = ids.iter().copied().chain(extra).collect();
        let mut low_block = size.unwrap_or(SMALLEST_LOW_BLOCK);
        for extent in also.iter().flat_map(|maps| side(maps).extents()) {
            if extent.inside == 0 {
                low_block = low_block.max(extent.count);
            } else if extent.count == 1 {
                wanted.insert(extent.inside);
            } else {
                low_block = low_block.max(extent.inside.saturating_add(extent.count));
            }
        }
        slice_request(low_block, wanted)
    };
    Ok(Plan::Slice {
        uid: request(&image.uids, user, |maps| &maps.uid),
        gid: request(&image.gids, group, |maps| &maps.gid),
        keep,
    })
}

fn plan_single_id(mode: &UsernsMode, pause: &JoinedPause, login: (u32, u32)) -> Result<Plan> {
    let refuse = |what: &str| {
        let error = Error::new(
            ErrorKind::InvalidInput,
            format!("{what} needs subordinate IDs, and this login has none"),
        );
        match &pause.single_id_reason {
            Some(reason) => error.with_hint(reason.clone()),
            None => error,
        }
    };
    let (uid, gid) = match mode {
        UsernsMode::AutoDefault | UsernsMode::Host => (0, 0),
        UsernsMode::KeepId { uid, gid, size } => {
            if size.is_some_and(|size| size > 1) {
                return Err(refuse("--userns=keep-id with a size"));
            }
            (uid.unwrap_or(login.0), gid.unwrap_or(login.1))
        }
        UsernsMode::Auto { .. } => return Err(refuse("--userns=auto")),
        UsernsMode::Nomap => return Err(refuse("--userns=nomap")),
        UsernsMode::Maps { uid, gid } => {
            return Ok(Plan::Explicit(IdMaps {
                uid: explicit_map(uid, &pause.host_maps.uid, "--uidmap")?,
                gid: explicit_map(gid, &pause.host_maps.gid, "--gidmap")?,
            }));
        }
    };
    let one = |inside| {
        map(vec![IdExtent {
            inside,
            outside: 0,
            count: 1,
        }])
    };
    Ok(Plan::Shared(IdMaps {
        uid: one(uid)?,
        gid: one(gid)?,
    }))
}

/// A lease that was got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acquired {
    /// Container ↔ pause namespace.
    pub maps: IdMaps,
    /// True when nobody else may have these, so the row must hold them.
    pub exclusive: bool,
}

/// What [`acquire`] must know beside the plan.
pub(crate) struct Terms<'a> {
    /// The pool.
    pub pause: &'a JoinedPause,
    /// The container's own ID when it has a row: its own lease does not count as held.
    pub own: Option<&'a str>,
    /// Maps to take again if they suit and are free: no owners need changing then.
    pub preferred: Option<&'a IdMaps>,
    /// Maps the new ones must share no ID with: owners are changed from those, which is only safe
    /// against crashes when both sides are apart.
    pub avoid: &'a [IdMaps],
    /// Whether a container, given by its ID, runs or is being started.
    pub is_active: &'a dyn Fn(&str) -> bool,
}

/// Finds IDs for `plan` in a write transaction and takes back what it must.
///
/// # Errors
/// `Conflict` when there is no room or explicit maps clash with an active container's slice.
pub(crate) fn acquire(
    transaction: &Transaction<'_>,
    plan: &Plan,
    terms: &Terms<'_>,
) -> Result<Acquired> {
    let held = held_leases(transaction, terms.own)?;
    let is_active = terms.is_active;
    match plan {
        Plan::Shared(maps) => Ok(Acquired {
            maps: maps.clone(),
            exclusive: false,
        }),
        Plan::Explicit(maps) => {
            for holder in held.iter().filter(|holder| overlap(&holder.maps, maps)) {
                if is_explicit(transaction, &holder.id)? {
                    continue;
                }
                if is_active(&holder.id) {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!(
                            "the ID maps asked for overlap the slice of the running container {}",
                            holder.name
                        ),
                    )
                    .with_hint("choose other IDs, use --userns=auto, or stop that container"));
                }
                take_back(transaction, &holder.id)?;
            }
            Ok(Acquired {
                maps: maps.clone(),
                exclusive: true,
            })
        }
        Plan::Slice { uid, gid, keep } => {
            let maps = match terms.preferred {
                Some(maps)
                    if suits(maps, uid, gid, *keep)
                        && is_free(maps, &held, is_active, transaction)? =>
                {
                    maps.clone()
                }
                _ => allocate_slice(transaction, &held, uid, gid, *keep, terms)?,
            };
            Ok(Acquired {
                maps,
                exclusive: true,
            })
        }
    }
}

struct Held {
    id: String,
    name: String,
    maps: IdMaps,
}

fn held_leases(transaction: &Transaction<'_>, own: Option<&str>) -> Result<Vec<Held>> {
    let mut statement = transaction.prepare(
        "SELECT id, name, lease FROM container WHERE lease IS NOT NULL AND id IS NOT ?1",
    )?;
    let rows = statement.query_map([own], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?))
    })?;
    rows.map(|row| {
        let (id, name, lease): (String, String, String) = row?;
        Ok(Held {
            maps: parse_maps(&lease, &id)?,
            id,
            name,
        })
    })
    .collect()
}

/// True when the holder asked for its IDs by number, which others may do too.
fn is_explicit(transaction: &Transaction<'_>, id: &str) -> Result<bool> {
    let json: String =
        transaction.query_row("SELECT config FROM container WHERE id = ?1", [id], |row| {
            row.get(0)
        })?;
    let config = ContainerConfig::parse(&json, id)?;
    Ok(matches!(config.options.userns, UsernsMode::Maps { .. }))
}

/// Reads ID maps from a JSON column of the container or volume `of`.
pub(crate) fn parse_maps(json: &str, of: &str) -> Result<IdMaps> {
    serde_json::from_str(json).map_err(|error| {
        Error::machine(
            format!("read the ID maps of {of} in the state database"),
            error,
        )
    })
}

/// ID maps for a JSON column.
pub(crate) fn maps_json(maps: &IdMaps) -> Result<String> {
    serde_json::to_string(maps).map_err(|error| Error::machine("write ID maps", error))
}

fn take_back(transaction: &Transaction<'_>, id: &str) -> Result<()> {
    transaction
        .prepare_cached("UPDATE container SET lease = NULL WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// True when `maps` serve the request as they are.
fn suits(maps: &IdMaps, uid: &SliceRequest, gid: &SliceRequest, keep: Option<(u32, u32)>) -> bool {
    let covers = |map: &IdMap, request: &SliceRequest, keep: Option<u32>| {
        request
            .strays
            .iter()
            .all(|stray| map.to_outside(*stray).is_some())
            && (0..request.low_block).all(|inside| map.to_outside(inside).is_some())
            && keep == map.to_inside(0)
    };
    covers(&maps.uid, uid, keep.map(|keep| keep.0))
        && covers(&maps.gid, gid, keep.map(|keep| keep.1))
}

/// True when nobody active holds any of `maps`; takes them back from those who are not.
fn is_free(
    maps: &IdMaps,
    held: &[Held],
    is_active: &dyn Fn(&str) -> bool,
    transaction: &Transaction<'_>,
) -> Result<bool> {
    let in_the_way: Vec<&Held> = held
        .iter()
        .filter(|holder| overlap(&holder.maps, maps))
        .collect();
    if in_the_way.iter().any(|holder| is_active(&holder.id)) {
        return Ok(false);
    }
    for holder in in_the_way {
        take_back(transaction, &holder.id)?;
    }
    Ok(true)
}

fn allocate_slice(
    transaction: &Transaction<'_>,
    held: &[Held],
    uid: &SliceRequest,
    gid: &SliceRequest,
    keep: Option<(u32, u32)>,
    terms: &Terms<'_>,
) -> Result<IdMaps> {
    let pool = &terms.pause.host_maps;
    let without = |request: &SliceRequest, kept: Option<u32>| {
        let mut request = request.clone();
        if let Some(kept) = kept {
            request.strays.remove(&kept);
        }
        request
    };
    let (uid, gid) = (
        without(uid, keep.map(|keep| keep.0)),
        without(gid, keep.map(|keep| keep.1)),
    );
    let mut leases: Vec<Lease> = held
        .iter()
        .map(|holder| Lease {
            holder: holder.name.clone(),
            maps: holder.maps.clone(),
            reclaimable: false,
        })
        .collect();
    let allocation = match allocate(pool, &leases, terms.avoid, &uid, &gid) {
        Ok(allocation) => allocation,
        Err(_) => {
            // Only now is it worth asking the kernel about each holder.
            for (lease, holder) in leases.iter_mut().zip(held) {
                lease.reclaimable = !(terms.is_active)(&holder.id);
            }
            allocate(pool, &leases, terms.avoid, &uid, &gid).map_err(|exhausted| {
                Error::new(ErrorKind::Conflict, exhausted.to_string()).with_hint(
                    "stop or remove some of these containers, ask for fewer IDs (--userns=auto:size=N), or have the admin enlarge the login's range in /etc/subuid and /etc/subgid",
                )
            })?
        }
    };
    for name in &allocation.reclaimed {
        if let Some(holder) = held.iter().find(|holder| holder.name == *name) {
            take_back(transaction, &holder.id)?;
        }
    }
    match keep {
        None => Ok(allocation.maps),
        Some((uid, gid)) => Ok(IdMaps {
            uid: with_login(&allocation.maps.uid, uid)?,
            gid: with_login(&allocation.maps.gid, gid)?,
        }),
    }
}

/// `map` with container ID `kept` being the login (0 in the pause namespace).
fn with_login(mapped: &IdMap, kept: u32) -> Result<IdMap> {
    let mut extents = vec![IdExtent {
        inside: kept,
        outside: 0,
        count: 1,
    }];
    for extent in mapped.extents() {
        let end = extent.inside + extent.count;
        if !(extent.inside..end).contains(&kept) {
            extents.push(*extent);
            continue;
        }
        let before = kept - extent.inside;
        extents.push(IdExtent {
            count: before,
            ..*extent
        });
        extents.push(IdExtent {
            inside: kept + 1,
            outside: extent.outside + before + 1,
            count: extent.count - before - 1,
        });
    }
    extents.retain(|extent| extent.count > 0);
    map(extents)
}

fn slice_request(low_block: u32, mut wanted: BTreeSet<u32>) -> SliceRequest {
    wanted.extend(USUAL_STRAYS);
    let mut low_block = wanted
        .range(..FIRST_STRAY)
        .next_back()
        .map_or(low_block, |last| low_block.max(last + 1));
    let mut strays = wanted.split_off(&low_block);
    while strays.len() > MOST_STRAYS {
        if let Some(lowest) = strays.pop_first() {
            low_block = lowest + 1;
        }
    }
    SliceRequest { low_block, strays }
}

/// The numbers in `uid[:gid]`, where they are numbers.
fn numeric_user(user: &str) -> (Option<u32>, Option<u32>) {
    let (user, group) = user.split_once(':').unwrap_or((user, ""));
    (user.parse().ok(), group.parse().ok())
}

/// Every ID of the pause namespace as itself.
fn identity(host_maps: &IdMaps) -> Result<IdMaps> {
    let same = |side: &IdMap| {
        map(side
            .extents()
            .iter()
            .map(|extent| IdExtent {
                outside: extent.inside,
                ..*extent
            })
            .collect())
    };
    Ok(IdMaps {
        uid: same(&host_maps.uid)?,
        gid: same(&host_maps.gid)?,
    })
}

fn explicit_map(triples: &[(u32, u32, u32)], pause: &IdMap, flag: &str) -> Result<IdMap> {
    let invalid = |why: String| Error::new(ErrorKind::InvalidInput, format!("{flag}: {why}"));
    if triples.is_empty() {
        return Err(invalid("no IDs are mapped".to_owned()));
    }
    let extents = triples
        .iter()
        .map(|(inside, outside, count)| IdExtent {
            inside: *inside,
            outside: *outside,
            count: *count,
        })
        .collect();
    let map = IdMap::new(extents).map_err(|error| invalid(error.to_string()))?;
    for extent in map.extents() {
        let mut at = u64::from(extent.outside);
        let end = at + u64::from(extent.count);
        while at < end {
            let holder = pause.extents().iter().find(|held| {
                (u64::from(held.inside)..u64::from(held.inside) + u64::from(held.count))
                    .contains(&at)
            });
            let Some(holder) = holder else {
                return Err(invalid(format!(
                    "{}:{}:{} needs ID {at}, but this login has {} IDs (0 is the login, the others its subordinate IDs)",
                    extent.inside,
                    extent.outside,
                    extent.count,
                    pause.id_count()
                )));
            };
            at = u64::from(holder.inside) + u64::from(holder.count);
        }
    }
    Ok(map)
}

fn map(extents: Vec<IdExtent>) -> Result<IdMap> {
    IdMap::new(extents).map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))
}

/// True when two maps share an outside ID other than the login's own.
fn overlap(left: &IdMaps, right: &IdMaps) -> bool {
    let shared = |left: &IdMap, right: &IdMap| {
        left.extents().iter().any(|a| {
            right.extents().iter().any(|b| {
                let start = a.outside.max(b.outside).max(1);
                let end = (u64::from(a.outside) + u64::from(a.count))
                    .min(u64::from(b.outside) + u64::from(b.count));
                u64::from(start) < end
            })
        })
    };
    shared(&left.uid, &right.uid) || shared(&left.gid, &right.gid)
}
