//! `kill -9` at random moments.
//!
//! One container runs through it all. Meanwhile commands of every kind are started and, after a
//! random delay, a random process of the login is killed: the command itself, a monitor, or the
//! pause process. After each kill the next command must work. At the end `system check` and
//! `system prune` must leave nothing behind that can be seen from outside.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::ground::Ground;
use crate::login::{Login, eventually};
use crate::processes;

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![ground.trial("chaos::kill_9_anywhere", kill_9_anywhere)]
}

/// Pseudo-random numbers that a seed repeats (splitmix64, public domain algorithm of S. Vigna).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % sides
    }
    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        (!of.is_empty()).then(|| &of[self.roll(of.len() as u64) as usize])
    }
}

/// Who dies.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Command,
    Monitor,
    Pause,
}

/// Commands under fire; `NAME` becomes the container of the round.
const COMMANDS: [&str; 12] = [
    "load --input ARCHIVE",
    "create --name NAME busybox sh -c sleep\u{a0}0.1",
    "run --rm busybox sh -c echo\u{a0}x>/file",
    "run --detach --name NAME --volume VOLUME:/data busybox sleep 1000",
    "run --name NAME busybox true",
    "run --rm --volume VOLUME:/data --userns auto:size=9000 busybox touch /data/x",
    "exec victim sh -c true",
    "start NAME",
    "stop --time 0 NAME",
    "rm --force --time 0 NAME",
    "run --rm --init busybox sh -c sleep\u{a0}0.05",
    "rmi --force rich",
];

fn kill_9_anywhere(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let survivor = login.sleeper(&["--name", "survivor"])?;
    let survivor_pid = survivor.pid()?;
    let survivor_monitors = monitors_above(&login, survivor_pid);
    survivor.exec(&["sh", "-c", "echo kept >/file; chown 33 /file"])?;
    let archive = ground.image("rich.oci.tar")?.display().to_string();
    let mut dice = Dice(ground.seed);
    let mut killed = [0_u32; 3];
    let mut round = 0;
    while killed.iter().sum::<u32>() < ground.kills {
        round += 1;
        ensure!(
            round < ground.kills * 20,
            "found nothing to kill: {killed:?} in {round} rounds"
        );
        let command = dice.pick(&COMMANDS).context("no commands")?;
        let (name, volume) = (
            format!("chaos-{}", dice.roll(5)),
            format!("volume-{}", dice.roll(3)),
        );
        let words: Vec<String> = command
            .split(' ')
            .map(|word| {
                word.replace("ARCHIVE", &archive)
                    .replace("NAME", &name)
                    .replace("VOLUME", &volume)
                    .replace("victim", "survivor")
                    .replace('\u{a0}', " ")
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let context = || format!("round {round} (seed {}): {words:?}", ground.seed);
        let running = login.selkie(&words).spawn()?;
        // Most commands take 5 to 30 ms: hit their beginnings, middles and ends.
        std::thread::sleep(Duration::from_micros(dice.roll(25_000)));
        let victim = match dice.roll(10) {
            0..=5 => Victim::Command,
            6..=7 => Victim::Monitor,
            _ => Victim::Pause,
        };
        let target = match victim {
            Victim::Command => Some(running.pid()),
            Victim::Monitor => {
                let monitors: Vec<i32> = login
                    .monitors()
                    .into_iter()
                    .filter(|pid| *pid != running.pid() && !survivor_monitors.contains(pid))
                    .collect();
                dice.pick(&monitors).copied()
            }
            Victim::Pause => login.pause_processes().first().copied(),
        };
        if let Some(target) = target.filter(|pid| processes::is_alive(*pid)) {
            processes::signal(target, Signal::KILL);
            killed[victim as usize] += 1;
        }
        // However it ended, it ended: a hang fails here.
        let ended = running.wait().with_context(context)?;
        ensure!(
            !ended.error().contains("panicked"),
            "{}: {ended:?}",
            context()
        );
        login.ok(&["ps", "--all"]).with_context(context)?;
        if round % 5 == 0 {
            let text = login
                .ok(&["run", "--rm", "busybox", "echo", "works"])
                .with_context(context)?;
            ensure!(text == "works", "{}: {text:?}", context());
        }
        ensure!(
            processes::is_alive(survivor_pid),
            "{}: the survivor died",
            context()
        );
    }
    println!(
        "chaos: {round} rounds, killed {} commands, {} monitors, {} pause processes",
        killed[0], killed[1], killed[2]
    );
    ensure!(
        killed.iter().all(|count| *count > 0),
        "not every kind was hit: {killed:?}"
    );
    ensure!(
        survivor.pid()? == survivor_pid && survivor.exec(&["stat", "-c", "%u", "/file"])? == "33"
    );
    nothing_is_left(&login, survivor_pid)
        .with_context(|| format!("after {round} rounds with seed {}", ground.seed))
}

/// Login's background processes that are ancestors of `pid`.
fn monitors_above(login: &Login, pid: i32) -> Vec<i32> {
    login
        .background_processes()
        .into_iter()
        .filter(|monitor| processes::descendants(*monitor).contains(&pid))
        .collect()
}

/// Removes everything by commands, then looks from outside for what commands do not show.
fn nothing_is_left(login: &Login, survivor_pid: i32) -> Result<()> {
    // What the kills left: listed, removed, and a second look finds nothing.
    let listed = login.selkie(&["system", "check"]).run()?;
    login
        .ok(&["system", "prune", "--force"])
        .context("after the kills")?;
    login
        .is_clean()
        .with_context(|| format!("after prune; listed before: {}", listed.text()))?;
    ensure!(
        processes::is_alive(survivor_pid),
        "prune killed a running container"
    );
    login.ok(&["rm", "--force", "--time", "0", "--all", "--volumes"])?;
    login.ok(&["rmi", "--force", "--all"])?;
    let volumes = login.ok(&["volume", "ls", "--quiet"])?;
    for volume in volumes.lines() {
        login.ok(&["volume", "rm", volume])?;
    }
    login.ok(&["system", "prune", "--force"])?;
    login.is_clean()?;
    // Processes: one pause process.
    eventually("only the pause process is left", || {
        Ok(login.background_processes().len() <= 1)
    })
    .with_context(|| format!("left: {:?}", describe(&login.background_processes())))?;
    // Mounts: none of a container in the pause process's namespace, none on the host.
    let pause = login.pause_processes();
    ensure!(pause.len() == 1, "pause processes: {pause:?}");
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", pause[0]))?;
    let overlays: Vec<&str> = mounts
        .lines()
        .filter(|line| line.contains(" - overlay "))
        .collect();
    ensure!(
        overlays.is_empty(),
        "overlay mounts in the pause namespace: {overlays:?}"
    );
    let host = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(
        !host.contains(&*login.home.to_string_lossy()),
        "mounts on the host: {host}"
    );
    // Disk: nothing larger than an empty database and the like.
    let script = format!(
        "du -s -B1 {} | cut -f1; find {} -mindepth 1 | wc -l",
        login.data_dir().display(),
        login.data_dir().display()
    );
    let left = login.ok(&["unshare", "sh", "-c", &script])?;
    let (bytes, files) = left.split_once('\n').context("du and find")?;
    let listing = || login.ok(&["unshare", "find", &login.data_dir().to_string_lossy()]);
    ensure!(
        bytes.parse::<u64>()? < 6_000_000,
        "{bytes} bytes are left: {:?}",
        listing()
    );
    ensure!(
        files.parse::<u64>()? < 350,
        "{files} files are left: {:?}",
        listing()
    );
    Ok(())
}

fn describe(pids: &[i32]) -> Vec<String> {
    pids.iter()
        .map(|pid| format!("{pid}: {}", processes::command_line(*pid)))
        .collect()
}
