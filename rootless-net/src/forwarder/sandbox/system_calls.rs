//! Which system calls the sandbox forbids.
//!
//! A list of what is forbidden rather than of what is allowed: the latter would have to know what every
//! later version of the standard library, the C library and tokio may call. Files are Landlock's
//! matter; what it leaves open (owners, modes, times, attributes) is forbidden here.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use selkie_sys::SysResult;
use selkie_sys::seccomp::Instruction;

/// Refused with `EPERM` whatever the arguments.
const FORBIDDEN: &[i64] = &[
    // other programs and processes
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // namespaces and mounts
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // the kernel
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    // keys
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // files, as far as Landlock does not mind
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    SYS_SETXATTRAT,
    SYS_REMOVEXATTRAT,
    SYS_FILE_SETATTR,
    // System V and POSIX message queues, shared memory
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
];

/// The same under names of old that only this architecture has.
#[cfg(target_arch = "x86_64")]
const FORBIDDEN_HERE: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_kexec_file_load,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
];
#[cfg(target_arch = "aarch64")]
const FORBIDDEN_HERE: &[i64] = &[libc::SYS_kexec_file_load];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const FORBIDDEN_HERE: &[i64] = &[];

// Numbers that all architectures share, too new for the `libc` crate.
const SYS_FCHMODAT2: i64 = 452;
const SYS_SETXATTRAT: i64 = 463;
const SYS_REMOVEXATTRAT: i64 = 466;
const SYS_FILE_SETATTR: i64 = 469;

/// What of socket's second argument is the type (net.h of the kernel); the rest are flags. The types
/// of streams and datagrams are the lowest.
const SOCK_TYPE_MASK: i32 = 0xf;

/// On x86_64, numbers from here on are calls of the x32 ABI: the same calls again.
const X32: u32 = 0x4000_0000;

/// The programs, to be loaded in this order.
pub(super) fn filters() -> Result<Vec<BpfProgram>, BackendError> {
    let here = TargetArch::try_from(std::env::consts::ARCH)?;
    let program = |rules, errno: i32| -> Result<BpfProgram, BackendError> {
        let errno = SeccompAction::Errno(errno.unsigned_abs());
        SeccompFilter::new(rules, SeccompAction::Allow, errno, here)?.try_into()
    };
    // "Not implemented", so that the C library takes clone, whose flags a filter can see.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let mut programs = vec![
        program(clone3, libc::ENOSYS)?,
        program(rules()?, libc::EPERM)?,
    ];
    if cfg!(target_arch = "x86_64") {
        programs.push(without_x32());
    }
    Ok(programs)
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let all = FORBIDDEN.iter().chain(FORBIDDEN_HERE);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        all.map(|&number| (number, Vec::new())).collect();
    let argument = |index, operation, value| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operation, value)
    };
    // Only threads, and those in the namespaces of this process.
    let masked = |index, mask: i32, value: i32| {
        let [mask, value] = [mask, value].map(|bits| u64::from(bits.cast_unsigned()));
        argument(index, SeccompCmpOp::MaskedEq(mask), value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let mut clone = vec![masked(0, libc::CLONE_THREAD, 0)?];
    for namespace in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ] {
        clone.push(masked(0, namespace, namespace)?);
    }
    rules.insert(libc::SYS_clone, clone);
    // Only TCP and UDP.
    let other_families = SeccompRule::new(vec![
        argument(0, SeccompCmpOp::Ne, libc::AF_INET as u64)?,
        argument(0, SeccompCmpOp::Ne, libc::AF_INET6 as u64)?,
    ])?;
    let mut socket = vec![other_families];
    for kind in libc::SOCK_RAW..=SOCK_TYPE_MASK {
        socket.push(masked(1, SOCK_TYPE_MASK, kind)?);
    }
    rules.insert(libc::SYS_socket, socket);
    // No new code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        rules.insert(call, vec![masked(2, libc::PROT_EXEC, libc::PROT_EXEC)?]);
    }
    Ok(rules)
}

/// Refuses every call of the x32 ABI with `EPERM`.
fn without_x32() -> BpfProgram {
    let instruction = |code: u32, jt, jf, k| seccompiler::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    vec![
        // The number is the first field of seccomp_data.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Loads a program on all threads of the process.
pub(super) fn load(program: &BpfProgram) -> SysResult<()> {
    let instructions = program.iter().map(|instruction| Instruction {
        code: instruction.code,
        jt: instruction.jt,
        jf: instruction.jf,
        k: instruction.k,
    });
    // With ESRCH instead of the number of a thread that could not follow.
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    selkie_sys::seccomp::load(&instructions.collect::<Vec<_>>(), flags as u32)
}
