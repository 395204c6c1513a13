//! `vecsync verify`: what stores hold otherwise than the table is found by key, and by nothing else; and is mended.

use std::time::Duration;

use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, DeletePointsBuilder, Filter, GetPointsBuilder, PointId, PointStruct, PointsIdsList,
    UpsertPointsBuilder, Vectors,
};
use serde_json::{Value, json};

use crate::dead_letters::{dividing_pipeline, expect_listed, spoil};
use crate::kafka::Cluster;
use crate::qdrant_run::Pair;
use crate::support::dice::Dice;
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::support::table::{self, values};
use crate::support::vecsync::{Ended, PIPELINE, Vecsync};
use crate::writer::{Writer, fill};

const SOON: Duration = Duration::from_secs(30);
const CAUGHT_UP: Duration = Duration::from_secs(120);

fn verify(vecsync: &Vecsync, more: &[&str]) -> (Ended, Value) {
    let ended = vecsync.run(&[&["verify", "--json"], more].concat());
    let report = serde_json::from_str(&ended.stdout).unwrap_or(Value::Null);
    (ended, report)
}

/// The report of one store as `{missing, stale, extra}`, each with its keys, and the rows that are the same.
#[track_caller]
fn of_store(report: &Value, store: &str) -> (Value, u64) {
    let stores = report["stores"].as_array().unwrap_or_else(|| panic!("{report}"));
    let found = stores.iter().find(|found| found["store"] == store).unwrap_or_else(|| panic!("{report}"));
    assert_eq!((&found["error"], &found["late"], &found["unsettled"]), (&Value::Null, &json!(false), &json!(0)));
    for kind in ["missing", "stale", "extra"] {
        assert_eq!(found[kind]["count"], found[kind]["keys"].as_array().unwrap().len(), "{found}");
    }
    let keys = |kind: &str| found[kind]["keys"].clone();
    (
        json!({"missing": keys("missing"), "stale": keys("stale"), "extra": keys("extra")}),
        found["same"].as_u64().unwrap(),
    )
}

fn nothing() -> Value {
    json!({"missing": [], "stale": [], "extra": []})
}

#[test]
fn rows_that_are_on_their_way_are_no_drift() {
    let mut pair = Pair::prepare(Qdrant::start(), 0);
    fill(&pair.site.sql, 1_000);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    let writer = Writer::start(&pair.site.postgres, 5, Duration::from_millis(10));
    for _ in 0..4 {
        writer.wait_for_more(20);
        let (ended, report) = verify(&pair.site.vecsync, &[]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        for store in ["local", "qdrant"] {
            let (drift, same) = of_store(&report, store);
            assert_eq!(drift, nothing(), "{report}");
            assert!(same > 300, "{report}");
        }
    }
    writer.finish();
    let (ended, report) = verify(&pair.site.vecsync, &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let count = |filter: &str| pair.site.sql.value(&format!("SELECT count(*) FROM faq_faq WHERE {filter}"));
    let (rows, indexed) = (report["rows"].to_string(), report["indexed"].to_string());
    assert_eq!((rows, indexed), (count("true"), count("is_active")), "{report}");
    assert_ne!(report["rows"], report["indexed"], "the writer makes rows that do not belong into the index");
    for store in ["local", "qdrant"] {
        assert_eq!(json!(of_store(&report, store).1), report["indexed"], "{report}");
    }
    let metrics = &mut pair.site.vecsync;
    assert_eq!(metrics.metric("vecsync_drift_rows", "").map(|rows| rows as u64), Some(0));
    assert!(metrics.metric("vecsync_verify_last_success_timestamp_seconds", "").unwrap() > 1.6e9);
    let text = metrics.run(&["verify"]);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(
        text.stdout.contains("local: ") && text.stdout.contains(" the same, 0 missing, 0 stale, 0 extra"),
        "{text:?}"
    );
}

/// A point as it is, to be written again.
fn point(pair: &Pair, id: u64) -> PointStruct {
    let request = GetPointsBuilder::new(&pair.alias, [PointId::from(id)]).with_payload(true).with_vectors(true);
    let found = pair.runtime.block_on(pair.qdrant.client().get_points(request)).unwrap().result.pop().unwrap();
    let vector = found.vectors.unwrap().get_vector().unwrap();
    let qdrant_client::qdrant::vector_output::Vector::Dense(dense) = vector else { panic!("{vector:?}") };
    PointStruct { id: found.id, payload: found.payload, vectors: Some(Vectors::from(dense.data)) }
}

/// Changes the reserved object of a point.
fn changed(mut point: PointStruct, id: u64, changes: &[(&str, Value)]) -> PointStruct {
    let mut payload = serde_json::Map::new();
    for (name, value) in point.payload {
        payload.insert(name, value.into_json());
    }
    let reserved = payload["_vecsync"].as_object_mut().unwrap();
    reserved.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    point.payload = qdrant_client::Payload::try_from(Value::Object(payload)).unwrap().into();
    PointStruct { id: Some(id.into()), ..point }
}

fn write(pair: &Pair, points: Vec<PointStruct>) {
    let request = UpsertPointsBuilder::new(&pair.alias, points).wait(true);
    pair.runtime.block_on(pair.qdrant.client().upsert_points(request)).unwrap();
}

#[test]
fn what_was_changed_in_qdrant_by_hand_is_found_by_kind_and_key_and_mended() {
    let mut pair = Pair::prepare(Qdrant::start(), 60);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    let old = point(&pair, 9);
    pair.site.sql.execute("UPDATE faq_faq SET answer = 'Newer.' WHERE id = 9; DELETE FROM faq_faq WHERE id = 60");
    pair.expect_equal(SOON);
    assert_eq!(verify(&pair.site.vecsync, &[]).0.code, Some(0));

    let client = pair.qdrant.client();
    let gone = DeletePointsBuilder::new(&pair.alias).points(PointsIdsList { ids: vec![7.into()] }).wait(true);
    pair.runtime.block_on(client.delete_points(gone)).unwrap();
    let hash = json!("00112233445566778899aabbccddeeff");
    let damaged = changed(point(&pair, 12), 12, &[("row_hash", hash)]);
    let extra = changed(point(&pair, 11), 900_001, &[("key", json!(r#"{"id":900001}"#))]);
    let hidden = changed(point(&pair, 13), 13, &[("deleted", json!(true))]);
    write(&pair, vec![old, damaged, extra, hidden]);

    let (ended, report) = verify(&pair.site.vecsync, &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.stderr.contains("5 rows") && ended.stderr.contains("verify --repair"), "{ended:?}");
    let wanted = json!({"missing": [7, 13], "stale": [9, 12], "extra": [900_001]});
    assert_eq!(of_store(&report, "qdrant"), (wanted, 55), "{report}");
    assert_eq!(of_store(&report, "local"), (nothing(), 59), "{report}");
    let vecsync = &mut pair.site.vecsync;
    let drift = |vecsync: &mut Vecsync, kind: &str| vecsync.metric("vecsync_drift_rows", kind).unwrap() as u64;
    assert_eq!([drift(vecsync, "missing"), drift(vecsync, "stale"), drift(vecsync, "extra")], [2, 2, 1]);
    let text = vecsync.run(&["verify"]);
    assert_eq!(text.code, Some(3), "{text:?}");
    for line in ["qdrant: 55 the same, 2 missing, 2 stale, 1 extra", "  missing: 7, 13", "  stale: 9, 12"] {
        assert!(text.stdout.contains(line), "{line}: {text:?}");
    }

    // A restart mends nothing, so it takes nothing back.
    assert_eq!(vecsync.terminate().code, Some(0));
    vecsync.start_ready();
    assert_eq!([drift(vecsync, "missing"), drift(vecsync, "stale"), drift(vecsync, "extra")], [2, 2, 1]);
    let captured = |vecsync: &mut Vecsync| vecsync.metric("vecsync_events_total", r#"stage="capture""#).unwrap() as u64;
    let computed = |vecsync: &mut Vecsync| vecsync.metric("vecsync_embeddings_total", "computed").unwrap_or_default();
    let before = (captured(vecsync), computed(vecsync));
    let text = vecsync.run(&["verify", "--repair"]);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.contains("; 5 mended, 0 left"), "{text:?}");
    assert!(text.stdout.contains("Repair: 5 rows were published again."), "{text:?}");
    assert_eq!((captured(vecsync), computed(vecsync)), (before.0 + 5, before.1), "exactly those, and nothing embedded");
    assert_eq!(drift(vecsync, ""), 0);
    let (ended, report) = verify(&pair.site.vecsync, &["--repair"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(report["repair"], json!({"published": 0, "removed": 0, "refused": [], "error": null}), "{report}");
    for store in ["local", "qdrant"] {
        assert_eq!(of_store(&report, store), (nothing(), 59), "{report}");
    }
    pair.expect_equal(SOON);
    pair.expect_searched(SOON);
}

#[test]
fn points_that_are_no_rows_and_keys_that_are_none_are_found_and_removed() {
    let mut pair = Pair::prepare(Qdrant::start(), 20);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    let mut bare = point(&pair, 5);
    bare.payload.remove("_vecsync");
    let theirs = PointStruct { id: Some(900_001.into()), ..bare.clone() };
    // A copy of row 6, elsewhere; and rows whose keys the table cannot have, where they would be.
    let copy = PointStruct { id: Some(900_002.into()), ..point(&pair, 6) };
    let alien = changed(point(&pair, 6), 900_003, &[("key", json!(r#"{"slug":900003}"#))]);
    let senseless = changed(point(&pair, 6), 900_004, &[("key", json!(r#"{"id":"x"}"#))]);
    write(&pair, vec![bare, theirs, copy, alien, senseless]);
    let (ended, report) = verify(&pair.site.vecsync, &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let wanted = json!({"missing": [], "stale": [5], "extra": [900_003, 900_001, 6, "x"]});
    assert_eq!(of_store(&report, "qdrant"), (wanted, 19), "{report}");
    let (ended, report) = verify(&pair.site.vecsync, &["--repair"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    // No row of the table can have such a key, so nothing can be published under it.
    assert_eq!(report["stores"][1]["left"], json!({"count": 1, "keys": [900_003]}), "{report}");
    assert_eq!((&report["repair"]["published"], &report["repair"]["removed"]), (&json!(1), &json!(3)), "{report}");
    assert!(report["repair"]["refused"].to_string().contains("its key has slug"), "{report}");
    assert!(ended.stderr.contains("1 row") && ended.stderr.contains("could not be repaired"), "{ended:?}");
    let gone = DeletePointsBuilder::new(&pair.alias).points(PointsIdsList { ids: vec![900_003.into()] }).wait(true);
    pair.runtime.block_on(pair.qdrant.client().delete_points(gone)).unwrap();
    assert_eq!(verify(&pair.site.vecsync, &[]).0.code, Some(0));
    pair.expect_equal(SOON);
}

#[test]
fn without_qdrant_the_mirror_is_compared_and_mended() {
    let mut site = Site::open();
    let rows: Vec<String> = (1..=40).map(|id| values(id, "Q", &format!("Answer {id}"), "c00")).collect();
    site.sql.execute(&table::insert(&rows));
    site.expect_equal(SOON);
    assert_eq!(site.vecsync.terminate().code, Some(0));
    // What no capture would have written.
    let change = |op: &str, after: Value| {
        json!({"before": null, "after": after, "source": {"ts_ms": 1}, "op": op, "ts_ms": 1}).to_string()
    };
    let row = |id: i64| {
        json!({"id": id, "question": "Q", "answer": "Never said", "category": "c00", "is_active": true,
               "created_at": "2026-01-02T13:45:45Z", "updated_at": "2026-01-02T13:45:45Z"})
    };
    let (gone, stale, extra) = (change("d", Value::Null), change("u", row(2)), change("c", row(77)));
    spoil(&site.vecsync, &[(r#"{"id":1}"#, &gone), (r#"{"id":2}"#, &stale), (r#"{"id":77}"#, &extra)]);
    site.vecsync.start_ready();

    let (ended, report) = verify(&site.vecsync, &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert_eq!(of_store(&report, "local"), (json!({"missing": [1], "stale": [2], "extra": [77]}), 38), "{report}");
    assert_eq!(report["stores"].as_array().unwrap().len(), 1, "{report}");
    let (ended, report) = verify(&site.vecsync, &["--repair"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(report["stores"][0]["left"], json!({"count": 0, "keys": []}), "{report}");
    site.expect_equal(SOON);
}

#[test]
fn a_row_that_is_put_aside_is_missing_until_it_can_be_embedded() {
    let mut site = Site::prepare();
    site.vecsync.write_pipeline(&dividing_pipeline());
    site.vecsync.start_ready();
    let rows = [(1, "Fine?"), (2, ""), (3, "Once fine?")];
    site.sql.execute(&table::insert(&rows.map(|(id, question)| values(id, question, "An answer.", "c00"))));
    wait_until("row 3", SOON, || site.vecsync.row(3).map(|_| ()).ok_or_else(|| "it is not there".to_owned()));
    site.sql.execute("UPDATE faq_faq SET question = '' WHERE id = 3");
    expect_listed(&site.vecsync, &[json!({"id": 2}), json!({"id": 3})]);
    let letters: Value = serde_json::from_str(&site.vecsync.run(&["dead-letters", "list", "--json"]).stdout).unwrap();
    let (ended, report) = verify(&site.vecsync, &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert_eq!(report["put_aside"]["count"], 2, "{report}");
    for row in report["put_aside"]["rows"].as_array().unwrap() {
        let letter = letters["dead_letters"].as_array().unwrap().iter().find(|letter| letter["id"] == row[1]);
        assert_eq!(letter.unwrap()["key"]["id"], row[0], "{letters}");
    }
    assert!(ended.stderr.contains("all of them put aside") && !ended.stderr.contains("--repair"), "{ended:?}");
    let text = site.vecsync.run(&["verify", "--repair"]);
    assert_eq!(text.code, Some(3), "{text:?}");
    for line in [
        "missing: 2\n",
        "stale: 3\n",
        "Row 2 was put aside: `vecsync dead-letters show",
        "left: 2, 3\n",
        "; 0 mended, 2 left",
    ] {
        assert!(text.stdout.contains(line), "{line}: {text:?}");
    }
    site.sql.execute("UPDATE faq_faq SET question = 'Fine now?'");
    expect_listed(&site.vecsync, &[]);
    assert_eq!(site.vecsync.run(&["verify"]).code, Some(0));
    assert_eq!(site.vecsync.terminate().code, Some(0));
    let nobody = site.vecsync.run(&["verify"]);
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    assert!(nobody.stderr.contains("no vecsync that keeps a store listens"), "{nobody:?}");
    site.vecsync.write_pipeline(PIPELINE);
}

#[test]
fn a_row_in_qdrant_is_whole_with_all_its_windows_or_stale() {
    let mut pair = Pair::prepare(Qdrant::start(), 0);
    pair.site.sql.execute(&table::insert(&[
        values(1, "Long?", &Dice::new(5).words(600), "c00"),
        values(2, "Short?", "An answer.", "c00"),
    ]));
    pair.site.vecsync.start_ready();
    pair.expect_served_by("qdrant", SOON);
    wait_until("both stores to be the same", SOON, || match verify(&pair.site.vecsync, &[]) {
        (ended, _) if ended.code == Some(0) => Ok(()),
        (ended, _) => Err(format!("{ended:?}")),
    });
    let points = || {
        let filter = Filter::must([Condition::matches("_vecsync.deleted", false)]);
        let (client, count) = (pair.qdrant.client(), CountPointsBuilder::new(&pair.alias).filter(filter).exact(true));
        pair.runtime.block_on(client.count(count)).unwrap().result.unwrap().count
    };
    let whole = points();
    assert!(whole > 3, "{whole} points");
    let second = Filter::must([Condition::matches("_vecsync.window", 1)]);
    let gone = DeletePointsBuilder::new(&pair.alias).points(second).wait(true);
    pair.runtime.block_on(pair.qdrant.client().delete_points(gone)).unwrap();
    let (ended, report) = verify(&pair.site.vecsync, &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert_eq!(of_store(&report, "qdrant"), (json!({"missing": [], "stale": [1], "extra": []}), 1), "{report}");
    assert_eq!(verify(&pair.site.vecsync, &["--repair"]).0.code, Some(0));
    assert_eq!(points(), whole);
}

#[test]
fn a_store_that_does_not_get_there_is_called_late() {
    let mut site = Site::prepare();
    let rows: Vec<String> = (1..=10).map(|id| values(id, "Q", &format!("Answer {id}"), "c00")).collect();
    site.sql.execute(&table::insert(&rows));
    site.vecsync.start_ready();
    site.expect_equal(SOON);
    wait_until("the slot to be gone", SOON, || {
        site.postgres.client().query("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
        site.postgres.client().try_execute(drop).map_err(|error| error.to_string())?;
        match site.postgres.client().value("SELECT count(*) FROM pg_replication_slots") {
            none if none == "0" => Ok(()),
            some => Err(some),
        }
    });
    site.sql.execute("UPDATE faq_faq SET answer = 'Never heard of.' WHERE id = 5");
    // Nothing says that what is missing is not on its way, so nothing is published.
    let text = site.vecsync.run_within(&["verify", "--repair"], CAUGHT_UP);
    assert_eq!(text.code, Some(3), "{text:?}");
    for line in ["9 the same, 0 missing, 1 stale, 0 extra\n", "  stale: 5\n", "the store is late", "Repair: 0 rows"] {
        assert!(text.stdout.contains(line), "{line}: {text:?}");
    }
    assert_eq!(site.vecsync.run(&["sync"]).code, Some(0));
    site.expect_equal(CAUGHT_UP);
    assert_eq!(site.vecsync.run(&["verify"]).code, Some(0));
}

#[test]
fn a_store_that_is_away_is_named_and_the_other_is_compared() {
    let mut pair = Pair::prepare(Qdrant::own(), 30);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.qdrant.kill();
    pair.expect_served_by("local", SOON);
    wait_until("what it holds not to be known", SOON, || {
        match pair.site.vecsync.metric("vecsync_store_points", r#"store="qdrant""#) {
            Some(points) if points.is_nan() => Ok(()),
            points => Err(format!("{points:?}")),
        }
    });
    let text = pair.site.vecsync.run(&["verify"]);
    assert_eq!(text.code, Some(1), "{text:?}");
    assert!(text.stderr.contains("verify: qdrant: "), "{text:?}");
    assert!(text.stdout.contains("local: 30 the same, 0 missing, 0 stale, 0 extra"), "{text:?}");
    assert!(text.stdout.contains("qdrant: not compared to the end: "), "{text:?}");
    assert_eq!(pair.site.vecsync.metric("vecsync_verify_last_success_timestamp_seconds", ""), None);
    assert_eq!(pair.site.vecsync.metric("vecsync_drift_rows", r#"store="qdrant""#), None);
    pair.qdrant.restart();
    wait_until("both to be the same", CAUGHT_UP, || match pair.site.vecsync.run(&["verify"]) {
        ended if ended.code == Some(0) => Ok(()),
        ended => Err(format!("{ended:?}")),
    });
}

#[test]
fn a_publication_that_leaves_rows_and_columns_out_is_honoured() {
    let mut site = Site::prepare();
    let version: u32 = site.sql.value("SHOW server_version_num").parse().unwrap();
    if version < 150_000 {
        return;
    }
    let rows: Vec<String> = (1..=30).map(|id| values(id, "Q", &format!("Answer {id}"), "c00")).collect();
    site.sql.execute(&table::insert(&rows));
    let columns = "id, question, answer, category, is_active, updated_at";
    site.postgres.execute("DROP PUBLICATION vecsync_faq");
    site.postgres.execute(&format!("CREATE PUBLICATION vecsync_faq FOR TABLE faq_faq ({columns}) WHERE (id <= 20)"));
    site.vecsync.start_ready();
    let (ended, report) = verify(&site.vecsync, &[]);
    assert_eq!((ended.code, &report["rows"]), (Some(0), &json!(20)), "{ended:?}");
    assert_eq!(of_store(&report, "local"), (nothing(), 20), "{report}");
}

#[test]
fn over_kafka_who_keeps_the_store_compares_and_who_captures_repairs() {
    let cluster = Cluster::prepare(Kafka::shared(), 300);
    let capture = cluster.started("capture");
    let _embed = cluster.started("embed");
    let mut serve = cluster.started("serve");
    // The same folder as capture's, each with its own door.
    let mut beside = cluster.process("index");
    beside.set("VECSYNC_DATA_DIR", capture.path("data"));
    beside.start();
    serve.wait_ready();
    wait_until("the other mirror", CAUGHT_UP, || match verify(&beside, &[]) {
        (ended, _) if ended.code == Some(0) => Ok(()),
        (ended, _) => Err(format!("{ended:?}")),
    });
    let writer = Writer::start(&cluster.site.postgres, 9, Duration::from_millis(20));
    let (ended, report) = verify(&serve, &[]);
    writer.finish();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(of_store(&report, "local").0, nothing(), "{report}");

    let (ended, _) = verify(&serve, &["--repair"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("repair takes the capture") && ended.stderr.contains("vecsync sync"), "{ended:?}");
    let (ended, report) = verify(&beside, &["--repair"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(report["repair"], json!({"published": 0, "removed": 0, "refused": [], "error": null}), "{report}");
}
