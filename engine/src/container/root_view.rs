//! A container's root file system as seen from outside: `export` now, `cp`, `diff`, `commit` later.
//!
//! Of a running container it is what its init sees, without the mounts in it. Of one that does not run
//! it is mounted for the occasion, in a user namespace made only for its ID maps and gone at once; the
//! container's lock keeps everybody else from starting it meanwhile.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::DumpableBehavior;
use selkie_storage::container_layer::ContainerLayer;
use selkie_storage::presenter::{RootRequest, bind_root, choose};
use selkie_sys::clone::{CloneNamespaces, Side, clone3, exit_now};
use selkie_userns::IdMaps;

use crate::Engine;
use crate::container::ContainerId;
use crate::container::start::{Launch, Purpose};
use crate::error::{Error, Result};
use crate::spec::map_text;
use crate::state::Observed;

impl Engine {
    /// The container's root file system as a tar stream (`export`); it may run or not.
    ///
    /// # Errors
    /// `NotFound`; the tree cannot be read or `out` not written.
    pub fn export(&mut self, id: &ContainerId, out: &mut dyn Write) -> Result<()> {
        if let Observed::Running(state) = self.observe(id)? {
            let maps = self.container(id)?.maps.unwrap_or_default();
            let path = format!("/proc/{}/root", state.init.pid);
            let root = rustix::fs::open(
                &path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|errno| Error::machine(format!("open the root of container {id}"), errno))?;
            // Only now is it certain that the number was still its own.
            if state.is_running() {
                return crate::export::write_tar(root.as_fd(), &maps, out);
            }
        }
        let launch = self.prepare(id, Purpose::Look)?;
        let root = self.mount_stopped(&launch)?;
        crate::export::write_tar(root.as_fd(), &launch.maps, out)
    }

    fn mount_stopped(&self, launch: &Launch) -> Result<OwnedFd> {
        if let Some(directory) = launch.root_directory() {
            return Ok(bind_root(directory)?);
        }
        let Some(chain_id) = &launch.chain_id else {
            return Err(Error::machine(
                format!("look into container {}", launch.id),
                "its image is gone",
            ));
        };
        let layer = ContainerLayer::create(&launch.lock.path)?;
        let user_namespace = user_namespace(&launch.maps, &self.pause.host_maps)?;
        Ok(choose(None)?.mount_root(
            &self.store,
            &RootRequest {
                chain_id,
                layer: &layer,
                user_namespace: user_namespace.as_fd(),
                maps: &launch.maps,
                volatile: launch.disposable,
                single_id: self.pause.single_id,
            },
        )?)
    }
}

/// A user namespace with these maps and nothing in it.
fn user_namespace(maps: &IdMaps, pause_maps: &IdMaps) -> Result<OwnedFd> {
    let pipe = || {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| Error::machine("make a pipe", errno))
    };
    let (ready, tell_ready) = pipe()?;
    let (end, tell_end) = pipe()?;
    let (pid, pidfd) = match clone3(CloneNamespaces::USER, None)? {
        Side::Child => {
            drop((ready, tell_end));
            // Whoever has joined a namespace is not dumpable, and neither are its children: their
            // files in /proc would belong to the host's root.
            let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable);
            let _ = rustix::io::write(&tell_ready, b"r");
            let _ = rustix::io::read(&end, &mut [0u8; 1]);
            exit_now(0)
        }
        Side::Parent { pid, pidfd } => (pid.as_raw_nonzero(), pidfd),
    };
    drop((tell_ready, end));
    let _ = rustix::io::retry_on_intr(|| rustix::io::read(&ready, &mut [0u8; 1]));
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/{pid}/{file}"), text)
            .map_err(|error| Error::machine(format!("write /proc/{pid}/{file}"), error))
    };
    let namespace = write("uid_map", map_text(&maps.uid, &pause_maps.uid))
        .and_then(|()| write("gid_map", map_text(&maps.gid, &pause_maps.gid)))
        .and_then(|()| {
            let path = format!("/proc/{pid}/ns/user");
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| Error::machine(format!("open {path}"), errno))
        });
    drop(tell_end);
    crate::exec::wait_for(&pidfd)?;
    namespace
}
