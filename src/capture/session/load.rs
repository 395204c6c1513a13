//! The snapshot beside the stream: begins it, takes its pieces in their turn, deletes what it lacks, marks it complete.

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::snapshot::{self, Piece};
use super::super::{CaptureError, Finished, SnapshotProgress, Wanted};
use super::{Session, with_feedback};
use crate::clock::now_ms;
use crate::event::{Lsn, RowKey};
use crate::topic::{CaptureState, Offsets, Resync, SnapshotMarker};

/// Pieces of the snapshot that wait to be appended; each is bounded itself.
const PIECES_WAITING: usize = 4;
/// Keys of one page when the log is searched for rows that are gone.
const KEYS_PER_PAGE: usize = 1_000;

/// A snapshot under way.
pub(super) struct Snapshot {
    pub pieces: mpsc::Receiver<Piece>,
    reader: JoinHandle<Result<(), snapshot::SnapshotError>>,
    /// Consistent point and when it was taken.
    point: Option<(Lsn, i64)>,
    /// Ends of `changes` when the stream had passed the point: what lies below and was not written again is gone from the
    /// table. Taken later than the request, since what the stream brings before the point is older than the snapshot.
    began: Option<Offsets>,
    /// Rows that were read and not appended, because a live event was newer.
    superseded: u64,
}

/// The snapshot, if its next piece may be taken: rows wait until the stream has passed its point.
pub(super) fn open_snapshot(snapshot: &mut Option<Snapshot>, received: Lsn) -> Option<&mut Snapshot> {
    snapshot.as_mut().filter(|snapshot| snapshot.point.is_none_or(|(point, _)| received >= point))
}

/// What was asked, as the log remembers it. `before` is what it remembers so far: a resync that was forced and is not
/// complete stays so.
pub(in crate::capture) fn noted(before: Resync, wanted: Wanted) -> Resync {
    let number = if wanted.force { (now_ms().unsigned_abs()).max(before.number + 1) } else { before.number };
    Resync { batch_rows: wanted.batch_rows, forced: wanted.force || before.forced, number }
}

impl Session<'_> {
    pub(super) async fn begin_snapshot(&mut self) -> Result<(), CaptureError> {
        self.sequencer.watch_for_snapshot();
        let (sender, pieces) = mpsc::channel(PIECES_WAITING);
        let plan = snapshot::Plan {
            database: self.capture.database.clone(),
            table: self.table.clone(),
            publication: self.publication.clone(),
            slot: self.capture.source.slot.clone(),
            batch_rows: self.state.resync.batch_rows,
        };
        let expected = self.table.estimated_rows;
        self.status.send_modify(|status| {
            let needed = status.snapshot.needed && !status.snapshot.complete;
            status.snapshot = SnapshotProgress { expected, needed, ..Default::default() };
        });
        tracing::info!("snapshot of {}.{} begins", self.table.schema, self.table.name);
        let reader = tokio::spawn(snapshot::run(plan, sender));
        self.snapshot = Some(Snapshot { pieces, reader, point: None, began: None, superseded: 0 });
        Ok(())
    }

    pub(super) async fn take_piece(&mut self, piece: Option<Piece>) -> Result<(), CaptureError> {
        let is_first = self.snapshot.as_ref().is_some_and(|snapshot| snapshot.began.is_none());
        if is_first && matches!(piece, Some(Piece::Rows(_) | Piece::Done)) {
            self.append().await?;
            let began = self.capture.log.changes_ends();
            self.snapshot.iter_mut().for_each(|snapshot| snapshot.began = Some(began.clone()));
        }
        let Some(snapshot) = &mut self.snapshot else { return Ok(()) };
        match piece {
            Some(Piece::Point { point, taken_ms }) => {
                snapshot.point = Some((point, taken_ms));
                // The server answers with how far it has sent, so an idle table need not wait for a keepalive.
                self.stream.send_status(self.state.confirm, true).await?;
            }
            Some(Piece::Expected(rows)) => self.status.send_modify(|status| status.snapshot.expected = Some(rows)),
            Some(Piece::Rows(rows)) => {
                let (point, taken_ms) = snapshot.point.expect("a point comes before rows");
                let (count, now) = (rows.len() as u64, now_ms());
                for row in rows {
                    let is_taken = self.sequencer.offer_snapshot_row(row, point, taken_ms, now);
                    snapshot.superseded += u64::from(!is_taken);
                }
                self.status.send_modify(|status| status.snapshot.rows += count);
            }
            // What a snapshot read of a table that was rewritten meanwhile may be nothing.
            Some(Piece::Done) if self.has_other_shape().await? => return self.take_shape().await,
            Some(Piece::Done) => return self.finish_snapshot().await,
            None => {
                let snapshot = self.snapshot.take().expect("matched above");
                snapshot.reader.await.map_err(snapshot::SnapshotError::Reader)??;
                return Err(CaptureError::Snapshot(snapshot::SnapshotError::Abandoned));
            }
        }
        Ok(())
    }

    /// Deletes what the log holds and the snapshot lacks, then marks the snapshot complete.
    async fn finish_snapshot(&mut self) -> Result<(), CaptureError> {
        let Some(snapshot) = self.snapshot.take() else { return Ok(()) };
        let (point, taken_ms) = snapshot.point.expect("a point comes before the end");
        snapshot.reader.await.map_err(snapshot::SnapshotError::Reader)??;
        self.append().await?;
        let mut gone = 0_u64;
        for (partition, below) in snapshot.began.iter().flatten().enumerate() {
            let mut after: Option<bytes::Bytes> = None;
            loop {
                let reading = async {
                    let page = self.capture.log.live_keys_below(partition as u16, *below, after.clone(), KEYS_PER_PAGE);
                    page.await.map_err(CaptureError::from)
                };
                let confirmed = self.state.confirm;
                let page = with_feedback(&mut self.stream, &mut self.feedback, confirmed, reading).await?;
                let Some((_, last)) = page.last() else { break };
                after = Some(last.clone());
                for (_, key) in page {
                    // A key that cannot be read was never a row of ours.
                    let Ok(key) = RowKey::from_bytes(&key) else { continue };
                    gone += u64::from(self.sequencer.offer_absent_key(key, point, taken_ms, now_ms()));
                }
                self.append().await?;
            }
        }
        self.sequencer.forget_snapshot();
        let resync = Resync { batch_rows: 0, forced: false, ..self.state.resync };
        self.record(vec![], CaptureState { snapshot: SnapshotMarker::Complete, resync, ..self.state.clone() }).await?;
        let ends = self.capture.log.changes_ends();
        self.status.send_modify(|status| {
            status.snapshot.complete = true;
            status.snapshot.ends = ends;
            let number = status.finished.number + 1;
            let (rows, superseded) = (status.snapshot.rows, snapshot.superseded);
            status.finished = Finished { number, rows, superseded, gone, at_ms: now_ms() };
        });
        tracing::info!(rows = self.status.borrow().snapshot.rows, gone, %point, "snapshot complete");
        Ok(())
    }

    /// Begins to read the table anew. A snapshot that is under way serves as well, unless texts are to be embedded again.
    pub(super) async fn resync(&mut self, wanted: Wanted) -> Result<(), CaptureError> {
        if self.snapshot.is_some() && !wanted.force {
            return Ok(());
        }
        self.abandon_snapshot().await;
        let resync = noted(self.state.resync, wanted);
        let whole = self.state.is_whole();
        self.record(vec![], CaptureState { snapshot: SnapshotMarker::Wanted, whole, resync, ..self.state.clone() })
            .await?;
        self.begin_snapshot().await
    }

    pub(super) async fn abandon_snapshot(&mut self) {
        if let Some(snapshot) = self.snapshot.take() {
            drop(snapshot.pieces);
            snapshot.reader.abort();
            let _ = snapshot.reader.await;
        }
    }
}
