//! Layers that must be read right: every form of member, bit for bit.

mod layer_recorder;
mod tar_builder;

use std::io::Write;
use std::process::Command;

use layer_recorder::{Recorder, read};
use selkie_image::digest::Digest;
use selkie_image::layer_tar::{Compression, EntryKind, Expected, Limits, read_layer};
use tar_builder::{Member, open_tar, tar};

fn file(size: u64) -> EntryKind {
    EntryKind::File { size }
}

#[test]
fn plain_members() {
    let bytes = tar(&[
        Member::directory("./").mode(0o755),
        Member::directory("./etc/").mode(0o1777),
        Member::file("etc/passwd", "root")
            .owner(1, 2)
            .mode(0o100_4755),
        Member::symlink("etc/link", "/absolute/../is/fine"),
        Member::hard_link("etc/hard", "/etc/passwd"),
        Member::new(b'6', "fifo"),
        Member::new(b'3', "dev/null"),
        Member::new(0, "v7dir/").field(257, [0; 8]),
        Member::new(b'7', "contiguous").data("x"),
    ]);
    let (report, recorder) = read(&bytes).unwrap();
    assert_eq!(report.content.entries, 9);
    assert_eq!(report.content.devices, 1);
    assert_eq!(recorder.rebuilt, bytes);
    let kinds: Vec<_> = recorder
        .entries
        .iter()
        .map(|entry| (entry.path(), entry.meta.kind.clone()))
        .collect();
    let link = b"/absolute/../is/fine".to_vec();
    let hard = b"etc/passwd".to_vec();
    assert_eq!(
        kinds,
        [
            ("", EntryKind::Directory),
            ("etc", EntryKind::Directory),
            ("etc/passwd", file(4)),
            ("etc/link", EntryKind::Symlink { target: link }),
            ("etc/hard", EntryKind::HardLink { target: hard }),
            ("fifo", EntryKind::Fifo),
            ("dev/null", EntryKind::Device),
            ("v7dir", EntryKind::Directory),
            ("contiguous", file(1)),
        ]
    );
    let passwd = &recorder.entries[2];
    assert_eq!((passwd.meta.uid, passwd.meta.gid), (1, 2));
    assert_eq!(passwd.meta.mode, 0o4755);
    assert_eq!(passwd.content, b"root");
    assert_eq!(recorder.entries[1].meta.mode, 0o1777);
}

#[test]
fn long_names_of_every_kind() {
    let long = "d/".repeat(150) + "f";
    let bytes = tar(&[
        Member::long(b'L', &long),
        Member::file("short", "1").gnu(),
        Member::long(b'K', &long),
        Member::hard_link("hard", "short").gnu(),
        Member::pax(&[("path", b"p\xff/x"), ("linkpath", long.as_bytes())]),
        Member::symlink("short", "short"),
        Member::file("name", "2").field(345, "pre/fix"),
        // in the GNU form these bytes are no prefix
        Member::file("gnu", "3").gnu().field(345, "12345"),
    ]);
    let (_, recorder) = read(&bytes).unwrap();
    let paths: Vec<_> = recorder
        .entries
        .iter()
        .map(|entry| entry.meta.path.clone())
        .collect();
    assert_eq!(
        paths,
        [
            long.as_bytes(),
            b"hard",
            b"p\xff/x",
            b"pre/fix/name",
            b"gnu"
        ]
    );
    let target = long.into_bytes();
    assert_eq!(
        recorder.entries[1].meta.kind,
        EntryKind::HardLink {
            target: target.clone()
        }
    );
    assert_eq!(recorder.entries[2].meta.kind, EntryKind::Symlink { target });
}

#[test]
fn pax_records_override_the_header() {
    let capability = hex::decode("010000030004000000000000000000000000000000e80300").unwrap();
    let bytes = tar(&[
        Member::pax(&[
            ("uid", b"4000000000"),
            ("gid", b"70000"),
            ("size", b"3"),
            ("mtime", b"1700000000.25"),
            ("SCHILY.xattr.user.a", b"va\nlue="),
            ("SCHILY.xattr.user.empty", b""),
            ("LIBARCHIVE.xattr.user.a", b"b3RoZXI"),
            ("LIBARCHIVE.xattr.user.%C3%BC", b"AAE"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc/shadow"),
            ("comment", b"of no meaning"),
        ]),
        Member::file("f", "abc").size(0),
        Member::file("after", "x"),
        // a global header has no effect
        Member::new(b'g', "pax_global_header").data("16 path=ignored\n"),
        Member::file("plain", ""),
    ]);
    let (report, recorder) = read(&bytes).unwrap();
    assert_eq!(report.content.overlay_xattrs, 1);
    let first = &recorder.entries[0];
    assert_eq!(first.meta.uid, 4_000_000_000);
    assert_eq!(first.meta.gid, 70_000);
    assert_eq!(first.content, b"abc");
    assert_eq!(first.meta.mtime, 1_700_000_000);
    assert_eq!(first.meta.mtime_nsec, 250_000_000);
    let xattrs: Vec<_> = first.meta.xattrs.iter().collect();
    let v2 = hex::decode("0100000200040000000000000000000000000000").unwrap();
    assert_eq!(
        xattrs,
        [
            (&b"security.capability".to_vec(), &v2),
            (&b"user.a".to_vec(), &b"va\nlue=".to_vec()),
            (&b"user.empty".to_vec(), &Vec::new()),
            (&b"user.\xc3\xbc".to_vec(), &vec![0, 1]),
        ]
    );
    assert!(recorder.entries[1].meta.xattrs.is_empty());
    assert_eq!(recorder.entries[2].path(), "plain");
}

#[test]
fn large_and_negative_numbers() {
    let bytes = tar(&[Member::file("f", "")
        .field(108, [0x80, 0, 0, 0, 0xee, 0x6b, 0x28, 0])
        .field(136, [0xff; 12])]);
    let (_, recorder) = read(&bytes).unwrap();
    assert_eq!(recorder.entries[0].meta.uid, 4_000_000_000);
    assert_eq!(recorder.entries[0].meta.mtime, -1);
}

#[test]
fn whiteouts() {
    let bytes = tar(&[
        Member::directory("a"),
        Member::file("a/.wh.gone", ""),
        Member::file("a/.wh..wh..opq", ""),
        Member::file(".wh..wh.plnk/1", "content of no meaning"),
        Member::hard_link(".wh..wh.orph", ".wh..wh.aufs"),
        // deleted below, made anew here
        Member::file(".wh.b", ""),
        Member::file("b", "new"),
    ]);
    let (report, recorder) = read(&bytes).unwrap();
    assert_eq!(report.content.entries, 5);
    assert_eq!(recorder.rebuilt, bytes);
    let kinds: Vec<_> = recorder
        .entries
        .iter()
        .map(|entry| (entry.path(), entry.meta.kind.clone()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("a", EntryKind::Directory),
            ("a/gone", EntryKind::Whiteout),
            ("a", EntryKind::OpaqueDirectory),
            ("b", EntryKind::Whiteout),
            ("b", file(3)),
        ]
    );
}

#[test]
fn sparse_files_of_every_form() {
    let old = Member::file("old", "AABB")
        .gnu()
        .field(156, "S")
        .field(386, "00000000000\x0000000000002\x00")
        .field(410, "00000001000\x0000000000002\x00")
        .field(434, "00000010000\x0000000000000\x00")
        .field(483, "00000010000\x00");
    let pax_0_0 = Member::pax(&[
        ("GNU.sparse.size", b"4096"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"2"),
        ("GNU.sparse.offset", b"512"),
        ("GNU.sparse.numbytes", b"2"),
    ]);
    let pax_0_1 = Member::pax(&[
        ("GNU.sparse.size", b"4096"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.name", b"form-0.1"),
        ("GNU.sparse.map", b"0,2,512,2"),
    ]);
    let pax_1_0 = Member::pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"form-1.0"),
        ("GNU.sparse.realsize", b"4096"),
    ]);
    let mut data = b"3\n0\n2\n512\n2\n4096\n0\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"AABB");
    let bytes = tar(&[
        old,
        pax_0_0,
        Member::file("form-0.0", "AABB"),
        pax_0_1,
        Member::file("GNUSparseFile.0/x", "AABB"),
        pax_1_0,
        Member::file("GNUSparseFile.1/x", data),
        Member::file("plain", "AABB"),
    ]);
    let (_, recorder) = read(&bytes).unwrap();
    assert_eq!(recorder.rebuilt, bytes);
    for (entry, name) in recorder
        .entries
        .iter()
        .zip(["old", "form-0.0", "form-0.1", "form-1.0"])
    {
        assert_eq!(entry.path(), name);
        assert_eq!(entry.meta.kind, file(4096), "{name}");
        assert_eq!(entry.sparse_map, Some(vec![(0, 2), (512, 2)]), "{name}");
        assert_eq!(entry.content.len(), 4096, "{name}");
        assert_eq!(entry.content[..4], *b"AA\0\0", "{name}");
        assert_eq!(entry.content[510..516], *b"\0\0BB\0\0", "{name}");
    }
    assert_eq!(recorder.entries[4].sparse_map, None);
}

#[test]
fn an_empty_layer_and_one_without_end_mark() {
    let (report, _) = read(&tar(&[])).unwrap();
    assert_eq!(report.content.entries, 0);
    // accepted only because the digest vouches for it
    let bytes = open_tar(&[Member::file("f", "x")]);
    let mut recorder = Recorder::default();
    let expected = Expected {
        diff_id: Some(Digest::of(&bytes)),
        ..Expected::default()
    };
    let mut source = &bytes[..];
    read_layer(
        &mut source,
        &expected,
        &Limits::default(),
        None,
        &mut recorder,
    )
    .unwrap();
    assert_eq!(recorder.entries.len(), 1);
}

#[test]
fn compressed_layers_have_both_digests() {
    let bytes = tar(&[Member::file("f", vec![7; 3_000_000])]);
    let half = bytes.len() / 2;
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
    for (compressed, compression) in [
        (bytes.clone(), Compression::None),
        (gzip(&bytes), Compression::Gzip),
        (
            [gzip(&bytes[..half]), gzip(&bytes[half..])].concat(),
            Compression::Gzip,
        ),
        (zstd(&bytes), Compression::Zstd),
        (
            [&skippable[..], &zstd(&bytes[..half]), &zstd(&bytes[half..])].concat(),
            Compression::Zstd,
        ),
    ] {
        let mut recorder = Recorder::default();
        let expected = Expected {
            digest: Some(Digest::of(&compressed)),
            size: Some(compressed.len() as u64),
            diff_id: Some(Digest::of(&bytes)),
        };
        let mut source = &compressed[..];
        let report = read_layer(
            &mut source,
            &expected,
            &Limits::default(),
            None,
            &mut recorder,
        )
        .unwrap();
        assert_eq!(report.compression, compression);
        assert_eq!(report.content.tar_bytes, bytes.len() as u64);
        assert_eq!(recorder.rebuilt, bytes);
    }
}

/// GNU tar itself as the witness: every format it writes is read as what was packed.
#[test]
fn archives_of_gnu_tar_in_every_format() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let long = "n".repeat(90);
    std::fs::create_dir_all(root.join("tree/sub").join(&long)).unwrap();
    std::fs::write(root.join("tree/sub").join(&long).join("file"), "content").unwrap();
    std::fs::hard_link(
        root.join("tree/sub").join(&long).join("file"),
        root.join("tree/linked"),
    )
    .unwrap();
    std::os::unix::fs::symlink("sub", root.join("tree/symlink")).unwrap();
    let sparse = std::fs::File::create(root.join("tree/sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    for part in 0..40u64 {
        use std::os::unix::fs::FileExt;
        sparse.write_all_at(b"data", part << 20).unwrap();
    }
    drop(sparse);
    let forms: [&[&str]; 6] = [
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ];
    for form in forms {
        let output = Command::new("tar")
            .args(form)
            .args(["--sort=name", "-cf", "-", "-C"])
            .arg(root.join("tree"))
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success(), "{form:?}");
        let (_, recorder) = read(&output.stdout).unwrap_or_else(|error| panic!("{form:?} {error}"));
        assert_eq!(recorder.rebuilt, output.stdout, "{form:?}");
        let mut paths: Vec<_> = recorder.entries.iter().map(|entry| entry.path()).collect();
        paths.sort_unstable();
        let deep = format!("sub/{long}");
        let deep_file = format!("sub/{long}/file");
        assert_eq!(
            paths,
            ["", "linked", "sparse", "sub", &deep, &deep_file, "symlink"],
            "{form:?}"
        );
        let sparse = recorder
            .entries
            .iter()
            .find(|entry| entry.path() == "sparse")
            .unwrap();
        assert_eq!(sparse.meta.kind, file(50 << 20), "{form:?}");
        assert_eq!(sparse.sparse_map.is_some(), form.contains(&"--sparse"));
        assert!(sparse.content == std::fs::read(root.join("tree/sparse")).unwrap());
    }
}
