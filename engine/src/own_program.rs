//! Which containers our own program file must be kept from, before anything is started in them.

use std::ffi::OsString;

use crate::Engine;
use crate::container::ContainerId;
use crate::error::Result;
use crate::options::UsernsMode;

impl Engine {
    /// To be called before [`Engine::run`] with a container that will have this mode. Where the login
    /// is mapped into it and may write to the file this process executes, the process executes
    /// itself again, with `arguments`, from a view of the file that nobody can write to, and this
    /// does not return: so nothing may be done before that must not be done twice.
    ///
    /// # Errors
    /// Such a view cannot be made.
    pub fn protect_own_program(
        &self,
        mode: &UsernsMode,
        arguments: impl Iterator<Item = OsString>,
    ) -> Result<()> {
        if has_login(mode, self.pause.single_id) {
            selkie_runtime::own_program::protect(arguments)?;
        }
        Ok(())
    }

    /// As [`Self::protect_own_program`], before [`Engine::start`] and [`Engine::exec`].
    ///
    /// # Errors
    /// As there; no such container.
    pub fn protect_own_program_from(
        &self,
        id: &ContainerId,
        arguments: impl Iterator<Item = OsString>,
    ) -> Result<()> {
        self.protect_own_program(&self.stored_config(id)?.options.userns, arguments)
    }
}

/// True when some ID of the container is the login's own.
fn has_login(mode: &UsernsMode, single_id: bool) -> bool {
    let maps_own = |maps: &[(u32, u32, u32)]| maps.iter().any(|(_, outside, _)| *outside == 0);
    match mode {
        UsernsMode::Host | UsernsMode::KeepId { .. } => true,
        UsernsMode::Maps { uid, gid } => maps_own(uid) || maps_own(gid),
        UsernsMode::AutoDefault | UsernsMode::Auto { .. } | UsernsMode::Nomap => single_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_with_the_login_in_them() {
        let maps = |outside| UsernsMode::Maps {
            uid: vec![(0, 1, 10), (10, outside, 1)],
            gid: vec![(0, 1, 11)],
        };
        assert!(has_login(&maps(0), false));
        assert!(!has_login(&maps(30), false));
        assert!(has_login(&UsernsMode::Host, false));
        assert!(!has_login(&UsernsMode::AutoDefault, false));
        assert!(has_login(&UsernsMode::AutoDefault, true));
    }
}
