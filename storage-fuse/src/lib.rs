//! Storage: file contents kept once per login, image indexes, and root file systems for containers.
//!
//! * [`store`]: the directory on disk: layout, format version, locking, durability.
//! * [`layer`]: reading a layer in, and giving its exact tar stream back.
//! * [`image_index`]: an image's layers flattened into one file.
//! * [`presenter`]: an index made into a root file system for one container.
//! * [`container_layer`]: what a container writes.
//! * [`seal`]: whether it wrote anything.
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
mod metadata_tree;
pub mod object;
mod overlay;
pub mod presenter;
mod probe;
mod remove_tree;
mod reown;
pub mod seal;
pub mod store;
mod tmpfs_metacopy;
mod tree_name;
mod tree_walk;

pub use garbage::Garbage;
pub use remove_tree::remove_tree;
pub use store::{ExclusiveLock, SharedLock, Store, StoreError};
