//! The program that carries packets between the uplink and the host: pasta, or slirp4netns where there
//! is no pasta.
//!
//! It runs as the supervisor's child and dies with it. That it is ready shows in the uplink: the
//! default route it makes there. When it dies after it was ready it is started again at once, else after
//! a pause that grows, and whenever the host's routes change: an offline host has no use for one, and
//! some versions refuse to start there.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::UplinkConfig;
use super::namespace::UPLINK_INTERFACE;
use super::protocol::Failure;

/// First pause after a start that failed; doubled each time up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);

const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Most that is kept of what the program says.
const MAX_WORDS: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pasta,
    Slirp4netns,
}

#[derive(Debug)]
enum State {
    /// Runs, and has not made its route yet.
    Starting,
    /// Ready.
    Up,
    /// Does not run: its last words.
    Down(String),
}

/// The program and how it is.
#[derive(Debug)]
pub(super) struct Connector {
    kind: Kind,
    program: PathBuf,
    anchor: PathBuf,
    child: Option<(Child, OwnedFd)>,
    state: State,
    /// The host's default routes when it was started, per family.
    routes: (bool, bool),
    failures: u32,
    retry_at: Option<Instant>,
    warnings: Vec<String>,
}

impl Connector {
    /// Finds the program.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn new(config: &UplinkConfig, anchor: &Path) -> Result<Self, Failure> {
        let mut warnings = Vec::new();
        let (kind, program) = if let Some(program) = config.find("pasta") {
            (Kind::Pasta, program)
        } else if let Some(program) = config.find("slirp4netns") {
            warnings.push(
                "pasta is not installed (package passt): using slirp4netns, which is slower".into(),
            );
            (Kind::Slirp4netns, program)
        } else {
            return Err(Failure {
                message:
                    "neither pasta nor slirp4netns is installed, so containers have no way out"
                        .into(),
                hint: Some(
                    "an admin must install the package passt; `--network none` works without"
                        .into(),
                ),
            });
        };
        Ok(Self {
            kind,
            program,
            anchor: anchor.to_owned(),
            child: None,
            state: State::Down("not started".into()),
            routes: (false, false),
            failures: 0,
            retry_at: None,
            warnings,
        })
    }

    /// Starts it (again), for a host with these default routes.
    pub(super) fn start(&mut self, routes: (bool, bool)) {
        self.stop();
        self.routes = routes;
        self.retry_at = None;
        let spawned = self
            .command()
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        match spawned {
            Ok(child) => {
                let pidfd = Pid::from_raw(child.id() as i32)
                    .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                match pidfd {
                    Some(pidfd) => {
                        self.child = Some((child, pidfd));
                        self.state = State::Starting;
                    }
                    None => self.failed("no pidfd for it".into()),
                }
            }
            Err(error) => self.failed(error.to_string()),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Pasta => {
                command.args([
                    "--foreground",
                    "--quiet",
                    "--config-net",
                    "--netns-only",
                    "--no-map-gw",
                    "--no-dhcp",
                    "--no-dhcpv6",
                    "--no-ra",
                ]);
                command.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
                command.args(["-a", "169.254.2.1", "-n", "30", "-g", "169.254.2.2"]);
                command.args(["-a", "fd07:5e1:c1e::2", "-g", "fe80::1"]);
                command.args(["-I", UPLINK_INTERFACE, "--netns"]);
                command.arg(&self.anchor);
            }
            Kind::Slirp4netns => {
                command.args([
                    "--configure",
                    "--mtu=65520",
                    "--disable-host-loopback",
                    "--enable-ipv6",
                    "--cidr=169.254.2.0/24",
                    "--netns-type=path",
                ]);
                command.arg(&self.anchor).arg(UPLINK_INTERFACE);
            }
        }
        command
    }

    /// The uplink has got its default route.
    pub(super) fn is_up(&mut self) {
        if self.child.is_some() {
            self.state = State::Up;
            self.failures = 0;
        }
    }

    /// True unless it is being started.
    pub(super) fn is_settled(&self) -> bool {
        !matches!(self.state, State::Starting)
    }

    /// Takes note of its end.
    pub(super) fn reap(&mut self) {
        let Some((mut child, _)) = self.child.take() else {
            return;
        };
        let mut words = String::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(MAX_WORDS).read_to_string(&mut words);
        }
        let status = child
            .wait()
            .map_or_else(|e| e.to_string(), |s| s.to_string());
        let last = words.lines().map(str::trim).rfind(|line| !line.is_empty());
        self.failed(last.map_or(status, str::to_owned));
    }

    fn failed(&mut self, words: String) {
        let was_up = matches!(self.state, State::Up);
        if !was_up && self.failures == 0 {
            self.warnings.push(format!(
                "containers have no way out at the moment: {}: {words}",
                self.program.display()
            ));
        }
        self.state = State::Down(words);
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST_PAUSE);
        self.retry_at = Some(if was_up {
            Instant::now()
        } else {
            Instant::now() + pause
        });
        self.failures += 1;
    }

    /// When to try again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether it would do better with these routes of the host: it does not run, or knows nothing of a
    /// family that the host has gained. Nobody has connections in that one, so none are cut.
    pub(super) fn wants_restart(&self, routes: (bool, bool)) -> bool {
        matches!(self.state, State::Down(_))
            || (routes.0 && !self.routes.0)
            || (routes.1 && !self.routes.1)
    }

    /// Ends it.
    pub(super) fn stop(&mut self) {
        if let Some((mut child, _)) = self.child.take() {
            // Fails only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|(child, _)| child.id() as i32)
    }

    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.child.as_ref().map(|(_, pidfd)| pidfd.as_fd())
    }

    pub(super) fn describe(&self) -> String {
        let name = self.program.display();
        match &self.state {
            State::Up => name.to_string(),
            State::Starting => format!("{name} (starting)"),
            State::Down(words) => format!("{name} (does not run: {words})"),
        }
    }

    /// What is to be said once.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.stop();
    }
}
