//! All documents out of several tables read anew: beside single changes, after a kill, and from the beginning for who asks for it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::joined::{A_FAN_OUT, CAUGHT_UP, MANY, QUERY, WATCH, embedded, fill_alike, pipeline, prepare, start_loaded};
use crate::support::process::wait_until;
use crate::support::site::Site;

/// Keys that a load has read, how many it expects, and whether it is over.
fn progress(site: &mut Site) -> Option<(u64, Value, bool)> {
    let source = &site.http.get("/health/detailed/").ok()?.json()["components"]["source"]["details"];
    Some((
        source["snapshot_rows"].as_u64()?,
        source["snapshot_rows_expected"].clone(),
        source["snapshot_complete"] == true,
    ))
}

/// Waits until a load is under way that has read some.
#[track_caller]
fn wait_for_load(site: &mut Site) {
    wait_until("a load to be under way", CAUGHT_UP, || match progress(site) {
        Some((1.., _, false)) => Ok(()),
        progress => Err(format!("{progress:?}")),
    });
}

#[test]
fn a_load_goes_on_beside_single_changes_after_a_kill_and_a_sync_that_comes_into_it_begins_it_anew() {
    let mut site = prepare();
    // Nobody watches the tags: only a reading finds another name.
    let [category, _, links] = WATCH.split_inclusive("[[source.watch]]").skip(1).collect::<Vec<_>>()[..] else {
        panic!("{WATCH}")
    };
    let watch = format!("[[source.watch]]{category}{links}");
    site.vecsync.write_pipeline(&pipeline(QUERY, &watch));
    start_loaded(&mut site);
    site.sql.execute("INSERT INTO faq_faq_tags (faq_id, tag_id) VALUES (1, 1)");
    let tagged = |site: &mut Site, id: i64, tag: &str| match site.vecsync.row_if_answered(id).unwrap_or_default() {
        row if row["tags"] == json!([tag]) => Ok(()),
        row => Err(row.to_string()),
    };
    wait_until("the tag", CAUGHT_UP, || tagged(&mut site, 1, "tagged"));

    let mut syncing = site.vecsync.spawn(&["sync"]);
    wait_for_load(&mut site);
    site.vecsync.kill();
    assert!(!syncing.wait().expect("it ends").success(), "a sync was over too soon");
    site.vecsync.start();
    wait_for_load(&mut site);
    let mut slowest = Duration::ZERO;
    for id in 2..=4 {
        let begun = Instant::now();
        site.sql.execute(&format!("INSERT INTO faq_faq_tags (faq_id, tag_id) VALUES ({id}, 1)"));
        wait_until("a single change to be found", CAUGHT_UP, || tagged(&mut site, id, "tagged"));
        slowest = slowest.max(begun.elapsed());
    }
    let (read, expected, is_over) = progress(&mut site).expect("it answers");
    eprintln!("the slowest of three took {slowest:?}; {read} of {expected} documents were read by then");
    assert!(!is_over, "the load was over before anything was changed beside it");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!(expected, json!(MANY));

    // The first ones were read before: a sync that begins now is to read them again.
    site.sql.execute("UPDATE faq_tag SET name = 'unseen'");
    let synced = site.run_within(&["sync", "--json"], A_FAN_OUT);
    assert_eq!(synced.code, Some(0), "{synced:?}");
    for id in 1..=4 {
        assert_eq!(tagged(&mut site, id, "unseen"), Ok(()));
    }
    assert_eq!(embedded(&mut site), 0.0, "tags are in no text");
}

#[test]
fn how_many_documents_there_are_is_counted_or_not_said() {
    let mut site = prepare();
    fill_alike(&site.sql, 3_000);
    // As if it had grown since: the server knows nothing of it, and nobody analyses it meanwhile.
    site.sql.execute(
        "ALTER TABLE faq_faq SET (autovacuum_enabled = false); CREATE TABLE other (LIKE faq_faq INCLUDING ALL);
         INSERT INTO other SELECT * FROM faq_faq; DROP TABLE faq_faq; ALTER TABLE other RENAME TO faq_faq;
         ALTER TABLE faq_faq SET (autovacuum_enabled = false);
         GRANT SELECT ON faq_faq TO vecsync; ALTER PUBLICATION vecsync_faq ADD TABLE faq_faq",
    );
    assert_eq!(site.sql.value("SELECT reltuples FROM pg_class WHERE oid = 'faq_faq'::regclass"), "-1");
    site.vecsync.start();
    let mut seen = vec![];
    wait_until("all to be loaded", A_FAN_OUT, || {
        let now = progress(&mut site);
        seen.extend(now.clone().map(|(_, expected, _)| expected));
        match now {
            Some((3_000, _, true)) => Ok(()),
            now => Err(format!("{now:?}")),
        }
    });
    seen.dedup();
    assert!(seen.iter().all(|expected| *expected == json!(3_000) || expected.is_null()), "{seen:?}");
    assert_eq!(seen.last(), Some(&json!(3_000)), "{seen:?}");
}
