//! The supervisor: one process with one thread and one loop.
//!
//! It waits for requests, for the ends of containers, and for what must be mended; each is dealt with
//! at once and takes a millisecond or two. Requests that connect a container are answered only when
//! the connector is ready, so that what a container does first finds the way out.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use selkie_sys::clone::{Side, exit_now, fork};
use selkie_sys::errno::{Attempt, SysError, SysResult};

use super::client::{self, ANCHOR, LOCK};
use super::connector::{Connector, Dedicated};
use super::namespace::{self, failure};
use super::protocol::{Failure, Reply, Request, Status, receive, send};
use super::services::Ports;
use super::trunk::Trunk;
use super::wiring::open_container;
use super::{UplinkConfig, UplinkError};
use crate::member::Member;
use crate::netlink::RouteChanges;
use crate::network::Network;

/// The name in `ps`. Shorter than the kernel's 16 bytes.
const PROCESS_NAME: &std::ffi::CStr = c"selkie-uplink";

/// How long a supervisor stays after its last container and its last client.
const LINGER: Duration = Duration::from_secs(10);

/// How long a request waits for the connector at most.
const CONNECTOR_PATIENCE: Duration = Duration::from_secs(3);

/// Forks the supervisor and waits until it serves. The lock of `place` is held by the caller.
pub(super) fn start(config: &UplinkConfig, place: &Path) -> Result<(), UplinkError> {
    let (report, report_end) =
        pipe_with(PipeFlags::CLOEXEC).attempt(|| "make a pipe to the uplink's supervisor")?;
    // Twice, so that it is nobody's child whom that one would have to reap.
    match fork()? {
        Side::Child => {
            drop(report);
            match fork() {
                Ok(Side::Child) => run(config, place, report_end),
                Ok(Side::Parent { .. }) => exit_now(0),
                Err(_) => exit_now(1),
            }
        }
        Side::Parent { pid, .. } => {
            drop(report_end);
            let reaped = rustix::io::retry_on_intr(|| {
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
            });
            reaped.attempt(|| "wait for the uplink's supervisor to be started")?;
        }
    }
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(report), &mut text)
        .attempt(|| "hear from the uplink's supervisor")?;
    match serde_json::from_slice::<Result<(), Failure>>(&text) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) => Err(failure.into()),
        Err(_) => Err(SysError::new("start the uplink's supervisor", Errno::CHILD).into()),
    }
}

/// In the forked process.
fn run(config: &UplinkConfig, place: &Path, report: OwnedFd) -> ! {
    let run = std::panic::AssertUnwindSafe(|| {
        detach_from_caller(report.as_fd());
        let made = Supervisor::new(config.clone(), place);
        let told = serde_json::to_vec(&made.as_ref().map(|_| ()).map_err(Clone::clone));
        let _ = rustix::io::write(&report, &told.unwrap_or_default());
        drop(report);
        if let Ok(mut supervisor) = made {
            supervisor.serve();
        }
    });
    let outcome = std::panic::catch_unwind(run);
    exit_now(i32::from(outcome.is_err()))
}

/// Lets go of everything that came with the fork.
fn detach_from_caller(report: BorrowedFd<'_>) {
    // Fails only for a process group leader, which a forked child is not.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(PROCESS_NAME);
    let _ = selkie_sys::child::hide_command_line(PROCESS_NAME);
    selkie_sys::child::reset_signals();
    let _ = selkie_sys::slim::close_all_except(&[report]);
    let _ = rustix::process::chdir("/");
    rustix::process::umask(Mode::from_raw_mode(0o077));
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    selkie_sys::slim::trim_heap();
}

/// What an event is about. As a number, the kind is in the upper half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Listener,
    HostRoutes,
    Services,
    Client(u32),
    Container(u32),
    /// A connector may be ready: of the container with this number, or of the trunk.
    ConnectorReady(u32),
    /// A connector has ended.
    ConnectorEnded(u32),
    /// The process has ended that forwards the ports of the container with this number.
    PortsEnded(u32),
}

/// Stands for the trunk where a container's number could stand.
const TRUNK: u32 = 0;

impl Source {
    fn data(self) -> EventData {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::HostRoutes => (1, 0),
            Self::Services => (2, 0),
            Self::Client(number) => (3, number),
            Self::Container(number) => (4, number),
            Self::ConnectorReady(number) => (5, number),
            Self::ConnectorEnded(number) => (6, number),
            Self::PortsEnded(number) => (7, number),
        };
        EventData::new_u64(kind << 32 | u64::from(number))
    }

    fn of(data: EventData) -> Option<Self> {
        let number = data.u64() as u32;
        Some(match data.u64() >> 32 {
            0 => Self::Listener,
            1 => Self::HostRoutes,
            2 => Self::Services,
            3 => Self::Client(number),
            4 => Self::Container(number),
            5 => Self::ConnectorReady(number),
            6 => Self::ConnectorEnded(number),
            7 => Self::PortsEnded(number),
            _ => return None,
        })
    }
}

/// A container that is connected.
struct Connected {
    member: Member,
    networks: Vec<Network>,
    /// Of its init.
    pidfd: OwnedFd,
    number: u32,
    /// Its own connector, where it has one.
    connector: Option<Connector>,
}

/// An answer that waits for the connector.
struct Held {
    client: u32,
    /// Whose connector: a container's number, or the trunk's.
    connector: u32,
    until: Instant,
}

struct Supervisor {
    config: UplinkConfig,
    place: PathBuf,
    epoll: OwnedFd,
    listener: OwnedFd,
    host_routes: RouteChanges,
    /// Made when the first container needs it.
    trunk: Option<Trunk>,
    clients: HashMap<u32, OwnedFd>,
    containers: BTreeMap<String, Connected>,
    by_number: HashMap<u32, String>,
    held: Vec<Held>,
    next_number: u32,
    /// Since when there is nobody.
    idle_since: Option<Instant>,
    /// Told with the next answer.
    warnings: Vec<String>,
    buffer: Vec<u8>,
}

impl Supervisor {
    fn new(config: UplinkConfig, place: &Path) -> Result<Self, Failure> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .attempt(|| "make an epoll instance")
            .map_err(failure)?;
        let supervisor = Self {
            config,
            place: place.to_owned(),
            epoll,
            host_routes: RouteChanges::watch().map_err(failure)?,
            listener: client::listen(place).map_err(failure)?,
            trunk: None,
            clients: HashMap::new(),
            containers: BTreeMap::new(),
            by_number: HashMap::new(),
            held: Vec::new(),
            next_number: 0,
            idle_since: Some(Instant::now()),
            warnings: Vec::new(),
            buffer: Vec::new(),
        };
        supervisor
            .watch(supervisor.listener.as_fd(), Source::Listener)
            .map_err(failure)?;
        supervisor
            .watch(supervisor.host_routes.as_fd(), Source::HostRoutes)
            .map_err(failure)?;
        Ok(supervisor)
    }

    /// The trunk, made where there is none yet.
    fn trunk(&mut self) -> Result<&mut Trunk, Failure> {
        if self.trunk.is_none() {
            let trunk = Trunk::new(&self.config, &self.place.join(ANCHOR))?;
            self.trunk = Some(trunk);
            self.watch_services();
            self.connector_started(TRUNK);
        }
        self.trunk.as_mut().ok_or_else(no_trunk)
    }

    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> SysResult<()> {
        epoll::add(&self.epoll, fd, source.data(), EventFlags::IN)
            .attempt(|| format!("watch {source:?}"))
    }

    /// Until nobody has needed it for a while.
    fn serve(&mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let timeout = self.next_deadline().map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                rustix::event::Timespec {
                    tv_sec: left.as_secs() as i64,
                    // A little late rather than again and again too early.
                    tv_nsec: i64::from(left.subsec_nanos().min(998_999_999)) + 1_000_000,
                }
            });
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            for event in &events {
                if let Some(source) = Source::of(event.data) {
                    self.handle(source);
                }
            }
            self.keep_time();
            if self.is_over() {
                return;
            }
        }
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::HostRoutes => {
                if self.host_routes.drain() {
                    self.host_changed();
                }
            }
            Source::ConnectorReady(number) => self.connector_ready(number),
            Source::ConnectorEnded(number) => self.connector_ended(number),
            Source::PortsEnded(number) => {
                if let Some(connector) = self.connector(number) {
                    connector.ports_ended();
                }
            }
            Source::Services => self.restart_services(),
            Source::Client(number) => self.hear(number),
            Source::Container(number) => {
                if let Some(container) = self.by_number.get(&number).cloned() {
                    self.forget(&container);
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok(client) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
            let number = self.number();
            if self.watch(client.as_fd(), Source::Client(number)).is_ok() {
                self.clients.insert(number, client);
            }
        }
    }

    fn number(&mut self) -> u32 {
        self.next_number = self.next_number.wrapping_add(1);
        self.next_number
    }

    /// One message of a client, or its end.
    fn hear(&mut self, number: u32) {
        let Some(client) = self.clients.get(&number) else {
            return;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let heard = receive::<Request>(client, &mut buffer);
        self.buffer = buffer;
        match heard {
            Ok(Some((request, fds))) => {
                let reply = self.answer(request, fds);
                match reply {
                    Answer::Now(reply) => self.reply(number, &reply),
                    Answer::Later(connector) => self.held.push(Held {
                        client: number,
                        connector,
                        until: Instant::now() + CONNECTOR_PATIENCE,
                    }),
                }
            }
            // Whatever it meant, it does not speak our language.
            Ok(None) | Err(_) => {
                self.clients.remove(&number);
                self.held.retain(|held| held.client != number);
            }
        }
    }

    fn reply(&mut self, number: u32, reply: &Reply) {
        if let Some(client) = self.clients.get(&number)
            && send(client.as_fd(), reply, &[]).is_err()
        {
            self.clients.remove(&number);
        }
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Answer {
        let done = match request {
            Request::Attach {
                member,
                networks,
                dedicated,
                reconnects,
            } => match <[OwnedFd; 2]>::try_from(fds) {
                Ok([namespace, pidfd]) => {
                    let ports = if reconnects {
                        Ports::ThoseThereAre
                    } else {
                        Ports::AllOrNothing
                    };
                    match self.attach(member, networks, dedicated, ports, [namespace, pidfd]) {
                        Ok(Some(connector)) => return Answer::Later(connector),
                        Ok(None) => Ok(()),
                        Err(failure) => Err(failure),
                    }
                }
                Err(_) => Err(failure(SysError::new(
                    "connect a container without its namespace",
                    Errno::BADF,
                ))),
            },
            Request::Detach { container } => self.detach(&container),
            Request::ChangeNetwork { network } => self.change_network(network),
            Request::RemoveNetwork { network } => self.remove_network(&network),
            Request::Status => return Answer::Now(Reply::Status(self.status())),
        };
        Answer::Now(match done {
            Ok(()) => Reply::Done {
                warnings: std::mem::take(&mut self.warnings),
            },
            Err(failure) => Reply::Failed(failure),
        })
    }

    /// Connects a container; the number of the connector it has to wait for, if any.
    fn attach(
        &mut self,
        member: Member,
        networks: Vec<Network>,
        dedicated: Option<Dedicated>,
        ports: Ports,
        [namespace, pidfd]: [OwnedFd; 2],
    ) -> Result<Option<u32>, Failure> {
        let container = member.container.clone();
        let before = self
            .containers
            .get(&container)
            .map(|connected| (connected.member.clone(), connected.networks.clone()));
        let on_trunk = !member.attachments.is_empty()
            || before
                .as_ref()
                .is_some_and(|(member, _)| !member.attachments.is_empty());
        if on_trunk {
            let warnings = self.trunk()?.attach(
                before
                    .as_ref()
                    .map(|(member, networks)| (member, networks.as_slice())),
                &member,
                &networks,
                ports,
                namespace.as_fd(),
            )?;
            self.warnings.extend(warnings);
        }
        let number = self.number();
        self.watch(pidfd.as_fd(), Source::Container(number))
            .map_err(failure)?;
        let mut connected = Connected {
            member,
            networks,
            pidfd,
            number,
            connector: None,
        };
        let old = self.containers.remove(&container);
        if let Some(old) = &old {
            self.by_number.remove(&old.number);
            let _ = epoll::delete(&self.epoll, &old.pidfd);
        }
        if let Some(dedicated) = dedicated {
            // The one it has goes on, unless it is another.
            let same = old
                .and_then(|old| old.connector)
                .filter(|connector| connector.is(&dedicated));
            connected.connector = Some(same.unwrap_or_else(|| {
                // For the settings alone, without which there is no ping.
                let _ = open_container(namespace.as_fd());
                let mut connector = Connector::dedicated(dedicated, namespace, &container);
                connector.start();
                connector
            }));
        }
        let has_own = connected.connector.is_some();
        self.by_number.insert(number, container.clone());
        self.containers.insert(container, connected);
        if has_own {
            self.connector_started(number);
            self.watch_ports(number);
        }
        let waits_for = if has_own { number } else { TRUNK };
        let waits = self
            .connector(waits_for)
            .is_some_and(|connector| !connector.is_settled());
        Ok((waits && (has_own || on_trunk)).then_some(waits_for))
    }

    fn detach(&mut self, container: &str) -> Result<(), Failure> {
        let Some(connected) = self.containers.get(container) else {
            return Ok(());
        };
        let networks = connected.networks.clone();
        self.forget(container);
        match &mut self.trunk {
            Some(trunk) => trunk.disconnect(container, &networks),
            None => Ok(()),
        }
    }

    /// What the kernel does not do when a container ends.
    fn forget(&mut self, container: &str) {
        let Some(connected) = self.containers.remove(container) else {
            return;
        };
        self.by_number.remove(&connected.number);
        let _ = epoll::delete(&self.epoll, &connected.pidfd);
        if let Some(trunk) = &mut self.trunk {
            trunk.forget(container, &connected.networks);
        }
    }

    fn change_network(&mut self, network: Network) -> Result<(), Failure> {
        let mut is_used = false;
        for connected in self.containers.values_mut() {
            for known in connected
                .networks
                .iter_mut()
                .filter(|n| n.name == network.name)
            {
                known.clone_from(&network);
                is_used = true;
            }
        }
        match &mut self.trunk {
            Some(trunk) if is_used => trunk.change_network(network),
            _ => Ok(()),
        }
    }

    fn remove_network(&mut self, network: &Network) -> Result<(), Failure> {
        match &mut self.trunk {
            Some(trunk) => trunk.remove_network(network),
            None => Ok(()),
        }
    }

    fn status(&self) -> Status {
        Status {
            supervisor: rustix::process::getpid().as_raw_nonzero().get(),
            services: self.trunk.as_ref().and_then(Trunk::services_pid),
            connector: self.trunk.as_ref().and_then(|trunk| trunk.connector.pid()),
            connected_by: self
                .trunk
                .as_ref()
                .map_or_else(|| "nothing yet".into(), |trunk| trunk.connector.describe()),
            tcp_by_connector: self
                .trunk
                .as_ref()
                .and_then(|trunk| trunk.tcp_by_connector().map(str::to_owned)),
            containers: self.containers.keys().cloned().collect(),
        }
    }

    /// Routes or addresses of the host are not what they were.
    fn host_changed(&mut self) {
        if let Some(trunk) = &mut self.trunk {
            trunk.follow_host();
        }
        for number in self.connector_numbers() {
            let wants = self
                .connector(number)
                .is_some_and(|connector| connector.wants_restart());
            if wants {
                self.restart_connector(number);
            }
        }
    }

    /// Of all connectors there are.
    fn connector_numbers(&self) -> Vec<u32> {
        let own = self
            .containers
            .values()
            .filter(|connected| connected.connector.is_some())
            .map(|connected| connected.number);
        self.trunk.iter().map(|_| TRUNK).chain(own).collect()
    }

    fn connector(&mut self, number: u32) -> Option<&mut Connector> {
        if number == TRUNK {
            return self.trunk.as_mut().map(|trunk| &mut trunk.connector);
        }
        let container = self.by_number.get(&number)?;
        self.containers.get_mut(container)?.connector.as_mut()
    }

    fn restart_connector(&mut self, number: u32) {
        if let Some(connector) = self.connector(number) {
            connector.start();
        }
        self.connector_started(number);
    }

    fn connector_started(&mut self, number: u32) {
        let epoll = self.epoll.as_fd().try_clone_to_owned();
        if let (Some(connector), Ok(epoll)) = (self.connector(number), epoll) {
            // When it cannot be watched, whoever waits for it is told so after a while.
            let _ = connector.watch(
                &epoll,
                Source::ConnectorReady(number).data(),
                Source::ConnectorEnded(number).data(),
            );
        }
    }

    fn watch_ports(&mut self, number: u32) {
        let epoll = self.epoll.as_fd().try_clone_to_owned();
        if let (Some(connector), Ok(epoll)) = (self.connector(number), epoll)
            && let Some(pidfd) = connector.ports_pidfd()
        {
            let data = Source::PortsEnded(number).data();
            // Watched already, by another number where the container was connected anew.
            if epoll::add(&epoll, pidfd, data, EventFlags::IN) == Err(Errno::EXIST) {
                let _ = epoll::modify(&epoll, pidfd, data, EventFlags::IN);
            }
        }
    }

    fn connector_ready(&mut self, number: u32) {
        let Some(connector) = self.connector(number) else {
            return;
        };
        let looked = connector.look();
        if connector.is_settled() {
            self.watch_ports(number);
            self.settle_held(number, &looked);
        } else {
            self.connector_started(number);
        }
    }

    fn connector_ended(&mut self, number: u32) {
        match self.connector(number) {
            // Whoever waits for it hears why.
            Some(connector) if !connector.is_settled() => self.connector_ready(number),
            Some(connector) => connector.ended(),
            None => {}
        }
    }

    /// Answers what waited for a connector. One of a container's own that fails is a failure; without
    /// the trunk's, containers have each other at least.
    fn settle_held(&mut self, number: u32, outcome: &Result<(), Failure>) {
        if let Some(connector) = self.connector(number) {
            let warnings = connector.take_warnings();
            if number == TRUNK || outcome.is_ok() {
                self.warnings.extend(warnings);
            }
        }
        let held = std::mem::take(&mut self.held);
        let (ready, held) = held
            .into_iter()
            .partition(|held: &Held| held.connector == number);
        self.held = held;
        for Held { client, .. } in ready {
            let reply = match outcome {
                Err(failure) if number != TRUNK => Reply::Failed(failure.clone()),
                _ => Reply::Done {
                    warnings: std::mem::take(&mut self.warnings),
                },
            };
            self.reply(client, &reply);
        }
    }

    fn restart_services(&mut self) {
        let Some(trunk) = &mut self.trunk else {
            return;
        };
        let known = self
            .containers
            .values()
            .map(|connected| (&connected.member, connected.networks.as_slice()));
        self.warnings
            .append(&mut trunk.restart_services(&self.config, known));
        self.watch_services();
    }

    fn watch_services(&self) {
        if let Some(pidfd) = self.trunk.as_ref().and_then(Trunk::services_pidfd) {
            let _ = self.watch(pidfd, Source::Services);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let idle = self.idle_since.map(|since| since + LINGER);
        let held = self.held.iter().map(|held| held.until).min();
        let trunk = self.trunk.as_ref();
        let own = self
            .containers
            .values()
            .filter_map(|connected| connected.connector.as_ref());
        let connectors = trunk.map(|trunk| &trunk.connector).into_iter().chain(own);
        let connector = connectors.flat_map(Connector::deadlines).min();
        let services = trunk.and_then(Trunk::services_retry_at);
        [idle, held, connector, services]
            .into_iter()
            .flatten()
            .min()
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for number in self.connector_numbers() {
            let Some(connector) = self.connector(number) else {
                continue;
            };
            if due(connector.memory_due()) {
                connector.look_at_memory();
            }
            let has_lost_ports = due(connector.ports_retry_at());
            if has_lost_ports {
                connector.restart_ports();
            }
            let must_start = due(connector.retry_at());
            if has_lost_ports {
                self.watch_ports(number);
            }
            if must_start {
                self.restart_connector(number);
            }
        }
        if due(self.trunk.as_ref().and_then(Trunk::services_retry_at)) {
            self.restart_services();
        }
        let late: Vec<u32> = self
            .held
            .iter()
            .filter(|held| held.until <= now)
            .map(|held| held.connector)
            .collect();
        for number in late {
            let outcome = Err(Failure {
                message: format!(
                    "the network was not ready after {} s",
                    CONNECTOR_PATIENCE.as_secs()
                ),
                hint: None,
            });
            self.settle_held(number, &outcome);
        }
        let nobody = self.clients.is_empty() && self.containers.is_empty();
        match (nobody, self.idle_since) {
            (true, None) => self.idle_since = Some(now),
            (false, Some(_)) => self.idle_since = None,
            _ => {}
        }
    }

    /// True when it is to end: then everything is put away, under the lock, so that whoever comes now
    /// starts a new one.
    fn is_over(&mut self) -> bool {
        if self.idle_since.is_none_or(|since| since.elapsed() < LINGER) {
            return false;
        }
        let path = self.place.join(LOCK);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let Ok(lock) = rustix::fs::open(&path, flags, Mode::empty()) else {
            // The directory is gone, so nobody can find this one.
            namespace::release(&self.place.join(ANCHOR));
            return true;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
            || !client::is_at(&lock, &path)
        {
            self.idle_since = Some(Instant::now());
            return false;
        }
        self.accept();
        if !self.clients.is_empty() {
            self.idle_since = None;
            return false;
        }
        self.trunk = None;
        // Who connects from here on hears the end and starts over. What cannot be removed is found by
        // `system check`.
        let _ = client::remove_place(&self.place);
        true
    }
}

/// When a request is answered.
enum Answer {
    Now(Reply),
    /// When the connector with this number is ready.
    Later(u32),
}

fn no_trunk() -> Failure {
    failure(SysError::new("use the uplink", Errno::CANCELED))
}
