//! What a container's processes may do, for `inspect`.

use selkie_runtime::default_spec;

use crate::error::{Error, ErrorKind, Result};
use crate::options::CreateOptions;

impl CreateOptions {
    /// Names (`CAP_CHOWN`) of the capabilities root of the container has, sorted: the defaults,
    /// with `--cap-add` and `--cap-drop` applied.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is no capability.
    pub fn capabilities(&self) -> Result<Vec<String>> {
        let found = default_spec::capabilities(&self.cap_add, &self.cap_drop)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?;
        let mut names: Vec<String> = found
            .into_iter()
            .map(default_spec::capability_name)
            .collect();
        names.sort_unstable();
        Ok(names)
    }
}
