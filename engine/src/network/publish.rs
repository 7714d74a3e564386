//! Changes to the published ports of containers that exist: on record at once, and told to the uplink
//! when the container runs. All changes of one call are made, or none.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use rusqlite::Transaction;

use super::change::{Held, store, stored};
use super::ports::settle_mappings;
use super::uplink_calls;
use crate::Engine;
use crate::container::{ContainerConfig, ContainerId};
use crate::database::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{NetworkMode, PortMapping, Protocol};

/// What is to be published differently. What is taken back goes first, so that its ports are free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortChanges {
    /// To be taken back.
    pub remove: Vec<PortPattern>,
    /// To be published. Host port 0: a free one is chosen.
    pub add: Vec<PortMapping>,
}

/// Which of a container's published ports are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPattern {
    /// As it was written, for errors.
    pub text: String,
    /// Published on this address; `None`: on any.
    pub host_ip: Option<IpAddr>,
    /// On one of these ports of the host; `None`: on any. As many as `container` has, they go together.
    pub host: Option<RangeInclusive<u16>>,
    /// Ports of the container.
    pub container: RangeInclusive<u16>,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl PortPattern {
    fn fits(&self, mapping: &PortMapping, host: u16, container: u16) -> bool {
        // What is published everywhere is shown as 0.0.0.0.
        let everywhere = Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let is_there = self.host_ip.is_none()
            || self.host_ip == mapping.host_ip
            || (mapping.host_ip.is_none() && self.host_ip == everywhere);
        let is_one = match &self.host {
            None => true,
            Some(hosts) if hosts.len() == self.container.len() => {
                hosts.contains(&host)
                    && host - hosts.start() == container.wrapping_sub(*self.container.start())
            }
            Some(hosts) => hosts.contains(&host),
        };
        is_there
            && is_one
            && self.protocol == mapping.protocol
            && self.container.contains(&container)
    }
}

impl Engine {
    /// Publishes other ports of a container; at once when it runs. Connections made through what is
    /// taken back go on.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput`: nothing is published that is to be taken back, a port twice, or its
    /// network cannot publish; `Conflict`: none is free, or it runs with a connector of its own; whatever
    /// the uplink says of a port that cannot be had. Then nothing has changed.
    pub fn update_ports(&mut self, id: &ContainerId, changes: &PortChanges) -> Result<()> {
        let held = self.hold(id)?;
        let before = self.database.write(Durability::PowerCut, |transaction| {
            let (name, mut config) = stored(transaction, id)?;
            refuse_mode(&name, &config.options.network, &held)?;
            let before = config.options.ports.clone();
            config.options.ports = changed(&name, &before, changes)?;
            store(transaction, id, &config)?;
            Ok(before)
        })?;
        let Held::Running(init, _) = held else {
            return Ok(());
        };
        // Also what was on record already: the command that put it there may not have come this far.
        self.tell(id, init, uplink_calls::publish).inspect_err(|_| {
            // The error of the attempt is the one to tell.
            let restored = self.database.write(Durability::PowerCut, |transaction| {
                restore(transaction, id, before)
            });
            match restored {
                // An uplink that was lost on the way may have heard of it all the same.
                Ok(()) => {
                    let _ = self.tell(id, init, uplink_calls::recover);
                }
                Err(error) => tracing::warn!("take back the changes to the ports of {id}: {error}"),
            }
        })
    }
}

fn restore(
    transaction: &Transaction<'_>,
    id: &ContainerId,
    before: Vec<PortMapping>,
) -> Result<()> {
    let (_, mut config): (String, ContainerConfig) = stored(transaction, id)?;
    config.options.ports = before;
    store(transaction, id, &config)
}

fn refuse_mode(name: &str, mode: &NetworkMode, held: &Held) -> Result<()> {
    let describe = mode.describe();
    match (mode, held) {
        (NetworkMode::Networks(_), _)
        | (NetworkMode::Pasta(_) | NetworkMode::Slirp4netns(_), Held::Idle(_)) => Ok(()),
        (NetworkMode::Pasta(_) | NetworkMode::Slirp4netns(_), Held::Running(..)) => {
            let kind = describe.split(':').next().unwrap_or_default();
            Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "cannot change the published ports of container {name} while it runs: its own \
                     {kind} was given them when it started"
                ),
            )
            .with_hint(format!(
                "selkie stop {name}, update it, and selkie start {name}"
            )))
        }
        (NetworkMode::Container(_), _) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "ports cannot be published for container {name} with --network {describe}: the \
                 network is the other container's"
            ),
        )
        .with_hint("update the container whose network it is")),
        (NetworkMode::None | NetworkMode::Host | NetworkMode::Namespace(_), _) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "ports cannot be published for container {name} with --network {describe}: it has \
                 no network of its own"
            ),
        )),
    }
}

/// What is published after `changes`.
fn changed(name: &str, before: &[PortMapping], changes: &PortChanges) -> Result<Vec<PortMapping>> {
    for pattern in &changes.remove {
        let is_found = before.iter().any(|mapping| {
            mapping
                .pairs()
                .any(|(host, container)| pattern.fits(mapping, host, container))
        });
        if !is_found {
            let shown: Vec<String> = before.iter().map(ToString::to_string).collect();
            let known = if shown.is_empty() {
                "it has published nothing".to_owned()
            } else {
                format!("it has published {}", shown.join(", "))
            };
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "container {name} has not published {}: {known}",
                    pattern.text
                ),
            ));
        }
    }
    let mut ports: Vec<PortMapping> = before
        .iter()
        .flat_map(|mapping| {
            mapping.without(|host, container| {
                changes
                    .remove
                    .iter()
                    .any(|pattern| pattern.fits(mapping, host, container))
            })
        })
        .collect();
    ports.extend(changes.add.iter().cloned());
    settle_mappings(&mut ports)?;
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mapping(host_ip: Option<&str>, host: u16, container: u16, count: u16) -> PortMapping {
        PortMapping {
            host_ip: host_ip.map(|text| text.parse().unwrap()),
            host_port: host,
            container_port: container,
            count,
            protocol: Protocol::Tcp,
        }
    }

    fn pattern(
        host_ip: Option<&str>,
        host: Option<RangeInclusive<u16>>,
        container: RangeInclusive<u16>,
    ) -> PortPattern {
        PortPattern {
            text: "that".into(),
            host_ip: host_ip.map(|text| text.parse().unwrap()),
            host,
            container,
            protocol: Protocol::Tcp,
        }
    }

    fn after(
        before: &[PortMapping],
        remove: &[PortPattern],
        add: &[PortMapping],
    ) -> Result<Vec<String>> {
        let changes = PortChanges {
            remove: remove.to_vec(),
            add: add.to_vec(),
        };
        let ports = changed("c", before, &changes)?;
        Ok(ports.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_a_pattern_takes_back() {
        let before = [
            mapping(None, 8000, 80, 3),
            mapping(Some("127.0.0.1"), 9000, 80, 1),
            mapping(Some("::1"), 9000, 80, 1),
        ];
        let left = |pattern| after(&before, &[pattern], &[]).unwrap();
        assert_eq!(
            left(pattern(None, None, 80..=80)),
            ["0.0.0.0:8001-8002->81-82/tcp"]
        );
        assert_eq!(
            left(pattern(None, None, 81..=82)),
            [
                "0.0.0.0:8000->80/tcp",
                "127.0.0.1:9000->80/tcp",
                "[::1]:9000->80/tcp"
            ]
        );
        assert_eq!(
            left(pattern(None, Some(9000..=9000), 80..=80)),
            ["0.0.0.0:8000-8002->80-82/tcp"]
        );
        assert_eq!(
            left(pattern(Some("::1"), None, 80..=80)),
            ["0.0.0.0:8000-8002->80-82/tcp", "127.0.0.1:9000->80/tcp"]
        );
        // As `port` shows it.
        assert_eq!(
            left(pattern(Some("0.0.0.0"), Some(8000..=8000), 80..=80)),
            [
                "0.0.0.0:8001-8002->81-82/tcp",
                "127.0.0.1:9000->80/tcp",
                "[::1]:9000->80/tcp"
            ]
        );
    }

    #[test]
    fn nothing_that_fits_is_an_error_that_lists_what_there_is() {
        let before = [mapping(None, 8000, 80, 3)];
        for none in [
            pattern(None, None, 83..=90),
            pattern(None, Some(8000..=8000), 81..=81),
            pattern(None, Some(8001..=8002), 80..=81),
            pattern(Some("127.0.0.1"), None, 80..=80),
            PortPattern {
                protocol: Protocol::Udp,
                ..pattern(None, None, 80..=80)
            },
        ] {
            let error = after(&before, std::slice::from_ref(&none), &[]).unwrap_err();
            assert!(
                error.message.contains("0.0.0.0:8000-8002->80-82/tcp"),
                "{none:?}: {error:?}"
            );
        }
        let error = after(&[], &[pattern(None, None, 80..=80)], &[]).unwrap_err();
        assert!(error.message.contains("nothing"), "{error:?}");
    }

    #[test]
    fn additions_join_what_is_left() {
        let before = [mapping(None, 8080, 80, 1)];
        // A port of the host that is to lead elsewhere.
        assert_eq!(
            after(
                &before,
                &[pattern(None, None, 80..=80)],
                &[mapping(None, 8080, 81, 1)]
            )
            .unwrap(),
            ["0.0.0.0:8080->81/tcp"]
        );
        assert!(after(&before, &[], &[mapping(None, 8080, 81, 1)]).is_err());
        assert_eq!(
            after(&before, &[], &[mapping(None, 8080, 80, 1)]).unwrap(),
            ["0.0.0.0:8080->80/tcp"]
        );
        let chosen = after(&before, &[], &[mapping(None, 0, 80, 1)]).unwrap();
        assert!(chosen.len() == 2 && !chosen.iter().any(|text| text.contains(":0->")));
    }

    proptest! {
        /// Taking back exactly what was added leaves what was there.
        #[test]
        fn there_and_back(host in 1u16..60000, container in 1u16..60000, count in 1u16..50) {
            let before = [mapping(Some("127.0.0.1"), 61000, 80, 2)];
            let added = mapping(None, host, container, count);
            let last = count - 1;
            let exact = pattern(None, Some(host..=host + last), container..=container + last);
            let there = changed("c", &before, &PortChanges { remove: vec![], add: vec![added] }).unwrap();
            let back = changed("c", &there, &PortChanges { remove: vec![exact], add: vec![] }).unwrap();
            prop_assert_eq!(back, before);
        }
    }
}
