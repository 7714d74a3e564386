//! `docker-archive:`: what `docker save` and `podman save` write.
//!
//! `manifest.json` lists for each image its config, its names and its layers as files of the
//! archive. There are no digests of layers besides the diff IDs in the config, and no manifest in
//! the registry's sense. Layers may be compressed, and links to each other.

use serde::Deserialize;

use super::{Selector, Source, SourceImage, SourceLayer, TransportError};
use crate::config::ImageConfig;
use crate::layer_tar::Expected;
use crate::name::{ImageName, NameError, Reference};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

pub(super) fn images(
    source: &Source,
    selector: Option<&Selector>,
) -> Result<Vec<SourceImage>, TransportError> {
    if source.files.open("manifest.json")?.is_none() && source.files.open("repositories")?.is_some()
    {
        return Err(TransportError::NotImages {
            path: source.path.clone(),
            why: "it is an archive of Docker before 1.10, which has no manifest.json".to_owned(),
        });
    }
    let bytes = source.document("manifest.json", None)?;
    let items: Vec<Item> =
        serde_json::from_slice(&bytes).map_err(source.malformed("manifest.json"))?;
    let mut named = Vec::with_capacity(items.len());
    for item in items {
        let tags = item.repo_tags.iter().flatten();
        let names = tags
            .map(|text| tagged(text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| TransportError::Name {
                path: source.path.clone(),
                source: error,
            })?;
        named.push((item, names));
    }
    let all: Vec<String> = named
        .iter()
        .flat_map(|(_, names)| names.iter().map(ToString::to_string))
        .collect();
    let found: Vec<_> = match selector {
        None => named,
        Some(Selector::Position(position)) => named.into_iter().skip(*position).take(1).collect(),
        Some(Selector::Name(text)) => {
            let wanted = text
                .parse::<Reference>()
                .map_err(|error| TransportError::Name {
                    path: source.path.clone(),
                    source: error,
                })?
                .into_local();
            named
                .into_iter()
                .filter(|(_, names)| names.contains(&wanted))
                // the others stay what they are: only what was asked for is loaded
                .map(|(item, _)| (item, vec![wanted.clone()]))
                .take(1)
                .collect()
        }
    };
    if found.is_empty() {
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        return Err(super::no_such_image(source, selector, &all));
    }
    found
        .into_iter()
        .map(|(item, names)| image(source, item, names))
        .collect()
}

/// A name that must have a tag: without one it would be a guess which is meant.
fn tagged(text: &str) -> Result<ImageName, NameError> {
    let reference: Reference = text.parse()?;
    if reference.tag().is_none() || reference.digest().is_some() {
        return Err(NameError::Tag {
            name: text.to_owned(),
            tag: String::new(),
        });
    }
    Ok(reference.into_local())
}

fn image(
    source: &Source,
    item: Item,
    names: Vec<ImageName>,
) -> Result<SourceImage, TransportError> {
    let raw_config = source.document(&cleaned(&item.config), None)?;
    let config = ImageConfig::parse(&raw_config).map_err(source.manifest_error())?;
    let layers = item.layers.unwrap_or_default();
    config
        .check_layer_count(layers.len())
        .map_err(source.manifest_error())?;
    let layers = layers
        .iter()
        .zip(&config.diff_ids)
        .map(|(file, diff_id)| SourceLayer {
            file: cleaned(file),
            expected: Expected {
                diff_id: Some(*diff_id),
                ..Expected::default()
            },
            diff_id: *diff_id,
        })
        .collect();
    Ok(SourceImage {
        names,
        manifest: None,
        raw_config,
        config,
        layers,
    })
}

fn cleaned(path: &str) -> String {
    path.strip_prefix("./").unwrap_or(path).to_owned()
}
