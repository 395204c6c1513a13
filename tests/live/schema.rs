//! What happens to the table and its publication while rows are followed: nothing is missed, nothing is emptied.

use std::time::Duration;

use crate::support::postgres::{OWNER, PASSWORD};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table;
use crate::support::vecsync::PIPELINE;

const SOON: Duration = Duration::from_secs(30);

/// Three rows, all of them searchable.
fn filled() -> Site {
    let mut site = Site::open();
    let rows = [1, 2, 3].map(|id| table::values(id, "Q", &format!("Answer {id}"), &table::category(id as usize)));
    site.sql.execute(&table::insert(&rows));
    site.expect_equal(SOON);
    site
}

#[test]
fn a_column_that_is_added_and_then_named_by_the_pipeline_has_its_values() {
    let mut site = filled();
    // No row is written for this: the stream says nothing of the values.
    site.sql.execute("ALTER TABLE faq_faq ADD COLUMN topic text DEFAULT 'general'");
    assert_eq!(site.vecsync.terminate().code, Some(0));
    site.vecsync.write_pipeline(&PIPELINE.replace(r#""answer","#, r#""answer", "topic","#));
    site.vecsync.start_ready();
    for id in [1, 2, 3] {
        wait_until("the row with its new column", SOON, || match site.vecsync.row_if_answered(id) {
            Some(row) if row["topic"] == "general" => Ok(()),
            row => Err(format!("{row:?}")),
        });
    }
    site.expect_equal(SOON);
}

#[test]
fn a_table_that_was_out_of_the_publication_for_a_while_is_read_again() {
    let mut site = filled();
    site.sql.execute("ALTER PUBLICATION vecsync_faq DROP TABLE faq_faq");
    site.sql.execute("UPDATE faq_faq SET answer = 'Unheard of' WHERE id = 2; DELETE FROM faq_faq WHERE id = 3");
    site.sql.execute("ALTER PUBLICATION vecsync_faq ADD TABLE faq_faq");
    site.expect_equal(SOON);
    assert_eq!(site.vecsync.ended(), None);
}

#[test]
fn a_publication_that_was_made_anew_needs_a_sync_and_says_so() {
    let mut site = filled();
    site.sql.execute("DROP PUBLICATION vecsync_faq");
    site.sql.execute("UPDATE faq_faq SET answer = 'Undecodable' WHERE id = 2");
    site.sql.execute("CREATE PUBLICATION vecsync_faq FOR TABLE faq_faq");
    wait_until("health to name the remedy", SOON, || {
        let answer = site.vecsync.get("/health/detailed/");
        if answer.body.contains("vecsync sync") { Ok(()) } else { Err(answer.body) }
    });
    let synced = site.vecsync.run(&["sync"]);
    assert_eq!(synced.code, Some(0), "{synced:?}");
    site.expect_equal(SOON);
}

#[test]
fn a_publication_that_somebody_else_makes_in_the_same_moment_is_taken() {
    let mut site = Site::prepare();
    let url = site.postgres.url(OWNER, PASSWORD);
    site.set("DATABASE_URL", url);
    site.sql.execute("DROP PUBLICATION vecsync_faq");
    let other = site.postgres.client();
    other.execute("BEGIN; CREATE PUBLICATION vecsync_faq FOR TABLE faq_faq");
    site.vecsync.start();
    wait_until("vecsync to wait for the other", SOON, || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE PUB%'";
        if site.sql.value(waits) == "1" { Ok(()) } else { Err(site.vecsync.log()) }
    });
    other.execute("COMMIT");
    site.vecsync.wait_ready();
    site.sql.execute(&table::insert(&[table::values(1, "Q", "Followed all the same", "c00")]));
    site.expect_equal(SOON);
}
