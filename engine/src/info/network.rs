//! What connects containers on this host, for `info`.

use selkie_net::program::Program;
use selkie_net::uplink::{self, known_features};
use selkie_net::{pasta, slirp4netns};
use serde::Serialize;

use crate::Engine;
use crate::database::make_private_dir;
use crate::error::Result;

/// What there is, and how the uplink is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInfo {
    /// The default network connects by it.
    pub pasta: Option<String>,
    /// What the installed pasta cannot do, found by trying.
    pub pasta_lacks: Vec<String>,
    /// Used where there is no pasta, and for `--network slirp4netns`.
    pub slirp4netns: Option<String>,
    /// Keeps containers apart.
    pub nft: Option<String>,
    /// What keeps containers from being online by default, when something does.
    pub missing: Option<String>,
    /// While it runs.
    pub uplink: Option<UplinkInfo>,
}

/// The uplink that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UplinkInfo {
    /// PID of its supervisor.
    pub supervisor: i32,
    /// PID of what serves names and published ports.
    pub services: Option<i32>,
    /// PID of what carries packets.
    pub connector: Option<i32>,
    /// Which program that is, or why there is none.
    pub connected_by: String,
    /// Why TCP connections out of containers go by way of that too, where they do: usually the host's own
    /// TCP makes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_by_connector: Option<String>,
    /// How many containers are connected.
    pub containers: usize,
}

impl Engine {
    /// Tries the installed programs.
    pub(super) fn network_info(&self) -> Result<NetworkInfo> {
        let config = self.config.uplink();
        let search = &config.search_path;
        let shown = |program: &Program| program.path.display().to_string();
        let found = pasta::find(search).ok();
        let mut missing = None;
        let pasta_lacks = match &found {
            None => Vec::new(),
            Some(program) => {
                make_private_dir(&config.dir)?;
                match known_features(&config.dir, program) {
                    Ok(features) => features.lacking().map(str::to_owned).collect(),
                    Err(error) => {
                        missing = Some(error.to_string());
                        Vec::new()
                    }
                }
            }
        };
        let slirp4netns = slirp4netns::find(search).ok();
        let nft = Program::find("nft", "nftables", search);
        if found.is_none() && slirp4netns.is_none() {
            missing = Some("neither pasta nor slirp4netns is installed: package passt".into());
        } else if let Err(error) = &nft {
            missing = Some(error.to_string());
        } else if rustix::fs::access("/dev/net/tun", rustix::fs::Access::READ_OK).is_err() {
            missing = Some(
                "/dev/net/tun cannot be used: an admin must run chmod 0666 /dev/net/tun".into(),
            );
        }
        let uplink = match uplink::running(&config)? {
            None => None,
            Some(mut uplink) => {
                let status = uplink.status()?;
                Some(UplinkInfo {
                    supervisor: status.supervisor,
                    services: status.services,
                    connector: status.connector,
                    connected_by: status.connected_by,
                    tcp_by_connector: status.tcp_by_connector,
                    containers: status.containers.len(),
                })
            }
        };
        Ok(NetworkInfo {
            pasta: found.as_ref().map(shown),
            pasta_lacks,
            slirp4netns: slirp4netns.as_ref().map(shown),
            nft: nft.ok().as_ref().map(shown),
            missing,
            uplink,
        })
    }
}
