//! Records survive a round trip, and what cannot be read is an error that names the part.

use super::*;
use serde_json::json;

fn key(value: Value) -> RowKey {
    RowKey::from_bytes(value.to_string().as_bytes()).expect("an object")
}

#[test]
fn lsn_reads_and_prints_what_postgres_prints() {
    for text in ["0/0", "0/16B3748", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
        assert_eq!(text.parse::<Lsn>().expect("an LSN").to_string(), text);
    }
    for text in ["", "1", "/", "1/2/3", "g/0", "100000000/0"] {
        assert!(text.parse::<Lsn>().is_err(), "{text}");
    }
}

#[test]
fn row_id_is_the_value_of_a_single_key_and_the_object_of_a_composite_one() {
    assert_eq!(key(json!({"id": 7})).id(), json!(7));
    assert_eq!(key(json!({"slug": "a"})).id(), json!("a"));
    assert_eq!(key(json!({"b": 1, "a": 2})).id(), json!({"b": 1, "a": 2}));
    assert_eq!(key(json!({"b": 1, "a": 2})).as_str(), r#"{"b":1,"a":2}"#);
    assert!(RowKey::from_bytes(b"{}").is_err());
    assert!(RowKey::from_bytes(b"7").is_err());
}

#[test]
fn change_events_survive_a_round_trip() {
    let change = Change {
        before: None,
        after: Some(json!({"id": 1, "answer": "x"}).as_object().expect("object").clone()),
        source: Source {
            version: "0".into(),
            connector: "postgresql".into(),
            name: "faq".into(),
            db: "d".into(),
            schema: "public".into(),
            table: "faq_faq".into(),
            lsn: Some(5),
            tx_id: Some(6),
            ts_ms: 7,
            snapshot: Some("false".into()),
            commit_lsn: Some(Lsn(8)),
            ordinal: Some(1),
        },
        op: Op::Create,
        ts_ms: 9,
    };
    let events = [
        ChangeEvent::Row { key: key(json!({"id": 1})), change: Box::new(change.clone()) },
        ChangeEvent::Tombstone { key: key(json!({"id": 1})), commit_ts_ms: Some(7) },
        ChangeEvent::Barrier { change: Box::new(Change { op: Op::Truncate, after: None, ..change.clone() }) },
        ChangeEvent::Truncate {
            change: Box::new(Change { op: Op::Truncate, after: None, ..change }),
            fences: vec![3, 0, 9],
        },
        ChangeEvent::Nothing,
        ChangeEvent::Heartbeat { as_of_ms: 12 },
    ];
    for event in events {
        assert_eq!(ChangeEvent::from_record(&event.to_record(1)).expect("readable"), event);
    }
}

#[test]
fn a_change_that_is_too_large_goes_without_the_row_before_or_leaves_its_key() {
    let row = |length: usize| Some(json!({"id": 1, "t": "x".repeat(length)}).as_object().expect("an object").clone());
    let check = |before: usize, after: Option<usize>, wanted: &str| {
        let source = r#"{"ts_ms":5,"commit_lsn":7,"ordinal":0}"#;
        let source: Source = serde_json::from_str(source).expect("a source");
        let op = if after.is_some() { Op::Update } else { Op::Delete };
        let change = Change { before: row(before), after: after.and_then(row), source, op, ts_ms: 6 };
        let event = ChangeEvent::Row { key: key(json!({"id": 1})), change: Box::new(change) };
        let record = event.to_record_within(1_000, 8);
        assert!(record.bytes() <= 1_000 && record.key == event.to_record(8).key);
        let read = match ChangeEvent::from_record(&record) {
            Ok(ChangeEvent::Row { change, .. }) if change.before.is_some() => "whole".to_owned(),
            Ok(ChangeEvent::Row { .. }) => "without before".to_owned(),
            Ok(other) => format!("{other:?}"),
            Err(EventError::TooLarge(bytes)) => format!("too large, {}", bytes > 2_000),
            Err(error) => error.to_string(),
        };
        assert_eq!(read, wanted, "{before}, {after:?}");
    };
    check(100, Some(100), "whole");
    check(2_000, Some(100), "without before");
    check(2_000, None, "without before");
    check(100, Some(2_000), "too large, true");
}

#[test]
fn vector_events_survive_a_round_trip() {
    let row = EmbeddedRow {
        version: 3,
        row_hash: vec![1; 16],
        text_hash: vec![2; 16],
        payload: r#"{"id":1}"#.into(),
        windows: vec![Window::new(&[0.6, 0.8], "p".into())],
        commit_ts_ms: 4,
    };
    let events = [
        VectorEvent::Upsert { key: key(json!({"id": 1})), row },
        VectorEvent::Delete { key: key(json!({"id": 1})), version: Version(9), commit_ts_ms: None },
        VectorEvent::Barrier { version: Version(10), commit_ts_ms: 11, of: None },
        VectorEvent::Barrier { version: Version(10), commit_ts_ms: 11, of: Some(13) },
        VectorEvent::Heartbeat { as_of_ms: 12 },
    ];
    for event in events {
        assert_eq!(VectorEvent::from_record(&event.to_record(1)).expect("readable"), event);
    }
}

#[test]
fn poison_is_an_error_that_names_the_part() {
    let record = |key: &'static [u8], value: Option<&'static [u8]>| Record {
        key: Bytes::from_static(key),
        value: value.map(Bytes::from_static),
        headers: vec![],
        timestamp_ms: 0,
    };
    let no_row = br#"{"before":null,"after":null,"source":{"ts_ms":1},"op":"u","ts_ms":1}"#;
    for (record, wanted) in [
        (record(b"1", None), "key"),
        (record(br#"{"id":1}"#, Some(b"{")), "value"),
        (record(br#"{"id":1}"#, Some(no_row)), "update"),
    ] {
        let error = ChangeEvent::from_record(&record).expect_err("poison").to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
