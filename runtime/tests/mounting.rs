//! What containers find in their file systems.

#[path = "support/mod.rs"]
mod support;

use selkie_runtime::default_spec::Network;
use selkie_runtime::launch::LaunchError;
use support::*;

fn main() -> std::process::ExitCode {
    run_tests(&[
        ("mounts", mounts),
        ("devices_work", devices_work),
        ("paths_are_masked_and_read_only", paths_are_masked),
        ("sysctls", sysctls),
        ("working_directories", working_directories),
        ("read_only_roots", read_only_roots),
        ("binds", binds),
        ("tmpfs_copies_up", tmpfs_copies_up),
    ])
}

fn mounts() {
    let image = Image::new();
    let table = image.sh("cat /proc/mounts");
    let found = |destination: &str| -> (String, Vec<String>) {
        let line = table
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[1] == destination)
            .unwrap_or_else(|| panic!("nothing on {destination}:\n{table}"));
        let options = line[3].split(',').map(str::to_owned).collect();
        (line[2].to_owned(), options)
    };
    let expected = [
        ("/proc", "proc", "rw nosuid nodev noexec"),
        ("/dev", "tmpfs", "rw nosuid noexec size=65536k mode=755"),
        ("/sys", "sysfs", "ro nosuid nodev noexec"),
        (
            "/dev/pts",
            "devpts",
            "rw nosuid noexec mode=620 ptmxmode=666",
        ),
        ("/dev/mqueue", "mqueue", "rw nosuid nodev noexec"),
        ("/dev/shm", "tmpfs", "rw nosuid nodev noexec size=64000k"),
        ("/proc/bus", "proc", "ro"),
        ("/proc/sys", "proc", "ro"),
    ];
    for (destination, kind, options) in expected {
        let (found_kind, found_options) = found(destination);
        assert_eq!(found_kind, kind, "{destination}");
        for option in options.split(' ') {
            assert!(
                found_options.iter().any(|found| found == option),
                "{destination} lacks {option}: {found_options:?}"
            );
        }
    }
    let cgroup = found("/sys/fs/cgroup");
    assert!(["cgroup2", "tmpfs"].contains(&&*cgroup.0), "{cgroup:?}");
    assert!(cgroup.1.contains(&"ro".to_owned()));
}

fn devices_work() {
    let image = Image::new();
    let script = "head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; \
        echo x > /dev/null; echo x > /dev/full || echo full; \
        for n in fd stdin stdout stderr ptmx; do readlink /dev/$n; done; \
        test -c /dev/tty && test -c /dev/random && echo nodes; \
        touch /dev/shm/x /dev/mqueue/y && echo writable";
    let out = image.run(sh(script)).ok();
    assert_eq!(
        out,
        "3\n3\nfull\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n\
         nodes\nwritable\n"
    );
}

fn paths_are_masked() {
    let image = Image::new();
    let script = "cat /proc/timer_list | wc -c; cat /proc/keys | wc -c; ls /sys/firmware | wc -l; \
        mkdir /sys/firmware/x || echo kept; echo 1 > /proc/sys/kernel/panic || echo kept; \
        echo b > /proc/sysrq-trigger || echo kept";
    assert_eq!(image.run(sh(script)).ok(), "0\n0\n0\nkept\nkept\nkept\n");
    std::fs::create_dir(image.path("secret")).unwrap();
    image.write("secret/file", "hidden");
    let run = sh("ls /secret | wc -l; cat /etc/group | wc -c").spec(|spec| {
        spec.mask = ["/secret", "/etc/group", "/missing"]
            .map(str::to_owned)
            .into();
    });
    assert_eq!(image.run(run).ok(), "0\n0\n");
}

fn sysctls() {
    let image = Image::new();
    let with = |name: &str, value: &str| {
        let (name, value) = (name.to_owned(), value.to_owned());
        let file = format!("cat /proc/sys/{}", name.replace('.', "/"));
        sh(&file).spec(|spec| {
            spec.sysctls.insert(name, value);
        })
    };
    let set = |name, value| image.run(with(name, value)).ok();
    assert_eq!(set("net.ipv4.ip_unprivileged_port_start", "80"), "80\n");
    assert_eq!(set("kernel.msgmax", "4096"), "4096\n");
    assert_eq!(set("fs.mqueue.msg_max", "20"), "20\n");
    let error = |run| image.try_run(run).unwrap_err().to_string();
    let message = error(with("kernel.panic", "1"));
    assert!(
        message.contains("kernel.panic is not namespaced"),
        "{message}"
    );
    let message = error(with("net.ipv4.no_such_thing", "1"));
    assert!(
        message.contains("set sysctl net.ipv4.no_such_thing"),
        "{message}"
    );
    let host = with("net.ipv4.ip_forward", "1").spec(|spec| spec.network = Network::Host);
    let message = error(host);
    assert!(
        message.contains("this container uses the host's"),
        "{message}"
    );
}

fn working_directories() {
    let image = Image::new();
    let run = |path: &str| {
        let path = path.to_owned();
        image.try_run(sh("pwd; stat -c %u:%a .").spec(|spec| spec.cwd = path))
    };
    assert_eq!(run("/tmp").unwrap().ok(), "/tmp\n0:1777\n");
    assert_eq!(run("/made/for/it").unwrap().ok(), "/made/for/it\n0:755\n");
    // What is made belongs to the user, also when the root is read-only afterwards.
    let theirs = sh("touch here 2>/dev/null; stat -c %u:%g .")
        .user("33")
        .spec(|spec| {
            spec.cwd = "/theirs".into();
            spec.read_only_root = true;
        });
    assert_eq!(image.run(theirs).ok(), "33:33\n");
    let message = run("/etc/passwd").unwrap_err().to_string();
    assert!(
        message.starts_with("working directory /etc/passwd: "),
        "{message}"
    );
    assert!(message.contains("Not a directory"), "{message}");
    assert!(matches!(run("relative"), Err(LaunchError::InvalidSpec(_))));
    // A directory closed to the user, entered on its behalf, as Docker and Podman do.
    std::fs::create_dir(image.path("closed")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    let closed = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(image.path("closed"), closed).unwrap();
    let run = sh("ls . || echo closed")
        .user("33")
        .spec(|spec| spec.cwd = "/closed".into());
    assert_eq!(image.run(run).ok(), "closed\n");
}

fn read_only_roots() {
    let image = Image::new();
    let run = sh("touch /x || echo kept; touch /tmp/x /dev/shm/y && echo writable")
        .mount("tmpfs", "tmpfs", "/tmp", &["nosuid", "nodev"])
        .spec(|spec| spec.read_only_root = true);
    assert_eq!(image.run(run).ok(), "kept\nwritable\n");
}

fn binds() {
    let image = Image::new();
    let host = host_directory();
    let source = host.path().to_str().unwrap();
    std::fs::write(host.path().join("file"), "content\n").unwrap();
    std::fs::create_dir(host.path().join("sub")).unwrap();
    let run = |script: &str, destination: &str, options: &[&str]| {
        image
            .run(sh(script).mount("bind", source, destination, options))
            .ok()
    };
    assert_eq!(
        run("cat /new/deep/file", "/new/deep", &["rbind"]),
        "content\n"
    );
    assert_eq!(
        run("touch /mnt/x || echo kept", "/mnt", &["rbind", "ro"]),
        "kept\n"
    );
    let options = run(
        "grep ' /mnt ' /proc/mounts",
        "/mnt",
        &["bind", "nosuid", "nodev", "noexec"],
    );
    assert!(options.contains("nosuid,nodev,noexec"), "{options}");

    // A file over a file, over nothing, and through a link to nowhere.
    let file = host.path().join("file");
    let file = file.to_str().unwrap();
    image.link("../run/resolv.conf", "etc/resolv.conf");
    for destination in ["/etc/passwd", "/etc/new", "/etc/resolv.conf"] {
        let run =
            sh(&format!("cat {destination}")).mount("bind", file, destination, &["bind", "ro"]);
        assert_eq!(image.run(run).ok(), "content\n", "{destination}");
    }
    assert!(
        image.path("run/resolv.conf").exists(),
        "the mount point was made inside"
    );

    // Something mounted below comes along only with rbind.
    mount_tmpfs(&host.path().join("sub"));
    std::fs::write(host.path().join("sub/below"), "").unwrap();
    assert_eq!(run("ls /mnt/sub", "/mnt", &["rbind"]), "below\n");
    assert_eq!(run("ls /mnt/sub", "/mnt", &["bind"]), "");
    let read_only = run(
        "touch /mnt/sub/x || echo kept; touch /mnt/x || echo kept",
        "/mnt",
        &["rbind", "rro"],
    );
    assert_eq!(read_only, "kept\nkept\n");
    rustix::mount::unmount(host.path().join("sub"), rustix::mount::UnmountFlags::DETACH).unwrap();
}

fn mount_tmpfs(path: &std::path::Path) {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", path, "tmpfs", flags, c"mode=777").unwrap();
}

fn tmpfs_copies_up() {
    let image = Image::new();
    std::fs::create_dir_all(image.path("data/sub")).unwrap();
    image.program("data/sub/tool", "#!/bin/sh\necho ran\n");
    image.link("sub/tool", "data/link");
    std::os::unix::fs::chown(image.path("data/sub"), Some(33), Some(50)).unwrap();
    let script = "/data/link; stat -c %u:%g:%a /data/sub; touch /data/new; ls /data";
    let run = |options: &[&str]| image.run(sh(script).mount("tmpfs", "tmpfs", "/data", options));
    assert_eq!(run(&["tmpcopyup"]).ok(), "ran\n33:50:755\nlink\nnew\nsub\n");
    assert!(!image.path("data/new").exists());
    // Read-only comes after the copying.
    let output = run(&["tmpcopyup", "ro"]);
    assert_eq!(output.out, "ran\n33:50:755\nlink\nsub\n");
    // Without it the tmpfs is empty.
    let plain = image.run(sh("ls /data").mount("tmpfs", "tmpfs", "/data", &["size=1m"]));
    assert_eq!(plain.ok(), "");
}
