//! What the query server answers, as an OpenAPI document: the text beside this file, with this process's filters. No I/O.

use serde_json::{Value, json};

const TEXT: &str = include_str!("openapi.json");

/// The document of a server of this pipeline, whose searches may filter by these fields; it may want a key.
pub(super) fn document(pipeline: &str, filters: &[String], wants_key: bool) -> String {
    let mut document: Value = serde_json::from_str(TEXT).expect("the file beside this one is JSON: a test reads it");
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    if wants_key {
        document["security"] = json!([{"bearer": []}]);
    }
    let schemas = &mut document["components"]["schemas"];
    schemas["FilterParameter"] = parameter(filters);
    let body = &mut schemas["FilterBody"];
    let value = body["additionalProperties"].take();
    body["properties"] = filters.iter().map(|field| (field.clone(), value.clone())).collect();
    body["additionalProperties"] = false.into();
    if let Value::Object(paths) = &mut document["paths"] {
        let named = |(path, item): (&String, &Value)| (format!("/pipelines/{pipeline}{path}"), renamed(item));
        let of_pipelines = paths.iter().filter(|(path, _)| path.starts_with("/search") || path.starts_with("/health"));
        let named: Vec<(String, Value)> = of_pipelines.map(named).collect();
        paths.extend(named);
    }
    document.to_string()
}

/// The same operations under names of their own: each must be there once.
fn renamed(item: &Value) -> Value {
    let mut item = item.clone();
    for operation in item.as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
        if let Some(name) = operation["operationId"].as_str() {
            operation["operationId"] = format!("{name}OfPipeline").into();
        }
    }
    item
}

/// Each field at most once, as `field:value`.
fn parameter(filters: &[String]) -> Value {
    let begins = |field: &String| format!("^{}:", escaped(field));
    let any: Vec<String> = filters.iter().map(|field| escaped(field)).collect();
    let once =
        filters.iter().map(|field| json!({"contains": {"pattern": begins(field)}, "minContains": 0, "maxContains": 1}));
    let mut schema = json!({"type": "array", "maxItems": filters.len()});
    if !filters.is_empty() {
        let pattern = format!("^({}):[\\s\\S]{{0,1024}}$", any.join("|"));
        schema["items"] = json!({"type": "string", "pattern": pattern});
        schema["allOf"] = once.collect();
    }
    schema
}

/// As a regular expression that means this text.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if character.is_ascii_punctuation() && character != '_' {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::search::{FILTER_CHARS_MAX, LIMIT_DEFAULT, LIMIT_MAX, QUERY_CHARS_MAX};

    fn documented(filters: &[&str]) -> Value {
        let filters: Vec<String> = filters.iter().map(|&field| field.to_owned()).collect();
        serde_json::from_str(&document("faq", &filters, true)).expect("JSON")
    }

    #[test]
    fn the_limits_are_those_of_the_code() {
        let document = documented(&["category"]);
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["Query"]["maxLength"], QUERY_CHARS_MAX);
        assert_eq!(
            (&schemas["Limit"]["maximum"], &schemas["Limit"]["default"]),
            (&json!(LIMIT_MAX), &json!(LIMIT_DEFAULT))
        );
        let value = &schemas["FilterBody"]["properties"]["category"];
        assert_eq!(value["maxLength"], FILTER_CHARS_MAX);
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn the_filters_are_those_of_the_pipeline() {
        let document = documented(&["category", "a.b"]);
        let schema = &document["components"]["schemas"]["FilterParameter"];
        assert_eq!(
            (&schema["maxItems"], &schema["items"]["pattern"]),
            (&json!(2), &json!(r"^(category|a\.b):[\s\S]{0,1024}$"))
        );
        let none = documented(&[]);
        assert_eq!(none["components"]["schemas"]["FilterParameter"], json!({"type": "array", "maxItems": 0}));
        assert_eq!(none["components"]["schemas"]["FilterBody"]["properties"], json!({}));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn follow(value: &Value, document: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        let place = reference.strip_prefix('#').expect("a place in this document");
                        assert!(document.pointer(place).is_some(), "{reference} leads nowhere");
                    }
                    fields.values().for_each(|value| follow(value, document));
                }
                Value::Array(values) => values.iter().for_each(|value| follow(value, document)),
                _ => {}
            }
        }
        let document = documented(&["category"]);
        follow(&document, &document);
    }
}
