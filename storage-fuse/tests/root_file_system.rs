//! Root file systems as containers see them, in a real user namespace.

#[path = "namespace/mod.rs"]
mod namespace;
#[path = "sample/mod.rs"]
mod sample;

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use namespace::*;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use sample::*;
use selkie_storage::container_layer::ContainerLayer;
use selkie_storage::layer::NewEntryKind;
use selkie_storage::presenter::{RootRequest, bind_root, choose, probe};
use selkie_storage::{Store, StoreError};
use selkie_userns::IdMaps;

fn main() -> std::process::ExitCode {
    run_tests(&[
        ("every_feature_is_there", every_feature_is_there),
        (
            "an_image_shows_as_it_is_in_any_slice",
            an_image_shows_as_it_is,
        ),
        (
            "what_is_written_belongs_to_the_slice",
            what_is_written_belongs_to_the_slice,
        ),
        ("lower_files_can_be_changed", lower_files_can_be_changed),
        (
            "what_was_written_is_there_again",
            what_was_written_is_there_again,
        ),
        (
            "capabilities_and_set_id_bits_work",
            capabilities_and_set_id_bits_work,
        ),
        (
            "overlay_attributes_of_an_image_are_not_obeyed",
            overlay_attributes_are_not_obeyed,
        ),
        ("identity_maps_need_no_clone", identity_maps_need_no_clone),
        ("one_id_owns_everything", one_id_owns_everything),
        ("unmapped_owners_are_named", unmapped_owners_are_named),
        ("volatile_layers_mount_again", volatile_layers_mount_again),
        ("builders_may_race", builders_may_race),
        (
            "trees_come_back_and_go_with_their_image",
            trees_come_back_and_go,
        ),
        ("a_store_on_tmpfs_works", a_store_on_tmpfs_works),
        (
            "layers_need_extended_attributes",
            layers_need_extended_attributes,
        ),
        ("a_full_disk_leaves_nothing", a_full_disk_leaves_nothing),
        ("a_full_tree_leaves_nothing", a_full_tree_leaves_nothing),
        ("a_directory_can_be_the_root", a_directory_can_be_the_root),
        (
            "unknown_presenters_are_refused",
            unknown_presenters_are_refused,
        ),
    ])
}

struct Ground {
    store: Store,
    layers: PathBuf,
}

fn ground(scratch: &Path) -> Ground {
    let layers = scratch.join("containers");
    std::fs::create_dir(&layers).unwrap();
    Ground {
        store: Store::open(&scratch.join("store")).unwrap(),
        layers,
    }
}

struct Container {
    root: OwnedFd,
    user_namespace: OwnedFd,
    upper: PathBuf,
}

#[derive(Clone, Copy, Default)]
struct Options {
    volatile: bool,
    single_id: bool,
}

impl Ground {
    fn mount(
        &self,
        chain_id: &str,
        name: &str,
        maps: &IdMaps,
        options: Options,
    ) -> Result<Container, StoreError> {
        let dir = self.layers.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let layer = ContainerLayer::create(&dir)?;
        let user_namespace = user_namespace(maps);
        let root = choose(None)?.mount_root(
            &self.store,
            &RootRequest {
                chain_id,
                layer: &layer,
                user_namespace: user_namespace.as_fd(),
                maps,
                volatile: options.volatile,
                single_id: options.single_id,
            },
        )?;
        Ok(Container {
            root,
            user_namespace,
            upper: layer.upper(),
        })
    }

    fn container(&self, chain_id: &str, name: &str, maps: &IdMaps) -> Container {
        // Unmounting others waits until the whole file system is synced.
        let volatile = Options {
            volatile: true,
            ..Options::default()
        };
        self.mount(chain_id, name, maps, volatile).unwrap()
    }

    fn trees(&self) -> BTreeSet<String> {
        std::fs::read_dir(self.store.root().join("trees"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Container {
    /// Runs `body` inside; gives the upper directory.
    fn run(self, body: impl FnOnce()) -> PathBuf {
        assert_eq!(in_container(&self.root, &self.user_namespace, body), 0);
        self.upper
    }
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let found = std::fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

fn mode(path: impl AsRef<Path>) -> u32 {
    let found = std::fs::symlink_metadata(path).unwrap();
    found.permissions().mode() & 0o7777
}

fn xattr(path: &str, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = [0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value)?;
    Ok(value[..length].to_vec())
}

fn xattr_names(path: &str) -> Vec<String> {
    let mut names = [0; 1024];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    names[..length]
        .split_inclusive(|&byte| byte == 0)
        .map(|name| {
            CStr::from_bytes_with_nul(name)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

fn every_feature_is_there(scratch: &Path) {
    let ground = ground(scratch);
    for feature in probe(&ground.store) {
        assert_eq!(feature.result, Ok(()), "{}", feature.name);
    }
    let tmp = ground.store.root().join("tmp");
    assert_eq!(std::fs::read_dir(tmp).unwrap().count(), 0);
}

fn an_image_shows_as_it_is(scratch: &Path) {
    let ground = ground(scratch);
    let large: Vec<u8> = (0..3_000_000u32).map(|number| (number / 7) as u8).collect();
    let image = [
        directory("").mode(0o755).mtime(1_000_000),
        directory("etc").mode(0o1751).owned(5, 6).mtime(2_000_000),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        file("etc/shadow", "secret").mode(0o640).owned(0, 42),
        file("etc/before-1970", "old").mtime(-86_400),
        directory("var").mode(0o2775).owned(0, 33),
        file("var/www", "page").owned(33, 33).mode(0o6755),
        file("large", large).mode(0),
        file("empty", "").owned(1, 2).mode(0o600),
        symlink("link", "etc/passwd").owned(33, 33),
        sample("fifo", NewEntryKind::Fifo, 0o622).owned(7, 8),
        sample("null", NewEntryKind::Device, 0o666),
        hard_link("hard", "etc/shadow"),
        file("attributes", "a").xattr("user.note", b"hello"),
    ];
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    for (name, base) in [("one", 1000), ("two", 30000), ("three", 1)] {
        let container = ground.container(&chain_id, name, &slice(base, 1000));
        container.run(|| {
            for sample in &image[..11] {
                let entry = &sample.entry;
                let path = Path::new("/").join(std::str::from_utf8(&entry.path).unwrap());
                let found = std::fs::symlink_metadata(&path).unwrap();
                assert_eq!(owner(&path), (entry.uid, entry.gid), "{path:?}");
                assert_eq!(found.mtime(), entry.mtime, "{path:?}");
                assert_eq!(found.mtime_nsec(), 123_456_789, "{path:?}");
                if !found.is_symlink() {
                    assert_eq!(mode(&path), entry.mode, "{path:?}");
                }
                if found.is_file() {
                    assert!(std::fs::read(&path).unwrap() == sample.content, "{path:?}");
                    assert_eq!(found.len(), sample.content.len() as u64, "{path:?}");
                }
            }
            assert_eq!(std::fs::read("/hard").unwrap(), b"secret");
            assert_eq!(std::fs::metadata("/hard").unwrap().nlink(), 2);
            assert_eq!(owner("/hard"), (0, 42));
            assert_eq!(
                std::fs::read_link("/link").unwrap(),
                Path::new("etc/passwd")
            );
            assert!(!Path::new("/null").exists());
            assert_eq!(xattr("/attributes", "user.note").unwrap(), b"hello");
            assert_eq!(xattr_names("/attributes"), ["user.note"]);
        });
    }
}

fn what_is_written_belongs_to_the_slice(scratch: &Path) {
    let ground = ground(scratch);
    let chain_id = write_image(&ground.store, &[&[directory("tmp").mode(0o1777)]]).unwrap();
    let container = ground.container(&chain_id, "one", &slice(5000, 1000));
    let upper = container.run(|| {
        std::fs::write("/by-root", "x").unwrap();
        rustix::thread::set_thread_res_gid(
            rustix::process::Gid::from_raw(44),
            rustix::process::Gid::from_raw(44),
            rustix::process::Gid::from_raw(44),
        )
        .unwrap();
        rustix::thread::set_thread_res_uid(
            rustix::process::Uid::from_raw(33),
            rustix::process::Uid::from_raw(33),
            rustix::process::Uid::from_raw(33),
        )
        .unwrap();
        std::fs::write("/tmp/by-33", "x").unwrap();
        assert!(std::fs::write("/not-allowed", "x").is_err());
    });
    assert_eq!(owner(upper.join("by-root")), (5000, 5000));
    assert_eq!(owner(upper.join("tmp/by-33")), (5033, 5044));
    assert_eq!(owner(upper.join("tmp")), (5000, 5000));
    assert_eq!(mode(upper.join("tmp")), 0o1777);
    assert_eq!(owner(&upper), (5000, 5000));
}

fn lower_files_can_be_changed(scratch: &Path) {
    let ground = ground(scratch);
    let image = [
        file("www", "page")
            .owned(33, 34)
            .mode(0o640)
            .xattr("user.note", b"n"),
        file("append", "one ").owned(33, 34),
        file("big", vec![7; 2_000_000]),
        file("first", "linked"),
        hard_link("second", "first"),
        file("dir/a", "a"),
        file("dir/sub/b", "b"),
        file("moved", "m"),
        symlink("link", "www").owned(33, 34),
        file("gone", "g"),
    ];
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    let container = ground.container(&chain_id, "one", &slice(5000, 1000));
    let upper = container.run(|| {
        std::fs::set_permissions("/www", std::fs::Permissions::from_mode(0o4755)).unwrap();
        assert_eq!((owner("/www"), mode("/www")), ((33, 34), 0o4755));
        assert_eq!(std::fs::read("/www").unwrap(), b"page");
        assert_eq!(xattr("/www", "user.note").unwrap(), b"n");
        let mut append = std::fs::OpenOptions::new()
            .append(true)
            .open("/append")
            .unwrap();
        std::io::Write::write_all(&mut append, b"two").unwrap();
        drop(append);
        assert_eq!(std::fs::read("/append").unwrap(), b"one two");
        std::os::unix::fs::chown("/big", Some(12), Some(13)).unwrap();
        assert_eq!(std::fs::read("/big").unwrap(), vec![7; 2_000_000]);
        std::fs::rename("/moved", "/dir/moved").unwrap();
        assert_eq!(std::fs::read("/dir/moved").unwrap(), b"m");
        std::fs::hard_link("/first", "/third").unwrap();
        assert_eq!(std::fs::read("/third").unwrap(), b"linked");
        std::os::unix::fs::lchown("/link", Some(9), Some(9)).unwrap();
        assert_eq!(std::fs::read_link("/link").unwrap(), Path::new("www"));
        std::fs::remove_file("/gone").unwrap();
        assert!(!Path::new("/gone").exists());
        // As under Podman: a directory of the image is not renamed, `mv` copies it.
        let error = std::fs::rename("/dir", "/elsewhere").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::XDEV.raw_os_error()));
        std::fs::remove_dir_all("/dir/sub").unwrap();
        std::fs::create_dir("/dir/sub").unwrap();
        assert_eq!(std::fs::read_dir("/dir/sub").unwrap().count(), 0);
        let unnamed = rustix::fs::open(
            "/dir",
            rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::WRONLY,
            rustix::fs::Mode::RUSR,
        )
        .unwrap();
        rustix::io::write(&unnamed, b"x").unwrap();
        let path = c"/append";
        rustix::fs::setxattr(path, "user.mine", b"m", XattrFlags::empty()).unwrap();
        assert_eq!(xattr_names("/append"), ["user.mine"]);
        for name in xattr_names("/dir") {
            assert!(!name.starts_with("user.overlay"), "{name}");
        }
        // The overlay's own attributes cannot be forged from inside.
        let _ = rustix::fs::setxattr(
            "/dir/a",
            "user.overlay.redirect",
            b"/x",
            XattrFlags::empty(),
        );
        assert_eq!(std::fs::read("/dir/a").unwrap(), b"a");
    });
    assert_eq!(owner(upper.join("www")), (5033, 5034));
    assert_eq!(owner(upper.join("big")), (5012, 5013));
    assert_eq!(owner(upper.join("link")), (5009, 5009));
    assert_eq!(
        xattr(
            upper.join("dir/a").to_str().unwrap_or_default(),
            "user.overlay.redirect"
        )
        .ok(),
        None
    );
}

fn what_was_written_is_there_again(scratch: &Path) {
    let ground = ground(scratch);
    let image = [
        directory("").mode(0o751).owned(3, 4),
        file("a", "lower"),
        file("b", "b"),
    ];
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    let maps = slice(5000, 1000);
    let lasting = Options::default();
    let container = ground.mount(&chain_id, "one", &maps, lasting).unwrap();
    container.run(|| {
        assert_eq!((owner("/"), mode("/")), ((3, 4), 0o751));
        std::fs::write("/a", "upper").unwrap();
        std::fs::remove_file("/b").unwrap();
        std::fs::set_permissions("/", std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown("/", Some(1), Some(2)).unwrap();
    });
    let container = ground.mount(&chain_id, "one", &maps, lasting).unwrap();
    container.run(|| {
        assert_eq!((owner("/"), mode("/")), ((1, 2), 0o700));
        assert_eq!(std::fs::read("/a").unwrap(), b"upper");
        assert!(!Path::new("/b").exists());
    });
    let layer = ContainerLayer {
        dir: ground.layers.join("one"),
    };
    layer.remove().unwrap();
    assert_eq!(
        std::fs::read_dir(ground.layers.join("one"))
            .unwrap()
            .count(),
        0
    );
}

/// `struct vfs_cap_data`, revision 2, of CAP_NET_RAW, permitted and effective.
const NET_RAW: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn capabilities_and_set_id_bits_work(scratch: &Path) {
    let ground = ground(scratch);
    let Ok(busybox) = std::fs::read("/bin/busybox") else {
        // The same is asserted end to end by the rootless tests, which require the package.
        eprintln!("no /bin/busybox: only the attributes are looked at");
        return;
    };
    let image = [
        directory("proc"),
        file("cat", &busybox)
            .mode(0o755)
            .xattr("security.capability", &NET_RAW),
        file("su", &busybox).mode(0o6755).owned(33, 34),
    ];
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    for (name, base) in [("one", 1000), ("two", 30000)] {
        let maps = slice(base, 1000);
        // Once from the image, once after it was copied up.
        for copied in [false, true] {
            ground.container(&chain_id, name, &maps).run(|| {
                if copied {
                    for path in ["/cat", "/su"] {
                        rustix::fs::setxattr(path, "user.touched", b"", XattrFlags::empty())
                            .unwrap();
                    }
                }
                assert_eq!(xattr("/cat", "security.capability").unwrap(), NET_RAW);
                let status = status_of("/cat");
                assert!(status.contains("CapEff:\t0000000000002000\n"), "{status}");
                let status = status_of("/su");
                assert!(status.contains("Uid:\t990\t33\t33\t33\n"), "{status}");
                assert!(status.contains("Gid:\t990\t34\t34\t34\n"), "{status}");
            });
        }
    }
}

/// `/proc/PID/status` of a program run as user 1000 while it waits for input.
fn status_of(program: &str) -> String {
    use std::os::unix::process::CommandExt;
    let mut child = std::process::Command::new(program)
        // An applet that neither gives up its privileges nor needs anything.
        .arg0(if program == "/cat" { "cat" } else { "su" })
        .args(if program == "/cat" {
            &["-"][..]
        } else {
            &["-c", "true"][..]
        })
        .uid(990)
        .gid(990)
        .stdin(std::process::Stdio::piped())
        // There is no /dev/null here.
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    status
}

fn overlay_attributes_are_not_obeyed(scratch: &Path) {
    let ground = ground(scratch);
    let secret = write_image(&ground.store, &[&[file("secret", "of another image")]]).unwrap();
    assert!(secret.starts_with("sha256:"));
    let object = blake3::hash(b"of another image").to_hex().to_string();
    let redirect = format!("/{}/{}", &object[..2], &object[2..]);
    let image = [
        file("forged", "forged content..")
            .xattr("user.overlay.metacopy", b"")
            .xattr("user.overlay.redirect", redirect.as_bytes()),
        file("empty", "")
            .xattr("user.overlay.metacopy", b"")
            .xattr("user.overlay.redirect", redirect.as_bytes()),
        directory("dir")
            .xattr("user.overlay.redirect", b"/")
            .xattr("trusted.x", b"y"),
        directory("white").xattr("user.overlay.opaque", b"x"),
        file("white/out", "").xattr("user.overlay.whiteout", b""),
    ];
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    ground
        .container(&chain_id, "one", &slice(1000, 1000))
        .run(|| {
            assert_eq!(std::fs::read("/forged").unwrap(), b"forged content..");
            assert_eq!(std::fs::read("/empty").unwrap(), b"");
            assert_eq!(std::fs::read_dir("/dir").unwrap().count(), 0);
            assert!(Path::new("/white/out").exists());
        });
}

fn identity_maps_need_no_clone(scratch: &Path) {
    let ground = ground(scratch);
    let chain_id = write_image(&ground.store, &[&[file("www", "w").owned(33, 33)]]).unwrap();
    let upper = ground
        .container(&chain_id, "one", &slice(0, 65537))
        .run(|| {
            assert_eq!(owner("/www"), (33, 33));
            std::fs::write("/mine", "").unwrap();
        });
    assert_eq!(owner(upper.join("mine")), (0, 0));
}

fn one_id_owns_everything(scratch: &Path) {
    let ground = ground(scratch);
    let image = [
        file("www", "w").owned(33, 4_000_000),
        symlink("l", "www").owned(7, 7),
    ];
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    let options = Options {
        single_id: true,
        ..Options::default()
    };
    let container = ground
        .mount(&chain_id, "one", &slice(0, 1), options)
        .unwrap();
    container.run(|| {
        assert_eq!(owner("/www"), (0, 0));
        assert_eq!(owner("/l"), (0, 0));
        assert_eq!(std::fs::read("/www").unwrap(), b"w");
    });
}

fn unmapped_owners_are_named(scratch: &Path) {
    let ground = ground(scratch);
    let image = [file("usr/far", "w").owned(4_000_000, 12)];
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    let presenter = choose(None).unwrap();
    let error = presenter
        .prepare(&ground.store, &chain_id, false)
        .unwrap_err();
    assert!(matches!(error, StoreError::IdOutOfRange(_)), "{error}");
    for word in ["/usr/far", "UID 4000000", "65537 UIDs", "usermod"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(ground.trees().is_empty());
}

fn volatile_layers_mount_again(scratch: &Path) {
    let ground = ground(scratch);
    let chain_id = write_image(&ground.store, &[&[file("a", "a")]]).unwrap();
    let maps = slice(1000, 1000);
    let volatile = Options {
        volatile: true,
        ..Options::default()
    };
    for _ in 0..2 {
        let container = ground.mount(&chain_id, "one", &maps, volatile).unwrap();
        container.run(|| std::fs::write("/b", "b").unwrap());
    }
    let error = ground
        .mount(&chain_id, "one", &maps, Options::default())
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("without being synced"),
        "{error}"
    );
}

fn builders_may_race(scratch: &Path) {
    let ground = ground(scratch);
    let image: Vec<_> = (0..2000)
        .map(|n| file(&format!("d{}/{n}", n % 10), format!("{n}")))
        .collect();
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    let children: Vec<_> = (0..8)
        .map(|_| match selkie_sys::clone::fork().unwrap() {
            selkie_sys::clone::Side::Parent { pid, .. } => pid,
            selkie_sys::clone::Side::Child => {
                let result = choose(None)
                    .unwrap()
                    .prepare(&ground.store, &chain_id, false);
                selkie_sys::clone::exit_now(i32::from(result.is_err()))
            }
        })
        .collect();
    for child in children {
        assert_eq!(wait(child), 0);
    }
    assert_eq!(ground.trees().len(), 1, "{:?}", ground.trees());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let trees = ground.store.root().join("trees").display().to_string();
    assert_eq!(
        mounts.lines().filter(|line| line.contains(&trees)).count(),
        1
    );
}

fn trees_come_back_and_go(scratch: &Path) {
    let ground = ground(scratch);
    let one = write_image(&ground.store, &[&[file("a", "a")]]).unwrap();
    let two = write_image(&ground.store, &[&[file("a", "b")]]).unwrap();
    let presenter = choose(None).unwrap();
    for chain_id in [&one, &two] {
        presenter.prepare(&ground.store, chain_id, false).unwrap();
    }
    presenter.prepare(&ground.store, &two, true).unwrap();
    assert_eq!(ground.trees().len(), 3);
    let running = ground.container(&one, "one", &slice(1000, 1000));
    std::fs::create_dir(ground.store.root().join("trees/building-1-2")).unwrap();
    let lock = ground.store.lock_exclusive().unwrap();
    let layers = [file("a", "a")];
    let live = BTreeSet::from([one.clone()]);
    let garbage = ground
        .store
        .remove_garbage(&lock, &live, &BTreeSet::from([diff_id(&layers)]))
        .unwrap();
    let trees = ground.store.root().join("trees");
    let gone = garbage
        .paths
        .iter()
        .filter(|path| path.starts_with(&trees))
        .count();
    assert_eq!(gone, 3, "{:?}", garbage.paths);
    drop(lock);
    assert_eq!(ground.trees().len(), 1);
    presenter.forget(&ground.store, &one).unwrap();
    assert!(ground.trees().is_empty());
    drop(running);
    // Whoever cleans up too much takes the mount away, but not for good.
    rustix::mount::unmount(&trees, rustix::mount::UnmountFlags::DETACH).unwrap();
    std::fs::remove_dir(&trees).unwrap();
    ground.container(&one, "one", &slice(1000, 1000)).run(|| {
        assert_eq!(std::fs::read("/a").unwrap(), b"a");
    });
}

fn a_store_on_tmpfs_works(scratch: &Path) {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", scratch, "tmpfs", flags, c"mode=0700").unwrap();
    let ground = ground(scratch);
    let chain_id = write_image(&ground.store, &[&[file("a", "a")]]).unwrap();
    ground
        .container(&chain_id, "one", &slice(1000, 1000))
        .run(|| {
            assert_eq!(std::fs::read("/a").unwrap(), b"a");
            std::fs::write("/a", "b").unwrap();
        });
    let device = |path: &str| {
        std::fs::metadata(ground.store.root().join(path))
            .unwrap()
            .dev()
    };
    assert_ne!(device("trees"), device("tmp"));
}

fn layers_need_extended_attributes(scratch: &Path) {
    let ground = ground(scratch);
    let chain_id = write_image(&ground.store, &[&[file("a", "a")]]).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &ground.layers, "ramfs", flags, c"mode=0700").unwrap();
    let maps = slice(1000, 1000);
    let mounted = ground.mount(&chain_id, "one", &maps, Options::default());
    let error = mounted.err().unwrap();
    assert!(error.to_string().contains("extended attributes"), "{error}");
}

fn a_full_disk_leaves_nothing(scratch: &Path) {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", scratch, "tmpfs", flags, c"mode=0700,size=2m").unwrap();
    let ground = ground(scratch);
    let count = |directory| {
        let path = ground.store.root().join(directory);
        std::fs::read_dir(path).unwrap().count()
    };
    // One that streams, and many that do not.
    let large = [file("large", vec![7; 4 << 20])];
    let many: Vec<_> = (0..100u8)
        .map(|number| file(&format!("{number}"), vec![number; 100_000]))
        .collect();
    for samples in [&large[..], &many] {
        let error = write_layer(&ground.store, samples).unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        assert!(error.to_string().contains("write"), "{error}");
        assert_eq!((count("tmp"), count("layers")), (0, 0));
        let lock = ground.store.lock_exclusive().unwrap();
        let nothing = BTreeSet::new();
        ground
            .store
            .remove_garbage(&lock, &nothing, &nothing)
            .unwrap();
    }
    write_image(&ground.store, &[&[file("small", "s")]]).unwrap();
}

fn a_full_tree_leaves_nothing(scratch: &Path) {
    let ground = ground(scratch);
    let image: Vec<_> = (0..200)
        .map(|number| file(&format!("{number}"), "x"))
        .collect();
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    // In the place of the presenter's own.
    let trees = ground.store.root().join("trees");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &trees, "tmpfs", flags, c"mode=0700,nr_inodes=100").unwrap();
    let presenter = choose(None).unwrap();
    let error = presenter
        .prepare(&ground.store, &chain_id, false)
        .unwrap_err();
    assert!(error.to_string().contains("no room in memory"), "{error}");
    assert!(ground.trees().is_empty());
}

fn a_directory_can_be_the_root(scratch: &Path) {
    let root = scratch.join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("a"), "a").unwrap();
    let container = Container {
        root: bind_root(&root).unwrap(),
        user_namespace: user_namespace(&slice(0, 65537)),
        upper: root,
    };
    let root = container.run(|| {
        assert_eq!(std::fs::read("/a").unwrap(), b"a");
        std::fs::write("/b", "b").unwrap();
    });
    assert_eq!(std::fs::read(root.join("b")).unwrap(), b"b");
    let error = bind_root(&scratch.join("nowhere")).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

fn unknown_presenters_are_refused(_: &Path) {
    assert_eq!(
        choose(Some("tmpfs-metacopy")).unwrap().name(),
        "tmpfs-metacopy"
    );
    let error = choose(Some("fuse")).err().unwrap();
    assert!(error.to_string().contains("tmpfs-metacopy"), "{error}");
}
