//! Times and durations, as Podman and Docker print them.

use jiff::{Timestamp, Zoned, tz::TimeZone};

/// Go's zero time, which JSON of Podman holds where nothing has happened yet.
pub const NEVER: &str = "0001-01-01T00:00:00Z";
/// The same as seconds since 1970.
pub const NEVER_SECONDS: i64 = -62_135_596_800;

/// Reads RFC 3339.
pub fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Seconds since 1970 of an RFC 3339 time.
pub fn seconds(text: Option<&str>) -> i64 {
    text.and_then(parse)
        .map_or(NEVER_SECONDS, Timestamp::as_second)
}

/// `3 minutes ago`.
pub fn ago(time: &str, now: Timestamp) -> String {
    match parse(time) {
        Some(then) => format!("{} ago", duration(now.as_second() - then.as_second())),
        None => String::new(),
    }
}

/// A duration in words, by the rules of Docker's units library.
pub fn duration(seconds: i64) -> String {
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// `2026-11-23 02:16:05.633207227 +0000 UTC`, local time, as Go prints a time.
pub fn go_style(time: &str) -> String {
    match parse(time) {
        Some(time) => zoned_go_style(&time.to_zoned(TimeZone::system())),
        None => String::new(),
    }
}

fn zoned_go_style(time: &Zoned) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.f %z %Z").to_string()
}

/// RFC 3339 in local time, as JSON of Podman holds it.
pub fn json_style(time: &str) -> String {
    match parse(time) {
        Some(time) => {
            let zone = TimeZone::system();
            let offset = zone.to_offset(time);
            if offset.is_zero() {
                return time.to_string();
            }
            time.display_with_offset(offset).to_string()
        }
        None => NEVER.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_words() {
        for (seconds, expected) in [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (2 * 3600, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86_400, "2 weeks"),
            (60 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn times_as_go_prints_them() {
        let time: Timestamp = "2026-11-23T02:16:05.6332072Z".parse().unwrap();
        assert_eq!(
            zoned_go_style(&time.to_zoned(TimeZone::UTC)),
            "2026-11-23 02:16:05.6332072 +0000 UTC"
        );
        let whole: Timestamp = "2026-11-23T02:16:05Z".parse().unwrap();
        assert_eq!(
            zoned_go_style(&whole.to_zoned(TimeZone::UTC)),
            "2026-11-23 02:16:05 +0000 UTC"
        );
        assert_eq!(seconds(None), NEVER_SECONDS);
        assert_eq!(seconds(Some("1970-01-01T00:01:00Z")), 60);
    }
}
