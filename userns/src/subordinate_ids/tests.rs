use proptest::prelude::*;

use super::*;
use crate::id_map::IdMapError;

const ALICE: Login = Login {
    uid: 1000,
    gid: 1000,
};

fn alice() -> LoginNames {
    LoginNames {
        names: vec!["alice".into(), "alias".into()],
        local: true,
    }
}

fn chosen(text: &str) -> Result<Vec<IdRange>, SubordinateIdError> {
    let path = Path::new("/etc/subuid");
    choose(path, IdKind::Uid, &parse(text), ALICE, &alice())
}

fn range(start: u32, count: u32) -> IdRange {
    IdRange { start, count }
}

#[test]
fn lines_by_name_alias_and_uid_add_up_in_order() {
    let text =
        "# comment\n\nbob:100000:65536\nalice:300000:1000\n1000:200000:65536\nalias:400000:10\n";
    assert_eq!(
        chosen(text).unwrap(),
        [
            range(300_000, 1000),
            range(200_000, 65_536),
            range(400_000, 10)
        ]
    );
}

#[test]
fn a_line_repeated_means_no_harm() {
    let text = "alice:100000:65536\n1000:100000:65536\n";
    assert_eq!(chosen(text).unwrap(), [range(100_000, 65_536)]);
}

#[test]
fn others_broken_lines_are_not_ours_to_judge() {
    let text = "garbage\nbob:x:y\n:::\n#alice:1:2\n\u{fffd}:1:1\nalice:100000:65536\n";
    assert_eq!(chosen(text).unwrap(), [range(100_000, 65_536)]);
}

#[test]
fn an_absent_line_suggests_a_range_nobody_has() {
    let error = chosen("bob:100000:65536\ncarol:165536:65536\n").unwrap_err();
    assert!(error.is_absence());
    assert_eq!(
        error.to_string(),
        "/etc/subuid has no line for alice (UID 1000), so there are no subordinate UIDs; as root: \
         usermod --add-subuids 231072-296607 alice"
    );
}

#[test]
fn who_is_not_in_the_password_file_gets_a_line_to_add() {
    let names = LoginNames::default();
    let path = Path::new("/etc/subgid");
    let error = choose(path, IdKind::Gid, &[], ALICE, &names).unwrap_err();
    assert!(
        error.to_string().ends_with("UID 1000, so there are no subordinate GIDs; as root, add the line 1000:100000:65536 to /etc/subgid"),
        "{error}"
    );
}

#[test]
fn own_malformed_lines_say_what_is_wrong() {
    for (text, why) in [
        ("alice:100000", "the count is missing"),
        (
            "alice:ten:65536",
            "the first ID is not a decimal number below 4294967295",
        ),
        (
            "alice:0x10:65536",
            "the first ID is not a decimal number below 4294967295",
        ),
        (
            "alice:0100000:65536",
            "the first ID is not a decimal number below 4294967295",
        ),
        (
            "alice::65536",
            "the first ID is not a decimal number below 4294967295",
        ),
        (
            "alice:100000:-1",
            "the count is not a decimal number below 4294967296",
        ),
        (
            "alice:100000:65536:7",
            "the count is not a decimal number below 4294967296",
        ),
        ("alice:100000:0", "the count is 0"),
        (
            "alice:4294967290:6",
            "the range runs past 4294967294, the largest ID",
        ),
    ] {
        match chosen(&format!("\nbob:1:1\n{text}\n")) {
            Err(SubordinateIdError::Malformed {
                line: 3,
                why: found,
                ..
            }) => assert_eq!(found, why),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn each_mistake_has_its_own_error() {
    use SubordinateIdError as E;
    let error = |text: &str| chosen(text).unwrap_err();
    let partly = error("alice:100000:65536\nalice:165000:65536\n");
    assert!(matches!(partly, E::OwnOverlap { .. }), "{partly}");
    assert!(!partly.is_absence());
    let shared = error("alice:100000:65536\nbob:165535:10\n");
    assert!(
        matches!(&shared, E::SharedWithOther { other, .. } if other == "bob"),
        "{shared}"
    );
    let own = error("alice:500:65536\n");
    assert!(matches!(own, E::OwnIdInside { id: 1000, .. }), "{own}");
    let root = error("alice:0:900\n");
    assert!(matches!(root, E::ContainsRoot { .. }), "{root}");
    let small = error("alice:100000:100\nalice:200000:44\n");
    assert!(matches!(small, E::TooSmall { total: 144, .. }), "{small}");
    assert!(small.is_absence());
    assert!(chosen("alice:100000:100\nalice:200000:45\n").is_ok());
    let fix = shared.to_string();
    assert!(
        fix.ends_with("usermod --del-subuids 100000-165535 --add-subuids 165545-231080 alice"),
        "{fix}"
    );
}

#[test]
fn more_ranges_than_the_kernel_takes() {
    let ranges: Vec<_> = (0..400).map(|i| range(100_000 + i * 10, 5)).collect();
    let ids = SubordinateIds {
        uid: ranges.clone(),
        gid: ranges[..339].to_vec(),
    };
    let error = ids.pause_maps(ALICE).unwrap_err();
    assert!(matches!(
        error,
        SubordinateIdError::NotAMap {
            kind: IdKind::Uid,
            error: IdMapError::TooMany(401)
        }
    ));
    let fits = SubordinateIds {
        uid: ranges[..339].to_vec(),
        ..ids
    };
    assert_eq!(fits.pause_maps(ALICE).unwrap().uid.extents().len(), 340);
}

#[test]
fn a_range_added_later_leaves_the_earlier_ones_in_place() {
    let ids = |ranges: &[IdRange]| SubordinateIds {
        uid: ranges.to_vec(),
        gid: vec![range(100_000, 200)],
    };
    let before = ids(&[range(500_000, 1000)]).pause_maps(ALICE).unwrap();
    let after = ids(&[range(500_000, 1000), range(200_000, 1000)])
        .pause_maps(ALICE)
        .unwrap();
    for inside in [0, 1, 500, 1000] {
        assert_eq!(before.uid.to_outside(inside), after.uid.to_outside(inside));
    }
    assert_eq!(after.uid.to_outside(1001), Some(200_000));
    assert_eq!(after.uid.to_outside(0), Some(1000));
}

/// A host in a directory of its own, with tools that are shell scripts.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new(files: &[(&str, &str)]) -> Self {
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for (name, text) in files {
            let path = host.dir.path().join(name);
            if text.starts_with("#!") {
                install_script(&path, text);
            } else {
                std::fs::write(&path, text).unwrap();
            }
        }
        host
    }

    fn lookup(&self) -> Result<SubordinateIds, SubordinateIdError> {
        let file = |name| self.dir.path().join(name);
        let host = HostFiles {
            subuid: file("subuid"),
            subgid: file("subgid"),
            nsswitch: file("nsswitch.conf"),
            passwd: file("passwd"),
            tool_dirs: vec![self.dir.path().to_owned()],
        };
        lookup(ALICE, &host)
    }
}

/// Makes an executable file. Not by writing it ourselves: what another test's thread starts meanwhile
/// would inherit the descriptor, and what anybody has open for writing cannot be executed.
fn install_script(path: &std::path::Path, text: &str) {
    use std::io::Write as _;
    let mut install = std::process::Command::new("install")
        .args(["-m", "0755", "/dev/stdin"])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = install.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    assert!(install.wait().unwrap().success());
}

const PASSWD: (&str, &str) = ("passwd", "alice:x:1000:1000::/home/alice:/bin/sh\n");
const SSS: (&str, &str) = ("nsswitch.conf", "subid: sss\n");

#[test]
fn files_are_read() {
    let host = Host::new(&[
        PASSWD,
        ("subuid", "alice:100000:65536\n"),
        ("subgid", "1000:200000:1000\n"),
    ]);
    let ids = host.lookup().unwrap();
    assert_eq!(ids.uid, [range(100_000, 65_536)]);
    assert_eq!(ids.gid, [range(200_000, 1000)]);
}

#[test]
fn an_absent_file_is_not_an_absent_line() {
    let neither = Host::new(&[PASSWD]).lookup().unwrap_err();
    assert!(matches!(
        neither,
        SubordinateIdError::FileAbsent {
            kind: IdKind::Uid,
            ..
        }
    ));
    let no_subgid = Host::new(&[PASSWD, ("subuid", "alice:100000:65536\n")]);
    let error = no_subgid.lookup().unwrap_err();
    assert!(matches!(
        error,
        SubordinateIdError::FileAbsent {
            kind: IdKind::Gid,
            ..
        }
    ));
    let empty = Host::new(&[PASSWD, ("subuid", ""), ("subgid", "")]);
    assert!(matches!(
        empty.lookup(),
        Err(SubordinateIdError::LineAbsent { .. })
    ));
}

#[test]
fn the_name_service_is_asked_where_the_admin_says_so() {
    let getsubids = "#!/bin/sh\ncase $1 in -g) echo '0: alice 700000 1000' ;; \
                     alice) echo '0: alice 600000 1000'; echo '1: alice 610000 5' ;; esac\n";
    // The files say otherwise and must not count.
    let host = Host::new(&[
        PASSWD,
        SSS,
        ("subuid", "alice:100000:65536\n"),
        ("getsubids", getsubids),
    ]);
    let ids = host.lookup().unwrap();
    assert_eq!(ids.uid, [range(600_000, 1000), range(610_000, 5)]);
    assert_eq!(ids.gid, [range(700_000, 1000)]);
}

#[test]
fn the_name_service_helps_out_when_the_files_are_silent_and_nobody_chose() {
    let getsubids = "#!/bin/sh\necho '0: alice 600000 1000'\n";
    let silent = [PASSWD, ("subuid", ""), ("getsubids", getsubids)];
    assert_eq!(
        Host::new(&silent).lookup().unwrap().gid,
        [range(600_000, 1000)]
    );
    let files_only = [silent.as_slice(), &[("nsswitch.conf", "subid: files\n")]].concat();
    let error = Host::new(&files_only).lookup().unwrap_err();
    assert!(matches!(error, SubordinateIdError::LineAbsent { .. }));
}

#[test]
fn the_name_service_can_fail_in_its_own_ways() {
    use SubordinateIdError as E;
    let files = [("subuid", "alice:100000:65536\n"), ("subgid", "")];
    let half = Host::new(&[&[PASSWD, SSS], files.as_slice()].concat());
    assert!(matches!(
        half.lookup(),
        Err(E::NameServiceToolMissing { .. })
    ));
    let missing = Host::new(&[PASSWD, SSS]).lookup().unwrap_err();
    assert!(matches!(&missing, E::NameServiceToolMissing { service, .. } if service == "sss"));
    let nothing = (
        "getsubids",
        "#!/bin/sh\necho 'Error fetching ranges' >&2\nexit 1\n",
    );
    let empty = Host::new(&[PASSWD, SSS, nothing]).lookup().unwrap_err();
    assert!(matches!(empty, E::NameServiceEmpty { .. }), "{empty}");
    let odd = ("getsubids", "#!/bin/sh\necho hello\n");
    let failed = Host::new(&[PASSWD, SSS, odd]).lookup().unwrap_err();
    assert!(matches!(failed, E::ToolFailed { .. }), "{failed}");
    assert!(!failed.is_absence());
    let nameless = Host::new(&[SSS, nothing]).lookup().unwrap_err();
    assert!(
        matches!(nameless, E::NoLoginName { uid: 1000, .. }),
        "{nameless}"
    );
    let own_inside = ("getsubids", "#!/bin/sh\necho '0: alice 900 1000'\n");
    let wrong = Host::new(&[PASSWD, SSS, own_inside]).lookup().unwrap_err();
    assert!(matches!(wrong, E::OwnIdInside { .. }), "{wrong}");
}

#[test]
fn a_login_of_the_directory_is_known_by_name() {
    let getent = "#!/bin/sh\n[ \"$1 $2\" = 'passwd 1000' ] && echo 'ldapuser:*:1000:1000::/home/l:/bin/sh'\n";
    let host = Host::new(&[
        ("getent", getent),
        ("subuid", "ldapuser:100000:65536\n"),
        ("subgid", ""),
    ]);
    let error = host.lookup().unwrap_err().to_string();
    // usermod does not know logins of a directory.
    assert!(error.contains("ldapuser (UID 1000)"), "{error}");
    assert!(
        error.contains("add the line ldapuser:100000:65536 to"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn any_file_parses_without_panic(text in "\\PC{0,200}|([a-z0-9:# -]{0,40}\n){0,8}") {
        for line in parse(&text) {
            prop_assert!(text.contains(line.owner));
        }
        let _ = chosen(&text);
        let _ = unused_range(&parse(&text));
    }

    #[test]
    fn what_is_chosen_is_safe_to_map(
        lines in prop::collection::vec(
            (prop::sample::select(vec!["alice", "1000", "bob"]), 0u32..300_000, 0u32..70_000),
            0..6,
        )
    ) {
        let text: String = lines.iter().map(|(o, s, c)| format!("{o}:{s}:{c}\n")).collect();
        if let Ok(ranges) = chosen(&text) {
            for (index, range) in ranges.iter().enumerate() {
                prop_assert!(!range.contains(0) && !range.contains(1000));
                prop_assert!(ranges[..index].iter().all(|other| !other.overlaps(range)));
            }
            for (owner, start, count) in lines {
                if let ("bob", Some(bobs)) = (owner, IdRange::new(start, count)) {
                    prop_assert!(ranges.iter().all(|range| !range.overlaps(&bobs)));
                }
            }
            let ids = SubordinateIds { uid: ranges.clone(), gid: ranges };
            let maps = ids.pause_maps(ALICE).unwrap();
            prop_assert_eq!(maps.uid.to_inside(1000), Some(0));
        }
    }
}
