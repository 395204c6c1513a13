//! The records of documents: what was read, under the change that made it new. No I/O.

use std::collections::BTreeMap;

use super::causes::Cause;
use crate::capture::documents::Document;
use crate::clock::now_ms;
use crate::event::{Change, ChangeEvent, Lsn, Op, Row, RowKey, Source};

/// Makes events.
#[derive(Debug)]
pub struct Events {
    template: Source,
}

impl Events {
    /// `template` gives the constant fields of `source`.
    pub fn new(template: Source) -> Events {
        Events { template }
    }

    /// The documents table was truncated.
    pub fn barrier(&self, cause: Cause) -> ChangeEvent {
        ChangeEvent::Barrier { change: Box::new(self.change(Op::Truncate, None, self.source(cause))) }
    }

    /// The documents of these keys, and deletes for those that have none.
    pub fn of_causes(&self, documents: Vec<Document>, mut causes: BTreeMap<RowKey, Cause>) -> Vec<ChangeEvent> {
        let mut events = Vec::with_capacity(causes.len());
        for Document { key, columns, .. } in documents {
            // What was not asked for is not known to be the last word on its key.
            let Some(cause) = causes.remove(&key) else { continue };
            let change = Box::new(self.change(Op::Update, Some(columns), self.source(cause)));
            events.push(ChangeEvent::Row { key, change });
        }
        for (key, cause) in causes {
            events.extend(self.gone(key, self.source(cause)));
        }
        events
    }

    /// A document that was read without a change.
    pub fn read(&self, document: Document, point: Lsn, read_ms: i64) -> ChangeEvent {
        let Document { key, columns, .. } = document;
        let change = Box::new(self.change(Op::Read, Some(columns), self.source_of_reading(point, read_ms)));
        ChangeEvent::Row { key, change }
    }

    /// A key that was found to have no document.
    pub fn absent(&self, key: RowKey, point: Lsn, read_ms: i64) -> [ChangeEvent; 2] {
        self.gone(key, self.source_of_reading(point, read_ms))
    }

    fn gone(&self, key: RowKey, source: Source) -> [ChangeEvent; 2] {
        let commit_ts_ms = Some(source.ts_ms);
        let change = Box::new(self.change(Op::Delete, None, source));
        [ChangeEvent::Row { key: key.clone(), change }, ChangeEvent::Tombstone { key, commit_ts_ms }]
    }

    fn change(&self, op: Op, after: Option<Row>, source: Source) -> Change {
        Change { before: None, after, source, op, ts_ms: now_ms() }
    }

    fn source(&self, cause: Cause) -> Source {
        Source {
            lsn: Some(cause.lsn.0),
            tx_id: Some(u64::from(cause.xid)),
            ts_ms: cause.commit_ts_ms,
            snapshot: Some("false".into()),
            commit_lsn: Some(cause.position.commit_lsn),
            ordinal: Some(cause.position.ordinal),
            ..self.template.clone()
        }
    }

    fn source_of_reading(&self, point: Lsn, read_ms: i64) -> Source {
        Source {
            lsn: Some(point.0),
            tx_id: None,
            ts_ms: read_ms,
            snapshot: Some("true".into()),
            commit_lsn: None,
            ordinal: None,
            ..self.template.clone()
        }
    }
}
