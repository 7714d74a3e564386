//! Containers in a cgroup of their own.

#[path = "support/mod.rs"]
mod support;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use support::*;

fn main() -> std::process::ExitCode {
    run_root_tests(
        cgroups_can_be_made,
        &[("launch_and_exec_start_in_it", launch_and_exec_start_in_it)],
    )
}

fn cgroups_can_be_made() -> Result<(), Skip> {
    let directory = hierarchy()?.join(own_name());
    let made = std::fs::create_dir(&directory).and_then(|()| std::fs::remove_dir(&directory));
    made.map_err(|error| format!("{}: {error}", directory.display()))
}

/// Where this host has cgroup v2.
fn hierarchy() -> Result<PathBuf, Skip> {
    let mounts = std::fs::read_to_string("/proc/mounts").map_err(|error| error.to_string())?;
    let mut lines = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find(|fields| fields[2] == "cgroup2");
    found
        .map(|fields| fields[1].into())
        .ok_or_else(|| "cgroup2 is not mounted".into())
}

fn own_name() -> String {
    format!("selkie-test-{}", std::process::id())
}

struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        eventually("the cgroup is empty", || {
            std::fs::remove_dir(&self.0).is_ok()
        });
    }
}

fn launch_and_exec_start_in_it() {
    let name = own_name();
    let cgroup = Cgroup(hierarchy().unwrap().join(&name));
    std::fs::create_dir(&cgroup.0).unwrap();
    let open = |path: &Path| -> OwnedFd { std::fs::File::open(path).unwrap().into() };
    let within = |mut run: Run| {
        run.spec.uid_maps = vec![(0, 2_000_000, 5000)];
        run.spec.gid_maps = vec![(0, 2_000_000, 5000)];
        run.cgroup = Some(open(&cgroup.0));
        run
    };
    let of = |pid: rustix::process::Pid| {
        let path = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix("0::"))
            .unwrap()
            .to_owned()
    };
    let image = Image::new();
    let container = image.sleeper(within(command(&["sleep", "100"])));
    assert_eq!(of(container.launched.pid), format!("/{name}"));
    // Its cgroup is the root of what it sees.
    let seen = || {
        within(sh(
            "grep ^0:: /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.procs",
        ))
    };
    let expected = "0::/\n/sys/fs/cgroup/cgroup.procs\n";
    assert_eq!(image.run(seen()).ok(), expected);
    let (launched, pipes) = container.prepare(seen()).unwrap();
    assert_eq!(of(launched.pid), format!("/{name}"));
    assert_eq!(finish(launched, pipes).unwrap().ok(), expected);
}
