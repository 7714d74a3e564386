//! Storage: file contents kept once per login, image indexes, and root file systems for containers.
#![warn(missing_docs)]

pub mod container_layer;
pub mod image_index;
pub mod layer;
pub mod object;
pub mod presenter;
pub mod store;

pub use store::{Store, StoreError};
