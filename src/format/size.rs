//! Sizes in decimal units, as Podman and Docker print them.

const UNITS: &[&str] = &["B", "kB", "MB", "GB", "TB", "PB", "EB"];

/// `1.23 MB`: three digits.
pub fn short(bytes: u64) -> String {
    let (number, unit) = scaled(bytes, 3);
    format!("{number} {unit}")
}

/// `1.234MB`: four digits, as in `system df`.
pub fn dense(bytes: u64) -> String {
    let (number, unit) = scaled(bytes, 4);
    format!("{number}{unit}")
}

/// The number with at most `digits` significant digits, no trailing zeros, and its unit.
fn scaled(bytes: u64, digits: i32) -> (String, &'static str) {
    let mut value = bytes as f64;
    let mut unit = 0;
    loop {
        let decimals = match value {
            value if value >= 100.0 => digits - 3,
            value if value >= 10.0 => digits - 2,
            _ => digits - 1,
        };
        let text = format!("{value:.0$}", usize::try_from(decimals).unwrap_or(0));
        // 999.9 rounds to 1000, which is 1 of the next unit.
        if text.parse::<f64>().is_ok_and(|rounded| rounded >= 1000.0) && unit + 1 < UNITS.len() {
            value /= 1000.0;
            unit += 1;
            continue;
        }
        let text = if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        };
        return (text, UNITS[unit]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_podman_prints_them() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 kB"),
            (1_994_244, "1.99 MB"),
            (123_456_789, "123 MB"),
            (999_999, "1 MB"),
            (1_050_000_000, "1.05 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(short(bytes), expected);
        }
        assert_eq!(dense(7_976_000), "7.976MB");
        assert_eq!(dense(24), "24B");
        assert_eq!(dense(5_982_732), "5.983MB");
    }
}
