//! Takes from the stream what makes documents new: keys of their own table, values of watched ones, tables that were emptied. No
//! I/O, no clock.
//!
//! Nothing of a row but its key is used: documents are read at the present, so only that something changed counts.

use std::collections::{BTreeMap, HashMap};

use crate::capture::documents::{Documents, KeyText};
use crate::capture::pgoutput::{Datum, Message, Old, Relation, Tuple};
use crate::capture::sequencer::{SequenceError, Step};
use crate::event::{Lsn, Position};

/// The change that made a document new, for its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The event's own LSN.
    pub lsn: Lsn,
    /// Where it stands.
    pub position: Position,
    /// The transaction.
    pub xid: u32,
    /// When it was committed, milliseconds since the Unix epoch.
    pub commit_ts_ms: i64,
}

/// What was collected since the last [`Tracker::take`]. Of several causes of one thing the last counts.
#[derive(Debug, Default, PartialEq)]
pub struct Causes {
    /// Keys of documents whose own rows changed.
    pub keys: BTreeMap<KeyText, Cause>,
    /// Of each watched table the values that rows had or have.
    pub watched: Vec<BTreeMap<KeyText, Cause>>,
    /// The documents' table was truncated.
    pub truncated: Option<Cause>,
    /// A watched table was truncated.
    pub emptied: Option<Cause>,
    /// The table of a change that does not tell what it concerns: its replica identity lacked the key then.
    pub untold: Option<String>,
    /// Transactions of these that others may not see yet.
    pub xids: Vec<u32>,
}

impl Causes {
    /// Whether nothing was collected.
    pub fn is_empty(&self) -> bool {
        self.xids.is_empty()
    }
}

#[derive(Debug)]
struct Transaction {
    final_lsn: Lsn,
    commit_ts_ms: i64,
    xid: u32,
    ordinal: u64,
}

/// What a followed table is to the documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Main,
    Watched(usize),
}

/// A table that is followed.
#[derive(Debug)]
struct Followed {
    oid: u32,
    schema: String,
    name: String,
    part: Part,
    key: Vec<String>,
    kind: char,
}

/// A relation as the stream describes it: for each part that it has in the documents, where its key is.
#[derive(Debug)]
struct Described {
    relation: Relation,
    parts: Vec<(Part, Vec<Option<usize>>)>,
}

/// Which row of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// As it is now.
    New,
    /// As it was, whole.
    Old,
    /// As it was, and of it only what the replica identity names.
    OldKey,
}

/// Collects causes. One a session.
#[derive(Debug)]
pub struct Tracker {
    followed: Vec<Followed>,
    relations: HashMap<u32, Described>,
    watched: usize,
    covered: Position,
    transaction: Option<Transaction>,
    received: Lsn,
    confirmable: Lsn,
    causes: Causes,
    events: usize,
}

impl Tracker {
    /// Starts after `covered`, the last event that the log has the effects of.
    pub fn new(documents: &Documents, covered: Position, confirm: Lsn) -> Tracker {
        let mut tracker = Tracker {
            followed: vec![],
            relations: HashMap::new(),
            watched: 0,
            covered,
            transaction: None,
            received: Lsn(0),
            confirmable: confirm,
            causes: Causes::default(),
            events: 0,
        };
        tracker.set_documents(documents);
        tracker
    }

    /// Follows these from now on. What was collected has to be taken before.
    pub fn set_documents(&mut self, documents: &Documents) {
        let parts = std::iter::once(Part::Main).chain((0..).map(Part::Watched));
        let followed = documents.followed().zip(parts).map(|(table, part)| Followed {
            oid: table.oid,
            schema: table.schema.clone(),
            name: table.name.clone(),
            part,
            key: table.key.clone(),
            kind: table.kind,
        });
        self.followed = followed.collect();
        self.watched = documents.watched.len();
        self.causes.watched.resize_with(self.watched, BTreeMap::new);
        let relations = std::mem::take(&mut self.relations);
        for relation in relations.into_values() {
            self.describe(relation.relation);
        }
    }

    /// Everything that was committed before this LSN has been offered.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// The last event offered.
    pub fn position(&self) -> Position {
        self.covered
    }

    /// Up to where the slot may be confirmed once all that was offered has had its effects.
    pub fn confirmable(&self) -> Lsn {
        self.confirmable
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Events that wait.
    pub fn waiting(&self) -> usize {
        self.events
    }

    /// Takes what has been collected.
    pub fn take(&mut self) -> Causes {
        self.events = 0;
        let mut causes = std::mem::take(&mut self.causes);
        self.causes.watched.resize_with(self.watched, BTreeMap::new);
        causes.xids.dedup();
        causes
    }

    /// The server says that all before `end` has been sent.
    pub fn keepalive(&mut self, end: Lsn) {
        if self.transaction.is_none() {
            self.received = self.received.max(end);
            self.confirmable = self.confirmable.max(end);
        }
    }

    /// Offers the next message of the stream. `lsn` is the message's own.
    pub fn offer(&mut self, message: Message, lsn: Lsn) -> Result<Step, SequenceError> {
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
                if let Some(cause) = self.enter(relation, "insert", lsn)? {
                    self.note(relation, &[(&new, Which::New)], "insert", cause)?;
                }
            }
            Message::Update { relation, old, new } => {
                if let Some(cause) = self.enter(relation, "update", lsn)? {
                    match old {
                        Some(Old::Full(old)) if old.len() == new.len() => {
                            let whole = |(new, old): (Datum, &Datum)| {
                                if matches!(new, Datum::Unchanged) { old.clone() } else { new }
                            };
                            let new = new.into_iter().zip(&old).map(whole).collect();
                            self.note(relation, &[(&old, Which::Old), (&new, Which::New)], "update", cause)?;
                        }
                        Some(Old::Key(old) | Old::Full(old)) => {
                            self.note(relation, &[(&old, Which::OldKey), (&new, Which::New)], "update", cause)?;
                        }
                        None => {
                            self.note_unchanged(relation);
                            self.note(relation, &[(&new, Which::New)], "update", cause)?;
                        }
                    }
                }
            }
            Message::Delete { relation, old } => {
                let (row, which) = match &old {
                    Old::Key(old) => (old, Which::OldKey),
                    Old::Full(old) => (old, Which::Old),
                };
                if let Some(cause) = self.enter(relation, "delete", lsn)? {
                    self.note(relation, &[(row, which)], "delete", cause)?;
                }
            }
            Message::Truncate { relations, .. } => {
                for relation in relations {
                    if let Some(cause) = self.enter(relation, "truncate", lsn)? {
                        self.note_truncate(relation, cause);
                    }
                }
            }
            Message::Type { .. } | Message::Origin { .. } | Message::Logical { .. } | Message::Unknown(_) => {}
        }
        Ok(Step::Continue)
    }

    fn describe(&mut self, relation: Relation) -> Step {
        // By its number too: what was written while it had another name is ours as well.
        let is_ours = |table: &&Followed| {
            table.oid == relation.id || (table.schema == relation.schema && table.name == relation.name)
        };
        let place = |name: &String| relation.columns.iter().position(|column| column.name == *name);
        let parts: Vec<_> = self
            .followed
            .iter()
            .filter(is_ours)
            .map(|table| (table.part, table.key.iter().map(place).collect::<Vec<_>>()))
            .collect();
        // The first description of a session is compared by what is looked for in it: the catalog was read a moment ago.
        let has_all = parts.iter().all(|(_, key)| key.iter().all(Option::is_some));
        let goes_on = match self.relations.get(&relation.id) {
            Some(before) if !parts.is_empty() => before.relation == relation,
            Some(_) | None => has_all,
        };
        self.relations.insert(relation.id, Described { relation, parts });
        if goes_on { Step::Continue } else { Step::ShapeChanged }
    }

    /// Counts the event; its cause, if it is of ours and new.
    fn enter(&mut self, relation: u32, operation: &'static str, lsn: Lsn) -> Result<Option<Cause>, SequenceError> {
        let described = self.relations.get(&relation).ok_or(SequenceError::UnknownRelation(relation))?;
        let transaction = self.transaction.as_mut().ok_or(SequenceError::OutsideTransaction(operation))?;
        transaction.ordinal += 1;
        let position = Position { commit_lsn: transaction.final_lsn, ordinal: transaction.ordinal };
        if position <= self.covered {
            return Ok(None);
        }
        self.covered = position;
        if described.parts.is_empty() {
            return Ok(None);
        }
        self.events += 1;
        if self.causes.xids.last() != Some(&transaction.xid) {
            self.causes.xids.push(transaction.xid);
        }
        let (xid, commit_ts_ms) = (transaction.xid, transaction.commit_ts_ms);
        Ok(Some(Cause { lsn, position, xid, commit_ts_ms }))
    }

    fn note(
        &mut self,
        relation: u32,
        rows: &[(&Tuple, Which)],
        operation: &'static str,
        cause: Cause,
    ) -> Result<(), SequenceError> {
        let Some(described) = self.relations.get(&relation) else { return Ok(()) };
        for (row, which) in rows {
            let wanted = described.relation.columns.len();
            if row.len() != wanted {
                let relation = described.relation.name.clone();
                return Err(SequenceError::TupleLength { relation, wanted, found: row.len() });
            }
            for (part, places) in &described.parts {
                if *which == Which::OldKey && lacks_key(places, row) {
                    self.causes.untold = Some(described.relation.name.clone());
                    continue;
                }
                let text = self.key_text(described, *part, places, row, operation)?;
                match part {
                    Part::Main => drop(self.causes.keys.insert(text, cause)),
                    Part::Watched(number) => {
                        if let Some(values) = self.causes.watched.get_mut(*number) {
                            values.insert(text, cause);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn key_text(
        &self,
        described: &Described,
        part: Part,
        places: &[Option<usize>],
        row: &Tuple,
        operation: &'static str,
    ) -> Result<KeyText, SequenceError> {
        let missing = |number: usize| {
            let column = self.followed.iter().find(|table| table.part == part).and_then(|table| table.key.get(number));
            let (relation, column) = (described.relation.name.clone(), column.cloned().unwrap_or_default());
            SequenceError::KeyMissing { relation, column, operation }
        };
        let mut text = KeyText::with_capacity(places.len());
        for (number, place) in places.iter().enumerate() {
            match place.and_then(|place| row.get(place)) {
                Some(Datum::Text(bytes)) => text.push(Some(String::from_utf8_lossy(bytes).into_owned())),
                Some(Datum::Null) if part != Part::Main => text.push(None),
                Some(Datum::Binary(_)) => {
                    let column = place.and_then(|place| described.relation.columns.get(place));
                    return Err(SequenceError::BinaryValue(column.map(|one| one.name.clone()).unwrap_or_default()));
                }
                Some(Datum::Null | Datum::Unchanged) | None => return Err(missing(number)),
            }
        }
        Ok(text)
    }

    /// An update came without the row as it was: nothing that the replica identity names has changed. What else the key has
    /// may have.
    fn note_unchanged(&mut self, relation: u32) {
        let Some(described) = self.relations.get(&relation) else { return };
        for (part, places) in &described.parts {
            let of_part = self.followed.iter().find(|table| table.part == *part);
            // Of a partitioned table the stream describes the whole, and an update comes by its partition's identity.
            if of_part.is_some_and(|table| table.kind != 'p') && !is_marked(&described.relation, places) {
                self.causes.untold = Some(described.relation.name.clone());
            }
        }
    }

    fn note_truncate(&mut self, relation: u32, cause: Cause) {
        let Some(described) = self.relations.get(&relation) else { return };
        for (part, _) in &described.parts {
            match part {
                Part::Main => self.causes.truncated = Some(cause),
                Part::Watched(_) => self.causes.emptied = Some(cause),
            }
        }
    }
}

/// Whether the replica identity names all of a key.
fn is_marked(relation: &Relation, places: &[Option<usize>]) -> bool {
    places.iter().all(|place| place.and_then(|place| relation.columns.get(place)).is_some_and(|column| column.is_key))
}

/// Whether the replica identity of this old row lacked some of the key. An index that can be one has no column that can be NULL, so
/// a NULL stands for what was left out; of a partition the description does not say which that is.
fn lacks_key(places: &[Option<usize>], row: &Tuple) -> bool {
    let is_null = |place: &Option<usize>| matches!(place.and_then(|place| row.get(place)), None | Some(Datum::Null));
    places.iter().any(is_null)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::capture::catalog::Table;
    use crate::capture::documents::Watched;
    use crate::capture::pgoutput::RelationColumn;

    fn table(oid: u32, name: &str, key: &[&str]) -> Table {
        Table {
            oid,
            schema: "public".into(),
            name: name.into(),
            kind: 'r',
            columns: vec![],
            key: key.iter().map(|name| (*name).to_owned()).collect(),
            replica_identity: 'd',
            estimated_rows: Some(0),
            whole: true,
            pages: 0,
        }
    }

    /// Questions, their categories, and a table that relates questions to each other, which is watched twice.
    fn tracker(covered: Position) -> Tracker {
        let watched = |table| Watched { table, affects: String::new(), keys: String::new() };
        let documents = Documents {
            main: table(1, "faq", &["id"]),
            columns: vec![],
            key_at: vec![0],
            sql: String::new(),
            key_types: vec![],
            watched: vec![
                watched(table(2, "category", &["id"])),
                watched(table(3, "related", &["a"])),
                watched(table(3, "related", &["b"])),
            ],
        };
        let mut tracker = Tracker::new(&documents, covered, Lsn(0));
        for (id, name, columns) in [
            (1, "faq", &["text", "id"][..]),
            (2, "category", &["id"]),
            (3, "related", &["a", "b"]),
            (4, "other", &["x"]),
        ] {
            assert_eq!(tracker.offer(relation(id, name, columns), Lsn(1)).expect("good"), Step::Continue);
        }
        tracker
    }

    fn relation(id: u32, name: &str, columns: &[&str]) -> Message {
        identified(id, name, columns, columns)
    }

    /// A relation whose replica identity names these of its columns.
    fn identified(id: u32, name: &str, columns: &[&str], by: &[&str]) -> Message {
        let column = |name: &&str| RelationColumn {
            is_key: by.contains(name),
            name: (*name).into(),
            type_oid: 20,
            type_mod: -1,
        };
        let columns = columns.iter().map(column).collect();
        Message::Relation(Relation { id, schema: "public".into(), name: name.into(), replica_identity: b'd', columns })
    }

    fn row(texts: &[&str]) -> Tuple {
        let datum = |text: &&str| match *text {
            "" => Datum::Null,
            "~" => Datum::Unchanged,
            text => Datum::Text(Bytes::copy_from_slice(text.as_bytes())),
        };
        texts.iter().map(datum).collect()
    }

    fn transaction(tracker: &mut Tracker, at: u64, messages: Vec<Message>) -> Result<(), SequenceError> {
        tracker.offer(Message::Begin { final_lsn: Lsn(at), commit_ts_ms: 5, xid: at as u32 }, Lsn(at))?;
        for message in messages {
            tracker.offer(message, Lsn(at))?;
        }
        let commit = Message::Commit { commit_lsn: Lsn(at), end_lsn: Lsn(at + 5), commit_ts_ms: 5 };
        tracker.offer(commit, Lsn(at)).map(drop)
    }

    fn texts<'a>(keys: impl IntoIterator<Item = &'a KeyText>) -> Vec<String> {
        let text =
            |key: &KeyText| key.iter().map(|text| text.as_deref().unwrap_or("NULL")).collect::<Vec<_>>().join(",");
        keys.into_iter().map(text).collect()
    }

    #[test]
    fn keys_before_and_after_are_collected_for_every_part_that_a_table_has() {
        let mut tracker = tracker(Position::default());
        let messages = vec![
            Message::Insert { relation: 1, new: row(&["a", "1"]) },
            Message::Update { relation: 1, old: Some(Old::Key(row(&["", "2"]))), new: row(&["~", "3"]) },
            Message::Delete { relation: 2, old: Old::Key(row(&["7"])) },
            Message::Update { relation: 3, old: Some(Old::Full(row(&["1", "8"]))), new: row(&["1", "9"]) },
            Message::Insert { relation: 3, new: row(&["", "~"]) },
            Message::Insert { relation: 4, new: row(&["x"]) },
        ];
        // What lies out of line and is of a key cannot be known.
        assert!(matches!(transaction(&mut tracker, 10, messages), Err(SequenceError::KeyMissing { .. })));
        let causes = tracker.take();
        assert_eq!(texts(causes.keys.keys()), ["1", "2", "3"]);
        let watched: Vec<_> = causes.watched.iter().map(|values| texts(values.keys())).collect();
        assert_eq!(watched, [vec!["7"], vec!["NULL", "1"], vec!["8", "9"]]);
        assert_eq!(causes.xids, [10]);
        assert!(tracker.take().is_empty());
    }

    #[test]
    fn what_the_log_covers_is_skipped_and_tables_of_others_count_in_the_order() {
        let mut tracker = tracker(Position { commit_lsn: Lsn(10), ordinal: 2 });
        let insert = |relation, key: &str| match relation {
            1 => Message::Insert { relation, new: row(&["a", key]) },
            _ => Message::Insert { relation, new: row(&[key]) },
        };
        transaction(&mut tracker, 10, vec![insert(4, "1"), insert(1, "2"), insert(1, "3")]).expect("good");
        assert_eq!(texts(tracker.take().keys.keys()), ["3"]);
        assert_eq!(tracker.position(), Position { commit_lsn: Lsn(10), ordinal: 3 });
        transaction(&mut tracker, 20, vec![insert(4, "1")]).expect("good");
        assert!(tracker.take().is_empty());
        assert_eq!((tracker.received(), tracker.confirmable()), (Lsn(25), Lsn(25)));
    }

    #[test]
    fn emptied_tables_are_told_apart() {
        let mut tracker = tracker(Position::default());
        let truncate = |relations: &[u32]| Message::Truncate {
            relations: relations.to_vec(),
            cascade: false,
            restart_identity: false,
        };
        transaction(&mut tracker, 10, vec![truncate(&[4, 2])]).expect("good");
        let causes = tracker.take();
        assert_eq!((causes.truncated.is_some(), causes.emptied.is_some()), (false, true));
        transaction(&mut tracker, 20, vec![truncate(&[3, 1])]).expect("good");
        let causes = tracker.take();
        assert_eq!((causes.truncated.is_some(), causes.emptied.is_some()), (true, true));
    }

    #[test]
    fn a_change_that_does_not_tell_what_it_concerns_is_told_from_one_of_nulls() {
        let mut tracker = tracker(Position::default());
        let delete = |texts: &[&str]| Message::Delete { relation: 3, old: Old::Key(row(texts)) };
        let whole = |texts: &[&str]| Message::Delete { relation: 3, old: Old::Full(row(texts)) };
        transaction(&mut tracker, 10, vec![whole(&["", "1"])]).expect("good");
        let causes = tracker.take();
        assert_eq!((causes.untold, texts(causes.watched[1].keys())), (None, vec!["NULL".to_owned()]));
        // A partition whose own identity lacks it, under a description that has it.
        transaction(&mut tracker, 11, vec![delete(&["", "1"])]).expect("good");
        assert_eq!(tracker.take().untold.as_deref(), Some("related"));
        tracker.offer(identified(3, "related", &["a", "b"], &["b"]), Lsn(12)).expect("good");
        let update = |old| Message::Update { relation: 3, old, new: row(&["5", "6"]) };
        for (at, message, is_told) in [
            (20, delete(&["", "1"]), false),
            (30, update(None), false),
            (40, update(Some(Old::Key(row(&["", "1"])))), false),
            (50, update(Some(Old::Full(row(&["", "1"])))), true),
            (60, Message::Insert { relation: 3, new: row(&["", "1"]) }, true),
            // It is there although the description does not say so, as in a partition with an identity of its own.
            (70, delete(&["4", "1"]), true),
        ] {
            transaction(&mut tracker, at, vec![message]).expect("good");
            assert_eq!(tracker.take().untold.is_none(), is_told, "{at}");
        }
    }

    #[test]
    fn another_description_of_a_followed_table_is_another_shape() {
        let mut tracker = tracker(Position::default());
        assert_eq!(tracker.offer(relation(4, "other", &["y"]), Lsn(1)).expect("good"), Step::Continue);
        assert_eq!(tracker.offer(relation(2, "category", &["id", "n"]), Lsn(1)).expect("good"), Step::ShapeChanged);
        // As it was renamed: by its number.
        assert_eq!(tracker.offer(relation(1, "faqs", &["text", "id"]), Lsn(1)).expect("good"), Step::ShapeChanged);
    }
}
