//! `dir:`: one image's `manifest.json` and its blobs, each a file named by its digits.

use super::{RawManifest, Source, SourceImage, TransportError};
use crate::digest::Digest;
use crate::manifest::Document;
use crate::platform::Platform;

pub(super) fn image(
    source: &Source,
    platform: &Platform,
) -> Result<Vec<SourceImage>, TransportError> {
    let mut bytes = source.document("manifest.json", None)?;
    let document = Document::parse(&bytes, None).map_err(source.manifest_error())?;
    let manifest = match document {
        Document::Manifest(manifest) => manifest,
        Document::Index(index) => {
            let selected = index.select(platform).map_err(source.manifest_error())?;
            let file = format!("{}.manifest.json", selected.digest.hex());
            bytes = source.document(&file, Some(&selected.digest))?;
            let announced = Some(selected.media_type.as_str());
            match Document::parse(&bytes, announced).map_err(source.manifest_error())? {
                Document::Manifest(manifest) => manifest,
                Document::Index(_) => {
                    return Err(TransportError::NotImages {
                        path: source.path.clone(),
                        why: format!("{file} is an index again"),
                    });
                }
            }
        }
    };
    let raw = RawManifest {
        bytes,
        media_type: manifest.media_type.clone(),
    };
    let image = source.assemble(Vec::new(), raw, &manifest, Digest::hex)?;
    Ok(vec![image])
}
