//! `execve(2)` from arrays laid out beforehand.

use std::ffi::{CStr, CString, c_char};

use rustix::io::Errno;

/// Arguments and environment of a command, with the pointer arrays the kernel wants already built:
/// [`PreparedCommand::execute`] allocates nothing, so a cloned child may call it.
#[derive(Debug)]
pub struct PreparedCommand {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    argv: Vec<*const c_char>,
    /// Ends in two null pointers: the first gives way to what `push_environment` adds.
    envp: Vec<*const c_char>,
    /// With its final NUL. Has room from the start, so that filling it allocates nothing.
    late: Vec<u8>,
}

impl PreparedCommand {
    /// Lays out the arrays. `arguments[0]` is the command's name for itself.
    pub fn new(arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        let argv = pointers(&arguments, 1);
        let envp = pointers(&environment, 2);
        Self {
            arguments,
            environment,
            argv,
            envp,
            late: Vec::with_capacity(LATE_CAPACITY),
        }
    }

    /// The arguments.
    pub fn arguments(&self) -> &[CString] {
        &self.arguments
    }

    /// The environment as `NAME=value`.
    pub fn environment(&self) -> &[CString] {
        &self.environment
    }

    /// Adds one last variable (`NAME=value`), replacing one added so before. Up to 4 KiB allocate
    /// nothing.
    pub fn set_late_variable(&mut self, variable: &CStr) {
        self.late.clear();
        self.late.extend_from_slice(variable.to_bytes_with_nul());
        self.envp[self.environment.len()] = self.late.as_ptr().cast();
    }

    /// Replaces this process with the program at `path`; returns only when that failed.
    pub fn execute(&self, path: &CStr) -> Errno {
        // SAFETY: `path` is NUL-terminated; both arrays end in a null pointer and every other
        // element points into a string owned by `self`, whose heap buffer does not move with it.
        unsafe { libc::execve(path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        last_errno()
    }
}

const LATE_CAPACITY: usize = 4096;

fn pointers(strings: &[CString], nulls: usize) -> Vec<*const c_char> {
    let mut pointers: Vec<*const c_char> = strings.iter().map(|string| string.as_ptr()).collect();
    pointers.extend(std::iter::repeat_n(std::ptr::null(), nulls));
    pointers
}

fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(raw.unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_enoent_and_the_late_variable_stays_last() {
        let mut command = PreparedCommand::new(vec![c"x".into()], vec![c"A=1".into()]);
        command.set_late_variable(c"HOME=/root");
        command.set_late_variable(c"HOME=/");
        assert!(command.envp[2].is_null());
        assert_eq!(command.execute(c"/nonexistent/x"), Errno::NOENT);
    }
}
