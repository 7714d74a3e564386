//! Quoting and escaping: Go string literals, and the functions `html`, `js` and `urlquery`.

use std::fmt::Write;

/// The value of a Go string or character literal with its quotes.
pub fn unquote(literal: &str) -> Option<String> {
    let quote = literal.chars().next()?;
    let body = literal.strip_prefix(quote)?.strip_suffix(quote)?;
    if quote == '`' {
        return Some(body.replace('\r', ""));
    }
    // Escapes may name bytes, so what they build is bytes first.
    let mut bytes = Vec::with_capacity(body.len());
    let mut characters = body.chars();
    while let Some(character) = characters.next() {
        let mut push = |character: char| {
            let mut buffer = [0; 4];
            bytes.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
        };
        if character == quote || character == '\n' {
            return None;
        }
        if character != '\\' {
            push(character);
            continue;
        }
        match characters.next()? {
            'a' => push('\u{7}'),
            'b' => push('\u{8}'),
            'f' => push('\u{c}'),
            'n' => push('\n'),
            'r' => push('\r'),
            't' => push('\t'),
            'v' => push('\u{b}'),
            '\\' => push('\\'),
            same if same == quote => push(same),
            'x' => bytes.push(u8::try_from(digits(&mut characters, 2, 16)?).ok()?),
            'u' => push(char::from_u32(digits(&mut characters, 4, 16)?)?),
            'U' => push(char::from_u32(digits(&mut characters, 8, 16)?)?),
            first @ '0'..='7' => {
                let high = first.to_digit(8)? * 64;
                bytes.push(u8::try_from(high + digits(&mut characters, 2, 8)?).ok()?);
            }
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn digits(characters: &mut std::str::Chars<'_>, count: usize, base: u32) -> Option<u32> {
    (0..count).try_fold(0u32, |value, _| {
        value
            .checked_mul(base)?
            .checked_add(characters.next()?.to_digit(base)?)
    })
}

/// A Go string literal, as `%q` prints it.
pub fn quote(text: &str, ascii: bool) -> String {
    quote_with(text, '"', ascii)
}

/// A Go character literal.
pub fn quote_character(character: char, ascii: bool) -> String {
    quote_with(character.encode_utf8(&mut [0; 4]), '\'', ascii)
}

fn quote_with(text: &str, quote: char, ascii: bool) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(quote);
    for character in text.chars() {
        let _ = match character {
            '\u{7}' => quoted.write_str("\\a"),
            '\u{8}' => quoted.write_str("\\b"),
            '\u{c}' => quoted.write_str("\\f"),
            '\n' => quoted.write_str("\\n"),
            '\r' => quoted.write_str("\\r"),
            '\t' => quoted.write_str("\\t"),
            '\u{b}' => quoted.write_str("\\v"),
            '\\' => quoted.write_str("\\\\"),
            _ if character == quote => write!(quoted, "\\{quote}"),
            ' '..='~' => quoted.write_char(character),
            '\0'..='\u{7f}' => write!(quoted, "\\x{:02x}", character as u32),
            _ if !ascii && is_printable(character) => quoted.write_char(character),
            '\u{80}'..='\u{ffff}' => write!(quoted, "\\u{:04x}", character as u32),
            _ => write!(quoted, "\\U{:08x}", character as u32),
        };
    }
    quoted.push(quote);
    quoted
}

/// Near to Go's `strconv.IsPrint`: not control, not blank other than the ASCII one, not private
/// or unassigned.
fn is_printable(character: char) -> bool {
    !character.is_control()
        && !character.is_whitespace()
        && !matches!(character,
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}'
            | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{10ffff}')
}

/// For HTML text and attributes.
pub fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\0' => escaped.push('\u{fffd}'),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// For strings in JavaScript.
pub fn js(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        let _ = match character {
            '\\' => escaped.write_str("\\\\"),
            '\'' => escaped.write_str("\\'"),
            '"' => escaped.write_str("\\\""),
            '<' | '>' | '&' | '=' | '\0'..='\u{1f}' => {
                write!(escaped, "\\u{:04X}", character as u32)
            }
            ' '..='\u{7f}' => escaped.write_char(character),
            _ if is_printable(character) => escaped.write_char(character),
            _ => write!(escaped, "\\u{:04X}", character as u32),
        };
    }
    escaped
}

/// For the query part of an address.
pub fn url_query(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        let _ = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.write_char(byte.into())
            }
            b' ' => escaped.write_char('+'),
            _ => write!(escaped, "%{byte:02X}"),
        };
    }
    escaped
}
