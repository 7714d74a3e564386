//! Archives made to do harm: the host is untouched, the store unchanged, the error clear.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::ground::Ground;
use crate::login::{Login, expect_contains, expect_eq};

pub fn trials(ground: &'static Ground) -> Vec<Trial> {
    vec![
        ground.trial("hostile::table_of_layers", table_of_layers),
        ground.trial("hostile::oci_archives_that_lie", oci_archives_that_lie),
        ground.trial("hostile::bomb_on_a_small_disk", bomb_on_a_small_disk),
    ]
}

/// What must come of it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    /// An error, and the store as before.
    Refused,
    /// An image whose containers see what `look` prints.
    Contained {
        look: &'static str,
        shows: &'static str,
    },
}

/// Name, Python that fills `t` (a tarfile open for writing) with `f(name, content)`, `d(name)`,
/// `l(name, target)`, `h(name, target)` and `n(name, type)`; `HOST` is a directory of the host.
const LAYERS: &[(&str, &str, Fate)] = &[
    ("parent-of-root", "f('../escape', 'x')", Fate::Refused),
    (
        "parent-in-the-middle",
        "f('a/../../../escape', 'x')",
        Fate::Refused,
    ),
    (
        "hard-link-to-the-outside",
        "h('stolen', '../../../../../../../etc/shadow')",
        Fate::Refused,
    ),
    (
        "hard-link-to-nothing",
        "h('nothing', 'is/not/there')",
        Fate::Refused,
    ),
    (
        "file-below-a-file",
        "f('a', 'x'); f('a/b', 'x')",
        Fate::Refused,
    ),
    ("whiteout-of-the-parent", "f('.wh...', '')", Fate::Refused),
    (
        "link-then-write",
        "l('out', HOST); f('out/escape', 'x')",
        Fate::Refused,
    ),
    (
        "relative-link-then-write",
        "l('out', '../' * 20 + HOST); f('out/escape', 'x')",
        Fate::Refused,
    ),
    (
        "link-to-itself-then-write",
        "l('loop', 'loop'); f('loop/escape', 'x')",
        Fate::Refused,
    ),
    (
        "absolute-name",
        "f('/absolute', 'inside')",
        Fate::Contained {
            look: "cat /absolute",
            shows: "inside",
        },
    ),
    (
        "absolute-link",
        "l('passwd', '/etc/shadow')",
        Fate::Contained {
            look: "cat /passwd 2>/dev/null || echo nothing",
            shows: "nothing",
        },
    ),
    (
        "duplicate-entries",
        "f('twice', 'first'); d('x'); f('twice', 'second')",
        Fate::Refused,
    ),
    (
        "directory-over-link",
        "l('place', HOST); d('place'); f('place/file', 'inside')",
        Fate::Refused,
    ),
    (
        "device-node",
        "n('disk', tarfile.BLKTYPE); n('mem', tarfile.CHRTYPE); f('file', 'inside\\n')",
        Fate::Contained {
            look: "cat /file; test -b /disk || test -c /mem || echo no-device",
            shows: "inside\nno-device",
        },
    ),
    (
        "set-id-on-strange-owner",
        "f('suid', 'x', mode=0o6777, uid=60000)",
        Fate::Contained {
            look: "echo ran",
            shows: "ran",
        },
    ),
];

/// Makes the tarball; a busybox is in it, so that an image of it can run.
fn make_layer(login: &Login, host: &Path, fill: &str) -> Result<String> {
    let path = login.home.join("layer.tar");
    let script = format!(
        r#"
import io, tarfile
HOST = {host:?}
t = tarfile.open({path:?}, 'w')
def add(name, kind, content=b'', target='', mode=0o755, uid=0):
    i = tarfile.TarInfo(name); i.type = kind; i.size = len(content); i.linkname = target; i.mode = mode; i.uid = uid
    i.devmajor, i.devminor = 1, 1
    t.addfile(i, io.BytesIO(content))
def f(name, content, **more): add(name, tarfile.REGTYPE, content.encode(), **more)
def d(name): add(name, tarfile.DIRTYPE)
def l(name, target): add(name, tarfile.SYMTYPE, target=target)
def h(name, target): add(name, tarfile.LNKTYPE, target=target)
def n(name, kind): add(name, kind)
d('bin'); add('bin/busybox', tarfile.REGTYPE, open('/bin/busybox', 'rb').read())
for applet in 'sh cat test echo'.split(): l('bin/' + applet, 'busybox')
{fill}
t.close()
"#
    );
    login.program("python3", &["-c", &script]).run()?.ok()?;
    Ok(path.to_string_lossy().into_owned())
}

/// What must not change when an archive is refused.
fn state(login: &Login) -> Result<String> {
    let check = login.selkie(&["system", "check"]).run()?;
    Ok(format!(
        "{}\n{}\n{}",
        login.ok(&["images", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"])?,
        check.code,
        check.text()
    ))
}

fn table_of_layers(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let host = login.home.join("host");
    login.make_directory(&host, 0o777)?;
    let before = state(&login)?;
    let mut wrong = Vec::new();
    for (name, fill, fate) in LAYERS {
        let checked = check_layer(&login, &host, name, fill, *fate, &before);
        if let Err(error) = checked {
            wrong.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn check_layer(
    login: &Login,
    host: &Path,
    name: &str,
    fill: &str,
    fate: Fate,
    before: &str,
) -> Result<()> {
    let layer = make_layer(login, host, fill)?;
    let finished = login.selkie(&["import", &layer, name]).run()?;
    match fate {
        Fate::Refused => {
            finished.refused(125)?;
            // What was written before the bad entry is garbage that prune knows.
            login.ok(&["system", "prune", "--force"])?;
            login.load("busybox.oci.tar")?;
            expect_eq(state(login)?.as_str(), before).context("the store has changed")?;
        }
        Fate::Contained { look, shows } => {
            finished.ok()?;
            expect_eq(
                login.ok(&["run", "--rm", name, "/bin/sh", "-c", look])?,
                shows,
            )?;
            login.ok(&["rmi", name])?;
        }
    }
    ensure!(
        std::fs::read_dir(host)?.next().is_none(),
        "the host's directory was written to"
    );
    ensure!(!login.home.join("escape").exists() && !login.data_dir().join("escape").exists());
    Ok(())
}

/// Changes to an unpacked `oci:` layout, in Python; `blob(digest)` is a blob's path.
const LIES: &[(&str, &str)] = &[
    (
        "wrong-layer-digest",
        "p=blob(layer); b=bytearray(open(p,'rb').read()); b[100]^=1; open(p,'wb').write(b)",
    ),
    (
        "wrong-config-digest",
        "p=blob(config); open(p,'ab').write(b' ')",
    ),
    (
        "wrong-diff-id",
        "c['rootfs']['diff_ids'][0]='sha256:'+'0'*64; put_config()",
    ),
    (
        "too-few-diff-ids",
        "c['rootfs']['diff_ids']=[]; put_config()",
    ),
    ("wrong-size", "m['layers'][0]['size']+=1; put_manifest()"),
    (
        "digest-with-a-path",
        "m['layers'][0]['digest']='sha256:../../../../etc/passwd'; put_manifest()",
    ),
    (
        "unknown-algorithm",
        "m['layers'][0]['digest']='md5:'+'0'*32; put_manifest()",
    ),
    ("missing-layer", "os.unlink(blob(layer))"),
    (
        "manifest-is-no-json",
        "p=blob(manifest); open(p,'w').write('{'); rename_manifest()",
    ),
    ("config-is-no-json", "raw_config(b'{')"),
    ("no-layers-but-diff-ids", "m['layers']=[]; put_manifest()"),
    ("index-without-manifests", "i['manifests']=[]; put_index()"),
];

const LIAR: &str = r#"
import hashlib, json, os, shutil, sys
source, here, lie = sys.argv[1:]
shutil.copytree(source, here)
def blob(digest): return here + '/blobs/' + digest.replace(':', '/')
def put(raw):
    digest = 'sha256:' + hashlib.sha256(raw).hexdigest()
    open(blob(digest), 'wb').write(raw)
    return {'digest': digest, 'size': len(raw)}
i = json.load(open(here + '/index.json'))
manifest = i['manifests'][0]['digest']
m = json.load(open(blob(manifest)))
config, layer = m['config']['digest'], m['layers'][0]['digest']
c = json.load(open(blob(config)))
def put_index(): json.dump(i, open(here + '/index.json', 'w'))
def put_manifest():
    i['manifests'][0].update(put(json.dumps(m).encode())); put_index()
def raw_config(raw):
    m['config'].update(put(raw)); put_manifest()
def put_config(): raw_config(json.dumps(c).encode())
def rename_manifest():
    i['manifests'][0].update(put(open(blob(manifest), 'rb').read())); put_index()
exec(lie)
"#;

fn oci_archives_that_lie(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login()?;
    let source = ground.image("busybox.oci")?;
    login.ok(&["images"])?;
    let before = state(&login)?;
    let mut wrong = Vec::new();
    for (name, lie) in LIES {
        let here = login.home.join(name);
        let arguments = [
            "-c",
            LIAR,
            &source.to_string_lossy(),
            &here.to_string_lossy(),
            lie,
        ];
        login.program("python3", &arguments).run()?.ok()?;
        let checked = login
            .refused(
                125,
                &["load", "--input", &format!("oci:{}", here.display())],
            )
            .and_then(|_| login.ok(&["system", "prune", "--force"]))
            .and_then(|_| expect_eq(state(&login)?, before.clone()));
        if let Err(error) = checked {
            wrong.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn bomb_on_a_small_disk(ground: &'static Ground) -> Result<()> {
    let login = ground.fresh_login_with_busybox()?;
    let before = state(&login)?;
    // Twenty kilobytes that say they are a terabyte of data: the stream ends first.
    let script = "import tarfile,gzip; i=tarfile.TarInfo('big'); i.size=1<<40; open('bomb.tar.gz','wb').write(gzip.compress(i.tobuf(tarfile.GNU_FORMAT)+b'\\0'*(10<<20)))";
    login.program("python3", &["-c", script]).run()?.ok()?;
    let path = login.home.join("bomb.tar.gz");
    let error = login.refused(125, &["import", &path.to_string_lossy(), "bomb"])?;
    expect_contains(error, "bomb.tar.gz")?;
    login.ok(&["system", "prune", "--force"])?;
    login.load("busybox.oci.tar")?;
    expect_eq(state(&login)?, before)
}
