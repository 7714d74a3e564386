//! Asking before something is removed for good.

use std::io::{BufRead, Write};

use crate::error::{CliError, Result};

/// Shows a warning and asks; anything but `y` or `yes` is a no, and so is the end of input.
pub fn confirm(warning: &str) -> Result<bool> {
    super::print(&format!(
        "{warning}\nAre you sure you want to continue? [y/N] "
    ))?;
    crate::error::output(std::io::stdout().flush())?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| CliError::new(format!("read the answer: {error}")))?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_yes_is_yes() {
        for (answer, expected) in [
            ("y\n", true),
            ("YES", true),
            ("", false),
            ("n", false),
            ("yep", false),
        ] {
            assert_eq!(super::is_yes(answer), expected, "{answer:?}");
        }
    }
}
