//! `inspect` of an image, in Podman's shape.

use std::collections::BTreeMap;

use selkie_engine::images::Image;
use serde::Serialize;

use super::{image, time};

/// The whole object.
#[derive(Debug, Default, Serialize)]
#[serde(rename = "inspect.ImageData", rename_all = "PascalCase")]
pub struct InspectImage {
    id: String,
    digest: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    parent: String,
    comment: String,
    created: String,
    config: Config,
    version: String,
    author: String,
    architecture: String,
    os: String,
    size: u64,
    virtual_size: u64,
    graph_driver: GraphDriver,
    #[serde(rename = "RootFS")]
    root_fs: RootFs,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    manifest_type: String,
    user: String,
    history: Vec<History>,
    names_history: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "v1.ImageConfig", rename_all = "PascalCase")]
struct Config {
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    stop_signal: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "inspect.DriverData", rename_all = "PascalCase")]
struct GraphDriver {
    name: &'static str,
    data: BTreeMap<String, String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "inspect.RootFS", rename_all = "PascalCase")]
struct RootFs {
    #[serde(rename = "Type")]
    kind: &'static str,
    layers: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename = "v1.History")]
struct History {
    created: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    created_by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    author: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    comment: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    empty_layer: bool,
}

impl InspectImage {
    /// From what the engine knows.
    pub fn new(of: &Image) -> Self {
        let labels = image::labels(of);
        let config = config(of, &labels);
        let history: Vec<History> = of
            .config
            .history()
            .iter()
            .flatten()
            .map(|entry| History {
                created: entry.created().clone().unwrap_or_default(),
                created_by: entry.created_by().clone().unwrap_or_default(),
                author: entry.author().clone().unwrap_or_default(),
                comment: entry.comment().clone().unwrap_or_default(),
                empty_layer: entry.empty_layer().unwrap_or(false),
            })
            .collect();
        Self {
            id: of.id.clone(),
            digest: of.digest.clone(),
            repo_tags: of.names.clone(),
            repo_digests: image::repo_digests(of),
            parent: String::new(),
            comment: history
                .last()
                .map(|step| step.comment.clone())
                .unwrap_or_default(),
            created: time::json_style(&image::created(of)),
            version: String::new(),
            author: of.config.author().clone().unwrap_or_default(),
            architecture: of.config.architecture().to_string(),
            os: of.config.os().to_string(),
            size: of.size,
            virtual_size: of.size,
            graph_driver: GraphDriver {
                name: "overlay",
                data: BTreeMap::new(),
            },
            root_fs: RootFs {
                kind: "layers",
                layers: of.layers.clone(),
            },
            labels,
            annotations: annotations(of),
            manifest_type: of.manifest_type.clone(),
            user: config.user.clone(),
            config,
            history,
            names_history: of.names.clone(),
        }
    }
}

fn config(of: &Image, labels: &BTreeMap<String, String>) -> Config {
    let Some(config) = of.config.config() else {
        return Config::default();
    };
    let empty_maps = |names: &Option<Vec<String>>| {
        names
            .iter()
            .flatten()
            .map(|name| (name.clone(), BTreeMap::new()))
            .collect()
    };
    Config {
        user: config.user().clone().unwrap_or_default(),
        exposed_ports: empty_maps(config.exposed_ports()),
        env: config.env().clone().unwrap_or_default(),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        volumes: empty_maps(config.volumes()),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        labels: labels.clone(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
    }
}

/// Of the manifest; Docker's has none.
fn annotations(of: &Image) -> BTreeMap<String, String> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        annotations: Option<BTreeMap<String, String>>,
    }
    serde_json::from_slice::<Manifest>(&of.raw_manifest)
        .ok()
        .and_then(|manifest| manifest.annotations)
        .unwrap_or_default()
}
