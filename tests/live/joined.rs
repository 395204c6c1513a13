//! Documents out of several tables: each change of any of them reaches exactly the documents that it concerns.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::escape;
use crate::support::postgres::Sql;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::vecsync::Vecsync;

pub const CAUGHT_UP: Duration = Duration::from_secs(60);

/// What a document is. Also run by the tests themselves.
pub const QUERY: &str = "SELECT f.id, f.question, f.answer, f.is_active, c.name AS category,
       coalesce(array_agg(t.name ORDER BY t.name) FILTER (WHERE t.id IS NOT NULL), '{}') AS tags
  FROM faq_faq f JOIN faq_category c ON c.id = f.category_id
  LEFT JOIN faq_faq_tags ft ON ft.faq_id = f.id LEFT JOIN faq_tag t ON t.id = ft.tag_id
  WHERE f.id = ANY($1) GROUP BY f.id, c.name";

pub const WATCH: &str = r#"[[source.watch]]
table = "public.faq_category"
affects = "SELECT id FROM faq_faq WHERE category_id = ANY($1)"
[[source.watch]]
table = "public.faq_tag"
affects = "SELECT faq_id FROM faq_faq_tags WHERE tag_id = ANY($1)"
[[source.watch]]
table = "public.faq_faq_tags"
keys = ["faq_id"]
affects = "SELECT unnest($1::bigint[])"
"#;

/// The tables as Django makes them, without constraints between them: what refers to nothing is to be lived with, too.
pub const TABLES: &str = "CREATE TABLE faq_category (id bigint PRIMARY KEY, name text NOT NULL);
    CREATE TABLE faq_tag (id bigint PRIMARY KEY, name text NOT NULL);
    CREATE TABLE faq_faq_tags (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, faq_id bigint NOT NULL,
        tag_id bigint NOT NULL);
    CREATE UNIQUE INDEX faq_faq_tags_both ON faq_faq_tags (faq_id, tag_id);
    CREATE INDEX ON faq_faq_tags (tag_id);
    ALTER TABLE faq_faq_tags REPLICA IDENTITY USING INDEX faq_faq_tags_both;
    ALTER TABLE faq_faq ADD COLUMN category_id bigint;
    CREATE INDEX ON faq_faq (category_id);
    GRANT SELECT ON faq_category, faq_tag, faq_faq_tags TO vecsync;
    ALTER PUBLICATION vecsync_faq ADD TABLE faq_category, faq_tag, faq_faq_tags";

pub fn pipeline(query: &str, watch: &str) -> String {
    format!(
        "name = \"faq\"\n[source]\ntable = \"public.faq_faq\"\nquery = \"\"\"\n{query}\"\"\"\n{watch}\n[document]\n\
         title = \"{{{{ question }}}}\"\ntext = \"{{{{ answer }}}}\"\n\
         payload = [\"id\", \"question\", \"answer\", \"category\", \"tags\"]\nwhen = \"is_active\"\n\
         [index]\nfilters = [\"category\", \"id\"]\n"
    )
}

/// A site with these tables and this pipeline.
pub fn prepare() -> Site {
    prepare_on(Site::prepare())
}

/// The same on a site that has the documents' table alone.
pub fn prepare_on(site: Site) -> Site {
    site.sql.execute(TABLES);
    site.vecsync.write_pipeline(&pipeline(QUERY, WATCH));
    site
}

/// Questions 1 to `count` with one text, so that the model is not what is measured. The first five are in category 2 and the rest in
/// category 1; there is a tag, and none has it.
pub fn fill_alike(sql: &Sql, count: usize) {
    sql.execute(&format!(
        "INSERT INTO faq_category VALUES (1, 'Large'), (2, 'Small'); INSERT INTO faq_tag VALUES (1, 'tagged');
         INSERT INTO faq_faq (id, question, answer, category_id)
             SELECT n, 'The same?', 'The same.', CASE WHEN n > 5 THEN 1 ELSE 2 END FROM generate_series(1, {count}) n;
         ANALYZE faq_faq"
    ));
}

/// Questions 1 to `count`, the nth in category n % 4, each tagged twice out of six.
fn fill(sql: &Sql, count: usize) {
    sql.execute(&format!(
        "INSERT INTO faq_category SELECT n, 'Category ' || n FROM generate_series(0, 3) n;
         INSERT INTO faq_tag SELECT n, 'tag ' || n FROM generate_series(0, 5) n;
         INSERT INTO faq_faq (id, question, answer, category_id)
             SELECT n, 'How do I do ' || n || '?', 'By doing it ' || n || ' times.', n % 4 FROM generate_series(1, {count}) n;
         INSERT INTO faq_faq_tags (faq_id, tag_id) SELECT n, (n + m) % 6 FROM generate_series(1, {count}) n, generate_series(0, 1) m"
    ));
}

/// What the query gives for all rows, as a search shows it.
pub fn wanted(sql: &Sql, query: &str) -> Vec<Value> {
    let query = query.replace("ANY($1)", "ANY(ARRAY(SELECT id FROM faq_faq))");
    let rows = sql.query(&format!(
        "SELECT jsonb_build_object('id', id, 'question', question, 'answer', answer, 'category', category, 'tags', tags)
         FROM ({query}) d WHERE is_active ORDER BY id"
    ));
    rows.iter().map(|row| serde_json::from_str(row.get(0).unwrap()).unwrap()).collect()
}

/// Whether the index is what the query gives for the whole table now.
pub fn difference(vecsync: &mut Vecsync, sql: &Sql, query: &str) -> Result<(), String> {
    let wanted = wanted(sql, query);
    match vecsync.points() {
        Some(points) if points == wanted.len() as u64 => {}
        points => return Err(format!("{} documents and {points:?} points", wanted.len())),
    }
    for document in wanted {
        let id = document["id"].as_i64().unwrap();
        match vecsync.row_if_answered(id) {
            Some(found) if found == document => {}
            found => return Err(format!("{id} is {found:?} and should be {document}")),
        }
    }
    Ok(())
}

#[track_caller]
pub fn expect_documents(site: &mut Site, query: &str) {
    wait_until("the index to be what the query gives", CAUGHT_UP, || difference(&mut site.vecsync, &site.sql, query));
}

fn events(site: &mut Site, op: &str) -> f64 {
    let labels = format!("op=\"{op}\"");
    let answer = site.http.get("/metrics").unwrap();
    let is_ours = |line: &&str| {
        line.starts_with("vecsync_events_total{") && line.contains(&labels) && line.contains("stage=\"capture\"")
    };
    answer.body.lines().filter(is_ours).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

pub fn embedded(site: &mut Site) -> f64 {
    site.metric("vecsync_embeddings_total", "computed").unwrap_or_default()
}

/// Runs this, and waits until it has reached the index. Documents that were published as changed, as gone, and texts embedded.
#[track_caller]
fn change(site: &mut Site, sql: &str) -> (f64, f64, f64) {
    let before = (events(site, "update"), events(site, "delete"), embedded(site));
    site.sql.execute(sql);
    expect_documents(site, QUERY);
    (events(site, "update") - before.0, events(site, "delete") - before.1, embedded(site) - before.2)
}

#[test]
fn each_change_of_any_table_reaches_exactly_the_documents_it_concerns() {
    each_change_is_followed(prepare());
}

/// Walks over the ground on a site whose tables are empty.
pub fn each_change_is_followed(mut site: Site) {
    fill(&site.sql, 40);
    site.vecsync.start_ready();
    expect_documents(&mut site, QUERY);

    // Texts do not have the category's name: nothing is embedded.
    assert_eq!(change(&mut site, "UPDATE faq_category SET name = 'Billing' WHERE id = 1"), (10.0, 0.0, 0.0));
    assert_eq!(change(&mut site, "INSERT INTO faq_faq_tags (faq_id, tag_id) VALUES (7, 5)"), (1.0, 0.0, 0.0));
    assert_eq!(change(&mut site, "DELETE FROM faq_faq_tags WHERE faq_id = 7 AND tag_id = 5"), (1.0, 0.0, 0.0));
    let tagged = site.sql.value("SELECT count(*) FROM faq_faq_tags WHERE tag_id = 3").parse::<f64>().unwrap();
    assert_eq!(change(&mut site, "UPDATE faq_tag SET name = 'urgent' WHERE id = 3"), (tagged, 0.0, 0.0));
    // A link that moves concerns both.
    assert_eq!(
        change(&mut site, "UPDATE faq_faq_tags SET faq_id = 9 WHERE faq_id = 8 AND tag_id = 2"),
        (2.0, 0.0, 0.0)
    );
    assert_eq!(change(&mut site, "UPDATE faq_faq SET category_id = 2 WHERE id = 5"), (1.0, 0.0, 0.0));
    let (changed, gone, embedded) = change(&mut site, "UPDATE faq_faq SET answer = 'Not at all, I fear.' WHERE id = 6");
    assert_eq!((changed, gone), (1.0, 0.0));
    assert!(embedded > 0.0);
    // A category goes, and its questions have none: the query gives them no more.
    assert_eq!(change(&mut site, "DELETE FROM faq_category WHERE id = 3"), (0.0, 10.0, 0.0));
    assert_eq!(change(&mut site, "INSERT INTO faq_category VALUES (3, 'Back again')"), (10.0, 0.0, 0.0));
    // With its questions, in one transaction.
    let category = "BEGIN; DELETE FROM faq_category WHERE id = 0; DELETE FROM faq_faq_tags WHERE faq_id IN \
                    (SELECT id FROM faq_faq WHERE category_id = 0); DELETE FROM faq_faq WHERE category_id = 0; COMMIT";
    let (changed, gone, embedded) = change(&mut site, category);
    // What the stream brings in pieces can name a key twice.
    assert!(changed == 0.0 && (10.0..=20.0).contains(&gone) && embedded == 0.0, "{changed}, {gone}, {embedded}");
    change(
        &mut site,
        "BEGIN; INSERT INTO faq_category VALUES (9, 'New'); INSERT INTO faq_tag VALUES (9, 'fresh');
         INSERT INTO faq_faq (id, question, answer, category_id) VALUES (100, 'Is it new?', 'It is.', 9);
         INSERT INTO faq_faq_tags (faq_id, tag_id) VALUES (100, 9), (1, 9); UPDATE faq_faq SET id = 101 WHERE id = 2;
         UPDATE faq_faq_tags SET faq_id = 101 WHERE faq_id = 2; UPDATE faq_category SET id = 77 WHERE id = 2;
         UPDATE faq_faq SET category_id = 77 WHERE category_id = 2; COMMIT",
    );
    // While its identity lacks the key, a change does not tell what it concerns.
    for change in
        ["DELETE FROM faq_faq_tags WHERE faq_id = 10", "UPDATE faq_faq_tags SET faq_id = 14 WHERE faq_id = 13"]
    {
        site.sql.execute(&format!(
            "BEGIN; ALTER TABLE faq_faq_tags REPLICA IDENTITY DEFAULT; COMMIT; BEGIN; DELETE FROM faq_faq_tags WHERE faq_id = 14;
             {change}; COMMIT; BEGIN; ALTER TABLE faq_faq_tags REPLICA IDENTITY USING INDEX faq_faq_tags_both; COMMIT"
        ));
        expect_documents(&mut site, QUERY);
    }
    // What is rolled back has not happened.
    assert_eq!(change(&mut site, "BEGIN; UPDATE faq_category SET name = 'x'; ROLLBACK").0, 0.0);
    change(&mut site, "TRUNCATE faq_faq_tags");
    change(
        &mut site,
        "BEGIN; TRUNCATE faq_faq, faq_faq_tags; INSERT INTO faq_faq (id, question, answer, category_id) VALUES (7, 'Who?', 'Me.', 1); COMMIT",
    );
    let verified = site.run(&["verify", "--json"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn sync_verify_and_a_restart_read_the_same_query() {
    let mut site = prepare();
    fill(&site.sql, 24);
    // One that the query does not give.
    site.sql.execute("INSERT INTO faq_faq (id, question, answer, category_id) VALUES (900, 'Lost?', 'Yes.', 900)");
    site.vecsync.start_ready();
    expect_documents(&mut site, QUERY);
    let asked = |site: &Site, arguments: &[&str]| {
        let ended = site.run_within(arguments, CAUGHT_UP);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str::<Value>(&ended.stdout).unwrap()
    };
    let stats = asked(&site, &["sync", "--stats-only", "--json"]);
    assert_eq!(stats["source"]["rows"], 24, "{stats}");
    assert_eq!(stats["source"]["log_rows"], 24, "{stats}");
    let counts = asked(&site, &["sync", "--dry-run", "--json"]);
    assert_eq!(counts["stores"][0]["unchanged"], 24, "{counts}");
    let report = asked(&site, &["verify", "--json"]);
    assert_eq!((&report["rows"], &report["stores"][0]["same"]), (&json!(24), &json!(24)), "{report}");
    let synced = asked(&site, &["sync", "--json"]);
    assert_eq!((&synced["deleted"], &synced["embeddings"]["computed"]), (&json!(0), &json!(0)), "{synced}");
    let checked = site.run(&["check", "--skip-operations"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(
        checked.stdout.contains("documents") && checked.stdout.contains("watches public.faq_category by id"),
        "{checked:?}"
    );

    // Changes that nobody followed, and then others: a sync finds the ones, the stream the others.
    site.vecsync.kill();
    site.sql.execute("UPDATE faq_category SET name = 'While away' WHERE id = 1; DELETE FROM faq_faq WHERE id = 3");
    site.vecsync.start_ready();
    expect_documents(&mut site, QUERY);
    site.vecsync.kill();
    let slot = "SELECT count(*) FROM pg_replication_slots WHERE active";
    wait_until("the slot to be free", CAUGHT_UP, || match site.sql.value(slot).as_str() {
        "0" => Ok(()),
        _ => Err("it is active".to_owned()),
    });
    site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
    site.sql.execute("UPDATE faq_tag SET name = 'unseen' WHERE id = 1; DELETE FROM faq_faq WHERE id = 4");
    let noted = site.run(&["sync"]);
    assert_eq!(noted.code, Some(0), "{noted:?}");
    site.vecsync.start_ready();
    expect_documents(&mut site, QUERY);

    // Another query makes other documents of rows that nobody changed.
    site.vecsync.terminate();
    let other = QUERY.replace("c.name AS category", "upper(c.name) AS category");
    site.vecsync.write_pipeline(&pipeline(&other, WATCH));
    site.vecsync.start_ready();
    expect_documents(&mut site, &other);
}

#[test]
fn keys_of_several_columns_and_of_any_type_and_tables_that_are_watched_twice() {
    let site = &mut Site::prepare();
    site.sql.execute(
        "CREATE TABLE page (lang text, number uuid, body text NOT NULL, parent uuid, PRIMARY KEY (number, lang));
         CREATE INDEX ON page (lang, parent);
         CREATE TABLE word (lang text, term text, meaning text, PRIMARY KEY (term, lang));
         CREATE TABLE uses (term text, lang text, number uuid, weight numeric);
         ALTER TABLE uses REPLICA IDENTITY FULL; CREATE INDEX ON uses (lang, term); CREATE INDEX ON uses (number, lang);
         GRANT SELECT ON page, word, uses TO vecsync; ALTER PUBLICATION vecsync_faq ADD TABLE page, word, uses",
    );
    site.vecsync.write_pipeline(
        r#"name = "faq"
[source]
table = "page"
query = """SELECT p.lang, p.number, p.body, u.body AS above, w.words FROM page p
    LEFT JOIN page u ON (u.lang, u.number) = (p.lang, p.parent)
    LEFT JOIN LATERAL (SELECT string_agg(w.term || ': ' || w.meaning, ', ' ORDER BY w.term) AS words
        FROM uses JOIN word w USING (term, lang) WHERE (uses.lang, uses.number) = (p.lang, p.number)) w ON true
    WHERE (p.lang, p.number) IN (SELECT * FROM unnest($1::text[], $2::uuid[])) -- in the order of the columns
"""
[[source.watch]]
table = "page"
affects = """SELECT number, lang FROM page WHERE (lang, parent) IN (SELECT * FROM unnest($1::text[], $2::uuid[]))"""
[[source.watch]]
table = "word"
affects = """SELECT u.lang, u.number FROM uses u JOIN unnest($1::text[], $2::text[]) k (lang, term) USING (lang, term)"""
[[source.watch]]
table = "uses"
keys = ["lang", "number"]
affects = """SELECT k.lang, k.number FROM unnest($1::text[], $2::uuid[]) k (lang, number)"""
[document]
text = "{{ body }}"
payload = ["lang", "number", "body", "above", "words"]
[index]
filters = ["number"]
"#,
    );
    let page = |n: u32| format!("00000000-0000-0000-0000-{n:012}");
    site.sql.execute(&format!(
        "INSERT INTO page VALUES ('en', '{0}', 'Top', NULL), ('en', '{1}', 'Below', '{0}'), ('it''s \\\"{{}},', '{1}', 'Odd', NULL);
         INSERT INTO word VALUES ('en', 'sled', 'a store'); INSERT INTO uses VALUES ('sled', 'en', '{1}', 1.50)",
        page(1),
        page(2)
    ));
    site.vecsync.start_ready();
    let expect = |site: &mut Site, n: u32, wanted: Value| {
        wait_until("the documents", CAUGHT_UP, || {
            let path = format!("/search?q=page&limit=9&min_score=-1&filter=number:{}", page(n));
            let answer = site.http.get(&path).map_err(|error| error.to_string())?.json();
            let results = answer["results"].as_array().cloned().unwrap_or_default();
            let mut found: Vec<Value> = results
                .iter()
                .map(|one| {
                    json!([
                        one["payload"]["lang"],
                        one["payload"]["body"],
                        one["payload"]["above"],
                        one["payload"]["words"]
                    ])
                })
                .collect();
            found.sort_by_key(Value::to_string);
            if json!(found) == wanted { Ok(()) } else { Err(answer.to_string()) }
        });
    };
    let odd = json!(["it's \\\"{},", "Odd", null, null]);
    expect(site, 2, json!([["en", "Below", "Top", "sled: a store"], odd]));
    site.sql.execute(&format!("UPDATE page SET body = 'Summit' WHERE number = '{}'", page(1)));
    expect(site, 2, json!([["en", "Below", "Summit", "sled: a store"], odd]));
    site.sql.execute("UPDATE word SET meaning = 'a database' WHERE term = 'sled'");
    expect(site, 2, json!([["en", "Below", "Summit", "sled: a database"], odd]));
    site.sql.execute("DELETE FROM uses WHERE weight > 1");
    expect(site, 2, json!([["en", "Below", "Summit", null], odd]));
    site.sql.execute(&format!("UPDATE page SET number = '{}' WHERE number = '{}' AND lang <> 'en'", page(3), page(2)));
    expect(site, 2, json!([["en", "Below", "Summit", null]]));
    expect(site, 3, json!([odd]));
    // A column that the query does not name comes and goes, one that it names is gone: that is said, and mended.
    site.sql.execute("ALTER TABLE word ADD COLUMN note text; ALTER TABLE page RENAME COLUMN body TO content");
    site.sql.execute(&format!("UPDATE page SET content = 'Renamed' WHERE number = '{}'", page(3)));
    wait_until("health to name the column", CAUGHT_UP, || {
        let health = site.http.get("/health/detailed/").map_err(|error| error.to_string())?.body;
        if health.contains("source.query: column p.body does not exist") { Ok(()) } else { Err(health) }
    });
    site.sql.execute("ALTER TABLE page RENAME COLUMN content TO body");
    expect(site, 3, json!([["it's \\\"{},", "Renamed", null, null]]));
    // A row that the query fails for holds up no other.
    let verified = site.run_within(&["verify"], CAUGHT_UP);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn what_a_query_cannot_do_with_is_told_and_holds_up_nothing_and_a_key_is_one_however_it_is_spelled() {
    let site = &mut Site::prepare();
    site.sql.execute(
        "CREATE TABLE item (code numeric PRIMARY KEY, name text NOT NULL, size int NOT NULL);
         CREATE TABLE part (code numeric PRIMARY KEY, body text NOT NULL);
         CREATE TABLE note (id bigint PRIMARY KEY, object_id text NOT NULL, note text NOT NULL);
         CREATE UNIQUE INDEX note_both ON note (object_id, id);
         ALTER TABLE note REPLICA IDENTITY USING INDEX note_both; GRANT SELECT ON item, part, note TO vecsync;
         ALTER PUBLICATION vecsync_faq ADD TABLE item, part, note;
         INSERT INTO item VALUES (1.0, 'one', 1), (2.50, 'two', 2), (3, 'three', 1);
         INSERT INTO part VALUES (1, 'a'), (2.5, 'b'); INSERT INTO note VALUES (1, '1.00', 'first'), (2, 'none', 'odd')",
    );
    site.vecsync.write_pipeline(
        r#"name = "faq"
[source]
table = "item"
query = """SELECT coalesce(p.code, i.code) AS code, i.name, 10 / i.size AS share, p.body,
    (SELECT string_agg(n.note, ',' ORDER BY n.id) FROM note n WHERE n.object_id = i.code::text OR n.object_id = '1.00' AND i.code = 1)
        AS notes
    FROM item i LEFT JOIN part p ON p.code = i.code WHERE i.code = ANY($1)"""
[[source.watch]]
table = "part"
affects = "SELECT unnest($1::numeric[])"
[[source.watch]]
table = "note"
keys = ["object_id"]
affects = """SELECT id::numeric FROM unnest($1::text[]) AS t(id), generate_series(1, CASE id WHEN '3' THEN 1100 ELSE 1 END)
    -- as Django's generic keys are"""
[document]
text = "item"
payload = ["name", "share", "body", "notes"]
"#,
    );
    site.vecsync.start_ready();
    let expect = |site: &mut Site, wanted: Value| {
        wait_until("the documents", CAUGHT_UP, || {
            let answer =
                site.http.get("/search?q=item&limit=9&min_score=-1").map_err(|error| error.to_string())?.json();
            let results = answer["results"].as_array().cloned().unwrap_or_default();
            let of = |one: &Value| ["name", "share", "body", "notes"].map(|name| one["payload"][name].clone());
            let mut found: Vec<Value> = results.iter().map(|one| json!(of(one))).collect();
            found.sort_by_key(Value::to_string);
            if json!(found) == wanted { Ok(()) } else { Err(answer.to_string()) }
        });
    };
    expect(site, json!([["one", 10, "a", "first"], ["three", 10, null, null], ["two", 5, "b", null]]));
    // The table's own key, whatever a watched table or the query itself spells.
    site.sql.execute("UPDATE part SET body = 'A' WHERE code = 1; UPDATE item SET size = 5 WHERE code = 2.5");
    expect(site, json!([["one", 10, "A", "first"], ["three", 10, null, null], ["two", 2, "b", null]]));
    site.sql.execute("DELETE FROM item WHERE code = 2.5");
    expect(site, json!([["one", 10, "A", "first"], ["three", 10, null, null]]));
    // What is no key of anything is left out, and said, where the rest is a fan-out too.
    site.sql.execute(
        "UPDATE note SET note = note || '!'; INSERT INTO note VALUES (3, 'abc', 'x'), (4, '3', 'third');
         INSERT INTO note SELECT n, 'z' || n, 'x' FROM generate_series(10, 19) n",
    );
    expect(site, json!([["one", 10, "A", "first!"], ["three", 10, null, "third"]]));
    let said = "source.watch[1].affects fails for abc, whose change reaches no document: invalid input syntax for type numeric";
    site.vecsync.wait_for_log(said, CAUGHT_UP);
    assert!(!site.vecsync.log().contains("run source.watch"), "{}", site.vecsync.log());
    // A document that the query fails for stays as it was, with a dead letter; a new one is none.
    site.sql.execute(
        "UPDATE item SET size = 0 WHERE code = 3; INSERT INTO item VALUES (4, 'four', 0), (5, 'five', 5);
         UPDATE part SET body = 'last' WHERE code = 1",
    );
    expect(site, json!([["five", 2, null, null], ["one", 10, "last", "first!"], ["three", 10, null, "third"]]));
    let listed = site.run(&["dead-letters", "list", "--json"]);
    let letters = serde_json::from_str::<Value>(&listed.stdout).unwrap()["dead_letters"].clone();
    let of = |letter: &Value| format!("{} {}", letter["reason"], letter["error"]);
    let letters: Vec<String> = letters.as_array().unwrap().iter().map(of).collect();
    assert_eq!(letters.len(), 2, "{listed:?}");
    for letter in &letters {
        assert!(
            letter.starts_with("\"query\" \"source.query fails for ") && letter.contains("division by zero"),
            "{listed:?}"
        );
    }
    // One moment is read to its end, too.
    let verified = site.run_within(&["verify", "--json"], CAUGHT_UP);
    let report: Value = serde_json::from_str(&verified.stdout).unwrap_or_default();
    assert_eq!((&report["rows"], &report["put_aside"]["count"]), (&json!(4), &json!(2)), "{verified:?}");
    let counted = site.run_within(&["sync", "--dry-run", "--json"], CAUGHT_UP);
    assert_eq!(counted.code, Some(0), "{counted:?}");
    site.sql.execute("UPDATE item SET size = 10 WHERE size = 0");
    expect(
        site,
        json!([
            ["five", 2, null, null],
            ["four", 1, null, null],
            ["one", 10, "last", "first!"],
            ["three", 1, null, "third"]
        ]),
    );
    let verified = site.run_within(&["verify"], CAUGHT_UP);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

/// Fills the tables with many, and starts with all of them searchable.
pub fn start_loaded(site: &mut Site) {
    fill_alike(&site.sql, MANY);
    site.vecsync.start();
    wait_until("all to be loaded", A_FAN_OUT, || match site.vecsync.points() {
        Some(points) if points == MANY as u64 => Ok(()),
        points => Err(format!("{points:?} points")),
    });
    site.vecsync.wait_ready();
}

/// So many documents that a fan-out takes a while in a debug build. They have one text, so that the model is not what is measured.
pub const MANY: usize = 8_000;
/// How long one may take where others keep the machine busy.
pub const A_FAN_OUT: Duration = Duration::from_secs(240);

#[test]
fn a_single_change_is_searchable_soon_while_a_large_fan_out_runs_and_a_kill_repeats_it() {
    let mut site = prepare();
    start_loaded(&mut site);
    let is_renamed = |site: &mut Site, name: &str| {
        let counted =
            |from: usize| site.vecsync.row_if_answered(from as i64).is_some_and(|row| row["category"] == name);
        [6, MANY / 2, MANY].map(counted)
    };
    site.sql.execute("UPDATE faq_category SET name = 'Renamed' WHERE id = 1");
    wait_until("the fan-out to have begun", A_FAN_OUT, || {
        if is_renamed(&mut site, "Renamed").contains(&true) { Ok(()) } else { Err("nothing has come".to_owned()) }
    });
    let mut slowest = Duration::ZERO;
    let mut meanwhile = 0;
    for (number, change) in [
        "UPDATE faq_faq SET question = 'Other?' WHERE id = 1",
        "INSERT INTO faq_faq_tags (faq_id, tag_id) VALUES (2, 1)",
        "UPDATE faq_category SET name = 'Tiny' WHERE id = 2",
    ]
    .into_iter()
    .enumerate()
    {
        let begun = Instant::now();
        site.sql.execute(change);
        let id = number as i64 + 1;
        wait_until("a single change to be found", CAUGHT_UP, || {
            let row = site.vecsync.row_if_answered(id).unwrap_or_default();
            let is_there = match number {
                0 => row["question"] == "Other?",
                1 => row["tags"] == json!(["tagged"]),
                _ => row["category"] == "Tiny",
            };
            if is_there { Ok(()) } else { Err(row.to_string()) }
        });
        slowest = slowest.max(begun.elapsed());
        meanwhile += usize::from(is_renamed(&mut site, "Renamed").contains(&false));
    }
    eprintln!("the slowest of three took {slowest:?}; {meanwhile} were found while the fan-out ran");
    assert!(meanwhile > 0, "the fan-out was over before anything was changed beside it");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    // What is searchable is not called younger than the fan-out's cause while that runs.
    site.sql.execute("UPDATE faq_category SET name = 'Once more' WHERE id = 1");
    wait_until("the fan-out to have begun", A_FAN_OUT, || {
        if is_renamed(&mut site, "Once more").contains(&true) { Ok(()) } else { Err("nothing has come".to_owned()) }
    });
    site.vecsync.kill();
    site.vecsync.start_ready();
    let path = format!("/search?q={}&limit=1&min_score=-1&filter=category:{}", escape("the same"), escape("Renamed"));
    wait_until("the rest to have been renamed", A_FAN_OUT, || {
        let answer = site.http.get(&path).map_err(|error| error.to_string())?;
        match answer.json()["results"].as_array() {
            Some(results) if results.is_empty() => Ok(()),
            results => Err(format!("{results:?}")),
        }
    });
    assert_eq!(embedded(&mut site), 0.0, "a renamed category is in no text");
    let verified = site.run_within(&["verify"], A_FAN_OUT);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn pipeline_check_says_what_is_wrong_with_queries() {
    let site = prepare();
    let check = |query: &str, watch: &str, wanted: &[&str]| {
        site.vecsync.write_pipeline(&pipeline(query, watch));
        let ended = site.run(&["pipeline", "check", &site.path("pipeline.toml")]);
        let code = if wanted.is_empty() { 0 } else { 2 };
        assert_eq!(ended.code, Some(code), "{query} {watch} {ended:?}");
        for part in wanted {
            assert!(ended.stderr.contains(part), "{part:?} is not in {ended:?}");
        }
        ended
    };
    let good = check(QUERY, WATCH, &[]);
    assert!(good.stdout.contains("ok: faq from public.faq_faq, 6 columns by source.query"), "{good:?}");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/examples/faq_tables.toml");
    let example = site.run(&["pipeline", "check", example]);
    assert_eq!(example.code, Some(0), "{example:?}");
    assert!(example.stdout.contains("7 columns by source.query"), "{example:?}");
    let alone = check(QUERY, "", &[]);
    assert!(
        alone
            .stdout
            .contains("public.faq_category and public.faq_faq_tags and public.faq_tag are read and not watched"),
        "{alone:?}"
    );

    check(&QUERY.replace("GROUP BY", "GRUOP BY"), WATCH, &["source.query: syntax error", "in its line 5 at character"]);
    check(
        &QUERY.replace("f.id, f.question", "f.question"),
        WATCH,
        &["source.query: does not give id, the key of public.faq_faq"],
    );
    check(&QUERY.replace("f.id, f.question", "f.id::text AS id, f.question"), WATCH, &["gives id as text"]);
    check(&QUERY.replace("f.answer", "f.answer, 1 AS question"), WATCH, &["gives two columns question"]);
    check(&QUERY.replace("f.answer", "f.answer AS reply"), WATCH, &["document.text: there is no column `answer`"]);
    check(&QUERY.replace("ANY($1)", "$1"), WATCH, &["source.query: $1 is of type int8, wanted an array"]);
    check(&format!("{QUERY} HAVING count(*) < $2"), WATCH, &["source.query: has 2 parameters, wanted $1"]);
    check(
        &QUERY.replace("f.id = ANY($1)", "f.id::text = ANY($1)"),
        WATCH,
        &["source.query: reads all of public.faq_faq", "Scan"],
    );
    check("DELETE FROM faq_faq WHERE id = ANY($1)", WATCH, &["source.query: gives no rows; wanted a SELECT"]);
    check(
        "SELECT f.id FROM faq_faq f WHERE f.id = ANY($1); SELECT 1",
        WATCH,
        &["source.query: cannot insert multiple commands"],
    );
    check(
        QUERY,
        &WATCH.replace("category_id = ANY", "categry = ANY"),
        &["source.watch[0].affects: column \"categry\" does not exist"],
    );
    check(
        QUERY,
        &WATCH.replace("SELECT id FROM faq_faq WHERE", "SELECT question FROM faq_faq WHERE"),
        &["source.watch[0].affects: gives question as text"],
    );
    check(
        QUERY,
        &WATCH.replace("unnest($1::bigint[])", "unnest($1)"),
        &["source.watch[2].affects:", "given: $1::bigint[]"],
    );
    check(
        QUERY,
        &WATCH.replace("public.faq_tag\"", "public.faq_tags\""),
        &["source.watch[1].table: find table public.faq_tags", " or public.faq_tag?"],
    );
    check(
        QUERY,
        &WATCH.replace("\"faq_id\"", "\"faq\""),
        &["source.watch[2].table:", "source.watch[2].keys names faq", "it has id, faq_id, tag_id"],
    );
    site.sql.execute("DROP INDEX faq_faq_category_id_idx");
    check(QUERY, WATCH, &["source.watch[0].affects: reads all of public.faq_faq", "Scan"]);
    site.sql.execute("CREATE INDEX faq_faq_category_id_idx ON faq_faq (category_id)");
    site.sql.execute("ALTER TABLE faq_faq_tags REPLICA IDENTITY DEFAULT");
    check(
        QUERY,
        WATCH,
        &[
            "faq_id of source.watch[2].keys is not in its replica identity",
            "ALTER TABLE public.faq_faq_tags REPLICA IDENTITY USING INDEX faq_faq_tags_both;",
        ],
    );
    site.sql.execute("DROP INDEX faq_faq_tags_both");
    check(QUERY, WATCH, &["ALTER TABLE public.faq_faq_tags REPLICA IDENTITY FULL;"]);
    site.sql.execute("ALTER TABLE faq_faq_tags REPLICA IDENTITY FULL; CREATE INDEX ON faq_faq_tags (faq_id)");
    check(QUERY, WATCH, &[]);
    // A table in partitions is one table.
    site.sql.execute(
        "CREATE TABLE pt (id bigint PRIMARY KEY, question text, answer text, is_active boolean) PARTITION BY RANGE (id);
         CREATE TABLE pt_1 PARTITION OF pt FOR VALUES FROM (0) TO (10); CREATE TABLE pt_2 PARTITION OF pt DEFAULT;
         GRANT SELECT ON pt TO vecsync; ALTER PUBLICATION vecsync_faq SET (publish_via_partition_root = true);
         ALTER PUBLICATION vecsync_faq ADD TABLE pt",
    );
    let parts = "SELECT id, question, answer, is_active, NULL::text AS category, '{}'::text[] AS tags FROM pt WHERE id = ANY($1)";
    let check_parts = |query: &str| {
        site.vecsync.write_pipeline(&pipeline(query, "").replace("public.faq_faq", "public.pt"));
        site.run(&["pipeline", "check", &site.path("pipeline.toml")])
    };
    let good = check_parts(parts);
    assert!(good.code == Some(0) && !good.stdout.contains("not watched"), "{good:?}");
    let whole = check_parts(&parts.replace("id = ANY", "id::text = ANY"));
    assert!(whole.code == Some(2) && whole.stderr.contains("source.query: reads all of public.pt for"), "{whole:?}");
    site.sql.execute("ALTER PUBLICATION vecsync_faq DROP TABLE faq_tag");
    check(
        QUERY,
        WATCH,
        &[
            "source.publication: use publication vecsync_faq: it does not have table public.faq_tag; run ALTER PUBLICATION vecsync_faq ADD TABLE public.faq_tag;",
        ],
    );
    site.sql.execute("ALTER PUBLICATION vecsync_faq ADD TABLE faq_tag WHERE (id > 1)");
    check(QUERY, WATCH, &["sends of public.faq_tag only rows where (id > 1)"]);
    site.sql.execute("ALTER PUBLICATION vecsync_faq SET TABLE faq_faq, faq_category, faq_tag, faq_faq_tags; REVOKE SELECT ON faq_tag FROM vecsync");
    check(
        QUERY,
        WATCH,
        &["source.query: permission denied for table faq_tag (42501); run GRANT SELECT ON public.faq_tag TO vecsync;"],
    );
}
