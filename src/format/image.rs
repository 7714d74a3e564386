//! Rows of `images` and `history`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use selkie_engine::images::Image;
use serde::Serialize;

use super::{size, time};

/// What `images` templates see, by Podman's names.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(rename = "images.imageReporter", rename_all = "PascalCase")]
pub struct ImageRow {
    pub(crate) repository: String,
    pub(crate) tag: String,
    #[serde(rename = "ID")]
    pub(crate) id: String,
    digest: String,
    created: String,
    created_at: String,
    created_since: String,
    created_time: String,
    size: String,
    virtual_size: u64,
    shared_size: u64,
    names: Vec<String>,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    parent_id: String,
    labels: BTreeMap<String, String>,
    containers: usize,
    dangling: bool,
    read_only: bool,
    history: String,
    #[serde(skip)]
    pub(crate) bytes: u64,
    #[serde(skip)]
    pub(crate) created_seconds: i64,
}

/// What `images --format json` holds, by Podman's keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageJson {
    id: String,
    parent_id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    size: u64,
    shared_size: u64,
    virtual_size: u64,
    labels: BTreeMap<String, String>,
    containers: usize,
    names: Vec<String>,
    digest: String,
    history: Vec<String>,
    dangling: bool,
    created: i64,
    created_at: String,
}

/// `localhost/busybox`, `latest`.
pub fn split_name(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        // A colon before a slash belongs to a registry's port.
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "<none>"),
    }
}

/// `localhost/busybox@sha256:…` for every name.
pub fn repo_digests(image: &Image) -> Vec<String> {
    let mut digests: Vec<String> = image
        .names
        .iter()
        .map(|name| format!("{}@{}", split_name(name).0, image.digest))
        .collect();
    digests.dedup();
    digests
}

/// Labels of the image's config.
pub fn labels(image: &Image) -> BTreeMap<String, String> {
    let config = image.config.config().as_ref();
    let labels = config.and_then(|config| config.labels().as_ref());
    labels
        .map(|labels| {
            labels
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        })
        .unwrap_or_default()
}

/// When the image was made, by its own account (RFC 3339), or long ago.
pub fn created(image: &Image) -> String {
    image
        .config
        .created()
        .clone()
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

impl ImageRow {
    /// One row per name, or one of `<none>` for an image without names.
    pub fn rows(image: &Image, containers: usize, now: Timestamp, full_ids: bool) -> Vec<Self> {
        let created = created(image);
        let since = time::ago(&created, now);
        let template = Self {
            repository: "<none>".to_owned(),
            tag: "<none>".to_owned(),
            id: match (full_ids, image.id.get(..12)) {
                (false, Some(short)) => short.to_owned(),
                _ => format!("sha256:{}", image.id),
            },
            digest: image.digest.clone(),
            created: since.clone(),
            created_at: time::go_style(&created),
            created_since: since,
            created_time: time::go_style(&created),
            size: size::short(image.size),
            virtual_size: image.size,
            shared_size: 0,
            names: image.names.clone(),
            repo_tags: image.names.clone(),
            repo_digests: repo_digests(image),
            parent_id: String::new(),
            labels: labels(image),
            containers,
            dangling: image.names.is_empty(),
            read_only: false,
            history: image.names.join(","),
            bytes: image.size,
            created_seconds: time::seconds(Some(&created)),
        };
        if image.names.is_empty() {
            return vec![template];
        }
        image
            .names
            .iter()
            .map(|name| {
                let (repository, tag) = split_name(name);
                Self {
                    repository: repository.to_owned(),
                    tag: tag.to_owned(),
                    ..template.clone()
                }
            })
            .collect()
    }
}

impl ImageJson {
    /// One image's object.
    pub fn new(image: &Image, containers: usize) -> Self {
        let created = created(image);
        Self {
            id: image.id.clone(),
            parent_id: String::new(),
            repo_tags: image.names.clone(),
            repo_digests: repo_digests(image),
            size: image.size,
            shared_size: 0,
            virtual_size: image.size,
            labels: labels(image),
            containers,
            names: image.names.clone(),
            digest: image.digest.clone(),
            history: image.names.clone(),
            dangling: image.names.is_empty(),
            created: time::seconds(Some(&created)),
            created_at: time::json_style(&created),
        }
    }
}

/// What `history` templates see.
#[derive(Debug, Default, Serialize)]
#[serde(rename = "images.historyReporter", rename_all = "PascalCase")]
pub struct HistoryRow {
    #[serde(rename = "ID")]
    id: String,
    created: String,
    created_at: String,
    created_since: String,
    created_by: String,
    size: String,
    comment: String,
    tags: Vec<String>,
}

/// What `history --format json` holds.
#[derive(Debug, Serialize)]
pub struct HistoryJson {
    id: String,
    created: String,
    #[serde(rename = "CreatedBy")]
    created_by: String,
    size: u64,
    comment: String,
    tags: Vec<String>,
}

/// One step of an image's making.
#[derive(Debug, Clone)]
pub struct Step {
    /// Image ID for the newest, else `<missing>`.
    pub id: String,
    /// RFC 3339.
    pub created: String,
    /// Command.
    pub created_by: String,
    /// Bytes of its layer's tar.
    pub size: u64,
    /// Comment.
    pub comment: String,
    /// Names, of the newest.
    pub tags: Vec<String>,
}

/// Characters of a command shown unless `--no-trunc`.
const CREATED_BY_WIDTH: usize = 42;

impl HistoryRow {
    /// One row; commands and IDs cut unless `full`; sizes and times in words when `human`.
    pub fn new(step: &Step, now: Timestamp, full: bool, human: bool) -> Self {
        let since = time::ago(&step.created, now);
        let iso = time::json_style(&step.created);
        let created_by = if full || step.created_by.chars().count() <= CREATED_BY_WIDTH + 3 {
            step.created_by.clone()
        } else {
            let beginning: String = step.created_by.chars().take(CREATED_BY_WIDTH).collect();
            format!("{beginning}...")
        };
        Self {
            id: match (full, step.id.get(..12)) {
                (false, Some(short)) if !step.id.starts_with('<') => short.to_owned(),
                _ => step.id.clone(),
            },
            created: if human { since.clone() } else { iso.clone() },
            created_at: iso,
            created_since: since,
            created_by,
            size: if human {
                size::short(step.size)
            } else {
                step.size.to_string()
            },
            comment: step.comment.clone(),
            tags: step.tags.clone(),
        }
    }
}

impl HistoryJson {
    /// One step's object.
    pub fn new(step: &Step) -> Self {
        Self {
            id: step.id.clone(),
            created: time::json_style(&step.created),
            created_by: step.created_by.clone(),
            size: step.size,
            comment: step.comment.clone(),
            tags: step.tags.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_tag() {
        assert_eq!(
            split_name("localhost/busybox:latest"),
            ("localhost/busybox", "latest")
        );
        assert_eq!(split_name("host:5000/box:v1"), ("host:5000/box", "v1"));
        assert_eq!(split_name("host:5000/box"), ("host:5000/box", "<none>"));
    }
}
