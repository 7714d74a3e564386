//! `docs/subuid.md` shows every error of this crate word for word, and its example is the truth.

use std::path::PathBuf;

use rustix::io::Errno;
use selkie_sys::SysError;
use selkie_userns::id_map::{IdExtent, IdMap, IdMapError, IdMaps};
use selkie_userns::map_helpers::MapHelperError;
use selkie_userns::pause::PauseError;
use selkie_userns::slice::{CustomMapError, Exhausted, Lease, allocate, plan_slice};
use selkie_userns::subordinate_ids::{
    HostFiles, IdKind, IdRange, Login, SubordinateIdError, SubordinateIds,
};

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/subuid.md");
    words(&std::fs::read_to_string(path).unwrap())
}

/// Fails with all errors that are missing from the page, and when a variant has no sample.
fn assert_documented<E: std::fmt::Display>(
    samples: Vec<E>,
    name: fn(&E) -> &'static str,
    variants: usize,
) {
    let page = page();
    let missing: Vec<String> = samples
        .iter()
        .map(|sample| words(&sample.to_string()))
        .filter(|text| !page.contains(text.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "not in docs/subuid.md:\n{}",
        missing.join("\n")
    );
    let names: std::collections::BTreeSet<_> = samples.iter().map(name).collect();
    assert_eq!(names.len(), variants, "a variant has no sample here");
}

fn range(start: u32, count: u32) -> IdRange {
    IdRange::new(start, count).unwrap()
}

#[test]
fn errors_of_subordinate_ids() {
    use SubordinateIdError as E;
    let login = || "alice (UID 1000)".to_owned();
    let file = || "/etc/subuid".to_owned();
    let path = || PathBuf::from("/etc/subuid");
    let (kind, service) = (IdKind::Uid, || "sss".to_owned());
    let fix = |text: &str| format!("as root: usermod {text} alice");
    let add = || fix("--add-subuids 100000-165535");
    let (nsswitch, command) = (
        || PathBuf::from("/etc/nsswitch.conf"),
        || "/usr/bin/getsubids alice".to_owned(),
    );
    let samples = vec![
        E::FileAbsent {
            path: "/etc/subgid".into(),
            kind: IdKind::Gid,
            login: login(),
            fix: fix("--add-subgids 100000-165535"),
        },
        E::LineAbsent {
            path: path(),
            kind,
            login: login(),
            fix: add(),
        },
        E::TooSmall {
            source_name: file(),
            kind,
            login: login(),
            total: 100,
            fix: add(),
        },
        E::NameServiceToolMissing {
            nsswitch: nsswitch(),
            service: service(),
        },
        E::NameServiceEmpty {
            service: service(),
            kind,
            login: login(),
            command: command(),
        },
        E::NoLoginName {
            uid: 1000,
            service: service(),
            passwd: "/etc/passwd".into(),
            nsswitch: nsswitch(),
        },
        E::Unreadable {
            path: path(),
            errno: Errno::ACCESS,
        },
        E::Malformed {
            path: path(),
            line: 3,
            text: "alice:100000".into(),
            owner: "alice".into(),
            why: "the count is missing",
        },
        E::OwnOverlap {
            source_name: file(),
            kind,
            login: login(),
            first: range(100_000, 65_536),
            second: range(165_000, 65_536),
            fix: fix("--del-subuids 165000-230535 --add-subuids 230536-296071"),
        },
        E::SharedWithOther {
            path: path(),
            kind,
            login: login(),
            range: range(100_000, 65_536),
            other: "bob".into(),
            other_range: range(165_000, 65_536),
            fix: fix("--del-subuids 100000-165535 --add-subuids 230536-296071"),
        },
        E::OwnIdInside {
            source_name: file(),
            kind,
            login: login(),
            range: range(500, 65_536),
            id: 1000,
            fix: fix("--del-subuids 500-66035 --add-subuids 100000-165535"),
        },
        E::ContainsRoot {
            source_name: file(),
            kind,
            login: login(),
            range: range(0, 65_536),
            fix: fix("--del-subuids 0-65535 --add-subuids 100000-165535"),
        },
        E::NotAMap {
            kind,
            error: IdMapError::TooMany(401),
        },
        E::ToolFailed {
            command: command(),
            why: "unexpected output `hello`".into(),
        },
    ];
    // No wildcard: a new variant must be named here and given a sample above.
    let name = |error: &E| match error {
        E::FileAbsent { .. } => "FileAbsent",
        E::LineAbsent { .. } => "LineAbsent",
        E::TooSmall { .. } => "TooSmall",
        E::NameServiceToolMissing { .. } => "NameServiceToolMissing",
        E::NameServiceEmpty { .. } => "NameServiceEmpty",
        E::NoLoginName { .. } => "NoLoginName",
        E::Unreadable { .. } => "Unreadable",
        E::Malformed { .. } => "Malformed",
        E::OwnOverlap { .. } => "OwnOverlap",
        E::SharedWithOther { .. } => "SharedWithOther",
        E::OwnIdInside { .. } => "OwnIdInside",
        E::ContainsRoot { .. } => "ContainsRoot",
        E::NotAMap { .. } => "NotAMap",
        E::ToolFailed { .. } => "ToolFailed",
    };
    assert_documented(samples, name, 14);
}

#[test]
fn errors_of_the_helpers() {
    use MapHelperError as E;
    let tool = "newuidmap";
    let path = || PathBuf::from("/usr/bin/newuidmap");
    let dirs = HostFiles::default().tool_dirs;
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let samples = vec![
        E::Missing {
            tool,
            looked_in: dirs.join(":"),
        },
        E::NotPrivileged {
            path: path(),
            capability: "cap_setuid",
        },
        E::NosuidMount { path: path() },
        E::NoNewPrivileges { tool },
        E::RangeNotAllowed {
            tool,
            wanted: "the UIDs 1000-1000, 100000-165535".into(),
            said: "newuidmap: uid range [1-65537) -> [100000-165536) not allowed".into(),
        },
        E::OutsideOwnNamespace {
            kind: IdKind::Uid,
            wanted: "100000-165535".into(),
        },
        E::NotStarted {
            path: path(),
            errno: Errno::NOEXEC,
        },
        E::Failed {
            tool,
            status: "exit status: 1".into(),
            said: "it said nothing".into(),
            arguments: "0 1000 1 1 100000 65536".into(),
        },
    ];
    let name = |error: &E| match error {
        E::Missing { .. } => "Missing",
        E::NotPrivileged { .. } => "NotPrivileged",
        E::NosuidMount { .. } => "NosuidMount",
        E::NoNewPrivileges { .. } => "NoNewPrivileges",
        E::RangeNotAllowed { .. } => "RangeNotAllowed",
        E::OutsideOwnNamespace { .. } => "OutsideOwnNamespace",
        E::NotStarted { .. } => "NotStarted",
        E::Failed { .. } => "Failed",
    };
    assert_documented(samples, name, 8);
}

#[test]
fn errors_of_the_pause_process() {
    use PauseError as E;
    let runtime_dir = || PathBuf::from("/run/user/1000/selkie");
    let samples = vec![
        E::RuntimeDirUntrusted {
            path: runtime_dir(),
            why: "others may enter it (mode 0755)".into(),
            fix: "chmod 0700 /run/user/1000/selkie".into(),
        },
        E::WorkingDirectory {
            path: "/mnt/private".into(),
            why: Errno::NOENT.to_string(),
        },
        E::Threads { count: 2 },
        E::OtherNamespace { pid: 4711 },
        E::NamespacesOff {
            sysctl: "user.max_user_namespaces",
        },
        E::NamespaceLimit { limit: 100 },
        E::CloneForbidden,
        E::AppArmor {
            attempt: "mount --make-rslave /".into(),
        },
        E::InChroot,
        E::NotInKernel,
        E::ProcessLimit(SysError::new(
            "clone3 with CloneNamespaces(0x0)",
            Errno::AGAIN,
        )),
        E::Denied(SysError::new(
            "clone3 with CloneNamespaces(USER | MOUNT)",
            Errno::PERM,
        )),
        E::UnreadableMaps {
            path: "/proc/4711/uid_map".into(),
            why: IdMapError::BadLine("x".into()).to_string(),
        },
        E::CreationCutShort,
        E::Vanishing {
            runtime_dir: runtime_dir(),
        },
    ];
    let name = |error: &E| match error {
        // Shown by their own tests, or a bare system call on which there is nothing to say.
        E::Sys(_) | E::SubordinateIds(_) | E::MapHelper(_) => "",
        E::RuntimeDirUntrusted { .. } => "RuntimeDirUntrusted",
        E::WorkingDirectory { .. } => "WorkingDirectory",
        E::Threads { .. } => "Threads",
        E::OtherNamespace { .. } => "OtherNamespace",
        E::NamespacesOff { .. } => "NamespacesOff",
        E::NamespaceLimit { .. } => "NamespaceLimit",
        E::CloneForbidden => "CloneForbidden",
        E::AppArmor { .. } => "AppArmor",
        E::InChroot => "InChroot",
        E::NotInKernel => "NotInKernel",
        E::ProcessLimit(_) => "ProcessLimit",
        E::Denied(_) => "Denied",
        E::UnreadableMaps { .. } => "UnreadableMaps",
        E::CreationCutShort => "CreationCutShort",
        E::Vanishing { .. } => "Vanishing",
    };
    assert_documented(samples, name, 15);
}

#[test]
fn errors_of_slices() {
    let full = Exhausted {
        kind: IdKind::Uid,
        wanted: 145,
        low_block: 128,
        pool: 1000,
        free: 140,
        largest_gap: 100,
        holders: vec![("web".into(), 145), ("db".into(), 145)],
    };
    let none = Exhausted {
        pool: 0,
        ..full.clone()
    };
    assert_documented(vec![full, none], |_| "Exhausted", 1);
    use CustomMapError as E;
    let kind = IdKind::Uid;
    let extent = |inside, outside, count| IdExtent {
        inside,
        outside,
        count,
    };
    let samples = vec![
        E::Empty,
        E::Invalid {
            kind,
            error: IdMapError::Overlap(extent(0, 5, 2), extent(1, 9, 1), "inside"),
        },
        E::OutsideNamespace {
            kind,
            extent: extent(0, 500, 502),
            last: 1000,
        },
        E::Held {
            kind,
            extent: extent(0, 1, 1000),
            holder: "web".into(),
        },
    ];
    let name = |error: &E| match error {
        E::Empty => "Empty",
        E::Invalid { .. } => "Invalid",
        E::OutsideNamespace { .. } => "OutsideNamespace",
        E::Held { .. } => "Held",
    };
    assert_documented(samples, name, 4);
}

#[test]
fn the_worked_example_is_what_happens() {
    let ids = vec![range(100_000, 65_536)];
    let login = SubordinateIds {
        uid: ids.clone(),
        gid: ids,
    }
    .pause_maps(Login {
        uid: 1000,
        gid: 1000,
    })
    .unwrap();
    let plan = plan_slice([0, 33, 42, 65_534], &[], None);
    let mut leases: Vec<Lease> = Vec::new();
    while let Ok(found) = allocate(&login, &leases, &[], &plan, &plan) {
        leases.push(Lease {
            holder: String::new(),
            maps: found.maps,
            reclaimable: false,
        });
    }
    let page = page();
    for lease in &leases[..2] {
        let host: IdMaps = lease.maps.compose(&login).unwrap();
        let text = words(&host.uid.to_proc_text());
        assert!(page.contains(&text), "{text}");
    }
    let first: IdMap = leases[0].maps.uid.compose(&login.uid).unwrap();
    assert_eq!(first.to_outside(1000), Some(165_525));
    assert!(page.contains("(1000) is 165525"));
    assert!(page.contains(&format!("hold {} containers", leases.len())));
    assert!(page.contains(&format!(
        "= {} UIDs",
        plan.low_block + plan.strays.len() as u32
    )));
}
