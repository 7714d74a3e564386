//! Making a container: one row, one directory, one lease, in one transaction.

use rusqlite::{OptionalExtension, Transaction};
use selkie_storage::image_index::ImageIds;
use selkie_userns::IdMaps;

use crate::container::lease::{self, Acquired, acquire, maps_json, plan};
use crate::container::merge::{Login, merge};
use crate::container::spare::{self, Lot};
use crate::container::{ContainerConfig, ContainerId, StartMode, Started, fill_random, name};
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::LockedContainer;
use crate::network::connect::{self, Connection, Who};
use crate::network::{own_connector, ports};
use crate::options::{CreateOptions, MountSource, NetworkMode, RootSource, UsernsMode};
use crate::state::{boot_id, now, observe};
use crate::volume;
use crate::{Engine, EngineConfig};

/// A container that has just been made, still locked by the caller.
pub(crate) struct Created {
    pub id: ContainerId,
    pub name: String,
    pub config: ContainerConfig,
    pub chain_id: Option<String>,
    pub maps: IdMaps,
    /// Its places in networks, when it is to start at once.
    pub connection: Option<Connection>,
    pub lock: LockedContainer,
    pub lot: Option<Lot>,
}

/// What a container is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be started some time.
    Create,
    /// To be started at once, and to be removed at its end if `disposable`.
    Run { disposable: bool },
}

/// Where the root file system comes from, looked up.
struct Root {
    image_id: Option<String>,
    image_name: String,
    chain_id: Option<String>,
    ids: ImageIds,
    config: Option<oci_spec::image::Config>,
}

impl Engine {
    /// Makes a container without starting it.
    ///
    /// # Errors
    /// `NotFound`: no such image. `Conflict`: the name is taken, or no IDs are left. `InvalidInput`:
    /// what was asked for cannot be.
    pub fn create(&mut self, options: CreateOptions) -> Result<ContainerId> {
        Ok(self
            .make(options, Purpose::Create, Durability::PowerCut)?
            .id)
    }

    /// Makes and starts in one go (`run`): fewer steps than `create` then `start`. When it does not
    /// start, nothing is left of it.
    ///
    /// # Errors
    /// As [`Self::create`] and [`Self::start`].
    pub fn run(&mut self, options: CreateOptions, mode: StartMode) -> Result<Started> {
        let durability = if options.remove {
            Durability::ProcessCrash
        } else {
            Durability::PowerCut
        };
        let purpose = Purpose::Run {
            disposable: options.remove,
        };
        let created = self.make(options, purpose, durability)?;
        let id = created.id.clone();
        self.start_created(created, mode).inspect_err(|_| {
            // The error of the start is the one to tell; what stays is listed by `system check`.
            if let Err(error) = self.discard(&id) {
                tracing::warn!("remove container {id} that did not start: {error}");
            }
        })
    }

    fn make(
        &mut self,
        mut options: CreateOptions,
        purpose: Purpose,
        durability: Durability,
    ) -> Result<Created> {
        if let Some(name) = &options.name {
            name::check(name)?;
        }
        let root = self.look_up_root(&mut options)?;
        if let NetworkMode::Container(target) = &mut options.network {
            *target = self.find_container(target)?.to_string();
        }
        check_binds(&options, self.pause.single_id)?;
        let id = ContainerId::random()?;
        let ids = (self.config.uid, self.config.gid);
        let uname = rustix::system::uname();
        let login = Login {
            ids,
            host_name: &uname.nodename().to_string_lossy(),
        };
        let mut config = merge(&id, options, root.config.as_ref(), root.image_name, &login)?;
        let anonymous = volume::name_anonymous(&mut config.options.mounts)?;
        own_connector::check(&config.options.network)?;
        ports::settle(&mut config.options)?;
        let created = now();

        let Self {
            config: ref paths,
            ref pause,
            ref store,
            ref mut database,
        } = *self;
        let mut lock = None;
        let mut lot = None;
        let made = database.write(durability, |transaction| {
            let name = choose_name(transaction, config.options.name.as_deref())?;
            let mounted = volume::mounted_names(&config.options.mounts);
            let volume_maps = volume::owners(transaction, &mounted)?;
            let plan = plan(&config, &root.ids, &volume_maps, pause, ids)?;
            let lease = acquire(
                transaction,
                &plan,
                &lease::Terms {
                    pause,
                    own: None,
                    preferred: volume_maps.first(),
                    avoid: &volume_maps,
                    is_active: &|id| is_active(paths, id),
                },
            )?;
            let networks = connect::settle(transaction, &mut config.options.network)?;
            insert(
                transaction,
                &id,
                &name,
                &created,
                root.image_id.as_deref(),
                &config,
                &lease,
                purpose == Purpose::Run { disposable: true },
            )?;
            volume::use_volumes(transaction, &id, &mounted, &anonymous, &created)?;
            let connection = if purpose == Purpose::Create {
                None
            } else {
                let who = Who {
                    id: &id,
                    name: &name,
                    options: &config.options,
                };
                connect::connect(transaction, &who, networks, &[], &|id| is_active(paths, id))?
            };
            if purpose == (Purpose::Run { disposable: true }) {
                let chain_id = root.chain_id.as_deref();
                lot = Lot::of(store, pause, &config, chain_id, &lease.maps)?;
            }
            if let Some(lot) = &mut lot {
                lock = spare::take(paths, lot, &id)?;
                lot.taken = lock.is_some();
            }
            if lock.is_none() {
                lock = Some(LockedContainer::make(paths, &id)?);
            }
            Ok((name, lease.maps, connection))
        });
        match (made, lock) {
            (Ok((name, maps, connection)), Some(lock)) => Ok(Created {
                id,
                name,
                config,
                chain_id: root.chain_id,
                maps,
                connection,
                lock,
                lot,
            }),
            (Err(error), Some(lock)) => {
                // The row did not make it (full disk): neither may the directory.
                let _ = spare::remove_directory(&lock.path);
                Err(error)
            }
            (Err(error), None) => Err(error),
            (Ok(_), None) => Err(Error::machine("make the container's directory", "not made")),
        }
    }

    fn look_up_root(&self, options: &mut CreateOptions) -> Result<Root> {
        match &options.root {
            None => Err(Error::new(
                ErrorKind::InvalidInput,
                "an image or a root file system is needed",
            )),
            Some(RootSource::Image(name)) => {
                let image = self.image(name)?;
                let index = self.store.open_image_index(&image.chain_id)?;
                Ok(Root {
                    image_name: image_name(&image, name),
                    image_id: Some(image.id),
                    chain_id: Some(image.chain_id),
                    ids: index.ids(),
                    config: image.config.config().clone(),
                })
            }
            Some(RootSource::Directory(path)) => {
                if !path.is_dir() {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        format!("--rootfs {}: no such directory", path.display()),
                    ));
                }
                match options.userns {
                    // Its files are the login's, so a slice would show them all as nobody's.
                    UsernsMode::AutoDefault => options.userns = UsernsMode::Host,
                    UsernsMode::Auto { .. } | UsernsMode::Nomap if !self.pause.single_id => {
                        return Err(Error::new(
                            ErrorKind::InvalidInput,
                            format!(
                                "--rootfs {}: its files belong to the login, who is not mapped in this --userns mode",
                                path.display()
                            ),
                        )
                        .with_hint("leave --userns out, or use --userns=host or --userns=keep-id"));
                    }
                    _ => {}
                }
                Ok(Root {
                    image_id: None,
                    image_name: String::new(),
                    chain_id: None,
                    ids: ImageIds::default(),
                    config: None,
                })
            }
        }
    }

    /// Removes what [`Self::make`] made and nobody runs.
    fn discard(&mut self, id: &ContainerId) -> Result<()> {
        let lock = LockedContainer::wait(&self.config, id)?;
        self.remove_locked(id, lock, true)
    }
}

/// True while a container, given by its row's ID, runs or somebody starts, changes or removes it.
pub(crate) fn is_active(config: &EngineConfig, id: &str) -> bool {
    let Some(id) = ContainerId::parse(id) else {
        return false;
    };
    // When in doubt it is: taking IDs from a running container would break it.
    match LockedContainer::try_lock_existing(config, &id) {
        Ok(Some(lock)) => {
            boot_id().is_err()
                || !matches!(
                    observe(std::os::fd::AsFd::as_fd(&lock.dir), "."),
                    Ok(crate::state::Observed::Idle | crate::state::Observed::Ended(..))
                )
        }
        Ok(None) => true,
        Err(_) => config.container_dir(&id).exists(),
    }
}

/// The name to show: the one asked for when the image has it, as the image has it.
fn image_name(image: &crate::images::Image, asked: &str) -> String {
    let fits = |name: &&String| {
        let without_tag = name
            .rsplit_once(':')
            .map_or(name.as_str(), |(path, _)| path);
        [name.as_str(), without_tag].iter().any(|full| {
            *full == asked
                || full
                    .strip_suffix(asked)
                    .is_some_and(|rest| rest.ends_with('/'))
        })
    };
    image
        .names
        .iter()
        .find(fits)
        .or_else(|| image.names.first())
        .cloned()
        .unwrap_or_else(|| asked.to_owned())
}

/// Plain binds show the login's files, so the login must be somebody in the container.
fn check_binds(options: &CreateOptions, single_id: bool) -> Result<()> {
    let slice = match &options.userns {
        UsernsMode::AutoDefault | UsernsMode::Auto { .. } | UsernsMode::Nomap => !single_id,
        UsernsMode::Maps { uid, .. } => !uid.iter().any(|(_, outside, _)| *outside == 0),
        UsernsMode::KeepId { .. } | UsernsMode::Host => false,
    };
    for mount in &options.mounts {
        let MountSource::Bind(source) = &mount.source else {
            continue;
        };
        if let Err(error) = std::fs::metadata(source) {
            let cause = error
                .raw_os_error()
                .map(rustix::io::Errno::from_raw_os_error)
                .filter(|errno| *errno == rustix::io::Errno::NOENT)
                .map_or_else(
                    || error.to_string(),
                    |_| "no such file or directory".to_owned(),
                );
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("statfs {}: {cause}", source.display()),
            ));
        }
        if slice {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} belongs to the host, and this container runs in a slice of IDs that excludes the login: it could neither own nor write anything there",
                    source.display()
                ),
            )
            .with_hint("use --userns=keep-id (or host), or a named volume"));
        }
    }
    Ok(())
}

fn choose_name(transaction: &Transaction<'_>, wanted: Option<&str>) -> Result<String> {
    let holder = |name: &str| -> Result<Option<String>> {
        Ok(transaction
            .prepare_cached("SELECT id FROM container WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?)
    };
    if let Some(name) = wanted {
        return match holder(name)? {
            None => Ok(name.to_owned()),
            Some(id) => Err(Error::new(
                ErrorKind::Conflict,
                format!("the container name {name:?} is already in use by {id}"),
            )
            .with_hint("remove that container to reuse its name, or give another with --name")),
        };
    }
    for attempt in 0u32.. {
        let mut random = [0u8; 8];
        fill_random(&mut random)?;
        let name = name::made_up(u64::from_le_bytes(random), attempt);
        if holder(&name)?.is_none() {
            return Ok(name);
        }
    }
    Err(Error::machine("make up a container name", "all are taken"))
}

#[allow(clippy::too_many_arguments)]
fn insert(
    transaction: &Transaction<'_>,
    id: &ContainerId,
    name: &str,
    created: &str,
    image_id: Option<&str>,
    config: &ContainerConfig,
    lease: &Acquired,
    disposable: bool,
) -> Result<()> {
    let json = serde_json::to_string(config)
        .map_err(|error| Error::machine("write the container's configuration", error))?;
    let maps = maps_json(&lease.maps)?;
    transaction.execute(
        "INSERT INTO container (id, name, image_id, created, config, lease, owned_by, disposable) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        rusqlite::params![
            id.as_str(),
            name,
            image_id,
            created,
            json,
            lease.exclusive.then_some(&maps),
            maps,
            disposable
        ],
    )?;
    Ok(())
}
