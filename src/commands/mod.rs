//! The commands, one file each: read flags, call the engine, print.

pub mod attach;
pub mod completion;
pub mod container_prune;
pub mod create;
pub mod disk_usage;
pub mod exec;
pub mod exists;
pub mod export;
pub mod filter;
pub mod history;
pub mod images;
pub mod import;
pub mod inspect;
pub mod kill;
pub mod load;
pub mod logs;
pub mod manual;
pub mod network;
pub mod port;
pub mod progress;
pub mod prompt;
pub mod ps;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod save;
pub mod start;
pub mod stop;
pub mod streams;
pub mod system;
pub mod tag;
pub mod targets;
pub mod unshare;
pub mod update;
pub mod version;
pub mod volume;
pub mod wait;

use std::io::Write;

use crate::error::Result;

/// Prints results. A reader who has gone away is no error.
fn print(text: &str) -> Result<()> {
    crate::error::output(std::io::stdout().write_all(text.as_bytes()))
}

/// Prints one line.
fn print_line(line: &str) -> Result<()> {
    print(&format!("{line}\n"))
}
