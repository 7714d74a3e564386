//! Image names: `[registry/]path[:tag][@digest]`, normalised as Podman does.
//!
//! Two types keep apart what is often confused. A [`Reference`] is what somebody typed: it may be
//! *short* (no registry). An [`ImageName`] always has a registry, and is what the database stores
//! and `images` shows. A short reference becomes a name in one of two ways: what is made or loaded
//! here goes to `localhost/` ([`Reference::into_local`]); a lookup tries several registries in
//! order ([`Reference::lookup_candidates`]) and, failing all, any stored name that ends in it
//! ([`Reference::lookup_suffix`]).
//!
//! The first part of a path is a registry when it holds a `.` or a `:` or is `localhost`, as in
//! Docker's grammar. `docker.io/x` means `docker.io/library/x`.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// Longest `registry/path` in bytes.
const MAX_REPOSITORY: usize = 255;
/// Longest tag in bytes.
const MAX_TAG: usize = 128;
/// The registry of images that came from none.
pub const LOCALHOST: &str = "localhost";
/// The tag meant when none is given.
pub const LATEST: &str = "latest";
const DOCKER_HUB: &str = "docker.io";

/// Why a text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("an image name cannot be empty")]
    Empty,
    /// The repository has upper-case letters.
    #[error("invalid image name {0:?}: the repository must be lower case")]
    UpperCase(String),
    /// The registry is not a host name with an optional port.
    #[error("invalid image name {name:?}: {registry:?} is not a host name with an optional port")]
    Registry {
        /// As typed.
        name: String,
        /// The part in question.
        registry: String,
    },
    /// A part of the path breaks the grammar.
    #[error(
        "invalid image name {name:?}: {component:?} is not lower-case letters and digits, separated by single '.', one or two '_', or any number of '-'"
    )]
    Component {
        /// As typed.
        name: String,
        /// The part in question.
        component: String,
    },
    /// The tag breaks the grammar.
    #[error(
        "invalid image name {name:?}: tag {tag:?} is not a letter, digit or '_' followed by at most 127 of these, '.' and '-'"
    )]
    Tag {
        /// As typed.
        name: String,
        /// The tag in question.
        tag: String,
    },
    /// The digest breaks the grammar.
    #[error("invalid image name {name:?}: {source}")]
    Digest {
        /// As typed.
        name: String,
        /// Why.
        source: DigestError,
    },
    /// 64 hexadecimal digits are an image ID.
    #[error("invalid image name {0:?}: 64 hexadecimal digits are an image ID, not a name")]
    LooksLikeId(String),
    /// Longer than registries accept.
    #[error("invalid image name {0:?}: longer than {MAX_REPOSITORY} bytes without tag and digest")]
    TooLong(String),
    /// A name with a registry is needed here.
    #[error("image name {0:?} names no registry")]
    Short(String),
}

/// An image reference as typed, checked but not normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: Option<String>,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A normalised name: always with a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else {
                return false;
            };
            let hex = |byte: u8| byte.is_ascii_hexdigit() || byte == b':';
            if address.is_empty() || !address.bytes().all(hex) {
                return false;
            }
            match after.strip_prefix(':') {
                Some(port) => return is_port(port),
                None => return after.is_empty(),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 5
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse::<u16>().is_ok()
}

fn is_path_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    // every separator between two runs of letters and digits is one of `.`, `_`, `__`, `-`…
    bytes
        .split(|byte| alphanumeric(*byte))
        .filter(|separator| !separator.is_empty())
        .all(|separator| {
            matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// True for 64 lower-case hexadecimal digits.
pub fn is_full_id(text: &str) -> bool {
    text.len() == 64 && is_id_prefix(text)
}

/// True for 1 to 64 lower-case hexadecimal digits.
pub fn is_id_prefix(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let name = || text.to_owned();
        if is_full_id(text) {
            return Err(NameError::LooksLikeId(name()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let parsed = digest.parse().map_err(|source| NameError::Digest {
                    name: name(),
                    source,
                })?;
                (rest, Some(parsed))
            }
            None => (text, None),
        };
        // a colon before the last slash belongs to a port
        let last_slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (repository, tag) = match rest[last_slash..].find(':') {
            Some(colon) => {
                let (repository, tag) = rest.split_at(last_slash + colon);
                (repository, Some(&tag[1..]))
            }
            None => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(NameError::Tag {
                name: name(),
                tag: tag.to_owned(),
            });
        }
        let (registry, path) = match repository.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == LOCALHOST => {
                (Some(first), path)
            }
            _ => (None, repository),
        };
        if let Some(registry) = registry.filter(|registry| !is_host(registry)) {
            return Err(NameError::Registry {
                name: name(),
                registry: registry.to_owned(),
            });
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(NameError::UpperCase(name()));
        }
        if let Some(component) = path.split('/').find(|part| !is_path_component(part)) {
            return Err(NameError::Component {
                name: name(),
                component: component.to_owned(),
            });
        }
        if repository.len() > MAX_REPOSITORY {
            return Err(NameError::TooLong(name()));
        }
        Ok(Self {
            registry: registry.map(str::to_owned),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(out, "{registry}/")?;
        }
        write_rest(out, &self.path, self.tag.as_deref(), self.digest.as_ref())
    }
}

fn write_rest(
    out: &mut fmt::Formatter<'_>,
    path: &str,
    tag: Option<&str>,
    digest: Option<&Digest>,
) -> fmt::Result {
    out.write_str(path)?;
    if let Some(tag) = tag {
        write!(out, ":{tag}")?;
    }
    if let Some(digest) = digest {
        write!(out, "@{digest}")?;
    }
    Ok(())
}

impl Reference {
    /// True when no registry is named.
    pub fn is_short(&self) -> bool {
        self.registry.is_none()
    }
    /// The tag, when one was typed.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
    /// The digest, when one was typed.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
    /// The name of something made or loaded here: a short one goes to `localhost/`, and `:latest`
    /// is added when there is neither tag nor digest.
    pub fn into_local(self) -> ImageName {
        self.in_registry(LOCALHOST)
    }
    /// The names a lookup tries, best first. A full reference has one; a short one is looked for
    /// under `localhost/`, then in `search` (registries in the user's order), then at Docker Hub.
    pub fn lookup_candidates<'a>(
        &'a self,
        search: impl IntoIterator<Item = &'a str>,
    ) -> Vec<ImageName> {
        if self.registry.is_some() {
            return vec![self.clone().into_local()];
        }
        let mut candidates = vec![self.in_registry(LOCALHOST)];
        for registry in search.into_iter().chain([DOCKER_HUB]) {
            let candidate = self.in_registry(registry);
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
        candidates
    }
    /// What a stored name must end with to match this short reference when no candidate exists:
    /// `/path:tag`. `None` for a full reference or one with a digest.
    pub fn lookup_suffix(&self) -> Option<String> {
        if self.registry.is_some() || self.digest.is_some() {
            return None;
        }
        let tag = self.tag.as_deref().unwrap_or(LATEST);
        Some(format!("/{}:{tag}", self.path))
    }

    fn in_registry(&self, registry: &str) -> ImageName {
        let registry = self.registry.as_deref().unwrap_or(registry);
        let registry = match registry {
            "index.docker.io" => DOCKER_HUB,
            other => other,
        };
        let path = if registry == DOCKER_HUB && !self.path.contains('/') {
            format!("library/{}", self.path)
        } else {
            self.path.clone()
        };
        let tag = match (&self.tag, &self.digest) {
            (None, None) => Some(LATEST.to_owned()),
            (tag, _) => tag.clone(),
        };
        ImageName {
            registry: registry.to_owned(),
            path,
            tag,
            digest: self.digest,
        }
    }
}

impl FromStr for ImageName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let reference: Reference = text.parse()?;
        if reference.is_short() {
            return Err(NameError::Short(text.to_owned()));
        }
        Ok(reference.into_local())
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/", self.registry)?;
        write_rest(out, &self.path, self.tag.as_deref(), self.digest.as_ref())
    }
}

impl ImageName {
    /// Host name and optional port of the registry, or `localhost`.
    pub fn registry(&self) -> &str {
        &self.registry
    }
    /// `registry/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }
    /// The tag; absent only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
    /// The digest, when one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
    /// The same repository with a digest in place of the tag, as `inspect` lists `RepoDigests`.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }
    /// The name as it is stored: a digest makes a tag meaningless, so the tag goes.
    pub fn into_stored(mut self) -> Self {
        if self.digest.is_some() {
            self.tag = None;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn local(text: &str) -> String {
        text.parse::<Reference>().unwrap().into_local().to_string()
    }

    #[test]
    fn names_are_normalised_as_podman_does() {
        assert_eq!(local("x"), "localhost/x:latest");
        assert_eq!(local("x:tag"), "localhost/x:tag");
        assert_eq!(local("foo/x:tag"), "localhost/foo/x:tag");
        assert_eq!(local("localhost/x"), "localhost/x:latest");
        assert_eq!(local("quay.io/a/b"), "quay.io/a/b:latest");
        assert_eq!(
            local("docker.io/busybox"),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(local("index.docker.io/a/b:1"), "docker.io/a/b:1");
        assert_eq!(local("host:5000/x"), "host:5000/x:latest");
        assert_eq!(local("[fd00::1]:5000/x:y"), "[fd00::1]:5000/x:y");
        assert_eq!(
            local(&format!("x@{DIGEST}")),
            format!("localhost/x@{DIGEST}")
        );
        // without a slash after it, `host:5000` is a name and a tag
        assert_eq!(local("host:5000"), "localhost/host:5000");
        assert_eq!(local("a__b.c---d"), "localhost/a__b.c---d:latest");
    }

    #[test]
    fn short_names_are_looked_up_in_order() {
        let reference: Reference = "busybox".parse().unwrap();
        let names: Vec<_> = reference
            .lookup_candidates(["quay.io"])
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            names,
            [
                "localhost/busybox:latest",
                "quay.io/busybox:latest",
                "docker.io/library/busybox:latest"
            ]
        );
        assert_eq!(reference.lookup_suffix().unwrap(), "/busybox:latest");
        let full: Reference = "quay.io/busybox".parse().unwrap();
        assert_eq!(full.lookup_candidates([]).len(), 1);
        assert_eq!(full.lookup_suffix(), None);
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        let long = format!("{}/x", "a".repeat(256));
        let long_tag = format!("x:{}", "t".repeat(129));
        for (text, word) in [
            ("", "empty"),
            ("UPPER", "lower case"),
            ("quay.io/Foo", "lower case"),
            ("a b", "\"a b\""),
            ("/x", "\"\""),
            ("x/", "\"\""),
            ("a//b", "\"\""),
            ("a/../b", "\"..\""),
            ("x:", "tag \"\""),
            ("x:-y", "tag \"-y\""),
            ("x@", "sha256"),
            ("x@md5:00", "sha256"),
            ("-a.io/x", "host name"),
            ("a.io:99999/x", "host name"),
            ("[::1/x", "host name"),
            ("a_-b", "a_-b"),
            ("a..b/c", "host name"),
            ("ümlaut", "ümlaut"),
            (&DIGEST[7..], "image ID"),
            (&long, "longer"),
            (&long_tag, "127"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
        assert!(matches!(
            "x:y".parse::<ImageName>(),
            Err(NameError::Short(_))
        ));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn what_parses_is_shown_unchanged(
            text in "([a-zA-Z0-9.-]{1,8}(:[0-9]{1,5})?/)?[a-z0-9._/-]{1,12}(:[A-Za-z0-9._-]{0,6})?",
        ) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }

        #[test]
        fn normalising_twice_changes_nothing(
            text in "(([a-z0-9]{1,5}\\.[a-z]{2,3}|localhost|docker\\.io)(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,6}([_/-][a-z0-9]{1,4}){0,3}(:[a-zA-Z0-9_][a-z.-]{0,6})?",
        ) {
            let name = text.parse::<Reference>().unwrap().into_local();
            prop_assert_eq!(name.to_string().parse::<ImageName>().unwrap(), name);
        }
    }
}
