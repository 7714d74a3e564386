//! Errno with context: what was attempted, on what, and what the kernel said.

use rustix::io::Errno;

/// A failed system call, worded for a person.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{attempt}: {errno}")]
pub struct SysError {
    /// What was attempted and on which object, e.g. `mount overlay on fd 7 (lowerdir+)`.
    pub attempt: String,
    /// What the kernel answered.
    pub errno: Errno,
}

/// Result of a call in this crate.
pub type SysResult<T> = Result<T, SysError>;

impl SysError {
    /// Ties an errno to what was attempted.
    pub fn new(attempt: impl Into<String>, errno: Errno) -> Self {
        Self {
            attempt: attempt.into(),
            errno,
        }
    }

    /// The errno the C library left behind by the call just made.
    pub fn last(attempt: impl Into<String>) -> Self {
        let raw = std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
        Self::new(attempt, Errno::from_raw_os_error(raw))
    }
}

impl From<SysError> for std::io::Error {
    fn from(error: SysError) -> Self {
        std::io::Error::new(std::io::Error::from(error.errno).kind(), error)
    }
}

/// Adds the attempt to results of `rustix`, `nix` and `std` calls.
pub trait Attempt<T> {
    /// Words the failure; the closure runs only on failure.
    fn attempt<S: Into<String>>(self, what: impl FnOnce() -> S) -> SysResult<T>;
}

impl<T> Attempt<T> for Result<T, Errno> {
    fn attempt<S: Into<String>>(self, what: impl FnOnce() -> S) -> SysResult<T> {
        self.map_err(|errno| SysError::new(what(), errno))
    }
}

impl<T> Attempt<T> for Result<T, nix::errno::Errno> {
    fn attempt<S: Into<String>>(self, what: impl FnOnce() -> S) -> SysResult<T> {
        self.map_err(|errno| SysError::new(what(), Errno::from_raw_os_error(errno as i32)))
    }
}

impl<T> Attempt<T> for Result<T, std::io::Error> {
    fn attempt<S: Into<String>>(self, what: impl FnOnce() -> S) -> SysResult<T> {
        self.map_err(|error| {
            let raw = error.raw_os_error().unwrap_or(libc::EIO);
            SysError::new(what(), Errno::from_raw_os_error(raw))
        })
    }
}
