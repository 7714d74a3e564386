//! Names of metadata trees below `trees/`.

use crate::digest::{Digest, parse_hex};

/// Raised when trees are laid out differently, so that one built by another Selkie in the same
/// pause namespace is not taken for ours.
const LAYOUT: &str = "t1-";
/// Ends the name of a tree whose owners are all 0.
const SINGLE: &str = ".single";

/// Which tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TreeName {
    pub chain_id: Digest,
    pub single_id: bool,
}

impl TreeName {
    pub fn text(&self) -> String {
        let suffix = if self.single_id { SINGLE } else { "" };
        format!("{LAYOUT}{}{suffix}", self.chain_id.hex())
    }

    /// `None` for what is not a finished tree of this layout.
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(LAYOUT)?;
        let hex = rest.strip_suffix(SINGLE);
        Some(Self {
            chain_id: Digest(parse_hex(hex.unwrap_or(rest))?),
            single_id: hex.is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for single_id in [false, true] {
            let name = TreeName {
                chain_id: Digest([0xab; 32]),
                single_id,
            };
            assert_eq!(TreeName::parse(&name.text()), Some(name));
        }
        assert_eq!(TreeName::parse("t1-abc"), None);
        assert_eq!(TreeName::parse(&"ab".repeat(32)), None);
    }
}
