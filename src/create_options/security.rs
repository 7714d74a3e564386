//! `--cap-add`, `--cap-drop`, `--security-opt`, `--ulimit`.

use selkie_engine::options::SeccompOption;

use crate::error::{CliError, Result};

/// capabilities(7), without `CAP_`.
const CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Capabilities named in any case, with or without `CAP_`, several in one flag with commas.
pub fn capabilities(flag: &str, texts: &[String]) -> Result<Vec<String>> {
    texts
        .iter()
        .flat_map(|text| text.split(','))
        .map(|text| {
            let upper = text.trim().to_ascii_uppercase();
            if upper == "ALL" {
                return Ok(upper);
            }
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if CAPABILITIES.contains(&name) {
                return Ok(format!("CAP_{name}"));
            }
            Err(
                CliError::new(format!("--{flag} {text}: invalid capability"))
                    .with_hint("capabilities(7) lists them; ALL stands for all"),
            )
        })
        .collect()
}

/// What all `--security-opt` together ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// `seccomp=`.
    pub seccomp: SeccompOption,
    /// `no-new-privileges`.
    pub no_new_privileges: bool,
    /// `mask=`.
    pub mask: Vec<String>,
    /// `unmask=`.
    pub unmask: Vec<String>,
}

/// Reads `--security-opt` (also Docker's spelling with a colon for `=`).
pub fn security_options(texts: &[String]) -> Result<SecurityOptions> {
    let mut options = SecurityOptions::default();
    for text in texts {
        let (name, value) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .unwrap_or((text, ""));
        let refuse =
            |why: &str| {
                Err(CliError::new(format!("--security-opt {text}: {why}")).with_hint(
                "choose from seccomp=, no-new-privileges, mask=, unmask=, apparmor=unconfined, \
                 label=disable",
            ))
            };
        match (name, value) {
            ("no-new-privileges", "" | "true") => options.no_new_privileges = true,
            ("no-new-privileges", "false") => options.no_new_privileges = false,
            ("no-new-privileges", _) => return refuse("write true or false"),
            ("seccomp", "unconfined") => options.seccomp = SeccompOption::Unconfined,
            ("seccomp", "") => return refuse("name a profile, or unconfined"),
            ("seccomp", path) => {
                options.seccomp = seccomp_profile(path)?;
            }
            ("mask", paths) => options.mask.extend(absolute_paths(text, paths)?),
            ("unmask", "ALL" | "all") | ("systempaths", "unconfined") => {
                options.unmask.push("ALL".to_owned());
            }
            ("unmask", paths) => options.unmask.extend(absolute_paths(text, paths)?),
            // Selkie applies neither, so asking for none is met.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("apparmor", _) => return refuse("AppArmor profiles need root to load"),
            ("label", _) => return refuse("SELinux labels are not offered yet"),
            _ => return refuse("no such option"),
        }
    }
    Ok(options)
}

/// Reads a profile; the engine says whether it is one.
fn seccomp_profile(path: &str) -> Result<SeccompOption> {
    let profile = std::fs::read_to_string(path)
        .map_err(|error| CliError::new(format!("open the seccomp profile {path}: {error}")))?;
    SeccompOption::profile(profile).map_err(|error| CliError::new(format!("{path}: {error}")))
}

fn absolute_paths(text: &str, paths: &str) -> Result<Vec<String>> {
    paths
        .split(':')
        .map(|path| {
            if path.starts_with('/') {
                Ok(path.to_owned())
            } else {
                Err(CliError::new(format!(
                    "--security-opt {text}: {path:?} is not an absolute path"
                )))
            }
        })
        .collect()
}

/// getrlimit(2), as Docker and Podman write them.
const LIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `--ulimit NAME=SOFT[:HARD]`; -1 and `unlimited` mean no limit.
pub fn ulimits(texts: &[String]) -> Result<Vec<(String, u64, u64)>> {
    texts.iter().map(|text| ulimit(text)).collect()
}

fn ulimit(text: &str) -> Result<(String, u64, u64)> {
    let refuse = |why: String| {
        CliError::new(format!("--ulimit {text}: {why}")).with_hint("write NAME=SOFT[:HARD]")
    };
    let (name, values) = text
        .split_once('=')
        .ok_or_else(|| refuse("no value".to_owned()))?;
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix("rlimit_").unwrap_or(&name).to_owned();
    if !LIMITS.contains(&name.as_str()) {
        return Err(refuse(format!(
            "no such limit; choose from {}",
            LIMITS.join(", ")
        )));
    }
    let number = |value: &str| match value {
        "-1" | "unlimited" => Ok(u64::MAX),
        _ => value
            .parse::<u64>()
            .map_err(|_| refuse(format!("{value:?} is not a number"))),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(refuse("the soft limit is above the hard limit".to_owned()));
    }
    Ok((name, soft, hard))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn capability_spellings() {
        assert_eq!(
            capabilities("cap-add", &owned(&["net_raw,CAP_SYS_ADMIN", "all"])).unwrap(),
            ["CAP_NET_RAW", "CAP_SYS_ADMIN", "ALL"]
        );
        for bad in ["", "FOO", "CAP_", "CAP_ALL"] {
            assert!(capabilities("cap-add", &owned(&[bad])).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn security_option_spellings() {
        let found = security_options(&owned(&[
            "no-new-privileges",
            "seccomp=unconfined",
            "mask=/a:/b",
            "unmask=ALL",
            "apparmor=unconfined",
            "label:disable",
        ]))
        .unwrap();
        assert_eq!(
            found,
            SecurityOptions {
                seccomp: SeccompOption::Unconfined,
                no_new_privileges: true,
                mask: owned(&["/a", "/b"]),
                unmask: owned(&["ALL"]),
            }
        );
        assert!(
            !security_options(&owned(&["no-new-privileges:false"]))
                .unwrap()
                .no_new_privileges
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile.json");
        let flag = [format!("seccomp={}", path.display())];
        let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#;
        std::fs::write(&path, profile).unwrap();
        let found = security_options(&flag).unwrap().seccomp;
        assert_eq!(found, SeccompOption::Profile(profile.into()));
        std::fs::write(&path, "no JSON").unwrap();
        let error = security_options(&flag).unwrap_err().message;
        assert!(error.contains("profile.json"), "{error}");
        for bad in [
            "foo",
            "seccomp=",
            "seccomp=/nonexistent.json",
            "mask=rel",
            "unmask=",
            "label=type:x",
            "apparmor=profile",
            "no-new-privileges=maybe",
        ] {
            assert!(security_options(&owned(&[bad])).is_err(), "{bad}");
        }
    }

    #[test]
    fn ulimit_spellings() {
        assert_eq!(
            ulimit("nofile=10:20").unwrap(),
            ("nofile".to_owned(), 10, 20)
        );
        assert_eq!(
            ulimit("RLIMIT_CORE=-1").unwrap(),
            ("core".to_owned(), u64::MAX, u64::MAX)
        );
        for bad in [
            "nofile",
            "nofile=",
            "nofile=2:1",
            "foo=1",
            "nofile=1:2:3",
            "nofile=-2",
            "host",
        ] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".*") {
            let _ = ulimit(&text);
            let _ = capabilities("cap-add", std::slice::from_ref(&text));
        }
    }
}
