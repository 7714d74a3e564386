//! Named volumes, anonymous volumes and host directories.

use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::login::{expect_contains, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("volumes::named_ones_keep_data", named_ones_keep_data),
        ground.trial("volumes::owners_follow_the_slice", owners_follow_the_slice),
        ground.trial(
            "volumes::two_containers_share_one",
            two_containers_share_one,
        ),
        ground.trial(
            "volumes::are_filled_from_the_image",
            are_filled_from_the_image,
        ),
        ground.trial(
            "volumes::anonymous_ones_go_with_rm",
            anonymous_ones_go_with_rm,
        ),
        ground.trial("volumes::volume_commands", volume_commands),
        ground.trial(
            "volumes::host_directory_in_keep_id",
            host_directory_in_keep_id,
        ),
        ground.trial(
            "volumes::host_directory_in_host_mode",
            host_directory_in_host_mode,
        ),
        ground.trial(
            "volumes::host_directory_in_auto_is_refused",
            host_directory_in_auto_is_refused,
        ),
        ground.trial(
            "volumes::a_link_in_the_image_leads_nowhere_else",
            a_link_in_the_image_leads_nowhere_else,
        ),
        ground.trial("volumes::mount_syntax", mount_syntax),
    ]
}

fn named_ones_keep_data(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("volume");
    let volume = format!("{name}:/data");
    login.ok(&[
        "run",
        "--rm",
        "--volume",
        &volume,
        "busybox",
        "sh",
        "-c",
        "echo kept >/data/file",
    ])?;
    expect_eq(
        login.ok(&["run", "--rm", "-v", &volume, "busybox", "cat", "/data/file"])?,
        "kept",
    )?;
    let read_only = format!("{volume}:ro");
    let refused = login
        .selkie(&[
            "run",
            "--rm",
            "-v",
            &read_only,
            "busybox",
            "touch",
            "/data/other",
        ])
        .run()?
        .code(1)?;
    expect_contains(refused.error(), "Read-only file system")?;
    let names = login.ok(&["volume", "ls", "--quiet"])?;
    ensure!(names.lines().any(|line| line == name), "{names}");
    login.ok(&["volume", "rm", &name])?;
    Ok(())
}

fn owners_follow_the_slice(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("volume");
    let volume = format!("{name}:/data");
    let other = login.sleeper(&[])?;
    login.ok(&[
        "run",
        "--rm",
        "-v",
        &volume,
        "busybox",
        "sh",
        "-c",
        "echo x >/data/file; chown 33:42 /data/file; cp /bin/probe /data/; chmod 4755 /data/probe",
    ])?;
    // Another slice: the first one is free again, so keep it busy with someone else.
    let squatter = login.sleeper(&[])?;
    let seen = login.ok(&[
        "run",
        "--rm",
        "-v",
        &volume,
        "busybox",
        "stat",
        "-c",
        "%u:%g %a",
        "/data/file",
        "/data/probe",
        "/data",
    ])?;
    ensure!(seen == "33:42 644\n0:0 4755\n0:0 755", "{seen}");
    drop((other, squatter));
    login.ok(&["volume", "rm", &name])?;
    Ok(())
}

fn two_containers_share_one(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("volume");
    let volume = format!("{name}:/data");
    // Two slices cannot both own the files: either both see the right owners, or the second is
    // refused with a reason. Data must never become world-accessible to make it work.
    let first = login.sleeper(&["-v", &volume])?;
    first.exec(&[
        "sh",
        "-c",
        "umask 077; echo x >/data/file; chown 33 /data/file",
    ])?;
    let second = login
        .selkie(&[
            "run",
            "--rm",
            "-v",
            &volume,
            "busybox",
            "stat",
            "-c",
            "%u %a",
            "/data/file",
        ])
        .run()?;
    if second.code == 0 {
        ensure!(second.text() == "33 600", "{second:?}");
    } else {
        let error = second.refused(125)?;
        expect_contains(error, &name)?;
    }
    // The one that runs must not notice.
    expect_eq(
        first.exec(&["stat", "-c", "%u %a", "/data/file"])?,
        "33 600",
    )?;
    drop(first);
    login.ok(&["volume", "rm", &name])?;
    Ok(())
}

fn are_filled_from_the_image(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let run = |volume: &str| {
        login.ok(&[
            "run",
            "--rm",
            "-v",
            volume,
            "busybox",
            "sh",
            "-c",
            "ls /owned; stat -c '%u:%g' /owned/33 2>/dev/null",
        ])
    };
    let name = ground.unique("volume");
    let seen = run(&format!("{name}:/owned"))?;
    ensure!(seen == "0\n33\n42\n65534\nwww\n33:33", "{seen}");
    // Once only: what was removed stays removed.
    login.ok(&[
        "run",
        "--rm",
        "-v",
        &format!("{name}:/owned"),
        "busybox",
        "rm",
        "/owned/42",
    ])?;
    let seen = run(&format!("{name}:/owned"))?;
    ensure!(seen == "0\n33\n65534\nwww\n33:33", "{seen}");
    let empty = ground.unique("volume");
    let seen = login.ok(&[
        "run",
        "--rm",
        "-v",
        &format!("{empty}:/owned:nocopy"),
        "busybox",
        "ls",
        "/owned",
    ])?;
    ensure!(seen.is_empty(), "{seen}");
    login.ok(&["volume", "rm", &name, &empty])?;
    Ok(())
}

fn anonymous_ones_go_with_rm(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.load("rich.oci.tar")?;
    let count = || -> Result<usize> { Ok(login.ok(&["volume", "ls", "--quiet"])?.lines().count()) };
    // The image declares /data: a volume without a name, which goes with --rm.
    expect_eq(
        login.ok(&[
            "run",
            "--rm",
            "--entrypoint",
            "",
            "rich",
            "cat",
            "/data/seed",
        ])?,
        "from-image",
    )?;
    ensure!(count()? == 0, "--rm left a volume");
    login.ok(&[
        "run",
        "--rm",
        "-v",
        "/scratch",
        "busybox",
        "touch",
        "/scratch/x",
    ])?;
    ensure!(count()? == 0, "--rm left a volume");
    login.ok(&[
        "run",
        "--name",
        "keeps",
        "-v",
        "/scratch",
        "busybox",
        "touch",
        "/scratch/x",
    ])?;
    expect_eq(count()?, 1)?;
    login.ok(&["rm", "keeps"])?;
    ensure!(count()? == 1, "rm without --volumes removed it");
    login.ok(&[
        "run", "--name", "drops", "-v", "/scratch", "busybox", "true",
    ])?;
    login.ok(&["rm", "--volumes", "drops"])?;
    ensure!(count()? == 1, "rm --volumes did not remove it");
    Ok(())
}

fn volume_commands(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("volume");
    expect_eq(login.ok(&["volume", "create", &name])?, name.as_str())?;
    login.refused(125, &["volume", "create", &name])?;
    let facts = &login.json(&["volume", "inspect", &name])?[0];
    ensure!(
        facts["Name"] == *name && facts["Driver"] == "local",
        "{facts}"
    );
    let volume = format!("{name}:/data");
    let container = login.sleeper(&["-v", &volume])?;
    let error = login.refused(2, &["volume", "rm", &name])?;
    expect_contains(error, &container.id[..12])?;
    drop(container);
    expect_eq(login.ok(&["volume", "rm", &name])?, name.as_str())?;
    login.refused(1, &["volume", "rm", &name])?;
    login.refused(125, &["volume", "inspect", &name])?;
    Ok(())
}

fn host_directory_in_keep_id(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let directory = login.home.join(ground.unique("shared"));
    login.make_directory(&directory, 0o755)?;
    let volume = format!("{}:/work", directory.display());
    login.ok(&[
        "run",
        "--rm",
        "--userns",
        "keep-id",
        "-v",
        &volume,
        "busybox",
        "sh",
        "-c",
        "id -u >/work/made",
    ])?;
    let made = directory.join("made");
    let content = std::fs::read_to_string(&made)?;
    ensure!(content.trim() == login.user.uid.to_string(), "{content}");
    let metadata = std::fs::metadata(&made)?;
    ensure!(
        (metadata.uid(), metadata.gid()) == (login.user.uid, login.user.gid),
        "{metadata:?}"
    );
    let read_only = format!("{volume}:ro");
    login
        .selkie(&[
            "run", "--rm", "--userns", "keep-id", "-v", &read_only, "busybox", "touch", "/work/x",
        ])
        .run()?
        .code(1)?;
    // One file, and a relative source.
    let file = format!("{}:/one", made.display());
    let seen = login.ok(&[
        "run", "--rm", "--userns", "keep-id", "-v", &file, "busybox", "cat", "/one",
    ])?;
    expect_eq(seen, login.user.uid.to_string())?;
    let error = login.refused(
        125,
        &[
            "run",
            "--rm",
            "--userns",
            "keep-id",
            "-v",
            "/no/such/directory:/x",
            "busybox",
            "true",
        ],
    )?;
    expect_contains(error, "/no/such/directory")
}

fn host_directory_in_host_mode(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let directory = login.home.join(ground.unique("shared"));
    login.make_directory(&directory, 0o755)?;
    let volume = format!("{}:/work", directory.display());
    login.ok(&[
        "run",
        "--rm",
        "--userns",
        "host",
        "-v",
        &volume,
        "busybox",
        "touch",
        "/work/made",
    ])?;
    expect_eq(
        std::fs::metadata(directory.join("made"))?.uid(),
        login.user.uid,
    )?;
    Ok(())
}

fn host_directory_in_auto_is_refused(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let volume = format!("{}:/work", login.home.display());
    for options in [
        &["-v", &volume][..],
        &[
            "--mount",
            &format!(
                "type=bind,source={},destination=/work",
                login.home.display()
            ),
        ][..],
    ] {
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(options);
        all.extend_from_slice(&["busybox", "true"]);
        let error = login.refused(125, &all)?;
        // What to do instead is part of the refusal.
        expect_contains(error, "keep-id")?;
    }
    Ok(())
}

fn a_link_in_the_image_leads_nowhere_else(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    // An image whose /data and /etc/hosts are links to places of the host.
    let container = ground.unique("trap");
    let target = login.home.join("target");
    login.make_directory(&target, 0o777)?;
    let script = format!(
        "ln -s {} /data; ln -sf {}/hosts /etc/hosts; ln -sf ../../../../../../../../etc/passwd /etc/resolv.conf",
        target.display(),
        target.display()
    );
    // Without a network there is no resolv.conf mounted over the image's.
    login.ok(&[
        "run",
        "--name",
        &container,
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        &script,
    ])?;
    let archive = login.home.join("trap.tar");
    let archive = archive.to_string_lossy();
    login.ok(&["export", "--output", &archive, &container])?;
    login.ok(&["import", &archive, "trap"])?;
    expect_eq(
        login.ok(&["run", "--rm", "trap", "/bin/sh", "-c", "readlink /data"])?,
        target.to_string_lossy(),
    )?;
    // The links lead to nothing inside: the container may start or be refused, as long as
    // nothing outside is touched.
    let script = "echo x >/data/file; grep -c localhost /etc/hosts";
    let finished = login
        .selkie(&[
            "run",
            "--rm",
            "-v",
            "vol:/data",
            "trap",
            "/bin/sh",
            "-c",
            script,
        ])
        .run()?;
    if finished.code != 0 {
        ensure!([125, 126, 127].contains(&finished.code), "{finished:?}");
    }
    ensure!(
        std::fs::read_dir(&target)?.next().is_none(),
        "the container wrote to the host's {}",
        target.display()
    );
    Ok(())
}

fn mount_syntax(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("volume");
    let mount = format!("type=volume,source={name},target=/data,ro=true");
    login
        .selkie(&[
            "run", "--rm", "--mount", &mount, "busybox", "touch", "/data/x",
        ])
        .run()?
        .code(1)?;
    let mount = format!("type=volume,src={name},dst=/data");
    login.ok(&[
        "run", "--rm", "--mount", &mount, "busybox", "touch", "/data/x",
    ])?;
    for bad in [
        "type=nonsense,destination=/x",
        "type=volume",
        "destination=/x,nonsense=1,type=tmpfs",
        "type=bind,destination=/x",
    ] {
        login.refused(125, &["run", "--rm", "--mount", bad, "busybox", "true"])?;
    }
    for bad in [
        "vol:relative",
        "a:b:c:d:e",
        "vol:/x:nonsense",
        "in/valid:/x",
        "vol:/",
    ] {
        login.refused(125, &["run", "--rm", "--volume", bad, "busybox", "true"])?;
    }
    login.ok(&["volume", "rm", &name])?;
    Ok(())
}
