//! The database is another one than the log was filled from: refused by name, until `vecsync sync`.

use std::time::Duration;

use crate::support::postgres::Postgres;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::{insert, values};
use crate::writer::fill;

const CAUGHT_UP: Duration = Duration::from_secs(60);
const ROWS: i64 = 30;

/// vecsync says this in health, goes on answering, writes nothing into the database, and is brought back by a sync.
#[track_caller]
fn refused_until_sync(site: &mut Site, wanted: &[&str]) {
    site.vecsync.start_ready();
    wait_until("health to say why it is refused", CAUGHT_UP, || {
        let answer = site.vecsync.get("/health/detailed/");
        let error = answer.json()["components"]["source"]["error"].as_str().unwrap_or_default().to_owned();
        let told = wanted.iter().chain(&["vecsync sync"]).all(|part| error.contains(part));
        if told && answer.json()["status"] == "degraded" { Ok(()) } else { Err(answer.body) }
    });
    assert_eq!(
        site.search("anything", "&min_score=-1&limit=100")["results"].as_array().map(Vec::len),
        Some(ROWS as usize)
    );
    let slots =
        site.sql.value("SELECT coalesce(string_agg(slot_name || ' ' || active, ' '), '') FROM pg_replication_slots");
    assert!(!slots.contains("true"), "it streams all the same: {slots}");
    let synced = site.vecsync.run(&["sync"]);
    assert_eq!(synced.code, Some(0), "{synced:?}");
    site.expect_equal(CAUGHT_UP);
}

fn filled() -> Site {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    site
}

#[test]
fn another_cluster_at_the_same_address_is_refused_by_its_identifier() {
    let mut site = filled();
    assert_eq!(site.vecsync.terminate().code, Some(0));
    let (identifier, port) = (site.sql.value("SELECT system_identifier FROM pg_control_system()"), site.postgres.port);
    site.postgres.stop();
    site.postgres = Postgres::another_at(port);
    site.sql = site.postgres.client();
    let other = site.sql.value("SELECT system_identifier FROM pg_control_system()");
    assert_ne!(identifier, other);
    site.sql.execute(&insert(&[values(1, "Another?", "Another cluster's row", "c00")]));
    refused_until_sync(&mut site, &["another one", &identifier, &other]);
    assert_eq!(site.row(2), None);
}

#[test]
fn a_server_that_was_restored_from_an_older_copy_is_refused() {
    let mut site = filled();
    assert_eq!(site.vecsync.terminate().code, Some(0));
    site.postgres.stop();
    let copy = site.postgres.copy_of_data();
    site.postgres.launch();
    site.sql = site.postgres.client();
    site.vecsync.start_ready();
    // What the copy will not have.
    site.sql.execute("UPDATE faq_faq SET answer = 'Lost by the restore' WHERE id <= 10; SELECT pg_switch_wal()");
    site.sql.execute("DELETE FROM faq_faq WHERE id = 11");
    site.sql.execute(&insert(&[values(1_000, "New?", "Lost, too", "c00")]));
    site.expect_equal(CAUGHT_UP);
    assert_eq!(site.vecsync.terminate().code, Some(0));
    site.postgres.stop();
    site.postgres.put_back(copy);
    site.postgres.launch();
    site.sql = site.postgres.client();
    refused_until_sync(&mut site, &["restored from an older backup"]);
    assert_ne!(site.row(1).expect("indexed")["answer"], "Lost by the restore");
}

#[test]
fn a_slot_that_was_made_anew_by_somebody_else_is_refused() {
    let mut site = filled();
    assert_eq!(site.vecsync.terminate().code, Some(0));
    site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
    site.sql.execute("UPDATE faq_faq SET answer = 'Unheard of' WHERE id = 3");
    site.sql.query("SELECT pg_create_logical_replication_slot('vecsync_faq', 'pgoutput')");
    refused_until_sync(&mut site, &["vecsync_faq", "past"]);
    assert_eq!(site.row(3).expect("indexed")["answer"], "Unheard of");
}

#[test]
fn a_large_transaction_takes_little_memory_and_what_was_rolled_back_in_it_never_appears() {
    const LARGE: u64 = 200_000;
    const MEMORY_MAX_KB: u64 = 256 << 10;
    let mut site = filled();
    site.sql.execute("CREATE TABLE kept (id bigint)");
    let (idle_kb, _) = site.memory_kb();
    // Not active: nothing but the log has work with them. Of each hundred rows half are taken back.
    site.sql.execute(&format!(
        "DO $$BEGIN
           FOR part IN 1..{LARGE} / 100 LOOP
             INSERT INTO faq_faq (id, question, answer, category, is_active)
               SELECT 1000 + part * 100 + n, 'Q', 'Kept ' || n, 'c00', false FROM generate_series(1, 50) n;
             BEGIN
               INSERT INTO faq_faq (id, question, answer, category, is_active)
                 SELECT 1000 + part * 100 + n, 'Q', 'Taken back ' || n, 'c01', true FROM generate_series(51, 100) n;
               RAISE unique_violation;
             EXCEPTION WHEN unique_violation THEN NULL;
             END;
           END LOOP;
         END$$"
    ));
    site.sql.execute(&insert(&[values(900, "After?", "After all of it", "c02")]));
    wait_until("the row behind it", CAUGHT_UP, || site.row(900).map(drop).ok_or_else(|| "it is not there".to_owned()));
    let (_, peak_kb) = site.memory_kb();
    eprintln!("idle {idle_kb} kB, at most {peak_kb} kB");
    assert!(peak_kb < idle_kb + MEMORY_MAX_KB, "{idle_kb} kB idle, {peak_kb} kB at most");
    let events = site.metric("vecsync_events_total", r#"stage="capture",op="create""#).unwrap_or(0.0);
    assert!(events <= (LARGE / 2 + 100) as f64, "{events} rows were published, {} were kept", LARGE / 2);
    site.expect_equal(CAUGHT_UP);
    let verified = site.vecsync.run(&["verify"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}
