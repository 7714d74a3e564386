//! Finding the programs of others that this crate starts.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};
use serde::{Deserialize, Serialize};

/// An executable file, and which build of it: what was learnt by trying one holds for as long as all
/// three are the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Program {
    /// Where it is; absolute if the search list was.
    pub path: PathBuf,
    /// Seconds and nanoseconds of its last modification.
    pub modified: (i64, i64),
    /// Its size in bytes.
    pub size: u64,
}

/// A program is in none of the directories where one was looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no program {name} in {}: install the package {package}", looked_in(.search))]
pub struct NotFound {
    /// Name of the file.
    pub name: String,
    /// What distributions call the package that has it.
    pub package: &'static str,
    /// The directories, in their order.
    pub search: Vec<PathBuf>,
}

fn looked_in(search: &[PathBuf]) -> String {
    if search.is_empty() {
        return "an empty search list".into();
    }
    let directories: Vec<String> = search
        .iter()
        .map(|directory| directory.display().to_string())
        .collect();
    directories.join(":")
}

impl Program {
    /// The first executable file called `name` in the directories of `search`.
    ///
    /// # Errors
    /// [`NotFound`], with `package` in its text.
    pub fn find(name: &str, package: &'static str, search: &[PathBuf]) -> Result<Self, NotFound> {
        search
            .iter()
            .find_map(|directory| Self::at(&directory.join(name)))
            .ok_or_else(|| NotFound {
                name: name.to_owned(),
                package,
                search: search.to_vec(),
            })
    }

    /// The file at `path`, if the caller may execute it.
    pub fn at(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        let executable = rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok();
        (metadata.is_file() && executable).then(|| Self {
            path: path.to_owned(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.size(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_an_executable_file_is_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let places: Vec<PathBuf> = ["a", "b", "c", "d"]
            .map(|name| dir.path().join(name))
            .into();
        for place in &places[..3] {
            std::fs::create_dir(place).unwrap();
        }
        // A directory, a file that cannot be executed, a directory that does not exist.
        std::fs::create_dir(places[0].join("pasta")).unwrap();
        std::fs::write(places[1].join("pasta"), "x").unwrap();
        let error = Program::find("pasta", "passt", &places).unwrap_err();
        assert!(error.to_string().contains("install the package passt"));
        std::fs::write(places[2].join("pasta"), "xyz").unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(places[2].join("pasta"), mode).unwrap();
        let found = Program::find("pasta", "passt", &places).unwrap();
        assert_eq!(found.path, places[2].join("pasta"));
        assert_eq!(found.size, 3);
    }
}
