//! A stand-in for the pause namespace: the test's own user and mount namespace with 65537 IDs.
//!
//! Making one needs a process with a single thread, so the test programs that use it run without
//! libtest's threads. Root writes the maps itself (and gives the namespace's files to a made-up
//! login); anybody else goes through `newuidmap`.
#![allow(dead_code, reason = "every test program uses its own part of this")]

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags, mount_change};
use rustix::process::{Gid, Pid, Uid, WaitOptions, waitpid};
use selkie_sys::clone::{CloneNamespaces, Side, clone3, exit_now};
use selkie_userns::{IdExtent, IdMap, IdMaps};

/// Why a test cannot run here.
pub type Skip = String;

/// The login and its first subordinate ID, as the host numbers them.
#[derive(Debug, Clone, Copy)]
struct Identity {
    login: u32,
    group: u32,
    first_uid: u32,
    first_gid: u32,
}

fn identity() -> Result<Identity, Skip> {
    let login = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    if login == 0 {
        return Ok(Identity {
            login: 54321,
            group: 54321,
            first_uid: 2_000_000,
            first_gid: 2_000_000,
        });
    }
    let name = Command::new("id").arg("-un").output();
    let name = name.map_err(|error| format!("id: {error}"))?.stdout;
    let name = String::from_utf8_lossy(&name).trim().to_owned();
    let first = |path: &str| -> Result<u32, Skip> {
        std::fs::read_to_string(path)
            .map_err(|error| format!("{path}: {error}"))?
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| {
                (fields[0] == name || fields[0] == login.to_string())
                    && fields.get(2).and_then(|count| count.parse().ok()) >= Some(65536)
            })
            .and_then(|fields| fields[1].parse().ok())
            .ok_or_else(|| format!("{path} gives {name} no 65536 IDs"))
    };
    Ok(Identity {
        login,
        group,
        first_uid: first("/etc/subuid")?,
        first_gid: first("/etc/subgid")?,
    })
}

/// Runs `body` as root of a new pause-like namespace, in an empty directory that belongs to it.
/// `body` runs in another process: only success or failure comes back.
pub fn in_pause_namespace(body: impl FnOnce(&Path)) -> Result<(), Skip> {
    let identity = identity()?;
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let owner = (Some(identity.login), Some(identity.group));
    std::os::unix::fs::chown(scratch.path(), owner.0, owner.1)
        .map_err(|error| error.to_string())?;
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let child = clone3(CloneNamespaces::USER | CloneNamespaces::MOUNT, None)
        .map_err(|error| error.to_string())?;
    let Side::Parent { pid, .. } = child else {
        drop(writer);
        wait_for_go(&reader);
        exit_now(run(|| {
            become_root();
            mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )
            .unwrap();
            body(scratch.path());
        }));
    };
    let mapped = write_maps(pid, &identity);
    if mapped.is_ok() {
        rustix::io::write(&writer, b"x").map_err(|error| error.to_string())?;
    }
    drop(writer);
    let status = wait(pid);
    remove_as(&identity, scratch);
    mapped?;
    assert!(status == 0, "the test failed, see above");
    Ok(())
}

fn wait_for_go(reader: &OwnedFd) {
    if rustix::io::read(reader, &mut [0u8; 1]) != Ok(1) {
        exit_now(9);
    }
}

/// What is left belongs to subordinate IDs, so it is removed from a namespace that maps them.
fn remove_as(identity: &Identity, scratch: tempfile::TempDir) {
    if identity.login == 54321 {
        return;
    }
    let Ok((reader, writer)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) else {
        return;
    };
    match clone3(CloneNamespaces::USER, None) {
        Ok(Side::Child) => {
            drop(writer);
            wait_for_go(&reader);
            exit_now(run(|| {
                become_root();
                drop(std::fs::remove_dir_all(scratch.path()));
            }));
        }
        Ok(Side::Parent { pid, .. }) => {
            if write_maps(pid, identity).is_ok() {
                let _ = rustix::io::write(&writer, b"x");
            }
            drop(writer);
            wait(pid);
        }
        Err(error) => eprintln!("{error}"),
    }
}

fn run(body: impl FnOnce()) -> i32 {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// Takes the IDs that the namespace calls 0.
pub fn become_root() {
    let _ = rustix::thread::set_thread_groups(&[]);
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).unwrap();
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).unwrap();
    // Changing IDs takes the files in /proc away from us.
    let dumpable = rustix::process::DumpableBehavior::Dumpable;
    rustix::process::set_dumpable_behavior(dumpable).unwrap();
}

/// Exit code, or 128 + signal.
pub fn wait(pid: Pid) -> i32 {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(Some((_, status))) => {
                return status
                    .exit_status()
                    .unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or_default());
            }
            other => panic!("waitpid: {other:?}"),
        }
    }
}

fn write_maps(pid: Pid, identity: &Identity) -> Result<(), Skip> {
    let process = pid.as_raw_nonzero().to_string();
    let maps = [
        ("uid_map", "newuidmap", identity.login, identity.first_uid),
        ("gid_map", "newgidmap", identity.group, identity.first_gid),
    ];
    for (file, program, own, first) in maps {
        if rustix::process::getuid().is_root() {
            std::fs::write(
                format!("/proc/{process}/{file}"),
                format!("0 {own} 1\n1 {first} 65536\n"),
            )
            .map_err(|error| format!("{file}: {error}"))?;
            continue;
        }
        let (own, first) = (own.to_string(), first.to_string());
        let output = Command::new(program)
            .args([&process, "0", &own, "1", "1", &first, "65536"])
            .output()
            .map_err(|error| format!("{program}: {error}"))?;
        if !output.status.success() {
            return Err(format!(
                "{program}: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
    }
    Ok(())
}

/// Container ID 0..count ↔ `base`.. of the pause namespace.
pub fn slice(base: u32, count: u32) -> IdMaps {
    let map = IdMap::new(vec![IdExtent {
        inside: 0,
        outside: base,
        count,
    }])
    .unwrap();
    IdMaps {
        uid: map.clone(),
        gid: map,
    }
}

/// The kernel takes no extent that crosses a border of the map above, which here is behind ID 0.
fn proc_text(map: &IdMap) -> String {
    map.extents()
        .iter()
        .flat_map(|extent| match extent.outside {
            0 => vec![
                (extent.inside, 0, 1),
                (extent.inside + 1, 1, extent.count - 1),
            ],
            outside => vec![(extent.inside, outside, extent.count)],
        })
        .filter(|(_, _, count)| *count > 0)
        .map(|(inside, outside, count)| format!("{inside} {outside} {count}\n"))
        .collect()
}

/// A container's user namespace with these maps (container ↔ pause namespace).
pub fn user_namespace(maps: &IdMaps) -> OwnedFd {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let Side::Parent { pid, .. } = clone3(CloneNamespaces::USER, None).unwrap() else {
        drop(writer);
        let _ = rustix::io::read(&reader, &mut [0u8; 1]);
        exit_now(0)
    };
    let process = pid.as_raw_nonzero();
    for (file, map) in [("uid_map", &maps.uid), ("gid_map", &maps.gid)] {
        std::fs::write(format!("/proc/{process}/{file}"), proc_text(map)).unwrap();
    }
    let file = std::fs::File::open(format!("/proc/{process}/ns/user")).unwrap();
    drop(writer);
    wait(pid);
    file.into()
}

/// Runs `body` as container root with `root` as `/` (and the host's `/proc` if there is a directory
/// for it), in another process, and gives its exit code. The mount is gone afterwards.
pub fn in_container(root: &OwnedFd, user_namespace: &OwnedFd, body: impl FnOnce()) -> i32 {
    let Side::Parent { pid, .. } = clone3(CloneNamespaces::MOUNT, None).unwrap() else {
        exit_now(run(|| {
            // Copies of the detached mount do not exist; it is attached for good, here only.
            let here = std::env::temp_dir();
            rustix::mount::mount("none", &here, "tmpfs", MountFlags::empty(), c"").unwrap();
            let target = here.join("root");
            std::fs::create_dir(&target).unwrap();
            rustix::mount::move_mount(
                root,
                "",
                rustix::fs::CWD,
                &target,
                rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
            .unwrap();
            let proc = target.join("proc");
            if proc.is_dir() {
                rustix::mount::mount_bind_recursive("/proc", &proc).unwrap();
            }
            rustix::process::chroot(&target).unwrap();
            std::env::set_current_dir("/").unwrap();
            selkie_sys::namespace::join_by_fd(user_namespace.as_fd()).unwrap();
            become_root();
            body();
        }));
    };
    wait(pid)
}

/// A test's name and what runs in the namespace.
pub type Test = (&'static str, fn(&Path));

/// Runs the named tests one after the other in this thread. A test that cannot run here is shown as
/// ignored, or fails when `SELKIE_TEST_MUST` is 1.
pub fn run_tests(tests: &[Test]) -> std::process::ExitCode {
    let mut arguments = libtest_mimic::Arguments::from_args();
    arguments.test_threads = Some(1);
    let must = std::env::var_os("SELKIE_TEST_MUST").is_some_and(|value| value == "1");
    let trials = tests
        .iter()
        .map(|&(name, body)| {
            libtest_mimic::Trial::ignorable_test(name, move || match in_pause_namespace(body) {
                Ok(()) => Ok(libtest_mimic::Completion::Completed),
                Err(reason) if must => Err(reason.into()),
                Err(reason) => Ok(libtest_mimic::Completion::ignored_with(reason)),
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
