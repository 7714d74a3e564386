//! Why this host does not let a login make user namespaces: the settings are read only after the
//! kernel has said no.

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use selkie_sys::SysError;

use super::PauseError;

/// Turns a refused step of making the pause process into the setting behind it.
pub(super) fn explain(error: SysError) -> PauseError {
    match error.errno {
        Errno::NOSPC | Errno::USERS => limit_reached(error),
        Errno::PERM | Errno::ACCESS => forbidden(error),
        Errno::AGAIN => PauseError::ProcessLimit(error),
        // clone3 refuses a namespace kind that was not compiled in.
        Errno::INVAL if error.attempt.starts_with("clone3") => PauseError::NotInKernel,
        _ => PauseError::Sys(error),
    }
}

fn limit_reached(error: SysError) -> PauseError {
    for sysctl in ["user.max_user_namespaces", "user.max_mnt_namespaces"] {
        if read_sysctl(sysctl) == Some(0) {
            return PauseError::NamespacesOff { sysctl };
        }
    }
    match read_sysctl("user.max_user_namespaces") {
        Some(limit) => PauseError::NamespaceLimit { limit },
        None => PauseError::Sys(error),
    }
}

fn forbidden(error: SysError) -> PauseError {
    if read_sysctl("kernel.unprivileged_userns_clone") == Some(0) {
        return PauseError::CloneForbidden;
    }
    if read_sysctl("kernel.apparmor_restrict_unprivileged_userns").is_some_and(|value| value > 0) {
        return PauseError::AppArmor {
            attempt: error.attempt,
        };
    }
    if error.attempt.starts_with("clone3") && in_chroot() {
        return PauseError::InChroot;
    }
    PauseError::Denied(error)
}

fn read_sysctl(name: &str) -> Option<u64> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// True when `/` is not the root of a mount, which it is everywhere but in a chroot.
fn in_chroot() -> bool {
    rustix::fs::statx(
        rustix::fs::CWD,
        "/",
        AtFlags::empty(),
        StatxFlags::BASIC_STATS,
    )
    .is_ok_and(|stat| {
        stat.stx_attributes_mask
            .contains(StatxAttributes::MOUNT_ROOT)
            && !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}
