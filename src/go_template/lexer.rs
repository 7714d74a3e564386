//! From text to tokens, by the rules of Go's `text/template/parse`.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text outside actions.
    Text,
    /// `{{`.
    LeftDelimiter,
    /// `}}`.
    RightDelimiter,
    /// Blanks inside an action.
    Space,
    /// `true`, `false`.
    Bool,
    /// `'x'`.
    Character,
    /// A number.
    Number,
    /// `"…"`.
    String,
    /// `` `…` ``.
    RawString,
    /// `.` alone.
    Dot,
    /// `.Name`.
    Field,
    /// A function's name.
    Identifier,
    /// `$name`.
    Variable,
    /// `nil`.
    Nil,
    /// `=`.
    Assign,
    /// `:=`.
    Declare,
    /// `|`.
    Pipe,
    /// `(`.
    LeftParenthesis,
    /// `)`.
    RightParenthesis,
    /// Another printable character, such as `,`.
    Punctuation,
    /// `if`, `range`, …
    Keyword,
    /// The end.
    End,
    /// Not a token: the text says why.
    Error,
}

/// A token and where it was.
#[derive(Debug, Clone)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Byte offset in the source.
    pub position: usize,
    /// Line, from 1.
    pub line: usize,
    /// As written.
    pub text: String,
}

/// Words that steer.
const KEYWORDS: &[&str] = &[
    "block", "break", "continue", "define", "else", "end", "if", "range", "template", "with",
];

const LEFT: &str = "{{";
const RIGHT: &str = "}}";

/// All tokens; the last is an end or an error.
pub fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        source,
        position: 0,
        start: 0,
        line: 1,
        start_line: 1,
        parentheses: 0,
        tokens: Vec::new(),
    };
    lexer.run();
    lexer.tokens
}

struct Lexer<'a> {
    source: &'a str,
    position: usize,
    start: usize,
    /// Line at `position`.
    line: usize,
    start_line: usize,
    parentheses: usize,
    tokens: Vec<Token>,
}

/// Lexing ended, with an end or an error as the last token.
struct Stop;

type Step = Result<(), Stop>;

fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

fn is_word(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

impl Lexer<'_> {
    fn run(&mut self) {
        while self.text().is_ok() {}
    }

    fn rest(&self) -> &str {
        &self.source[self.position..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn advance(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.skip(character.len_utf8());
        Some(character)
    }

    /// Moves on by a number of bytes.
    fn skip(&mut self, count: usize) {
        self.line += self.rest()[..count].matches('\n').count();
        self.position += count;
    }

    fn emit(&mut self, kind: Kind) {
        self.tokens.push(Token {
            kind,
            position: self.start,
            line: self.start_line,
            text: self.source[self.start..self.position].to_owned(),
        });
        self.ignore();
    }

    fn ignore(&mut self) {
        self.start = self.position;
        self.start_line = self.line;
    }

    fn fail(&mut self, message: impl Into<String>) -> Step {
        self.tokens.push(Token {
            kind: Kind::Error,
            position: self.start,
            line: self.start_line,
            text: message.into(),
        });
        Err(Stop)
    }

    /// Text up to the next action or the end, then that action.
    fn text(&mut self) -> Step {
        let Some(offset) = self.rest().find(LEFT) else {
            self.skip(self.rest().len());
            if self.position > self.start {
                self.emit(Kind::Text);
            }
            self.emit(Kind::End);
            return Err(Stop);
        };
        let trims = has_left_trim(&self.rest()[offset + LEFT.len()..]);
        let text = &self.rest()[..offset];
        let kept = if trims {
            text.trim_end_matches(is_space).len()
        } else {
            text.len()
        };
        self.skip(kept);
        if self.position > self.start {
            self.emit(Kind::Text);
        }
        self.skip(offset - kept);
        self.ignore();
        self.left_delimiter()
    }

    fn left_delimiter(&mut self) -> Step {
        self.skip(LEFT.len());
        let marker = if has_left_trim(self.rest()) { 2 } else { 0 };
        if self.rest()[marker..].starts_with("/*") {
            self.skip(marker);
            self.ignore();
            return self.comment();
        }
        self.emit(Kind::LeftDelimiter);
        self.skip(marker);
        self.ignore();
        self.parentheses = 0;
        loop {
            match self.right_delimiter() {
                Some(_) if self.parentheses > 0 => return self.fail("unclosed left paren"),
                Some(trims) => {
                    self.close(trims);
                    return Ok(());
                }
                None => self.inside()?,
            }
        }
    }

    fn comment(&mut self) -> Step {
        let Some(offset) = self.rest().find("*/") else {
            return self.fail("unclosed comment");
        };
        self.skip(offset + 2);
        let Some(trims) = self.right_delimiter() else {
            return self.fail("comment ends before closing delimiter");
        };
        if trims {
            self.skip(2);
        }
        self.skip(RIGHT.len());
        if trims {
            self.skip_spaces();
        }
        self.ignore();
        Ok(())
    }

    /// Whether `}}` is next, and then whether it trims.
    fn right_delimiter(&self) -> Option<bool> {
        if has_right_trim(self.rest()) && self.rest()[2..].starts_with(RIGHT) {
            return Some(true);
        }
        self.rest().starts_with(RIGHT).then_some(false)
    }

    fn close(&mut self, trims: bool) {
        if trims {
            self.skip(2);
            self.ignore();
        }
        self.skip(RIGHT.len());
        self.emit(Kind::RightDelimiter);
        if trims {
            self.skip_spaces();
            self.ignore();
        }
    }

    fn skip_spaces(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.advance();
        }
    }

    /// One token inside an action.
    fn inside(&mut self) -> Step {
        let Some(character) = self.advance() else {
            return self.fail("unclosed action");
        };
        match character {
            _ if is_space(character) => self.spaces(),
            '=' => self.emit(Kind::Assign),
            ':' => {
                if self.advance() != Some('=') {
                    return self.fail("expected :=");
                }
                self.emit(Kind::Declare);
            }
            '|' => self.emit(Kind::Pipe),
            '"' => return self.quoted('"', Kind::String, "unterminated quoted string"),
            '\'' => return self.quoted('\'', Kind::Character, "unterminated character constant"),
            '`' => {
                let Some(offset) = self.rest().find('`') else {
                    return self.fail("unterminated raw quoted string");
                };
                self.skip(offset + 1);
                self.emit(Kind::RawString);
            }
            '$' => return self.named(Kind::Variable, Kind::Variable),
            '.' if !self.peek().is_some_and(|next| next.is_ascii_digit()) => {
                return self.named(Kind::Field, Kind::Dot);
            }
            '.' | '+' | '-' | '0'..='9' => {
                self.position -= 1;
                return self.number();
            }
            _ if is_word(character) => return self.word(),
            '(' => {
                self.emit(Kind::LeftParenthesis);
                self.parentheses += 1;
            }
            ')' => {
                self.emit(Kind::RightParenthesis);
                if self.parentheses == 0 {
                    return self.fail("unexpected right paren U+0029 ')'");
                }
                self.parentheses -= 1;
            }
            '!'..='~' => self.emit(Kind::Punctuation),
            _ => {
                return self.fail(format!(
                    "unrecognized character in action: {}",
                    named_character(character)
                ));
            }
        }
        Ok(())
    }

    fn spaces(&mut self) {
        loop {
            // The blank before `-}}` belongs to that delimiter.
            let last = self.position - 1;
            let rest = &self.source[last..];
            if has_right_trim(rest) && rest[2..].starts_with(RIGHT) {
                if self.source.as_bytes()[last] == b'\n' {
                    self.line -= 1;
                }
                self.position = last;
                if self.position > self.start {
                    self.emit(Kind::Space);
                }
                return;
            }
            if !self.peek().is_some_and(is_space) {
                break;
            }
            self.advance();
        }
        self.emit(Kind::Space);
    }

    fn quoted(&mut self, quote: char, kind: Kind, unterminated: &str) -> Step {
        loop {
            match self.advance() {
                Some('\\') if self.peek().is_some_and(|next| next != '\n') => {
                    self.advance();
                }
                None | Some('\n' | '\\') => return self.fail(unterminated),
                Some(character) if character == quote => break,
                Some(_) => {}
            }
        }
        self.emit(kind);
        Ok(())
    }

    /// `.Name` or `$name`, whose first character has been taken.
    fn named(&mut self, kind: Kind, alone: Kind) -> Step {
        if self.at_terminator() {
            self.emit(alone);
            return Ok(());
        }
        self.take_word();
        if !self.at_terminator() {
            return self.bad_character();
        }
        self.emit(kind);
        Ok(())
    }

    fn word(&mut self) -> Step {
        self.take_word();
        if !self.at_terminator() {
            return self.bad_character();
        }
        let kind = match &self.source[self.start..self.position] {
            word if KEYWORDS.contains(&word) => Kind::Keyword,
            "true" | "false" => Kind::Bool,
            "nil" => Kind::Nil,
            _ => Kind::Identifier,
        };
        self.emit(kind);
        Ok(())
    }

    fn take_word(&mut self) {
        while self.peek().is_some_and(is_word) {
            self.advance();
        }
    }

    fn bad_character(&mut self) -> Step {
        let character = self.peek().unwrap_or('\u{fffd}');
        self.fail(format!("bad character {}", named_character(character)))
    }

    fn at_terminator(&self) -> bool {
        match self.peek() {
            None | Some('.' | ',' | '|' | ':' | '(' | ')') => true,
            Some(character) => is_space(character) || self.rest().starts_with(RIGHT),
        }
    }

    fn number(&mut self) -> Step {
        self.accept("+-");
        let mut digits = "0123456789_";
        let (mut decimal, mut hexadecimal) = (true, false);
        if self.accept("0") {
            if self.accept("xX") {
                (digits, decimal, hexadecimal) = ("0123456789abcdefABCDEF_", false, true);
            } else if self.accept("oO") {
                (digits, decimal) = ("01234567_", false);
            } else if self.accept("bB") {
                (digits, decimal) = ("01_", false);
            }
        }
        self.accept_all(digits);
        if self.accept(".") {
            self.accept_all(digits);
        }
        if (decimal && self.accept("eE")) || (hexadecimal && self.accept("pP")) {
            self.accept("+-");
            self.accept_all("0123456789_");
        }
        self.accept("i");
        if self.peek().is_some_and(is_word) {
            self.advance();
            let text = &self.source[self.start..self.position];
            return self.fail(format!("bad number syntax: {text:?}"));
        }
        self.emit(Kind::Number);
        Ok(())
    }

    fn accept(&mut self, set: &str) -> bool {
        let found = self.peek().is_some_and(|next| set.contains(next));
        if found {
            self.advance();
        }
        found
    }

    fn accept_all(&mut self, set: &str) {
        while self.accept(set) {}
    }
}

fn has_left_trim(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next() == Some('-') && characters.next().is_some_and(is_space)
}

fn has_right_trim(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(is_space) && characters.next() == Some('-')
}

/// `U+0041 'A'`.
fn named_character(character: char) -> String {
    format!("U+{:04X} '{character}'", character as u32)
}
