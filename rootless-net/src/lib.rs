//! The networks of one login: the uplink, user networks, names, published ports.
//!
//! All containers of a login that are online share one network namespace that none of them is in, the
//! *uplink*: it holds the bridges of user networks and one end of a veth pair per container, and one
//! `pasta` connects it with the host. [`uplink`] tells how it lives. Who is in which network, and with
//! which address, is the engine's to decide and to remember; this crate makes it so.
#![warn(missing_docs)]

pub mod address;
pub mod forwarder;
mod host_address;
pub mod member;
pub mod name_server;
pub mod netlink;
pub mod network;
pub mod pasta;
pub mod port_mapping;
pub mod program;
pub mod resolv_conf;
pub mod slirp4netns;
pub mod uplink;
pub mod user_mode;

pub use host_address::host_address;
