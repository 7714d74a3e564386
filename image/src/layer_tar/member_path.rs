//! Paths of members and hard-link targets, and the whiteout names among them.

use super::LayerError;

/// Longest path in bytes (`PATH_MAX` less the NUL).
pub(super) const MAX_PATH: usize = 4095;
/// Longest component in bytes (`NAME_MAX`).
const MAX_NAME: usize = 255;
const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a member's path says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// An ordinary path, clean.
    Plain(Vec<u8>),
    /// A whiteout of this path.
    Whiteout(Vec<u8>),
    /// The opaque mark of this directory.
    Opaque(Vec<u8>),
    /// Bookkeeping of aufs, of no meaning elsewhere.
    Ignored,
}

/// Removes leading and doubled slashes and `.` components; refuses what could lead elsewhere.
pub(super) fn clean(path: &[u8]) -> Result<Vec<u8>, LayerError> {
    if path.is_empty() {
        return Err(LayerError::entry(path, "its path is empty"));
    }
    if path.contains(&0) {
        return Err(LayerError::entry(path, "its path has a NUL byte"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(LayerError::entry(path, "its path has a \"..\" component")),
            _ => {}
        }
        if component.len() > MAX_NAME {
            return Err(LayerError::entry(
                path,
                format!("a component of its path is longer than {MAX_NAME} bytes"),
            ));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    if clean.len() > MAX_PATH {
        return Err(LayerError::entry(
            &path[..64],
            format!("its path is longer than {MAX_PATH} bytes"),
        ));
    }
    Ok(clean)
}

/// Directory and last component of a clean path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Cleans a member's path and recognises whiteouts.
pub(super) fn read(path: &[u8]) -> Result<Meaning, LayerError> {
    let clean = clean(path)?;
    // one search serves nearly every path
    if !clean.windows(WHITEOUT.len()).any(|part| part == WHITEOUT) {
        return Ok(Meaning::Plain(clean));
    }
    let (parent, name) = split(&clean);
    if name == OPAQUE && !has_mark(parent) {
        return Ok(Meaning::Opaque(parent.to_vec()));
    }
    if clean
        .split(|byte| *byte == b'/')
        .any(|component| component.starts_with(AUFS))
    {
        return Ok(Meaning::Ignored);
    }
    if has_mark(parent) {
        return Err(LayerError::entry(path, "it lies below a whiteout"));
    }
    let Some(target) = name.strip_prefix(WHITEOUT) else {
        return Ok(Meaning::Plain(clean));
    };
    if matches!(target, b"" | b"." | b"..") {
        return Err(LayerError::entry(
            path,
            "it is a whiteout of no possible name",
        ));
    }
    let mut whited = parent.to_vec();
    if !whited.is_empty() {
        whited.push(b'/');
    }
    whited.extend_from_slice(target);
    Ok(Meaning::Whiteout(whited))
}

/// Cleans a hard link's target.
pub(super) fn read_target(path: &[u8], target: &[u8]) -> Result<Vec<u8>, LayerError> {
    let refuse = |what: &str| {
        let target = target.escape_ascii();
        LayerError::entry(path, format!("its link target \"{target}\" {what}"))
    };
    let clean = clean(target).map_err(|_| refuse("is empty, too long or leads out of the root"))?;
    if clean.is_empty() {
        return Err(refuse("is a directory"));
    }
    if has_mark(&clean) {
        return Err(refuse("is a whiteout"));
    }
    Ok(clean)
}

fn has_mark(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/')
        .any(|component| component.starts_with(WHITEOUT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (path, expected) in [
            ("a", "a"),
            ("./a/b/", "a/b"),
            ("/etc//passwd", "etc/passwd"),
            ("./", ""),
            ("/", ""),
            ("a/./b", "a/b"),
            ("...", "..."),
            ("a/.wha", "a/.wha"),
        ] {
            assert_eq!(
                read(path.as_bytes()).unwrap(),
                Meaning::Plain(expected.into()),
                "{path}"
            );
        }
    }

    #[test]
    fn whiteouts_are_recognised() {
        assert_eq!(read(b"./.wh.x").unwrap(), Meaning::Whiteout(b"x".into()));
        assert_eq!(read(b"a/.wh.x").unwrap(), Meaning::Whiteout(b"a/x".into()));
        assert_eq!(
            read(b"a/.wh..wh..opq").unwrap(),
            Meaning::Opaque(b"a".into())
        );
        assert_eq!(read(b".wh..wh..opq").unwrap(), Meaning::Opaque(b"".into()));
        assert_eq!(read(b".wh..wh.aufs").unwrap(), Meaning::Ignored);
        assert_eq!(read(b".wh..wh.plnk/1.2").unwrap(), Meaning::Ignored);
        assert_eq!(read(b"a.wh.b").unwrap(), Meaning::Plain(b"a.wh.b".into()));
        // a name that itself looks like a whiteout cannot be expressed: `.wh..wh.x` is aufs'
        assert_eq!(read(b".wh..x").unwrap(), Meaning::Whiteout(b".x".into()));
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let long = [b'a'; 256];
        let deep = b"ab/".repeat(2000);
        for path in [
            &b".."[..],
            b"../x",
            b"a/../b",
            b"/..",
            b"",
            b"a\0b",
            b"a/.wh.",
            b"a/.wh..",
            b"a/.wh...",
            b".wh.a/b",
            b".wh.a/.wh.b",
            &long,
            &deep,
        ] {
            assert!(read(path).is_err(), "{}", path.escape_ascii());
        }
        for target in [&b""[..], b"/", b"..", b"/../x", b"a/.wh.b", b"a\0"] {
            assert!(read_target(b"p", target).is_err());
        }
        assert_eq!(read_target(b"p", b"/etc/x").unwrap(), b"etc/x");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_clean(path in "[a.w/h-]{0,24}") {
            if let Ok(Meaning::Plain(clean) | Meaning::Whiteout(clean) | Meaning::Opaque(clean))
                = read(path.as_bytes())
            {
                prop_assert!(clean.is_empty() || clean.split(|byte| *byte == b'/').all(
                    |part| !matches!(part, b"" | b"." | b"..")));
            }
        }
    }
}
