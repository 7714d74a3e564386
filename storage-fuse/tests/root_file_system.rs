//! Root file systems as containers see them, in a real user namespace.

#[path = "namespace/mod.rs"]
mod namespace;
#[path = "sample/mod.rs"]
mod sample;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use namespace::*;
use sample::*;
use selkie_storage::Store;
use selkie_storage::container_layer::ContainerLayer;
use selkie_storage::presenter::{RootRequest, choose, probe};
use selkie_userns::IdMaps;

fn main() -> std::process::ExitCode {
    run_tests(&[
        ("every_feature_is_there", every_feature_is_there),
        (
            "an_image_shows_as_it_is_in_any_slice",
            an_image_shows_as_it_is_in_any_slice,
        ),
    ])
}

struct Ground {
    store: Store,
    layers: std::path::PathBuf,
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
    layer: ContainerLayer,
}

impl Ground {
    fn layer(&self, name: &str) -> ContainerLayer {
        let dir = self.layers.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        ContainerLayer::create(&dir).unwrap()
    }

    fn container(&self, chain_id: &str, name: &str, maps: &IdMaps) -> Container {
        let layer = self.layer(name);
        let user_namespace = user_namespace(maps);
        let root = choose(None)
            .unwrap()
            .mount_root(
                &self.store,
                &RootRequest {
                    chain_id,
                    layer: &layer,
                    user_namespace: user_namespace.as_fd(),
                    maps,
                    volatile: false,
                    single_id: false,
                },
            )
            .unwrap();
        Container {
            root,
            user_namespace,
            layer,
        }
    }
}

impl Container {
    fn run(&self, body: impl FnOnce()) {
        assert_eq!(in_container(&self.root, &self.user_namespace, body), 0);
    }
}

fn every_feature_is_there(scratch: &Path) {
    let ground = ground(scratch);
    for feature in probe(&ground.store) {
        assert_eq!(feature.result, Ok(()), "{}", feature.name);
    }
}

fn an_image_shows_as_it_is_in_any_slice(scratch: &Path) {
    let ground = ground(scratch);
    let image = [
        directory("").mode(0o755).mtime(1_000_000),
        directory("etc").mode(0o1751).owned(5, 6).mtime(2_000_000),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        file("etc/shadow", "secret").mode(0o640).owned(0, 42),
        file("var/www", "page").owned(33, 33).mode(0o6755),
        file("empty", "").owned(1, 2).mode(0o600),
        symlink("link", "etc/passwd").owned(33, 33),
        hard_link("hard", "etc/shadow"),
    ];
    let chain_id = write_image(&ground.store, &[&image]).unwrap();
    for (name, base) in [("one", 1000), ("two", 30000)] {
        let container = ground.container(&chain_id, name, &slice(base, 1000));
        container.run(|| {
            for sample in &image[..7] {
                let entry = &sample.entry;
                let path = Path::new("/").join(std::str::from_utf8(&entry.path).unwrap());
                let found = std::fs::symlink_metadata(&path).unwrap();
                assert_eq!(
                    (found.uid(), found.gid()),
                    (entry.uid, entry.gid),
                    "{path:?}"
                );
                assert_eq!(found.mtime(), entry.mtime, "{path:?}");
                assert_eq!(found.mtime_nsec(), 123_456_789, "{path:?}");
                if !found.is_symlink() {
                    assert_eq!(found.permissions().mode() & 0o7777, entry.mode, "{path:?}");
                }
                if found.is_file() {
                    assert_eq!(std::fs::read(&path).unwrap(), sample.content, "{path:?}");
                    assert_eq!(found.len(), sample.content.len() as u64, "{path:?}");
                }
            }
            assert_eq!(std::fs::read("/hard").unwrap(), b"secret");
            assert_eq!(
                std::fs::read_link("/link").unwrap(),
                Path::new("etc/passwd")
            );
        });
    }
}
