//! What the query server answers, as an OpenAPI document: the text beside this file, with this process's pipelines and their filters. No I/O.

use serde_json::{Map, Value, json};

use super::Services;

const TEXT: &str = include_str!("openapi.json");

/// The document of a server of these pipelines; it may want a key. The paths that name no pipeline are the default one's.
pub(super) fn document(services: &Services, wants_key: bool) -> String {
    let mut document: Value = serde_json::from_str(TEXT).expect("the file beside this one is JSON: a test reads it");
    let default = &services.pipelines[services.default];
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    if wants_key {
        document["security"] = json!([{"bearer": []}]);
    }
    let is_one = services.pipelines.len() == 1;
    if !is_one {
        let names = services.names().join(", ");
        let text = document["info"]["description"].as_str().unwrap_or_default();
        document["info"]["description"] = format!(
            "{text} The pipelines are {names}; what names none is {}'s, and /health, /health/detailed, /health/ready and \
             /health/started are of all together.",
            default.pipeline
        )
        .into();
    }
    let is_of_pipelines =
        |path: &str| ["/search", "/health", "/control/"].iter().any(|of| path.starts_with(of)) || path == "/status";
    let paths = document["paths"].as_object().cloned().unwrap_or_default();
    let schemas = document["components"]["schemas"].as_object().cloned().unwrap_or_default();
    for (place, service) in services.pipelines.iter().enumerate() {
        let name = &service.pipeline;
        // The schemas that depend on the filters; those of the default pipeline keep their names.
        let suffix = if place == services.default { String::new() } else { format!("_{name}") };
        for (schema, value) in with_filters(&schemas, &service.filters) {
            document["components"]["schemas"][format!("{schema}{suffix}")] = referring(value, &suffix);
        }
        let ending = if is_one { "OfPipeline".to_owned() } else { format!("Of_{name}") };
        for (path, item) in paths.iter().filter(|(path, _)| is_of_pipelines(path)) {
            document["paths"][format!("/pipelines/{name}{path}")] = referring(renamed(item, &ending), &suffix);
        }
    }
    document.to_string()
}

/// The schemas that say what can be filtered by.
const OF_FILTERS: [&str; 3] = ["FilterParameter", "FilterBody", "Search"];

fn with_filters(schemas: &Map<String, Value>, filters: &[String]) -> [(&'static str, Value); 3] {
    let [_, mut body, search] = OF_FILTERS.map(|name| schemas.get(name).cloned().unwrap_or_default());
    let value = body["additionalProperties"].take();
    body["properties"] = filters.iter().map(|field| (field.clone(), value.clone())).collect();
    body["additionalProperties"] = false.into();
    let [names, bodies, searches] = OF_FILTERS;
    [(names, parameter(filters)), (bodies, body), (searches, search)]
}

/// The same with references to one pipeline's schemas in the place of those that depend on the filters.
fn referring(mut value: Value, suffix: &str) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                let schema = field.as_str().and_then(|text| text.strip_prefix("#/components/schemas/"));
                *field = match schema.filter(|schema| name == "$ref" && OF_FILTERS.contains(schema)) {
                    Some(schema) => format!("#/components/schemas/{schema}{suffix}").into(),
                    None => referring(field.take(), suffix),
                };
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| *value = referring(value.take(), suffix)),
        _ => {}
    }
    value
}

/// The same operations under names of their own: each must be there once.
fn renamed(item: &Value, ending: &str) -> Value {
    let mut item = item.clone();
    for operation in item.as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
        if let Some(name) = operation["operationId"].as_str() {
            operation["operationId"] = format!("{name}{ending}").into();
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
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::serve::Service;
    use crate::serve::health::Report;
    use crate::serve::search::{FILTER_CHARS_MAX, LIMIT_DEFAULT, LIMIT_MAX, QUERY_CHARS_MAX};
    use crate::serve::status::State;

    fn service(name: &str, filters: &[&str]) -> Service {
        Service {
            pipeline: name.to_owned(),
            search: None,
            filters: filters.iter().map(|&field| field.to_owned()).collect(),
            health: Arc::new(|| Report { components: vec![], ready: Ok(()), serves: true, is_whole: true }),
            state: Arc::new(State::default),
            control: None,
        }
    }

    fn documented(filters: &[&str]) -> Value {
        let services = Services::one(service("faq", filters), Arc::new(String::new));
        serde_json::from_str(&document(&services, true)).expect("JSON")
    }

    fn of_three() -> Value {
        let pipelines = vec![service("a", &["x"]), service("b", &["y"]), service("c", &[])];
        let services = Services { pipelines, default: 1, ..Services::one(service("b", &[]), Arc::new(String::new)) };
        serde_json::from_str(&document(&services, true)).expect("JSON")
    }

    #[test]
    fn each_pipeline_has_its_paths_and_its_filters() {
        let document = of_three();
        let filter = |path: &str| {
            let parameters = document["paths"][path]["get"]["parameters"].as_array().expect("parameters");
            let reference = parameters[3]["schema"]["$ref"].as_str().expect("a reference").trim_start_matches('#');
            document.pointer(reference).expect("it leads somewhere")["items"]["pattern"]
                .as_str()
                .unwrap_or("")
                .to_owned()
        };
        let [own, a, b, c] =
            ["", "/pipelines/a", "/pipelines/b", "/pipelines/c"].map(|path| filter(&format!("{path}/search")));
        assert!(own.starts_with("^(y):") && a.starts_with("^(x):") && b == own && c.is_empty(), "{own} {a} {b} {c}");
        let body = &document["paths"]["/pipelines/a/search"]["post"]["requestBody"]["content"]["application/json"];
        assert_eq!(body["schema"]["$ref"], "#/components/schemas/Search_a");
        assert_eq!(
            document["components"]["schemas"]["Search_a"]["properties"]["filter"]["$ref"],
            "#/components/schemas/FilterBody_a"
        );
        let paths = document["paths"].as_object().expect("paths");
        assert!(paths.contains_key("/pipelines/c/health/ready") && paths.contains_key("/pipelines/c/status"));
        let operations = paths.values().flat_map(|item| item.as_object().expect("an item").values());
        let names: Vec<&str> = operations.filter_map(|operation| operation["operationId"].as_str()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        let said = document["info"]["description"].as_str().expect("a description");
        assert!(said.contains("a, b, c; what names none is b's"), "{said}");
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
        for document in [documented(&["category"]), of_three()] {
            follow(&document, &document);
        }
    }
}
