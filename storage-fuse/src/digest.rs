//! SHA-256 digests as images name layers and chains: `sha256:` and 64 lower-case hex digits.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::store::StoreError;

/// A diff ID or chain ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest(pub [u8; 32]);

impl Digest {
    /// Parses `sha256:…`. Nothing else may become part of a file name in the store.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        text.strip_prefix("sha256:")
            .and_then(parse_hex)
            .map(Self)
            .ok_or_else(|| {
                StoreError::Invalid(format!(
                    "`{text}` is not a digest (`sha256:` and 64 lower-case hex digits)"
                ))
            })
    }

    /// The 64 digits.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// With its algorithm, as images write it.
    pub fn text(&self) -> String {
        format!("sha256:{}", self.hex())
    }

    /// The chain ID of `layers` (image-spec `config.md`, "Layer ChainID"): a single layer's is its
    /// diff ID, each further one hashes the chain below and its diff ID. An image without layers
    /// gets the digest of nothing.
    pub fn chain(layers: &[Self]) -> Self {
        let Some((first, rest)) = layers.split_first() else {
            return Self(Sha256::digest(b"").into());
        };
        rest.iter().fold(*first, |chain, layer| {
            Self(Sha256::digest(format!("{} {}", chain.text(), layer.text()).as_bytes()).into())
        })
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// 64 lower-case hex digits.
pub(crate) fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let a = Digest(Sha256::digest(b"a").into());
        let b = Digest(Sha256::digest(b"b").into());
        assert_eq!(Digest::chain(&[a]), a);
        let text = format!("{} {}", a.text(), b.text());
        assert_eq!(
            Digest::chain(&[a, b]).0,
            <[u8; 32]>::from(Sha256::digest(text))
        );
        assert_eq!(
            Digest::chain(&[]).hex(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn only_canonical_digests_are_parsed() {
        let good = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(Digest::parse(&good).unwrap().text(), good);
        for bad in [
            "sha256:../../etc/passwd".to_owned(),
            good.to_uppercase(),
            good.replace("sha256", "sha512"),
            good[..70].to_owned(),
            format!("{good}0"),
            format!("sha256:{}", "ä".repeat(32)),
        ] {
            assert!(Digest::parse(&bad).is_err(), "{bad}");
        }
    }
}
