//! The program that carries packets between a network namespace and the host's: pasta, or slirp4netns.
//!
//! It runs as the supervisor's child and dies with it. When it dies after it was ready it is started
//! again at once, else after a pause that grows, and whenever the host's routes change.
//!
//! The uplink has one; a container with a `--network pasta` or `slirp4netns` of its own another
//! ([`Dedicated`]), which ends with the container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use selkie_sys::SysResult;
use selkie_sys::errno::Attempt;
use serde::{Deserialize, Serialize};

use super::UplinkConfig;
use super::namespace::UPLINK_INTERFACE;
use super::own_ports::OwnPorts;
use super::protocol::Failure;
use crate::network::{DEFAULT_MTU, InterfaceName};
use crate::pasta::{self, Features, Template};
use crate::port_mapping::PortMapping;
use crate::program::Program;
use crate::slirp4netns::memory_guard::{BOUNDS, MemoryGuard, Verdict};
use crate::slirp4netns::{self, PortHandler};
use crate::user_mode::{self, Lifetime, Process, Surroundings};

/// First pause after a start that failed; doubled each time up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);

const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What slirp4netns makes in a container of its own, as under Podman.
const DEDICATED_INTERFACE: &str = "tap0";

/// Below the uplinks' directory: what was found out about the installed pasta.
const FEATURES_FILE: &str = "pasta-features.json";

/// A program of a container's own, planned by whoever starts the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dedicated {
    /// `pasta` with arguments of [`pasta::dedicated`].
    Pasta {
        /// The program.
        program: PathBuf,
        /// The arguments.
        arguments: Vec<String>,
    },
    /// `slirp4netns`.
    Slirp4netns {
        /// The program.
        program: PathBuf,
        /// What follows the colon of `--network slirp4netns:`.
        options: String,
        /// Published as the options say: by a forwarder beside it, or through its API.
        ports: Vec<PortMapping>,
    },
}

#[derive(Debug)]
enum Kind {
    UplinkPasta(Program, Features),
    UplinkSlirp4netns(Program),
    /// And where its API socket is, while it has one.
    Dedicated(Dedicated, ApiSocket),
}

#[derive(Debug)]
enum State {
    /// Runs, and is not ready yet.
    Starting(Process),
    Up(Process),
    /// Does not run: its last words.
    Down(String),
}

/// The program and how it is.
#[derive(Debug)]
pub(super) struct Connector {
    kind: Kind,
    namespace: OwnedFd,
    state: State,
    /// IPv6 works, or will never.
    has_all_families: bool,
    /// Of a slirp4netns that is up.
    memory: Option<MemoryGuard>,
    /// Of a container whose slirp4netns does not publish ports itself.
    ports: Option<OwnPorts>,
    failures: u32,
    retry_at: Option<Instant>,
    warnings: Vec<String>,
}

impl Connector {
    /// For the uplink: pasta, or slirp4netns where there is no pasta.
    ///
    /// # Errors
    /// There is neither, or it is too old.
    pub(super) fn of_uplink(config: &UplinkConfig, namespace: OwnedFd) -> Result<Self, Failure> {
        let mut warnings = Vec::new();
        let kind = match pasta::find(&config.search_path) {
            Ok(program) => {
                let features = known_features(&config.dir, &program).map_err(|error| Failure {
                    message: error.to_string(),
                    hint: None,
                })?;
                Kind::UplinkPasta(program, features)
            }
            Err(no_pasta) => match slirp4netns::find(&config.search_path) {
                Ok(program) => {
                    warnings.push(format!("{no_pasta}: using slirp4netns, which is slower"));
                    Kind::UplinkSlirp4netns(program)
                }
                Err(_) => {
                    return Err(Failure {
                        message: "neither pasta nor slirp4netns is installed, so containers have no way out"
                            .into(),
                        hint: Some(
                            "an admin must install the package passt; `--network none` works without"
                                .into(),
                        ),
                    });
                }
            },
        };
        Ok(Self::new(kind, namespace, warnings))
    }

    /// For one container, given by its ID.
    pub(super) fn dedicated(dedicated: Dedicated, namespace: OwnedFd, container: &str) -> Self {
        let ports = match &dedicated {
            Dedicated::Slirp4netns { options, ports, .. } if !ports.is_empty() => {
                let options = slirp_options(options);
                (options.port_handler() == PortHandler::Rootlesskit)
                    .then(|| OwnPorts::new(container, ports.clone(), options.addresses().container))
            }
            _ => None,
        };
        let kind = Kind::Dedicated(dedicated, ApiSocket::of(container));
        Self {
            ports,
            ..Self::new(kind, namespace, Vec::new())
        }
    }

    fn new(kind: Kind, namespace: OwnedFd, warnings: Vec<String>) -> Self {
        Self {
            kind,
            namespace,
            state: State::Down("not started".into()),
            has_all_families: true,
            memory: None,
            ports: None,
            failures: 0,
            retry_at: None,
            warnings,
        }
    }

    /// Whether it is this one.
    pub(super) fn is(&self, dedicated: &Dedicated) -> bool {
        matches!(&self.kind, Kind::Dedicated(known, _) if known == dedicated)
    }

    /// Starts it (again).
    pub(super) fn start(&mut self) {
        // The old one must be gone before the new one makes its interface.
        self.state = State::Down("started again".into());
        self.memory = None;
        self.retry_at = None;
        match self.spawn() {
            Ok(process) => self.state = State::Starting(process),
            Err(error) => return self.failed(error.to_string(), false),
        }
        // Meanwhile; a failure is told when both are asked whether they are ready.
        if let Some(ports) = &mut self.ports
            && let Err(failure) = ports.start(&self.namespace)
        {
            self.failed(failure.message, false);
        }
    }

    fn spawn(&mut self) -> SysResult<Process> {
        let around = Surroundings {
            network_namespace: self.namespace.as_fd(),
            environment: &[],
            lifetime: Lifetime::Owner,
        };
        match &self.kind {
            Kind::UplinkPasta(program, features) => {
                let plan = uplink_addresses().plan(features, &Template::of_this_namespace());
                self.has_all_families = plan.has_ipv6 || !features.takes_two_addresses();
                pasta::start(program, &plan.arguments, &around)
            }
            Kind::UplinkSlirp4netns(program) => slirp4netns::start(
                program,
                &slirp4netns::Options::default(),
                slirp4netns::LIMITS,
                None,
                UPLINK_INTERFACE,
                &around,
            ),
            Kind::Dedicated(Dedicated::Pasta { program, arguments }, _) => {
                pasta::start(&at(program)?, arguments, &around)
            }
            Kind::Dedicated(
                Dedicated::Slirp4netns {
                    program,
                    options,
                    ports,
                },
                socket,
            ) => {
                let options = slirp_options(options);
                let asks_it = !ports.is_empty() && self.ports.is_none();
                if asks_it {
                    socket.make_place()?;
                }
                slirp4netns::start(
                    &at(program)?,
                    &options,
                    slirp4netns::LIMITS,
                    asks_it.then_some(socket.path.as_path()),
                    DEDICATED_INTERFACE,
                    &around,
                )
            }
        }
    }

    /// Its readiness pipe says something, or it is dead: takes note. The failure, when it did not become
    /// ready.
    pub(super) fn look(&mut self) -> Result<(), Failure> {
        let State::Starting(process) = &mut self.state else {
            return Ok(());
        };
        let ready = process.ready(Duration::ZERO);
        let published = match ready {
            Ok(()) => self.publish(),
            Err(user_mode::Failure::Late { .. }) => return Ok(()),
            Err(error) => Err(explain(&error)),
        };
        match published {
            Ok(()) => {
                let old = std::mem::replace(&mut self.state, State::Down(String::new()));
                if let State::Starting(process) = old {
                    self.memory = self.guard(&process);
                    self.state = State::Up(process);
                }
                self.failures = 0;
                Ok(())
            }
            Err(failure) => {
                self.failed(failure.message.clone(), false);
                Err(failure)
            }
        }
    }

    /// What is published only when slirp4netns runs, or beside it.
    fn publish(&mut self) -> Result<(), Failure> {
        if let Some(ports) = &mut self.ports {
            return ports.ready();
        }
        let Kind::Dedicated(Dedicated::Slirp4netns { options, ports, .. }, socket) = &self.kind
        else {
            return Ok(());
        };
        if ports.is_empty() {
            return Ok(());
        }
        let container = slirp_options(options).addresses().container;
        let published = slirp4netns::api::publish(&socket.path, ports, container);
        // Nobody else is to ask it for anything.
        socket.remove();
        published.map_err(|error| Failure {
            message: error.to_string(),
            hint: None,
        })
    }

    fn guard(&mut self, process: &Process) -> Option<MemoryGuard> {
        let is_slirp4netns = matches!(
            self.kind,
            Kind::UplinkSlirp4netns(_) | Kind::Dedicated(Dedicated::Slirp4netns { .. }, _)
        );
        let guard = is_slirp4netns.then(|| MemoryGuard::new(process, BOUNDS))?;
        guard
            .map_err(|error| {
                self.warnings
                    .push(format!("its memory is not watched: {error}"))
            })
            .ok()
    }

    /// When to [`Self::look_at_memory`]; `None` when nothing is to be watched.
    pub(super) fn memory_due(&self) -> Option<Instant> {
        self.memory.as_ref().map(MemoryGuard::next)
    }

    /// Keeps the program's memory within bounds.
    pub(super) fn look_at_memory(&mut self) {
        let Some(memory) = &mut self.memory else {
            return;
        };
        // One that has ended is dealt with elsewhere.
        if !matches!(memory.look(), Ok(Verdict::TooLarge)) {
            return;
        }
        let words = format!(
            "it took more than {} MB of memory: the connections it had are lost",
            BOUNDS.end >> 20
        );
        self.warnings
            .push(format!("{}: {words}", self.program().display()));
        self.failed(words, true);
    }

    /// Readable once the process that forwards ports has ended, where there is one.
    pub(super) fn ports_pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.ports.as_ref().and_then(OwnPorts::pidfd)
    }

    /// When to [`Self::restart_ports`].
    pub(super) fn ports_retry_at(&self) -> Option<Instant> {
        self.ports.as_ref().and_then(OwnPorts::retry_at)
    }

    /// Takes note of the end of the process that forwards ports.
    pub(super) fn ports_ended(&mut self) {
        if let Some(ports) = &mut self.ports {
            ports.ended();
        }
    }

    pub(super) fn restart_ports(&mut self) {
        if let Some(ports) = &mut self.ports
            && let Err(failure) = ports.restart(&self.namespace)
        {
            self.warnings.push(failure.message);
        }
    }

    /// Takes note of its end.
    pub(super) fn ended(&mut self) {
        let words = match &mut self.state {
            State::Up(process) | State::Starting(process) => {
                let status = process.wait(Duration::ZERO);
                let words = process.words();
                match status {
                    Ok(Some(status)) if words.is_empty() => format!("ended {status}"),
                    _ => words.replace('\n', "; "),
                }
            }
            State::Down(_) => return,
        };
        let was_up = matches!(self.state, State::Up(_));
        self.failed(words, was_up);
    }

    fn failed(&mut self, words: String, was_up: bool) {
        if !was_up && self.failures == 0 {
            self.warnings.push(format!(
                "there is no way out at the moment: {}: {words}",
                self.program().display()
            ));
        }
        self.state = State::Down(words);
        self.memory = None;
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST_PAUSE);
        let now = Instant::now();
        self.retry_at = Some(if was_up { now } else { now + pause });
        self.failures += 1;
    }

    /// True unless it is being started.
    pub(super) fn is_settled(&self) -> bool {
        !matches!(self.state, State::Starting(_))
    }

    /// When to try again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// When something of it is to be done.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> + use<> {
        [self.retry_at(), self.memory_due(), self.ports_retry_at()]
            .into_iter()
            .flatten()
    }

    /// Whether it would do better as the host is now: it does not run, or it could do without a family
    /// only because the host had none (nobody has connections in that one, so none are cut).
    pub(super) fn wants_restart(&self) -> bool {
        matches!(self.state, State::Down(_))
            || (!self.has_all_families && Template::of_this_namespace().has_link_local)
    }

    /// Has `epoll` tell, with `ready`, when [`Self::look`] is worth it (once), and with `ended` when
    /// [`Self::ended`] is. A process's descriptors go with it, and with them epoll's interest.
    pub(super) fn watch(
        &self,
        epoll: &OwnedFd,
        ready: EventData,
        ended: EventData,
    ) -> SysResult<()> {
        let (State::Starting(process) | State::Up(process)) = &self.state else {
            return Ok(());
        };
        let set = |fd: BorrowedFd<'_>, data, flags| match epoll::add(epoll, fd, data, flags) {
            Err(Errno::EXIST) => epoll::modify(epoll, fd, data, flags),
            other => other,
        };
        if matches!(self.state, State::Starting(_)) {
            let once = EventFlags::IN | EventFlags::ONESHOT;
            set(process.readiness(), ready, once).attempt(|| "watch a connector")?;
        }
        set(process.pidfd(), ended, EventFlags::IN).attempt(|| "watch a connector")
    }

    pub(super) fn pid(&self) -> Option<i32> {
        match &self.state {
            State::Starting(process) | State::Up(process) => {
                Some(process.pid().as_raw_nonzero().get())
            }
            State::Down(_) => None,
        }
    }

    fn program(&self) -> &Path {
        match &self.kind {
            Kind::UplinkPasta(program, _) | Kind::UplinkSlirp4netns(program) => &program.path,
            Kind::Dedicated(
                Dedicated::Pasta { program, .. } | Dedicated::Slirp4netns { program, .. },
                _,
            ) => program,
        }
    }

    pub(super) fn describe(&self) -> String {
        let name = self.program().display();
        match &self.state {
            State::Up(_) => name.to_string(),
            State::Starting(_) => format!("{name} (starting)"),
            State::Down(words) => format!("{name} (does not run: {words})"),
        }
    }

    /// What is to be said once.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

/// slirp4netns's API socket, in a private directory of its own. In `/tmp`, since its path may have 107
/// bytes only and a home's may have more.
#[derive(Debug)]
struct ApiSocket {
    path: PathBuf,
}

impl ApiSocket {
    fn of(container: &str) -> Self {
        Self {
            path: PathBuf::from(format!("/tmp/selkie-{container}/api")),
        }
    }

    fn make_place(&self) -> SysResult<()> {
        let Some(dir) = self.path.parent() else {
            return Ok(());
        };
        // Of a run before that was killed.
        self.remove();
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(dir)
            .attempt(|| format!("make {}", dir.display()))
    }

    /// What cannot be removed is not ours.
    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
        if let Some(dir) = self.path.parent() {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The engine has read them before.
fn slirp_options(words: &str) -> slirp4netns::Options {
    words.parse().unwrap_or_default()
}

/// The uplink's own place in the connector's world.
fn uplink_addresses() -> pasta::uplink::Uplink {
    pasta::uplink::Uplink {
        interface: InterfaceName::from_id(UPLINK_INTERFACE, ""),
        ipv4: ([169, 254, 2, 1].into(), 30, [169, 254, 2, 2].into()),
        ipv6: (
            [0xfd07, 0x5e1, 0xc1e, 0, 0, 0, 0, 2].into(),
            [0xfe80, 0, 0, 0, 0, 0, 0, 1].into(),
        ),
        mtu: DEFAULT_MTU,
    }
}

fn at(path: &Path) -> SysResult<Program> {
    Program::at(path).ok_or_else(|| {
        selkie_sys::SysError::new(format!("find {}", path.display()), rustix::io::Errno::NOENT)
    })
}

fn explain(error: &user_mode::Failure) -> Failure {
    let hint = match pasta::cause(error) {
        pasta::Cause::Tun => Some(
            "an admin must make /dev/net/tun accessible: chmod 0666 /dev/net/tun (modprobe tun where it is missing)"
                .into(),
        ),
        pasta::Cause::Port(_) => {
            Some("stop what uses the port, or publish another port of the host".into())
        }
        _ => None,
    };
    Failure {
        message: error.to_string(),
        hint,
    }
}

/// What this build of pasta can, found out once and kept in `dir`.
///
/// # Errors
/// It is too old, or cannot be run.
pub fn known_features(
    dir: &Path,
    program: &Program,
) -> Result<Features, pasta::features::ProbeError> {
    let file = dir.join(FEATURES_FILE);
    let known = std::fs::read(&file)
        .ok()
        .and_then(|text| serde_json::from_slice::<(Program, Features)>(&text).ok());
    if let Some((known, features)) = known
        && known == *program
    {
        return Ok(features);
    }
    let features = Features::probe(program)?;
    if let Ok(text) = serde_json::to_vec(&(program, &features)) {
        // Found out again next time where it cannot be kept.
        let fresh = dir.join(format!("{FEATURES_FILE}.{}", std::process::id()));
        if std::fs::write(&fresh, text).is_err() || std::fs::rename(&fresh, &file).is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
    }
    Ok(features)
}
