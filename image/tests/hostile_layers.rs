//! Layers that must be refused, each with an error that says why.

mod layer_recorder;
mod tar_builder;

use std::io::{Read, Write};

use layer_recorder::{Recorder, read};
use proptest::prelude::*;
use selkie_image::digest::Digest;
use selkie_image::layer_tar::{
    Expected, LayerEntry, LayerError, LayerReport, LayerSink, Limits, SinkError, read_layer,
};
use tar_builder::{Member, open_tar, tar};

fn check(bytes: &[u8], expected: &Expected, limits: &Limits) -> Result<LayerReport, LayerError> {
    let mut source = bytes;
    read_layer(
        &mut source,
        expected,
        limits,
        None,
        &mut Recorder::default(),
    )
}

/// Name of the case, the stream, and words that the error must hold.
type Case = (&'static str, Vec<u8>, &'static [&'static str]);

fn cases() -> Vec<Case> {
    let flipped = {
        let mut bytes = tar(&[Member::file("f", "x")]);
        bytes[0] ^= 1;
        bytes
    };
    let negative = [0xff; 12];
    let huge = [
        0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    let sparse_8_eib = [
        Member::pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.size", b"9223372036854775807"),
            ("GNU.sparse.map", b"9223372036854775806,1"),
        ]),
        Member::file("f", "x"),
    ];
    let sparse_1_0 = |map: &str| {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        data.extend_from_slice(b"AABB");
        tar(&[
            Member::pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"4096"),
            ]),
            Member::file("f", data),
        ])
    };
    let with_pax = |records: &[(&str, &[u8])]| tar(&[Member::pax(records), Member::file("f", "")]);
    let deep = "d/".repeat(2100) + "f";
    let mut garbage = tar(&[Member::file("f", "x")]);
    garbage.extend_from_slice(&[0; 700]);
    garbage.extend_from_slice(b"garbage");
    vec![
        (
            "dot-dot",
            tar(&[Member::file("../etc/passwd", "x")]),
            &["../etc/passwd", "\"..\""],
        ),
        (
            "dot-dot inside",
            tar(&[Member::file("a/../../x", "x")]),
            &["\"..\""],
        ),
        (
            "absolute dot-dot",
            tar(&[Member::file("/../x", "x")]),
            &["\"..\""],
        ),
        (
            "long name with dot-dot",
            tar(&[Member::long(b'L', "../x"), Member::file("f", "")]),
            &["\"..\""],
        ),
        (
            "PAX path with dot-dot",
            with_pax(&[("path", b"a/../b")]),
            &["\"..\""],
        ),
        (
            "sparse name with dot-dot",
            with_pax(&[("GNU.sparse.name", b"../b"), ("GNU.sparse.map", b"0,0")]),
            &["\"..\""],
        ),
        (
            "NUL in a PAX path",
            with_pax(&[("path", b"a\0b")]),
            &["NUL"],
        ),
        (
            "NUL in a PAX link",
            with_pax(&[("linkpath", b"a\0b")]),
            &["NUL"],
        ),
        ("empty path", tar(&[Member::file("", "x")]), &["empty"]),
        ("root as a file", tar(&[Member::file("./", "x")]), &["root"]),
        (
            "very long path",
            tar(&[Member::long(b'L', deep), Member::file("f", "")]),
            &["longer than 4095"],
        ),
        (
            "very long component",
            tar(&[Member::long(b'L', "n".repeat(256)), Member::file("f", "")]),
            &["longer than 255"],
        ),
        (
            "hard link out of the root",
            tar(&[Member::hard_link("f", "../../etc/shadow")]),
            &["\"f\"", "leads out"],
        ),
        (
            "hard link to nothing",
            tar(&[Member::hard_link("f", "")]),
            &["empty"],
        ),
        (
            "hard link to the root",
            tar(&[Member::hard_link("f", "/")]),
            &["directory"],
        ),
        (
            "hard link to itself",
            tar(&[Member::hard_link("f", "./f")]),
            &["itself"],
        ),
        (
            "hard link to a whiteout",
            tar(&[Member::hard_link("f", ".wh.g")]),
            &["whiteout"],
        ),
        (
            "hard link through a symlink",
            tar(&[
                Member::symlink("s", "/etc"),
                Member::hard_link("f", "s/shadow"),
            ]),
            &["\"s\"", "not a directory"],
        ),
        (
            "symlink to nothing",
            tar(&[Member::symlink("f", "")]),
            &["empty"],
        ),
        (
            "link then write",
            tar(&[Member::symlink("s", "/etc"), Member::file("s/passwd", "x")]),
            &["s/passwd", "\"s\"", "not a directory"],
        ),
        (
            "link then write deeper",
            tar(&[Member::symlink("a/s", ".."), Member::file("a/s/b/c", "x")]),
            &["\"a/s\""],
        ),
        (
            "below a file",
            tar(&[Member::file("a", ""), Member::directory("a/b")]),
            &["not a directory"],
        ),
        (
            "file over a used directory",
            tar(&[Member::file("a/b", ""), Member::symlink("a", "/etc")]),
            &["\"a\"", "twice"],
        ),
        (
            "file twice",
            tar(&[Member::file("a", "1"), Member::file("./a", "2")]),
            &["\"a\"", "twice"],
        ),
        (
            "file and symlink",
            tar(&[Member::file("a", "1"), Member::symlink("a", "b")]),
            &["twice"],
        ),
        (
            "file then directory",
            tar(&[Member::file("a", "1"), Member::directory("a/")]),
            &["twice"],
        ),
        (
            "below a whiteout",
            tar(&[Member::file(".wh.a/b", "")]),
            &["below a whiteout"],
        ),
        (
            "whiteout of dot",
            tar(&[Member::file("a/.wh..", "")]),
            &["no possible name"],
        ),
        (
            "whiteout of dot-dot",
            tar(&[Member::file("a/.wh...", "")]),
            &["no possible name"],
        ),
        (
            "whiteout of nothing",
            tar(&[Member::file("a/.wh.", "")]),
            &["no possible name"],
        ),
        (
            "unknown type",
            tar(&[Member::new(b'V', "label")]),
            &["\"V\"", "unknown"],
        ),
        ("wrong checksum", flipped, &["byte 0", "checksum"]),
        (
            "not a tar",
            b"hello, this is not a tar archive".repeat(40),
            &["not a valid tar"],
        ),
        (
            "negative size",
            tar(&[Member::file("f", "").field(124, negative)]),
            &["negative"],
        ),
        (
            "size beyond any disk",
            tar(&[Member::file("f", "").field(124, huge)]),
            &["too large"],
        ),
        (
            "size over 63 bits",
            tar(&[Member::file("f", "").field(124, [0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0])]),
            &["64 bits"],
        ),
        (
            "letters in a number",
            tar(&[Member::file("f", "").field(100, "00x644\0")]),
            &["octal"],
        ),
        (
            "negative owner",
            tar(&[Member::file("f", "").field(108, [0xff; 8])]),
            &["owner"],
        ),
        ("owner -1", with_pax(&[("uid", b"4294967295")]), &["owner"]),
        (
            "group too large",
            with_pax(&[("gid", b"4294967296")]),
            &["group"],
        ),
        (
            "PAX size not a number",
            with_pax(&[("size", b"-1")]),
            &["size", "malformed"],
        ),
        (
            "PAX time not a number",
            with_pax(&[("mtime", b"yesterday")]),
            &["mtime", "malformed"],
        ),
        (
            "PAX record too short",
            tar(&[
                Member::new(b'x', "p").data("3 a=b\n"),
                Member::file("f", ""),
            ]),
            &["malformed"],
        ),
        (
            "PAX record too long",
            tar(&[
                Member::new(b'x', "p").data("9999 a=b\n"),
                Member::file("f", ""),
            ]),
            &["malformed"],
        ),
        (
            "huge PAX header",
            tar(&[Member::new(b'x', "p").size(7 << 30)]),
            &["PAX header", "1048576"],
        ),
        (
            "huge long name",
            tar(&[Member::new(b'L', "p").size(2 << 20)]),
            &["long name"],
        ),
        (
            "huge global header",
            tar(&[Member::new(b'g', "p").size(2 << 20)]),
            &["global"],
        ),
        (
            "negative PAX header",
            tar(&[Member::new(b'x', "p").field(124, negative)]),
            &["PAX header"],
        ),
        (
            "large attribute",
            with_pax(&[("SCHILY.xattr.user.a", &[b'x'; 65_537])]),
            &["64 KiB"],
        ),
        (
            "unknown capabilities",
            with_pax(&[("SCHILY.xattr.security.capability", b"\0\0\0\x09")]),
            &["capabilities"],
        ),
        (
            "sparse file of 8 EiB",
            tar(&sparse_8_eib),
            &["too large", "9223372036854775807"],
        ),
        (
            "sparse overlap",
            sparse_1_0("2\n0\n3\n2\n1\n"),
            &["sparse", "overlap"],
        ),
        (
            "sparse beyond its size",
            sparse_1_0("1\n4095\n4\n"),
            &["sparse"],
        ),
        (
            "sparse map with wrong sum",
            sparse_1_0("1\n0\n3\n"),
            &["3 bytes", "4 are stored"],
        ),
        (
            "sparse map without end",
            sparse_1_0("99999\n0\n3\n"),
            &["sparse map"],
        ),
        ("sparse map of letters", sparse_1_0("x\n"), &["malformed"]),
        (
            "sparse form 2.0",
            with_pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")]),
            &["2.0"],
        ),
        (
            "sparse without a GNU header",
            tar(&[Member::file("f", "").field(156, "S")]),
            &["GNU"],
        ),
        (
            "cut in a header",
            tar(&[Member::file("f", "x")])[..100].to_vec(),
            &["truncated", "header"],
        ),
        (
            "cut in content",
            tar(&[Member::file("f", [7; 2000])])[..1500].to_vec(),
            &["truncated", "\"f\""],
        ),
        (
            "cut in padding",
            tar(&[Member::file("f", "x")])[..600].to_vec(),
            &["truncated", "padding"],
        ),
        (
            "cut in a PAX header",
            with_pax(&[("path", b"x")])[..600].to_vec(),
            &["truncated", "PAX"],
        ),
        (
            "cut in a sparse map",
            sparse_1_0("99\n")[..1600].to_vec(),
            &["truncated", "sparse"],
        ),
        (
            "cut between members",
            open_tar(&[Member::file("f", "x")]),
            &["truncated", "end"],
        ),
        ("nothing at all", Vec::new(), &["truncated"]),
        (
            "single zero block",
            [&[0; 512][..], &tar(&[Member::file("f", "x")])].concat(),
            &["zeros"],
        ),
        (
            "garbage after the end",
            garbage,
            &["after its end", "byte 2748"],
        ),
        (
            "second archive after the end",
            tar(&[])
                .repeat(1)
                .into_iter()
                .chain(tar(&[Member::file("f", "")]))
                .collect(),
            &["after its end"],
        ),
        ("bzip2", b"BZh91AY&SY".to_vec(), &["bzip2"]),
        ("xz", b"\xfd7zXZ\0\0\0".to_vec(), &["xz"]),
        (
            "truncated gzip",
            gzip(&tar(&[Member::file("f", "x")]))[..40].to_vec(),
            &["gzip"],
        ),
        (
            "damaged gzip",
            damaged(gzip(&tar(&[Member::file("f", random(4000))]))),
            &["gzip"],
        ),
        (
            "garbage after gzip",
            [gzip(&tar(&[])), b"garbage".to_vec()].concat(),
            &["gzip"],
        ),
        (
            "truncated zstd",
            zstd::encode_all(&tar(&[Member::file("f", random(4000))])[..], 1).unwrap()[..2000]
                .to_vec(),
            &["zstd"],
        ),
        (
            "escape sequence in a name",
            tar(&[Member::file("\x1b[2J/../x", "")]),
            &["\\x1b[2J"],
        ),
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn damaged(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    bytes
}

/// Bytes that do not compress.
fn random(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    })
    .take(length)
    .collect()
}

#[test]
fn hostile_layers_are_refused_and_say_why() {
    for (name, bytes, words) in cases() {
        let error = match read(&bytes) {
            Ok(_) => panic!("{name}: accepted"),
            Err(error) => error.to_string(),
        };
        for word in words {
            assert!(error.contains(word), "{name}: no {word:?} in: {error}");
        }
        assert!(!error.contains('\x1b'), "{name}: {error}");
    }
}

#[test]
fn wrong_digests_and_sizes_are_refused() {
    let bytes = tar(&[Member::file("f", "x")]);
    let compressed = gzip(&bytes);
    let right = Expected {
        digest: Some(Digest::of(&compressed)),
        size: Some(compressed.len() as u64),
        diff_id: Some(Digest::of(&bytes)),
    };
    let limits = Limits::default();
    check(&compressed, &right, &limits).unwrap();
    let wrong = Some(Digest::of(b"something else"));
    for (expected, words) in [
        (
            Expected {
                digest: wrong,
                ..right.clone()
            },
            "its digest is",
        ),
        (
            Expected {
                diff_id: wrong,
                ..right.clone()
            },
            "its diff ID is",
        ),
        (
            Expected {
                size: Some(9_999),
                ..right.clone()
            },
            "its size is",
        ),
        (
            Expected {
                size: Some(10),
                ..right.clone()
            },
            "longer than announced",
        ),
    ] {
        let error = check(&compressed, &expected, &limits).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn bombs_hit_the_limits() {
    let limits = Limits {
        tar_bytes: 1 << 20,
        entries: 100,
        header_bytes: 4096,
        content_bytes: 1 << 20,
    };
    let refused = |bytes: &[u8], word: &str| {
        let error = check(bytes, &Expected::default(), &limits).unwrap_err();
        assert!(matches!(error, LayerError::Limit(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    // declared in the header, so refused before any content is read
    refused(
        &gzip(&tar(&[Member::file("zeros", vec![0; 2 << 20])])),
        "1048576",
    );
    let many: Vec<_> = (0..101).map(|n| Member::file(format!("{n}"), "")).collect();
    refused(&gzip(&tar(&many)), "100 entries");
    // directories that paths imply count too
    let deep = "d/".repeat(101) + "f";
    refused(
        &tar(&[Member::long(b'L', deep), Member::file("f", "")]),
        "100 entries",
    );
    // zeros after the end, or bytes without meaning
    let mut padded = tar(&[]);
    padded.resize(2 << 20, 0);
    refused(&gzip(&padded), "1048576");
    refused(
        &gzip(&tar(&[Member::file(".wh..wh.x", vec![0; 2 << 20])])),
        "1048576",
    );
    let whiteouts: Vec<_> = (0..101)
        .map(|n| Member::file(format!(".wh.{n}"), ""))
        .collect();
    refused(&gzip(&tar(&whiteouts)), "100 entries");
}

/// A stream that goes on for ever must end because of a limit, not because memory ends.
#[test]
fn endless_streams_end() {
    struct Endless {
        member: Vec<u8>,
        position: usize,
        count: u64,
    }
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.position == self.member.len() {
                self.count += 1;
                self.member = Member::file(format!("{}", self.count), "").bytes();
                self.position = 0;
            }
            let mut rest = &self.member[self.position..];
            let count = rest.read(buffer)?;
            self.position += count;
            Ok(count)
        }
    }
    struct Nowhere;
    impl LayerSink for Nowhere {
        fn raw(&mut self, _: &[u8]) -> Result<(), SinkError> {
            Ok(())
        }
        fn entry(
            &mut self,
            _: LayerEntry,
            _: Option<&[(u64, u64)]>,
            _: &mut dyn Read,
        ) -> Result<(), SinkError> {
            Ok(())
        }
    }
    let mut source = Endless {
        member: Vec::new(),
        position: 0,
        count: 0,
    };
    let limits = Limits {
        entries: 10_000,
        ..Limits::default()
    };
    let expected = Expected::default();
    let error = read_layer(&mut source, &expected, &limits, None, &mut Nowhere).unwrap_err();
    assert!(error.to_string().contains("10000 entries"), "{error}");
}

#[test]
fn a_failing_sink_ends_the_reading() {
    struct Full;
    impl LayerSink for Full {
        fn raw(&mut self, _: &[u8]) -> Result<(), SinkError> {
            Ok(())
        }
        fn entry(
            &mut self,
            _: LayerEntry,
            _: Option<&[(u64, u64)]>,
            _: &mut dyn Read,
        ) -> Result<(), SinkError> {
            Err("no space left".into())
        }
    }
    let bytes = tar(&[Member::file("f", vec![0; 10 << 20])]);
    let mut source = &bytes[..];
    let limits = Limits::default();
    let error = read_layer(&mut source, &Expected::default(), &limits, None, &mut Full);
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "cannot store the layer's entry \"f\": no space left");
}

proptest! {
    #[test]
    fn any_damage_is_survived(
        at in 0usize..4096,
        value: u8,
        cut in 0usize..8000,
    ) {
        let mut bytes = tar(&[
            Member::pax(&[("path", b"p"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")]),
            Member::file("f", "content"),
            Member::long(b'L', "long"),
            Member::hard_link("l", "p").gnu(),
        ]);
        let length = bytes.len();
        bytes[at % length] = value;
        bytes.truncate(cut);
        if let Ok((_, recorder)) = read(&bytes) {
            prop_assert_eq!(recorder.rebuilt, bytes);
        }
    }
}
