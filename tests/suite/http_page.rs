//! The page, the state and the description of the query server, on a real port.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use vecsync::index::Arrival;
use vecsync::serve::status::{State, Store};
use vecsync::serve::{Keys, Limits, Service, Settings};

use super::http::{Server, commanding, one_result, service, settings};

const KEY: &str = "canary-key-of-sixteen";

async fn with_keys() -> Server {
    let keys = Keys::new(&commanding([KEY]));
    let change = Arrival {
        op: "upsert",
        id: Some(json!(7)),
        title: Some("<script>canary</script>".into()),
        commit_ts_ms: Some(0),
        reached: [("local", 12)].into(),
    };
    let store = Store { name: "local", rows: Some(1), points: Some(2), staleness_ms: None, lag_records: None };
    let state = State { served_by: Some("local"), stores: vec![store], changes: vec![change], ..State::default() };
    let service = Service { state: Arc::new(move || state.clone()), ..service(one_result) };
    Server::start(service, Settings { keys, ..settings(Limits::default()) }).await
}

#[tokio::test]
async fn the_page_is_open_and_may_load_its_own_files_alone() {
    let server = with_keys().await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/?q=a", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{path}");
        let policy = reply.header("content-security-policy").expect("a policy");
        for wanted in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(policy.split("; ").any(|part| part == wanted), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("://") && !policy.contains('*'), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{path}");
        }
    }
    let elsewhere = server.get("/health/").await;
    assert_eq!(elsewhere.header("content-security-policy"), Some("default-src 'none'; frame-ancestors 'none'"));
    let posted = server.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    posted.is_problem(405, "GET, HEAD");
    server.stop().await;
}

#[tokio::test]
async fn the_state_has_rows_texts_and_wants_a_key() {
    let server = with_keys().await;
    for path in ["/status", "/status/"] {
        server.get(path).await.is_problem(401, "Authorization");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        let reply = server.send(request).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{path}");
        let body = reply.json();
        assert_eq!(
            (&body["pipeline"], &body["served_by"], &body["searches"]),
            (&json!("faq"), &json!("local"), &json!(true))
        );
        let change = json!({"op": "upsert", "id": 7, "title": "<script>canary</script>",
            "committed_at": "1970-01-01T00:00:00.000000Z", "latency_ms": {"local": 12}});
        assert_eq!(body["changes"], json!([change]));
        assert_eq!(body["stores"][0]["staleness_ms"], Value::Null);
    }
    server.stop().await;
}

/// Every path that the server knows, under its shortest name.
const PATHS: &[&str] = &[
    "/",
    "/control/backup",
    "/control/check",
    "/control/dead-letters",
    "/control/init",
    "/control/replay",
    "/control/sync",
    "/control/verify",
    "/health",
    "/health/detailed",
    "/health/live",
    "/health/qdrant",
    "/health/ready",
    "/health/started",
    "/health/vector-store",
    "/metrics",
    "/openapi.json",
    "/pipelines/faq/control/backup",
    "/pipelines/faq/control/check",
    "/pipelines/faq/control/dead-letters",
    "/pipelines/faq/control/init",
    "/pipelines/faq/control/replay",
    "/pipelines/faq/control/sync",
    "/pipelines/faq/control/verify",
    "/pipelines/faq/health",
    "/pipelines/faq/health/detailed",
    "/pipelines/faq/health/live",
    "/pipelines/faq/health/qdrant",
    "/pipelines/faq/health/ready",
    "/pipelines/faq/health/started",
    "/pipelines/faq/health/vector-store",
    "/pipelines/faq/search",
    "/pipelines/faq/status",
    "/search",
    "/status",
];

#[tokio::test]
async fn every_path_is_described_and_answers_as_described() {
    let server = Server::plain().await;
    let document = server.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().expect("paths");
    assert_eq!(paths.keys().map(String::as_str).collect::<BTreeSet<_>>(), PATHS.iter().copied().collect());
    for (path, item) in paths {
        if item.get("get").is_none() {
            // By the name that commands are taken by without a key.
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let reply = server.send(request).await;
            assert_eq!(reply.is_problem(405, "POST").header("allow"), Some("POST"), "{path}");
            continue;
        }
        for (query, slash) in [("", "/"), ("", if path == "/" { "/" } else { "" }), ("?q=a", "/")] {
            let reply = server.get(&format!("{}{slash}{query}", path.trim_end_matches('/'))).await;
            let mut described = &item["get"]["responses"][reply.status.to_string()];
            if let Some(reference) = described["$ref"].as_str() {
                described = document.pointer(&reference[1..]).expect("a place");
            }
            let kind = reply.header("content-type").and_then(|kind| kind.split(';').next()).expect("a type");
            assert!(described["content"].get(kind).is_some(), "{path}{query}: {} {kind}", reply.status);
        }
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "POST"] {
            if item.get(method.to_lowercase()).is_none() {
                let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
                server.send(request).await.is_problem(405, "GET, HEAD");
            }
        }
    }
    assert_eq!(document["security"], json!([]));
    server.stop().await;
    let server = with_keys().await;
    assert_eq!(server.get("/openapi.json/").await.json()["security"], json!([{"bearer": []}]));
    server.stop().await;
}
