//! Which IDs a container gets, and from whom they are taken when there are no free ones.
//!
//! A lease is the `lease` column of a container's row: made, taken back and checked only in write
//! transactions, so two containers never hold one ID. Whoever starts a container holds its lock
//! *before* the transaction in which it relies on the lease, and whoever takes a lease back tries that
//! lock *inside* its transaction: so a lease is never taken from a container that is being started.

use rusqlite::Transaction;
use selkie_storage::image_index::ImageIds;
use selkie_userns::pause::JoinedPause;
use selkie_userns::slice::{
    Allocation, Lease, SliceRequest, allocate, custom_maps, host_maps, keep_id_maps, plan_slice,
};
use selkie_userns::{IdMap, IdMaps};

use crate::container::ContainerConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::options::UsernsMode;

/// What a container's ID maps must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// These, shared with whoever else has them; nobody holds them.
    Shared(IdMaps),
    /// UID and GID triples asked for by number (container, pause namespace, count); not while a
    /// slice holds some of them.
    Custom(Vec<(u32, u32, u32)>, Vec<(u32, u32, u32)>),
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
/// `InvalidInput`: a slice where the login has no subordinate IDs to cut it from.
pub(crate) fn plan(
    config: &ContainerConfig,
    image: &ImageIds,
    also: &[IdMaps],
    pause: &JoinedPause,
    login: (u32, u32),
) -> Result<Plan> {
    let (size, keep) = match &config.options.userns {
        UsernsMode::Host => return Ok(Plan::Shared(host_maps(&pause.host_maps))),
        UsernsMode::Maps { uid, gid } => return Ok(Plan::Custom(uid.clone(), gid.clone())),
        UsernsMode::KeepId { uid, gid, size } => (
            *size,
            Some((uid.unwrap_or(login.0), gid.unwrap_or(login.1))),
        ),
        UsernsMode::AutoDefault | UsernsMode::Nomap => (None, None),
        UsernsMode::Auto { size } => (*size, None),
    };
    if pause.single_id {
        return plan_single_id(&config.options.userns, keep, pause);
    }
    let (user, group) = numeric_user(&config.user);
    let request =
        |ids: &std::collections::BTreeSet<u32>, extra: Option<u32>, side: fn(&IdMaps) -> &IdMap| {
            let wanted: Vec<u32> = extra.into_iter().collect();
            let request = plan_slice(ids.iter().copied(), &wanted, size);
            also.iter()
                .flat_map(|maps| side(maps).extents())
                // Those of `--userns=host` are all there are; nobody has files of them all.
                .filter(|extent| extent.count == 1 || extent.inside != extent.outside)
                .fold(request, |mut request, extent| {
                    let end = extent.inside.saturating_add(extent.count);
                    if extent.inside <= request.low_block {
                        request.low_block = request.low_block.max(end);
                    } else {
                        request.strays.extend(extent.inside..end);
                    }
                    request
                })
        };
    Ok(Plan::Slice {
        uid: request(&image.uids, user, |maps| &maps.uid),
        gid: request(&image.gids, group, |maps| &maps.gid),
        keep,
    })
}

/// The numbers in `uid[:gid]`, where they are numbers.
fn numeric_user(user: &str) -> (Option<u32>, Option<u32>) {
    let (user, group) = user.split_once(':').unwrap_or((user, ""));
    (user.parse().ok(), group.parse().ok())
}

/// One ID is all there is: the default mode makes do with it, what asks for more is refused.
fn plan_single_id(
    mode: &UsernsMode,
    keep: Option<(u32, u32)>,
    pause: &JoinedPause,
) -> Result<Plan> {
    let refused = match mode {
        UsernsMode::AutoDefault => None,
        UsernsMode::KeepId { size, .. } if size.is_none_or(|size| size <= 1) => None,
        UsernsMode::KeepId { .. } => Some("--userns=keep-id with a size"),
        UsernsMode::Auto { .. } => Some("--userns=auto"),
        UsernsMode::Nomap => Some("--userns=nomap"),
        UsernsMode::Host | UsernsMode::Maps { .. } => None,
    };
    if let Some(what) = refused {
        let error = Error::new(
            ErrorKind::InvalidInput,
            format!("{what} needs subordinate IDs, and this login has none"),
        );
        return Err(match &pause.single_id_reason {
            Some(reason) => error.with_hint(reason.clone()),
            None => error,
        });
    }
    let (uid, gid) = keep.unwrap_or((0, 0));
    let one = |inside| {
        IdMap::single(inside, 0, 1)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))
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
/// `Conflict` when there is no room; `InvalidInput` for custom maps that are none, leave the login's
/// range or clash with an active container's slice.
pub(crate) fn acquire(
    transaction: &Transaction<'_>,
    plan: &Plan,
    terms: &Terms<'_>,
) -> Result<Acquired> {
    let allocation = match plan {
        Plan::Shared(maps) => {
            return Ok(Acquired {
                maps: maps.clone(),
                exclusive: false,
            });
        }
        Plan::Custom(uid, gid) => acquire_custom(transaction, uid, gid, terms)?,
        Plan::Slice { uid, gid, keep } => {
            let held = held_leases(transaction, terms.own)?;
            match terms.preferred {
                Some(maps) if suits(maps, uid, gid, *keep) && !overlaps_any(maps, held.iter()) => {
                    Allocation {
                        maps: maps.clone(),
                        reclaimed: Vec::new(),
                    }
                }
                _ => allocate_slice(&held, uid, gid, *keep, terms)?,
            }
        }
    };
    for holder in &allocation.reclaimed {
        transaction
            .prepare_cached("UPDATE container SET lease = NULL WHERE name = ?1")?
            .execute([holder])?;
    }
    Ok(Acquired {
        maps: allocation.maps,
        exclusive: true,
    })
}

/// Custom maps may be shared with others that were asked for by number.
fn acquire_custom(
    transaction: &Transaction<'_>,
    uid: &[(u32, u32, u32)],
    gid: &[(u32, u32, u32)],
    terms: &Terms<'_>,
) -> Result<Allocation> {
    let mut leases = Vec::new();
    for held in held_leases(transaction, terms.own)? {
        if !is_custom(transaction, &held.id)? {
            leases.push(held.lease(!(terms.is_active)(&held.id)));
        }
    }
    custom_maps(&terms.pause.host_maps, &leases, uid, gid)
        .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))
}

fn allocate_slice(
    held: &[Held],
    uid: &SliceRequest,
    gid: &SliceRequest,
    keep: Option<(u32, u32)>,
    terms: &Terms<'_>,
) -> Result<Allocation> {
    let pool = &terms.pause.host_maps;
    // Nothing can be apart from all there is: a volume that a host-mode container has used is moved
    // in one pass, as it is.
    let host = host_maps(pool);
    let avoid: Vec<IdMaps> = terms
        .avoid
        .iter()
        .filter(|maps| **maps != host)
        .cloned()
        .collect();
    let attempt = |leases: &[Lease]| match keep {
        None => allocate(pool, leases, &avoid, uid, gid),
        Some(keep) => keep_id_maps(pool, leases, &avoid, uid, gid, keep),
    };
    let leases: Vec<Lease> = held.iter().map(|held| held.lease(false)).collect();
    attempt(&leases)
        .or_else(|_| {
            // Only now is it worth asking the kernel about each holder.
            let leases: Vec<Lease> = held
                .iter()
                .map(|held| held.lease(!(terms.is_active)(&held.id)))
                .collect();
            attempt(&leases)
        })
        .map_err(|exhausted| Error::new(ErrorKind::Conflict, exhausted.to_string()))
}

struct Held {
    id: String,
    name: String,
    maps: IdMaps,
}

impl Held {
    fn lease(&self, reclaimable: bool) -> Lease {
        Lease {
            holder: self.name.clone(),
            maps: self.maps.clone(),
            reclaimable,
        }
    }
}

/// All leases but the container's own, oldest first.
fn held_leases(transaction: &Transaction<'_>, own: Option<&str>) -> Result<Vec<Held>> {
    let mut statement = transaction.prepare(
        "SELECT id, name, lease FROM container \
         WHERE lease IS NOT NULL AND id IS NOT ?1 ORDER BY created",
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

fn is_custom(transaction: &Transaction<'_>, id: &str) -> Result<bool> {
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

/// True when `maps` serve the request as they are.
fn suits(maps: &IdMaps, uid: &SliceRequest, gid: &SliceRequest, keep: Option<(u32, u32)>) -> bool {
    let covers = |map: &IdMap, request: &SliceRequest, keep: Option<u32>| {
        request
            .strays
            .iter()
            .copied()
            .chain(0..request.low_block)
            .all(|inside| map.to_outside(inside).is_some())
            && keep == map.to_inside(0)
    };
    covers(&maps.uid, uid, keep.map(|keep| keep.0))
        && covers(&maps.gid, gid, keep.map(|keep| keep.1))
}

fn overlaps_any<'h>(maps: &IdMaps, mut held: impl Iterator<Item = &'h Held>) -> bool {
    held.any(|held| overlap(&held.maps, maps))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Database, Durability};
    use crate::options::CreateOptions;
    use crate::testing::{container_config, pause};

    fn config(userns: UsernsMode, user: &str) -> ContainerConfig {
        let options = CreateOptions {
            userns,
            ..Default::default()
        };
        ContainerConfig {
            user: user.to_owned(),
            ..container_config(options)
        }
    }

    fn plan_for(userns: UsernsMode, user: &str, also: &[IdMaps]) -> Plan {
        let config = config(userns, user);
        plan(&config, &ImageIds::default(), also, &pause(65_536), (7, 8)).unwrap()
    }

    /// A database with one container per (name, lease).
    fn database(leases: &[(&str, &IdMaps)]) -> (tempfile::TempDir, Database) {
        let temp = tempfile::tempdir().unwrap();
        let mut database = Database::open(&temp.path().join("data")).unwrap();
        database
            .write(Durability::ProcessCrash, |transaction| {
                for (name, maps) in leases {
                    transaction.execute(
                        "INSERT INTO container (id, name, created, config, lease, disposable) \
                         VALUES (?1, ?1, ?1, ?2, ?3, 0)",
                        [
                            *name,
                            &serde_json::to_string(&config(UsernsMode::AutoDefault, "")).unwrap(),
                            &maps_json(maps)?,
                        ],
                    )?;
                }
                Ok(())
            })
            .unwrap();
        (temp, database)
    }

    fn acquire_in(
        database: &mut Database,
        plan: &Plan,
        pause: &JoinedPause,
        preferred: Option<&IdMaps>,
        active: &[&str],
    ) -> Result<Acquired> {
        database.write(Durability::ProcessCrash, |transaction| {
            acquire(
                transaction,
                plan,
                &Terms {
                    pause,
                    own: None,
                    preferred,
                    avoid: &[],
                    is_active: &|id| active.contains(&id),
                },
            )
        })
    }

    fn has_lease(database: &Database, name: &str) -> bool {
        database
            .read(|connection| {
                let sql = "SELECT lease IS NOT NULL FROM container WHERE name = ?1";
                Ok(connection.query_row(sql, [name], |row| row.get(0))?)
            })
            .unwrap()
    }

    #[test]
    fn users_and_volumes_add_to_what_is_wanted() {
        let also = IdMaps {
            uid: IdMap::single(0, 5000, 300).unwrap(),
            gid: IdMap::single(20_000, 5000, 1).unwrap(),
        };
        let host = IdMaps {
            uid: IdMap::single(0, 0, 65_537).unwrap(),
            gid: IdMap::single(0, 0, 65_537).unwrap(),
        };
        let Plan::Slice { uid, gid, keep } =
            plan_for(UsernsMode::AutoDefault, "5000:x", &[also, host])
        else {
            panic!("no slice");
        };
        assert_eq!((uid.low_block, keep), (300, None));
        assert!(uid.strays.contains(&5000) && gid.strays.contains(&20_000));
        assert!(!gid.strays.contains(&5000));
    }

    #[test]
    fn keep_id_and_host_share_the_login() {
        let keep = UsernsMode::KeepId {
            uid: None,
            gid: Some(5),
            size: None,
        };
        let Plan::Slice { keep, .. } = plan_for(keep, "", &[]) else {
            panic!("no slice");
        };
        assert_eq!(keep, Some((7, 5)));
        let Plan::Shared(maps) = plan_for(UsernsMode::Host, "", &[]) else {
            panic!("not shared");
        };
        assert_eq!(maps.uid.to_outside(0), Some(0));
        assert_eq!(maps.gid.to_outside(65_536), Some(65_536));
    }

    #[test]
    fn a_login_without_a_range_gets_one_id_and_is_told_what_it_cannot_have() {
        let mut pause = pause(1);
        pause.single_id = true;
        pause.single_id_reason = Some("ask the admin".to_owned());
        let plan_for = |userns| {
            plan(
                &config(userns, ""),
                &ImageIds::default(),
                &[],
                &pause,
                (7, 8),
            )
        };
        let Plan::Shared(maps) = plan_for(UsernsMode::AutoDefault).unwrap() else {
            panic!("not shared");
        };
        assert_eq!((maps.uid.to_outside(0), maps.uid.id_count()), (Some(0), 1));
        for refused in [UsernsMode::Auto { size: None }, UsernsMode::Nomap] {
            let error = plan_for(refused).unwrap_err();
            assert_eq!(error.hint.as_deref(), Some("ask the admin"));
        }
    }

    #[test]
    fn stopped_holders_give_way_and_running_ones_do_not() {
        let pause = pause(400);
        let maps = |outside| IdMaps {
            uid: IdMap::single(0, outside, 200).unwrap(),
            gid: IdMap::single(0, outside, 200).unwrap(),
        };
        let (_temp, mut database) = database(&[("a", &maps(1)), ("b", &maps(201))]);
        let plan = plan_for(UsernsMode::AutoDefault, "", &[]);
        let error = acquire_in(&mut database, &plan, &pause, None, &["a", "b"]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.message.contains("a (200)"), "{}", error.message);

        let got = acquire_in(&mut database, &plan, &pause, None, &["a"]).unwrap();
        assert!(got.exclusive && !overlap(&got.maps, &maps(1)));
        assert!(has_lease(&database, "a") && !has_lease(&database, "b"));
    }

    #[test]
    fn the_same_ids_are_taken_again_when_free() {
        let pause = pause(1000);
        let plan = plan_for(UsernsMode::AutoDefault, "", &[]);
        let (_temp, mut database) = database(&[]);
        let first = acquire_in(&mut database, &plan, &pause, None, &[]).unwrap();
        let other = IdMaps {
            uid: IdMap::new(
                first
                    .maps
                    .uid
                    .extents()
                    .iter()
                    .map(|extent| selkie_userns::IdExtent {
                        outside: extent.outside + 200,
                        ..*extent
                    })
                    .filter(|extent| extent.outside + extent.count < 1000)
                    .collect(),
            )
            .unwrap(),
            gid: first.maps.gid.clone(),
        };
        // One that lacks an ID is of no use.
        let got = acquire_in(&mut database, &plan, &pause, Some(&other), &[]).unwrap();
        assert_ne!(got.maps, other);
        let again = acquire_in(&mut database, &plan, &pause, Some(&first.maps), &[]).unwrap();
        assert_eq!(again.maps, first.maps);
    }

    #[test]
    fn new_ids_are_apart_from_old_owners_but_not_from_everything() {
        let pause = pause(1000);
        let plan = plan_for(UsernsMode::AutoDefault, "", &[]);
        let (_temp, mut database) = database(&[]);
        let mut got_apart_from = |avoid: &[IdMaps]| {
            let terms = Terms {
                pause: &pause,
                own: None,
                preferred: None,
                avoid,
                is_active: &|_| false,
            };
            database
                .write(Durability::ProcessCrash, |transaction| {
                    acquire(transaction, &plan, &terms)
                })
                .unwrap()
                .maps
        };
        let first = got_apart_from(&[]);
        let second = got_apart_from(std::slice::from_ref(&first));
        assert!(!overlap(&first, &second));
        assert_eq!(got_apart_from(&[host_maps(&pause.host_maps)]), first);
    }

    #[test]
    fn custom_maps_respect_running_slices() {
        let pause = pause(1000);
        let slice = IdMaps {
            uid: IdMap::single(0, 1, 150).unwrap(),
            gid: IdMap::single(0, 1, 150).unwrap(),
        };
        let (_temp, mut database) = database(&[("web", &slice)]);
        let plan = Plan::Custom(vec![(0, 100, 100)], vec![]);
        let error = acquire_in(&mut database, &plan, &pause, None, &["web"]).unwrap_err();
        assert!(error.message.contains("web"), "{}", error.message);
        assert!(acquire_in(&mut database, &plan, &pause, None, &[]).is_ok());
        assert!(!has_lease(&database, "web"));
    }
}
