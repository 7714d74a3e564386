//! What commands print: tables for people, JSON and Go templates for scripts, Podman's field names.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::login::{expect_contains, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("formats::ps_table", ps_table),
        ground.trial("formats::ps_filters", ps_filters),
        ground.trial("formats::ps_templates", ps_templates),
        ground.trial("formats::ps_json", ps_json),
        ground.trial("formats::images_table_and_json", images_table_and_json),
        ground.trial(
            "formats::inspect_has_podman_s_fields",
            inspect_has_podmans_fields,
        ),
        ground.trial(
            "formats::inspect_finds_every_kind",
            inspect_finds_every_kind,
        ),
        ground.trial("formats::inspect_templates", inspect_templates),
        ground.trial("formats::version_and_info", version_and_info),
        ground.trial(
            "formats::bad_templates_are_refused",
            bad_templates_are_refused,
        ),
        ground.trial(
            "formats::help_is_there_for_every_command",
            help_is_there_for_every_command,
        ),
        ground.trial(
            "formats::a_closed_pipe_is_no_error",
            a_closed_pipe_is_no_error,
        ),
    ]
}

fn ps_table(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    ensure!(login.ok(&["ps"])?.lines().count() == 1, "only the header");
    let container = login.sleeper(&["--name", "one"])?;
    let table = login.ok(&["ps"])?;
    let lines: Vec<&str> = table.lines().collect();
    ensure!(lines.len() == 2, "{table}");
    let header: Vec<&str> = lines[0].split_whitespace().collect();
    ensure!(
        header
            == [
                "CONTAINER",
                "ID",
                "IMAGE",
                "COMMAND",
                "CREATED",
                "STATUS",
                "PORTS",
                "NAMES"
            ],
        "{table}"
    );
    for part in [
        &container.id[..12],
        "localhost/busybox:latest",
        "sleep 10000",
        "ago",
        "Up ",
        "one",
    ] {
        expect_contains(lines[1], part)?;
    }
    let quiet = login.ok(&["ps", "--quiet"])?;
    ensure!(quiet == container.id[..12], "{quiet}");
    let table = login.ok(&["ps", "--no-trunc", "--noheading"])?;
    ensure!(table.starts_with(&container.id), "{table}");
    login.ok(&["stop", "--time", "0", "one"])?;
    ensure!(login.ok(&["ps", "--quiet"])?.is_empty());
    expect_contains(login.ok(&["ps", "--all"])?, "Exited (137)")?;
    Ok(())
}

fn ps_filters(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let _running = login.sleeper(&["--name", "alpha", "--label", "kind=seal"])?;
    login.ok(&["create", "--name", "beta", "busybox", "true"])?;
    login
        .selkie(&[
            "run",
            "--name",
            "gamma",
            "--label",
            "kind=otter",
            "busybox",
            "sh",
            "-c",
            "exit 3",
        ])
        .run()?
        .code(3)?;
    let names = |filters: &[&str]| -> Result<String> {
        let mut all = vec!["ps", "--all", "--format", "{{.Names}}"];
        for filter in filters {
            all.extend_from_slice(&["--filter", filter]);
        }
        let found = login.ok(&all)?;
        let mut found: Vec<&str> = found.lines().collect();
        found.sort_unstable();
        Ok(found.join(" "))
    };
    for (filters, expected) in [
        (&[][..], "alpha beta gamma"),
        (&["status=running"][..], "alpha"),
        (&["status=created"][..], "beta"),
        (&["status=exited"][..], "gamma"),
        (&["status=exited", "status=created"][..], "beta gamma"),
        (&["exited=3"][..], "gamma"),
        (&["label=kind"][..], "alpha gamma"),
        (&["label=kind=otter"][..], "gamma"),
        (&["name=a$"][..], "alpha beta gamma"),
        (&["name=^al"][..], "alpha"),
        (
            &["ancestor=localhost/busybox:latest"][..],
            "alpha beta gamma",
        ),
        (
            &["ancestor=localhost/busybox:latest", "status=running"][..],
            "alpha",
        ),
    ] {
        let found = names(filters)?;
        ensure!(
            found == expected,
            "{filters:?}: {found:?}, expected {expected:?}"
        );
    }
    expect_eq(login.ok(&["ps", "--format", "{{.Names}}"])?, "alpha")?;
    expect_eq(
        login.ok(&["ps", "--latest", "--format", "{{.Names}}"])?,
        "gamma",
    )?;
    expect_eq(
        login.ok(&["ps", "--last", "2", "--format", "{{.Names}}"])?,
        "gamma\nbeta",
    )?;
    login.refused(125, &["ps", "--filter", "nonsense=1"])?;
    login.refused(125, &["ps", "--filter", "status=nonsense"])?;
    Ok(())
}

fn ps_templates(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("templated");
    let container = login.sleeper(&["--name", &name, "--label", "a=b"])?;
    let filter = format!("id={}", container.id);
    let ps = |template: &str| {
        login.ok(&[
            "ps",
            "--no-trunc",
            "--filter",
            &filter,
            "--format",
            template,
        ])
    };
    expect_eq(
        ps("{{.ID}} {{.Names}}")?,
        format!("{} {name}", container.id),
    )?;
    expect_eq(
        ps("{{.Image}}|{{.Command}}|{{.State}}")?,
        "localhost/busybox:latest|sleep 10000|running",
    )?;
    ensure!(ps("{{.Labels.a}}")? == "b" || ps("{{.Label \"a\"}}")? == "b");
    ensure!(
        ps("{{json .Names}}")? == format!("[\"{name}\"]")
            || ps("{{json .Names}}")? == format!("\"{name}\"")
    );
    expect_eq(
        ps("{{if eq .State \"running\"}}yes{{else}}no{{end}}")?,
        "yes",
    )?;
    ensure!(ps("{{.State | upper}}")? == "RUNNING" || ps("{{upper .State}}")? == "RUNNING");
    expect_eq(ps("{{printf \"%-10s|\" .State}}")?, "running   |")?;
    let table = ps("table {{.Names}}\t{{.State}}")?;
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    ensure!(
        lines == [vec!["NAMES", "STATE"], vec![&name, "running"]],
        "{table}"
    );
    expect_eq(ps("{{.Pid}}")?, container.pid()?.to_string())?;
    Ok(())
}

fn ps_json(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    expect_eq(
        login.json(&["ps", "--format", "json"])?,
        serde_json::json!([]),
    )?;
    let container = login.sleeper(&["--name", "one", "--label", "a=b"])?;
    let list = login.json(&["ps", "--format", "json"])?;
    let facts = &list[0];
    ensure!(facts["Id"] == *container.id, "{facts}");
    ensure!(facts["Names"] == serde_json::json!(["one"]), "{facts}");
    ensure!(
        facts["Image"] == "localhost/busybox:latest" && facts["State"] == "running",
        "{facts}"
    );
    ensure!(
        facts["Command"] == serde_json::json!(["sleep", "10000"]),
        "{facts}"
    );
    ensure!(
        facts["Pid"] == container.pid()? && facts["Labels"]["a"] == "b" && facts["Exited"] == false,
        "{facts}"
    );
    ensure!(
        facts["ImageID"].as_str().map(str::len) == Some(64),
        "{facts}"
    );
    Ok(())
}

fn images_table_and_json(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let table = login.ok(&["images"])?;
    let header: Vec<&str> = table
        .lines()
        .next()
        .context("no header")?
        .split_whitespace()
        .collect();
    ensure!(
        header == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"],
        "{table}"
    );
    let line = table
        .lines()
        .find(|line| line.contains("localhost/busybox"))
        .context("no busybox")?;
    ensure!(line.contains("latest") && line.contains("MB"), "{line}");
    let list = login.json(&["images", "--format", "json"])?;
    let facts = list
        .as_array()
        .and_then(|list| {
            list.iter()
                .find(|image| image["Names"][0] == "localhost/busybox:latest")
        })
        .with_context(|| format!("no busybox in {list}"))?;
    ensure!(facts["Id"].as_str().map(str::len) == Some(64), "{facts}");
    for field in ["Size", "Created", "Digest", "RepoDigests"] {
        ensure!(!facts[field].is_null(), "{field} is missing: {facts}");
    }
    let id = login.ok(&["images", "--quiet", "--no-trunc", "busybox"])?;
    ensure!(id.trim_start_matches("sha256:") == facts["Id"], "{id}");
    // A list has no template error for each image, but one line for each.
    let lines = login.ok(&["images", "--format", "{{.ID}} {{.Repository}} {{.Size}}"])?;
    ensure!(lines.lines().count() >= 2, "{lines}");
    Ok(())
}

fn inspect_has_podmans_fields(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("inspected");
    let container = login.sleeper(&[
        "--name",
        &name,
        "--env",
        "A=b",
        "--workdir",
        "/tmp",
        "--hostname",
        "seal",
        "--user",
        "33",
        "--tmpfs",
        "/scratch",
        "--cap-add",
        "NET_RAW",
    ])?;
    let list = login.json(&["inspect", &name])?;
    expect_eq(list.as_array().map(Vec::len), Some(1))?;
    let facts = &list[0];
    ensure!(
        facts["Id"] == *container.id && facts["Name"] == *name,
        "{facts}"
    );
    ensure!(
        facts["ImageName"] == "localhost/busybox:latest",
        "{}",
        facts["ImageName"]
    );
    ensure!(
        facts["Path"] == "sleep" && facts["Args"] == serde_json::json!(["10000"]),
        "{}",
        facts["Args"]
    );
    let state = &facts["State"];
    ensure!(
        state["Status"] == "running" && state["Running"] == true && state["ExitCode"] == 0,
        "{state}"
    );
    ensure!(state["Pid"].as_i64().is_some_and(|pid| pid > 0), "{state}");
    ensure!(
        state["StartedAt"]
            .as_str()
            .is_some_and(|time| time.starts_with("20")),
        "{state}"
    );
    let config = &facts["Config"];
    ensure!(
        config["Hostname"] == "seal" && config["User"] == "33" && config["WorkingDir"] == "/tmp",
        "{config}"
    );
    ensure!(
        config["Env"]
            .as_array()
            .is_some_and(|env| env.contains(&"A=b".into())),
        "{config}"
    );
    ensure!(
        config["Cmd"] == serde_json::json!(["sleep", "10000"]),
        "{config}"
    );
    ensure!(
        config["CreateCommand"]
            .as_array()
            .is_some_and(|words| words.iter().any(|word| word == "--hostname")),
        "{config}"
    );
    let host = &facts["HostConfig"];
    ensure!(
        host["NetworkMode"] == "bridge" && !host["Tmpfs"]["/scratch"].is_null(),
        "{host}"
    );
    ensure!(
        host["IDMappings"]["UidMap"]
            .as_array()
            .is_some_and(|map| !map.is_empty()),
        "{host}"
    );
    for absent in [
        "CpuShares",
        "MemorySwap",
        "BlkioDeviceReadIOps",
        "OomKillDisable",
    ] {
        ensure!(host.get(absent).is_some(), "no {absent} in {host}");
    }
    ensure!(facts.get("SizeRw").is_none(), "measured unasked");
    let sized = login.json(&["inspect", "--size", &name])?;
    ensure!(
        sized[0]["SizeRootFs"].as_u64() > sized[0]["SizeRw"].as_u64(),
        "{}",
        sized[0]
    );
    let capabilities = &facts["BoundingCaps"];
    ensure!(
        capabilities
            .as_array()
            .is_some_and(|list| list.contains(&"CAP_NET_RAW".into())),
        "{capabilities}"
    );
    // Two at once, images too; an unknown one fails and says which.
    let two = login.json(&["inspect", &name, "busybox"])?;
    ensure!(
        two[1]["RepoTags"][0] == "localhost/busybox:latest",
        "{}",
        two[1]["RepoTags"]
    );
    let error = login.refused(125, &["inspect", "no-such-thing"])?;
    expect_contains(error, "no-such-thing")
}

fn inspect_finds_every_kind(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    login.ok(&["network", "create", "both"])?;
    login.ok(&["network", "create", "net"])?;
    login.ok(&["volume", "create", "both"])?;
    login.ok(&["create", "--name", "one", "busybox"])?;
    for (kind, name) in [
        ("container", "one"),
        ("image", "busybox"),
        ("volume", "both"),
        ("network", "net"),
        ("network", "bridge"),
    ] {
        let own = login.json(&[kind, "inspect", name])?;
        expect_eq(&login.json(&["inspect", name])?, &own)?;
        expect_eq(&login.json(&["inspect", "--type", "all", name])?, &own)?;
        expect_eq(&login.json(&["inspect", "--type", kind, name])?, &own)?;
    }
    // The first kind that has it.
    let seen = login.json(&["inspect", "-t", "network", "both"])?;
    expect_eq(&seen, &login.json(&["network", "inspect", "both"])?)?;
    let volume = login.json(&["inspect", "both"])?;
    ensure!(volume[0].get("Mountpoint").is_some(), "{volume}");
    expect_eq(
        login.ok(&["inspect", "--format", "{{.Driver}}", "both", "net"])?,
        "local\nbridge",
    )?;
    for (kind, word) in [
        ("container", "no such container"),
        ("image", "nope"),
        ("volume", "no such volume"),
        ("network", "network not found"),
        ("all", "no such object"),
    ] {
        let error = login.refused(125, &["inspect", "--type", kind, "nope"])?;
        expect_contains(error, word)?;
    }
    let error = login.refused(125, &["inspect", "--type", "pod", "nope"])?;
    expect_contains(error, "choose from")
}

fn inspect_templates(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&["--env", "A=b"])?;
    for (template, expected) in [
        ("{{.State.Running}}", "true"),
        ("{{json .State.Running}}", "true"),
        ("{{range .Config.Cmd}}<{{.}}>{{end}}", "<sleep><10000>"),
        ("{{len .Config.Cmd}}", "2"),
        ("{{index .Config.Cmd 1}}", "10000"),
        ("{{with .Config}}{{.WorkingDir}}{{end}}", "/"),
        ("{{if and .State.Running (not .State.Dead)}}up{{end}}", "up"),
        (
            "{{range $i, $word := .Config.Cmd}}{{if $i}},{{end}}{{$word}}{{end}}",
            "sleep,10000",
        ),
        ("{{.Config.Cmd}}", "[sleep 10000]"),
        (
            r#"{{range .Config.Cmd}}{{.}}{{"\t"}}{{end}}\t|"#,
            "sleep\t10000\t\t|",
        ),
        ("{{.HostConfig.CpuShares}}{{.Config.Passwd}}", "0false"),
        ("{{- /* comment */ -}} x {{- .State.ExitCode }}", "x0"),
    ] {
        let seen = container.inspect(template)?;
        ensure!(
            seen == expected,
            "{template}: {seen:?}, expected {expected:?}"
        );
    }
    let id = login.ok(&["image", "inspect", "--format", "{{.Id}}", "busybox"])?;
    ensure!(id.len() == 64, "{id}");
    Ok(())
}

fn version_and_info(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let version = env!("CARGO_PKG_VERSION");
    expect_contains(login.ok(&["--version"])?, version)?;
    expect_eq(
        login.ok(&["version", "--format", "{{.Client.Version}}"])?,
        version,
    )?;
    expect_eq(
        login.json(&["version", "--format", "json"])?["Client"]["Version"].as_str(),
        Some(version),
    )?;
    let info = login.json(&["info", "--format", "json"])?;
    ensure!(
        info["host"]["security"]["rootless"] == true,
        "{}",
        info["host"]["security"]
    );
    let map = &info["host"]["idMappings"]["uidmap"];
    ensure!(
        map[0]["host_id"] == login.user.uid && map[1]["host_id"] == login.user.subuids.0,
        "{map}"
    );
    ensure!(
        info["store"]["graphRoot"].as_str().is_some(),
        "{}",
        info["store"]
    );
    ensure!(!login.ok(&["info"])?.is_empty());
    Ok(())
}

fn bad_templates_are_refused(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&[])?;
    for template in [
        "{{.NoSuchField}}",
        "{{.State.Nothing.Deeper}}",
        "{{",
        "{{range .Config.Cmd}}",
        "{{nonsense .Id}}",
        "{{.Id}} {{end}}",
    ] {
        let error = login.refused(
            125,
            &["container", "inspect", "--format", template, &container.id],
        )?;
        ensure!(error.len() < 500, "{error}");
    }
    login.refused(125, &["ps", "--format", "{{.NoSuchField}}"])?;
    Ok(())
}

fn help_is_there_for_every_command(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    for command in [
        "run", "create", "start", "stop", "kill", "rm", "ps", "logs", "exec", "inspect", "wait",
        "attach", "load", "save", "import", "export", "images", "tag", "rmi", "unshare", "info",
        "update", "version", "system", "volume",
    ] {
        let help = login.ok(&[command, "--help"])?;
        expect_contains(help.as_str(), "Usage:")?;
        if !["system", "volume"].contains(&command) {
            ensure!(
                help.contains("Example"),
                "no example in the help of {command}"
            );
        }
    }
    Ok(())
}

fn a_closed_pipe_is_no_error(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let binary = ground.binary.display();
    let script = format!(
        "{binary} info | true; {binary} ps --all --format json | head -c 1 >/dev/null; echo ${{PIPESTATUS[@]}}"
    );
    let finished = login.program("bash", &["-c", &script]).run()?.code(0)?;
    ensure!(finished.error().is_empty(), "{}", finished.error());
    Ok(())
}
