//! Rows of `ps`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use selkie_engine::container::{Container, Status};
use serde::Serialize;

use super::network::{PortJson, port_column};
use super::{size, time};

/// What `ps` templates see, by Podman's names.
#[derive(Debug, Default, Serialize)]
#[serde(rename = "containers.psReporter", rename_all = "PascalCase")]
pub struct PsRow {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    command: String,
    created: String,
    created_at: String,
    created_human: String,
    running_for: String,
    status: String,
    state: String,
    ports: String,
    networks: String,
    pub(crate) names: String,
    labels: BTreeMap<String, String>,
    mounts: String,
    pid: i32,
    exited: bool,
    exited_at: i64,
    exit_code: i32,
    started_at: i64,
    auto_remove: bool,
    is_infra: bool,
    pod: String,
    pod_name: String,
    restarts: u32,
    size: String,
    /// Selkie's own: host IDs that container ID 0 … are.
    slice: String,
}

/// What `ps --format json` holds, by Podman's keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PsJson {
    auto_remove: bool,
    command: Vec<String>,
    created_at: String,
    exited: bool,
    exited_at: i64,
    exit_code: i32,
    id: String,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    is_infra: bool,
    labels: BTreeMap<String, String>,
    mounts: Vec<String>,
    names: Vec<String>,
    namespaces: BTreeMap<String, String>,
    networks: Vec<String>,
    pid: i32,
    pod: String,
    pod_name: String,
    ports: Option<Vec<PortJson>>,
    size: Option<DiskSize>,
    started_at: i64,
    state: &'static str,
    status: String,
    created: i64,
    slice: String,
}

/// What a container takes on disk in bytes: what it has of its own, and with its image.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename = "define.ContainerSize")]
pub struct DiskSize {
    /// Writable layer and log.
    #[serde(rename = "rwSize")]
    pub rw_size: u64,
    /// The same and the image.
    #[serde(rename = "rootFsSize")]
    pub root_fs_size: u64,
}

impl std::fmt::Display for DiskSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (own, all) = (size::dense(self.rw_size), size::dense(self.root_fs_size));
        write!(f, "{own} (virtual {all})")
    }
}

/// `running`, as Podman's states are called.
pub fn state(status: Status) -> &'static str {
    match status {
        Status::Created => "created",
        Status::Running => "running",
        Status::Stopping => "stopping",
        Status::Exited => "exited",
    }
}

/// `Up 2 minutes`, `Exited (0) 3 seconds ago`.
pub fn status(container: &Container, now: Timestamp) -> String {
    match container.status {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            let started = time::seconds(container.started.as_deref());
            format!("Up {}", time::duration(now.as_second() - started))
        }
        Status::Stopping => "Stopping".to_owned(),
        Status::Exited => match &container.exit {
            Some(exit) => format!("Exited ({}) {}", exit.code, time::ago(&exit.finished, now)),
            None => "Exited".to_owned(),
        },
    }
}

/// The host IDs of the container's first extent: `165536+1000` for 0 to 999, or more when the
/// slice has several. Empty while it holds none.
pub fn slice(container: &Container) -> String {
    let Some(maps) = &container.host_maps else {
        return String::new();
    };
    let extents = maps.uid.extents().iter();
    let texts: Vec<String> = extents
        .map(|extent| format!("{}:{}:{}", extent.inside, extent.outside, extent.count))
        .collect();
    texts.join(",")
}

/// Characters of a command shown unless `--no-trunc`.
const COMMAND_WIDTH: usize = 17;

fn command(argv: &[String], truncate: bool) -> String {
    let line = argv.join(" ");
    if !truncate || line.chars().count() <= COMMAND_WIDTH + 3 {
        return line;
    }
    let beginning: String = line.chars().take(COMMAND_WIDTH).collect();
    format!("{beginning}...")
}

fn mount_paths(container: &Container) -> Vec<String> {
    let mounts = container.config.options.mounts.iter();
    mounts.map(|mount| mount.destination.clone()).collect()
}

fn network_names(container: &Container) -> Vec<String> {
    let requests = container.config.options.network.requests().iter();
    requests.map(|request| request.name.clone()).collect()
}

impl PsRow {
    /// One container's row; IDs and commands are cut unless `full`.
    pub fn new(container: &Container, now: Timestamp, full: bool, size: Option<DiskSize>) -> Self {
        let exit = container.exit.as_ref();
        let is_exited = container.status == Status::Exited;
        let ago = time::ago(&container.created, now);
        let cut = |id: &str| match (full, id.get(..12)) {
            (false, Some(short)) => short.to_owned(),
            _ => id.to_owned(),
        };
        Self {
            id: cut(container.id.as_str()),
            image: container.config.image_name.clone(),
            image_id: cut(&container.image_id),
            command: command(&container.config.argv, !full),
            created: time::go_style(&container.created),
            created_at: time::go_style(&container.created),
            created_human: ago.clone(),
            running_for: ago,
            status: status(container, now),
            state: state(container.status).to_owned(),
            ports: port_column(&container.config.options.ports),
            networks: network_names(container).join(","),
            names: container.name.clone(),
            labels: container.config.labels.clone(),
            mounts: mount_paths(container).join(","),
            pid: container.pid,
            exited: is_exited,
            exited_at: time::seconds(exit.map(|exit| exit.finished.as_str())),
            exit_code: exit.map_or(0, |exit| exit.code),
            started_at: time::seconds(container.started.as_deref()),
            auto_remove: container.config.options.remove,
            is_infra: false,
            pod: String::new(),
            pod_name: String::new(),
            restarts: 0,
            size: size.map(|size| size.to_string()).unwrap_or_default(),
            slice: slice(container),
        }
    }
}

impl PsJson {
    /// One container's object.
    pub fn new(container: &Container, now: Timestamp, size: Option<DiskSize>) -> Self {
        let exit = container.exit.as_ref();
        Self {
            auto_remove: container.config.options.remove,
            command: container.config.argv.clone(),
            created_at: time::ago(&container.created, now),
            exited: container.status == Status::Exited,
            exited_at: time::seconds(exit.map(|exit| exit.finished.as_str())),
            exit_code: exit.map_or(0, |exit| exit.code),
            id: container.id.as_str().to_owned(),
            image: container.config.image_name.clone(),
            image_id: container.image_id.clone(),
            is_infra: false,
            labels: container.config.labels.clone(),
            mounts: mount_paths(container),
            names: vec![container.name.clone()],
            namespaces: BTreeMap::new(),
            networks: network_names(container),
            pid: container.pid,
            pod: String::new(),
            pod_name: String::new(),
            ports: PortJson::all(&container.config.options.ports),
            size,
            started_at: time::seconds(container.started.as_deref()),
            state: state(container.status),
            status: status(container, now),
            created: time::seconds(Some(&container.created)),
            slice: slice(container),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_cut_as_podman_cuts_them() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            command(&words("echo hello world and more"), true),
            "echo hello world ..."
        );
        assert_eq!(
            command(&words("echo hello world and more"), false),
            "echo hello world and more"
        );
        assert_eq!(command(&words("sleep 1000"), true), "sleep 1000");
        assert_eq!(command(&[], true), "");
    }
}
