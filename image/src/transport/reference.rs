//! `TRANSPORT:PATH[:IMAGE]` as Podman and Skopeo write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::TransportError;

/// A form in which images are kept in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `oci-archive:` an OCI layout in a tar.
    OciArchive,
    /// `docker-archive:` what `docker save` writes.
    DockerArchive,
    /// `oci:` an OCI layout in a directory.
    OciDirectory,
    /// `dir:` one image's manifest and blobs side by side in a directory.
    DockerDirectory,
}

/// One of several images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// By its name in the archive.
    Name(String),
    /// By position, from 0: `@N`.
    Position(usize),
}

/// A transport, a path and perhaps an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportReference {
    /// Which form.
    pub transport: Transport,
    /// The file or directory.
    pub path: PathBuf,
    /// Which image, when one is named.
    pub image: Option<Selector>,
}

impl Transport {
    /// True for the two that are one file.
    pub fn is_archive(self) -> bool {
        matches!(self, Self::OciArchive | Self::DockerArchive)
    }
}

impl fmt::Display for Transport {
    /// Without the colon.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
            Self::OciDirectory => "oci",
            Self::DockerDirectory => "dir",
        })
    }
}

impl TransportReference {
    /// True when `text` starts with a transport's name, known here or not, rather than being an
    /// image name or a path.
    pub fn looks_like(text: &str) -> bool {
        const OTHERS: [&str; 6] = [
            "docker",
            "docker-daemon",
            "containers-storage",
            "ostree",
            "sif",
            "tarball",
        ];
        text.split_once(':').is_some_and(|(transport, rest)| {
            transport_named(transport).is_some()
                // `docker:latest` is an image
                || (OTHERS.contains(&transport) && (transport != "docker" || rest.starts_with("//")))
        })
    }
}

fn transport_named(text: &str) -> Option<Transport> {
    Some(match text {
        "oci-archive" => Transport::OciArchive,
        "docker-archive" => Transport::DockerArchive,
        "oci" => Transport::OciDirectory,
        "dir" => Transport::DockerDirectory,
        _ => return None,
    })
}

impl FromStr for TransportReference {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        let bad = |why: String| TransportError::BadReference(why);
        let (name, rest) = text.split_once(':').ok_or_else(|| {
            bad(format!(
                "{text:?} names no transport, as oci-archive:FILE does"
            ))
        })?;
        let transport = transport_named(name).ok_or_else(|| {
            bad(format!(
                "transport {name:?} is not supported; oci-archive, docker-archive, oci and dir are"
            ))
        })?;
        // as the tools that share this syntax: the first colon ends the path, except that a `dir:`
        // has one image only and needs none
        let (path, image) = match rest.split_once(':') {
            Some((path, image)) if transport != Transport::DockerDirectory => (path, Some(image)),
            _ => (rest, None),
        };
        if path.is_empty() {
            return Err(bad(format!("{text:?} names no file")));
        }
        let image = match image {
            None => None,
            Some("") => return Err(bad(format!("{text:?} ends in a colon but names no image"))),
            Some(image) => Some(match image.strip_prefix('@') {
                None => Selector::Name(image.to_owned()),
                Some(position) => Selector::Position(position.parse().map_err(|_| {
                    bad(format!(
                        "{text:?}: {position:?} is not a position (0, 1, …)"
                    ))
                })?),
            }),
        };
        Ok(Self {
            transport,
            path: path.into(),
            image,
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(out, "{name:?}"),
            Self::Position(position) => write!(out, "@{position}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        let parse = |text: &str| text.parse::<TransportReference>().unwrap();
        let reference = parse("oci-archive:/a/b.tar:quay.io/x:1");
        assert_eq!(reference.transport, Transport::OciArchive);
        assert_eq!(reference.path, PathBuf::from("/a/b.tar"));
        assert_eq!(reference.image, Some(Selector::Name("quay.io/x:1".into())));
        assert_eq!(
            parse("docker-archive:x:@1").image,
            Some(Selector::Position(1))
        );
        assert_eq!(parse("dir:a:b").path, PathBuf::from("a:b"));
        assert_eq!(parse("oci:a").image, None);
        for text in [
            "x",
            "docker://x",
            "oci:",
            "oci::x",
            "oci:a:",
            "oci:a:@x",
            ":a",
        ] {
            assert!(text.parse::<TransportReference>().is_err(), "{text}");
        }
    }

    #[test]
    fn transports_are_told_from_images() {
        for text in ["oci:x", "dir:/", "docker://x", "containers-storage:x"] {
            assert!(TransportReference::looks_like(text), "{text}");
        }
        for text in [
            "busybox",
            "docker:latest",
            "localhost/oci:x",
            "quay.io:80/dir:x",
        ] {
            assert!(!TransportReference::looks_like(text), "{text}");
        }
    }
}
