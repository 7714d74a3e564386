//! Functions templates can call: Go's own and those Podman and Docker add.

use std::cmp::Ordering;

use super::escape;
use super::print::{self, sprint, sprintln};
use super::printf::sprintf;
use super::value::Value;

/// What a function takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Exactly these.
    Exactly(&'static [Kind]),
    /// These, and then any number of anything.
    AtLeast(&'static [Kind]),
}

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything, `nil` included.
    Any,
    /// `string`.
    String,
    /// `int`.
    Int,
    /// `[]string`.
    Strings,
}

impl Kind {
    /// Go's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "interface {}",
            Self::String => "string",
            Self::Int => "int",
            Self::Strings => "[]string",
        }
    }
}

/// One function.
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// Its arguments.
    pub takes: Takes,
    /// Calls it. The error is what Go's would say.
    pub call: fn(&[Value]) -> Result<Value, String>,
}

use Kind::{Any, Int, String as Text, Strings};
use Takes::{AtLeast, Exactly};

/// All of them. `and` and `or` do not evaluate all their arguments: see the evaluator.
pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "and",
        takes: AtLeast(&[Any]),
        call: |_| Ok(Value::Nil),
    },
    Function {
        name: "or",
        takes: AtLeast(&[Any]),
        call: |_| Ok(Value::Nil),
    },
    Function {
        name: "not",
        takes: Exactly(&[Any]),
        call: |a| Ok(Value::Bool(!a[0].truth())),
    },
    Function {
        name: "call",
        takes: AtLeast(&[Any]),
        call,
    },
    Function {
        name: "html",
        takes: AtLeast(&[]),
        call: |a| Ok(escaped(a, escape::html)),
    },
    Function {
        name: "js",
        takes: AtLeast(&[]),
        call: |a| Ok(escaped(a, escape::js)),
    },
    Function {
        name: "urlquery",
        takes: AtLeast(&[]),
        call: |a| Ok(escaped(a, escape::url_query)),
    },
    Function {
        name: "index",
        takes: AtLeast(&[Any]),
        call: index,
    },
    Function {
        name: "slice",
        takes: AtLeast(&[Any]),
        call: slice,
    },
    Function {
        name: "len",
        takes: Exactly(&[Any]),
        call: len,
    },
    Function {
        name: "print",
        takes: AtLeast(&[]),
        call: |a| Ok(Value::string(sprint(a))),
    },
    Function {
        name: "printf",
        takes: AtLeast(&[Text]),
        call: printf,
    },
    Function {
        name: "println",
        takes: AtLeast(&[]),
        call: |a| Ok(Value::string(sprintln(a))),
    },
    Function {
        name: "eq",
        takes: AtLeast(&[Any]),
        call: eq,
    },
    Function {
        name: "ne",
        takes: Exactly(&[Any, Any]),
        call: |a| equal(&a[0], &a[1]).map(|e| Value::Bool(!e)),
    },
    Function {
        name: "lt",
        takes: Exactly(&[Any, Any]),
        call: |a| ordered(a, Ordering::is_lt),
    },
    Function {
        name: "le",
        takes: Exactly(&[Any, Any]),
        call: |a| ordered(a, Ordering::is_le),
    },
    Function {
        name: "gt",
        takes: Exactly(&[Any, Any]),
        call: |a| ordered(a, Ordering::is_gt),
    },
    Function {
        name: "ge",
        takes: Exactly(&[Any, Any]),
        call: |a| ordered(a, Ordering::is_ge),
    },
    Function {
        name: "json",
        takes: Exactly(&[Any]),
        call: json,
    },
    Function {
        name: "join",
        takes: Exactly(&[Strings, Text]),
        call: join,
    },
    Function {
        name: "split",
        takes: Exactly(&[Text, Text]),
        call: split,
    },
    Function {
        name: "lower",
        takes: Exactly(&[Text]),
        call: |a| Ok(Value::string(text(&a[0]).to_lowercase())),
    },
    Function {
        name: "upper",
        takes: Exactly(&[Text]),
        call: |a| Ok(Value::string(text(&a[0]).to_uppercase())),
    },
    Function {
        name: "title",
        takes: Exactly(&[Text]),
        call: |a| Ok(Value::string(title(text(&a[0])))),
    },
    Function {
        name: "pad",
        takes: Exactly(&[Text, Int, Int]),
        call: pad,
    },
    Function {
        name: "truncate",
        takes: Exactly(&[Text, Int]),
        call: truncate,
    },
];

/// A function by name.
pub fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// Whether a function has this name.
pub fn exists(name: &str) -> bool {
    find(name).is_some()
}

fn text(value: &Value) -> &str {
    match value {
        Value::String(text) => text,
        _ => "",
    }
}

fn number(value: &Value) -> i128 {
    match value {
        Value::Int(number) => *number,
        _ => 0,
    }
}

fn call(arguments: &[Value]) -> Result<Value, String> {
    match &arguments[0] {
        Value::Nil | Value::Missing => Err("call of nil".to_owned()),
        other => Err(format!("non-function of type {}", other.type_name())),
    }
}

fn escaped(arguments: &[Value], escape: fn(&str) -> String) -> Value {
    let shown: Vec<Value> = arguments
        .iter()
        .map(|argument| match argument {
            Value::Nil | Value::Missing => Value::string("<no value>"),
            other => other.clone(),
        })
        .collect();
    Value::string(escape(&sprint(&shown)))
}

fn printf(arguments: &[Value]) -> Result<Value, String> {
    Ok(Value::string(sprintf(text(&arguments[0]), &arguments[1..])))
}

/// An argument of `index` or `slice` as a position up to `limit`.
fn position(index: &Value, limit: usize) -> Result<usize, String> {
    match index {
        Value::Int(number) => usize::try_from(*number)
            .ok()
            .filter(|position| *position <= limit)
            .ok_or_else(|| format!("index out of range: {number}")),
        Value::Nil | Value::Missing => Err("cannot index slice/array with nil".to_owned()),
        other => Err(format!(
            "cannot index slice/array with type {}",
            other.type_name()
        )),
    }
}

fn index(arguments: &[Value]) -> Result<Value, String> {
    let mut item = arguments[0].clone();
    if matches!(item, Value::Nil | Value::Missing) {
        return Err("index of untyped nil".to_owned());
    }
    for key in &arguments[1..] {
        item = match &item {
            Value::List(items) => element(items.len(), key, "slice", |at| items[at].clone())?,
            Value::String(text) => element(text.len(), key, "string", |at| {
                Value::Int(text.as_bytes()[at].into())
            })?,
            Value::Map(entries) => match key {
                Value::String(name) => entries
                    .get(&**name)
                    .cloned()
                    .unwrap_or_else(|| Value::zero_element(entries)),
                Value::Nil | Value::Missing => {
                    return Err("value is nil; should be of type string".to_owned());
                }
                other => {
                    return Err(format!(
                        "value has type {}; should be string",
                        other.type_name()
                    ));
                }
            },
            Value::Nil | Value::Missing => return Err("index of nil pointer".to_owned()),
            other => return Err(format!("can't index item of type {}", other.type_name())),
        };
    }
    Ok(item)
}

fn element(
    length: usize,
    key: &Value,
    kind: &str,
    get: impl Fn(usize) -> Value,
) -> Result<Value, String> {
    let at = position(key, length)?;
    if at >= length {
        return Err(format!("reflect: {kind} index out of range"));
    }
    Ok(get(at))
}

fn slice(arguments: &[Value]) -> Result<Value, String> {
    let (item, indexes) = (&arguments[0], &arguments[1..]);
    if matches!(item, Value::Nil | Value::Missing) {
        return Err("slice of untyped nil".to_owned());
    }
    if indexes.len() > 3 {
        return Err(format!("too many slice indexes: {}", indexes.len()));
    }
    let length = match item {
        Value::String(_) if indexes.len() == 3 => {
            return Err("cannot 3-index slice a string".to_owned());
        }
        Value::String(text) => text.len(),
        Value::List(items) => items.len(),
        other => return Err(format!("can't slice item of type {}", other.type_name())),
    };
    let mut bounds = [0, length, length];
    for (bound, index) in bounds.iter_mut().zip(indexes) {
        *bound = position(index, length)?;
    }
    let [start, end, capacity] = bounds;
    if start > end {
        return Err(format!("invalid slice index: {start} > {end}"));
    }
    if indexes.len() == 3 && end > capacity {
        return Err(format!("invalid slice index: {end} > {capacity}"));
    }
    Ok(match item {
        // Go cuts between bytes; what is left of a character is printed as unknown.
        Value::String(text) => Value::string(String::from_utf8_lossy(&text.as_bytes()[start..end])),
        Value::List(items) => Value::List(items[start..end].into()),
        _ => Value::Nil,
    })
}

fn len(arguments: &[Value]) -> Result<Value, String> {
    let length = match &arguments[0] {
        Value::String(text) => text.len(),
        Value::List(items) => items.len(),
        Value::Map(entries) => entries.len(),
        Value::Nil | Value::Missing => return Err("len of nil pointer".to_owned()),
        other => return Err(format!("len of type {}", other.type_name())),
    };
    Ok(Value::Int(length as i128))
}

const INCOMPATIBLE: &str = "incompatible types for comparison";

fn eq(arguments: &[Value]) -> Result<Value, String> {
    if arguments.len() < 2 {
        return Err("missing argument for comparison".to_owned());
    }
    for other in &arguments[1..] {
        if equal(&arguments[0], other)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn equal(one: &Value, other: &Value) -> Result<bool, String> {
    for value in [one, other] {
        if matches!(value, Value::List(_) | Value::Map(_)) {
            return Err(format!(
                "non-comparable type {}: {}",
                print::plain(value),
                value.type_name()
            ));
        }
    }
    match (one, other) {
        (Value::Nil | Value::Missing, Value::Nil | Value::Missing) => Ok(true),
        (Value::Nil | Value::Missing, _) | (_, Value::Nil | Value::Missing) => Ok(false),
        (Value::Bool(one), Value::Bool(other)) => Ok(one == other),
        (Value::Int(one), Value::Int(other)) => Ok(one == other),
        (Value::Float(one), Value::Float(other)) => Ok(one == other),
        (Value::String(one), Value::String(other)) => Ok(one == other),
        _ => Err(INCOMPATIBLE.to_owned()),
    }
}

fn ordered(arguments: &[Value], wanted: fn(Ordering) -> bool) -> Result<Value, String> {
    let ordering = match (&arguments[0], &arguments[1]) {
        (Value::Int(one), Value::Int(other)) => Some(one.cmp(other)),
        (Value::Float(one), Value::Float(other)) => one.partial_cmp(other),
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        (Value::Bool(_), Value::Bool(_)) => {
            return Err("invalid type for comparison".to_owned());
        }
        (one, other) => {
            let basic = |value: &Value| {
                matches!(
                    value,
                    Value::Int(_) | Value::Float(_) | Value::String(_) | Value::Bool(_)
                )
            };
            let message = if basic(one) && basic(other) {
                INCOMPATIBLE
            } else {
                "invalid type for comparison"
            };
            return Err(message.to_owned());
        }
    };
    Ok(Value::Bool(ordering.is_some_and(wanted)))
}

fn json(arguments: &[Value]) -> Result<Value, String> {
    serde_json::to_string(&arguments[0])
        .map(Value::string)
        .map_err(|error| error.to_string())
}

fn join(arguments: &[Value]) -> Result<Value, String> {
    let Value::List(items) = &arguments[0] else {
        return Ok(Value::string(""));
    };
    let texts: Vec<&str> = items.iter().map(text).collect();
    Ok(Value::string(texts.join(text(&arguments[1]))))
}

fn split(arguments: &[Value]) -> Result<Value, String> {
    let (whole, separator) = (text(&arguments[0]), text(&arguments[1]));
    if separator.is_empty() {
        return Ok(Value::strings(whole.chars().map(|c| c.to_string())));
    }
    Ok(Value::strings(whole.split(separator)))
}

/// Every letter after something that is no letter, digit or underscore becomes a capital.
fn title(text: &str) -> String {
    let mut previous = ' ';
    text.chars()
        .map(|character| {
            let starts = !(previous.is_alphanumeric() || previous == '_');
            previous = character;
            if starts {
                character.to_uppercase().next().unwrap_or(character)
            } else {
                character
            }
        })
        .collect()
}

/// No padding is wider, so that a template cannot ask for all memory.
pub const WIDEST: i128 = 1_000_000;

fn pad(arguments: &[Value]) -> Result<Value, String> {
    let source = text(&arguments[0]);
    if source.is_empty() {
        return Ok(Value::string(source));
    }
    let blanks = |count: &Value| match number(count) {
        count @ 0..=WIDEST => Ok(" ".repeat(count as usize)),
        count if count < 0 => Err("strings: negative Repeat count".to_owned()),
        _ => Err("padding too wide".to_owned()),
    };
    let (before, after) = (blanks(&arguments[1])?, blanks(&arguments[2])?);
    Ok(Value::string(format!("{before}{source}{after}")))
}

fn truncate(arguments: &[Value]) -> Result<Value, String> {
    let source = text(&arguments[0]);
    match usize::try_from(number(&arguments[1])) {
        Ok(length) if length < source.len() => Ok(Value::string(String::from_utf8_lossy(
            &source.as_bytes()[..length],
        ))),
        Ok(_) => Ok(Value::string(source)),
        Err(_) => Err("slice bounds out of range".to_owned()),
    }
}
