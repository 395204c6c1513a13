//! Events on their way into the mirror: made ready, then gathered into a transaction. No I/O, no locks.

use std::collections::HashMap;

use super::record::{MirrorState, Record, STATE_KEY, Sealed, Stored, place_key};
use crate::clock::now_ms;
use crate::event::{EmbeddedRow, Row, RowKey, VectorEvent, Version};
use crate::index::matrix::{Becomes, Body, Cells, Edit, Matrix};
use crate::index::quantise::Coded;
use crate::index::scan::{DIMENSION, Vector};
use crate::topic::Partition;

/// Records in one transaction of sled, which holds them all in memory.
pub(super) const TRANSACTION_RECORDS_MAX: usize = 1000;
/// Bytes in one transaction of sled, beyond which it is closed.
const TRANSACTION_BYTES_MAX: usize = 4 << 20;

/// An event with all done that does not depend on what the mirror holds.
#[derive(Debug)]
pub struct Prepared {
    pub(super) partition: Partition,
    pub(super) offset: u64,
    pub(super) step: Step,
}

/// What an event asks for.
#[derive(Debug)]
pub(super) enum Step {
    /// A row or a tombstone under its key.
    Put(RowKey, Put),
    /// A row that cannot be stored, and why.
    Refused(String),
    /// What is below this version goes.
    Barrier(Version),
    /// All before this moment is there, milliseconds since the Unix epoch.
    Heartbeat(i64),
    /// To be stepped over.
    Nothing,
}

/// A record to be stored.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) version: Version,
    partition: Partition,
    sealed: Sealed,
    content: u64,
    body: Body,
}

impl Prepared {
    /// Makes an event from this place in `vectors` ready; searches may filter by `fields`.
    pub(super) fn new(partition: Partition, offset: u64, event: VectorEvent, fields: &[String]) -> Self {
        let put = |key: RowKey, version, body: Body, stored| {
            let content = content(&stored);
            let record = Record { key, version, partition, body: stored };
            let sealed = record.seal();
            Step::Put(record.key, Put { version, partition, sealed, content, body })
        };
        let step = match event {
            VectorEvent::Upsert { key, row } => match searchable(&row, fields) {
                Ok(body) => put(key, Version(row.version), body, Stored::Live(row)),
                Err(why) => Step::Refused(why),
            },
            VectorEvent::Delete { key, version, .. } => {
                let at_ms = now_ms();
                put(key, version, Body::Deleted(at_ms), Stored::Deleted(at_ms))
            }
            VectorEvent::Barrier { version, .. } => Step::Barrier(version),
            VectorEvent::Heartbeat { as_of_ms } => Step::Heartbeat(as_of_ms),
            VectorEvent::Replayed { .. } => Step::Nothing,
        };
        Prepared { partition, offset, step }
    }
}

impl Put {
    /// Whether it is a row.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.body, Body::Live(..))
    }
}

/// Stands for what a row says: the first 8 bytes of its hash; 0 for a tombstone.
pub(super) fn content(stored: &Stored) -> u64 {
    match stored {
        Stored::Live(row) => row.row_hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)),
        Stored::Deleted(_) => 0,
    }
}

/// What a search needs of a row, or why the row cannot have it.
pub(super) fn searchable(row: &EmbeddedRow, fields: &[String]) -> Result<Body, String> {
    let vectors: Option<Vec<_>> =
        row.windows.iter().map(|window| Vector::from_le_bytes(&window.vector_bytes).map(Coded::new)).collect();
    let vectors = vectors.ok_or_else(|| format!("a vector is not {DIMENSION} finite numbers"))?;
    if vectors.is_empty() {
        return Err("no window".to_owned());
    }
    Ok(Body::Live(vectors, Cells::of(&parse_payload(&row.payload)?, fields)))
}

pub(super) fn parse_payload(payload: &str) -> Result<Row, String> {
    serde_json::from_str(payload).map_err(|error| format!("the payload is not a JSON object: {error}"))
}

/// Records on their way into one transaction; of each key the last.
#[derive(Default)]
pub(super) struct Pending {
    records: HashMap<RowKey, Option<Put>>,
    bytes: usize,
}

impl Pending {
    pub(super) fn version(&self, key: &RowKey) -> Option<Version> {
        self.records.get(key)?.as_ref().map(|put| put.version)
    }

    pub(super) fn put(&mut self, key: RowKey, put: Put) {
        self.bytes += put.sealed.len();
        self.records.insert(key, Some(put));
    }

    pub(super) fn forget(&mut self, key: RowKey) {
        self.records.insert(key, None);
    }

    pub(super) fn is_full(&self) -> bool {
        self.records.len() >= TRANSACTION_RECORDS_MAX || self.bytes >= TRANSACTION_BYTES_MAX
    }

    /// The transaction, the state brought up to date in it, the same changes for the matrix, and how many rows say something
    /// else than before, or are new.
    pub(super) fn into_batch(self, state: &mut MirrorState, matrix: &Matrix) -> (sled::Batch, Vec<Edit>, u64) {
        let mut changed = 0;
        let mut batch = sled::Batch::default();
        let mut edits = Vec::with_capacity(self.records.len());
        for (key, put) in self.records {
            let old = matrix.get(&key);
            let said = old.filter(|old| old.is_live()).map(|old| old.content);
            changed += u64::from(put.as_ref().is_some_and(|put| put.is_live() && said != Some(put.content)));
            if let Some(old) = old {
                state.records -= 1;
                state.digest = state.digest.wrapping_sub(old.fingerprint);
                batch.remove(&place_key(old.place));
            }
            let becomes = put.map(|Put { version, partition, sealed, content, body }| {
                let (place, fingerprint) = (state.next_place, sealed.fingerprint);
                batch.insert(&place_key(place), sealed.at(place));
                state.next_place += 1;
                state.records += 1;
                state.digest = state.digest.wrapping_add(fingerprint);
                Becomes { version, partition, place, fingerprint, content, body }
            });
            edits.push(Edit { key, becomes });
        }
        batch.insert(STATE_KEY, state.to_bytes());
        (batch, edits, changed)
    }
}
