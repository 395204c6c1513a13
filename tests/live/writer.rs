//! A site that writes without pause: inserts, updates, deletes, changed keys, transactions that are given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::dice::Dice;
use crate::support::postgres::{PASSWORD, Postgres, Sql};
use crate::support::process::wait_until;
use crate::support::table::{CATEGORIES, category, insert, values};

/// Rows that the table starts with. Keys above are those of inserted and moved rows.
pub const ROWS: i64 = 2_000;
/// How long it may take to commit what is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Keys that rows come to have: small enough that deleted ones come back.
const KEYS: usize = 3_000;

/// Fills the table. Its rows are as old as the server's log says: before any change that follows.
pub fn fill(sql: &Sql, rows: i64) {
    let mut dice = Dice::new(1);
    let all: Vec<String> = (1..=rows).map(|id| row(id, &mut dice)).collect();
    all.chunks(500).for_each(|chunk| sql.execute(&insert(chunk)));
}

fn row(id: i64, dice: &mut Dice) -> String {
    let (length, place) = (3 + dice.below(6), dice.below(CATEGORIES));
    let answer = format!("{} ({:x})", dice.words(length), dice.next());
    values(id, &format!("{} {id}?", dice.words(2)), &answer, &category(place))
}

/// A thread that writes until it is told to stop.
pub struct Writer {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// With `pause` between transactions, so that two cores can keep up.
    pub fn start(postgres: &Postgres, seed: u64, pause: Duration) -> Self {
        let sql = Sql::connect(&postgres.url("postgres", PASSWORD)).unwrap();
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&commits));
        let thread = std::thread::spawn(move || {
            let mut dice = Dice::new(seed);
            while !stopped.load(Ordering::Relaxed) {
                sql.execute(&transaction(&mut dice));
                counted.fetch_add(1, Ordering::Relaxed);
                // Not a wait for anything: this is the pace of the site's users.
                std::thread::park_timeout(pause);
            }
        });
        Writer { stop, commits, thread: Some(thread) }
    }

    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Waits until it has committed so many more transactions.
    #[track_caller]
    pub fn wait_for_more(&self, more: u64) {
        let wanted = self.commits() + more;
        wait_until(&format!("{more} more transactions"), PATIENCE, || {
            let commits = self.commits();
            if commits >= wanted { Ok(()) } else { Err(format!("{commits} of {wanted}")) }
        });
    }

    /// Stops it; all it wrote is committed then.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        thread.thread().unpark();
        thread.join().expect("the writer could write");
        self.commits()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A test that fails ends its writer before its server.
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One to four changes, now and then for nothing.
fn transaction(dice: &mut Dice) -> String {
    let changes: Vec<String> = (0..1 + dice.below(4)).map(|_| change(dice)).collect();
    let end = if dice.below(10) == 0 { "ROLLBACK" } else { "COMMIT" };
    format!("BEGIN; {}; {end}", changes.join("; "))
}

fn change(dice: &mut Dice) -> String {
    let (id, other) = (1 + dice.below(KEYS) as i64, 1 + dice.below(KEYS));
    match dice.below(10) {
        0..3 => format!(
            "{} ON CONFLICT (id) DO UPDATE SET answer = EXCLUDED.answer, updated_at = clock_timestamp()",
            insert(&[row(id, dice)])
        ),
        3..6 => {
            let answer = format!("{} ({:x})", dice.words(5), dice.next());
            format!("UPDATE faq_faq SET answer = '{answer}', updated_at = clock_timestamp() WHERE id = {id}")
        }
        6 => {
            let place = category(dice.below(CATEGORIES));
            format!("UPDATE faq_faq SET category = '{place}', updated_at = clock_timestamp() WHERE id = {id}")
        }
        7 => format!("UPDATE faq_faq SET is_active = NOT is_active, updated_at = clock_timestamp() WHERE id = {id}"),
        8 => format!("DELETE FROM faq_faq WHERE id = {id}"),
        _ => format!(
            "UPDATE faq_faq SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM faq_faq WHERE id = {other})"
        ),
    }
}
