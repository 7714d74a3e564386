//! `selkie logs`.

use std::io::{self, BufWriter, Stderr, Stdout, Write};

use clap::{ArgMatches, Command};
use selkie_engine::Engine;
use selkie_engine::logs::{LogOptions, LogRecord, Stream};

use super::{filter, targets};
use crate::cli::CommandSpec;
use crate::cli::flag::{Flags, positionals, switch, value};
use crate::error::{CliError, Result, for_each, output};
use crate::session::Session;

/// The command.
pub const LOGS: CommandSpec = CommandSpec {
    name: "logs",
    aliases: &[],
    about: "Show what containers have written",
    examples: "Examples:
  selkie logs web
  selkie logs --follow --tail 10 web
  selkie logs --timestamps --since 10m web",
    flags,
    run,
};

fn flags(command: Command) -> Command {
    command
        .arg(positionals("containers", "CONTAINER", "Names or IDs"))
        .arg(
            switch(
                "follow",
                "Go on until the container ends (one container only)",
            )
            .short('f'),
        )
        .arg(switch("latest", "The container created last").short('l'))
        .arg(switch("names", "Put the container's name before each line").short('n'))
        .arg(value(
            "since",
            "TIME",
            "Nothing older than this: RFC 3339, seconds since 1970, or how long ago (10m)",
        ))
        .arg(value(
            "tail",
            "N",
            "Only the last N lines (default: all of them, also written all or -1)",
        ))
        .arg(switch("timestamps", "Put the time before each line").short('t'))
        .arg(value("until", "TIME", "Nothing newer than this"))
}

fn run(session: &Session, matches: &ArgMatches) -> Result<u8> {
    let (mut names, latest) = (matches.texts("containers"), matches.on("latest"));
    if names.is_empty() && !latest {
        return Err(CliError::new("you must provide at least one name or id"));
    }
    let time = |flag: &str| matches.text(flag).map(filter::point_in_time).transpose();
    let options = LogOptions {
        follow: matches.on("follow"),
        since: time("since")?,
        until: time("until")?,
        tail: tail(matches.text("tail"))?,
    };
    if options.follow && names.len() + usize::from(latest) > 1 {
        return Err(CliError::new("--follow takes one container"));
    }
    let engine = session.open_engine()?;
    if latest {
        names.push(targets::latest(&engine)?.called);
    }
    for_each(names, |name| {
        let mut printer = Printer::new(matches.on("timestamps"), matches.on("names"));
        output(printer.print_log(&engine, name, options)?)
    })
}

/// `all` and negative numbers are no limit.
fn tail(text: Option<&str>) -> Result<Option<usize>> {
    match text {
        None | Some("all") => Ok(None),
        Some(text) => match text.parse::<i64>() {
            Ok(lines) => Ok(usize::try_from(lines).ok()),
            Err(_) => Err(CliError::new(format!(
                "--tail {text}: not a number of lines"
            ))),
        },
    }
}

/// Writes records to the stream they were written to, each line with what is wanted before it.
struct Printer {
    stdout: BufWriter<Stdout>,
    stderr: Stderr,
    with_time: bool,
    with_name: bool,
    /// Whether the next text of standard output, and of standard error, begins a line.
    at_line_start: [bool; 2],
}

impl Printer {
    fn new(with_time: bool, with_name: bool) -> Self {
        Self {
            stdout: BufWriter::with_capacity(1 << 16, io::stdout()),
            stderr: io::stderr(),
            with_time,
            with_name,
            at_line_start: [true; 2],
        }
    }

    /// The inner result is about our own output.
    fn print_log(
        &mut self,
        engine: &Engine,
        name: &str,
        options: LogOptions,
    ) -> Result<io::Result<()>> {
        let id = engine.find_container(name)?;
        let name = if self.with_name {
            engine.container(&id)?.name
        } else {
            String::new()
        };
        let mut reader = engine.logs(&id, options)?;
        while let Some(record) = reader.next_record()? {
            let written = self.print(&record, &name).and_then(|()| {
                if options.follow {
                    return self.stdout.flush();
                }
                Ok(())
            });
            if written.is_err() {
                return Ok(written);
            }
        }
        Ok(self.stdout.flush())
    }

    fn print(&mut self, record: &LogRecord, name: &str) -> io::Result<()> {
        let stream = usize::from(record.stream == Stream::Stderr);
        let mut line = Vec::with_capacity(record.text.len() + 64);
        if std::mem::replace(
            &mut self.at_line_start[stream],
            record.text.ends_with(b"\n"),
        ) {
            if self.with_name {
                line.extend_from_slice(name.as_bytes());
                line.push(b' ');
            }
            if self.with_time {
                line.extend_from_slice(record.time.to_string().as_bytes());
                line.push(b' ');
            }
        }
        line.extend_from_slice(&record.text);
        if record.stream == Stream::Stderr {
            // What came before on the other stream is shown before, where both are one terminal.
            self.stdout.flush()?;
            return self.stderr.write_all(&line);
        }
        self.stdout.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_numbers_of_lines() {
        assert_eq!(tail(None).unwrap(), None);
        assert_eq!(tail(Some("all")).unwrap(), None);
        assert_eq!(tail(Some("-1")).unwrap(), None);
        assert_eq!(tail(Some("0")).unwrap(), Some(0));
        assert_eq!(tail(Some("10")).unwrap(), Some(10));
        assert!(tail(Some("some")).is_err());
    }
}
