//! `--env`, `--env-file`, `--env-host`, `--label`, `--label-file`, `--annotation`, `--sysctl`:
//! everything that is a list of names and values.

use std::collections::BTreeMap;

use crate::error::{CliError, Result};

/// Variables in the order given; a name given again moves nothing and takes the later value.
#[derive(Debug, Default)]
pub struct Variables {
    entries: Vec<(String, String)>,
}

impl Variables {
    /// Sets one.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.entries.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.entries.push((name.to_owned(), value.to_owned())),
        }
    }

    /// One `--env` or one line of an `--env-file`: `NAME=VALUE`; `NAME`, taken from the caller if
    /// the caller has it; `PREFIX*`, all of the caller's that begin so.
    pub fn add(&mut self, text: &str, caller: &[(String, String)]) -> Result<()> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(
                CliError::new(format!("invalid variable {text:?}: it has no name"))
                    .with_hint("write NAME=VALUE, or NAME to pass yours on"),
            );
        }
        if text.contains('\0') {
            return Err(CliError::new(format!(
                "invalid variable {name:?}: it holds a NUL byte"
            )));
        }
        match value {
            Some(value) => self.set(name, value),
            None if name.ends_with('*') => {
                let prefix = &name[..name.len() - 1];
                for (name, value) in caller.iter().filter(|(name, _)| name.starts_with(prefix)) {
                    self.set(name, value);
                }
            }
            None => {
                if let Some((name, value)) = caller.iter().find(|(known, _)| known == name) {
                    self.set(name, value);
                }
            }
        }
        Ok(())
    }

    /// An `--env-file`: one variable a line, `#` starts a comment line, values are taken as they
    /// stand (no quotes, no escapes), blanks before a name are dropped.
    pub fn add_file(&mut self, path: &str, caller: &[(String, String)]) -> Result<()> {
        for (number, line) in lines(path)?.iter().enumerate() {
            let name = line.split('=').next().unwrap_or_default();
            if name.contains(char::is_whitespace) {
                return Err(CliError::new(format!(
                    "{path}, line {}: variable {name:?} contains white space",
                    number + 1
                )));
            }
            self.add(line, caller).map_err(|error| {
                CliError::new(format!("{path}, line {}: {}", number + 1, error.message))
            })?;
        }
        Ok(())
    }

    /// All of them.
    pub fn into_entries(self) -> Vec<(String, String)> {
        self.entries
    }
}

/// Lines of a file that say something.
fn lines(path: &str) -> Result<Vec<String>> {
    let text =
        std::fs::read(path).map_err(|error| CliError::new(format!("open {path}: {error}")))?;
    let text =
        String::from_utf8(text).map_err(|_| CliError::new(format!("{path} is not UTF-8 text")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

/// `--label` and `--label-file`: `NAME=VALUE` or `NAME` alone.
pub fn labels(files: &[String], flags: &[String]) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut add = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            return Err(CliError::new(format!(
                "invalid label {text:?}: it has no name"
            )));
        }
        labels.insert(name.to_owned(), value.to_owned());
        Ok(())
    };
    for file in files {
        lines(file)?.iter().try_for_each(|line| add(line))?;
    }
    flags.iter().try_for_each(|flag| add(flag))?;
    Ok(labels)
}

/// `--annotation` and `--sysctl`: `NAME=VALUE`.
pub fn pairs(flag: &str, texts: &[String]) -> Result<BTreeMap<String, String>> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(CliError::new(format!("--{flag} {text}: write NAME=VALUE"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn caller() -> Vec<(String, String)> {
        [("HOME", "/home/a"), ("LC_ALL", "C"), ("LC_TIME", "de_DE")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    fn resolved(texts: &[&str]) -> Vec<(String, String)> {
        let mut variables = Variables::default();
        for text in texts {
            variables.add(text, &caller()).unwrap();
        }
        variables.into_entries()
    }

    #[test]
    fn values_come_from_the_flag_or_from_the_caller() {
        let names = |entries: Vec<(String, String)>| {
            entries
                .into_iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(resolved(&["A=1", "HOME", "NOPE", "A=2=3"])),
            ["A=2=3", "HOME=/home/a"]
        );
        assert_eq!(names(resolved(&["LC_*"])), ["LC_ALL=C", "LC_TIME=de_DE"]);
        assert_eq!(names(resolved(&["A*=1", "E="])), ["A*=1", "E="]);
    }

    #[test]
    fn variables_need_a_name() {
        for bad in ["", "=x", "A=b\0c"] {
            assert!(Variables::default().add(bad, &caller()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn files_take_values_as_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(
            &path,
            "\u{feff}# comment\n\n  A=\"b\" # not a comment\nHOME\nB=x \nLC_T*\n",
        )
        .unwrap();
        let mut variables = Variables::default();
        variables
            .add_file(path.to_str().unwrap(), &caller())
            .unwrap();
        let expected = [
            ("A", "\"b\" # not a comment"),
            ("HOME", "/home/a"),
            ("B", "x "),
            ("LC_TIME", "de_DE"),
        ];
        let found = variables.into_entries();
        assert!(
            found
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_str()))
                .eq(expected),
            "{found:?}"
        );

        for bad in ["A B=1\n", "=1\n"] {
            std::fs::write(&path, bad).unwrap();
            let error = Variables::default()
                .add_file(path.to_str().unwrap(), &[])
                .unwrap_err();
            assert!(error.message.contains("line 1"), "{}", error.message);
        }
        assert!(
            Variables::default()
                .add_file("/nonexistent/env", &[])
                .is_err()
        );
    }

    #[test]
    fn labels_may_lack_a_value_and_flags_win_over_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels");
        std::fs::write(&path, "a=1\nb=2\n").unwrap();
        let found = labels(
            &[path.to_str().unwrap().to_owned()],
            &["b=3".to_owned(), "c".to_owned()],
        )
        .unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(
            (
                found["a"].as_str(),
                found["b"].as_str(),
                found["c"].as_str()
            ),
            ("1", "3", "")
        );
        assert!(labels(&[], &["=x".to_owned()]).is_err());
        assert!(pairs("sysctl", &["net.x".to_owned()]).is_err());
    }

    proptest! {
        #[test]
        fn any_variable_is_kept_or_refused(text in ".*") {
            let mut variables = Variables::default();
            if variables.add(&text, &[]).is_ok() {
                for (name, value) in variables.into_entries() {
                    prop_assert_eq!(format!("{name}={value}"), text.clone());
                }
            }
        }
    }
}
