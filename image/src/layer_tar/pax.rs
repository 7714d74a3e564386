//! PAX extended headers: `LENGTH KEY=VALUE\n` records.

/// One record; keys are ASCII in practice but kept as bytes.
pub(super) type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits an extended header into its records, in order (sparse maps repeat keys).
pub(super) fn records(mut data: &[u8]) -> Result<Vec<Record<'_>>, String> {
    let mut records = Vec::new();
    while !data.is_empty() {
        // some writers pad with NULs inside the declared size
        if data.iter().all(|byte| *byte == 0) {
            break;
        }
        let bad = || "a PAX record is malformed".to_owned();
        let space = data
            .iter()
            .take(8)
            .position(|byte| *byte == b' ')
            .ok_or_else(bad)?;
        let length = decimal(&data[..space]).ok_or_else(bad)?;
        let length = usize::try_from(length).map_err(|_| bad())?;
        let record = data.get(space + 1..length).ok_or_else(bad)?;
        let (newline, record) = record.split_last().ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=');
        let equals = equals.ok_or_else(bad)?;
        if *newline != b'\n' || equals == 0 {
            return Err(bad());
        }
        records.push((&record[..equals], &record[equals + 1..]));
        data = &data[length..];
    }
    Ok(records)
}

/// Decimal digits and nothing else, within 64 bits signed.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    i64::try_from(value).is_ok().then_some(value)
}

/// A time: `[-]SECONDS[.FRACTION]`, as seconds rounded down and nanoseconds.
pub(super) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match dot {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanoseconds = 0;
    for position in 0..9 {
        let digit = fraction.get(position).map_or(0, |byte| byte - b'0');
        nanoseconds = nanoseconds * 10 + u32::from(digit);
    }
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_are_split() {
        let data = b"30 mtime=1350244992.023960108\n12 path=a\nb\n5 x=\n";
        let expected: Vec<Record<'_>> = vec![
            (b"mtime", b"1350244992.023960108"),
            (b"path", b"a\nb"),
            (b"x", b""),
        ];
        assert_eq!(records(data).unwrap(), expected);
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"0 a=b\n",
            b"6 =ab\n",
            b"6 abc\n",
            b"-6 a=b\n",
            b"+6 a=b\n",
            b" a=b\n",
            b"99999999999999999999 a=b\n",
            b"6 a=b\n\0\0x",
        ] {
            assert!(records(data).is_err(), "{}", data.escape_ascii());
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"12.0000000019"), Some((12, 1)));
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        for bad in [&b""[..], b"-", b".5", b"1.x", b"99999999999999999999"] {
            assert_eq!(time(bad), None);
        }
    }

    proptest! {
        #[test]
        fn never_panics(data: Vec<u8>) {
            let _ = records(&data);
            let _ = time(&data);
        }
    }
}
