//! Images of the login: loading, saving, naming, removing.

use oci_spec::image::ImageConfiguration;

use crate::Engine;
use crate::error::Result;

/// One stored image.
#[derive(Debug, Clone)]
pub struct Image {
    /// 64 hex digits: SHA-256 of the config.
    pub id: String,
    /// Normalised names with tags, sorted.
    pub names: Vec<String>,
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// Parsed config.
    pub config: ImageConfiguration,
    /// The config as it came.
    pub raw_config: Vec<u8>,
    /// The manifest as it came.
    pub raw_manifest: Vec<u8>,
    /// Media type of the manifest.
    pub manifest_type: String,
    /// Index in the store.
    pub chain_id: String,
    /// Diff IDs, lowest first.
    pub layers: Vec<String>,
    /// Bytes of content.
    pub size: u64,
}

impl Engine {
    /// Finds an image by name (short names match `localhost/` first, as Podman), ID or prefix, or
    /// name@digest.
    pub fn image(&self, name_or_id: &str) -> Result<Image> {
        let _ = name_or_id;
        todo!()
    }
    /// All images, newest first.
    pub fn images(&self) -> Result<Vec<Image>> {
        todo!()
    }
}
