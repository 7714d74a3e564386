//! Steps on mounts and paths of the container.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, mknodat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree, unmount,
};
use selkie_sys::fd_passing::send_one;
use selkie_sys::mount::{MountAttributes, set_attributes};

use super::{Child, DEVICES, LINKS, Part, StepResult, open_directory, whole, write_all};
use crate::copy_up;
use crate::in_root::{self, Kind};
use crate::mount_options::attribute;
use crate::protocol::Tag;
use crate::script::{NewFileSystem, Slot, Target, attach_detail};
use crate::terminal;

impl Child {
    pub(super) fn open_directory(&mut self, slot: Slot, path: &CStr) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        self.slots[slot] = Some(in_root::open(self.root()?, path, flags)?);
        Ok(())
    }

    pub(super) fn create(
        &mut self,
        slot: Slot,
        file_system: &NewFileSystem,
        otherwise: Option<&NewFileSystem>,
    ) -> StepResult {
        let made = match (make(file_system), otherwise) {
            (Err(_), Some(otherwise)) => make(otherwise),
            (result, _) => result,
        };
        self.slots[slot] = Some(made?);
        Ok(())
    }

    pub(super) fn clone_host_path(
        &mut self,
        slot: Slot,
        path: &CStr,
        recursive: bool,
    ) -> Result<(), Errno> {
        self.slots[slot] = Some(clone_tree(rustix::fs::CWD, path, recursive)?);
        Ok(())
    }

    pub(super) fn populate_dev(&mut self, target: &Target) -> Result<(), Errno> {
        let dev = in_root::ensure(self.base(target.base)?, &target.path, Kind::Directory)?;
        for device in DEVICES {
            let mode = Mode::from_raw_mode(0o666);
            exists_is_fine(mknodat(&dev, device, FileType::RegularFile, mode, 0))?;
        }
        for (content, name) in LINKS {
            exists_is_fine(symlinkat(content, &dev, name))?;
        }
        Ok(())
    }

    pub(super) fn attach_root(&mut self) -> Result<(), Errno> {
        let root = self.expect(Tag::Root)?.ok_or(Errno::BADMSG)?;
        move_onto_path(root.as_fd(), c"/")?;
        self.root = Some(root);
        Ok(())
    }

    pub(super) fn attach(&mut self, slot: Slot, target: &Target, kind: Kind) -> StepResult {
        let base = self.base(target.base).map_err(whole)?;
        let place = in_root::ensure(base, &target.path, kind).map_err(whole)?;
        let mount = self.slot(slot).map_err(whole)?;
        move_onto(mount, place.as_fd()).map_err(|errno| {
            let onto_directory = in_root::is_directory(place.as_fd());
            match (onto_directory, kind) {
                (Ok(true), Kind::File) => (errno, attach_detail::ONTO_DIRECTORY),
                (Ok(false), Kind::Directory) => (errno, attach_detail::ONTO_FILE),
                _ => (errno, 0),
            }
        })
    }

    pub(super) fn copy_up(&mut self, slot: Slot, target: &Target) -> Result<(), Errno> {
        let base = self.base(target.base)?;
        match in_root::open(base, &target.path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(source) => copy_up::copy_tree(source, self.slot(slot)?),
            // Nothing there to copy; attaching makes the mount point.
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn open_terminal(
        &mut self,
        slot: Slot,
        size: Option<(u16, u16)>,
        console: Option<&Target>,
    ) -> Result<(), Errno> {
        let devpts = self.slot(slot)?;
        let pair = terminal::open(devpts, size)?;
        if let Some(console) = console {
            let mount = clone_tree(devpts, pair.name(), false)?;
            let place = in_root::ensure(self.base(console.base)?, &console.path, Kind::File)?;
            move_onto(mount.as_fd(), place.as_fd())?;
        }
        send_one(
            self.channel.as_fd(),
            &[Tag::Terminal as u8],
            Some(pair.master.as_fd()),
        )?;
        self.terminal = Some(pair.slave);
        Ok(())
    }

    pub(super) fn mask(&mut self, target: &Target, null: Slot) -> Result<(), Errno> {
        let place = match in_root::open(self.base(target.base)?, &target.path, OFlags::PATH) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let cover = if in_root::is_directory(place.as_fd())? {
            let empty = match self.empty_directory.take() {
                Some(empty) => empty,
                None => make_empty_directory()?,
            };
            let cover = clone_tree(&empty, c"", false);
            self.empty_directory = Some(empty);
            cover?
        } else {
            clone_tree(self.slot(null)?, c"", false)?
        };
        move_onto(cover.as_fd(), place.as_fd())
    }

    pub(super) fn read_only(&mut self, target: &Target) -> Result<(), Errno> {
        let place = match in_root::open(self.base(target.base)?, &target.path, OFlags::PATH) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let cover = clone_tree(&place, c"", true)?;
        restrict(cover.as_fd(), attribute::READ_ONLY, true)?;
        move_onto(cover.as_fd(), place.as_fd())
    }

    pub(super) fn sysctl(&mut self, slot: Slot, path: &CStr, value: &str) -> Result<(), Errno> {
        let file = in_root::open(self.slot(slot)?, path, OFlags::WRONLY)?;
        write_all(file.as_fd(), value.as_bytes())
    }

    pub(super) fn open_working_directory(
        &mut self,
        path: &CStr,
        create: bool,
    ) -> Result<(), Errno> {
        let directory = match in_root::open(self.root()?, path, OFlags::PATH) {
            Err(Errno::NOENT) if create => {
                self.made_working_directory = true;
                in_root::ensure(self.root()?, path, Kind::Directory)?
            }
            result => result?,
        };
        if !in_root::is_directory(directory.as_fd())? {
            return Err(Errno::NOTDIR);
        }
        self.working_directory = Some(directory);
        Ok(())
    }

    /// `pivot_root(".", ".")`: the old root ends up on top of the new one, from where it is
    /// detached, so that no directory is needed to keep it.
    pub(super) fn pivot(&mut self, propagation: u64, recursive: bool) -> Result<(), Errno> {
        let root = self.root()?;
        // "/" is still the old root: looking it up does not climb onto what is mounted over it.
        let old = open_directory(rustix::fs::CWD, c"/")?;
        rustix::process::fchdir(root)?;
        rustix::process::pivot_root(c".", c".")?;
        rustix::process::fchdir(&old)?;
        unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")?;
        if propagation != 0 {
            let attributes = MountAttributes {
                propagation,
                ..Default::default()
            };
            set_attributes(root, attributes, recursive).map_err(|error| error.errno)?;
        }
        Ok(())
    }
}

fn exists_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// `detail` is 0 for the mount as a whole, `n` for its `n`th parameter.
fn make(file_system: &NewFileSystem) -> Result<OwnedFd, (Errno, u32)> {
    let context = fsopen(&*file_system.kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(whole)?;
    for (index, (key, value)) in file_system.parameters.iter().enumerate() {
        match value {
            Some(value) => fsconfig_set_string(&context, &**key, &**value),
            None => fsconfig_set_flag(&context, &**key),
        }
        .part(index as u32 + 1)?;
    }
    fsconfig_create(&context).map_err(whole)?;
    let attributes = MountAttrFlags::from_bits_retain(file_system.attributes);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(whole)
}

fn make_empty_directory() -> Result<OwnedFd, Errno> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"mode", c"555")?;
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

fn clone_tree(directory: impl AsFd, path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_NO_AUTOMOUNT
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(directory, path, flags)
}

pub(super) fn restrict(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> Result<(), Errno> {
    let attributes = MountAttributes {
        set,
        clear: if set & attribute::ATIME_MASK == 0 {
            0
        } else {
            attribute::ATIME_MASK
        },
        propagation: 0,
    };
    set_attributes(mount, attributes, recursive).map_err(|error| error.errno)
}

fn move_onto(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", place, c"", flags)
}

fn move_onto_path(mount: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, c"", rustix::fs::CWD, path, flags)
}
