//! Columns as Go's `tabwriter` lays them out for Podman: at least ten characters and two blanks
//! apart, the last one as it is.

use std::fmt::Write;

/// Characters of the narrowest column, without its padding.
const NARROWEST: usize = 10;
const PADDING: usize = 2;

/// Lays out lines whose cells are separated by tabs. A column's width is found for all lines at
/// once; lines may have fewer cells than others.
pub fn align(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![NARROWEST; columns];
    for line in &lines {
        // The last cell of a line is not part of a column.
        for (cell, width) in line[..line.len() - 1].iter().zip(&mut widths) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut aligned = String::with_capacity(text.len() * 2);
    for line in lines {
        let (last, cells) = match line.split_last() {
            Some((last, cells)) => (*last, cells),
            None => ("", &[][..]),
        };
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(aligned, "{cell:0$}", width + PADDING);
        }
        aligned.push_str(last);
        aligned.push('\n');
    }
    aligned
}

/// A cell's text without characters that would move the cursor or end the line: names, labels and
/// commands are somebody else's words.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_podman_aligns() {
        assert_eq!(
            align("DRIVER\tVOLUME NAME\nlocal\tvol1\n"),
            "DRIVER      VOLUME NAME\nlocal       vol1\n"
        );
        assert_eq!(
            align("a\tb\tc\n0123456789ab\té\tx\n"),
            "a             b           c\n0123456789ab  é           x\n"
        );
        assert_eq!(align("alone\n"), "alone\n");
        assert_eq!(align(""), "");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\td"), "a [2Jb c d");
    }
}
