//! The command tree. Only the names of commands are built at start; a command's flags are built
//! when that command is parsed (`Command::defer`), because start-up time is part of `run`.

pub mod flag;
pub mod parse_error;

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::commands;
use crate::error::Result;
use crate::session::Session;
use flag::{choice, value};

/// One command: how it is called, and what it does.
pub struct CommandSpec {
    /// What one types.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// One line.
    pub about: &'static str,
    /// Example command lines under a heading, shown at the end of help.
    pub examples: &'static str,
    /// Adds its flags.
    pub flags: fn(Command) -> Command,
    /// Does it; gives the exit code.
    pub run: fn(&Session, &ArgMatches) -> Result<u8>,
}

/// A member of a group: a command under the name it has there.
pub struct Member {
    name: &'static str,
    aliases: &'static [&'static str],
    command: &'static CommandSpec,
}

/// `selkie GROUP COMMAND`.
pub struct Group {
    name: &'static str,
    about: &'static str,
    members: &'static [Member],
}

const fn member(command: &'static CommandSpec) -> Member {
    Member {
        name: command.name,
        aliases: command.aliases,
        command,
    }
}

const fn renamed(
    name: &'static str,
    aliases: &'static [&'static str],
    command: &'static CommandSpec,
) -> Member {
    Member {
        name,
        aliases,
        command,
    }
}

/// Commands at the top level.
pub static COMMANDS: &[&CommandSpec] = &[
    &commands::attach::ATTACH,
    &commands::completion::COMPLETION,
    &commands::create::CREATE,
    &commands::exec::EXEC,
    &commands::export::EXPORT,
    &commands::history::HISTORY,
    &commands::images::IMAGES,
    &commands::import::IMPORT,
    &commands::system::INFO,
    &commands::inspect::INSPECT,
    &commands::kill::KILL,
    &commands::load::LOAD,
    &commands::logs::LOGS,
    &commands::manual::MANUAL,
    &commands::port::PORT,
    &commands::ps::PS,
    &commands::load::PULL,
    &commands::rm::RM,
    &commands::rmi::RMI,
    &commands::run::RUN,
    &commands::save::SAVE,
    &commands::start::START,
    &commands::stop::STOP,
    &commands::tag::TAG,
    &commands::unshare::UNSHARE,
    &commands::tag::UNTAG,
    &commands::update::UPDATE,
    &commands::version::VERSION,
    &commands::wait::WAIT,
];

/// Groups of commands.
pub static GROUPS: &[Group] = &[
    Group {
        name: "container",
        about: "Manage containers",
        members: &[
            member(&commands::attach::ATTACH),
            member(&commands::create::CREATE),
            member(&commands::exec::EXEC),
            member(&commands::exists::CONTAINER_EXISTS),
            member(&commands::export::EXPORT),
            member(&commands::inspect::CONTAINER_INSPECT),
            member(&commands::kill::KILL),
            member(&commands::logs::LOGS),
            renamed("ls", &["list", "ps"], &commands::ps::PS),
            member(&commands::port::PORT),
            member(&commands::container_prune::CONTAINER_PRUNE),
            member(&commands::rm::RM),
            member(&commands::run::RUN),
            member(&commands::start::START),
            member(&commands::stop::STOP),
            member(&commands::update::UPDATE),
            member(&commands::wait::WAIT),
        ],
    },
    Group {
        name: "image",
        about: "Manage images",
        members: &[
            member(&commands::exists::IMAGE_EXISTS),
            member(&commands::history::HISTORY),
            member(&commands::inspect::IMAGE_INSPECT),
            member(&commands::import::IMPORT),
            member(&commands::load::LOAD),
            renamed("ls", &["list"], &commands::images::IMAGES),
            member(&commands::rmi::PRUNE),
            member(&commands::load::PULL),
            renamed("rm", &["remove"], &commands::rmi::RMI),
            member(&commands::save::SAVE),
            member(&commands::tag::TAG),
            member(&commands::tag::UNTAG),
        ],
    },
    Group {
        name: "network",
        about: "Manage networks",
        members: &[
            member(&commands::network::CONNECT),
            member(&commands::network::CREATE),
            member(&commands::network::DISCONNECT),
            member(&commands::network::EXISTS),
            member(&commands::network::INSPECT),
            member(&commands::network::LS),
            member(&commands::network::PRUNE),
            member(&commands::network::RELOAD),
            member(&commands::network::RM),
            member(&commands::network::UPDATE),
        ],
    },
    Group {
        name: "system",
        about: "Look after what Selkie keeps",
        members: &[
            member(&commands::system::CHECK),
            member(&commands::disk_usage::DF),
            member(&commands::system::INFO),
            member(&commands::system::PRUNE),
        ],
    },
    Group {
        name: "volume",
        about: "Manage volumes",
        members: &[
            member(&commands::volume::CREATE),
            member(&commands::volume::EXISTS),
            member(&commands::volume::INSPECT),
            member(&commands::volume::LS),
            member(&commands::volume::PRUNE),
            member(&commands::volume::RM),
        ],
    },
];

fn subcommand(member: &Member) -> Command {
    Command::new(member.name)
        .visible_aliases(member.aliases)
        .about(member.command.about)
        .after_help(member.command.examples)
        .hide(member.command.name == commands::manual::MANUAL.name)
        .defer(member.command.flags)
}

/// The whole tree, flags not built yet.
pub fn tree() -> Command {
    branches(|_| true)
}

/// Matches of a command line, found without building commands that it does not name. What is wrong
/// with one is for the whole tree to say.
pub fn quick_matches(words: &[OsString]) -> Option<ArgMatches> {
    let name = words.get(1)?.to_str()?;
    let is_named = |word: &str| word == name;
    let is_one = COMMANDS.iter().any(|command| is_named(command.name))
        || GROUPS.iter().any(|group| is_named(group.name));
    is_one
        .then(|| branches(is_named).try_get_matches_from(words).ok())
        .flatten()
}

/// The tree with those commands and groups that are wanted.
fn branches(is_wanted: impl Fn(&str) -> bool) -> Command {
    let mut tree = Command::new("selkie")
        .about("Rootless containers, each under its own slice of subordinate IDs")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .args_override_self(true)
        .arg(
            Arg::new("version")
                .long("version")
                .short('v')
                .help("Print the version")
                .action(ArgAction::Version),
        )
        .args([
            choice(
                "log-level",
                "LEVEL",
                "Tell this much: trace, debug, info, warn (default), error",
                LOG_LEVELS,
            )
            .hide_possible_values(true)
            .help_heading(EVERYWHERE)
            .global(true),
            value(
                "root",
                "DIR",
                "Where images, containers and volumes are (default: ~/.local/share/selkie)",
            )
            .help_heading(EVERYWHERE)
            .global(true),
            value(
                "runroot",
                "DIR",
                "Where things are that may go at a reboot (default: $XDG_RUNTIME_DIR/selkie)",
            )
            .help_heading(EVERYWHERE)
            .global(true),
        ]);
    for command in COMMANDS.iter().filter(|command| is_wanted(command.name)) {
        tree = tree.subcommand(subcommand(&member(command)));
    }
    for group in GROUPS.iter().filter(|group| is_wanted(group.name)) {
        let mut parent = Command::new(group.name).about(group.about);
        for member in group.members {
            parent = parent.subcommand(subcommand(member));
        }
        tree = tree.subcommand(parent);
    }
    tree
}

/// Heading of flags that every command takes.
const EVERYWHERE: &str = "Options of every command";

/// As Podman spells them.
const LOG_LEVELS: &[&str] = &[
    "trace", "debug", "info", "warn", "warning", "error", "fatal", "panic",
];

/// The command that `matches` of [`tree`] names, with its own matches.
pub fn find(matches: &ArgMatches) -> Option<(&'static CommandSpec, &ArgMatches)> {
    let (name, matches) = matches.subcommand()?;
    if let Some(group) = GROUPS.iter().find(|group| group.name == name) {
        let (name, matches) = matches.subcommand()?;
        let member = group.members.iter().find(|member| member.name == name)?;
        return Some((member.command, matches));
    }
    let command = COMMANDS.iter().find(|command| command.name == name)?;
    Some((command, matches))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flag::{COMMAND, Flags};

    /// Matches of `selkie WORDS…`.
    fn parse(words: &[&str]) -> std::result::Result<ArgMatches, clap::Error> {
        tree().try_get_matches_from(std::iter::once(&"selkie").chain(words))
    }

    /// The last subcommand's own matches.
    fn arguments(words: &[&str]) -> ArgMatches {
        let matches = parse(words).unwrap();
        let (_, arguments) = find(&matches).unwrap();
        arguments.clone()
    }

    #[test]
    fn the_tree_is_sound() {
        tree().debug_assert();
    }

    #[test]
    fn the_quick_way_finds_the_same() {
        for words in [
            &["run", "--rm", "busybox", "ls", "--all"][..],
            &["ps", "--root", "/r", "-aq"],
            &["image", "rm", "x"],
            &["container", "ls"],
        ] {
            let words: Vec<OsString> = ["selkie"].iter().chain(words).map(OsString::from).collect();
            let whole = tree().try_get_matches_from(&words).unwrap();
            let quick = quick_matches(&words).unwrap();
            // The quick tree knows fewer other commands, and in debug builds its matches say so.
            let (quick_command, quick_arguments) = find(&quick).unwrap();
            let (command, arguments) = find(&whole).unwrap();
            assert_eq!(quick_command.name, command.name, "{words:?}");
            assert_eq!(quick_arguments, arguments, "{words:?}");
            for global in ["root", "runroot", "log-level"] {
                assert_eq!(quick.text(global), whole.text(global), "{words:?}");
            }
        }
        for words in [
            &[][..],
            &["--version"],
            &["--root", "/r", "ps"],
            &["nonsense"],
            &["run", "--bogus", "i"],
            &["run", "--help"],
            // Other names for a command.
            &["remove", "x"],
        ] {
            let words: Vec<OsString> = ["selkie"].iter().chain(words).map(OsString::from).collect();
            assert_eq!(quick_matches(&words), None, "{words:?}");
        }
    }

    #[test]
    fn every_command_has_an_example() {
        let members = GROUPS.iter().flat_map(|group| group.members);
        let commands = COMMANDS.iter().copied();
        for command in commands.chain(members.map(|member| member.command)) {
            let examples = command.examples.strip_prefix("Examples:\n  ").unwrap();
            assert!(examples.contains("selkie "), "{}", command.name);
        }
    }

    #[test]
    fn nothing_after_the_image_is_ours() {
        let found = arguments(&["run", "--rm", "-it", "busybox", "--rm", "-e", "--", "x"]);
        assert_eq!(found.texts(COMMAND), ["busybox", "--rm", "-e", "--", "x"]);
        assert!(found.on("rm") && found.on("interactive") && found.on("tty"));
        assert!(found.texts("env").is_empty());
        let found = arguments(&["container", "exec", "c", "ls", "-l", "--help"]);
        assert_eq!(found.texts(COMMAND), ["c", "ls", "-l", "--help"]);
    }

    #[test]
    fn switches_take_true_and_false() {
        for (word, expected) in [
            ("--rm", true),
            ("--rm=true", true),
            ("--rm=0", false),
            ("--rm=F", false),
        ] {
            assert_eq!(
                arguments(&["run", word, "busybox"]).on("rm"),
                expected,
                "{word}"
            );
        }
        assert!(!arguments(&["run", "-t=false", "-i=1", "busybox"]).on("tty"));
        assert!(arguments(&["attach", "c"]).on("sig-proxy"));
        assert!(!arguments(&["attach", "--sig-proxy=false", "c"]).on("sig-proxy"));
        assert!(parse(&["run", "--rm=maybe", "busybox"]).is_err());
    }

    #[test]
    fn the_last_of_a_flag_counts_and_lists_add_up() {
        let found = arguments(&[
            "run", "--name", "a", "-e", "A=1", "--name=b", "-eB", "busybox",
        ]);
        assert_eq!(found.text("name"), Some("b"));
        assert_eq!(found.texts("env"), ["A=1", "B"]);
    }

    #[test]
    fn short_flags_are_podmans() {
        let found = arguments(&[
            "run", "-dh", "seal", "-w/x", "-u", "1:2", "-va:/b", "-lk=v", "i",
        ]);
        assert!(found.on("detach"));
        assert_eq!(found.text("hostname"), Some("seal"));
        assert_eq!(found.text("workdir"), Some("/x"));
        assert_eq!(found.texts("volume"), ["a:/b"]);
        assert!(arguments(&["rm", "-f", "c"]).on("force"));
        assert!(arguments(&["start", "-a", "c"]).on("attach"));
        assert!(arguments(&["ps", "-aq"]).on("quiet"));
    }

    #[test]
    fn global_flags_stand_anywhere_before_the_command_line_of_the_container() {
        let matches = parse(&["ps", "--root", "/r", "--log-level=debug"]).unwrap();
        assert_eq!(matches.text("root"), Some("/r"));
        assert_eq!(matches.text("log-level"), Some("debug"));
        assert!(parse(&["--runroot", "/x", "ps"]).is_ok());
    }

    #[test]
    fn refusals_say_what_and_why() {
        let said = |words: &[&str]| parse_error::explain(parse(words).unwrap_err()).unwrap_err();
        let error = said(&["run", "--bogus", "busybox"]);
        assert_eq!(
            (error.message.as_str(), error.code),
            ("unknown flag: --bogus", 125)
        );
        assert_eq!(error.hint.as_deref(), Some("see selkie run --help"));
        assert!(
            said(&["run", "--memory=1g", "i"])
                .message
                .contains("--memory is not offered yet")
        );
        assert!(
            said(&["run", "-m", "1g", "i"])
                .message
                .contains("-m is not offered yet")
        );
        assert!(
            said(&["run", "--nmae", "x"])
                .hint
                .unwrap()
                .contains("--name")
        );
        assert!(said(&["nonsense"]).message.contains("nonsense"));
        assert!(
            said(&["ps", "--sort", "x"])
                .hint
                .unwrap()
                .contains("created")
        );
        assert!(said(&["run", "--name"]).message.contains("needs a value"));
    }
}
