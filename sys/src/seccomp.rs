//! Loading a compiled seccomp filter. Compiling one is `runtime/`'s job.

use crate::errno::{SysError, SysResult};
use rustix::io::Errno;

/// One classic BPF instruction, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump if true.
    pub jt: u8,
    /// Jump if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Installs `program` on the calling thread with `SECCOMP_SET_MODE_FILTER` and `flags`
/// (`SECCOMP_FILTER_FLAG_*`). Needs `no_new_privs` or `CAP_SYS_ADMIN` in the user namespace.
/// Allocates nothing on success, so that a cloned child may call it.
pub fn load(program: &[Instruction], flags: u32) -> SysResult<()> {
    let length = u16::try_from(program.len()).map_err(|_| {
        SysError::new(
            "load a seccomp filter over 65535 instructions",
            Errno::INVAL,
        )
    })?;
    let fprog = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: Instruction has sock_filter's layout (repr(C), same fields), the kernel copies `len`
    // of them and writes to none; `fprog` outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const fprog,
        )
    };
    if result == -1 {
        return Err(SysError::last("load the seccomp filter"));
    }
    Ok(())
}
