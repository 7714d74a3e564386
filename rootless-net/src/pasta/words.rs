//! What pasta's last words mean. Old and new versions word things differently.

use super::features::unknown_option;
use crate::user_mode::Failure;

/// Why pasta gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The host has no route that pasta could take as its model. Another try is worth it when the
    /// host's routes have changed.
    NoHostRoute,
    /// A published port is in use, needs a privilege, or its address is not the host's. The text is
    /// pasta's, and newer versions' names port and reason.
    Port(String),
    /// `/dev/net/tun` is missing or may not be opened.
    Tun,
    /// It does not know an option.
    UnknownOption(String),
    /// The network namespace may not be entered.
    Namespace,
    /// It was killed or its words are not known.
    Other,
}

/// Reads the words of a failure.
pub fn cause(failure: &Failure) -> Cause {
    read(failure.words())
}

fn read(words: &str) -> Cause {
    let line = |parts: &[&str]| {
        words
            .lines()
            .find(|line| parts.iter().any(|part| line.contains(part)))
    };
    if let Some(option) = unknown_option(words) {
        Cause::UnknownOption(option)
    } else if let Some(text) = line(&["Failed to bind", "Couldn't bind"]) {
        Cause::Port(text.to_owned())
    } else if line(&["/dev/net/tun", "tap device", "tun socket"]).is_some() {
        Cause::Tun
    } else if line(&["network namespace", "pasta namespaces"]).is_some() {
        Cause::Namespace
    } else if line(&["External interface not usable", "routable interface"]).is_some() {
        Cause::NoHostRoute
    } else {
        Cause::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_both_generations() {
        let both = [
            (
                "No external routable interface for IPv4\nExternal interface not usable",
                Cause::NoHostRoute,
            ),
            ("Failed to open tun socket in namespace", Cause::Tun),
            (
                "Failed to open() /dev/net/tun: Permission denied\nFailed to set up tap device",
                Cause::Tun,
            ),
            (
                "Couldn't open network namespace /proc/7/ns/net",
                Cause::Namespace,
            ),
            (
                "pasta: unrecognized option '--map-guest-addr'",
                Cause::UnknownOption("--map-guest-addr".into()),
            ),
            ("Segmentation fault", Cause::Other),
            ("", Cause::Other),
        ];
        for (words, expected) in both {
            assert_eq!(read(words), expected, "{words}");
        }
        for words in [
            "Failed to bind any port for '-t 80-80:80-80', exiting",
            "Failed to bind port 80 (Permission denied) for option '-t 80-80:80-80'",
        ] {
            assert_eq!(read(words), Cause::Port(words.into()));
        }
    }
}
