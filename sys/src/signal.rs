//! Signals taken synchronously, for a process that does nothing but forward them.

use rustix::process::Pid;

/// A child has ended or stopped.
pub const SIGCHLD: i32 = libc::SIGCHLD;

/// Blocks every signal that can be blocked, so that [`wait_any`] gets them.
pub fn block_all() {
    let all = all();
    // SAFETY: `all` is initialised and outlives the call.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) };
}

/// Waits for any signal and gives its number. They must be blocked.
pub fn wait_any() -> i32 {
    let all = all();
    loop {
        // SAFETY: `all` is initialised and outlives the call; no details are asked for.
        let signal = unsafe { libc::sigwaitinfo(&raw const all, std::ptr::null_mut()) };
        if signal > 0 {
            return signal;
        }
    }
}

/// Sends `signal` to `process`; that it may be gone, or may not be signalled, is of no interest to
/// a forwarder.
pub fn send(process: Pid, signal: i32) {
    // SAFETY: takes integers only; the PID is that of one process, never a group.
    unsafe { libc::kill(process.as_raw_nonzero().get(), signal) };
}

fn all() -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, and sigfillset fills it in.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        set
    }
}
