//! A search's parameters, from the query string or from JSON, checked once; and its answer. No I/O.

use std::collections::HashSet;

use hyper::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value};

use super::problem::{Problem, shown};
use crate::event::Row;

/// Most results a search can ask for.
pub(super) const LIMIT_MAX: u64 = 100;
/// Results where the search names no number.
pub(super) const LIMIT_DEFAULT: usize = 5;
/// Longest query, in characters: eight times what the model reads of it.
pub(super) const QUERY_CHARS_MAX: usize = 4096;
/// Most filters of one search: more than a payload has fields worth filtering by.
const FILTERS_MAX: usize = 16;
/// Longest name and longest text value of a filter, in characters.
pub(super) const FILTER_CHARS_MAX: usize = 1024;

/// A search, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchRequest {
    /// What is looked for: trimmed, not empty, at most 4,096 characters.
    pub query: String,
    /// Most results wanted, 1 to 100.
    pub limit: usize,
    /// Least score wanted, -1 to 1.
    pub min_score: f32,
    /// Fields and the value each must have; no field twice.
    pub filter: Vec<(String, FilterValue)>,
}

/// The value that a filter asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum FilterValue {
    /// From the query string: has no type of its own.
    Text(String),
    /// From JSON: a string, a number or a boolean.
    Json(Value),
}

/// What a search found, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchAnswer {
    /// The best first; one a row.
    pub results: Vec<SearchResult>,
    /// The store that answered, `qdrant` or `local`.
    pub served_by: &'static str,
    /// Whether the answer comes from elsewhere than it should.
    pub degraded: bool,
    /// How old the store's state may be, in milliseconds, if known.
    pub staleness_ms: Option<u64>,
}

/// One row that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SearchResult {
    /// The row's key: a number, a string, or an object for a composite key.
    pub id: Value,
    /// Cosine similarity, -1 to 1.
    pub score: f32,
    /// The part of the text that fits best.
    pub passage: String,
    /// The document's fields.
    pub payload: Row,
}

/// Why a search has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SearchError {
    /// No such field to filter by.
    #[error("no filter by {field:?}")]
    UnknownFilter {
        /// The field.
        field: String,
        /// Fields that can be filtered by.
        known: Vec<String>,
    },
    /// A filter's value is not one that the field can have.
    #[error("a value of the wrong kind for the filter {field:?}, wanted {wanted}")]
    BadFilter {
        /// The field.
        field: String,
        /// What its values are, such as `a whole number`.
        wanted: String,
    },
    /// No store can answer.
    #[error("{reason}")]
    Unavailable {
        /// Why not; shown to the client.
        reason: String,
        /// When asking again makes sense, in seconds.
        retry_after_s: u64,
    },
    /// More searches than can be made.
    #[error("more searches than can be made")]
    Overloaded,
    /// No answer in time.
    #[error("no answer in time")]
    Deadline,
    /// A fault of vecsync; logged, not shown.
    #[error("{0}")]
    Internal(String),
}

/// The body of an answer.
#[derive(Debug, Serialize)]
pub(super) struct AnswerBody<'a> {
    pub(super) query: &'a str,
    pub(super) results: &'a [SearchResult],
    pub(super) served_by: &'static str,
    pub(super) degraded: bool,
    pub(super) staleness_ms: Option<u64>,
    pub(super) took_ms: u64,
}

/// Reads the query string of a GET.
pub(super) fn from_query_string(text: &str) -> Result<SearchRequest, Problem> {
    let mut fields = Fields::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name)?;
        let value = decode(value)?;
        match name.as_str() {
            "q" => once(&mut fields.query, "q", value)?,
            "limit" => once(&mut fields.limit, "limit", value.parse().map_err(|_| bad_limit(&shown(&value)))?)?,
            "min_score" => {
                let score = value.parse().map_err(|_| bad_score(&shown(&value)))?;
                once(&mut fields.min_score, "min_score", score)?;
            }
            "filter" => {
                let (field, wanted) = value.split_once(':').ok_or_else(|| {
                    Problem::parameter("filter", format!("filter: {} is not of the form field:value", shown(&value)))
                })?;
                fields.filter.push((field.to_owned(), FilterValue::Text(wanted.to_owned())));
            }
            other => return Err(unknown(&[other], "q, limit, min_score, filter")),
        }
    }
    fields.check("q")
}

/// Reads the body of a POST.
pub(super) fn from_json(body: &[u8]) -> Result<SearchRequest, Problem> {
    let bad = |detail| Problem::new(StatusCode::BAD_REQUEST, detail);
    let text = std::str::from_utf8(body).map_err(|_| bad("the body is not UTF-8".to_owned()))?;
    // serde_json refuses to nest deeper than 128, so no body can exhaust the stack.
    let value = serde_json::from_str(text).map_err(|error| bad(format!("the body is not JSON: {error}")))?;
    let Value::Object(object) = value else {
        return Err(bad(format!("the body is {}, wanted an object with `query`", kind(&value))));
    };
    let known = ["query", "limit", "min_score", "filter"];
    let others: Vec<&str> = object.keys().map(String::as_str).filter(|name| !known.contains(name)).collect();
    if !others.is_empty() {
        return Err(unknown(&others, "query, limit, min_score, filter"));
    }
    let mut fields = Fields::default();
    for (name, value) in object {
        match (name.as_str(), value) {
            ("query", Value::String(query)) => fields.query = Some(query),
            ("query", value) => return Err(wrong_kind("query", &value, "a string")),
            ("limit", value) => fields.limit = Some(whole(&value).ok_or_else(|| bad_limit(&described(&value)))?),
            ("min_score", value) => {
                fields.min_score = Some(value.as_f64().ok_or_else(|| bad_score(&described(&value)))?);
            }
            ("filter", Value::Object(filter)) => fields.filter = json_filter(filter)?,
            (_, value) => return Err(wrong_kind("filter", &value, "an object of fields and values")),
        }
    }
    fields.check("query")
}

/// What was given, before its values are checked.
#[derive(Default)]
struct Fields {
    query: Option<String>,
    limit: Option<u64>,
    min_score: Option<f64>,
    filter: Vec<(String, FilterValue)>,
}

impl Fields {
    fn check(self, query_name: &'static str) -> Result<SearchRequest, Problem> {
        let query = self.query.ok_or_else(|| {
            Problem::parameter(query_name, format!("{query_name}: missing, wanted the text to look for"))
        })?;
        let query = query.trim();
        if query.is_empty() {
            return Err(Problem::parameter(query_name, format!("{query_name}: empty, wanted the text to look for")));
        }
        if query.chars().nth(QUERY_CHARS_MAX).is_some() {
            let detail = format!("{query_name}: {} is longer than {QUERY_CHARS_MAX} characters", shown(query));
            return Err(Problem::parameter(query_name, detail));
        }
        let limit = match self.limit {
            None => LIMIT_DEFAULT,
            Some(limit) => usize::try_from(limit)
                .ok()
                .filter(|_| (1..=LIMIT_MAX).contains(&limit))
                .ok_or_else(|| bad_limit(&limit.to_string()))?,
        };
        let min_score = self.min_score.unwrap_or(0.0);
        if !(-1.0..=1.0).contains(&min_score) {
            return Err(bad_score(&min_score.to_string()));
        }
        check_filter(&self.filter)?;
        Ok(SearchRequest { query: query.to_owned(), limit, min_score: min_score as f32, filter: self.filter })
    }
}

fn check_filter(filter: &[(String, FilterValue)]) -> Result<(), Problem> {
    if filter.len() > FILTERS_MAX {
        let detail = format!("filter: {} of them, wanted at most {FILTERS_MAX}", filter.len());
        return Err(Problem::parameter("filter", detail));
    }
    let too_long = |text: &str| text.chars().nth(FILTER_CHARS_MAX).is_some();
    let mut seen = HashSet::new();
    for (field, value) in filter {
        let detail = match value {
            _ if field.is_empty() => "filter: a field without a name".to_owned(),
            _ if too_long(field) => format!("filter: {} is no field, its name is too long", shown(field)),
            _ if !seen.insert(field) => format!("filter: {} is given more than once", shown(field)),
            FilterValue::Text(text) | FilterValue::Json(Value::String(text)) if too_long(text) => {
                format!("filter: the value of {} is longer than {FILTER_CHARS_MAX} characters", shown(field))
            }
            _ => continue,
        };
        return Err(Problem::parameter("filter", detail));
    }
    Ok(())
}

fn json_filter(filter: Map<String, Value>) -> Result<Vec<(String, FilterValue)>, Problem> {
    filter
        .into_iter()
        .map(|(field, value)| match value {
            Value::String(_) | Value::Number(_) | Value::Bool(_) => Ok((field, FilterValue::Json(value))),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                let detail = format!(
                    "filter: the value of {} is {}, wanted a string, a number or a boolean",
                    shown(&field),
                    kind(&value)
                );
                Err(Problem::parameter("filter", detail))
            }
        })
        .collect()
}

fn once<T>(field: &mut Option<T>, name: &'static str, value: T) -> Result<(), Problem> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(Problem::parameter(name, format!("{name}: given more than once"))),
    }
}

/// A number that is whole, however it is written: JSON does not tell 5 from 5.0.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..=LIMIT_MAX as f64).contains(&number)).then_some(number as u64)
    })
}

/// Undoes the escaping of a query string: `+` is a space, `%XX` a byte; the bytes must be UTF-8.
fn decode(text: &str) -> Result<String, Problem> {
    let bad = |what| Problem::new(StatusCode::BAD_REQUEST, format!("the query string has {what} at {}", shown(text)));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                    return Err(bad("a % without two hexadecimal digits"));
                };
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad("bytes that are not UTF-8"))
}

fn unknown(names: &[&str], wanted: &str) -> Problem {
    let names: Vec<String> = names.iter().take(5).map(|name| shown(name)).collect();
    Problem::new(StatusCode::BAD_REQUEST, format!("unknown: {}; wanted only {wanted}", names.join(", ")))
}

fn bad_limit(given: &str) -> Problem {
    Problem::parameter("limit", format!("limit: {given} is not a whole number from 1 to {LIMIT_MAX}"))
}

fn bad_score(given: &str) -> Problem {
    Problem::parameter("min_score", format!("min_score: {given} is not a number from -1 to 1"))
}

fn wrong_kind(name: &'static str, value: &Value, wanted: &str) -> Problem {
    Problem::parameter(name, format!("{name}: {}, wanted {wanted}", kind(value)))
}

fn described(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => shown(text),
        other => kind(other).to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn detail(result: Result<SearchRequest, Problem>) -> String {
        let problem = result.expect_err("a problem");
        assert_eq!(problem.status, StatusCode::BAD_REQUEST);
        format!("{problem:?}")
    }

    #[track_caller]
    fn refused(query_string: &str, wanted: &str) {
        let detail = detail(from_query_string(query_string));
        assert!(detail.contains(wanted), "{query_string}: {detail}");
    }

    #[track_caller]
    fn refused_json(body: &str, wanted: &str) {
        let detail = detail(from_json(body.as_bytes()));
        assert!(detail.contains(wanted), "{body}: {detail}");
    }

    #[test]
    fn both_ways_read_the_same() {
        let get = from_query_string("q=+r%C3%A9set+a%2Bb%26c&limit=7&min_score=-0.5&filter=category:a:b&filter=n:")
            .expect("fine");
        let post =
            json!({"query": " réset a+b&c ", "limit": 7.0, "min_score": -0.5, "filter": {"category": "a:b", "n": 1}});
        let post = from_json(post.to_string().as_bytes()).expect("fine");
        assert_eq!((&get.query, get.limit, get.min_score), (&"réset a+b&c".to_owned(), 7, -0.5));
        assert_eq!((&post.query, post.limit, post.min_score), (&get.query, get.limit, get.min_score));
        let text = |field: &str, value: &str| (field.to_owned(), FilterValue::Text(value.to_owned()));
        assert_eq!(get.filter, [text("category", "a:b"), text("n", "")]);
        let typed = |field: &str, value| (field.to_owned(), FilterValue::Json(value));
        assert_eq!(post.filter, [typed("category", json!("a:b")), typed("n", json!(1))]);
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let wanted = SearchRequest { query: "x".into(), limit: 5, min_score: 0.0, filter: vec![] };
        assert_eq!(from_query_string("q=x"), Ok(wanted.clone()));
        assert_eq!(from_query_string("&q=x&&"), Ok(wanted.clone()));
        assert_eq!(from_json(br#"{"query":"x"}"#), Ok(wanted));
    }

    #[test]
    fn the_longest_query_is_counted_in_characters() {
        let longest = "😀".repeat(QUERY_CHARS_MAX);
        assert!(from_json(json!({"query": longest}).to_string().as_bytes()).is_ok());
        refused_json(&json!({"query": longest + "a"}).to_string(), "longer than 4096");
    }

    #[test]
    fn a_bad_query_string_is_refused_with_name_value_and_what_was_wanted() {
        refused("", "q: missing");
        refused("q", "q: empty");
        refused("q=%20+%E3%80%80", "q: empty");
        refused("q=a&q=b", "q: given more than once");
        refused("q=%zz", "hexadecimal");
        refused("q=%e", "hexadecimal");
        refused("q=%ff", "not UTF-8");
        for limit in ["0", "101", "1000000000", "99999999999999999999999", "-1", "5.5", "ten", ""] {
            refused(&format!("q=a&limit={limit}"), "is not a whole number from 1 to 100");
        }
        for score in ["1.01", "-1.01", "NaN", "inf", "x", ""] {
            refused(&format!("q=a&min_score={score}"), "is not a number from -1 to 1");
        }
        refused("q=a&filter=category", "field:value");
        refused("q=a&filter=:x", "without a name");
        refused("q=a&filter=a:1&filter=a:2", "more than once");
        refused(&format!("q=a&{}", (0..17).map(|n| format!("filter=f{n}:1&")).collect::<String>()), "at most 16");
        refused(&format!("q=a&filter=f:{}", "x".repeat(1025)), "longer than 1024");
        refused("q=a&lmit=5", r#"unknown: \"lmit\"; wanted only q, limit"#);
        refused(&format!("q=a&limit={}", "9".repeat(5000)), "999…");
    }

    #[test]
    fn a_bad_body_is_refused_with_name_kind_and_what_was_wanted() {
        refused_json("", "not JSON");
        refused_json("[]", "an array, wanted an object");
        refused_json("{}", "query: missing");
        refused_json(r#"{"query":" "}"#, "query: empty");
        refused_json(r#"{"query":5}"#, "query: a number, wanted a string");
        refused_json(r#"{"query":"a","x":1,"y":2}"#, r#"\"x\", \"y\"; wanted only query"#);
        for limit in ["0", "101", "1e9", "-1", "5.5", "\"5\"", "null", "[]"] {
            refused_json(&format!(r#"{{"query":"a","limit":{limit}}}"#), "is not a whole number from 1 to 100");
        }
        for score in ["1.01", "-2", "\"0\"", "null", "{}"] {
            refused_json(&format!(r#"{{"query":"a","min_score":{score}}}"#), "is not a number from -1 to 1");
        }
        refused_json(r#"{"query":"a","min_score":1e999}"#, "not JSON");
        refused_json(r#"{"query":"a","filter":[]}"#, "filter: an array, wanted an object");
        refused_json(r#"{"query":"a","filter":{"b":null}}"#, "is null, wanted a string");
        refused_json(r#"{"query":"a","filter":{"b":{"c":1}}}"#, "is an object, wanted a string");
        refused_json(r#"{"query":"a","filter":{"":1}}"#, "without a name");
        refused_json(&"[".repeat(60_000), "not JSON");
        refused_json(&format!("{}1{}", r#"{"query":"#.repeat(5000), "}".repeat(5000)), "not JSON");
        assert!(detail(from_json(b"{\"query\":\"\xff\"}")).contains("not UTF-8"));
    }
}
