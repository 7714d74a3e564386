//! Go's `text/template`, as far as `--format` of Podman and Docker needs it.
//!
//! Everything of the language is here but complex numbers and calling functions held in data
//! (`call`). Data are [`Value`]s made from serde types: a Rust struct is a Go struct (an unknown
//! field is an error), a map is a Go map (an unknown key is `<no value>`).
//!
//! What is right is what Go does: `golden/cases.json` holds templates with the output or error
//! text of the real thing, obtained by running `golden/main.go`.

mod ast;
mod escape;
mod eval;
mod float;
mod functions;
mod lexer;
mod number;
mod parser;
mod print;
mod printf;
mod serialize;
mod value;

pub use serialize::to_value;
pub use value::{Method, Record, Value};

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    name: String,
    trees: parser::Trees,
    source: String,
}

/// Why a template cannot be parsed or executed, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(pub String);

impl Template {
    /// Parses `source`; `name` is used in errors.
    ///
    /// # Errors
    /// `template: NAME:LINE: …`
    pub fn parse(name: &str, source: &str) -> Result<Self, TemplateError> {
        let trees = parser::parse(name, source)?;
        Ok(Self {
            name: name.to_owned(),
            trees,
            source: source.to_owned(),
        })
    }

    /// The text it makes of `data`.
    ///
    /// # Errors
    /// `template: NAME:LINE:COLUMN: executing "NAME" at <NODE>: …`
    pub fn execute(&self, data: &Value) -> Result<String, TemplateError> {
        eval::execute(&self.name, &self.source, &self.trees, data)
    }
}

#[cfg(test)]
mod tests;
