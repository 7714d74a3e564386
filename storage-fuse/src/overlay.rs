//! Overlay mounts put together from file descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsmount, fsopen,
};
use selkie_sys::errno::{Attempt, SysError};

use crate::store::StoreError;

/// The directories of an overlay mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layers<'a> {
    /// Lower layers, topmost first.
    pub lower: &'a [BorrowedFd<'a>],
    /// Layers that only hold content for files of the last lower one.
    pub data: &'a [BorrowedFd<'a>],
    /// Upper layer and its work directory; without them the mount is read-only.
    pub upper: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
    /// Nothing is synced when it is unmounted.
    pub volatile: bool,
}

/// Why an overlay could not be mounted.
#[derive(Debug)]
pub(crate) enum OverlayError {
    /// The kernel does not take this option at all.
    Option(&'static str, SysError),
    /// The options were taken one by one, but make no mount.
    Mount(SysError),
}

impl OverlayError {
    pub fn into_sys(self) -> SysError {
        match self {
            OverlayError::Option(_, error) | OverlayError::Mount(error) => error,
        }
    }
}

impl From<OverlayError> for StoreError {
    fn from(error: OverlayError) -> Self {
        match error {
            OverlayError::Option("lowerdir+" | "datadir+" | "upperdir" | "workdir", error) => {
                StoreError::Unsupported(format!(
                    "needs Linux 6.16 (overlay layers by file descriptor), this is {}: {error}",
                    rustix::system::uname().release().to_string_lossy()
                ))
            }
            other => other.into_sys().into(),
        }
    }
}

/// A detached overlay mount. Its own attributes are `user.overlay.*`, the ones that a user namespace
/// may set.
pub(crate) fn mount(layers: &Layers<'_>) -> Result<OwnedFd, OverlayError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .attempt(|| "open the overlay file system (is its kernel module loaded?)")
        .map_err(OverlayError::Mount)?;
    let flag = |name: &'static str| {
        fsconfig_set_flag(&context, name)
            .map_err(|errno| OverlayError::Option(name, explain(&context, name, errno)))
    };
    let layer = |name: &'static str, fd: BorrowedFd<'_>| {
        fsconfig_set_fd(&context, name, fd)
            .map_err(|errno| OverlayError::Option(name, explain(&context, name, errno)))
    };
    flag("userxattr")?;
    for fd in layers.lower {
        layer("lowerdir+", *fd)?;
    }
    for fd in layers.data {
        layer("datadir+", *fd)?;
    }
    if let Some((upper, work)) = layers.upper {
        layer("upperdir", upper)?;
        layer("workdir", work)?;
    }
    if layers.volatile {
        flag("volatile")?;
    }
    fsconfig_create(&context)
        .map_err(|errno| OverlayError::Mount(explain(&context, "all options", errno)))?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .attempt(|| "mount the overlay")
    .map_err(OverlayError::Mount)
}

/// Adds what the kernel logged about the failure.
fn explain(context: &OwnedFd, option: &str, errno: Errno) -> SysError {
    let log = selkie_sys::mount::context_log(context.as_fd());
    let said = if log.is_empty() {
        String::new()
    } else {
        format!(" (the kernel says: {log})")
    };
    SysError::new(
        format!("set up an overlay mount with {option}{said}"),
        errno,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_by_descriptor_are_named_when_the_kernel_lacks_them() {
        let error = OverlayError::Option("lowerdir+", SysError::new("try", Errno::INVAL));
        let text = StoreError::from(error).to_string();
        assert!(text.starts_with("needs Linux 6.16"), "{text}");
        let error = OverlayError::Option("volatile", SysError::new("try", Errno::INVAL));
        assert!(matches!(StoreError::from(error), StoreError::Sys(_)));
    }
}
