//! The process itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use selkie_sys::clone::exit_now;

use super::super::protocol::{Failure, receive, send};
use super::ServiceRequest;

/// Serves until the supervisor goes.
pub(super) fn run(channel: OwnedFd, uplink: BorrowedFd<'_>, _resolv_conf: &Path) -> ! {
    let _ = selkie_sys::slim::close_all_except(&[channel.as_fd(), uplink]);
    let mut buffer = Vec::new();
    while let Ok(Some((_request, _))) = receive::<ServiceRequest>(&channel, &mut buffer) {
        let answer: Result<(), Failure> = Ok(());
        if send(channel.as_fd(), &answer, &[]).is_err() {
            break;
        }
    }
    exit_now(0)
}
