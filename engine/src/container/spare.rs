//! Spares: what a `--rm` container that changed nothing leaves to the next one.
//!
//! # Theory of operation
//! A container's directory, its writable layer and the overlay mount over it take some twenty inodes
//! on disk to make and as many to remove again, which is most of the work of a short run. A container
//! that ends as it began has all of that in the state the next one needs. So instead of being removed,
//! its directory moves to `spares/`, with the overlay mounted on `root` in it (in the login's
//! namespace), and the next container of the same key takes it back by a rename.
//!
//! *Same key*: same image as presented here and now, same ID maps, same user and working directory
//! (which may have been made for it), same files to mount on (`resolv.conf` only with a network), same
//! Selkie. Then layer, owners and mount points are those that would be made anew.
//!
//! *Changed nothing*: [`Seal`]. It is made when the container's process has made all its mounts, and
//! before it may execute anything, and compared when it has ended. Host name and the like are written anew by every start
//! (`etc_files`).
//!
//! *Nobody is left who could look in.* A descriptor of something in the old root would show the next
//! container's. The processes in a PID namespace of their own are gone with its init; what remains is
//! a descriptor they could have passed on. So only containers without a way to do that leave spares:
//! no mounts from outside (where a socket could lie), no network namespace that others are in (abstract
//! sockets; another IP address is no way to pass a descriptor), nothing that loosens the default
//! confinement. Who joins a container's network namespace later breaks its seal ([`forfeit`]).
//!
//! # Crash rules
//! A spare is an ordinary container directory to everybody who finds it on the way: with a row and a
//! run it is a container; in `containers/` without a row it is garbage; whoever removes it unmounts
//! `root` first ([`remove_directory`]). A spare is taken under the database's writer lock, so takers do
//! not race. Whoever adds spares or clears them holds the lock of `spares/` and the spare's own. The
//! mount does not outlive the pause namespace, and a spare without it is dead: it is never taken,
//! `system check` lists it and `system prune` removes it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FlockOperation, Mode, RenameFlags, Timespec, Timestamps, UTIME_NOW, flock,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use selkie_storage::presenter::{clone_parked_root, clone_root, is_root_parked, park_root};
use selkie_storage::seal::Seal;
use selkie_storage::{Store, remove_tree};
use selkie_userns::IdMaps;
use selkie_userns::pause::JoinedPause;

use crate::container::{ContainerConfig, ContainerId};
use crate::error::{Error, Result};
use crate::layout::{LockedContainer, open_dir};
use crate::options::{CreateOptions, NameOptions, NetworkMode, PidMode, SeccompOption, UsernsMode};
use crate::{EngineConfig, state};

/// Where the overlay is mounted in a spare.
const ROOT: &str = "root";
/// What must be as it was for a container to become a spare.
const SEALED: [&str; 2] = ["upper", "etc"];
/// Of one key; runs in quick succession overlap.
const EACH: usize = 2;
/// Spares in all.
const ALL: usize = 16;

/// A container's part in this: it may leave a spare, and may have been made from one.
#[derive(Debug)]
pub(crate) struct Lot {
    /// As the directory is called in `spares/`, without its number.
    key: String,
    /// The part of the key that changes with the image's presentation, and what it was made of.
    root: String,
    chain_id: String,
    maps: IdMaps,
    /// Its directory was a spare.
    pub taken: bool,
}

/// A running container that may leave a spare.
#[derive(Debug)]
pub(crate) struct Candidate {
    lot: Lot,
    seal: Seal,
    /// A second mount of its root, where none is mounted on `root` yet.
    mount: Option<OwnedFd>,
}

/// True when a container of this kind may leave a spare and be made from one.
fn is_eligible(options: &CreateOptions) -> bool {
    // All by name, so that whoever adds one decides here: what lets a container share something with
    // others, or changes what is made in its layer before its command runs, must be refused.
    let CreateOptions {
        // Shape nothing outside the process, or are part of the key.
        root: _,
        name: _,
        command: _,
        entrypoint: _,
        env: _,
        unset_env: _,
        workdir: _,
        user: _,
        hostname: _,
        labels: _,
        annotations: _,
        init: _,
        stop_signal: _,
        stop_timeout: _,
        cap_drop: _,
        no_new_privileges: _,
        ulimits: _,
        sysctls: _,
        terminal: _,
        interactive: _,
        create_command: _,
        // Make other mount points.
        read_only,
        read_only_bare: _,
        mounts,
        mask,
        names,
        // Reached by addresses only.
        ports: _,
        publish_all: _,
        expose: _,
        // Ways to others.
        network,
        pid,
        userns,
        // Loosen the confinement.
        cap_add,
        seccomp,
        unmask,
        remove,
    } = options;
    *remove
        && !read_only
        && mounts.is_empty()
        && mask.is_empty()
        && *names == NameOptions::default()
        && matches!(network, NetworkMode::None | NetworkMode::Networks(_))
        && *pid == PidMode::Private
        && matches!(
            userns,
            UsernsMode::AutoDefault | UsernsMode::Auto { .. } | UsernsMode::Nomap
        )
        && cap_add.is_empty()
        && *seccomp == SeccompOption::Default
        && unmask.is_empty()
}

impl Lot {
    /// The part of a container about to be made; `None` when it may not leave a spare.
    pub(crate) fn of(
        store: &Store,
        pause: &JoinedPause,
        config: &ContainerConfig,
        chain_id: Option<&str>,
        maps: &IdMaps,
    ) -> Result<Option<Self>> {
        let eligible = is_eligible(&config.options) && !pause.single_id;
        let Some(chain_id) = chain_id.filter(|_| eligible) else {
            return Ok(None);
        };
        // Almost always plain and short; what is not is not worth a spare.
        let plain = |text: &str| {
            text.len() <= 64
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"/._-:".contains(&byte))
        };
        if !plain(&config.workdir) || !plain(&config.user) {
            return Ok(None);
        }
        let Some(root) = root_identity(store, chain_id, maps)? else {
            return Ok(None);
        };
        let version = env!("CARGO_PKG_VERSION");
        let workdir = config.workdir.replace('/', "+");
        // With the default names, networks decide whether there is a resolv.conf.
        let files = match config.options.network {
            NetworkMode::None => "apart",
            _ => "online",
        };
        Ok(Some(Self {
            key: format!("{version},{root},{files},{workdir},{}", config.user),
            root,
            chain_id: chain_id.to_owned(),
            maps: maps.clone(),
            taken: false,
        }))
    }
}

fn root_identity(store: &Store, chain_id: &str, maps: &IdMaps) -> Result<Option<String>> {
    let presenter = selkie_storage::presenter::choose(None)?;
    Ok(presenter.root_identity(store, chain_id, maps, false)?)
}

/// Makes a spare the directory of the container `id`, locked. Call under the writer lock.
///
/// # Errors
/// The kernel refuses what it should not; that there is no spare is no error.
pub(crate) fn take(
    paths: &EngineConfig,
    lot: &Lot,
    id: &ContainerId,
) -> Result<Option<LockedContainer>> {
    for number in 0..EACH {
        let spare = paths.spares_dir().join(format!("{},{number}", lot.key));
        // None there, or held: it is only just being put there, or removed.
        let Some(dir) = lock(&spare) else { continue };
        if !is_root_parked(dir.as_fd(), ROOT) {
            continue;
        }
        let path = paths.container_dir(id);
        match rustix::fs::rename(&spare, &path) {
            Ok(()) => return Ok(Some(LockedContainer { path, dir })),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("take", &spare)(errno)),
        }
    }
    Ok(None)
}

/// The root file system of a container made from a spare.
pub(crate) fn mount_root(
    container: BorrowedFd<'_>,
) -> std::result::Result<OwnedFd, selkie_storage::StoreError> {
    clone_parked_root(container, ROOT)
}

impl Candidate {
    /// Of a container before its gate opens, whose detached root is `root` unless it was made from a spare.
    /// `None` when a change could not be told.
    pub(crate) fn of(lot: Lot, container: BorrowedFd<'_>, mount: Option<OwnedFd>) -> Option<Self> {
        if !lot.taken && mount.is_none() {
            return None;
        }
        // Without one it is removed as any other.
        let seal = Seal::of(container, &SEALED).ok().flatten()?;
        Some(Self { lot, seal, mount })
    }

    /// A second mount of the new root, for [`Self::of`].
    pub(crate) fn second_mount(root: BorrowedFd<'_>) -> Option<OwnedFd> {
        clone_root(root).ok()
    }

    /// Makes the ended container's directory a spare if it is as it was. False when it is not, and
    /// has to be removed. The row is gone, and the caller holds the container's lock, which this
    /// gives up on success.
    pub(crate) fn leave(
        self,
        paths: &EngineConfig,
        store: &Store,
        id: &ContainerId,
        container: BorrowedFd<'_>,
    ) -> bool {
        // Whatever fails, the directory stays where it is and is removed.
        self.seal.holds(container)
            && self
                .move_to_spares(paths, store, id, container)
                .unwrap_or(false)
    }

    fn move_to_spares(
        &self,
        paths: &EngineConfig,
        store: &Store,
        id: &ContainerId,
        container: BorrowedFd<'_>,
    ) -> Result<bool> {
        state::retire(container)?;
        if let Some(mount) = &self.mount {
            rustix::fs::mkdirat(container, ROOT, Mode::RWXU)
                .map_err(|errno| Error::machine("make a mount point", errno))?;
            park_root(mount.as_fd(), container, ROOT)?;
        }
        let spares = lock_spares(paths)?;
        // Not a spare of an image that has been removed, or is presented anew, meanwhile.
        let Lot {
            key,
            root,
            chain_id,
            maps,
            ..
        } = &self.lot;
        if root_identity(store, chain_id, maps)?.as_ref() != Some(root) {
            return Ok(false);
        }
        make_room(paths, spares.as_fd())?;
        let path = paths.container_dir(id);
        for number in 0..EACH {
            let name = format!("{key},{number}");
            let renamed = rustix::fs::renameat_with(
                rustix::fs::CWD,
                &path,
                &spares,
                &name,
                RenameFlags::NOREPLACE,
            );
            match renamed {
                Ok(()) => {
                    let _ = flock(container, FlockOperation::Unlock);
                    return Ok(true);
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("keep", &path)(errno)),
            }
        }
        Ok(false)
    }
}

/// Removes the oldest spares until there is room for another.
fn make_room(paths: &EngineConfig, spares: BorrowedFd<'_>) -> Result<()> {
    let names = crate::system::names_in(&paths.spares_dir())?;
    if names.len() < ALL {
        return Ok(());
    }
    let mut by_age: Vec<_> = names
        .into_iter()
        .filter_map(|name| {
            let stat = rustix::fs::statat(spares, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some(((stat.st_ctime, stat.st_ctime_nsec), name))
        })
        .collect();
    by_age.sort();
    for (_, name) in by_age.iter().take((by_age.len() + 1).saturating_sub(ALL)) {
        remove_spare(&paths.spares_dir().join(name))?;
    }
    Ok(())
}

/// Removes all spares, for an image is gone: they would keep what it was presented from.
///
/// # Errors
/// One cannot be removed.
pub(crate) fn clear(paths: &EngineConfig) -> Result<()> {
    if !paths.spares_dir().exists() {
        return Ok(());
    }
    let _spares = lock_spares(paths)?;
    for name in crate::system::names_in(&paths.spares_dir())? {
        remove_spare(&paths.spares_dir().join(name))?;
    }
    Ok(())
}

/// Spares that cannot be taken any more.
///
/// # Errors
/// They cannot be listed.
pub(crate) fn dead(paths: &EngineConfig) -> Result<Vec<PathBuf>> {
    let mut dead = Vec::new();
    for name in crate::system::names_in(&paths.spares_dir())? {
        let path = paths.spares_dir().join(name);
        // Taken or removed meanwhile, or somebody is at work on it.
        let Some(dir) = lock(&path) else { continue };
        if !is_root_parked(dir.as_fd(), ROOT) {
            dead.push(path);
        }
    }
    Ok(dead)
}

/// Removes one unless somebody is at work on it.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn remove_spare(path: &Path) -> Result<()> {
    match lock(path) {
        Some(_lock) => remove_directory(path),
        None => Ok(()),
    }
}

/// Removes a container's directory, whatever became of the container. The caller holds its lock, or
/// nobody else can know of it.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn remove_directory(path: &Path) -> Result<()> {
    let root = path.join(ROOT);
    match unmount(&root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // INVAL: nothing is mounted there.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(failed("unmount", &root)(errno)),
    }
    Ok(remove_tree(path)?)
}

/// Has the running container `id`, whose network namespace another one is about to enter, leave no spare.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn forfeit(paths: &EngineConfig, id: &ContainerId) -> Result<()> {
    let sealed = paths.container_dir(id).join("etc");
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    match rustix::fs::utimensat(rustix::fs::CWD, &sealed, &times, AtFlags::SYMLINK_NOFOLLOW) {
        // It has ended meanwhile, and with it whoever could pass on something.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed("touch", &sealed)(errno)),
    }
}

/// True for the mount point of a spare, or of a container made from one, that is still there.
pub(crate) fn is_root_of_one(paths: &EngineConfig, point: &Path) -> bool {
    point.file_name().is_some_and(|name| name == ROOT)
        && point
            .parent()
            .and_then(Path::parent)
            .is_some_and(|dir| dir == paths.spares_dir() || dir == paths.containers_dir())
}

fn lock(path: &Path) -> Option<OwnedFd> {
    let dir = open_dir(path).ok()?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(dir)
}

fn lock_spares(paths: &EngineConfig) -> Result<OwnedFd> {
    let path = paths.spares_dir();
    let dir = match open_dir(&path) {
        Ok(dir) => dir,
        Err(_) => {
            crate::database::make_private_dir(&path)?;
            open_dir(&path)?
        }
    };
    rustix::io::retry_on_intr(|| flock(&dir, FlockOperation::LockExclusive))
        .map_err(failed("lock", &path))?;
    Ok(dir)
}

fn failed(attempt: &'static str, path: &Path) -> impl Fn(Errno) -> Error {
    let path = path.display().to_string();
    move |errno| Error::machine(format!("{attempt} {path}"), errno)
}
