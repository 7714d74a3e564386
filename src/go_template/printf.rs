//! `fmt.Sprintf`.

use super::escape;
use super::float;
use super::functions::WIDEST;
use super::print::{plain, separated, write_plain};
use super::value::Value;

/// What stands between `%` and the verb.
#[derive(Debug, Clone, Copy, Default)]
struct Flags {
    plus: bool,
    names: bool,
    minus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Formats as Go does, its remarks about wrong verbs and missing operands included. Operands
/// cannot be picked by number (`%[1]d`).
pub fn sprintf(format: &str, operands: &[Value]) -> String {
    let mut out = String::new();
    let mut operands = operands.iter();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        rest = directive(&mut out, rest, &mut operands);
    }
    out.push_str(rest);
    let extra: Vec<String> = operands
        .map(|value| match value {
            Value::Nil | Value::Missing => "<nil>".to_owned(),
            value => format!("{}={}", value.type_name(), plain(value)),
        })
        .collect();
    if !extra.is_empty() {
        out.push_str("%!(EXTRA ");
        out.push_str(&extra.join(", "));
        out.push(')');
    }
    out
}

/// One directive, after its `%`; gives what follows it.
fn directive<'f>(
    out: &mut String,
    mut rest: &'f str,
    operands: &mut std::slice::Iter<'_, Value>,
) -> &'f str {
    let mut flags = Flags::default();
    while let Some(flag) = rest.chars().next() {
        match flag {
            '+' => flags.plus = true,
            '-' => {
                flags.minus = true;
                flags.zero = false;
            }
            '#' => flags.sharp = true,
            ' ' => flags.space = true,
            '0' => flags.zero = !flags.minus,
            _ => break,
        }
        rest = &rest[1..];
    }
    let (width, after) = count(out, rest, operands, "%!(BADWIDTH)");
    rest = after;
    match width {
        Some(negative) if negative < 0 => {
            flags.minus = true;
            flags.zero = false;
            flags.width = usize::try_from(-negative).ok();
        }
        other => flags.width = other.and_then(|width| usize::try_from(width).ok()),
    }
    if let Some(after) = rest.strip_prefix('.') {
        let (precision, after) = count(out, after, operands, "%!(BADPREC)");
        rest = after;
        flags.precision = Some(usize::try_from(precision.unwrap_or(0)).unwrap_or(0));
    }
    let Some(verb) = rest.chars().next() else {
        out.push_str("%!(NOVERB)");
        return rest;
    };
    rest = &rest[verb.len_utf8()..];
    if verb == '%' {
        out.push('%');
        return rest;
    }
    if verb == 'v' && flags.plus {
        // Here it asks for field names, not for signs.
        flags.plus = false;
        flags.names = true;
    }
    match operands.next() {
        Some(value) => write_verb(out, value, verb, flags),
        None => {
            out.push_str("%!");
            out.push(verb);
            out.push_str("(MISSING)");
        }
    }
    rest
}

/// A number in the format, or `*` for the next operand.
fn count<'f>(
    out: &mut String,
    rest: &'f str,
    operands: &mut std::slice::Iter<'_, Value>,
    bad: &str,
) -> (Option<i128>, &'f str) {
    if let Some(after) = rest.strip_prefix('*') {
        return match operands.next() {
            Some(Value::Int(number)) if number.abs() <= WIDEST => (Some(*number), after),
            _ => {
                out.push_str(bad);
                (None, after)
            }
        };
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let number = rest[..digits].parse::<i128>().ok();
    match number {
        Some(number) if number > WIDEST => {
            out.push_str(bad);
            (None, &rest[digits..])
        }
        number => (number, &rest[digits..]),
    }
}

fn write_verb(out: &mut String, value: &Value, verb: char, flags: Flags) {
    match verb {
        'T' => {
            let name = match value {
                Value::Nil | Value::Missing => "<nil>".to_owned(),
                value => value.type_name(),
            };
            return pad(out, &name, flags);
        }
        'v' if flags.sharp => return pad(out, &syntax(value), flags),
        _ => {}
    }
    match value {
        Value::Nil | Value::Missing if verb == 'v' => pad(out, "<nil>", flags),
        Value::Nil | Value::Missing => {
            out.push_str("%!");
            out.push(verb);
            out.push_str("(<nil>)");
        }
        Value::Bool(value) if matches!(verb, 't' | 'v') => {
            pad(out, if *value { "true" } else { "false" }, flags);
        }
        Value::Int(number) if "vdboOxXcqU".contains(verb) => integer(out, *number, verb, flags),
        Value::Float(number) if "veEfFgG".contains(verb) => floating(out, *number, verb, flags),
        Value::String(text) if "vsqxX".contains(verb) => string(out, text, verb, flags),
        Value::List(items) => {
            if verb == 's' || verb == 'v' || verb == 'q' || verb == 'd' || verb == 'x' {
                out.push('[');
                separated(out, items.iter(), |out, item| {
                    write_verb(out, item, verb, flags)
                });
                out.push(']');
            } else {
                wrong(out, value, verb);
            }
        }
        Value::Map(entries) => {
            out.push_str("map[");
            separated(out, entries.iter(), |out, (key, item)| {
                write_verb(out, &Value::string(key), verb, flags);
                out.push(':');
                write_verb(out, item, verb, flags);
            });
            out.push(']');
        }
        Value::Record(record) => {
            out.push('{');
            separated(out, record.fields.iter(), |out, (name, item)| {
                if flags.names {
                    out.push_str(name);
                    out.push(':');
                }
                write_verb(out, item, verb, flags);
            });
            out.push('}');
        }
        _ => wrong(out, value, verb),
    }
}

/// `%!d(string=hi)`.
fn wrong(out: &mut String, value: &Value, verb: char) {
    out.push_str("%!");
    out.push(verb);
    out.push('(');
    out.push_str(&value.type_name());
    out.push('=');
    write_plain(out, value);
    out.push(')');
}

fn pad(out: &mut String, text: &str, flags: Flags) {
    let missing = flags
        .width
        .unwrap_or(0)
        .saturating_sub(text.chars().count());
    if flags.minus {
        out.push_str(text);
        out.extend(std::iter::repeat_n(' ', missing));
    } else {
        let filler = if flags.zero { '0' } else { ' ' };
        out.extend(std::iter::repeat_n(filler, missing));
        out.push_str(text);
    }
}

fn integer(out: &mut String, number: i128, verb: char, flags: Flags) {
    let code = u32::try_from(number).ok().and_then(char::from_u32);
    match verb {
        'c' => return pad(out, &code.unwrap_or('\u{fffd}').to_string(), flags),
        'q' => {
            let quoted = escape::quote_character(code.unwrap_or('\u{fffd}'), flags.plus);
            return pad(out, &quoted, flags);
        }
        'U' => {
            let mut text = format!("U+{number:04X}");
            if flags.sharp
                && let Some(code) = code
            {
                text.push_str(&format!(" '{code}'"));
            }
            return pad(out, &text, flags);
        }
        _ => {}
    }
    let magnitude = number.unsigned_abs();
    let mut digits = match verb {
        'b' => format!("{magnitude:b}"),
        'o' | 'O' => format!("{magnitude:o}"),
        'x' => format!("{magnitude:x}"),
        'X' => format!("{magnitude:X}"),
        _ => magnitude.to_string(),
    };
    if flags.precision == Some(0) && number == 0 {
        return pad(
            out,
            "",
            Flags {
                zero: false,
                ..flags
            },
        );
    }
    let sign = match () {
        () if number < 0 => "-",
        () if flags.plus => "+",
        () if flags.space => " ",
        () => "",
    };
    let prefix = match verb {
        'O' => "0o",
        'o' if flags.sharp => "0",
        'x' if flags.sharp => "0x",
        'X' if flags.sharp => "0X",
        'b' if flags.sharp => "0b",
        _ => "",
    };
    // Zeros go between sign and digits; a precision asks for digits and makes the flag moot.
    let wanted = match (flags.precision, flags.zero) {
        (Some(precision), _) => precision,
        (None, true) => flags.width.unwrap_or(0).saturating_sub(sign.len()),
        (None, false) => 0,
    };
    if digits.len() < wanted {
        digits.insert_str(0, &"0".repeat(wanted - digits.len()));
    }
    let text = format!("{sign}{prefix}{digits}");
    pad(
        out,
        &text,
        Flags {
            zero: false,
            ..flags
        },
    );
}

fn floating(out: &mut String, number: f64, verb: char, flags: Flags) {
    let precision = flags.precision;
    let mut text = match verb {
        'e' | 'E' => float::exponent(number, precision.or(Some(6))),
        'f' | 'F' => float::fixed(number, precision.or(Some(6))),
        _ => float::general(number, precision),
    };
    if matches!(verb, 'E' | 'G') {
        text = text.to_uppercase();
    }
    let has_sign = text.starts_with(['-', '+']);
    let (sign, digits) = if has_sign {
        text.split_at(1)
    } else {
        ("", text.as_str())
    };
    let sign = match sign {
        "" if flags.plus => "+",
        "" if flags.space => " ",
        sign => sign,
    };
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit());
    let width = flags.width.unwrap_or(0);
    if flags.zero && is_number && sign.len() + digits.len() < width {
        let zeros = "0".repeat(width - sign.len() - digits.len());
        out.push_str(&format!("{sign}{zeros}{digits}"));
        return;
    }
    pad(
        out,
        &format!("{sign}{digits}"),
        Flags {
            zero: false,
            ..flags
        },
    );
}

fn string(out: &mut String, text: &str, verb: char, flags: Flags) {
    let cut: String = match (flags.precision, verb) {
        (Some(precision), 's' | 'v' | 'q') => text.chars().take(precision).collect(),
        _ => text.to_owned(),
    };
    let shown = match verb {
        'q' if flags.sharp && !cut.contains('`') && !cut.contains(char::is_control) => {
            format!("`{cut}`")
        }
        'q' => escape::quote(&cut, flags.plus),
        'x' | 'X' => hexadecimal(text, verb == 'X', flags),
        _ => cut,
    };
    pad(out, &shown, flags);
}

fn hexadecimal(text: &str, upper: bool, flags: Flags) -> String {
    let bytes = text.as_bytes();
    let bytes = &bytes[..flags.precision.unwrap_or(bytes.len()).min(bytes.len())];
    let prefix = match (flags.sharp, upper) {
        (false, _) => "",
        (true, false) => "0x",
        (true, true) => "0X",
    };
    let mut shown = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if flags.space && index > 0 {
            shown.push(' ');
        }
        if index == 0 || flags.space {
            shown.push_str(prefix);
        }
        shown.push_str(&if upper {
            format!("{byte:02X}")
        } else {
            format!("{byte:02x}")
        });
    }
    shown
}

/// `%#v`: the value as Go source.
fn syntax(value: &Value) -> String {
    match value {
        Value::Nil | Value::Missing => "<nil>".to_owned(),
        Value::String(text) => escape::quote(text, false),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(syntax).collect();
            format!("{}{{{}}}", value.type_name(), items.join(", "))
        }
        Value::Map(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{}:{}", escape::quote(key, false), syntax(value)))
                .collect();
            format!("{}{{{}}}", value.type_name(), entries.join(", "))
        }
        Value::Record(record) => {
            let fields: Vec<String> = record
                .fields
                .iter()
                .map(|(name, value)| format!("{name}:{}", syntax(value)))
                .collect();
            format!("{}{{{}}}", record.type_name, fields.join(", "))
        }
        other => plain(other),
    }
}
