//! The same ground on every version of PostgreSQL that is supported: what a server can do to a table, and faults beside it.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::joined;
use crate::stream::{expect, expect_gone};
use crate::support::gate::Gate;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::{self, category, values};
use crate::support::vecsync::Vecsync;

const SOON: Duration = Duration::from_secs(30);
/// Rows of one COPY: the server writes them as one record, so they share an LSN.
const COPIED: u64 = 6;
/// Transactions of one row whose commits follow each other with nothing between.
const ADJACENT: u64 = 4;

/// One test a version, so that two of them can run at the same time.
macro_rules! on_every_version {
    ($($test:ident: $check:ident($version:literal);)*) => { $(#[test] fn $test() { $check($version); })* };
}

on_every_version! {
    on_14_everything_is_followed: ground(14);
    on_15_everything_is_followed: ground(15);
    on_17_everything_is_followed: ground(17);
    on_18_everything_is_followed: ground(18);
    on_14_documents_of_several_tables_follow: documents(14);
    on_17_documents_of_several_tables_follow: documents(17);
    on_18_documents_of_several_tables_follow: documents(18);
    on_14_a_kill_at_any_row_skips_and_doubles_none: rows_at_one_place(14);
    on_15_a_kill_at_any_row_skips_and_doubles_none: rows_at_one_place(15);
    on_17_a_kill_at_any_row_skips_and_doubles_none: rows_at_one_place(17);
    on_18_a_kill_at_any_row_skips_and_doubles_none: rows_at_one_place(18);
}

fn site_of(version: u16) -> Site {
    let site = Site::prepare_version(version, &[("max_prepared_transactions", "5")]);
    let number: u16 = site.sql.value("SHOW server_version_num").parse::<u32>().map(|n| (n / 10_000) as u16).unwrap();
    assert_eq!(number, version);
    site
}

fn ground(version: u16) {
    everything_is_followed(&mut site_of(version));
}

fn documents(version: u16) {
    joined::each_change_is_followed(joined::prepare_on(site_of(version)));
}

/// Fills the table, starts vecsync, and walks over the ground. Needs `max_prepared_transactions`.
pub fn everything_is_followed(site: &mut Site) {
    site.sql.execute("ALTER TABLE faq_faq ALTER COLUMN answer SET STORAGE EXTERNAL");
    let rows: Vec<String> = (1..=30).map(|id| values(id, "Q", &format!("Row {id}"), &category(id as usize))).collect();
    site.sql.execute(&table::insert(&rows));
    site.vecsync.start_ready();
    changes(site);
    transactions(site);
    site.expect_equal(SOON);
    faults(site);
    site.expect_equal(SOON);
}

/// Insert, update, delete, a changed key, an unchanged large answer of 100 kB, TRUNCATE and inserts in one transaction.
fn changes(site: &mut Site) {
    let long = "Elephants remember the way. ".repeat(4_000);
    site.sql.execute(&table::insert(&[values(40, "Elephants?", &long, "c01")]));
    site.sql.execute("UPDATE faq_faq SET answer = 'Changed' WHERE id = 2; DELETE FROM faq_faq WHERE id = 3");
    site.sql.execute("UPDATE faq_faq SET id = 104 WHERE id = 4");
    expect(site, 40, &long);
    expect(site, 2, "Changed");
    expect_gone(site, 3);
    expect(site, 104, "Row 4");
    expect_gone(site, 4);
    site.sql.execute("UPDATE faq_faq SET question = 'Do they forget?' WHERE id = 40");
    let row = wait_until("the new question", SOON, || match site.row(40) {
        Some(row) if row["question"] == "Do they forget?" => Ok(row),
        row => Err(format!("{:.100}", row.unwrap_or_default()["question"])),
    });
    assert!(row["answer"] == long.as_str(), "the large answer is {:.100}", row["answer"]);
    site.sql.execute("UPDATE faq_faq SET id = 41 WHERE id = 40");
    expect(site, 41, &long);
    expect_gone(site, 40);
    let kept: Vec<String> =
        (20..=50).map(|id| values(id, "Q", &format!("After {id}"), &category(id as usize))).collect();
    site.sql.execute(&format!("BEGIN; TRUNCATE faq_faq; {}; COMMIT", table::insert(&kept)));
    expect(site, 50, "After 50");
    expect_gone(site, 104);
}

/// Savepoints, two phases, messages of applications.
fn transactions(site: &mut Site) {
    let row = |id: i64, answer: &str| table::insert(&[values(id, "Q", answer, "c02")]);
    site.sql.execute(&format!(
        "BEGIN; {}; SAVEPOINT a; {}; UPDATE faq_faq SET answer = 'Ghost' WHERE id = 20; ROLLBACK TO a; {}; SAVEPOINT b; {};
         RELEASE b; COMMIT",
        row(60, "Before"),
        row(61, "Ghost"),
        row(62, "Behind"),
        row(63, "Released")
    ));
    expect(site, 63, "Released");
    expect(site, 62, "Behind");
    // Prepared, and others go past it; a restart does not lose it.
    site.sql.execute(&format!("BEGIN; {}; PREPARE TRANSACTION 'kept'", row(64, "Prepared")));
    site.sql.execute(&format!(
        "BEGIN; {}; DELETE FROM faq_faq WHERE id = 20; PREPARE TRANSACTION 'gone'",
        row(65, "Ghost")
    ));
    for transactional in [true, false] {
        let large = "repeat('A message. ', 20000)";
        site.sql.query(&format!("SELECT pg_logical_emit_message({transactional}, 'vecsync', {large})"));
    }
    site.sql.execute("BEGIN; SELECT pg_logical_emit_message(true, 'vecsync', 'Given up'); ROLLBACK");
    site.sql.execute(&row(66, "Past both"));
    expect(site, 66, "Past both");
    assert_eq!((site.row(64), site.row(65)), (None, None));
    site.vecsync.kill();
    site.vecsync.start_ready();
    site.sql.execute("COMMIT PREPARED 'kept'");
    site.sql.execute("ROLLBACK PREPARED 'gone'");
    expect(site, 64, "Prepared");
    assert!(site.row(65).is_none() && site.row(20).is_some());
}

/// vecsync is stopped, then PostgreSQL crashes with a transaction open.
fn faults(site: &mut Site) {
    assert_eq!(site.vecsync.terminate().code, Some(0));
    site.sql
        .execute("UPDATE faq_faq SET answer = 'While it was down' WHERE id = 21; DELETE FROM faq_faq WHERE id = 22");
    site.vecsync.start_ready();
    expect(site, 21, "While it was down");
    site.sql.execute("BEGIN");
    site.sql.execute("UPDATE faq_faq SET answer = 'Ghost' WHERE id = 30");
    site.postgres.execute("UPDATE faq_faq SET id = id + 500 WHERE id = 51; DELETE FROM faq_faq WHERE id = 24");
    site.postgres.crash();
    site.postgres.launch();
    site.sql = site.postgres.client();
    site.sql.execute("UPDATE faq_faq SET answer = 'After the crash' WHERE id = 23");
    expect(site, 23, "After the crash");
    expect_gone(site, 24);
    assert_eq!(site.vecsync.ended(), None);
}

/// Several rows have one LSN, and one transaction ends where the next one begins: vecsync is killed at each row.
fn rows_at_one_place(version: u16) {
    let mut site = site_of(version);
    let gate = Gate::before(&mut site);
    site.vecsync.start_ready();
    site.vecsync.kill();
    site.sql.query("SELECT pg_create_logical_replication_slot('watch', 'pgoutput')");
    let file = site.postgres.data().join("rows").display().to_string();
    site.sql.execute(&format!(
        "COPY (SELECT n, 'Q', 'Row ' || to_char(n, 'FM00'), 'c00' FROM generate_series(1, {COPIED}) n) TO '{file}';
         COPY faq_faq (id, question, answer, category) FROM '{file}'"
    ));
    let sessions: Vec<_> = (1..=ADJACENT).map(|_| site.postgres.client()).collect();
    for (session, id) in sessions.iter().zip(COPIED as i64 + 1..) {
        session.execute("BEGIN");
        session.execute(&table::insert(&[values(id, "Q", &format!("Row {id:02}"), "c00")]));
    }
    sessions.iter().for_each(|session| session.execute("COMMIT"));
    expect_shared_places(&site);

    let all = COPIED + ADJACENT;
    for rows in 1..=all {
        gate.hold_behind(Some(format!("Row {rows:02}")));
        site.vecsync.start();
        wait_until(&format!("row {rows} to be published"), SOON, || {
            assert_eq!(site.vecsync.ended(), None);
            match site.vecsync.metric("vecsync_events_total", r#"stage="capture""#) {
                // Those before it are in the log and not counted, but for one whose append the kill came before.
                Some(published) if published >= 1.0 => Ok(()),
                published => Err(format!("{published:?}")),
            }
        });
        site.vecsync.kill();
    }
    gate.hold_behind(None);
    site.vecsync.start_ready();
    expect(&mut site, all as i64, &format!("Row {all:02}"));
    assert_eq!(records(&site.vecsync), all, "some are missing, or came twice");
    site.expect_equal(SOON);
}

/// The other slot shows what the server sends.
fn expect_shared_places(site: &Site) {
    let peeked = site.sql.query(
        "SELECT lsn, encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('watch', NULL, NULL,
         'proto_version', '1', 'publication_names', 'vecsync_faq')",
    );
    let messages: Vec<(&str, &str)> = peeked.iter().map(|row| (row.get(0).unwrap(), row.get(1).unwrap())).collect();
    let inserts: Vec<&str> = messages.iter().filter(|(_, data)| data.starts_with("49")).map(|(lsn, _)| *lsn).collect();
    assert_eq!(inserts.len() as u64, COPIED + ADJACENT);
    assert!(inserts[..COPIED as usize].iter().all(|lsn| *lsn == inserts[0]), "{inserts:?}");
    // A commit: kind, flags, its LSN, its end. A begin: kind, the LSN of its commit.
    let ends = messages.iter().filter(|(_, data)| data.starts_with("43")).map(|(_, data)| &data[20..36]);
    let begins = messages.iter().filter(|(_, data)| data.starts_with("42")).map(|(_, data)| &data[2..18]).skip(1);
    assert!(
        ends.zip(begins).any(|(end, begin)| end == begin),
        "no transaction begins where another ends: {messages:?}"
    );
}

/// Records that were ever appended to `changes`, as a backup counts them.
fn records(vecsync: &Vecsync) -> u64 {
    let ended = vecsync.run(&["backup", &vecsync.path("counted")]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let manifest = fs::read_to_string(vecsync.path("counted/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let ends = manifest["log"]["held"]["changes_ends"].as_array().unwrap_or_else(|| panic!("{manifest}"));
    ends.iter().map(|end| end.as_u64().unwrap()).sum()
}
