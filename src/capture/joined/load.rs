//! All documents, read anew: the keys of their table page by page, then the keys that the log still holds and that were not
//! written since. Readings at the present need no snapshot: what changes meanwhile has causes of its own.

use bytes::Bytes;

use super::keys::Keys;
use super::{BYTES_PER_APPEND, DOCUMENTS_MAX, Session, appended, key_text, noted, with_feedback};
use crate::capture::documents::KeyText;
use crate::capture::{CaptureError, Finished, SnapshotProgress, Wanted};
use crate::clock::now_ms;
use crate::event::RowKey;
use crate::topic::{Offsets, Resync, SnapshotMarker};

/// Documents that are read again.
pub(super) struct Load {
    keys: Keys,
    /// The log held nothing when it began: there is nothing to search, so nobody waits behind it.
    pub is_first: bool,
    /// Ends of `changes` when it began: what lies below and was not written again has to be looked at.
    began: Offsets,
    /// Where the log's keys are looked through, when the table's are done.
    sweep: Option<(u16, Option<Bytes>)>,
    gone: u64,
}

impl Load {
    /// Waits until some of it can be done. If the future is dropped, nothing is lost.
    pub(super) async fn ready(&mut self) -> Result<(), CaptureError> {
        if self.sweep.is_some() { Ok(()) } else { self.keys.ready().await }
    }
}

impl Session<'_> {
    /// Begins it, anew if one was under way.
    pub(super) fn begin_load(&mut self) {
        let main = &self.reader.documents().main;
        let expected = main.estimated_rows;
        self.status.send_modify(|status| {
            let needed = status.snapshot.needed && !status.snapshot.complete;
            status.snapshot = SnapshotProgress { expected, needed, ..Default::default() };
        });
        tracing::info!("reading all documents of {}.{} begins", main.schema, main.name);
        let keys = Keys::all(&self.capture.database, main);
        let began = self.capture.log.changes_ends();
        let is_first = began.iter().all(|end| *end == 0);
        self.load = Some(Load { keys, is_first, began, sweep: None, gone: 0 });
    }

    /// Has all documents read anew, from the beginning where a load is under way: what that has read may have become another
    /// document since, by a change that nobody follows.
    pub(super) async fn resync(&mut self, wanted: Wanted) -> Result<(), CaptureError> {
        self.load = None;
        self.state.resync = noted(self.state.resync, wanted);
        (self.state.snapshot, self.state.whole) = (SnapshotMarker::Wanted, self.state.is_whole());
        self.record(vec![]).await?;
        self.begin_load();
        Ok(())
    }

    /// Reads and appends some.
    pub(super) async fn load_some(&mut self, count: usize) -> Result<(), CaptureError> {
        let asked = match self.state.resync.batch_rows {
            0 => DOCUMENTS_MAX,
            rows => rows as usize,
        };
        let fits = (BYTES_PER_APPEND / self.document_bytes.max(1)).max(1);
        let Some(load) = &mut self.load else { return Ok(()) };
        if load.sweep.is_some() {
            return self.sweep_some().await;
        }
        let counted = load.keys.counted();
        let keys = load.keys.take(count.min(asked).min(fits));
        if keys.is_empty() {
            load.sweep = Some((0, None));
            return Ok(());
        }
        let (read_ms, point) = (now_ms(), self.reached.confirm);
        let documents = self.read(&keys).await?;
        let events = documents.into_iter().map(|document| self.events.read(document, point, read_ms)).collect();
        self.append(events).await?;
        self.pace.done(tokio::time::Instant::now(), keys.len(), appended(self.capture));
        let read = keys.len() as u64;
        self.status.send_modify(|status| {
            status.snapshot.rows += read;
            let expected = counted.or(status.snapshot.expected);
            status.snapshot.expected = expected.map(|expected| expected.max(status.snapshot.rows));
        });
        Ok(())
    }

    /// Reads the documents of some keys that only the log holds, and deletes those that there are none of.
    async fn sweep_some(&mut self) -> Result<(), CaptureError> {
        let Some(Load { sweep: Some((partition, after)), began, .. }) = &mut self.load else { return Ok(()) };
        let Some(below) = began.get(usize::from(*partition)).copied() else { return self.finish_load().await };
        let (log, place, from) = (&self.capture.log, *partition, after.clone());
        let reading =
            async { log.live_keys_below(place, below, from, DOCUMENTS_MAX).await.map_err(CaptureError::from) };
        let page = with_feedback(&mut self.stream, &mut self.feedback, self.state.confirm, reading).await?;
        match page.last() {
            Some((_, last)) => *after = Some(last.clone()),
            None => (*partition, *after) = (place + 1, None),
        }
        let (mut texts, mut gone): (Vec<KeyText>, Vec<RowKey>) = (vec![], vec![]);
        for (_, key) in page {
            // A key that cannot be read was never a document of ours.
            let Ok(key) = RowKey::from_bytes(&key) else { continue };
            if let Ok(text) = key_text(&self.reader.documents().main, &key) {
                texts.push(text.into_iter().map(Some).collect());
            }
            gone.push(key);
        }
        let (read_ms, point) = (now_ms(), self.reached.confirm);
        let documents = self.read(&texts).await?;
        gone.retain(|key| documents.binary_search_by(|document| document.key.cmp(key)).is_err());
        let mut events: Vec<_> =
            documents.into_iter().map(|document| self.events.read(document, point, read_ms)).collect();
        if let Some(load) = &mut self.load {
            load.gone += gone.len() as u64;
        }
        events.extend(gone.into_iter().flat_map(|key| self.events.absent(key, point, read_ms)));
        self.append(events).await
    }

    async fn finish_load(&mut self) -> Result<(), CaptureError> {
        let Some(Load { gone, .. }) = self.load.take() else { return Ok(()) };
        self.state.resync = Resync { batch_rows: 0, forced: false, ..self.state.resync };
        self.state.snapshot = SnapshotMarker::Complete;
        self.record(vec![]).await?;
        let ends = self.capture.log.changes_ends();
        self.status.send_modify(|status| {
            status.snapshot.complete = true;
            status.snapshot.ends = ends;
            let (number, rows) = (status.finished.number + 1, status.snapshot.rows);
            status.finished = Finished { number, rows, superseded: 0, gone, at_ms: now_ms() };
        });
        tracing::info!(rows = self.status.borrow().snapshot.rows, gone, "snapshot complete");
        Ok(())
    }
}
