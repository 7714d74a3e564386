//! The host's resolvers as they are now.
//!
//! VPNs, DHCP clients and `systemd-resolved` rewrite `resolv.conf`, replace it, or turn the symbolic
//! link that it is to another file, and on an offline host it may be missing. One `stat` per forwarded
//! query notices all of that, where a watch would have to follow every link on the path.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Stat;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::resolv_conf::{ResolvConf, ServerAddress};

/// Port of name servers.
pub const DNS_PORT: u16 = 53;

/// Longest part of the file that is read.
const MAX_FILE: u64 = 64 * 1024;

/// How old a change must be before the file's stamp tells two of them apart: time stamps of files are
/// as coarse as the kernel's tick.
const SETTLED: Duration = Duration::from_secs(1);

/// The servers that a `resolv.conf` names, at any time.
#[derive(Debug)]
pub struct HostResolvers {
    path: PathBuf,
    port: u16,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stamp: Option<Stamp>,
    conf: Arc<ResolvConf>,
    /// Said already that the file cannot be read.
    unreadable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl HostResolvers {
    /// Those in the file at `path` (`/etc/resolv.conf`), which may appear later.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            port: DNS_PORT,
            state: Mutex::default(),
        }
    }

    /// The same on another port, for tests, which cannot have 53.
    #[must_use]
    pub fn on_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Port of all servers.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// What the file says now. Reading it anew without a difference gives the same `Arc`.
    pub(super) fn current(&self) -> Arc<ResolvConf> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = rustix::fs::stat(&self.path)
            .ok()
            .map(|stat| Stamp::of(&stat));
        if stamp.is_some() && stamp == state.stamp {
            return Arc::clone(&state.conf);
        }
        let conf = match read(&self.path) {
            Ok((conf, stamp)) => {
                state.stamp = stamp.is_settled().then_some(stamp);
                state.unreadable = false;
                conf
            }
            Err(error) => {
                if !state.unreadable {
                    tracing::warn!(
                        "cannot read {}, so names of the outside are not resolved until that is \
                         possible: {error}",
                        self.path.display()
                    );
                }
                state.stamp = None;
                state.unreadable = true;
                ResolvConf::default()
            }
        };
        if *state.conf != conf {
            tracing::debug!("{} has changed: {conf:?}", self.path.display());
            state.conf = Arc::new(conf);
        }
        Arc::clone(&state.conf)
    }
}

/// Content and stamp of the same file, even if the path leads to another one at any time.
fn read(path: &Path) -> io::Result<(ResolvConf, Stamp)> {
    let file = File::open(path)?;
    let stamp = Stamp::of(&rustix::fs::fstat(&file)?);
    let mut content = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut content)?;
    Ok((ResolvConf::parse(&content), stamp))
}

impl Stamp {
    #[allow(clippy::unnecessary_cast)] // the types differ between architectures
    fn of(stat: &Stat) -> Self {
        Self {
            file: (stat.st_dev as u64, stat.st_ino as u64),
            size: stat.st_size as i64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }

    fn is_settled(&self) -> bool {
        let seconds = u64::try_from(self.changed.0).unwrap_or(0);
        let changed = UNIX_EPOCH + Duration::from_secs(seconds + 1);
        SystemTime::now()
            .duration_since(changed)
            .is_ok_and(|age| age >= SETTLED)
    }
}

/// Where a server is to be asked.
///
/// # Errors
/// Its interface is not there (now).
pub(super) fn socket_address(server: &ServerAddress, port: u16) -> io::Result<SocketAddr> {
    let mut address = SocketAddr::new(server.address, port);
    if let (SocketAddr::V6(v6), Some(scope)) = (&mut address, &server.scope) {
        let index = match scope.parse() {
            Ok(number) => number,
            Err(_) => interface_index(scope)?,
        };
        v6.set_scope_id(index);
    }
    Ok(address)
}

fn interface_index(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(rustix::net::netdevice::name_to_index(&socket, name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(of: &HostResolvers) -> Vec<String> {
        let conf = of.current();
        conf.servers
            .iter()
            .map(|server| server.address.to_string())
            .collect()
    }

    #[test]
    fn every_way_to_change_the_file_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("resolv.conf");
        let resolvers = HostResolvers::new(&path);
        assert!(servers(&resolvers).is_empty());

        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(servers(&resolvers), ["192.0.2.1"]);
        let same = resolvers.current();
        assert!(Arc::ptr_eq(&same, &resolvers.current()));

        // As long, and within the same tick.
        for last in 2..50 {
            std::fs::write(&path, format!("nameserver 192.0.2.{}\n", last % 10)).unwrap();
            assert_eq!(servers(&resolvers), [format!("192.0.2.{}", last % 10)]);
        }

        std::fs::write(temp.path().join("new"), "nameserver 192.0.2.11\n").unwrap();
        std::fs::rename(temp.path().join("new"), &path).unwrap();
        assert_eq!(servers(&resolvers), ["192.0.2.11"]);

        let link = |to: &str, server: &str| {
            let run = temp.path().join(to);
            std::fs::create_dir(&run).unwrap();
            std::fs::write(run.join("stub"), format!("nameserver {server}\n")).unwrap();
            let turned = temp.path().join("link");
            std::os::unix::fs::symlink(format!("{to}/stub"), &turned).unwrap();
            std::fs::rename(turned, &path).unwrap();
        };
        link("one", "127.0.0.53");
        assert_eq!(servers(&resolvers), ["127.0.0.53"]);
        link("two", "127.0.0.54");
        assert_eq!(servers(&resolvers), ["127.0.0.54"]);

        std::fs::remove_dir_all(temp.path().join("two")).unwrap();
        assert!(servers(&resolvers).is_empty());
    }

    #[test]
    fn an_old_file_is_read_once() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let stat = rustix::fs::stat(&path).unwrap();
        let mut stamp = Stamp::of(&stat);
        assert!(!stamp.is_settled());
        stamp.changed.0 -= 10;
        assert!(stamp.is_settled());
        // A clock that was set back must not make a change invisible.
        stamp.changed.0 += 1000;
        assert!(!stamp.is_settled());
    }

    #[test]
    fn link_local_servers_are_asked_on_their_interface() {
        let server = |scope: &str| ServerAddress {
            address: "fe80::1".parse().unwrap(),
            scope: Some(scope.into()),
        };
        let index = |scope| match socket_address(&server(scope), 53) {
            Ok(SocketAddr::V6(v6)) => Some(v6.scope_id()),
            _ => None,
        };
        assert_eq!(index("lo"), Some(1));
        assert_eq!(index("7"), Some(7));
        assert_eq!(index("no-such-link"), None);
    }
}
