//! What runs: the caller's options over the image's defaults, by Podman's rules.

use oci_spec::image::Config as ImageConfig;

use crate::container::{ContainerConfig, ContainerId};
use crate::error::{Error, ErrorKind, Result};
use crate::network::ports;
use crate::options::{CreateOptions, MountOption, MountSource, NetworkMode, UsernsMode};

/// `PATH` where neither image nor caller says one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Seconds between stop signal and SIGKILL.
const DEFAULT_STOP_TIMEOUT: u32 = 10;

/// What merging needs besides options and image.
pub(crate) struct Login<'a> {
    /// The login's UID and GID on the host (`keep-id`'s default).
    pub ids: (u32, u32),
    /// The host's name, for `--network host`.
    pub host_name: &'a str,
}

/// Decides everything `start` needs to know. `image` is `None` with `--rootfs`.
///
/// # Errors
/// `InvalidInput`: no command anywhere, an unknown stop signal in the image, two mounts on one path.
pub(crate) fn merge(
    id: &ContainerId,
    mut options: CreateOptions,
    image: Option<&ImageConfig>,
    image_name: String,
    login: &Login<'_>,
) -> Result<ContainerConfig> {
    let argv = command_line(&options, image)?;
    let workdir = options
        .workdir
        .clone()
        .or_else(|| image.and_then(|image| non_empty(image.working_dir().as_deref())))
        .unwrap_or_else(|| "/".to_owned());
    let user = options
        .user
        .clone()
        .or_else(|| image.and_then(|image| non_empty(image.user().as_deref())))
        .unwrap_or_else(|| match options.userns {
            UsernsMode::KeepId { uid, gid, .. } => format!(
                "{}:{}",
                uid.unwrap_or(login.ids.0),
                gid.unwrap_or(login.ids.1)
            ),
            _ => String::new(),
        });
    let mut labels: std::collections::BTreeMap<String, String> = image
        .and_then(|image| image.labels().clone())
        .unwrap_or_default()
        .into_iter()
        .collect();
    labels.extend(options.labels.clone());
    let stop_signal = match (
        options.stop_signal,
        image.and_then(|i| i.stop_signal().clone()),
    ) {
        (Some(signal), _) => signal,
        (None, Some(name)) => signal_number(&name).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("the image's stop signal {name:?} is no signal"),
            )
            .with_hint("give one with --stop-signal")
        })?,
        (None, None) => rustix::process::Signal::TERM.as_raw(),
    };
    let host_name = host_name(id, &options, login);
    let env = environment(&options, image, &host_name);
    add_image_volumes(&mut options, image);
    if let Some(exposed) = image.and_then(|image| image.exposed_ports().as_ref()) {
        ports::add_exposed(&mut options, exposed);
    }
    check_mounts(&options.mounts)?;
    Ok(ContainerConfig {
        image_name,
        argv,
        env,
        workdir,
        user,
        labels,
        stop_signal,
        stop_timeout: options.stop_timeout.unwrap_or(DEFAULT_STOP_TIMEOUT),
        options,
    })
}

/// The name the container sees as its host's.
pub(crate) fn host_name(id: &ContainerId, options: &CreateOptions, login: &Login<'_>) -> String {
    match (&options.hostname, &options.network) {
        (Some(name), _) => name.clone(),
        (None, NetworkMode::Host) => login.host_name.to_owned(),
        (None, _) => id.short().to_owned(),
    }
}

/// `--entrypoint` also hides the image's command.
fn command_line(options: &CreateOptions, image: Option<&ImageConfig>) -> Result<Vec<String>> {
    let of_image = |field: Option<&Vec<String>>| field.cloned().unwrap_or_default();
    let mut argv = match &options.entrypoint {
        Some(entrypoint) => entrypoint.clone(),
        None => of_image(image.and_then(|image| image.entrypoint().as_ref())),
    };
    if !options.command.is_empty() {
        argv.extend(options.command.iter().cloned());
    } else if options.entrypoint.is_none() {
        argv.extend(of_image(image.and_then(|image| image.cmd().as_ref())));
    }
    if argv.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "no command or entrypoint provided, and no CMD or ENTRYPOINT from image",
        )
        .with_hint("give a command after the image"));
    }
    Ok(argv)
}

/// Later ones win; each name stays where it first appeared.
fn environment(
    options: &CreateOptions,
    image: Option<&ImageConfig>,
    host_name: &str,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = vec![
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("container".to_owned(), "oci".to_owned()),
    ];
    if options.terminal {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let image_env = image
        .and_then(|image| image.env().clone())
        .unwrap_or_default()
        .into_iter()
        .map(|entry| match entry.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (entry, String::new()),
        });
    for (name, value) in image_env {
        set_env(&mut env, name, value);
    }
    env.retain(|(name, _)| !options.unset_env.contains(name));
    for (name, value) in &options.env {
        set_env(&mut env, name.clone(), value.clone());
    }
    if !env.iter().any(|(name, _)| name == "HOSTNAME") {
        env.push(("HOSTNAME".to_owned(), host_name.to_owned()));
    }
    env
}

/// Sets or adds one variable.
pub(crate) fn set_env(env: &mut Vec<(String, String)>, name: String, value: String) {
    match env.iter_mut().find(|(known, _)| *known == name) {
        Some((_, old)) => *old = value,
        None => env.push((name, value)),
    }
}

/// Paths the image declares as volumes get anonymous ones, unless the caller mounts something there.
fn add_image_volumes(options: &mut CreateOptions, image: Option<&ImageConfig>) {
    let mut declared = image
        .and_then(|image| image.volumes().clone())
        .unwrap_or_default();
    declared.sort();
    for destination in declared {
        let taken = options
            .mounts
            .iter()
            .any(|mount| clean(&mount.destination) == clean(&destination));
        if !taken && destination.starts_with('/') {
            options.mounts.push(MountOption {
                source: MountSource::AnonymousVolume,
                destination,
                read_only: false,
                options: Vec::new(),
                copy_up: true,
            });
        }
    }
}

fn check_mounts(mounts: &[MountOption]) -> Result<()> {
    for (index, mount) in mounts.iter().enumerate() {
        let path = clean(&mount.destination);
        if !mount.destination.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "invalid container path {:?}, must be an absolute path",
                    mount.destination
                ),
            ));
        }
        if path.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "invalid container path \"/\": the root file system itself cannot be a mount",
            )
            .with_hint("use --rootfs for a directory as root"));
        }
        if mounts[..index]
            .iter()
            .any(|other| clean(&other.destination) == path)
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{}: duplicate mount destination", mount.destination),
            ));
        }
    }
    Ok(())
}

/// Without doubled, leading and trailing slashes and `.` parts; for comparing.
fn clean(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    parts.join("/")
}

fn non_empty(text: Option<&str>) -> Option<String> {
    text.filter(|text| !text.is_empty()).map(str::to_owned)
}

/// `SIGTERM`, `term`, `15`, `RTMIN+3` as numbers.
pub fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    // As a container's libc numbers them, whatever ours keeps for itself.
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|known| *known == short) {
        return Some(index as i32 + 1);
    }
    let number = match short {
        "IOT" => 6,
        "CLD" => 17,
        "POLL" => 29,
        "RTMIN" => RTMIN,
        "RTMAX" => RTMAX,
        _ => {
            if let Some(offset) = short.strip_prefix("RTMIN+") {
                RTMIN.checked_add(offset.parse().ok()?)?
            } else {
                RTMAX.checked_sub(short.strip_prefix("RTMAX-")?.parse().ok()?)?
            }
        }
    };
    (number <= RTMAX && !(32..RTMIN).contains(&number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::ConfigBuilder;

    fn login() -> Login<'static> {
        Login {
            ids: (1000, 100),
            host_name: "rock",
        }
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image() -> ImageConfig {
        ConfigBuilder::default()
            .entrypoint(strings(&["/entry"]))
            .cmd(strings(&["serve", "-v"]))
            .env(strings(&["PATH=/opt/bin", "A=1", "B=x=y", "EMPTY"]))
            .working_dir("/srv")
            .user("www")
            .stop_signal("SIGQUIT")
            .volumes(strings(&["/data", "/cache/"]))
            .labels(std::collections::HashMap::from([
                ("from".to_owned(), "image".to_owned()),
                ("keep".to_owned(), "yes".to_owned()),
            ]))
            .build()
            .unwrap()
    }

    fn merged(options: CreateOptions) -> ContainerConfig {
        let id = ContainerId::from_bytes([0xab; 32]);
        merge(&id, options, Some(&image()), "x".into(), &login()).unwrap()
    }

    #[test]
    fn entrypoint_and_command_follow_podman() {
        let with = |entrypoint: Option<&[&str]>, command: &[&str]| {
            merged(CreateOptions {
                entrypoint: entrypoint.map(strings),
                command: strings(command),
                ..Default::default()
            })
            .argv
        };
        assert_eq!(with(None, &[]), ["/entry", "serve", "-v"]);
        assert_eq!(with(None, &["x"]), ["/entry", "x"]);
        assert_eq!(with(Some(&["/e"]), &[]), ["/e"]);
        assert_eq!(with(Some(&["/e"]), &["x"]), ["/e", "x"]);
        assert_eq!(with(Some(&[]), &["x"]), ["x"]);
        let none = CreateOptions {
            entrypoint: Some(vec![]),
            ..Default::default()
        };
        assert!(command_line(&none, Some(&image())).is_err());
        assert!(command_line(&CreateOptions::default(), None).is_err());
    }

    #[test]
    fn defaults_come_from_the_image_and_options_win() {
        let plain = merged(CreateOptions::default());
        assert_eq!(
            (plain.workdir.as_str(), plain.user.as_str()),
            ("/srv", "www")
        );
        assert_eq!((plain.stop_signal, plain.stop_timeout), (3, 10));
        assert_eq!(
            plain.env,
            [
                ("PATH", "/opt/bin"),
                ("container", "oci"),
                ("A", "1"),
                ("B", "x=y"),
                ("EMPTY", ""),
                ("HOSTNAME", "abababababab"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        let options = CreateOptions {
            env: vec![("A".into(), "2".into()), ("HOSTNAME".into(), "h".into())],
            unset_env: vec!["B".into(), "A".into(), "container".into()],
            workdir: Some("/w".into()),
            user: Some("7:8".into()),
            labels: [("from".to_owned(), "me".to_owned())].into(),
            stop_signal: Some(9),
            stop_timeout: Some(0),
            terminal: true,
            ..Default::default()
        };
        let own = merged(options);
        assert_eq!((own.workdir.as_str(), own.user.as_str()), ("/w", "7:8"));
        assert_eq!((own.stop_signal, own.stop_timeout), (9, 0));
        for unset in ["B", "container"] {
            assert!(!own.env.iter().any(|(name, _)| name == unset));
        }
        assert_eq!(own.labels["from"], "me");
        assert_eq!(own.labels["keep"], "yes");
        for expected in [("A", "2"), ("HOSTNAME", "h"), ("TERM", "xterm")] {
            assert_eq!(
                own.env
                    .iter()
                    .filter(|(name, _)| name == expected.0)
                    .count(),
                1
            );
            assert!(own.env.contains(&(expected.0.into(), expected.1.into())));
        }
    }

    #[test]
    fn keep_id_runs_as_the_login_where_nobody_says_otherwise() {
        let id = ContainerId::from_bytes([0; 32]);
        let options = |uid| CreateOptions {
            command: strings(&["true"]),
            userns: UsernsMode::KeepId {
                uid,
                gid: None,
                size: None,
            },
            ..Default::default()
        };
        let user = |uid| {
            merge(&id, options(uid), None, String::new(), &login())
                .unwrap()
                .user
        };
        assert_eq!(user(None), "1000:100");
        assert_eq!(user(Some(5)), "5:100");
    }

    #[test]
    fn host_names() {
        let id = ContainerId::from_bytes([1; 32]);
        let mut options = CreateOptions::default();
        assert_eq!(host_name(&id, &options, &login()), "010101010101");
        options.network = NetworkMode::Host;
        assert_eq!(host_name(&id, &options, &login()), "rock");
        options.hostname = Some("own".into());
        assert_eq!(host_name(&id, &options, &login()), "own");
    }

    #[test]
    fn image_volumes_become_anonymous_ones_unless_mounted_over() {
        let mount = |destination: &str| MountOption {
            source: MountSource::Tmpfs,
            destination: destination.to_owned(),
            read_only: false,
            options: vec![],
            copy_up: true,
        };
        let with = |destinations: &[&str]| CreateOptions {
            mounts: destinations.iter().map(|path| mount(path)).collect(),
            ..Default::default()
        };
        let config = merged(with(&["/cache"]));
        let mounts = &config.options.mounts;
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].source, MountSource::AnonymousVolume);
        assert_eq!(mounts[1].destination, "/data");

        let id = ContainerId::from_bytes([0; 32]);
        for bad in [&["/a", "//a/."][..], &["/"], &["/x/../y"], &["rel"]] {
            let result = merge(&id, with(bad), Some(&image()), String::new(), &login());
            assert_eq!(result.unwrap_err().kind, ErrorKind::InvalidInput, "{bad:?}");
        }
    }

    #[test]
    fn signals_by_name_and_number() {
        for (name, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("sys", 31),
            ("SIGPOLL", 29),
        ] {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        for bad in [
            "", "SIG", "0", "65", "-1", "RTMIN+31", "RTMAX-31", "RTMIN+x", "NOPE",
        ] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
    }
}
