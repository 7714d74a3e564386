//! What templates work on.

use std::collections::BTreeMap;
use std::rc::Rc;

/// A value as Go's `reflect` would see it.
#[derive(Debug, Clone)]
pub enum Value {
    /// `nil`.
    Nil,
    /// No value at all: what a map does not hold.
    Missing,
    /// `bool`.
    Bool(bool),
    /// Any integer.
    Int(i128),
    /// Any floating-point number.
    Float(f64),
    /// `string`.
    String(Rc<str>),
    /// Slice.
    List(Rc<[Value]>),
    /// Map with string keys.
    Map(Rc<BTreeMap<String, Value>>),
    /// Struct.
    Record(Rc<Record>),
}

/// A struct value.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Go's name of the type, for errors: `containers.psReporter`.
    pub type_name: String,
    /// Fields in order.
    pub fields: Vec<(String, Value)>,
    /// Methods with one string argument.
    pub methods: Vec<Method>,
}

/// A method that looks something up by name, such as `.Label "x"`.
#[derive(Debug, Clone)]
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// What it finds; anything else is the empty string.
    pub entries: Rc<BTreeMap<String, Value>>,
}

impl Record {
    /// A field by its exact name, or by another spelling: Go's field is `ID`, `MemFree` or `LeaseRange`
    /// where the JSON key of the same thing is `Id`, `memFree` or `lease_range`.
    pub fn field(&self, name: &str) -> Option<&Value> {
        let exact = self.fields.iter().find(|(known, _)| known == name);
        let found = exact.or_else(|| {
            // Go exports only names that begin with a capital.
            name.starts_with(|first: char| first.is_ascii_uppercase())
                .then(|| {
                    self.fields
                        .iter()
                        .find(|(known, _)| is_same_but_for_spelling(known, name))
                })
                .flatten()
        });
        found.map(|(_, value)| value)
    }

    /// A method by name.
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name)
    }
}

/// Whether a JSON key and the name of a Go field are the same letters.
fn is_same_but_for_spelling(key: &str, field: &str) -> bool {
    let letters = key.bytes().filter(|byte| *byte != b'_');
    letters
        .map(|byte| byte.to_ascii_lowercase())
        .eq(field.bytes().map(|byte| byte.to_ascii_lowercase()))
}

impl Value {
    /// A string.
    pub fn string(text: impl AsRef<str>) -> Self {
        Self::String(Rc::from(text.as_ref()))
    }

    /// A list of strings.
    pub fn strings<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::List(texts.into_iter().map(Self::string).collect())
    }

    /// Go's idea of a value that is not empty.
    pub fn truth(&self) -> bool {
        match self {
            Self::Nil | Self::Missing => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::String(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(entries) => !entries.is_empty(),
            Self::Record(_) => true,
        }
    }

    /// Go's name of the type.
    pub fn type_name(&self) -> String {
        match self {
            Self::Nil | Self::Missing => "interface {}".to_owned(),
            Self::Bool(_) => "bool".to_owned(),
            Self::Int(_) => "int".to_owned(),
            Self::Float(_) => "float64".to_owned(),
            Self::String(_) => "string".to_owned(),
            Self::List(items) => format!("[]{}", element_type(items.iter())),
            Self::Map(entries) => format!("map[string]{}", element_type(entries.values())),
            Self::Record(record) => record.type_name.clone(),
        }
    }

    /// What a missing key of this map gives to `index`: the zero value of its elements' type.
    pub fn zero_element(entries: &BTreeMap<String, Value>) -> Self {
        match element_type(entries.values()).as_str() {
            "string" => Self::string(""),
            "int" => Self::Int(0),
            "float64" => Self::Float(0.0),
            "bool" => Self::Bool(false),
            _ => Self::Nil,
        }
    }
}

/// The type all elements have; data of no type in particular hold `interface {}`. Empty ones are
/// taken for strings, which most lists and maps in container data hold.
fn element_type<'a>(mut elements: impl Iterator<Item = &'a Value>) -> String {
    let Some(first) = elements.next() else {
        return "string".to_owned();
    };
    let first = first.type_name();
    if elements.all(|element| element.type_name() == first) {
        first
    } else {
        "interface {}".to_owned()
    }
}
