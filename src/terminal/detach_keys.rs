//! Key sequences that end an attachment without ending the container (`ctrl-p,ctrl-q`).

use crate::error::{CliError, Result};

/// Podman's and Docker's.
pub const DEFAULT: &str = "ctrl-p,ctrl-q";

/// Parses `a`, `ctrl-a` … `ctrl-z`, `ctrl-@ [ \ ] ^ _`, separated by commas. Empty: no sequence.
pub fn parse(text: &str) -> Result<Vec<u8>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(|key| {
            key_byte(key).ok_or_else(|| {
                CliError::new(format!("--detach-keys {text}: unknown key {key:?}")).with_hint(
                    "write single characters, or ctrl- with a letter or one of @ [ \\ ] ^ _, \
                     separated by commas",
                )
            })
        })
        .collect()
}

fn key_byte(key: &str) -> Option<u8> {
    if let [byte] = key.as_bytes() {
        return byte.is_ascii_graphic().then_some(*byte);
    }
    let [control] = key.strip_prefix("ctrl-")?.as_bytes() else {
        return None;
    };
    match control.to_ascii_uppercase() {
        byte @ b'@'..=b'_' => Some(byte - b'@'),
        _ => None,
    }
}

/// Watches a stream of keys for the sequence. Keys that may turn out to begin it are held back
/// until the next ones decide.
#[derive(Debug)]
pub struct Watcher {
    sequence: Vec<u8>,
    matched: usize,
}

impl Watcher {
    /// Watches for `sequence`; an empty one is never found.
    pub fn new(sequence: Vec<u8>) -> Self {
        Self {
            sequence,
            matched: 0,
        }
    }

    /// Appends to `passed` what the container shall get of `input`; true when the sequence is
    /// complete (what follows it is dropped).
    pub fn feed(&mut self, input: &[u8], passed: &mut Vec<u8>) -> bool {
        if self.sequence.is_empty() {
            passed.extend_from_slice(input);
            return false;
        }
        for &byte in input {
            loop {
                if byte == self.sequence[self.matched] {
                    self.matched += 1;
                    break;
                }
                if self.matched == 0 {
                    passed.push(byte);
                    break;
                }
                // What was held is not the sequence; a shorter beginning of it may still be.
                let held = &self.sequence[..self.matched];
                let next = (0..self.matched)
                    .rev()
                    .find(|&length| held.ends_with(&self.sequence[..length]))
                    .unwrap_or(0);
                passed.extend_from_slice(&held[..self.matched - next]);
                self.matched = next;
            }
            if self.matched == self.sequence.len() {
                self.matched = 0;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sequences() {
        assert_eq!(parse(DEFAULT).unwrap(), [16, 17]);
        assert_eq!(parse("a,ctrl-@,ctrl-_,ctrl-[").unwrap(), [b'a', 0, 31, 27]);
        assert!(parse("").unwrap().is_empty());
        for bad in ["ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-aa", "é", " "] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    fn run(sequence: &str, chunks: &[&str]) -> (String, bool) {
        let mut watcher = Watcher::new(sequence.into());
        let mut passed = Vec::new();
        let found = chunks
            .iter()
            .any(|chunk| watcher.feed(chunk.as_bytes(), &mut passed));
        (String::from_utf8(passed).unwrap(), found)
    }

    #[test]
    fn beginnings_are_held_back_until_they_are_decided() {
        assert_eq!(run("pq", &["ap", "q rest"]), ("a".into(), true));
        assert_eq!(run("pq", &["ap", "xpq"]), ("apx".into(), true));
        assert_eq!(run("pq", &["ppq"]), ("p".into(), true));
        assert_eq!(run("aab", &["aaab"]), ("a".into(), true));
        assert_eq!(run("abac", &["ababac"]), ("ab".into(), true));
        assert_eq!(run("pq", &["p"]), (String::new(), false));
        assert_eq!(run("", &["pq"]), ("pq".into(), false));
    }

    proptest! {
        #[test]
        fn everything_before_the_sequence_passes(sequence in "[ab]{1,4}", input in "[abc]{0,20}", cut in 0usize..20) {
            let cut = cut.min(input.len());
            let (passed, found) = run(&sequence, &[&input[..cut], &input[cut..]]);
            match input.find(&sequence) {
                Some(start) => {
                    prop_assert!(found);
                    prop_assert_eq!(passed, &input[..start]);
                }
                None => {
                    prop_assert!(!found);
                    prop_assert!(input.starts_with(&passed));
                    prop_assert!(sequence.starts_with(&input[passed.len()..]));
                }
            }
        }
    }
}
