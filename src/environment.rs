//! The one place that reads environment variables and the password database.
//!
//! Directories:
//! - data: `--root`, else `$XDG_DATA_HOME/selkie`, else `~/.local/share/selkie`;
//! - cache: `$XDG_CACHE_HOME/selkie`, else `~/.cache/selkie`;
//! - run: `--runroot`, else the first of these that holds: `$XDG_RUNTIME_DIR` is an absolute path
//!   to a directory that is ours and writable; `/run/user/UID` is; else `/tmp/selkie-run-UID`,
//!   made with mode 0700. After `su`, `XDG_RUNTIME_DIR` often still names another login's
//!   directory, and under cron or a batch system nothing sets it, so neither is an error.
//!
//! `/tmp` is everybody's: the directory there is used only when it is a real directory (no
//! symlink), ours, and closed to others; otherwise somebody put it there and we refuse.
//! XDG variables holding relative paths are ignored, as the XDG specification wants.

use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use crate::error::{CliError, Result};

/// Who calls.
#[derive(Debug, Clone)]
pub struct Login {
    /// Host UID.
    pub uid: u32,
    /// Host GID.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
}

impl Login {
    /// The calling login. Inside `selkie unshare` that is the login outside.
    pub fn current() -> Result<Self> {
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        let uid = outside_id("/proc/self/uid_map", uid)?;
        let gid = outside_id("/proc/self/gid_map", gid)?;
        if uid == 0 {
            return Err(CliError::new("Selkie does not run as root").with_hint(
                "run it as an unprivileged login, for example: su - LOGIN -c 'selkie …'",
            ));
        }
        Ok(Self {
            uid,
            gid,
            home: home(uid)?,
        })
    }
}

/// What `id` of our own user namespace is in the initial one (or as far out as we can see).
/// Read only when we are 0 here: others are never inside a namespace of ours.
fn outside_id(map: &str, id: u32) -> Result<u32> {
    if id != 0 {
        return Ok(id);
    }
    let text = std::fs::read_to_string(map)
        .map_err(|error| CliError::new(format!("read {map}: {error}")))?;
    Ok(map_outside(&text, id).unwrap_or(id))
}

fn map_outside(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (
            fields.next()?.ok()?,
            fields.next()?.ok()?,
            fields.next()?.ok()?,
        );
        let offset = id.checked_sub(inside)?;
        (offset < count).then(|| outside + offset)
    })
}

/// Where programs are: `PATH`, then where an ordinary login's `PATH` does not lead although what
/// is there serves everyone (`nft`).
pub fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .collect();
    for dir in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        if !dirs.iter().any(|known| known == Path::new(dir)) {
            dirs.push(dir.into());
        }
    }
    dirs
}

fn home(uid: u32) -> Result<PathBuf> {
    if let Some(home) = absolute("HOME") {
        return Ok(home);
    }
    let home = local_home(uid).or_else(|| name_service_home(uid));
    home.ok_or_else(|| {
        CliError::new(format!(
            "HOME is not set, and UID {uid} has no home directory in the password database"
        ))
        .with_hint("set HOME, or name the directories with --root and --runroot")
    })
}

fn local_home(uid: u32) -> Option<PathBuf> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| passwd_home(line, uid))
}

/// Logins of LDAP and the like. The C library's own look-up does not work in a static program.
fn name_service_home(uid: u32) -> Option<PathBuf> {
    let output = std::process::Command::new("getent")
        .args(["passwd", &uid.to_string()])
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().find_map(|line| passwd_home(line, uid))
}

/// The home directory in a line of passwd(5), if the line is about `uid`.
fn passwd_home(line: &str, uid: u32) -> Option<PathBuf> {
    let fields: Vec<&str> = line.split(':').collect();
    let home = Path::new(fields.get(5)?);
    (fields[2].parse() == Ok(uid) && home.is_absolute()).then(|| home.to_owned())
}

/// A variable holding an absolute path.
fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

fn made_absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| CliError::new(format!("find {}: {error}", path.display())))
}

/// The data directory.
pub fn data_dir(login: &Login, flag: Option<&Path>) -> Result<PathBuf> {
    if let Some(flag) = flag {
        return made_absolute(flag);
    }
    Ok(absolute("XDG_DATA_HOME")
        .unwrap_or_else(|| login.home.join(".local/share"))
        .join("selkie"))
}

/// The cache directory.
pub fn cache_dir(login: &Login) -> Result<PathBuf> {
    Ok(absolute("XDG_CACHE_HOME")
        .unwrap_or_else(|| login.home.join(".cache"))
        .join("selkie"))
}

/// The run directory, by the rule at the head of this module.
pub fn run_dir(login: &Login, flag: Option<&Path>) -> Result<PathBuf> {
    if let Some(flag) = flag {
        return made_absolute(flag);
    }
    let candidates = [
        absolute("XDG_RUNTIME_DIR"),
        Some(PathBuf::from(format!("/run/user/{}", login.uid))),
    ];
    for candidate in candidates.into_iter().flatten() {
        if is_ours_and_writable(&candidate) {
            return Ok(candidate.join("selkie"));
        }
    }
    private_tmp_dir(Path::new("/tmp"), login.uid)
}

fn is_ours_and_writable(dir: &Path) -> bool {
    // Ours by the kernel's own account of both: inside `selkie unshare` both read 0.
    let own = rustix::process::geteuid().as_raw();
    std::fs::metadata(dir).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == own)
        && rustix::fs::accessat(
            CWD,
            dir,
            Access::WRITE_OK | Access::EXEC_OK,
            AtFlags::EACCESS,
        )
        .is_ok()
}

fn private_tmp_dir(tmp: &Path, uid: u32) -> Result<PathBuf> {
    let dir = tmp.join(format!("selkie-run-{uid}"));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
    if let Err(error) = made
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(CliError::new(format!("make {}: {error}", dir.display()))
            .with_hint("set XDG_RUNTIME_DIR to a directory of yours, or give --runroot"));
    }
    let metadata = std::fs::symlink_metadata(&dir)
        .map_err(|error| CliError::new(format!("look at {}: {error}", dir.display())))?;
    let own = rustix::process::geteuid().as_raw();
    let wrong = if metadata.is_symlink() {
        Some("it is a symbolic link".to_owned())
    } else if !metadata.is_dir() {
        Some("it is not a directory".to_owned())
    } else if metadata.uid() != own {
        Some(format!("it belongs to UID {}", metadata.uid()))
    } else if metadata.mode() & 0o077 != 0 {
        Some(format!(
            "its mode is {:o}, not 700",
            metadata.mode() & 0o7777
        ))
    } else {
        None
    };
    match wrong {
        None => Ok(dir),
        Some(wrong) => Err(CliError::new(format!(
            "{} cannot hold private files: {wrong}",
            dir.display()
        ))
        .with_hint("set XDG_RUNTIME_DIR to a directory of yours, or give --runroot")),
    }
}

/// The caller's environment, as far as it is text.
pub fn variables() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The login's shell, for commands that start one.
pub fn shell() -> OsString {
    std::env::var_os("SHELL")
        .filter(|shell| !shell.is_empty())
        .unwrap_or_else(|| "/bin/sh".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_followed_out_of_the_namespace() {
        let map = "         0       1002          1\n         1     165536      65536\n";
        assert_eq!(map_outside(map, 0), Some(1002));
        assert_eq!(map_outside(map, 3), Some(165_538));
        assert_eq!(map_outside(map, 70_000), None);
        assert_eq!(map_outside("0 0 4294967295\n", 0), Some(0));
    }

    #[test]
    fn homes_are_read_from_passwd_lines() {
        let line = "seal:x:1002:1002:A seal,,,:/home/seal:/bin/bash";
        assert_eq!(passwd_home(line, 1002), Some("/home/seal".into()));
        assert_eq!(passwd_home(line, 1003), None);
        assert_eq!(passwd_home("x:x:7:7::relative:/bin/sh", 7), None);
        assert_eq!(passwd_home("# comment", 7), None);
    }

    #[test]
    fn a_private_directory_in_tmp_is_made_and_found_again() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = private_tmp_dir(tmp.path(), 7).unwrap();
        assert_eq!(dir, tmp.path().join("selkie-run-7"));
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(private_tmp_dir(tmp.path(), 7).unwrap(), dir);
    }

    #[test]
    fn planted_directories_in_tmp_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        let planted = tmp.path().join("elsewhere");
        std::fs::create_dir(&planted).unwrap();
        std::os::unix::fs::symlink(&planted, tmp.path().join("selkie-run-1")).unwrap();
        assert!(
            private_tmp_dir(tmp.path(), 1)
                .unwrap_err()
                .message
                .contains("symbolic link")
        );

        std::fs::write(tmp.path().join("selkie-run-2"), "").unwrap();
        assert!(
            private_tmp_dir(tmp.path(), 2)
                .unwrap_err()
                .message
                .contains("not a directory")
        );

        let open = tmp.path().join("selkie-run-3");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(
            private_tmp_dir(tmp.path(), 3)
                .unwrap_err()
                .message
                .contains("mode is 755")
        );
    }

    #[test]
    fn relative_variables_are_ignored() {
        assert_eq!(absolute("SELKIE_TEST_VARIABLE_THAT_IS_NOT_SET"), None);
    }
}
