//! Against the real Go: every template of `golden/templates.txt` on the same data.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Method, Template, Value, to_value};

#[derive(Serialize)]
#[serde(rename = "main.mount", rename_all = "PascalCase")]
struct Mount {
    source: &'static str,
    destination: &'static str,
    #[serde(rename = "RW")]
    rw: bool,
}

#[derive(Serialize)]
#[serde(rename = "main.state", rename_all = "PascalCase")]
struct State {
    status: &'static str,
    pid: i32,
    health: BTreeMap<&'static str, Option<i32>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Anything {
    Number(i32),
    Text(&'static str),
    List(Vec<Anything>),
    Nil,
}

#[derive(Serialize)]
#[serde(rename = "main.container", rename_all = "PascalCase")]
struct Container {
    #[serde(rename = "ID")]
    id: &'static str,
    names: Vec<&'static str>,
    image: &'static str,
    pid: i32,
    running: bool,
    ratio: f64,
    labels: BTreeMap<&'static str, &'static str>,
    mounts: Vec<Mount>,
    state: State,
    extra: BTreeMap<&'static str, Anything>,
    nothing: Option<i32>,
    empty: Vec<&'static str>,
    blank: &'static str,
    matrix: Vec<Vec<i32>>,
}

/// The data of `golden/main.go`.
fn data() -> Value {
    let container = Container {
        id: "2fc93d100b4a",
        names: vec!["one", "uno"],
        image: "localhost/busybox:latest",
        pid: 4242,
        running: true,
        ratio: 0.5,
        labels: BTreeMap::from([
            ("foo", "bar"),
            ("io.buildah.version", "1.28.2"),
            ("x", "<a&b>"),
        ]),
        mounts: vec![
            Mount {
                source: "/src",
                destination: "/dst",
                rw: true,
            },
            Mount {
                source: "vol",
                destination: "/data",
                rw: false,
            },
        ],
        state: State {
            status: "running",
            pid: 7,
            health: BTreeMap::from([("Log", None), ("Streak", Some(3))]),
        },
        extra: BTreeMap::from([
            ("n", Anything::Number(1)),
            ("s", Anything::Text("text")),
            (
                "list",
                Anything::List(vec![Anything::Text("a"), Anything::Number(2)]),
            ),
            ("nil", Anything::Nil),
        ]),
        nothing: None,
        empty: vec![],
        blank: "",
        matrix: vec![vec![1, 2], vec![3]],
    };
    to_value(&container).unwrap()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Case {
    template: String,
    #[serde(default)]
    output: String,
    #[serde(default)]
    error: String,
}

fn run(template: &str, data: &Value) -> Result<String, String> {
    Template::parse("t", template)
        .and_then(|parsed| parsed.execute(data))
        .map_err(|error| error.0)
}

/// Where we knowingly differ from Go.
const DIFFERENT: &[(&str, &str)] = &[
    (
        "{{len nil}}",
        "Go's answer is about its reflection, not about nil",
    ),
    (
        r#"{{printf "%s %v" true true}} {{printf "%s" 1.5}} {{printf "%x" 1.5}}"#,
        "no hexadecimal floating-point numbers",
    ),
    ("{{json .}}", "an empty list is [] in JSON, never null"),
    (
        "{{json .Extra}} {{json .Matrix}} {{json .Empty}}",
        "an empty list is [] in JSON, never null",
    ),
    ("{{.Extra.s.Nope}}", "values know their own type"),
    ("{{.Extra.n.x}}", "values know their own type"),
    ("{{.Extra.list.x}}", "values know their own type"),
    (
        r#"{{define "R"}}{{template "R"}}{{end}}{{template "R"}}"#,
        "the deepest nesting is smaller",
    ),
];

#[test]
fn does_what_go_does() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/cases.json")).unwrap();
    assert!(cases.len() > 300);
    let data = data();
    let mut wrong = Vec::new();
    for case in &cases {
        if DIFFERENT
            .iter()
            .any(|(template, _)| *template == case.template)
        {
            continue;
        }
        let expected = if case.error.is_empty() {
            Ok(case.output.clone())
        } else {
            Err(case.error.clone())
        };
        let found = run(&case.template, &data);
        if found != expected {
            wrong.push(format!(
                "{}\n  Go:     {expected:?}\n  Selkie: {found:?}",
                case.template
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn fields_are_found_by_their_json_spelling_too() {
    let data = data();
    assert_eq!(run("{{.Id}}", &data).unwrap(), "2fc93d100b4a");
    assert!(run("{{.id}}", &data).is_err());
}

#[test]
fn methods_look_names_up() {
    let Value::Record(record) = data() else {
        panic!("the data are a struct");
    };
    let mut record = (*record).clone();
    let Some(Value::Map(labels)) = record.field("Labels").cloned() else {
        panic!("labels are a map");
    };
    record.methods.push(Method {
        name: "Label",
        entries: labels,
    });
    let data = Value::Record(record.into());
    assert_eq!(
        run(r#"{{.Label "foo"}}|{{.Label "no"}}"#, &data).unwrap(),
        "bar|"
    );
    assert_eq!(run(r#"{{"foo" | .Label}}"#, &data).unwrap(), "bar");
    assert_eq!(
        run("{{.Label}}", &data).unwrap_err(),
        "template: t:1:2: executing \"t\" at <.Label>: wrong number of args for Label: want 1 got 0"
    );
    assert_eq!(
        run("{{.Label 1}}", &data).unwrap_err(),
        "template: t:1:9: executing \"t\" at <1>: expected string; found 1"
    );
}

#[test]
fn deep_nesting_is_refused() {
    let deep = format!("{{{{{}1{}}}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(run(&deep, &Value::Nil).unwrap_err().contains("too deeply"));
    let deep = "{{if 1}}".repeat(5000);
    assert!(run(&deep, &Value::Nil).unwrap_err().contains("too deeply"));
}

proptest! {
    #[test]
    fn nothing_panics(template in ".{0,60}") {
        let _ = run(&template, &data());
    }

    #[test]
    fn nothing_that_looks_like_a_template_panics(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "{{", "}}", "{{- ", " -}}", " ", ".", ".ID", ".Names", ".Labels", "$x", " := ", " = ",
            "range ", "if ", "else", "end", "with ", "define \"t\"", "template \"t\"", "break",
            "|", "(", ")", ",", "\"s\"", "1", "-1", "1.5", "'c'", "nil", "true", "printf ",
            "\"%*d%q%x%+v\"", "index ", "slice ", "len ", "eq ", "json ", "join ", "pad ", "/*", "*/",
        ]), 0..24)
    ) {
        let _ = run(&parts.concat(), &data());
    }
}
