//! Row to document: compiles the pipeline's templates and renders title, text and payload. No I/O, no tokens.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};

use crate::config;
use crate::config::problems::nearest;
use crate::event::{FAULT_COLUMN, Row};

/// What one template may do with one row: about one unit an instruction or 64 bytes. Enough for 100 MB of text, and
/// ends an endless template within seconds.
const FUEL: u64 = 2_000_000;
/// Names the templates inside the environment; what users see is the path in the pipeline file.
const TITLE: &str = "document.title";
const TEXT: &str = "document.text";
const WHEN: &str = "document.when";
const PAYLOAD: &str = "document.payload";
const FILTERS: &str = "index.filters";

/// A pipeline's document: what is embedded and what is returned.
///
/// Templates see the row's columns by name. NULL renders as nothing, a boolean as Jinja's True or False, nothing is
/// escaped, and a name that is no column is an error, also inside a JSON column (`| default("")` where it may be missing). Template functions such as
/// `range` do not exist, so every name is a column's.
#[derive(Debug)]
pub struct Document {
    environment: Environment<'static>,
    has_title: bool,
    has_condition: bool,
    payload: Vec<String>,
    columns: BTreeMap<&'static str, BTreeSet<String>>,
}

/// A row as it is embedded and returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// The title without white space at its ends; none if there is nothing else in it.
    pub title: Option<String>,
    /// The text without white space at its ends; may be empty.
    pub text: String,
    /// The payload's columns, in the order of the settings.
    pub payload: Row,
}

/// A document's templates cannot be used, or not with this row.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Templates that cannot be compiled, all of them.
    #[error("compile the document's templates: {}", .0.join("; "))]
    Templates(Vec<String>),
    /// A template fails on this row.
    #[error("render {field}{}", describe(.source))]
    Render {
        /// Which template, as a path in the pipeline file.
        field: &'static str,
        /// What minijinja said.
        source: minijinja::Error,
    },
    /// The row lacks a column of the payload.
    #[error("render {PAYLOAD}: the row has no column {0}")]
    Column(String),
    /// The source could not say what the row is.
    #[error("{0}")]
    Source(String),
}

impl Document {
    /// Compiles the templates. The error names every one that cannot be.
    pub fn compile(settings: &config::Document) -> Result<Document, DocumentError> {
        let mut environment = environment();
        let mut problems = vec![];
        let mut columns: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
        // minijinja's expressions borrow from their environment; a template that says 1 where the condition holds
        // can be kept in it. The expression is compiled alone first, so that it cannot close the `if`.
        let condition = settings.when.as_deref().map(|when| {
            if let Err(fault) = environment.compile_expression(when) {
                problems.push(problem(WHEN, &fault));
            }
            format!("{{% if ({when}) %}}1{{% endif %}}")
        });
        let condition = condition.filter(|_| problems.is_empty());
        let templates = [(TITLE, settings.title.clone()), (TEXT, Some(settings.text.clone())), (WHEN, condition)];
        for (field, template) in templates {
            let Some(template) = template else { continue };
            match environment.add_template_owned(field, template) {
                Ok(()) => columns.insert(field, names(&environment, field)).map_or((), drop),
                Err(fault) => problems.push(problem(field, &fault)),
            }
        }
        for (field, names) in &columns {
            problems.extend(unknown_filter(&environment, field, names));
        }
        if !problems.is_empty() {
            return Err(DocumentError::Templates(problems));
        }
        columns.insert(PAYLOAD, settings.payload.iter().cloned().collect());
        Ok(Document {
            environment,
            has_title: settings.title.is_some(),
            has_condition: settings.when.is_some(),
            payload: settings.payload.clone(),
            columns,
        })
    }

    /// The columns that templates, condition and payload name.
    pub fn columns(&self) -> BTreeSet<String> {
        self.columns.values().flatten().cloned().collect()
    }

    /// Says of every column that is named and not available where it is named and what may be meant. `filters` are
    /// the pipeline's; they are columns of the payload.
    pub fn check_columns(&self, available: &[&str], filters: &[String]) -> Vec<String> {
        let mut named: Vec<(&str, &str)> = vec![];
        for (field, names) in &self.columns {
            named.extend(names.iter().map(|name| (*field, name.as_str())));
        }
        named.extend(filters.iter().map(|name| (FILTERS, name.as_str())));
        let unknown = named.into_iter().filter(|(_, name)| !available.contains(name));
        unknown
            .map(|(field, name)| match nearest(name, available.iter().copied()) {
                Some(near) => format!("{field}: there is no column `{name}`; is `{near}` meant?"),
                None => format!("{field}: there is no column `{name}`; there are {}", available.join(", ")),
            })
            .collect()
    }

    /// Whether the condition removes a row from the index, as far as that can be said without these columns.
    pub(super) fn leaves_out(&self, row: &Row, missing: &[String]) -> bool {
        let named = self.columns.get(WHEN);
        self.has_condition
            && !named.is_some_and(|named| missing.iter().any(|name| named.contains(name)))
            && self.run(WHEN, &Value::from(Serde(row))).is_ok_and(|said| said.is_empty())
    }

    /// Renders a row; none if the condition is false or NULL (or 0 or empty), which removes it from the index.
    pub fn render(&self, row: &Row) -> Result<Option<Rendered>, DocumentError> {
        if let Some(fault) = row.get(FAULT_COLUMN) {
            return Err(DocumentError::Source(fault.as_str().unwrap_or_default().to_owned()));
        }
        let context = Value::from(Serde(row));
        if self.has_condition && self.run(WHEN, &context)?.is_empty() {
            return Ok(None);
        }
        let title = if self.has_title { self.run(TITLE, &context)? } else { String::new() };
        let text = self.run(TEXT, &context)?;
        let mut payload = Row::new();
        for column in &self.payload {
            let value = row.get(column).ok_or_else(|| DocumentError::Column(column.clone()))?;
            payload.insert(column.clone(), value.clone());
        }
        let title = title.trim();
        let title = (!title.is_empty()).then(|| title.to_owned());
        Ok(Some(Rendered { title, text: text.trim().to_owned(), payload }))
    }

    fn run(&self, field: &'static str, context: &Value) -> Result<String, DocumentError> {
        let template = self.environment.get_template(field);
        let rendered = template.and_then(|template| template.render(context));
        rendered.map_err(|source| DocumentError::Render { field, source })
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let globals: Vec<String> = environment.globals().map(|(name, _)| name.to_owned()).collect();
    for name in globals {
        environment.remove_global(&name);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(
        |out, state, value| {
            if value.is_none() { Ok(()) } else { minijinja::escape_formatter(out, state, value) }
        },
    );
    environment.set_fuel(Some(FUEL));
    environment
}

fn names(environment: &Environment<'static>, field: &str) -> BTreeSet<String> {
    let template = environment.get_template(field);
    template.map(|template| template.undeclared_variables(false).into_iter().collect()).unwrap_or_default()
}

/// minijinja looks filters, tests and functions up only when it comes to them. A trial with empty columns finds the
/// misspelt ones that it comes to; whatever else fails in it means nothing.
fn unknown_filter(environment: &Environment<'static>, field: &'static str, names: &BTreeSet<String>) -> Option<String> {
    let row: BTreeMap<&str, &str> = names.iter().map(|name| (name.as_str(), "")).collect();
    let fault = environment.get_template(field).ok()?.render(Value::from(Serde(row))).err()?;
    let unknown =
        matches!(fault.kind(), ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction);
    unknown.then(|| problem(field, &fault))
}

fn problem(field: &str, fault: &minijinja::Error) -> String {
    format!("{field}{}: {}", describe(fault), message(fault))
}

/// Where in a template of more than one line a fault is.
fn describe(fault: &minijinja::Error) -> String {
    fault.line().filter(|line| *line > 1).map(|line| format!(", line {line}")).unwrap_or_default()
}

fn message(fault: &minijinja::Error) -> String {
    match fault.detail() {
        Some(detail) => format!("{}: {detail}", fault.kind()),
        None => fault.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(title: &str, text: &str, when: Option<&str>) -> config::Document {
        config::Document {
            title: (!title.is_empty()).then(|| title.to_owned()),
            text: text.to_owned(),
            payload: vec!["id".into(), "answer".into()],
            when: when.map(str::to_owned),
            title_weight: 0.3,
            window_tokens: 256,
            overlap_tokens: 32,
        }
    }

    fn row(value: serde_json::Value) -> Row {
        value.as_object().expect("an object").clone()
    }

    fn document(title: &str, text: &str, when: Option<&str>) -> Document {
        Document::compile(&settings(title, text, when)).expect("templates")
    }

    #[test]
    fn a_row_that_the_source_could_not_say_is_none_whatever_the_templates_name() {
        let document =
            Document::compile(&config::Document { payload: vec!["id".into()], ..settings("", "Always", None) });
        let mut row = row(json!({"id": 1}));
        assert!(document.as_ref().expect("templates").render(&row).expect("renders").is_some());
        row.insert(FAULT_COLUMN.to_owned(), json!("division by zero"));
        let fault = document.expect("templates").render(&row).expect_err("nothing is known of it");
        assert_eq!(fault.to_string(), "division by zero");
    }

    #[test]
    fn renders_columns_null_as_nothing_and_escapes_nothing() {
        let document = document("{{ question }}", "{{ answer }}{{ note }}", None);
        let check = |row_: serde_json::Value, title: Option<&str>, text: &str| {
            let rendered = document.render(&row(row_)).expect("renders").expect("stays");
            assert_eq!((rendered.title.as_deref(), rendered.text.as_str()), (title, text));
        };
        check(json!({"id": 1, "question": " Q<b>&\" ", "answer": "A\n", "note": null}), Some("Q<b>&\""), "A");
        check(json!({"id": 1, "question": null, "answer": null, "note": null}), None, "");
        check(json!({"id": 1, "question": "\t", "answer": "x", "note": 7}), None, "x7");
        check(
            json!({"id": 1, "question": "{{ answer }}", "answer": true, "note": 1.5}),
            Some("{{ answer }}"),
            "True1.5",
        );
    }

    #[test]
    fn payload_keeps_the_settings_order_and_needs_every_column() {
        let document = document("", "{{ answer }}", None);
        let rendered = document.render(&row(json!({"answer": {"b": 1}, "x": 2, "id": 9}))).expect("renders");
        let payload = serde_json::to_string(&rendered.expect("stays").payload).expect("JSON");
        assert_eq!(payload, r#"{"id":9,"answer":{"b":1}}"#);
        let fault = document.render(&row(json!({"answer": "a"}))).expect_err("no id").to_string();
        assert!(fault.contains("id"), "{fault}");
    }

    #[test]
    fn the_condition_removes_rows() {
        let check = |when: &str, value: serde_json::Value, stays: bool| {
            let row = row(json!({"id": 1, "answer": "a", "flag": value}));
            let rendered = document("", "{{ answer }}", Some(when)).render(&row).expect("renders");
            assert_eq!(rendered.is_some(), stays, "{when} of {row:?}");
        };
        check("flag", json!(true), true);
        check("flag", json!(false), false);
        check("flag", json!(null), false);
        check("not flag", json!(null), true);
        check("flag == 'live' or id == 2", json!("draft"), false);
        check("flag == 'live' or id == 1", json!("draft"), true);
        check("flag in ['a', 'b']", json!("b"), true);
    }

    #[test]
    fn an_unknown_name_fails_the_row_and_not_silently() {
        let rows = row(json!({"id": 1, "answer": {"a": 1}}));
        for (text, when) in
            [("{{ nothing }}", None), ("{{ answer.b }}", None), ("x", Some("nothing")), ("{{ range(3) }}", None)]
        {
            let document = Document::compile(&settings("", text, when));
            assert!(document.is_err() || document.expect("compiled").render(&rows).is_err(), "{text} {when:?}");
        }
        let optional = document("", "{{ answer.b | default('') }}", None);
        assert_eq!(optional.render(&rows).expect("renders").expect("stays").text, "");
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let fault = Document::compile(&settings("{{ question", "line\n{% if %}", Some("a ==")));
        let DocumentError::Templates(problems) = fault.expect_err("three problems") else { panic!("not templates") };
        assert_eq!(problems.len(), 3, "{problems:?}");
        for field in ["document.title", "document.text, line 2", "document.when"] {
            assert!(problems.iter().any(|problem| problem.starts_with(field)), "{field}: {problems:?}");
        }
        let fault = Document::compile(&settings("{{ question | uper }}", "{{ answer }}", Some("a) %}{% if (b")));
        let DocumentError::Templates(problems) = fault.expect_err("two problems") else { panic!("not templates") };
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn columns_are_the_roots_of_all_names() {
        let document = document(
            "{{ question | upper }}",
            "{% set x = meta.author %}{{ x }}{% for tag in tags %}{{ tag }}{% endfor %}{{ range }}",
            Some("is_active and meta['a']"),
        );
        let expected = ["answer", "id", "is_active", "meta", "question", "range", "tags"];
        assert_eq!(document.columns().into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn unknown_columns_come_with_the_nearest_name() {
        let document = document("{{ questoin }}", "{{ answer }}", Some("aktive"));
        let problems = document.check_columns(&["id", "question", "answer"], &["kategory".into(), "id".into()]);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems.iter().any(|problem| problem.contains("document.title") && problem.contains("`question`")));
        assert!(
            problems
                .iter()
                .any(|problem| problem.contains("document.when") && problem.contains("there are id, question"))
        );
        assert!(problems.iter().any(|problem| problem.contains("index.filters") && problem.contains("kategory")));
        assert!(document.check_columns(&["id", "questoin", "answer", "aktive"], &[]).is_empty());
    }

    #[test]
    fn a_template_cannot_run_for_ever() {
        let text = "{% for a in tags %}{% for b in tags %}{% for c in tags %}x{% endfor %}{% endfor %}{% endfor %}";
        let tags: Vec<usize> = (0..2000).collect();
        let fault = document("", text, None).render(&row(json!({"id": 1, "answer": "", "tags": tags})));
        assert!(matches!(fault, Err(DocumentError::Render { source, .. }) if source.kind() == ErrorKind::OutOfFuel));
        let long = "x".repeat(4 << 20);
        let rendered = document("", "{{ answer }}", None).render(&row(json!({"id": 1, "answer": long})));
        assert_eq!(rendered.expect("4 MB render").expect("stays").text.len(), 4 << 20);
    }
}
