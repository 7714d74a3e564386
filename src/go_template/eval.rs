//! Executing a parsed template, by the rules of Go's `text/template`.

use std::rc::Rc;

use super::TemplateError;
use super::ast::{Block, Branch, Command, Operand, OperandKind, Pipeline, Statement};
use super::functions::{self, Function, Kind, Takes};
use super::parser::Trees;
use super::print::{plain, write_plain};
use super::value::Value;

/// Templates that invoke each other deeper than this are taken for endless.
const DEEPEST: usize = 100;

/// Runs the template `name` of `trees`.
pub fn execute(
    name: &str,
    source: &str,
    trees: &Trees,
    data: &Value,
) -> Result<String, TemplateError> {
    let mut run = Run {
        parse_name: name,
        running: name,
        source,
        trees,
        variables: vec![("$".to_owned(), data.clone())],
        at: At::Nothing,
        out: String::new(),
        depth: 0,
    };
    if let Some(block) = trees.get(name) {
        run.block(block, data)?;
    }
    Ok(run.out)
}

/// What is being looked at, for errors.
#[derive(Clone, Copy)]
enum At<'t> {
    Nothing,
    Pipeline(&'t Pipeline),
    Command(&'t Command),
    Operand(&'t Operand),
    Template(usize, &'t str, Option<&'t Pipeline>),
}

/// How a block ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Run<'t> {
    parse_name: &'t str,
    running: &'t str,
    source: &'t str,
    trees: &'t Trees,
    variables: Vec<(String, Value)>,
    at: At<'t>,
    out: String,
    depth: usize,
}

type Evaluated<T> = Result<T, TemplateError>;

impl<'t> Run<'t> {
    fn error(&self, message: impl std::fmt::Display) -> TemplateError {
        let (position, context) = match self.at {
            At::Nothing => {
                return TemplateError(format!("template: {}: {message}", self.running));
            }
            At::Pipeline(pipeline) => (pipeline.position, pipeline.to_string()),
            At::Command(command) => (command.position, command.to_string()),
            At::Operand(operand) => (operand.position, operand.to_string()),
            At::Template(position, name, argument) => (
                position,
                match argument {
                    Some(argument) => format!("{{{{template {name:?} {argument}}}}}"),
                    None => format!("{{{{template {name:?}}}}}"),
                },
            ),
        };
        let before = &self.source[..position.min(self.source.len())];
        let line = 1 + before.matches('\n').count();
        let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1);
        TemplateError(format!(
            "template: {}:{line}:{column}: executing {:?} at <{context}>: {message}",
            self.parse_name, self.running
        ))
    }

    fn block(&mut self, block: &'t Block, dot: &Value) -> Evaluated<Flow> {
        for statement in block {
            match statement {
                Statement::Text(text) => self.out.push_str(text),
                Statement::Action(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.print(&value);
                    }
                }
                Statement::If(branch) => {
                    let flow = self.conditional(branch, dot, false)?;
                    if flow != Flow::On {
                        return Ok(flow);
                    }
                }
                Statement::With(branch) => {
                    let flow = self.conditional(branch, dot, true)?;
                    if flow != Flow::On {
                        return Ok(flow);
                    }
                }
                Statement::Range(branch) => self.range(branch, dot)?,
                Statement::Template {
                    position,
                    name,
                    argument,
                } => self.invoke(*position, name, argument.as_ref(), dot)?,
                Statement::Break => return Ok(Flow::Break),
                Statement::Continue => return Ok(Flow::Continue),
            }
        }
        Ok(Flow::On)
    }

    fn print(&mut self, value: &Value) {
        match value {
            Value::Nil | Value::Missing => self.out.push_str("<no value>"),
            value => write_plain(&mut self.out, value),
        }
    }

    fn conditional(&mut self, branch: &'t Branch, dot: &Value, sets_dot: bool) -> Evaluated<Flow> {
        let scope = self.variables.len();
        let value = self.pipeline(&branch.pipeline, dot)?;
        let flow = match (value.truth(), sets_dot) {
            (true, true) => self.block(&branch.body, &value)?,
            (true, false) => self.block(&branch.body, dot)?,
            (false, _) => self.block(&branch.otherwise, dot)?,
        };
        self.variables.truncate(scope);
        Ok(flow)
    }

    fn range(&mut self, branch: &'t Branch, dot: &Value) -> Evaluated<()> {
        let scope = self.variables.len();
        let value = self.pipeline(&branch.pipeline, dot)?;
        let inner = self.variables.len();
        let names = &branch.pipeline.variables;
        let one = |run: &mut Self, key: Value, item: &Value| -> Evaluated<Flow> {
            match names.len() {
                0 => {}
                1 => run.set_range_variable(branch, 0, item.clone()),
                _ => {
                    run.set_range_variable(branch, 0, key);
                    run.set_range_variable(branch, 1, item.clone());
                }
            }
            let flow = run.block(&branch.body, item)?;
            run.variables.truncate(inner);
            Ok(flow)
        };
        let mut is_empty = true;
        match &value {
            Value::Nil | Value::Missing => {}
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    is_empty = false;
                    if one(self, Value::Int(index as i128), item)? == Flow::Break {
                        break;
                    }
                }
            }
            Value::Map(entries) => {
                for (key, item) in entries.iter() {
                    is_empty = false;
                    if one(self, Value::string(key), item)? == Flow::Break {
                        break;
                    }
                }
            }
            other => {
                let shown = plain(other);
                return Err(self.error(format!("range can't iterate over {shown}")));
            }
        }
        if is_empty {
            self.block(&branch.otherwise, dot)?;
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn set_range_variable(&mut self, branch: &Branch, index: usize, value: Value) {
        let name = &branch.pipeline.variables[index];
        if let Some((_, slot)) = self
            .variables
            .iter_mut()
            .rev()
            .find(|(known, _)| known == name)
        {
            *slot = value;
        }
    }

    fn invoke(
        &mut self,
        position: usize,
        name: &'t str,
        argument: Option<&'t Pipeline>,
        dot: &Value,
    ) -> Evaluated<()> {
        self.at = At::Template(position, name, argument);
        let Some((name, block)) = self.trees.get_key_value(name) else {
            return Err(self.error(format!("template {name:?} not defined")));
        };
        if self.depth == DEEPEST {
            return Err(self.error(format!("exceeded maximum template depth ({DEEPEST})")));
        }
        let dot = match argument {
            Some(argument) => self.pipeline(argument, dot)?,
            None => Value::Nil,
        };
        let outside = std::mem::replace(&mut self.variables, vec![("$".to_owned(), dot.clone())]);
        let caller = std::mem::replace(&mut self.running, name);
        self.depth += 1;
        self.block(block, &dot)?;
        self.depth -= 1;
        self.running = caller;
        self.variables = outside;
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &'t Pipeline, dot: &Value) -> Evaluated<Value> {
        self.at = At::Pipeline(pipeline);
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(command, dot, value)?);
        }
        let value = value.unwrap_or(Value::Nil);
        for name in &pipeline.variables {
            let known = self
                .variables
                .iter_mut()
                .rev()
                .find(|(known, _)| known == name)
                .filter(|_| pipeline.assigns);
            match known {
                Some((_, slot)) => *slot = value.clone(),
                None if pipeline.assigns => {
                    return Err(self.error(format!("undefined variable: {name}")));
                }
                None => self.variables.push((name.clone(), value.clone())),
            }
        }
        Ok(value)
    }

    /// `last` is what the stage before this one made.
    fn command(
        &mut self,
        command: &'t Command,
        dot: &Value,
        last: Option<Value>,
    ) -> Evaluated<Value> {
        let (first, arguments) = match command.operands.split_first() {
            Some(split) => split,
            None => return Ok(Value::Nil),
        };
        let call = Call {
            command,
            arguments,
            last,
        };
        match &first.kind {
            OperandKind::Function(name) => {
                self.at = At::Operand(first);
                return self.function(name, &call, dot);
            }
            OperandKind::Field(names) => {
                self.at = At::Operand(first);
                return self.fields(dot.clone(), names, &call, dot);
            }
            OperandKind::Chain(operand, names) => {
                self.at = At::Operand(first);
                if matches!(operand.kind, OperandKind::Nil) {
                    return Err(self.error("indirection through explicit nil in <nil>"));
                }
                let value = self.argument(operand, dot)?;
                return self.fields(value, names, &call, dot);
            }
            OperandKind::Variable(name, names) => {
                self.at = At::Operand(first);
                let value = self.variable(name);
                if names.is_empty() {
                    self.no_arguments(first, &call)?;
                    return Ok(value);
                }
                return self.fields(value, names, &call, dot);
            }
            OperandKind::Parenthesized(pipeline) => {
                self.no_arguments(first, &call)?;
                return self.pipeline(pipeline, dot);
            }
            _ => {}
        }
        self.at = At::Operand(first);
        self.no_arguments(first, &call)?;
        match &first.kind {
            OperandKind::Nil => Err(self.error("nil is not a command")),
            _ => self.argument(first, dot),
        }
    }

    fn no_arguments(&self, first: &Operand, call: &Call<'t>) -> Evaluated<()> {
        if call.has_arguments() {
            let shown = match &first.kind {
                OperandKind::Parenthesized(pipeline) => pipeline.to_string(),
                _ => first.to_string(),
            };
            return Err(self.error(format!("can't give argument to non-function {shown}")));
        }
        Ok(())
    }

    fn variable(&self, name: &str) -> Value {
        self.variables
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map_or(Value::Nil, |(_, value)| value.clone())
    }

    /// `.A.B.C`, where only the last may be a method with arguments.
    fn fields(
        &mut self,
        receiver: Value,
        names: &'t [String],
        call: &Call<'t>,
        dot: &Value,
    ) -> Evaluated<Value> {
        let Some((last, first)) = names.split_last() else {
            return Ok(receiver);
        };
        let mut value = receiver;
        for name in first {
            value = self.field(value, name, None, dot)?;
        }
        self.field(value, last, Some(call), dot)
    }

    fn field(
        &mut self,
        receiver: Value,
        name: &str,
        call: Option<&Call<'t>>,
        dot: &Value,
    ) -> Evaluated<Value> {
        let has_arguments = call.is_some_and(Call::has_arguments);
        match &receiver {
            // What is not there has no fields, and Go does not mind; nil it does.
            Value::Missing => Ok(Value::Missing),
            Value::Nil => Err(self.error(format!("nil pointer evaluating interface {{}}.{name}"))),
            Value::Record(record) => {
                if let Some(method) = record.method(name) {
                    let entries = Rc::clone(&method.entries);
                    let arguments = match call {
                        Some(call) => {
                            self.evaluated(call, Takes::Exactly(&[Kind::String]), name, dot)?
                        }
                        None => return Err(self.error(wrong_count(name, 1, 0))),
                    };
                    return Ok(match &arguments[..] {
                        [Value::String(key)] => entries
                            .get(&**key)
                            .cloned()
                            .unwrap_or_else(|| Value::string("")),
                        _ => Value::string(""),
                    });
                }
                match record.field(name) {
                    Some(_) if has_arguments => Err(self.error(format!(
                        "{name} has arguments but cannot be invoked as function"
                    ))),
                    Some(value) => Ok(value.clone()),
                    None if has_arguments => {
                        Err(self.error(format!("{name} is not a method but has arguments")))
                    }
                    None => Err(self.cannot_evaluate(name, &receiver)),
                }
            }
            Value::Map(_) if has_arguments => {
                Err(self.error(format!("{name} is not a method but has arguments")))
            }
            Value::Map(entries) => Ok(entries.get(name).cloned().unwrap_or(Value::Missing)),
            _ => Err(self.cannot_evaluate(name, &receiver)),
        }
    }

    fn cannot_evaluate(&self, name: &str, receiver: &Value) -> TemplateError {
        self.error(format!(
            "can't evaluate field {name} in type {}",
            receiver.type_name()
        ))
    }

    fn function(&mut self, name: &str, call: &Call<'t>, dot: &Value) -> Evaluated<Value> {
        let Some(function) = functions::find(name) else {
            return Err(self.error(format!("{name:?} is not a defined function")));
        };
        if matches!(name, "and" | "or") {
            return self.short_circuit(function, call, dot);
        }
        let arguments = self.evaluated(call, function.takes, name, dot)?;
        (function.call)(&arguments).map_err(|message| {
            self.at = At::Command(call.command);
            self.error(format!("error calling {name}: {message}"))
        })
    }

    /// `and` and `or` evaluate no more than decides.
    fn short_circuit(
        &mut self,
        function: &Function,
        call: &Call<'t>,
        dot: &Value,
    ) -> Evaluated<Value> {
        if !call.has_arguments() {
            return Err(self.error(at_least(function.name, 1, 0)));
        }
        let decides = function.name == "or";
        let mut value = Value::Nil;
        for argument in call.arguments {
            value = self.argument(argument, dot)?;
            if value.truth() == decides {
                return Ok(value);
            }
        }
        Ok(call.last.clone().unwrap_or(value))
    }

    /// All arguments of a call, their number and types checked.
    fn evaluated(
        &mut self,
        call: &Call<'t>,
        takes: Takes,
        name: &str,
        dot: &Value,
    ) -> Evaluated<Vec<Value>> {
        let count = call.arguments.len() + usize::from(call.last.is_some());
        let kinds = match takes {
            Takes::Exactly(kinds) if kinds.len() != count => {
                return Err(self.error(wrong_count(name, kinds.len(), count)));
            }
            Takes::AtLeast(kinds) if kinds.len() > count => {
                return Err(self.error(at_least(name, kinds.len(), count)));
            }
            Takes::Exactly(kinds) | Takes::AtLeast(kinds) => kinds,
        };
        let kind = |index: usize| kinds.get(index).copied().unwrap_or(Kind::Any);
        let mut values = Vec::with_capacity(count);
        for (index, argument) in call.arguments.iter().enumerate() {
            let value = self.typed_argument(argument, kind(index), dot)?;
            values.push(value);
        }
        if let Some(last) = &call.last {
            let kind = kind(values.len());
            values.push(self.checked(last.clone(), kind)?);
        }
        Ok(values)
    }

    fn typed_argument(
        &mut self,
        argument: &'t Operand,
        kind: Kind,
        dot: &Value,
    ) -> Evaluated<Value> {
        self.at = At::Operand(argument);
        match (&argument.kind, kind) {
            (OperandKind::Nil, Kind::String | Kind::Int) => {
                Err(self.error(format!("cannot assign nil to {}", kind.name())))
            }
            (OperandKind::Bool(_) | OperandKind::Number(_), Kind::String)
            | (OperandKind::Bool(_) | OperandKind::String { .. }, Kind::Int) => {
                let expected = if kind == Kind::Int {
                    "integer"
                } else {
                    kind.name()
                };
                Err(self.error(format!("expected {expected}; found {argument}")))
            }
            (
                OperandKind::Bool(_) | OperandKind::Number(_) | OperandKind::String { .. },
                Kind::Strings,
            ) => Err(self.error(format!(
                "can't handle {argument} for arg of type {}",
                kind.name()
            ))),
            (OperandKind::Number(number), Kind::Int) => match number.integer {
                Some(value) => Ok(Value::Int(value)),
                None => Err(self.error(format!("expected integer; found {argument}"))),
            },
            _ => {
                let value = self.argument(argument, dot)?;
                self.checked(value, kind)
            }
        }
    }

    fn checked(&self, value: Value, kind: Kind) -> Evaluated<Value> {
        let fits = match (&value, kind) {
            (_, Kind::Any) | (Value::String(_), Kind::String) | (Value::Int(_), Kind::Int) => true,
            (Value::List(items), Kind::Strings) => {
                items.iter().all(|item| matches!(item, Value::String(_)))
            }
            (Value::Missing, Kind::Strings) => true,
            (Value::Missing, _) => {
                return Err(self.error(format!("invalid value; expected {}", kind.name())));
            }
            _ => false,
        };
        if fits {
            return Ok(value);
        }
        Err(self.error(format!(
            "wrong type for value; expected {}; got {}",
            kind.name(),
            value.type_name()
        )))
    }

    /// An operand as a value of its own.
    fn argument(&mut self, operand: &'t Operand, dot: &Value) -> Evaluated<Value> {
        self.at = At::Operand(operand);
        match &operand.kind {
            OperandKind::Dot => Ok(dot.clone()),
            OperandKind::Nil => Ok(Value::Nil),
            OperandKind::Bool(value) => Ok(Value::Bool(*value)),
            OperandKind::String { value, .. } => Ok(Value::string(value)),
            OperandKind::Number(number) => match number.integer {
                Some(integer) if number.is_integer() => {
                    if i64::try_from(integer).is_err() {
                        return Err(self.error(format!("{} overflows int", number.written)));
                    }
                    Ok(Value::Int(integer))
                }
                _ => Ok(Value::Float(number.float)),
            },
            OperandKind::Function(name) => self.function_alone(name),
            OperandKind::Field(names) => self.plain_fields(dot.clone(), names, dot),
            OperandKind::Variable(name, names) => {
                let value = self.variable(name);
                self.plain_fields(value, names, dot)
            }
            OperandKind::Parenthesized(pipeline) => self.pipeline(pipeline, dot),
            OperandKind::Chain(inner, names) => {
                let value = self.argument(inner, dot)?;
                self.plain_fields(value, names, dot)
            }
        }
    }

    fn plain_fields(&mut self, receiver: Value, names: &[String], dot: &Value) -> Evaluated<Value> {
        names
            .iter()
            .try_fold(receiver, |value, name| self.field(value, name, None, dot))
    }

    /// A function without arguments, as an argument itself.
    fn function_alone(&mut self, name: &str) -> Evaluated<Value> {
        let Some(function) = functions::find(name) else {
            return Err(self.error(format!("{name:?} is not a defined function")));
        };
        match function.takes {
            Takes::Exactly(kinds) if !kinds.is_empty() => {
                Err(self.error(wrong_count(name, kinds.len(), 0)))
            }
            Takes::AtLeast(kinds) if !kinds.is_empty() => {
                Err(self.error(at_least(name, kinds.len(), 0)))
            }
            _ => (function.call)(&[])
                .map_err(|message| self.error(format!("error calling {name}: {message}"))),
        }
    }
}

/// What a command gives to its function, field or method.
struct Call<'t> {
    command: &'t Command,
    arguments: &'t [Operand],
    last: Option<Value>,
}

impl Call<'_> {
    fn has_arguments(&self) -> bool {
        !self.arguments.is_empty() || self.last.is_some()
    }
}

fn wrong_count(name: &str, want: usize, got: usize) -> String {
    format!("wrong number of args for {name}: want {want} got {got}")
}

fn at_least(name: &str, want: usize, got: usize) -> String {
    format!("wrong number of args for {name}: want at least {want} got {got}")
}
