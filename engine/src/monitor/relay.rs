//! The monitor's loop: bytes between the container, its clients and its log.
//!
//! The client that was there from the start (`run`) gets every byte: while its socket is full,
//! nothing is read from the container, whose writes then block as they would on a slow terminal.
//! Clients that attached later lose what does not fit.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::termios::{Winsize, tcsetwinsize};
use selkie_sys::process_identity::send_signal;
use selkie_sys::signal_queue::{SignalName, SignalQueue};

use super::Epilogue;
use crate::attach::{FromContainer, MAX_PAYLOAD, Sent, ServerEnd, ToContainer};
use crate::error::{Error, Result};
use crate::log_writer::{LogWriter, Stream};
use crate::uplink::KeptTie;

/// Between two looks at a terminal that nobody had open.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);

/// How long a late client may take to read the last message.
const FAREWELL: Duration = Duration::from_secs(1);

/// Our ends of the container's streams, none of which blocks.
#[derive(Debug)]
pub(super) struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl Streams {
    pub(super) fn none() -> Self {
        Self {
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: None,
        }
    }

    pub(super) fn pipes(stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd) -> Result<Self> {
        for fd in stdin.iter().chain([&stdout, &stderr]) {
            set_nonblocking(fd.as_fd())?;
        }
        Ok(Self {
            stdin,
            stdout: Some(stdout),
            stderr: Some(stderr),
            terminal: None,
        })
    }

    pub(super) fn terminal(master: OwnedFd) -> Self {
        // A blocking master would only delay other clients; it is ours alone.
        let _ = set_nonblocking(master.as_fd());
        Self {
            terminal: Some(master),
            ..Self::none()
        }
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    let failed = |errno| Error::machine("make a stream non-blocking", errno);
    let flags = rustix::fs::fcntl_getfl(fd).map_err(failed)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK).map_err(failed)
}

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    end: ServerEnd,
    /// There from the start: gets every byte, and its going closes a piped stdin.
    first: bool,
    wants_output: bool,
}

impl Client {
    pub(super) fn first(end: ServerEnd) -> Self {
        Self {
            end,
            first: true,
            wants_output: true,
        }
    }
}

/// Output the first client could not take yet.
struct Held {
    stream: Stream,
    bytes: Vec<u8>,
}

/// Input the container could not take yet.
struct Pending {
    bytes: Vec<u8>,
    written: usize,
}

pub(super) struct Relay {
    pub(super) tie: Option<KeptTie>,
    pub(super) pidfd: OwnedFd,
    pub(super) streams: Streams,
    pub(super) signals: SignalQueue,
    pub(super) listener: OwnedFd,
    pub(super) clients: Vec<Client>,
    pub(super) log: LogWriter,
    pub(super) stop_signal: i32,
}

/// What a polled descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Init,
    Signals,
    Listener,
    Output(Stream),
    Terminal,
    Input,
    Client(usize),
    Uplink,
}

/// What the loop carries from round to round.
#[derive(Default)]
struct Progress {
    held: Option<Held>,
    pending: Option<Pending>,
    close_stdin: bool,
    exit: Option<i32>,
    /// The terminal has no other side at the moment.
    hung_up: bool,
    new_listener: Option<OwnedFd>,
}

impl Relay {
    /// Until init has ended and all its output is delivered. Its exit code.
    pub(super) fn run(&mut self, epilogue: &Epilogue) -> i32 {
        let mut buffer = vec![0u8; MAX_PAYLOAD + 1];
        let mut progress = Progress::default();
        loop {
            if let Some(code) = progress.exit
                && progress.held.is_none()
                && self.drained()
            {
                return code;
            }
            let ready = match self.wait(&progress) {
                Ok(ready) => ready,
                // Only memory pressure can do this; the container must not suffer.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            let mut gone = Vec::new();
            for (source, flags) in ready {
                match source {
                    Source::Init => self.reap(&mut progress),
                    Source::Signals => self.handle_signals(epilogue, &mut progress),
                    Source::Listener => self.accept(),
                    Source::Output(stream) => self.read_output(stream, &mut buffer, &mut progress),
                    Source::Terminal => self.read_terminal(&mut buffer, &mut progress),
                    Source::Input => self.write_input(&mut progress),
                    Source::Uplink => {
                        if let Some(tie) = &mut self.tie {
                            epilogue.renew_tie(tie, self.pidfd.as_fd());
                        }
                    }
                    Source::Client(index) => {
                        if !self.serve(index, flags, &mut buffer, &mut progress) {
                            gone.push(index);
                        }
                    }
                }
            }
            self.drop_clients(&gone, &mut progress);
            if let Some(listener) = progress.new_listener.take() {
                self.listener = listener;
            }
            if progress.exit.is_some() {
                self.drain(&mut buffer, &mut progress);
            }
        }
    }

    fn drained(&self) -> bool {
        self.streams.stdout.is_none()
            && self.streams.stderr.is_none()
            && self.streams.terminal.is_none()
    }

    /// Sleeps until something can be done; what.
    fn wait(&self, progress: &Progress) -> std::result::Result<Vec<(Source, PollFlags)>, Errno> {
        let room = 7 + self.clients.len();
        let mut sources = Vec::with_capacity(room);
        let mut fds = Vec::with_capacity(room);
        for (source, fd, flags) in self.interests(progress) {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        // The kernel does not tell when somebody opens the terminal again, so look now and then.
        let terminal = progress.hung_up.then_some(TERMINAL_INTERVAL);
        let uplink = self.tie.as_ref().and_then(KeptTie::retry_in);
        let timeout = [terminal, uplink].into_iter().flatten().min();
        let timespec = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match poll(&mut fds, timespec.as_ref()) {
            Ok(0) => {
                let source = match uplink {
                    Some(uplink) if Some(uplink) == timeout => Source::Uplink,
                    _ => Source::Terminal,
                };
                return Ok(vec![(source, PollFlags::empty())]);
            }
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
        Ok(sources
            .into_iter()
            .zip(fds.iter().map(PollFd::revents))
            .filter(|(_, flags)| !flags.is_empty())
            .collect())
    }

    fn interests(&self, progress: &Progress) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut interests = vec![
            (Source::Signals, self.signals.as_fd(), PollFlags::IN),
            (Source::Listener, self.listener.as_fd(), PollFlags::IN),
        ];
        if let Some(tie) = self.tie.as_ref().and_then(KeptTie::as_fd)
            && progress.exit.is_none()
        {
            interests.push((Source::Uplink, tie, PollFlags::IN));
        }
        if progress.exit.is_none() {
            interests.push((Source::Init, self.pidfd.as_fd(), PollFlags::IN));
        }
        let streams = &self.streams;
        if progress.held.is_none() {
            let stdout = (Source::Output(Stream::Stdout), &streams.stdout);
            let stderr = (Source::Output(Stream::Stderr), &streams.stderr);
            for (source, stream) in [stdout, stderr] {
                interests.extend(
                    stream
                        .as_ref()
                        .map(|fd| (source, fd.as_fd(), PollFlags::IN)),
                );
            }
        }
        if let Some(terminal) = streams.terminal.as_ref().filter(|_| !progress.hung_up) {
            let mut flags = PollFlags::empty();
            if progress.held.is_none() {
                flags |= PollFlags::IN;
            }
            if progress.pending.is_some() {
                flags |= PollFlags::OUT;
            }
            if !flags.is_empty() {
                interests.push((Source::Terminal, terminal.as_fd(), flags));
            }
        }
        if let (Some(stdin), Some(_)) = (&streams.stdin, &progress.pending) {
            interests.push((Source::Input, stdin.as_fd(), PollFlags::OUT));
        }
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            // Unread input stays in the client's socket and holds it back.
            if progress.pending.is_none() {
                flags |= PollFlags::IN;
            }
            if client.first && progress.held.is_some() {
                flags |= PollFlags::OUT;
            }
            if !flags.is_empty() {
                interests.push((Source::Client(index), client.end.as_fd(), flags));
            }
        }
        interests
    }

    fn reap(&mut self, progress: &mut Progress) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => {
                let code = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => code,
                    (None, Some(signal)) => 128 + signal,
                    (None, None) => return,
                };
                progress.exit = Some(code);
            }
            Ok(None) | Err(Errno::INTR) => {}
            // Not our child: cannot be, but must not spin either.
            Err(_) => progress.exit = Some(-1),
        }
    }

    fn handle_signals(&mut self, epilogue: &Epilogue, progress: &mut Progress) {
        while let Ok(Some(signal)) = self.signals.next() {
            match signal {
                SignalName::SIGTERM => {
                    let _ = send_signal(&self.pidfd, self.stop_signal);
                }
                SignalName::SIGHUP => progress.new_listener = epilogue.listen_again().ok(),
                _ => {}
            }
        }
    }

    fn accept(&mut self) {
        while let Ok(socket) =
            rustix::net::accept_with(&self.listener, rustix::net::SocketFlags::CLOEXEC)
        {
            self.clients.push(Client {
                end: ServerEnd::new(socket),
                first: false,
                wants_output: true,
            });
        }
    }

    fn read_output(&mut self, stream: Stream, buffer: &mut [u8], progress: &mut Progress) {
        if progress.held.is_some() {
            return;
        }
        let slot = match stream {
            Stream::Stdout => &mut self.streams.stdout,
            Stream::Stderr => &mut self.streams.stderr,
        };
        let Some(fd) = slot else {
            return;
        };
        match rustix::io::read(fd, &mut buffer[..MAX_PAYLOAD]) {
            Ok(0) => *slot = None,
            Ok(length) => self.deliver(stream, &buffer[..length], progress),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                if progress.exit.is_some() {
                    // With init all writers are gone, or are none of the container's.
                    *slot = None;
                }
            }
            Err(_) => *slot = None,
        }
    }

    fn read_terminal(&mut self, buffer: &mut [u8], progress: &mut Progress) {
        progress.hung_up = false;
        self.write_input(progress);
        if progress.held.is_some() {
            return;
        }
        let Some(fd) = &self.streams.terminal else {
            return;
        };
        match rustix::io::read(fd, &mut buffer[..MAX_PAYLOAD]) {
            Ok(length) if length > 0 => {
                self.deliver(Stream::Stdout, &buffer[..length], progress);
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) if progress.exit.is_none() => {}
            // EIO: nobody has the other side open; somebody may again while init lives.
            _ if progress.exit.is_none() => progress.hung_up = true,
            _ => self.streams.terminal = None,
        }
    }

    /// To the log and every client.
    fn deliver(&mut self, stream: Stream, bytes: &[u8], progress: &mut Progress) {
        // A full disk costs the log its lines and the container nothing.
        let _ = self.log.append(stream, bytes);
        let mut gone = Vec::new();
        for (index, client) in self.clients.iter().enumerate() {
            if !client.wants_output {
                continue;
            }
            match client.end.send(&message(stream, bytes)) {
                Sent::Yes => {}
                Sent::Full if client.first => {
                    progress.held = Some(Held {
                        stream,
                        bytes: bytes.to_vec(),
                    });
                }
                Sent::Full => {}
                Sent::Gone => gone.push(index),
            }
        }
        self.drop_clients(&gone, progress);
    }

    fn write_input(&mut self, progress: &mut Progress) {
        if let Some(pending) = &mut progress.pending {
            let target = self
                .streams
                .stdin
                .as_ref()
                .or(self.streams.terminal.as_ref());
            let Some(fd) = target else {
                progress.pending = None;
                return;
            };
            match rustix::io::write(fd, &pending.bytes[pending.written..]) {
                Ok(count) => pending.written += count,
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(_) => {
                    self.streams.stdin = None;
                    progress.pending = None;
                }
            }
        }
        let is_done = |pending: &Pending| pending.written == pending.bytes.len();
        if progress.pending.as_ref().is_some_and(is_done) {
            progress.pending = None;
        }
        if progress.close_stdin && progress.pending.is_none() {
            self.streams.stdin = None;
        }
    }

    /// Reads what a client says and retries what it could not take. False when it is gone.
    fn serve(
        &mut self,
        index: usize,
        flags: PollFlags,
        buffer: &mut [u8],
        progress: &mut Progress,
    ) -> bool {
        let Some(client) = self.clients.get_mut(index) else {
            return true;
        };
        if flags.contains(PollFlags::OUT)
            && client.first
            && let Some(held) = &progress.held
        {
            match client.end.send(&message(held.stream, &held.bytes)) {
                Sent::Yes => progress.held = None,
                Sent::Full => {}
                Sent::Gone => return false,
            }
        }
        while progress.pending.is_none() {
            match client.end.receive(buffer) {
                Ok(Some(ToContainer::Stdin(bytes))) => {
                    progress.pending = Some(Pending {
                        bytes: bytes.to_vec(),
                        written: 0,
                    });
                }
                Ok(Some(ToContainer::StdinEof)) => progress.close_stdin = true,
                Ok(Some(ToContainer::Resize { rows, columns })) => {
                    if let Some(terminal) = &self.streams.terminal {
                        let size = Winsize {
                            ws_row: rows,
                            ws_col: columns,
                            ws_xpixel: 0,
                            ws_ypixel: 0,
                        };
                        let _ = tcsetwinsize(terminal, size);
                    }
                }
                Ok(Some(ToContainer::ExitOnly)) => client.wants_output = false,
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        self.write_input(progress);
        true
    }

    /// Forgets clients by index.
    fn drop_clients(&mut self, gone: &[usize], progress: &mut Progress) {
        for index in gone.iter().rev() {
            if *index >= self.clients.len() {
                continue;
            }
            let client = self.clients.remove(*index);
            if client.first {
                progress.held = None;
                // Nobody else was promised to be its input; a terminal stays for `attach`.
                progress.close_stdin = true;
                self.write_input(progress);
            }
        }
    }

    /// After init's end: whatever is left in the pipes.
    fn drain(&mut self, buffer: &mut [u8], progress: &mut Progress) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            while progress.held.is_none() && self.is_open(stream) {
                self.read_output(stream, buffer, progress);
            }
        }
        while progress.held.is_none() && self.streams.terminal.is_some() {
            self.read_terminal(buffer, progress);
        }
    }

    fn is_open(&self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.streams.stdout.is_some(),
            Stream::Stderr => self.streams.stderr.is_some(),
        }
    }

    /// Tells every client, also those that connected a moment ago.
    pub(super) fn say_exited(&mut self, code: i32) {
        self.accept();
        for client in &self.clients {
            while client.end.send(&FromContainer::Exited(code)) == Sent::Full {
                let timeout = Timespec {
                    tv_sec: FAREWELL.as_secs() as i64,
                    tv_nsec: 0,
                };
                let mut fds = [PollFd::new(&client.end, PollFlags::OUT)];
                // The first client has been promised everything, however slow it is.
                let timeout = (!client.first).then_some(&timeout);
                if !matches!(poll(&mut fds, timeout), Ok(1..) | Err(Errno::INTR)) {
                    break;
                }
            }
        }
        self.clients.clear();
    }
}

fn message(stream: Stream, bytes: &[u8]) -> FromContainer<'_> {
    match stream {
        Stream::Stdout => FromContainer::Stdout(bytes),
        Stream::Stderr => FromContainer::Stderr(bytes),
    }
}

#[cfg(test)]
mod tests;
