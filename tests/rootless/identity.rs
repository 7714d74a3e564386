//! Which host IDs a container's IDs are: `--userns`, `--uidmap`, slices.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::login::{Container, expect_contains, expect_eq};
use crate::processes::{self, Extent};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial(
            "identity::auto_is_sparse_and_lacks_the_login",
            auto_is_sparse_and_lacks_the_login,
        ),
        ground.trial("identity::size_is_honoured", size_is_honoured),
        ground.trial("identity::keep_id_maps_the_login", keep_id_maps_the_login),
        ground.trial("identity::keep_id_to_another_id", keep_id_to_another_id),
        ground.trial(
            "identity::host_mode_is_the_login_s_namespace",
            host_mode_is_the_logins_namespace,
        ),
        ground.trial("identity::nomap_hides_the_login", nomap_hides_the_login),
        ground.trial("identity::explicit_maps", explicit_maps),
        ground.trial("identity::slices_are_reused", slices_are_reused),
        ground.trial(
            "identity::created_slices_are_taken_back",
            created_slices_are_taken_back,
        ),
        ground.trial(
            "identity::exhaustion_names_the_holders",
            exhaustion_names_the_holders,
        ),
        ground.trial("identity::restart_keeps_owners", restart_keeps_owners),
        ground.trial(
            "identity::unshare_is_root_of_the_login",
            unshare_is_root_of_the_login,
        ),
        ground.trial("identity::no_subordinate_ids", no_subordinate_ids),
        ground.trial("identity::subordinate_groups_too", subordinate_groups_too),
    ]
}

/// The container's map to host IDs, from the outside.
fn host_map(container: &Container<'_>, file: &str) -> Result<Vec<Extent>> {
    processes::id_map(container.pid()?, file)
}

fn auto_is_sparse_and_lacks_the_login(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&[])?;
    let map = host_map(&container, "uid_map")?;
    for id in [0, 33, 42, 65534] {
        ensure!(
            processes::to_host(&map, id).is_some(),
            "{id} is not mapped: {map:?}"
        );
    }
    let total: u64 = map.iter().map(|extent| u64::from(extent.2)).sum();
    ensure!(
        total < 5_000,
        "{total} IDs for an image that uses a few: {map:?}"
    );
    for (_, outside, count) in &map {
        ensure!(
            !(*outside..outside + count).contains(&login.user.uid),
            "the login's own UID is in {map:?}"
        );
        ensure!(login.user.owns_uid(*outside) && login.user.owns_uid(outside + count - 1));
    }
    // From inside it is root, with no way to see the outside numbers' owner as itself.
    let inside = container.exec(&["cat", "/proc/self/uid_map"])?;
    ensure!(inside.lines().count() == map.len(), "{inside}");
    expect_contains(container.exec(&["probe", "ids"])?, "ruid=0 euid=0")
}

fn size_is_honoured(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&["--userns", "auto:size=2000"])?;
    let map = host_map(&container, "uid_map")?;
    ensure!(
        map.iter()
            .any(|(inside, _, count)| *inside == 0 && *count >= 2000),
        "{map:?}"
    );
    Ok(())
}

fn keep_id_maps_the_login(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&["--userns", "keep-id"])?;
    let own = login.user.uid;
    let map = host_map(&container, "uid_map")?;
    ensure!(processes::to_host(&map, own) == Some(own), "{map:?}");
    let group = host_map(&container, "gid_map")?;
    ensure!(
        processes::to_host(&group, login.user.gid) == Some(login.user.gid),
        "{group:?}"
    );
    // The default user is the login, as in Podman.
    let ids = container.exec(&["sh", "-c", "id -u; id -g"])?;
    ensure!(ids == format!("{own}\n{}", login.user.gid), "{ids}");
    // Only this one ID is the login.
    let root = processes::to_host(&map, 0).context("0 is not mapped")?;
    ensure!(root != own && login.user.owns_uid(root));
    Ok(())
}

fn keep_id_to_another_id(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&["--userns", "keep-id:uid=33,gid=42"])?;
    let map = host_map(&container, "uid_map")?;
    ensure!(
        processes::to_host(&map, 33) == Some(login.user.uid),
        "{map:?}"
    );
    let map = host_map(&container, "gid_map")?;
    ensure!(
        processes::to_host(&map, 42) == Some(login.user.gid),
        "{map:?}"
    );
    let ids = container.exec(&["sh", "-c", "id -u; id -g"])?;
    ensure!(ids == "33\n42", "{ids}");
    Ok(())
}

fn host_mode_is_the_logins_namespace(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&["--userns", "host"])?;
    let map = host_map(&container, "uid_map")?;
    ensure!(
        processes::to_host(&map, 0) == Some(login.user.uid),
        "{map:?}"
    );
    ensure!(
        processes::to_host(&map, 33) == Some(login.user.subuids.0 + 32),
        "{map:?}"
    );
    Ok(())
}

fn nomap_hides_the_login(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&["--userns", "nomap"])?;
    let map = host_map(&container, "uid_map")?;
    for (_, outside, count) in &map {
        ensure!(
            !(*outside..outside + count).contains(&login.user.uid),
            "the login's own UID is in {map:?}"
        );
    }
    ensure!(processes::to_host(&map, 0).is_some(), "{map:?}");
    Ok(())
}

fn explicit_maps(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    // As in rootless Podman, the second number counts in the login's own namespace: 0 is the login.
    let container = login.sleeper(&[
        "--uidmap",
        "0:100:50",
        "--uidmap",
        "65534:3000:1",
        "--gidmap",
        "0:200:50",
    ])?;
    let base = login.user.subuids.0;
    let map = host_map(&container, "uid_map")?;
    ensure!(
        processes::to_host(&map, 0) == Some(base + 99)
            && processes::to_host(&map, 49) == Some(base + 148)
            && processes::to_host(&map, 50).is_none()
            && processes::to_host(&map, 65534) == Some(base + 2999),
        "{map:?}"
    );
    Ok(())
}

fn slices_are_reused(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    // Many more containers than slices of the range could exist at once, were none given back.
    for round in 0..20 {
        login
            .ok(&[
                "run",
                "--rm",
                "--userns",
                "auto:size=20000",
                "busybox",
                "true",
            ])
            .with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn created_slices_are_taken_back(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let mut stopped = Vec::new();
    for _ in 0..6 {
        // Each of them takes a third of the range.
        let name = ground.unique("stopped");
        login.ok(&[
            "run",
            "--name",
            &name,
            "--userns",
            "auto:size=20000",
            "busybox",
            "sh",
            "-c",
            "echo kept >/file; chown 33:33 /file",
        ])?;
        stopped.push(name);
    }
    // The first one's slice went to a later one; it comes back with its file and its owner.
    let container = &stopped[0];
    login.ok(&["start", container])?;
    login.ok(&["wait", container])?;
    let probe = ground.unique("probe");
    login.ok(&[
        "create",
        "--name",
        &probe,
        "--userns",
        "auto:size=20000",
        "busybox",
        "sh",
        "-c",
        "sleep 1000",
    ])?;
    login.ok(&["start", &probe])?;
    expect_eq(
        login.ok(&["exec", &probe, "stat", "-c", "%u", "/owned/33"])?,
        "33",
    )?;
    login.ok(&["rm", "--force", "--time", "0", "--all"])?;
    Ok(())
}

fn exhaustion_names_the_holders(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let first = login.sleeper(&["--name", "greedy-1", "--userns", "auto:size=30000"])?;
    let second = login.sleeper(&["--name", "greedy-2", "--userns", "auto:size=30000"])?;
    let error = login.refused(
        125,
        &[
            "run",
            "--rm",
            "--userns",
            "auto:size=30000",
            "busybox",
            "true",
        ],
    )?;
    expect_contains(error.as_str(), "30000")?;
    for holder in [&first, &second] {
        ensure!(
            error.contains(&holder.id[..12]) || error.contains("greedy-"),
            "the error does not name who holds the IDs: {error}"
        );
    }
    // Room again once one is gone.
    drop(second);
    login.ok(&[
        "run",
        "--rm",
        "--userns",
        "auto:size=30000",
        "busybox",
        "true",
    ])?;
    Ok(())
}

fn restart_keeps_owners(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let script = "if [ -e /mark ]; then stat -c '%u:%g %a' /mark /mark-suid; else
        echo x >/mark; chown 33:42 /mark; chmod 640 /mark; cp /bin/probe /mark-suid; chown 33:33 /mark-suid; chmod 4755 /mark-suid; fi; sleep 1000";
    let container =
        login.detached(&["--userns", "auto:size=20000", "busybox", "sh", "-c", script])?;
    let before = host_map(&container, "uid_map")?;
    crate::login::eventually("the files are written", || {
        Ok(container.try_exec(&["test", "-u", "/mark-suid"])?.code == 0)
    })?;
    login.ok(&["stop", "--time", "0", &container.id])?;
    // Takes the IDs that the stopped container had: it must move.
    let squatters = [
        login.sleeper(&["--userns", "auto:size=20000"])?,
        login.sleeper(&["--userns", "auto:size=20000"])?,
        login.sleeper(&["--userns", "auto:size=5000"])?,
    ];
    drop(squatters.into_iter().next());
    login.ok(&["start", &container.id])?;
    let after = host_map(&container, "uid_map")?;
    let seen = container.exec(&["stat", "-c", "%u:%g %a", "/mark", "/mark-suid"])?;
    ensure!(
        seen == "33:42 640\n33:33 4755",
        "owners after moving from {before:?} to {after:?}: {seen}"
    );
    let setuid = login.ok(&["exec", "--user", "1000", &container.id, "/mark-suid", "ids"])?;
    expect_contains(setuid, "ruid=1000 euid=33")
}

fn unshare_is_root_of_the_login(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let seen = login.ok(&["unshare", "sh", "-c", "id -u; cat /proc/self/uid_map"])?;
    let lines: Vec<Vec<&str>> = seen
        .lines()
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    let (uid, first) = (login.user.uid.to_string(), login.user.subuids.0.to_string());
    ensure!(lines[0] == ["0"], "{seen}");
    ensure!(lines[1] == ["0", &uid, "1"], "{seen}");
    ensure!(lines[2][..2] == ["1", &first], "{seen}");
    // Exit codes and standard input pass through.
    login
        .selkie(&["unshare", "sh", "-c", "exit 7"])
        .run()?
        .code(7)?;
    let echoed = login
        .selkie(&["unshare", "cat"])
        .stdin("through\n")
        .run()?
        .ok()?;
    expect_eq(echoed, "through")?;
    login.refused(127, &["unshare", "no-such-command"])?;
    Ok(())
}

fn subordinate_groups_too(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&[])?;
    let map = host_map(&container, "gid_map")?;
    for id in [0, 33, 42, 65534] {
        ensure!(
            processes::to_host(&map, id).is_some(),
            "group {id} is not mapped: {map:?}"
        );
    }
    for (_, outside, count) in &map {
        ensure!(
            !(*outside..outside + count).contains(&login.user.gid),
            "the login's own GID is in {map:?}"
        );
    }
    // Supplementary groups of the image's user arrive.
    let ids = login.ok(&["exec", "--user", "worker", &container.id, "id", "-G"])?;
    ensure!(ids == "1000 44", "{ids}");
    Ok(())
}

/// A login that nobody gave a range still runs containers, in a namespace of one ID, and is told.
fn no_subordinate_ids(ground: &'static Ground) -> Result<()> {
    let login = ground.bare_login()?;
    login.load("busybox.oci.tar")?;
    let finished = login
        .selkie(&["run", "--rm", "busybox", "cat", "/proc/self/uid_map"])
        .run()?
        .code(0)?;
    let map: Vec<u32> = finished
        .text()
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(map.len() == 3 && map[0] == 0 && map[2] == 1, "{map:?}");
    expect_contains(finished.error(), "/etc/subuid")?;
    expect_contains(login.ok(&["info"])?, "/etc/subuid")?;
    // Files of every owner can be read; the image still says whose they are when it is saved.
    let seen = login.ok(&["run", "--rm", "busybox", "cat", "/owned/33", "/owned/65534"])?;
    ensure!(seen == "33\n65534", "{seen}");
    // What needs more than one ID says so.
    for options in [
        &["--user", "33"][..],
        &["--userns", "auto:size=100"][..],
        &["--uidmap", "0:1:10"][..],
    ] {
        let mut all = vec!["run", "--rm"];
        all.extend_from_slice(options);
        all.extend_from_slice(&["busybox", "true"]);
        let finished = login.selkie(&all).run()?;
        ensure!(
            finished.code == 125 || finished.code == 126,
            "{options:?}: {finished:?}"
        );
    }
    Ok(())
}
