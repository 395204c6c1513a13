//! Puts live events and snapshot rows into one order and skips what the log already has. No I/O, no clock.

use std::collections::HashMap;

use serde_json::Value;

use super::catalog::{Column, Table};
use super::pgoutput::{Datum, Message, Old, Relation, Tuple};
use super::values;
use crate::event::{Change, ChangeEvent, Lsn, Op, Position, Row, RowKey, Source};

/// A decoded stream that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum SequenceError {
    /// A change outside of a transaction.
    #[error("follow the stream: a {0} message outside of a transaction")]
    OutsideTransaction(&'static str),
    /// A change of a relation that was not described.
    #[error("follow the stream: relation {0} was not described before its change")]
    UnknownRelation(u32),
    /// A tuple with another number of columns than its relation.
    #[error("follow the stream: a tuple of {found} columns in relation {relation}, which has {wanted}")]
    TupleLength {
        /// The relation.
        relation: String,
        /// Columns it has.
        wanted: usize,
        /// Columns in the tuple.
        found: usize,
    },
    /// The table's key is not in a tuple.
    #[error(
        "follow the stream: key column {column} of {relation} has no value in a {operation}; check the replica identity and the publication's column list"
    )]
    KeyMissing {
        /// The relation.
        relation: String,
        /// The column.
        column: String,
        /// What happened to the row.
        operation: &'static str,
    },
    /// A value in a form that was not asked for.
    #[error("follow the stream: column {0} came in binary form, text was asked for")]
    BinaryValue(String),
}

/// What a message means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on.
    Continue,
    /// The table has another shape than [`Sequencer::set_table`] was told: load it again.
    ShapeChanged,
}

/// An event that waits to be appended.
#[derive(Clone, Debug, PartialEq)]
pub enum Pending {
    /// Ready.
    Ready(ChangeEvent),
    /// An update whose large columns were not sent because they did not change: to be completed by key.
    Incomplete {
        /// The row's key.
        key: RowKey,
        /// PostgreSQL's text of each key column, in catalog order.
        key_text: Vec<String>,
        /// The columns to complete.
        missing: Vec<String>,
        /// The change so far, in which the missing columns are NULL.
        change: Box<Change>,
    },
}

/// What was collected since the last [`Sequencer::take`].
#[derive(Debug, Default)]
pub struct Batch {
    /// Events in order.
    pub events: Vec<Pending>,
    /// Bytes of the rows, about.
    pub bytes: usize,
}

#[derive(Debug)]
struct Transaction {
    final_lsn: Lsn,
    commit_ts_ms: i64,
    xid: u32,
    ordinal: u64,
}

/// What a snapshot needs to know of the live events beside it.
#[derive(Debug, Default)]
struct Beside {
    /// Latest commit that touched a key.
    touched: HashMap<RowKey, Lsn>,
    /// Latest commit that truncated the table.
    truncated: Option<Lsn>,
}

/// Puts events into order. One a pipeline.
#[derive(Debug)]
pub struct Sequencer {
    template: Source,
    table: Table,
    /// Our relation's id and the catalog column of each of its columns.
    relation: Option<(Relation, Vec<Option<Column>>)>,
    /// Relations of other tables in the publication.
    others: Vec<u32>,
    covered: Position,
    transaction: Option<Transaction>,
    received: Lsn,
    confirmable: Lsn,
    beside: Option<Beside>,
    batch: Batch,
}

impl Sequencer {
    /// Starts after `covered`, the last event in the log. `template` gives the constant fields of `source`.
    pub fn new(template: Source, table: Table, covered: Position, confirm: Lsn) -> Self {
        Sequencer {
            template,
            table,
            relation: None,
            others: vec![],
            covered,
            transaction: None,
            received: Lsn(0),
            confirmable: confirm,
            beside: None,
            batch: Batch::default(),
        }
    }

    /// From now on remembers what live events touch. Must be called before the snapshot's slot exists.
    pub fn watch_for_snapshot(&mut self) {
        self.beside = Some(Beside::default());
    }

    /// The snapshot is over.
    pub fn forget_snapshot(&mut self) {
        self.beside = None;
    }

    /// Gives the table's shape anew, after [`Step::ShapeChanged`].
    pub fn set_table(&mut self, table: Table) {
        self.table = table;
        if let Some((relation, columns)) = &mut self.relation {
            *columns = columns_of(&self.table, relation);
        }
    }

    /// Everything that was committed before this LSN has been offered.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// The position of the last event offered: what the log covers once the batch is in it.
    pub fn position(&self) -> Position {
        self.covered
    }

    /// Up to where the slot may be confirmed once all that was offered is durable.
    pub fn confirmable(&self) -> Lsn {
        self.confirmable
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Bytes and events that wait.
    pub fn waiting(&self) -> (usize, usize) {
        (self.batch.bytes, self.batch.events.len())
    }

    /// Takes what has been collected.
    pub fn take(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    /// The server says that all before `end` has been sent.
    pub fn keepalive(&mut self, end: Lsn) {
        if self.transaction.is_none() {
            self.received = self.received.max(end);
            self.confirmable = self.confirmable.max(end);
        }
    }

    /// Offers the next message of the stream. `lsn` is the message's own, `now_ms` the time for `ts_ms`.
    pub fn offer(&mut self, message: Message, lsn: Lsn, now_ms: i64) -> Result<Step, SequenceError> {
        match message {
            Message::Begin { final_lsn, commit_ts_ms, xid } => {
                self.received = self.received.max(final_lsn);
                self.transaction = Some(Transaction { final_lsn, commit_ts_ms, xid, ordinal: 0 });
            }
            Message::Commit { end_lsn, .. } => {
                self.transaction.take().ok_or(SequenceError::OutsideTransaction("commit"))?;
                self.received = self.received.max(end_lsn);
                self.confirmable = self.confirmable.max(end_lsn);
            }
            Message::Relation(relation) => return Ok(self.describe(relation)),
            Message::Insert { relation, new } => {
                if self.enter(relation, "insert")? {
                    let row = self.row(&new, "insert")?;
                    self.push_row(Op::Create, None, row, lsn, now_ms);
                }
            }
            Message::Update { relation, old, new } => {
                if self.enter(relation, "update")? {
                    self.update(old, new, lsn, now_ms)?;
                }
            }
            Message::Delete { relation, old } => {
                if self.enter(relation, "delete")? {
                    let (Old::Key(tuple) | Old::Full(tuple)) = old;
                    let row = self.row(&tuple, "delete")?;
                    self.push_delete(row.key, Some(row.columns), lsn, now_ms);
                }
            }
            Message::Truncate { relations, .. } => {
                for relation in relations {
                    if self.enter(relation, "truncate")? {
                        self.push_truncate(lsn, now_ms);
                    }
                }
            }
            Message::Type { .. } | Message::Origin { .. } | Message::Logical { .. } | Message::Unknown(_) => {}
        }
        Ok(Step::Continue)
    }

    /// Offers a row of the snapshot whose consistent point is `point`. Says whether it was taken: a row that
    /// was touched at or after the point is skipped, because the live event is newer.
    ///
    /// The caller holds rows back until [`Sequencer::received`] has reached the point, so that no older live
    /// event can come after them.
    pub fn offer_snapshot_row(&mut self, row: SnapshotRow, point: Lsn, taken_ms: i64, now_ms: i64) -> bool {
        if self.superseded(&row.key, point) {
            return false;
        }
        let source = Source {
            lsn: Some(point.0),
            tx_id: None,
            ts_ms: taken_ms,
            snapshot: Some("true".into()),
            commit_lsn: None,
            ordinal: None,
            ..self.template.clone()
        };
        self.batch.bytes += row.bytes;
        let change = Change { before: None, after: Some(row.columns), source, op: Op::Read, ts_ms: now_ms };
        self.batch.events.push(Pending::Ready(ChangeEvent::Row { key: row.key, change: Box::new(change) }));
        true
    }

    /// Offers the delete of a key that the log holds and the snapshot lacks, as [`Self::offer_snapshot_row`].
    pub fn offer_absent_key(&mut self, key: RowKey, point: Lsn, taken_ms: i64, now_ms: i64) -> bool {
        if self.superseded(&key, point) {
            return false;
        }
        let source = Source {
            lsn: Some(point.0),
            tx_id: None,
            ts_ms: taken_ms,
            snapshot: Some("true".into()),
            commit_lsn: None,
            ordinal: None,
            ..self.template.clone()
        };
        let change = Change { before: None, after: None, source, op: Op::Delete, ts_ms: now_ms };
        self.batch.bytes += key.as_str().len();
        self.batch.events.push(Pending::Ready(ChangeEvent::Row { key: key.clone(), change: Box::new(change) }));
        self.batch.events.push(Pending::Ready(ChangeEvent::Tombstone { key, commit_ts_ms: Some(taken_ms) }));
        true
    }

    /// Whether the table was truncated at or after the snapshot's point: all that it could add is gone.
    pub fn truncated_since(&self, point: Lsn) -> bool {
        self.beside.as_ref().and_then(|beside| beside.truncated).is_some_and(|commit| commit >= point)
    }

    fn superseded(&self, key: &RowKey, point: Lsn) -> bool {
        // A commit whose LSN equals the point counts as after it: PostgreSQL leaves it out of the snapshot.
        let touched = self.beside.as_ref().and_then(|beside| beside.touched.get(key));
        touched.is_some_and(|commit| *commit >= point) || self.truncated_since(point)
    }

    fn describe(&mut self, relation: Relation) -> Step {
        if relation.schema != self.table.schema || relation.name != self.table.name {
            if !self.others.contains(&relation.id) {
                self.others.push(relation.id);
            }
            return Step::Continue;
        }
        let same = self.relation.as_ref().is_some_and(|(known, _)| *known == relation);
        let columns = columns_of(&self.table, &relation);
        // The first description of a session is compared by name: the catalog was read a moment ago.
        let known = columns.iter().all(Option::is_some);
        let first = self.relation.is_none();
        self.relation = Some((relation, columns));
        if same || (first && known) { Step::Continue } else { Step::ShapeChanged }
    }

    /// Counts the event and says whether it is for us and new.
    fn enter(&mut self, relation: u32, operation: &'static str) -> Result<bool, SequenceError> {
        let ours = match &self.relation {
            Some((known, _)) if known.id == relation => true,
            _ if self.others.contains(&relation) => false,
            _ => return Err(SequenceError::UnknownRelation(relation)),
        };
        let transaction = self.transaction.as_mut().ok_or(SequenceError::OutsideTransaction(operation))?;
        transaction.ordinal += 1;
        let position = Position { commit_lsn: transaction.final_lsn, ordinal: transaction.ordinal };
        if position <= self.covered {
            return Ok(false);
        }
        self.covered = position;
        Ok(ours)
    }

    fn update(&mut self, old: Option<Old>, new: Tuple, lsn: Lsn, now_ms: i64) -> Result<(), SequenceError> {
        let (mut before, mut full) = (None, None);
        match old {
            Some(Old::Key(tuple)) => before = Some(self.row(&tuple, "update")?),
            Some(Old::Full(tuple)) => {
                before = Some(self.row(&tuple, "update")?);
                full = Some(tuple);
            }
            None => {}
        }
        let new = match full {
            Some(old) if old.len() == new.len() => {
                new.into_iter().zip(old).map(|(new, old)| if new == Datum::Unchanged { old } else { new }).collect()
            }
            _ => new,
        };
        let row = self.row(&new, "update")?;
        let before = match before {
            Some(before) if before.key != row.key => {
                self.push_delete(before.key, Some(before.columns), lsn, now_ms);
                // The row under its new key begins here, as in the Debezium envelope.
                self.push_row(Op::Create, None, row, lsn, now_ms);
                return Ok(());
            }
            before => before.map(|before| before.columns),
        };
        self.push_row(Op::Update, before, row, lsn, now_ms);
        Ok(())
    }

    fn push_row(&mut self, op: Op, before: Option<Row>, row: TupleRow, lsn: Lsn, now_ms: i64) {
        self.touch(&row.key);
        self.batch.bytes += row.bytes;
        let change = Box::new(Change { before, after: Some(row.columns), source: self.source(lsn), op, ts_ms: now_ms });
        self.batch.events.push(if row.missing.is_empty() {
            Pending::Ready(ChangeEvent::Row { key: row.key, change })
        } else {
            Pending::Incomplete { key: row.key, key_text: row.key_text, missing: row.missing, change }
        });
    }

    fn push_delete(&mut self, key: RowKey, before: Option<Row>, lsn: Lsn, now_ms: i64) {
        self.touch(&key);
        let source = self.source(lsn);
        let commit_ts_ms = Some(source.ts_ms);
        let change = Box::new(Change { before, after: None, source, op: Op::Delete, ts_ms: now_ms });
        self.batch.bytes += 2 * key.as_str().len();
        self.batch.events.push(Pending::Ready(ChangeEvent::Row { key: key.clone(), change }));
        self.batch.events.push(Pending::Ready(ChangeEvent::Tombstone { key, commit_ts_ms }));
    }

    fn push_truncate(&mut self, lsn: Lsn, now_ms: i64) {
        let source = self.source(lsn);
        if let (Some(beside), Some(commit)) = (&mut self.beside, source.commit_lsn) {
            beside.truncated = Some(commit);
        }
        let change = Box::new(Change { before: None, after: None, source, op: Op::Truncate, ts_ms: now_ms });
        self.batch.events.push(Pending::Ready(ChangeEvent::Barrier { change }));
    }

    fn touch(&mut self, key: &RowKey) {
        if let (Some(beside), Some(transaction)) = (&mut self.beside, &self.transaction) {
            beside.touched.insert(key.clone(), transaction.final_lsn);
        }
    }

    fn source(&self, lsn: Lsn) -> Source {
        let transaction = self.transaction.as_ref().expect("enter() has found the transaction");
        Source {
            lsn: Some(lsn.0),
            tx_id: Some(u64::from(transaction.xid)),
            ts_ms: transaction.commit_ts_ms,
            snapshot: Some("false".into()),
            commit_lsn: Some(transaction.final_lsn),
            ordinal: Some(transaction.ordinal),
            ..self.template.clone()
        }
    }

    fn row(&self, tuple: &Tuple, operation: &'static str) -> Result<TupleRow, SequenceError> {
        let (relation, columns) = self.relation.as_ref().expect("enter() has found the relation");
        if tuple.len() != columns.len() {
            return Err(SequenceError::TupleLength {
                relation: relation.name.clone(),
                wanted: columns.len(),
                found: tuple.len(),
            });
        }
        let mut row = TupleRow::default();
        let mut texts: HashMap<&str, String> = HashMap::new();
        for ((datum, described), column) in tuple.iter().zip(&relation.columns).zip(columns) {
            let name = &described.name;
            let value = match datum {
                Datum::Null => Value::Null,
                Datum::Unchanged => {
                    row.missing.push(name.clone());
                    Value::Null
                }
                Datum::Text(bytes) => {
                    row.bytes += bytes.len();
                    let text = String::from_utf8_lossy(bytes);
                    let value = json(column.as_ref(), &text);
                    if self.table.key.contains(name) {
                        texts.insert(name, text.into_owned());
                    }
                    value
                }
                Datum::Binary(_) => return Err(SequenceError::BinaryValue(name.clone())),
            };
            row.columns.insert(name.clone(), value);
        }
        let mut key = Row::new();
        for name in &self.table.key {
            let (Some(value), Some(text)) = (row.columns.get(name), texts.remove(name.as_str())) else {
                let (relation, column) = (relation.name.clone(), name.clone());
                return Err(SequenceError::KeyMissing { relation, column, operation });
            };
            key.insert(name.clone(), value.clone());
            row.key_text.push(text);
        }
        row.key = RowKey::from_columns(key);
        Ok(row)
    }
}

/// A row that a snapshot has read.
#[derive(Debug)]
pub struct SnapshotRow {
    /// Its key.
    pub key: RowKey,
    /// Its columns.
    pub columns: Row,
    /// Bytes of its text form.
    pub bytes: usize,
}

#[derive(Debug)]
struct TupleRow {
    key: RowKey,
    key_text: Vec<String>,
    columns: Row,
    missing: Vec<String>,
    bytes: usize,
}

impl Default for TupleRow {
    fn default() -> Self {
        TupleRow {
            key: RowKey::from_columns(Row::new()),
            key_text: vec![],
            columns: Row::new(),
            missing: vec![],
            bytes: 0,
        }
    }
}

/// PostgreSQL's text of one value as JSON. A text that its own type does not explain stays a string: the row
/// must not be lost over it.
pub fn json(column: Option<&Column>, text: &str) -> Value {
    match column {
        Some(column) => values::to_json(&column.kind, text).unwrap_or_else(|error| {
            tracing::warn!(column = column.name, %error, "a value is kept as text");
            Value::String(text.to_owned())
        }),
        None => Value::String(text.to_owned()),
    }
}

fn columns_of(table: &Table, relation: &Relation) -> Vec<Option<Column>> {
    let find = |name: &str| table.columns.iter().find(|column| column.name == name).cloned();
    relation.columns.iter().map(|column| find(&column.name)).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::super::catalog::ColumnKind;
    use super::super::pgoutput::RelationColumn;
    use super::*;

    const RELATION: u32 = 16402;

    fn table() -> Table {
        let column = |name: &str, kind| Column { name: name.into(), kind, not_null: false, generated: false };
        Table {
            oid: RELATION,
            schema: "public".into(),
            name: "faq".into(),
            kind: 'r',
            columns: vec![column("id", ColumnKind::Integer), column("answer", ColumnKind::Text)],
            key: vec!["id".into()],
            replica_identity: 'd',
            estimated_rows: 0,
            pages: 0,
        }
    }

    fn relation(id: u32, name: &str) -> Message {
        let column = |name: &str, is_key| RelationColumn { is_key, name: name.into(), type_oid: 25, type_mod: -1 };
        Message::Relation(Relation {
            id,
            schema: "public".into(),
            name: name.into(),
            replica_identity: b'd',
            columns: vec![column("id", true), column("answer", false)],
        })
    }

    fn source() -> Source {
        serde_json::from_value(json!({"ts_ms": 0})).expect("a source")
    }

    fn sequencer(covered: Position) -> Sequencer {
        let mut sequencer = Sequencer::new(source(), table(), covered, Lsn(0));
        sequencer.offer(relation(RELATION, "faq"), Lsn(0), 0).expect("a relation");
        sequencer
    }

    fn text(value: &str) -> Datum {
        Datum::Text(Bytes::copy_from_slice(value.as_bytes()))
    }

    fn tuple(id: i64, answer: &str) -> Tuple {
        vec![text(&id.to_string()), text(answer)]
    }

    fn insert(id: i64, answer: &str) -> Message {
        Message::Insert { relation: RELATION, new: tuple(id, answer) }
    }

    fn update(id: i64, answer: &str) -> Message {
        Message::Update { relation: RELATION, old: None, new: tuple(id, answer) }
    }

    fn delete(id: i64) -> Message {
        Message::Delete { relation: RELATION, old: Old::Key(vec![text(&id.to_string()), Datum::Null]) }
    }

    fn transaction(sequencer: &mut Sequencer, commit: u64, messages: Vec<Message>) {
        let begin = Message::Begin { final_lsn: Lsn(commit), commit_ts_ms: 1, xid: 1 };
        let end = Message::Commit { commit_lsn: Lsn(commit), end_lsn: Lsn(commit + 8), commit_ts_ms: 1 };
        for message in [vec![begin], messages, vec![end]].concat() {
            sequencer.offer(message, Lsn(commit - 1), 2).expect("a stream that can be followed");
        }
    }

    fn snapshot_row(id: i64, answer: &str) -> SnapshotRow {
        let columns = json!({"id": id, "answer": answer}).as_object().expect("an object").clone();
        SnapshotRow { key: key(id), columns, bytes: 1 }
    }

    fn key(id: i64) -> RowKey {
        RowKey::from_bytes(json!({"id": id}).to_string().as_bytes()).expect("a key")
    }

    /// `c1:a` for an insert of answer a under key 1, `x1` for a tombstone, `t` for a barrier, `?1` for incomplete.
    fn taken(sequencer: &mut Sequencer) -> String {
        let id = |key: &RowKey| key.id().to_string();
        let answer = |change: &Change| match &change.after {
            Some(row) => format!(":{}", row["answer"].as_str().unwrap_or("NULL")),
            None => String::new(),
        };
        let events = sequencer.take().events;
        let words: Vec<_> = events
            .iter()
            .map(|event| match event {
                Pending::Ready(ChangeEvent::Row { key, change }) => {
                    format!("{}{}{}", &change.op.as_label()[..1], id(key), answer(change))
                }
                Pending::Ready(ChangeEvent::Tombstone { key, .. }) => format!("x{}", id(key)),
                Pending::Ready(ChangeEvent::Barrier { .. }) => "t".to_owned(),
                Pending::Incomplete { key, missing, .. } => format!("?{}:{}", id(key), missing.join("+")),
            })
            .collect();
        words.join(" ")
    }

    #[test]
    fn events_come_out_in_order_with_their_place() {
        let mut sequencer = sequencer(Position::default());
        transaction(&mut sequencer, 100, vec![insert(1, "a"), update(1, "b"), delete(1)]);
        assert_eq!(taken(&mut sequencer), "c1:a u1:b d1 x1");
        assert_eq!(sequencer.position(), Position { commit_lsn: Lsn(100), ordinal: 3 });
        assert_eq!(sequencer.confirmable(), Lsn(108));
    }

    #[test]
    fn what_the_log_covers_is_skipped_whatever_event_the_kill_hit() {
        for ordinal in 0..=3 {
            let mut sequencer = sequencer(Position { commit_lsn: Lsn(100), ordinal });
            transaction(&mut sequencer, 100, vec![insert(1, "a"), insert(2, "b"), insert(3, "c")]);
            // The next transaction begins where this one ended.
            transaction(&mut sequencer, 108, vec![insert(4, "d")]);
            let wanted = ["c1:a", "c2:b", "c3:c"][ordinal as usize..].join(" ");
            assert_eq!(taken(&mut sequencer), format!("{wanted} c4:d").trim_start());
        }
    }

    #[test]
    fn an_open_transaction_is_not_confirmed() {
        let mut sequencer = sequencer(Position::default());
        transaction(&mut sequencer, 100, vec![insert(1, "a")]);
        let begin = Message::Begin { final_lsn: Lsn(200), commit_ts_ms: 1, xid: 1 };
        sequencer.offer(begin, Lsn(150), 2).expect("begin");
        sequencer.offer(insert(2, "b"), Lsn(150), 2).expect("insert");
        sequencer.keepalive(Lsn(500));
        assert_eq!(sequencer.confirmable(), Lsn(108));
        assert_eq!(sequencer.received(), Lsn(200));
        assert_eq!(sequencer.position(), Position { commit_lsn: Lsn(200), ordinal: 1 });
    }

    #[test]
    fn a_changed_key_is_a_delete_and_an_insert() {
        let mut sequencer = sequencer(Position::default());
        let old = Some(Old::Key(vec![text("1"), Datum::Null]));
        let moved = Message::Update { relation: RELATION, old, new: tuple(2, "a") };
        transaction(&mut sequencer, 100, vec![moved]);
        assert_eq!(taken(&mut sequencer), "d1 x1 c2:a");
        let old = Some(Old::Full(tuple(2, "a")));
        let same = Message::Update { relation: RELATION, old, new: tuple(2, "b") };
        transaction(&mut sequencer, 200, vec![same]);
        assert_eq!(taken(&mut sequencer), "u2:b");
    }

    #[test]
    fn an_unchanged_large_column_comes_from_the_old_row_or_waits_for_completion() {
        let new = vec![text("1"), Datum::Unchanged];
        let mut sequencer = sequencer(Position::default());
        let full = Message::Update { relation: RELATION, old: Some(Old::Full(tuple(1, "a"))), new: new.clone() };
        transaction(&mut sequencer, 100, vec![full, Message::Update { relation: RELATION, old: None, new }]);
        assert_eq!(taken(&mut sequencer), "u1:a ?1:answer");
    }

    #[test]
    fn a_snapshot_row_is_skipped_when_a_live_event_at_or_after_the_point_has_its_key() {
        for (commit, wanted) in [(99, true), (100, false), (101, false)] {
            let mut sequencer = sequencer(Position::default());
            sequencer.watch_for_snapshot();
            transaction(&mut sequencer, commit, vec![update(1, "new")]);
            assert_eq!(sequencer.offer_snapshot_row(snapshot_row(1, "s"), Lsn(100), 0, 0), wanted, "{commit}");
            assert!(sequencer.offer_snapshot_row(snapshot_row(2, "s"), Lsn(100), 0, 0));
        }
    }

    #[test]
    fn a_key_that_was_deleted_or_moved_beside_the_snapshot_does_not_come_back() {
        let mut sequencer = sequencer(Position::default());
        sequencer.watch_for_snapshot();
        let old = Some(Old::Key(vec![text("2"), Datum::Null]));
        let moved = Message::Update { relation: RELATION, old, new: tuple(3, "m") };
        transaction(&mut sequencer, 100, vec![delete(1), moved]);
        for id in [1, 2, 3] {
            assert!(!sequencer.offer_snapshot_row(snapshot_row(id, "s"), Lsn(90), 0, 0), "{id}");
            assert!(!sequencer.offer_absent_key(key(id), Lsn(90), 0, 0), "{id}");
        }
        assert!(sequencer.offer_absent_key(key(4), Lsn(90), 0, 0));
        assert_eq!(taken(&mut sequencer), "d1 x1 d2 x2 c3:m d4 x4");
    }

    #[test]
    fn a_truncate_at_or_after_the_point_ends_the_snapshot() {
        let truncate = Message::Truncate { relations: vec![RELATION], cascade: false, restart_identity: false };
        for (commit, ends) in [(99, false), (100, true)] {
            let mut sequencer = sequencer(Position::default());
            sequencer.watch_for_snapshot();
            transaction(&mut sequencer, commit, vec![truncate.clone()]);
            assert_eq!(sequencer.offer_snapshot_row(snapshot_row(1, "s"), Lsn(100), 0, 0), !ends);
        }
    }

    #[test]
    fn other_tables_count_but_are_not_ours() {
        let mut sequencer = sequencer(Position::default());
        sequencer.offer(relation(9, "other"), Lsn(0), 0).expect("a relation");
        let foreign = Message::Insert { relation: 9, new: tuple(1, "a") };
        transaction(&mut sequencer, 100, vec![foreign, insert(1, "b")]);
        assert_eq!(taken(&mut sequencer), "c1:b");
        assert_eq!(sequencer.position().ordinal, 2);
    }

    #[test]
    fn a_stream_that_cannot_be_followed_is_an_error() {
        let mut sequencer = sequencer(Position::default());
        assert!(sequencer.offer(insert(1, "a"), Lsn(1), 0).is_err(), "outside of a transaction");
        let begin = Message::Begin { final_lsn: Lsn(200), commit_ts_ms: 1, xid: 1 };
        sequencer.offer(begin, Lsn(150), 2).expect("begin");
        let unknown = Message::Insert { relation: 7, new: tuple(1, "a") };
        assert!(sequencer.offer(unknown, Lsn(1), 0).is_err());
        let short = Message::Insert { relation: RELATION, new: vec![text("1")] };
        assert!(sequencer.offer(short, Lsn(1), 0).is_err());
        let keyless = Message::Insert { relation: RELATION, new: vec![Datum::Null, text("a")] };
        assert!(sequencer.offer(keyless, Lsn(1), 0).is_err());
    }
}
