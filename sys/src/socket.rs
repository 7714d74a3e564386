//! What `rustix`, `nix` and `socket2` cannot ask a socket.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::errno::{SysError, SysResult};

/// How many bytes written to a TCP socket its peer has not acknowledged yet (`SIOCOUTQ`, tcp(7)).
pub fn unacknowledged(socket: BorrowedFd<'_>) -> SysResult<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the number of TIOCOUTQ) stores one int at the given address, which outlives
    // the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == -1 {
        return Err(SysError::last("ask what a socket has not sent"));
    }
    Ok(u32::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_nobody_can_take_is_unacknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, _) = listener.accept().unwrap();
        writer.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(bytes) = writer.write(&[0; 65536]) {
            written += bytes;
        }
        assert!(unacknowledged(writer.as_fd()).unwrap() > 0);
        let mut buffer = vec![0; written];
        reader.read_exact(&mut buffer).unwrap();
        while unacknowledged(writer.as_fd()).unwrap() != 0 {
            std::thread::yield_now();
        }
    }
}
