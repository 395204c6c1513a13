//! What is committed while vecsync runs is found, as it was committed, and nothing else is.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::dice::Dice;
use crate::support::postgres::quote;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table;

/// From a commit to its being found, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(15);

#[track_caller]
pub fn expect(site: &mut Site, id: i64, wanted: &str) -> Value {
    wait_until(&format!("row {id} to say {wanted:.60?}"), SOON, || match site.row(id) {
        Some(row) if row["answer"] == wanted => Ok(row),
        Some(row) => Err(format!("{:.200}", row.to_string())),
        None => Err("it is not indexed".to_owned()),
    })
}

#[track_caller]
pub fn expect_gone(site: &mut Site, id: i64) {
    wait_until(&format!("row {id} to be gone"), SOON, || match site.row(id) {
        None => Ok(()),
        Some(row) => Err(format!("{:.200}", row.to_string())),
    });
}

/// Writes a row after all others and waits for it. Rows of one key's partition are handled in order, so this says
/// nothing of other partitions: it takes as many rows as reach them all.
#[track_caller]
fn pass_through(site: &mut Site) {
    let rows: Vec<String> = (700_000..700_064).map(|id| table::values(id, "Last?", "Passed", "last")).collect();
    site.sql.execute(&table::insert(&rows));
    for id in 700_000..700_064 {
        expect(site, id, "Passed");
    }
    site.sql.execute("DELETE FROM faq_faq WHERE id BETWEEN 700000 AND 700063");
    for id in 700_000..700_064 {
        expect_gone(site, id);
    }
}

#[test]
fn insert_update_and_delete_are_followed_and_found_by_meaning() {
    let mut site = Site::prepare();
    // The other tests have the other model.
    site.set("VECSYNC_MODEL", "fp32");
    site.vecsync.start_ready();
    site.sql.execute(
        "INSERT INTO faq_faq (id, question, answer, category) VALUES
         (1, 'Where is my parcel?', 'The courier sends you a link to track it.', 'delivery'),
         (2, 'Can I pay later?', 'You can pay by invoice within 30 days.', 'billing'),
         (3, 'I forgot my password', 'Reset it from the login page.', 'account')",
    );
    for (id, answer) in [
        (1, "The courier sends you a link to track it."),
        (2, "You can pay by invoice within 30 days."),
        (3, "Reset it from the login page."),
    ] {
        expect(&mut site, id, answer);
    }
    for (query, id) in [("my shipment has not arrived", 1), ("purchase on credit", 2), ("I cannot sign in", 3)] {
        let answer = site.search(query, "&limit=1");
        assert_eq!(answer["results"][0]["id"], id, "{answer}");
    }
    let billing = site.search("my shipment has not arrived", "&min_score=-1&filter=category:billing");
    assert_eq!(billing["results"].as_array().map(Vec::len), Some(1), "{billing}");

    site.sql.execute("UPDATE faq_faq SET answer = 'Ask the post office.', category = 'post' WHERE id = 1");
    let row = expect(&mut site, 1, "Ask the post office.");
    assert_eq!(row["category"], "post");
    site.sql.execute("DELETE FROM faq_faq WHERE id = 2");
    expect_gone(&mut site, 2);
    let billing = site.search("invoice", "&min_score=-1&filter=category:billing");
    assert_eq!(billing["results"], json!([]), "a deleted row was found");
}

#[test]
fn a_row_that_is_not_active_is_not_found_until_it_is_again() {
    let mut site = Site::open();
    site.sql.execute(&table::insert(&[table::values(1, "Q", "Seen", "c"), table::values(2, "Q", "Other", "c")]));
    expect(&mut site, 1, "Seen");
    expect(&mut site, 2, "Other");
    site.sql.execute("UPDATE faq_faq SET is_active = false WHERE id = 1");
    expect_gone(&mut site, 1);
    site.sql.execute("UPDATE faq_faq SET answer = 'Changed unseen' WHERE id = 1");
    pass_through(&mut site);
    assert_eq!(site.row(1), None);
    site.sql.execute("UPDATE faq_faq SET is_active = true WHERE id = 1");
    expect(&mut site, 1, "Changed unseen");
    site.sql.execute("INSERT INTO faq_faq (id, question, answer, is_active) VALUES (3, 'Q', 'Draft', false)");
    pass_through(&mut site);
    assert_eq!((site.row(3), site.row(2).is_some()), (None, true));
}

#[test]
fn a_changed_key_leaves_nothing_under_the_old_one() {
    let mut site = Site::open();
    let rows: Vec<String> =
        (1..=20).map(|id| table::values(id, "Q", &format!("Row {id}"), &table::category(0))).collect();
    site.sql.execute(&table::insert(&rows));
    expect(&mut site, 20, "Row 20");
    site.sql.execute("UPDATE faq_faq SET id = id + 100 WHERE id <= 10");
    site.sql.execute("UPDATE faq_faq SET id = 11, answer = 'Row 1 as 11' WHERE id = 101 AND (SELECT count(*) FROM faq_faq WHERE id = 11) = 0");
    // A key that goes away and comes back with another row, in one transaction.
    site.sql.execute("BEGIN; UPDATE faq_faq SET id = 500 WHERE id = 12; INSERT INTO faq_faq (id, question, answer, category) VALUES (12, 'Q', 'New 12', 'c00'); COMMIT");
    expect(&mut site, 12, "New 12");
    expect(&mut site, 500, "Row 12");
    expect(&mut site, 110, "Row 10");
    site.expect_equal(SOON);
}

#[test]
fn after_truncate_only_what_came_after_it_is_there() {
    let mut site = Site::open();
    let rows: Vec<String> =
        (1..=100).map(|id| table::values(id, "Q", &format!("Old {id}"), &table::category(id as usize))).collect();
    site.sql.execute(&table::insert(&rows));
    expect(&mut site, 100, "Old 100");
    let new: Vec<String> =
        (91..=120).map(|id| table::values(id, "Q", &format!("New {id}"), &table::category(id as usize))).collect();
    let before = table::insert(&[table::values(300, "Q", "Inserted and truncated", "c00")]);
    site.sql.execute(&format!("BEGIN; {before}; TRUNCATE faq_faq; {}; COMMIT", table::insert(&new)));
    expect(&mut site, 120, "New 120");
    expect(&mut site, 91, "New 91");
    expect_gone(&mut site, 1);
    site.expect_equal(SOON);
    assert_eq!(site.row(300), None);
    site.sql.execute("TRUNCATE faq_faq");
    expect_gone(&mut site, 120);
}

#[test]
fn what_was_rolled_back_never_appears() {
    let mut site = Site::open();
    let ghost = |id| table::insert(&[table::values(id, "Q", "Ghost", "c00")]);
    site.sql.execute(&table::insert(&[table::values(1, "Q", "Kept", "c00")]));
    expect(&mut site, 1, "Kept");
    site.sql.execute(&format!("BEGIN; {}; UPDATE faq_faq SET answer = 'Ghost' WHERE id = 1; ROLLBACK", ghost(2)));
    let saved = table::insert(&[table::values(4, "Q", "Before the savepoint", "c00")]);
    site.sql.execute(&format!(
        "BEGIN; {saved}; SAVEPOINT here; {}; UPDATE faq_faq SET answer = 'Ghost' WHERE id = 4; ROLLBACK TO here; COMMIT",
        ghost(3)
    ));
    // Open all the while, larger than what the server decodes in memory, and then given up.
    let other = site.postgres.client();
    other.execute("BEGIN; INSERT INTO faq_faq (id, question, answer, category) SELECT n, 'Q', 'Ghost', 'c00' FROM generate_series(1000, 3000) n");
    expect(&mut site, 4, "Before the savepoint");
    other.execute("ROLLBACK");
    pass_through(&mut site);
    let found = site.search("Ghost", "&limit=100&min_score=-1");
    let ghosts: Vec<&Value> =
        found["results"].as_array().unwrap().iter().filter(|row| row["payload"]["answer"] == "Ghost").collect();
    assert_eq!((found["results"].as_array().unwrap().len(), ghosts), (2, vec![]), "{found}");
}

#[test]
fn an_unchanged_toasted_answer_is_kept_when_only_the_question_changes() {
    let mut site = Site::prepare();
    site.sql.execute("ALTER TABLE faq_faq ALTER COLUMN answer SET STORAGE EXTERNAL");
    site.vecsync.start_ready();
    // A long answer as they come: a sentence, and a picture pasted in as text, which no one word list knows.
    let mut dice = Dice::new(10);
    let picture: String =
        (0..100_000).map(|_| char::from(*dice.pick(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/"))).collect();
    let answer = format!("Elephants remember the way to the water hole. Picture: {picture}");
    site.sql.execute(&table::insert(&[table::values(1, "What is an elephant?", &answer, "animals")]));
    let stored = site.sql.value("SELECT pg_column_size(answer) FROM faq_faq WHERE id = 1").parse::<usize>().unwrap();
    assert!(stored >= 100_000, "{stored}: it is compressed, and this tests nothing");
    expect(&mut site, 1, &answer);
    site.sql.execute("UPDATE faq_faq SET question = 'Do they forget?' WHERE id = 1");
    let row = wait_until("the new question", SOON, || match site.row(1) {
        Some(row) if row["question"] == "Do they forget?" => Ok(row),
        row => Err(format!("{:.100}", row.map_or("nothing".to_owned(), |row| row["question"].to_string()))),
    });
    assert_eq!(row["answer"].as_str().map(str::len), Some(answer.len()));
    assert_eq!(row["answer"], answer.as_str());
    let found = site.search("large grey animal with a good memory", "&limit=1");
    assert_eq!(found["results"][0]["id"], 1, "{:.300}", found.to_string());
    assert!(found["results"][0]["passage"].as_str().unwrap().contains("water hole"), "{:.300}", found.to_string());
    // With the key changed as well, what is not sent must come from the row under its new key.
    site.sql.execute("UPDATE faq_faq SET id = 2 WHERE id = 1");
    expect(&mut site, 2, &answer);
    expect_gone(&mut site, 1);
}

#[test]
fn a_commit_that_is_streamed_before_others_can_see_it_is_waited_for() {
    let mut site = Site::prepare();
    site.sql.execute("ALTER TABLE faq_faq ALTER COLUMN answer SET STORAGE EXTERNAL");
    site.vecsync.start_ready();
    let answers = ["One. ", "Two. "].map(|text| text.repeat(2_000));
    let rows = [1, 2].map(|id: i64| table::values(id, "Q", &answers[id as usize - 1], &table::category(0)));
    site.sql.execute(&table::insert(&rows));
    expect(&mut site, 2, &answers[1]);
    // A commit that waits for a standby which never comes is on disk and streamed, and visible to nobody.
    let hold = |names: &str| format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
    let reload = "SELECT pg_reload_conf()";
    site.sql.execute(&hold("nobody"));
    site.sql.execute(reload);
    wait_until("the setting", SOON, || match site.postgres.client().value("SHOW synchronous_standby_names") {
        names if names == "nobody" => Ok(()),
        names => Err(names),
    });
    let other = site.postgres.client();
    let begun = site.sql.value("SELECT clock_timestamp()");
    // Row 1 becomes row 2, and row 2 becomes row 3: what is read too early is nothing, or another row's answer.
    let writer = std::thread::spawn(move || {
        other.execute("BEGIN; UPDATE faq_faq SET id = 3 WHERE id = 2; UPDATE faq_faq SET id = 2 WHERE id = 1; COMMIT");
    });
    let looked = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'vecsync' AND query_start > '{begun}'
         AND (query LIKE '%transactionid%' OR query LIKE '%\"answer\"%')"
    );
    wait_until("vecsync to look at the row", SOON, || match site.sql.value(&looked).as_str() {
        "0" => Err("it has not".to_owned()),
        _ => Ok(()),
    });
    site.sql.execute(&hold(""));
    site.sql.execute(reload);
    writer.join().expect("the commit ends when nobody is waited for");
    expect(&mut site, 2, &answers[0]);
    expect(&mut site, 3, &answers[1]);
    expect_gone(&mut site, 1);
}

#[test]
fn odd_rows_have_their_answer_and_hold_up_nobody() {
    let mut site = Site::open();
    let odd = [
        (1, "", "", None),
        (2, "Only a question", "", Some("c00")),
        (3, "", "Only an answer", None),
        (4, "Spaces", " \t\n\u{a0}\u{3000} ", Some("c00")),
        (5, "One character", &"x".repeat(1 << 20), Some("c00")),
        (6, "👩‍👩‍👧‍👦🏳️‍🌈", "👨🏽‍🚀 flies 🚀\u{200d}\u{200d}\u{fe0f}", Some("👩‍🚒")),
        (7, "\u{202e}Right to left\u{202c}", "שלום \u{2066}abc\u{2069} مرحبا", Some("\u{202e}bidi")),
        (
            8,
            "Replacement \u{fffd}",
            "\u{1}\u{7f}\u{ffff}\u{10ffff}'\"\\{{ question }}{% raw %}",
            Some("a:b&c=d%00+e f"),
        ),
        (9, "NULL category", "Ordinary", None),
    ];
    for (id, question, answer, category) in &odd {
        let category = category.map_or("NULL".to_owned(), quote);
        let (question, answer) = (quote(question), quote(answer));
        site.sql.execute(&format!(
            "INSERT INTO faq_faq (id, question, answer, category) VALUES ({id}, {question}, {answer}, {category})"
        ));
    }
    // Rows of every partition, behind the odd ones.
    pass_through(&mut site);
    for (id, question, answer, category) in odd {
        let Some(row) = site.row(id) else {
            assert!(question.trim().is_empty() && answer.trim().is_empty(), "row {id} is not indexed");
            continue;
        };
        assert_eq!(row["question"], question);
        assert_eq!(row["answer"], answer, "row {id}");
        assert_eq!(row["category"], category.map_or(Value::Null, Value::from));
        if let Some(category) = category {
            let body =
                json!({"query": "anything", "limit": 100, "min_score": -1, "filter": {"category": category, "id": id}});
            let found = site.http.post("/search", &body).unwrap();
            assert_eq!((found.status, found.json()["results"][0]["id"].as_i64()), (200, Some(id)), "{}", found.body);
        }
    }
}
