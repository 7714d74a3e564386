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

use super::client::{self, ANCHOR, LOCK, SOCKET};
use super::connector::Connector;
use super::namespace::{self, failure};
use super::protocol::{Failure, Reply, Request, Status, receive, send};
use super::services::{ServiceRequest, Services};
use super::wiring::Wiring;
use super::{UplinkConfig, UplinkError, host_address};
use crate::member::Member;
use crate::netlink::{Netlink, RouteChanges, in_namespace};
use crate::network::{Attachment, Network};

/// The name in `ps`. Shorter than the kernel's 16 bytes.
const PROCESS_NAME: &std::ffi::CStr = c"selkie-uplink";

/// How long a supervisor stays after its last container and its last client.
const LINGER: Duration = Duration::from_secs(60);

/// How long a request waits for the connector at most.
const CONNECTOR_PATIENCE: Duration = Duration::from_secs(3);

/// How often services that die are started again before a pause.
const SERVICE_PAUSE: Duration = Duration::from_secs(1);

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
    UplinkRoutes,
    Connector,
    Services,
    Client(u32),
    Container(u32),
}

impl Source {
    fn data(self) -> EventData {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::HostRoutes => (1, 0),
            Self::UplinkRoutes => (2, 0),
            Self::Connector => (3, 0),
            Self::Services => (4, 0),
            Self::Client(number) => (5, number),
            Self::Container(number) => (6, number),
        };
        EventData::new_u64(kind << 32 | u64::from(number))
    }

    fn of(data: EventData) -> Option<Self> {
        let number = data.u64() as u32;
        Some(match data.u64() >> 32 {
            0 => Self::Listener,
            1 => Self::HostRoutes,
            2 => Self::UplinkRoutes,
            3 => Self::Connector,
            4 => Self::Services,
            5 => Self::Client(number),
            6 => Self::Container(number),
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
}

/// An answer that waits for the connector.
struct Held {
    client: u32,
    until: Instant,
}

struct Supervisor {
    config: UplinkConfig,
    place: PathBuf,
    nft: PathBuf,
    uplink: OwnedFd,
    epoll: OwnedFd,
    listener: OwnedFd,
    host_routes: RouteChanges,
    uplink_routes: RouteChanges,
    host_address: Option<std::net::Ipv4Addr>,
    wiring: Wiring,
    connector: Connector,
    services: Option<Services>,
    services_retry: Option<Instant>,
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
        let nft = config.find("nft").ok_or_else(|| Failure {
            message: "nft is not installed, and containers cannot be kept apart without it".into(),
            hint: Some(
                "an admin must install the package nftables; `--network pasta` works without"
                    .into(),
            ),
        })?;
        let anchor = place.join(ANCHOR);
        let kept = namespace::open_kept(&anchor).map_err(failure)?;
        let uplink = match kept {
            Some(uplink) => uplink,
            None => namespace::make(&anchor).map_err(failure)?,
        };
        let made = Self::in_namespace(config, place, nft, uplink);
        if made.is_err() {
            namespace::release(&anchor);
        }
        made
    }

    fn in_namespace(
        config: UplinkConfig,
        place: &Path,
        nft: PathBuf,
        uplink: OwnedFd,
    ) -> Result<Self, Failure> {
        let host_routes = RouteChanges::watch().map_err(failure)?;
        let uplink_routes = in_namespace(uplink.as_fd(), RouteChanges::watch).map_err(failure)?;
        // First, since it takes longest.
        let mut connector = Connector::new(&config, &place.join(ANCHOR))?;
        connector.start(host_default_routes());
        namespace::prepare(uplink.as_fd(), &nft)?;
        let services = Services::start(uplink.as_fd(), &config.resolv_conf).map_err(failure)?;
        let host_address = host_address::current();
        host_address::translate_to(host_address, uplink.as_fd(), &nft)?;
        let listener = client::listen(place).map_err(failure)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .attempt(|| "make an epoll instance")
            .map_err(failure)?;
        let mut supervisor = Self {
            wiring: Wiring::new(uplink.as_fd()).map_err(failure)?,
            config,
            place: place.to_owned(),
            nft,
            uplink,
            epoll,
            listener,
            host_routes,
            uplink_routes,
            host_address,
            connector,
            services: Some(services),
            services_retry: None,
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
            .warnings
            .append(&mut supervisor.connector.take_warnings());
        supervisor.watch_everything().map_err(failure)?;
        Ok(supervisor)
    }

    fn watch_everything(&self) -> SysResult<()> {
        self.watch(self.listener.as_fd(), Source::Listener)?;
        self.watch(self.host_routes.as_fd(), Source::HostRoutes)?;
        self.watch(self.uplink_routes.as_fd(), Source::UplinkRoutes)?;
        if let Some(services) = &self.services {
            self.watch(services.pidfd(), Source::Services)?;
        }
        if let Some(pidfd) = self.connector.pidfd() {
            self.watch(pidfd, Source::Connector)?;
        }
        Ok(())
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
            Source::UplinkRoutes => {
                self.uplink_routes.drain();
                self.look_for_way_out();
            }
            Source::Connector => {
                // The descriptor goes with the process, and with it epoll's interest.
                self.connector.reap();
                self.restart_connector();
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
                let waits = matches!(reply, Reply::Done { .. }) && !self.connector.is_settled();
                if waits {
                    self.held.push(Held {
                        client: number,
                        until: Instant::now() + CONNECTOR_PATIENCE,
                    });
                } else {
                    self.reply(number, &reply);
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

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Reply {
        let done = match request {
            Request::Attach { member, networks } => match <[OwnedFd; 2]>::try_from(fds) {
                Ok([namespace, pidfd]) => self.attach(member, networks, namespace, pidfd),
                Err(_) => Err(failure(SysError::new(
                    "connect a container without its namespace",
                    Errno::BADF,
                ))),
            },
            Request::Detach { container } => self.detach(&container),
            Request::RemoveNetwork { network } => self.remove_network(&network),
            Request::Status => return Reply::Status(self.status()),
        };
        match done {
            Ok(()) => Reply::Done {
                warnings: std::mem::take(&mut self.warnings),
            },
            Err(failure) => Reply::Failed(failure),
        }
    }

    fn attach(
        &mut self,
        member: Member,
        networks: Vec<Network>,
        namespace: OwnedFd,
        pidfd: OwnedFd,
    ) -> Result<(), Failure> {
        let container = member.container.clone();
        let pairs = pairs(&member, &networks)?;
        if let Some(before) = self.containers.get(&container) {
            // Interfaces it is not to have any more, or has with other addresses.
            for attachment in &before.member.attachments {
                let network = before
                    .networks
                    .iter()
                    .find(|n| n.name == attachment.network);
                if let Some(network) = network
                    && !member.attachments.contains(attachment)
                {
                    self.wiring
                        .disconnect(&container, network)
                        .map_err(failure)?;
                }
            }
        }
        let result = self
            .wiring
            .connect(&container, &pairs, namespace.as_fd())
            .map_err(failure)
            .and_then(|()| self.serve_names_and_ports(&member, &networks));
        if let Err(failure) = result {
            if !self.containers.contains_key(&container) {
                for (_, network) in &pairs {
                    let _ = self.wiring.disconnect(&container, network);
                }
                self.tell_services(&ServiceRequest::Detach { container });
            }
            return Err(failure);
        }
        let number = self.number();
        self.watch(pidfd.as_fd(), Source::Container(number))
            .map_err(failure)?;
        if let Some(before) = self.containers.insert(
            container.clone(),
            Connected {
                member,
                networks,
                pidfd,
                number,
            },
        ) {
            self.by_number.remove(&before.number);
            let _ = epoll::delete(&self.epoll, &before.pidfd);
        }
        self.by_number.insert(number, container);
        Ok(())
    }

    fn serve_names_and_ports(
        &mut self,
        member: &Member,
        networks: &[Network],
    ) -> Result<(), Failure> {
        let Some(services) = &mut self.services else {
            return Err(Failure {
                message: "the uplink's services do not run".into(),
                hint: Some("they are being started again: try again".into()),
            });
        };
        services.call(&ServiceRequest::Attach {
            member: member.clone(),
            networks: networks.to_vec(),
        })
    }

    /// Where an answer would help nobody.
    fn tell_services(&mut self, request: &ServiceRequest) {
        if let Some(services) = &mut self.services {
            // When they are dead, their successors are told what is.
            let _ = services.call(request);
        }
    }

    fn detach(&mut self, container: &str) -> Result<(), Failure> {
        let Some(connected) = self.containers.get(container) else {
            return Ok(());
        };
        let networks = connected.networks.clone();
        self.forget(container);
        for network in &networks {
            self.wiring
                .disconnect(container, network)
                .map_err(failure)?;
        }
        Ok(())
    }

    /// What the kernel does not do when a container ends.
    fn forget(&mut self, container: &str) {
        let Some(connected) = self.containers.remove(container) else {
            return;
        };
        self.by_number.remove(&connected.number);
        let _ = epoll::delete(&self.epoll, &connected.pidfd);
        self.tell_services(&ServiceRequest::Detach {
            container: container.to_owned(),
        });
        for network in &connected.networks {
            // A bridge's port would answer for its address until the kernel gets round to it, when
            // another container may have that address.
            if network.kind == crate::network::Kind::Bridge {
                let _ = self.wiring.disconnect(container, network);
            }
        }
    }

    fn remove_network(&mut self, network: &Network) -> Result<(), Failure> {
        self.tell_services(&ServiceRequest::RemoveNetwork {
            name: network.name.clone(),
        });
        self.wiring.remove_bridge(network).map_err(failure)
    }

    fn status(&self) -> Status {
        Status {
            supervisor: rustix::process::getpid().as_raw_nonzero().get(),
            services: self.services.as_ref().map(Services::pid),
            connector: self.connector.pid(),
            connected_by: self.connector.describe(),
            containers: self.containers.keys().cloned().collect(),
        }
    }

    /// Routes or addresses of the host are not what they were.
    fn host_changed(&mut self) {
        let host = host_address::current();
        if host != self.host_address
            && host_address::translate_to(host, self.uplink.as_fd(), &self.nft).is_ok()
        {
            self.host_address = host;
        }
        if self.connector.wants_restart(host_default_routes()) {
            self.restart_connector();
        }
    }

    fn restart_connector(&mut self) {
        self.connector.start(host_default_routes());
        self.warnings.append(&mut self.connector.take_warnings());
        if let Some(pidfd) = self.connector.pidfd() {
            let _ = self.watch(pidfd, Source::Connector);
        }
        self.release_held();
    }

    /// The connector gives the uplink a default route when it is ready.
    fn look_for_way_out(&mut self) {
        if self.connector.is_settled() {
            return;
        }
        let found = Netlink::open_in(self.uplink.as_fd())
            .and_then(|mut netlink| netlink.default_routes())
            .unwrap_or((false, false));
        if found.0 || found.1 {
            self.connector.is_up();
            self.release_held();
        }
    }

    /// Answers what waited for the connector, when it is ready or has been waited for long enough.
    fn release_held(&mut self) {
        let now = Instant::now();
        let settled = self.connector.is_settled();
        let held = std::mem::take(&mut self.held);
        let (ready, held) = held
            .into_iter()
            .partition(|held: &Held| settled || held.until <= now);
        self.held = held;
        for Held { client, .. } in ready {
            let warnings = std::mem::take(&mut self.warnings);
            self.reply(client, &Reply::Done { warnings });
        }
    }

    fn restart_services(&mut self) {
        self.services = None;
        self.services_retry = None;
        let started = Services::start(self.uplink.as_fd(), &self.config.resolv_conf);
        let Ok(services) = started else {
            self.services_retry = Some(Instant::now() + SERVICE_PAUSE);
            return;
        };
        let _ = self.watch(services.pidfd(), Source::Services);
        self.services = Some(services);
        let known: Vec<(Member, Vec<Network>)> = self
            .containers
            .values()
            .map(|connected| (connected.member.clone(), connected.networks.clone()))
            .collect();
        for (member, networks) in known {
            // A port that somebody else has taken meanwhile stays lost; the container goes on.
            if let Err(failure) = self.serve_names_and_ports(&member, &networks) {
                self.warnings.push(failure.message);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let idle = self.idle_since.map(|since| since + LINGER);
        let held = self.held.iter().map(|held| held.until).min();
        [idle, held, self.connector.retry_at(), self.services_retry]
            .into_iter()
            .flatten()
            .min()
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.connector.retry_at().is_some_and(|at| at <= now) {
            self.restart_connector();
        }
        if self.services_retry.is_some_and(|at| at <= now) {
            self.restart_services();
        }
        if self.held.iter().any(|held| held.until <= now) {
            self.release_held();
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
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let Ok(lock) = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) else {
            // The directory is gone, so nobody can find this one.
            namespace::release(&self.place.join(ANCHOR));
            return true;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            self.idle_since = Some(Instant::now());
            return false;
        }
        self.accept();
        if !self.clients.is_empty() {
            self.idle_since = None;
            return false;
        }
        // Who connects from here on hears the end and starts over.
        let _ = std::fs::remove_file(self.place.join(SOCKET));
        self.connector.stop();
        self.services = None;
        namespace::release(&self.place.join(ANCHOR));
        // The lock's file stays: somebody may wait for it.
        true
    }
}

/// Each attachment with its network.
fn pairs<'a>(
    member: &'a Member,
    networks: &'a [Network],
) -> Result<Vec<(&'a Attachment, &'a Network)>, Failure> {
    member
        .attachments
        .iter()
        .map(|attachment| {
            networks
                .iter()
                .find(|network| network.name == attachment.network)
                .map(|network| (attachment, network))
                .ok_or_else(|| Failure {
                    message: format!("network {} is not known", attachment.network),
                    hint: None,
                })
        })
        .collect()
}

/// Of the host, per family.
fn host_default_routes() -> (bool, bool) {
    Netlink::open()
        .and_then(|mut netlink| netlink.default_routes())
        .unwrap_or((true, false))
}
