//! From tokens to trees, by the rules of Go's `text/template/parse`.

use std::collections::BTreeMap;

use super::TemplateError;
use super::ast::{Block, Branch, Command, Operand, OperandKind, Pipeline, Statement};
use super::escape;
use super::functions;
use super::lexer::{Kind, Token, tokens};
use super::number::Number;

/// Templates by name; the main one has the name given to [`parse`].
pub type Trees = BTreeMap<String, Block>;

/// Nesting beyond this is refused: the parser and the evaluator are recursive.
const DEEPEST: usize = 200;

/// Parses a template and those it defines.
pub fn parse(name: &str, source: &str) -> Result<Trees, TemplateError> {
    let mut parser = Parser {
        name,
        tokens: tokens(source),
        next: 0,
        variables: vec!["$".to_owned()],
        ranges: 0,
        depth: 0,
        trees: Trees::new(),
    };
    let mut main = Block::new();
    while parser.peek().kind != Kind::End {
        if parser.at_definition() {
            parser.definition()?;
            continue;
        }
        match parser.statement()? {
            Item::Statement(statement) => main.push(statement),
            other => return Err(parser.error(format!("unexpected {other}"))),
        }
    }
    parser.trees.insert(name.to_owned(), main);
    Ok(parser.trees)
}

struct Parser<'a> {
    name: &'a str,
    tokens: Vec<Token>,
    next: usize,
    /// Variables in scope.
    variables: Vec<String>,
    /// `range`s around here.
    ranges: usize,
    depth: usize,
    trees: Trees,
}

/// A statement, or what ends a block.
enum Item {
    Statement(Statement),
    Else,
    /// `{{else if`; the `if` is taken.
    ElseIf,
    End,
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Else | Self::ElseIf => "{{else}}",
            _ => "{{end}}",
        })
    }
}

type Parsed<T> = Result<T, TemplateError>;

impl Parser<'_> {
    fn error(&self, message: impl std::fmt::Display) -> TemplateError {
        // Go reports the line of the token it looked at last.
        let line = self.tokens[self.next.saturating_sub(1).min(self.tokens.len() - 1)].line;
        TemplateError(format!("template: {}:{line}: {message}", self.name))
    }

    fn unexpected(&self, token: &Token, context: &str) -> TemplateError {
        if token.kind == Kind::Error {
            return self.error(&token.text);
        }
        self.error(format!("unexpected {} in {context}", shown(token)))
    }

    fn peek(&self) -> &Token {
        // The last token is an end or an error and is never passed.
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next = (self.next + 1).min(self.tokens.len());
        token
    }

    fn skip_spaces(&mut self) {
        while self.peek().kind == Kind::Space {
            self.next += 1;
        }
    }

    fn peek_solid(&mut self) -> &Token {
        self.skip_spaces();
        self.peek()
    }

    fn take_solid(&mut self) -> Token {
        self.skip_spaces();
        self.take()
    }

    fn expect(&mut self, kind: Kind, context: &str) -> Parsed<Token> {
        let token = self.take_solid();
        if token.kind != kind {
            return Err(self.unexpected(&token, context));
        }
        Ok(token)
    }

    fn enter(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.error("nested too deeply"));
        }
        Ok(())
    }

    fn at_definition(&mut self) -> bool {
        if self.peek().kind != Kind::LeftDelimiter {
            return false;
        }
        let mut ahead = self.tokens[self.next + 1..]
            .iter()
            .skip_while(|token| token.kind == Kind::Space);
        ahead
            .next()
            .is_some_and(|token| token.kind == Kind::Keyword && token.text == "define")
    }

    fn definition(&mut self) -> Parsed<()> {
        self.take();
        self.take_solid();
        let name = self.string("define clause")?;
        self.expect(Kind::RightDelimiter, "define clause")?;
        let (variables, ranges) = (
            std::mem::replace(&mut self.variables, vec!["$".to_owned()]),
            std::mem::take(&mut self.ranges),
        );
        let (body, end) = self.block()?;
        if !matches!(end, Item::End) {
            return Err(self.error(format!("unexpected {end} in define clause")));
        }
        (self.variables, self.ranges) = (variables, ranges);
        self.define(name, body)
    }

    /// An empty definition gives way to another.
    fn define(&mut self, name: String, body: Block) -> Parsed<()> {
        match self.trees.get(&name) {
            Some(known) if is_empty(&body) && !is_empty(known) => {}
            Some(known) if !is_empty(known) => {
                return Err(self.error(format!("multiple definition of template {name:?}")));
            }
            _ => {
                self.trees.insert(name, body);
            }
        }
        Ok(())
    }

    fn string(&mut self, context: &str) -> Parsed<String> {
        let token = self.take_solid();
        if !matches!(token.kind, Kind::String | Kind::RawString) {
            return Err(self.unexpected(&token, context));
        }
        escape::unquote(&token.text).ok_or_else(|| self.error("invalid syntax"))
    }

    /// Statements up to `else` or `end`.
    fn block(&mut self) -> Parsed<(Block, Item)> {
        let mut block = Block::new();
        while self.peek().kind != Kind::End {
            match self.statement()? {
                Item::Statement(statement) => block.push(statement),
                end => return Ok((block, end)),
            }
        }
        self.take();
        Err(self.error("unexpected EOF"))
    }

    fn statement(&mut self) -> Parsed<Item> {
        let token = self.take();
        match token.kind {
            Kind::Text => Ok(Item::Statement(Statement::Text(token.text))),
            Kind::LeftDelimiter => self.action(),
            _ => Err(self.unexpected(&token, "input")),
        }
    }

    fn action(&mut self) -> Parsed<Item> {
        let token = self.peek_solid().clone();
        let statement = match (token.kind, token.text.as_str()) {
            (Kind::Keyword, word @ ("break" | "continue")) => {
                self.take();
                let context = format!("{{{{{word}}}}}");
                self.expect(Kind::RightDelimiter, &context)?;
                if self.ranges == 0 {
                    return Err(self.error(format!("{context} outside {{{{range}}}}")));
                }
                if word == "break" {
                    Statement::Break
                } else {
                    Statement::Continue
                }
            }
            (Kind::Keyword, word) if word != "define" => {
                self.take();
                return self.keyword(word);
            }
            _ => self.plain_action()?,
        };
        Ok(Item::Statement(statement))
    }

    fn plain_action(&mut self) -> Parsed<Statement> {
        Ok(Statement::Action(
            self.pipeline("command", Kind::RightDelimiter)?,
        ))
    }

    fn keyword(&mut self, word: &str) -> Parsed<Item> {
        let statement = match word {
            "if" => Statement::If(self.branch("if")?),
            "with" => Statement::With(self.branch("with")?),
            "range" => Statement::Range(self.branch("range")?),
            "end" => {
                self.expect(Kind::RightDelimiter, "end")?;
                return Ok(Item::End);
            }
            "else" => {
                if self.peek_solid().kind == Kind::Keyword && self.peek().text == "if" {
                    self.take();
                    return Ok(Item::ElseIf);
                }
                self.expect(Kind::RightDelimiter, "else")?;
                return Ok(Item::Else);
            }
            "template" => self.invocation()?,
            "block" => self.inline_definition()?,
            _ => return Err(self.error(format!("unexpected {word} clause"))),
        };
        Ok(Item::Statement(statement))
    }

    fn invocation(&mut self) -> Parsed<Statement> {
        let position = self.peek_solid().position;
        let name = self.string("template clause")?;
        let argument = if self.peek_solid().kind == Kind::RightDelimiter {
            self.take();
            None
        } else {
            Some(self.pipeline("template clause", Kind::RightDelimiter)?)
        };
        Ok(Statement::Template {
            position,
            name,
            argument,
        })
    }

    fn inline_definition(&mut self) -> Parsed<Statement> {
        let position = self.peek_solid().position;
        let name = self.string("block clause")?;
        let argument = Some(self.pipeline("block clause", Kind::RightDelimiter)?);
        let (variables, ranges) = (
            std::mem::replace(&mut self.variables, vec!["$".to_owned()]),
            std::mem::take(&mut self.ranges),
        );
        let (body, end) = self.block()?;
        if !matches!(end, Item::End) {
            return Err(self.error(format!("unexpected {end} in block clause")));
        }
        (self.variables, self.ranges) = (variables, ranges);
        self.define(name.clone(), body)?;
        Ok(Statement::Template {
            position,
            name,
            argument,
        })
    }

    fn branch(&mut self, context: &str) -> Parsed<Branch> {
        self.enter()?;
        let scope = self.variables.len();
        let pipeline = self.pipeline(context, Kind::RightDelimiter)?;
        let ranges = self.ranges;
        if context == "range" {
            self.ranges += 1;
        }
        let (body, end) = self.block()?;
        self.ranges = ranges;
        let otherwise = match end {
            Item::Else => {
                let (otherwise, end) = self.block()?;
                if !matches!(end, Item::End) {
                    return Err(self.error(format!("expected end; found {end}")));
                }
                otherwise
            }
            Item::ElseIf if context == "if" => {
                vec![Statement::If(self.branch("if")?)]
            }
            Item::ElseIf => return Err(self.error(format!("unexpected <if> in {context}"))),
            _ => Block::new(),
        };
        self.variables.truncate(scope);
        self.depth -= 1;
        Ok(Branch {
            pipeline,
            body,
            otherwise,
        })
    }

    fn pipeline(&mut self, context: &str, end: Kind) -> Parsed<Pipeline> {
        self.enter()?;
        let position = self.peek_solid().position;
        let (variables, assigns) = self.declarations(context)?;
        let mut commands = Vec::new();
        loop {
            let token = self.take_solid();
            match token.kind {
                kind if kind == end => break,
                Kind::Bool
                | Kind::Character
                | Kind::Dot
                | Kind::Field
                | Kind::Identifier
                | Kind::Number
                | Kind::Nil
                | Kind::RawString
                | Kind::String
                | Kind::Variable
                | Kind::LeftParenthesis => {
                    self.next -= 1;
                    commands.push(self.command()?);
                }
                _ => return Err(self.unexpected(&token, context)),
            }
        }
        if commands.is_empty() {
            return Err(self.error(format!("missing value for {context}")));
        }
        for (index, command) in commands.iter().enumerate().skip(1) {
            if !matches!(
                command.operands[0].kind,
                OperandKind::Function(_)
                    | OperandKind::Field(_)
                    | OperandKind::Variable(..)
                    | OperandKind::Parenthesized(_)
                    | OperandKind::Chain(..)
            ) {
                let stage = index + 1;
                return Err(self.error(format!("non executable command in pipeline stage {stage}")));
            }
        }
        self.depth -= 1;
        Ok(Pipeline {
            position,
            assigns,
            variables,
            commands,
        })
    }

    /// `$x :=`, `$x =`, and in a range `$i, $x :=`.
    fn declarations(&mut self, context: &str) -> Parsed<(Vec<String>, bool)> {
        let mut declared = Vec::new();
        loop {
            let start = self.next;
            if self.peek_solid().kind != Kind::Variable {
                return Ok((declared, false));
            }
            let variable = self.take();
            let sign = self.peek_solid().clone();
            match (sign.kind, sign.text.as_str()) {
                (Kind::Assign | Kind::Declare, _) => {
                    self.take();
                    self.variables.push(variable.text.clone());
                    declared.push(variable.text);
                    return Ok((declared, sign.kind == Kind::Assign));
                }
                (Kind::Punctuation, ",") => {
                    self.take();
                    self.variables.push(variable.text.clone());
                    declared.push(variable.text);
                    if context == "range" && declared.len() < 2 {
                        match self.peek_solid().kind {
                            Kind::Variable | Kind::RightDelimiter | Kind::RightParenthesis => {
                                continue;
                            }
                            _ => return Err(self.error("range can only initialize variables")),
                        }
                    }
                    return Err(self.error(format!("too many declarations in {context}")));
                }
                _ => {
                    self.next = start;
                    return Ok((declared, false));
                }
            }
        }
    }

    fn command(&mut self) -> Parsed<Command> {
        let position = self.peek_solid().position;
        let mut operands = Vec::new();
        loop {
            self.skip_spaces();
            operands.extend(self.operand()?);
            let token = self.take();
            match token.kind {
                Kind::Space => {}
                Kind::RightDelimiter | Kind::RightParenthesis => {
                    self.next -= 1;
                    break;
                }
                Kind::Pipe => break,
                _ => return Err(self.unexpected(&token, "operand")),
            }
        }
        if operands.is_empty() {
            return Err(self.error("empty command"));
        }
        Ok(Command { position, operands })
    }

    /// A term with the fields that follow it.
    fn operand(&mut self) -> Parsed<Option<Operand>> {
        let Some(mut term) = self.term()? else {
            return Ok(None);
        };
        if self.peek().kind != Kind::Field {
            return Ok(Some(term));
        }
        let position = self.peek().position;
        let mut fields = Vec::new();
        while self.peek().kind == Kind::Field {
            fields.push(self.take().text[1..].to_owned());
        }
        term = match term.kind {
            OperandKind::Field(mut names) => {
                names.append(&mut fields);
                Operand {
                    position,
                    kind: OperandKind::Field(names),
                }
            }
            OperandKind::Variable(name, mut names) => {
                names.append(&mut fields);
                Operand {
                    position,
                    kind: OperandKind::Variable(name, names),
                }
            }
            OperandKind::Bool(_)
            | OperandKind::String { .. }
            | OperandKind::Number(_)
            | OperandKind::Nil
            | OperandKind::Dot => {
                let term = format!("{:?}", term.to_string());
                return Err(self.error(format!("unexpected . after term {term}")));
            }
            _ => Operand {
                position,
                kind: OperandKind::Chain(Box::new(term), fields),
            },
        };
        Ok(Some(term))
    }

    fn term(&mut self) -> Parsed<Option<Operand>> {
        let token = self.take_solid();
        let kind = match token.kind {
            Kind::Identifier => {
                if !functions::exists(&token.text) {
                    return Err(self.error(format!("function {:?} not defined", token.text)));
                }
                OperandKind::Function(token.text)
            }
            Kind::Dot => OperandKind::Dot,
            Kind::Nil => OperandKind::Nil,
            Kind::Bool => OperandKind::Bool(token.text == "true"),
            Kind::Field => OperandKind::Field(vec![token.text[1..].to_owned()]),
            Kind::Variable => {
                if !self.variables.contains(&token.text) {
                    return Err(self.error(format!("undefined variable {:?}", token.text)));
                }
                OperandKind::Variable(token.text, Vec::new())
            }
            Kind::Number => OperandKind::Number(
                Number::parse(&token.text).map_err(|message| self.error(message))?,
            ),
            Kind::Character => OperandKind::Number(
                Number::character(&token.text).map_err(|message| self.error(message))?,
            ),
            Kind::String | Kind::RawString => OperandKind::String {
                value: escape::unquote(&token.text).ok_or_else(|| self.error("invalid syntax"))?,
                written: token.text,
            },
            Kind::LeftParenthesis => OperandKind::Parenthesized(Box::new(
                self.pipeline("parenthesized pipeline", Kind::RightParenthesis)?,
            )),
            _ => {
                self.next -= 1;
                return Ok(None);
            }
        };
        Ok(Some(Operand {
            position: token.position,
            kind,
        }))
    }
}

fn shown(token: &Token) -> String {
    match token.kind {
        Kind::End => "EOF".to_owned(),
        Kind::Keyword | Kind::Dot | Kind::Nil => format!("<{}>", token.text),
        _ if token.text.chars().count() > 10 => {
            let beginning: String = token.text.chars().take(10).collect();
            format!("{}...", escape::quote(&beginning, false))
        }
        _ => escape::quote(&token.text, false),
    }
}

/// Nothing but white space.
fn is_empty(block: &Block) -> bool {
    block
        .iter()
        .all(|statement| matches!(statement, Statement::Text(text) if text.trim().is_empty()))
}
