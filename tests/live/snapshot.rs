//! The first load, while the site goes on writing: nothing missing, nothing stale, nothing twice.

use std::time::Duration;

use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::writer::{ROWS, Writer, fill};

/// To embed some thousands of short texts on two busy cores.
const LOADED: Duration = Duration::from_secs(180);
/// Between transactions of the writer.
const PAUSE: Duration = Duration::from_millis(4);

#[test]
fn a_table_that_is_written_to_all_the_while_is_loaded_exactly() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    let writer = Writer::start(&site.postgres, 21, PAUSE);
    site.vecsync.start();
    // Writing goes on well into the embedding, and at least until the snapshot must have been read.
    wait_for_points(&mut site, ROWS / 2);
    let commits = writer.finish();
    assert!(commits > 50, "only {commits} transactions during the snapshot: this tests nothing");
    site.expect_equal(LOADED);
}

#[test]
fn a_snapshot_that_is_killed_is_made_again() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    let writer = Writer::start(&site.postgres, 22, PAUSE);
    // Killed while it is young, and later. Rows that are deleted between the two must not stay.
    for points in [1, ROWS / 4] {
        site.vecsync.start();
        wait_for_points(&mut site, points);
        site.vecsync.kill();
        site.sql.execute("DELETE FROM faq_faq WHERE id % 10 = 3");
    }
    site.vecsync.start();
    wait_for_points(&mut site, ROWS / 2);
    writer.finish();
    site.expect_equal(LOADED);
    site.vecsync.kill();
    // What was loaded once is not embedded again.
    site.vecsync.start_ready();
    site.expect_equal(LOADED);
    let computed = site.vecsync.metric("vecsync_embeddings_total", r#"result="computed""#).unwrap_or(0.0);
    assert!(computed < ROWS as f64 / 4.0, "{computed} texts were embedded again");
}

#[track_caller]
fn wait_for_points(site: &mut Site, wanted: i64) {
    wait_until(&format!("{wanted} points"), LOADED, || {
        if let Some(status) = site.vecsync.ended() {
            panic!("vecsync ended with {status}");
        }
        match site.vecsync.points() {
            Some(points) if points >= wanted as u64 => Ok(()),
            points => Err(format!("{points:?}")),
        }
    });
}
