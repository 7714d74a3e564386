//! Terminals made in a container's own devpts.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstatfs, openat};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Both sides of a terminal, and its number in devpts.
pub(crate) struct Pair {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
    name: Name,
}

/// `f_type` of devpts (statfs(2)).
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Opens a new terminal in `devpts`, which is the root of a devpts mount.
///
/// # Errors
/// `ENOTTY` when `devpts` is something else: a container may have put its own files there.
pub(crate) fn open(devpts: BorrowedFd<'_>, size: Option<(u16, u16)>) -> Result<Pair, Errno> {
    if fstatfs(devpts)?.f_type as u64 != DEVPTS_MAGIC {
        return Err(Errno::NOTTY);
    }
    let master = openat(
        devpts,
        c"ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // Also here the file itself must be devpts' own, not one mounted over it.
    if fstatfs(&master)?.f_type as u64 != DEVPTS_MAGIC {
        return Err(Errno::NOTTY);
    }
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    if let Some((rows, columns)) = size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size)?;
    }
    let name = Name::of(&slave)?;
    Ok(Pair {
        master,
        slave,
        name,
    })
}

impl Pair {
    /// File name of the slave in devpts.
    pub(crate) fn name(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.name.0).unwrap_or(c"0")
    }
}

/// A decimal number and its NUL.
struct Name([u8; 12]);

impl Name {
    /// Unix98 slaves are numbered by their minor device number.
    fn of(slave: &OwnedFd) -> Result<Self, Errno> {
        use std::io::Write;
        let minor = rustix::fs::minor(rustix::fs::fstat(slave)?.st_rdev);
        let mut bytes = [0; 12];
        write!(&mut bytes[..], "{minor}").map_err(|_| Errno::RANGE)?;
        Ok(Self(bytes))
    }
}
