//! Re-owning and removing what containers wrote, in a real user namespace.

#[path = "namespace/mod.rs"]
mod namespace;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use namespace::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use selkie_storage::container_layer::{ContainerLayer, reown_tree};
use selkie_storage::remove_tree;
use selkie_sys::clone::{Side, exit_now, fork};

fn main() -> std::process::ExitCode {
    run_tests(&[
        ("a_tree_moves_to_another_slice_whole", a_tree_moves_whole),
        (
            "a_move_cut_short_is_finished_by_the_next",
            a_move_cut_short_is_finished,
        ),
        (
            "overlapping_slices_move_each_inode_once",
            overlapping_slices_move_once,
        ),
        ("unknown_owners_stay", unknown_owners_stay),
        ("hostile_trees_are_removed", hostile_trees_are_removed),
    ])
}

const OLD: u32 = 1000;
const NEW: u32 = 20_000;

/// `struct vfs_cap_data`, revision 2: CAP_NET_RAW, permitted and effective.
const V2: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// The same in revision 3, for the user namespace whose root is `root`.
fn v3(root: u32) -> Vec<u8> {
    let mut value = V2.to_vec();
    value[3] = 3;
    value.extend(root.to_le_bytes());
    value
}

/// A POSIX ACL that names one user and one group.
fn acl(user: u32, group: u32) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, 6u16, u32::MAX),
        (0x02, 4, user),
        (0x04, 4, u32::MAX),
        (0x08, 4, group),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn get(path: &Path, name: &str) -> Vec<u8> {
    let mut value = [0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
    value[..length].to_vec()
}

fn own(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Makes the sample tree, as container IDs starting at `base` left it.
fn make_tree(root: &Path, base: u32) {
    std::fs::create_dir_all(root.join("dir/sub")).unwrap();
    for (name, uid, gid, mode) in [
        ("plain", 0, 0, 0o644),
        ("www", 33, 34, 0o600),
        ("dir/set-id", 33, 34, 0o6755),
        ("dir/sub/set-gid", 0, 42, 0o2755),
        ("unreadable", 5, 5, 0),
        ("capable", 0, 0, 0o755),
        ("capable3", 0, 0, 0o755),
        ("listed", 7, 8, 0o640),
    ] {
        let path = root.join(name);
        std::fs::write(&path, name).unwrap();
        own(&path, base + uid, base + gid);
        set_mode(&path, mode);
    }
    set(&root.join("capable"), "security.capability", &V2);
    set(&root.join("capable3"), "security.capability", &v3(base));
    set(
        &root.join("listed"),
        "system.posix_acl_access",
        &acl(base + 9, base + 10),
    );
    set(
        &root.join("dir"),
        "system.posix_acl_default",
        &acl(base + 11, base + 12),
    );
    std::os::unix::fs::symlink("/etc/shadow", root.join("link")).unwrap();
    own(&root.join("link"), base + 33, base + 33);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        FileType::Fifo,
        Mode::RUSR,
        0,
    )
    .unwrap();
    own(&root.join("fifo"), base + 1, base + 2);
    std::fs::hard_link(root.join("www"), root.join("dir/www-too")).unwrap();
    for (name, uid, mode) in [("dir/sub", 33, 0o3775), ("dir", 1, 0), ("", 0, 0o751)] {
        let path = root.join(name);
        own(&path, base + uid, base + uid);
        set_mode(&path, mode);
        let time = std::fs::FileTimes::new()
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(77));
        std::fs::File::open(&path).unwrap().set_times(time).unwrap();
    }
}

fn check_tree(root: &Path, base: u32) {
    for (name, uid, gid, mode) in [
        ("", 0, 0, 0o751),
        ("plain", 0, 0, 0o644),
        ("www", 33, 34, 0o600),
        ("dir", 1, 1, 0),
        ("dir/www-too", 33, 34, 0o600),
        ("dir/set-id", 33, 34, 0o6755),
        ("dir/sub", 33, 33, 0o3775),
        ("dir/sub/set-gid", 0, 42, 0o2755),
        ("unreadable", 5, 5, 0),
        ("capable", 0, 0, 0o755),
        ("capable3", 0, 0, 0o755),
        ("listed", 7, 8, 0o640),
        ("link", 33, 33, 0o777),
        ("fifo", 1, 2, 0o400),
    ] {
        let found = std::fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!(
            (found.uid(), found.gid()),
            (base + uid, base + gid),
            "{name}"
        );
        assert_eq!(found.permissions().mode() & 0o7777, mode, "{name}");
        if found.is_dir() {
            assert_eq!(found.mtime(), 77, "{name}");
        }
    }
    assert_eq!(get(&root.join("capable"), "security.capability"), V2);
    assert_eq!(get(&root.join("capable3"), "security.capability"), v3(base));
    let listed = get(&root.join("listed"), "system.posix_acl_access");
    assert_eq!(listed, acl(base + 9, base + 10));
    let default = get(&root.join("dir"), "system.posix_acl_default");
    assert_eq!(default, acl(base + 11, base + 12));
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn a_tree_moves_whole(scratch: &Path) {
    let root = scratch.join("upper");
    make_tree(&root, OLD);
    check_tree(&root, OLD);
    reown_tree(&root, &slice(OLD, 1000), &slice(NEW, 1000)).unwrap();
    check_tree(&root, NEW);
    // Again, and from maps that no longer fit: nothing moves.
    reown_tree(&root, &slice(OLD, 1000), &slice(NEW, 1000)).unwrap();
    check_tree(&root, NEW);
    assert_eq!(names(scratch), ["upper"]);
    reown_tree(&scratch.join("nowhere"), &slice(OLD, 10), &slice(NEW, 10)).unwrap();
    reown_tree(&scratch.join("no/where"), &slice(OLD, 10), &slice(NEW, 10)).unwrap();
}

fn a_move_cut_short_is_finished(scratch: &Path) {
    const ROUNDS: u32 = 30;
    const FILES: u32 = 200;
    let make = |name: String| {
        let root = scratch.join(name);
        make_tree(&root, OLD);
        let inner = root.join("dir/sub/inner");
        std::fs::create_dir(&inner).unwrap();
        for number in 0..FILES {
            let path = inner.join(number.to_string());
            std::fs::write(&path, "").unwrap();
            own(&path, OLD + 33, OLD + 33);
            set_mode(&path, 0o4755);
            set(&path, "security.capability", &v3(OLD));
        }
        // Adding a file changed the directory's time.
        let time = std::fs::FileTimes::new()
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(77));
        let directory = std::fs::File::open(root.join("dir/sub")).unwrap();
        directory.set_times(time).unwrap();
        root
    };
    let whole = make("whole".to_owned());
    let start = std::time::Instant::now();
    reown_tree(&whole, &slice(OLD, 1000), &slice(NEW, 1000)).unwrap();
    let duration = start.elapsed();
    let mut cut_short = 0;
    for round in 0..ROUNDS {
        let root = make(format!("upper{round}"));
        match fork().unwrap() {
            Side::Child => {
                let moved = reown_tree(&root, &slice(OLD, 1000), &slice(NEW, 1000));
                exit_now(i32::from(moved.is_err()))
            }
            Side::Parent { pid, pidfd } => {
                std::thread::sleep(duration * round / ROUNDS);
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                cut_short += u32::from(wait(pid) != 0);
            }
        }
        reown_tree(&root, &slice(OLD, 1000), &slice(NEW, 1000)).unwrap();
        check_tree(&root, NEW);
        for number in 0..FILES {
            let path = root.join(format!("dir/sub/inner/{number}"));
            let found = std::fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.mode() & 0o7777), (NEW + 33, 0o4755));
            assert_eq!(get(&path, "security.capability"), v3(NEW));
        }
    }
    assert!(cut_short > 0);
    assert!(names(scratch).iter().all(|name| !name.ends_with(".reown")));
}

fn overlapping_slices_move_once(scratch: &Path) {
    let root = scratch.join("upper");
    make_tree(&root, OLD);
    reown_tree(&root, &slice(OLD, 1000), &slice(OLD + 10, 1000)).unwrap();
    check_tree(&root, OLD + 10);
}

fn unknown_owners_stay(scratch: &Path) {
    let root = scratch.join("upper");
    std::fs::create_dir(&root).unwrap();
    let file = root.join("foreign");
    std::fs::write(&file, "").unwrap();
    own(&file, 50_000, OLD + 1);
    set_mode(&file, 0o4755);
    reown_tree(&root, &slice(OLD, 1000), &slice(NEW, 1000)).unwrap();
    let found = std::fs::metadata(&file).unwrap();
    assert_eq!(
        (found.uid(), found.gid(), found.mode() & 0o7777),
        (50_000, NEW + 1, 0o4755)
    );
}

fn hostile_trees_are_removed(scratch: &Path) {
    let outside = scratch.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("keep"), "").unwrap();
    let layer = ContainerLayer::create(scratch).unwrap();
    let upper = layer.upper();
    make_tree(&upper, OLD);
    std::os::unix::fs::symlink(&outside, upper.join("out")).unwrap();
    // A whiteout, as overlay makes them.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("white"),
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .unwrap();
    let mut deep = rustix::fs::open(&upper, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&deep, "deeper", Mode::empty()).unwrap();
        let next = rustix::fs::openat(&deep, "deeper", OFlags::DIRECTORY, Mode::empty()).unwrap();
        let owner = Some(rustix::fs::Uid::from_raw(OLD + 7));
        rustix::fs::fchown(&next, owner, None).unwrap();
        deep = next;
    }
    drop(deep);
    // Deep trees move, too.
    reown_tree(&upper, &slice(OLD, 1000), &slice(NEW, 1000)).unwrap();
    // A mount in it is not entered.
    let mounted = upper.join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    rustix::mount::mount_bind(&outside, &mounted).unwrap();
    let error = remove_tree(&upper).unwrap_err();
    assert!(error.to_string().contains("mounted"), "{error}");
    assert!(outside.join("keep").exists());
    rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::DETACH).unwrap();
    layer.remove().unwrap();
    assert!(outside.join("keep").exists());
    let gone = rustix::fs::statat(rustix::fs::CWD, &upper, AtFlags::SYMLINK_NOFOLLOW);
    assert_eq!(gone.err(), Some(Errno::NOENT));
}
