//! Giving back what a forked child took over from its parent and will never use.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::errno::{SysError, SysResult};

/// Closes every descriptor but 0, 1, 2 and `keep`, whoever owned them.
///
/// For a forked child only that leaves by [`crate::clone::exit_now`] or `exec`: values that own one
/// of the closed descriptors must be neither used nor dropped afterwards (using one fails with
/// `EBADF`, or reaches a descriptor opened later).
pub fn close_all_except(keep: &[BorrowedFd<'_>]) -> SysResult<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> SysResult<()> {
    // SAFETY: close_range takes three integers and touches no memory; that nobody uses the closed
    // descriptors is the documented duty of the caller, a forked child which never unwinds.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == -1 {
        return Err(SysError::last(format!(
            "close descriptors {first} to {last}"
        )));
    }
    Ok(())
}

/// Gives free heap memory back to the kernel (`malloc_trim(3)`).
pub fn trim_heap() {
    // SAFETY: malloc_trim is thread-safe and only releases memory that is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
