//! `--log-level`: what libraries tell through `tracing`, on standard error, in Podman's form. A
//! subscriber of our own, because it costs nothing at start and never starts a thread.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::ArgMatches;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::cli::flag::Flags;

/// Starts telling what `--log-level` asks for.
pub fn start(matches: &ArgMatches) {
    let level = match matches.text("log-level") {
        Some("trace") => Level::TRACE,
        Some("debug") => Level::DEBUG,
        Some("info") => Level::INFO,
        Some("error" | "fatal" | "panic") => Level::ERROR,
        _ => Level::WARN,
    };
    // Fails only when there is one already, and this is the only place that sets one.
    let _ = tracing::subscriber::set_global_default(Log { level });
}

/// Prints events of a level and above; spans are not shown.
struct Log {
    level: Level,
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn new_span(&self, _attributes: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let time = jiff::Timestamp::now();
        let text = format!(
            "time=\"{time:.0}\" level={level} msg={:?}{}\n",
            line.message, line.fields
        );
        // A closed standard error must not stop what is being told about.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

/// The message of an event, and its other fields as ` name=value`.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
