//! Making a pause process.
//!
//! Theory of operation. The caller forks twice, so that the pause process is never the caller's
//! own child: a long-lived caller needs not reap it, and nobody's `wait` meets it by surprise. The
//! second clone starts in the new namespaces. From then on the two sides talk over two pipes:
//!
//! ```text
//! pause process                              caller
//!   "I pid start-time" ---- report --->        runs newuidmap and newgidmap on that pid …
//!   … mounts, session, stdio, name
//!   "R" (or "E errno what") - report ->        … reads the namespaces' keys, writes the record
//!   waits for one byte <----- gate ----        [`Created::release`]
//!   pauses
//! ```
//!
//! If the caller dies anywhere before the byte, the gate reads as closed and the pause process
//! exits: no record, no process. The byte is sent only after the record is in place, so a process
//! that stays is always on record.

use std::io::BufReader;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, WaitOptions};
use selkie_sys::clone::{self, CloneNamespaces, Side};
use selkie_sys::errno::{Attempt, SysError, SysResult};
use selkie_sys::namespace;
use selkie_sys::process_identity::ProcessIdentity;

use super::record::{Record, serialise};
use super::{PauseError, denied};
use crate::id_map::IdMaps;
use crate::map_helpers;
use crate::subordinate_ids::HostFiles;

/// The name in `ps`. Shorter than the kernel's 16 bytes.
pub(super) const PROCESS_NAME: &str = "selkie-pause";

/// Where the pause process is to live.
#[derive(Debug)]
pub(super) enum Place {
    /// In new namespaces with these maps.
    Fresh(IdMaps),
    /// In a user namespace that lives on without its pause process.
    Existing {
        /// `None`: the caller is in it.
        user: Option<OwnedFd>,
        /// Its mount namespace.
        mounts: Mounts,
    },
}

/// The mount namespace of a pause process that goes back to an existing user namespace.
#[derive(Debug)]
pub(super) enum Mounts {
    /// That of the dead pause process, which somebody still is in.
    Join(OwnedFd),
    /// The caller is in it.
    Stay,
    /// It is gone: a copy of the caller's.
    Copy,
}

/// A pause process that waits to be let go. Dropping this ends it.
#[derive(Debug)]
pub(super) struct Created {
    pub identity: ProcessIdentity,
    gate: OwnedFd,
    /// Shared with the pause process, which keeps it open.
    carried_record: OwnedFd,
}

impl Created {
    /// Leaves a copy of the record with the process. To be called before `release`.
    pub fn carry(&self, record: &Record) -> SysResult<()> {
        let bytes = serialise(record);
        let mut written = 0;
        while written < bytes.len() {
            written += rustix::io::write(&self.carried_record, &bytes[written..])
                .attempt(|| "write the pause process's own record")?;
        }
        rustix::fs::fcntl_add_seals(
            &self.carried_record,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
        )
        .attempt(|| "seal the pause process's own record")
    }

    /// Lets it stay.
    pub fn release(self) -> SysResult<()> {
        rustix::io::write(&self.gate, GO).attempt(|| "let the pause process go on")?;
        Ok(())
    }
}

const GO: &[u8] = b"g";

/// Makes a pause process at `place` and waits until it is ready.
pub(super) fn create(
    place: &Place,
    runtime_dir: &Path,
    host: &HostFiles,
) -> Result<Created, PauseError> {
    let title = title(runtime_dir);
    let pipe = || pipe_with(PipeFlags::CLOEXEC).attempt(|| "make a pipe");
    let (gate_read, gate) = pipe()?;
    let (report, report_write) = pipe()?;
    let carried_record = memory_file()?;
    match clone::fork().map_err(denied::explain)? {
        Side::Child => {
            let namespaces = match place {
                Place::Fresh(_) => CloneNamespaces::USER | CloneNamespaces::MOUNT,
                Place::Existing { .. } => CloneNamespaces::empty(),
            };
            match clone::clone3(namespaces, None) {
                Ok(Side::Child) => {
                    drop(gate);
                    be_the_pause_process(place, &title, gate_read, report_write, carried_record)
                }
                Ok(Side::Parent { .. }) => clone::exit_now(0),
                Err(error) => {
                    report_failure(report_write.as_fd(), &error);
                    clone::exit_now(1)
                }
            }
        }
        Side::Parent { pid, .. } => {
            drop((gate_read, report_write));
            // ECHILD, when the caller ignores SIGCHLD, is as good as reaped.
            let _ = rustix::io::retry_on_intr(|| {
                rustix::process::waitpid(Some(pid), WaitOptions::empty())
            });
            let mut report = BufReader::new(std::fs::File::from(report));
            let identity = match next_report(&mut report)? {
                Report::Identity(identity) => identity,
                Report::Ready => return Err(PauseError::CreationCutShort),
            };
            if let Place::Fresh(maps) = place {
                write_maps(identity, maps, host)?;
            }
            match next_report(&mut report)? {
                Report::Ready => Ok(Created {
                    identity,
                    gate,
                    carried_record,
                }),
                Report::Identity(_) => Err(PauseError::CreationCutShort),
            }
        }
    }
}

fn memory_file() -> SysResult<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(PROCESS_NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag.
        Err(Errno::INVAL) => rustix::fs::memfd_create(PROCESS_NAME, flags),
        made => made,
    }
    .attempt(|| "make a memory file")
}

enum Report {
    Identity(ProcessIdentity),
    Ready,
}

fn next_report(from: &mut impl std::io::BufRead) -> Result<Report, PauseError> {
    let mut line = String::new();
    from.read_line(&mut line)
        .attempt(|| "read the pause process's report")?;
    let mut words = line.trim_end().splitn(3, ' ');
    match (words.next(), words.next(), words.next()) {
        (Some("I"), Some(pid), Some(start_time)) => match (pid.parse(), start_time.parse()) {
            (Ok(pid), Ok(start_time)) => Ok(Report::Identity(ProcessIdentity { pid, start_time })),
            _ => Err(PauseError::CreationCutShort),
        },
        (Some("R"), None, None) => Ok(Report::Ready),
        (Some("E"), Some(errno), Some(attempt)) => {
            let errno = errno.parse().map_or(Errno::IO, Errno::from_raw_os_error);
            Err(denied::explain(SysError::new(attempt, errno)))
        }
        // End of file: it was killed.
        _ => Err(PauseError::CreationCutShort),
    }
}

fn report_failure(report: BorrowedFd<'_>, error: &SysError) {
    let line = format!("E {} {}\n", error.errno.raw_os_error(), error.attempt);
    // The other side being gone is all that can go wrong, and then nobody is left to tell.
    let _ = rustix::io::write(report, line.as_bytes());
}

/// Writes the maps of a new namespace: through the helpers when there are subordinate IDs, by
/// ourselves when only the login is mapped.
fn write_maps(
    identity: ProcessIdentity,
    maps: &IdMaps,
    host: &HostFiles,
) -> Result<(), PauseError> {
    let pid = identity.pid;
    if maps.uid.id_count() > 1 || maps.gid.id_count() > 1 {
        return Ok(map_helpers::write_maps(pid, maps, host)?);
    }
    // Without privilege the kernel takes a GID map only from who can no longer drop groups.
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", maps.uid.to_proc_text()),
        ("gid_map", maps.gid.to_proc_text()),
    ] {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, &text)
            .attempt(|| format!("write `{}` to {path}", text.trim_end()))
            .map_err(denied::explain)?;
    }
    Ok(())
}

/// The rest of the pause process's life.
fn be_the_pause_process(
    place: &Place,
    title: &[u8],
    gate: OwnedFd,
    report: OwnedFd,
    carried_record: OwnedFd,
) -> ! {
    if let Err(error) = settle(
        place,
        title,
        gate.as_fd(),
        report.as_fd(),
        carried_record.as_fd(),
    ) {
        report_failure(report.as_fd(), &error);
        clone::exit_now(1);
    }
    let mut go = [0u8; 1];
    let answer = rustix::io::retry_on_intr(|| rustix::io::read(&gate, &mut go));
    if answer != Ok(GO.len()) {
        clone::exit_now(1);
    }
    drop((gate, report));
    loop {
        // Signals keep their default effect: SIGTERM ends it (so shutting down does not wait for
        // it), and the next command makes a new one. SIGHUP cannot come from a terminal, as the
        // process has none.
        rustix::event::pause();
    }
}

fn settle(
    place: &Place,
    title: &[u8],
    gate: BorrowedFd<'_>,
    report: BorrowedFd<'_>,
    carried_record: BorrowedFd<'_>,
) -> SysResult<()> {
    // An executable that its user may not read makes processes undumpable: their /proc files
    // belong to root, and neither newuidmap nor a later command of the same login may touch them.
    let be_dumpable = || {
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
            .attempt(|| "make the pause process dumpable")
    };
    be_dumpable()?;
    let own = ProcessIdentity::own()?;
    let line = format!("I {} {}\n", own.pid, own.start_time);
    rustix::io::write(report, line.as_bytes()).attempt(|| "report the pause process's PID")?;
    rustix::process::setsid().attempt(|| "setsid")?;
    match place {
        Place::Fresh(_) => receive_host_mounts()?,
        Place::Existing { user, mounts } => {
            if let Some(user) = user {
                namespace::join_by_fd(user.as_fd())?;
                be_dumpable()?;
            }
            match mounts {
                Mounts::Join(mounts) => namespace::join_by_fd(mounts.as_fd())?,
                Mounts::Stay => {}
                Mounts::Copy => {
                    namespace::unshare_mounts()?;
                    receive_host_mounts()?;
                }
            }
        }
    }
    // Anything else would keep a file system busy.
    rustix::process::chdir("/").attempt(|| "change to /")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .attempt(|| "open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).attempt(|| "redirect standard input")?;
    rustix::stdio::dup2_stdout(&null).attempt(|| "redirect standard output")?;
    rustix::stdio::dup2_stderr(&null).attempt(|| "redirect standard error")?;
    drop(null);
    let name = std::ffi::CString::new(PROCESS_NAME).unwrap_or_default();
    rustix::thread::set_name(&name).attempt(|| "name the pause process")?;
    // For `ps` without `-o comm`, and for `strays`; where /proc does not let us, the old command line stays.
    let _ = overwrite_command_line(title);
    // Also the lock, and pipes of whoever reads our caller's output until its end.
    clone::close_inherited_descriptors(&[gate, report, carried_record])?;
    rustix::io::write(report, b"R\n").attempt(|| "report that the pause process is ready")?;
    Ok(())
}

/// Mounts made on the host from now on appear here too; ours never appear on the host.
fn receive_host_mounts() -> SysResult<()> {
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).attempt(|| "mount --make-rslave /")
}

/// What `ps` shows: the name and the runtime directory it serves.
pub(super) fn title(runtime_dir: &Path) -> Vec<u8> {
    [
        PROCESS_NAME.as_bytes(),
        b" ",
        runtime_dir.as_os_str().as_bytes(),
    ]
    .concat()
}

/// Puts the title where `/proc/PID/cmdline` shows the arguments. One that is longer than they were
/// runs on into the environment, which lies behind them and is not used any more: if the last byte
/// of the arguments is not NUL, the kernel shows all up to the first NUL behind it.
fn overwrite_command_line(title: &[u8]) -> Option<()> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 48 to 51 (arg_start, arg_end, env_start, env_end); the first after the command name
    // is field 3.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let mut field = |skip| fields.nth(skip)?.parse::<u64>().ok();
    let (start, arguments_end) = (field(48 - 3)?, field(0)?);
    let (environment_start, environment_end) = (field(0)?, field(0)?);
    let end = match environment_start == arguments_end {
        true => environment_end,
        false => arguments_end,
    };
    let mut area = vec![0u8; usize::try_from(end.checked_sub(start)?).ok()?];
    // The last byte stays NUL.
    let length = title.len().min(area.len().checked_sub(1)?);
    area[..length].copy_from_slice(&title[..length]);
    let memory = rustix::fs::open(
        "/proc/self/mem",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    rustix::io::pwrite(memory.ok()?, &area, start).ok()?;
    Some(())
}
