//! The shapes that scripts, dashboards and Django rely on, as the real program answers them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::qdrant_run::Pair;
use crate::support::http::Http;
use crate::support::postgres::PASSWORD;
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::support::table;

const SOON: Duration = Duration::from_secs(30);

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect()
}

fn filled() -> Site {
    let mut site = Site::open();
    let rows: Vec<String> = (1..=30)
        .map(|id| table::values(id, "Refunds", &format!("Money back, case {id}."), &table::category(id as usize % 3)))
        .collect();
    site.sql.execute(&table::insert(&rows));
    site.expect_equal(SOON);
    site
}

#[test]
fn a_search_has_the_promised_shape_both_ways() {
    let mut site = filled();
    let get = site.search("give me my money", "&limit=2&filter=category:c01");
    assert_eq!(keys(&get), ["query", "results", "served_by", "degraded", "staleness_ms", "took_ms"]);
    assert_eq!(
        (&get["query"], &get["served_by"], &get["degraded"]),
        (&json!("give me my money"), &json!("local"), &json!(false))
    );
    assert!(get["took_ms"].is_u64(), "{get}");
    let results = get["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        assert_eq!(keys(result), ["id", "score", "passage", "payload"]);
        assert_eq!(keys(&result["payload"]), ["id", "question", "answer", "category", "updated_at"]);
        assert_eq!(result["payload"]["category"], "c01");
        assert!(result["id"].is_u64() && result["passage"].as_str().unwrap().starts_with("Money back"), "{result}");
    }
    let scores: Vec<f64> = results.iter().map(|result| result["score"].as_f64().unwrap()).collect();
    assert!(scores[0] >= scores[1] && scores[0] <= 1.000_001 && scores[1] > 0.2, "{scores:?}");
    let body = json!({"query": "give me my money", "limit": 2, "filter": {"category": "c01"}});
    let post = site.http.post("/search", &body).unwrap();
    assert_eq!((post.status, post.header("content-type")), (200, Some("application/json")));
    assert_eq!(post.json()["results"], get["results"]);
    let none = site.search("give me my money", "&min_score=0.999");
    assert_eq!(none["results"], json!([]));
    let all = site.search("money", "&limit=100&min_score=-1");
    assert_eq!(all["results"].as_array().map(Vec::len), Some(30));
}

#[test]
fn a_query_is_embedded_once_and_answered_afresh_each_time() {
    let mut site = filled();
    let calls = |site: &mut Site| site.vecsync.metric("vecsync_embed_batch_size_count", "").expect("the model was run");
    let before = calls(&mut site);
    let port = site.port;
    let asked: Vec<_> = (0..12)
        .map(|n| {
            std::thread::spawn(move || {
                // The model does not tell upper case from lower.
                let query = if n % 2 == 0 { "who+pays+me+back" } else { "Who+pays+me+BACK" };
                Http::new(port).get(&format!("/search?q={query}")).unwrap().json()["results"].clone()
            })
        })
        .collect();
    let answers: Vec<Value> = asked.into_iter().map(|asked| asked.join().unwrap()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.as_array().unwrap().len() == 5), "{answers:?}");
    assert_eq!(calls(&mut site) - before, 1.0);
    site.sql.execute("DELETE FROM faq_faq");
    site.expect_equal(SOON);
    assert_eq!(site.search("who pays me back", "")["results"], json!([]));
}

#[test]
fn what_cannot_be_searched_is_a_problem_with_words() {
    let mut site = filled();
    for (path, status, wanted) in [
        ("/search", 400, "q"),
        ("/search?q=", 400, "q"),
        ("/search?q=a&limit=0", 400, "limit"),
        ("/search?q=a&limit=1000000000", 400, "limit"),
        ("/search?q=a&filter=colour:red", 400, "category"),
        ("/search?q=%ff", 400, "UTF-8"),
        ("/nowhere", 404, ""),
    ] {
        let answer = site.get(path);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (status, Some("application/problem+json")),
            "{path}"
        );
        let problem = answer.json();
        assert_eq!(problem["status"], status, "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(wanted), "{path}: {problem}");
    }
    let long = site.http.post("/search", &json!({"query": "x".repeat(10 << 20)}));
    assert!(long.is_err() || long.is_ok_and(|answer| answer.status == 413), "ten megabytes are taken");
    assert_eq!(site.search("money", "")["results"].as_array().map(Vec::len), Some(5));
}

#[test]
fn health_has_its_shapes_with_and_without_the_slash() {
    let mut site = filled();
    for path in ["/health", "/health/", "/health/ready", "/health/ready/", "/health/live", "/health/live/"] {
        let answer = site.get(path);
        assert_eq!(
            (answer.status, answer.json()["status"].as_str()),
            (200, Some("healthy")),
            "{path}: {}",
            answer.body
        );
        assert!(answer.json()["timestamp"].is_string(), "{path}: {}", answer.body);
    }
    assert_eq!(keys(&site.get("/health/").json()), ["status", "timestamp"]);
    let qdrant = site.get("/health/qdrant/");
    assert_eq!((qdrant.status, qdrant.json()["status"].as_str()), (200, Some("disabled")), "{}", qdrant.body);
    let store = site.get("/health/vector-store/");
    assert_eq!((store.status, store.json()["status"].as_str()), (200, Some("healthy")), "{}", store.body);
    let detailed = site.get("/health/detailed/").json();
    for component in ["source", "model", "local"] {
        let part = &detailed["components"][component];
        assert_eq!(part["status"], "healthy", "{component}: {detailed}");
        assert!(part.get("error").is_some() && part.get("latency_ms").is_some(), "{component}: {detailed}");
    }
    assert_eq!(detailed["components"]["local"]["details"]["rows"], 30, "{detailed}");
}

#[test]
fn metrics_carry_the_promised_names_and_no_secret() {
    let mut site = filled();
    site.search("money", "");
    // Some are measured every few seconds.
    let text = wait_until("all metrics", SOON, || {
        let text = site.vecsync.get("/metrics").body;
        let missing: Vec<&str> = METRICS.iter().copied().filter(|name| !has(&text, name)).collect();
        if missing.is_empty() { Ok(text) } else { Err(format!("missing: {missing:?}")) }
    });
    assert!(!text.contains(PASSWORD) && !text.contains("Money back"), "{text}");
    wait_until("the points to be counted", SOON, || match site.metric("vecsync_store_points", r#"store="local""#) {
        Some(30.0) => Ok(()),
        points => Err(format!("{points:?}")),
    });
    for stage in ["capture", "embed", "index"] {
        let events = site.metric("vecsync_events_total", &format!(r#"stage="{stage}""#)).unwrap_or(0.0);
        assert!(events >= 30.0 + 128.0, "{stage}: {events}");
    }
    assert!(site.metric("vecsync_queries_total", r#"code="200""#).unwrap_or(0.0) >= 1.0);
    let pipeline = text
        .lines()
        .filter(|line| line.starts_with("vecsync_store_points"))
        .all(|line| line.contains(r#"pipeline="faq""#));
    assert!(pipeline, "{text}");
}

/// A name, then labels or the value.
fn has(text: &str, name: &str) -> bool {
    text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
}

const METRICS: &[&str] = &[
    "vecsync_source_lag_bytes",
    "vecsync_slot_retained_wal_bytes",
    "vecsync_last_event_commit_timestamp_seconds",
    "vecsync_end_to_end_latency_seconds_bucket",
    "vecsync_events_total",
    "vecsync_embeddings_total",
    "vecsync_embed_batch_size_count",
    "vecsync_embed_duration_seconds_sum",
    "vecsync_store_points",
    "vecsync_store_bytes",
    "vecsync_data_dir_free_bytes",
    "vecsync_queries_total",
    "vecsync_query_duration_seconds_count",
    "vecsync_build_info",
];

#[test]
fn staleness_is_small_when_idle_and_grows_while_the_source_is_away() {
    let mut site = filled();
    let stale = |site: &mut Site| site.search("money", "")["staleness_ms"].as_u64();
    // Nobody writes: what is there is known to be all, again and again.
    for _ in 0..20 {
        wait_until("to be fresh", SOON, || match stale(&mut site) {
            Some(ms) if ms < 1_000 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    site.postgres.stop();
    let first = wait_until("to grow stale", SOON, || match stale(&mut site) {
        Some(ms) if ms > 3_000 => Ok(ms),
        other => Err(format!("{other:?}")),
    });
    wait_until("to grow staler", SOON, || match stale(&mut site) {
        Some(ms) if ms > first + 1_000 => Ok(()),
        other => Err(format!("{other:?}, after {first}")),
    });
    assert_eq!(site.search("money", "")["degraded"], true);
    assert_eq!((site.get("/health/ready/").status, site.get("/health/").status), (200, 200));
    site.postgres.launch();
    wait_until("to be fresh again", SOON, || match stale(&mut site) {
        Some(ms) if ms < 1_000 => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn with_keys_only_who_has_one_may_search() {
    let mut site = Site::prepare();
    site.set("VECSYNC_API_KEYS", "canary-api-key-one,canary-api-key-two");
    site.vecsync.start_ready();
    let refused = site.get("/search?q=a");
    assert_eq!(refused.status, 401, "{}", refused.body);
    assert_eq!(site.get("/health/ready/").status, 200);
    let found = site.vecsync.run(&["search", "anything", "--json"]);
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(!site.log().contains("canary-api-key") && !refused.body.contains("canary"), "{}", site.log());
}

#[test]
fn the_access_log_is_there_where_it_is_named_and_has_no_key() {
    let mut site = Site::prepare();
    site.set("VECSYNC_API_KEYS", "canary-api-key-one");
    let lines = |site: &mut Site, filter: &str, count: usize| {
        site.set("VECSYNC_LOG", filter);
        let said = site.log().len();
        site.vecsync.start();
        wait_until("vecsync to answer", SOON, || site.http.get("/health/live").map_err(|error| error.to_string()));
        assert_eq!(site.get("/search?q=canary-text").status, 401);
        assert_eq!(site.get("/canary-path").status, 401);
        let found = site.vecsync.run(&["search", "canary-text"]);
        assert_ne!(found.code, None, "{found:?}");
        assert_eq!(site.terminate().code, Some(0));
        let lines: Vec<String> =
            site.log()[said..].lines().filter(|line| line.contains("vecsync::access")).map(str::to_owned).collect();
        assert!(lines.len() >= count && (count > 0 || lines.is_empty()), "{lines:#?}");
        assert!(!lines.concat().contains("canary-api-key"), "{lines:#?}");
        lines
    };
    let named = lines(&mut site, "info,vecsync::access=info", 4);
    for parts in [
        ["method=GET", r#"path="/search""#, "status=401", "took_ms=", "bytes=", "request_id="],
        ["method=GET", r#"path="/canary-path""#, "status=401", "took_ms=", "bytes=", "request_id="],
    ] {
        assert!(named.iter().any(|line| parts.iter().all(|part| line.contains(part))), "{named:#?}");
    }
    assert!(!named.concat().contains("canary-text"), "{named:#?}");
    let asked = lines(&mut site, "info,vecsync::access=debug", 4);
    assert!(asked.iter().any(|line| line.contains(r#"query="canary-text""#)), "{asked:#?}");
    lines(&mut site, "debug", 0);
}

#[test]
fn the_state_has_both_stores_the_last_changes_and_who_answers() {
    let mut pair = Pair::prepare(Qdrant::own(), 30);
    pair.site.vecsync.start_ready();
    let state = wait_until("a change in both stores, and Qdrant to be asked", SOON, || {
        let state = pair.site.get("/status/").json();
        let reached = state["changes"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|change| change["latency_ms"].as_object().is_some_and(|stores| stores.len() == 2));
        if reached && state["served_by"] == "qdrant" && state["faults"] == json!([]) {
            Ok(state)
        } else {
            Err(state.to_string())
        }
    });
    let changes = state["changes"].as_array().unwrap();
    assert!(changes.len() == 20 && changes.iter().all(|change| change["op"] == "upsert"), "{state}");
    assert!(changes[0]["title"].as_str().is_some_and(|title| title.starts_with("Question ")), "{state}");
    let store =
        |state: &Value, place: usize| (state["stores"][place]["name"].clone(), state["stores"][place]["rows"].clone());
    assert_eq!((store(&state, 0), store(&state, 1)), ((json!("qdrant"), Value::Null), (json!("local"), json!(30))));
    pair.qdrant.kill();
    wait_until("the mirror to be asked", SOON, || {
        let state = pair.site.get("/status").json();
        let is_told = state["faults"][0]["component"] == "qdrant" && state["stores"][0]["status"] == "unhealthy";
        if is_told && state["served_by"] == "local" { Ok(()) } else { Err(state.to_string()) }
    });
}
