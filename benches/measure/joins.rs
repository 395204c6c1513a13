//! Documents out of several tables: a category with very many questions is renamed, and single changes are made meanwhile.

use std::time::{Duration, Instant};

use super::{Figures, ms};
use crate::support::http::escape;
use crate::support::process::{memory_kb, wait_until};
use crate::support::site::Site;

/// Questions of the category, where nobody says another number.
pub const MANY: usize = 100_000;
/// Different answers: known texts are what is measured, so few have to be embedded before.
const ANSWERS: usize = 500;
/// Questions of another category, which are changed one by one meanwhile.
const FEW: usize = 50;
const ROUNDS: usize = 4;
const LIMIT: Duration = Duration::from_secs(900);

const PIPELINE: &str = r#"name = "faq"
[source]
table = "public.faq_faq"
query = """SELECT f.id, f.question, f.answer, c.name AS category,
    coalesce(array_agg(t.name) FILTER (WHERE t.id IS NOT NULL), '{}') AS tags
  FROM faq_faq f JOIN faq_category c ON c.id = f.category_id
  LEFT JOIN faq_faq_tags ft ON ft.faq_id = f.id LEFT JOIN faq_tag t ON t.id = ft.tag_id
  WHERE f.id = ANY($1) GROUP BY f.id, c.name"""
[[source.watch]]
table = "public.faq_category"
affects = "SELECT id FROM faq_faq WHERE category_id = ANY($1)"
[[source.watch]]
table = "public.faq_faq_tags"
keys = ["faq_id"]
affects = "SELECT unnest($1::bigint[])"
[document]
title = "{{ question }}"
text = "{{ answer }}"
payload = ["id", "question", "answer", "category", "tags"]
[index]
filters = ["category", "id"]
"#;

/// Renames the category of so many questions, some times.
pub fn measure(model: &str, many: usize) -> Figures {
    eprintln!("joins, {model}: a category of {many} questions");
    let mut site = Site::prepare_with(&[("max_wal_size", "4GB")]);
    site.sql.execute(&format!(
        "CREATE TABLE faq_category (id bigint PRIMARY KEY, name text NOT NULL);
         CREATE TABLE faq_tag (id bigint PRIMARY KEY, name text NOT NULL);
         CREATE TABLE faq_faq_tags (faq_id bigint, tag_id bigint, PRIMARY KEY (faq_id, tag_id));
         ALTER TABLE faq_faq ADD COLUMN category_id bigint REFERENCES faq_category;
         CREATE INDEX ON faq_faq (category_id);
         GRANT SELECT ON faq_category, faq_tag, faq_faq_tags TO vecsync;
         ALTER PUBLICATION vecsync_faq ADD TABLE faq_category, faq_tag, faq_faq_tags;
         INSERT INTO faq_category VALUES (1, 'name 0'), (2, 'few');
         INSERT INTO faq_tag SELECT n, 'tag ' || n FROM generate_series(1, {FEW}) n;
         INSERT INTO faq_faq (id, question, answer, category_id) SELECT n, 'Question ' || n % {ANSWERS} || '?',
             'Answer ' || n % {ANSWERS} || ': ' || repeat('read the manual and try again, ', 1 + n % 4),
             CASE WHEN n > {FEW} THEN 1 ELSE 2 END FROM generate_series(1, {many} + {FEW}) n;
         INSERT INTO faq_faq_tags SELECT n, 1 + n % {FEW} FROM generate_series(1, {many} + {FEW}) n;"
    ));
    site.sql.execute("VACUUM ANALYZE faq_faq, faq_faq_tags, faq_category, faq_tag");
    site.vecsync.write_pipeline(PIPELINE);
    site.vecsync.set("VECSYNC_MODEL", model);
    let begun = Instant::now();
    site.vecsync.start();
    wait_until("all to be loaded", LIMIT, || {
        std::thread::sleep(Duration::from_millis(50));
        match site.vecsync.points() {
            Some(points) if points >= (many + FEW) as u64 => Ok(()),
            points => Err(format!("{points:?} points")),
        }
    });
    let load_s = begun.elapsed().as_secs_f64();
    site.vecsync.wait_ready();
    let computed = |site: &mut Site| site.metric("vecsync_embeddings_total", "computed").unwrap_or_default();
    let before = computed(&mut site);
    let anonymous = |site: &Site| memory_kb(site.pid(), "RssAnon") as f64 / 1024.0;
    let idle = anonymous(&site);
    let mut peaks = vec![];
    let (mut slowest, mut singles, mut rename_s) = (Duration::ZERO, 0, 0.0_f64);
    for round in 1..=ROUNDS {
        let has_old =
            format!("/search?q=answer&limit=1&min_score=-1&filter=category:{}", escape(&format!("name {}", round - 1)));
        let (begun, mut peak) = (Instant::now(), 0.0_f64);
        site.sql.execute(&format!("UPDATE faq_category SET name = 'name {round}' WHERE id = 1"));
        let is_done = |site: &mut Site| {
            let answer = site.http.get(&has_old).expect("vecsync answers").json();
            answer["results"].as_array().is_some_and(Vec::is_empty)
        };
        while !is_done(&mut site) {
            assert!(begun.elapsed() < LIMIT, "the category was not renamed in time");
            // One question of another category gets a tag, or loses it.
            let id = 1 + singles % FEW;
            let had = site.row(id as i64).expect("it is there")["tags"].as_array().map_or(0, Vec::len);
            let tag = if id % FEW + 1 == FEW { 1 } else { FEW };
            let changed = match had {
                1 => format!("INSERT INTO faq_faq_tags VALUES ({id}, {tag})"),
                _ => format!("DELETE FROM faq_faq_tags WHERE (faq_id, tag_id) = ({id}, {tag})"),
            };
            let single = Instant::now();
            site.sql.execute(&changed);
            wait_until("a single change to be found", LIMIT, || {
                let row = site.vecsync.row_if_answered(id as i64).unwrap_or_default();
                match row["tags"].as_array().map_or(0, Vec::len) {
                    has if has != had => Ok(()),
                    _ => Err(row.to_string()),
                }
            });
            slowest = slowest.max(single.elapsed());
            singles += 1;
            std::thread::sleep(Duration::from_millis(100));
            peak = peak.max(anonymous(&site));
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!(
            "joins, {model}: renamed in {:.1} s, memory {:+.0} MB at most, {:+.0} MB behind it",
            begun.elapsed().as_secs_f64(),
            peak - idle,
            anonymous(&site) - idle
        );
        peaks.push(peak - idle);
        rename_s = rename_s.max(begun.elapsed().as_secs_f64());
    }
    vec![
        ("load_s", load_s),
        ("rename_s", rename_s),
        ("rename_documents_per_s", many as f64 / rename_s),
        ("rename_embeddings", computed(&mut site) - before),
        ("single_changes", singles as f64),
        ("single_slowest_ms", ms(slowest)),
        ("idle_anonymous_mb", idle),
        ("peak_above_idle_mb", peaks.iter().copied().fold(0.0, f64::max)),
        ("first_rename_peak_above_idle_mb", peaks[0]),
        ("last_rename_above_the_one_before_mb", peaks[ROUNDS - 1] - peaks[ROUNDS - 2]),
    ]
}
