//! The one crate of Selkie that may contain `unsafe`.
//!
//! It adds to `rustix` and `nix` only the system calls they do not have (or have as `unsafe`):
//! `clone3`, `mount_setattr` with an ID map, `NS_GET_PARENT`, loading a seccomp filter, passing
//! file descriptors, and process identities that survive PID reuse. Everything speaks
//! `OwnedFd`/`BorrowedFd`; every error names the call and the object it was made on.
#![allow(unsafe_code)]
#![warn(missing_docs)]

pub mod child;
pub mod clone;
pub mod errno;
pub mod exec;
pub mod fd_passing;
pub mod mount;
pub mod namespace;
pub mod process_identity;
pub mod seccomp;
pub mod signal;
pub mod signal_queue;
pub mod slim;
pub mod socket;
pub mod tun;

pub use errno::{SysError, SysResult};
