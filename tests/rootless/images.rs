//! What an image says must be what its containers see, whoever made the image.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::login::{expect_contains, expect_eq};
use crate::processes;

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("images::busybox_runs", busybox_runs),
        ground.trial("images::debian_runs", debian_runs),
        ground.trial("images::owners_are_the_image_s", owners_are_the_images),
        ground.trial("images::owners_in_debian", owners_in_debian),
        ground.trial("images::set_uid_program_works", set_uid_program_works),
        ground.trial("images::file_capability_works", file_capability_works),
        ground.trial(
            "images::written_files_are_the_slice_s",
            written_files_are_the_slices,
        ),
        ground.trial("images::layers_are_flattened", layers_are_flattened),
        ground.trial("images::odd_files_survive", odd_files_survive),
        ground.trial("images::config_is_applied", config_is_applied),
        ground.trial(
            "images::containers_do_not_share_writes",
            containers_do_not_share_writes,
        ),
        ground.trial("images::tag_and_rmi", tag_and_rmi),
        ground.trial("images::logins_see_their_own", logins_see_their_own),
    ]
}

fn busybox_runs(ground: &'static Ground) -> Result<()> {
    let text = ground
        .login()?
        .ok(&["run", "--rm", "busybox", "echo", "hello"])?;
    ensure!(text == "hello", "got {text:?}");
    Ok(())
}

fn debian_runs(ground: &'static Ground) -> Result<()> {
    let login = ground.login_with_debian()?;
    let version = login.ok(&["run", "--rm", "debian:bookworm", "apt-get", "--version"])?;
    expect_contains(version, "apt 2.")?;
    // Something large that maps libraries, reads many files and writes some.
    let compiled = login.ok(&[
        "run",
        "--rm",
        "debian:bookworm",
        "sh",
        "-c",
        "echo 'int main(void){return 7;}' >/tmp/a.c && cc -o /tmp/a /tmp/a.c; /tmp/a; echo $?",
    ])?;
    ensure!(compiled == "7", "got {compiled:?}");
    let files = login.ok(&["run", "--rm", "debian:bookworm", "find", "/", "-xdev"])?;
    ensure!(
        files.lines().count() > 15_000,
        "only {} files",
        files.lines().count()
    );
    // dpkg knows every file's checksum: this reads the whole image.
    login.ok(&["run", "--rm", "debian:bookworm", "dpkg", "--verify"])?;
    Ok(())
}

const OWNED: &str = "0:0 640 /owned/0
33:33 640 /owned/33
42:42 640 /owned/42
65534:65534 640 /owned/65534";

fn owners_are_the_images(ground: &'static Ground) -> Result<()> {
    let script = "stat -c '%u:%g %a %n' /owned/0 /owned/33 /owned/42 /owned/65534";
    let seen = ground
        .login()?
        .ok(&["run", "--rm", "busybox", "sh", "-c", script])?;
    ensure!(seen == OWNED, "got {seen}");
    let times = ground
        .login()?
        .ok(&["run", "--rm", "busybox", "stat", "-c", "%Y", "/owned/42"])?;
    ensure!(times == "981173106", "mtime of /owned/42 is {times}");
    // Each of them may read its own file and not the others'.
    for id in ["33", "42", "65534"] {
        let script = format!("cat /owned/{id} && ! cat /owned/0 2>/dev/null");
        let user = format!("{id}:{id}");
        let seen = ground.login()?.ok(&[
            "run", "--rm", "--user", &user, "busybox", "sh", "-c", &script,
        ])?;
        ensure!(seen == id, "user {id} read {seen:?}");
    }
    Ok(())
}

fn owners_in_debian(ground: &'static Ground) -> Result<()> {
    let login = ground.login_with_debian()?;
    let seen = login.ok(&[
        "run",
        "--rm",
        "debian:bookworm",
        "stat",
        "-c",
        "%u:%g %a %n",
        "/owned/0",
        "/owned/33",
        "/owned/42",
        "/owned/65534",
        "/etc/shadow",
        "/tmp",
    ])?;
    ensure!(
        seen == format!("{OWNED}\n0:42 640 /etc/shadow\n0:0 1777 /tmp"),
        "got {seen}"
    );
    Ok(())
}

fn set_uid_program_works(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let run =
        |program: &str| login.ok(&["run", "--rm", "--user", "33:33", "busybox", program, "ids"]);
    expect_contains(run("probe")?, "ruid=33 euid=33 suid=33")?;
    expect_contains(run("probe-setuid")?, "ruid=33 euid=0 suid=0")?;
    let login = ground.login_with_debian()?;
    let stat = login.ok(&[
        "run",
        "--rm",
        "debian:bookworm",
        "stat",
        "-c",
        "%a %u",
        "/usr/bin/passwd",
    ])?;
    ensure!(stat == "4755 0", "/usr/bin/passwd is {stat}");
    let su = login.ok(&[
        "run",
        "--rm",
        "debian:bookworm",
        "su",
        "www-data",
        "-s",
        "/bin/sh",
        "-c",
        "probe-setuid ids",
    ])?;
    expect_contains(su, "ruid=33 euid=0 suid=0")
}

fn file_capability_works(ground: &'static Ground) -> Result<()> {
    // CAP_NET_RAW is bit 13. Podman's default set lacks it, so it is added to the bounding set.
    let run = |add: &[&str], program: &str| -> Result<String> {
        let mut arguments = vec!["run", "--rm", "--user", "33:33"];
        arguments.extend_from_slice(add);
        arguments.extend_from_slice(&["busybox", program, "ids"]);
        ground.login()?.ok(&arguments)
    };
    let add = [
        "--cap-add",
        "NET_RAW",
        "--security-opt",
        "seccomp=unconfined",
    ];
    expect_contains(run(&add, "probe-capability")?, "CapEff:\t0000000000002000")?;
    // Without the capability in the bounding set the program may not even start: that is what the
    // kernel does with a file whose effective bit is set.
    let login = ground.login()?;
    login.refused(
        126,
        &[
            "run",
            "--rm",
            "--user",
            "33:33",
            "--cap-drop",
            "ALL",
            "busybox",
            "probe-capability",
            "ids",
        ],
    )?;
    Ok(())
}

fn written_files_are_the_slices(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&[])?;
    container.exec(&["sh", "-c", "echo root >/as-root && chmod 1777 /tmp"])?;
    let write = "echo www >/owned/www/new && chmod 600 /owned/www/new && echo changed >>/owned/33";
    login.ok(&[
        "exec",
        "--user",
        "www-data",
        &container.id,
        "sh",
        "-c",
        write,
    ])?;
    let pid = container.pid()?;
    let uid_map = processes::id_map(pid, "uid_map")?;
    let base = processes::to_host(&uid_map, 0);
    let expected = processes::to_host(&uid_map, 33);
    let (Some(base), Some(expected)) = (base, expected) else {
        anyhow::bail!("0 or 33 is not mapped: {uid_map:?}");
    };
    ensure!(
        expected == base + 33,
        "33 is {expected} on the host, not the slice's base {base} + 33"
    );
    ensure!(
        login.user.owns_uid(base) && base != login.user.uid,
        "{base} is not one of the login's subordinate IDs"
    );
    ground.needs_root("look into another user namespace's files")?;
    for (path, owner) in [
        ("as-root", base),
        ("owned/www/new", expected),
        ("owned/33", expected),
    ] {
        use std::os::unix::fs::MetadataExt;
        let seen = std::fs::metadata(format!("/proc/{pid}/root/{path}"))?.uid();
        ensure!(
            seen == owner,
            "{path} belongs to {seen} on the host, expected {owner}"
        );
    }
    // The same on the disk: the upper layer is an ordinary directory of the host.
    let found = find_file(&login.data_dir(), "new").into_iter().next();
    let Some(found) = found else {
        anyhow::bail!(
            "the written file is not below {}",
            login.data_dir().display()
        );
    };
    use std::os::unix::fs::MetadataExt;
    let seen = std::fs::metadata(&found)?.uid();
    ensure!(seen == expected, "{} belongs to {seen}", found.display());
    Ok(())
}

fn find_file(directory: &std::path::Path, name: &str) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => find_file(&entry.path(), name),
            Ok(_) if entry.file_name() == name => vec![entry.path()],
            _ => Vec::new(),
        })
        .collect()
}

fn run_rich(ground: &'static Ground, script: &str) -> Result<String> {
    ground.login()?.ok(&[
        "run",
        "--rm",
        "--user",
        "0",
        "--entrypoint",
        "/bin/sh",
        "rich",
        "-c",
        script,
    ])
}

fn layers_are_flattened(ground: &'static Ground) -> Result<()> {
    let seen = run_rich(
        ground,
        "cd /layers && find . | sort && cat kept/file replaced/new becomes-directory/file becomes-file",
    )?;
    let expected = ".\n./becomes-directory\n./becomes-directory/file\n./becomes-file\n./emptied\n./kept\n./kept/file\n./replaced\n./replaced/new\nlower\nupper\nupper\nupper";
    ensure!(seen == expected, "got {seen}");
    Ok(())
}

fn odd_files_survive(ground: &'static Ground) -> Result<()> {
    let seen = run_rich(
        ground,
        r#"cd /odd
        cat first second link absolute
        stat -c '%h' first
        [ $(stat -c %i first) = $(stat -c %i second) ] && echo same-inode
        readlink dangling; readlink absolute
        [ -p fifo ] && echo fifo
        cat 'a b
c'; echo
        cat "$(printf '\377\376')"; echo
        cat n*/n*/n*
        stat -c '%s' sparse; tail -c 3 sparse; echo
        stat -c '%a %u:%g' set-gid empty
        stat -c '%s' empty
        stat -c '%Y' .
        "#,
    )?;
    let expected = "linked\nlinked\nlinked\nlinked\n2\nsame-inode\nnowhere\n/odd/first\nfifo\nspace and newline\nnot unicode\nlong\n104857600\nend\n2770 33:42\n0 0:0\n0\n981173106";
    ensure!(seen == expected, "got {seen}");
    Ok(())
}

fn config_is_applied(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let seen = login.ok(&["run", "--rm", "rich"])?;
    ensure!(seen == "entry: sh -c echo $GREETING\nhello", "got {seen}");
    let seen = login.ok(&[
        "run",
        "--rm",
        "rich",
        "sh",
        "-c",
        "id -u; id -g; pwd; ls /data; echo $HOME",
    ])?;
    ensure!(
        seen == "entry: sh -c id -u; id -g; pwd; ls /data; echo $HOME\n33\n33\n/var/www\nseed\n/var/www",
        "got {seen}"
    );
    let config = &login.json(&["image", "inspect", "rich"])?[0];
    ensure!(config["Config"]["User"] == "www-data", "{config}");
    ensure!(config["Config"]["StopSignal"] == "SIGUSR1", "{config}");
    ensure!(config["Labels"]["org.example.colour"] == "grey", "{config}");
    ensure!(
        config["RepoTags"][0] == "localhost/rich:latest",
        "{}",
        config["RepoTags"]
    );
    ensure!(
        config["RootFS"]["Layers"].as_array().map(Vec::len) == Some(3),
        "{}",
        config["RootFS"]
    );
    Ok(())
}

fn containers_do_not_share_writes(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let (first, second) = (login.sleeper(&[])?, login.sleeper(&[])?);
    first.exec(&[
        "sh",
        "-c",
        "echo mine >/owned/0 && rm /owned/33 && mkdir /new",
    ])?;
    let seen = second.exec(&["sh", "-c", "cat /owned/0 /owned/33; ls -d /new || true"])?;
    ensure!(seen == "0\n33", "the second container saw {seen:?}");
    // Nor does the image change.
    let seen = login.ok(&["run", "--rm", "busybox", "cat", "/owned/0"])?;
    ensure!(seen == "0", "the image now says {seen:?}");
    Ok(())
}

fn tag_and_rmi(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["tag", "busybox", "example.org/team/box:v1"])?;
    let names = login.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    ensure!(
        names == ["example.org/team/box:v1", "localhost/busybox:latest"],
        "{names:?}"
    );
    expect_eq(
        login.ok(&["run", "--rm", "example.org/team/box:v1", "echo", "x"])?,
        "x",
    )?;
    let untagged = login.ok(&["rmi", "busybox"])?;
    expect_contains(untagged, "Untagged: localhost/busybox:latest")?;
    expect_eq(
        login.ok(&["run", "--rm", "example.org/team/box:v1", "echo", "x"])?,
        "x",
    )?;
    // In use: refused; forced: its containers go too, as in Podman.
    let container = login.detached(&["example.org/team/box:v1", "sleep", "1000"])?;
    let error = login.refused(2, &["rmi", "example.org/team/box:v1"])?;
    expect_contains(error, &container.id[..12])?;
    login.ok(&["rmi", "--force", "example.org/team/box:v1"])?;
    ensure!(login.ok(&["images", "--quiet"])?.is_empty());
    ensure!(login.ok(&["ps", "--all", "--quiet"])?.is_empty());
    login.refused(1, &["rmi", "busybox"])?;
    Ok(())
}

fn logins_see_their_own(ground: &'static Ground) -> Result<()> {
    let (mine, other) = (ground.login()?, ground.other_login()?);
    let container = mine.sleeper(&[])?;
    let seen = other.ok(&["ps", "--all", "--quiet", "--no-trunc"])?;
    ensure!(
        !seen.contains(&container.id),
        "another login sees the container"
    );
    other.refused(125, &["exec", &container.id, "true"])?;
    other.refused(125, &["kill", &container.id])?;
    expect_eq(container.inspect("{{.State.Running}}")?, "true")?;
    Ok(())
}
