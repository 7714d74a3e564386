//! The ground tests stand on: the binary under test, real logins, images made by others.
//!
//! `scripts/test` prepares all of it and says where it is through the environment. Run by root,
//! the harness itself stays root, to mount and to look at everything from the host's side, and
//! every command under test is started as one of the unprivileged logins. Run by a plain user,
//! that user is the only login.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libtest_mimic::{Completion, Failed, Trial};

use crate::login::Login;

/// An ordinary user of this host.
#[derive(Debug, Clone)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// First ID and count of its subordinate UIDs.
    pub subuids: (u32, u32),
}

impl User {
    /// True for the user's own UID and for its subordinate ones.
    pub fn owns_uid(&self, uid: u32) -> bool {
        let (first, count) = self.subuids;
        uid == self.uid || (first..first + count).contains(&uid)
    }
}

/// Why a test did not run.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Skip {
    reason: String,
    /// A machine prepared by `scripts/test` as root could have run it.
    avoidable: bool,
}

/// Everything prepared for this run.
pub struct Ground {
    pub binary: PathBuf,
    pub scratch: PathBuf,
    pub users: Vec<User>,
    /// A user without subordinate IDs.
    bare_user: Option<User>,
    pub is_root: bool,
    /// Starts every random choice; printed, so that a failure can be repeated.
    pub seed: u64,
    /// How many processes the chaos test kills.
    pub kills: u32,
    images: PathBuf,
    must_run: bool,
    counter: AtomicU32,
    shared: [OnceLock<Result<Login, String>>; 2],
    debian: OnceLock<Result<(), String>>,
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: run scripts/test"))
}

fn number_or(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

impl Ground {
    /// Reads what `scripts/test` prepared.
    pub fn from_environment() -> Result<Self> {
        let users = variable("SELKIE_TEST_USERS")?
            .split(',')
            .map(find_user)
            .collect::<Result<Vec<_>>>()?;
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        Ok(Self {
            binary: variable("SELKIE_TEST_BINARY")?.into(),
            scratch: variable("SELKIE_TEST_SCRATCH")?.into(),
            images: variable("SELKIE_TEST_IMAGES")?.into(),
            users,
            bare_user: std::env::var("SELKIE_TEST_BARE_USER")
                .ok()
                .filter(|name| !name.is_empty())
                .map(|name| find_user(&name))
                .transpose()?,
            is_root: rustix::process::getuid().is_root(),
            seed: number_or("SELKIE_TEST_SEED", clock.as_nanos() as u64)?,
            kills: number_or("SELKIE_TEST_KILLS", 300)? as u32,
            must_run: std::env::var_os("SELKIE_TEST_MUST").is_some_and(|value| value == "1"),
            counter: AtomicU32::new(0),
            shared: Default::default(),
            debian: OnceLock::new(),
        })
    }

    /// Wraps a test for the runner: an error fails it, unless the error is a [`Skip`].
    pub fn trial<T>(&'static self, name: &str, test: T) -> Trial
    where
        T: FnOnce(&'static Self) -> Result<()> + Send + 'static,
    {
        Trial::ignorable_test(name, move || match test(self) {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(skip) if skip.avoidable && self.must_run => {
                    Err(Failed::from(format!("skipped, but must run: {skip}")))
                }
                Some(skip) => Ok(Completion::ignored_with(skip)),
                // The chain of causes, without a backtrace through the runner.
                None => Err(Failed::from(format!("{error:#}"))),
            },
        })
    }

    /// A word no other test of this run uses.
    pub fn unique(&self, word: &str) -> String {
        format!("{word}-{}", self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// The path of an image archive made by `scripts/make-images`.
    pub fn image(&self, name: &str) -> Result<PathBuf> {
        let path = self.images.join(name);
        if path.exists() {
            return Ok(path);
        }
        Err(Skip {
            reason: format!(
                "no {}: scripts/make-images (as root) makes it",
                path.display()
            ),
            avoidable: true,
        }
        .into())
    }

    /// Skips unless the harness is root.
    pub fn needs_root(&self, what_for: &str) -> Result<()> {
        if self.is_root {
            return Ok(());
        }
        Err(Skip {
            reason: format!("needs root to {what_for}"),
            avoidable: true,
        }
        .into())
    }

    /// Skips unless a program of another project is installed.
    pub fn needs_program(&self, program: &str) -> Result<()> {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
        if found {
            return Ok(());
        }
        Err(Skip {
            reason: format!("{program} is not installed"),
            avoidable: true,
        }
        .into())
    }

    /// The first user's login that most tests share; it has the `busybox` and `rich` images.
    pub fn login(&'static self) -> Result<&'static Login> {
        self.shared_login(0)
    }

    /// The second user's login, with the same images.
    pub fn other_login(&'static self) -> Result<&'static Login> {
        if self.users.len() < 2 {
            return Err(Skip {
                reason: "needs a second user".into(),
                avoidable: true,
            }
            .into());
        }
        self.shared_login(1)
    }

    fn shared_login(&'static self, index: usize) -> Result<&'static Login> {
        let made = self.shared[index].get_or_init(|| {
            let make = || -> Result<Login> {
                let login = Login::new(self, self.users[index].clone(), "shared")?;
                login.load("busybox.oci.tar")?;
                login.load("rich.oci.tar")?;
                Ok(login)
            };
            make().map_err(|error| format!("{error:#}"))
        });
        made.as_ref()
            .map_err(|error| anyhow!("the shared login could not be prepared: {error}"))
    }

    /// [`Ground::login`] with the Debian image loaded too.
    pub fn login_with_debian(&'static self) -> Result<&'static Login> {
        self.image("debian.oci.tar")?;
        let login = self.login()?;
        let loaded = self.debian.get_or_init(|| {
            login
                .load("debian.oci.tar")
                .map_err(|error| format!("{error:#}"))
        });
        match loaded {
            Ok(()) => Ok(login),
            Err(error) => bail!("the Debian image could not be loaded: {error}"),
        }
    }

    /// A login of the first user with a home and a runtime directory of its own and nothing in
    /// them; ended and removed when dropped.
    pub fn fresh_login(&'static self) -> Result<Login> {
        Login::new(self, self.users[0].clone(), "fresh")
    }

    /// A fresh login of a user without subordinate IDs.
    pub fn bare_login(&'static self) -> Result<Login> {
        match &self.bare_user {
            Some(user) => Login::new(self, user.clone(), "fresh"),
            None => Err(Skip {
                reason: "needs a user without subordinate IDs".into(),
                avoidable: true,
            }
            .into()),
        }
    }

    /// [`Ground::fresh_login`] with the `busybox` image.
    pub fn fresh_login_with_busybox(&'static self) -> Result<Login> {
        let login = self.fresh_login()?;
        login.load("busybox.oci.tar")?;
        Ok(login)
    }

    /// Ends what shared logins left running. Fresh ones end themselves.
    pub fn end(&self) {
        for login in self.shared.iter().filter_map(OnceLock::get).flatten() {
            login.end();
        }
    }
}

fn find_user(name: &str) -> Result<User> {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let fields: Vec<&str> = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == name)
        .with_context(|| format!("no user {name} in /etc/passwd"))?;
    ensure!(fields.len() == 7, "odd line for {name} in /etc/passwd");
    let subuids = read_subids(Path::new("/etc/subuid"), name)?;
    Ok(User {
        name: name.to_owned(),
        uid: fields[2].parse()?,
        gid: fields[3].parse()?,
        subuids,
    })
}

/// The first range of the user; nothing is a range of no IDs.
fn read_subids(file: &Path, name: &str) -> Result<(u32, u32)> {
    let text = std::fs::read_to_string(file)?;
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [user, first, count] = fields[..]
            && user == name
        {
            return Ok((first.parse()?, count.parse()?));
        }
    }
    Ok((0, 0))
}
