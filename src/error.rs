//! The one place that decides what a failure looks like: text, hint and exit code.

use std::io::Write;

use selkie_engine::ErrorKind;

/// Podman's exit code for failures of the tool itself.
pub const FAILURE: u8 = 125;
/// The container's command exists but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The container's command does not exist.
pub const NOT_FOUND: u8 = 127;

/// A failure on its way to the person at the terminal.
#[derive(Debug)]
pub struct CliError {
    /// One line: what was attempted, on what, why it failed. No final stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Exit code of the process.
    pub code: u8,
    /// What the engine called it, for commands whose exit code depends on it.
    pub kind: Option<ErrorKind>,
}

/// Result of the command line's own functions.
pub type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    /// A failure of the tool (exit code 125).
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            code: FAILURE,
            kind: None,
        }
    }

    /// Adds what to do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Another exit code.
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Exit codes of `rm`, `rmi` and `volume rm`: 1 for what does not exist, 2 for what is in use.
    pub fn with_removal_code(self) -> Self {
        match self.kind {
            Some(ErrorKind::NotFound) => self.with_code(1),
            Some(ErrorKind::Conflict) => self.with_code(2),
            _ => self,
        }
    }

    /// Writes `Error: …` and `Hint: …` to standard error. A closed standard error changes nothing.
    pub fn print(&self) {
        let mut text = format!("Error: {}\n", self.message);
        if let Some(hint) = &self.hint {
            text.push_str("Hint: ");
            text.push_str(hint);
            text.push('\n');
        }
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

impl From<selkie_engine::Error> for CliError {
    fn from(error: selkie_engine::Error) -> Self {
        let code = match error.kind {
            ErrorKind::CommandNotFound => NOT_FOUND,
            ErrorKind::CommandNotExecutable => NOT_EXECUTABLE,
            ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::InvalidInput
            | ErrorKind::Machine => FAILURE,
        };
        Self {
            message: error.message,
            hint: error.hint,
            code,
            kind: Some(error.kind),
        }
    }
}

/// Failures to write results to standard output, except a broken pipe: whoever read has seen
/// enough, which is no error.
pub fn output(result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CliError::new(format!("write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Runs `action` on each target, goes on after failures, prints all of them, and gives the exit
/// code of the last one that failed.
pub fn for_each<T: AsRef<str>>(
    targets: impl IntoIterator<Item = T>,
    mut action: impl FnMut(&str) -> Result<()>,
) -> Result<u8> {
    let mut code = 0;
    for target in targets {
        if let Err(error) = action(target.as_ref()) {
            error.print();
            code = error.code;
        }
    }
    Ok(code)
}
