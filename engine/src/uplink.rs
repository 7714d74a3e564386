//! A running container's tie to the login's uplink: made at its start, kept by its monitor.
//!
//! The tie is a connection to the uplink's supervisor. When it ends, the supervisor has died, and the
//! monitor ties the container again, to a supervisor that it starts itself if nobody else has. So each
//! container that runs finds its way back by itself, whoever dies.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use selkie_net::uplink::{self, Uplink, UplinkConfig, UplinkError};
use selkie_sys::errno::{Attempt, SysResult};

use crate::EngineConfig;
use crate::error::Result;
use crate::network::connect::Connection;

/// How often a supervisor may vanish under a request before that is an error.
const ATTEMPTS: usize = 3;

/// Between two attempts to tie a running container again.
const PAUSE: Duration = Duration::from_secs(1);

/// Below the data directory, since what is there must be found as long as containers run.
const DIRECTORY: &str = "uplink";

impl EngineConfig {
    /// Where this login's uplinks live.
    pub(crate) fn uplink(&self) -> UplinkConfig {
        UplinkConfig {
            dir: self.data_dir.join(DIRECTORY),
            search_path: self.search_path.clone(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

/// A container that is being connected.
#[derive(Debug)]
pub(crate) struct Tie {
    config: UplinkConfig,
    plan: Connection,
    uplink: Uplink,
    /// The container's, once it exists. Its path in `/proc` is closed to us until its command runs.
    namespace: Option<OwnedFd>,
}

impl Tie {
    /// Finds or starts the uplink.
    pub(crate) fn new(config: UplinkConfig, plan: Connection) -> Result<Self> {
        let uplink = uplink::connect(&config)?;
        Ok(Self {
            config,
            plan,
            uplink,
            namespace: None,
        })
    }

    /// Asks for the container to be connected.
    pub(crate) fn begin(
        &mut self,
        namespace: BorrowedFd<'_>,
        init: BorrowedFd<'_>,
    ) -> std::result::Result<(), UplinkError> {
        let kept = namespace
            .try_clone_to_owned()
            .attempt(|| "duplicate a descriptor")?;
        self.namespace = Some(kept);
        for _ in 0..ATTEMPTS {
            let Connection {
                member,
                networks,
                dedicated,
            } = &self.plan;
            let dedicated = dedicated.as_ref();
            let begun = self
                .uplink
                .begin_attach(member, networks, dedicated, namespace, init);
            match begun {
                Err(UplinkError::Lost) => self.uplink = uplink::connect(&self.config)?,
                other => return other,
            }
        }
        Err(UplinkError::Lost)
    }

    /// Waits until it is, and gives what the user should be told.
    pub(crate) fn finish(
        &mut self,
        init: BorrowedFd<'_>,
    ) -> std::result::Result<Vec<String>, UplinkError> {
        let namespace = match (self.uplink.finish(), &self.namespace) {
            (Err(UplinkError::Lost), Some(namespace)) => namespace,
            (other, _) => return other,
        };
        // It ended under the request: the next one is asked from the start.
        let (uplink, warnings) = attach_to(&self.config, &self.plan, namespace.as_fd(), init)?;
        self.uplink = uplink;
        Ok(warnings)
    }
}

/// Finds or starts the uplink and connects the running container whose init is `pid`.
pub(crate) fn attach(
    config: &UplinkConfig,
    plan: &Connection,
    pid: i32,
    init: BorrowedFd<'_>,
) -> std::result::Result<(Uplink, Vec<String>), UplinkError> {
    attach_to(config, plan, namespace_of(pid)?.as_fd(), init)
}

/// As [`attach`], for a container that has lost its uplink: published ports that others have taken since
/// are left out.
pub(crate) fn reattach(
    config: &UplinkConfig,
    plan: &Connection,
    pid: i32,
    init: BorrowedFd<'_>,
) -> std::result::Result<(Uplink, Vec<String>), UplinkError> {
    let namespace = namespace_of(pid)?;
    persistently(config, |uplink| {
        uplink.reattach(
            &plan.member,
            &plan.networks,
            plan.dedicated.as_ref(),
            namespace.as_fd(),
            init,
        )
    })
}

fn namespace_of(pid: i32) -> SysResult<OwnedFd> {
    let path = format!("/proc/{pid}/ns/net");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .attempt(|| format!("open {path}"))
}

fn attach_to(
    config: &UplinkConfig,
    plan: &Connection,
    namespace: BorrowedFd<'_>,
    init: impl AsFd,
) -> std::result::Result<(Uplink, Vec<String>), UplinkError> {
    persistently(config, |uplink| {
        uplink.attach(
            &plan.member,
            &plan.networks,
            plan.dedicated.as_ref(),
            namespace,
            init.as_fd(),
        )
    })
}

/// Asks of an uplink that may vanish under the request.
fn persistently(
    config: &UplinkConfig,
    ask: impl Fn(&mut Uplink) -> std::result::Result<Vec<String>, UplinkError>,
) -> std::result::Result<(Uplink, Vec<String>), UplinkError> {
    for _ in 0..ATTEMPTS {
        let mut uplink = uplink::connect(config)?;
        match ask(&mut uplink) {
            Err(UplinkError::Lost) => {}
            Ok(warnings) => return Ok((uplink, warnings)),
            Err(error) => return Err(error),
        }
    }
    Err(UplinkError::Lost)
}

/// What a monitor keeps of the tie.
#[derive(Debug)]
pub(crate) struct KeptTie {
    state: TieState,
    /// PID of the container's init, a child of the monitor.
    init: i32,
}

#[derive(Debug)]
enum TieState {
    /// The connection to the supervisor.
    Tied(OwnedFd),
    /// The supervisor is gone; when to try again.
    Lost(Instant),
    /// The container is in no network any more.
    Untied,
}

impl KeptTie {
    pub(crate) fn new(tie: Tie, init: i32) -> Self {
        Self {
            state: TieState::Tied(tie.uplink.into()),
            init,
        }
    }

    /// Readable when the supervisor has gone.
    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            TieState::Tied(connection) => Some(connection.as_fd()),
            TieState::Lost(_) | TieState::Untied => None,
        }
    }

    /// How long until the next attempt to tie again, when one is due.
    pub(crate) fn retry_in(&self) -> Option<Duration> {
        match self.state {
            TieState::Lost(at) => Some(at.saturating_duration_since(Instant::now())),
            TieState::Tied(_) | TieState::Untied => None,
        }
    }

    /// The supervisor has gone, or an attempt is due: ties the container again, as `plan` says now.
    pub(crate) fn renew(
        &mut self,
        config: &UplinkConfig,
        plan: impl FnOnce() -> Result<Option<Connection>>,
        init: BorrowedFd<'_>,
    ) {
        let renewed = plan().and_then(|plan| match plan {
            Some(plan) => Ok(Some(reattach(config, &plan, self.init, init)?)),
            None => Ok(None),
        });
        self.state = match renewed {
            Ok(Some((uplink, _))) => TieState::Tied(uplink.into()),
            Ok(None) => TieState::Untied,
            // Nobody reads what a monitor has to say; `system check` finds a container that is not
            // connected.
            Err(_) => TieState::Lost(Instant::now() + PAUSE),
        };
    }
}
