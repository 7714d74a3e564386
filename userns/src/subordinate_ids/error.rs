//! Each way a host's subordinate IDs can be missing or wrong, and its fix. Every text stands in
//! docs/subuid.md, which a test checks.

use std::path::PathBuf;

use rustix::io::Errno;

use super::{IdKind, IdRange};
use crate::id_map::IdMapError;
use crate::slice::SMALLEST_SLICE;

/// Why a login has no usable subordinate IDs. Every text ends with the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubordinateIdError {
    /// `/etc/subuid` or `/etc/subgid` does not exist.
    #[error("{} does not exist, so {login} has no subordinate {kind}s; {fix}", .path.display())]
    FileAbsent {
        /// The file.
        path: PathBuf,
        /// Which IDs.
        kind: IdKind,
        /// How the login is called.
        login: String,
        /// What to do.
        fix: String,
    },
    /// The file has no line for the login.
    #[error("{} has no line for {login}, so there are no subordinate {kind}s; {fix}", .path.display())]
    LineAbsent {
        /// The file.
        path: PathBuf,
        /// Which IDs.
        kind: IdKind,
        /// How the login is called.
        login: String,
        /// What to do.
        fix: String,
    },
    /// Too few IDs for even one container.
    #[error(
        "{login} has only {total} subordinate {kind}s in {source_name}, and one container needs \
         {SMALLEST_SLICE}; {fix}"
    )]
    TooSmall {
        /// File or name service.
        source_name: String,
        /// Which IDs.
        kind: IdKind,
        /// How the login is called.
        login: String,
        /// How many there are.
        total: u64,
        /// What to do.
        fix: String,
    },
    /// nsswitch.conf names a source that only `getsubids` can ask, and it is not installed.
    #[error(
        "{} says `subid: {service}`, but getsubids, which asks it, is not installed; install the \
         package uidmap (Debian, Ubuntu), shadow-utils-subid (Fedora, RHEL) or shadow (others)",
        .nsswitch.display()
    )]
    NameServiceToolMissing {
        /// nsswitch.conf.
        nsswitch: PathBuf,
        /// E.g. `sss`.
        service: String,
    },
    /// The name service knows no ranges for the login (or could not be reached: `getsubids` does
    /// not tell the two apart).
    #[error(
        "the name service `{service}` gives {login} no subordinate {kind}s; ask the directory's \
         admin for a range (FreeIPA: ipa subid-generate), and see that the service is reachable: \
         {command}"
    )]
    NameServiceEmpty {
        /// E.g. `sss`.
        service: String,
        /// Which IDs.
        kind: IdKind,
        /// How the login is called.
        login: String,
        /// Command that shows it.
        command: String,
    },
    /// A login without a name cannot be asked for.
    #[error(
        "UID {uid} has no login name, and the name service `{service}` is asked by name; give the \
         UID an entry in {}, or set `subid: files` in {} and add a line `{uid}:100000:65536`",
        .passwd.display(), .nsswitch.display()
    )]
    NoLoginName {
        /// The UID.
        uid: u32,
        /// E.g. `sss`.
        service: String,
        /// The password file.
        passwd: PathBuf,
        /// nsswitch.conf.
        nsswitch: PathBuf,
    },
    /// A file exists but cannot be read.
    #[error("cannot read {}: {errno}; it must be readable for all: chmod 0644 {}", .path.display(), .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        errno: Errno,
    },
    /// The login's own line does not parse.
    #[error(
        "{} line {line}: `{text}`: {why}; write it as LOGIN:FIRST:COUNT in decimal, e.g. \
         {owner}:100000:65536",
        .path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// The line.
        text: String,
        /// Whose it is.
        owner: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Two ranges of the login share IDs. The kernel maps no ID twice.
    #[error(
        "{source_name} gives {login} the {kind} ranges {first} and {second}, which overlap; \
         {fix}"
    )]
    OwnOverlap {
        /// File or name service.
        source_name: String,
        /// Which IDs.
        kind: IdKind,
        /// How the login is called.
        login: String,
        /// One.
        first: IdRange,
        /// The other.
        second: IdRange,
        /// What to do.
        fix: String,
    },
    /// A range of the login shares IDs with another login's: their containers could reach each
    /// other's files and processes.
    #[error(
        "{}: the {kind} range {range} of {login} overlaps {other_range} of {other}, so the two \
         could reach each other's containers; {fix}",
        .path.display()
    )]
    SharedWithOther {
        /// The file.
        path: PathBuf,
        /// Which IDs.
        kind: IdKind,
        /// How the login is called.
        login: String,
        /// The login's.
        range: IdRange,
        /// The other login.
        other: String,
        /// Its range.
        other_range: IdRange,
        /// What to do.
        fix: String,
    },
    /// The login's own UID or primary GID lies in its range.
    #[error(
        "{source_name}: the {kind} range {range} of {login} contains its own {kind} {id}, which \
         must stay outside every container; {fix}"
    )]
    OwnIdInside {
        /// File or name service.
        source_name: String,
        /// Which IDs.
        kind: IdKind,
        /// How the login is called.
        login: String,
        /// The range.
        range: IdRange,
        /// The ID.
        id: u32,
        /// What to do.
        fix: String,
    },
    /// The range starts at 0: it would hand out the host's root.
    #[error(
        "{source_name}: the {kind} range {range} of {login} contains 0, the host's root; {fix}"
    )]
    ContainsRoot {
        /// File or name service.
        source_name: String,
        /// Which IDs.
        kind: IdKind,
        /// How the login is called.
        login: String,
        /// The range.
        range: IdRange,
        /// What to do.
        fix: String,
    },
    /// Valid ranges, but the kernel takes no such map (more than 340 extents).
    #[error(
        "the subordinate {kind} ranges do not make an ID map: {error}; give the login fewer and \
         larger ranges"
    )]
    NotAMap {
        /// Which IDs.
        kind: IdKind,
        /// Why.
        error: IdMapError,
    },
    /// A tool could not be run or wrote what nobody understands.
    #[error("{command}: {why}; run it by hand to see what it needs")]
    ToolFailed {
        /// Command line.
        command: String,
        /// What happened.
        why: String,
    },
}

impl SubordinateIdError {
    /// True when the login was simply given no (or too few) IDs, or nobody can be asked; false when
    /// something is set up wrongly.
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::FileAbsent { .. }
                | Self::LineAbsent { .. }
                | Self::TooSmall { .. }
                | Self::NameServiceToolMissing { .. }
                | Self::NameServiceEmpty { .. }
                | Self::NoLoginName { .. }
        )
    }
}
