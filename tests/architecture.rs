//! The walls of the house: which crate may know which, where `unsafe` may be, how long a file may
//! be. The table is DESIGN's; `ARCHITECTURE.md` shows it to people, and the two must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Crate, its folder, and the crates of this workspace it may depend on.
const MAY_KNOW: &[(&str, &str, &[&str])] = &[
    ("selkie-sys", "sys", &[]),
    ("selkie-userns", "userns", &["selkie-sys"]),
    (
        "selkie-storage",
        "storage-fuse",
        &["selkie-sys", "selkie-userns"],
    ),
    ("selkie-net", "rootless-net", &["selkie-sys"]),
    ("selkie-runtime", "runtime", &["selkie-sys"]),
    ("selkie-image", "image", &[]),
    (
        "selkie-engine",
        "engine",
        &[
            "selkie-sys",
            "selkie-userns",
            "selkie-storage",
            "selkie-net",
            "selkie-runtime",
            "selkie-image",
        ],
    ),
    ("selkie-build", "build", &["selkie-engine", "selkie-image"]),
    ("selkie-api", "api", &["selkie-engine", "selkie-build"]),
    (
        "selkie",
        ".",
        &["selkie-engine", "selkie-build", "selkie-api"],
    ),
];

/// Longest source file in lines: beyond it a file does more than one job.
const MOST_LINES: usize = 900;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .no_deps()
        .exec()
        .expect("cargo metadata")
}

/// Every workspace crate's dependencies on other workspace crates; those of tests too.
fn arrows(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let names: BTreeSet<&str> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    metadata
        .workspace_packages()
        .iter()
        .map(|package| {
            let known = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind != DependencyKind::Unknown)
                .map(|dependency| dependency.name.clone())
                .filter(|name| names.contains(name.as_str()))
                .collect();
            (package.name.to_string(), known)
        })
        .collect()
}

fn allowed(name: &str) -> Option<BTreeSet<String>> {
    MAY_KNOW
        .iter()
        .find(|(known, ..)| *known == name)
        .map(|(.., may)| may.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn no_crate_knows_more_than_it_may() {
    let mut wrong = Vec::new();
    for (name, knows) in arrows(&metadata()) {
        match allowed(&name) {
            None => wrong.push(format!("{name} has no line in the table")),
            Some(may) => wrong.extend(
                knows
                    .difference(&may)
                    .map(|other| format!("{name} depends on {other}")),
            ),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_crate_lives_in_its_room() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let room = MAY_KNOW
            .iter()
            .find(|(name, ..)| *name == package.name.as_str())
            .map(|(_, room, _)| *room)
            .expect("checked by no_crate_knows_more_than_it_may");
        let expected = root().join(room).join("Cargo.toml");
        assert_eq!(
            std::fs::canonicalize(&package.manifest_path).unwrap(),
            std::fs::canonicalize(expected).unwrap(),
            "{} does not live in {room}/",
            package.name
        );
    }
}

/// The table's lines in ARCHITECTURE.md: `| folder/ | crate | … | may know |`.
#[test]
fn architecture_md_shows_the_same_table() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let (_, room, may) = MAY_KNOW
            .iter()
            .find(|(known, ..)| *known == name)
            .expect("checked by no_crate_knows_more_than_it_may");
        let room = if *room == "." { "src" } else { room };
        let cells: Vec<Vec<&str>> = page
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        let row = cells
            .iter()
            .find(|cells| cells.get(1) == Some(&format!("`{room}/`").as_str()))
            .unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for `{room}/`"));
        assert_eq!(row.get(2), Some(&name), "crate of `{room}/`");
        // What exists today; rooms that are not built yet are not drawn.
        let built: BTreeSet<&str> = metadata
            .workspace_packages()
            .iter()
            .map(|package| package.name.as_str())
            .collect();
        let expected: BTreeSet<&str> = may
            .iter()
            .filter(|name| built.contains(*name))
            .map(|name| name.strip_prefix("selkie-").unwrap_or(name))
            .collect();
        let shown: BTreeSet<&str> = row
            .iter()
            .rev()
            .find(|cell| !cell.is_empty())
            .map(|cell| {
                cell.split(',')
                    .map(str::trim)
                    .filter(|word| !word.is_empty() && *word != "–")
                    .collect()
            })
            .unwrap_or_default();
        assert_eq!(shown, expected, "what {name} may know, in ARCHITECTURE.md");
    }
}

/// Every `.rs` file of the repository with its path relative to the root.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).expect("read a source folder") {
            let path = entry.expect("read a source folder").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    walk(&path, found);
                }
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("read a source file");
            let path = path
                .strip_prefix(root())
                .expect("below the root")
                .to_owned();
            (path, text)
        })
        .collect()
}

/// The line without its comment and without what stands in string literals.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut in_string = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if in_string => {
                characters.next();
            }
            '"' => in_string = !in_string,
            '/' if !in_string && characters.peek() == Some(&'/') => break,
            _ if !in_string => code.push(character),
            _ => {}
        }
    }
    code
}

fn says_unsafe(line: &str) -> bool {
    code_of(line)
        .split(|character: char| !character.is_alphanumeric() && character != '_')
        .any(|word| word == "unsafe")
}

#[test]
fn unsafe_is_only_in_sys() {
    let mut found = Vec::new();
    let mut in_sys = 0;
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if !says_unsafe(line) {
                continue;
            }
            if path.starts_with("sys") {
                in_sys += 1;
            } else {
                found.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
        let opens_the_door = text
            .lines()
            .any(|line| code_of(line).contains("allow(unsafe_code)"));
        assert!(
            !opens_the_door || path == Path::new("sys/src/lib.rs"),
            "{} allows unsafe code",
            path.display()
        );
    }
    assert!(found.is_empty(), "{found:#?}");
    // Were this nought, the search itself would be broken.
    assert!(in_sys > 0);
}

#[test]
fn lints_are_on_in_every_crate() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    for lint in [
        "unsafe_code = \"deny\"",
        "undocumented_unsafe_blocks = \"deny\"",
    ] {
        assert!(manifest.contains(lint), "the workspace lacks {lint}");
    }
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).expect("a manifest");
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} does not take the workspace's lints",
            package.name
        );
    }
}

#[test]
fn files_do_one_job() {
    let long: Vec<String> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "longer than {MOST_LINES} lines: {long:#?}");
    for (path, _) in sources() {
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        assert!(
            ![
                "utils", "util", "common", "helpers", "helper", "manager", "misc"
            ]
            .contains(&stem.as_str()),
            "{} says nothing about its job",
            path.display()
        );
    }
}

#[test]
fn nothing_is_left_undone() {
    // Split, so that this file does not find itself.
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("FIX", "ME"),
    ];
    let found: Vec<String> = sources()
        .into_iter()
        .flat_map(|(path, text)| {
            text.lines()
                .enumerate()
                .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
                .map(|(number, line)| format!("{}:{}: {}", path.display(), number + 1, line.trim()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_unsafe_search_sees_through_comments_and_strings() {
    assert!(says_unsafe("    let x = unsafe { y() };"));
    assert!(says_unsafe("unsafe fn f() {}"));
    assert!(!says_unsafe("// unsafe is only in sys"));
    assert!(!says_unsafe("let word = \"unsafe \\\" unsafe\"; // unsafe"));
    assert!(!says_unsafe("#![allow(unsafe_code)]"));
}
