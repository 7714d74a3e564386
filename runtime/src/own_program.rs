//! Our own program file, kept out of reach of containers that have the login's ID.
//!
//! Theory of operation. Until a child of ours executes the container's command, its `/proc/PID/exe`
//! is our program. An image can have that executed inside (a script whose interpreter is
//! `/proc/self/exe`; no check of the path beforehand helps against somebody who exchanges the file
//! meanwhile), then any process of the container may open it, keep the descriptor, and write once
//! nobody executes it any more (CVE-2019-5736). What stands in the way is that the file belongs to an
//! ID the container does not have. Where it does have it, because the login is mapped into the
//! container and the program is the login's own file, the process that is going to start something
//! there first executes itself again from a detached, read-only mount of that one file: the mount
//! is what a descriptor of `/proc/PID/exe` leads through, and nobody can change it any more.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, open, readlink, stat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use selkie_sys::errno::Attempt;
use selkie_sys::mount::{MountAttributes, clone_detached, set_attributes};
use selkie_sys::{SysError, SysResult};

use crate::mount_options::attribute;

const OWN_PROGRAM: &str = "/proc/self/exe";

/// Returns when nobody with the login's ID can write to the file this process executes, and executes
/// `arguments` (the first being the name) with the same program otherwise. The caller is root in the
/// login's namespace, has one thread, and has not done anything yet that must not be done twice.
///
/// # Errors
/// The kernel's; the program is not where it was.
pub fn protect(arguments: impl Iterator<Item = OsString>) -> SysResult<()> {
    // We are root where the login is mapped: what we may not write, no container of it may. That
    // somebody executes the file just now does not count here.
    match accessat(CWD, OWN_PROGRAM, Access::WRITE_OK, AtFlags::EACCESS) {
        Ok(()) => {}
        Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {
            // As we were before we were executed in this namespace.
            return set_dumpable_behavior(DumpableBehavior::NotDumpable)
                .attempt(|| "hide from containers");
        }
        Err(errno) => return Err(SysError::new(format!("look at {OWN_PROGRAM}"), errno)),
    }
    let program = read_only_program()?;
    let mut arguments = arguments;
    let mut command = std::process::Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).exec();
    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
    Err(SysError::new(
        "execute a read-only view of this program",
        errno,
    ))
}

/// A detached mount of the program file. `/proc/self/exe` itself leads to the mount namespace it was
/// executed in, whose mounts cannot be cloned from here.
fn read_only_program() -> SysResult<OwnedFd> {
    let path = readlink(OWN_PROGRAM, Vec::new()).attempt(|| format!("read {OWN_PROGRAM}"))?;
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let attempt = || format!("make a read-only view of this program, {}", path.display());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).attempt(attempt)?;
    let mount = clone_detached(file.as_fd(), false)
        .map_err(|error| SysError::new(attempt(), error.errno))?;
    let (ours, there) = (
        stat(OWN_PROGRAM).attempt(attempt)?,
        rustix::fs::fstat(&mount).attempt(attempt)?,
    );
    if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino) {
        // Exchanged since: what runs now is no longer what is installed.
        return Err(SysError::new(attempt(), Errno::STALE));
    }
    let attributes = MountAttributes {
        set: attribute::READ_ONLY,
        ..Default::default()
    };
    set_attributes(mount.as_fd(), attributes, false)?;
    Ok(mount)
}
