//! A change of model or template: what was searchable stays so, and one day the new one answers. Never a mixture.

use serde_json::Value;

use crate::kafka::{CAUGHT_UP, Cluster};
use crate::qdrant_run::{Pair, SOON};
use crate::support::http::escape;
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::support::table::{category, insert, values};
use crate::support::vecsync::{PIPELINE, Vecsync};

/// Without a title a passage is the whole text, and its own vector the query's.
const BARE: &str = r#"name = "faq"
[source]
table = "public.faq_faq"
[document]
text = "{{ answer }}"
payload = ["id", "question", "answer", "category", "updated_at"]
[index]
filters = ["category", "id"]
"#;
const ROWS: i64 = 60;

fn answer(id: i64) -> String {
    format!("To change setting {id}, open the page of your account and choose entry {} from the list.", id * 7)
}

fn rows() -> String {
    let rows: Vec<_> =
        (1..=ROWS).map(|id| values(id, &format!("Question {id}?"), &answer(id), &category(id as usize))).collect();
    insert(&rows)
}

/// A row that takes seconds to embed, and holds up those behind it.
fn slow(id: i64) -> String {
    long(id, 1_500)
}

fn long(id: i64, sentences: u64) -> String {
    let text: String = (0..sentences).map(|n| format!("Sentence {n} is about part {}. ", n * 31 % 977)).collect();
    insert(&[values(id, "Long?", &text, "c49")])
}

/// Equal to the table, without the row of many windows.
#[track_caller]
fn expect_equal(site: &mut Site) {
    site.sql.execute("DELETE FROM faq_faq WHERE id = 500");
    site.expect_equal(CAUGHT_UP);
}

/// Asks for a row by its own words: what it gives, or what is wrong with that.
fn asked(vecsync: &mut Vecsync, id: i64) -> Result<Value, String> {
    let path = format!("/search?limit=1&q={}", escape(&answer(id)));
    let found = vecsync.http.get(&path).map_err(|error| error.to_string())?;
    if found.status != 200 {
        return Err(format!("{} {}", found.status, found.body));
    }
    let found = found.json();
    let hit = &found["results"][0];
    // Another model's vector of the same words gives 0.9 to 0.99.
    match hit["score"].as_f64() {
        Some(score) if hit["id"] == id && (score - 1.0).abs() < 1e-4 => Ok(found),
        _ => Err(format!("row {id} asked for: {found}")),
    }
}

/// Asks all the time until an answer is not degraded; gives how often it was before.
#[track_caller]
fn ask_until_whole(vecsync: &mut Vecsync) -> Vec<Value> {
    let (mut degraded, mut id) = (vec![], 0);
    wait_until("the new revision to answer", CAUGHT_UP, || {
        id = id % ROWS + 1;
        let found = asked(vecsync, id).unwrap_or_else(|fault| panic!("after {} answers: {fault}", degraded.len()));
        if found["degraded"] == false {
            return Ok(());
        }
        degraded.push(found);
        Err("it is degraded".to_owned())
    });
    for id in 1..=ROWS {
        let found = asked(vecsync, id).unwrap();
        assert_eq!(found["degraded"], false, "{found}");
    }
    degraded
}

/// The generation in Qdrant that the alias names.
#[track_caller]
fn named(vecsync: &mut Vecsync) -> u64 {
    wait_until("Qdrant to be looked at", SOON, || {
        let health = vecsync.http.get("/health/qdrant/").map_err(|error| error.to_string())?.json();
        health["collection"]["generation"].as_u64().ok_or_else(|| health.to_string())
    })
}

fn mirrors(vecsync: &Vecsync) -> Vec<String> {
    let names = std::fs::read_dir(vecsync.path("data/mirror")).unwrap().map(|entry| entry.unwrap());
    let folders = names.filter(|entry| entry.path().is_dir());
    folders.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Ready, whatever it is that answers.
#[track_caller]
fn start_answering(vecsync: &mut Vecsync) {
    vecsync.start();
    wait_until("vecsync to answer", SOON, || asked(vecsync, 1).map(|_| ()));
}

#[test]
fn the_revision_before_answers_with_its_model_until_the_new_one_is_whole() {
    let mut site = Site::prepare();
    site.vecsync.write_pipeline(BARE);
    site.sql.execute(&slow(500));
    site.sql.execute(&rows());
    site.vecsync.start_ready();
    ask_until_whole(&mut site.vecsync);
    assert_eq!(site.vecsync.terminate().code, Some(0));
    let before = mirrors(&site.vecsync);
    assert_eq!(before.len(), 1, "{before:?}");

    site.vecsync.set("VECSYNC_MODEL", "fp32");
    start_answering(&mut site.vecsync);
    let health = site.vecsync.http.get("/health/detailed/").unwrap().json();
    let local = &health["components"]["local"];
    assert_eq!((health["status"].as_str(), local["status"].as_str()), (Some("degraded"), Some("degraded")), "{health}");
    assert!(local["error"].as_str().is_some_and(|error| error.contains("until the new one is whole")), "{health}");
    assert_eq!(site.vecsync.http.get("/health/ready/").unwrap().status, 200);
    // Nothing was written since, so its answers are as fresh as ever, and it knows.
    wait_until("the age of the answers to be known", SOON, || match asked(&mut site.vecsync, 3)? {
        found if found["staleness_ms"].as_u64().is_some_and(|ms| ms < 10_000) => Ok(()),
        found => Err(found.to_string()),
    });
    // What is begun goes on after a kill, and the same answers.
    site.vecsync.kill();
    start_answering(&mut site.vecsync);
    site.sql.execute(&insert(&[values(900, "New?", "Written while the new revision is being filled.", "c01")]));
    let degraded = ask_until_whole(&mut site.vecsync);
    assert!(degraded.len() > 3 && degraded.iter().all(|found| found["served_by"] == "local"), "{}", degraded.len());
    expect_equal(&mut site);
    site.sql.execute(&slow(500));
    let after = mirrors(&site.vecsync);
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");

    // And back: its vectors are in the cache, and the way is the same.
    assert_eq!(site.vecsync.terminate().code, Some(0));
    site.vecsync.set("VECSYNC_MODEL", "int8");
    start_answering(&mut site.vecsync);
    ask_until_whole(&mut site.vecsync);
    expect_equal(&mut site);
    assert_eq!(site.vecsync.terminate().code, Some(0));
}

#[test]
fn mirror_collection_and_model_are_switched_together() {
    let mut pair = Pair::prepare(Qdrant::start(), 0);
    let vecsync = &mut pair.site.vecsync;
    vecsync.write_pipeline(BARE);
    pair.site.sql.execute(&slow(500));
    pair.site.sql.execute(&rows());
    vecsync.start_ready();
    pair.expect_served_by("qdrant", CAUGHT_UP);
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));

    let vecsync = &mut pair.site.vecsync;
    vecsync.set("VECSYNC_MODEL", "fp32");
    start_answering(vecsync);
    assert_eq!(named(vecsync), 1);
    let degraded = ask_until_whole(vecsync);
    assert!(degraded.len() > 3 && degraded.iter().all(|found| found["served_by"] == "local"), "{}", degraded.len());
    // The first answer of the new revision is Qdrant's already.
    assert_eq!(asked(vecsync, 5).unwrap()["served_by"], "qdrant");
    assert_eq!(named(vecsync), 2);
    pair.site.sql.execute("DELETE FROM faq_faq WHERE id = 500");
    pair.expect_equal(SOON);
    pair.expect_searched(SOON);
}

#[test]
fn a_qdrant_that_is_away_does_not_hold_the_new_revision_up() {
    let mut pair = Pair::prepare(Qdrant::own(), 0);
    pair.site.vecsync.write_pipeline(BARE);
    pair.site.sql.execute(&rows());
    pair.site.vecsync.start_ready();
    pair.expect_served_by("qdrant", CAUGHT_UP);
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
    pair.qdrant.kill();
    pair.site.vecsync.write_pipeline(&BARE.replace("{{ answer }}", "{{ answer }} {{ category }}"));
    pair.site.vecsync.start_ready();
    wait_until("the new revision to answer", SOON, || match pair.site.vecsync.log() {
        log if log.contains("until the new one is whole") && log.contains(" answers rows=") => Ok(()),
        log => Err(log),
    });
    pair.qdrant.restart();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
}

#[test]
fn a_load_that_was_never_whole_stands_in_for_nobody() {
    let mut site = Site::prepare();
    site.sql.execute(&rows());
    site.sql.execute(&slow(500));
    site.vecsync.start();
    wait_until("some rows to be there", SOON, || {
        let local = site.vecsync.http.get("/health/detailed/").map_err(|error| error.to_string())?.json();
        let details = &local["components"]["local"]["details"];
        match details["rows"].as_u64() {
            Some(rows) if rows > 0 && details["loaded"] == false => Ok(()),
            _ => Err(details.to_string()),
        }
    });
    site.vecsync.kill();
    site.vecsync.write_pipeline(&PIPELINE.replace("{{ answer }}", "{{ answer }} ({{ category }})"));
    site.vecsync.start_ready();
    assert!(!site.vecsync.log().contains("until the new one is whole"), "{}", site.vecsync.log());
    expect_equal(&mut site);
    assert_eq!(mirrors(&site.vecsync).len(), 1);
}

#[test]
fn over_kafka_it_follows_as_long_as_somebody_embeds_for_it() {
    // Two machines: one captures, embeds and serves; the other serves.
    let mut cluster = Cluster::prepare(Kafka::shared(), 0);
    let mut server = cluster.process("serve");
    cluster.site.vecsync.write_pipeline(BARE);
    cluster.site.sql.execute(&rows());
    server.write_pipeline(BARE);
    let site = &mut cluster.site;
    site.vecsync.start_ready();
    server.start_ready();
    assert_eq!(server.terminate().code, Some(0));
    // The server gets its new settings first.
    server.write_pipeline(&BARE.replace("{{ answer }}", "{{ answer }} {{ category }}"));
    start_answering(&mut server);
    site.sql.execute(&insert(&[values(77, "Late?", &answer(77), "c03")]));
    wait_until("the change to be found in the revision before", SOON, || match asked(&mut server, 77)? {
        found if found["degraded"] == true && found["staleness_ms"].as_u64().is_some_and(|ms| ms < 20_000) => Ok(()),
        found => Err(found.to_string()),
    });
    assert_eq!(site.vecsync.terminate().code, Some(0));
    site.vecsync.write_pipeline(&BARE.replace("{{ answer }}", "{{ answer }} {{ category }}"));
    site.vecsync.start();
    wait_until("the new revision to answer", CAUGHT_UP, || {
        let found = server.http.get("/search?limit=1&q=account").map_err(|error| error.to_string())?.json();
        if found["degraded"] == false { Ok(()) } else { Err(found.to_string()) }
    });
    wait_until("the mirror before to be removed", SOON, || match mirrors(&server) {
        left if left.len() == 1 => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

#[test]
fn over_kafka_old_heartbeats_make_no_index_whole() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 0);
    let vecsync = &mut cluster.site.vecsync;
    vecsync.write_pipeline(BARE);
    vecsync.start_ready();
    // Heartbeats come to stand before all rows, and rows that take their time before most of them.
    for id in 1_000..1_032 {
        cluster.site.sql.execute(&long(id, 120));
    }
    cluster.site.sql.execute(&rows());
    let vecsync = &mut cluster.site.vecsync;
    wait_until("all rows to be there", CAUGHT_UP, || (1..=ROWS).try_for_each(|id| asked(vecsync, id).map(|_| ())));
    ask_until_whole(vecsync);
    assert_eq!(vecsync.terminate().code, Some(0));
    vecsync.set("VECSYNC_MODEL", "fp32");
    start_answering(vecsync);
    let degraded = ask_until_whole(vecsync);
    assert!(!degraded.is_empty());
    let mut fresh = cluster.process("serve");
    fresh.set("VECSYNC_MODEL", "fp32");
    fresh.write_pipeline(BARE);
    fresh.start_ready();
    ask_until_whole(&mut fresh);
}
