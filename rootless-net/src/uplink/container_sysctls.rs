//! Settings of a container's network namespace that no user has to ask for.

use std::path::Path;

use selkie_sys::errno::{Attempt, SysResult};

/// Bytes of the largest receive buffer TCP is to get by itself.
///
/// pasta compares sequence numbers within 16 MB. When a kernel acknowledges as much at once, which one
/// with a receive buffer of 32 MB does now and then, pasta takes that for an old acknowledgement and sends
/// what is there already over and over: the connection stands still for good. Well-tuned hosts allow such
/// buffers. The other end of every connection is on this machine, so this much costs no throughput.
const RECEIVE_BUFFER: u64 = 8 << 20;

const RECEIVE_BUFFERS: &str = "/proc/sys/net/ipv4/tcp_rmem";

const PING: &str = "/proc/sys/net/ipv4/ping_group_range";

/// What is to be set, decided in the namespace of the uplink's process.
pub(super) struct ContainerSysctls {
    /// In which every group of the login's may ping from now on: raw sockets need a capability that
    /// containers do not have, and another container may share the namespace whose root is another group.
    groups: Option<(u32, u32)>,
    /// Largest buffer of this namespace, and so of a new one (tcp(7), `tcp_rmem`), when that is too much.
    too_large: Option<u64>,
}

impl ContainerSysctls {
    pub(super) fn decide() -> SysResult<Self> {
        let groups =
            std::fs::read_to_string("/proc/self/gid_map").attempt(|| "read /proc/self/gid_map")?;
        let buffers = std::fs::read_to_string(RECEIVE_BUFFERS).unwrap_or_default();
        let largest = three(&buffers).map(|[_, _, largest]| largest);
        Ok(Self {
            groups: all_groups(&groups),
            too_large: largest.filter(|&largest| largest > RECEIVE_BUFFER),
        })
    }

    /// Sets it in the namespace of the calling thread. What fails is no reason not to start.
    pub(super) fn set(&self) {
        if let Some((first, last)) = self.groups {
            let _ = std::fs::write(PING, format!("{first} {last}"));
        }
        if let Some(too_large) = self.too_large {
            let path = Path::new(RECEIVE_BUFFERS);
            let buffers = std::fs::read_to_string(path).unwrap_or_default();
            if let Some(bounded) = bounded(&buffers, too_large) {
                let _ = std::fs::write(path, bounded);
            }
        }
    }
}

/// What to write where `tcp_rmem` says `buffers`; nothing where somebody has chosen another largest
/// size than the one that a new namespace has.
fn bounded(buffers: &str, inherited: u64) -> Option<String> {
    let [least, usual, largest] = three(buffers)?;
    let usual = usual.min(RECEIVE_BUFFER);
    (largest == inherited).then(|| format!("{least} {usual} {RECEIVE_BUFFER}"))
}

fn three(text: &str) -> Option<[u64; 3]> {
    let numbers: Result<Vec<u64>, _> = text.split_ascii_whitespace().map(str::parse).collect();
    numbers.ok()?.try_into().ok()
}

/// The groups in a `gid_map` that have the lowest and the highest number outside. The kernel compares
/// by that.
fn all_groups(map: &str) -> Option<(u32, u32)> {
    let extents: Vec<[u32; 3]> = map
        .lines()
        .filter_map(|line| {
            let numbers: Vec<u32> = line
                .split_ascii_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            <[u32; 3]>::try_from(numbers).ok()
        })
        .filter(|[_, _, count]| *count > 0)
        .collect();
    let first = extents.iter().min_by_key(|[_, outside, _]| *outside)?;
    let last = extents.iter().max_by_key(|[_, outside, _]| *outside)?;
    Some((first[0], last[0] + (last[2] - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_groups_goes_by_their_numbers_outside() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(all_groups(map), Some((0, 65536)));
        let split = "0 70000 1\n1 500000 10\n11 100 5\n";
        assert_eq!(all_groups(split), Some((11, 10)));
        assert_eq!(all_groups("0 1000 1\n"), Some((0, 0)));
        assert_eq!(all_groups(""), None);
    }

    #[test]
    fn only_inherited_buffers_are_bounded() {
        let inherited = "4096\t131072\t33554432\n";
        let wanted = Some("4096 131072 8388608".to_owned());
        assert_eq!(bounded(inherited, 33_554_432), wanted);
        assert_eq!(bounded("4096 131072 16777216", 33_554_432), None);
        let all = "4096 33554432 33554432";
        let wanted = Some("4096 8388608 8388608".to_owned());
        assert_eq!(bounded(all, 33_554_432), wanted);
        assert_eq!(bounded("", 33_554_432), None);
        assert_eq!(bounded("1 2", 33_554_432), None);
    }
}
