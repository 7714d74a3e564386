//! The command tree. Only the names of commands are built at start; a command's flags are built
//! when that command is parsed (`Command::defer`), because start-up time is part of `run`.

pub mod flag;
pub mod parse_error;

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
            member(&commands::container_prune::CONTAINER_PRUNE),
            member(&commands::rm::RM),
            member(&commands::run::RUN),
            member(&commands::start::START),
            member(&commands::stop::STOP),
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
        .arg(
            choice(
                "log-level",
                "LEVEL",
                "Say this much on standard error",
                LOG_LEVELS,
            )
            .default_value("warn")
            .global(true),
        )
        .arg(
            value(
                "root",
                "DIR",
                "Keep images, containers and volumes in DIR instead of ~/.local/share/selkie",
            )
            .global(true),
        )
        .arg(
            value(
                "runroot",
                "DIR",
                "Keep what does not survive a reboot in DIR instead of $XDG_RUNTIME_DIR/selkie",
            )
            .global(true),
        );
    for command in COMMANDS {
        tree = tree.subcommand(subcommand(&member(command)));
    }
    for group in GROUPS {
        let mut parent = Command::new(group.name).about(group.about);
        for member in group.members {
            parent = parent.subcommand(subcommand(member));
        }
        tree = tree.subcommand(parent);
    }
    tree
}

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
