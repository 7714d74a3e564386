//! ID maps as `/proc/PID/uid_map` knows them (user_namespaces(7)).

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Most extents the kernel takes for one map (`UID_GID_MAP_MAX_EXTENTS`, since 4.15).
pub const MAX_EXTENTS: usize = 340;

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

impl IdExtent {
    /// Last ID on each side, or `None` when it is empty or runs past 4294967294 (4294967295 is
    /// the kernel's "no ID").
    fn last(&self) -> Option<(u32, u32)> {
        let more = self.count.checked_sub(1)?;
        let inside = self.inside.checked_add(more)?;
        let outside = self.outside.checked_add(more)?;
        (inside < u32::MAX && outside < u32::MAX).then_some((inside, outside))
    }

    /// True when `next` continues this extent on both sides.
    fn continues_into(&self, next: &Self) -> bool {
        self.inside.checked_add(self.count) == Some(next.inside)
            && self.outside.checked_add(self.count) == Some(next.outside)
    }
}

/// Extents sorted by `inside`; neither side overlaps itself; at most 340 (kernel limit).
///
/// Two extents that continue each other on both sides are always one, so equal maps compare equal.
/// Serialised as the plain list of extents, and checked again when read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<IdExtent>", into = "Vec<IdExtent>")]
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
    #[error("extents {0} and {1} overlap on the {2} side")]
    Overlap(IdExtent, IdExtent, &'static str),
    /// An extent is empty or runs past 4294967294.
    #[error("extent {0} is empty or runs past the largest ID, 4294967294")]
    BadExtent(IdExtent),
    /// More extents than the kernel takes.
    #[error("{0} extents; the kernel takes {MAX_EXTENTS} at most")]
    TooMany(usize),
    /// A line that is not three decimal numbers.
    #[error("`{0}` is not an ID map line (three numbers: inside, outside, count)")]
    BadLine(String),
}

impl std::fmt::Display for IdExtent {
    /// `inside:outside:count`, as `--uidmap` writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.inside, self.outside, self.count)
    }
}

impl TryFrom<Vec<IdExtent>> for IdMap {
    type Error = IdMapError;
    fn try_from(extents: Vec<IdExtent>) -> Result<Self, IdMapError> {
        Self::new(extents)
    }
}

impl From<IdMap> for Vec<IdExtent> {
    fn from(map: IdMap) -> Self {
        map.0
    }
}

impl IdMap {
    /// Sorts, merges neighbours and checks.
    pub fn new(mut extents: Vec<IdExtent>) -> Result<Self, IdMapError> {
        if let Some(bad) = extents.iter().find(|extent| extent.last().is_none()) {
            return Err(IdMapError::BadExtent(*bad));
        }
        extents.sort_unstable_by_key(|extent| extent.outside);
        refuse_overlap(&extents, "outside", |extent| extent.outside)?;
        extents.sort_unstable_by_key(|extent| extent.inside);
        refuse_overlap(&extents, "inside", |extent| extent.inside)?;
        extents.dedup_by(|next, first| {
            let merge = first.continues_into(next);
            if merge {
                first.count += next.count;
            }
            merge
        });
        if extents.len() > MAX_EXTENTS {
            return Err(IdMapError::TooMany(extents.len()));
        }
        Ok(Self(extents))
    }

    /// The map with one extent.
    pub fn single(inside: u32, outside: u32, count: u32) -> Result<Self, IdMapError> {
        Self::new(vec![IdExtent {
            inside,
            outside,
            count,
        }])
    }

    /// The extents, sorted by `inside`.
    pub fn extents(&self) -> &[IdExtent] {
        &self.0
    }

    /// Parent-side ID of a child-side one.
    pub fn to_outside(&self, inside: u32) -> Option<u32> {
        let after = self.0.partition_point(|extent| extent.inside <= inside);
        let extent = self.0[..after].last()?;
        let offset = inside - extent.inside;
        (offset < extent.count).then(|| extent.outside + offset)
    }

    /// Child-side ID of a parent-side one.
    pub fn to_inside(&self, outside: u32) -> Option<u32> {
        self.0.iter().find_map(|extent| {
            let offset = outside.checked_sub(extent.outside)?;
            (offset < extent.count).then(|| extent.inside + offset)
        })
    }

    /// How many IDs it maps.
    pub fn id_count(&self) -> u64 {
        self.0.iter().map(|extent| u64::from(extent.count)).sum()
    }

    /// The text written to `/proc/PID/uid_map`.
    pub fn to_proc_text(&self) -> String {
        let mut text = String::new();
        for extent in &self.0 {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{} {} {}",
                extent.inside, extent.outside, extent.count
            );
        }
        text
    }

    /// Reads the text of `/proc/PID/uid_map`.
    pub fn parse_proc_text(text: &str) -> Result<Self, IdMapError> {
        let bad = |line: &str| IdMapError::BadLine(line.trim().to_owned());
        let mut extents = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let mut fields = line.split_ascii_whitespace().map(str::parse);
            let (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(count)), None) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                return Err(bad(line));
            };
            extents.push(IdExtent {
                inside,
                outside,
                count,
            });
        }
        Self::new(extents)
    }

    /// This map seen through its parent's: if `self` is container ↔ pause namespace and `parent`
    /// is pause namespace ↔ host, the result is container ↔ host. IDs that `parent` does not map
    /// are left out.
    ///
    /// # Errors
    /// [`IdMapError::TooMany`] when the parent's borders cut it into more than 340 extents.
    pub fn compose(&self, parent: &Self) -> Result<Self, IdMapError> {
        let mut extents = Vec::new();
        for own in &self.0 {
            for up in &parent.0 {
                // In 64 bits the exclusive ends cannot overflow.
                let start = u64::from(own.outside.max(up.inside));
                let own_end = u64::from(own.outside) + u64::from(own.count);
                let up_end = u64::from(up.inside) + u64::from(up.count);
                let end = own_end.min(up_end);
                if start < end {
                    extents.push(IdExtent {
                        inside: own.inside + (start - u64::from(own.outside)) as u32,
                        outside: up.outside + (start - u64::from(up.inside)) as u32,
                        count: (end - start) as u32,
                    });
                }
            }
        }
        Self::new(extents)
    }
}

impl IdMaps {
    /// [`IdMap::compose`] of both maps.
    pub fn compose(&self, parent: &Self) -> Result<Self, IdMapError> {
        Ok(Self {
            uid: self.uid.compose(&parent.uid)?,
            gid: self.gid.compose(&parent.gid)?,
        })
    }
}

/// `extents` are sorted by `start`, and none runs past `u32::MAX`.
fn refuse_overlap(
    extents: &[IdExtent],
    side: &'static str,
    start: impl Fn(&IdExtent) -> u32,
) -> Result<(), IdMapError> {
    for pair in extents.windows(2) {
        if start(&pair[1]) - start(&pair[0]) < pair[0].count {
            return Err(IdMapError::Overlap(pair[0], pair[1], side));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(inside: u32, outside: u32, count: u32) -> IdExtent {
        IdExtent {
            inside,
            outside,
            count,
        }
    }

    #[test]
    fn neighbours_on_both_sides_become_one_extent() {
        let map = IdMap::new(vec![extent(10, 110, 5), extent(0, 100, 10)]).unwrap();
        assert_eq!(map.extents(), [extent(0, 100, 15)]);
        let apart = IdMap::new(vec![extent(10, 111, 5), extent(0, 100, 10)]).unwrap();
        assert_eq!(apart.extents().len(), 2);
    }

    #[test]
    fn overlaps_name_their_side() {
        let inside = IdMap::new(vec![extent(0, 100, 10), extent(9, 200, 1)]);
        assert!(matches!(inside, Err(IdMapError::Overlap(_, _, "inside"))));
        let outside = IdMap::new(vec![extent(0, 100, 10), extent(20, 95, 6)]);
        assert!(matches!(outside, Err(IdMapError::Overlap(_, _, "outside"))));
    }

    #[test]
    fn extents_stay_below_the_kernels_invalid_id() {
        assert!(IdMap::single(0, 0, u32::MAX).is_ok());
        for bad in [
            extent(0, 0, 0),
            extent(1, 0, u32::MAX),
            extent(0, u32::MAX, 1),
        ] {
            assert_eq!(IdMap::new(vec![bad]), Err(IdMapError::BadExtent(bad)));
        }
    }

    #[test]
    fn the_kernels_extent_limit_holds_after_merging() {
        let scattered = |n: u32| {
            (0..n)
                .map(|i| extent(i * 2, i * 2 + 7, 1))
                .collect::<Vec<_>>()
        };
        assert!(IdMap::new(scattered(340)).is_ok());
        assert_eq!(IdMap::new(scattered(341)), Err(IdMapError::TooMany(341)));
        let touching = (0..1000).map(|i| extent(i, i + 7, 1)).collect();
        assert_eq!(
            IdMap::new(touching).unwrap().extents(),
            [extent(0, 7, 1000)]
        );
    }

    #[test]
    fn the_initial_namespaces_own_map_parses() {
        let map = IdMap::parse_proc_text("         0          0 4294967295\n").unwrap();
        assert_eq!(map.to_outside(4294967294), Some(4294967294));
        assert_eq!(map.to_outside(u32::MAX), None);
        for bad in ["0 0", "0 0 1 1", "a 0 1", "-1 0 1", "0 0 4294967296"] {
            assert!(matches!(
                IdMap::parse_proc_text(bad),
                Err(IdMapError::BadLine(_))
            ));
        }
    }

    #[test]
    fn a_slice_seen_from_the_host() {
        let pause = IdMap::new(vec![extent(0, 1000, 1), extent(1, 100_000, 65_536)]).unwrap();
        let slice = IdMap::new(vec![extent(0, 500, 128), extent(65_534, 9_000, 1)]).unwrap();
        let host = slice.compose(&pause).unwrap();
        assert_eq!(host.to_outside(33), Some(100_000 + 499 + 33));
        assert_eq!(host.to_outside(65_534), Some(108_999));
        // 0..10 of a child on 65530.. of the pause namespace: it ends at 65536.
        let edge = IdMap::single(0, 65_530, 10)
            .unwrap()
            .compose(&pause)
            .unwrap();
        assert_eq!(edge.extents(), [extent(0, 165_529, 7)]);
    }

    #[test]
    fn stored_maps_are_checked_when_read() {
        let stored = r#"[{"inside":0,"outside":5,"count":2},{"inside":1,"outside":9,"count":1}]"#;
        let error = serde_json::from_str::<IdMap>(stored).unwrap_err();
        assert!(error.to_string().contains("0:5:2 and 1:9:1 overlap"));
    }

    prop_compose! {
        /// Extents that do not overlap, in any order.
        fn valid_extents()(
            pieces in prop::collection::vec((0u32..50, 0u32..50, 1u32..2000), 0..20),
            rotate in any::<prop::sample::Index>(),
        ) -> Vec<IdExtent> {
            let (mut inside, mut outside) = (0, 100);
            let mut extents: Vec<_> = pieces
                .into_iter()
                .map(|(inside_gap, outside_gap, count)| {
                    let next = extent(inside + inside_gap, outside + outside_gap, count);
                    inside = next.inside + count;
                    outside = next.outside + count;
                    next
                })
                .collect();
            if !extents.is_empty() {
                let by = rotate.index(extents.len());
                extents.rotate_left(by);
            }
            extents
        }
    }

    proptest! {
        #[test]
        fn any_extents_make_a_map_or_an_error(
            raw in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 0..400)
        ) {
            let extents = raw.into_iter().map(|(i, o, c)| extent(i, o, c)).collect();
            if let Ok(map) = IdMap::new(extents) {
                prop_assert!(map.extents().len() <= MAX_EXTENTS);
            }
        }

        #[test]
        fn any_text_parses_or_is_an_error(text in "[0-9 \n-]{0,80}|\\PC{0,40}") {
            let _ = IdMap::parse_proc_text(&text);
        }

        #[test]
        fn both_directions_agree_and_the_order_given_does_not_matter(extents in valid_extents()) {
            let map = IdMap::new(extents.clone()).unwrap();
            let total: u64 = extents.iter().map(|extent| u64::from(extent.count)).sum();
            prop_assert_eq!(map.id_count(), total);
            for given in &extents {
                for offset in [0, given.count / 2, given.count - 1] {
                    prop_assert_eq!(map.to_outside(given.inside + offset), Some(given.outside + offset));
                    prop_assert_eq!(map.to_inside(given.outside + offset), Some(given.inside + offset));
                }
            }
            for pair in map.extents().windows(2) {
                prop_assert!(!pair[0].continues_into(&pair[1]));
            }
            prop_assert_eq!(&IdMap::parse_proc_text(&map.to_proc_text()).unwrap(), &map);
            let json = serde_json::to_string(&map).unwrap();
            prop_assert_eq!(serde_json::from_str::<IdMap>(&json).unwrap(), map);
        }

        #[test]
        fn composing_equals_mapping_twice(
            child in valid_extents(), parent in valid_extents(), probe in 0u32..20_000
        ) {
            let (child, parent) = (IdMap::new(child).unwrap(), IdMap::new(parent).unwrap());
            if let Ok(both) = child.compose(&parent) {
                let twice = child.to_outside(probe).and_then(|id| parent.to_outside(id));
                prop_assert_eq!(both.to_outside(probe), twice);
            }
        }
    }
}
