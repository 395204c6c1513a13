//! Whatever is written into any of the tables, and wherever vecsync is killed, the index ends as what the query gives for the
//! whole table. From a seed, which is printed: `VECSYNC_TEST_SEED` sets it, `VECSYNC_TEST_ROUNDS` says how often all is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::joined::{CAUGHT_UP, QUERY, expect_documents, prepare};
use crate::support::dice::Dice;
use crate::support::postgres::{PASSWORD, Postgres, Sql, quote};
use crate::support::process::wait_until;

const KEYS: usize = 120;
const CATEGORIES: usize = 8;
const TAGS: usize = 6;
const KILLS: usize = 4;
/// Between two transactions of a session: the pace of a busy site.
const PAUSE: Duration = Duration::from_millis(12);

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn the_index_is_what_the_query_gives_whatever_is_written_and_wherever_vecsync_is_killed() {
    let first = number("VECSYNC_TEST_SEED", 11);
    for seed in first..first + number("VECSYNC_TEST_ROUNDS", 1) {
        eprintln!("seed {seed}");
        let mut site = prepare();
        let mut dice = Dice::new(seed);
        let writers = Writers::start(&site.postgres, seed);
        for _ in 0..KILLS {
            site.vecsync.start();
            writers.wait_for_more(40 + dice.below(160) as u64);
            site.vecsync.kill();
            writers.wait_for_more(dice.below(30) as u64);
        }
        site.vecsync.start();
        writers.wait_for_more(60);
        let commits = writers.finish();
        site.vecsync.wait_ready();
        expect_documents(&mut site, QUERY);
        let verified = site.run_within(&["verify"], CAUGHT_UP);
        assert_eq!(verified.code, Some(0), "{verified:?}");
        eprintln!("{commits} transactions, {} documents", site.vecsync.points().unwrap_or_default());
    }
}

struct Writers {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(postgres: &Postgres, seed: u64) -> Writers {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |session: u64| {
            let sql = Sql::connect(&postgres.url("postgres", PASSWORD)).unwrap();
            let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&commits));
            std::thread::spawn(move || {
                let mut dice = Dice::new(seed.wrapping_mul(31).wrapping_add(session));
                while !stopped.load(Ordering::Relaxed) {
                    match sql.try_execute(&transaction(&mut dice)) {
                        Ok(()) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                        // Two sessions wanted the same rows, or a key was taken: nothing of it has happened.
                        Err(error) => {
                            let code = error.code().map(tokio_postgres::error::SqlState::code);
                            assert!(matches!(code, Some("40P01" | "23505")), "{error:?}");
                            sql.execute("ROLLBACK");
                        }
                    }
                    std::thread::park_timeout(PAUSE);
                }
            })
        };
        let threads = (0..3).map(writer).collect();
        Writers { stop, commits, threads }
    }

    #[track_caller]
    fn wait_for_more(&self, more: u64) {
        let wanted = self.commits.load(Ordering::Relaxed) + more;
        wait_until(&format!("{more} more transactions"), CAUGHT_UP, || match self.commits.load(Ordering::Relaxed) {
            now if now >= wanted => Ok(()),
            now => Err(format!("{now} of {wanted}")),
        });
    }

    fn finish(mut self) -> u64 {
        self.end().expect("the sessions could write");
        self.commits.load(Ordering::Relaxed)
    }

    fn end(&mut self) -> std::thread::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.iter().for_each(|thread| thread.thread().unpark());
        self.threads.drain(..).try_for_each(JoinHandle::join)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        // A test that fails ends its sessions before its server.
        let _ = self.end();
    }
}

fn transaction(dice: &mut Dice) -> String {
    let mut steps: Vec<String> = (0..1 + dice.below(4)).map(|_| change(dice)).collect();
    if dice.below(150) == 0 {
        let tables = *dice.pick(&["faq_faq", "faq_faq_tags", "faq_tag", "faq_category", "faq_faq, faq_faq_tags"]);
        steps.insert(dice.below(steps.len() + 1), format!("TRUNCATE {tables}"));
    }
    if dice.below(6) == 0 {
        steps.push(format!("SAVEPOINT a; {}; ROLLBACK TO a", change(dice)));
    }
    let end = if dice.below(10) == 0 { "ROLLBACK" } else { "COMMIT" };
    format!("BEGIN; {}; {end}", steps.join("; "))
}

fn change(dice: &mut Dice) -> String {
    let (id, other) = (1 + dice.below(KEYS), 1 + dice.below(KEYS));
    let (category, elsewhere) = (dice.below(CATEGORIES), dice.below(CATEGORIES));
    let (tag, another) = (dice.below(TAGS), dice.below(TAGS));
    let text = quote(&format!("{} {:x}", dice.words(2), dice.next()));
    // Few texts, so that embedding them is not the point.
    let answer = quote(&format!("Answer {}", dice.below(12)));
    match dice.below(26) {
        20..26 | 0..4 => format!(
            "INSERT INTO faq_faq (id, question, answer, category_id) VALUES ({id}, 'How?', {answer}, {category})
             ON CONFLICT (id) DO UPDATE SET answer = EXCLUDED.answer, category_id = EXCLUDED.category_id"
        ),
        4 => format!("UPDATE faq_faq SET category_id = {category} WHERE id = {id}"),
        5 => format!("UPDATE faq_faq SET category_id = {category} WHERE category_id = {elsewhere}"),
        6 => format!("DELETE FROM faq_faq WHERE id BETWEEN {id} AND {}", id + 2),
        7 => format!(
            "UPDATE faq_faq SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM faq_faq WHERE id = {other})"
        ),
        8 => format!("UPDATE faq_faq SET is_active = NOT is_active WHERE id = {id}"),
        11 => format!("UPDATE faq_category SET name = {text} WHERE id = {category}"),
        12 => format!(
            "DELETE FROM faq_category WHERE id = {category}; INSERT INTO faq_category VALUES ({elsewhere}, {text}) ON CONFLICT DO NOTHING"
        ),
        13 if id % 3 == 0 => format!(
            "DELETE FROM faq_faq WHERE category_id = {category}; DELETE FROM faq_category WHERE id = {category}"
        ),
        9..11 | 13 => format!(
            "INSERT INTO faq_category VALUES ({category}, {text}) ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name"
        ),
        14 => format!(
            "UPDATE faq_category SET id = {elsewhere} WHERE id = {category} AND NOT EXISTS (SELECT FROM faq_category WHERE id = {elsewhere})"
        ),
        15 => format!("INSERT INTO faq_tag VALUES ({tag}, {text}) ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name"),
        16 => format!("DELETE FROM faq_tag WHERE id = {tag}"),
        17 | 18 => format!(
            "INSERT INTO faq_faq_tags (faq_id, tag_id) VALUES ({id}, {tag}), ({other}, {another}) ON CONFLICT DO NOTHING"
        ),
        _ => format!("DELETE FROM faq_faq_tags WHERE faq_id = {id} OR (tag_id = {tag} AND faq_id < {other})"),
    }
}
