//! Who a login is on this host: subordinate IDs, ID maps, slices, and the pause process that holds
//! the login's one long-lived user namespace.
#![warn(missing_docs)]

pub mod id_map;
pub mod map_helpers;
pub mod name_service;
pub mod pause;
pub mod slice;
pub mod subordinate_ids;

pub use id_map::{IdExtent, IdMap, IdMaps};
