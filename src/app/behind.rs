//! How much of the log is on its way to the stores, for who appends what nobody waits for. Decides nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::Tasks;
use crate::capture::Behind;
use crate::retry::Chain;
use crate::shutdown::Shutdown;
use crate::topic::{Log, LogError, Offsets, embedded, kafka};

/// How often brokers are asked, while somebody wants to know.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// An answer that is older than this says nothing.
const FRESH: Duration = Duration::from_secs(1);
/// Who embeds nothing for so long is away: nobody waits for them.
const AWAY: Duration = Duration::from_secs(10);

/// Counts the records that are not embedded, and, where the store of this process is the one, those that are embedded and not
/// stored. Over Kafka they may be embedded and stored anywhere: there the brokers are asked for the former.
pub(super) fn of(
    log: &Log,
    revision: &str,
    stored: &watch::Receiver<Offsets>,
    tasks: &mut Tasks,
    shutdown: &Shutdown,
) -> Behind {
    match log.clone() {
        Log::Embedded(log) => embedded_here(log, revision.to_owned(), stored.clone()),
        Log::Kafka(log) => {
            let asked = Arc::new(Asked::default());
            let asking = ask(log.clone(), revision.to_owned(), Arc::clone(&asked));
            tasks.spawn_endless("ask how far embedding is", asking, shutdown.clone());
            Arc::new(move || asked.behind(&log.changes_ends(), Instant::now()))
        }
    }
}

fn embedded_here(log: embedded::Log, revision: String, stored: watch::Receiver<Offsets>) -> Behind {
    Arc::new(move || {
        let stored = stored.borrow().clone();
        let progress = log.progress(&revision, &stored).ok()?;
        Some(missing(&log.changes_ends(), &progress.embedded) + missing(&progress.vector_ends, &progress.stored))
    })
}

fn missing(ends: &Offsets, done: &Offsets) -> u64 {
    ends.iter().zip(done).map(|(end, done)| end.saturating_sub(*done)).sum()
}

/// What is known of who embeds elsewhere.
#[derive(Default)]
struct Asked {
    wanted: Notify,
    known: Mutex<Option<Known>>,
}

struct Known {
    positions: Offsets,
    at: Instant,
    /// When they were others.
    moved: Instant,
}

impl Asked {
    /// Records that are not embedded, if that is known now. Has it asked again.
    fn behind(&self, ends: &Offsets, now: Instant) -> Option<u64> {
        self.wanted.notify_one();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref().filter(|known| now.duration_since(known.at) < FRESH)?;
        let behind = missing(ends, &known.positions);
        (behind == 0 || now.duration_since(known.moved) < AWAY).then_some(behind)
    }

    fn learn(&self, positions: Option<Offsets>, at: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(positions) = positions else { return *known = None };
        // What was asked last a while ago says nothing of what was done meanwhile.
        let before = known.as_ref().filter(|known| at.duration_since(known.at) < FRESH && known.positions == positions);
        let moved = before.map_or(at, |known| known.moved);
        *known = Some(Known { positions, at, moved });
    }
}

/// Asks the brokers while somebody wants to know. Never ends.
async fn ask(log: kafka::Log, revision: String, asked: Arc<Asked>) {
    let mut client: Option<kafka::Followers> = None;
    loop {
        asked.wanted.notified().await;
        let (log, revision, held) = (log.clone(), revision.clone(), client.take());
        let asking = move || {
            let held = held.map_or_else(|| log.followers(&revision), Ok)?;
            Ok::<_, LogError>((held.positions()?, held))
        };
        match spawn_blocking(asking).await.unwrap_or_else(|fault| Err(LogError::Task(fault))) {
            Ok((positions, held)) => {
                asked.learn(Some(positions), Instant::now());
                client = Some(held);
            }
            Err(error) => {
                tracing::debug!("how far embedding is: {}", Chain(&error));
                asked.learn(None, Instant::now());
            }
        }
        sleep(ASK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_now_or_of_who_is_away_is_not_told() {
        let (asked, begun) = (Asked::default(), Instant::now());
        let check = |at: Duration, ends: &[u64], wanted| {
            assert_eq!(asked.behind(&ends.to_vec(), begun + at), wanted, "after {at:?}");
        };
        check(Duration::ZERO, &[3, 3], None);
        asked.learn(Some(vec![1, 3]), begun);
        check(Duration::ZERO, &[3, 3], Some(2));
        check(FRESH, &[3, 3], None);
        // Somebody who does nothing is asked often.
        let mut at = FRESH * 2;
        while at < FRESH * 2 + AWAY {
            asked.learn(Some(vec![1, 3]), begun + at);
            check(at, &[3, 3], Some(2));
            at += FRESH / 2;
        }
        asked.learn(Some(vec![1, 3]), begun + at);
        check(at, &[3, 3], None);
        check(at, &[1, 3], Some(0));
        asked.learn(Some(vec![2, 3]), begun + at);
        check(at, &[3, 3], Some(1));
        asked.learn(None, begun + at);
        check(at, &[3, 3], None);
    }
}
