//! `--format` of commands that list things: a table for people, JSON, or a template per row.

use std::rc::Rc;

use serde::Serialize;

use super::{json, table};
use crate::error::{CliError, Result};
use crate::go_template::{Record, Template, Value, to_value};

/// How a list is wanted.
#[derive(Debug, Clone, Copy)]
pub struct ListFormat<'a> {
    /// The command's name, for errors.
    pub name: &'static str,
    /// `--format`, when given.
    pub format: Option<&'a str>,
    /// The table shown without it: a template's row.
    pub default: &'static str,
    /// Headings that are not the field's name in capitals.
    pub headings: &'static [(&'static str, &'static str)],
    /// `--noheading`.
    pub no_heading: bool,
}

/// True when JSON is asked for; `{{json .}}` for a whole row means the same to Podman.
pub fn is_json(format: Option<&str>) -> bool {
    let Some(format) = format.map(str::trim) else {
        return false;
    };
    if format == "json" {
        return true;
    }
    let inner = format
        .strip_prefix("{{")
        .and_then(|rest| rest.strip_suffix("}}"));
    inner.is_some_and(|inner| {
        matches!(
            inner.split_whitespace().collect::<Vec<_>>()[..],
            ["json"] | ["json", "."]
        )
    })
}

/// Backslash sequences a shell hands on as they are. Those inside actions are the template's own.
pub fn unescape(format: &str) -> String {
    let mut text = String::with_capacity(format.len());
    let mut rest = format;
    while !rest.is_empty() {
        let (outside, action) = rest.split_at(rest.find("{{").unwrap_or(rest.len()));
        text += &outside.replace("\\t", "\t").replace("\\n", "\n");
        let end = action.find("}}").map_or(action.len(), |end| end + 2);
        let (action, after) = action.split_at(end);
        text += action;
        rest = after;
    }
    text
}

impl ListFormat<'_> {
    /// The text of `rows`. `template` is a row of the type, for its field names.
    pub fn render<T: Serialize>(&self, rows: &[T], example: &T) -> Result<String> {
        let values = rows
            .iter()
            .map(to_value)
            .collect::<std::result::Result<_, _>>();
        let values: Vec<Value> = values.map_err(|error| CliError::new(error.to_string()))?;
        let example = to_value(example).map_err(|error| CliError::new(error.to_string()))?;
        self.render_values(values, &example)
    }

    /// The same for rows that are values already.
    pub fn render_values(&self, rows: Vec<Value>, example: &Value) -> Result<String> {
        let format = self
            .format
            .map(str::trim_start)
            .filter(|format| !format.is_empty());
        let (row, is_table) = match format {
            None | Some("table") => (self.default.to_owned(), true),
            Some(format) => match format.strip_prefix("table ") {
                Some(row) => (unescape(row.trim_start()), true),
                None => (unescape(format), false),
            },
        };
        let is_for_people = format.is_none();
        // Podman runs one template over all rows, so its errors count columns from there.
        let source = if row.trim_start().starts_with("{{range") && !is_table {
            row
        } else {
            let newline = if row.ends_with('\n') { "" } else { "\n" };
            format!("{{{{range .}}}}{row}{newline}{{{{end}}}}")
        };
        let template = Template::parse(self.name, &source)
            .map_err(|error| CliError::new(error.to_string()))?;
        let execute = |rows: Vec<Value>| {
            template
                .execute(&Value::List(rows.into()))
                .map_err(|error| CliError::new(error.to_string()))
        };
        let mut text = String::new();
        if is_table && !self.no_heading {
            text.push_str(&execute(vec![self.heading_row(example)])?);
        }
        let rows = if is_for_people {
            rows.into_iter().map(printable).collect()
        } else {
            rows
        };
        text.push_str(&execute(rows)?);
        Ok(if is_table { table::align(&text) } else { text })
    }

    /// A row whose fields are their own headings.
    fn heading_row(&self, example: &Value) -> Value {
        let Value::Record(example) = example else {
            return Value::Nil;
        };
        let heading = |name: &str| {
            let known = self.headings.iter().find(|(known, _)| *known == name);
            Value::string(
                known.map_or_else(|| capitals(name), |(_, heading)| (*heading).to_owned()),
            )
        };
        Value::Record(Rc::new(Record {
            type_name: example.type_name.clone(),
            fields: example
                .fields
                .iter()
                .map(|(name, _)| (name.clone(), heading(name)))
                .collect(),
            methods: example.methods.clone(),
        }))
    }
}

/// JSON of rows.
pub fn render_json<T: Serialize>(rows: &[T]) -> Result<String> {
    json::pretty(rows)
}

/// `CreatedAt` → `CREATED AT`.
fn capitals(name: &str) -> String {
    let mut heading = String::new();
    let mut previous_is_lower = false;
    for character in name.chars() {
        if character.is_uppercase() && previous_is_lower {
            heading.push(' ');
        }
        previous_is_lower = character.is_lowercase();
        heading.extend(character.to_uppercase());
    }
    heading
}

/// The row with nothing in its texts that moves the cursor.
fn printable(row: Value) -> Value {
    match row {
        Value::Record(record) => {
            let mut record = Rc::unwrap_or_clone(record);
            for (_, value) in &mut record.fields {
                if let Value::String(text) = value
                    && text.contains(char::is_control)
                {
                    *value = Value::string(table::printable(text));
                }
            }
            Value::Record(Rc::new(record))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Default)]
    #[serde(rename = "test.row", rename_all = "PascalCase")]
    struct Row {
        #[serde(rename = "ID")]
        id: String,
        created_at: String,
    }

    fn rows() -> Vec<Row> {
        ["a", "b"]
            .map(|id| Row {
                id: id.into(),
                created_at: "now\u{1b}".into(),
            })
            .into()
    }

    #[test]
    fn backslashes_are_replaced_outside_of_actions_only() {
        assert_eq!(unescape(r"a\t{{.ID}}\n"), "a\t{{.ID}}\n");
        let inside = r#"{{range .Mounts}}{{.Type}}{{"\n"}}{{end}}"#;
        assert_eq!(unescape(inside), inside);
        assert_eq!(
            render(Some(r#"{{.ID}}{{"\t"}}x\n"#)).unwrap(),
            "a\tx\nb\tx\n"
        );
        assert_eq!(unescape("{{ .ID \\n"), "{{ .ID \\n");
    }

    fn render(format: Option<&str>) -> Result<String> {
        ListFormat {
            name: "ls",
            format,
            default: "{{.ID}}\t{{.CreatedAt}}",
            headings: &[("ID", "THING ID")],
            no_heading: false,
        }
        .render(&rows(), &Row::default())
    }

    #[test]
    fn tables_have_headings_and_are_safe() {
        assert_eq!(
            render(None).unwrap(),
            "THING ID    CREATED AT\na           now \nb           now \n"
        );
        assert_eq!(render(Some("table {{.ID}}")).unwrap(), "THING ID\na\nb\n");
        assert_eq!(
            render(Some("table {{upper .ID}}")).unwrap(),
            "THING ID\nA\nB\n"
        );
    }

    #[test]
    fn templates_give_a_line_each() {
        assert_eq!(render(Some("{{.ID}}\\t!")).unwrap(), "a\t!\nb\t!\n");
        assert_eq!(render(Some("{{.ID}}\\n")).unwrap(), "a\nb\n");
        assert_eq!(render(Some("{{range .}}{{.ID}}{{end}}")).unwrap(), "ab");
        assert_eq!(
            render(Some("{{.Nope}}")).unwrap_err().message,
            "template: ls:1:13: executing \"ls\" at <.Nope>: can't evaluate field Nope in type test.row"
        );
    }

    #[test]
    fn json_in_all_its_spellings() {
        for yes in ["json", " json ", "{{json .}}", "{{ json . }}", "{{json}}"] {
            assert!(is_json(Some(yes)), "{yes}");
        }
        for no in [
            "",
            "{{json .ID}}",
            "{{.ID}}",
            "jsonx",
            "table json",
            "{{jsonx}}",
        ] {
            assert!(!is_json(Some(no)), "{no}");
        }
    }
}
