//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container, as Podman writes them, and the
//! empty `/run/.containerenv` by which programs notice that they are in a container.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use selkie_userns::IdMaps;

use crate::error::{Error, Result};
use crate::layout::write_over;
use crate::options::NetworkMode;

/// What the three files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EtcFiles {
    /// `/etc/hosts`.
    pub hosts: String,
    /// `/etc/hostname`.
    pub hostname: String,
    /// `/etc/resolv.conf`; without a network there is no server to name, so the image's stays.
    pub resolv_conf: Option<String>,
}

impl EtcFiles {
    /// For a container called `name` whose host name is `host_name`.
    ///
    /// # Errors
    /// With the host's network, its files cannot be read.
    pub(crate) fn new(network: NetworkMode, name: &str, host_name: &str) -> Result<Self> {
        let (base, resolv_conf) = match network {
            NetworkMode::None => (String::new(), None),
            NetworkMode::Host => (
                read_host_file(Path::new("/etc/hosts"))?,
                Some(read_host_file(Path::new("/etc/resolv.conf"))?),
            ),
        };
        Ok(Self {
            hosts: hosts(&base, network, name, host_name),
            hostname: format!("{host_name}\n"),
            resolv_conf,
        })
    }

    /// Writes them below the container's directory, owned by the container's root, and gives
    /// (file, path in the container) for each.
    pub(crate) fn write(
        &self,
        container: BorrowedFd<'_>,
        path: &Path,
        maps: &IdMaps,
    ) -> Result<Vec<(PathBuf, &'static str)>> {
        let attempt = |what: &str| format!("write {}/etc/{what}", path.display());
        match rustix::fs::mkdirat(container, "etc", Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::machine(attempt(""), errno)),
        }
        let dir = rustix::fs::openat(
            container,
            "etc",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| Error::machine(attempt(""), errno))?;
        // Where container root is nobody (a map without 0), the login keeps them.
        let owner = Uid::from_raw(maps.uid.to_outside(0).unwrap_or(0));
        let group = Gid::from_raw(maps.gid.to_outside(0).unwrap_or(0));
        let mut written = Vec::new();
        for (name, destination, content) in [
            ("hosts", "/etc/hosts", Some(&self.hosts)),
            ("hostname", "/etc/hostname", Some(&self.hostname)),
            ("resolv.conf", "/etc/resolv.conf", self.resolv_conf.as_ref()),
            (".containerenv", "/run/.containerenv", Some(&String::new())),
        ] {
            let Some(content) = content else {
                continue;
            };
            write_owned(dir.as_fd(), name, content.as_bytes(), owner, group)
                .map_err(|errno| Error::machine(attempt(name), errno))?;
            written.push((path.join("etc").join(name), destination));
        }
        Ok(written)
    }
}

fn write_owned(
    dir: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    owner: Uid,
    group: Gid,
) -> std::result::Result<(), Errno> {
    let mode = Mode::from_raw_mode(0o644);
    let file = rustix::fs::openat(
        dir,
        name,
        OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        mode,
    )?;
    write_over(file.as_fd(), content)?;
    rustix::fs::fchown(&file, Some(owner), Some(group))?;
    // After chown, and whatever the caller's umask.
    rustix::fs::fchmod(&file, mode)
}

fn hosts(base: &str, network: NetworkMode, name: &str, host_name: &str) -> String {
    let mut text = String::from(base);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let has_localhost = |family: fn(&str) -> bool| {
        base.lines().any(|line| {
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            words.next().is_some_and(family) && words.any(|word| word == "localhost")
        })
    };
    if !has_localhost(|address| address.starts_with("127.")) {
        text.push_str("127.0.0.1\tlocalhost\n");
    }
    if !has_localhost(|address| address.contains(':')) {
        text.push_str("::1\tlocalhost\n");
    }
    let known = |word: &str| {
        base.lines()
            .any(|line| line.split_whitespace().skip(1).any(|known| known == word))
    };
    match network {
        NetworkMode::None => text.push_str(&format!("127.0.0.1\t{host_name} {name}\n")),
        NetworkMode::Host if !known(host_name) => {
            text.push_str(&format!("127.0.0.1\t{host_name}\n"));
        }
        NetworkMode::Host => {}
    }
    text
}

/// A missing one is empty.
fn read_host_file(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::machine(format!("read {}", path.display()), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_network_only_the_container_is_known() {
        let files = EtcFiles::new(NetworkMode::None, "calm_seal", "0123456789ab").unwrap();
        assert_eq!(
            files.hosts,
            "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\t0123456789ab calm_seal\n"
        );
        assert_eq!(files.hostname, "0123456789ab\n");
        assert_eq!(files.resolv_conf, None);
    }

    #[test]
    fn on_the_hosts_network_its_hosts_are_kept() {
        let base = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n10.0.0.1 rock # me";
        assert_eq!(
            hosts(base, NetworkMode::Host, "x", "rock"),
            format!("{base}\n")
        );
        assert_eq!(
            hosts("10.0.0.1 other", NetworkMode::Host, "x", "rock"),
            "10.0.0.1 other\n127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\trock\n"
        );
    }

    #[test]
    fn a_link_planted_in_place_of_a_file_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let victim = temp.path().join("victim");
        std::fs::write(&victim, "mine").unwrap();
        std::fs::create_dir(temp.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(&victim, temp.path().join("etc/hosts")).unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        let files = EtcFiles::new(NetworkMode::None, "a", "b").unwrap();
        assert!(
            files
                .write(dir.as_fd(), temp.path(), &IdMaps::default())
                .is_err()
        );
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
    }
}
