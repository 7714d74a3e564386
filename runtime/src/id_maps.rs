//! ID maps of a container's user namespace, as far as launching needs them.

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::Pid;
use selkie_sys::SysResult;
use selkie_sys::errno::Attempt;

use crate::launch::LaunchError;
use crate::prepare::invalid;
use crate::user_database::UserError;

/// Both maps, container ↔ caller.
pub(crate) struct Maps {
    pub(crate) uid: Map,
    pub(crate) gid: Map,
}

impl Maps {
    /// Writes them for the process `pid`, which is alone in a new user namespace.
    pub(crate) fn write(&self, pid: Pid) -> SysResult<()> {
        self.uid.write(pid, "uid_map")?;
        self.gid.write(pid, "gid_map")
    }
}

/// One of the two ID maps.
#[derive(Debug, Clone)]
pub(crate) struct Map(Vec<LinuxIdMapping>);

impl Map {
    /// What `/proc/PID/uid_map` says.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(|line| {
            let mut words = line.split_ascii_whitespace();
            let mut word = || words.next()?.parse::<u32>().ok();
            mapping(word()?, word()?, word()?)
        });
        lines.collect::<Option<Vec<_>>>().map(Self)
    }

    pub(crate) fn of(
        kind: &str,
        mappings: &Option<Vec<LinuxIdMapping>>,
    ) -> Result<Self, LaunchError> {
        match mappings {
            Some(mappings) if !mappings.is_empty() => Ok(Self(mappings.clone())),
            _ => Err(invalid(format!("the spec has no {kind} mappings"))),
        }
    }

    fn write(&self, pid: Pid, name: &str) -> SysResult<()> {
        let written = write_proc(pid, name, &self.to_proc_text());
        match written {
            // One reason is an extent that crosses a border of our own map: the kernel wants it cut
            // there. Slices never do, so that looking at our own map is not for every launch.
            Err(error) if error.errno == Errno::PERM => {
                let path = format!("/proc/self/{name}");
                let own = std::fs::read_to_string(&path).attempt(|| format!("read {path}"))?;
                match Map::parse(&own).map(|own| self.cut_at(&own)) {
                    Some(cut) if cut.0.len() != self.0.len() => {
                        write_proc(pid, name, &cut.to_proc_text())
                    }
                    _ => Err(error),
                }
            }
            result => result,
        }
    }

    /// The same map with no extent crossing a border of `own`, the map of the parent namespace
    /// (whose inside is our outside).
    fn cut_at(&self, own: &Map) -> Map {
        let mut cut = Vec::new();
        for extent in &self.0 {
            let (mut inside, mut outside) = (extent.container_id(), extent.host_id());
            let mut left = extent.size();
            while left > 0 {
                // Up to the end of the own extent it starts in; elsewhere the kernel will refuse.
                let room = own.0.iter().find_map(|o| {
                    let offset = outside.checked_sub(o.container_id())?;
                    o.size().checked_sub(offset).filter(|room| *room > 0)
                });
                let size = left.min(room.unwrap_or(left));
                cut.extend(mapping(inside, outside, size));
                inside = inside.saturating_add(size);
                outside = outside.saturating_add(size);
                left -= size;
            }
        }
        Map(cut)
    }

    /// The text for `/proc/PID/uid_map`.
    fn to_proc_text(&self) -> String {
        use std::fmt::Write;
        let mut text = String::with_capacity(self.0.len() * 24);
        for m in &self.0 {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{} {} {}", m.container_id(), m.host_id(), m.size());
        }
        text
    }

    /// The ID on the launching side.
    pub(crate) fn to_outside(&self, inside: u32) -> Option<u32> {
        self.0.iter().find_map(|m| {
            let offset = inside.checked_sub(m.container_id())?;
            (offset < m.size()).then(|| m.host_id().checked_add(offset))?
        })
    }

    /// 0 when mapped, else the lowest mapped ID.
    pub(crate) fn acting_root(&self) -> u32 {
        let ids = self.0.iter().map(LinuxIdMapping::container_id);
        ids.min().unwrap_or(0)
    }

    pub(crate) fn is_single(&self) -> bool {
        self.0.len() == 1 && self.0[0].size() == 1
    }

    /// Refuses an ID that the map lacks.
    pub(crate) fn check(&self, kind: &'static str, id: u32) -> Result<(), UserError> {
        if self.to_outside(id).is_some() {
            return Ok(());
        }
        let ranges = self.0.iter().map(|m| match m.size() {
            1 => m.container_id().to_string(),
            size => {
                let last = m.container_id().saturating_add(size.saturating_sub(1));
                format!("{}-{last}", m.container_id())
            }
        });
        Err(UserError::NotMapped {
            kind,
            id,
            mapped: ranges.collect::<Vec<_>>().join(", "),
        })
    }
}

fn mapping(inside: u32, outside: u32, size: u32) -> Option<LinuxIdMapping> {
    let mapping = LinuxIdMappingBuilder::default()
        .container_id(inside)
        .host_id(outside)
        .size(size);
    mapping.build().ok()
}

fn write_proc(pid: Pid, name: &str, text: &str) -> SysResult<()> {
    let path = format!("/proc/{}/{name}", pid.as_raw_nonzero());
    let attempt = || format!("write {:?} to {path}", text.trim_end());
    let file = open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).attempt(attempt)?;
    // The kernel takes a map in one write.
    rustix::io::write(&file, text.as_bytes()).attempt(attempt)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_at_the_borders_of_our_own_map() {
        let own = Map::parse("0 1000 1\n1 100000 65536\n").unwrap();
        let whole = Map::parse("0 0 65537\n").unwrap();
        assert_eq!(whole.cut_at(&own).to_proc_text(), "0 0 1\n1 1 65536\n");
        let slice = Map::parse("0 500 10\n65534 600 1\n").unwrap();
        assert_eq!(slice.cut_at(&own).to_proc_text(), slice.to_proc_text());
        let beyond = Map::parse("0 65530 100\n").unwrap();
        assert_eq!(
            beyond.cut_at(&own).to_proc_text(),
            "0 65530 7\n7 65537 93\n"
        );
    }

    #[test]
    fn hostile_maps_do_not_overflow() {
        let map = Map::parse("0 4294967295 4294967295\n").unwrap();
        assert_eq!(map.to_outside(1), None);
        assert_eq!(map.to_outside(0), Some(u32::MAX));
        assert!(map.cut_at(&map).0.len() < 4);
        assert!(Map::parse("0 1\n").is_none());
        assert!(Map::parse("0 1 -1\n").is_none());
    }
}
