//! Interfaces whose packets a program reads and writes (the kernel's `networking/tuntap.rst`).

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::errno::{Attempt, SysError, SysResult};

/// Makes the interface `name` in the network namespace of the calling thread; it goes when the
/// descriptor is closed. Each nonblocking `read` or `write` is one IP packet.
///
/// # Errors
/// `EBUSY`: one of that name is there; `EPERM`: no `CAP_NET_ADMIN` there; `ENOENT`, `EACCES`: of
/// `/dev/net/tun`.
pub fn make(name: &str) -> SysResult<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device =
        rustix::fs::open("/dev/net/tun", flags, Mode::empty()).attempt(|| "open /dev/net/tun")?;
    // SAFETY: an ifreq is numbers and bytes, of which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let place = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..place].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq at the given address, which outlives the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } == -1 {
        return Err(SysError::last(format!("make the interface {name}")));
    }
    Ok(device)
}
