//! Maps of sparse files: the parts a member holds, the rest being holes.

use super::header::{self, BLOCK, Block};
use super::pax;

/// Parts as (offset, length).
pub(super) type Parts = Vec<(u64, u64)>;

/// Bytes of one entry of an old-style GNU map: two 12-byte numbers.
const OLD_ENTRY: usize = 24;

/// The entries of an old GNU map in a header (4) or an extension block (21), up to the first
/// unused one.
pub(super) fn old_entries(area: &[u8], parts: &mut Parts) -> Result<(), String> {
    for entry in area.chunks_exact(OLD_ENTRY) {
        if entry[0] == 0 || entry[12] == 0 {
            break;
        }
        let offset = header::number(&entry[..12], "sparse map")?;
        let length = header::number(&entry[12..], "sparse map")?;
        let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else {
            return Err("the sparse map has a negative number".to_owned());
        };
        parts.push((offset, length));
    }
    Ok(())
}

/// The map in an old GNU header, the file's real size, and whether extension blocks follow.
pub(super) fn old_header(block: &Block) -> Result<(Parts, u64, bool), String> {
    let mut parts = Parts::new();
    old_entries(&block[386..482], &mut parts)?;
    let size = header::number(&block[483..495], "real size")?;
    let size = u64::try_from(size).map_err(|_| "the real size is negative".to_owned())?;
    Ok((parts, size, block[482] != 0))
}

/// The map in an extension block and whether another follows.
pub(super) fn old_extension(block: &Block, parts: &mut Parts) -> Result<bool, String> {
    old_entries(&block[..504], parts)?;
    Ok(block[504] != 0)
}

/// PAX form 0.0 (`offset` and `numbytes` records taking turns) or 0.1 (`map`: all in one list).
pub(super) fn pax_0(numbers: &[u64], count: Option<u64>) -> Result<Parts, String> {
    let parts: Parts = numbers
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect();
    if !numbers.len().is_multiple_of(2) || count.is_some_and(|count| count != parts.len() as u64) {
        return Err("the sparse map does not have as many parts as it says".to_owned());
    }
    Ok(parts)
}

/// Reads the list of PAX form 1.0, which starts the member's data: newline-ended decimals, the
/// first being the number of parts. Fed block by block.
#[derive(Debug, Default)]
pub(super) struct Pax1Map {
    digits: Vec<u8>,
    numbers: Vec<u64>,
}

impl Pax1Map {
    /// Takes one block; the map once it is whole.
    pub(super) fn add(&mut self, block: &[u8; BLOCK]) -> Result<Option<Parts>, String> {
        for byte in block {
            if *byte != b'\n' {
                self.digits.push(*byte);
                if self.digits.len() > 20 {
                    return Err("the sparse map is malformed".to_owned());
                }
                continue;
            }
            let number = pax::decimal(&self.digits).ok_or("the sparse map is malformed")?;
            self.digits.clear();
            self.numbers.push(number);
            let (count, numbers) = (self.numbers[0], &self.numbers[1..]);
            if count.checked_mul(2) == Some(numbers.len() as u64) {
                return pax_0(numbers, None).map(Some);
            }
        }
        Ok(None)
    }
}

/// Checks that the parts ascend within `size` and together are `stored` bytes; empty ones (the
/// usual mark of the end) are dropped.
pub(super) fn check(mut parts: Parts, size: u64, stored: u64) -> Result<Parts, String> {
    let mut end = 0;
    let mut sum = 0u64;
    for (offset, length) in &parts {
        let next = offset.checked_add(*length);
        let next = next.filter(|next| *offset >= end && *next <= size);
        end = next.ok_or("the parts of its sparse map overlap or exceed its size")?;
        // ascending parts below `size` cannot sum to more than `size`
        sum += length;
    }
    if sum != stored {
        return Err(format!(
            "its sparse map has {sum} bytes of data but {stored} are stored"
        ));
    }
    parts.retain(|(_, length)| *length > 0);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn maps_are_checked() {
        assert_eq!(
            check(vec![(0, 5), (10, 5), (20, 0)], 20, 10),
            Ok(vec![(0, 5), (10, 5)])
        );
        assert!(check(vec![(0, 5), (4, 5)], 20, 10).is_err());
        assert!(check(vec![(0, 5)], 4, 5).is_err());
        assert!(check(vec![(0, 5)], 20, 6).is_err());
        assert!(check(vec![(u64::MAX, 5)], u64::MAX, 5).is_err());
        assert_eq!(check(vec![], 1 << 40, 0), Ok(vec![]));
    }

    #[test]
    fn form_1_0_is_read_across_blocks() {
        let mut text = b"100\n".to_vec();
        let expected: Parts = (0..100).map(|part| (part * 1000, 10)).collect();
        for (offset, length) in &expected {
            text.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let mut map = Pax1Map::default();
        let mut found = None;
        for block in text.chunks_exact(BLOCK) {
            assert!(found.is_none());
            found = map.add(block.try_into().unwrap()).unwrap();
        }
        assert_eq!(found, Some(expected));
    }

    proptest! {
        #[test]
        fn form_1_0_never_panics(data in prop::collection::vec("[0-9\n]{512}", 1..3)) {
            let mut map = Pax1Map::default();
            for block in data {
                let block: [u8; BLOCK] = block.as_bytes().try_into().unwrap();
                if !matches!(map.add(&block), Ok(None)) {
                    break;
                }
            }
        }
    }
}
