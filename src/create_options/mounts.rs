//! `--volume`, `--mount`, `--tmpfs`: three spellings of one thing.

use std::path::{Path, PathBuf};

use selkie_engine::options::{MountOption, MountSource};

use crate::error::{CliError, Result};

/// What the three flags say together, `--mount` first, then `--volume`, then `--tmpfs`.
/// `cwd` is what relative host paths (`./x`) are relative to.
pub fn parse(
    mounts: &[String],
    volumes: &[String],
    tmpfs: &[String],
    cwd: &Path,
) -> Result<Vec<MountOption>> {
    let mut all = Vec::with_capacity(mounts.len() + volumes.len() + tmpfs.len());
    for text in mounts {
        all.push(parse_mount(text, cwd)?);
    }
    for text in volumes {
        all.push(parse_volume(text, cwd)?);
    }
    for text in tmpfs {
        all.push(parse_tmpfs(text)?);
    }
    for (index, mount) in all.iter().enumerate() {
        if all[..index]
            .iter()
            .any(|other| other.destination == mount.destination)
        {
            return Err(CliError::new(format!(
                "{}: duplicate mount destination",
                mount.destination
            )));
        }
    }
    Ok(all)
}

/// Which options make sense where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bind,
    Volume,
    Tmpfs,
}

/// A mount being put together from its options.
struct Draft<'a> {
    flag: &'a str,
    text: &'a str,
    kind: Kind,
    read_only: bool,
    copy_up: bool,
    options: Vec<String>,
}

const ANY_MOUNT: &[&str] = &[
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
];
const PROPAGATION: &[&str] = &[
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

impl<'a> Draft<'a> {
    fn new(flag: &'a str, text: &'a str, kind: Kind) -> Self {
        Self {
            flag,
            text,
            kind,
            read_only: false,
            copy_up: true,
            options: Vec::new(),
        }
    }

    fn refuse(&self, why: impl std::fmt::Display) -> CliError {
        CliError::new(format!("--{} {}: {why}", self.flag, self.text))
    }

    fn option(&mut self, option: &str) -> Result<()> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let is_bind_like = self.kind != Kind::Tmpfs;
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("z" | "Z", None) if is_bind_like => {
                // Without SELinux there is nothing to relabel; with it, not doing so would fail
                // later and further away.
                if Path::new("/sys/fs/selinux/enforce").exists() {
                    return Err(self.refuse("relabelling for SELinux is not offered yet"));
                }
            }
            ("U", None) if is_bind_like => {
                return Err(self.refuse("changing owners with U is not offered yet").with_hint(
                    "volumes already belong to the container's IDs; for a directory of yours use \
                     --userns keep-id",
                ));
            }
            ("O", None) if is_bind_like => {
                return Err(self.refuse("overlays with O are not offered yet"));
            }
            ("idmap", _) => return Err(self.refuse("idmap is not offered yet")),
            ("copy", None) if self.kind == Kind::Volume => self.copy_up = true,
            ("nocopy", None) if self.kind == Kind::Volume => self.copy_up = false,
            ("tmpcopyup", None) if self.kind == Kind::Tmpfs => self.copy_up = true,
            ("notmpcopyup", None) if self.kind == Kind::Tmpfs => self.copy_up = false,
            ("bind" | "rbind", None) if self.kind == Kind::Bind => {
                self.options.push(option.to_owned())
            }
            (_, None) if is_bind_like && PROPAGATION.contains(&name) => {
                self.options.push(option.to_owned());
            }
            (_, None) if ANY_MOUNT.contains(&name) => self.options.push(option.to_owned()),
            ("size", Some(value)) if self.kind == Kind::Tmpfs => {
                let bytes = size(value)
                    .ok_or_else(|| self.refuse(format!("size={value} is not a size")))?;
                self.options.push(format!("size={bytes}"));
            }
            ("nr_inodes", Some(value)) if self.kind == Kind::Tmpfs => {
                if size(value).is_none() || value.ends_with('%') {
                    return Err(self.refuse(format!("nr_inodes={value} is not a number")));
                }
                self.options.push(option.to_owned());
            }
            ("mode", Some(value)) if self.kind == Kind::Tmpfs => {
                let mode = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777);
                let mode =
                    mode.ok_or_else(|| self.refuse(format!("mode={value} is not an octal mode")))?;
                self.options.push(format!("mode={mode:o}"));
            }
            ("uid" | "gid", Some(value)) if self.kind == Kind::Tmpfs => {
                if value.parse::<u32>().is_err() {
                    return Err(self.refuse(format!("{name}={value} is not an ID")));
                }
                self.options.push(option.to_owned());
            }
            _ => return Err(self.refuse(format!("no such option: {option}"))),
        }
        Ok(())
    }

    fn finish(self, source: MountSource, destination: &str) -> Result<MountOption> {
        if !destination.starts_with('/') {
            return Err(self.refuse(format!(
                "the path in the container must be absolute, not {destination:?}"
            )));
        }
        let destination = clean(destination);
        if destination == "/" {
            return Err(self.refuse("the container's root itself cannot be a mount of this kind"));
        }
        Ok(MountOption {
            source,
            destination,
            read_only: self.read_only,
            options: self.options,
            copy_up: self.copy_up,
        })
    }
}

/// `[SOURCE:]DESTINATION[:OPTIONS]`.
fn parse_volume(text: &str, cwd: &Path) -> Result<MountOption> {
    let fields: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match fields[..] {
        [destination] => (None, destination, ""),
        // `/data:ro` would be a destination `ro`, which is not absolute: Docker and Podman refuse it.
        [source, destination] => (Some(source), destination, ""),
        [source, destination, options] => (Some(source), destination, options),
        _ => {
            return Err(CliError::new(format!("--volume {text}: too many colons"))
                .with_hint("write [SOURCE:]DESTINATION[:OPTIONS]"));
        }
    };
    let source = match source {
        None => MountSource::AnonymousVolume,
        Some(source) => named_source("volume", text, source, cwd)?,
    };
    let kind = match source {
        MountSource::Bind(_) => Kind::Bind,
        _ => Kind::Volume,
    };
    let mut draft = Draft::new("volume", text, kind);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        draft.option(option)?;
    }
    draft.finish(source, destination)
}

/// A host path or a volume's name.
fn named_source(flag: &str, text: &str, source: &str, cwd: &Path) -> Result<MountSource> {
    if source.starts_with('/') || source.starts_with('.') {
        return Ok(MountSource::Bind(host_path(source, cwd)));
    }
    if !is_volume_name(source) {
        return Err(CliError::new(format!(
            "--{flag} {text}: {source:?} is neither a path nor a volume name"
        ))
        .with_hint("paths begin with / or ./, names match [a-zA-Z0-9][a-zA-Z0-9_.-]*"));
    }
    Ok(MountSource::Volume(source.to_owned()))
}

fn host_path(source: &str, cwd: &Path) -> PathBuf {
    let joined = cwd.join(source);
    match joined.to_str() {
        Some(joined) => PathBuf::from(clean(joined)),
        None => joined,
    }
}

/// What Podman and Docker accept as the name of a volume or a container.
pub fn is_volume_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// `type=bind,source=…,destination=…,…`.
fn parse_mount(text: &str, cwd: &Path) -> Result<MountOption> {
    let fields = comma_separated(text)
        .ok_or_else(|| CliError::new(format!("--mount {text}: a quote is not closed")))?;
    let kind = match fields
        .iter()
        .rev()
        .find_map(|field| field.strip_prefix("type="))
    {
        Some("bind") => Kind::Bind,
        Some("volume") | None => Kind::Volume,
        Some("tmpfs") => Kind::Tmpfs,
        Some(other) => {
            return Err(
                CliError::new(format!("--mount {text}: no such type: {other}"))
                    .with_hint("choose from bind, volume, tmpfs"),
            );
        }
    };
    let mut draft = Draft::new("mount", text, kind);
    let (mut source, mut destination) = (None, None);
    for field in &fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        match (key, value) {
            ("type", Some(_)) => {}
            ("src" | "source", Some(value)) if kind != Kind::Tmpfs => source = Some(value),
            ("dst" | "target" | "destination", Some(value)) => destination = Some(value),
            ("ro" | "readonly", _) => draft.read_only = boolean(&draft, key, value)?,
            ("rw", _) => draft.read_only = !boolean(&draft, key, value)?,
            ("consistency", Some(_)) => {} // means something on macOS only
            ("bind-propagation", Some(value)) if PROPAGATION.contains(&value) => {
                draft.option(value)?
            }
            ("bind-nonrecursive", _) if kind == Kind::Bind => {
                if boolean(&draft, key, value)? {
                    draft.option("bind")?;
                }
            }
            ("volume-nocopy", _) if kind == Kind::Volume => {
                draft.copy_up = !boolean(&draft, key, value)?;
            }
            ("relabel", Some("shared" | "private")) => draft.option("z")?,
            ("U" | "chown", _) => {
                if boolean(&draft, key, value)? {
                    draft.option("U")?;
                }
            }
            ("tmpfs-size", Some(value)) => draft.option(&format!("size={value}"))?,
            ("tmpfs-mode", Some(value)) => draft.option(&format!("mode={value}"))?,
            _ => draft.option(field)?,
        }
    }
    let destination = destination.ok_or_else(|| draft.refuse("no destination"))?;
    let source = match (kind, source) {
        (Kind::Tmpfs, _) => MountSource::Tmpfs,
        (Kind::Bind, Some(source)) if !source.is_empty() => {
            MountSource::Bind(host_path(source, cwd))
        }
        (Kind::Bind, _) => return Err(draft.refuse("a bind mount needs a source")),
        (Kind::Volume, None | Some("")) => MountSource::AnonymousVolume,
        (Kind::Volume, Some(name)) if is_volume_name(name) => MountSource::Volume(name.to_owned()),
        (Kind::Volume, Some(name)) => {
            return Err(draft
                .refuse(format!("{name:?} is not a volume name"))
                .with_hint("for a directory of yours say type=bind"));
        }
    };
    draft.finish(source, destination)
}

fn boolean(draft: &Draft<'_>, key: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(draft.refuse(format!("{key}={other}: write true or false"))),
    }
}

/// Fields of one CSV line: a field in double quotes may hold commas, `""` in it is a quote.
fn comma_separated(text: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut()?;
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            _ => field.push(character),
        }
    }
    (!quoted).then_some(fields)
}

/// `PATH[:OPTIONS]`.
fn parse_tmpfs(text: &str) -> Result<MountOption> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    let mut draft = Draft::new("tmpfs", text, Kind::Tmpfs);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        draft.option(option)?;
    }
    draft.finish(MountSource::Tmpfs, destination)
}

/// Bytes (or `N%` as it stands) from tmpfs's own notation.
fn size(text: &str) -> Option<String> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.parse::<u32>().ok()?;
        return Some(format!("{percent}%"));
    }
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let lower = lower.strip_suffix('i').unwrap_or(lower);
    let (digits, factor) = match lower.strip_suffix(['k', 'm', 'g', 't']) {
        Some(digits) => (
            digits,
            match lower.as_bytes()[digits.len()] {
                b'k' => 1u64 << 10,
                b'm' => 1 << 20,
                b'g' => 1 << 30,
                _ => 1 << 40,
            },
        ),
        None => (lower, 1),
    };
    Some(digits.parse::<u64>().ok()?.checked_mul(factor)?.to_string())
}

/// An absolute path without `.`, `..` and doubled slashes, decided by its text alone.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volume(text: &str) -> Result<MountOption> {
        parse_volume(text, Path::new("/cwd"))
    }

    fn mount(text: &str) -> Result<MountOption> {
        parse_mount(text, Path::new("/cwd"))
    }

    #[test]
    fn volumes() {
        let found = volume("/a/../b:/data/:ro,nosuid").unwrap();
        assert_eq!(found.source, MountSource::Bind("/b".into()));
        assert_eq!(found.destination, "/data");
        assert!(found.read_only);
        assert_eq!(found.options, ["nosuid"]);
        assert_eq!(
            volume("./x:/y").unwrap().source,
            MountSource::Bind("/cwd/x".into())
        );
        assert_eq!(
            volume("name:/y").unwrap().source,
            MountSource::Volume("name".into())
        );
        assert_eq!(volume("/y").unwrap().source, MountSource::AnonymousVolume);
        assert!(!volume("name:/y:nocopy").unwrap().copy_up);
    }

    #[test]
    fn refused_volumes() {
        for bad in [
            "",
            "a:b:c:d",
            "rel",
            "name:rel",
            "/data:ro",
            "b@d:/x",
            "/a:/",
            "/a:/b:foo",
            ":/x",
            "/a:/b:U",
            "/a:/b:O",
            "/a:/b:idmap",
            "/a:/b:size=3",
            "/a:/b:copy",
        ] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        let same = parse(&[], &["a:/x".into(), "b:/x/".into()], &[], Path::new("/"));
        assert!(same.unwrap_err().message.contains("duplicate"));
    }

    #[test]
    fn mounts() {
        let found = mount("type=bind,src=/a,dst=/b,readonly=true,bind-propagation=rslave").unwrap();
        assert_eq!(found.source, MountSource::Bind("/a".into()));
        assert!(found.read_only);
        assert_eq!(found.options, ["rslave"]);
        assert_eq!(
            mount("type=bind,\"source=/a,b\",target=/b,ro=false")
                .unwrap()
                .source,
            MountSource::Bind("/a,b".into())
        );
        assert_eq!(
            mount("source=v,destination=/b").unwrap().source,
            MountSource::Volume("v".into())
        );
        let found = mount("type=tmpfs,dst=/b,tmpfs-size=64m,tmpfs-mode=1777,noexec").unwrap();
        assert_eq!(found.source, MountSource::Tmpfs);
        assert_eq!(found.options, ["size=67108864", "mode=1777", "noexec"]);
    }

    #[test]
    fn refused_mounts() {
        for bad in [
            "",
            "type=foo,dst=/x",
            "type=bind,dst=/x",
            "type=bind,src=/a",
            "src=/tmp,dst=/x",
            "type=tmpfs,src=/a,dst=/x",
            "type=bind,src=/a,dst=/b,ro=maybe",
            "type=bind,\"src=/a",
            "type=tmpfs,dst=/x,tmpfs-mode=9",
            "type=tmpfs,dst=/x,tmpfs-size=lots",
            "type=bind,src=/a,dst=/b,bind-propagation=foo",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tmpfs_options() {
        let found = parse_tmpfs("/t:size=10%,mode=700,ro").unwrap();
        assert!(found.read_only);
        assert_eq!(found.options, ["size=10%", "mode=700"]);
        assert!(parse_tmpfs("t").is_err());
        assert!(parse_tmpfs("/t:rbind").is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_absolute_and_clean(text in "[a-z/.:,=\"]{0,24}") {
            for found in [volume(&text), mount(&text), parse_tmpfs(&text)].into_iter().flatten() {
                prop_assert!(found.destination.starts_with('/'));
                prop_assert!(!found.destination.split('/').any(|part| part == ".."));
            }
        }
    }
}
