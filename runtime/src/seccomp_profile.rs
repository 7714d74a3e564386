//! Seccomp profiles: the default one, and those given in the containers project's JSON form,
//! resolved for a set of capabilities to the OCI form (`linux.seccomp`, runtime-spec config-linux).
//! Compiling that to BPF is [`crate::seccomp_filter`].

mod default_table;

use std::collections::{BTreeMap, HashSet};

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use serde::Deserialize;

use crate::launch::LaunchError;

/// A profile as files hold it: rules that may depend on capabilities, architecture and kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: LinuxSeccompAction,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<Arch>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchitectureFamily>>,
    #[serde(default)]
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchitectureFamily {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// What conditional rules are decided by.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The container's bounding set, names with `CAP_`.
    pub capabilities: &'a dyn Fn(&str) -> bool,
    /// Name in Go's form, e.g. `amd64`.
    pub architecture: &'a str,
    /// (major, minor).
    pub kernel: (u32, u32),
}

/// The machine's architecture in Go's form, as profiles name it.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSYS: u32 = 38;
const AF_NETLINK: u64 = 16;
const NETLINK_AUDIT: u64 = 9;

/// The default profile for a container with these capabilities, on this machine.
pub fn default_profile(capabilities: &dyn Fn(&str) -> bool) -> LinuxSeccomp {
    default_profile_for(capabilities, host_architecture())
}

fn default_profile_for(capabilities: &dyn Fn(&str) -> bool, architecture: &str) -> LinuxSeccomp {
    use LinuxSeccompAction::{ScmpActAllow as Allow, ScmpActErrno as Errno};
    use default_table as table;

    // Every start comes by here: names are looked up in sets.
    let words = str::split_ascii_whitespace;
    let mut allowed = List::default();
    words(table::ALLOWED).for_each(|name| allowed.push(name));
    // `setns` is also in the unconditional list; the first verdict found stands there.
    let unconditional = allowed.known.clone();
    words(table::ALLOWED_NEWER).for_each(|name| allowed.push(name));
    let mut refused = List::default();
    words(table::REFUSED).for_each(|name| refused.push(name));
    for (capability, names) in table::BY_CAPABILITY {
        let list = if capabilities(capability) {
            &mut allowed
        } else {
            &mut refused
        };
        for name in words(names).filter(|name| !unconditional.contains(name)) {
            list.push(name);
        }
    }
    let (mut allowed, refused) = (allowed.names, refused.names);
    for (architectures, names) in table::BY_ARCHITECTURE {
        if architectures.contains(&architecture) {
            allowed.extend(words(names).map(str::to_owned));
        }
    }

    let mut rules = Vec::new();
    for value in table::PERSONALITIES {
        let arg = argument(0, LinuxSeccompOperator::ScmpCmpEq, *value);
        rules.push(rule(vec!["personality".into()], Allow, None, vec![arg]));
    }
    if capabilities("CAP_AUDIT_WRITE") {
        allowed.push("socket".into());
    } else {
        // Audit sockets look unsupported instead of refused: programs then go on without.
        let family = |op| argument(0, op, AF_NETLINK);
        let protocol = |op| argument(2, op, NETLINK_AUDIT);
        use LinuxSeccompOperator::{ScmpCmpEq as Eq, ScmpCmpNe as Ne};
        let socket = || vec!["socket".to_owned()];
        rules.push(rule(
            socket(),
            Errno,
            Some(EINVAL),
            vec![family(Eq), protocol(Eq)],
        ));
        rules.push(rule(socket(), Allow, None, vec![protocol(Ne)]));
        rules.push(rule(socket(), Allow, None, vec![family(Ne)]));
    }
    rules.push(rule(allowed, Allow, None, Vec::new()));
    rules.push(rule(refused, Errno, Some(EPERM), Vec::new()));

    let mut seccomp = LinuxSeccomp::default();
    seccomp
        .set_default_action(Errno)
        .set_default_errno_ret(Some(ENOSYS))
        .set_architectures(Some(family_of(architecture)))
        .set_syscalls(Some(rules));
    seccomp
}

/// Names in order, each once.
#[derive(Default)]
struct List {
    names: Vec<String>,
    known: HashSet<&'static str>,
}

impl List {
    fn push(&mut self, name: &'static str) {
        if self.known.insert(name) {
            self.names.push(name.to_owned());
        }
    }
}

impl Profile {
    /// Parses a profile file.
    ///
    /// # Errors
    /// [`LaunchError::InvalidSpec`] naming the line and column of what is wrong.
    pub fn parse(json: &str) -> Result<Self, LaunchError> {
        serde_json::from_str(json).map_err(|error| {
            LaunchError::InvalidSpec(format!("parse the seccomp profile: {error}"))
        })
    }

    /// The rules that apply here, in OCI form.
    pub fn resolve(&self, here: &Surroundings<'_>) -> Result<LinuxSeccomp, LaunchError> {
        if self.listener_path.is_some() {
            return Err(LaunchError::InvalidSpec(
                "the seccomp profile names a listenerPath: notification agents are not supported"
                    .into(),
            ));
        }
        if self.architectures.is_some() && self.arch_map.is_some() {
            return Err(LaunchError::InvalidSpec(
                "the seccomp profile has both `architectures` and `archMap`: keep one of them"
                    .into(),
            ));
        }
        let architectures = match (&self.architectures, &self.arch_map) {
            (Some(list), _) => Some(list.clone()),
            (None, Some(map)) => native_family(map, here.architecture),
            (None, None) => None,
        };
        let mut rules = Vec::new();
        for entry in self.syscalls.iter().flatten() {
            if !entry.applies(here)? {
                continue;
            }
            let names = match (&entry.name, &entry.names) {
                (Some(_), Some(names)) if !names.is_empty() => {
                    return Err(LaunchError::InvalidSpec(
                        "a rule of the seccomp profile has both `name` and `names`: keep one of them".into(),
                    ));
                }
                (Some(name), _) => vec![name.clone()],
                (None, Some(names)) => names.clone(),
                (None, None) => Vec::new(),
            };
            if !names.is_empty() {
                let args = entry.args.clone().unwrap_or_default();
                rules.push(rule(names, entry.action, entry.errno_ret, args));
            }
        }
        let mut seccomp = LinuxSeccomp::default();
        seccomp
            .set_default_action(self.default_action)
            .set_default_errno_ret(self.default_errno_ret)
            .set_architectures(architectures)
            .set_flags(self.flags.clone())
            .set_syscalls(Some(rules));
        Ok(seccomp)
    }
}

impl Rule {
    fn applies(&self, here: &Surroundings<'_>) -> Result<bool, LaunchError> {
        let includes = match &self.includes {
            Some(condition) => condition.all_hold(here)?,
            None => true,
        };
        let excluded = match &self.excludes {
            Some(condition) => condition.any_holds(here)?,
            None => false,
        };
        Ok(includes && !excluded)
    }
}

impl Condition {
    fn all_hold(&self, here: &Surroundings<'_>) -> Result<bool, LaunchError> {
        let capabilities =
            given(&self.caps).is_none_or(|caps| caps.iter().all(|c| (here.capabilities)(c)));
        let architecture =
            given(&self.arches).is_none_or(|arches| arches.iter().any(|a| a == here.architecture));
        Ok(capabilities && architecture && self.kernel_holds(here)?.unwrap_or(true))
    }

    fn any_holds(&self, here: &Surroundings<'_>) -> Result<bool, LaunchError> {
        let capabilities =
            given(&self.caps).is_some_and(|caps| caps.iter().any(|c| (here.capabilities)(c)));
        let architecture =
            given(&self.arches).is_some_and(|arches| arches.iter().any(|a| a == here.architecture));
        Ok(capabilities || architecture || self.kernel_holds(here)?.unwrap_or(false))
    }

    fn kernel_holds(&self, here: &Surroundings<'_>) -> Result<Option<bool>, LaunchError> {
        let Some(text) = self.min_kernel.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let wanted = parse_kernel(text).ok_or_else(|| {
            LaunchError::InvalidSpec(format!(
                "minKernel {text:?} in the seccomp profile is not MAJOR.MINOR"
            ))
        })?;
        Ok(Some(here.kernel >= wanted))
    }
}

/// (major, minor) of a kernel release such as `6.18.44-generic`.
pub fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn given(list: &Option<Vec<String>>) -> Option<&Vec<String>> {
    list.as_ref().filter(|list| !list.is_empty())
}

fn rule(
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names)
        .set_action(action)
        .set_errno_ret(errno);
    if !args.is_empty() {
        rule.set_args(Some(args));
    }
    rule
}

fn argument(index: usize, op: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .build()
        .expect("every field has a default")
}

fn native_arch(architecture: &str) -> Option<Arch> {
    BTreeMap::from([
        ("amd64", Arch::ScmpArchX86_64),
        ("arm64", Arch::ScmpArchAarch64),
        ("s390x", Arch::ScmpArchS390x),
        ("ppc64le", Arch::ScmpArchPpc64le),
        ("riscv64", Arch::ScmpArchRiscv64),
    ])
    .remove(architecture)
}

/// The architecture and those whose programs its kernel runs as well.
fn family_of(architecture: &str) -> Vec<Arch> {
    match native_arch(architecture) {
        Some(Arch::ScmpArchX86_64) => {
            vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
        }
        Some(Arch::ScmpArchAarch64) => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        Some(Arch::ScmpArchS390x) => vec![Arch::ScmpArchS390x, Arch::ScmpArchS390],
        Some(other) => vec![other],
        None => vec![Arch::ScmpArchNative],
    }
}

fn native_family(map: &[ArchitectureFamily], architecture: &str) -> Option<Vec<Arch>> {
    let native = native_arch(architecture)?;
    let family = map.iter().find(|family| family.architecture == native)?;
    let mut list = vec![native];
    list.extend(family.sub_architectures.iter().flatten());
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(seccomp: &LinuxSeccomp) -> BTreeMap<String, Vec<String>> {
        let mut verdicts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for rule in seccomp.syscalls().iter().flatten() {
            for name in rule.names() {
                let mut args: Vec<String> = rule
                    .args()
                    .iter()
                    .flatten()
                    .map(|arg| format!("{}{:?}{}", arg.index(), arg.op(), arg.value()))
                    .collect();
                args.sort();
                let verdict = format!(
                    "{:?} {:?} {}",
                    rule.action(),
                    rule.errno_ret(),
                    args.join(",")
                );
                let list = verdicts.entry(name.clone()).or_default();
                if !list.contains(&verdict) {
                    list.push(verdict);
                }
            }
        }
        for list in verdicts.values_mut() {
            list.sort();
        }
        verdicts
    }

    /// Debian installs the containers project's profile with podman; where it is, ours must agree.
    #[test]
    fn default_profile_agrees_with_the_containers_project() {
        let Ok(text) = std::fs::read_to_string("/usr/share/containers/seccomp.json") else {
            eprintln!(
                "SKIP: /usr/share/containers/seccomp.json is not installed (package golang-github-containers-common)"
            );
            return;
        };
        let reference = Profile::parse(&text).unwrap();
        let capability_sets: [&[&str]; 4] = [
            &[],
            &["CAP_SYS_CHROOT", "CAP_AUDIT_WRITE"],
            &["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_TIME"],
            &[
                "CAP_DAC_READ_SEARCH",
                "CAP_SYS_MODULE",
                "CAP_SYS_PACCT",
                "CAP_SYS_RAWIO",
                "CAP_SYS_TTY_CONFIG",
            ],
        ];
        for capabilities in capability_sets {
            for architecture in ["amd64", "arm64", "s390x"] {
                let has = |name: &str| capabilities.contains(&name);
                let here = Surroundings {
                    capabilities: &has,
                    architecture,
                    kernel: (6, 12),
                };
                let theirs = verdicts(&reference.resolve(&here).unwrap());
                let mut ours = verdicts(&default_profile_for(&has, architecture));
                for name in default_table::ALLOWED_NEWER.split_ascii_whitespace() {
                    if !theirs.contains_key(name) {
                        ours.remove(name).expect("a newer name is in our profile");
                    }
                }
                let names: std::collections::BTreeSet<_> =
                    theirs.keys().chain(ours.keys()).collect();
                for name in names {
                    // `setns` stands in two of their rules; libseccomp keeps the first.
                    if name == "setns" {
                        assert!(theirs[name].iter().any(|verdict| verdict.contains("Allow")));
                        assert_eq!(ours[name], ["ScmpActAllow None "]);
                        continue;
                    }
                    assert_eq!(
                        theirs.get(name),
                        ours.get(name),
                        "{name} on {architecture} with {capabilities:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn conditions_select_rules() {
        let profile = Profile::parse(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
              {"names":["a"],"action":"SCMP_ACT_ERRNO","includes":{"caps":["CAP_X"]}},
              {"names":["b"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_X"]}},
              {"names":["c"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"6.0"}},
              {"names":["d"],"action":"SCMP_ACT_ERRNO","includes":{"arches":["arm64"]}},
              {"name":"e","action":"SCMP_ACT_ERRNO","errnoRet":7}]}"#,
        )
        .unwrap();
        let names = |has: bool, kernel| {
            let here = Surroundings {
                capabilities: &|_| has,
                architecture: "amd64",
                kernel,
            };
            verdicts(&profile.resolve(&here).unwrap())
                .into_keys()
                .collect::<Vec<_>>()
                .join("")
        };
        assert_eq!(names(true, (5, 4)), "ae");
        assert_eq!(names(false, (6, 1)), "bce");
    }

    #[test]
    fn bad_profiles_are_refused() {
        assert!(Profile::parse("{").is_err());
        assert!(Profile::parse(r#"{"defaultAction":"SCMP_ACT_WHATEVER"}"#).is_err());
        let both = Profile::parse(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[]}"#,
        )
        .unwrap();
        let here = Surroundings {
            capabilities: &|_| false,
            architecture: "amd64",
            kernel: (6, 0),
        };
        assert!(both.resolve(&here).is_err());
    }

    #[test]
    fn kernel_releases() {
        assert_eq!(parse_kernel("6.18.44-fc"), Some((6, 18)));
        assert_eq!(parse_kernel("5.4"), Some((5, 4)));
        assert_eq!(parse_kernel("six"), None);
    }
}
