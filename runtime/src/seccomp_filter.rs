//! Compiling OCI seccomp rules to BPF with libseccomp, once.
//!
//! Compiling (and making the result [smaller](compact)) takes milliseconds, so the result is kept in the cache directory under a name that
//! hashes everything it depends on: the rules, the kernel release and our own version. A cached
//! file carries a checksum; one that does not verify is compiled anew and replaced. Whoever can
//! write the login's cache directory is the login, so the cache adds no new trust.

mod compact;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use libseccomp::error::SeccompErrno;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};
use selkie_sys::errno::Attempt;
use selkie_sys::seccomp::Instruction;

use crate::launch::LaunchError;

/// The program for `seccomp`, from the cache when `cache_dir` has it.
///
/// # Errors
/// [`LaunchError::InvalidSpec`] when the rules cannot be expressed. A cache that cannot be read or
/// written is not an error: the program is then compiled each time.
pub fn compiled(
    seccomp: &LinuxSeccomp,
    cache_dir: Option<&Path>,
) -> Result<Vec<Instruction>, LaunchError> {
    let key = cache_key(seccomp);
    let cached = cache_dir.map(|dir| dir.join(format!("{}.bpf", key.to_hex())));
    if let Some(path) = &cached
        && let Some(program) = fs::read(path).ok().as_deref().and_then(decode_cached)
    {
        return Ok(program);
    }
    let program = decode(&compile(seccomp)?).ok_or_else(|| {
        LaunchError::InvalidSpec("libseccomp gave no whole number of instructions".into())
    })?;
    let program = compact::compact(program);
    if let (Some(path), Some(dir)) = (&cached, cache_dir)
        && let Err(error) = store_cached(dir, path, &encode(&program))
    {
        tracing::debug!(
            "keep the compiled seccomp filter in {}: {error}",
            path.display()
        );
    }
    Ok(program)
}

/// `SECCOMP_FILTER_FLAG_*` bits the rules ask for (seccomp(2)).
pub fn filter_flags(seccomp: &LinuxSeccomp) -> u32 {
    seccomp.flags().iter().flatten().fold(0, |bits, flag| {
        bits | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
            // Only has a meaning with a listener, which `compile` refuses.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}

/// Hashes all that the program depends on. Not by way of JSON: this runs at every start.
fn cache_key(seccomp: &LinuxSeccomp) -> blake3::Hash {
    // Hashed in one go: that takes a fraction of the time of many small pieces.
    let mut all = Vec::with_capacity(16 * 1024);
    let mut word = |bytes: &[u8]| {
        all.extend_from_slice(&(bytes.len() as u32).to_ne_bytes());
        all.extend_from_slice(bytes);
    };
    word(env!("CARGO_PKG_VERSION").as_bytes());
    word(b"compact");
    word(rustix::system::uname().release().to_bytes());
    let optional = |value: Option<u32>| value.map_or(u64::MAX, u64::from).to_ne_bytes();
    word(&[seccomp.default_action() as u8]);
    word(&optional(seccomp.default_errno_ret()));
    for arch in seccomp.architectures().iter().flatten() {
        word(&(*arch as u32).to_ne_bytes());
    }
    for rule in seccomp.syscalls().iter().flatten() {
        word(&[rule.action() as u8]);
        word(&optional(rule.errno_ret()));
        word(&rule.names().len().to_ne_bytes());
        for name in rule.names() {
            word(name.as_bytes());
        }
        for arg in rule.args().iter().flatten() {
            word(&[arg.index() as u8, arg.op() as u8]);
            word(&arg.value().to_ne_bytes());
            word(&arg.value_two().map_or([0; 9], |value| {
                let mut present = [1; 9];
                present[1..].copy_from_slice(&value.to_ne_bytes());
                present
            }));
        }
    }
    blake3::hash(&all)
}

fn decode_cached(file: &[u8]) -> Option<Vec<Instruction>> {
    let (checksum, bytes) = file.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(bytes).as_bytes() == checksum).then(|| decode(bytes))?
}

fn decode(bytes: &[u8]) -> Option<Vec<Instruction>> {
    let (instructions, rest) = bytes.as_chunks::<8>();
    if instructions.is_empty() || !rest.is_empty() {
        return None;
    }
    let program = instructions.iter().map(|b| Instruction {
        code: u16::from_ne_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    });
    Some(program.collect())
}

fn encode(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_ne_bytes());
    }
    bytes
}

fn store_cached(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(blake3::hash(bytes).as_bytes())?;
        file.write_all(bytes)
    });
    written
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
}

fn compile(seccomp: &LinuxSeccomp) -> Result<Vec<u8>, LaunchError> {
    let rules = filter_rules(seccomp)?;
    let mut order: Vec<(usize, &FilterRule<'_>)> = rules.iter().enumerate().collect();
    let mut promoted = BTreeSet::new();
    // libseccomp 2.5 refuses (EEXIST) some orders of a set of conditional rules it accepts in
    // another: `socket` with 32-bit x86 is one. The refused rule goes to the front, once each.
    loop {
        match attempt(seccomp, &order)? {
            Attempted::Compiled(bytes) => return Ok(bytes),
            Attempted::Refused(index) if promoted.insert(index) => {
                let at = order.iter().position(|(i, _)| *i == index).unwrap_or(0);
                let rule = order.remove(at);
                order.insert(0, rule);
            }
            Attempted::Refused(index) => {
                return Err(LaunchError::InvalidSpec(format!(
                    "the seccomp profile has rules for {} that contradict each other",
                    rules[index].name
                )));
            }
        }
    }
}

fn attempt(
    seccomp: &LinuxSeccomp,
    order: &[(usize, &FilterRule<'_>)],
) -> Result<Attempted, LaunchError> {
    let failed = |what: String| {
        move |error: libseccomp::error::SeccompError| {
            LaunchError::InvalidSpec(format!("compile the seccomp rules: {what}: {error}"))
        }
    };
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let mut filter =
        ScmpFilterContext::new(default).map_err(failed(format!("default action {default:?}")))?;
    for arch in seccomp.architectures().iter().flatten() {
        let arch = scmp_arch(*arch)?;
        filter
            .add_arch(arch)
            .map_err(failed(format!("architecture {arch:?}")))?;
    }
    // A binary tree: the cost of a system call no longer grows with its place in the list.
    filter
        .set_ctl_optimize(2)
        .map_err(failed("optimise".into()))?;
    for (index, rule) in order {
        let comparators = rule.comparators.as_slice();
        match filter.add_rule_conditional(rule.action, rule.syscall, comparators) {
            Ok(_) => {}
            Err(error) if error.errno() == Some(SeccompErrno::EEXIST) => {
                return Ok(Attempted::Refused(*index));
            }
            Err(error) => return Err(failed(format!("rule for {}", rule.name))(error)),
        }
    }
    export(&filter)
        .map(Attempted::Compiled)
        .map_err(|error| LaunchError::InvalidSpec(format!("compile the seccomp rules: {error}")))
}

/// One call of `seccomp_rule_add`.
struct FilterRule<'a> {
    name: &'a str,
    syscall: ScmpSyscall,
    action: ScmpAction,
    comparators: Vec<ScmpArgCompare>,
}

enum Attempted {
    Compiled(Vec<u8>),
    /// The rule with this index was refused after those before it in the order.
    Refused(usize),
}

fn filter_rules(seccomp: &LinuxSeccomp) -> Result<Vec<FilterRule<'_>>, LaunchError> {
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let mut rules = Vec::new();
    for rule in seccomp.syscalls().iter().flatten() {
        let rule_action = action(rule.action(), rule.errno_ret())?;
        if rule_action == default {
            continue; // libseccomp refuses rules that change nothing
        }
        for name in rule.names() {
            // A name this libseccomp does not know gets the default action, as in every runtime:
            // profiles name system calls of all architectures.
            let Ok(syscall) = ScmpSyscall::from_name(name) else {
                continue;
            };
            for comparators in alternatives(rule.args().as_deref().unwrap_or_default())? {
                rules.push(FilterRule {
                    name,
                    syscall,
                    action: rule_action,
                    comparators,
                });
            }
        }
    }
    Ok(rules)
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .attempt(|| "memfd_create")?;
    filter.export_bpf(&memory)?;
    let mut file = fs::File::from(memory);
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file)?;
    std::io::Read::read_to_end(&mut file, &mut bytes)?;
    Ok(bytes)
}

/// Conditions on different arguments must all hold; several on the same argument are alternatives
/// (what runc does, since libseccomp cannot test one argument twice in a rule).
fn alternatives(args: &[LinuxSeccompArg]) -> Result<Vec<Vec<ScmpArgCompare>>, LaunchError> {
    let mut seen = [0u8; 6];
    let mut comparators = Vec::new();
    for arg in args {
        let count = seen.get_mut(arg.index()).ok_or_else(|| {
            LaunchError::InvalidSpec(format!(
                "seccomp rule on argument {}: there are six, 0 to 5",
                arg.index()
            ))
        })?;
        *count += 1;
        let operator = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
            LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
            LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
            LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
            LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
            LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
            LinuxSeccompOperator::ScmpCmpMaskedEq => ScmpCompareOp::MaskedEqual(arg.value()),
        };
        let datum = match arg.op() {
            LinuxSeccompOperator::ScmpCmpMaskedEq => arg.value_two().unwrap_or(0),
            _ => arg.value(),
        };
        comparators.push(ScmpArgCompare::new(arg.index() as u32, operator, datum));
    }
    if seen.iter().any(|count| *count > 1) {
        return Ok(comparators
            .into_iter()
            .map(|comparator| vec![comparator])
            .collect());
    }
    Ok(vec![comparators])
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, LaunchError> {
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno.unwrap_or(1) as i32),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno.unwrap_or(1) as u16),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(LaunchError::InvalidSpec(
                "the seccomp profile uses SCMP_ACT_NOTIFY: notification agents are not supported"
                    .into(),
            ));
        }
    })
}

fn scmp_arch(arch: Arch) -> Result<ScmpArch, LaunchError> {
    Ok(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        other => {
            return Err(LaunchError::InvalidSpec(format!(
                "the seccomp rules name architecture {other}, which libseccomp does not know"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp_profile::{Profile, Surroundings, default_profile};

    fn resolve(json: &str) -> LinuxSeccomp {
        let here = Surroundings {
            capabilities: &|_| false,
            architecture: "amd64",
            kernel: (6, 0),
        };
        Profile::parse(json).unwrap().resolve(&here).unwrap()
    }

    #[test]
    fn second_time_comes_from_the_cache_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let rules = default_profile(&|_| false);
        let first = compiled(&rules, Some(dir.path())).unwrap();
        let file = fs::read_dir(dir.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        assert_eq!(compiled(&rules, Some(dir.path())).unwrap(), first);
        let mut bytes = fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(decode_cached(&bytes).is_none());
        assert_eq!(compiled(&rules, Some(dir.path())).unwrap(), first);
        assert!(
            decode_cached(&fs::read(&file).unwrap()).is_some(),
            "the damaged file was replaced"
        );
        assert!(decode_cached(&[]).is_none());
    }

    #[test]
    fn capabilities_change_the_program() {
        let with = compiled(&default_profile(&|_| true), None).unwrap();
        let without = compiled(&default_profile(&|_| false), None).unwrap();
        assert_ne!(with, without);
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let notify = resolve(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["open"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        );
        assert!(compiled(&notify, None).is_err());
        let argument = resolve(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["open"],"action":"SCMP_ACT_KILL",
               "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
        );
        assert!(compiled(&argument, None).is_err());
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives() {
        let args = |json: &str| serde_json::from_str::<Vec<LinuxSeccompArg>>(json).unwrap();
        let same = args(
            r#"[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]"#,
        );
        assert_eq!(alternatives(&same).unwrap().len(), 2);
        let different = args(
            r#"[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}]"#,
        );
        assert_eq!(alternatives(&different).unwrap().len(), 1);
    }
}
