//! Two builds of vecsync on one table without a query, in turns in one run: what the newer one makes of the older one's rates, and of
//! the processor's time that it took. Says nothing of embedding: no row is embedded but a few texts of the beginning.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Figures, percentile, sorted};
use crate::support::postgres::{PASSWORD, USER};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::vecsync::Vecsync;

/// Rows that are not active, so that none of them is embedded, and their updates in one transaction.
const ROWS: usize = 200_000;
/// Rows that are found, and how many texts they have: known ones, but for the first load.
const FOUND: usize = 25_000;
const TEXTS: usize = 100;
/// Transactions of one row, one behind the other.
const COMMITS: usize = 50_000;
/// Older, newer, newer, older: what grows slower in the course of the run meets both alike.
const TURNS: [bool; 8] = [false, true, true, false, false, true, true, false];
/// Between two looks at a counter.
const LOOK: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(300);
/// What is measured, in the order of `Turn`.
const PARTS: [&str; 4] = ["load", "transaction", "commits", "to the index"];

/// Rows a second, and seconds of the processor for a million rows, of each of `PARTS`.
type Turn = [(f64, f64); 4];

pub fn measure(before: &Path) -> Figures {
    let site = Site::prepare_with(&[("max_wal_size", "8GB"), ("fsync", "off")]);
    site.sql.execute(&format!(
        "INSERT INTO faq_faq (id, question, answer, category, is_active) SELECT n, 'Question ' || n % {TEXTS} || '?',
             'Answer ' || n % {TEXTS} || ': ' || repeat('read the manual and try again, ', 1 + n % 4), 'c0', n <= {FOUND}
             FROM generate_series(1, {ROWS} + {FOUND}) n;
         ALTER TABLE faq_faq SET (autovacuum_enabled = off);
         CREATE PROCEDURE one_by_one(round int) LANGUAGE plpgsql AS $$ BEGIN FOR n IN 1 .. {COMMITS} LOOP
             UPDATE faq_faq SET category = 's' || round WHERE id = {FOUND} + n; COMMIT; END LOOP; END $$;"
    ));
    let mut site = site;
    let mut turns: [Vec<Turn>; 2] = [vec![], vec![]];
    for (round, is_newer) in TURNS.into_iter().enumerate() {
        site.sql.execute("VACUUM FULL faq_faq");
        site.sql.execute("CHECKPOINT");
        site.vecsync = Vecsync::prepare(&site.postgres.url(USER, PASSWORD));
        if !is_newer {
            site.vecsync.program(before);
        }
        let turn = turn(&mut site, round);
        let told =
            PARTS.iter().zip(turn).map(|(part, (rate, cpu))| format!("{part} {rate:.0}/s, {cpu:.1} s cpu a million"));
        eprintln!("single, {} build: {}", if is_newer { "this" } else { "older" }, told.collect::<Vec<_>>().join(", "));
        turns[usize::from(is_newer)].push(turn);
        site.vecsync.kill();
        let slot = "SELECT count(*) FROM pg_replication_slots WHERE active";
        wait_until("the slot to be free", LIMIT, || match site.sql.value(slot).as_str() {
            "0" => Ok(()),
            _ => Err("it is active".to_owned()),
        });
        site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
    }
    let [older, newer] = turns;
    let of = |which: &dyn Fn(&Turn) -> f64| {
        // Each with its neighbour: the machine is alike for both.
        let ratios = newer.iter().zip(&older).map(|(newer, older)| which(newer) / which(older)).collect();
        percentile(&sorted(ratios), 0.5)
    };
    let median =
        |turns: &[Turn], place: usize| percentile(&sorted(turns.iter().map(|turn| turn[place].0).collect()), 0.5);
    vec![
        ("load_of_before", of(&|turn| turn[0].0)),
        ("transaction_of_before", of(&|turn| turn[1].0)),
        ("commits_of_before", of(&|turn| turn[2].0)),
        ("indexed_of_before", of(&|turn| turn[3].0)),
        ("load_cpu_of_before", of(&|turn| turn[0].1)),
        ("transaction_cpu_of_before", of(&|turn| turn[1].1)),
        ("commits_cpu_of_before", of(&|turn| turn[2].1)),
        ("indexed_cpu_of_before", of(&|turn| turn[3].1)),
        ("load_rows_per_s", median(&newer, 0)),
        ("transaction_rows_per_s", median(&newer, 1)),
        ("commits_per_s", median(&newer, 2)),
        ("indexed_rows_per_s", median(&newer, 3)),
    ]
}

/// One build, from an empty folder on.
fn turn(site: &mut Site, round: usize) -> Turn {
    let begun = Instant::now();
    site.vecsync.start();
    let slot = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'vecsync_faq'";
    wait_until("capture to begin", LIMIT, || match site.sql.value(slot).as_str() {
        "0" if begun.elapsed() < LIMIT => Err("it has no slot".to_owned()),
        _ => Ok(()),
    });
    // Files are hashed and sessions opened before: no row is slower by that.
    let (since, cpu) = (Instant::now(), site.cpu_seconds());
    let load = counted(site, "capture", 0.0, ROWS + FOUND, since, cpu);
    site.vecsync.wait_ready();
    settled(site);

    let update = |of: &str| format!("UPDATE faq_faq SET category = 'c{round}' WHERE {of}");
    let mut part = |stage: &str, sql: &str, rows: usize| {
        let (from, cpu) = (events(site, stage), site.cpu_seconds());
        let before = Instant::now();
        site.sql.execute(sql);
        // What is one transaction comes when it has been committed; what are many comes meanwhile.
        let since = if rows == COMMITS { before } else { Instant::now() };
        let figures = counted(site, stage, from, rows, since, cpu);
        settled(site);
        figures
    };
    let transaction = part("capture", &update(&format!("id > {FOUND}")), ROWS);
    let commits = part("capture", &format!("CALL one_by_one({round})"), COMMITS);
    let indexed = part("index", &update(&format!("id <= {FOUND}")), FOUND);
    [load, transaction, commits, indexed]
}

/// When so many events more have come through a stage.
fn counted(site: &mut Site, stage: &str, from: f64, rows: usize, since: Instant, cpu: f64) -> (f64, f64) {
    wait_until("the events to come", LIMIT, || {
        std::thread::sleep(LOOK);
        match events(site, stage) - from {
            came if came >= rows as f64 => Ok(()),
            came => Err(format!("{came} of {rows}")),
        }
    });
    let rate = rows as f64 / since.elapsed().as_secs_f64();
    // The processor's time of all stages: what capture leaves to others is work, too.
    settled(site);
    (rate, (site.cpu_seconds() - cpu) * 1e6 / rows as f64)
}

fn events(site: &mut Site, stage: &str) -> f64 {
    site.vecsync.metric("vecsync_events_total", &format!(r#"stage="{stage}""#)).unwrap_or_default()
}

/// No stage has anything to do.
fn settled(site: &mut Site) {
    wait_until("all stages to stand still", LIMIT, || {
        let at = |site: &mut Site| ["capture", "embed", "index"].map(|stage| events(site, stage));
        let first = at(site);
        std::thread::sleep(Duration::from_millis(250));
        if at(site) == first { Ok(()) } else { Err(format!("{first:?}")) }
    });
}
