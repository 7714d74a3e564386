//! Container names: checked when given, made up (`adjective_noun`) when not.

use crate::error::{Error, ErrorKind, Result};

const ADJECTIVES: [&str; 64] = [
    "agile", "amber", "ample", "azure", "balmy", "bold", "brave", "breezy", "bright", "brisk",
    "calm", "candid", "clever", "coral", "cosy", "crisp", "deft", "dewy", "eager", "early", "fair",
    "fleet", "foamy", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "hale",
    "hardy", "honest", "jolly", "keen", "kind", "lively", "lucid", "lunar", "mellow", "merry",
    "mild", "misty", "neat", "nimble", "noble", "pearly", "placid", "polar", "proud", "quick",
    "quiet", "rapid", "rosy", "salty", "silver", "sleek", "snug", "spry", "sunny", "tidal",
    "vivid", "warm", "witty",
];

const NOUNS: [&str; 96] = [
    "anchor",
    "anemone",
    "atoll",
    "auk",
    "barnacle",
    "bay",
    "beacon",
    "beluga",
    "brine",
    "buoy",
    "cape",
    "cliff",
    "clam",
    "cockle",
    "cod",
    "conch",
    "coot",
    "cormorant",
    "cove",
    "crab",
    "crest",
    "current",
    "cuttle",
    "delta",
    "dolphin",
    "dory",
    "dune",
    "eddy",
    "eel",
    "eider",
    "estuary",
    "fathom",
    "ferry",
    "fjord",
    "foam",
    "fulmar",
    "gannet",
    "grotto",
    "gull",
    "haddock",
    "halibut",
    "harbour",
    "herring",
    "inlet",
    "island",
    "jetty",
    "kelp",
    "kittiwake",
    "krill",
    "lagoon",
    "limpet",
    "lobster",
    "lighthouse",
    "mackerel",
    "marlin",
    "mussel",
    "narwhal",
    "nautilus",
    "ocean",
    "orca",
    "osprey",
    "otter",
    "oyster",
    "pearl",
    "pebble",
    "pelican",
    "petrel",
    "plaice",
    "plover",
    "porpoise",
    "prawn",
    "puffin",
    "quay",
    "reef",
    "sail",
    "salmon",
    "sandbar",
    "seal",
    "shell",
    "shoal",
    "shore",
    "skerry",
    "skua",
    "spray",
    "sprat",
    "squid",
    "starfish",
    "strand",
    "surf",
    "swell",
    "tern",
    "tide",
    "turtle",
    "urchin",
    "walrus",
    "wave",
];

/// A name for attempt number `attempt`, from random bits; later attempts carry a number, so that
/// a login with thousands of containers finds one quickly.
pub(crate) fn made_up(random: u64, attempt: u32) -> String {
    let adjective = ADJECTIVES[(random % ADJECTIVES.len() as u64) as usize];
    let noun = NOUNS[((random >> 16) % NOUNS.len() as u64) as usize];
    match attempt {
        0..2 => format!("{adjective}_{noun}"),
        _ => format!(
            "{adjective}_{noun}{}",
            (random >> 32) % 10u64.pow(attempt.min(9))
        ),
    }
}

/// Podman's rule: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
///
/// # Errors
/// `InvalidInput` for any other name.
pub(crate) fn check(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!("name {name:?}: names must match [a-zA-Z0-9][a-zA-Z0-9_.-]*: invalid argument"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_made_up_names_are_valid_and_words_do_not_repeat() {
        for (index, adjective) in ADJECTIVES.iter().enumerate() {
            assert!(!ADJECTIVES[..index].contains(adjective), "{adjective}");
        }
        for (index, noun) in NOUNS.iter().enumerate() {
            assert!(!NOUNS[..index].contains(noun), "{noun}");
            check(noun).unwrap();
        }
        for attempt in 0..12 {
            check(&made_up(0x0123_4567_89ab_cdef, attempt)).unwrap();
        }
        assert_ne!(made_up(7 << 32, 5), made_up(8 << 32, 5));
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", "-a", "_a", ".", "a b", "a/b", "ä", "a\n", "a:b"] {
            assert_eq!(
                check(bad).unwrap_err().kind,
                ErrorKind::InvalidInput,
                "{bad:?}"
            );
        }
        for good in ["a", "0", "web-1.2_x", "A"] {
            check(good).unwrap();
        }
    }
}
