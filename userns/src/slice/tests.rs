use proptest::prelude::*;

use super::*;
use crate::id_map::{IdExtent, IdMap};

/// A login with the given ranges, UIDs and GIDs alike.
fn pause(ranges: &[(u32, u32)]) -> IdMaps {
    let mut extents = vec![IdExtent {
        inside: 0,
        outside: 1000,
        count: 1,
    }];
    let mut inside = 1;
    for (outside, count) in ranges {
        extents.push(IdExtent {
            inside,
            outside: *outside,
            count: *count,
        });
        inside += count;
    }
    let map = IdMap::new(extents).unwrap();
    IdMaps {
        uid: map.clone(),
        gid: map,
    }
}

fn request(low_block: u32, strays: impl IntoIterator<Item = u32>) -> SliceRequest {
    SliceRequest {
        low_block,
        strays: strays.into_iter().collect(),
    }
}

fn lease(holder: impl Into<String>, maps: &IdMaps, reclaimable: bool) -> Lease {
    Lease {
        holder: holder.into(),
        maps: maps.clone(),
        reclaimable,
    }
}

fn both(pause: &IdMaps, leases: &[Lease], request: &SliceRequest) -> Result<Allocation, Exhausted> {
    allocate(pause, leases, &[], request, request)
}

/// Allocates until there is no room.
fn fill(pause: &IdMaps, request: &SliceRequest, reclaimable: bool) -> Vec<Lease> {
    let mut leases = Vec::new();
    while let Ok(allocation) = both(pause, &leases, request) {
        if !allocation.reclaimed.is_empty() {
            break;
        }
        leases.push(lease(
            format!("c{}", leases.len()),
            &allocation.maps,
            reclaimable,
        ));
    }
    leases
}

#[test]
fn a_small_image_takes_the_smallest_slice() {
    let plan = plan_slice([0, 33, 42, 100, 65_534], &[], None);
    assert_eq!(plan.low_block, 128);
    assert_eq!(plan.strays, (994..=1009).chain([65_534]).collect());
    assert_eq!(plan.low_block + plan.strays.len() as u32, SMALLEST_SLICE);
}

#[test]
fn system_ids_that_lie_close_extend_the_low_block_and_far_ones_do_not() {
    let fedora = plan_slice([0, 81, 190, 193, 998, 999], &[], None);
    assert_eq!(fedora.low_block, 194);
    assert!(fedora.strays.contains(&998));
    let users = plan_slice([0, 1000, 5000], &[7000], None);
    assert_eq!(users.low_block, 128);
    assert!([5000, 7000].iter().all(|id| users.strays.contains(id)));
    assert!(!users.strays.contains(&0));
}

#[test]
fn a_size_is_taken_at_its_word() {
    let plan = plan_slice([0, 5000], &[], Some(1024));
    assert_eq!(plan, request(1024, [65_534]));
    assert_eq!(
        plan_slice([0, 5000], &[], Some(65_536)),
        request(65_536, [])
    );
    assert_eq!(
        plan_slice([], &[5000], Some(1024)),
        request(1024, [5000, 65_534])
    );
}

#[test]
fn thousands_of_scattered_ids_still_make_a_map() {
    let ids: Vec<u32> = (0..1000).map(|i| 2000 + i * 7).collect();
    let plan = plan_slice(ids.clone(), &[], None);
    assert!(ids.iter().all(|id| plan.strays.contains(id)));
    let maps = both(&pause(&[(100_000, 65_536)]), &[], &plan).unwrap().maps;
    assert!(ids.iter().all(|id| maps.uid.to_outside(*id).is_some()));
    // Too far apart to join: refused with the reason, not cut short.
    let far = plan_slice((0..1000).map(|i| 2000 + i * 10_000), &[u32::MAX], None);
    let error = both(&pause(&[(100_000, 1 << 24)]), &[], &far).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("more pieces than one ID map can hold"),
        "{error}"
    );
}

#[test]
fn more_than_450_slices_fit_into_the_usual_range() {
    let login = pause(&[(100_000, 65_536)]);
    let plan = plan_slice([0, 33, 65_534], &[], None);
    let leases = fill(&login, &plan, false);
    assert!(leases.len() > 450, "{}", leases.len());
    let low = leases
        .iter()
        .map(|lease| lease.maps.uid.to_outside(0).unwrap());
    // Low blocks stand shoulder to shoulder from the bottom.
    assert!(low.eq((0..leases.len() as u32).map(|index| 1 + index * 128)));
}

#[test]
fn a_low_block_never_spans_two_host_ranges() {
    let login = pause(&[(100_000, 200), (300_000, 200)]);
    let plan = request(150, []);
    let first = both(&login, &[], &plan).unwrap().maps;
    assert_eq!(first.uid.to_outside(0), Some(1));
    let second = both(&login, &[lease("a", &first, false)], &plan)
        .unwrap()
        .maps;
    assert_eq!(second.uid.to_outside(0), Some(201));
    assert_eq!(second.uid.compose(&login.uid).unwrap().extents().len(), 1);
}

#[test]
fn strays_fill_holes_before_they_open_new_ground() {
    let login = pause(&[(100_000, 10_000)]);
    let plan = request(128, 1000..1010);
    let mut leases = fill(&login, &plan, false);
    leases.remove(3);
    leases.remove(40);
    let again = both(&login, &leases, &plan).unwrap().maps;
    assert_eq!(again.uid.to_outside(0), Some(1 + 3 * 128));
    // The strays of both removed ones were ten-ID holes at the top.
    let stray = again.uid.to_outside(1000).unwrap();
    assert!(stray > 9000 && (10_000 - stray) % 10 == 9, "{stray}");
}

#[test]
fn stopped_holders_give_back_no_more_than_needed_the_oldest_first() {
    let login = pause(&[(100_000, 1000)]);
    let plan = request(100, []);
    let mut leases = fill(&login, &plan, true);
    assert_eq!(leases.len(), 10);
    leases[0].reclaimable = false;
    assert_eq!(both(&login, &leases, &plan).unwrap().reclaimed, ["c1"]);
    // Three neighbours are needed; the running first and the order decide which.
    let large = both(&login, &leases, &request(300, [])).unwrap();
    assert_eq!(large.reclaimed, ["c1", "c2", "c3"]);
    // c1 alone is between two running ones, so it would be taken in vain.
    leases[2].reclaimable = false;
    let pair = both(&login, &leases, &request(200, [])).unwrap();
    assert_eq!(pair.reclaimed, ["c3", "c4"]);
}

#[test]
fn exhaustion_names_counts_and_holders() {
    let login = pause(&[(100_000, 1000)]);
    let mut leases = fill(&login, &request(100, []), false);
    leases[4].reclaimable = true;
    let error = both(&login, &leases, &request(128, [65_534])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no room for a slice: 129 UIDs are wanted, 128 of them in one piece; of the login's 1000, \
         100 are free, at most 100 in one piece; held by c0 (100), c1 (100), c2 (100), c3 (100), \
         c5 (100) and 4 more running containers; stop containers that are not needed, ask for \
         fewer IDs (--userns=auto:size=N), or get a larger range (docs/subuid.md)"
    );
}

#[test]
fn a_login_without_subordinate_ids_is_told_so() {
    let error = both(&pause(&[]), &[], &request(128, [])).unwrap_err();
    assert!(
        error.to_string().contains("has no subordinate UIDs"),
        "{error}"
    );
}

#[test]
fn uids_and_gids_are_reclaimed_together() {
    let login = IdMaps {
        uid: pause(&[(100_000, 1000)]).uid,
        gid: pause(&[(100_000, 100)]).gid,
    };
    let plan = request(100, []);
    let first = both(&login, &[], &plan).unwrap().maps;
    let held = [lease("old", &first, true)];
    let second = both(&login, &held, &plan).unwrap();
    assert_eq!(second.reclaimed, ["old"]);
    assert_eq!(second.maps, first);
}

#[test]
fn avoided_ids_are_never_chosen() {
    let login = pause(&[(100_000, 300)]);
    let avoid = pause(&[]);
    let block = IdMap::single(0, 1, 100).unwrap();
    let avoid = [
        IdMaps {
            uid: block.clone(),
            gid: block,
        },
        avoid,
    ];
    let plan = request(100, []);
    let maps = allocate(&login, &[], &avoid, &plan, &plan).unwrap().maps;
    assert_eq!(maps.uid.to_outside(0), Some(101));
}

#[test]
fn keep_id_puts_the_login_into_its_place() {
    let login = pause(&[(100_000, 65_536)]);
    let plan = plan_slice([0, 33], &[], None);
    let low = keep_id_maps(&login, &[], &[], &plan, &plan, (33, 0))
        .unwrap()
        .maps;
    assert_eq!(low.uid.to_outside(33), Some(0));
    assert_eq!(low.uid.to_outside(32), Some(33));
    assert_eq!(low.uid.to_outside(34), Some(35));
    assert_eq!(low.gid.to_outside(0), Some(0));
    assert_eq!(low.gid.to_outside(1), Some(2));
    let stray = keep_id_maps(&login, &[], &[], &plan, &plan, (1000, 70_000))
        .unwrap()
        .maps;
    assert_eq!(stray.uid.to_outside(1000), Some(0));
    assert_eq!(stray.gid.to_outside(70_000), Some(0));
    assert_eq!(stray.uid.id_count(), u64::from(SMALLEST_SLICE));
    assert!(maps_login(&stray));
    // Two at once share nothing but the login.
    let held = [lease("first", &stray, false)];
    let second = keep_id_maps(&login, &held, &[], &plan, &plan, (1000, 1000))
        .unwrap()
        .maps;
    assert_eq!(second.uid.to_outside(0), Some(129));
    assert_eq!(second.uid.to_outside(1000), Some(0));
}

#[test]
fn host_mode_is_the_identity() {
    let maps = host_maps(&pause(&[(100_000, 10), (200_000, 10)]));
    assert_eq!(
        maps.uid.extents(),
        [IdExtent {
            inside: 0,
            outside: 0,
            count: 21
        }]
    );
}

#[test]
fn custom_maps_are_checked_against_namespace_and_holders() {
    let login = pause(&[(100_000, 1000)]);
    let custom = |leases: &[Lease], uid: &[(u32, u32, u32)]| custom_maps(&login, leases, uid, &[]);
    let maps = custom(&[], &[(0, 0, 1), (1, 500, 501)]).unwrap().maps;
    assert!(maps_login(&maps));
    assert_eq!(maps.uid, maps.gid);
    assert_eq!(custom(&[], &[]).unwrap_err(), CustomMapError::Empty);
    assert!(matches!(
        custom(&[], &[(0, 500, 502)]),
        Err(CustomMapError::OutsideNamespace { last: 1000, .. })
    ));
    assert!(matches!(
        custom(&[], &[(0, 5, 2), (1, 9, 1)]),
        Err(CustomMapError::Invalid { .. })
    ));
    let mut held = [lease("web", &maps, false)];
    match custom(&held, &[(0, 1000, 1)]) {
        Err(CustomMapError::Held { holder, .. }) => assert_eq!(holder, "web"),
        other => panic!("{other:?}"),
    }
    // The login itself is nobody's.
    assert!(custom(&held, &[(0, 0, 1), (5, 1, 499)]).is_ok());
    held[0].reclaimable = true;
    assert_eq!(custom(&held, &[(0, 1000, 1)]).unwrap().reclaimed, ["web"]);
}

/// What all allocations must have.
fn assert_sound(login: &IdMaps, leases: &[Lease], maps: &IdMaps, request: &SliceRequest) {
    for (map, login_map, of) in [
        (
            &maps.uid,
            &login.uid,
            (|maps| &maps.uid) as fn(&IdMaps) -> &IdMap,
        ),
        (&maps.gid, &login.gid, |maps| &maps.gid),
    ] {
        assert_eq!(map.to_inside(0), None, "contains the login");
        for extent in map.extents() {
            for other in leases.iter().flat_map(|lease| of(&lease.maps).extents()) {
                assert!(
                    extent.outside >= other.outside + other.count
                        || other.outside >= extent.outside + extent.count,
                    "{extent} overlaps {other}"
                );
            }
        }
        let wanted = (0..request.low_block).chain(request.strays.iter().copied());
        for id in wanted {
            let outside = map.to_outside(id).expect("every wanted ID is mapped");
            assert!(
                login_map.to_outside(outside).is_some(),
                "exists in the login's namespace"
            );
        }
        let host = map.compose(login_map).unwrap();
        let base = host.to_outside(0);
        for id in [request.low_block / 2, request.low_block - 1] {
            assert_eq!(
                host.to_outside(id),
                base.map(|base| base + id),
                "contiguous on the host"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn slices_never_overlap_whatever_comes_and_goes(
        ranges in prop::collection::vec(50u32..3000, 1..4),
        steps in prop::collection::vec(
            (1u32..300, prop::collection::btree_set(300u32..70_000, 0..20), any::<bool>(), any::<prop::sample::Index>()),
            1..40,
        ),
    ) {
        let mut start = 100_000;
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|count| { let range = (start, count); start += count + 1; range })
            .collect();
        let login = pause(&ranges);
        let mut leases: Vec<Lease> = Vec::new();
        for (step, (low_block, strays, remove, which)) in steps.into_iter().enumerate() {
            if remove && !leases.is_empty() {
                let index = which.index(leases.len());
                leases.remove(index);
            }
            let plan = SliceRequest { low_block, strays };
            let found = both(&login, &leases, &plan);
            let same = both(&login, &leases, &plan);
            prop_assert_eq!(found.as_ref().map(|a| &a.maps).ok(), same.as_ref().map(|a| &a.maps).ok());
            match found {
                Ok(allocation) => {
                    for holder in &allocation.reclaimed {
                        let lost = leases.iter().position(|lease| lease.holder == *holder).unwrap();
                        prop_assert!(leases[lost].reclaimable);
                        leases.remove(lost);
                    }
                    assert_sound(&login, &leases, &allocation.maps, &plan);
                    leases.push(lease(format!("c{step}"), &allocation.maps, step % 3 == 0));
                }
                Err(error) => {
                    prop_assert_eq!(error.wanted, u64::from(low_block) + plan.strays.len() as u64);
                    prop_assert!(error.largest_gap < low_block || error.free < error.wanted);
                }
            }
        }
    }

    #[test]
    fn any_plan_is_sane(
        ids in prop::collection::btree_set(any::<u32>(), 0..600),
        wanted in prop::collection::vec(any::<u32>(), 0..3),
        size in prop::option::of(1u32..100_000),
    ) {
        let plan = plan_slice(ids.iter().copied(), &wanted, size);
        prop_assert!(plan.strays.range(..plan.low_block).next().is_none());
        prop_assert!(plan.low_block > NOBODY || plan.strays.contains(&NOBODY));
        prop_assert!(!plan.strays.contains(&u32::MAX));
        let mapped = |id: &u32| *id < plan.low_block || plan.strays.contains(id);
        prop_assert!(wanted.iter().filter(|id| **id != u32::MAX).all(mapped));
        if size.is_none() {
            prop_assert!(ids.iter().filter(|id| **id != u32::MAX).all(mapped));
            prop_assert!((DEFAULT_LOW_BLOCK..=1000).contains(&plan.low_block));
        }
    }
}
