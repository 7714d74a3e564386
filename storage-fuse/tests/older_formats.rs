//! A store that an older Selkie wrote still opens and reads.
//!
//! `fixtures/format-1` was written by the first version of this crate from the layers below. Never
//! write it anew: it stands for the stores of people who update. (Version control keeps neither
//! empty directories nor the read-only mode of objects.)

mod sample;

use std::collections::BTreeSet;
use std::path::Path;

use sample::*;
use selkie_storage::Store;
use selkie_storage::layer::NewEntryKind;

fn lower() -> Vec<Sample> {
    vec![
        directory("").mode(0o755),
        directory("etc"),
        file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/false\n",
        ),
        file("etc/group", "root:x:0:\nshadow:x:42:\n"),
        file("etc/shadow", "secret").mode(0o640).owned(0, 42),
        file("bin/tool", "tool")
            .mode(0o4755)
            .xattr("user.note", b"note"),
        symlink("bin/link", "tool"),
        hard_link("bin/hard", "bin/tool"),
        sample("fifo", NewEntryKind::Fifo, 0o600),
        sample("null", NewEntryKind::Device, 0o666),
        file("hole", [vec![0; 8192], vec![1; 10]].concat()).sparse(&[(8192, 10)]),
        file("gone", "gone"),
        file("old/file", "old"),
    ]
}

fn upper() -> Vec<Sample> {
    vec![
        whiteout("gone"),
        opaque("old"),
        file("old/new", "new").owned(1000, 65534),
        file("empty", ""),
    ]
}

#[test]
fn format_1_opens_and_reads() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
    let copy = scratch();
    copy_tree(&fixture, copy.path());
    let store = Store::open(copy.path()).unwrap();
    let layers = [diff_id(&lower()), diff_id(&upper())];
    for (layer, samples) in layers.iter().zip([lower(), upper()]) {
        assert!(store.has_layer(layer));
        let mut out = Vec::new();
        store.write_layer_tar(layer, &mut out).unwrap();
        assert!(out == stream(&samples));
        assert_eq!(store.layer_tar_size(layer).unwrap(), out.len() as u64);
    }
    let chain_id = "sha256:1c7659b916a743c78d6726dbc960bf2f38217fc63d7666a778a45e7764ba56d6";
    let index = store.open_image_index(chain_id).unwrap();
    assert_eq!(index.inode_count(), 14);
    assert_eq!(index.content_size(), 8299);
    assert_eq!(index.ids().uids, BTreeSet::from([0, 33, 1000]));
    assert_eq!(index.ids().gids, BTreeSet::from([0, 33, 42, 65534]));
    let read = |path| index.read_file(&store, path).unwrap();
    assert_eq!(read("bin/link").unwrap(), b"tool");
    assert_eq!(read("bin/hard").unwrap(), b"tool");
    assert_eq!(read("old/new").unwrap(), b"new");
    assert_eq!(read("empty").unwrap(), b"");
    assert_eq!(read("gone"), None);
    assert_eq!(read("old/file"), None);
    // What is written from these layers now is the same image, and no object is missing.
    assert_eq!(store.build_image_index(&layers).unwrap(), chain_id);
    let lock = store.lock_exclusive().unwrap();
    let live = BTreeSet::from([chain_id.to_owned()]);
    let garbage = store
        .find_garbage(&lock, &live, &BTreeSet::from(layers))
        .unwrap();
    assert!(garbage.paths.is_empty(), "{:?}", garbage.paths);
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
