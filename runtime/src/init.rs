//! PID 1 for `--init`: forwards signals to the command, reaps everything, exits as the command does.
//!
//! It is this program's own image, forked, so `/proc/1/exe` inside the container names our binary.
//! Nobody there can reach it: the process is not dumpable and its memory belongs to the user
//! namespace our binary was executed in, so looking at it takes `CAP_SYS_PTRACE` on the host's
//! side (ptrace(2), "ptrace access mode checking"), whatever the container's root holds. It keeps
//! no descriptor at all and touches no memory but its stack, so it costs a few dirty pages.

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::CapabilitySets;
use selkie_sys::clone::{Side, exit_now, fork};
use selkie_sys::{child, signal};

/// Splits the process in two: returns in the new one; the caller's own becomes the init and never
/// returns.
///
/// The init keeps `capabilities`, which are the container's; its own must not be more.
pub(crate) fn split(capabilities: Option<CapabilitySets>) -> Result<(), Errno> {
    // Before there is a command to read it. A container without /proc shows it to nobody.
    match child::hide_command_line(c"selkie-init") {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    // Blocked before the fork, so that no signal is lost; the command's side unblocks them.
    signal::block_all();
    match fork().map_err(|error| error.errno)? {
        Side::Child => {
            // Its own process group in the foreground, so that terminal signals reach the command
            // and not the init. Without a terminal there is no foreground to take.
            rustix::process::setpgid(None, None)?;
            let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpgrp());
            child::reset_signals();
            Ok(())
        }
        Side::Parent { pid, .. } => {
            let _ = rustix::thread::set_name(c"selkie-init");
            if let Some(capabilities) = capabilities
                && rustix::thread::set_capabilities(None, capabilities).is_err()
            {
                exit_now(127);
            }
            // Holding on to a stream would keep readers of the container's output waiting.
            let _ = child::close_from(0);
            exit_now(reap_until_exit(pid))
        }
    }
}

/// Waits for signals until `command` has ended; gives its exit code (128 + signal when killed).
fn reap_until_exit(command: Pid) -> i32 {
    loop {
        match signal::wait_any() {
            signal::SIGCHLD => {
                if let Some(code) = reap(command) {
                    return code;
                }
            }
            number => signal::send(command, number),
        }
    }
}

/// Reaps all that has ended; the command's exit code if it is among them.
fn reap(command: Pid) -> Option<i32> {
    use rustix::process::{WaitOptions, wait};
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == command => {
                return Some(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => code,
                    (None, Some(signal)) => 128 + signal,
                    (None, None) => continue,
                });
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}
