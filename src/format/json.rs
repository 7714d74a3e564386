//! JSON as Podman prints it.

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::error::{CliError, Result};

/// Indented by four blanks, with a final newline.
pub fn pretty<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    let mut serializer = Serializer::with_formatter(&mut text, formatter);
    value
        .serialize(&mut serializer)
        .map_err(|error| CliError::new(format!("write JSON: {error}")))?;
    text.push(b'\n');
    String::from_utf8(text).map_err(|error| CliError::new(format!("write JSON: {error}")))
}
