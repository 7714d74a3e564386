//! `fmt.Sprint` and `fmt.Sprintln`.

use super::float;
use super::value::Value;

/// A value as `%v` prints it.
pub fn plain(value: &Value) -> String {
    let mut text = String::new();
    write_plain(&mut text, value);
    text
}

/// Appends a value as `%v` prints it.
pub fn write_plain(out: &mut String, value: &Value) {
    match value {
        Value::Nil | Value::Missing => out.push_str("<nil>"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&float::general(*value, None)),
        Value::String(text) => out.push_str(text),
        Value::List(items) => {
            out.push('[');
            separated(out, items.iter(), write_plain);
            out.push(']');
        }
        Value::Map(entries) => {
            out.push_str("map[");
            separated(out, entries.iter(), |out, (key, value)| {
                out.push_str(key);
                out.push(':');
                write_plain(out, value);
            });
            out.push(']');
        }
        Value::Record(record) => {
            out.push('{');
            separated(out, record.fields.iter(), |out, (_, value)| {
                write_plain(out, value)
            });
            out.push('}');
        }
    }
}

/// Items with blanks between them.
pub fn separated<T>(
    out: &mut String,
    items: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(' ');
        }
        write(out, item);
    }
}

/// Blanks stand between operands when neither is a string.
pub fn sprint(values: &[Value]) -> String {
    let mut text = String::new();
    let mut previous_is_string = true;
    for (index, value) in values.iter().enumerate() {
        let is_string = matches!(value, Value::String(_));
        if index > 0 && !is_string && !previous_is_string {
            text.push(' ');
        }
        write_plain(&mut text, value);
        previous_is_string = is_string;
    }
    text
}

/// Blanks stand between all operands, and a newline at the end.
pub fn sprintln(values: &[Value]) -> String {
    let mut text = String::new();
    separated(&mut text, values.iter(), write_plain);
    text.push('\n');
    text
}
