//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container, as Podman writes them, and the
//! empty `/run/.containerenv` by which programs notice that they are in a container.
//!
//! `/etc/hosts` begins with what the caller adds and with the host's own file; the names a container
//! gets by itself (`localhost`, the host's, its own) follow where those before have not taken them.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use selkie_net::name_server::SEARCH_DOMAIN;
use selkie_net::network::{HOST_ADDRESS, Kind, Network};
use selkie_net::resolv_conf::{
    self, ContainerResolvConf, DnsOptions, ResolvConf, container_resolv_conf,
};
use selkie_userns::IdMaps;

use crate::error::{Error, Result};
use crate::layout::write_over;
use crate::network::connect::Connection;
use crate::options::{DnsServers, NameOptions, NetworkMode};

/// Names of the host in every container that reaches it.
const HOST_NAMES: [&str; 2] = ["host.containers.internal", "host.docker.internal"];

/// What the files say; `None` leaves the image's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EtcFiles {
    /// `/etc/hosts`.
    pub hosts: Option<String>,
    /// `/etc/hostname`.
    pub hostname: Option<String>,
    /// `/etc/resolv.conf`; without a network there is no server to name, so the image's stays.
    pub resolv_conf: Option<String>,
}

/// Where the container is in its network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Surroundings {
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The name server, in those of its networks that have names.
    pub name_servers: Vec<IpAddr>,
    /// Who forwards its questions where no network has names.
    pub forwarders: Vec<IpAddr>,
    /// The host as seen from it.
    pub host: Option<IpAddr>,
}

impl Surroundings {
    /// Of a container in networks: their gateways are its name servers. An internal network's
    /// forwards nothing, and the others know its names as well, so it is asked only when all are.
    pub(crate) fn of(connection: &Connection) -> Self {
        let leads_out = connection.networks.iter().any(|network| !network.internal);
        let asked = |network: &&Network| !network.internal || !leads_out;
        let gateways = |named: bool| {
            connection
                .networks
                .iter()
                .filter(asked)
                .filter(|network| (network.kind == Kind::Bridge && network.dns_enabled) == named)
                .filter_map(|network| network.subnets.first())
                .map(|subnet| subnet.gateway)
                .collect()
        };
        Self {
            addresses: connection
                .member
                .attachments
                .iter()
                .flat_map(|attachment| &attachment.addresses)
                .map(ipnet::IpNet::addr)
                .collect(),
            name_servers: gateways(true),
            forwarders: gateways(false),
            host: leads_out.then_some(IpAddr::V4(HOST_ADDRESS)),
        }
    }
}

/// Who a container is to itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its host name.
    pub host_name: &'a str,
    /// What it was asked to know.
    pub options: &'a NameOptions,
}

impl EtcFiles {
    /// For a container with this network. `shared` is the directory of the files of the container
    /// whose network it shares.
    ///
    /// # Errors
    /// Files of the host or of the other container cannot be read.
    pub(crate) fn new(
        network: &NetworkMode,
        around: &Surroundings,
        names: Names<'_>,
        shared: Option<&Path>,
    ) -> Result<Self> {
        let options = names.options;
        let hostname = (!options.no_hostname).then(|| format!("{}\n", names.host_name));
        if let (NetworkMode::Container(_), Some(directory)) = (network, shared) {
            return Ok(Self {
                hosts: if options.no_hosts {
                    None
                } else {
                    Some(read_file(&directory.join("hosts"))?)
                },
                hostname,
                resolv_conf: Some(read_file(&directory.join("resolv.conf"))?)
                    .filter(|text| !text.is_empty()),
            });
        }
        let hosts = if options.no_hosts {
            None
        } else {
            let base = match network {
                NetworkMode::None => String::new(),
                _ => read_file(Path::new("/etc/hosts"))?,
            };
            Some(hosts(&base, network, around, names))
        };
        let resolv_conf = match network {
            NetworkMode::None => None,
            _ => resolv_conf(network, around, options)?,
        };
        Ok(Self {
            hosts,
            hostname,
            resolv_conf,
        })
    }

    /// Name, path in the container and content of each that is wanted.
    fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        [
            ("hosts", "/etc/hosts", self.hosts.as_deref()),
            ("hostname", "/etc/hostname", self.hostname.as_deref()),
            (
                "resolv.conf",
                "/etc/resolv.conf",
                self.resolv_conf.as_deref(),
            ),
            (".containerenv", "/run/.containerenv", Some("")),
        ]
        .into_iter()
        .filter_map(|(name, destination, content)| Some((name, destination, content?)))
    }

    /// (file, path in the container) for each, where the container's directory is `path`.
    pub(crate) fn places(&self, path: &Path) -> Vec<(PathBuf, &'static str)> {
        self.each()
            .map(|(name, destination, _)| (path.join("etc").join(name), destination))
            .collect()
    }

    /// Writes them below the container's directory, owned by the container's root.
    pub(crate) fn write(
        &self,
        container: BorrowedFd<'_>,
        path: &Path,
        maps: &IdMaps,
    ) -> Result<()> {
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
        for (name, _, content) in self.each() {
            write_owned(dir.as_fd(), name, content.as_bytes(), owner, group)
                .map_err(|errno| Error::machine(attempt(name), errno))?;
        }
        Ok(())
    }
}

/// What a container's `/etc/resolv.conf` says; `None` leaves the image's.
fn resolv_conf(
    network: &NetworkMode,
    around: &Surroundings,
    options: &NameOptions,
) -> Result<Option<String>> {
    let text = read_file(Path::new("/etc/resolv.conf"))?;
    let asked = DnsOptions {
        servers: match &options.dns_servers {
            DnsServers::OfNetworks => resolv_conf::DnsServers::Inherited,
            DnsServers::These(servers) => resolv_conf::DnsServers::Given(servers.clone()),
            DnsServers::ImagesOwn => resolv_conf::DnsServers::Image,
        },
        search: match options.dns_search.as_deref() {
            None => Vec::new(),
            Some([]) => vec![".".into()],
            Some(domains) => domains.to_vec(),
        },
        options: options.dns_options.clone(),
    };
    let shares_the_hosts = matches!(network, NetworkMode::Host | NetworkMode::Namespace(_));
    if shares_the_hosts && asked == DnsOptions::default() {
        return Ok(Some(text));
    }
    let host = ResolvConf::parse(text.as_bytes());
    let forwarders = if shares_the_hosts {
        host.servers.iter().map(|server| server.address).collect()
    } else {
        around.forwarders.clone()
    };
    let network_search = if around.name_servers.is_empty() {
        Vec::new()
    } else {
        vec![SEARCH_DOMAIN.to_owned()]
    };
    Ok(container_resolv_conf(&ContainerResolvConf {
        name_servers: around.name_servers.clone(),
        forwarders,
        network_search,
        ..ContainerResolvConf::new(&host, &asked)
    }))
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

fn write_all(file: BorrowedFd<'_>, mut rest: &[u8]) -> std::result::Result<(), Errno> {
    while !rest.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::write(file, rest))?;
        rest = &rest[count..];
    }
    Ok(())
}

fn hosts(base: &str, network: &NetworkMode, around: &Surroundings, names: Names<'_>) -> String {
    let Names {
        name, host_name, ..
    } = names;
    let mut text = String::new();
    for extra in &names.options.extra_hosts {
        // Without a way to the host it is refused when the container is made.
        if let Some(address) = extra.address.or_else(|| host_gateway(network, around)) {
            text.push_str(&format!("{address}\t{}\n", extra.names.join(" ")));
        }
    }
    text.push_str(base);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let given = text.clone();
    let has_localhost = |family: fn(&str) -> bool| {
        given.lines().any(|line| {
            let mut words = words(line);
            words.next().is_some_and(family) && words.any(|word| word == "localhost")
        })
    };
    if !has_localhost(|address| address.starts_with("127.")) {
        text.push_str("127.0.0.1\tlocalhost\n");
    }
    if !has_localhost(|address| address.contains(':')) {
        text.push_str("::1\tlocalhost\n");
    }
    let is_known = |name: &str| {
        given
            .lines()
            .any(|line| words(line).skip(1).any(|known| known == name))
    };
    let mut add = |address: &str, names: &[&str]| {
        let names: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !is_known(name))
            .collect();
        if !names.is_empty() {
            text.push_str(&format!("{address}\t{}\n", names.join(" ")));
        }
    };
    if let Some(host) = around.host {
        add(&host.to_string(), &HOST_NAMES);
    }
    let own: &[&str] = if host_name == name {
        &[name]
    } else {
        &[host_name, name]
    };
    match network {
        NetworkMode::Host => add("127.0.0.1", &[host_name]),
        _ if around.addresses.is_empty() => add("127.0.0.1", own),
        _ => {
            for address in &around.addresses {
                add(&address.to_string(), own);
            }
        }
    }
    text
}

/// The host as `--add-host NAME:host-gateway` means it.
fn host_gateway(network: &NetworkMode, around: &Surroundings) -> Option<IpAddr> {
    around.host.or(match network {
        NetworkMode::Host => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        NetworkMode::Networks(_) => Some(IpAddr::V4(HOST_ADDRESS)),
        _ => None,
    })
}

/// The words of a line of `/etc/hosts`, without its comment.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split('#').next().unwrap_or("").split_whitespace()
}

/// `/etc/hosts` after the container has got (`added`) or lost addresses. What else is in it, also by
/// the container's own hand, stays.
pub(crate) fn change_hosts(
    text: &str,
    added: &[IpAddr],
    removed: &[IpAddr],
    names: &[&str],
) -> String {
    let is_removed = |line: &str| {
        let mut words = words(line);
        let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        address.is_some_and(|address| removed.contains(&address))
            && words.any(|word| names.contains(&word))
    };
    let mut changed: String = text
        .split_inclusive('\n')
        .filter(|line| !is_removed(line))
        .collect();
    if !changed.is_empty() && !changed.ends_with('\n') {
        changed.push('\n');
    }
    for address in added {
        changed.push_str(&format!("{address}\t{}\n", names.join(" ")));
    }
    changed
}

/// [`change_hosts`] in the file a running container has mounted, which therefore must stay the same
/// file. One without it (`--no-hosts`) is left alone.
pub(crate) fn change_hosts_file(
    container: &Path,
    added: &[IpAddr],
    removed: &[IpAddr],
    names: &[&str],
) -> Result<()> {
    let old = read_file(&container.join("etc/hosts"))?;
    rewrite(
        container,
        "hosts",
        &change_hosts(&old, added, removed, names),
    )
}

/// `/etc/resolv.conf` of a running container whose networks have changed. One that says something else
/// than it was given stays as it is.
pub(crate) fn change_resolv_conf_file(
    container: &Path,
    network: &NetworkMode,
    (before, after): (&Surroundings, &Surroundings),
    options: &NameOptions,
) -> Result<()> {
    let given = resolv_conf(network, before, options)?;
    let present = read_file(&container.join("etc/resolv.conf"))?;
    match resolv_conf(network, after, options)? {
        Some(new) if given.is_some_and(|given| given == present) => {
            rewrite(container, "resolv.conf", &new)
        }
        _ => Ok(()),
    }
}

/// Writes into a file that is mounted in a running container, if there is one.
fn rewrite(container: &Path, name: &str, text: &str) -> Result<()> {
    let path = container.join("etc").join(name);
    let attempt = || format!("write {}", path.display());
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(Error::machine(attempt(), errno)),
    };
    rustix::fs::ftruncate(&file, 0)
        .and_then(|()| write_all(file.as_fd(), text.as_bytes()))
        .map_err(|errno| Error::machine(attempt(), errno))
}

/// A missing one is empty.
fn read_file(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::machine(format!("read {}", path.display()), error)),
    }
}

#[cfg(test)]
mod tests;
