//! `history`: how an image came about.

use super::Image;
use crate::Engine;
use crate::error::Result;

/// One step, newest first in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Image ID for the newest, else none: the images in between are not kept.
    pub id: Option<String>,
    /// RFC 3339, when known.
    pub created: Option<String>,
    /// The command that made it.
    pub created_by: String,
    /// Comment, may be empty.
    pub comment: String,
    /// True when it added no layer.
    pub empty_layer: bool,
    /// Bytes of the layer's tar, 0 without one.
    pub size: u64,
    /// Names, of the newest only.
    pub names: Vec<String>,
}

impl Engine {
    /// The steps of an image, newest first. Layers that the config's history does not mention come
    /// last, without a command.
    pub fn image_history(&self, image: &Image) -> Result<Vec<HistoryEntry>> {
        let mut layers = image.layers.iter();
        let mut entries = Vec::new();
        for step in image.config.history().iter().flatten() {
            let empty_layer = step.empty_layer().unwrap_or(false);
            let layer = if empty_layer { None } else { layers.next() };
            entries.push(HistoryEntry {
                id: None,
                created: step.created().clone(),
                created_by: step.created_by().clone().unwrap_or_default(),
                comment: step.comment().clone().unwrap_or_default(),
                empty_layer,
                size: self.layer_size(layer)?,
                names: Vec::new(),
            });
        }
        for layer in layers {
            entries.push(HistoryEntry {
                id: None,
                created: None,
                created_by: String::new(),
                comment: String::new(),
                empty_layer: false,
                size: self.layer_size(Some(layer))?,
                names: Vec::new(),
            });
        }
        entries.reverse();
        if let Some(newest) = entries.first_mut() {
            newest.id = Some(image.id.clone());
            newest.names.clone_from(&image.names);
        }
        Ok(entries)
    }

    fn layer_size(&self, layer: Option<&String>) -> Result<u64> {
        match layer {
            Some(diff_id) => Ok(self.store.layer_tar_size(diff_id)?),
            None => Ok(0),
        }
    }
}
