//! What a container reaches and who reaches it, for every kind of network: by TCP, UDP and ICMP, by
//! IPv4 and IPv6, out to another host, in from another host and from the login, between containers,
//! by name, in bulk, and many at once. Each trial is a row of the table and tells every cell that
//! is not as promised.

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::hosts::{FAR, HOST, Hosts, INSIDE, PORT, Side, WORLD};
use crate::login::{Container, Login, eventually};

const BULK: &str = "8388608";
const MANY: &str = "200";
/// Published port of the host.
const OUTSIDE: &str = "8080";

/// How a container is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Default,
    Pasta,
    Slirp4netns,
    /// Which publishes ports itself.
    Slirp4netnsPorts,
    User,
    TwoNetworks,
    Container,
    Host,
    None,
}

use Mode::{Default, Host, None, Pasta, Slirp4netns, Slirp4netnsPorts, TwoNetworks, User};

const MODES: &[Mode] = &[
    Default,
    Pasta,
    Slirp4netns,
    Slirp4netnsPorts,
    User,
    TwoNetworks,
    Mode::Container,
    Host,
    None,
];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Default => "default",
            Pasta => "pasta",
            Slirp4netns => "slirp4netns",
            Slirp4netnsPorts => "slirp4netns_ports",
            User => "user_network",
            TwoNetworks => "two_networks",
            Self::Container => "container",
            Host => "host",
            None => "none",
        }
    }

    /// Families, as indices of the addresses in [`crate::hosts`], in which ports are published.
    fn published_families(self) -> &'static [usize] {
        match self {
            Slirp4netnsPorts => &[0],
            _ => &[0, 1],
        }
    }

    /// How the container sees a client of another host.
    fn sees(self, family: usize) -> &'static str {
        match self {
            // Itself.
            Slirp4netns => "10.0.2.100",
            _ => FAR[family],
        }
    }

    /// libslirp answers echo requests by IPv6 for its own addresses only.
    fn can_ping(self, family: usize) -> bool {
        !(self == Slirp4netns && family == 1)
    }
}

/// The options that put a container into its network, and what they name.
pub struct Place<'l> {
    options: Vec<String>,
    _joined: Option<Container<'l>>,
}

impl<'l> Place<'l> {
    /// Makes what the mode needs. `ports` are published by whoever owns the network namespace.
    pub fn new(login: &'l Login, mode: Mode, ports: &[&str]) -> Result<Self> {
        let mut options: Vec<String> = Vec::new();
        let mut joined = Option::None;
        let mut network = |kind: &str| options.extend(["--network".to_owned(), kind.to_owned()]);
        match mode {
            Default => {}
            Pasta => network("pasta"),
            Slirp4netns => network("slirp4netns"),
            Slirp4netnsPorts => network("slirp4netns:port_handler=slirp4netns"),
            Host => network("host"),
            None => network("none"),
            User => {
                login.ok(&["network", "create", "--ipv6", "first"])?;
                network("first");
            }
            TwoNetworks => {
                for name in ["first", "second"] {
                    login.ok(&["network", "create", "--ipv6", name])?;
                    network(name);
                }
            }
            Mode::Container => {
                let owner = login.sleeper(&publish(ports))?;
                network(&format!("container:{}", owner.id));
                joined = Some(owner);
            }
        }
        if !matches!(mode, Mode::Container | Host) {
            options.extend(publish(ports).into_iter().map(str::to_owned));
        }
        Ok(Self {
            options,
            _joined: joined,
        })
    }

    /// Starts a container in it.
    pub fn run(&self, login: &'l Login, more: &[&str], command: &[&str]) -> Result<Container<'l>> {
        let mut all: Vec<&str> = self.options.iter().map(String::as_str).collect();
        all.extend(more);
        all.push("busybox");
        all.extend(command);
        login.detached(&all)
    }

    pub fn sleeper(&self, login: &'l Login) -> Result<Container<'l>> {
        self.run(login, &[], &["sleep", "10000"])
    }

    /// One with servers on [`INSIDE`].
    pub fn server(&self, login: &'l Login, more: &[&str]) -> Result<Container<'l>> {
        let server = self.run(login, more, &["wire", "serve", INSIDE])?;
        is_serving(&server)?;
        Ok(server)
    }
}

fn publish<'p>(ports: &[&'p str]) -> Vec<&'p str> {
    ports.iter().flat_map(|port| ["--publish", *port]).collect()
}

/// Waits until the container's server listens.
pub fn is_serving(server: &Container<'_>) -> Result<()> {
    eventually("a server in a container is ready", || {
        Ok(server.logs()?.contains("ready"))
    })
}

/// The cells of a row that are not as promised.
#[derive(Default)]
pub struct Row(Vec<String>);

impl Row {
    pub fn cell(&mut self, name: &str, result: Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{name}: {error:#}"));
        }
    }

    pub fn end(self) -> Result<()> {
        ensure!(
            self.0.is_empty(),
            "{} cells are not as promised:\n{}",
            self.0.len(),
            self.0.join("\n")
        );
        Ok(())
    }
}

fn is(seen: Result<String>, expected: &str) -> Result<()> {
    let seen = seen?;
    ensure!(seen == expected, "got {seen:?}, expected {expected:?}");
    Ok(())
}

fn is_address(seen: Result<String>) -> Result<()> {
    let seen = seen?;
    ensure!(
        seen.parse::<std::net::IpAddr>().is_ok(),
        "got {seen:?}, expected an address"
    );
    Ok(())
}

fn fails(container: &Container<'_>, command: &[&str]) -> Result<()> {
    let finished = container.try_exec(command)?;
    ensure!(finished.code != 0, "it went through: {finished:?}");
    Ok(())
}

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const PROTOCOLS: [(&str, &str); 2] = [("TCP", "who"), ("UDP", "udp")];

type Aspect = fn(&Hosts, &Login, Mode) -> Result<()>;

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |mode: Mode, name: &str, aspect: Aspect| {
        let name = format!("online::{}::{name}", mode.name());
        trials.push(ground.trial(&name, move |ground| {
            let hosts = Hosts::new(ground)?;
            let login = hosts.login(0)?;
            aspect(&hosts, &login, mode)
        }));
    };
    for &mode in MODES {
        if mode == None {
            add(mode, "is_nowhere", is_nowhere);
            continue;
        }
        add(mode, "in", inwards);
        add(mode, "bulk", bulk);
        if mode == Slirp4netnsPorts {
            continue;
        }
        add(mode, "out", out);
        add(mode, "names", names);
        if matches!(mode, User | TwoNetworks | Mode::Container | Host) {
            add(mode, "between", between);
        }
        if matches!(mode, Default | Pasta | User) {
            add(mode, "the_host_by_name", the_host_by_name);
        }
    }
    trials
}

fn is_nowhere(_: &Hosts, login: &Login, mode: Mode) -> Result<()> {
    let place = Place::new(login, mode, &[])?;
    let container = place.sleeper(login)?;
    let mut row = Row::default();
    for family in 0..2 {
        row.cell(
            FAMILIES[family],
            fails(&container, &["wire", "who", WORLD[family], PORT, "0"]),
        );
    }
    let interfaces = container.exec(&["ls", "/sys/class/net"]);
    row.cell("interfaces", is(interfaces, "lo"));
    row.cell(
        "its own loopback",
        container.exec(&["wire", "ping", "127.0.0.1"]).map(drop),
    );
    row.end()
}

fn out(_: &Hosts, login: &Login, mode: Mode) -> Result<()> {
    let place = Place::new(login, mode, &[])?;
    let container = place.sleeper(login)?;
    let mut row = Row::default();
    for family in 0..2 {
        for (protocol, verb) in PROTOCOLS {
            let seen = container.exec(&["wire", verb, WORLD[family], PORT]);
            row.cell(
                &format!("{protocol} {}", FAMILIES[family]),
                is(seen, HOST[family]),
            );
        }
        if mode.can_ping(family) {
            let ping = container.exec(&["wire", "ping", WORLD[family]]);
            row.cell(&format!("ICMP {}", FAMILIES[family]), ping.map(drop));
        }
    }
    row.end()
}

fn inwards(hosts: &Hosts, login: &Login, mode: Mode) -> Result<()> {
    let udp = format!("{OUTSIDE}:{INSIDE}/udp");
    let tcp = format!("{OUTSIDE}:{INSIDE}");
    let place = Place::new(login, mode, &[&tcp, &udp])?;
    let _server = place.server(login, &[])?;
    let port = if mode == Host { INSIDE } else { OUTSIDE };
    let wire = hosts.wire_path();
    let mut row = Row::default();
    let old_pasta = mode == Pasta && pasta_is_old(login)?;
    for &family in mode.published_families() {
        for (protocol, verb) in PROTOCOLS {
            let name = format!("{protocol} {}", FAMILIES[family]);
            if old_pasta && protocol == "UDP" && family == 1 {
                println!("{mode:?}: {name}: left out: this version of pasta loses it");
                continue;
            }
            let seen = hosts.ask(Side::Far, &[verb, HOST[family], port]);
            row.cell(&format!("{name} from far"), is(seen, mode.sees(family)));
            for address in [["127.0.0.1", "::1"][family], HOST[family]] {
                // Answers to the loopback go to the address that stands for it, which is closed.
                let closed = mode == Slirp4netnsPorts || old_pasta;
                if closed && protocol == "UDP" && address == "127.0.0.1" {
                    println!(
                        "{mode:?}: {name} from {address}: left out: the program drops answers"
                    );
                    continue;
                }
                let seen = login.program(wire, &[verb, address, port]).run()?.ok();
                row.cell(
                    &format!("{name} from the login to {address}"),
                    is_address(seen),
                );
            }
        }
    }
    row.end()
}

/// Whether the installed pasta is one of before August 2024.
fn pasta_is_old(login: &Login) -> Result<bool> {
    let lacks = login.ok(&["info", "--format", "{{json .Selkie.Network.PastaLacks}}"])?;
    Ok(lacks.contains("--map-guest-addr"))
}

fn names(_: &Hosts, login: &Login, mode: Mode) -> Result<()> {
    let place = Place::new(login, mode, &[])?;
    let container = place.sleeper(login)?;
    let mut row = Row::default();
    let mut expected = WORLD;
    expected.sort_unstable();
    let lookup = || -> Result<()> {
        let text = container.exec(&["wire", "lookup", "world.test"])?;
        let mut seen: Vec<&str> = text.lines().collect();
        seen.sort_unstable();
        ensure!(seen == expected, "got {seen:?}, expected {expected:?}");
        Ok(())
    };
    row.cell("a name", lookup());
    row.cell(
        "by name",
        is_address(container.exec(&["wire", "who", "world.test", PORT])),
    );
    let nothing = container.try_exec(&["wire", "lookup", "nothing.test"])?;
    row.cell(
        "no such name",
        if nothing.code == 1 && nothing.error().contains("no such name") {
            Ok(())
        } else {
            Err(anyhow::anyhow!("{nothing:?}"))
        },
    );
    row.end()
}

/// Old versions of pasta may lose a window update of a receiver that is slow, and with it the connection,
/// or one of many connections at once; the next attempt must succeed.
fn through_pasta(mode: Mode, name: &str, attempt: impl Fn() -> Result<String>) -> Result<String> {
    let failure = match attempt() {
        // `many` says how many of them were served.
        Ok(said) if said == "ok" || said == MANY => return Ok(said),
        Ok(said) => anyhow::anyhow!("{said}"),
        Err(error) => error,
    };
    println!("{mode:?}: {name}: once more: {failure:#}");
    attempt()
}

fn bulk(hosts: &Hosts, login: &Login, mode: Mode) -> Result<()> {
    let tcp = format!("{OUTSIDE}:{INSIDE}");
    let place = Place::new(login, mode, &[&tcp])?;
    let server = place.server(login, &[])?;
    let port = if mode == Host { INSIDE } else { OUTSIDE };
    let mut row = Row::default();
    for family in 0..2 {
        // libslirp's router advertisement may take a while.
        server.exec(&["wire", "who", WORLD[family], PORT])?;
        for verb in ["send", "receive"] {
            let name = format!("{verb} out {}", FAMILIES[family]);
            let transfer = || server.exec(&["wire", verb, WORLD[family], PORT, BULK]);
            row.cell(&name, is(through_pasta(mode, &name, transfer), "ok"));
        }
        let name = format!("many out {}", FAMILIES[family]);
        let many = || server.exec(&["wire", "many", WORLD[family], PORT, MANY]);
        row.cell(&name, is(through_pasta(mode, &name, many), MANY));
    }
    for &family in mode.published_families() {
        // First connections may come before neighbours are known.
        hosts.ask(Side::Far, &["who", HOST[family], port])?;
        // Nothing of ours forgives: only what pasta itself publishes is asked for again.
        let ask = |name: &str, words: &[&str]| {
            let ask = || hosts.ask(Side::Far, words);
            match mode {
                Pasta => through_pasta(mode, name, ask),
                _ => ask(),
            }
        };
        for verb in ["send", "receive"] {
            let name = format!("{verb} in {}", FAMILIES[family]);
            let done = ask(&name, &[verb, HOST[family], port, BULK]);
            row.cell(&name, is(done, "ok"));
        }
        if mode == Slirp4netnsPorts {
            println!("{mode:?}: many in: left out: the program takes few connections at once");
            continue;
        }
        let name = format!("many in {}", FAMILIES[family]);
        let done = ask(&name, &["many", HOST[family], port, MANY]);
        row.cell(&name, is(done, MANY));
    }
    row.end()
}

fn between(_: &Hosts, login: &Login, mode: Mode) -> Result<()> {
    let place = Place::new(login, mode, &[])?;
    let mut row = Row::default();
    if matches!(mode, Mode::Container | Host) {
        let _server = place.server(login, &[])?;
        let client = place.sleeper(login)?;
        for address in ["127.0.0.1", "::1"] {
            for (protocol, verb) in PROTOCOLS {
                let seen = client.exec(&["wire", verb, address, INSIDE]);
                row.cell(&format!("{protocol} {address}"), is(seen, address));
            }
        }
        return row.end();
    }
    let server = place.server(login, &["--name", "web"])?;
    let networks: &[&str] = match mode {
        TwoNetworks => &["first", "second"],
        _ => &["first"],
    };
    for network in networks {
        let client = login.sleeper(&["--network", network])?;
        let addresses = addresses_in(&server, network)?;
        ensure!(addresses.len() == 2, "{network}: {addresses:?}");
        let named = ["web".to_owned(), server.id[..12].to_owned()];
        for target in named.iter().chain(&addresses) {
            for (protocol, verb) in PROTOCOLS {
                let seen = client.exec(&["wire", verb, target, INSIDE]);
                row.cell(
                    &format!("{protocol} {target} in {network}"),
                    is_address(seen),
                );
            }
        }
        let done = client.exec(&["wire", "send", "web", INSIDE, BULK]);
        row.cell(&format!("send in {network}"), is(done, "ok"));
        let done = client.exec(&["wire", "many", "web", INSIDE, MANY]);
        row.cell(&format!("many in {network}"), is(done, MANY));
        for address in &addresses {
            let ping = client.exec(&["wire", "ping", address]);
            row.cell(&format!("ICMP {address} in {network}"), ping.map(drop));
        }
    }
    row.end()
}

/// The container's addresses in one network, IPv4 first.
pub fn addresses_in(container: &Container<'_>, network: &str) -> Result<Vec<String>> {
    let field = |name: &str| {
        container.inspect(&format!(
            "{{{{(index .NetworkSettings.Networks {network:?}).{name}}}}}"
        ))
    };
    let both = [field("IPAddress")?, field("GlobalIPv6Address")?];
    Ok(both.into_iter().filter(|text| !text.is_empty()).collect())
}

fn the_host_by_name(hosts: &Hosts, login: &Login, mode: Mode) -> Result<()> {
    let _server = hosts.start(Side::Host, &["serve-at", HOST[0], "7002"])?;
    let place = Place::new(login, mode, &[])?;
    let container = place.sleeper(login)?;
    let file = container.exec(&["cat", "/etc/hosts"])?;
    for name in ["host.containers.internal", "host.docker.internal"] {
        let line = file
            .lines()
            .find(|line| {
                line.split_ascii_whitespace()
                    .skip(1)
                    .any(|word| word == name)
            })
            .with_context(|| format!("{name} is not in /etc/hosts: {file}"))?;
        let Some(address) = line.split_ascii_whitespace().next() else {
            bail!("an odd line: {line}");
        };
        is_address(container.exec(&["wire", "who", address, "7002"]))?;
    }
    Ok(())
}
