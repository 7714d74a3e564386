//! Flags of `run` and `create`, and what they mean to the engine.

pub mod mounts;
pub mod names;
pub mod network;
pub mod ports;
pub mod security;
pub mod signal;
pub mod user_namespace;
pub mod variables;

use clap::{ArgMatches, Command};
use selkie_engine::options::{
    CreateOptions, ExposedPorts, NetworkMode, PidMode, PortMapping, RootSource, UsernsMode,
};

use crate::cli::flag::{
    COMMAND, Flags, choice, help_flag, list, object_and_command, switch, switch_on, value,
};
use crate::environment;
use crate::error::{CliError, Result};
use variables::Variables;

/// Everything a new container is told, and what the command line itself does around it.
#[derive(Debug)]
pub struct NewContainer {
    /// For the engine.
    pub options: CreateOptions,
    /// `--replace`: remove what has this name first.
    pub replace: bool,
    /// `--cidfile`.
    pub id_file: Option<String>,
}

/// Adds the flags.
pub fn flags(command: Command) -> Command {
    command
        // -h is --hostname here, as in Podman and Docker.
        .disable_help_flag(true)
        .arg(help_flag())
        .args([
            list("add-host", "NAME:ADDRESS", "Add a line to /etc/hosts; the address host-gateway is the host's own"),
            list("annotation", "NAME=VALUE", "Add an OCI annotation"),
            list("cap-add", "CAPABILITY", "Add a capability"),
            list("cap-drop", "CAPABILITY", "Drop a capability, or ALL"),
            value("cidfile", "FILE", "Write the container's ID to FILE, which must not exist"),
            list("dns", "ADDRESS", "Ask this name server (none: leave /etc/resolv.conf to the image)"),
            list("dns-option", "OPTION", "Set an option of /etc/resolv.conf").alias("dns-opt"),
            list("dns-search", "DOMAIN", "Look names up in this domain (.: in none)"),
            value("entrypoint", "COMMAND", "Run this instead of the image's entrypoint (a JSON array, or one word; empty: none)"),
            list("env", "NAME[=VALUE]", "Set a variable; NAME alone passes yours on, PREFIX* all that begin so").short('e'),
            list("env-file", "FILE", "Set variables from a file, one a line"),
            switch("env-host", "Pass your whole environment on"),
            list("expose", "PORT[/PROTOCOL]", "Say that the container serves this port; --publish-all publishes it"),
            list("gidmap", "CONTAINER:INTERMEDIATE:COUNT", "Map group IDs yourself (intermediate 0 is you, 1 your first subordinate ID)"),
            value("hostname", "NAME", "Host name in the container (default: the ID's first 12 digits)").short('h'),
            switch("init", "Run a small init as PID 1, which forwards signals and reaps"),
            value("ip", "ADDRESS", "IPv4 address in its network"),
            value("ip6", "ADDRESS", "IPv6 address in its network"),
            switch("interactive", "Keep standard input open").short('i'),
            list("label", "NAME[=VALUE]", "Add a label").short('l'),
            list("label-file", "FILE", "Add labels from a file, one a line"),
            value("mac-address", "ADDRESS", "MAC address in its network"),
            list("mount", "type=TYPE,…", "Mount something: type=bind|volume|tmpfs, source=, destination=, readonly, …"),
            value("name", "NAME", "Name of the container (default: a random one)"),
            list("network", "MODE", "Network to be in: NAME[:ip=,ip6=,mac=,alias=,interface_name=] (several possible; default: the network selkie), none, host, pasta[:OPTIONS], slirp4netns[:OPTIONS] (as in Podman; port_handler=slirp4netns keeps client addresses), container:NAME, ns:PATH").alias("net"),
            list("network-alias", "NAME", "Further name in its networks").alias("net-alias"),
            switch("no-hostname", "Leave /etc/hostname to the image"),
            switch("no-hosts", "Leave /etc/hosts to the image"),
            value("pid", "MODE", "private (default) or host"),
            list("publish", "[[ADDRESS:]PORT:]PORT", "Let a port of the host lead to one of the container: 8080:80, 127.0.0.1:53:53/udp, 8000-8009:80-89").short('p'),
            switch("publish-all", "Publish every exposed port on a free port of the host").short('P'),
            choice("pull", "POLICY", "Only images already here can be used: missing (default) or never", &["missing", "never", "always", "newer", "true", "false"]),
            switch("quiet", "No warnings").short('q'),
            switch("read-only", "Make the container's root file system read-only"),
            switch_on("read-only-tmpfs", "With --read-only, keep /run, /tmp and /var/tmp writable in memory"),
            switch("replace", "Remove a container of the same name first"),
            switch("rm", "Remove the container when it ends"),
            switch("rootfs", "The argument is a directory that becomes the root, not an image"),
            list("security-opt", "OPTION", "seccomp=unconfined|FILE, no-new-privileges, mask=PATHS, unmask=PATHS|ALL, apparmor=unconfined, label=disable"),
            value("stop-signal", "SIGNAL", "Signal that stops the container (default: the image's, or SIGTERM)"),
            value("stop-timeout", "SECONDS", "Seconds between stop signal and SIGKILL (default: 10)"),
            list("sysctl", "NAME=VALUE", "Set a kernel parameter of the container's namespaces"),
            list("tmpfs", "PATH[:OPTIONS]", "Mount memory at PATH"),
            switch("tty", "Give the container a terminal").short('t'),
            list("uidmap", "CONTAINER:INTERMEDIATE:COUNT", "Map user IDs yourself (intermediate 0 is you, 1 your first subordinate ID)"),
            list("ulimit", "NAME=SOFT[:HARD]", "Set a resource limit of the container's processes"),
            list("unsetenv", "NAME", "Leave out a variable of the image"),
            value("user", "USER[:GROUP]", "Run as this user of the container").short('u'),
            value("userns", "MODE", "auto[:size=N] (default: a slice of its own), keep-id[:uid=N,gid=N,size=N], host, nomap"),
            list("volume", "[SOURCE:]PATH[:OPTIONS]", "Mount a volume, or a directory of yours").short('v'),
            value("workdir", "DIR", "Directory to start in").short('w'),
        ])
        .arg(object_and_command())
}

/// Only what `--userns`, `--uidmap` and `--gidmap` say, for those who must know it before anything
/// else is read.
pub fn userns(matches: &ArgMatches) -> Result<UsernsMode> {
    user_namespace::parse(
        matches.text("userns"),
        &matches.texts("uidmap"),
        &matches.texts("gidmap"),
    )
}

/// Reads the flags.
pub fn parse(matches: &ArgMatches) -> Result<NewContainer> {
    let mut command = matches.texts(COMMAND);
    if command.is_empty() {
        return Err(
            CliError::new("an image is needed").with_hint("selkie run IMAGE [COMMAND [ARG]...]")
        );
    }
    let root = command.remove(0);
    let root = root_source(root, matches.on("rootfs"))?;
    check_pull(matches.text("pull"))?;
    let security = security::security_options(&matches.texts("security-opt"))?;
    let mounts = ["mount", "volume", "tmpfs"].map(|flag| matches.texts(flag));
    let mounts = if mounts.iter().all(Vec::is_empty) {
        Vec::new()
    } else {
        let cwd = std::env::current_dir()
            .map_err(|error| CliError::new(format!("find the current directory: {error}")))?;
        mounts::parse(&mounts[0], &mounts[1], &mounts[2], &cwd)?
    };
    let network = network_options(matches)?;
    let options = CreateOptions {
        root: Some(root),
        name: matches.text("name").map(container_name).transpose()?,
        command,
        entrypoint: matches.text("entrypoint").map(entrypoint).transpose()?,
        env: variables(matches)?,
        unset_env: matches.texts("unsetenv"),
        workdir: matches.text("workdir").map(workdir).transpose()?,
        user: matches.text("user").map(str::to_owned),
        hostname: matches.text("hostname").map(hostname).transpose()?,
        labels: variables::labels(&matches.texts("label-file"), &matches.texts("label"))?,
        annotations: variables::pairs("annotation", &matches.texts("annotation"))?,
        read_only: matches.on("read-only"),
        read_only_bare: !matches.on("read-only-tmpfs"),
        mounts,
        init: matches.on("init"),
        stop_signal: matches.text("stop-signal").map(signal::parse).transpose()?,
        stop_timeout: matches.number("stop-timeout")?,
        cap_add: security::capabilities("cap-add", &matches.texts("cap-add"))?,
        cap_drop: security::capabilities("cap-drop", &matches.texts("cap-drop"))?,
        seccomp: security.seccomp,
        no_new_privileges: security.no_new_privileges,
        mask: security.mask,
        unmask: security.unmask,
        ulimits: security::ulimits(&matches.texts("ulimit"))?,
        sysctls: variables::pairs("sysctl", &matches.texts("sysctl"))?,
        network: network.mode,
        ports: network.ports,
        publish_all: network.publish_all,
        expose: network.expose,
        names: network.names,
        pid: pid(matches.text("pid"))?,
        userns: userns(matches)?,
        terminal: matches.on("tty"),
        interactive: matches.on("interactive"),
        remove: matches.on("rm"),
        create_command: std::env::args_os()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect(),
    };
    let replace = matches.on("replace");
    if replace && options.name.is_none() {
        return Err(CliError::new("--replace needs --name"));
    }
    Ok(NewContainer {
        options,
        replace,
        id_file: matches.text("cidfile").map(str::to_owned),
    })
}

fn root_source(text: String, is_directory: bool) -> Result<RootSource> {
    if !is_directory {
        return Ok(RootSource::Image(text));
    }
    if text.ends_with(":O") || text.contains(":idmap") {
        return Err(CliError::new(format!(
            "--rootfs {text}: overlays and ID maps on it are not offered yet"
        )));
    }
    let path = std::path::absolute(&text)
        .map_err(|error| CliError::new(format!("--rootfs {text}: {error}")))?;
    Ok(RootSource::Directory(path))
}

fn check_pull(policy: Option<&str>) -> Result<()> {
    match policy {
        Some(policy @ ("always" | "newer" | "true")) => Err(CliError::new(format!(
            "--pull {policy}: registries are not offered yet, so nothing can be pulled"
        ))
        .with_hint("load the image with selkie load, then run it with --pull missing or never")),
        _ => Ok(()),
    }
}

fn container_name(name: &str) -> Result<String> {
    if mounts::is_volume_name(name) {
        return Ok(name.to_owned());
    }
    Err(CliError::new(format!(
        "--name {name:?}: names match [a-zA-Z0-9][a-zA-Z0-9_.-]*"
    )))
}

/// A JSON array of strings, or one word; empty for none.
fn entrypoint(text: &str) -> Result<Vec<String>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.starts_with('[')
        && let Ok(words) = serde_json::from_str(text)
    {
        return Ok(words);
    }
    Ok(vec![text.to_owned()])
}

fn workdir(text: &str) -> Result<String> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    Err(CliError::new(format!(
        "--workdir {text:?}: it needs to be an absolute path"
    )))
}

/// At most 64 bytes (sethostname(2)) of letters, digits, `-`, `_` and dots.
fn hostname(text: &str) -> Result<String> {
    let valid = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && !text.starts_with(['-', '.']);
    if valid {
        return Ok(text.to_owned());
    }
    Err(
        CliError::new(format!("--hostname {text:?}: not a host name"))
            .with_hint("up to 64 letters, digits, dots and dashes"),
    )
}

/// What is decided about the network.
struct NetworkOptions {
    mode: NetworkMode,
    ports: Vec<PortMapping>,
    publish_all: bool,
    expose: Vec<ExposedPorts>,
    names: selkie_engine::options::NameOptions,
}

fn network_options(matches: &ArgMatches) -> Result<NetworkOptions> {
    let aliases = matches.texts("network-alias");
    let place = network::PlaceFlags {
        ip: matches.text("ip"),
        ip6: matches.text("ip6"),
        mac: matches.text("mac-address"),
        aliases: &aliases,
    };
    let mode = network::parse(&matches.texts("network"), &place)?;
    let mut ports = ports::published(&matches.texts("publish"))?;
    let mut publish_all = matches.on("publish-all");
    if !mode.publishes() && (publish_all || !ports.is_empty()) {
        tracing::warn!(
            "Port mappings have been discarded as one of the Host, Container, Pod, and None network modes are in use"
        );
        ports.clear();
        publish_all = false;
    }
    let names = names::NameFlags {
        dns: matches.texts("dns"),
        search: matches.texts("dns-search"),
        options: matches.texts("dns-option"),
        hosts: matches.texts("add-host"),
        no_hosts: matches.on("no-hosts"),
        no_hostname: matches.on("no-hostname"),
    };
    let names = names::parse(&names, &mode)?;
    Ok(NetworkOptions {
        mode,
        ports,
        publish_all,
        expose: ports::exposed(&matches.texts("expose"))?,
        names,
    })
}

fn pid(text: Option<&str>) -> Result<PidMode> {
    match text {
        None | Some("" | "private") => Ok(PidMode::Private),
        Some("host") => Ok(PidMode::Host),
        Some(other) => Err(CliError::new(format!("--pid {other} is not offered"))
            .with_hint("choose from private, host")),
    }
}

/// Podman's order: the whole environment, then files, then flags.
fn variables(matches: &ArgMatches) -> Result<Vec<(String, String)>> {
    let files = matches.texts("env-file");
    let flags = matches.texts("env");
    let all = matches.on("env-host");
    if files.is_empty() && flags.is_empty() && !all {
        return Ok(Vec::new());
    }
    let caller = environment::variables();
    let mut variables = Variables::default();
    if all {
        for (name, value) in &caller {
            variables.set(name, value);
        }
    }
    for file in &files {
        variables.add_file(file, &caller)?;
    }
    for flag in &flags {
        variables.add(flag, &caller)?;
    }
    Ok(variables.into_entries())
}
