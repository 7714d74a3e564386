//! Storage: file contents kept once per login, image indexes, and root file systems for containers.
//!
//! * [`store`]: the directory on disk: layout, format version, locking, durability.
//! * [`layer`]: reading a layer in, and giving its exact tar stream back.
//! * [`image_index`]: an image's layers flattened into one file.
//! * [`presenter`]: an index made into a root file system for one container.
//! * [`container_layer`]: what a container writes.
#![warn(missing_docs)]

pub mod container_layer;
mod digest;
mod encoding;
mod flatten;
pub mod garbage;
pub mod image_index;
mod index_file;
mod index_writer;
pub mod layer;
mod layer_record;
mod layer_worker;
pub mod object;
pub mod presenter;
mod remove_tree;
pub mod store;
mod tree_name;

pub use garbage::Garbage;
pub use remove_tree::remove_tree;
pub use store::{ExclusiveLock, SharedLock, Store, StoreError};
