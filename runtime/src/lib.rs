//! One container process: from an OCI runtime spec to namespaces, mounts, capabilities, seccomp
//! and `exec`. Knows nothing of images, stores or state: it takes specs, paths and descriptors.
#![warn(missing_docs)]

mod capabilities;
mod child;
mod copy_up;
pub mod default_spec;
pub mod exec;
mod id_maps;
mod in_root;
mod init;
pub mod launch;
mod mount_options;
mod namespaces;
pub mod own_program;
mod passage;
mod prepare;
mod process_steps;
mod protocol;
mod script;
pub mod seccomp_filter;
pub mod seccomp_profile;
mod spawn;
mod terminal;
pub mod user_database;
