//! Reads a TOML file field by field and keeps every problem with its line. Knows no particular file. No I/O.

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problems::{Problem, Problems, nearest};

/// A file that is being read. Fields that are wrong give `None` and leave a problem.
pub(super) struct Fields<'t> {
    file: &'t str,
    text: &'t str,
    pub(super) problems: Problems,
}

/// One table of the file: `None` when the file does not have it.
pub(super) struct Section<'s, 't> {
    table: Option<&'s DeTable<'t>>,
    path: Cow<'static, str>,
}

impl Section<'_, '_> {
    /// Whether the key is there, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl<'t> Fields<'t> {
    /// Parses the text; `file` names it in problems. All syntax errors at once.
    pub(super) fn parse(file: &'t str, text: &'t str) -> Result<(Self, Spanned<DeTable<'t>>), Problems> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut fields = Fields { file, text, problems: Problems::new() };
        let mut last_line = 0;
        for error in &errors {
            let (line, column) = fields.line_and_column(&error.span().unwrap_or_default());
            // What else is odd about a line follows from its first fault.
            if line != last_line {
                let what = format!("not TOML: {}", error.message().replace('\n', ", "));
                fields.problems.push(Problem::new(format!("{file}:{line}:{column}"), what));
            }
            last_line = line;
        }
        if errors.is_empty() { Ok((fields, table)) } else { Err(fields.problems) }
    }

    /// The file's top level.
    pub(super) fn root<'s>(&mut self, table: &'s DeTable<'t>, known: &[&str]) -> Section<'s, 't> {
        let section = Section { table: Some(table), path: "".into() };
        self.refuse_unknown(&section, known);
        section
    }

    /// A table below the top level. One that is not there is like an empty one.
    pub(super) fn section<'s>(
        &mut self,
        root: &Section<'s, 't>,
        path: &'static str,
        known: &[&str],
    ) -> Section<'s, 't> {
        let table = match root.table.and_then(|table| table.get(path)) {
            None => None,
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => Some(table),
                _ => self.wrong(value, path, &format!("wanted a table: [{path}] with its keys below")),
            },
        };
        let section = Section { table, path: path.into() };
        self.refuse_unknown(&section, known);
        section
    }

    /// The tables of a list below a section, in their order.
    pub(super) fn list<'s>(&mut self, section: &Section<'s, 't>, key: &str, known: &[&str]) -> Vec<Section<'s, 't>> {
        let Some(value) = value_of(section, key) else { return vec![] };
        let path = section.path(key);
        let wanted = format!("wanted tables, each below a line [[{path}]]");
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong::<()>(value, &path, &wanted);
            return vec![];
        };
        let mut sections = vec![];
        for (number, item) in items.iter().enumerate() {
            let path = format!("{path}[{number}]");
            match item.get_ref() {
                DeValue::Table(table) => {
                    let section = Section { table: Some(table), path: path.into() };
                    self.refuse_unknown(&section, known);
                    sections.push(section);
                }
                _ => drop(self.wrong::<()>(item, &path, &wanted)),
            }
        }
        sections
    }

    /// A text with something in it.
    pub(super) fn text<'s>(&mut self, section: &Section<'s, 't>, key: &str) -> Option<&'s str> {
        let value = value_of(section, key)?;
        match value.get_ref() {
            DeValue::String(text) if !text.trim().is_empty() => Some(text),
            DeValue::String(_) => self.wrong(value, &section.path(key), "is empty"),
            other => {
                let what = format!("wanted text in quotes, found {}", other.type_str());
                self.wrong(value, &section.path(key), &what)
            }
        }
    }

    /// The same, of a key that must be there.
    pub(super) fn required_text<'s>(&mut self, section: &Section<'s, 't>, key: &str, example: &str) -> Option<&'s str> {
        self.require(section, key, example);
        self.text(section, key)
    }

    /// Says that a key is missing.
    pub(super) fn require(&mut self, section: &Section<'_, 't>, key: &str, example: &str) {
        if !section.has(key) {
            self.problems.push(Problem::new(
                format!("{}: {}", self.file, section.path(key)),
                format!("is missing; for example {example}"),
            ));
        }
    }

    /// A list of texts, none empty, none twice.
    pub(super) fn texts(&mut self, section: &Section<'_, 't>, key: &str) -> Option<Vec<String>> {
        let value = value_of(section, key)?;
        let path = section.path(key);
        let DeValue::Array(items) = value.get_ref() else {
            let what = format!("wanted a list of texts in [ ], found {}", value.get_ref().type_str());
            return self.wrong(value, &path, &what);
        };
        let mut texts: Vec<String> = Vec::new();
        let mut all_good = true;
        for (number, item) in items.iter().enumerate() {
            let what = match item.get_ref() {
                DeValue::String(text) if text.is_empty() => "is empty".to_owned(),
                DeValue::String(text) if texts.iter().any(|other| other == text) => {
                    "stands in the list twice".to_owned()
                }
                DeValue::String(text) => {
                    texts.push(text.to_string());
                    continue;
                }
                other => format!("wanted text in quotes, found {}", other.type_str()),
            };
            self.wrong::<()>(item, &format!("{path}[{number}]"), &what);
            all_good = false;
        }
        all_good.then_some(texts)
    }

    /// A whole number in a range.
    pub(super) fn whole(
        &mut self,
        section: &Section<'_, 't>,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Option<usize> {
        let value = value_of(section, key)?;
        self.written(section, key).filter(|number| range.contains(number)).or_else(|| {
            let what = format!("wanted a whole number from {} to {}", range.start(), range.end());
            self.wrong(value, &section.path(key), &what)
        })
    }

    /// A whole number as it is written there, whether it may be or not.
    pub(super) fn written(&self, section: &Section<'_, 't>, key: &str) -> Option<usize> {
        match value_of(section, key)?.get_ref() {
            DeValue::Integer(number) => usize::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        }
    }

    /// True or false.
    pub(super) fn truth(&mut self, section: &Section<'_, 't>, key: &str) -> Option<bool> {
        let value = value_of(section, key)?;
        match value.get_ref() {
            DeValue::Boolean(truth) => Some(*truth),
            _ => self.wrong(value, &section.path(key), "wanted true or false"),
        }
    }

    /// A number from 0 to 1.
    pub(super) fn share(&mut self, section: &Section<'_, 't>, key: &str) -> Option<f32> {
        let value = value_of(section, key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => None,
        };
        number
            .filter(|number| (0.0..=1.0).contains(number))
            .or_else(|| self.wrong(value, &section.path(key), "wanted a number from 0 to 1"))
    }

    /// Says what is wrong with a key's value, or with the key when it is not there.
    pub(super) fn refuse(&mut self, section: &Section<'_, 't>, key: &str, what: &str) {
        let path = section.path(key);
        match value_of(section, key) {
            Some(value) => {
                self.wrong::<()>(value, &path, what);
            }
            None => self.problems.push(Problem::new(format!("{}: {path}", self.file), what)),
        }
    }

    /// Says what somebody else found wrong with a text of the file. `what` begins with the text's path, and a comma and its line where the
    /// fault is not in the text's first: `document.text, line 3: …`.
    pub(super) fn refuse_elsewhere(&mut self, root: &Section<'_, 't>, what: &str) {
        let (place, rest) = what.split_once(": ").unwrap_or(("", what));
        let (path, line) = place.split_once(", line ").unwrap_or((place, "1"));
        let table = |name: &str| match root.table?.get(name)?.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => None,
        };
        let found = path.split_once('.').and_then(|(section, key)| table(section)?.get(key));
        let Some(value) = found else { return self.problems.push(Problem::new(self.file, what)) };
        let source = self.text.get(value.span()).unwrap_or_default();
        let (begins, _) = self.line_and_column(&value.span());
        // The line break behind the opening quotes is not a part of the text; without a break the text has one line in the file.
        let is_below = source.starts_with("\"\"\"\n") || source.starts_with("'''\n");
        let line = line.parse().unwrap_or(1_usize) - 1 + usize::from(is_below);
        let line = begins + if source.contains('\n') { line } else { 0 };
        let shown = self.text.lines().nth(line - 1).filter(|_| line > begins).map_or(source, str::trim);
        self.problems.push(Problem::new(format!("{}:{line}: {path}", self.file), rest).showing_source(shown));
    }

    fn wrong<T>(&mut self, value: &Spanned<DeValue<'t>>, path: &str, what: &str) -> Option<T> {
        let (line, _) = self.line_and_column(&value.span());
        let source = self.text.get(value.span()).unwrap_or_default();
        self.problems.push(Problem::new(format!("{}:{line}: {path}", self.file), what).showing_source(source));
        None
    }

    fn refuse_unknown(&mut self, section: &Section<'_, 't>, known: &[&str]) {
        for key in section.table.into_iter().flat_map(DeTable::keys) {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let (line, _) = self.line_and_column(&key.span());
                let what = match nearest(name, known.iter().copied()) {
                    Some(near) => format!("unknown key; did you mean {}?", section.path(near)),
                    None => format!("unknown key; known are {}", known.join(", ")),
                };
                let place = format!("{}:{line}: {}", self.file, section.path(&name.escape_debug().to_string()));
                self.problems.push(Problem::new(place, what));
            }
        }
    }

    /// Both from 1; the column in characters.
    fn line_and_column(&self, span: &Range<usize>) -> (usize, usize) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = 1 + before.matches('\n').count();
        let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
        (line, column)
    }
}

fn value_of<'s, 't>(section: &Section<'s, 't>, key: &str) -> Option<&'s Spanned<DeValue<'t>>> {
    section.table.and_then(|table| table.get(key))
}
