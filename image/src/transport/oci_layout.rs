//! `oci:` and `oci-archive:`: an OCI image layout (image-spec `image-layout.md`).

use super::{RawManifest, Selector, Source, SourceImage, TransportError};
use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, Index, Manifest};
use crate::name::{ImageName, Reference};
use crate::platform::Platform;

/// Annotation that names an image in `index.json`.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's and Docker's, which holds the full name where `REF_NAME` has the tag only.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// An index may hold indexes; none needs more levels.
const MAX_DEPTH: usize = 4;

/// `blobs/sha256/HEX`.
pub(crate) fn blob_file(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub(super) fn images(
    source: &Source,
    selector: Option<&Selector>,
    platform: &Platform,
) -> Result<Vec<SourceImage>, TransportError> {
    if source.files.open("oci-layout")?.is_none() {
        return Err(TransportError::Missing {
            path: source.path.clone(),
            file: "oci-layout".to_owned(),
        });
    }
    let bytes = source.document("index.json", None)?;
    let document = Document::parse(&bytes, None).map_err(source.manifest_error())?;
    let Document::Index(index) = document else {
        return Err(TransportError::NotImages {
            path: source.path.clone(),
            why: "index.json is not an index".to_owned(),
        });
    };
    select(source, &index, selector)?
        .into_iter()
        .map(|descriptor| image(source, descriptor, platform))
        .collect()
}

fn annotation<'d>(descriptor: &'d Descriptor, key: &str) -> Option<&'d str> {
    let text = descriptor.annotations.as_ref()?.get(key)?;
    Some(text.as_str()).filter(|text| !text.is_empty())
}

fn select<'i>(
    source: &Source,
    index: &'i Index,
    selector: Option<&Selector>,
) -> Result<Vec<&'i Descriptor>, TransportError> {
    let found: Vec<_> = match selector {
        None => index.manifests.iter().collect(),
        Some(Selector::Position(position)) => index.manifests.get(*position).into_iter().collect(),
        Some(Selector::Name(name)) => index
            .manifests
            .iter()
            .filter(|descriptor| {
                [REF_NAME, CONTAINERD_NAME]
                    .iter()
                    .any(|key| annotation(descriptor, key) == Some(name))
            })
            .take(1)
            .collect(),
    };
    if found.is_empty() {
        let names: Vec<_> = index
            .manifests
            .iter()
            .filter_map(|descriptor| annotation(descriptor, REF_NAME))
            .collect();
        return Err(super::no_such_image(source, selector, &names));
    }
    Ok(found)
}

fn names(source: &Source, descriptor: &Descriptor) -> Result<Vec<ImageName>, TransportError> {
    let name = annotation(descriptor, CONTAINERD_NAME).or(annotation(descriptor, REF_NAME));
    let Some(name) = name else {
        return Ok(Vec::new());
    };
    let reference: Reference = name.parse().map_err(|error| TransportError::Name {
        path: source.path.clone(),
        source: error,
    })?;
    Ok(vec![reference.into_local()])
}

fn image(
    source: &Source,
    descriptor: &Descriptor,
    platform: &Platform,
) -> Result<SourceImage, TransportError> {
    let names = names(source, descriptor)?;
    let (raw, manifest) = resolve(source, descriptor, platform)?;
    source.assemble(names, raw, &manifest, blob_file)
}

/// Follows a descriptor through indexes to the manifest for `platform`.
fn resolve(
    source: &Source,
    descriptor: &Descriptor,
    platform: &Platform,
) -> Result<(RawManifest, Manifest), TransportError> {
    let mut descriptor = descriptor.clone();
    for _ in 0..MAX_DEPTH {
        let bytes = source.document(&blob_file(&descriptor.digest), Some(&descriptor.digest))?;
        let document = Document::parse(&bytes, Some(&descriptor.media_type));
        match document.map_err(source.manifest_error())? {
            Document::Manifest(manifest) => {
                let media_type = manifest.media_type.clone();
                return Ok((RawManifest { bytes, media_type }, manifest));
            }
            Document::Index(index) => {
                let selected = index.select(platform).map_err(source.manifest_error())?;
                descriptor = selected.clone();
            }
        }
    }
    Err(TransportError::NotImages {
        path: source.path.clone(),
        why: format!("indexes are nested more than {MAX_DEPTH} deep"),
    })
}
