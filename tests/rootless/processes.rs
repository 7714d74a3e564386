//! What the host's `/proc` says about processes.

use rustix::process::{Pid, Signal, kill_process};

/// One process.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Real UID on the host.
    pub uid: u32,
}

/// Every process that is not a zombie.
pub fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(read)
        .collect()
}

fn read(pid: i32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|value| value.split_ascii_whitespace().next())
    };
    if field("State:")? == "Z" {
        return None;
    }
    Some(Process {
        pid,
        parent: field("PPid:")?.parse().ok()?,
        uid: field("Uid:")?.parse().ok()?,
    })
}

/// True when the process was given `NAME=value` at its start.
pub fn environment_has(pid: i32, assignment: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
        environ
            .split(|byte| *byte == 0)
            .any(|entry| entry == assignment.as_bytes())
    })
}

/// Its arguments, separated by spaces; empty when it has none or is gone.
pub fn command_line(pid: i32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line)
        .trim_end_matches('\0')
        .replace('\0', " ")
}

/// What it calls itself; empty when it is gone.
pub fn name(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// The process and everything below it.
pub fn descendants(pid: i32) -> Vec<i32> {
    let all = all();
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(
            all.iter()
                .filter(|process| process.parent == parent)
                .map(|process| process.pid),
        );
        next += 1;
    }
    found
}

/// True while it is there and not a zombie.
pub fn is_alive(pid: i32) -> bool {
    read(pid).is_some()
}

/// True when none of its threads is left, and with them its files, locks and sockets: at most a zombie.
pub fn has_ended(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads <= 1 && !is_alive(pid)
}

/// One line of `/proc/PID/uid_map` or `gid_map`: inside, outside, count.
pub type Extent = (u32, u32, u32);

/// Reads `uid_map` or `gid_map`. The outside IDs are those of the reader's user namespace.
pub fn id_map(pid: i32, file: &str) -> anyhow::Result<Vec<Extent>> {
    let path = format!("/proc/{pid}/{file}");
    let text = std::fs::read_to_string(&path)?;
    text.lines()
        .map(|line| {
            let numbers: Vec<u32> = line
                .split_ascii_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            anyhow::ensure!(numbers.len() == 3, "odd line in {path}: {line}");
            Ok((numbers[0], numbers[1], numbers[2]))
        })
        .collect()
}

/// The outside ID of an inside one.
pub fn to_host(map: &[Extent], inside: u32) -> Option<u32> {
    map.iter()
        .find(|(first, _, count)| (*first..first + count).contains(&inside))
        .map(|(first, outside, _)| outside + (inside - first))
}

/// Sends a signal; a process that is gone is no error.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}
