//! Watches from beside the stream how far the source is and what its slot holds, so that it is known while the stream stands still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::slot::{self, Slot};
use super::sql::{self, Sql};
use super::{Capture, Phase, Status};
use crate::event::Lsn;
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;

/// How often the source is asked.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long an answer, or a connection, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the source stands to the log. `None` is what is not known now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The stream's place up to which the log has everything.
    pub received: Option<Lsn>,
    /// WAL that the source has written and the log does not have, in bytes.
    pub lag_bytes: Option<u64>,
    /// WAL that the slot keeps on the source, in bytes.
    pub retained_bytes: Option<u64>,
    /// WAL that can still be written before the slot is lost, in bytes; `None` also where there is no limit.
    pub safe_bytes: Option<u64>,
    /// How long the source took to say so.
    pub took: Option<Duration>,
}

/// The place up to which the log has everything. Clones are the same. 0: nothing is known yet.
#[derive(Clone, Debug, Default)]
pub struct Received(Arc<AtomicU64>);

impl Received {
    /// A stream begins, and the log has everything up to there. It may be less than before: of another server.
    pub(super) fn begin(&self, lsn: Lsn) {
        self.0.store(lsn.0, Ordering::Relaxed);
    }

    /// The log has everything up to there, of the stream that has begun.
    pub(super) fn note(&self, lsn: Lsn) {
        self.0.fetch_max(lsn.0, Ordering::Relaxed);
    }

    fn get(&self) -> Option<Lsn> {
        Some(Lsn(self.0.load(Ordering::Relaxed))).filter(|lsn| lsn.0 > 0)
    }
}

/// Asks the source until shutdown. It connects only while capture has no trouble doing so: whoever cannot be reached is
/// tried by capture, at capture's pace. With several captures those that stand by ask, too.
pub async fn watch_source(
    capture: Capture,
    status: watch::Receiver<Status>,
    standing: watch::Sender<Standing>,
    shutdown: Shutdown,
) {
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection: Option<Sql> = None;
    let mut retry = Retry::new("source_watch");
    loop {
        let look = async {
            ticks.tick().await;
            let mut fault = None;
            if connection.is_none() && !matches!(status.borrow().phase, Phase::Starting | Phase::Retrying(_)) {
                match timeout(PATIENCE, sql::connect(&capture.database)).await {
                    Ok(Ok(made)) => {
                        connection = Some(made);
                        retry.reset();
                    }
                    Ok(Err(error)) => fault = Some(Chain(&error).to_string()),
                    Err(_) => fault = Some(format!("no connection within {} s", PATIENCE.as_secs())),
                }
            }
            (ask(&capture, &mut connection).await, fault)
        };
        let (now, fault) = tokio::select! {
            biased;
            () = shutdown.raised() => return,
            looked = look => looked,
        };
        standing.send_replace(now);
        if let Some(fault) = fault
            && !retry.wait(&format!("connect to look at the source's lag and slot: {fault}"), &shutdown).await
        {
            return;
        }
    }
}

/// Asks over the connection, and drops one that does not answer.
async fn ask(capture: &Capture, connection: &mut Option<Sql>) -> Standing {
    let unknown = Standing { received: capture.received.get(), ..Standing::default() };
    let Some(sql) = connection else { return unknown };
    let since = Instant::now();
    match timeout(PATIENCE, slot::source_progress(sql, &capture.source.slot)).await {
        Ok(Ok((flushed, slot))) => {
            return Standing { took: Some(since.elapsed()), ..seen(capture.received.get(), flushed, slot.as_ref()) };
        }
        Ok(Err(error)) => tracing::debug!("{}", Chain(&error)),
        Err(_) => tracing::debug!("look at the source: no answer within {} s", PATIENCE.as_secs()),
    }
    *connection = None;
    unknown
}

fn seen(received: Option<Lsn>, flushed: Lsn, slot: Option<&Slot>) -> Standing {
    let is_lost = slot.is_some_and(|slot| slot.wal_status.as_deref() == Some("lost"));
    let safe = slot.and_then(|slot| slot.safe_wal_size).map(|bytes| u64::try_from(bytes).unwrap_or(0));
    Standing {
        received,
        lag_bytes: received.map(|received| flushed.0.saturating_sub(received.0)),
        retained_bytes: slot.map(|slot| slot.retained_bytes),
        // The server says nothing of a slot that is lost.
        safe_bytes: if is_lost { Some(0) } else { safe },
        took: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(wal_status: &str, safe_wal_size: Option<i64>) -> Slot {
        Slot {
            plugin: "pgoutput".into(),
            database: "shop".into(),
            active_pid: None,
            confirmed_flush: None,
            restart: None,
            wal_status: Some(wal_status.into()),
            safe_wal_size,
            retained_bytes: 7,
        }
    }

    #[test]
    fn a_slot_that_is_lost_has_nothing_left_and_one_without_a_limit_says_nothing() {
        let of = |slot: &Slot| seen(Some(Lsn(10)), Lsn(30), Some(slot));
        let there =
            Standing { received: Some(Lsn(10)), lag_bytes: Some(20), retained_bytes: Some(7), ..Standing::default() };
        assert_eq!(of(&slot("reserved", None)), there);
        assert_eq!(of(&slot("extended", Some(5))), Standing { safe_bytes: Some(5), ..there });
        assert_eq!(of(&slot("unreserved", Some(-3))), Standing { safe_bytes: Some(0), ..there });
        assert_eq!(of(&slot("lost", None)), Standing { safe_bytes: Some(0), ..there });
    }

    #[test]
    fn what_nobody_has_said_is_not_known() {
        let gone = Standing { received: Some(Lsn(10)), lag_bytes: Some(0), ..Standing::default() };
        assert_eq!(seen(Some(Lsn(10)), Lsn(9), None), gone);
        assert_eq!(seen(Received::default().get(), Lsn(9), None), Standing::default());
    }

    #[test]
    fn a_stream_that_has_brought_nothing_yet_does_not_go_back() {
        let received = Received::default();
        for (begin, came, wanted) in [(50, 0, 50), (50, 70, 70), (70, 0, 70), (20, 30, 30)] {
            received.begin(Lsn(begin));
            received.note(Lsn(came));
            assert_eq!(received.get(), Some(Lsn(wanted)));
        }
    }
}
