//! `/etc/passwd` and `/etc/group` of a container root, read without following anything out of it.
//!
//! Rules as Podman's (and Docker's before it): `user` is a name or a number; a number need not be
//! in `passwd`, but if it is, its entry supplies group and home. Without `:group` the user's
//! memberships in `/etc/group` become supplementary groups.

use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use selkie_sys::errno::Attempt;
use selkie_sys::{SysError, SysResult};

/// Who a process is to be, in container IDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// All groups as `setgroups(2)` gets them: the primary one first, no duplicates.
    pub groups: Vec<u32>,
    /// From `passwd`, `/` where it has none.
    pub home: String,
}

/// Why a user could not be resolved.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UserError {
    /// Not a number and not in `/etc/passwd`.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoSuchUser(String),
    /// Not a number and not in `/etc/group`.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoSuchGroup(String),
    /// Not `user`, `user:group`, or a number out of range.
    #[error(
        "invalid user {0:?}: expected user, uid, user:group or uid:gid with IDs below 2147483648"
    )]
    Malformed(String),
    /// The container's user namespace does not have the ID.
    #[error(
        "{kind} ID {id} is not mapped in the container's user namespace (it has {mapped}); \
         give the container more IDs, e.g. --userns=auto:size={}", id + 1
    )]
    NotMapped {
        /// `user` or `group`.
        kind: &'static str,
        /// The missing ID.
        id: u32,
        /// What is mapped, as ranges.
        mapped: String,
    },
    /// The file is there but cannot be read.
    #[error(transparent)]
    Unreadable(#[from] SysError),
}

/// Largest ID that tools accept (they store IDs in signed 32-bit integers).
const MAX_ID: u32 = i32::MAX as u32;

/// Larger files are refused, so that an image cannot make us read for ever.
const MAX_FILE: u64 = 16 << 20;

/// Resolves `user` (may be empty: root) against the databases in the root file system `root`.
///
/// # Errors
/// See [`UserError`]; missing files are empty files.
pub fn resolve(root: BorrowedFd<'_>, user: &str) -> Result<ResolvedUser, UserError> {
    let passwd = read_in_root(root, "etc/passwd")?;
    let group = read_in_root(root, "etc/group")?;
    resolve_in(&passwd, &group, user)
}

/// Resolves `user` against the text of both files.
pub fn resolve_in(passwd: &[u8], group: &[u8], user: &str) -> Result<ResolvedUser, UserError> {
    let (wanted_user, wanted_group) = match user.split_once(':') {
        Some((user, group)) if !group.contains(':') => (user, group),
        Some(_) => return Err(UserError::Malformed(user.to_owned())),
        None => (user, ""),
    };
    let wanted_user = if wanted_user.is_empty() {
        "0"
    } else {
        wanted_user
    };
    let number = parse_id(wanted_user).map_err(|()| UserError::Malformed(user.to_owned()))?;
    let entry = lines(passwd)
        .filter_map(PasswdEntry::parse)
        .find(|entry| entry.name == wanted_user.as_bytes() || Some(entry.uid) == number);
    let (uid, mut gid, home, name) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home, Some(entry.name)),
        (None, Some(uid)) => (uid, 0, &b"/"[..], None),
        (None, None) => return Err(UserError::NoSuchUser(wanted_user.to_owned())),
    };
    let mut groups = Vec::new();
    if !wanted_group.is_empty() {
        let number = parse_id(wanted_group).map_err(|()| UserError::Malformed(user.to_owned()))?;
        gid = lines(group)
            .filter_map(GroupEntry::parse)
            .find(|entry| entry.name == wanted_group.as_bytes() || Some(entry.gid) == number)
            .map(|entry| entry.gid)
            .or(number)
            .ok_or_else(|| UserError::NoSuchGroup(wanted_group.to_owned()))?;
        groups.push(gid);
    } else {
        groups.push(gid);
        if let Some(name) = name {
            for entry in lines(group).filter_map(GroupEntry::parse) {
                let member = entry.members.split(|&byte| byte == b',').any(|m| m == name);
                if member && !groups.contains(&entry.gid) {
                    groups.push(entry.gid);
                }
            }
        }
    }
    let home = String::from_utf8_lossy(if home.is_empty() { b"/" } else { home });
    Ok(ResolvedUser {
        uid,
        gid,
        groups,
        home: home.into_owned(),
    })
}

/// `Ok(None)`: not a number, so a name. `Err`: a number that cannot be an ID.
fn parse_id(text: &str) -> Result<Option<u32>, ()> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return if text.starts_with('-') {
            Err(())
        } else {
            Ok(None)
        };
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(()),
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && line[0] != b'#')
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl<'a> PasswdEntry<'a> {
    /// passwd(5): `name:password:UID:GID:GECOS:directory:shell`; a line without numbers is skipped.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next()?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Self {
            name,
            uid,
            gid,
            home,
        })
    }
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> GroupEntry<'a> {
    /// group(5): `name:password:GID:member,member`.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next()?;
        let gid = number(fields.nth(1)?)?;
        let members = fields.next().unwrap_or_default();
        Some(Self { name, gid, members })
    }
}

/// Reads a regular file below `root` as the container would see it; missing is empty.
fn read_in_root(root: BorrowedFd<'_>, path: &str) -> SysResult<Vec<u8>> {
    let attempt = || format!("read /{path} in the container's root");
    let file = match openat2(
        root,
        path,
        // Non-blocking: the image may hold a FIFO there.
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    ) {
        Ok(file) => file,
        // A link loop is how a magic link or a hostile image shows itself: as good as no file.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
        Err(errno) => return Err(SysError::new(attempt(), errno)),
    };
    let stat = fstat(&file).attempt(attempt)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(SysError::new(
            format!("{}: not a regular file", attempt()),
            Errno::INVAL,
        ));
    }
    if stat.st_size as u64 > MAX_FILE {
        return Err(SysError::new(attempt(), Errno::FBIG));
    }
    let mut content = Vec::with_capacity(stat.st_size as usize + 1);
    std::fs::File::from(file)
        .take(MAX_FILE)
        .read_to_end(&mut content)
        .attempt(attempt)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"# comment\nroot:x:0:0:root:/root:/bin/sh\nbroken line\n\
        www-data:x:33:33:www:/var/www:/usr/sbin/nologin\nnohome:x:40:41::\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:daemon,root\nwww-data:x:33:\n\
        staff:x:50:www-data,x\nstaff2:x:50:www-data\n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> ResolvedUser {
        ResolvedUser {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.into(),
        }
    }

    #[test]
    fn forms_of_a_user() {
        let table = [
            ("", user(0, 0, &[0, 10], "/root")),
            ("0", user(0, 0, &[0, 10], "/root")),
            ("root", user(0, 0, &[0, 10], "/root")),
            ("www-data", user(33, 33, &[33, 50], "/var/www")),
            ("33", user(33, 33, &[33, 50], "/var/www")),
            ("33:0", user(33, 0, &[0], "/var/www")),
            ("www-data:wheel", user(33, 10, &[10], "/var/www")),
            ("1234", user(1234, 0, &[0], "/")),
            ("1234:5678", user(1234, 5678, &[5678], "/")),
            ("nohome", user(40, 41, &[41], "/")),
            (":staff", user(0, 50, &[50], "/root")),
        ];
        for (text, expected) in table {
            assert_eq!(resolve_in(PASSWD, GROUP, text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn errors_as_podman_words_them() {
        let message = |text| resolve_in(PASSWD, GROUP, text).unwrap_err().to_string();
        assert_eq!(
            message("nosuch"),
            "unable to find user nosuch: no matching entries in passwd file"
        );
        assert_eq!(
            message("root:nosuch"),
            "unable to find group nosuch: no matching entries in group file"
        );
        assert!(message("1:2:3").starts_with("invalid user"));
        assert!(message("4294967295").starts_with("invalid user"));
        assert!(message("-1").starts_with("invalid user"));
    }

    #[test]
    fn files_are_not_followed_out_of_the_root() {
        use std::os::fd::AsFd;
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(outside.path(), "evil:x:7:7::/evil:\n").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc/passwd")).unwrap();
        let up = std::path::Path::new("../../../../../../../..")
            .join(outside.path().strip_prefix("/").unwrap());
        std::os::unix::fs::symlink(up, root.path().join("etc/group")).unwrap();
        let fd = std::fs::File::open(root.path()).unwrap();
        assert!(matches!(
            resolve(fd.as_fd(), "evil"),
            Err(UserError::NoSuchUser(_))
        ));
        std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
        std::fs::create_dir(root.path().join("etc/passwd")).unwrap();
        assert!(matches!(
            resolve(fd.as_fd(), "evil"),
            Err(UserError::Unreadable(_))
        ));
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(passwd: Vec<u8>, group: Vec<u8>, user in ".{0,20}") {
            let _ = resolve_in(&passwd, &group, &user);
        }

        #[test]
        fn numbers_resolve_to_themselves(uid in 0u32..=MAX_ID, gid in 0u32..=MAX_ID) {
            let found = resolve_in(b"", b"", &format!("{uid}:{gid}")).unwrap();
            prop_assert_eq!((found.uid, found.gid, found.groups), (uid, gid, vec![gid]));
        }
    }
}
