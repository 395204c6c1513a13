//! Tests of the sequencer: messages and snapshot rows in, events in order out.

use bytes::Bytes;
use serde_json::json;

use super::super::catalog::ColumnKind;
use super::super::pgoutput::RelationColumn;
use super::*;

const RELATION: u32 = 16402;

fn table() -> Table {
    let column =
        |name: &str, kind| Column { name: name.into(), kind, not_null: false, generated: false, form: String::new() };
    Table {
        oid: RELATION,
        schema: "public".into(),
        name: "faq".into(),
        kind: 'r',
        columns: vec![column("id", ColumnKind::Integer), column("answer", ColumnKind::Text)],
        key: vec!["id".into()],
        replica_identity: 'd',
        estimated_rows: Some(0),
        whole: true,
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
            Pending::Ready(ChangeEvent::Heartbeat { .. }) => "h".to_owned(),
            Pending::Ready(other) => panic!("capture makes no {other:?}"),
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
fn an_unchanged_column_that_the_table_has_no_more_is_asked_for_by_nobody() {
    let mut sequencer = sequencer(Position::default());
    // Dropped or renamed since: what the stream brings from before has it still.
    let Table { columns, .. } = table();
    sequencer.set_table(Table { columns: columns[..1].to_vec(), ..table() });
    let update = Message::Update { relation: RELATION, old: None, new: vec![text("1"), Datum::Unchanged] };
    transaction(&mut sequencer, 100, vec![update]);
    let events = sequencer.take().events;
    let [Pending::Ready(ChangeEvent::Row { change, .. })] = &events[..] else { panic!("{events:?}") };
    assert_eq!(change.after, json!({"id": 1}).as_object().cloned());
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

fn again(sequencer: &mut Sequencer, id: i64, answer: Option<&str>) -> bool {
    let row = answer.map(|answer| snapshot_row(id, answer));
    sequencer.offer_again(key(id), row, Lsn(150), 7, 8)
}

#[test]
fn a_row_that_is_read_again_is_left_to_the_live_event_that_touched_it() {
    for (messages, wanted) in [
        (vec![], [true, true, true]),
        (vec![insert(9, "x")], [true, true, true]),
        (vec![update(1, "newer")], [false, true, true]),
        (vec![delete(2), insert(3, "back")], [true, false, false]),
        (vec![Message::Truncate { relations: vec![RELATION], cascade: false, restart_identity: false }], [false; 3]),
    ] {
        let mut sequencer = sequencer(Position::default());
        // What came before the keys were watched is in what was read.
        transaction(&mut sequencer, 100, vec![update(1, "older"), delete(3)]);
        sequencer.watch_keys([1, 2, 3].map(key));
        transaction(&mut sequencer, 120, messages.clone());
        sequencer.take();
        let taken = [
            again(&mut sequencer, 1, Some("read")),
            again(&mut sequencer, 2, Some("read")),
            again(&mut sequencer, 3, None),
        ];
        assert_eq!(taken, wanted, "{messages:?}");
        let events = sequencer.take().events;
        // A row is one record, a delete is one with its tombstone.
        let records = usize::from(wanted[0]) + usize::from(wanted[1]) + 2 * usize::from(wanted[2]);
        assert_eq!(events.len(), records, "{messages:?}");
        let position = sequencer.position();
        assert_eq!(position.commit_lsn, Lsn(if messages.is_empty() { 100 } else { 120 }), "it is none of the stream's");
        assert!(!again(&mut sequencer, 1, Some("read")), "a second time");
    }
}

#[test]
fn keys_that_are_not_watched_are_not_offered_again() {
    let mut sequencer = sequencer(Position::default());
    sequencer.watch_keys([key(1)]);
    assert!(!again(&mut sequencer, 2, Some("read")));
    sequencer.forget_keys();
    assert!(!again(&mut sequencer, 1, Some("read")));
}

#[test]
fn transactions_count_as_unseen_until_it_is_known_better() {
    let mut sequencer = sequencer(Position { commit_lsn: Lsn(100), ordinal: 9 });
    sequencer.add_unseen([7].into());
    // What the log covers already may be invisible all the same.
    transaction(&mut sequencer, 90, vec![]);
    assert_eq!(*sequencer.unseen(), [1, 7].into());
    sequencer.keep_unseen(&[7, 8].into());
    assert_eq!(*sequencer.unseen(), [7].into());
}

#[test]
fn what_is_no_change_of_a_row_makes_none_in_a_transaction_and_outside() {
    let others = || {
        vec![
            Message::Type { id: 1, schema: "public".into(), name: "mood".into() },
            Message::Origin { commit_lsn: Lsn(9), name: "up".into() },
            Message::Logical {
                transactional: true,
                lsn: Lsn(3),
                prefix: "app".into(),
                content: Bytes::from_static(b"x"),
            },
            Message::Unknown(b'S'),
        ]
    };
    let mut sequencer = sequencer(Position::default());
    for message in others() {
        sequencer.offer(message, Lsn(50), 0).expect("stepped over");
    }
    transaction(&mut sequencer, 100, [vec![insert(1, "a")], others(), vec![insert(2, "b")]].concat());
    assert_eq!(taken(&mut sequencer), "c1:a c2:b");
    assert_eq!(sequencer.position(), Position { commit_lsn: Lsn(100), ordinal: 2 });
}

#[test]
fn columns_that_the_stream_does_not_have_yet_are_to_be_completed() {
    let mut sequencer = sequencer(Position::default());
    let mut later = table();
    later.columns.push(Column { name: "topic".into(), ..later.columns[1].clone() });
    sequencer.set_table(later);
    // The stream still shows the rows from before.
    transaction(&mut sequencer, 100, vec![insert(1, "a"), delete(2)]);
    assert_eq!(taken(&mut sequencer), "?1:topic d2 x2");
}

#[test]
fn a_table_that_had_another_name_is_ours_by_its_number() {
    let mut sequencer = Sequencer::new(source(), table(), Position::default(), Lsn(0));
    sequencer.offer(relation(RELATION, "faq_before"), Lsn(0), 0).expect("a relation");
    sequencer.offer(relation(7, "other"), Lsn(0), 0).expect("a relation");
    let foreign = Message::Insert { relation: 7, new: tuple(9, "z") };
    transaction(&mut sequencer, 100, vec![insert(1, "a"), foreign]);
    assert_eq!(taken(&mut sequencer), "c1:a");
}
