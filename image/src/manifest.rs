//! Manifests and indexes, OCI and Docker v2 (schema 2).
//!
//! Only what is needed is parsed; the bytes themselves are what is stored and hashed, so fields we
//! do not know survive. Formats: OCI image-spec `manifest.md` and `image-index.md`, Docker
//! distribution's `manifest-v2-2.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;

/// Largest manifest, index or config that is read, in bytes. Registries refuse larger ones too.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Media type of an OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an OCI layer; `+gzip` or `+zstd` may follow.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of a Docker manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of a Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Media type of a Docker layer; `.gzip` or `.zstd` may follow.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Why a manifest, an index or a config is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not the JSON it should be.
    #[error("the {what} is malformed: {source}")]
    Malformed {
        /// `manifest`, `index`, `config`.
        what: &'static str,
        /// The parser's word.
        source: serde_json::Error,
    },
    /// It is something else.
    #[error("{0}")]
    Unsupported(String),
    /// Nothing in an index fits this machine.
    #[error("the image is not there for {wanted}, only for {available}")]
    NoPlatform {
        /// E.g. `linux/amd64`.
        wanted: Platform,
        /// What there is.
        available: String,
    },
    /// Manifest and config contradict each other.
    #[error("the image contradicts itself: {0}")]
    Contradiction(String),
}

/// Points to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Free-form; names of images in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Which machines a manifest in an index is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// One image: a config and layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its media type.
    pub media_type: String,
    /// The config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// Several images: of several names or for several platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its media type.
    pub media_type: String,
    /// Manifests or further indexes.
    pub manifests: Vec<Descriptor>,
}

/// What a manifest's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Parses a manifest or an index. `announced` is the media type its descriptor or the registry
    /// gave; the document's own counts more, and its shape decides when neither says.
    pub fn parse(bytes: &[u8], announced: Option<&str>) -> Result<Self, ManifestError> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|source| {
            let what = "manifest";
            ManifestError::Malformed { what, source }
        })?;
        let unsupported = |what: String| Err(ManifestError::Unsupported(what));
        if raw.schema_version == Some(1) {
            return unsupported(
                "manifests of Docker's schema 1 are not supported: push the image anew with a current tool".to_owned(),
            );
        }
        if raw.schema_version != Some(2) {
            return unsupported("it is not a manifest: \"schemaVersion\" is not 2".to_owned());
        }
        let announced = announced.filter(|text| !text.is_empty());
        let media_type = raw.media_type.as_deref().or(announced);
        let index = match (media_type, &raw.config, &raw.manifests) {
            (Some(OCI_INDEX | DOCKER_LIST), _, Some(_)) => true,
            (Some(OCI_MANIFEST | DOCKER_MANIFEST), Some(_), None) => false,
            (None, None, Some(_)) => true,
            (None, Some(_), None) => false,
            (Some(OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST) | None, ..) => {
                return unsupported(
                    "it is neither a manifest nor an index: it needs either \"config\" and \"layers\" or \"manifests\"".to_owned(),
                );
            }
            (Some(other), ..) => {
                return unsupported(format!("{other:?} is not the media type of an image"));
            }
        };
        let default = if index { OCI_INDEX } else { OCI_MANIFEST };
        let media_type = media_type.unwrap_or(default).to_owned();
        if index {
            let manifests = raw.manifests.unwrap_or_default();
            return Ok(Self::Index(Index {
                media_type,
                manifests,
            }));
        }
        if let Some(artifact) = raw.artifact_type {
            return unsupported(format!("it is an artifact ({artifact}), not an image"));
        }
        let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
            return unsupported("the manifest has no \"layers\"".to_owned());
        };
        let manifest = Manifest {
            media_type,
            config,
            layers,
        };
        manifest.check_media_types()?;
        Ok(Self::Manifest(manifest))
    }
}

impl Manifest {
    fn check_media_types(&self) -> Result<(), ManifestError> {
        let config = self.config.media_type.as_str();
        if !matches!(config, OCI_CONFIG | DOCKER_CONFIG) {
            return Err(ManifestError::Unsupported(format!(
                "it is not a container image: its config is of type {config:?}"
            )));
        }
        for layer in &self.layers {
            if !is_layer(&layer.media_type) {
                return Err(ManifestError::Unsupported(format!(
                    "layer {} is of type {:?}, which is no file system layer",
                    layer.digest, layer.media_type
                )));
            }
        }
        Ok(())
    }

    /// A manifest in the bytes that Podman makes for the same blobs, so that the digests agree.
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = if self.media_type == DOCKER_MANIFEST {
            let blob = |of: &Descriptor| DockerDescriptor {
                media_type: of.media_type.clone(),
                size: of.size,
                digest: of.digest,
            };
            serde_json::to_vec(&DockerManifest {
                schema_version: 2,
                media_type: DOCKER_MANIFEST,
                config: blob(&self.config),
                layers: self.layers.iter().map(blob).collect(),
            })
        } else {
            serde_json::to_vec(&OciManifest {
                schema_version: 2,
                config: &self.config,
                layers: &self.layers,
            })
        };
        // these structures hold nothing that JSON cannot say
        json.unwrap_or_default()
    }
}

fn is_layer(media_type: &str) -> bool {
    let docker = media_type.strip_prefix(DOCKER_LAYER).or_else(|| {
        media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.tar")
    });
    let oci = media_type.strip_prefix(OCI_LAYER).or_else(|| {
        media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.tar")
    });
    matches!(docker, Some("" | ".gzip" | ".zstd")) || matches!(oci, Some("" | "+gzip" | "+zstd"))
}

impl Index {
    /// The manifest for `wanted`. An entry without a platform fits when it is the only one.
    pub fn select(&self, wanted: &Platform) -> Result<&Descriptor, ManifestError> {
        if let [only] = self.manifests.as_slice()
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let best = self
            .manifests
            .iter()
            .filter_map(|manifest| {
                let platform = manifest.platform.as_ref()?;
                Some((wanted.runs(platform)?, manifest))
            })
            // the first of equals
            .rev()
            .max_by_key(|(rank, _)| *rank);
        best.map(|(_, manifest)| manifest).ok_or_else(|| {
            let available: Vec<_> = self
                .manifests
                .iter()
                .filter_map(|manifest| manifest.platform.as_ref().map(ToString::to_string))
                // build attestations
                .filter(|platform| !platform.starts_with("unknown/"))
                .collect();
            ManifestError::NoPlatform {
                wanted: wanted.clone(),
                available: if available.is_empty() {
                    "machines it does not name".to_owned()
                } else {
                    available.join(", ")
                },
            }
        })
    }
}

// Podman's field order: Docker's descriptors have the size before the digest, OCI's after it.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DockerDescriptor {
    media_type: String,
    size: u64,
    digest: Digest,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DockerManifest {
    schema_version: u32,
    media_type: &'static str,
    config: DockerDescriptor,
    layers: Vec<DockerDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OciManifest<'m> {
    schema_version: u32,
    config: &'m Descriptor,
    layers: &'m [Descriptor],
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","size":7,"digest":"{DIGEST}","urls":["x"]}}"#)
    }

    fn manifest(media_type: &str, config: &str, layer: &str) -> String {
        format!(
            r#"{{"schemaVersion":2{media_type},"config":{},"layers":[{}],"unknown":[1]}}"#,
            descriptor(config),
            descriptor(layer)
        )
    }

    fn parse(text: &str) -> Result<Document, ManifestError> {
        Document::parse(text.as_bytes(), None)
    }

    #[test]
    fn manifests_of_both_kinds() {
        let docker = manifest(
            &format!(r#","mediaType":"{DOCKER_MANIFEST}""#),
            DOCKER_CONFIG,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        );
        let Document::Manifest(parsed) = parse(&docker).unwrap() else {
            panic!();
        };
        assert_eq!(parsed.media_type, DOCKER_MANIFEST);
        assert_eq!(parsed.layers.len(), 1);
        // an OCI manifest need not name its type
        let oci = manifest(
            "",
            OCI_CONFIG,
            "application/vnd.oci.image.layer.v1.tar+zstd",
        );
        let Document::Manifest(parsed) = parse(&oci).unwrap() else {
            panic!();
        };
        assert_eq!(parsed.media_type, OCI_MANIFEST);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let layer = "application/vnd.oci.image.layer.v1.tar";
        for (text, word) in [
            ("".to_owned(), "malformed"),
            ("[]".to_owned(), "malformed"),
            ("{}".to_owned(), "schemaVersion"),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
                "schema 1",
            ),
            (r#"{"schemaVersion":2}"#.to_owned(), "neither"),
            (
                r#"{"schemaVersion":2,"mediaType":"text/plain"}"#.to_owned(),
                "text/plain",
            ),
            (
                manifest("", "application/vnd.cncf.helm.config.v1+json", layer),
                "helm",
            ),
            (
                manifest("", OCI_CONFIG, "application/x-executable"),
                "no file system layer",
            ),
            (
                manifest(r#","artifactType":"sbom""#, OCI_CONFIG, layer),
                "sbom",
            ),
            (
                manifest("", OCI_CONFIG, layer).replace("sha256:e3", "sha256:.."),
                "malformed",
            ),
            (manifest(r#","manifests":[]"#, OCI_CONFIG, layer), "neither"),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{}}}"#,
                    descriptor(OCI_CONFIG)
                ),
                "layers",
            ),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn bytes_are_those_podman_makes() {
        let blob = |media_type: &str, size, hex: &str| Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::from_hex(hex).unwrap(),
            size,
            annotations: None,
            platform: None,
        };
        let config = "12571f4e0c5c010f5f1b6408c4f38112e54e86c8ca8b1188f0d687f5fb5f5112";
        let layer = "45098d8a5ab8b05dd4be0996008327671911ba9487a5533694d66fdeb53ad5fd";
        let docker = Manifest {
            media_type: DOCKER_MANIFEST.to_owned(),
            config: blob(DOCKER_CONFIG, 409, config),
            layers: vec![blob(
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                1_986_560,
                layer,
            )],
        };
        // as `podman image inspect` gave for an image that `podman load` had read
        assert_eq!(
            Digest::of(&docker.to_bytes()).hex(),
            "efdfa8d9290e36916e83f844018bce6a1616b8853c9e21df6cad6ba9fa993bf9"
        );
        let oci = Manifest {
            media_type: OCI_MANIFEST.to_owned(),
            config: blob(OCI_CONFIG, 409, config),
            layers: vec![blob(OCI_LAYER, 1_986_560, layer)],
        };
        // as after `podman import`
        assert_eq!(
            Digest::of(&oci.to_bytes()).hex(),
            "7cc8ad862c00df80b3437f6e72cbe4c601946c200ec3e765fd1b3f341152c004"
        );
        assert_eq!(
            Document::parse(&oci.to_bytes(), None).unwrap(),
            Document::Manifest(oci)
        );
    }

    #[test]
    fn an_index_is_searched_for_this_machine() {
        let entry = |arch: &str, size: u64| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","size":{size},"digest":"{DIGEST}","platform":{{"os":"linux","architecture":{arch}}}}}"#
            )
        };
        let index = |entries: &[String]| {
            let text = format!(
                r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                entries.join(",")
            );
            match parse(&text).unwrap() {
                Document::Index(index) => index,
                Document::Manifest(_) => panic!(),
            }
        };
        let wanted: Platform = "linux/arm64".parse().unwrap();
        let several = index(&[
            entry(r#""amd64""#, 1),
            entry(r#""arm64","variant":"v8""#, 2),
            entry(r#""arm64""#, 3),
            entry(r#""arm","variant":"v7""#, 4),
        ]);
        assert_eq!(several.select(&wanted).unwrap().size, 2);
        let error = several
            .select(&"linux/s390x".parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("linux/s390x"), "{error}");
        assert!(error.contains("linux/arm64/v8, "), "{error}");
        let anonymous = index(&[descriptor(OCI_MANIFEST)]);
        assert_eq!(anonymous.select(&wanted).unwrap().size, 7);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes: Vec<u8>) {
            let _ = Document::parse(&bytes, None);
        }
    }
}
