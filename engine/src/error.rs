//! Errors of the engine, sorted by what the command line must do with them.

use selkie_net::uplink::UplinkError;
use serde::{Deserialize, Serialize};

/// Decides exit code and hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// No such container, image or volume.
    NotFound,
    /// The name is taken, the object is in use, the state is wrong for this.
    Conflict,
    /// The caller asked for something that cannot be.
    InvalidInput,
    /// The container's command was not found (exit code 127).
    CommandNotFound,
    /// The container's command cannot be executed (exit code 126).
    CommandNotExecutable,
    /// Kernel, file system or helper failed.
    Machine,
}

/// What was attempted, on what, why it failed, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// One line (causes included), no final stop.
    pub message: String,
    /// What to do about it, when we know.
    pub hint: Option<String>,
}

/// Result of engine calls.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }
    /// Adds what to do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// A machine failure: `attempt: cause`.
    pub fn machine(attempt: impl std::fmt::Display, cause: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::Machine, format!("{attempt}: {cause}"))
    }
}

impl From<selkie_sys::SysError> for Error {
    fn from(error: selkie_sys::SysError) -> Self {
        Self::new(ErrorKind::Machine, error.to_string())
    }
}

impl From<selkie_userns::pause::PauseError> for Error {
    fn from(error: selkie_userns::pause::PauseError) -> Self {
        Self::new(ErrorKind::Machine, error.to_string())
    }
}

impl From<selkie_storage::StoreError> for Error {
    fn from(error: selkie_storage::StoreError) -> Self {
        Self::new(ErrorKind::Machine, error.to_string())
    }
}

impl From<selkie_runtime::launch::LaunchError> for Error {
    fn from(error: selkie_runtime::launch::LaunchError) -> Self {
        use rustix::io::Errno;
        use selkie_runtime::launch::LaunchError;
        let kind = match &error {
            LaunchError::CommandNotFound(_) | LaunchError::InterpreterNotFound(_) => {
                ErrorKind::CommandNotFound
            }
            LaunchError::WorkingDirectory { errno, .. } if *errno == Errno::NOENT => {
                ErrorKind::CommandNotFound
            }
            // An unknown user is exit code 126 in Podman.
            LaunchError::CommandNotExecutable(..)
            | LaunchError::User(_)
            | LaunchError::WorkingDirectory { .. } => ErrorKind::CommandNotExecutable,
            LaunchError::InvalidSpec(_) => ErrorKind::InvalidInput,
            LaunchError::NotRunning(_) => ErrorKind::Conflict,
            LaunchError::Step { .. }
            | LaunchError::Sys(_)
            | LaunchError::Root(_)
            | LaunchError::Network(_) => ErrorKind::Machine,
        };
        let hint = match &error {
            LaunchError::Network(cause) => match cause.downcast_ref::<UplinkError>() {
                Some(UplinkError::Failed(failure)) => failure.hint.clone(),
                _ => None,
            },
            _ => None,
        };
        Self {
            hint,
            ..Self::new(kind, error.to_string())
        }
    }
}

impl From<UplinkError> for Error {
    fn from(error: UplinkError) -> Self {
        let hint = match &error {
            UplinkError::Failed(failure) => failure.hint.clone(),
            UplinkError::Sys(_) | UplinkError::Lost => None,
        };
        Self {
            hint,
            ..Self::new(ErrorKind::Machine, error.to_string())
        }
    }
}
