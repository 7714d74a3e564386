//! Making processes: `fork` for a single-threaded caller, and `clone3` into fresh namespaces.
//!
//! Theory of operation. Both calls duplicate the caller like `fork(2)` (no `CLONE_VM`). That is
//! only sound while the caller has one thread: another thread could hold the allocator's or
//! stdio's lock at that instant and the child would find it locked for ever. So each function
//! first asks the kernel whether there are other threads, and refuses when there are.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::errno::{SysError, SysResult};
use rustix::io::Errno;
use rustix::process::Pid;

bitflags::bitflags! {
    /// Namespaces the child starts in (`CLONE_NEW*`, clone(2)).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct CloneNamespaces: u64 {
        /// A user namespace; its maps are written by the parent afterwards.
        const USER = libc::CLONE_NEWUSER as u64;
        /// A mount namespace.
        const MOUNT = libc::CLONE_NEWNS as u64;
        /// A PID namespace; the child is its init.
        const PID = libc::CLONE_NEWPID as u64;
        /// A network namespace.
        const NETWORK = libc::CLONE_NEWNET as u64;
        /// An IPC namespace.
        const IPC = libc::CLONE_NEWIPC as u64;
        /// A UTS namespace.
        const UTS = libc::CLONE_NEWUTS as u64;
        /// A cgroup namespace.
        const CGROUP = libc::CLONE_NEWCGROUP as u64;
    }
}

/// Which side of a `fork`/`clone3` the caller is on.
#[derive(Debug)]
pub enum Side {
    /// The original process.
    Parent {
        /// The child's PID in the caller's PID namespace.
        pid: Pid,
        /// Refers to the child even after its PID is reused. Close-on-exec.
        pidfd: OwnedFd,
    },
    /// The new process. Leave it with `exec` or [`exit_now`], never by returning from `main`.
    Child,
}

/// `fork(2)` that also gives a pidfd.
///
/// # Errors
/// `EBUSY` when the caller has more than one thread; otherwise the kernel's errno.
pub fn fork() -> SysResult<Side> {
    clone3(CloneNamespaces::empty(), None)
}

/// `clone3(2)` without shared memory: the child runs on a copy, in the given new namespaces, and
/// in `cgroup` (an open cgroup v2 directory) when one is given. The parent gets `SIGCHLD`.
///
/// # Errors
/// `EBUSY` when the caller has more than one thread; otherwise the kernel's errno.
pub fn clone3(namespaces: CloneNamespaces, cgroup: Option<BorrowedFd<'_>>) -> SysResult<Side> {
    clone_with(namespaces, cgroup, 0, libc::SIGCHLD)
}

/// Like [`clone3`], but the new process becomes a child of the caller's parent (`CLONE_PARENT`),
/// which is signalled as for the caller and has to reap it.
pub fn clone3_sibling(
    namespaces: CloneNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
) -> SysResult<Side> {
    // The kernel takes no exit signal together with CLONE_PARENT.
    clone_with(namespaces, cgroup, libc::CLONE_PARENT as u64, 0)
}

fn clone_with(
    namespaces: CloneNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
    flags: u64,
    exit_signal: libc::c_int,
) -> SysResult<Side> {
    if !becomes_single_threaded() {
        return Err(SysError::new(
            "clone a process while other threads run",
            Errno::BUSY,
        ));
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers; all-zero is its documented default.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces.bits() | libc::CLONE_PIDFD as u64 | flags;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = exit_signal as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM and no stack, so the child continues on a copy of this address space;
    // the caller has one thread (checked above), so no lock is held by a thread that vanishes.
    // `args` and `pidfd` outlive the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            std::mem::size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(SysError::last(format!("clone3 with {namespaces:?}"))),
        0 => Ok(Side::Child),
        pid => {
            let pid = Pid::from_raw(pid as i32)
                .ok_or_else(|| SysError::new("clone3 returned a PID", Errno::RANGE))?;
            // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent { pid, pidfd })
        }
    }
}

/// `_exit(2)`: ends a forked child without running destructors or flushing the parent's buffers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit is always sound; it never returns.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from 3 on but those in `keep` (`close_range(2)`): for a forked child
/// that stays, which must not hold locks and pipes of its parent. It never returns to code that
/// owns the closed descriptors, so that no `OwnedFd` of the parent is used or closed again.
///
/// # Errors
/// `ENOSYS` on kernels before 5.9.
pub fn close_inherited_descriptors(keep: &[BorrowedFd<'_>]) -> SysResult<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        let last = if fd == u32::MAX {
            fd
        } else {
            fd.saturating_sub(1)
        };
        if first <= last {
            // SAFETY: closing touches no memory. That nobody uses the closed numbers again is the
            // contract above.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == -1 {
                return Err(SysError::last(format!(
                    "close descriptors {first} to {last}"
                )));
            }
        }
        first = first.max(fd.saturating_add(1));
    }
    Ok(())
}

/// How long a thread that is ending may take to be gone.
const ENDING: Duration = Duration::from_millis(500);

/// Not `libc::CLONE_INTO_CGROUP`: that constant is typed too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Waits for threads that are ending. One that was joined may still be there for a moment: joining waits
/// until it has left this process's memory, which is before the kernel takes it off the thread group.
fn becomes_single_threaded() -> bool {
    let deadline = Instant::now() + ENDING;
    while !is_single_threaded() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_micros(20));
    }
    true
}

/// `unshare(CLONE_THREAD)` is allowed to a process with one thread, where it does nothing, and
/// `EINVAL` to any other (unshare(2)): one cheap call, and no `/proc` needed.
fn is_single_threaded() -> bool {
    // SAFETY: takes an integer; with this flag it changes nothing.
    unsafe { libc::unshare(libc::CLONE_THREAD) == 0 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        // The test harness itself runs this in a second thread.
        let error = fork().unwrap_err();
        assert_eq!(error.errno, Errno::BUSY);
    }

    #[test]
    fn only_the_kept_descriptors_survive() {
        // The harness's own descriptors are at stake, so this binary runs the part below alone.
        let exe = std::env::current_exe().unwrap();
        let status = std::process::Command::new(exe)
            .args([
                "--exact",
                "clone::tests::in_a_process_of_its_own",
                "--ignored",
            ])
            .arg("--test-threads=1")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[test]
    #[ignore = "closes the test harness's descriptors; run by only_the_kept_descriptors_survive"]
    fn in_a_process_of_its_own() {
        let open = || rustix::fs::open("/dev/null", rustix::fs::OFlags::CLOEXEC, 0.into()).unwrap();
        let fds: Vec<OwnedFd> = (0..6).map(|_| open()).collect();
        close_inherited_descriptors(&[fds[4].as_fd(), fds[1].as_fd()]).unwrap();
        let open_after: Vec<bool> = fds
            .iter()
            .map(|fd| rustix::io::fcntl_getfd(fd).is_ok())
            .collect();
        std::mem::forget(fds);
        assert_eq!(open_after, [false, true, false, false, true, false]);
        exit_now(0);
    }
}
