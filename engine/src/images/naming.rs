//! `tag` and `untag`.

use rusqlite::params;
use selkie_image::name::Reference;

use crate::Engine;
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};

fn name_without_digest(text: &str) -> Result<String> {
    let invalid = |message: String| Error::new(ErrorKind::InvalidInput, message);
    let name: Reference = text.parse().map_err(|error| invalid(format!("{error}")))?;
    if name.digest().is_some() {
        return Err(invalid(format!(
            "image name {text}: a digest cannot be chosen, only a tag"
        )));
    }
    Ok(name.into_local().to_string())
}

impl Engine {
    /// Gives an image more names; a name that another image has moves to this one.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for a bad name. All names are given or none.
    pub fn tag(&mut self, name_or_id: &str, names: &[String]) -> Result<()> {
        let names = names
            .iter()
            .map(|name| name_without_digest(name))
            .collect::<Result<Vec<_>>>()?;
        let image = self.image(name_or_id)?;
        self.database.write(Durability::PowerCut, |transaction| {
            for name in &names {
                transaction.execute(
                    "INSERT INTO image_name (name, image_id) VALUES (?1, ?2) \
                     ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id",
                    params![name, image.id],
                )?;
            }
            Ok(())
        })
    }

    /// Takes names away from an image, all when `names` is empty. The image stays.
    ///
    /// # Errors
    /// `NotFound` when there is no such image or it does not have that name. All go or none.
    pub fn untag(&mut self, name_or_id: &str, names: &[String]) -> Result<()> {
        let image = self.image(name_or_id)?;
        let names = if names.is_empty() {
            image.names.clone()
        } else {
            names
                .iter()
                .map(|name| name_without_digest(name))
                .collect::<Result<Vec<_>>>()?
        };
        self.database.write(Durability::PowerCut, |transaction| {
            for name in &names {
                let removed = transaction.execute(
                    "DELETE FROM image_name WHERE name = ?1 AND image_id = ?2",
                    params![name, image.id],
                )?;
                if removed == 0 {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("{name}: image {name_or_id} has no such name"),
                    ));
                }
            }
            Ok(())
        })
    }
}
