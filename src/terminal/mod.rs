//! The caller's side of a container's streams: terminal modes, detach keys, signals, and the loops
//! that carry bytes.

pub mod attach;
pub mod caller;
pub mod detach_keys;
pub mod exec;
pub mod raw_mode;
pub mod signals;
pub mod sink;

use std::os::fd::{AsFd, BorrowedFd};

/// Size (rows, columns) of the first of our streams that is a terminal.
pub fn size() -> Option<(u16, u16)> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    [stdout.as_fd(), stdin.as_fd(), stderr.as_fd()]
        .into_iter()
        .find_map(size_of)
}

fn size_of(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(fd).ok()?;
    // A terminal that was never told its size says 0 x 0: as good as none.
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
