//! `import --change` and `commit --change`: Containerfile instructions that change a config.
//!
//! Each is `INSTRUCTION VALUE` or `INSTRUCTION=VALUE`, understood as Podman does: a value that is
//! not a JSON array runs through `/bin/sh -c`; later ones win; `ONBUILD` is accepted and dropped,
//! since OCI configs have no place for it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::GoSet;

/// Fields of an image config as instructions left them, in Podman's order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Changes {
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: GoSet,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    volumes: GoSet,
    #[serde(skip_serializing_if = "String::is_empty")]
    working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    stop_signal: String,
}

/// Why an instruction is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid change {change:?}: {why}")]
pub struct ChangeError {
    change: String,
    why: String,
}

impl Changes {
    /// Applies instructions in order.
    pub fn parse<S: AsRef<str>>(changes: &[S]) -> Result<Self, ChangeError> {
        let mut result = Self::default();
        for change in changes {
            let change = change.as_ref();
            result.apply(change).map_err(|why| ChangeError {
                change: change.to_owned(),
                why,
            })?;
        }
        Ok(result)
    }

    fn apply(&mut self, change: &str) -> Result<(), String> {
        let form = "it must be INSTRUCTION VALUE or INSTRUCTION=VALUE";
        let (instruction, value) = change.split_once([' ', '=']).ok_or(form)?;
        let value = value.trim();
        let instruction = instruction.to_ascii_uppercase();
        if value.is_empty() {
            return Err(format!("{instruction} needs a value"));
        }
        match instruction.as_str() {
            "USER" => value.clone_into(&mut self.user),
            "WORKDIR" => value.clone_into(&mut self.working_dir),
            "EXPOSE" => {
                self.exposed_ports.insert(port(value)?, BTreeMap::new());
            }
            "ENV" => {
                let (key, value) = match value.split_once('=') {
                    Some((key, value)) => (key, unquoted(value)),
                    None => (value, ""),
                };
                if key.is_empty() {
                    return Err("ENV must be KEY=VALUE".to_owned());
                }
                let start = format!("{key}=");
                let new = format!("{start}{value}");
                match self.env.iter_mut().find(|old| old.starts_with(&start)) {
                    Some(old) => *old = new,
                    None => self.env.push(new),
                }
            }
            "LABEL" => {
                let (key, value) = value.split_once('=').ok_or("LABEL must be KEY=VALUE")?;
                self.labels
                    .insert(unquoted(key).to_owned(), unquoted(value).to_owned());
            }
            "ENTRYPOINT" => self.entrypoint = command(value),
            "CMD" => self.cmd = command(value),
            "VOLUME" => {
                let volumes = serde_json::from_str::<Vec<String>>(value)
                    .unwrap_or_else(|_| value.split_whitespace().map(str::to_owned).collect());
                for volume in volumes {
                    if volume.is_empty() {
                        return Err("VOLUME must not be empty".to_owned());
                    }
                    self.volumes.insert(volume, BTreeMap::new());
                }
            }
            "STOPSIGNAL" => self.stop_signal = signal(value)?,
            "ONBUILD" => {}
            other => {
                return Err(format!(
                    "{other} is not an instruction that changes a config"
                ));
            }
        }
        Ok(())
    }
}

fn command(value: &str) -> Vec<String> {
    serde_json::from_str(value)
        .unwrap_or_else(|_| vec!["/bin/sh".to_owned(), "-c".to_owned(), value.to_owned()])
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text)
}

fn port(value: &str) -> Result<String, String> {
    let (number, protocol) = value.split_once('/').unwrap_or((value, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err("the protocol of EXPOSE must be tcp, udp or sctp".to_owned());
    }
    match number.parse::<u16>() {
        Ok(number) if number > 0 => Ok(format!("{number}/{protocol}")),
        _ => Err(format!(
            "the port of EXPOSE must be a number from 1 to 65535, not {number:?}"
        )),
    }
}

/// A signal's number, as Podman writes it.
fn signal(value: &str) -> Result<String, String> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    const FIRST_REAL_TIME: u32 = 34;
    const LAST_REAL_TIME: u32 = 64;
    let unknown = || format!("STOPSIGNAL must be a signal, not {value:?}");
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        let number: u32 = value.parse().map_err(|_| unknown())?;
        return match number {
            1..=LAST_REAL_TIME => Ok(number.to_string()),
            _ => Err(unknown()),
        };
    }
    let upper = value.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return Ok((index + 1).to_string());
    }
    let real_time = if name == "RTMIN" {
        Some(FIRST_REAL_TIME)
    } else if name == "RTMAX" {
        Some(LAST_REAL_TIME)
    } else if let Some(offset) = name.strip_prefix("RTMIN+") {
        offset
            .parse()
            .ok()
            .and_then(|add| FIRST_REAL_TIME.checked_add(add))
    } else if let Some(offset) = name.strip_prefix("RTMAX-") {
        offset
            .parse()
            .ok()
            .and_then(|sub| LAST_REAL_TIME.checked_sub(sub))
    } else {
        None
    };
    real_time
        .filter(|number| (FIRST_REAL_TIME..=LAST_REAL_TIME).contains(number))
        .map(|number| number.to_string())
        .ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(changes: &[&str]) -> String {
        serde_json::to_string(&Changes::parse(changes).unwrap()).unwrap()
    }

    /// Expected values: what `podman import --change` made of the same.
    #[test]
    fn changes_mean_what_they_mean_to_podman() {
        for (change, expected) in [
            ("CMD=/bin/sh", r#"{"Cmd":["/bin/sh","-c","/bin/sh"]}"#),
            ("cmd [\"x\"", r#"{"Cmd":["/bin/sh","-c","[\"x\""]}"#),
            ("CMD []", "{}"),
            (
                "ENTRYPOINT /a b",
                r#"{"Entrypoint":["/bin/sh","-c","/a b"]}"#,
            ),
            ("ENV A B", r#"{"Env":["A B="]}"#),
            ("ENV=A=b", r#"{"Env":["A=b"]}"#),
            ("ENV A=\"x y\"", r#"{"Env":["A=x y"]}"#),
            ("ENV A='q'", r#"{"Env":["A='q'"]}"#),
            ("ENV A=", r#"{"Env":["A="]}"#),
            ("LABEL a=b c=d", r#"{"Labels":{"a":"b c=d"}}"#),
            ("LABEL \"a b\"=c", r#"{"Labels":{"a b":"c"}}"#),
            ("VOLUME [\"/a\",\"/b\"]", r#"{"Volumes":{"/a":{},"/b":{}}}"#),
            ("VOLUME /a /b", r#"{"Volumes":{"/a":{},"/b":{}}}"#),
            ("EXPOSE 80/udp", r#"{"ExposedPorts":{"80/udp":{}}}"#),
            ("STOPSIGNAL SIGKILL", r#"{"StopSignal":"9"}"#),
            ("STOPSIGNAL rtmin+3", r#"{"StopSignal":"37"}"#),
            ("WORKDIR \"/a b\"", r#"{"WorkingDir":"\"/a b\""}"#),
        ] {
            assert_eq!(json(&[change]), expected, "{change}");
        }
        assert_eq!(
            json(&["ENV A=1", "ENV B=2", "ENV A=3"]),
            r#"{"Env":["A=3","B=2"]}"#
        );
    }

    #[test]
    fn bad_changes_are_refused() {
        for (change, word) in [
            ("CMD", "must be"),
            ("FOO x", "FOO"),
            ("USER ", "needs a value"),
            ("LABEL a", "KEY=VALUE"),
            ("ENV =x", "KEY=VALUE"),
            ("EXPOSE 80/udp 90", "protocol"),
            ("EXPOSE x", "number"),
            ("EXPOSE 0", "number"),
            ("EXPOSE 1-3", "number"),
            ("HEALTHCHECK x", "HEALTHCHECK"),
            ("STOPSIGNAL foo", "signal"),
            ("STOPSIGNAL 99", "signal"),
            ("STOPSIGNAL RTMIN+99", "signal"),
        ] {
            let error = Changes::parse(&[change]).unwrap_err().to_string();
            assert!(error.contains(word), "{change}: {error}");
        }
    }
}
