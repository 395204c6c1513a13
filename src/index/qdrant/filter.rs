//! What a search asks of a row's payload, in Qdrant's words. Means what `index::filter` means. No I/O.

use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::{Condition, Filter as QdrantFilter, Range};
use serde_json::Value;

use crate::index::{Filter, FilterValue};

/// Below this every integer is a number of its own as f64, in which Qdrant compares ranges.
const EXACT_END: u64 = 1 << 53;

/// All conditions of a search.
pub(super) fn conditions(filter: &Filter) -> QdrantFilter {
    QdrantFilter::must(filter.conditions().iter().map(|(field, wanted)| condition(field, wanted)))
}

fn condition(field: &str, wanted: &FilterValue) -> Condition {
    let field = path(field);
    match wanted {
        FilterValue::Typed(wanted) => equals(&field, wanted),
        FilterValue::Text { text, scalar: None } => keyword(&field, text),
        FilterValue::Text { text, scalar: Some(wanted) } => {
            QdrantFilter::should([keyword(&field, text), equals(&field, wanted)]).into()
        }
    }
}

/// Equals a value of this type; a number equals integers and floating-point numbers of its value.
fn equals(field: &str, wanted: &Value) -> Condition {
    match wanted {
        Value::String(text) => keyword(field, text),
        Value::Bool(truth) => Condition::matches(field, *truth),
        Value::Number(number) => match number.as_i64() {
            Some(integer) if integer.unsigned_abs() >= EXACT_END => Condition::matches(field, integer),
            _ => number.as_f64().map_or_else(nothing, |number| at(field, number)),
        },
        // No field can be asked for those: `FilterValue::from_json` refuses them.
        Value::Null | Value::Array(_) | Value::Object(_) => nothing(),
    }
}

/// Equals this string. What the client makes of a string with a blank in it looks for its words inside of a text.
pub(super) fn keyword(field: &str, text: &str) -> Condition {
    Condition::matches(field, MatchValue::Keyword(text.to_owned()))
}

fn at(field: &str, number: f64) -> Condition {
    Condition::range(field, Range { gte: Some(number), lte: Some(number), ..Range::default() })
}

/// No point has every id of none.
fn nothing() -> Condition {
    Condition::has_id(Vec::<u64>::new())
}

/// A field's name as a path of one step: dots, brackets and the like inside of it are no path.
pub(super) fn path(field: &str) -> String {
    let is_plain = field.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if is_plain && !field.is_empty() { field.to_owned() } else { format!("\"{field}\"") }
}
