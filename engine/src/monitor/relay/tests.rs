//! The loop with a real process, without a container around it.

use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::*;
use crate::attach::{AttachConnection, listen};
use crate::container::ContainerId;
use crate::monitor::Epilogue;
use crate::testing::paths;

struct Setup {
    temp: tempfile::TempDir,
    epilogue: Epilogue,
    relay: Relay,
    first: AttachConnection,
    _child: Child,
}

impl Setup {
    /// `script` runs with a pipe at each stream and one client that was there from the start.
    fn new(script: &str) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (first, server) = AttachConnection::pair().unwrap();
        let dir = || OwnedFd::from(std::fs::File::open(temp.path()).unwrap());
        let relay = Relay {
            tie: None,
            pidfd: pidfd_open(
                Pid::from_raw(child.id() as i32).unwrap(),
                PidfdFlags::empty(),
            )
            .unwrap(),
            streams: Streams::pipes(
                child.stdin.take().map(OwnedFd::from),
                child.stdout.take().unwrap().into(),
                child.stderr.take().unwrap().into(),
            )
            .unwrap(),
            signals: SignalQueue::new(&[SignalName::SIGHUP], &[SignalName::SIGPIPE]).unwrap(),
            listener: listen(dir().as_fd(), "socket").unwrap(),
            clients: vec![Client::first(ServerEnd::new(server))],
            log: LogWriter::new(dir()),
            stop_signal: 15,
        };
        let epilogue = Epilogue {
            own_network: None,
            database: None,
            paths: paths(temp.path()),
            id: ContainerId::from_bytes([1; 32]),
            dir: dir(),
            started: String::new(),
            stop_signal: 15,
            disposable: false,
            outliving: None,
        };
        Self {
            temp,
            epilogue,
            relay,
            first,
            _child: child,
        }
    }

    /// Runs the loop to its end beside `client`; its exit code.
    fn run(mut self, client: impl FnOnce(&AttachConnection) + Send) -> (i32, tempfile::TempDir) {
        let first = &self.first;
        let (relay, epilogue) = (&mut self.relay, &self.epilogue);
        let code = std::thread::scope(|scope| {
            scope.spawn(move || client(first));
            let code = relay.run(epilogue);
            relay.say_exited(code);
            code
        });
        (code, self.temp)
    }
}

/// Everything until the exit: (stdout, stderr, code).
fn collect(client: &AttachConnection, pause: Duration) -> (Vec<u8>, Vec<u8>, Option<i32>) {
    let mut buffer = vec![0; MAX_PAYLOAD + 1];
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match client.receive(&mut buffer).unwrap() {
            Some(FromContainer::Stdout(bytes)) => stdout.extend_from_slice(bytes),
            Some(FromContainer::Stderr(bytes)) => stderr.extend_from_slice(bytes),
            Some(FromContainer::Exited(code)) => return (stdout, stderr, Some(code)),
            None => return (stdout, stderr, None),
        }
        std::thread::sleep(pause);
    }
}

#[test]
fn output_reaches_client_and_log_and_the_exit_code_follows() {
    let setup = Setup::new("echo one; echo two >&2; exit 7");
    let (code, temp) = setup.run(|client| {
        let (stdout, stderr, exit) = collect(client, Duration::ZERO);
        assert_eq!(
            (stdout.as_slice(), stderr.as_slice()),
            (&b"one\n"[..], &b"two\n"[..])
        );
        assert_eq!(exit, Some(7));
    });
    assert_eq!(code, 7);
    let log = std::fs::read_to_string(temp.path().join("log")).unwrap();
    assert!(
        log.contains(" stdout F one\n") && log.contains(" stderr F two\n"),
        "{log}"
    );
}

#[test]
fn input_is_passed_on_and_its_end_too() {
    let big = vec![b'x'; MAX_PAYLOAD];
    let setup = Setup::new("wc -c");
    let (code, _temp) = setup.run(|client| {
        // More than a pipe holds, so that some must wait.
        for _ in 0..10 {
            client.send(ToContainer::Stdin(&big)).unwrap();
        }
        client.send(ToContainer::StdinEof).unwrap();
        let (stdout, _, _) = collect(client, Duration::ZERO);
        let counted = String::from_utf8(stdout).unwrap();
        assert_eq!(counted.trim(), (10 * MAX_PAYLOAD).to_string());
    });
    assert_eq!(code, 0);
}

#[test]
fn a_slow_first_client_gets_every_byte() {
    let setup = Setup::new("head -c 3000000 /dev/zero; exit 3");
    let (code, _temp) = setup.run(|client| {
        let (stdout, _, exit) = collect(client, Duration::from_millis(1));
        assert_eq!((stdout.len(), exit), (3_000_000, Some(3)));
    });
    assert_eq!(code, 3);
}

#[test]
fn a_late_client_that_does_not_read_holds_nobody_up() {
    let setup = Setup::new("read line; head -c 3000000 /dev/zero");
    let late = AttachConnection::connect(setup.temp.path(), "socket")
        .unwrap()
        .unwrap();
    let (code, temp) = setup.run(|client| {
        client.send(ToContainer::Stdin(b"go\n")).unwrap();
        let (stdout, _, exit) = collect(client, Duration::ZERO);
        assert_eq!((stdout.len(), exit), (3_000_000, Some(0)));
    });
    assert_eq!(code, 0);
    let (stdout, _, _) = collect(&late, Duration::ZERO);
    assert!(stdout.len() < 3_000_000);
    let logged = std::fs::metadata(temp.path().join("log")).unwrap().len();
    assert!(logged > 3_000_000);
}

#[test]
fn the_first_clients_going_ends_a_piped_input() {
    let mut setup = Setup::new("cat; echo done");
    let (other, _server) = AttachConnection::pair().unwrap();
    drop(std::mem::replace(&mut setup.first, other));
    let (code, temp) = setup.run(|_| {});
    assert_eq!(code, 0);
    let log = std::fs::read_to_string(temp.path().join("log")).unwrap();
    assert!(log.ends_with("stdout F done\n"), "{log}");
}

#[test]
fn a_killed_process_counts_as_128_and_its_signal() {
    let (code, _temp) = Setup::new("kill -9 $$").run(|client| {
        assert_eq!(collect(client, Duration::ZERO).2, Some(137));
    });
    assert_eq!(code, 137);
}
