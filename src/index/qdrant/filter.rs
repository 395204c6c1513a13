//! What a search asks of a row's payload, in Qdrant's words. Means what `index::filter` means. No I/O.

use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::{Condition, Filter as QdrantFilter, Range};
use serde_json::{Number, Value};

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
        FilterValue::Typed(Value::String(text)) => keyword(&field, text),
        FilterValue::Typed(Value::Bool(truth)) => Condition::matches(field, *truth),
        FilterValue::Typed(Value::Number(number)) => equals(&field, number),
        // No field can be asked for those: `FilterValue::from_json` refuses them.
        FilterValue::Typed(Value::Null | Value::Array(_) | Value::Object(_)) => nothing(),
        FilterValue::Text(text) => spelled(&field, text),
    }
}

/// A number equals integers and floating-point numbers of its value.
fn equals(field: &str, number: &Number) -> Condition {
    match number.as_i64() {
        Some(integer) if integer.unsigned_abs() >= EXACT_END => Condition::matches(field, integer),
        _ => number.as_f64().map_or_else(nothing, |number| at(field, number)),
    }
}

/// Text equals a string, and the number or boolean whose spelling it is.
fn spelled(field: &str, text: &str) -> Condition {
    let mut ways = vec![keyword(field, text)];
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Bool(truth)) => ways.push(Condition::matches(field, truth)),
        Ok(Value::Number(number)) if number.to_string() == text => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => ways.push(Condition::matches(field, integer)),
            // `5.0` is not the spelling of the integer 5.
            (None, Some(float)) => {
                let integer = (float.fract() == 0.0 && float.abs() < EXACT_END as f64).then_some(float as i64);
                let not = integer.map(|integer| Condition::matches(field, integer)).into_iter().collect();
                ways.push(
                    QdrantFilter { must: vec![at(field, float)], must_not: not, ..QdrantFilter::default() }.into(),
                );
            }
            (None, None) => {}
        },
        _ => {}
    }
    QdrantFilter::should(ways).into()
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
