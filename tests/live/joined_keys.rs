//! Documents out of several tables by their keys: what a key gives is its own, and what is not is told before and while it runs.

use serde_json::json;

use crate::joined::{CAUGHT_UP, WATCH, pipeline, prepare};
use crate::support::process::wait_until;
use crate::support::site::Site;

/// A query of one table with another expression for the category and another end.
fn simple(category: &str, end: &str) -> String {
    format!(
        "SELECT f.id, f.question, f.answer, f.is_active, {category} AS category, '{{}}'::text[] AS tags
         FROM faq_faq f WHERE f.id = ANY($1) {end}"
    )
}

#[test]
fn a_row_that_nobody_asked_for_is_not_taken_and_health_says_why() {
    let site = &mut Site::prepare();
    site.sql.execute(
        "CREATE TABLE q (id int PRIMARY KEY, parent_id int, body text NOT NULL); GRANT SELECT ON q TO vecsync;
         ALTER PUBLICATION vecsync_faq ADD TABLE q; CREATE UNIQUE INDEX q_of ON q (parent_id, id);
         INSERT INTO q VALUES (1, NULL, 'parent one'), (2, 1, 'child two'), (3, 1, 'child three'), (4, NULL, 'lone four')",
    );
    site.vecsync.write_pipeline(
        "name = \"faq\"\n[source]\ntable = \"q\"\nquery = \"SELECT coalesce(p.id, c.id) AS id, c.body FROM q c \
         LEFT JOIN q p ON p.id = c.parent_id WHERE c.id = ANY($1)\"\n[document]\ntext = \"{{ body }}\"\npayload = [\"body\"]\n",
    );
    let checked = site.run(&["pipeline", "check", &site.path("pipeline.toml")]);
    assert_eq!(checked.code, Some(2), "{checked:?}");
    assert!(checked.stderr.contains("source.query: was asked for {\"id\":2} and gave {\"id\":1};"), "{checked:?}");

    site.vecsync.start_ready();
    site.sql.execute("UPDATE q SET body = 'child other' WHERE id = 2");
    let why = "source.query was asked for 1 documents and gave 1 that nobody asked for, as {\"id\":1}";
    site.vecsync.wait_for_log(why, CAUGHT_UP);
    wait_until("health to say why", CAUGHT_UP, || {
        let health = site.http.get("/health/detailed/").map_err(|error| error.to_string())?.json();
        let source = &health["components"]["source"];
        let said = source["error"].as_str().is_some_and(|error| error.starts_with(why));
        if said && source["status"] == "degraded" { Ok(()) } else { Err(health.to_string()) }
    });
    site.sql.execute("UPDATE q SET body = 'lone five' WHERE id = 4");
    wait_until("what was asked for, and nothing else", CAUGHT_UP, || {
        let answer = site.http.get("/search?q=child&limit=9&min_score=-1").map_err(|error| error.to_string())?.json();
        let results = answer["results"].as_array().cloned().unwrap_or_default();
        let mut found: Vec<_> = results.iter().map(|one| (one["id"].clone(), one["payload"]["body"].clone())).collect();
        found.sort_by_key(|(id, _)| id.as_i64());
        // Of the three rows that the first load gave for 1 that is taken which comes first as a text.
        let wanted = [(json!(1), json!("child three")), (json!(4), json!("lone five"))];
        if found == wanted { Ok(()) } else { Err(answer.to_string()) }
    });
    let told = site.vecsync.log().matches("that nobody asked for").count();
    assert_eq!(told, 1, "{}", site.vecsync.log());
}

#[test]
fn pipeline_check_tries_what_a_query_does_and_what_a_document_depends_on() {
    let site = prepare();
    let check = |query: &str, watch: &str, wanted: &[&str]| {
        site.vecsync.write_pipeline(&pipeline(query, watch));
        let ended = site.run(&["pipeline", "check", &site.path("pipeline.toml")]);
        assert_eq!(ended.code, Some(if wanted.is_empty() { 0 } else { 2 }), "{query} {watch} {ended:?}");
        for part in wanted {
            assert!(ended.stderr.contains(part), "{part:?} is not in {ended:?}");
        }
    };
    site.sql.execute(
        "CREATE SEQUENCE s; GRANT USAGE ON s TO vecsync; GRANT UPDATE, DELETE ON faq_faq TO vecsync;
         CREATE FUNCTION noted(bigint) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''s''); RETURN $1; END';
         CREATE FUNCTION pure(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN upper($1); END';
         ALTER TABLE faq_category ADD parent_id bigint; CREATE INDEX ON faq_category (parent_id)",
    );
    // On empty tables.
    check(&simple("nextval('s')::text", ""), "", &["source.query: calls nextval, which gives something else"]);
    check(&simple("(SELECT f.answer || random() OFFSET 0)", ""), "", &["source.query: calls random, which"]);
    check(&simple("'random()'", "FOR UPDATE OF f"), "", &["source.query: locks rows", "FOR UPDATE"]);
    check(&simple("''", "ORDER BY f.question LIMIT 1"), "", &["source.query: ends with a LIMIT"]);
    let deletes = format!("WITH gone AS (DELETE FROM faq_faq WHERE id = 0 RETURNING id) {}", simple("''", ""));
    check(&deletes, "", &["source.query: writes; wanted a SELECT"]);
    // A hash join over all of an index is not the only way.
    let recursive = "WITH RECURSIVE d(id) AS (SELECT unnest($1::bigint[]) UNION SELECT c.id FROM faq_category c \
                     JOIN d ON c.parent_id = d.id) SELECT id FROM faq_faq WHERE category_id IN (SELECT id FROM d)";
    let watch = WATCH.replace("SELECT id FROM faq_faq WHERE category_id = ANY($1)", recursive);
    check(&simple("''", ""), &watch, &[]);
    site.sql.execute("DROP INDEX faq_faq_category_id_idx");
    check(&simple("''", ""), &watch, &["source.watch[0].affects: reads all of public.faq_faq for", "Nested Loop"]);

    site.sql.execute(
        "INSERT INTO faq_category VALUES (1, 'one'), (2, 'two');
         INSERT INTO faq_faq (id, question, answer, category_id) SELECT n, 'q ' || n, 'a', 1 FROM generate_series(1, 30) n",
    );
    check(&simple("pure(f.question)", ""), "", &[]);
    let ranked = simple("(row_number() OVER (ORDER BY f.id))::text", "");
    check(&ranked, "", &["source.query: gives another category for {\"id\":", "the other keys in $1"]);
    check(&simple("''", "").replace("f WHERE", "f, faq_category c WHERE"), "", &["gives 2 rows for {\"id\":1}"]);
    check(
        &simple("pure(pg_backend_pid()::text || clock())", ""),
        "",
        &["source.query: function clock() does not exist"],
    );
    // What fails when it runs is that file's, and the next one has its turn.
    let other = site.path("other.toml");
    std::fs::write(&other, pipeline(&ranked, "").replace("name = \"faq\"", "name = \"other\"")).unwrap();
    site.vecsync.write_pipeline(&pipeline(&simple("noted(f.id)", ""), ""));
    let file = site.path("pipeline.toml");
    let ended = site.run(&["pipeline", "check", &file, &other]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for (file, part) in
        [(&file, "source.query: cannot execute nextval() in a read-only"), (&other, "gives another category")]
    {
        let mut lines = ended.stderr.lines();
        assert!(lines.any(|line| line.starts_with(file.as_str()) && line.contains(part)), "{part:?}: {ended:?}");
    }
}
