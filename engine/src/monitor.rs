//! The monitor: one small process per running container, forked from the command that starts it.
//!
//! # Theory of operation
//! *Start.* The child of the fork leaves the command's session, makes the attach socket, has the
//! runtime build the container up to its last gate, writes `state` (so that nothing ever runs that is
//! not on record), opens the gate, and tells the command over a pipe whether the program was
//! executed. Killed before that, it takes the container with it: the gate's other end closes.
//!
//! *Idle.* It gives back all memory and descriptors it took over, and sits in one `poll`
//! ([`relay`]). It holds the container's lock for as long as it lives.
//!
//! *End.* It reaps init and puts the end on record: `exit`, then the database row, or, for a
//! disposable container, no row any more. Only then its clients are told, and last it does what
//! nobody has to wait for: removing files, folding the database's log back. Killed before init ends,
//! the container runs on; killed later, whoever looks next settles what is left.
//!
//! Signals: a hang-up makes the attach socket again (its directory may have been cleaned away).
//! SIGTERM is what a host sends at shutdown: it passes the container its stop signal, and the monitor
//! stays to record the end. SIGINT and SIGQUIT are meant for terminals it has none of: ignored.

mod network;
mod relay;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use selkie_net::port_mapping::PortMapping;
use selkie_runtime::launch::{
    ConnectNetwork, LaunchRequest, Launched, ProvidedRoot, Stdio, launch_meanwhile,
};
use selkie_storage::Store;
use selkie_storage::container_layer::ContainerLayer;
use selkie_storage::presenter::{Presenter, RootRequest, bind_root};
use selkie_sys::namespace::NamespaceKey;
use selkie_sys::process_identity::ProcessIdentity;
use selkie_sys::signal_queue::{SignalName, SignalQueue};
use serde::{Deserialize, Serialize};

use crate::Engine;
use crate::EngineConfig;
use crate::attach::{ServerEnd, listen};
use crate::container::etc_files::{EtcFiles, Names, Surroundings};
use crate::container::merge::{Login, host_name};
use crate::container::remove::{delete_row, prepare_to_delete, remove_files};
use crate::container::spare::{self, Candidate};
use crate::container::start::{Launch, record_exit};
use crate::container::{ContainerId, ExitRecord};
use crate::database::{Database, Durability, make_private_dir};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::open_dir;
use crate::log_writer::LogWriter;
use crate::network::{connect, own_connector};
use crate::options::{MountSource, NetworkMode, PidMode};
use crate::spec::{self, NetworkSpace};
use crate::state::{self, RunState, boot_id, now};
use crate::system::processes::kill_all_in;
use crate::uplink::{KeptTie, Tie};
use crate::volume::content::{self, FirstUse};
use relay::{Client, Relay, Streams};

/// Everything the forked child starts with.
pub(crate) struct Monitor<'e> {
    engine: &'e Engine,
    launch: Launch,
    client: Option<ServerEnd>,
    size: Option<(u16, u16)>,
    report: OwnedFd,
}

/// What the monitor tells the command that forked it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StartReport {
    failure: Option<StartFailure>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StartFailure {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl StartReport {
    /// Reads it; an empty one is a monitor that died.
    pub(crate) fn parse(text: &[u8]) -> Result<()> {
        if text.is_empty() {
            return Err(Error::machine(
                "start the container",
                "its monitor died before the command ran",
            ));
        }
        let report: Self = serde_json::from_slice(text)
            .map_err(|error| Error::machine("hear from the container's monitor", error))?;
        match report.failure {
            None => Ok(()),
            Some(failure) => Err(Error {
                kind: failure.kind,
                message: failure.message,
                hint: failure.hint,
            }),
        }
    }

    pub(crate) fn send(result: std::result::Result<(), &Error>, pipe: OwnedFd) {
        let report = Self {
            failure: result.err().map(|error| StartFailure {
                kind: error.kind,
                message: error.message.clone(),
                hint: error.hint.clone(),
            }),
        };
        let text = serde_json::to_vec(&report).unwrap_or_default();
        // Shorter than a pipe's buffer, so one write takes it; nobody listens when it fails.
        let _ = rustix::io::write(&pipe, &text);
    }
}

/// A container that runs.
struct Running {
    launched: Launched,
    streams: Streams,
    signals: SignalQueue,
    listener: OwnedFd,
    started: String,
    database: Option<Database>,
    candidate: Option<Candidate>,
    tie: Option<KeptTie>,
}

/// What is made while the container's process makes its mounts.
struct Aside {
    listener: OwnedFd,
    started: String,
    /// Opened beforehand where somebody waits for the end. It costs memory, so not for containers
    /// that run by themselves.
    database: Option<Database>,
}

/// What is needed when the container has ended; small, since it stays in memory.
struct Epilogue {
    database: Option<Database>,
    paths: EngineConfig,
    id: ContainerId,
    dir: OwnedFd,
    started: String,
    stop_signal: i32,
    disposable: bool,
    /// Its mode and its ports, where it has a connector of its own.
    own_network: Option<(NetworkMode, Vec<PortMapping>)>,
    /// The container's user namespace, when its processes do not end with its init.
    outliving: Option<NamespaceKey>,
}

impl<'e> Monitor<'e> {
    /// In the forked child, before anything else.
    pub(crate) fn new(
        engine: &'e Engine,
        launch: Launch,
        client: Option<ServerEnd>,
        size: Option<(u16, u16)>,
        report: OwnedFd,
    ) -> Self {
        Self {
            engine,
            launch,
            client,
            size,
            report,
        }
    }

    /// Runs the container to its end.
    pub(crate) fn run(self) {
        // Unwinding into the command's own code would run its ending a second time.
        let run = std::panic::AssertUnwindSafe(|| self.run_to_end());
        if std::panic::catch_unwind(run).is_err() {
            selkie_sys::clone::exit_now(70);
        }
    }

    fn run_to_end(mut self) {
        let mut running = match self.start() {
            Ok(running) => running,
            Err(error) => {
                self.undo();
                StartReport::send(Err(&error), self.report);
                return;
            }
        };
        StartReport::send(Ok(()), self.report);
        let has_only_own_mounts =
            self.launch.config.options.mounts.is_empty() && self.launch.root_directory().is_none();
        let mut epilogue = Epilogue {
            database: running.database,
            paths: self.engine.config.clone(),
            id: self.launch.id,
            dir: self.launch.lock.dir,
            started: running.started,
            stop_signal: self.launch.config.stop_signal,
            disposable: self.launch.disposable,
            own_network: match &self.launch.config.options.network {
                mode @ (NetworkMode::Pasta(_) | NetworkMode::Slirp4netns(_)) => {
                    Some((mode.clone(), self.launch.config.options.ports.clone()))
                }
                _ => None,
            },
            outliving: match self.launch.config.options.pid {
                PidMode::Private => None,
                PidMode::Host => {
                    let init = running.launched.identity.pid;
                    NamespaceKey::at(&format!("/proc/{init}/ns/user")).ok()
                }
            },
        };
        drop(self.launch.connection);
        drop(self.launch.config);
        let log = match epilogue.dir.try_clone() {
            Ok(dir) => LogWriter::new(dir),
            Err(_) => return,
        };
        let (pidfd, terminal, mounts) = essence(running.launched);
        // The client need not wait until they are taken apart, where none of them is of a thing that
        // somebody might want back at once.
        let mounts = mounts.filter(|_| epilogue.disposable && has_only_own_mounts);
        if let Some(terminal) = terminal {
            running.streams = Streams::terminal(terminal);
        }
        let mut relay = Relay {
            tie: running.tie,
            pidfd,
            streams: running.streams,
            signals: running.signals,
            listener: running.listener,
            clients: self.client.map(Client::first).into_iter().collect(),
            log,
            stop_signal: epilogue.stop_signal,
        };
        slim_down();
        let code = relay.run(&epilogue);
        let afterwards = epilogue.finish(code);
        relay.say_exited(code);
        let store = &self.engine.store;
        epilogue.clean_up(afterwards, running.candidate, store, mounts);
    }

    /// Builds the container and lets its command go.
    fn start(&mut self) -> Result<Running> {
        // Fails only for a process group leader, which a forked child is not.
        let _ = rustix::process::setsid();
        let _ = rustix::thread::set_name(c"selkie-monitor");
        self.close_the_rest()?;
        let signals = SignalQueue::new(
            &[SignalName::SIGHUP, SignalName::SIGTERM],
            &[SignalName::SIGINT, SignalName::SIGQUIT, SignalName::SIGPIPE],
        )?;
        let engine = self.engine;
        let launch = &self.launch;
        let layer = match launch.chain_id {
            Some(_) if launch.is_from_spare() => None,
            Some(_) => Some(ContainerLayer::create(&launch.lock.path)?),
            None => None,
        };
        let uname = rustix::system::uname();
        let host = host_name(
            &launch.id,
            &launch.config.options,
            &Login {
                ids: (engine.config.uid, engine.config.gid),
                host_name: &uname.nodename().to_string_lossy(),
            },
        );
        let (connection, around) = self.places()?;
        let etc_files = self.etc_files(&around, &host)?;
        let write_etc = || etc_files.write(launch.lock.as_fd(), &launch.lock.path, &launch.maps);
        // A spare has them; what they say is written while the container's process is busy.
        if !launch.is_from_spare() {
            write_etc()?;
        }
        let etc = etc_files.places(&launch.lock.path);
        // Open for as long as the runtime may need it.
        let (network, _shared) = self.network()?;
        let spec = spec::build(
            &engine.config,
            &launch.config,
            &host,
            &launch.maps,
            &engine.pause.host_maps,
            &etc,
            NetworkSpace {
                namespace: network,
                ping: connection.is_none(),
            },
        )?;
        let presenter = selkie_storage::presenter::choose(None)?;
        let (stdio, streams) = self.stdio()?;

        let mut first_uses = self.prepare_volumes()?;
        let mut second_mount = None;
        let mut provide_root = |user_namespace: BorrowedFd<'_>| {
            let root = self.mount_root(presenter.as_ref(), layer.as_ref(), user_namespace)?;
            if launch.is_from_spare() {
                write_etc()?;
            } else if launch.lot.is_some() {
                second_mount = Candidate::second_mount(root.as_fd());
            }
            for (first_use, copy_up) in first_uses.drain(..) {
                if copy_up {
                    first_use.fill(root.as_fd())?;
                } else {
                    first_use.done()?;
                }
            }
            Ok(ProvidedRoot { root })
        };
        let mut tie = match connection {
            Some(connection) => Some(Tie::new(engine.config.uplink(), connection)?),
            None => None,
        };
        let mut connect = tie.as_mut().map(|tie| {
            |namespace: BorrowedFd<'_>, init: BorrowedFd<'_>| Ok(tie.begin(namespace, init)?)
        });
        let mut aside = Err(Error::machine("start the container", "it was not prepared"));
        let mut meanwhile = |init| aside = self.prepare_aside(init);
        let request = LaunchRequest {
            spec: &spec,
            stdio,
            provide_root: &mut provide_root,
            connect_network: connect
                .as_mut()
                .map(|connect| connect as &mut ConnectNetwork<'_>),
            cgroup: None,
            init: launch.config.options.init,
            seccomp_cache_dir: Some(&engine.config.cache_dir),
            preserve_fds: Vec::new(),
        };
        let mut launched = launch_meanwhile(request, &mut meanwhile)?;
        let Aside {
            listener,
            started,
            database,
        } = aside?;
        if let Some(tie) = &mut tie {
            for warning in tie.finish(launched.pidfd.as_fd())? {
                tracing::warn!("{warning}");
            }
        }
        let lot = self.launch.lot.take();
        let launch = &self.launch;
        let candidate = lot.and_then(|lot| Candidate::of(lot, launch.lock.as_fd(), second_mount));
        state::commit_state(launch.lock.as_fd())?;
        launched.start()?;
        let init = launched.identity.pid;
        Ok(Running {
            candidate,
            launched,
            streams,
            signals,
            listener,
            started,
            database,
            tie: tie.map(|tie| KeptTie::new(tie, init)),
        })
    }

    fn etc_files(&self, around: &Surroundings, host_name: &str) -> Result<EtcFiles> {
        let launch = &self.launch;
        let options = &launch.config.options;
        let shared = match &options.network {
            NetworkMode::Container(id) => ContainerId::parse(id),
            _ => None,
        };
        let shared = shared.map(|id| self.engine.config.container_dir(&id).join("etc"));
        let names = Names {
            name: &launch.name,
            host_name,
            options: &options.names,
        };
        EtcFiles::new(&options.network, around, names, shared.as_deref())
    }

    /// Everything that can be done while the container's process is busy with its mounts.
    fn prepare_aside(&self, init: ProcessIdentity) -> Result<Aside> {
        let launch = &self.launch;
        let started = now();
        let state = RunState {
            boot: boot_id()?.to_owned(),
            monitor: ProcessIdentity::own()?,
            init,
            started: started.clone(),
        };
        state::prepare_state(launch.lock.as_fd(), &state)?;
        let paths = &self.engine.config;
        let database = if launch.disposable && self.client.is_some() {
            let database = Database::open(&paths.data_dir)?;
            prepare_to_delete(&database)?;
            Some(database)
        } else {
            None
        };
        Ok(Aside {
            listener: make_socket(paths, &launch.id)?,
            started,
            database,
        })
    }

    /// Closes what came with the fork and is of no use here, also what the command itself was given
    /// by its caller: a pipe held open for the container's life would block whoever reads it.
    fn close_the_rest(&self) -> Result<()> {
        let store = self.engine.store.directory();
        let mut keep = vec![self.report.as_fd(), self.launch.lock.as_fd(), store];
        keep.extend(self.client.as_ref().map(AsFd::as_fd));
        Ok(selkie_sys::slim::close_all_except(&keep)?)
    }

    /// After a start that failed: no run, no socket.
    fn undo(&self) {
        let _ = state::clear(self.launch.lock.as_fd());
        remove_socket(&self.engine.config, &self.launch.id);
    }

    fn mount_root(
        &self,
        presenter: &dyn Presenter,
        layer: Option<&ContainerLayer>,
        user_namespace: BorrowedFd<'_>,
    ) -> std::result::Result<OwnedFd, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(directory) = self.launch.root_directory() {
            return Ok(bind_root(directory)?);
        }
        if self.launch.is_from_spare() {
            return Ok(spare::mount_root(self.launch.lock.as_fd())?);
        }
        match (&self.launch.chain_id, layer) {
            (Some(chain_id), Some(layer)) => Ok(presenter.mount_root(
                &self.engine.store,
                &RootRequest {
                    chain_id,
                    layer,
                    user_namespace,
                    maps: &self.launch.maps,
                    volatile: self.launch.disposable,
                    single_id: self.engine.pause.single_id,
                },
            )?),
            _ => Err("the container's image is gone".into()),
        }
    }

    /// Makes the volumes' directories; those that are used for the first time, and whether the image's
    /// content is wanted in them.
    fn prepare_volumes(&self) -> Result<Vec<(FirstUse, bool)>> {
        let mut first_uses = Vec::new();
        let mut prepared = Vec::new();
        for mount in &self.launch.config.options.mounts {
            if let MountSource::Volume(name) = &mount.source {
                // Mounted twice, its first place decides (and its lock is held already).
                if prepared.contains(&name) {
                    continue;
                }
                prepared.push(name);
                let paths = &self.engine.config;
                let first_use =
                    content::prepare(paths, name, &mount.destination, &self.launch.maps)?;
                first_uses.extend(first_use.map(|first_use| (first_use, mount.copy_up)));
            }
        }
        Ok(first_uses)
    }

    /// The container's ends and ours.
    fn stdio(&self) -> Result<(Stdio, Streams)> {
        let options = &self.launch.config.options;
        if options.terminal {
            return Ok((Stdio::Terminal { size: self.size }, Streams::none()));
        }
        let pipe = || {
            pipe_with(PipeFlags::CLOEXEC)
                .map_err(|errno| Error::machine("make a pipe for the container's streams", errno))
        };
        let (stdin, our_stdin) = if options.interactive {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            (open_null()?, None)
        };
        let (our_stdout, stdout) = pipe()?;
        let (our_stderr, stderr) = pipe()?;
        Ok((
            Stdio::Streams {
                stdin,
                stdout,
                stderr,
            },
            Streams::pipes(our_stdin, our_stdout, our_stderr)?,
        ))
    }
}

impl Epilogue {
    /// Ties the container to the uplink again, as is on record now.
    fn renew_tie(&self, tie: &mut KeptTie, init: BorrowedFd<'_>) {
        let on_record = || match &self.own_network {
            Some((mode, ports)) => {
                let own = own_connector::plan(&self.paths, &self.id, mode, ports)?;
                Ok(own.map(|own| own.connection))
            }
            None => Database::open(&self.paths.data_dir)?
                .read(|database| connect::on_record(database, &self.id)),
        };
        tie.renew(&self.paths.uplink(), on_record, init);
        selkie_sys::slim::trim_heap();
    }

    /// Makes the attach socket again.
    fn listen_again(&self) -> Result<OwnedFd> {
        make_socket(&self.paths, &self.id)
    }

    /// Puts the end on record, or the container away.
    ///
    /// Whatever fails here is settled by the next command that looks: `state` stays, so `exit` or the
    /// dead init tell what happened.
    fn finish(&mut self, code: i32) -> Afterwards {
        if let Some(namespace) = self.outliving {
            // What survives even this is listed by `system check`.
            let _ = kill_all_in(namespace);
        }
        let exit = ExitRecord {
            code,
            started: self.started.clone(),
            finished: now(),
            error: None,
        };
        let database = match self.database.take() {
            Some(database) => Ok(database),
            None => Database::open(&self.paths.data_dir),
        };
        let mut afterwards = Afterwards {
            database: None,
            orphaned_volumes: None,
        };
        let on_record = database.and_then(|mut database| {
            if self.disposable {
                let orphaned = delete_row(&mut database, &self.id, true)?;
                afterwards.orphaned_volumes = Some(orphaned);
            } else {
                state::write_exit(self.dir.as_fd(), &exit)?;
                database.write(Durability::ProcessCrash, |transaction| {
                    record_exit(transaction, &self.id, &exit)
                })?;
                state::clear(self.dir.as_fd())?;
            }
            afterwards.database = Some(database);
            Ok(())
        });
        if on_record.is_err() {
            let _ = state::write_exit(self.dir.as_fd(), &exit);
        }
        remove_socket(&self.paths, &self.id);
        if !self.disposable {
            // A client that hears of the end may start it again at once.
            let _ = rustix::fs::flock(&self.dir, rustix::fs::FlockOperation::Unlock);
        }
        afterwards
    }

    /// When nobody waits any more.
    fn clean_up(
        &self,
        afterwards: Afterwards,
        candidate: Option<Candidate>,
        store: &Store,
        mounts: Option<OwnedFd>,
    ) {
        if let Some(volumes) = afterwards.orphaned_volumes {
            // First: the next container may be about to start.
            let is_spare = candidate.is_some_and(|candidate| {
                candidate.leave(&self.paths, store, &self.id, self.dir.as_fd())
            });
            drop(mounts);
            // Under the lock still, so that `system check` sees that it is being done.
            if !is_spare {
                let _ = remove_files(&self.paths, &self.id, &volumes);
            }
        }
        if let Some(database) = afterwards.database {
            let _ = database.tidy();
        }
    }
}

/// What is left to do once the clients know of the end.
struct Afterwards {
    database: Option<Database>,
    /// Of a disposable container whose row is gone.
    orphaned_volumes: Option<Vec<String>>,
}

fn make_socket(paths: &EngineConfig, id: &ContainerId) -> Result<OwnedFd> {
    let path = paths.attach_dir();
    let dir = match open_dir(&path) {
        Ok(dir) => dir,
        Err(_) => {
            make_private_dir(&path)?;
            open_dir(&path)?
        }
    };
    listen(dir.as_fd(), id.as_str())
}

/// One left behind is listed by `system check`.
fn remove_socket(paths: &EngineConfig, id: &ContainerId) {
    let _ = rustix::fs::unlink(paths.attach_dir().join(id.as_str()));
}

pub(crate) fn open_null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::machine("open /dev/null", errno))
}

/// What is of use after the start; the rest is dropped.
fn essence(launched: Launched) -> (OwnedFd, Option<OwnedFd>, Option<OwnedFd>) {
    (launched.pidfd, launched.terminal, launched.mount_namespace)
}

/// Lets go of the command's terminal and directory, and of the memory that came with the fork.
fn slim_down() {
    if let Ok(null) = open_null() {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    // So that no file system is kept busy by where the command happened to be called.
    let _ = rustix::process::chdir("/");
    selkie_sys::slim::trim_heap();
}
