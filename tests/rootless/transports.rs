//! Images in and out: what others made loads, what Selkie saves loads elsewhere, bit for bit.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::ground::Ground;
use crate::login::{Login, expect_contains, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("transports::load_every_form", load_every_form),
        ground.trial("transports::load_from_stdin", load_from_stdin),
        ground.trial("transports::load_keeps_digests", load_keeps_digests),
        ground.trial("transports::save_is_read_by_skopeo", save_is_read_by_skopeo),
        ground.trial("transports::save_and_load_again", save_and_load_again),
        ground.trial(
            "transports::save_is_loaded_by_podman",
            save_is_loaded_by_podman,
        ),
        ground.trial(
            "transports::several_images_in_one_archive",
            several_images_in_one_archive,
        ),
        ground.trial("transports::import_a_plain_tarball", import_a_plain_tarball),
        ground.trial(
            "transports::sparse_files_stay_sparse",
            sparse_files_stay_sparse,
        ),
        ground.trial(
            "transports::damaged_archives_change_nothing",
            damaged_archives_change_nothing,
        ),
        ground.trial(
            "transports::loading_twice_stores_once",
            loading_twice_stores_once,
        ),
        ground.trial(
            "transports::large_layers_take_little_memory",
            large_layers_take_little_memory,
        ),
    ]
}

/// What `skopeo inspect --config` says of something at a transport.
fn skopeo(login: &Login, what: &str, location: &str) -> Result<Value> {
    let text = login
        .program("skopeo", &["inspect", what, location])
        .run()?
        .ok()?;
    serde_json::from_str(&text).with_context(|| text)
}

fn load_every_form(ground: &'static Ground) -> Result<()> {
    for (archive, transport) in [
        ("busybox.oci.tar", "oci-archive"),
        ("busybox.docker.tar", "docker-archive"),
        ("busybox-zstd.oci.tar", "oci-archive"),
        ("busybox-plain.oci.tar", "oci-archive"),
        ("busybox.oci", "oci"),
        ("busybox.dir", "dir"),
    ] {
        let login = ground.fresh_login()?;
        let path = ground.image(archive)?;
        // The form is recognised; and it may be said.
        for input in [
            path.display().to_string(),
            format!("{transport}:{}", path.display()),
        ] {
            let said = login
                .ok(&["load", "--input", &input])
                .with_context(|| input.clone())?;
            expect_contains(said.as_str(), "Loaded image: ")?;
            let name = said
                .rsplit("Loaded image: ")
                .next()
                .unwrap_or_default()
                .trim();
            let seen = login
                .ok(&[
                    "run",
                    "--rm",
                    name,
                    "stat",
                    "-c",
                    "%u:%g %a",
                    "/owned/33",
                    "/bin/probe-setuid",
                ])
                .with_context(|| input.clone())?;
            ensure!(seen == "33:33 640\n0:0 4755", "{input}: {seen}");
            let ids = login.ok(&[
                "run",
                "--rm",
                "--user",
                "33",
                "--cap-add",
                "NET_RAW",
                name,
                "probe-capability",
                "ids",
            ])?;
            expect_contains(ids, "0000000000002000")?;
        }
    }
    Ok(())
}

fn load_from_stdin(ground: &'static Ground) -> Result<()> {
    for archive in ["busybox.oci.tar", "busybox.docker.tar"] {
        let login = ground.fresh_login()?;
        let bytes = std::fs::read(ground.image(archive)?)?;
        let said = login.selkie(&["load"]).stdin(bytes).run()?.ok()?;
        expect_contains(said, "Loaded image: localhost/busybox:latest")?;
        expect_eq(login.ok(&["run", "--rm", "busybox", "echo", "x"])?, "x")?;
    }
    Ok(())
}

fn load_keeps_digests(ground: &'static Ground) -> Result<()> {
    ground.needs_program("skopeo")?;
    let login = ground.login()?;
    for name in ["busybox", "rich"] {
        let location = format!(
            "oci-archive:{}",
            ground.image(&format!("{name}.oci.tar"))?.display()
        );
        let theirs = skopeo(login, "--config", &location)?;
        let ours = &login.json(&["image", "inspect", name])?[0];
        ensure!(
            ours["RootFS"]["Layers"] == theirs["rootfs"]["diff_ids"],
            "{name}: {}",
            ours["RootFS"]
        );
        let manifest = skopeo(login, "--raw", &location)?;
        let id = format!("sha256:{}", ours["Id"].as_str().unwrap_or_default());
        ensure!(manifest["config"]["digest"] == *id, "{name}: {id}");
        let digest = skopeo(login, "--no-tags", &location)?["Digest"].clone();
        ensure!(
            ours["Digest"] == digest,
            "{name}: {} {digest}",
            ours["Digest"]
        );
    }
    Ok(())
}

/// Format of `save`, transport that reads it, and whether it is a directory.
const SAVED: [(&str, &str); 4] = [
    ("oci-archive", "oci-archive"),
    ("docker-archive", "docker-archive"),
    ("oci-dir", "oci"),
    ("docker-dir", "dir"),
];

fn save(ground: &Ground, login: &Login, format: &str, images: &[&str]) -> Result<PathBuf> {
    let path = login.home.join(ground.unique(format));
    let text = path.to_string_lossy();
    let mut all = vec!["save", "--quiet", "--format", format, "--output", &text];
    all.extend_from_slice(images);
    login.ok(&all)?;
    Ok(path)
}

fn save_is_read_by_skopeo(ground: &'static Ground) -> Result<()> {
    ground.needs_program("skopeo")?;
    let login = ground.login()?;
    for name in ["busybox", "rich"] {
        let ours = &login.json(&["image", "inspect", name])?[0];
        for (format, transport) in SAVED {
            let path = save(ground, login, format, &[name])?;
            let location = format!("{transport}:{}", path.display());
            let config = skopeo(login, "--config", &location).with_context(|| format.to_owned())?;
            ensure!(
                config["rootfs"]["diff_ids"] == ours["RootFS"]["Layers"],
                "{format}: {config}"
            );
            ensure!(
                config["config"]["User"] == ours["Config"]["User"] || ours["Config"]["User"] == "",
                "{format}: {config}"
            );
            let raw = skopeo(login, "--raw", &location)?;
            let id = format!("sha256:{}", ours["Id"].as_str().unwrap_or_default());
            ensure!(
                raw["config"]["digest"] == *id,
                "{format}: config {} is not {id}",
                raw["config"]["digest"]
            );
            // Every digest holds: skopeo verifies them all while it copies.
            let copied = format!("dir:{}", login.home.join(ground.unique("copied")).display());
            login
                .program(
                    "skopeo",
                    &["--insecure-policy", "copy", "-q", &location, &copied],
                )
                .run()?
                .ok()
                .with_context(|| format.to_owned())?;
        }
    }
    Ok(())
}

fn save_and_load_again(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let before = &login.json(&["image", "inspect", "rich"])?[0];
    for (format, _) in SAVED {
        let path = save(ground, login, format, &["rich"])?;
        if ground.is_root {
            // The other home is of the same user; the first home's mode would let it in anyway.
            ensure!(path.exists());
        }
        let fresh = ground.fresh_login()?;
        fresh
            .ok(&["load", "--input", &path.to_string_lossy()])
            .with_context(|| format.to_owned())?;
        let after = &fresh.json(&[
            "image",
            "inspect",
            before["Id"].as_str().unwrap_or_default(),
        ])?[0];
        for field in ["Id", "RootFS", "Config"] {
            ensure!(
                before[field] == after[field],
                "{format}: {field} became {}",
                after[field]
            );
        }
    }
    // To standard output, which must not be a terminal.
    let piped = login.selkie(&["save", "busybox"]).run()?.code(0)?;
    let fresh = ground.fresh_login()?;
    fresh.selkie(&["load"]).stdin(piped.stdout).run()?.ok()?;
    expect_eq(fresh.ok(&["run", "--rm", "busybox", "echo", "x"])?, "x")?;
    Ok(())
}

fn save_is_loaded_by_podman(ground: &'static Ground) -> Result<()> {
    ground.needs_program("podman")?;
    let login = ground.login()?;
    let ours = &login.json(&["image", "inspect", "rich"])?[0];
    for format in ["oci-archive", "docker-archive"] {
        let path = save(ground, login, format, &["rich"])?;
        let other = ground.fresh_login()?;
        let podman = |arguments: &[&str]| {
            let mut all = vec!["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"];
            all.extend_from_slice(arguments);
            other.program("podman", &all).run()?.ok()
        };
        podman(&["load", "--quiet", "--input", &path.to_string_lossy()])
            .with_context(|| format.to_owned())?;
        let id = podman(&[
            "image",
            "inspect",
            "--format",
            "{{.Id}}",
            "localhost/rich:latest",
        ])?;
        ensure!(ours["Id"] == *id, "{format}: {id}");
        // Podman's own view of the files: owners, capabilities, links.
        let script = "root=$(podman --storage-driver vfs image mount localhost/rich:latest) && stat -c '%u:%g %a' $root/owned/33 $root/odd/set-gid $root/bin/probe-setuid && stat -c %h $root/odd/first && ls $root/layers && getcap $root/bin/probe-capability";
        let seen = podman(&["unshare", "sh", "-c", script])?;
        expect_contains(
            seen.as_str(),
            "33:33 640\n33:42 2770\n0:0 4755\n2\nbecomes-directory\nbecomes-file\nemptied\nkept\nreplaced\n",
        )?;
        expect_contains(seen.as_str(), "cap_net_raw=ep")?;
    }
    Ok(())
}

fn several_images_in_one_archive(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    for format in ["docker-archive", "oci-archive"] {
        let path = login.home.join(ground.unique("several"));
        let text = path.to_string_lossy();
        let finished = login
            .selkie(&[
                "save",
                "--multi-image-archive",
                "--format",
                format,
                "--output",
                &text,
                "busybox",
                "rich",
            ])
            .run()?;
        if format == "oci-archive" && finished.code != 0 {
            // Podman writes several images to docker-archive only.
            finished.refused(125)?;
            continue;
        }
        finished.code(0)?;
        let fresh = ground.fresh_login()?;
        let said = fresh.ok(&["load", "--input", &text])?;
        for name in ["localhost/busybox:latest", "localhost/rich:latest"] {
            expect_contains(said.as_str(), name)?;
        }
        expect_eq(fresh.ok(&["images", "--quiet"])?.lines().count(), 2)?;
    }
    Ok(())
}

fn import_a_plain_tarball(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login()?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| PathBuf::from(path).exists())
        .context("busybox-static is not installed")?;
    let script = format!(
        "mkdir -p root/bin && cp {busybox} root/bin/busybox && ln -s busybox root/bin/sh && echo x >root/file && tar -C root --owner 33 --group 42 --numeric-owner -cf plain.tar . && gzip -k plain.tar && tar -C root --zstd -cf plain.tar.zst . 2>/dev/null || true"
    );
    login.program("sh", &["-c", &script]).run()?.ok()?;
    for archive in ["plain.tar", "plain.tar.gz"] {
        let path = login.home.join(archive);
        let name = format!("from-{}", archive.replace('.', "-"));
        let id = login.ok(&[
            "import",
            "--quiet",
            "--change",
            "CMD [\"/bin/sh\", \"-c\", \"/bin/busybox id -u\"]",
            "--change",
            "ENV A=b",
            "--message",
            "note",
            &path.to_string_lossy(),
            &name,
        ])?;
        ensure!(id.trim_start_matches("sha256:").len() == 64, "{id}");
        expect_eq(login.ok(&["run", "--rm", &name])?, "0")?;
        let seen = login.ok(&[
            "run",
            "--rm",
            &name,
            "/bin/busybox",
            "sh",
            "-c",
            "/bin/busybox stat -c %u:%g /file; echo $A",
        ])?;
        ensure!(seen == "33:42\nb", "{seen}");
    }
    // From standard input.
    let bytes = std::fs::read(login.home.join("plain.tar"))?;
    login
        .selkie(&["import", "-", "from-stdin"])
        .stdin(bytes)
        .run()?
        .ok()?;
    expect_eq(
        login.ok(&["run", "--rm", "from-stdin", "/bin/busybox", "echo", "x"])?,
        "x",
    )?;
    login.refused(125, &["import", "/no/such/file", "name"])?;
    login.refused(125, &["import", "/etc/passwd", "name"])?;
    Ok(())
}

fn sparse_files_stay_sparse(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    // A gigabyte with three bytes in it, as GNU tar writes it.
    let script = "mkdir -p root/bin && cp /bin/busybox root/bin/sh && truncate -s 1G root/sparse &&
        printf abc | dd of=root/sparse bs=1 seek=700000000 conv=notrunc status=none &&
        tar -C root --sparse --owner 0 --group 0 -cf sparse.tar . &&
        tar -C root --sparse --format posix --owner 0 --group 0 -cf pax.tar .";
    login.program("sh", &["-c", script]).run()?.ok()?;
    for archive in ["sparse.tar", "pax.tar"] {
        let path = login.home.join(archive);
        ensure!(std::fs::metadata(&path)?.len() < 20_000_000);
        let name = archive.trim_end_matches(".tar");
        login.ok(&["import", &path.to_string_lossy(), name])?;
        let script = "stat -c %s /sparse; dd if=/sparse bs=1 skip=700000000 count=3 2>/dev/null; echo; stat -c %b /sparse";
        let seen = login.ok(&["run", "--rm", name, "/bin/sh", "-c", script])?;
        let lines: Vec<&str> = seen.lines().collect();
        ensure!(lines[..2] == ["1073741824", "abc"], "{archive}: {seen}");
        ensure!(
            lines[2].parse::<u64>()? < 2048,
            "{archive}: it takes {} blocks",
            lines[2]
        );
    }
    Ok(())
}

fn damaged_archives_change_nothing(ground: &'static Ground) -> Result<()> {
    // Nothing of the image is there already: a known layer would not be read again.
    let login = ground.fresh_login()?;
    login.ok(&["images"])?;
    let before = (
        login.ok(&["images", "--format", "json"])?,
        login.ok(&["system", "check"])?,
    );
    for archive in ["rich.oci.tar", "busybox.docker.tar"] {
        let whole = std::fs::read(ground.image(archive)?)?;
        // Cut off anywhere, and a byte changed in the middle of a layer.
        let mut damaged = vec![
            Vec::new(),
            whole[..512].to_vec(),
            whole[..whole.len() / 2].to_vec(),
            whole[..whole.len() * 9 / 10].to_vec(),
        ];
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        damaged.push(flipped);
        for (index, bytes) in damaged.into_iter().enumerate() {
            let path = login.write("damaged.tar", bytes)?;
            let finished = login
                .selkie(&["load", "--input", &path.to_string_lossy()])
                .run()?;
            finished
                .refused(125)
                .with_context(|| format!("{archive}, damage {index}"))?;
        }
    }
    login.refused(125, &["load", "--input", "/no/such/file"])?;
    login.refused(125, &["load", "--input", "/etc/passwd"])?;
    // What was read before the damage showed is garbage that nothing refers to.
    login.ok(&["system", "prune", "--force"])?;
    let after = (
        login.ok(&["images", "--format", "json"])?,
        login.ok(&["system", "check"])?,
    );
    ensure!(before == after, "before {before:?}\nafter {after:?}");
    login.load("busybox.oci.tar")?;
    expect_eq(login.ok(&["run", "--rm", "busybox", "echo", "x"])?, "x")?;
    Ok(())
}

fn loading_twice_stores_once(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let size = || -> Result<u64> {
        let text = login
            .program(
                "du",
                &[
                    "-s",
                    "--apparent-size",
                    "-B1",
                    &login.data_dir().to_string_lossy(),
                ],
            )
            .run()?
            .text();
        Ok(text
            .split_whitespace()
            .next()
            .context("du said nothing")?
            .parse()?)
    };
    let before = size()?;
    login.load("busybox.oci.tar")?;
    login.load("busybox-zstd.oci.tar")?;
    login.load("busybox.docker.tar")?;
    let after = size()?;
    ensure!(after < before + before / 2, "{before} bytes became {after}");
    Ok(())
}

fn large_layers_take_little_memory(ground: &'static Ground) -> Result<()> {
    let archive = ground.image("debian.oci.tar")?;
    let login = ground.fresh_login()?;
    // 200 MB of address space would not be the same as 200 MB of memory: ask the kernel what the
    // process used at most.
    let script = format!(
        "import resource,subprocess,sys; subprocess.run({:?},check=True,stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)",
        [
            &*ground.binary.to_string_lossy(),
            "load",
            "--quiet",
            "--input",
            &*archive.to_string_lossy()
        ]
    );
    let kilobytes: u64 = login
        .program("python3", &["-c", &script])
        .run()?
        .ok()?
        .parse()?;
    ensure!(kilobytes < 200 * 1024, "load used {kilobytes} kB");
    Ok(())
}
