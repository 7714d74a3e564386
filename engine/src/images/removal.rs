//! `rmi` and `image prune`.

use rusqlite::{Connection, Transaction, params};

use super::Image;
use crate::Engine;
use crate::container::ContainerId;
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that were taken away.
    pub untagged: Vec<String>,
    /// The image's ID when the image itself is gone.
    pub deleted: Option<String>,
}

impl Engine {
    /// Removes an image, or only the name it was called by when it has others. `force` removes all
    /// names of an image called by its ID, and the containers that use it.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when containers use it or an ID stands for several names, without
    /// `force`.
    pub fn remove_image(&mut self, name_or_id: &str, force: bool) -> Result<Removed> {
        let (image, name) = self.find_image(name_or_id)?;
        if let Some(name) = name.filter(|_| image.names.len() > 1) {
            self.untag(&image.id, std::slice::from_ref(&name))?;
            return Ok(Removed {
                untagged: vec![name],
                deleted: None,
            });
        }
        if image.names.len() > 1 && !force {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "image {} has several names: {}",
                    name_or_id,
                    image.names.join(", ")
                ),
            )
            .with_hint("remove it by one of its names, or use --force to remove all of them"));
        }
        if force {
            for container in self
                .database
                .read(|connection| users(connection, &image.id))?
            {
                // what is stored was made by us
                if let Some(id) = ContainerId::parse(&container.id) {
                    self.remove(&id, true, false)?;
                }
            }
        }
        let removed = self.database.write(Durability::PowerCut, |transaction| {
            delete(transaction, &image)
        })?;
        self.collect_garbage(std::slice::from_ref(&image.chain_id))?;
        Ok(removed)
    }

    /// Removes all images that have no name (`all`: that no container uses) and no container.
    /// Gives what was removed and the bytes that were freed.
    pub fn prune_images(&mut self, all: bool) -> Result<(Vec<Removed>, u64)> {
        let images = self.images()?;
        let (removed, chain_ids) = self.database.write(Durability::PowerCut, |transaction| {
            let mut removed = Vec::new();
            let mut chain_ids = Vec::new();
            for image in &images {
                let unused = users(transaction, &image.id)?.is_empty();
                if unused && (all || names(transaction, &image.id)?.is_empty()) {
                    removed.push(delete(transaction, image)?);
                    chain_ids.push(image.chain_id.clone());
                }
            }
            Ok((removed, chain_ids))
        })?;
        if removed.is_empty() {
            return Ok((removed, 0));
        }
        let freed = self.collect_garbage(&chain_ids)?;
        Ok((removed, freed))
    }

    /// Removes what images that are gone have left in the store.
    fn collect_garbage(&self, chain_ids: &[String]) -> Result<u64> {
        let lock = self.store.lock_exclusive()?;
        let live = self.live_images()?;
        let presenter = selkie_storage::presenter::choose(None)?;
        for chain_id in chain_ids {
            if !live.chain_ids.contains(chain_id) {
                presenter.forget(&self.store, chain_id)?;
            }
        }
        // After that: a monitor that ends now leaves no spare of what was forgotten.
        crate::container::spare::clear(&self.config)?;
        let garbage = self
            .store
            .remove_garbage(&lock, &live.chain_ids, &live.layers)?;
        Ok(garbage.bytes)
    }
}

struct User {
    id: String,
    name: String,
}

/// Containers of an image.
fn users(connection: &Connection, image_id: &str) -> Result<Vec<User>> {
    let mut statement = connection
        .prepare("SELECT id, name FROM container WHERE image_id = ?1 ORDER BY created")?;
    let users = statement.query_map([image_id], |row| {
        Ok(User {
            id: row.get(0)?,
            name: row.get(1)?,
        })
    })?;
    Ok(users.collect::<rusqlite::Result<_>>()?)
}

fn names(connection: &Connection, image_id: &str) -> Result<Vec<String>> {
    let mut statement =
        connection.prepare("SELECT name FROM image_name WHERE image_id = ?1 ORDER BY name")?;
    let names = statement.query_map([image_id], |row| row.get(0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

/// Deletes an image's rows unless a container uses it.
fn delete(transaction: &Transaction<'_>, image: &Image) -> Result<Removed> {
    let users = users(transaction, &image.id)?;
    if let Some(first) = users.first() {
        let (short, name) = (&first.id[..first.id.len().min(12)], &first.name);
        let others = match users.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "image {} is in use by container {short} ({name}){others}",
                &image.id[..12]
            ),
        )
        .with_hint("remove the container first, or use --force to remove both"));
    }
    let untagged = names(transaction, &image.id)?;
    transaction.execute(
        "DELETE FROM image_name WHERE image_id = ?1",
        params![image.id],
    )?;
    transaction.execute("DELETE FROM image WHERE id = ?1", params![image.id])?;
    Ok(Removed {
        untagged,
        deleted: Some(image.id.clone()),
    })
}
