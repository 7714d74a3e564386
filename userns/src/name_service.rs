//! What the name service says about a login: its names, and its subordinate IDs where they are kept
//! in a directory (LDAP, FreeIPA, SSSD). Asked through `getent` and `getsubids`, because the C
//! library's own lookups may load plug-ins that start threads, after which no user namespace can
//! be joined.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::subordinate_ids::{
    HostFiles, IdKind, IdRange, Login, SubordinateIdError, read_if_exists,
};

/// The names of one UID. Several accounts may share it; any of them may own ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoginNames {
    /// Names, the first being the one to show. Empty when the UID has none.
    pub names: Vec<String>,
    /// True when they stand in the local password file, so that `usermod` works on them.
    pub local: bool,
}

impl LoginNames {
    /// True when a subuid(5) line of `owner` is this login's.
    pub fn is_own(&self, owner: &str, uid: u32) -> bool {
        self.names.iter().any(|name| name == owner) || owner.parse() == Ok(uid)
    }

    /// `alice (UID 1000)`.
    pub fn describe(&self, uid: u32) -> String {
        match self.names.first() {
            Some(name) => format!("{name} (UID {uid})"),
            None => format!("UID {uid}"),
        }
    }

    /// How an admin gives the login `range`.
    pub fn how_to_add(&self, uid: u32, kind: IdKind, range: IdRange, file: &Path) -> String {
        match (self.names.first(), self.local) {
            (Some(name), true) => {
                format!("as root: usermod --add-sub{}s {range} {name}", option(kind))
            }
            // usermod only knows local accounts.
            (name, _) => format!(
                "as root, add the line {}:{}:{} to {}",
                name.cloned().unwrap_or_else(|| uid.to_string()),
                range.start,
                range.count,
                file.display()
            ),
        }
    }

    /// How an admin takes `wrong` from the login and gives it `right`.
    pub fn how_to_replace(
        &self,
        uid: u32,
        kind: IdKind,
        wrong: IdRange,
        right: IdRange,
        file: &Path,
    ) -> String {
        match (self.names.first(), self.local) {
            (Some(name), true) => format!(
                "as root: usermod --del-sub{0}s {wrong} --add-sub{0}s {right} {name}",
                option(kind)
            ),
            (name, _) => format!(
                "as root, replace the line in {} by {}:{}:{}",
                file.display(),
                name.cloned().unwrap_or_else(|| uid.to_string()),
                right.start,
                right.count
            ),
        }
    }
}

/// As in `--add-subuids`.
fn option(kind: IdKind) -> &'static str {
    match kind {
        IdKind::Uid => "uid",
        IdKind::Gid => "gid",
    }
}

/// The names of `uid` from the password file, else from the name service.
pub fn login_names(uid: u32, host: &HostFiles) -> Result<LoginNames, SubordinateIdError> {
    if let Some(passwd) = read_if_exists(&host.passwd)? {
        let names = names_in_passwd(&passwd, uid);
        if !names.is_empty() {
            return Ok(LoginNames { names, local: true });
        }
    }
    let Some(getent) = host.find_tool("getent") else {
        return Ok(LoginNames::default());
    };
    let output = run(&getent, &["passwd", &uid.to_string()])?;
    Ok(LoginNames {
        // Exit status 2 is "no such entry".
        names: names_in_passwd(&output.stdout, uid),
        local: false,
    })
}

/// Names in passwd(5) text whose UID is `uid`.
fn names_in_passwd(text: &str, uid: u32) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password, id) = (fields.next()?, fields.next()?, fields.next()?);
            (!name.is_empty() && id.parse() == Ok(uid)).then(|| name.to_owned())
        })
        .collect()
}

/// The first source nsswitch.conf(5) names for `subid`; libsubid uses no other.
pub fn subid_source(nsswitch: &str) -> Option<&str> {
    nsswitch.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let (database, sources) = line.split_once(':')?;
        (database.trim() == "subid")
            .then(|| sources.split_ascii_whitespace().next())
            .flatten()
    })
}

/// Ranges of the login as `getsubids` tells them.
pub fn getsubids(
    service: &str,
    kind: IdKind,
    login: Login,
    names: &LoginNames,
    host: &HostFiles,
) -> Result<Vec<IdRange>, SubordinateIdError> {
    let Some(tool) = host.find_tool("getsubids") else {
        return Err(SubordinateIdError::NameServiceToolMissing {
            nsswitch: host.nsswitch.clone(),
            service: service.to_owned(),
        });
    };
    let Some(name) = names.names.first() else {
        return Err(SubordinateIdError::NoLoginName {
            uid: login.uid,
            service: service.to_owned(),
            passwd: host.passwd.clone(),
            nsswitch: host.nsswitch.clone(),
        });
    };
    let arguments: &[&str] = match kind {
        IdKind::Uid => &[name],
        IdKind::Gid => &["-g", name],
    };
    let command = format!("{} {}", tool.display(), arguments.join(" "));
    let output = run(&tool, arguments)?;
    let ranges =
        parse_getsubids(&output.stdout).map_err(|line| SubordinateIdError::ToolFailed {
            command: command.clone(),
            why: format!("unexpected output `{line}`"),
        })?;
    if ranges.is_empty() {
        // It says "Error fetching ranges" both for an unknown login and an unreachable service.
        return Err(SubordinateIdError::NameServiceEmpty {
            service: service.to_owned(),
            kind,
            login: names.describe(login.uid),
            command,
        });
    }
    Ok(ranges)
}

/// Lines such as `0: alice 100000 65536`; the first other line is the error.
fn parse_getsubids(text: &str) -> Result<Vec<IdRange>, String> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(2).map(str::parse::<u32>);
            match (fields.next(), fields.next(), fields.next()) {
                (Some(Ok(start)), Some(Ok(count)), None) => IdRange::new(start, count),
                _ => None,
            }
            .ok_or_else(|| line.to_owned())
        })
        .collect()
}

struct ToolOutput {
    stdout: String,
}

fn run(tool: &Path, arguments: &[&str]) -> Result<ToolOutput, SubordinateIdError> {
    let output = Command::new(tool)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| SubordinateIdError::ToolFailed {
            command: format!("{} {}", tool.display(), arguments.join(" ")),
            why: error.to_string(),
        })?;
    Ok(ToolOutput {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_subid_source_counts() {
        assert_eq!(
            subid_source("passwd: files sss\nsubid: sss files # x\n"),
            Some("sss")
        );
        assert_eq!(subid_source("# subid: sss\n"), None);
        assert_eq!(subid_source("  subid :  files"), Some("files"));
        assert_eq!(subid_source("subid:\n"), None);
        assert_eq!(subid_source("subids: x\n"), None);
    }

    #[test]
    fn getsubids_output() {
        let two = "0: alice 100000 65536\n1: alice 300000 1000\n";
        let ranges = parse_getsubids(two).unwrap();
        assert_eq!(
            ranges[1],
            IdRange {
                start: 300_000,
                count: 1000
            }
        );
        assert_eq!(parse_getsubids(""), Ok(vec![]));
        for bad in [
            "0: alice 1",
            "0: alice x 1",
            "0: alice 1 0",
            "0: alice 4294967295 1",
            "0: a 1 2 3",
        ] {
            assert_eq!(parse_getsubids(bad), Err(bad.to_owned()));
        }
    }

    #[test]
    fn every_account_of_a_uid_counts() {
        let passwd = "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:\n\nbad\nalias:x:1000:5::/:\n";
        assert_eq!(names_in_passwd(passwd, 1000), ["alice", "alias"]);
        assert_eq!(names_in_passwd(passwd, 7), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn foreign_text_never_panics(text in "\\PC{0,200}|([a-z:# 0-9]{0,30}\n){0,5}") {
            let _ = subid_source(&text);
            let _ = parse_getsubids(&text);
            let _ = names_in_passwd(&text, 1000);
        }
    }
}
