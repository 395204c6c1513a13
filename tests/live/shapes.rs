//! Tables that take another shape while they are followed, publications that leave rows and columns out, partitions,
//! generated columns: goes on where it can, and says what is in the way where it cannot.

use serde_json::json;

use crate::support::gate::Gate;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::tables::{
    SOON, answers, expect, expect_fault, expect_healthy, forget, item, payload, pipeline, publish, refused,
};

/// Rows 1 to `rows`, as one answer each says.
fn fill(site: &Site, rows: u32) {
    site.sql.execute(&format!("INSERT INTO item (id, answer) SELECT n, 'Row ' || n FROM generate_series(1, {rows}) n"));
}

#[test]
fn columns_come_and_go_and_take_other_types_while_rows_are_followed() {
    let mut site = Site::prepare();
    item(&mut site, "id int PRIMARY KEY, rank int DEFAULT 5, spare text", "", r#", "rank""#);
    fill(&site, 2);
    site.vecsync.start_ready();
    // What no template names may come, go and be called as it likes, within transactions that write.
    site.sql.execute(
        "BEGIN; UPDATE item SET answer = 'A' WHERE id = 1; ALTER TABLE item ADD extra text DEFAULT 'x';
         UPDATE item SET answer = 'B' WHERE id = 2; ALTER TABLE item RENAME spare TO other; COMMIT",
    );
    site.sql.execute("ALTER TABLE item DROP extra; INSERT INTO item (id, answer, rank) VALUES (3, 'C', 6)");
    expect(&mut site, &[(json!(1), "A"), (json!(2), "B"), (json!(3), "C")]);
    assert_eq!(payload(&mut site, "C")["rank"], 6);
    // Another type: no event tells of the rows, and they have other values.
    site.sql.execute("ALTER TABLE item ALTER rank TYPE text USING 'No. ' || rank");
    for (answer, rank) in [("A", "No. 5"), ("C", "No. 6")] {
        wait_until("the new values", SOON, || match &payload(&mut site, answer)["rank"] {
            found if *found == rank => Ok(()),
            found => Err(found.to_string()),
        });
    }
    // Neither does the same type with other values; also when it was down.
    site.sql.execute("ALTER TABLE item ALTER rank TYPE text USING rank || '!'");
    wait_until("the new values", SOON, || match &payload(&mut site, "A")["rank"] {
        found if found == "No. 5!" => Ok(()),
        found => Err(found.to_string()),
    });
    site.vecsync.kill();
    site.sql.execute("ALTER TABLE item ALTER rank TYPE int USING length(rank); ALTER TABLE item DROP other");
    site.vecsync.start_ready();
    wait_until("the new values", SOON, || match &payload(&mut site, "C")["rank"] {
        found if *found == 6 => Ok(()),
        found => Err(found.to_string()),
    });
    expect_healthy(&mut site);
}

#[test]
fn a_column_that_the_pipeline_needs_and_that_is_gone_is_named_until_it_is_back() {
    let mut site = Site::prepare();
    item(&mut site, "id int PRIMARY KEY, rank int DEFAULT 5", "", r#", "rank""#);
    fill(&site, 2);
    site.vecsync.start_ready();
    expect(&mut site, &[(json!(1), "Row 1"), (json!(2), "Row 2")]);
    // Noticed without a row being written.
    site.sql.execute("ALTER TABLE item RENAME answer TO reply");
    expect_fault(&mut site, &["document.text", "no column `answer`", "reply", "mend the pipeline file"]);
    site.sql.execute(
        "UPDATE item SET reply = 'While it was renamed' WHERE id = 1; INSERT INTO item (id, reply) VALUES (3, 'New')",
    );
    expect(&mut site, &[(json!(1), "Row 1"), (json!(2), "Row 2")]);
    site.sql.execute("ALTER TABLE item RENAME reply TO answer; UPDATE item SET rank = 6 WHERE id = 2");
    expect(&mut site, &[(json!(1), "While it was renamed"), (json!(2), "Row 2"), (json!(3), "New")]);
    expect_healthy(&mut site);
    // No row was without its answer meanwhile.
    assert_eq!(site.vecsync.metric("vecsync_dead_letters_total", "").unwrap_or(0.0), 0.0);
    // The table itself.
    site.sql.execute("ALTER TABLE item RENAME TO thing; INSERT INTO thing (id, answer) VALUES (4, 'In the thing')");
    expect_fault(&mut site, &["public.item", "source.table"]);
    site.sql.execute("DELETE FROM thing WHERE id = 2; ALTER TABLE thing RENAME TO item");
    expect(&mut site, &[(json!(1), "While it was renamed"), (json!(3), "New"), (json!(4), "In the thing")]);
    // Gone for good: the pipeline does without it.
    site.sql.execute("ALTER TABLE item DROP rank; UPDATE item SET answer = 'Without' WHERE id = 1");
    expect_fault(&mut site, &["`rank`", "document.payload"]);
    site.vecsync.write_pipeline(&pipeline(""));
    assert_eq!(site.vecsync.terminate().code, Some(0));
    site.vecsync.start_ready();
    expect(&mut site, &[(json!(1), "Without"), (json!(3), "New"), (json!(4), "In the thing")]);
}

#[test]
fn another_primary_key_and_none_are_noticed_while_rows_are_followed() {
    let mut site = Site::prepare();
    item(&mut site, "id int PRIMARY KEY, slug text NOT NULL DEFAULT 's' || random()", "", "");
    fill(&site, 2);
    site.sql.execute("UPDATE item SET slug = 'slug-' || id");
    site.vecsync.start_ready();
    expect(&mut site, &[(json!(1), "Row 1"), (json!(2), "Row 2")]);
    site.sql.execute("ALTER TABLE item DROP CONSTRAINT item_pkey");
    expect_fault(&mut site, &["primary key", "ALTER TABLE public.item ADD PRIMARY KEY"]);
    site.sql.execute("ALTER TABLE item ADD PRIMARY KEY (slug); UPDATE item SET answer = 'By slug' WHERE id = 1");
    expect(&mut site, &[(json!("slug-1"), "By slug"), (json!("slug-2"), "Row 2")]);
    // At once, so that it is never without.
    site.sql.execute("ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (id)");
    expect(&mut site, &[(json!(1), "By slug"), (json!(2), "Row 2")]);
    expect_healthy(&mut site);
}

#[test]
fn a_snapshot_of_a_table_that_is_rewritten_meanwhile_is_taken_again() {
    let mut site = Site::prepare();
    item(&mut site, "id int PRIMARY KEY, rank int DEFAULT 5", "", r#", "rank""#);
    fill(&site, 30);
    let gate = Gate::before(&mut site);
    site.vecsync.start_ready();
    // The readers are held at the door when the snapshot has been taken: then the table looks empty to it.
    gate.admit(Some(2));
    let mut sync = site.vecsync.spawn(&["sync"]);
    wait_until("a reader to wait", SOON, || {
        let taken = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND confirmed_flush_lsn IS NOT NULL";
        if gate.waiting() > 0 && site.sql.value(taken) == "1" { Ok(()) } else { Err(site.vecsync.log()) }
    });
    site.sql.execute("ALTER TABLE item ADD filled float DEFAULT random()");
    gate.admit(None);
    wait_until("the snapshot after it", SOON, || {
        let found = answers(&mut site.vecsync)?.len();
        assert_eq!(found, 30, "rows are gone");
        let log = site.vecsync.log();
        if log.matches("snapshot complete").count() == 2 { Ok(()) } else { Err(log) }
    });
    assert!(site.vecsync.log().contains("it is read again"), "{}", site.vecsync.log());
    assert!(sync.wait().unwrap().success());
    site.sql.execute("INSERT INTO item (id, answer) VALUES (31, 'Row 31')");
    wait_until("all rows", SOON, || match answers(&mut site.vecsync)?.len() {
        31 => Ok(()),
        found => Err(found.to_string()),
    });
}

#[test]
fn a_row_filter_and_a_column_list_are_honoured_and_rows_that_leave_the_filter_leave_the_index() {
    let mut site = Site::prepare();
    let columns = "id int, status text NOT NULL DEFAULT 'public', secret text DEFAULT 'unpublished', PRIMARY KEY (id)";
    let clause = "(id, status, question, answer) WHERE (status = 'public' AND id < 100)";
    item(&mut site, columns, clause, "");
    site.sql.execute(
        "ALTER TABLE item ADD UNIQUE (id, status); ALTER TABLE item REPLICA IDENTITY USING INDEX item_id_status_key;
         ALTER TABLE item ALTER answer SET STORAGE EXTERNAL",
    );
    // Not even the right to read the column that is left out.
    site.sql
        .execute("REVOKE SELECT ON item FROM vecsync; GRANT SELECT (id, status, question, answer) ON item TO vecsync");
    fill(&site, 4);
    let long = "Long. ".repeat(1_500);
    site.sql.execute(&format!(
        "UPDATE item SET status = 'draft' WHERE id IN (3, 4); UPDATE item SET answer = '{long}' WHERE id = 4"
    ));
    site.sql.execute("INSERT INTO item (id, answer) VALUES (100, 'Too large')");
    site.vecsync.start_ready();
    expect(&mut site, &[(json!(1), "Row 1"), (json!(2), "Row 2")]);
    // Out, in, in with an answer that the update does not carry, moved out by its key, never in.
    site.sql
        .execute("UPDATE item SET status = 'draft' WHERE id = 1; UPDATE item SET status = 'public' WHERE id IN (3, 4)");
    site.sql.execute(
        "UPDATE item SET id = 200 WHERE id = 2; INSERT INTO item (id, answer, status) VALUES (5, 'Never', 'draft')",
    );
    expect(&mut site, &[(json!(3), "Row 3"), (json!(4), &long)]);
    site.sql.execute(
        "UPDATE item SET id = 2 WHERE id = 200; UPDATE item SET secret = 'changed'; DELETE FROM item WHERE id = 3",
    );
    expect(&mut site, &[(json!(2), "Row 2"), (json!(4), &long)]);
    assert_eq!(site.vecsync.run(&["verify"]).code, Some(0));
    // Another filter is another table: it is read again.
    site.sql.execute(
        "ALTER PUBLICATION vecsync_faq SET TABLE item (id, status, question, answer) WHERE (status = 'draft')",
    );
    expect(&mut site, &[(json!(1), "Row 1"), (json!(5), "Never")]);
    expect_healthy(&mut site);
    // A list without what the pipeline needs.
    site.sql.execute("ALTER PUBLICATION vecsync_faq SET TABLE item (id, status, question)");
    expect_fault(&mut site, &["leaves out answer", "ALTER PUBLICATION vecsync_faq"]);
    site.sql.execute("ALTER PUBLICATION vecsync_faq SET TABLE item");
    site.sql.execute("GRANT SELECT ON item TO vecsync");
    wait_until("all rows", SOON, || match answers(&mut site.vecsync)?.len() {
        5 => Ok(()),
        found => Err(found.to_string()),
    });
}

#[test]
fn rows_that_were_written_and_left_the_publication_while_it_was_down_are_not_found() {
    let mut site = Site::prepare();
    item(&mut site, "id int PRIMARY KEY", "", "");
    fill(&site, 3);
    site.vecsync.start_ready();
    expect(&mut site, &[(json!(1), "Row 1"), (json!(2), "Row 2"), (json!(3), "Row 3")]);
    site.vecsync.kill();
    // The stream still brings row 77, which was published when it was written; the snapshot that follows lacks it.
    site.sql.execute("INSERT INTO item (id, answer) VALUES (77, 'Row 77')");
    site.sql.execute("ALTER PUBLICATION vecsync_faq SET TABLE item WHERE (id < 50 AND id <> 3)");
    let before = site.vecsync.log().matches("snapshot complete").count();
    site.vecsync.start_ready();
    wait_until("the table to be read", SOON, || match site.vecsync.log().matches("snapshot complete").count() {
        count if count > before => Ok(()),
        _ => Err(site.vecsync.log()),
    });
    expect(&mut site, &[(json!(1), "Row 1"), (json!(2), "Row 2")]);
}

#[test]
fn partitions_are_followed_as_one_table_and_rows_move_between_them() {
    for version in [14, 18] {
        let mut site = Site::prepare_version(version, &[]);
        site.sql.execute(
            "DROP PUBLICATION vecsync_faq;
             CREATE TABLE item (id int, year int, question text NOT NULL DEFAULT 'Q', answer text, PRIMARY KEY (year, id))
             PARTITION BY RANGE (year);
             CREATE TABLE item_25 PARTITION OF item FOR VALUES FROM (2025) TO (2026);
             CREATE TABLE item_26 (answer text, id int NOT NULL, spare int, year int NOT NULL, question text NOT NULL DEFAULT 'Q');
             ALTER TABLE item_26 DROP spare; ALTER TABLE item ATTACH PARTITION item_26 FOR VALUES FROM (2026) TO (2027);
             ALTER TABLE item ALTER answer SET STORAGE EXTERNAL; ALTER TABLE item_25 ALTER answer SET STORAGE EXTERNAL",
        );
        site.vecsync.write_pipeline(&pipeline(""));
        publish(&site, "");
        refused(&site, &["ALTER PUBLICATION vecsync_faq SET (publish_via_partition_root = true);"]);
        site.sql.execute("ALTER PUBLICATION vecsync_faq SET (publish_via_partition_root = true); ALTER TABLE item_26 REPLICA IDENTITY NOTHING");
        refused(&site, &["ALTER TABLE public.item_26 REPLICA IDENTITY DEFAULT;"]);
        site.sql.execute("ALTER TABLE item_26 REPLICA IDENTITY DEFAULT");
        let key = |id: i32, year: i32| json!({"id": id, "year": year});
        let long = "Long. ".repeat(1_500);
        site.sql.execute(&format!("INSERT INTO item (id, year, answer) VALUES (1, 2025, '{long}'), (2, 2026, 'Two')"));
        site.vecsync.start_ready();
        expect(&mut site, &[(key(1, 2025), &long), (key(2, 2026), "Two")]);
        site.sql.execute("INSERT INTO item (id, year, answer) VALUES (3, 2025, 'Three'), (4, 2026, 'Four')");
        site.sql.execute("UPDATE item SET year = 2026, question = 'Moved' WHERE id = 1; DELETE FROM item WHERE id = 2");
        expect(&mut site, &[(key(1, 2026), &long), (key(3, 2025), "Three"), (key(4, 2026), "Four")]);
        // A new partition, and one that had rows before: these are known after a sync.
        site.sql.execute("CREATE TABLE item_27 PARTITION OF item FOR VALUES FROM (2027) TO (2028); INSERT INTO item (id, year, answer) VALUES (5, 2027, 'Five')");
        site.sql.execute("CREATE TABLE item_28 (LIKE item INCLUDING ALL); INSERT INTO item_28 (id, year, answer) VALUES (6, 2028, 'Six')");
        site.sql.execute("ALTER TABLE item ATTACH PARTITION item_28 FOR VALUES FROM (2028) TO (2029); ALTER TABLE item DETACH PARTITION item_26");
        if version == 14 {
            // It remembers for as long as the stream is open that it has seen this table and did not publish it.
            let end = site.sql.value("SELECT pg_current_wal_lsn()");
            wait_until("the stream to have passed that", SOON, || {
                let passed = format!("SELECT count(*) FROM pg_replication_slots WHERE confirmed_flush_lsn >= '{end}'");
                if site.sql.value(&passed) == "1" { Ok(()) } else { Err(end.clone()) }
            });
            site.vecsync.kill();
            site.vecsync.start_ready();
        }
        site.sql.execute("INSERT INTO item (id, year, answer) VALUES (7, 2028, 'Seven')");
        expect(
            &mut site,
            &[
                (key(1, 2026), &long),
                (key(3, 2025), "Three"),
                (key(4, 2026), "Four"),
                (key(5, 2027), "Five"),
                (key(7, 2028), "Seven"),
            ],
        );
        assert_eq!(site.vecsync.run(&["sync"]).code, Some(0));
        expect(
            &mut site,
            &[(key(3, 2025), "Three"), (key(5, 2027), "Five"), (key(6, 2028), "Six"), (key(7, 2028), "Seven")],
        );
        site.sql.execute("BEGIN; TRUNCATE item; INSERT INTO item (id, year, answer) VALUES (8, 2025, 'Eight'); COMMIT");
        expect(&mut site, &[(key(8, 2025), "Eight")]);
        expect_healthy(&mut site);
    }
}

#[test]
fn rows_of_tables_that_inherit_are_not_the_table_s() {
    let mut site = Site::prepare();
    item(&mut site, "id int PRIMARY KEY", "", "");
    site.sql
        .execute("CREATE TABLE special () INHERITS (item); INSERT INTO special (id, answer) VALUES (9, 'Inherited')");
    fill(&site, 1);
    site.vecsync.start_ready();
    site.sql.execute(
        "INSERT INTO special (id, answer) VALUES (10, 'Inherited'); INSERT INTO item (id, answer) VALUES (2, 'Row 2')",
    );
    expect(&mut site, &[(json!(1), "Row 1"), (json!(2), "Row 2")]);
    assert_eq!(site.vecsync.run(&["verify"]).code, Some(0));
}

const GENERATED: &str =
    "id int PRIMARY KEY, price numeric(6,2) DEFAULT 1.5, gross numeric GENERATED ALWAYS AS (price * 2) STORED";

#[test]
fn generated_columns_are_refused_by_name_where_they_are_not_sent() {
    let mut site = Site::prepare();
    item(&mut site, GENERATED, "", r#", "gross""#);
    refused(&site, &["gross is generated", "publication vecsync_faq does not send it", "version 18"]);
    // Beside what the pipeline names they are in nobody's way.
    site.vecsync.write_pipeline(&pipeline(r#", "price""#));
    fill(&site, 1);
    site.vecsync.start_ready();
    fill_more(&site);
    expect(&mut site, &[(json!(1), "Row 1"), (json!(7), "Seven")]);
}

#[test]
fn on_18_stored_generated_columns_are_followed_where_they_are_published_and_virtual_ones_refused() {
    let mut site = Site::prepare_version(18, &[]);
    for clause in ["WITH (publish_generated_columns = stored)", "(id, question, answer, gross)"] {
        item(
            &mut site,
            &format!("{GENERATED}, net numeric GENERATED ALWAYS AS (price / 2) VIRTUAL"),
            clause,
            r#", "gross""#,
        );
        fill(&site, 1);
        site.vecsync.start_ready();
        fill_more(&site);
        expect(&mut site, &[(json!(1), "Row 1"), (json!(7), "Seven")]);
        assert_eq!(payload(&mut site, "Row 1")["gross"], "3.00");
        expect_gross(&mut site);
        forget(&mut site);
    }
    site.vecsync.write_pipeline(&pipeline(r#", "net""#));
    refused(&site, &["net is generated", "virtual"]);
    // Published no more, while rows are followed.
    item(&mut site, GENERATED, "WITH (publish_generated_columns = stored)", r#", "gross""#);
    fill(&site, 1);
    site.vecsync.start_ready();
    site.sql.execute("ALTER PUBLICATION vecsync_faq SET (publish_generated_columns = none)");
    expect_fault(&mut site, &["gross is generated", "publish_generated_columns = stored"]);
    site.sql.execute("ALTER PUBLICATION vecsync_faq SET (publish_generated_columns = stored)");
    fill_more(&site);
    expect(&mut site, &[(json!(1), "Row 1"), (json!(7), "Seven")]);
    expect_gross(&mut site);
    expect_healthy(&mut site);
}

fn expect_gross(site: &mut Site) {
    wait_until("the generated value", SOON, || match &payload(site, "Seven")["gross"] {
        found if found == "5.00" => Ok(()),
        found => Err(found.to_string()),
    });
}

fn fill_more(site: &Site) {
    site.sql.execute(
        "INSERT INTO item (id, answer, price) VALUES (7, 'Seven', 2); UPDATE item SET price = 2.5 WHERE id = 7",
    );
}
