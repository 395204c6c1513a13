//! What a search asks of a row's payload, and the payload's values by which it can be asked. No I/O.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::event::Row;

/// Conditions on fields of the payload. All must hold; no condition lets every row through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter(Vec<(String, FilterValue)>);

impl Filter {
    /// Lets every row through.
    pub fn none() -> Self {
        Filter::default()
    }

    /// Each field must have its value.
    pub fn new(conditions: Vec<(String, FilterValue)>) -> Self {
        Filter(conditions)
    }

    /// Whether every row passes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The conditions, in the order in which they were given.
    pub fn conditions(&self) -> &[(String, FilterValue)] {
        &self.0
    }
}

/// The value that a field must equal, or that its array must contain.
#[derive(Clone, Debug, PartialEq)]
pub enum FilterValue {
    /// Text of a query string, which has no types: equals a string of that text, and the number or boolean that it is in JSON.
    Text {
        /// As it was given.
        text: String,
        /// What it is in JSON, if that is a number or a boolean.
        scalar: Option<Value>,
    },
    /// A JSON string, number or boolean: equals a value of the same type only.
    Typed(Value),
}

impl FilterValue {
    /// A value out of a query string, `category:billing`.
    pub fn from_text(text: &str) -> Self {
        // JSON lets blanks stand around a value: with one it is no number here.
        let is_bare = !text.starts_with(char::is_whitespace) && !text.ends_with(char::is_whitespace);
        let scalar = serde_json::from_str(text)
            .ok()
            .filter(|value: &Value| is_bare && (value.is_number() || value.is_boolean()));
        FilterValue::Text { text: text.to_owned(), scalar }
    }

    /// A value out of a JSON body. `None` for null, an array or an object: no field can be asked for those.
    pub fn from_json(value: Value) -> Option<Self> {
        is_scalar(&value).then_some(FilterValue::Typed(value))
    }

    fn matches(&self, value: &Value) -> bool {
        match (self, value) {
            (FilterValue::Text { text, .. }, Value::String(value)) => text == value,
            (FilterValue::Text { scalar: Some(wanted), .. } | FilterValue::Typed(wanted), value) => {
                equals(wanted, value)
            }
            (FilterValue::Text { scalar: None, .. }, _) => false,
        }
    }
}

fn is_scalar(value: &Value) -> bool {
    matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_))
}

fn equals(wanted: &Value, value: &Value) -> bool {
    match (wanted, value) {
        (Value::Number(wanted), Value::Number(value)) => equal_numbers(wanted, value),
        _ => wanted == value,
    }
}

/// `1` and `1.0` are the same number; integers are compared exactly.
fn equal_numbers(a: &serde_json::Number, b: &serde_json::Number) -> bool {
    a == b || ((a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64())
}

/// One filterable field of all documents: each distinct value once, and which one a document has.
#[derive(Debug, Default)]
pub(crate) struct Column {
    cells: Vec<u32>,
    values: Vec<Distinct>,
    by_text: HashMap<Arc<str>, u32>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Distinct {
    text: Arc<str>,
    scalars: Box<[Value]>,
    uses: u32,
}

/// A payload's value of one filterable field: its scalars, and the text by which equal ones are found.
#[derive(Debug)]
pub(crate) struct Cell {
    text: String,
    scalars: Box<[Value]>,
}

impl Cell {
    /// What can be asked of `field`: a scalar, or the scalars of an array. Anything else equals nothing.
    pub(crate) fn of(payload: &Row, field: &str) -> Self {
        let scalars: Box<[Value]> = match payload.get(field) {
            Some(Value::Array(items)) => items.iter().filter(|item| is_scalar(item)).cloned().collect(),
            Some(value) if is_scalar(value) => Box::new([value.clone()]),
            _ => Box::default(),
        };
        let text = serde_json::to_string(&scalars).unwrap_or_default();
        Cell { text, scalars }
    }
}

impl Column {
    /// Gives `document` this value in place of the one it has.
    pub(crate) fn set(&mut self, document: u32, cell: Cell) {
        self.clear(document);
        let id = self.intern(cell);
        let place = document as usize;
        if self.cells.len() <= place {
            self.cells.resize(place + 1, NONE);
        }
        self.cells[place] = id;
    }

    /// `document` has no value any more.
    pub(crate) fn clear(&mut self, document: u32) {
        let Some(cell) = self.cells.get_mut(document as usize) else { return };
        let id = std::mem::replace(cell, NONE);
        if id == NONE {
            return;
        }
        let value = &mut self.values[id as usize];
        value.uses -= 1;
        if value.uses == 0 {
            self.by_text.remove(&value.text);
            value.text = Arc::from("");
            value.scalars = Box::default();
            self.free.push(id);
        }
    }

    fn intern(&mut self, cell: Cell) -> u32 {
        if let Some(&id) = self.by_text.get(cell.text.as_str()) {
            self.values[id as usize].uses += 1;
            return id;
        }
        let text: Arc<str> = Arc::from(cell.text);
        let value = Distinct { text: Arc::clone(&text), scalars: cell.scalars, uses: 1 };
        let id = match self.free.pop() {
            Some(id) => {
                self.values[id as usize] = value;
                id
            }
            None => {
                self.values.push(value);
                (self.values.len() - 1) as u32
            }
        };
        self.by_text.insert(text, id);
        id
    }

    /// Asks every distinct value once, so that a document is then decided by two look-ups.
    pub(crate) fn allow(&self, wanted: &FilterValue) -> Allowed<'_> {
        let values = self
            .values
            .iter()
            .map(|value| value.uses > 0 && value.scalars.iter().any(|scalar| wanted.matches(scalar)))
            .collect();
        Allowed { cells: &self.cells, values }
    }
}

/// No value.
const NONE: u32 = u32::MAX;

/// One condition, decided for every distinct value of its field.
pub(crate) struct Allowed<'a> {
    cells: &'a [u32],
    values: Vec<bool>,
}

impl Allowed<'_> {
    /// Whether `document` has a value that the condition wants.
    pub(crate) fn passes(&self, document: u32) -> bool {
        let cell = self.cells.get(document as usize).copied().unwrap_or(NONE);
        self.values.get(cell as usize).copied().unwrap_or(false)
    }
}

/// Whether a payload meets all conditions; for the few rows that are looked at one by one.
pub(crate) fn passes(filter: &Filter, payload: &Row) -> bool {
    filter.0.iter().all(|(field, wanted)| Cell::of(payload, field).scalars.iter().any(|value| wanted.matches(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(wanted: FilterValue, value: Value, expected: bool) {
        let payload = json!({ "f": value }).as_object().expect("object").clone();
        let filter = Filter::new(vec![("f".to_owned(), wanted)]);
        assert_eq!(passes(&filter, &payload), expected, "{filter:?} on {payload:?}");
        let mut column = Column::default();
        column.set(3, Cell::of(&payload, "f"));
        assert_eq!(column.allow(&filter.0[0].1).passes(3), expected, "{filter:?} on {payload:?}");
        assert!(!column.allow(&filter.0[0].1).passes(2));
    }

    #[test]
    fn typed_values_equal_their_own_type_only() {
        let typed = |value: Value| FilterValue::from_json(value).expect("a scalar");
        for (wanted, value, expected) in [
            (json!("billing"), json!("billing"), true),
            (json!("billing"), json!("Billing"), false),
            (json!("5"), json!(5), false),
            (json!(5), json!("5"), false),
            (json!(5), json!(5.0), true),
            (json!(9007199254740993_u64), json!(9007199254740992_u64), false),
            (json!(true), json!(true), true),
            (json!(true), json!(1), false),
            (json!("a"), json!(["b", "a"]), true),
            (json!(1), json!([2, "1"]), false),
            (json!("a"), json!({"a": "a"}), false),
            (json!("a"), Value::Null, false),
            (json!("a"), json!([["a"]]), false),
        ] {
            check(typed(wanted), value, expected);
        }
        for refused in [Value::Null, json!([1]), json!({})] {
            assert_eq!(FilterValue::from_json(refused), None);
        }
    }

    #[test]
    fn text_equals_strings_and_what_it_is_in_json() {
        for (text, value, expected) in [
            ("billing", json!("billing"), true),
            ("5", json!(5), true),
            ("5", json!("5"), true),
            ("5.0", json!(5), true),
            ("5e0", json!(5), true),
            ("5", json!(5.0), true),
            ("5.0", json!("5"), false),
            ("05", json!(5), false),
            (" 5", json!(5), false),
            (" 5", json!(" 5"), true),
            ("9007199254740993", json!(9007199254740992_u64), false),
            ("\"5\"", json!("5"), false),
            ("true", json!(true), true),
            ("1", json!(true), false),
            ("null", Value::Null, false),
            ("5", json!([1, 5]), true),
        ] {
            check(FilterValue::from_text(text), value, expected);
        }
    }

    #[test]
    fn a_column_forgets_values_that_nobody_has() {
        let mut column = Column::default();
        let cell = |n: u32| {
            let payload = json!({ "f": n }).as_object().expect("object").clone();
            Cell::of(&payload, "f")
        };
        for n in 0..1000 {
            column.set(0, cell(n));
        }
        assert!(column.values.len() <= 2 && column.by_text.len() == 1, "{} values kept", column.values.len());
        assert!(column.allow(&FilterValue::from_text("999")).passes(0));
        assert!(!column.allow(&FilterValue::from_text("998")).passes(0));
        column.clear(0);
        assert!(column.by_text.is_empty() && !column.allow(&FilterValue::from_text("999")).passes(0));
    }
}
