//! Tables as people have them: keys of any type, columns of any type, partitions, publications that leave things out, and
//! what happens to all that while rows are followed.

use std::fs;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::vecsync::Vecsync;

pub const SOON: Duration = Duration::from_secs(30);
/// Long enough to be kept out of the row.
const LONG: usize = 9_000;

/// A pipeline over `public.item`, which has `question` and `answer` and these other columns in its payload.
pub fn pipeline(payload: &str) -> String {
    format!(
        r#"name = "faq"
[source]
table = "public.item"
[document]
title = "{{{{ question }}}}"
text = "{{{{ answer }}}}"
payload = ["question", "answer"{payload}]
"#
    )
}

/// `public.item` with these columns, its publication with this rest of a clause, and vecsync, which is not started yet.
pub fn item(site: &mut Site, columns: &str, publication: &str, payload: &str) {
    site.sql.execute(&format!(
        "DROP PUBLICATION IF EXISTS vecsync_faq; DROP TABLE IF EXISTS item;
         CREATE TABLE item ({columns}, question text NOT NULL DEFAULT 'Q', answer text)"
    ));
    publish(site, publication);
    site.vecsync.write_pipeline(&pipeline(payload));
}

pub fn publish(site: &Site, publication: &str) {
    site.sql.execute(&format!(
        "CREATE PUBLICATION vecsync_faq FOR TABLE item {publication}; GRANT SELECT ON item TO vecsync"
    ));
}

/// Nothing of what was followed before is left.
pub fn forget(site: &mut Site) {
    site.vecsync.kill();
    fs::remove_dir_all(site.vecsync.path("data")).unwrap();
    wait_until("the slot to be free", SOON, || {
        let dropped = site.sql.try_execute("SELECT pg_drop_replication_slot('vecsync_faq')");
        dropped.map_err(|error| error.to_string())
    });
}

/// Every indexed row's id and answer, sorted.
pub fn answers(vecsync: &mut Vecsync) -> Result<Vec<(Value, String)>, String> {
    let results = results(vecsync)?;
    let mut found: Vec<_> = results
        .iter()
        .map(|row| (row["id"].clone(), row["payload"]["answer"].as_str().unwrap_or("NULL").to_owned()))
        .collect();
    found.sort_by_key(|(id, _)| id.to_string());
    Ok(found)
}

fn results(vecsync: &mut Vecsync) -> Result<Vec<Value>, String> {
    let answer = vecsync.http.get("/search?q=anything&limit=100&min_score=-1").map_err(|error| error.to_string())?;
    if answer.status != 200 {
        return Err(answer.body);
    }
    Ok(answer.json()["results"].as_array().unwrap().clone())
}

/// Waits until exactly these rows are indexed.
#[track_caller]
pub fn expect(site: &mut Site, wanted: &[(Value, &str)]) {
    let mut wanted: Vec<_> = wanted.iter().map(|(id, answer)| (id.clone(), (*answer).to_owned())).collect();
    wanted.sort_by_key(|(id, _)| id.to_string());
    wait_until("the index to equal the table", SOON, || match answers(&mut site.vecsync)? {
        found if found == wanted => Ok(()),
        found => Err(format!("{found:.1000?}")),
    });
}

/// The payload of the row whose answer this is, without its answer.
#[track_caller]
pub fn payload(site: &mut Site, answer: &str) -> Map<String, Value> {
    wait_until(&format!("the row that says {answer}"), SOON, || {
        let results = results(&mut site.vecsync)?;
        let found = results.iter().find(|row| row["payload"]["answer"] == answer);
        let mut payload = found.ok_or_else(|| format!("{results:.500?}"))?["payload"].as_object().unwrap().clone();
        payload.remove("answer");
        Ok(payload)
    })
}

/// Waits until health names all of these.
#[track_caller]
pub fn expect_fault(site: &mut Site, words: &[&str]) {
    wait_until(&format!("health to name {words:?}"), SOON, || {
        assert_eq!(site.vecsync.ended(), None);
        let answer = site.vecsync.get("/health/detailed/");
        let named = words.iter().all(|word| answer.body.contains(word));
        if named && answer.status == 200 && answer.json()["status"] == "degraded" { Ok(()) } else { Err(answer.body) }
    });
    assert_eq!(site.get("/health/ready/").status, 200);
}

#[track_caller]
pub fn expect_healthy(site: &mut Site) {
    wait_until("health to be healthy", SOON, || {
        let answer = site.vecsync.get("/health/detailed/");
        if answer.json()["status"] == "healthy" { Ok(()) } else { Err(answer.body) }
    });
}

/// Runs it to its end, which must name all of these.
#[track_caller]
pub fn refused(site: &Site, words: &[&str]) {
    let ended = site.vecsync.run(&["run"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let last = ended.stderr.lines().last().unwrap_or_default();
    words.iter().for_each(|word| assert!(last.contains(word), "{word:?} is not in {last}"));
}

/// Keys a, b, c as SQL, what a becomes, and the ids that a search shows for a, b, c and the new a.
struct Keys {
    columns: &'static str,
    key: &'static str,
    keys: [&'static str; 3],
    changed: &'static str,
    ids: [Value; 4],
}

fn kinds_of_keys() -> Vec<Keys> {
    vec![
        Keys {
            columns: "k int2",
            key: "k",
            keys: ["1", "-7", "0"],
            changed: "k = 32767",
            ids: [json!(1), json!(-7), json!(0), json!(32_767)],
        },
        Keys {
            columns: "k int4",
            key: "k",
            keys: ["1", "2", "3"],
            changed: "k = -2147483648",
            ids: [json!(1), json!(2), json!(3), json!(-2_147_483_648_i64)],
        },
        Keys {
            columns: "k int8",
            key: "k",
            keys: ["9007199254740993", "9223372036854775807", "2"],
            changed: "k = 9007199254740992",
            ids: [
                json!(9_007_199_254_740_993_i64),
                json!(9_223_372_036_854_775_807_i64),
                json!(2),
                json!(9_007_199_254_740_992_i64),
            ],
        },
        Keys {
            columns: "k text",
            key: "k",
            keys: ["'how-to'", "'It''s \\ \"ü\" {}'", "''"],
            changed: "k = 'how-to '",
            ids: [json!("how-to"), json!("It's \\ \"ü\" {}"), json!(""), json!("how-to ")],
        },
        Keys {
            columns: "k uuid",
            key: "k",
            keys: [
                "'6f0e5a4c-0000-4000-8000-00000000000a'",
                "'6F0E5A4C-0000-4000-8000-00000000000B'",
                "'6f0e5a4c-0000-4000-8000-00000000000c'",
            ],
            changed: "k = '6f0e5a4c-0000-4000-8000-00000000000d'",
            ids: ["a", "b", "c", "d"].map(|end| json!(format!("6f0e5a4c-0000-4000-8000-00000000000{end}"))),
        },
        Keys {
            columns: "lang varchar(5), nr int4",
            key: "nr, lang",
            keys: ["'de', 1", "'en', 1", "'de', 2"],
            changed: "lang = 'fr'",
            ids: [("de", 1), ("en", 1), ("de", 2), ("fr", 1)].map(|(lang, nr)| json!({"lang": lang, "nr": nr})),
        },
        Keys {
            columns: "at timestamptz, raw bytea, price numeric",
            key: "at, raw, price",
            keys: [
                "'2026-01-02 03:04:05.678+02', '\\xdeadbeef', 1.10",
                "'2026-01-02 03:04:05.678+02', '', 1.10",
                "'infinity', '\\x00', 'NaN'",
            ],
            changed: "price = 1.100",
            ids: [
                json!({"at": "2026-01-02T01:04:05.678Z", "raw": "3q2+7w==", "price": "1.10"}),
                json!({"at": "2026-01-02T01:04:05.678Z", "raw": "", "price": "1.10"}),
                json!({"at": "infinity", "raw": "AA==", "price": "NaN"}),
                json!({"at": "2026-01-02T01:04:05.678Z", "raw": "3q2+7w==", "price": "1.100"}),
            ],
        },
    ]
}

#[test]
fn rows_are_followed_under_keys_of_any_type_and_through_changes_of_the_key() {
    let mut site = Site::prepare();
    for Keys { columns, key, keys: [a, b, c], changed, ids: [id_a, id_b, id_c, id_new] } in kinds_of_keys() {
        eprintln!("key ({columns})");
        item(&mut site, &format!("{columns}, PRIMARY KEY ({key})"), "", "");
        site.sql.execute("ALTER TABLE item ALTER answer SET STORAGE EXTERNAL");
        let long = "Long. ".repeat(LONG / 6);
        let names: Vec<&str> = columns.split(", ").map(|column| column.split(' ').next().unwrap()).collect();
        let insert = |key: &str, answer: &str| {
            format!("INSERT INTO item ({}, answer) VALUES ({key}, '{answer}')", names.join(", "))
        };
        let is = |key: &str| format!("({}) = ({key})", names.join(", "));
        site.sql.execute(&format!("{}; {}", insert(a, &long), insert(b, "B")));
        site.vecsync.start_ready();
        expect(&mut site, &[(id_a.clone(), &long), (id_b.clone(), "B")]);
        site.sql.execute(&insert(c, "C"));
        // Neither carries the long answer: it is read by the key.
        site.sql.execute(&format!("UPDATE item SET question = 'Changed' WHERE {}", is(a)));
        wait_until("the question", SOON, || {
            let results = results(&mut site.vecsync)?;
            let changed = results.iter().any(|row| row["id"] == id_a && row["payload"]["question"] == "Changed");
            if changed { Ok(()) } else { Err(format!("{results:.300?}")) }
        });
        site.sql.execute(&format!("UPDATE item SET {changed} WHERE {}", is(a)));
        expect(&mut site, &[(id_new.clone(), &long), (id_b.clone(), "B"), (id_c.clone(), "C")]);
        site.sql.execute(&format!("DELETE FROM item WHERE {}; UPDATE item SET answer = 'D' WHERE {}", is(b), is(c)));
        expect(&mut site, &[(id_new, &long), (id_c, "D")]);
        forget(&mut site);
    }
}

/// Column, value as SQL, and as JSON.
fn values() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("mood", "'so-so'", json!("so-so")),
        ("moods mood[]", "'{so-so,good}'", json!(["so-so", "good"])),
        ("email", "'A@b.example'", json!("A@b.example")),
        ("positive", "7", json!(7)),
        ("json", r#"'{"b": [1, null],  "a": 1.50}'"#, json!({"b": [1, null], "a": 1.50})),
        ("jsonb", r#"'{"b": [1, null], "a": "x"}'"#, json!({"a": "x", "b": [1, null]})),
        ("json[]", r#"ARRAY['{"a": "\""}', '3']::json[]"#, json!([{"a": "\""}, 3])),
        ("numeric", "12345678901234567890.10", json!("12345678901234567890.10")),
        ("numeric nan", "'NaN'", json!("NaN")),
        ("numeric infinite", "'-Infinity'", json!("-Infinity")),
        ("numeric(6,2)", "3", json!("3.00")),
        ("float8", "0.1", json!(0.1)),
        ("float8 infinite", "'Infinity'", json!("Infinity")),
        ("float4 nan", "'NaN'", json!("NaN")),
        ("bool", "true", json!(true)),
        ("int8", "-9223372036854775808", json!(-9_223_372_036_854_775_808_i64)),
        ("oid", "4294967295", json!(4_294_967_295_u32)),
        ("timestamptz", "'2026-01-02 03:04:05.678901+02'", json!("2026-01-02T01:04:05.678901Z")),
        ("timestamptz infinite", "'-infinity'", json!("-infinity")),
        ("timestamp", "'2026-01-02 03:04:05'", json!("2026-01-02T03:04:05")),
        ("timestamp infinite", "'infinity'", json!("infinity")),
        ("timestamp early", "'0044-03-15 12:00:00 BC'", json!("0044-03-15 12:00:00 BC")),
        ("date", "'2026-01-02'", json!("2026-01-02")),
        ("date infinite", "'infinity'", json!("infinity")),
        ("time", "'03:04:05.5'", json!("03:04:05.5")),
        ("timetz", "'03:04:05+02'", json!("03:04:05+02:00")),
        ("interval", "'1 year 2 days 03:04:05'", json!("P1Y2DT3H4M5S")),
        ("bytea", r"'\xdeadBEEF00'", json!("3q2+7wA=")),
        ("bytea[]", r"ARRAY['\xff'::bytea, NULL]", json!(["/w==", null])),
        ("uuid", "'6F0E5A4C-0000-4000-8000-00000000000A'", json!("6f0e5a4c-0000-4000-8000-00000000000a")),
        ("inet", "'10.1.2.3/8'", json!("10.1.2.3/8")),
        ("cidr", "'10.0.0.0/8'", json!("10.0.0.0/8")),
        ("int4[]", "'[0:1][5:6]={{1,2},{3,NULL}}'", json!([[1, 2], [3, null]])),
        ("text[]", r#"ARRAY['a,b', 'NULL', NULL, '', '"\']"#, json!(["a,b", "NULL", null, "", "\"\\"])),
        ("timestamptz[]", "ARRAY['2026-01-02 03:04:05+00'::timestamptz]", json!(["2026-01-02T03:04:05Z"])),
        ("int4range", "'[1,5)'", json!("[1,5)")),
        ("pair", "ROW(1, 'a b')", json!("(1,\"a b\")")),
        ("char(4)", "'ab'", json!("ab  ")),
        ("bit(3)", "B'101'", json!("101")),
        ("xml", "'<a>b</a>'", json!("<a>b</a>")),
        ("point", "'(1,2.5)'", json!("(1,2.5)")),
        ("text", "E'tab\\tline\\nback\\\\slash \\u00fc'", json!("tab\tline\nback\\slash ü")),
        ("text nothing", "NULL", Value::Null),
    ]
}

#[test]
fn values_of_every_type_are_the_same_from_the_snapshot_and_from_the_stream() {
    let mut site = Site::prepare();
    site.sql.execute(
        "CREATE TYPE mood AS ENUM ('good', 'so-so'); CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%');
         CREATE DOMAIN positive AS int4 CHECK (VALUE > 0); CREATE TYPE pair AS (a int, b text);
         ALTER ROLE vecsync SET datestyle = 'German, DMY'; ALTER ROLE vecsync SET timezone = 'America/St_Johns';
         ALTER ROLE vecsync SET bytea_output = 'escape'; ALTER ROLE vecsync SET intervalstyle = 'sql_standard'",
    );
    let values = values();
    // A second word of the type is a remark, or the type itself where the first one is a name.
    let kind = |text: &'static str| if text == "moods mood[]" { "mood[]" } else { text.split(' ').next().unwrap() };
    let columns: Vec<String> =
        values.iter().enumerate().map(|(n, (text, ..))| format!("c{n} {}", kind(text))).collect();
    let names: Vec<String> = (0..values.len()).map(|n| format!("c{n}")).collect();
    let sql: Vec<&str> = values.iter().map(|(_, sql, _)| *sql).collect();
    let payload_columns: String = names.iter().map(|name| format!(", {name:?}")).collect();
    item(&mut site, &format!("id int PRIMARY KEY, {}", columns.join(", ")), "", &payload_columns);
    let insert = |id: i32, answer: &str| {
        format!("INSERT INTO item (id, answer, {}) VALUES ({id}, '{answer}', {})", names.join(", "), sql.join(", "))
    };
    site.sql.execute("ALTER TABLE item REPLICA IDENTITY FULL");
    site.sql.execute(&insert(1, "Snapshot"));
    site.vecsync.start_ready();
    site.sql.execute(&format!("{}; {}; {}", insert(2, "Stream"), insert(3, "Update"), insert(4, "Deleted")));
    site.sql.execute("UPDATE item SET answer = 'Updated' WHERE id = 3; DELETE FROM item WHERE id = 4");
    let mut wanted: Map<String, Value> = names.iter().cloned().zip(values.iter().map(|one| one.2.clone())).collect();
    wanted.insert("question".into(), json!("Q"));
    for answer in ["Snapshot", "Stream", "Updated"] {
        let found = payload(&mut site, answer);
        for (name, wanted) in &wanted {
            assert_eq!(found[name].to_string(), wanted.to_string(), "{name} of {answer}");
        }
        assert_eq!(found.len(), wanted.len());
    }
    // A row that is read by its key is the same, too.
    let verified = site.vecsync.run(&["verify"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn a_replica_identity_of_another_index_or_of_the_whole_row_is_followed_and_none_is_refused() {
    let mut site = Site::prepare();
    item(&mut site, "id int, slug text NOT NULL UNIQUE, tag text, UNIQUE (id, slug)", "", "");
    refused(&site, &["public.item", "primary key", "ALTER TABLE public.item ADD PRIMARY KEY"]);
    site.sql.execute("ALTER TABLE item ADD PRIMARY KEY (id); ALTER TABLE item REPLICA IDENTITY NOTHING");
    refused(&site, &["ALTER TABLE public.item REPLICA IDENTITY DEFAULT;"]);
    site.sql.execute("ALTER TABLE item REPLICA IDENTITY USING INDEX item_slug_key");
    refused(&site, &["item_slug_key", "primary key", "REPLICA IDENTITY DEFAULT;"]);
    assert_eq!(site.sql.value("SELECT count(*) FROM pg_replication_slots"), "0", "it streamed before it refused");

    site.sql.execute("ALTER TABLE item REPLICA IDENTITY USING INDEX item_id_slug_key");
    let long = "Long. ".repeat(LONG / 6);
    site.sql.execute(&format!(
        "ALTER TABLE item ALTER answer SET STORAGE EXTERNAL;
         INSERT INTO item (id, slug, answer) SELECT n, 's' || n, 'Row ' || n FROM generate_series(1, 4) n;
         UPDATE item SET answer = '{long}' WHERE id = 1"
    ));
    site.vecsync.start_ready();
    // By the index, then by the whole row, which is changed while rows are followed.
    for round in ["A", "B"] {
        site.sql.execute(&format!(
            "UPDATE item SET slug = '{round}' WHERE id = 1; UPDATE item SET answer = '{round}' WHERE id = 2"
        ));
        site.sql.execute("UPDATE item SET id = id + 10 WHERE id IN (1, 3); DELETE FROM item WHERE id = 4");
        expect(&mut site, &[(json!(11), &long), (json!(2), round), (json!(13), "Row 3")]);
        site.sql.execute("ALTER TABLE item REPLICA IDENTITY FULL");
        site.sql.execute(
            "UPDATE item SET id = id - 10 WHERE id > 10; INSERT INTO item (id, slug, answer) VALUES (4, 's4', 'Row 4')",
        );
        expect(&mut site, &[(json!(1), &long), (json!(2), round), (json!(3), "Row 3"), (json!(4), "Row 4")]);
    }
    expect_healthy(&mut site);
}

#[test]
fn tables_that_are_truncated_together_leave_what_came_after() {
    let mut site = Site::prepare();
    item(&mut site, "id int PRIMARY KEY", "", "");
    site.sql.execute(
        "CREATE TABLE author (id int PRIMARY KEY); CREATE TABLE note (id int PRIMARY KEY, item int REFERENCES item);
         CREATE TABLE unpublished (id int); ALTER PUBLICATION vecsync_faq ADD TABLE author, note;
         INSERT INTO item (id, answer) SELECT n, 'Old' FROM generate_series(1, 20) n",
    );
    site.vecsync.start_ready();
    let insert = |ids: &str, answer: &str| {
        format!("INSERT INTO item (id, answer) SELECT n, '{answer}' FROM unnest(ARRAY[{ids}]) n")
    };
    site.sql.execute(&insert("21", "Old"));
    wait_until("all rows", SOON, || match answers(&mut site.vecsync)?.len() {
        21 => Ok(()),
        rows => Err(rows.to_string()),
    });
    site.sql.execute(&format!(
        "BEGIN; {}; TRUNCATE author, note, item, unpublished; {}; COMMIT",
        insert("22", "Old"),
        insert("1, 30", "New")
    ));
    expect(&mut site, &[(json!(1), "New"), (json!(30), "New")]);
    // By way of a table that the pipeline does not follow; twice in one transaction.
    site.sql.execute("ALTER TABLE item ADD author int REFERENCES author");
    site.sql.execute(&format!(
        "BEGIN; {}; TRUNCATE author CASCADE; {}; TRUNCATE item CASCADE; {}; COMMIT",
        insert("31", "Old"),
        insert("32", "Old"),
        insert("1, 33", "Newer")
    ));
    expect(&mut site, &[(json!(1), "Newer"), (json!(33), "Newer")]);
    site.vecsync.kill();
    site.sql.execute("TRUNCATE item, note RESTART IDENTITY");
    site.sql.execute(&insert("7", "Last"));
    site.vecsync.start_ready();
    expect(&mut site, &[(json!(7), "Last")]);
    expect_healthy(&mut site);
}

#[test]
fn large_answers_that_were_not_sent_are_read_many_at_a_time() {
    const ROWS: usize = 400;
    let mut site = Site::prepare_with(&[("log_statement", "all")]);
    item(&mut site, "id int PRIMARY KEY", "", "");
    site.sql.execute("ALTER TABLE item ALTER answer SET STORAGE EXTERNAL");
    site.vecsync.write_pipeline(&pipeline("").replace("{{ answer }}", "{{ answer[:20] }}"));
    site.sql.execute(&format!(
        "INSERT INTO item (id, answer) SELECT n, 'Answer ' || n || repeat('.', {LONG}) FROM generate_series(1, {ROWS}) n"
    ));
    site.vecsync.start_ready();
    site.sql.execute("UPDATE item SET question = 'Changed'");
    wait_until("the last question", SOON, || {
        let found = site.vecsync.get("/search?q=Changed&limit=100&min_score=-1").json();
        let results = found["results"].as_array().unwrap();
        let changed = results.iter().filter(|row| row["payload"]["question"] == "Changed").count();
        if changed == 100 { Ok(()) } else { Err(changed.to_string()) }
    });
    let read = |log: &str| log.lines().filter(|line| line.contains("IN (('")).count();
    let queries = read(&site.postgres.log());
    // One for what came in one piece from the socket.
    assert!((1..=ROWS / 20).contains(&queries), "{queries} queries for {ROWS} rows");
    assert_eq!(site.vecsync.run(&["verify"]).code, Some(0));
}

#[test]
fn a_prepared_transaction_that_holds_up_the_slot_is_named() {
    let mut site = Site::prepare_with(&[("max_prepared_transactions", "1")]);
    item(&mut site, "id int PRIMARY KEY", "", "");
    site.sql.execute("BEGIN; INSERT INTO item (id, answer) VALUES (1, 'Prepared'); PREPARE TRANSACTION 'it''s kept'");
    site.vecsync.start();
    site.vecsync.wait_for_log("COMMIT PREPARED or ROLLBACK PREPARED 'it''s kept'", SOON);
    site.sql.execute("COMMIT PREPARED 'it''s kept'");
    site.vecsync.wait_ready();
    expect(&mut site, &[(json!(1), "Prepared")]);
}
