//! Puts live events and snapshot rows into one order and skips what the log already has. No I/O, no clock.

use std::collections::{HashMap, HashSet};

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
        "follow the stream: key column {column} of {relation} has no value in a {operation}; check the replica identity and the publication's column list, or, where the column was renamed, run `vecsync sync`"
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

/// Our relation as the stream describes it.
#[derive(Debug)]
struct Ours {
    described: Relation,
    /// The catalog's column for each of its columns.
    columns: Vec<Option<Column>>,
    /// Columns that the table has and the stream does not have yet: it shows rows from before they were added or renamed.
    absent: Vec<String>,
}

/// Puts events into order. One a pipeline.
#[derive(Debug)]
pub struct Sequencer {
    template: Source,
    table: Table,
    relation: Option<Ours>,
    /// Relations of other tables in the publication.
    others: Vec<u32>,
    covered: Position,
    transaction: Option<Transaction>,
    received: Lsn,
    confirmable: Lsn,
    beside: Option<Beside>,
    /// Of the keys whose rows are being read again, those that no live event has touched meanwhile.
    untouched: HashSet<RowKey>,
    /// Transactions that others may not see yet although they were offered.
    unseen: HashSet<u32>,
    batch: Batch,
}

impl Sequencer {
    /// Starts after `covered`, the last event in the log. `template` gives the constant fields of `source`; `table` has the
    /// columns that are published.
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
            untouched: HashSet::new(),
            unseen: HashSet::new(),
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

    /// From now on remembers which of these keys live events touch. Must be called before their rows are read.
    pub fn watch_keys(&mut self, keys: impl IntoIterator<Item = RowKey>) {
        self.untouched = keys.into_iter().collect();
    }

    /// Their rows have been offered, or will not be.
    pub fn forget_keys(&mut self) {
        self.untouched = HashSet::new();
    }

    /// Transactions that were offered, and those that [`Sequencer::add_unseen`] added, as far as nothing is known of
    /// their being visible: who reads rows that are to stand behind what was offered waits for these first.
    pub fn unseen(&self) -> &HashSet<u32> {
        &self.unseen
    }

    /// Transactions that may have been offered to the sequencer before this one.
    pub fn add_unseen(&mut self, xids: HashSet<u32>) {
        self.unseen.extend(xids);
    }

    /// Of what was offered, only these transactions are not visible yet.
    pub fn keep_unseen(&mut self, running: &HashSet<u32>) {
        self.unseen.retain(|xid| running.contains(xid));
    }

    /// Gives the table's shape anew, after [`Step::ShapeChanged`].
    pub fn set_table(&mut self, table: Table) {
        self.table = table;
        self.relation = self.relation.take().map(|ours| Ours::of(&self.table, ours.described));
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
                self.unseen.insert(xid);
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
                    self.push_delete(row, lsn, now_ms);
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
        let is_current = !self.superseded(&row.key, point);
        if is_current {
            self.push_read(row, point, taken_ms, now_ms);
        }
        is_current
    }

    /// Offers the delete of a key that the log holds and the snapshot lacks, as [`Self::offer_snapshot_row`].
    pub fn offer_absent_key(&mut self, key: RowKey, point: Lsn, taken_ms: i64, now_ms: i64) -> bool {
        let is_current = !self.superseded(&key, point);
        if is_current {
            self.push_absent(key, point, taken_ms, now_ms);
        }
        is_current
    }

    /// Offers what there is now under a key of [`Sequencer::watch_keys`]: a row, or none, which deletes it. Says whether
    /// it was taken: where a live event has touched the key since, that event says the same or something newer.
    ///
    /// The caller holds it back until [`Sequencer::received`] has reached `point`, an LSN that all that it has read was
    /// committed before: then every event that the row shows has been offered, so none of them can come after it.
    pub fn offer_again(
        &mut self,
        key: RowKey,
        found: Option<SnapshotRow>,
        point: Lsn,
        read_ms: i64,
        now_ms: i64,
    ) -> bool {
        let is_current = self.untouched.remove(&key);
        match found {
            Some(row) if is_current => self.push_read(row, point, read_ms, now_ms),
            None if is_current => self.push_absent(key, point, read_ms, now_ms),
            _ => {}
        }
        is_current
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
        // By its number too: what was written while it had another name is ours as well.
        let named = relation.schema == self.table.schema && relation.name == self.table.name;
        if !named && relation.id != self.table.oid {
            // Ours may have been renamed.
            self.relation.take_if(|known| known.described.id == relation.id);
            if !self.others.contains(&relation.id) {
                self.others.push(relation.id);
            }
            return Step::Continue;
        }
        self.others.retain(|other| *other != relation.id);
        let same = self.relation.as_ref().is_some_and(|known| known.described == relation);
        let first = self.relation.is_none();
        let ours = Ours::of(&self.table, relation);
        // The first description of a session is compared by name: the catalog was read a moment ago.
        let known = ours.columns.iter().all(Option::is_some);
        self.relation = Some(ours);
        if same || (first && known) { Step::Continue } else { Step::ShapeChanged }
    }

    /// Counts the event and says whether it is for us and new.
    fn enter(&mut self, relation: u32, operation: &'static str) -> Result<bool, SequenceError> {
        let ours = match &self.relation {
            Some(known) if known.described.id == relation => true,
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
                self.push_delete(before, lsn, now_ms);
                // The row under its new key begins here, as in the Debezium envelope.
                self.push_row(Op::Create, None, row, lsn, now_ms);
                return Ok(());
            }
            before => before.map(|before| {
                self.batch.bytes += before.bytes;
                before.columns
            }),
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

    fn push_delete(&mut self, row: TupleRow, lsn: Lsn, now_ms: i64) {
        let TupleRow { key, columns, bytes, .. } = row;
        self.touch(&key);
        let source = self.source(lsn);
        let commit_ts_ms = Some(source.ts_ms);
        let change = Box::new(Change { before: Some(columns), after: None, source, op: Op::Delete, ts_ms: now_ms });
        self.batch.bytes += bytes + key.as_str().len();
        self.batch.events.push(Pending::Ready(ChangeEvent::Row { key: key.clone(), change }));
        self.batch.events.push(Pending::Ready(ChangeEvent::Tombstone { key, commit_ts_ms }));
    }

    fn push_read(&mut self, row: SnapshotRow, point: Lsn, read_ms: i64, now_ms: i64) {
        let source = self.snapshot_source(point, read_ms);
        self.batch.bytes += row.bytes;
        let change = Change { before: None, after: Some(row.columns), source, op: Op::Read, ts_ms: now_ms };
        self.batch.events.push(Pending::Ready(ChangeEvent::Row { key: row.key, change: Box::new(change) }));
    }

    fn push_absent(&mut self, key: RowKey, point: Lsn, read_ms: i64, now_ms: i64) {
        let source = self.snapshot_source(point, read_ms);
        let change = Change { before: None, after: None, source, op: Op::Delete, ts_ms: now_ms };
        self.batch.bytes += key.as_str().len();
        self.batch.events.push(Pending::Ready(ChangeEvent::Row { key: key.clone(), change: Box::new(change) }));
        self.batch.events.push(Pending::Ready(ChangeEvent::Tombstone { key, commit_ts_ms: Some(read_ms) }));
    }

    fn push_truncate(&mut self, lsn: Lsn, now_ms: i64) {
        let source = self.source(lsn);
        if let (Some(beside), Some(commit)) = (&mut self.beside, source.commit_lsn) {
            beside.truncated = Some(commit);
        }
        self.untouched.clear();
        let change = Box::new(Change { before: None, after: None, source, op: Op::Truncate, ts_ms: now_ms });
        self.batch.events.push(Pending::Ready(ChangeEvent::Barrier { change }));
    }

    fn touch(&mut self, key: &RowKey) {
        self.untouched.remove(key);
        if let (Some(beside), Some(transaction)) = (&mut self.beside, &self.transaction) {
            beside.touched.insert(key.clone(), transaction.final_lsn);
        }
    }

    /// `source` of what was read from the table: it has no transaction and no place in one.
    fn snapshot_source(&self, point: Lsn, taken_ms: i64) -> Source {
        Source {
            lsn: Some(point.0),
            tx_id: None,
            ts_ms: taken_ms,
            snapshot: Some("true".into()),
            commit_lsn: None,
            ordinal: None,
            ..self.template.clone()
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
        let Ours { described: relation, columns, absent } =
            self.relation.as_ref().expect("enter() has found the relation");
        if tuple.len() != columns.len() {
            return Err(SequenceError::TupleLength {
                relation: relation.name.clone(),
                wanted: columns.len(),
                found: tuple.len(),
            });
        }
        let mut row = TupleRow { columns: Row::with_capacity(tuple.len()), ..TupleRow::default() };
        let mut texts: Vec<(&str, String)> = Vec::with_capacity(self.table.key.len());
        for ((datum, described), column) in tuple.iter().zip(&relation.columns).zip(columns) {
            let name = &described.name;
            let value = match datum {
                Datum::Null => Value::Null,
                // The table has it no more: nobody can read it, and nobody asks for it.
                Datum::Unchanged if column.is_none() => continue,
                Datum::Unchanged => {
                    row.missing.push(name.clone());
                    Value::Null
                }
                Datum::Text(bytes) => {
                    row.bytes += bytes.len();
                    let text = String::from_utf8_lossy(bytes);
                    let value = json(column.as_ref(), &text);
                    if self.table.key.contains(name) {
                        texts.push((name, text.into_owned()));
                    }
                    value
                }
                Datum::Binary(_) => return Err(SequenceError::BinaryValue(name.clone())),
            };
            row.columns.insert(name.clone(), value);
        }
        for name in absent {
            row.missing.push(name.clone());
            row.columns.insert(name.clone(), Value::Null);
        }
        let mut key = Row::with_capacity(self.table.key.len());
        for name in &self.table.key {
            let text = texts.iter().position(|(of, _)| of == name).map(|at| texts.swap_remove(at).1);
            let (Some(value), Some(text)) = (row.columns.get(name), text) else {
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

/// A row that was read from the table.
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

impl Ours {
    fn of(table: &Table, described: Relation) -> Self {
        let find = |name: &str| table.columns.iter().find(|column| column.name == name).cloned();
        let columns = described.columns.iter().map(|column| find(&column.name)).collect();
        let has = |column: &&Column| described.columns.iter().any(|one| one.name == column.name);
        let absent = table.columns.iter().filter(|column| !has(column));
        let absent = absent.map(|column| column.name.clone()).collect();
        Ours { described, columns, absent }
    }
}

#[cfg(test)]
mod tests;
