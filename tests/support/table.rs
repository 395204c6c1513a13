//! Whether the index equals the table, found out as a user can: every row through `/search`, and the count of points.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::faq;
use super::http::escape;
use super::postgres::{Sql, quote};
use super::process::wait_until;
use super::vecsync::Vecsync;

/// Categories c00 to c49. Each must hold fewer rows than one search can give.
pub const CATEGORIES: usize = 50;
const LIMIT: usize = 100;
/// Rows that are written last, enough to reach every partition.
const MARKERS: i64 = 64;
const FIRST_MARKER: i64 = 9_000_000;

/// What a row says: question, answer, category, and when it was changed.
type Rows = BTreeMap<i64, [String; 4]>;

pub fn category(number: usize) -> String {
    format!("c{:02}", number % CATEGORIES)
}

/// One row as SQL values: id, question, answer, category.
pub fn values(id: i64, question: &str, answer: &str, category: &str) -> String {
    format!("({id}, {}, {}, {})", quote(question), quote(answer), quote(category))
}

/// The rows of the real FAQ, with the ids that `make run` gives them.
pub fn faq() -> Vec<String> {
    let rows = (1..).zip(faq::faq());
    rows.map(|(id, entry)| values(id, &entry.question, &entry.answer, &entry.category)).collect()
}

pub fn insert(rows: &[String]) -> String {
    format!("INSERT INTO faq_faq (id, question, answer, category) VALUES {}", rows.join(","))
}

/// Waits until the index equals the table, then shows that it stays so: when rows that are written after everything
/// else have gone through every partition, nothing older can still be on its way. Nobody may write meanwhile.
#[track_caller]
pub fn expect_equal(vecsync: &mut Vecsync, sql: &Sql, limit: Duration) {
    let table = read_table(sql);
    wait_until("the index to equal the table", limit, || difference(&table, vecsync));
    let markers: Vec<String> = (0..MARKERS)
        .map(|n| values(FIRST_MARKER + n, "Is this the last row?", &format!("Marker {n}"), &category(n as usize)))
        .collect();
    sql.execute(&insert(&markers));
    let with_markers = read_table(sql);
    wait_until("the markers to be found", limit, || difference(&with_markers, vecsync));
    sql.execute(&format!("DELETE FROM faq_faq WHERE id >= {FIRST_MARKER}"));
    wait_until("the markers to be gone", limit, || points(vecsync, table.len()));
    if let Err(difference) = difference(&table, vecsync) {
        panic!("the index was equal to the table and then was not: {difference}");
    }
}

/// Waits until the index equals the table. Which store answers may change meanwhile, so it need not stay so.
#[track_caller]
pub fn expect_equal_once(vecsync: &mut Vecsync, sql: &Sql, limit: Duration) {
    let table = read_table(sql);
    wait_until("searches to give the table", limit, || difference(&table, vecsync));
}

fn read_table(sql: &Sql) -> Rows {
    let rows = sql.query("SELECT id, question, answer, category, to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') FROM faq_faq WHERE is_active");
    let text = |row: &tokio_postgres::SimpleQueryRow, column| row.get(column).expect("not NULL").to_owned();
    rows.iter()
        .map(|row| (text(row, 0).parse().expect("a number"), [text(row, 1), text(row, 2), text(row, 3), text(row, 4)]))
        .collect()
}

/// The first differences, if there are any.
fn difference(table: &Rows, vecsync: &mut Vecsync) -> Result<(), String> {
    points(vecsync, table.len())?;
    let index = read_index(vecsync)?;
    let mut found = vec![];
    for (id, row) in table {
        match index.get(id) {
            None => found.push(format!("{id} is missing")),
            Some(indexed) if indexed != row => found.push(format!("{id} is {indexed:?} and should be {row:?}")),
            Some(_) => {}
        }
    }
    found.extend(index.keys().filter(|id| !table.contains_key(id)).map(|id| format!("{id} should be gone")));
    if found.is_empty() {
        return Ok(());
    }
    Err(format!("{} differences, the first: {:?}", found.len(), &found[..found.len().min(5)]))
}

/// A row's text is one window here, so there are as many points as rows; more would be rows that are there twice.
fn points(vecsync: &mut Vecsync, rows: usize) -> Result<(), String> {
    match vecsync.points() {
        Some(points) if points == rows as u64 => Ok(()),
        points => Err(format!("{rows} rows and {points:?} points")),
    }
}

fn read_index(vecsync: &mut Vecsync) -> Result<Rows, String> {
    let mut rows = Rows::new();
    for category in (0..CATEGORIES).map(category) {
        let path = format!("/search?q=row&limit={LIMIT}&min_score=-1&filter=category:{}", escape(&category));
        let answer = vecsync.http.get(&path).map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(format!("{}: {}", answer.status, answer.body));
        }
        let answer = answer.json();
        let results = answer["results"].as_array().expect("results");
        assert!(results.len() < LIMIT, "{category} has more rows than one search can give");
        for result in results {
            let id = result["id"].as_i64().expect("a number");
            let payload = &result["payload"];
            assert_eq!(payload["id"], result["id"]);
            let text = |field: &str| payload[field].as_str().unwrap_or("NULL").to_owned();
            let row = [text("question"), text("answer"), text("category"), instant(&payload["updated_at"])];
            assert_eq!(row[2], category, "the filter let row {id} through");
            if rows.insert(id, row).is_some() {
                return Err(format!("{id} is there twice"));
            }
        }
    }
    Ok(rows)
}

/// An RFC 3339 time in UTC with microseconds, as `read_table` writes it.
fn instant(value: &Value) -> String {
    let text = value.as_str().unwrap_or("NULL");
    let parsed = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    let Ok(utc) = parsed.map(|instant| instant.to_offset(time::UtcOffset::UTC)) else { return text.to_owned() };
    let (date, clock) = (utc.date(), utc.time());
    format!("{date}T{:02}:{:02}:{:02}.{:06}", clock.hour(), clock.minute(), clock.second(), clock.microsecond())
}
