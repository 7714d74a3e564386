//! What a freshly cloned child does to shed its parent's state before it runs something else.
//! Nothing here allocates.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;

use crate::clone::CloneNamespaces;

/// Gives every signal its default action and unblocks all of them. `execve` resets handlers but
/// keeps ignored signals ignored (Rust ignores `SIGPIPE`) and the mask, which would surprise the
/// new program.
pub fn reset_signals() {
    // Not through the C library, which keeps two signals for itself and does not let go of them,
    // even when the parent had them ignored.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads its `struct sigaction` (at most 32 bytes, all zero being the
        // default action with no flags) and writes nothing; for the signals that cannot be changed
        // the call fails and changes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<libc::c_void>(),
                size_of::<u64>(),
            )
        };
    }
    // SAFETY: sigset_t is plain data that sigemptyset fills in before sigprocmask reads it.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Brings up the loopback device of the caller's network namespace (netdevice(7)); the kernel gives
/// it its addresses then. Needs `CAP_NET_ADMIN` in the user namespace that owns it.
pub fn bring_up_loopback() -> Result<(), Errno> {
    // Any socket will do: the request is about its network namespace.
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data for which all-zero is valid; the name is shorter than its field,
    // so that it stays NUL-terminated.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`, which outlives the call, and writes nothing.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as libc::Ioctl,
            &raw const request,
        )
    };
    if result == -1 {
        return Err(last_errno());
    }
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec (`close_range(2)`, Linux 5.11).
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC as libc::c_int)
}

/// Closes every descriptor from `first` on, whoever believes to own it: for a child that keeps
/// nothing of what its parent had open.
pub fn close_from(first: RawFd) -> Result<(), Errno> {
    close_range(first, 0)
}

fn close_range(first: RawFd, flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: takes integers only. Closing descriptors that an OwnedFd of this process still names
    // is what the callers, children about to exec or exit without running destructors, ask for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            libc::c_uint::MAX,
            flags,
        )
    };
    if result == -1 {
        return Err(last_errno());
    }
    Ok(())
}

/// Makes `fd` also appear as number `target` (any descriptor there is closed), not close-on-exec:
/// how a child lays out the descriptors of the program it is going to run.
pub fn place_fd(fd: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    // SAFETY: dup2 takes integers; what `target` referred to belongs to the parent's copy of this
    // process, and the child will not use it again.
    if unsafe { libc::dup2(fd.as_raw_fd(), target) } == -1 {
        return Err(last_errno());
    }
    if fd.as_raw_fd() == target {
        // dup2 onto itself keeps the close-on-exec flag.
        // SAFETY: changes a flag of an open descriptor.
        if unsafe { libc::fcntl(target, libc::F_SETFD, 0) } == -1 {
            return Err(last_errno());
        }
    }
    Ok(())
}

/// Gives the process a new, empty session keyring (`KEYCTL_JOIN_SESSION_KEYRING`, keyctl(2)), so
/// that it does not possess the keys of the login that started it.
pub fn join_new_session_keyring() -> Result<(), Errno> {
    // SAFETY: a null name asks for an anonymous keyring; no memory of ours is touched.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    if result == -1 {
        return Err(last_errno());
    }
    Ok(())
}

/// Puts `title` where `/proc/PID/cmdline` shows the arguments, and zeros over the rest of them:
/// anybody who sees the process may read that file, and what its parent was called with may hold
/// secrets. The arguments (`std::env::args`) are gone afterwards.
///
/// Not through `/proc/self/mem`, which a process that is not dumpable cannot open.
pub fn hide_command_line(title: &CStr) -> Result<(), Errno> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let stat = rustix::fs::open(c"/proc/self/stat", flags, rustix::fs::Mode::empty())?;
    let mut text = [0u8; 1024];
    let length = rustix::io::read(&stat, &mut text)?;
    let (start, end) = argument_area(&text[..length]).ok_or(Errno::INVAL)?;
    let length = end.checked_sub(start).ok_or(Errno::INVAL)?;
    let title = &title.to_bytes()[..title.to_bytes().len().min(length.saturating_sub(1))];
    // SAFETY: the kernel says that this process's argument strings lie in start..end. They are
    // writable memory of the initial stack, which Rust never refers to but by raw pointers when
    // somebody asks for the arguments; this process has one thread, so nobody does now, and
    // whoever does later finds NUL-terminated strings within the area or at its end.
    unsafe {
        let area = start as *mut u8;
        std::ptr::write_bytes(area, 0, length);
        std::ptr::copy_nonoverlapping(title.as_ptr(), area, title.len());
    }
    Ok(())
}

/// Fields 48 and 49 (arg_start, arg_end) of proc_pid_stat(5). The second, the command name, may
/// hold anything; the first after it is field 3.
fn argument_area(stat: &[u8]) -> Option<(usize, usize)> {
    let after = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&stat[after..])
        .ok()?
        .split_ascii_whitespace();
    let start = fields.nth(48 - 3)?.parse().ok()?;
    let end = fields.next()?.parse().ok()?;
    (start != 0).then_some((start, end))
}

/// Moves the process into new namespaces (`unshare(2)`). It must have one thread, and none of the
/// namespaces may be a PID one, which would only concern its children.
pub fn unshare(namespaces: CloneNamespaces) -> Result<(), Errno> {
    // SAFETY: takes an integer; CloneNamespaces holds namespace flags only, none of which touches
    // the descriptor table or memory.
    if unsafe { libc::unshare(namespaces.bits() as libc::c_int) } == -1 {
        return Err(last_errno());
    }
    Ok(())
}

/// `personality(2)`.
pub fn set_personality(persona: u32) -> Result<(), Errno> {
    // SAFETY: takes an integer and changes only this process's execution domain.
    if unsafe { libc::personality(libc::c_ulong::from(persona)) } == -1 {
        return Err(last_errno());
    }
    Ok(())
}

fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(raw.unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_areas_are_found_behind_odd_names() {
        let mut stat = b"7 (a) 1 2 (x) ".to_vec();
        stat.extend(
            (3..=52)
                .map(|field| format!("{field} "))
                .collect::<String>()
                .bytes(),
        );
        assert_eq!(argument_area(&stat), Some((48, 49)));
        assert_eq!(argument_area(b"7 (a) S 1"), None);
    }
}
