//! A container's OCI spec from what was decided at its creation.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use selkie_runtime::default_spec::{DefaultSpec, Network, PidNamespace, Seccomp};
use selkie_userns::{IdMap, IdMaps};

use crate::EngineConfig;
use crate::container::ContainerConfig;
use crate::error::{Error, Result};
use crate::options::{MountOption, MountSource, PidMode, SeccompOption};

/// Writable memory on a read-only root, as Podman's `--read-only-tmpfs`.
const READ_ONLY_TMPFS: [&str; 3] = ["/run", "/tmp", "/var/tmp"];

/// Where the container's network is.
pub(crate) struct NetworkSpace {
    pub namespace: Network,
    /// Nobody connects it who would allow to ping.
    pub ping: bool,
}

/// The spec. `maps` are the container's (to the pause namespace), `pause_maps` that one's own (to the
/// host), `etc` (file, path in the container) pairs to bind.
///
/// # Errors
/// `InvalidInput`: unknown capabilities or limits, a bad seccomp profile.
pub(crate) fn build(
    paths: &EngineConfig,
    config: &ContainerConfig,
    host_name: &str,
    maps: &IdMaps,
    pause_maps: &IdMaps,
    etc: &[(PathBuf, &'static str)],
    network: NetworkSpace,
) -> Result<Spec> {
    let options = &config.options;
    let mut mounts = Vec::with_capacity(etc.len() + options.mounts.len() + READ_ONLY_TMPFS.len());
    let mounted = |path: &str| {
        options
            .mounts
            .iter()
            .any(|mount| mount.destination.trim_end_matches('/') == path)
    };
    if options.read_only && !options.read_only_bare {
        for path in READ_ONLY_TMPFS.into_iter().filter(|path| !mounted(path)) {
            let options = ["rw", "nosuid", "nodev", "mode=1777", "tmpcopyup"];
            mounts.push(mount(path, "tmpfs", Path::new("tmpfs"), &options));
        }
    }
    for (file, destination) in etc.iter().filter(|(_, path)| !mounted(path)) {
        mounts.push(mount(destination, "bind", file, &["bind", "rprivate"]));
    }
    for option in &options.mounts {
        mounts.push(user_mount(paths, option)?);
    }
    // Whatever order they were given in: what lies above must be mounted before what lies in it.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    let spec = DefaultSpec {
        argv: config.argv.clone(),
        env: config.env.clone(),
        cwd: config.workdir.clone(),
        user: config.user.clone(),
        terminal: options.terminal,
        hostname: host_name.to_owned(),
        read_only_root: options.read_only,
        cap_add: options.cap_add.clone(),
        cap_drop: options.cap_drop.clone(),
        ping: network.ping,
        network: network.namespace,
        pid: match options.pid {
            PidMode::Private => PidNamespace::Private,
            PidMode::Host => PidNamespace::Host,
        },
        uid_maps: triples(&maps.uid, &pause_maps.uid),
        gid_maps: triples(&maps.gid, &pause_maps.gid),
        mounts,
        mask: options.mask.clone(),
        unmask: options.unmask.clone(),
        ulimits: options.ulimits.clone(),
        sysctls: options.sysctls.clone(),
        seccomp: match &options.seccomp {
            SeccompOption::Default => Seccomp::Default,
            SeccompOption::Unconfined => Seccomp::Unconfined,
            SeccompOption::Profile(json) => Seccomp::Profile(json.clone()),
        },
        no_new_privileges: options.no_new_privileges,
        annotations: options.annotations.clone(),
    };
    Ok(spec.build()?)
}

/// Later options win over the defaults before them.
fn user_mount(paths: &EngineConfig, option: &MountOption) -> Result<Mount> {
    let (kind, source, mut words) = match &option.source {
        MountSource::Tmpfs => (
            "tmpfs",
            PathBuf::from("tmpfs"),
            vec!["nosuid", "nodev", "noexec"],
        ),
        MountSource::Bind(path) => (
            "bind",
            path.clone(),
            vec!["rbind", "rprivate", "nosuid", "nodev"],
        ),
        // Anonymous ones have got their names at creation.
        MountSource::Volume(name) => (
            "bind",
            paths.volume_data(name),
            vec!["bind", "rprivate", "nosuid", "nodev"],
        ),
        MountSource::AnonymousVolume => {
            return Err(Error::machine(
                format!("mount a volume on {}", option.destination),
                "it has not been given a name",
            ));
        }
    };
    if matches!(option.source, MountSource::Tmpfs) && option.copy_up {
        words.push("tmpcopyup");
    }
    if let MountSource::Bind(_) = option.source {
        // `bind` asks for this directory without what is mounted below it.
        if option.options.iter().any(|word| word == "bind") {
            words.retain(|word| *word != "rbind");
        }
    }
    words.extend(option.options.iter().map(String::as_str));
    words.push(if option.read_only { "ro" } else { "rw" });
    Ok(mount(&option.destination, kind, &source, &words))
}

fn mount(destination: &str, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_path_buf()))
        .set_options(Some(
            options.iter().map(|word| (*word).to_owned()).collect(),
        ));
    mount
}

/// The map as the kernel takes it: each extent must lie within one extent of the parent's own map
/// (user_namespaces(7)), where ours are merged as far as their numbers allow.
fn triples(map: &IdMap, parent: &IdMap) -> Vec<(u32, u32, u32)> {
    let mut triples = Vec::new();
    for extent in map.extents() {
        let mut done = 0;
        while done < extent.count {
            let outside = extent.outside + done;
            let left = extent.count - done;
            let count = parent
                .extents()
                .iter()
                .find(|held| outside >= held.inside && outside - held.inside < held.count)
                .map_or(left, |held| left.min(held.count - (outside - held.inside)));
            triples.push((extent.inside + done, outside, count));
            done += count;
        }
    }
    triples
}

/// The same as the text of `/proc/PID/uid_map`.
pub(crate) fn map_text(map: &IdMap, parent: &IdMap) -> String {
    triples(map, parent)
        .into_iter()
        .map(|(inside, outside, count)| format!("{inside} {outside} {count}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use selkie_userns::IdExtent;

    #[test]
    fn extents_do_not_cross_those_of_the_parent() {
        let extent = |inside, outside, count| IdExtent {
            inside,
            outside,
            count,
        };
        let parent = IdMap::new(vec![
            extent(0, 1000, 1),
            extent(1, 100_000, 10),
            extent(11, 300_000, 5),
        ])
        .unwrap();
        let all = IdMap::single(0, 0, 16).unwrap();
        assert_eq!(triples(&all, &parent), [(0, 0, 1), (1, 1, 10), (11, 11, 5)]);
        let part = IdMap::single(7, 9, 4).unwrap();
        assert_eq!(triples(&part, &parent), [(7, 9, 2), (9, 11, 2)]);
    }
}
