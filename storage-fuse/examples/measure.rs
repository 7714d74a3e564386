//! Times what a login waits for: storing a layer, flattening it, building its tree, mounting it.
//!
//! ```text
//! unshare --user --map-root-user --map-auto --mount \
//!     target/release/examples/measure STORE LAYER.tar [COMMAND ...]
//! ```
//!
//! `STORE` is made where it does not exist; `COMMAND` runs with `ROOT` naming a directory where the
//! image is mounted for a container: its IDs 0 to 19999 start at `BASE`, its 65534 is `BASE` + 20000.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use selkie_storage::Store;
use selkie_storage::container_layer::ContainerLayer;
use selkie_storage::layer::{NewEntry, NewEntryKind};
use selkie_storage::presenter::{RootRequest, choose};
use selkie_sys::clone::{CloneNamespaces, Side, clone3, exit_now};
use selkie_userns::{IdExtent, IdMap, IdMaps};
use sha2::{Digest, Sha256};
use tar::EntryType;

/// Time on the clock and on the processors: the latter says something on a busy machine, too.
struct Watch {
    wall: Instant,
    processor: Duration,
}

impl Watch {
    fn start() -> Self {
        Self {
            wall: Instant::now(),
            processor: processor_time(),
        }
    }

    fn report(&self, what: &str, rounds: u32) {
        println!(
            "{what:<22} {:>10.3?} ({:.3?} of processors)",
            self.wall.elapsed() / rounds,
            (processor_time() - self.processor) / rounds
        );
    }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

const ROUNDS: u32 = 200;
const BASE: u32 = 30_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(root), Some(layer)) = (arguments.next(), arguments.next()) else {
        return Err("usage: measure STORE LAYER.tar [COMMAND ...]".into());
    };
    let store = Store::open(Path::new(&root))?;
    let start = Watch::start();
    let diff_id = load(&store, Path::new(&layer))?;
    start.report("layer stored", 1);

    let start = Watch::start();
    let chain_id = store.build_image_index(&[diff_id])?;
    start.report("index built", 1);

    let start = Watch::start();
    for _ in 0..ROUNDS {
        store.open_image_index(&chain_id)?.ids();
    }
    start.report("index opened", ROUNDS);

    let presenter = choose(None)?;
    let start = Watch::start();
    presenter.prepare(&store, &chain_id, false)?;
    let inodes = store.open_image_index(&chain_id)?.inode_count();
    start.report(&format!("tree of {inodes} built"), 1);

    let dir = Path::new(&root).join("tmp/measured");
    let layers = (0..=ROUNDS)
        .map(|round| {
            let dir = dir.join(round.to_string());
            std::fs::create_dir_all(&dir)?;
            Ok(ContainerLayer::create(&dir)?)
        })
        .collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let extent = |inside, outside, count| IdExtent {
        inside,
        outside,
        count,
    };
    let map = IdMap::new(vec![
        extent(0, BASE, 20_000),
        extent(65534, BASE + 20_000, 1),
    ])?;
    let maps = IdMaps {
        uid: map.clone(),
        gid: map,
    };
    let user_namespace = user_namespace(&maps)?;
    let request = |layer| RootRequest {
        chain_id: &chain_id,
        layer,
        user_namespace: user_namespace.as_fd(),
        maps: &maps,
        volatile: true,
        single_id: false,
    };
    let start = Watch::start();
    let mounts = layers[1..]
        .iter()
        .map(|layer| presenter.mount_root(&store, &request(layer)))
        .collect::<Result<Vec<_>, _>>()?;
    start.report("root mounted", ROUNDS);
    let start = Watch::start();
    drop(mounts);
    start.report("root unmounted", ROUNDS);

    let mut status = 0;
    if let Some(command) = arguments.next() {
        let mount = presenter.mount_root(&store, &request(&layers[0]))?;
        let target = dir.join("root");
        std::fs::create_dir(&target)?;
        rustix::mount::move_mount(
            &mount,
            "",
            rustix::fs::CWD,
            &target,
            rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        let run = std::process::Command::new(command)
            .args(arguments)
            .env("ROOT", &target)
            .env("BASE", BASE.to_string())
            .status()?;
        status = run.code().unwrap_or(1);
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH)?;
    }
    selkie_storage::remove_tree(&dir)?;
    std::process::exit(status)
}

fn load(store: &Store, path: &Path) -> Result<String, Box<dyn Error>> {
    // The digest comes from elsewhere in real life, so it is not part of the time of interest; it
    // takes a second pass here.
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => hasher.update(&buffer[..length]),
        }
    }
    let digest: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let start = Watch::start();
    let file = std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(path)?);
    let mut archive = tar::Archive::new(file);
    let mut writer = store.new_layer()?;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let header = entry.header().clone();
        let path = entry.path_bytes();
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let path = if path == b"." { b"" } else { path }.to_vec();
        let target = entry.link_name_bytes().map(|target| target.into_owned());
        let target = target.unwrap_or_default();
        let kind = match header.entry_type() {
            EntryType::Directory => NewEntryKind::Directory,
            EntryType::Symlink => NewEntryKind::Symlink { target },
            EntryType::Link => NewEntryKind::HardLink {
                target: target.strip_prefix(b"./").unwrap_or(&target).to_vec(),
            },
            EntryType::Fifo => NewEntryKind::Fifo,
            EntryType::Block | EntryType::Char => NewEntryKind::Device,
            _ => NewEntryKind::File { size: entry.size() },
        };
        let mut xattrs = BTreeMap::new();
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                xattrs.insert(name.to_vec(), extension.value_bytes().to_vec());
            }
        }
        writer.raw(header.as_bytes())?;
        let size = entry.size();
        writer.entry(
            NewEntry {
                path,
                kind,
                uid: header.uid()?.try_into()?,
                gid: header.gid()?.try_into()?,
                mode: header.mode()? & 0o7777,
                mtime: header.mtime()?.try_into()?,
                mtime_nsec: 0,
                xattrs,
            },
            None,
            &mut entry.by_ref(),
        )?;
        writer.raw(&[0; 511][..size.next_multiple_of(512).saturating_sub(size) as usize])?;
    }
    start.report("layer read", 1);
    let diff_id = format!("sha256:{digest}");
    writer.commit(&diff_id)?;
    Ok(diff_id)
}

fn user_namespace(maps: &IdMaps) -> Result<OwnedFd, Box<dyn Error>> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let Side::Parent { pid, .. } = clone3(CloneNamespaces::USER, None)? else {
        drop(writer);
        let _ = rustix::io::read(&reader, &mut [0u8; 1]);
        exit_now(0)
    };
    let process = pid.as_raw_nonzero();
    std::fs::write(format!("/proc/{process}/uid_map"), maps.uid.to_proc_text())?;
    std::fs::write(format!("/proc/{process}/gid_map"), maps.gid.to_proc_text())?;
    Ok(std::fs::File::open(format!("/proc/{process}/ns/user"))?.into())
}
