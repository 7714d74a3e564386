//! Number and character constants, with Go's syntax.

use super::escape;

/// A constant and the values it can stand for.
#[derive(Debug, Clone)]
pub struct Number {
    /// As written.
    pub written: String,
    /// As an integer, when it is one.
    pub integer: Option<i128>,
    /// As a floating-point number.
    pub float: f64,
}

impl Number {
    /// True when, standing alone, it is an integer: it has no point and no exponent.
    pub fn is_integer(&self) -> bool {
        let hexadecimal = self.written.contains(['x', 'X']);
        let looks_float = self.written.contains('.')
            || self.written.contains(['p', 'P'])
            || (!hexadecimal && self.written.contains(['e', 'E']));
        self.integer.is_some() && (self.written.starts_with('\'') || !looks_float)
    }

    /// `'x'`.
    ///
    /// # Errors
    /// What Go says of what is none.
    pub fn character(written: &str) -> Result<Self, String> {
        let text = escape::unquote(written).ok_or("invalid syntax")?;
        let mut characters = text.chars();
        let character = characters.next().ok_or("invalid syntax")?;
        if characters.next().is_some() {
            return Err(format!("malformed character constant: {written}"));
        }
        Ok(Self {
            written: written.to_owned(),
            integer: Some(u32::from(character).into()),
            float: u32::from(character).into(),
        })
    }

    /// Decimal, `0x`, `0o`, `0b`, leading-zero octal, with `_` between digits, or floating-point.
    /// Imaginary numbers are not offered.
    ///
    /// # Errors
    /// What Go says of what is none.
    pub fn parse(written: &str) -> Result<Self, String> {
        let (negative, digits) = match written.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, written.strip_prefix('+').unwrap_or(written)),
        };
        if let Some(magnitude) = integer(digits) {
            let value = if negative { -magnitude } else { magnitude };
            return Ok(Self {
                written: written.to_owned(),
                integer: Some(value),
                float: value as f64,
            });
        }
        let float = float(digits).ok_or_else(|| format!("illegal number syntax: {written:?}"))?;
        if !written.contains(['.', 'e', 'E']) {
            return Err(format!("integer overflow: {written:?}"));
        }
        let float = if negative { -float } else { float };
        // 1e3 is an integer too, where an integer is wanted.
        let whole = float.trunc() == float && float.abs() < 9.2e18;
        Ok(Self {
            written: written.to_owned(),
            integer: whole.then_some(float as i128),
            float,
        })
    }
}

fn integer(digits: &str) -> Option<i128> {
    let lower = digits.to_ascii_lowercase();
    let (base, body) = if let Some(body) = lower.strip_prefix("0x") {
        (16, body)
    } else if let Some(body) = lower.strip_prefix("0o") {
        (8, body)
    } else if let Some(body) = lower.strip_prefix("0b") {
        (2, body)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    let prefixed = body.len() < lower.len();
    let body = underscores_removed(body, prefixed)?;
    let value = i128::from_str_radix(&body, base).ok()?;
    // Go's integers have 64 bits.
    (value <= i128::from(u64::MAX) && !body.starts_with(['+', '-'])).then_some(value)
}

fn float(digits: &str) -> Option<f64> {
    if digits.starts_with(['+', '-']) || digits.contains(['x', 'X', 'i']) {
        return None;
    }
    let body = underscores_removed(digits, false)?;
    let valid = body
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    if !valid {
        return None;
    }
    body.parse().ok().filter(|value: &f64| value.is_finite())
}

/// Underscores may stand between digits, and after a base prefix.
fn underscores_removed(text: &str, prefixed: bool) -> Option<String> {
    if text.contains("__") || text.ends_with('_') || (!prefixed && text.starts_with('_')) {
        return None;
    }
    Some(text.replace('_', ""))
}
