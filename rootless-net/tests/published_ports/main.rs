//! Published ports on the real kernel, as an unprivileged user: a host, a client host behind a cable,
//! an uplink namespace and a container, all network namespaces of a user namespace with one ID.

mod alone;
mod host;
mod lab;
mod publishing;
mod tcp;
mod udp;

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Gid, Uid};
use selkie_sys::child::unshare;
use selkie_sys::clone::CloneNamespaces;

/// What root runs the tests as: any number that nobody has.
const NOBODY: u32 = 54_387;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, rest)) = arguments.split_first()
        && first == "--alone"
    {
        alone::run(&rest[0]);
        return ExitCode::SUCCESS;
    }
    let must = std::env::var_os("SELKIE_TEST_MUST").is_some_and(|must| must == "1");
    let possible = tools().and_then(|()| become_root_of_a_namespace());
    let tests = [tcp::TESTS, udp::TESTS, publishing::TESTS, alone::TESTS].concat();
    let trials = tests.into_iter().map(|(name, test)| match &possible {
        Ok(()) => Trial::test(name, move || {
            test();
            Ok(())
        }),
        Err(why) if !must => {
            println!("skipped: {name}: {why}");
            Trial::test(name, || Ok(())).with_ignored_flag(true)
        }
        Err(why) => {
            let why = Failed::from(why);
            Trial::test(name, move || Err(why))
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn tools() -> Result<(), String> {
    for (tool, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let found = Command::new(tool)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        found.map_err(|error| format!("{tool} (package {package}): {error}"))?;
    }
    Ok(())
}

/// Makes this process, which has one thread, root of a new user namespace and nothing outside.
fn become_root_of_a_namespace() -> Result<(), String> {
    if rustix::process::getuid().is_root() {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        let done = rustix::thread::set_thread_groups(&[])
            .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
            .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid));
        done.map_err(|errno| format!("become an unprivileged user: {errno}"))?;
        let dumpable = rustix::process::DumpableBehavior::Dumpable;
        rustix::process::set_dumpable_behavior(dumpable).map_err(|errno| errno.to_string())?;
    }
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    unshare(CloneNamespaces::USER | CloneNamespaces::NETWORK)
        .map_err(|errno| format!("make a user and a network namespace: {errno}"))?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {} 1", uid.as_raw())),
        ("gid_map", format!("0 {} 1", gid.as_raw())),
    ];
    for (file, text) in maps {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, text).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}
