//! Image names, manifests and configs, and the transports that carry images.
//! Knows nothing of how images are stored: layers are read into a [`layer_tar::LayerSink`].
#![warn(missing_docs)]

pub mod changes;
pub mod config;
pub mod digest;
pub mod layer_tar;
pub mod manifest;
pub mod name;
pub mod platform;
pub mod save;
pub mod tar_writer;
pub mod transport;
