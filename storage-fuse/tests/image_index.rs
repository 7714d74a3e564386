//! Layers on top of each other, and what the index says about the result.

mod sample;

use std::collections::BTreeSet;

use proptest::prelude::*;
use sample::*;
use selkie_storage::{Store, StoreError};

fn store() -> (tempfile::TempDir, Store) {
    let directory = scratch();
    let store = Store::open(&directory.path().join("store")).unwrap();
    (directory, store)
}

/// Reads `path` in the image of these layers.
fn read(layers: &[&[Sample]], path: &str) -> Option<String> {
    let (_directory, store) = store();
    let chain_id = write_image(&store, layers).unwrap();
    let index = store.open_image_index(&chain_id).unwrap();
    index
        .read_file(&store, path)
        .unwrap()
        .map(|content| String::from_utf8(content).unwrap())
}

fn refused(layers: &[&[Sample]]) -> String {
    let (_directory, store) = store();
    let error = write_image(&store, layers).unwrap_err();
    assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    assert_eq!(
        std::fs::read_dir(store.root().join("images"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        std::fs::read_dir(store.root().join("tmp")).unwrap().count(),
        0
    );
    error.to_string()
}

#[test]
fn higher_layers_win_and_whiteouts_hide() {
    let lower = [
        directory("d"),
        file("d/a", "lower a"),
        file("d/b", "lower b"),
        file("d/sub/c", "lower c"),
        file("e/f", "lower f"),
    ];
    // Whiteouts hide lower layers only, wherever they stand.
    let upper = [
        file("d/a", "upper a"),
        whiteout("d/a"),
        whiteout("d/b"),
        whiteout("e"),
        whiteout("never/was"),
    ];
    let layers: &[&[Sample]] = &[&lower, &upper];
    assert_eq!(read(layers, "d/a").as_deref(), Some("upper a"));
    assert_eq!(read(layers, "d/b"), None);
    assert_eq!(read(layers, "/d/sub/c").as_deref(), Some("lower c"));
    assert_eq!(read(layers, "e/f"), None);
}

#[test]
fn opaque_directories_hide_what_is_below_them() {
    let lower = [file("d/a", "a"), file("d/sub/b", "b"), file("x", "x")];
    let upper = [file("d/new", "new"), opaque("d"), opaque("nowhere")];
    let layers: &[&[Sample]] = &[&lower, &upper];
    assert_eq!(read(layers, "d/a"), None);
    assert_eq!(read(layers, "d/sub/b"), None);
    assert_eq!(read(layers, "d/new").as_deref(), Some("new"));
    assert_eq!(read(layers, "x").as_deref(), Some("x"));
    let everything = [opaque(""), file("only", "only")];
    let layers: &[&[Sample]] = &[&lower, &everything];
    assert_eq!(read(layers, "x"), None);
    assert_eq!(read(layers, "only").as_deref(), Some("only"));
}

#[test]
fn types_change_between_layers() {
    let lower = [
        file("was-file", "f"),
        file("was-dir/inside", "i"),
        directory("target"),
        symlink("was-link", "target"),
    ];
    let upper = [
        file("was-file/now", "in dir"),
        file("was-dir", "now file"),
        file("was-link/file", "not in target"),
    ];
    let layers: &[&[Sample]] = &[&lower, &upper];
    assert_eq!(read(layers, "was-file/now").as_deref(), Some("in dir"));
    assert_eq!(read(layers, "was-dir").as_deref(), Some("now file"));
    assert_eq!(
        read(layers, "was-link/file").as_deref(),
        Some("not in target")
    );
    assert_eq!(read(layers, "target/file"), None);
}

#[test]
fn duplicates_the_last_wins() {
    let layer = [
        file("f", "1"),
        file("f", "2"),
        directory("d"),
        file("d/x", "x"),
        directory("d").mode(0o700),
        file("g", "g"),
        directory("g"),
        file("g/h", "h"),
    ];
    assert_eq!(read(&[&layer], "f").as_deref(), Some("2"));
    assert_eq!(read(&[&layer], "d/x").as_deref(), Some("x"));
    assert_eq!(read(&[&layer], "g/h").as_deref(), Some("h"));
}

#[test]
fn hard_links_reach_lower_layers() {
    let lower = [file("a", "content"), symlink("s", "a")];
    let upper = [hard_link("b", "a"), hard_link("t", "s")];
    let (_directory, store) = store();
    let chain_id = write_image(&store, &[&lower, &upper]).unwrap();
    let index = store.open_image_index(&chain_id).unwrap();
    assert_eq!(index.read_file(&store, "b").unwrap().unwrap(), b"content");
    assert_eq!(index.read_file(&store, "t").unwrap().unwrap(), b"content");
    // The root, one file and one link; each counted once.
    assert_eq!(index.inode_count(), 3);
    assert_eq!(index.content_size(), 7);
}

#[test]
fn links_are_followed_inside_the_tree_only() {
    let layer = [
        file("etc/passwd", "inside"),
        symlink("up", "../../../../../../etc/passwd"),
        symlink("etc/abs", "/etc/passwd"),
        symlink("etc/rel", "./../etc/passwd"),
        symlink("dir", "/etc"),
        symlink("loop", "loop"),
        symlink("a", "b/x"),
        symlink("b", "a"),
        symlink("dangling", "nowhere"),
    ];
    for path in [
        "up",
        "etc/abs",
        "etc/rel",
        "dir/passwd",
        "dir/../etc/passwd",
        "../etc/passwd",
    ] {
        assert_eq!(read(&[&layer], path).as_deref(), Some("inside"), "{path}");
    }
    for path in ["loop", "a", "dangling", "etc", "", "etc/passwd/x"] {
        assert_eq!(read(&[&layer], path), None, "{path}");
    }
}

#[test]
fn hostile_layers_make_no_image() {
    for (layer, problem) in [
        (
            vec![symlink("l", "/etc"), file("l/passwd", "x")],
            "symbolic link",
        ),
        (vec![file("f", ""), file("f/x", "x")], "a file"),
        (vec![hard_link("h", "nowhere")], "does not exist"),
        (vec![directory("d"), hard_link("h", "d")], "is a directory"),
        (
            vec![symlink("l", "/"), hard_link("h", "l/etc")],
            "does not exist",
        ),
        (vec![file("d/f", "x"), hard_link("d/f/g", "d/f")], "a file"),
    ] {
        let error = refused(&[&layer]);
        assert!(error.contains(problem), "{problem}: {error}");
    }
}

#[test]
fn huge_attributes_do_not_fill_the_memory() {
    let value = |number: u32| {
        let mut value = vec![0; 65000];
        value[..4].copy_from_slice(&number.to_le_bytes());
        value
    };
    let layer: Vec<_> = (0..400)
        .map(|number| file(&format!("{number}"), "").xattr("user.x", &value(number)))
        .collect();
    assert!(refused(&[&layer]).contains("48 MiB"));
}

#[test]
fn owners_are_those_of_files_and_of_the_user_databases() {
    let layer = [
        file("a", "x").owned(33, 42),
        file(
            "usr/lib/passwd",
            "root:x:0:0::/:/bin/sh\nbroken\n+::::::\nbig:x:4294967295:1::/:\nnobody:x:65534:65533::/:\nneg:x:-1:7::/:",
        ),
        symlink("etc/passwd", "../usr/lib/passwd"),
        file("etc/group", "root:x:0:\nstaff:x:50:a,b\n"),
        file("gone", "").owned(999, 999),
    ];
    let upper = [whiteout("gone")];
    let (_directory, store) = store();
    let chain_id = write_image(&store, &[&layer, &upper]).unwrap();
    let ids = store.open_image_index(&chain_id).unwrap().ids();
    assert_eq!(ids.uids, BTreeSet::from([0, 33, 65534]));
    assert_eq!(ids.gids, BTreeSet::from([0, 1, 7, 42, 50, 65533]));
}

#[test]
fn an_image_without_layers_is_empty() {
    let (_directory, store) = store();
    let chain_id = store.build_image_index(&[]).unwrap();
    let index = store.open_image_index(&chain_id).unwrap();
    assert_eq!(index.inode_count(), 1);
    assert_eq!(index.read_file(&store, "etc/passwd").unwrap(), None);
    assert_eq!(index.ids().uids, BTreeSet::from([0]));
}

#[test]
fn missing_layers_and_images_are_named() {
    let (_directory, store) = store();
    let digest = format!("sha256:{}", "ab".repeat(32));
    for error in [
        store
            .build_image_index(std::slice::from_ref(&digest))
            .unwrap_err(),
        store.open_image_index(&digest).unwrap_err(),
        store.layer_tar_size(&digest).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Missing { .. }), "{error}");
        assert!(error.to_string().contains(&digest), "{error}");
    }
    assert!(!store.has_layer("../../etc/passwd"));
    assert!(store.open_image_index("../../etc/passwd").is_err());
}

fn image_bytes() -> (
    tempfile::TempDir,
    Store,
    String,
    std::path::PathBuf,
    Vec<u8>,
) {
    let (directory_guard, store) = store();
    let layer = [
        directory("etc"),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        file("x", "x").xattr("user.a", b"b").owned(5, 6),
        symlink("l", "etc/passwd"),
        hard_link("h", "x"),
    ];
    let chain_id = write_image(&store, &[&layer]).unwrap();
    let path = store
        .root()
        .join("images")
        .join(format!("{}.index", &chain_id["sha256:".len()..]));
    let bytes = std::fs::read(&path).unwrap();
    (directory_guard, store, chain_id, path, bytes)
}

/// Opens and reads everything; the answer does not matter, only that there is one.
fn read_everything(store: &Store, chain_id: &str) -> Result<(), StoreError> {
    let index = store.open_image_index(chain_id)?;
    for path in ["etc/passwd", "l", "h", "x/y", "nowhere"] {
        index.read_file(store, path)?;
    }
    index.objects()?.for_each(drop);
    Ok(())
}

#[test]
fn every_flipped_bit_and_every_cut_is_damage() {
    let (_guard, store, chain_id, path, bytes) = image_bytes();
    read_everything(&store, &chain_id).unwrap();
    for offset in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[offset] ^= 1 << (offset % 8);
        std::fs::write(&path, &damaged).unwrap();
        let error = read_everything(&store, &chain_id).unwrap_err();
        assert!(
            matches!(error, StoreError::Damaged { .. }),
            "{offset}: {error}"
        );
    }
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = read_everything(&store, &chain_id).unwrap_err();
        assert!(
            matches!(error, StoreError::Damaged { .. }),
            "{length}: {error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Checksums do not stop someone who can compute them: wrong tables must not panic either.
    #[test]
    fn forged_indexes_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (_guard, store, chain_id, path, mut bytes) = image_bytes();
        let head = 152 + (bytes[12] as usize + bytes[16] as usize) * 4;
        for (index, value) in changes {
            // Anything but magic, format and the number of IDs.
            let offset = 20 + index.index(bytes.len() - 20);
            if !(56..head).contains(&offset) {
                bytes[offset] = value;
            }
        }
        let body = *blake3::hash(&bytes[head..]).as_bytes();
        bytes[88..120].copy_from_slice(&body);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes[..120]);
        hasher.update(&bytes[152..head]);
        bytes[120..152].copy_from_slice(hasher.finalize().as_bytes());
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = read_everything(&store, &chain_id) {
            let damaged = matches!(error, StoreError::Damaged { .. });
            prop_assert!(damaged, "{}", error);
        }
    }
}
