//! The parsed form, and how Go prints it in errors.

use std::fmt;

use super::number::Number;

/// Statements in order.
pub type Block = Vec<Statement>;

/// Something that makes output or steers.
#[derive(Debug, Clone)]
pub enum Statement {
    /// As it stands.
    Text(String),
    /// `{{pipeline}}`.
    Action(Pipeline),
    /// `{{if}}`.
    If(Branch),
    /// `{{with}}`.
    With(Branch),
    /// `{{range}}`.
    Range(Branch),
    /// `{{template}}`.
    Template {
        /// Byte offset.
        position: usize,
        /// Which.
        name: String,
        /// Its dot.
        argument: Option<Pipeline>,
    },
    /// `{{break}}`.
    Break,
    /// `{{continue}}`.
    Continue,
}

/// Condition and both ways.
#[derive(Debug, Clone)]
pub struct Branch {
    /// What decides.
    pub pipeline: Pipeline,
    /// Taken when it is not empty.
    pub body: Block,
    /// Taken when it is.
    pub otherwise: Block,
}

/// `$x := a | b | c`.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Byte offset.
    pub position: usize,
    /// `=` instead of `:=`.
    pub assigns: bool,
    /// Variables set, with their `$`.
    pub variables: Vec<String>,
    /// Stages.
    pub commands: Vec<Command>,
}

/// Operands separated by blanks.
#[derive(Debug, Clone)]
pub struct Command {
    /// Byte offset.
    pub position: usize,
    /// Never empty.
    pub operands: Vec<Operand>,
}

/// An operand and where it is.
#[derive(Debug, Clone)]
pub struct Operand {
    /// Byte offset.
    pub position: usize,
    /// What it is.
    pub kind: OperandKind,
}

/// What an operand is.
#[derive(Debug, Clone)]
pub enum OperandKind {
    /// `.`.
    Dot,
    /// `nil`.
    Nil,
    /// `true`.
    Bool(bool),
    /// A number or character.
    Number(Number),
    /// A string: as written, and its value.
    String {
        /// With quotes.
        written: String,
        /// Without.
        value: String,
    },
    /// A function.
    Function(String),
    /// `.A.B`.
    Field(Vec<String>),
    /// `$x.A.B`: the variable with its `$`, then fields.
    Variable(String, Vec<String>),
    /// `(pipeline)`.
    Parenthesized(Box<Pipeline>),
    /// `(pipeline).A.B`.
    Chain(Box<Operand>, Vec<String>),
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.variables.is_empty() {
            let sign = if self.assigns { "=" } else { ":=" };
            write!(f, "{} {sign} ", self.variables.join(", "))?;
        }
        for (index, command) in self.commands.iter().enumerate() {
            if index > 0 {
                f.write_str(" | ")?;
            }
            command.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, operand) in self.operands.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            operand.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = |f: &mut fmt::Formatter<'_>, fields: &[String]| {
            fields.iter().try_for_each(|field| write!(f, ".{field}"))
        };
        match &self.kind {
            OperandKind::Dot => f.write_str("."),
            OperandKind::Nil => f.write_str("nil"),
            OperandKind::Bool(value) => value.fmt(f),
            OperandKind::Number(number) => f.write_str(&number.written),
            OperandKind::String { written, .. } => f.write_str(written),
            OperandKind::Function(name) => f.write_str(name),
            OperandKind::Field(names) => fields(f, names),
            OperandKind::Variable(name, names) => {
                f.write_str(name)?;
                fields(f, names)
            }
            OperandKind::Parenthesized(pipeline) => write!(f, "({pipeline})"),
            OperandKind::Chain(operand, names) => {
                operand.fmt(f)?;
                fields(f, names)
            }
        }
    }
}
