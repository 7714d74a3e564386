//! Trying, one by one, what presenters need of the kernel and of the store's file system.
//!
//! Versions say little: distributions backport. Nothing tried here stays: mounts are never
//! attached, files are below the store's `tmp/`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use rustix::process::DumpableBehavior;
use selkie_sys::clone::{CloneNamespaces, Side, clone3, exit_now};
use selkie_sys::errno::{Attempt, SysError, SysResult};

use crate::overlay::{Layers, OverlayError};
use crate::store::{Store, StoreError, unique_name};
use crate::tmpfs_metacopy::tmpfs;

/// One kernel or file system feature and whether it worked when tried.
#[derive(Debug, Clone)]
pub struct Feature {
    /// E.g. `idmapped mounts of tmpfs`.
    pub name: &'static str,
    /// `Err` says what the kernel answered.
    pub result: Result<(), String>,
}

/// Tries every feature presenters need (for `info`; not on the hot path). The caller is root of the
/// pause namespace and has one thread.
pub fn probe(store: &Store) -> Vec<Feature> {
    let feature = |name, result: Result<(), StoreError>| Feature {
        name,
        result: result.map_err(|error| error.to_string()),
    };
    vec![
        feature(
            "tmpfs in a user namespace",
            tmpfs().map(drop).map_err(Into::into),
        ),
        feature("user extended attributes on tmpfs", tmpfs_xattrs()),
        feature("idmapped mounts of tmpfs", idmapped_tmpfs()),
        feature("overlay in a user namespace", plain_overlay(store)),
        feature("overlay layers by file descriptor", overlay_by_fd(store)),
        feature(
            "overlay over a mount that is not attached",
            detached_layer(),
        ),
        feature("metadata-only files in an unprivileged overlay", metacopy()),
        feature(
            "user extended attributes on the store's file system",
            in_scratch(store, |scratch| {
                let file = make_file(scratch, "file")?;
                set(&file, "user.selkie", b"1")
            }),
        ),
        feature(
            "writable overlay on the store's file system",
            in_scratch(store, writable_overlay),
        ),
    ]
}

fn tmpfs_xattrs() -> Result<(), StoreError> {
    let mount = tmpfs()?;
    let file = make_file(mount.as_fd(), "file")?;
    Ok(set(&file, "user.overlay.metacopy", b"")?)
}

fn idmapped_tmpfs() -> Result<(), StoreError> {
    let mount = tmpfs()?;
    let user_namespace = scratch_user_namespace()?;
    Ok(selkie_sys::mount::set_idmap(
        mount.as_fd(),
        user_namespace.as_fd(),
    )?)
}

/// A user namespace in which 0 is the caller's 0.
fn scratch_user_namespace() -> SysResult<OwnedFd> {
    let pipe =
        || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).attempt(|| "make a pipe");
    let (ready, tell_ready) = pipe()?;
    let (end, keep_alive) = pipe()?;
    let pid = match clone3(CloneNamespaces::USER, None)? {
        Side::Child => {
            drop(keep_alive);
            // Whoever has joined a namespace is not dumpable, and neither are its children: their
            // files in /proc would belong to the host's root.
            let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable);
            let _ = rustix::io::write(&tell_ready, b"r");
            let _ = rustix::io::read(&end, &mut [0u8; 1]);
            exit_now(0)
        }
        Side::Parent { pid, .. } => pid,
    };
    drop(tell_ready);
    let _ = rustix::io::read(&ready, &mut [0u8; 1]);
    let process = pid.as_raw_nonzero();
    let result = ["uid_map", "gid_map"]
        .into_iter()
        .try_for_each(|map| {
            let path = format!("/proc/{process}/{map}");
            std::fs::write(&path, "0 0 1").attempt(|| format!("write {path}"))
        })
        .and_then(|()| {
            let path = format!("/proc/{process}/ns/user");
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .attempt(|| format!("open {path}"))
        });
    drop(keep_alive);
    while let Err(Errno::INTR) =
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
    {}
    result
}

/// With layers named by path, as before Linux 6.13.
fn plain_overlay(store: &Store) -> Result<(), StoreError> {
    use std::os::fd::AsRawFd;
    let first = store.open_subdirectory("layers")?;
    let second = store.open_subdirectory("images")?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .attempt(|| "open the overlay file system (is its kernel module loaded?)")?;
    let lower = format!(
        "/proc/self/fd/{}:/proc/self/fd/{}",
        first.as_raw_fd(),
        second.as_raw_fd()
    );
    fsconfig_set_string(&context, "lowerdir", &lower)
        .and_then(|()| fsconfig_create(&context))
        .and_then(|()| {
            fsmount(
                &context,
                FsMountFlags::FSMOUNT_CLOEXEC,
                MountAttrFlags::empty(),
            )
        })
        .map_err(|errno| {
            let log = selkie_sys::mount::context_log(context.as_fd());
            SysError::new(format!("mount an overlay (the kernel says: {log})"), errno)
        })?;
    Ok(())
}

fn overlay_by_fd(store: &Store) -> Result<(), StoreError> {
    let first = store.open_subdirectory("layers")?;
    let second = store.open_subdirectory("images")?;
    read_only(&[first.as_fd(), second.as_fd()], &[])?;
    Ok(())
}

fn detached_layer() -> Result<(), StoreError> {
    let mount = tmpfs()?;
    let first = make_directory(mount.as_fd(), "first")?;
    let second = make_directory(mount.as_fd(), "second")?;
    read_only(&[first.as_fd(), second.as_fd()], &[])?;
    Ok(())
}

fn metacopy() -> Result<(), StoreError> {
    let mount = tmpfs()?;
    let metadata = make_directory(mount.as_fd(), "metadata")?;
    let data = make_directory(mount.as_fd(), "data")?;
    let content = make_file(data.as_fd(), "content")?;
    rustix::io::write(&content, b"selkie").attempt(|| "write to a tmpfs")?;
    let file = make_file(metadata.as_fd(), "file")?;
    rustix::fs::ftruncate(&file, 6).attempt(|| "set the length of a file")?;
    set(&file, "user.overlay.metacopy", b"")?;
    set(&file, "user.overlay.redirect", b"/content")?;
    let overlay = read_only(&[metadata.as_fd()], &[data.as_fd()])?;
    let file = rustix::fs::openat(
        &overlay,
        "file",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .attempt(|| "open a metadata-only file through an overlay")?;
    let mut buffer = [0; 8];
    let length = rustix::io::read(&file, &mut buffer)
        .attempt(|| "read a metadata-only file through an overlay")?;
    if buffer[..length] != *b"selkie" {
        return Err(StoreError::Unsupported(
            "reading a metadata-only file through an overlay gives other content".to_owned(),
        ));
    }
    Ok(())
}

fn writable_overlay(scratch: BorrowedFd<'_>) -> SysResult<()> {
    let lower = make_directory(scratch, "lower")?;
    let upper = make_directory(scratch, "upper")?;
    let work = make_directory(scratch, "work")?;
    let overlay = crate::overlay::mount(&Layers {
        lower: &[lower.as_fd()],
        data: &[],
        upper: Some((upper.as_fd(), work.as_fd())),
        // Unmounting must not sync the whole file system.
        volatile: true,
    })
    .map_err(OverlayError::into_sys)?;
    make_file(overlay.as_fd(), "file")?;
    rustix::fs::unlinkat(&overlay, "file", rustix::fs::AtFlags::empty())
        .attempt(|| "remove a file from an overlay")
}

fn read_only(lower: &[BorrowedFd<'_>], data: &[BorrowedFd<'_>]) -> Result<OwnedFd, StoreError> {
    Ok(crate::overlay::mount(&Layers {
        lower,
        data,
        upper: None,
        volatile: false,
    })?)
}

/// Runs `body` in a directory of the store that is removed afterwards.
fn in_scratch(
    store: &Store,
    body: impl FnOnce(BorrowedFd<'_>) -> SysResult<()>,
) -> Result<(), StoreError> {
    let _lock = store.lock_shared()?;
    let name = format!("tmp/probe-{}", unique_name()?);
    let directory = make_directory(store.directory(), &name)?;
    let result = body(directory.as_fd());
    crate::remove_tree::remove_tree(&store.path(&name))?;
    Ok(result?)
}

fn make_directory(parent: BorrowedFd<'_>, name: &str) -> SysResult<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)
        .and_then(|()| {
            rustix::fs::openat(
                parent,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        })
        .attempt(|| format!("make the directory {name}"))
}

fn make_file(parent: BorrowedFd<'_>, name: &str) -> SysResult<OwnedFd> {
    rustix::fs::openat(
        parent,
        name,
        OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )
    .attempt(|| format!("make the file {name}"))
}

fn set(file: &OwnedFd, name: &str, value: &[u8]) -> SysResult<()> {
    rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
        .attempt(|| format!("set the extended attribute {name}"))
}
