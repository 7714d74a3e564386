//! Capabilities: names, sets, and how those of an OCI spec become a process's.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use rustix::thread::CapabilitySet;

use crate::script::Credentials;

/// Every capability with its kernel bit, in the kernel's order (capability.h).
pub(crate) const ALL: [(Capability, CapabilitySet); 41] = [
    (Capability::Chown, CapabilitySet::CHOWN),
    (Capability::DacOverride, CapabilitySet::DAC_OVERRIDE),
    (Capability::DacReadSearch, CapabilitySet::DAC_READ_SEARCH),
    (Capability::Fowner, CapabilitySet::FOWNER),
    (Capability::Fsetid, CapabilitySet::FSETID),
    (Capability::Kill, CapabilitySet::KILL),
    (Capability::Setgid, CapabilitySet::SETGID),
    (Capability::Setuid, CapabilitySet::SETUID),
    (Capability::Setpcap, CapabilitySet::SETPCAP),
    (Capability::LinuxImmutable, CapabilitySet::LINUX_IMMUTABLE),
    (Capability::NetBindService, CapabilitySet::NET_BIND_SERVICE),
    (Capability::NetBroadcast, CapabilitySet::NET_BROADCAST),
    (Capability::NetAdmin, CapabilitySet::NET_ADMIN),
    (Capability::NetRaw, CapabilitySet::NET_RAW),
    (Capability::IpcLock, CapabilitySet::IPC_LOCK),
    (Capability::IpcOwner, CapabilitySet::IPC_OWNER),
    (Capability::SysModule, CapabilitySet::SYS_MODULE),
    (Capability::SysRawio, CapabilitySet::SYS_RAWIO),
    (Capability::SysChroot, CapabilitySet::SYS_CHROOT),
    (Capability::SysPtrace, CapabilitySet::SYS_PTRACE),
    (Capability::SysPacct, CapabilitySet::SYS_PACCT),
    (Capability::SysAdmin, CapabilitySet::SYS_ADMIN),
    (Capability::SysBoot, CapabilitySet::SYS_BOOT),
    (Capability::SysNice, CapabilitySet::SYS_NICE),
    (Capability::SysResource, CapabilitySet::SYS_RESOURCE),
    (Capability::SysTime, CapabilitySet::SYS_TIME),
    (Capability::SysTtyConfig, CapabilitySet::SYS_TTY_CONFIG),
    (Capability::Mknod, CapabilitySet::MKNOD),
    (Capability::Lease, CapabilitySet::LEASE),
    (Capability::AuditWrite, CapabilitySet::AUDIT_WRITE),
    (Capability::AuditControl, CapabilitySet::AUDIT_CONTROL),
    (Capability::Setfcap, CapabilitySet::SETFCAP),
    (Capability::MacOverride, CapabilitySet::MAC_OVERRIDE),
    (Capability::MacAdmin, CapabilitySet::MAC_ADMIN),
    (Capability::Syslog, CapabilitySet::SYSLOG),
    (Capability::WakeAlarm, CapabilitySet::WAKE_ALARM),
    (Capability::BlockSuspend, CapabilitySet::BLOCK_SUSPEND),
    (Capability::AuditRead, CapabilitySet::AUDIT_READ),
    (Capability::Perfmon, CapabilitySet::PERFMON),
    (Capability::Bpf, CapabilitySet::BPF),
    (
        Capability::CheckpointRestore,
        CapabilitySet::CHECKPOINT_RESTORE,
    ),
];

/// The kernel's bits for a set of a spec.
pub(crate) fn to_bits(set: &Option<Capabilities>) -> CapabilitySet {
    let Some(set) = set else {
        return CapabilitySet::empty();
    };
    ALL.iter()
        .filter(|(capability, _)| set.contains(capability))
        .fold(CapabilitySet::empty(), |bits, (_, bit)| bits | *bit)
}

/// Capabilities the running kernel does not know cannot be had; asking for them must not fail.
pub(crate) fn known_to_kernel() -> CapabilitySet {
    use rustix::thread::capability_is_in_bounding_set;
    ALL.iter()
        .rev()
        .find(|(_, bit)| capability_is_in_bounding_set(*bit).is_ok())
        .map_or(CapabilitySet::empty(), |(_, last)| {
            CapabilitySet::from_bits_retain(last.bits() | (last.bits() - 1))
        })
}

/// The last identity change for a spec's capabilities (none given: none held).
///
/// With a user named in the spec (`named_user`), who it is comes out only inside the root; then the
/// ambient set is for users other than root, who get exactly that, and root gets permitted and
/// effective ones instead. That is Podman's rule for `--cap-add` with `--user`.
pub(crate) fn credentials(
    capabilities: Option<&LinuxCapabilities>,
    named_user: bool,
    no_new_privileges: bool,
) -> Credentials {
    let known = known_to_kernel();
    let bits = |set: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        capabilities.map_or(CapabilitySet::empty(), |sets| to_bits(set(sets)) & known)
    };
    let bounding = bits(LinuxCapabilities::bounding);
    Credentials {
        bounding,
        permitted: bits(LinuxCapabilities::permitted),
        effective: bits(LinuxCapabilities::effective),
        inheritable: bits(LinuxCapabilities::inheritable),
        ambient: bits(LinuxCapabilities::ambient),
        ambient_for_non_root_only: named_user,
        setgroups_may_be_denied: false,
        keep_sys_admin: false,
        no_new_privileges,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_the_kernel_order() {
        for (index, (_, bit)) in ALL.iter().enumerate() {
            assert_eq!(bit.bits(), 1 << index);
        }
    }

    #[test]
    fn the_running_kernel_knows_the_old_ones() {
        assert!(known_to_kernel().contains(CapabilitySet::AUDIT_READ));
    }
}
