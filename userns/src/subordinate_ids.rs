//! Subordinate IDs of a login: `/etc/subuid` and `/etc/subgid` (subuid(5)), or the name service
//! where nsswitch.conf(5) says so.
//!
//! Theory of operation. [`lookup`] finds out the login's names, asks the source that `newuidmap`
//! itself will ask, and checks what came. Reading is apart from judging: [`parse`] and [`choose`]
//! are pure. Every way a host can be set up wrong has its own [`SubordinateIdError`], whose text
//! ends with the fix; [`SubordinateIdError::is_absence`] tells "this login was given nothing", with
//! which Selkie goes on in a one-ID namespace, from "somebody made a mistake", which is an error.

mod error;

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::id_map::{IdExtent, IdMap, IdMaps};
use crate::name_service::{self, LoginNames};
use crate::slice::SMALLEST_SLICE;
pub use error::SubordinateIdError;

/// Where the host says who has which IDs. Tests point this elsewhere.
#[derive(Debug, Clone)]
pub struct HostFiles {
    /// `/etc/subuid`.
    pub subuid: PathBuf,
    /// `/etc/subgid`.
    pub subgid: PathBuf,
    /// `/etc/nsswitch.conf`.
    pub nsswitch: PathBuf,
    /// `/etc/passwd`.
    pub passwd: PathBuf,
    /// Directories in which `newuidmap`, `newgidmap`, `getsubids` and `getent` are looked for, in
    /// order. Fixed, because set-user-ID helpers must not come from a caller's `PATH`.
    pub tool_dirs: Vec<PathBuf>,
}

impl Default for HostFiles {
    fn default() -> Self {
        Self {
            subuid: "/etc/subuid".into(),
            subgid: "/etc/subgid".into(),
            nsswitch: "/etc/nsswitch.conf".into(),
            passwd: "/etc/passwd".into(),
            // The last is where NixOS keeps its set-user-ID programs.
            tool_dirs: [
                "/usr/bin",
                "/bin",
                "/usr/sbin",
                "/usr/local/bin",
                "/run/wrappers/bin",
            ]
            .map(PathBuf::from)
            .to_vec(),
        }
    }
}

impl HostFiles {
    /// The first executable file of that name in [`HostFiles::tool_dirs`].
    pub fn find_tool(&self, name: &str) -> Option<PathBuf> {
        self.tool_dirs
            .iter()
            .map(|dir| dir.join(name))
            .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok())
    }
}

/// UIDs or GIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdKind {
    /// User IDs.
    Uid,
    /// Group IDs.
    Gid,
}

impl std::fmt::Display for IdKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Uid => "UID",
            Self::Gid => "GID",
        })
    }
}

/// Consecutive host IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdRange {
    /// First.
    pub start: u32,
    /// How many; at least 1, and the last is at most 4294967294.
    pub count: u32,
}

impl IdRange {
    /// Checks that it is not empty and stays below 4294967295.
    pub fn new(start: u32, count: u32) -> Option<Self> {
        let last = start.checked_add(count.checked_sub(1)?)?;
        (last < u32::MAX).then_some(Self { start, count })
    }
    /// Last ID.
    pub fn last(&self) -> u32 {
        self.start + (self.count - 1)
    }
    /// True when `id` is one of them.
    pub fn contains(&self, id: u32) -> bool {
        (self.start..=self.last()).contains(&id)
    }
    fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }
}

impl std::fmt::Display for IdRange {
    /// `FIRST-LAST`, as `usermod --add-subuids` takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.start, self.last())
    }
}

/// The login whose IDs are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Login {
    /// Its UID.
    pub uid: u32,
    /// Its primary GID.
    pub gid: u32,
}

/// What a login may use, in the order its host lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubordinateIds {
    /// UIDs.
    pub uid: Vec<IdRange>,
    /// GIDs.
    pub gid: Vec<IdRange>,
}

impl SubordinateIds {
    /// The maps of the login's pause namespace: inside 0 is the login, inside 1 and on are the
    /// ranges one after the other. The order of the host's list is kept and not sorted, so that a
    /// range added later at its end leaves every ID that is already in use where it was.
    pub fn pause_maps(&self, login: Login) -> Result<IdMaps, SubordinateIdError> {
        let map = |kind, own, ranges: &[IdRange]| {
            let mut extents = vec![IdExtent {
                inside: 0,
                outside: own,
                count: 1,
            }];
            let mut next = 1u32;
            for range in ranges {
                // All ranges together can have more IDs than a namespace has numbers.
                let count = range.count.min((u32::MAX - 1) - next);
                if count > 0 {
                    extents.push(IdExtent {
                        inside: next,
                        outside: range.start,
                        count,
                    });
                }
                next += count;
            }
            IdMap::new(extents).map_err(|error| SubordinateIdError::NotAMap { kind, error })
        };
        Ok(IdMaps {
            uid: map(IdKind::Uid, login.uid, &self.uid)?,
            gid: map(IdKind::Gid, login.gid, &self.gid)?,
        })
    }
}

/// One line of a subuid(5) file that has an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// From 1.
    pub number: usize,
    /// The whole line.
    pub text: &'a str,
    /// Login name or UID.
    pub owner: &'a str,
    /// The range, or what is wrong with it.
    pub range: Result<IdRange, &'static str>,
}

/// Splits a subuid(5) file. Blank lines, comments and lines without a colon own nothing.
pub fn parse(text: &str) -> Vec<Line<'_>> {
    text.lines()
        .enumerate()
        .filter_map(|(index, text)| {
            let text = text.trim();
            let (owner, rest) = text.split_once(':')?;
            (!owner.starts_with('#')).then(|| Line {
                number: index + 1,
                text,
                owner: owner.trim(),
                range: parse_range(rest),
            })
        })
        .collect()
}

fn parse_range(rest: &str) -> Result<IdRange, &'static str> {
    let (start, count) = rest.split_once(':').ok_or("the count is missing")?;
    let number = |text: &str| {
        let text = text.trim();
        // shadow reads a leading 0 as octal; two readers must not see different ranges.
        let decimal = text.bytes().all(|byte| byte.is_ascii_digit())
            && (text.len() == 1 || !text.starts_with('0'));
        decimal.then(|| text.parse::<u32>().ok()).flatten()
    };
    let start = number(start).ok_or("the first ID is not a decimal number below 4294967295")?;
    let count = number(count).ok_or("the count is not a decimal number below 4294967296")?;
    if count == 0 {
        return Err("the count is 0");
    }
    IdRange::new(start, count).ok_or("the range runs past 4294967294, the largest ID")
}

/// Picks the login's ranges out of a file's lines and checks them.
pub fn choose(
    path: &Path,
    kind: IdKind,
    lines: &[Line<'_>],
    login: Login,
    names: &LoginNames,
) -> Result<Vec<IdRange>, SubordinateIdError> {
    let (own, others): (Vec<_>, Vec<_>) = lines
        .iter()
        .partition(|line| names.is_own(line.owner, login.uid));
    let mut ranges = Vec::with_capacity(own.len());
    for line in own {
        match line.range {
            // A login listed by name and again by UID, or twice by two tools, means no harm.
            Ok(range) if ranges.contains(&range) => {}
            Ok(range) => ranges.push(range),
            Err(why) => {
                return Err(SubordinateIdError::Malformed {
                    path: path.to_owned(),
                    line: line.number,
                    text: line.text.to_owned(),
                    owner: line.owner.to_owned(),
                    why,
                });
            }
        }
    }
    let source_name = path.display().to_string();
    let free = unused_range(lines);
    if ranges.is_empty() {
        return Err(SubordinateIdError::LineAbsent {
            path: path.to_owned(),
            kind,
            login: names.describe(login.uid),
            fix: names.how_to_add(login.uid, kind, free, path),
        });
    }
    check(
        &source_name,
        kind,
        &ranges,
        login,
        names,
        &|wrong| match wrong {
            Some(range) => names.how_to_replace(login.uid, kind, range, free, path),
            None => names.how_to_add(login.uid, kind, free, path),
        },
    )?;
    for line in others {
        let Ok(other_range) = line.range else {
            continue;
        };
        if let Some(range) = ranges.iter().find(|range| range.overlaps(&other_range)) {
            return Err(SubordinateIdError::SharedWithOther {
                path: path.to_owned(),
                kind,
                login: names.describe(login.uid),
                range: *range,
                other: line.owner.to_owned(),
                other_range,
                fix: names.how_to_replace(login.uid, kind, *range, free, path),
            });
        }
    }
    Ok(ranges)
}

/// What must hold whatever source the ranges came from. `fix` words how to replace a wrong range,
/// or how to add one.
fn check(
    source_name: &str,
    kind: IdKind,
    ranges: &[IdRange],
    login: Login,
    names: &LoginNames,
    fix: &dyn Fn(Option<IdRange>) -> String,
) -> Result<(), SubordinateIdError> {
    let source_name = source_name.to_owned();
    let described = names.describe(login.uid);
    let own_id = match kind {
        IdKind::Uid => login.uid,
        IdKind::Gid => login.gid,
    };
    for (index, range) in ranges.iter().enumerate() {
        if range.contains(0) && own_id != 0 {
            return Err(SubordinateIdError::ContainsRoot {
                source_name,
                kind,
                login: described,
                range: *range,
                fix: fix(Some(*range)),
            });
        }
        if range.contains(own_id) {
            return Err(SubordinateIdError::OwnIdInside {
                source_name,
                kind,
                login: described,
                range: *range,
                id: own_id,
                fix: fix(Some(*range)),
            });
        }
        if let Some(first) = ranges[..index].iter().find(|first| first.overlaps(range)) {
            return Err(SubordinateIdError::OwnOverlap {
                source_name,
                kind,
                login: described,
                first: *first,
                second: *range,
                fix: fix(Some(*range)),
            });
        }
    }
    let total: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
    if total < u64::from(SMALLEST_SLICE) {
        return Err(SubordinateIdError::TooSmall {
            source_name,
            kind,
            login: described,
            total,
            fix: fix(None),
        });
    }
    Ok(())
}

/// 65,536 IDs behind everything a file gives away, where `useradd` would put the next login's;
/// the start of that range.
fn unused_range(lines: &[Line<'_>]) -> IdRange {
    let behind = lines
        .iter()
        .filter_map(|line| line.range.as_ref().ok())
        .map(|range| range.last() + 1)
        .max()
        .unwrap_or(0)
        .max(FIRST_SUBORDINATE_ID);
    IdRange::new(behind, USUAL_COUNT).unwrap_or(IdRange {
        start: FIRST_SUBORDINATE_ID,
        count: USUAL_COUNT,
    })
}

/// `SUB_UID_MIN` and `SUB_UID_COUNT` of login.defs(5) as distributions ship them.
const FIRST_SUBORDINATE_ID: u32 = 100_000;
const USUAL_COUNT: u32 = 65_536;

/// Asks the host which subordinate IDs the login has.
pub fn lookup(login: Login, host: &HostFiles) -> Result<SubordinateIds, SubordinateIdError> {
    let names = name_service::login_names(login.uid, host)?;
    let service = match read_if_exists(&host.nsswitch)? {
        Some(text) => name_service::subid_source(&text).map(str::to_owned),
        None => None,
    };
    let of = |kind, path: &Path| match service.as_deref() {
        Some("files") => from_file(kind, path, login, &names),
        // Without getsubids the service cannot be asked. libsubid itself goes back to the files
        // where it has no plug-in for the service.
        Some(service) if host.find_tool("getsubids").is_none() => {
            from_file(kind, path, login, &names).map_err(|error| match error.is_absence() {
                true => SubordinateIdError::NameServiceToolMissing {
                    nsswitch: host.nsswitch.clone(),
                    service: service.to_owned(),
                },
                false => error,
            })
        }
        Some(service) => from_name_service(service, kind, login, &names, host),
        // Without a word from the admin libsubid reads the files; where it is installed and knows
        // more than they say, newuidmap knows it too.
        None => from_file(kind, path, login, &names).or_else(|error| {
            if !error.is_absence() || host.find_tool("getsubids").is_none() {
                return Err(error);
            }
            from_name_service("default", kind, login, &names, host).map_err(|_| error)
        }),
    };
    Ok(SubordinateIds {
        uid: of(IdKind::Uid, &host.subuid)?,
        gid: of(IdKind::Gid, &host.subgid)?,
    })
}

fn from_file(
    kind: IdKind,
    path: &Path,
    login: Login,
    names: &LoginNames,
) -> Result<Vec<IdRange>, SubordinateIdError> {
    match read_if_exists(path)? {
        Some(text) => choose(path, kind, &parse(&text), login, names),
        None => Err(SubordinateIdError::FileAbsent {
            path: path.to_owned(),
            kind,
            login: names.describe(login.uid),
            fix: names.how_to_add(login.uid, kind, unused_range(&[]), path),
        }),
    }
}

fn from_name_service(
    service: &str,
    kind: IdKind,
    login: Login,
    names: &LoginNames,
    host: &HostFiles,
) -> Result<Vec<IdRange>, SubordinateIdError> {
    let ranges = name_service::getsubids(service, kind, login, names, host)?;
    let source_name = format!("the name service `{service}`");
    let fix = |_wrong| "ask the directory's admin for another range".to_owned();
    check(&source_name, kind, &ranges, login, names, &fix)?;
    Ok(ranges)
}

/// `None` when there is no such file. Bytes that are not UTF-8 only spoil their own line.
pub(crate) fn read_if_exists(path: &Path) -> Result<Option<String>, SubordinateIdError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SubordinateIdError::Unreadable {
            path: path.to_owned(),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        }),
    }
}

#[cfg(test)]
mod tests;
