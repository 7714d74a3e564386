//! Archives and directories of images: written, read back, and refused when broken.

mod layer_recorder;
mod tar_builder;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use layer_recorder::Recorder;
use selkie_image::changes::Changes;
use selkie_image::config;
use selkie_image::digest::Digest;
use selkie_image::layer_tar::{Limits, SinkError, read_layer};
use selkie_image::platform::Platform;
use selkie_image::save::{
    ArchiveFormat, DirectoryFormat, LayerSource, SavedImage, save_archive, save_directory,
};
use selkie_image::transport::{Input, Selector, Source, SourceImage, Spool, Transport};
use tar_builder::{Member, tar};

struct Layers(BTreeMap<Digest, Vec<u8>>);

impl LayerSource for Layers {
    fn tar_size(&self, diff_id: &Digest) -> Result<u64, SinkError> {
        let layer = self.0.get(diff_id).ok_or("no such layer")?;
        Ok(layer.len() as u64)
    }
    fn write_tar(&self, diff_id: &Digest, out: &mut dyn Write) -> Result<(), SinkError> {
        let layer = self.0.get(diff_id).ok_or("no such layer")?;
        Ok(out.write_all(layer)?)
    }
}

/// Two images that share their lower layer.
fn images() -> (Vec<SavedImage>, Layers) {
    let lower = tar(&[Member::file("lower", vec![1; 100_000])]);
    let upper = tar(&[Member::file("upper", "2")]);
    let (low, up) = (Digest::of(&lower), Digest::of(&upper));
    let first = config::for_import(&low, "2024-01-01T00:00:00Z", "first", &Changes::default());
    let second = String::from_utf8(first.clone())
        .unwrap()
        .replace(&format!("[\"{low}\"]"), &format!("[\"{low}\",\"{up}\"]"))
        .into_bytes();
    let images = vec![
        SavedImage {
            names: vec![
                "localhost/first:v1".parse().unwrap(),
                "quay.io/first:v2".parse().unwrap(),
            ],
            config: first,
            layers: vec![low],
        },
        SavedImage {
            names: Vec::new(),
            config: second,
            layers: vec![low, up],
        },
    ];
    (images, Layers(BTreeMap::from([(low, lower), (up, upper)])))
}

fn spool(directory: &Path) -> Spool {
    Spool {
        directory: directory.to_owned(),
        limit: 1 << 30,
    }
}

fn check(source: &Source, image: &SourceImage, expected: &SavedImage, layers: &Layers) {
    assert_eq!(image.raw_config, expected.config);
    assert_eq!(image.layers.len(), expected.layers.len());
    for (layer, diff_id) in image.layers.iter().zip(&expected.layers) {
        assert_eq!(layer.diff_id, *diff_id);
        let mut recorder = Recorder::default();
        let mut opened = source.open_layer(layer).unwrap();
        let limits = Limits::default();
        read_layer(
            &mut opened.reader,
            &layer.expected,
            &limits,
            None,
            &mut recorder,
        )
        .unwrap();
        assert_eq!(recorder.rebuilt, layers.0[diff_id]);
    }
}

fn names(image: &SourceImage) -> Vec<String> {
    image.names.iter().map(ToString::to_string).collect()
}

#[test]
fn archives_are_read_back_from_files_pipes_and_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let (images, layers) = images();
    for (format, compress, transport) in [
        (ArchiveFormat::Docker, false, Transport::DockerArchive),
        (ArchiveFormat::Oci, false, Transport::OciArchive),
        (ArchiveFormat::Oci, true, Transport::OciArchive),
    ] {
        let mut bytes = Vec::new();
        let at = directory.path();
        save_archive(&images, format, compress, &mut bytes, at, &layers).unwrap();
        let plain = at.join("plain");
        std::fs::write(&plain, &bytes).unwrap();
        let packed = at.join("packed");
        std::fs::write(&packed, zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
        // a file that is not at its start cannot be read by offset, as a pipe
        let mut stream = tempfile::tempfile().unwrap();
        stream.write_all(b"skipped").unwrap();
        stream.write_all(&bytes).unwrap();
        stream.seek(SeekFrom::Start(7)).unwrap();
        for input in [
            Input::Path(plain),
            Input::Path(packed),
            Input::Stream(stream),
        ] {
            let source = Source::detect(input, &spool(at)).unwrap();
            assert_eq!(source.transport(), transport);
            let found = source.images(None, &Platform::host()).unwrap();
            // an OCI index has an entry for each name
            let (first, second) = match transport {
                Transport::OciArchive => {
                    assert_eq!(names(&found[0]), ["localhost/first:v1"]);
                    assert_eq!(names(&found[1]), ["quay.io/first:v2"]);
                    assert_eq!(found.len(), 3);
                    (&found[1], &found[2])
                }
                _ => {
                    let expected = ["localhost/first:v1", "quay.io/first:v2"];
                    assert_eq!(names(&found[0]), expected);
                    assert_eq!(found.len(), 2);
                    (&found[0], &found[1])
                }
            };
            check(&source, first, &images[0], &layers);
            check(&source, second, &images[1], &layers);
            assert!(names(second).is_empty());
            let selected = |selector| source.images(Some(&selector), &Platform::host());
            let by_name = selected(Selector::Name("quay.io/first:v2".to_owned())).unwrap();
            assert_eq!(names(&by_name[0]), ["quay.io/first:v2"]);
            assert_eq!(by_name.len(), 1);
            let last = found.len() - 1;
            let by_position = selected(Selector::Position(last)).unwrap();
            assert_eq!(by_position[0].raw_config, images[1].config);
            let absent = selected(Selector::Name("quay.io/other:v2".to_owned()));
            let error = absent.unwrap_err().to_string();
            assert!(error.contains("quay.io/first:v2"), "{error}");
            assert!(selected(Selector::Position(9)).is_err());
        }
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn directories_are_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let (images, layers) = images();
    for compress in [false, true] {
        let path = directory.path().join(format!("oci-{compress}"));
        save_directory(&images, DirectoryFormat::Oci, compress, &path, &layers).unwrap();
        let source = Source::detect(Input::Path(path.clone()), &spool(&path)).unwrap();
        assert_eq!(source.transport(), Transport::OciDirectory);
        let found = source.images(None, &Platform::host()).unwrap();
        check(&source, &found[2], &images[1], &layers);

        let path = directory.path().join(format!("docker-{compress}"));
        let one = &images[1..];
        save_directory(one, DirectoryFormat::Docker, compress, &path, &layers).unwrap();
        let reference = format!("dir:{}", path.display()).parse().unwrap();
        let source = Source::open(&reference, &spool(&path)).unwrap();
        let found = source.images(None, &Platform::host()).unwrap();
        check(&source, &found[0], &images[1], &layers);
        // what is there is not overwritten
        let again = save_directory(one, DirectoryFormat::Docker, compress, &path, &layers);
        assert!(again.unwrap_err().to_string().contains("not empty"));
    }
    let several = save_directory(
        &images,
        DirectoryFormat::Docker,
        false,
        &directory.path().join("several"),
        &layers,
    );
    assert!(several.unwrap_err().to_string().contains("exactly one"));
    assert!(!directory.path().join("several").exists());
}

#[test]
fn a_failing_layer_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let (images, _) = images();
    let none = Layers(BTreeMap::new());
    let path = directory.path().join("out");
    let result = save_directory(&images, DirectoryFormat::Oci, true, &path, &none);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("no such layer"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A docker-archive's files, for cases that break one of them.
fn docker_files() -> Vec<(String, Vec<u8>)> {
    let layer = tar(&[Member::file("f", "x")]);
    let config = config::for_import(
        &Digest::of(&layer),
        "2024-01-01T00:00:00Z",
        "",
        &Changes::default(),
    );
    let manifest = br#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["a/layer.tar"]}]"#;
    vec![
        ("a/layer.tar".to_owned(), layer),
        ("c.json".to_owned(), config),
        ("manifest.json".to_owned(), manifest.to_vec()),
    ]
}

fn archive(files: &[(String, Vec<u8>)], extra: &[Member]) -> File {
    let mut members: Vec<_> = files
        .iter()
        .map(|(name, bytes)| Member::file(name, bytes))
        .collect();
    members.extend_from_slice(extra);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&tar(&members)).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

fn load(file: File) -> Result<Vec<SourceImage>, String> {
    let spool = spool(&std::env::temp_dir());
    let source = Source::detect(Input::Stream(file), &spool).map_err(|error| error.to_string())?;
    let images = source
        .images(None, &Platform::host())
        .map_err(|error| error.to_string())?;
    for image in &images {
        for layer in &image.layers {
            source
                .open_layer(layer)
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(images)
}

#[test]
fn layers_of_docker_archives_may_be_links() {
    let mut files = docker_files();
    files[0].0 = "layer".to_owned();
    let link = Member::symlink("a/layer.tar", "../layer");
    let images = load(archive(&files, &[link])).unwrap();
    assert_eq!(names(&images[0]), ["localhost/x:1"]);
    load(archive(
        &files,
        &[Member::hard_link("a/layer.tar", "layer")],
    ))
    .unwrap();
}

#[test]
fn broken_docker_archives_are_refused() {
    let replaced = |name: &str, from: &str, to: &str| {
        let mut files = docker_files();
        for (file, bytes) in &mut files {
            if file == name {
                let text = String::from_utf8(std::mem::take(bytes)).unwrap();
                assert!(text.contains(from));
                *bytes = text.replace(from, to).into_bytes();
            }
        }
        files
    };
    let without = |name: &str| {
        let mut files = docker_files();
        files.retain(|(file, _)| file != name);
        files
    };
    let mut huge = docker_files();
    huge[1].1 = vec![b' '; (4 << 20) + 1];
    let manifest = "manifest.json";
    for (files, extra, words) in [
        (without("c.json"), vec![], vec!["c.json is missing"]),
        (
            without("a/layer.tar"),
            vec![],
            vec!["a/layer.tar is missing"],
        ),
        (without(manifest), vec![], vec!["neither manifest.json nor"]),
        (
            replaced(manifest, "[{", "{{"),
            vec![],
            vec!["manifest.json", "malformed"],
        ),
        (replaced(manifest, "x:1", "x"), vec![], vec!["\"x\"", "tag"]),
        (replaced(manifest, "x:1", "X:1"), vec![], vec!["lower case"]),
        (
            replaced(manifest, "c.json", "../c.json"),
            vec![],
            vec!["missing"],
        ),
        (
            replaced(manifest, "c.json", "/etc/passwd"),
            vec![],
            vec!["missing"],
        ),
        (
            replaced(manifest, "\"a/layer.tar\"", ""),
            vec![],
            vec!["0 layers"],
        ),
        (
            replaced(manifest, "{", "{\"x\":1},{"),
            vec![],
            vec!["malformed"],
        ),
        (
            replaced("c.json", "sha256:", "md5:"),
            vec![],
            vec!["sha256"],
        ),
        (replaced("c.json", "{", "["), vec![], vec!["config"]),
        (huge, vec![], vec!["4194305 bytes"]),
        (
            docker_files(),
            vec![Member::file("c.json", "{}")],
            vec!["c.json", "twice"],
        ),
        (
            docker_files(),
            vec![Member::file("../x", "")],
            vec!["\"..\""],
        ),
        (
            without("c.json"),
            vec![
                Member::symlink("c.json", "d.json"),
                Member::symlink("d.json", "c.json"),
            ],
            vec!["circle"],
        ),
        (
            without("c.json"),
            vec![Member::symlink("c.json", "/etc/passwd")],
            vec!["c.json is missing"],
        ),
        (
            without("c.json"),
            vec![Member::symlink("c.json", "../../etc/passwd")],
            vec!["c.json is missing"],
        ),
        (
            without("c.json"),
            vec![Member::new(b'6', "c.json")],
            vec!["missing"],
        ),
        (
            docker_files(),
            vec![Member::file("x", "").size(1 << 30)],
            vec!["truncated", "\"x\""],
        ),
    ] {
        let error = load(archive(&files, &extra)).unwrap_err();
        for word in words {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
    }
    let mut nothing = tempfile::tempfile().unwrap();
    assert!(load(nothing.try_clone().unwrap()).is_err());
    nothing.write_all(b"this is no archive at all").unwrap();
    nothing.seek(SeekFrom::Start(0)).unwrap();
    assert!(load(nothing).unwrap_err().contains("truncated"));
}

#[test]
fn broken_layouts_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (images, layers) = images();
    let images = &images[..1];
    let damage = |name: &str, change: &dyn Fn(&Path)| {
        let path = directory.path().join(name);
        save_directory(images, DirectoryFormat::Oci, false, &path, &layers).unwrap();
        change(&path);
        let source = Source::detect(Input::Path(path.clone()), &spool(&path));
        let source = source.map_err(|error| error.to_string())?;
        let found = source
            .images(None, &Platform::host())
            .map_err(|error| error.to_string())?;
        source
            .open_layer(&found[0].layers[0])
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let config = Digest::of(&images[0].config).hex();
    let blob = format!("blobs/sha256/{config}");
    let layer = format!("blobs/sha256/{}", images[0].layers[0].hex());
    damage("good", &|_| {}).unwrap();
    let remove = |file: &str| {
        let file = file.to_owned();
        move |path: &Path| std::fs::remove_file(path.join(&file)).unwrap()
    };
    let error = damage("no-config", &remove(&blob)).unwrap_err();
    assert!(error.contains("is missing"), "{error}");
    let error = damage("no-layer", &remove(&layer)).unwrap_err();
    assert!(error.contains("is missing"), "{error}");
    let error = damage("no-mark", &remove("oci-layout")).unwrap_err();
    assert!(error.contains("oci-layout is missing"), "{error}");
    let error = damage("changed", &|path| {
        std::fs::write(path.join(&blob), "{}").unwrap();
    });
    assert!(error.unwrap_err().contains("has digest"));
    // links of a directory from elsewhere must not lead out of it, and pipes must not block
    let error = damage("link", &|path| {
        std::fs::remove_file(path.join(&blob)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path.join(&blob)).unwrap();
    });
    assert!(error.unwrap_err().contains("open"));
    let error = damage("pipe", &|path| {
        std::fs::remove_file(path.join(&blob)).unwrap();
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mkfifoat(rustix::fs::CWD, path.join(&blob), mode).unwrap();
    });
    assert!(error.unwrap_err().contains("is missing"));
    let error = damage("empty", &|path| {
        std::fs::write(
            path.join("index.json"),
            r#"{"schemaVersion":2,"manifests":[]}"#,
        )
        .unwrap();
    });
    assert!(error.unwrap_err().contains("empty"));
    let error = damage("bad-name", &|path| {
        let index = std::fs::read_to_string(path.join("index.json")).unwrap();
        let index = index.replace("localhost/first:v1", "Bad Name");
        std::fs::write(path.join("index.json"), index).unwrap();
    });
    assert!(error.unwrap_err().contains("Bad Name"));
}

#[test]
fn the_wrong_transport_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let spool = spool(directory.path());
    let at = directory.path().display();
    let open = |text: String| Source::open(&text.parse().unwrap(), &spool);
    let error = open(format!("oci-archive:{at}")).unwrap_err().to_string();
    assert!(error.contains("it is a directory"), "{error}");
    let error = open(format!("oci:{at}/absent")).unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
    let source = open(format!("oci:{at}")).unwrap();
    let error = source.images(None, &Platform::host()).unwrap_err();
    assert!(
        error.to_string().contains("oci-layout is missing"),
        "{error}"
    );
}
