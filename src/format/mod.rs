//! Turning what the engine knows into text: tables, sizes, times, JSON, templates.

pub mod container;
pub mod image;
pub mod inspect_container;
pub mod inspect_image;
pub mod json;
pub mod list;
pub mod network;
pub mod size;
pub mod table;
pub mod time;
