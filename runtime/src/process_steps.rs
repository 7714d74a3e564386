//! The process of a spec: its command, and the last steps on the way to it, which a container's
//! first process and those that `exec` adds go alike.

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, PosixRlimitType, Process};
use rustix::process::{Resource, Rlimit};
use selkie_sys::exec::PreparedCommand;

use crate::capabilities;
use crate::prepare::{Result, c_string, invalid};
use crate::script::Step;
use crate::seccomp_filter;

/// `process.rlimits` and the other limits, as steps.
fn limits(process: &Process) -> Vec<Step> {
    let mut steps = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let finite = |value: u64| (value != u64::MAX).then_some(value);
        steps.push(Step::Limit {
            resource: resource(limit.typ()),
            limit: Rlimit {
                current: finite(limit.soft()),
                maximum: finite(limit.hard()),
            },
            name: limit.typ().to_string(),
        });
    }
    steps
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// Where commands are looked for when the environment has no PATH (Podman's default).
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command with its environment, and the paths to try.
pub(crate) fn command(process: &Process) -> Result<(PreparedCommand, Vec<CString>)> {
    let arguments = process.args().as_deref().unwrap_or_default();
    let name = arguments
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| invalid("no command given (process.args is empty)"))?;
    let environment = process.env().as_deref().unwrap_or_default();
    let candidates = if name.contains('/') {
        vec![c_string(name.as_bytes(), name)?]
    } else {
        let path = environment
            .iter()
            .find_map(|entry| entry.strip_prefix("PATH="));
        let path = path.unwrap_or(DEFAULT_PATH);
        path.split(':')
            // As execvp(3): an empty element is the working directory.
            .map(|dir| if dir.is_empty() { "." } else { dir })
            .map(|dir| c_string(format!("{dir}/{name}").as_bytes(), name))
            .collect::<Result<_>>()?
    };
    let strings = |texts: &[String]| {
        texts
            .iter()
            .map(|text| c_string(text.as_bytes(), text))
            .collect::<Result<Vec<_>>>()
    };
    let command = PreparedCommand::new(strings(arguments)?, strings(environment)?);
    Ok((command, candidates))
}

/// Opens `process.cwd`, unless that is the root, where the process is anyway.
pub(crate) fn working_directory(process: &Process, create: bool) -> Result<Option<Step>> {
    let cwd = process.cwd();
    let shown = cwd.display().to_string();
    let relative = cwd.strip_prefix("/").map_err(|_| {
        invalid(format!(
            "working directory {shown:?}: must be an absolute path"
        ))
    })?;
    let relative = relative.as_os_str().as_encoded_bytes();
    if relative.is_empty() {
        return Ok(None);
    }
    Ok(Some(Step::OpenWorkingDirectory {
        path: c_string(relative, &shown)?,
        create,
        shown,
    }))
}

/// The step that loads the compiled filter, and whether a process with it can still receive the
/// message that opens its gate.
pub(crate) fn filter(
    rules: Option<&LinuxSeccomp>,
    cache_dir: Option<&Path>,
) -> Result<Option<(Step, bool)>> {
    let Some(rules) = rules else { return Ok(None) };
    let step = Step::Seccomp {
        program: seccomp_filter::compiled(rules, cache_dir)?,
        flags: seccomp_filter::filter_flags(rules),
    };
    Ok(Some((step, allows(rules, "recvmsg"))))
}

/// True when the rules allow a system call without conditions. When in doubt, they do not.
fn allows(rules: &LinuxSeccomp, call: &str) -> bool {
    let mut about = rules
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| rule.names().iter().any(|name| name == call));
    match (about.next(), about.next()) {
        (Some(rule), None) => {
            rule.action() == LinuxSeccompAction::ScmpActAllow
                && rule.args().as_ref().is_none_or(Vec::is_empty)
        }
        _ => false,
    }
}

/// The steps after the root is entered and the user known, for `launch` and `exec` alike.
pub(crate) fn final_steps(
    process: &Process,
    gid_map_is_single: bool,
    init: bool,
    filter: Option<(Step, bool)>,
) -> Vec<Step> {
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let named = process.user().username().is_some();
    let sets = process.capabilities().as_ref();
    let mut credentials = capabilities::credentials(sets, named, no_new_privileges);
    credentials.setgroups_may_be_denied = gid_map_is_single;
    credentials.keep_sys_admin = filter.is_some() && !no_new_privileges;

    let mut steps = limits(process);
    steps.extend([
        Step::PlaceDescriptors,
        Step::BecomeUser {
            credentials,
            umask: process.user().umask().unwrap_or(0o022),
        },
        Step::Ready,
    ]);
    if init {
        steps.extend([Step::Gate, Step::Init, Step::FindCommand]);
        steps.extend(filter.map(|(step, _)| step));
    } else {
        // The gate's message must get through the filter, if that is there already.
        let (before, after) = match filter {
            Some((step, true)) => (Some(step), None),
            Some((step, false)) => (None, Some(step)),
            None => (None, None),
        };
        steps.push(Step::FindCommand);
        steps.extend(before);
        steps.push(Step::Gate);
        steps.extend(after);
    }
    steps.push(Step::Execute);
    steps
}
