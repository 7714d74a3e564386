//! Terminals: `-t`, sizes, job control, detaching.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr};

use crate::ground::Ground;
use crate::login::{Login, Running, eventually, expect_contains, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("terminals::the_container_has_one", the_container_has_one),
        ground.trial(
            "terminals::the_caller_s_is_raw_and_restored",
            the_callers_is_raw_and_restored,
        ),
        ground.trial(
            "terminals::typing_reaches_the_container",
            typing_reaches_the_container,
        ),
        ground.trial(
            "terminals::interrupt_key_reaches_the_container",
            interrupt_key_reaches_the_container,
        ),
        ground.trial("terminals::size_follows", size_follows),
        ground.trial("terminals::exec_has_one_too", exec_has_one_too),
        ground.trial("terminals::detach_keys", detach_keys),
        ground.trial(
            "terminals::job_control_works_inside",
            job_control_works_inside,
        ),
        ground.trial("terminals::detached_with_terminal", detached_with_terminal),
        ground.trial("terminals::hangup_of_the_caller", hangup_of_the_caller),
    ]
}

/// A person at a terminal, running one command in it.
struct Session {
    master: std::fs::File,
    /// Kept to ask for the terminal's settings.
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    running: Running,
}

impl Session {
    fn start(login: &Login, arguments: &[&str]) -> Result<Self> {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let open = || {
            rustix::fs::open(
                &*name,
                rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
        };
        let slave = open()?;
        if rustix::process::getuid().is_root() {
            // As login(1) does: the terminal belongs to the one who sits at it.
            rustix::fs::fchown(
                &slave,
                Some(rustix::fs::Uid::from_raw(login.user.uid)),
                None,
            )?;
        }
        rustix::termios::tcsetwinsize(&slave, size(24, 80))?;
        let binary = login.binary().to_string_lossy().into_owned();
        let mut words = vec!["--ctty", "--wait", &*binary];
        words.extend_from_slice(arguments);
        let running = login
            .program("setsid", &words)
            .env("TERM", "xterm")
            .streams(
                Stdio::from(open()?),
                Stdio::from(open()?),
                Stdio::from(open()?),
            )
            .spawn_with_streams()?;
        let master = std::fs::File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (master.try_clone()?, Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if let Ok(mut sink) = sink.lock() {
                    sink.extend_from_slice(&buffer[..length]);
                }
            }
        });
        Ok(Self {
            master,
            slave,
            shown,
            running,
        })
    }

    fn type_in(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes())?;
        Ok(())
    }

    /// Until the command has taken the terminal over, keys would be the terminal driver's.
    fn wait_until_raw(&self) -> Result<()> {
        let cooked = LocalModes::ICANON | LocalModes::ECHO;
        eventually("the caller's terminal is raw", || {
            ensure!(
                crate::processes::is_alive(self.running.pid()),
                "the command has ended: {:?}",
                self.text()
            );
            Ok(!tcgetattr(&self.slave)?.local_modes.intersects(cooked))
        })
    }

    fn text(&self) -> String {
        let shown = self
            .shown
            .lock()
            .map(|shown| shown.clone())
            .unwrap_or_default();
        String::from_utf8_lossy(&shown).into_owned()
    }

    fn wait_for(&self, text: &str) -> Result<()> {
        eventually(&format!("the terminal shows {text:?}"), || {
            let has_ended = !crate::processes::is_alive(self.running.pid());
            let is_shown = self.text().contains(text);
            ensure!(is_shown || !has_ended, "the command has ended");
            Ok(is_shown)
        })
        .with_context(|| format!("it shows {:?}", self.text()))
    }

    fn end(self) -> Result<(i32, String)> {
        let Self {
            running,
            shown,
            master,
            slave,
        } = self;
        let finished = running.wait()?;
        drop((master, slave));
        let shown = shown.lock().map(|shown| shown.clone()).unwrap_or_default();
        Ok((finished.code, String::from_utf8_lossy(&shown).into_owned()))
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn the_container_has_one(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let script =
        "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo terminal; tty; stat -c %u:%a $(tty); exit 4";
    let session = Session::start(
        login,
        &["run", "--rm", "-it", "busybox", "sh", "-c", script],
    )?;
    session.wait_for("/dev/pts/0")?;
    let (code, text) = session.end()?;
    ensure!(code == 4, "{code}: {text}");
    expect_contains(text.as_str(), "terminal\r\n")?;
    expect_contains(text, "0:620\r\n")?;
    // Without -t none, although the caller sits at one.
    let session = Session::start(
        login,
        &[
            "run",
            "--rm",
            "-i",
            "busybox",
            "sh",
            "-c",
            "[ -t 1 ] || echo none",
        ],
    )?;
    session.wait_for("none")?;
    session.end()?;
    // /dev/console is that terminal.
    let session = Session::start(
        login,
        &[
            "run",
            "--rm",
            "-it",
            "busybox",
            "sh",
            "-c",
            "echo con >/dev/console; echo tty >/dev/tty",
        ],
    )?;
    session.wait_for("con\r\ntty\r\n")?;
    session.end()?;
    Ok(())
}

fn the_callers_is_raw_and_restored(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let mut session = Session::start(login, &["run", "--rm", "-it", "busybox", "cat"])?;
    let before = LocalModes::ICANON | LocalModes::ECHO;
    session.wait_until_raw()?;
    session.type_in("x\n")?;
    session.wait_for("x\r\nx\r\n")?;
    session.type_in("\x04")?;
    eventually("the caller's terminal is as it was", || {
        Ok(tcgetattr(&session.slave)?.local_modes.contains(before))
    })?;
    let (code, _) = session.end()?;
    expect_eq(code, 0)?;
    Ok(())
}

fn typing_reaches_the_container(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let mut session = Session::start(login, &["run", "--rm", "-it", "busybox", "sh"])?;
    session.wait_for("/ # ")?;
    session.type_in("echo $((20 + 3))\r")?;
    session.wait_for("23\r\n")?;
    session.type_in("exit 5\r")?;
    let (code, text) = session.end()?;
    ensure!(code == 5, "{code}: {text}");
    Ok(())
}

fn interrupt_key_reaches_the_container(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let mut session = Session::start(
        login,
        &[
            "run",
            "--rm",
            "-it",
            "busybox",
            "sh",
            "-c",
            "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done",
        ],
    )?;
    session.wait_for("ready")?;
    session.type_in("\x03")?;
    session.wait_for("caught")?;
    let (code, _) = session.end()?;
    ensure!(code == 3, "{code}");
    Ok(())
}

fn size_follows(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let session = Session::start(
        login,
        &[
            "run",
            "--rm",
            "-it",
            "busybox",
            "sh",
            "-c",
            "stty size; trap 'stty size' WINCH; echo ready; while [ \"$(stty size)\" != '50 132' ]; do sleep 0.05; done; echo changed",
        ],
    )?;
    session.wait_for("24 80")?;
    session.wait_for("ready")?;
    rustix::termios::tcsetwinsize(&session.slave, size(50, 132))?;
    session.wait_for("changed")?;
    session.end()?;
    Ok(())
}

fn exec_has_one_too(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.sleeper(&[])?;
    let mut session = Session::start(login, &["exec", "-it", &container.id, "sh"])?;
    session.wait_for("/ # ")?;
    session.type_in("stty size; tty; ps -o pid,comm | head -3\r")?;
    session.wait_for("24 80")?;
    session.wait_for("/dev/pts/")?;
    rustix::termios::tcsetwinsize(&session.slave, size(30, 100))?;
    session.type_in(
        "while [ \"$(stty size)\" != '30 100' ]; do sleep 0.05; done; echo chan''ged; exit 6\r",
    )?;
    session.wait_for("changed")?;
    let (code, text) = session.end()?;
    ensure!(code == 6, "{code}: {text}");
    Ok(())
}

fn detach_keys(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("detached");
    let script = "echo ready; while read line; do echo \"<$line>\"; done";
    let mut session = Session::start(
        login,
        &["run", "-it", "--name", &name, "busybox", "sh", "-c", script],
    )?;
    session.wait_for("ready")?;
    session.wait_until_raw()?;
    session.type_in("\x10")?;
    session.type_in("\x11")?;
    let (code, text) = session.end()?;
    ensure!(code == 0, "{code}: {text}");
    expect_eq(
        login.ok(&[
            "container",
            "inspect",
            "--format",
            "{{.State.Running}}",
            &name,
        ])?,
        "true",
    )?;
    let mut session = Session::start(login, &["attach", "--detach-keys", "ctrl-x,y", &name])?;
    session.wait_until_raw()?;
    session.type_in("again\r")?;
    session.wait_for("<again>")?;
    session.type_in("\x18y")?;
    let (code, text) = session.end()?;
    ensure!(code == 0, "{code}: {text}");
    expect_eq(
        login.ok(&[
            "container",
            "inspect",
            "--format",
            "{{.State.Running}}",
            &name,
        ])?,
        "true",
    )?;
    login.ok(&["rm", "--force", "--time", "0", &name])?;
    login.refused(125, &["attach", "--detach-keys", "nonsense-key", "x"])?;
    Ok(())
}

fn job_control_works_inside(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let mut session = Session::start(login, &["run", "--rm", "-it", "busybox", "sh"])?;
    session.wait_for("/ # ")?;
    session.type_in("sh -c 'echo st''arted; sleep 1000'\r")?;
    session.wait_for("started")?;
    session.type_in("\x1a")?;
    session.wait_for("Stopped")?;
    session.type_in("jobs; kill %1; fg; echo do''ne; exit\r")?;
    session.wait_for("done")?;
    session.end()?;
    Ok(())
}

fn detached_with_terminal(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let container = login.detached(&[
        "-t",
        "busybox",
        "sh",
        "-c",
        "[ -t 1 ] && echo terminal; sleep 1000",
    ])?;
    eventually("it has written", || {
        Ok(container.logs()?.contains("terminal"))
    })?;
    Ok(())
}

fn hangup_of_the_caller(ground: &'static Ground) -> Result<()> {
    let login = ground.login()?;
    let name = ground.unique("hangup");
    let session = Session::start(
        login,
        &[
            "run",
            "-it",
            "--name",
            &name,
            "busybox",
            "sh",
            "-c",
            "trap '' HUP; echo ready; while :; do sleep 0.1; done",
        ],
    )?;
    session.wait_for("ready")?;
    // The command dies without a word; the container goes on under its monitor.
    session.running.signal(Signal::KILL);
    session.end()?;
    expect_eq(
        login.ok(&[
            "container",
            "inspect",
            "--format",
            "{{.State.Running}}",
            &name,
        ])?,
        "true",
    )?;
    login.ok(&["rm", "--force", "--time", "0", &name])?;
    Ok(())
}
