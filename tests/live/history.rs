//! Random transactions of several sessions, with a trace of every change that was committed, and what must come of them in
//! `changes`: each change once, in order, and at the end the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_postgres::error::SqlState;
use vecsync::event::BARRIER_KEY;

use crate::support::dice::Dice;
use crate::support::kafka::Entry;
use crate::support::postgres::{PASSWORD, Postgres, Sql, quote};
use crate::support::process::wait_until;
use crate::support::table::CATEGORIES;

/// Keys that single rows come to have: few, so that they meet.
const KEYS: usize = 300;
/// Rows of one COPY. Each session has a range of its own above the keys.
pub const COPIED: i64 = 500;
/// Between two attempts to reach a server that was killed.
const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(120);

/// Every change has a mark of its own, and `trace` has the marks of those that were committed. No trigger runs before the
/// rows of a COPY, which would make PostgreSQL write them one by one.
const TRACE: &str = "
    CREATE SEQUENCE marks CACHE 1;
    ALTER TABLE faq_faq ADD COLUMN mark bigint DEFAULT nextval('marks');
    ALTER TABLE faq_faq ALTER COLUMN answer SET STORAGE EXTERNAL;
    CREATE TABLE trace (mark bigint NOT NULL, id bigint NOT NULL, wide boolean NOT NULL);
    CREATE FUNCTION traced() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$BEGIN INSERT INTO trace VALUES (NEW.mark, NEW.id, length(NEW.answer) > 1000); RETURN NULL; END$$;
    CREATE TRIGGER traced AFTER INSERT OR UPDATE ON faq_faq FOR EACH ROW EXECUTE FUNCTION traced();
    GRANT USAGE ON SEQUENCE marks TO vecsync";

/// Prepares the table. Before vecsync starts.
pub fn trace(sql: &Sql) {
    sql.execute(TRACE);
}

/// Sessions that write until they are told to stop.
pub struct Sessions {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

/// What they do, and how fast.
#[derive(Clone, Copy)]
pub struct Pace {
    pub sessions: usize,
    /// Between two transactions of a session.
    pub pause: Duration,
    /// Of so many transactions one truncates; 0: none does.
    pub truncates: usize,
    /// Of so many transactions one copies; 0: none does.
    pub copies: usize,
}

impl Sessions {
    pub fn start(postgres: &Postgres, seed: u64, pace: Pace) -> Self {
        Sessions::begin(postgres, seed, pace, false)
    }

    /// As `start`, where PostgreSQL may be killed: who has lost it waits for it.
    pub fn start_outliving(postgres: &Postgres, seed: u64, pace: Pace) -> Self {
        Sessions::begin(postgres, seed, pace, true)
    }

    fn begin(postgres: &Postgres, seed: u64, pace: Pace, outlives: bool) -> Self {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let session = |number: usize| {
            let url = postgres.url("postgres", PASSWORD);
            let mut sql = Sql::connect(&url).unwrap();
            let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&commits));
            std::thread::spawn(move || {
                let mut dice = Dice::new(seed.wrapping_mul(31).wrapping_add(number as u64));
                while !stopped.load(Ordering::Relaxed) {
                    let done = sql.try_execute(&transaction(&mut dice, number, pace)).map(|()| true);
                    let done = done.or_else(|error| match error.code().map(SqlState::code) {
                        // Two sessions wanted the same rows, or a key was taken: nothing of it has happened.
                        Some("40P01" | "23505") => sql.try_execute("ROLLBACK").map(|()| false),
                        _ => Err(error),
                    });
                    match done {
                        Ok(committed) => drop(counted.fetch_add(committed.into(), Ordering::Relaxed)),
                        // What became of the transaction the table knows.
                        Err(error) if outlives && is_of_a_crash(&error) => {
                            while !stopped.load(Ordering::Relaxed) {
                                if let Ok(again) = Sql::connect(&url) {
                                    sql = again;
                                    break;
                                }
                                std::thread::park_timeout(PAUSE);
                            }
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                    // Not a wait for anything: this is the pace of the site's users.
                    std::thread::park_timeout(pace.pause);
                }
            })
        };
        let threads = (0..pace.sessions).map(session).collect();
        Sessions { stop, commits, threads }
    }

    /// Waits until so many more transactions have ended.
    #[track_caller]
    pub fn wait_for_more(&self, more: u64) {
        let commits = || self.commits.load(Ordering::Relaxed);
        let wanted = commits() + more;
        wait_until(&format!("{more} more transactions"), PATIENCE, || match commits() {
            now if now >= wanted => Ok(()),
            now => Err(format!("{now} of {wanted}")),
        });
    }

    /// Stops them; all they wrote is committed then.
    pub fn finish(mut self) -> u64 {
        self.end().expect("the sessions could write");
        self.commits.load(Ordering::Relaxed)
    }

    fn end(&mut self) -> std::thread::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.iter().for_each(|thread| thread.thread().unpark());
        self.threads.drain(..).try_for_each(JoinHandle::join)
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        // A test that fails ends its sessions before its server.
        let _ = self.end();
    }
}

/// The connection is gone, or the server is about to be: class 57P of SQLSTATE.
fn is_of_a_crash(error: &tokio_postgres::Error) -> bool {
    error.is_closed() || error.code().is_none_or(|code| code.code().starts_with("57P"))
}

fn transaction(dice: &mut Dice, session: usize, pace: Pace) -> String {
    let mut steps: Vec<String> = vec![];
    if pace.copies > 0 && dice.below(pace.copies) == 0 {
        steps.push(copy(1_000 * (session as i64 + 1), dice));
    }
    if pace.truncates > 0 && dice.below(pace.truncates) == 0 {
        // First in the transaction as well as behind rows of it.
        steps.insert(dice.below(steps.len() + 1), "TRUNCATE faq_faq".to_owned());
    }
    for _ in 0..1 + dice.below(4) {
        steps.push(match dice.below(6) {
            0 => format!("SAVEPOINT a; {}; ROLLBACK TO a; {}", change(dice), change(dice)),
            1 => format!(
                "SAVEPOINT a; {}; SAVEPOINT b; {}; ROLLBACK TO b; {}; RELEASE a",
                change(dice),
                change(dice),
                change(dice)
            ),
            2 => format!("SAVEPOINT a; {}; SAVEPOINT b; {}; ROLLBACK TO a", change(dice), change(dice)),
            3 => format!("DO $$BEGIN {}; EXCEPTION WHEN unique_violation THEN NULL; END$$", change(dice)),
            _ => change(dice),
        });
    }
    let end = if dice.below(10) == 0 { "ROLLBACK" } else { "COMMIT" };
    format!("BEGIN; {}; {end}", steps.join("; "))
}

/// Rows in one statement, in the place of those with their keys. A few of them are active: embedding all is not the point.
pub fn copy(first: i64, dice: &mut Dice) -> String {
    let last = first + COPIED - 1;
    let program = format!(
        r#"awk "BEGIN {{ for (i = {first}; i <= {last}; i++) printf \"%d,Copied %d?,Copy {:x} of %d,c%02d,%s\n\", i, i, i, i % {CATEGORIES}, i % 50 ? \"f\" : \"t\" }}""#,
        dice.next()
    );
    format!(
        "DELETE FROM faq_faq WHERE id BETWEEN {first} AND {last}; \
         COPY faq_faq (id, question, answer, category, is_active) FROM PROGRAM {} WITH (FORMAT csv)",
        quote(&program)
    )
}

fn change(dice: &mut Dice) -> String {
    let (id, other) = (1 + dice.below(KEYS), 1 + dice.below(KEYS));
    let text = format!("{} ({:x})", dice.words(3), dice.next());
    const CHANGED: &str = "mark = nextval('marks'), updated_at = clock_timestamp()";
    match dice.below(12) {
        0..3 => {
            // Now and then out of line: a few words in many bytes, which are one window to the model.
            let wide = if dice.below(3) == 0 { 3_000 } else { 0 };
            format!(
                "INSERT INTO faq_faq (id, question, answer, category) \
                 VALUES ({id}, {question}, {text} || repeat(' ', {wide}) || '.', 'c{place:02}') \
                 ON CONFLICT (id) DO UPDATE SET answer = EXCLUDED.answer, mark = EXCLUDED.mark, updated_at = clock_timestamp()",
                question = quote(&format!("{} {id}?", dice.words(2))),
                text = quote(&text),
                place = dice.below(CATEGORIES),
            )
        }
        3 => format!("UPDATE faq_faq SET answer = {}, {CHANGED} WHERE id = {id}", quote(&text)),
        // What lies out of line does not change.
        4..6 => format!("UPDATE faq_faq SET question = {}, {CHANGED} WHERE id = {id}", quote(&text)),
        6 => {
            format!("UPDATE faq_faq SET category = 'c{:02}', {CHANGED} WHERE id % 37 = {}", id % CATEGORIES, other % 37)
        }
        7 => format!("UPDATE faq_faq SET is_active = NOT is_active, {CHANGED} WHERE id = {id}"),
        8 => format!("DELETE FROM faq_faq WHERE id = {id}"),
        9 => format!("DELETE FROM faq_faq WHERE id BETWEEN {id} AND {}", id + 5),
        10 => format!(
            "UPDATE faq_faq SET id = {other}, {CHANGED} WHERE id = {id} AND NOT EXISTS (SELECT FROM faq_faq WHERE id = {other})"
        ),
        // Away and back, and somebody else in its place.
        _ => format!(
            "UPDATE faq_faq SET id = -{id}, {CHANGED} WHERE id = {id}; UPDATE faq_faq SET id = {id}, {CHANGED} WHERE id = -{id}"
        ),
    }
}

/// What `changes` must say.
#[derive(Clone, Copy, PartialEq)]
pub enum Complete {
    /// Every change that was committed stands there: it was followed from before the first one.
    All,
    /// Those of before the last snapshot may be missing.
    Since,
}

/// Checks all of `changes` against the trace and the table.
#[track_caller]
pub fn check(entries: &[Entry], sql: &Sql, complete: Complete) {
    check_order(entries);
    check_trace(entries, sql, complete);
    check_end(entries, sql);
}

/// In each partition events stand in the order of the source, each once: a changed key is two records of one event.
fn check_order(entries: &[Entry]) {
    let mut last: BTreeMap<i32, (u64, u64)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for entry in entries {
        let Some(event) = event(entry) else { continue };
        let source = &event["source"];
        let (Some(lsn), Some(ordinal)) = (source["commit_lsn"].as_u64(), source["ordinal"].as_u64()) else { continue };
        let (key, at) = (String::from_utf8_lossy(&entry.key), (entry.partition, entry.offset));
        let place = (lsn, ordinal);
        let before = last.insert(entry.partition, place);
        assert!(before.is_none_or(|before| before <= place), "{key} at {at:?} has place {place:?} behind {before:?}");
        assert!(seen.insert((entry.partition, place, entry.key.clone())), "{key} at {at:?}: {place:?} again");
    }
}

/// What was committed is there, and nothing else.
fn check_trace(entries: &[Entry], sql: &Sql, complete: Complete) {
    let mut published = BTreeSet::new();
    for event in entries.iter().filter_map(event).filter(|event| matches!(event["op"].as_str(), Some("c" | "u"))) {
        let place = (event["after"]["mark"].as_i64().unwrap(), event["after"]["id"].as_i64().unwrap());
        published.insert(place);
    }
    let rows = sql.query("SELECT mark, id, wide FROM trace");
    let number = |text: Option<&str>| text.unwrap().parse::<i64>().unwrap();
    let committed: BTreeSet<(i64, i64)> = rows.iter().map(|row| (number(row.get(0)), number(row.get(1)))).collect();
    let some =
        |marks: Vec<&(i64, i64)>| format!("{} of {}: {:?}", marks.len(), committed.len(), &marks[..marks.len().min(9)]);
    let invented: Vec<_> = published.difference(&committed).collect();
    assert!(invented.is_empty(), "changes that were never committed (mark, id): {}", some(invented));
    // What lies out of line is read by the row's key. A row that is gone by then is left out: its delete follows.
    let wide: BTreeSet<i64> = rows.iter().filter(|row| row.get(2) == Some("t")).map(|row| number(row.get(0))).collect();
    let lost: Vec<_> = committed.difference(&published).filter(|(mark, _)| !wide.contains(mark)).collect();
    assert!(complete == Complete::Since || lost.is_empty(), "changes that were lost (mark, id): {}", some(lost));
}

/// Whoever reads it from the beginning has the table.
fn check_end(entries: &[Entry], sql: &Sql) {
    let mut rows: BTreeMap<(i32, Vec<u8>), Value> = BTreeMap::new();
    for entry in entries {
        match event(entry) {
            Some(_) if entry.key == BARRIER_KEY => rows.retain(|(partition, _), _| *partition != entry.partition),
            Some(event) if event["op"] == "m" => {}
            Some(event) if event["op"] != "d" => {
                drop(rows.insert((entry.partition, entry.key.clone()), event["after"].clone()))
            }
            _ => drop(rows.remove(&(entry.partition, entry.key.clone()))),
        }
    }
    let mut replayed: BTreeMap<i64, Value> = BTreeMap::new();
    for row in rows.into_values() {
        let id = row["id"].as_i64().unwrap();
        let row = json!([row["question"], row["answer"], row["category"], row["is_active"], row["mark"]]);
        assert!(replayed.insert(id, row).is_none(), "{id} is in two partitions");
    }
    let table = sql.query("SELECT id, jsonb_build_array(question, answer, category, is_active, mark) FROM faq_faq");
    let read = |row: &tokio_postgres::SimpleQueryRow| {
        (row.get(0).unwrap().parse::<i64>().unwrap(), serde_json::from_str::<Value>(row.get(1).unwrap()).unwrap())
    };
    let table: BTreeMap<i64, Value> = table.iter().map(read).collect();
    let ids: BTreeSet<&i64> = table.keys().chain(replayed.keys()).collect();
    let differing: Vec<_> = ids.into_iter().filter(|id| table.get(id) != replayed.get(id)).collect();
    let first = differing.first().map(|id| (id, table.get(id), replayed.get(id)));
    assert!(
        differing.is_empty(),
        "{} rows differ: {differing:?}; in the table, in the log: {first:?}",
        differing.len()
    );
}

fn event(entry: &Entry) -> Option<Value> {
    entry.value.as_ref().map(|value| serde_json::from_slice(value).unwrap())
}
