//! The cloned child: performs the prepared script, then becomes the container's process.
//!
//! Runs on a copy of a single-threaded parent. Steps use direct system calls on prepared data; the
//! few that need memory (creating mount points through dangling links, copying into a tmpfs) may
//! allocate, since no other thread can hold the allocator's lock.

mod mounting;

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, openat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets};
use selkie_sys::clone::exit_now;
use selkie_sys::fd_passing::{receive_one, send_one};
use selkie_sys::{child, seccomp};

use crate::init;
use crate::mount_options::attribute;
use crate::protocol::{Failure, MAX_GROUPS, Tag, USER_LENGTH, UserMessage};
use crate::script::{
    Base, Credentials, Script, ScriptStdio, Slot, Step, become_user_detail, execute_detail,
};

/// Device nodes every container has, bound from the host.
pub(crate) const DEVICES: [&CStr; 6] = [c"null", c"zero", c"full", c"random", c"urandom", c"tty"];

/// Links every `/dev` has.
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"fd"),
    (c"/proc/self/fd/0", c"stdin"),
    (c"/proc/self/fd/1", c"stdout"),
    (c"/proc/self/fd/2", c"stderr"),
    (c"pts/ptmx", c"ptmx"),
];

/// Errno and detail of a failed step.
type StepResult = Result<(), (Errno, u32)>;

/// Buffers the child fills after `clone`, allocated before it.
pub(crate) struct Buffers {
    user: Vec<u8>,
    groups: Vec<Gid>,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        Self {
            user: vec![0; USER_LENGTH],
            groups: Vec::with_capacity(MAX_GROUPS),
        }
    }
}

/// Performs `script` and does not return.
pub(crate) fn run(script: Script, channel: OwnedFd, buffers: Buffers) -> ! {
    let Script {
        steps,
        slots,
        stdio,
        preserve_fds,
        command,
        candidates,
        wants_home,
    } = script;
    child::reset_signals();
    rustix::process::umask(Mode::empty());
    let mut child = Child {
        channel,
        slots,
        stdio,
        preserve_fds,
        command,
        candidates,
        wants_home,
        buffers,
        user_length: 0,
        root: None,
        terminal: None,
        working_directory: None,
        made_working_directory: false,
        empty_directory: None,
        capabilities: None,
    };
    for (index, step) in steps.iter().enumerate() {
        if let Err((errno, detail)) = child.perform(step) {
            let failure = Failure {
                step: index as u32,
                errno,
                detail,
            };
            // When the parent is gone there is nobody to tell.
            let _ = send_one(child.channel.as_fd(), &failure.encode(), None);
            exit_now(127);
        }
    }
    exit_now(127)
}

struct Child {
    channel: OwnedFd,
    slots: Vec<Option<OwnedFd>>,
    stdio: ScriptStdio,
    preserve_fds: Vec<OwnedFd>,
    command: selkie_sys::exec::PreparedCommand,
    candidates: Vec<std::ffi::CString>,
    wants_home: bool,
    buffers: Buffers,
    user_length: usize,
    root: Option<OwnedFd>,
    /// Slave side.
    terminal: Option<OwnedFd>,
    working_directory: Option<OwnedFd>,
    /// It is to belong to the user.
    made_working_directory: bool,
    /// An empty read-only tmpfs, made when the first directory is masked.
    empty_directory: Option<OwnedFd>,
    /// What the container's user is to have, without what loading the filter takes.
    capabilities: Option<CapabilitySets>,
}

impl Child {
    fn perform(&mut self, step: &Step) -> StepResult {
        match step {
            Step::Unshare(namespaces) => child::unshare(*namespaces).plain(),
            Step::AssumeRoot { uid, gid } => self.assume_root(*uid, *gid),
            Step::AssumeJoinedRoot { uid, gid } => self.assume_joined_root(*uid, *gid).plain(),
            Step::OpenDirectory { slot, path } => self.open_directory(*slot, path).plain(),
            Step::NewSession => new_session(),
            Step::Loopback => child::bring_up_loopback().plain(),
            Step::GiveNetwork => self.give_network().plain(),
            Step::HostName(name) => rustix::system::sethostname(name.as_bytes()).plain(),
            Step::DomainName(name) => rustix::system::setdomainname(name.as_bytes()).plain(),
            Step::Create {
                slot,
                file_system,
                otherwise,
            } => self.create(*slot, file_system, otherwise.as_ref()),
            Step::CloneHostPath {
                slot,
                path,
                recursive,
            } => self.clone_host_path(*slot, path, *recursive).plain(),
            Step::PopulateDev { target } => self.populate_dev(target).plain(),
            Step::AttachRoot => self.attach_root().plain(),
            Step::Attach { slot, target, kind } => self.attach(*slot, target, *kind),
            Step::CopyUp { slot, target } => self.copy_up(*slot, target).plain(),
            Step::Restrict {
                slot,
                attributes,
                recursive,
                ..
            } => mounting::restrict(self.slot(*slot).map_err(whole)?, *attributes, *recursive)
                .plain(),
            Step::OpenTerminal {
                slot,
                size,
                console,
            } => self.open_terminal(*slot, *size, console.as_ref()).plain(),
            Step::Mask { target, null } => self.mask(target, *null).plain(),
            Step::ReadOnly { target } => self.read_only(target).plain(),
            Step::Sysctl {
                slot, path, value, ..
            } => self.sysctl(*slot, path, value).plain(),
            Step::OpenWorkingDirectory { path, create, .. } => {
                self.open_working_directory(path, *create).plain()
            }
            Step::ReadOnlyRoot => {
                mounting::restrict(self.root().map_err(whole)?, attribute::READ_ONLY, false).plain()
            }
            Step::Pivot {
                propagation,
                recursive,
            } => self.pivot(*propagation, *recursive).plain(),
            Step::AwaitUser => self.await_user().plain(),
            Step::Limit {
                resource, limit, ..
            } => rustix::process::setrlimit(*resource, *limit).plain(),
            Step::OomScore(score) => oom_score(*score).plain(),
            Step::Personality(persona) => child::set_personality(*persona).plain(),
            Step::PlaceDescriptors => self.place_descriptors().plain(),
            Step::BecomeUser { credentials, umask } => self.become_user(credentials, *umask),
            Step::Ready => self.ready().plain(),
            Step::Gate => self.gate().plain(),
            Step::Init => init::split(self.capabilities).plain(),
            Step::Seccomp { program, flags } => seccomp::load(program, *flags)
                .map_err(|error| error.errno)
                .plain(),
            Step::FindCommand => self.find_command(),
            Step::Execute => self.execute(),
        }
    }

    fn give_network(&self) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(c"/proc/self/ns/net", flags, Mode::empty())?;
        let tag = [Tag::Network as u8];
        send_one(self.channel.as_fd(), &tag, Some(namespace.as_fd()))
    }

    fn slot(&self, slot: Slot) -> Result<BorrowedFd<'_>, Errno> {
        let fd = self.slots.get(slot).and_then(Option::as_ref);
        fd.map(|fd| fd.as_fd()).ok_or(Errno::BADF)
    }

    fn root(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.root.as_ref().map(|fd| fd.as_fd()).ok_or(Errno::BADF)
    }

    fn base(&self, base: Base) -> Result<BorrowedFd<'_>, Errno> {
        match base {
            Base::Root => self.root(),
            Base::Mount(slot) => self.slot(slot),
        }
    }

    /// Receives the one message that may come next; the parent's death ends this process.
    fn expect(&mut self, tag: Tag) -> Result<Option<OwnedFd>, Errno> {
        let (length, fd) = receive_one(self.channel.as_fd(), &mut self.buffers.user)?;
        if length == 0 {
            exit_now(1);
        }
        if self.buffers.user[0] != tag as u8 {
            return Err(Errno::PROTO);
        }
        self.user_length = length;
        Ok(fd)
    }

    fn assume_root(&mut self, uid: u32, gid: u32) -> StepResult {
        self.expect(Tag::Maps).map_err(whole)?;
        // From here on the process is visible in the container's PID namespace; nobody there may
        // look into it. The parent is done with /proc/PID, which this closes to it too.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(whole)?;
        set_ids(Uid::from_raw(uid), Gid::from_raw(gid)).plain()
    }

    fn assume_joined_root(&mut self, uid: u32, gid: u32) -> Result<(), Errno> {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        set_ids(Uid::from_raw(uid), Gid::from_raw(gid))?;
        self.root = Some(open_directory(rustix::fs::CWD, c"/")?);
        Ok(())
    }

    fn await_user(&mut self) -> Result<(), Errno> {
        self.expect(Tag::User)?;
        let user = UserMessage::decode(&self.buffers.user[..self.user_length]);
        let user = user.ok_or(Errno::BADMSG)?;
        let owner = Some(Uid::from_raw(user.uid));
        if let Some(terminal) = &self.terminal {
            rustix::fs::fchown(terminal, owner, None)?;
        }
        if let (true, Some(directory)) = (self.made_working_directory, &self.working_directory) {
            let group = Some(Gid::from_raw(user.gid));
            rustix::fs::chownat(directory, c"", owner, group, AtFlags::EMPTY_PATH)?;
        }
        if self.wants_home && !user.home.is_empty() {
            let home = CStr::from_bytes_until_nul(user.home).map_err(|_| Errno::BADMSG)?;
            self.command.set_late_variable(home);
        }
        Ok(())
    }

    fn place_descriptors(&mut self) -> Result<(), Errno> {
        // Opened in this process, so possibly at a number that is about to be taken: the parent
        // may have had 0, 1 or 2 closed.
        let floor = 3 + self.preserve_fds.len() as i32;
        for own in [&mut self.terminal, &mut self.working_directory] {
            if let Some(fd) = own.take() {
                *own = Some(if fd.as_raw_fd() < floor {
                    rustix::io::fcntl_dupfd_cloexec(&fd, floor)?
                } else {
                    fd
                });
            }
        }
        match &self.stdio {
            ScriptStdio::Streams(streams) => {
                for (target, stream) in streams.iter().enumerate() {
                    child::place_fd(stream.as_fd(), target as i32)?;
                }
            }
            ScriptStdio::Terminal => {
                let terminal = self.terminal.as_ref().ok_or(Errno::BADF)?;
                rustix::process::ioctl_tiocsctty(terminal)?;
                for target in 0..3 {
                    child::place_fd(terminal.as_fd(), target)?;
                }
            }
        }
        for (index, fd) in self.preserve_fds.iter().enumerate() {
            child::place_fd(fd.as_fd(), 3 + index as i32)?;
        }
        child::close_on_exec_from(floor)
    }

    fn become_user(&mut self, credentials: &Credentials, umask: u32) -> StepResult {
        use become_user_detail as part;
        let user = UserMessage::decode(&self.buffers.user[..self.user_length])
            .ok_or((Errno::BADMSG, part::IDS))?;
        if credentials.no_new_privileges {
            rustix::thread::set_no_new_privs(true).part(part::NO_NEW_PRIVILEGES)?;
        }
        drop_from_bounding_set(credentials.bounding).part(part::BOUNDING)?;

        self.buffers.groups.clear();
        let groups = user.groups().take(MAX_GROUPS).map(Gid::from_raw);
        self.buffers.groups.extend(groups);
        match rustix::thread::set_thread_groups(&self.buffers.groups) {
            Err(Errno::PERM) if credentials.setgroups_may_be_denied => {}
            result => result.part(part::GROUPS)?,
        }

        // A user may be kept out of a directory that root may enter, and the reverse holds on
        // FUSE and NFS: whoever can enters.
        let early = self.enter_working_directory();
        rustix::thread::set_keep_capabilities(true).part(part::IDS)?;
        set_ids(Uid::from_raw(user.uid), Gid::from_raw(user.gid)).part(part::IDS)?;

        let mut wanted = CapabilitySets {
            effective: credentials.effective,
            permitted: credentials.permitted,
            inheritable: credentials.inheritable,
        };
        let mut ambient = credentials.ambient;
        if credentials.ambient_for_non_root_only {
            if user.uid == 0 {
                wanted.inheritable -= ambient;
                ambient = CapabilitySet::empty();
            } else {
                wanted.permitted = ambient;
                wanted.effective = ambient;
            }
        }
        // Loading a filter without no_new_privs takes CAP_SYS_ADMIN. It need not be given up after
        // that: execve computes the permitted set anew, from the ambient set for users and from the
        // bounding set for root.
        self.capabilities = Some(wanted);
        if credentials.keep_sys_admin {
            wanted.permitted |= CapabilitySet::SYS_ADMIN;
            wanted.effective |= CapabilitySet::SYS_ADMIN;
        }
        rustix::thread::set_capabilities(None, wanted).part(part::CAPABILITIES)?;
        raise_ambient(ambient).part(part::AMBIENT)?;
        rustix::process::umask(Mode::from_raw_mode(umask));
        if early.is_err() {
            self.enter_working_directory()
                .part(part::WORKING_DIRECTORY)?;
        }
        // Changing IDs and capabilities may have made the process dumpable again.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(whole)
    }

    fn enter_working_directory(&self) -> Result<(), Errno> {
        match &self.working_directory {
            Some(directory) => rustix::process::fchdir(directory),
            None => Ok(()),
        }
    }

    fn ready(&mut self) -> Result<(), Errno> {
        send_one(self.channel.as_fd(), &[Tag::Ready as u8], None)
    }

    fn gate(&mut self) -> Result<(), Errno> {
        self.expect(Tag::Go).map(drop)
    }

    /// Leaves only those candidates that exist.
    fn find_command(&mut self) -> StepResult {
        let mut refused = Errno::NOENT;
        // No magic links: an image whose command is a link to /proc/self/exe must not get us to run
        // this very program inside (CVE-2019-5736), nor one through /proc/self/fd what lies behind
        // descriptors we still hold (CVE-2024-21626).
        self.candidates.retain(|candidate| {
            let found = rustix::fs::openat2(
                rustix::fs::CWD,
                &**candidate,
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                rustix::fs::ResolveFlags::NO_MAGICLINKS,
            );
            match found {
                Ok(_) => true,
                Err(Errno::NOENT) => false,
                Err(errno) => {
                    refused = errno;
                    false
                }
            }
        });
        match (self.candidates.is_empty(), refused) {
            (false, _) => Ok(()),
            (true, Errno::NOENT) => Err((refused, execute_detail::NOT_FOUND)),
            (true, _) => Err((refused, execute_detail::NOT_EXECUTABLE)),
        }
    }

    fn execute(&mut self) -> StepResult {
        let mut refused = (Errno::NOENT, execute_detail::NOT_FOUND);
        for candidate in &self.candidates {
            refused = match self.command.execute(candidate) {
                Errno::NOENT => (Errno::NOENT, execute_detail::NO_INTERPRETER),
                errno => (errno, execute_detail::NOT_EXECUTABLE),
            };
        }
        Err(refused)
    }
}

/// Ties an errno to a step, or to a part of it.
trait Part {
    fn plain(self) -> StepResult;
    fn part(self, detail: u32) -> StepResult;
}

impl Part for Result<(), Errno> {
    fn plain(self) -> StepResult {
        self.map_err(whole)
    }
    fn part(self, detail: u32) -> StepResult {
        self.map_err(|errno| (errno, detail))
    }
}

fn whole(errno: Errno) -> (Errno, u32) {
    (errno, 0)
}

fn new_session() -> StepResult {
    rustix::process::setsid().map(drop).plain()?;
    match child::join_new_session_keyring() {
        // A kernel without keyrings has none to leak.
        Err(Errno::NOSYS) => Ok(()),
        result => result.plain(),
    }
}

fn open_directory(at: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

fn set_ids(uid: Uid, gid: Gid) -> Result<(), Errno> {
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn write_all(file: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    // Files below /proc take a value whole or not at all.
    match rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))? {
        length if length == bytes.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// The process must be dumpable: the files of others belong to the host's root.
pub(crate) fn oom_score(score: i32) -> Result<(), Errno> {
    use std::io::Write;
    let mut text = [0u8; 16];
    let mut cursor = std::io::Cursor::new(&mut text[..]);
    write!(cursor, "{score}").map_err(|_| Errno::INVAL)?;
    let length = cursor.position() as usize;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(
        rustix::fs::CWD,
        c"/proc/self/oom_score_adj",
        flags,
        Mode::empty(),
    )?;
    write_all(file.as_fd(), &text[..length])
}

/// Removes every capability the kernel knows and `keep` does not hold.
fn drop_from_bounding_set(keep: CapabilitySet) -> Result<(), Errno> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn raise_ambient(wanted: CapabilitySet) -> Result<(), Errno> {
    for capability in wanted.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}
