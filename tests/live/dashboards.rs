//! Dashboards and alerts as an operator meets them: a real Prometheus scrapes a vecsync under load, every panel has data, and
//! each fault raises its alert, by the shipped rules with nothing but their durations scaled.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use qdrant_client::qdrant::{DeletePointsBuilder, PointsIdsList};
use serde_json::Value;

use crate::dead_letters::dividing_pipeline;
use crate::qdrant_run::{Pair, SOON};
use crate::support::disk::Disk;
use crate::support::http::{Http, escape};
use crate::support::postgres::{PASSWORD, Sql, USER};
use crate::support::process::wait_until;
use crate::support::prometheus::{Prometheus, scaled};
use crate::support::qdrant::Qdrant;
use crate::support::table::{insert, values};
use crate::support::vecsync::Vecsync;

/// Ten minutes are five seconds.
const FASTER: u32 = 120;
/// Rows with one text, which is embedded once: more than a store may be behind.
const MANY: u32 = 10_100;
/// What only promtool shows, and why: the fault of the one would have to last for minutes whatever the factor, that of the other
/// takes several pipelines, whose metric `pipelines` looks at.
const BY_PROMTOOL_ALONE: [&str; 2] = ["VecsyncSlowToSearchable", "VecsyncPipelineDown"];
/// What only who may mount a disk sees.
const BY_A_FULL_DISK: [&str; 4] =
    ["VecsyncDataDiskFull", "VecsyncStoreNeedsRoom", "VecsyncSourceLag", "VecsyncSlotRetainsWal"];

/// What docs/reference.md promises, each with the labels that it must have.
const METRICS: [(&str, &[&str]); 36] = [
    ("vecsync_source_lag_bytes", &["pipeline"]),
    ("vecsync_slot_retained_wal_bytes", &["pipeline"]),
    ("vecsync_slot_safe_wal_bytes", &["pipeline"]),
    ("vecsync_last_event_commit_timestamp_seconds", &["pipeline", "stage"]),
    ("vecsync_end_to_end_latency_seconds_bucket", &["pipeline", "store", "le"]),
    ("vecsync_events_total", &["pipeline", "stage", "op"]),
    ("vecsync_embeddings_total", &["pipeline", "result"]),
    ("vecsync_embed_batch_size_bucket", &["le"]),
    ("vecsync_embed_duration_seconds_bucket", &["le"]),
    ("vecsync_texts_split_total", &["pipeline"]),
    ("vecsync_titles_cut_total", &["pipeline"]),
    ("vecsync_store_requests_total", &["pipeline", "store", "operation", "result"]),
    ("vecsync_store_request_duration_seconds_bucket", &["pipeline", "store", "operation", "le"]),
    ("vecsync_store_connections_total", &["pipeline", "store", "result"]),
    ("vecsync_store_points", &["pipeline", "store"]),
    ("vecsync_store_bytes", &["pipeline", "store"]),
    ("vecsync_data_dir_free_bytes", &[]),
    ("vecsync_sink_lag_records", &["pipeline", "store"]),
    ("vecsync_breaker_state", &["pipeline", "state"]),
    ("vecsync_fallbacks_total", &["pipeline", "reason"]),
    ("vecsync_queries_total", &["pipeline", "served_by", "code"]),
    ("vecsync_query_duration_seconds_bucket", &["pipeline", "served_by", "le"]),
    ("vecsync_dead_letters_total", &["pipeline", "reason"]),
    ("vecsync_retries_total", &["target"]),
    ("vecsync_drift_rows", &["pipeline", "store", "kind"]),
    ("vecsync_verify_last_success_timestamp_seconds", &["pipeline"]),
    ("vecsync_build_info", &["version", "model"]),
    ("vecsync_capture_state", &["pipeline", "state"]),
    ("vecsync_staleness_seconds", &["pipeline", "store"]),
    ("vecsync_store_searchable", &["pipeline", "store"]),
    ("vecsync_embed_lag_records", &["pipeline"]),
    ("vecsync_dead_letters_open", &["pipeline"]),
    ("process_resident_memory_bytes", &[]),
    ("process_cpu_seconds_total", &[]),
    ("process_open_fds", &[]),
    ("process_start_time_seconds", &[]),
];

/// Searches and changes of rows until it is dropped, whatever becomes of them.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(pair: &Pair) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (port, url) = (pair.site.vecsync.port, pair.site.postgres.url("postgres", PASSWORD));
        let searches = (0..2).map(|_| {
            let (stop, mut http) = (Arc::clone(&stop), Http::new(port));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = http.get("/search?q=question&limit=3");
                    sleep(Duration::from_millis(20));
                }
            })
        });
        let mut threads: Vec<JoinHandle<()>> = searches.collect();
        let stopped = Arc::clone(&stop);
        threads.push(std::thread::spawn(move || {
            let mut sql = Sql::connect(&url).ok();
            let mut turn = 0;
            while !stopped.load(Ordering::Relaxed) {
                turn += 1;
                let change = format!("UPDATE faq_faq SET answer = 'Answer {turn}' WHERE id = {}", turn % 40 + 1);
                if sql.as_ref().is_none_or(|sql| sql.try_execute(&change).is_err()) {
                    sql = Sql::connect(&url).ok();
                }
                sleep(Duration::from_millis(40));
            }
        }));
        Load { stop, threads }
    }

    /// Searches without pause, each of a text that has to be embedded.
    fn of_long_queries(port: u16) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..2).map(|client| {
            let (stop, mut http) = (Arc::clone(&stop), Http::new(port));
            std::thread::spawn(move || {
                for turn in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let query = format!("{client} {turn} {}", "how do I find it again ".repeat(30));
                    let _ = http.get(&format!("/search?q={}", escape(&query)));
                }
            })
        });
        Load { stop: Arc::clone(&stop), threads: threads.collect() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

#[test]
fn every_panel_has_data_and_every_fault_raises_its_alert() {
    let began = Instant::now();
    let step = |what: &str| eprintln!("{:6.1} s {what}", began.elapsed().as_secs_f32());
    let rules = dashboards("alerts.yml");
    let mut prometheus = Prometheus::start(&scaled(&rules, FASTER));
    expect_firing(&mut prometheus, &["VecsyncNotScraped"]);

    let disk = Disk::mount(4096);
    let mut pair = Pair::prepare_with(Qdrant::own(), 150, &[("max_slot_wal_keep_size", "256MB")]);
    let vecsync = &mut pair.site.vecsync;
    vecsync.write_pipeline(&dividing_pipeline());
    if let Some(disk) = &disk {
        vecsync.set("VECSYNC_DATA_DIR", disk.path().join("data").display());
    }
    vecsync.start_ready();
    prometheus.scrape(&[vecsync.port]);
    pair.expect_served_by("qdrant", SOON);
    let load = Load::start(&pair);
    let verified = pair.site.vecsync.run_within(&["verify"], SOON);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    step("panels");
    let metrics = pair.site.vecsync.get("/metrics").body;
    expect_metrics(&metrics);
    let panels = panels();
    assert!(panels.len() > 50, "{} panels", panels.len());
    for (title, query) in &panels {
        expect_data(&mut prometheus, title, query);
    }
    wait_until("all to be well", SOON, || match prometheus.alerts() {
        alerts if alerts.is_empty() => Ok(()),
        alerts => Err(format!("{alerts:?}")),
    });

    step("a row that cannot be rendered, and points that somebody removed");
    pair.site.sql.execute(&insert(&[values(900_000, "", "Nobody asked.", "c00")]));
    let ids: Vec<u64> = (100..103).collect();
    let points = PointsIdsList { ids: ids.into_iter().map(Into::into).collect() };
    let removed = DeletePointsBuilder::new(&pair.alias).points(points).wait(true);
    pair.runtime.block_on(pair.qdrant.client().delete_points(removed)).unwrap();
    let verified = pair.site.vecsync.run_within(&["verify"], SOON);
    assert_eq!(verified.code, Some(3), "{verified:?}");
    expect_firing(&mut prometheus, &["VecsyncDeadLetters", "VecsyncDrift"]);

    step("Qdrant is gone");
    pair.qdrant.kill();
    let many = format!(
        "INSERT INTO faq_faq (id, question, answer, category)
         SELECT n, 'The same?', 'The same.', 'c00' FROM generate_series(1000000, {}) n",
        1_000_000 + MANY
    );
    pair.site.sql.execute(&many);
    expect_firing(&mut prometheus, &["VecsyncQdrantUnavailable", "VecsyncFallbackInUse", "VecsyncSinkBehind"]);
    step("all rows are gone");
    // The letter, too: its alert comes before. That of the shrunk store takes as long as an hour, so the end looks for it.
    expect_firing(&mut prometheus, &["VecsyncDeadLettersOpen"]);
    pair.site.sql.execute("TRUNCATE faq_faq");
    wait_until("the mirror to be empty", SOON, || match pair.site.vecsync.points() {
        Some(0) => Ok(()),
        points => Err(format!("{points:?}")),
    });

    let stale_since = Instant::now();
    if let Some(disk) = &disk {
        step("the disk is full");
        // Less than the mirror has, and enough for what is under way: the log stops far above.
        let mirror = pair.site.vecsync.metric("vecsync_store_bytes", "store=\"local\"").unwrap();
        disk.resize(mirror as u64 / 2);
        pair.site.sql.execute(&insert(&[values(50, "Is there room?", "None.", "c00")]));
        // WAL of others. A slot that it is kept for is lost beyond 256 MB.
        let written =
            "SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))) FROM generate_series(1, 210)";
        pair.site.sql.query(written);
        expect_firing(&mut prometheus, &BY_A_FULL_DISK);
    }

    step("PostgreSQL is gone, and a second server has nothing to answer with");
    pair.site.postgres.stop();
    expect_firing(&mut prometheus, &["VecsyncSourceLost"]);
    let mut second = Vecsync::prepare(&pair.site.postgres.url(USER, PASSWORD));
    second.start();
    prometheus.scrape(&[pair.site.vecsync.port, second.port]);
    wait_until("searches to fail", SOON, || {
        let _ = second.http.get("/search?q=question");
        found(prometheus.firing(), &["VecsyncSearchesFail"])
    });
    second.kill();
    expect_firing(&mut prometheus, &["VecsyncDown"]);
    prometheus.scrape(&[pair.site.vecsync.port]);
    step("it stands still again and again");
    // What is under way then takes so long: there is always something, since no text is like the one before.
    let long = Load::of_long_queries(pair.site.vecsync.port);
    wait_until("searches to be slow", SOON, || {
        pair.site.vecsync.signal("STOP");
        sleep(Duration::from_millis(600));
        pair.site.vecsync.signal("CONT");
        sleep(Duration::from_millis(600));
        found(prometheus.firing(), &["VecsyncSlowSearches"])
    });
    drop(long);
    step("until the mirror is stale");
    let stale = ["VecsyncFreshnessBurnFast", "VecsyncFreshnessBurnSlow", "VecsyncMirrorStale"];
    wait_until("freshness to burn", Duration::from_secs(60), || found(prometheus.firing(), &stale));
    assert!(stale_since.elapsed() > Duration::from_secs(30), "nothing is 30 s old yet");
    let age = pair.site.vecsync.metric("vecsync_staleness_seconds", "store=\"local\"");
    assert!(age > Some(30.0), "{age:?}");
    let lag = pair.site.vecsync.metric("vecsync_source_lag_bytes", "");
    assert!(lag.is_some_and(f64::is_nan), "{lag:?}");

    step("all come back");
    drop(load);
    if let Some(disk) = &disk {
        disk.resize(4 << 30);
    }
    pair.site.postgres.launch();
    pair.qdrant.restart();
    let mended = ["VecsyncSourceLost", "VecsyncQdrantUnavailable", "VecsyncMirrorStale", "VecsyncSlowSearches"];
    wait_until("alerts to end", Duration::from_secs(60), || match prometheus.firing() {
        firing if mended.iter().all(|name| !firing.contains(*name)) => Ok(()),
        firing => Err(format!("{firing:?}")),
    });
    let all: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let skipped: &[&str] = if disk.is_some() { &[] } else { &BY_A_FULL_DISK };
    let left_out = |name: &&&str| BY_PROMTOOL_ALONE.contains(*name) || skipped.contains(*name);
    let wanted: Vec<&str> = all.iter().filter(|name| !left_out(name)).copied().collect();
    wait_until("each alert to have fired", SOON, || found(prometheus.fired(), &wanted));
    step("done");
}

#[track_caller]
fn expect_firing(prometheus: &mut Prometheus, wanted: &[&str]) {
    wait_until(&format!("{wanted:?} to fire"), SOON, || found(prometheus.firing(), wanted));
}

fn found(alerts: BTreeSet<String>, wanted: &[&str]) -> Result<(), String> {
    let missing: Vec<&&str> = wanted.iter().filter(|name| !alerts.contains(**name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} is not among {alerts:?}")) }
}

#[track_caller]
fn expect_metrics(text: &str) {
    for (name, labels) in METRICS {
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .collect();
        assert!(!lines.is_empty(), "no {name} in {text}");
        for line in lines {
            let given: BTreeSet<&str> = match line.split_once('{') {
                Some((_, rest)) => rest.split('=').filter_map(|part| part.rsplit(['{', ',', '"']).next()).collect(),
                None => BTreeSet::new(),
            };
            let given: BTreeSet<&str> = given.into_iter().filter(|name| labels.contains(name)).collect();
            assert_eq!(given, labels.iter().copied().collect(), "{line}");
        }
    }
}

/// The queries of every panel and of every variable, under a title that says where they stand.
fn panels() -> Vec<(String, String)> {
    let mut queries = vec![];
    for name in ["pipeline", "qdrant", "process"] {
        let board: Value = serde_json::from_str(&dashboards(&format!("{name}.json"))).expect("JSON");
        for panel in board["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let title = format!("{name}: {}", panel["title"].as_str().expect("a title"));
                queries.push((title, filled(target["expr"].as_str().expect("an expression"))));
            }
        }
        for variable in board["templating"]["list"].as_array().expect("variables") {
            if let Some(query) = variable["definition"].as_str() {
                let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
                let (series, label) = inside.and_then(|inside| inside.rsplit_once(", ")).expect("label_values(…, …)");
                let query = format!("count by ({label}) ({})", filled(series));
                queries.push((format!("{name}: ${}", variable["name"]), query));
            }
        }
    }
    queries
}

/// A query as Grafana sends it, with everything chosen.
fn filled(query: &str) -> String {
    let ranges = query.replace("$__rate_interval", "5s").replace("$__range", "10s");
    let filled = ranges.replace("$instance", ".*").replace("$pipeline", ".*");
    assert!(!filled.contains('$'), "{filled}");
    filled
}

/// Waits for a sample that is a number.
#[track_caller]
fn expect_data(prometheus: &mut Prometheus, title: &str, query: &str) {
    wait_until(&format!("data of {title}: {query}"), SOON, || match prometheus.query(query)? {
        samples if samples.iter().any(|(_, value)| !value.is_nan()) => Ok(()),
        samples => Err(format!("{samples:?}")),
    });
}

fn dashboards(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}
