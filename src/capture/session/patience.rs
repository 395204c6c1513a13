//! How long the source may leave a question open, and the feedback that goes on while something else takes its time.

use std::time::Duration;

use tokio::time::{Interval, timeout};

use super::super::CaptureError;
use super::super::connection::{ReplicationConnection, ReplicationStream};
use crate::event::Lsn;

/// How long a short question of a session that streams may stay open before the connection counts as broken.
pub(in crate::capture) const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// The same for what a start asks, which may be more, of a server that has just come up.
pub(in crate::capture) const START_PATIENCE: Duration = Duration::from_secs(30);
/// Feedback interval where the server has no time-out.
const FEEDBACK_WITHOUT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the stream may bring nothing although it is asked every second: as long as the server waits for us, and not
/// less than the first of these. While it decodes what nobody wants it may not look at questions for half of that: who gave
/// it up sooner would have it decode the same again and again. The second is for a server without a time-out.
const STREAM_PATIENCE: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];

/// The clocks of a session, by the server's `wal_sender_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture) struct Pace {
    /// A third of the server's time-out, so that two feedbacks may be lost.
    pub(in crate::capture) feedback_every: Duration,
    /// How long the stream may be silent.
    pub(in crate::capture) stream_patience: Duration,
}

impl Pace {
    pub(in crate::capture) async fn of(replication: &mut ReplicationConnection) -> Result<Pace, CaptureError> {
        let sql = "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout'";
        let rows = replication.query(sql).await?;
        let timeout_ms = rows.first().and_then(|row| row.first()?.as_ref()?.parse::<u64>().ok()).unwrap_or(0);
        Ok(Pace::by(timeout_ms))
    }

    /// `timeout_ms` is the server's time-out, milliseconds; 0: none.
    fn by(timeout_ms: u64) -> Pace {
        let [least, endless] = STREAM_PATIENCE;
        match timeout_ms {
            0 => Pace { feedback_every: FEEDBACK_WITHOUT_TIMEOUT, stream_patience: endless },
            ms => Pace {
                feedback_every: Duration::from_millis((ms / 3).max(1)),
                stream_patience: Duration::from_millis(ms).max(least),
            },
        }
    }
}

/// Waits for an answer of the source. A connection whose other end is gone without a word holds nobody up for ever.
pub(in crate::capture) async fn answered<T, E: Into<CaptureError>>(
    patience: Duration,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, CaptureError> {
    timeout(patience, asked).await.map_err(|_| CaptureError::Silent(patience))?.map_err(Into::into)
}

/// Does what takes its time while feedback goes on, with what is durable already. The work is finished even when the
/// connection breaks: what it has handed to the log is written without it too, and the next session must see it.
pub(in crate::capture) async fn with_feedback<T>(
    stream: &mut ReplicationStream,
    feedback: &mut Interval,
    confirmed: Lsn,
    work: impl Future<Output = Result<T, CaptureError>>,
) -> Result<T, CaptureError> {
    let mut work = std::pin::pin!(work);
    let mut broken = None;
    let done = loop {
        tokio::select! {
            biased;
            done = &mut work => break done?,
            _ = feedback.tick(), if broken.is_none() => broken = stream.send_status(confirmed, false).await.err(),
        }
    };
    broken.map_or(Ok(done), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_follow_the_servers_time_out_within_bounds() {
        for (timeout_ms, feedback_ms, patience_s) in [
            (0, 10_000, 60),
            (1, 1, 10),
            (2_000, 666, 10),
            (30_000, 10_000, 30),
            (60_000, 20_000, 60),
            (600_000, 200_000, 600),
        ] {
            let pace = Pace::by(timeout_ms);
            assert_eq!(pace.feedback_every, Duration::from_millis(feedback_ms), "{timeout_ms}");
            assert_eq!(pace.stream_patience, Duration::from_secs(patience_s), "{timeout_ms}");
        }
    }
}
