//! One container process: from an OCI runtime spec to namespaces, mounts, capabilities, seccomp
//! and `exec`. Knows nothing of images, stores or state: it takes specs, paths and descriptors.
#![warn(missing_docs)]

pub mod default_spec;
pub mod exec;
pub mod launch;
pub mod seccomp_filter;
pub mod seccomp_profile;
pub mod user_database;
