//! `system check` and `system prune`: what crashes leave behind, found and removed.
//!
//! Every order of steps in this crate is chosen so that what a crash leaves can be told from what is
//! under way (see `layout`). Here both are told apart: rows and directories are compared under the
//! database's writer lock, containers by their own locks, the store under its exclusive lock, and
//! processes by whether a running container's record, or a starting monitor, accounts for them.

pub(crate) mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use selkie_net::uplink;
use selkie_storage::remove_tree;
use selkie_sys::process_identity::{ProcessIdentity, send_signal, wait_for_exit};
use serde::Serialize;

use crate::container::remove::remove_row_and_files;
use crate::container::spare;
use crate::container::start::record_exit;
use crate::container::{ContainerId, ExitRecord};
use crate::database::Durability;
use crate::error::{Error, Result};
use crate::layout::LockedContainer;
use crate::state::{self, Observed, RunState, observe};
use crate::{Engine, EngineConfig};

/// What kind of thing was left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftoverKind {
    /// A process nobody accounts for.
    Process,
    /// A `--rm` container whose run is over.
    DisposableContainer,
    /// A container whose end is not in the database yet.
    UnrecordedExit,
    /// A container's directory without a row.
    ContainerDirectory,
    /// A volume's directory without a row.
    VolumeDirectory,
    /// A monitor's socket without a monitor.
    Socket,
    /// A mount in the login's namespace that nothing uses.
    Mount,
    /// What an uplink left that nobody looks after any more.
    Uplink,
    /// A file of the image store that no image needs.
    StoreFile,
}

/// One thing left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Its path, ID or process.
    pub what: String,
    /// Why nothing needs it.
    pub reason: String,
}

/// A leftover, and what removing it takes.
struct Finding {
    leftover: Leftover,
    remedy: Remedy,
}

enum Remedy {
    Kill(ProcessIdentity),
    RemoveContainer(ContainerId),
    RecordExit(ContainerId, ExitRecord),
    RemoveContainerDirectory(ContainerId, PathBuf),
    KillContainer(RunState, PathBuf),
    RemoveSpare(PathBuf),
    RemoveTree(PathBuf),
    RemoveSocket(PathBuf),
    RemoveUplink(PathBuf),
    Unmount(PathBuf),
    CleanStore,
}

impl Engine {
    /// Lists what crashes left behind. Changes nothing, and lists nothing that is under way.
    ///
    /// # Errors
    /// Database, store or directories cannot be read.
    pub fn system_check(&mut self) -> Result<Vec<Leftover>> {
        let mut findings = self.find_leftovers()?;
        findings.extend(self.find_store_garbage()?);
        Ok(findings
            .into_iter()
            .map(|finding| finding.leftover)
            .collect())
    }

    /// Removes what [`Self::system_check`] lists; gives what was removed. The database's log is emptied.
    ///
    /// # Errors
    /// The first failure, after everything else has been tried.
    pub fn system_prune(&mut self) -> Result<Vec<Leftover>> {
        let mut removed = Vec::new();
        let mut failure = None;
        let mut findings = self.find_leftovers()?;
        // Processes first: they hold other things in use.
        findings.sort_by_key(|finding| finding.leftover.kind);
        for finding in findings {
            match self.remedy(finding.remedy) {
                Ok(()) => removed.push(finding.leftover),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        // Last, since containers removed above may have been an image's last users.
        let garbage = self.find_store_garbage()?;
        if !garbage.is_empty() {
            match self.remedy(Remedy::CleanStore) {
                Ok(()) => removed.extend(garbage.into_iter().map(|finding| finding.leftover)),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Err(error) = self.database.empty_log() {
            failure = failure.or(Some(error));
        }
        match failure {
            None => Ok(removed),
            Some(error) => Err(error),
        }
    }

    fn find_leftovers(&mut self) -> Result<Vec<Finding>> {
        let strays = processes::strays(self)?;
        let mut findings: Vec<Finding> = strays
            .into_iter()
            .map(|stray| Finding {
                leftover: Leftover {
                    kind: LeftoverKind::Process,
                    what: format!("{} ({})", stray.identity.pid, stray.name),
                    reason: stray.reason,
                },
                remedy: Remedy::Kill(stray.identity),
            })
            .collect();
        let request = self.config.pause_request();
        for stray in selkie_userns::pause::strays(&request, &self.pause.identity)? {
            findings.push(Finding {
                leftover: Leftover {
                    kind: LeftoverKind::Process,
                    what: format!("{} (pause process)", stray.pid),
                    reason: format!(
                        "the login's pause process is {}; this one is used by nobody",
                        self.pause.identity.pid
                    ),
                },
                remedy: Remedy::Kill(stray),
            });
        }
        findings.extend(self.compare_rows_and_files()?);
        for path in spare::dead(&self.config)? {
            findings.push(Finding {
                leftover: Leftover {
                    kind: LeftoverKind::ContainerDirectory,
                    what: path.display().to_string(),
                    reason: "it was kept for the next container, and its mount is gone".to_owned(),
                },
                remedy: Remedy::RemoveSpare(path),
            });
        }
        findings.extend(self.find_sockets()?);
        findings.extend(self.find_mounts()?);
        findings.extend(self.find_uplinks()?);
        Ok(findings)
    }

    /// Rows against directories, while nobody can add either.
    fn compare_rows_and_files(&mut self) -> Result<Vec<Finding>> {
        let Self {
            config: ref paths,
            ref mut database,
            ..
        } = *self;
        database.write(Durability::ProcessCrash, |transaction| {
            let mut findings = Vec::new();
            let mut containers = BTreeMap::new();
            let mut statement = transaction.prepare("SELECT id, disposable FROM container")?;
            for row in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
                let (id, disposable): (String, bool) = row?;
                containers.insert(id, disposable);
            }
            let mut volumes = BTreeSet::new();
            let mut statement = transaction.prepare("SELECT name FROM volume")?;
            for row in statement.query_map([], |row| row.get(0))? {
                let name: String = row?;
                volumes.insert(name);
            }
            for (id, disposable) in &containers {
                findings.extend(inspect_container(paths, id, *disposable)?);
            }
            for name in names_in(&paths.containers_dir())? {
                if !containers.contains_key(&name) {
                    findings.extend(inspect_orphan(paths, &name)?);
                }
            }
            for name in names_in(&paths.volumes_dir())? {
                if !volumes.contains(&name) {
                    let path = paths.volumes_dir().join(&name);
                    findings.push(Finding {
                        leftover: Leftover {
                            kind: LeftoverKind::VolumeDirectory,
                            what: path.display().to_string(),
                            reason: "there is no such volume".to_owned(),
                        },
                        remedy: Remedy::RemoveTree(path),
                    });
                }
            }
            Ok(findings)
        })
    }

    fn find_sockets(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let dir = self.config.attach_dir();
        for name in names_in(&dir)? {
            let is_served = ContainerId::parse(&name)
                .is_some_and(|id| is_locked(&self.config, &id) || self.has_monitor(&id));
            // Gone meanwhile: its monitor has just finished.
            if !is_served && dir.join(&name).exists() {
                let path = dir.join(&name);
                findings.push(Finding {
                    leftover: Leftover {
                        kind: LeftoverKind::Socket,
                        what: path.display().to_string(),
                        reason: "no monitor listens on it".to_owned(),
                    },
                    remedy: Remedy::RemoveSocket(path),
                });
            }
        }
        Ok(findings)
    }

    fn has_monitor(&self, id: &ContainerId) -> bool {
        match self.observe(id) {
            Ok(Observed::Running(state) | Observed::Ended(state, _)) => state.is_monitored(),
            Ok(Observed::Idle) => false,
            Err(_) => true,
        }
    }

    /// Containers' mounts live in their own namespaces, so in the login's there are only the one of
    /// the metadata trees, those of spares, and the uplinks' (see `find_uplinks`).
    fn find_mounts(&self) -> Result<Vec<Finding>> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| Error::machine("read /proc/self/mountinfo", error))?;
        let trees = self.store.root().join("trees");
        let uplinks = self.config.uplink().dir;
        let mut has_trees = false;
        let mut findings = Vec::new();
        for point in mount_points_below(&table, &self.config.data_dir) {
            if point == trees && !has_trees {
                has_trees = true;
                continue;
            }
            // Unmounted with the directory it is in, which is looked at elsewhere.
            if spare::is_root_of_one(&self.config, &point) || point.starts_with(&uplinks) {
                continue;
            }
            findings.push(Finding {
                leftover: Leftover {
                    kind: LeftoverKind::Mount,
                    what: point.display().to_string(),
                    reason: "nothing of Selkie is mounted there any more".to_owned(),
                },
                remedy: Remedy::Unmount(point),
            });
        }
        Ok(findings)
    }

    /// An uplink whose supervisor died is taken over by the containers on it; without any it stays.
    fn find_uplinks(&self) -> Result<Vec<Finding>> {
        Ok(uplink::leftovers(&self.config.uplink())?
            .into_iter()
            .map(|path| Finding {
                leftover: Leftover {
                    kind: LeftoverKind::Uplink,
                    what: path.display().to_string(),
                    reason: "its supervisor does not run any more".to_owned(),
                },
                remedy: Remedy::RemoveUplink(path),
            })
            .collect())
    }

    fn find_store_garbage(&self) -> Result<Vec<Finding>> {
        let lock = self.store.lock_exclusive()?;
        let live = self.live_images()?;
        let garbage = self
            .store
            .find_garbage(&lock, &live.chain_ids, &live.layers)?;
        Ok(garbage
            .paths
            .into_iter()
            .map(|path| Finding {
                leftover: Leftover {
                    kind: LeftoverKind::StoreFile,
                    what: path.display().to_string(),
                    reason: "no image needs it".to_owned(),
                },
                remedy: Remedy::CleanStore,
            })
            .collect())
    }

    fn remedy(&mut self, remedy: Remedy) -> Result<()> {
        match remedy {
            Remedy::Kill(identity) => kill(&identity),
            Remedy::RemoveContainer(id) => self.remove_if_dead(&id),
            Remedy::RecordExit(id, exit) => self.settle(&id, &exit),
            Remedy::RemoveContainerDirectory(id, path) => {
                // Whoever holds the lock is removing it.
                match LockedContainer::try_lock_existing(&self.config, &id) {
                    Ok(Some(_lock)) => spare::remove_directory(&path),
                    Ok(None) => Ok(()),
                    Err(_) if !path.exists() => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Remedy::KillContainer(state, path) => {
                self.kill_and_wait(&state)?;
                spare::remove_directory(&path)
            }
            Remedy::RemoveSpare(path) => spare::remove_spare(&path),
            Remedy::RemoveTree(path) => Ok(remove_tree(&path)?),
            Remedy::RemoveSocket(path) => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::machine(format!("remove {}", path.display()), error))
                }
                _ => Ok(()),
            },
            Remedy::Unmount(path) => {
                rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH)
                    .map_err(|errno| Error::machine(format!("unmount {}", path.display()), errno))
            }
            Remedy::RemoveUplink(path) => Ok(uplink::remove_leftover(&path)?),
            Remedy::CleanStore => {
                let lock = self.store.lock_exclusive()?;
                let live = self.live_images()?;
                self.store
                    .remove_garbage(&lock, &live.chain_ids, &live.layers)?;
                Ok(())
            }
        }
    }

    /// Removes a disposable container unless somebody is at it again.
    fn remove_if_dead(&mut self, id: &ContainerId) -> Result<()> {
        let Some(lock) = LockedContainer::try_lock(&self.config, id)? else {
            return Ok(());
        };
        if matches!(observe(lock.as_fd(), ".")?, Observed::Running(_)) {
            return Ok(());
        }
        remove_row_and_files(&mut self.database, &self.config, id, true)
    }

    /// Puts on record how a run ended whose monitor could not.
    fn settle(&mut self, id: &ContainerId, exit: &ExitRecord) -> Result<()> {
        let Some(lock) = LockedContainer::try_lock(&self.config, id)? else {
            return Ok(());
        };
        if !matches!(observe(lock.as_fd(), ".")?, Observed::Ended(..)) {
            return Ok(());
        }
        self.database
            .write(Durability::ProcessCrash, |transaction| {
                record_exit(transaction, id, exit)
            })?;
        state::clear(lock.as_fd())
    }
}

/// A container with a row: over and to be removed, or over and not on record?
fn inspect_container(paths: &EngineConfig, id: &str, disposable: bool) -> Result<Option<Finding>> {
    let Some(id) = ContainerId::parse(id) else {
        return Ok(None);
    };
    let observed = match LockedContainer::try_lock_existing(paths, &id) {
        Ok(Some(lock)) => observe(lock.as_fd(), ".")?,
        Ok(None) => return Ok(None),
        // The directory is made with the row, so somebody has removed it by hand.
        Err(_) => Observed::Idle,
    };
    let finding = match observed {
        Observed::Running(_) => return Ok(None),
        _ if disposable => Finding {
            leftover: Leftover {
                kind: LeftoverKind::DisposableContainer,
                what: id.to_string(),
                reason: "it was to be removed with the end of its run".to_owned(),
            },
            remedy: Remedy::RemoveContainer(id),
        },
        Observed::Ended(state, exit) => Finding {
            leftover: Leftover {
                kind: LeftoverKind::UnrecordedExit,
                what: id.to_string(),
                reason: "its monitor was killed before it could record the end".to_owned(),
            },
            remedy: Remedy::RecordExit(
                id,
                exit.unwrap_or_else(|| ExitRecord::unseen(&state.started)),
            ),
        },
        Observed::Idle => return Ok(None),
    };
    Ok(Some(finding))
}

/// A directory without a row; `None` while its remover is at work.
fn inspect_orphan(paths: &EngineConfig, name: &str) -> Result<Option<Finding>> {
    let path = paths.containers_dir().join(name);
    let remedy = match ContainerId::parse(name) {
        Some(id) => {
            let lock = LockedContainer::try_lock_existing(paths, &id);
            let observed = crate::layout::open_dir(&paths.containers_dir())
                .and_then(|base| observe(base.as_fd(), name));
            match (lock, observed) {
                // The row is there before anything runs and goes after: it has been lost.
                (_, Ok(Observed::Running(state))) => Remedy::KillContainer(state, path.clone()),
                (Ok(None), _) => return Ok(None),
                (Err(_), _) if !path.exists() => return Ok(None),
                _ => Remedy::RemoveContainerDirectory(id, path.clone()),
            }
        }
        None => Remedy::RemoveTree(path.clone()),
    };
    Ok(Some(Finding {
        leftover: Leftover {
            kind: LeftoverKind::ContainerDirectory,
            what: path.display().to_string(),
            reason: "there is no such container".to_owned(),
        },
        remedy,
    }))
}

/// True while somebody starts, runs or removes the container.
fn is_locked(paths: &EngineConfig, id: &ContainerId) -> bool {
    matches!(LockedContainer::try_lock_existing(paths, id), Ok(None))
}

fn kill(identity: &ProcessIdentity) -> Result<()> {
    let Some(process) = identity.open()? else {
        return Ok(());
    };
    match send_signal(&process, rustix::process::Signal::KILL.as_raw()) {
        Err(error) if error.errno != rustix::io::Errno::SRCH => return Err(error.into()),
        _ => {}
    }
    wait_for_exit(&process, Some(std::time::Duration::from_secs(10)))?;
    Ok(())
}

/// Names in a directory that may be absent.
pub(crate) fn names_in(dir: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::machine(format!("list {}", dir.display()), error);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // Ours are all plain ASCII; what is not is shown as well as it can be.
        let name = entry.map_err(failed)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Mount points strictly below `dir` in a `/proc/PID/mountinfo` table (proc_pid_mountinfo(5)).
fn mount_points_below(table: &str, dir: &Path) -> Vec<PathBuf> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|point| point.starts_with(dir) && point != dir)
        .collect()
}

/// Undoes the kernel's `\040`-like escapes.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match (first, digits) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_and_unescaped() {
        let table = "\
22 1 8:1 / / rw - ext4 /dev/sda rw
30 22 0:40 / /home/a\\040b/selkie/store/trees rw - tmpfs tmpfs rw
31 22 0:41 / /home/a\\040b/selkie rw - tmpfs tmpfs rw
32 22 0:42 / /home/a\\040b/selkie-other rw - tmpfs tmpfs rw
";
        assert_eq!(
            mount_points_below(table, Path::new("/home/a b/selkie")),
            [PathBuf::from("/home/a b/selkie/store/trees")]
        );
        assert_eq!(unescape("a\\134b\\0"), "a\\b\\0");
    }

    use crate::testing::TestEngine;

    fn listed(test: &mut TestEngine) -> Vec<(LeftoverKind, String)> {
        let found = test.engine.system_check().unwrap();
        found
            .into_iter()
            .map(|leftover| (leftover.kind, leftover.what))
            .collect()
    }

    #[test]
    fn a_healthy_engine_has_no_leftovers() {
        let mut test = TestEngine::new();
        test.container(1, "created", false);
        let running = test.container(2, "running", true);
        test.record_run(&running, true);
        test.engine
            .create_volume(Some("v"), &BTreeMap::new())
            .unwrap();
        assert_eq!(listed(&mut test), []);
        assert_eq!(test.engine.system_prune().unwrap(), []);
        assert_eq!(test.engine.containers().unwrap().len(), 2);
    }

    #[test]
    fn every_kind_of_leftover_is_listed_and_removed() {
        let mut test = TestEngine::new();
        let disposable = test.container(1, "disposable", true);
        let unrecorded = test.container(2, "unrecorded", false);
        test.record_run(&unrecorded, false);
        test.record_exit(&unrecorded, 3);
        let paths = test.engine.config.clone();
        let orphan = ContainerId::from_bytes([3; 32]);
        std::fs::create_dir_all(paths.container_dir(&orphan).join("upper/etc")).unwrap();
        std::fs::create_dir_all(paths.volumes_dir().join("lost/_data")).unwrap();
        // Not mounted: of another boot.
        let spare = paths.spares_dir().join("key,0");
        std::fs::create_dir_all(spare.join("upper")).unwrap();
        std::fs::create_dir_all(paths.attach_dir()).unwrap();
        std::fs::write(paths.attach_dir().join(orphan.as_str()), "").unwrap();
        std::fs::write(paths.store_dir().join("tmp/half"), "").unwrap();

        let dir = |path: PathBuf| path.display().to_string();
        let mut expected = vec![
            (LeftoverKind::DisposableContainer, disposable.to_string()),
            (LeftoverKind::UnrecordedExit, unrecorded.to_string()),
            (
                LeftoverKind::ContainerDirectory,
                dir(paths.container_dir(&orphan)),
            ),
            (
                LeftoverKind::VolumeDirectory,
                dir(paths.volumes_dir().join("lost")),
            ),
            (LeftoverKind::ContainerDirectory, dir(spare.clone())),
            (
                LeftoverKind::Socket,
                dir(paths.attach_dir().join(orphan.as_str())),
            ),
            (
                LeftoverKind::StoreFile,
                dir(paths.store_dir().join("tmp/half")),
            ),
        ];
        assert_eq!(listed(&mut test), expected);
        let mut removed: Vec<(LeftoverKind, String)> = test
            .engine
            .system_prune()
            .unwrap()
            .into_iter()
            .map(|leftover| (leftover.kind, leftover.what))
            .collect();
        removed.sort();
        expected.sort();
        assert_eq!(removed, expected);
        assert_eq!(listed(&mut test), []);
        let left = test.engine.containers().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].exit.as_ref().map(|exit| exit.code), Some(3));
        assert!(!paths.volumes_dir().join("lost").exists());
        assert!(!spare.exists());
    }

    #[test]
    fn what_somebody_is_at_work_on_is_left_alone() {
        let mut test = TestEngine::new();
        let starting = test.container(1, "starting", true);
        let ending = test.container(2, "ending", false);
        test.record_run(&ending, false);
        let locks = [test.lock(&starting), test.lock(&ending)];
        // Being removed: the row is gone already.
        let removing = ContainerId::from_bytes([3; 32]);
        let removal = LockedContainer::make(&test.engine.config, &removing).unwrap();
        assert_eq!(listed(&mut test), []);
        assert_eq!(test.engine.system_prune().unwrap(), []);
        drop((locks, removal));
        assert_eq!(listed(&mut test).len(), 3);
    }

    #[test]
    fn a_running_container_whose_row_was_lost_is_listed() {
        let mut test = TestEngine::new();
        let id = test.container(1, "lost", false);
        test.record_run(&id, true);
        test.engine
            .database
            .write(Durability::ProcessCrash, |transaction| {
                transaction.execute("DELETE FROM container", [])?;
                Ok(())
            })
            .unwrap();
        let dir = test.engine.config.container_dir(&id).display().to_string();
        assert_eq!(listed(&mut test), [(LeftoverKind::ContainerDirectory, dir)]);
    }
}
