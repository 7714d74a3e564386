//! Extended attributes as PAX headers carry them.

use super::LayerError;

const CAPABILITY: &[u8] = b"security.capability";
const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_1: u32 = 0x0100_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
/// Longest name and value the kernel takes (xattr(7)).
const MAX_NAME: usize = 255;
const MAX_VALUE: usize = 65_536;

/// True for attributes that overlayfs interprets: given to a lower layer they could redirect a
/// file to any other, so they never reach the sink.
pub(super) fn steers_overlay(name: &[u8]) -> bool {
    name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.")
}

/// Checks an attribute; capabilities come back in v2 form.
pub(super) fn check(path: &[u8], name: &[u8], value: &[u8]) -> Result<Vec<u8>, LayerError> {
    let shown = || super::printable(name);
    if name.is_empty() || name.len() > MAX_NAME || name.contains(&0) {
        return Err(LayerError::entry(
            path,
            format!("the name of its extended attribute \"{}\" is bad", shown()),
        ));
    }
    if value.len() > MAX_VALUE {
        return Err(LayerError::entry(
            path,
            format!(
                "its extended attribute \"{}\" is larger than 64 KiB",
                shown()
            ),
        ));
    }
    if name == CAPABILITY {
        return capability_v2(value).ok_or_else(|| {
            LayerError::entry(path, "its file capabilities have a form that is unknown")
        });
    }
    Ok(value.to_vec())
}

/// Any revision of `struct vfs_cap_data` (linux/capability.h) as revision 2. Revision 3 adds the
/// root ID of the user namespace it was set in, which means nothing on another host; revision 1
/// has 32 bits where 2 has 64.
pub(super) fn capability_v2(value: &[u8]) -> Option<Vec<u8>> {
    let magic = u32::from_le_bytes(value.first_chunk::<4>().copied()?);
    let sets = match (magic & REVISION_MASK, value.len()) {
        (REVISION_1, 12) => [&value[4..12], &[0; 8]].concat(),
        (REVISION_2, 20) | (REVISION_3, 24) => value[4..20].to_vec(),
        _ => return None,
    };
    let magic = (magic & !REVISION_MASK) | REVISION_2;
    Some([&magic.to_le_bytes()[..], &sets].concat())
}

/// `%XX` escapes, as libarchive writes attribute names.
pub(super) fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let mut byte = [0];
            hex::decode_to_slice(tail.get(..2)?, &mut byte).ok()?;
            decoded.push(byte[0]);
            rest = &tail[2..];
        } else {
            decoded.push(*first);
            rest = tail;
        }
    }
    Some(decoded)
}

/// Base64 with or without padding, as libarchive writes attribute values.
pub(super) fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").unwrap_or(text);
    let text = text.strip_suffix(b"=").unwrap_or(text);
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        if group.len() == 1 {
            return None;
        }
        let mut bits = 0u32;
        for position in 0..4 {
            let value = match group.get(position) {
                Some(byte @ b'A'..=b'Z') => byte - b'A',
                Some(byte @ b'a'..=b'z') => byte - b'a' + 26,
                Some(byte @ b'0'..=b'9') => byte - b'0' + 52,
                Some(b'+') => 62,
                Some(b'/') => 63,
                None => 0,
                Some(_) => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        decoded.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_every_revision_become_v2() {
        let v2 = hex::decode("0100000200040000000000000000000000000000").unwrap();
        let v3 = hex::decode("010000030004000000000000000000000000000000e80300").unwrap();
        let v1 = hex::decode("010000010004000000000000").unwrap();
        for value in [&v1, &v2, &v3] {
            assert_eq!(check(b"p", CAPABILITY, value).unwrap(), v2);
        }
        for bad in [&v3[..20], &v2[..12], b"", &[0; 20]] {
            assert!(check(b"p", CAPABILITY, bad).is_err());
        }
    }

    #[test]
    fn libarchive_forms_are_decoded() {
        assert_eq!(base64_decoded(b"aGVsbG8").unwrap(), b"hello");
        assert_eq!(base64_decoded(b"aGVsbG8=").unwrap(), b"hello");
        assert_eq!(base64_decoded(b"aGVsbA==").unwrap(), b"hell");
        assert_eq!(base64_decoded(b"").unwrap(), b"");
        assert_eq!(base64_decoded(b"a"), None);
        assert_eq!(base64_decoded(b"a*aa"), None);
        assert_eq!(percent_decoded(b"user.%3Dx").unwrap(), b"user.=x");
        assert_eq!(percent_decoded(b"user.%3"), None);
    }

    #[test]
    fn overlay_attributes_are_known() {
        assert!(steers_overlay(b"user.overlay.redirect"));
        assert!(steers_overlay(b"trusted.overlay.opaque"));
        assert!(!steers_overlay(b"user.overlayed"));
    }
}
