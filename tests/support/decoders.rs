//! Bytes of a stranger through everything that capture does with what comes over the replication connection: frames,
//! pieces of the stream, messages of pgoutput, the sequencer. Panics where a promise is broken.

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::backend::Message as Backend;
use tokio_postgres::fallible_iterator::FallibleIterator;
use vecsync::capture::catalog::{Column, Table};
use vecsync::capture::connection;
use vecsync::capture::pgoutput::{self, Message, Old};
use vecsync::capture::sequencer::{Pending, Sequencer, Step};
use vecsync::capture::values::ColumnKind;
use vecsync::capture::wire::{self, FRAME_BYTES_MAX, Frame, ServerFrame};
use vecsync::event::{Lsn, Position, Source};

/// What a message takes in memory, at most: so many bytes for each of its own, and a little for itself.
const BYTES_PER_BYTE_MAX: usize = 128;
const BYTES_OF_NONE: usize = 1024;
/// The columns of the table that the corpus was recorded from.
const COLUMNS: [(&str, ColumnKind); 13] = [
    ("id", ColumnKind::Integer),
    ("q", ColumnKind::Text),
    ("a", ColumnKind::Text),
    ("small", ColumnKind::Integer),
    ("n", ColumnKind::Numeric),
    ("f", ColumnKind::Float),
    ("b", ColumnKind::Bool),
    ("j", ColumnKind::Json),
    ("t", ColumnKind::TimestampTz),
    ("d", ColumnKind::Date),
    ("raw", ColumnKind::Bytea),
    ("u", ColumnKind::Text),
    ("m", ColumnKind::Text),
];

/// What a server says, from its first byte on. Whole or in pieces, it must come to the same.
pub fn stream(bytes: &[u8]) {
    let whole = read(bytes, bytes.len().max(1));
    // A few bytes at a time, and of what is short each alone.
    let step = if bytes.len() > 512 { 97 } else { 1 };
    assert_eq!(read(bytes, step), whole, "in pieces of {step} bytes it is something else");
}

/// One message of pgoutput, in a stream that has described the table and begun a transaction.
pub fn message(bytes: &[u8]) {
    let mut sequencer = sequencer();
    let begin = Message::Begin { final_lsn: Lsn(100), commit_ts_ms: 0, xid: 1 };
    let _ = offer(&mut sequencer, begin);
    if let Some(message) = decode(Bytes::copy_from_slice(bytes)) {
        // Another description may come first, and what is for the one before is then refused.
        let again = message.clone();
        let _ = offer(&mut sequencer, message).and_then(|()| offer(&mut sequencer, again));
    }
}

/// What came of the bytes: the kind and the length of each frame, and how it ended.
fn read(bytes: &[u8], step: usize) -> (Vec<(u8, usize)>, String) {
    let (mut frames, mut buffer, mut rest) = (vec![], BytesMut::new(), bytes);
    let mut followed = Some(sequencer());
    loop {
        let before = buffer.len();
        match wire::next_frame(&mut buffer, FRAME_BYTES_MAX) {
            Ok(Some(frame)) => {
                let taken = before - buffer.len();
                assert!(taken >= 5, "a frame of {taken} bytes");
                frames.push((take(frame, &mut followed), taken));
            }
            Ok(None) if rest.is_empty() => return (frames, format!("{} bytes left", buffer.len())),
            Ok(None) => {
                assert_eq!(buffer.len(), before, "a frame that is not whole was touched");
                assert!(wire::missing_bytes(&buffer) <= FRAME_BYTES_MAX);
                let (more, later) = rest.split_at(step.min(rest.len()));
                buffer.extend_from_slice(more);
                rest = later;
            }
            Err(error) => return (frames, error.to_string()),
        }
    }
}

/// Does with a frame what the connection does, as far as it goes.
fn take(frame: ServerFrame, followed: &mut Option<Sequencer>) -> u8 {
    match frame {
        ServerFrame::CopyBoth => 1,
        ServerFrame::Error(error) => {
            let _ = (error.to_string(), error.remedy(), error.is_transient());
            2
        }
        ServerFrame::Message(message) => {
            match message {
                Backend::DataRow(body) => drop(connection::row(&body)),
                Backend::AuthenticationSasl(body) => drop(body.mechanisms().collect::<Vec<_>>()),
                _ => {}
            }
            3
        }
        ServerFrame::CopyData(payload) => match wire::replication_frame(payload) {
            Ok(Frame::Data { start, payload, .. }) => {
                let message = decode(payload);
                // A session ends with the first thing that cannot be.
                let goes_on = message.is_some_and(|message| {
                    followed.as_mut().is_some_and(|sequencer| offer_at(sequencer, message, start).is_ok())
                });
                followed.take_if(|_| !goes_on);
                4
            }
            Ok(Frame::Keepalive { end, .. }) => {
                followed.iter_mut().for_each(|sequencer| sequencer.keepalive(end));
                5
            }
            Err(_) => {
                *followed = None;
                6
            }
        },
    }
}

fn decode(bytes: Bytes) -> Option<Message> {
    let length = bytes.len();
    let message = pgoutput::decode(bytes).ok()?;
    let taken = weight(&message);
    assert!(taken <= length * BYTES_PER_BYTE_MAX + BYTES_OF_NONE, "{length} bytes take {taken} bytes");
    Some(message)
}

/// Bytes that a message holds beside itself; its values are slices of what came.
fn weight(message: &Message) -> usize {
    fn vector<T>(of: &Vec<T>) -> usize {
        of.capacity() * size_of::<T>()
    }
    let old = |old: &Old| match old {
        Old::Key(tuple) | Old::Full(tuple) => vector(tuple),
    };
    match message {
        Message::Relation(relation) => {
            let names: usize = relation.columns.iter().map(|column| column.name.capacity()).sum();
            vector(&relation.columns) + names + relation.schema.capacity() + relation.name.capacity()
        }
        Message::Insert { new, .. } => vector(new),
        Message::Update { old: before, new, .. } => before.as_ref().map_or(0, old) + vector(new),
        Message::Delete { old: before, .. } => old(before),
        Message::Truncate { relations, .. } => vector(relations),
        Message::Type { schema, name, .. } => schema.capacity() + name.capacity(),
        Message::Origin { name, .. } => name.capacity(),
        Message::Logical { prefix, .. } => prefix.capacity(),
        Message::Begin { .. } | Message::Commit { .. } | Message::Unknown(_) => 0,
    }
}

fn offer(sequencer: &mut Sequencer, message: Message) -> Result<(), String> {
    offer_at(sequencer, message, Lsn(1))
}

fn offer_at(sequencer: &mut Sequencer, message: Message, lsn: Lsn) -> Result<(), String> {
    let step = sequencer.offer(message, lsn, 0).map_err(|error| error.to_string())?;
    if step == Step::ShapeChanged {
        sequencer.set_table(table());
    }
    for event in sequencer.take().events {
        if let Pending::Ready(event) = event {
            let _ = event.to_record_within(1 << 20, 0);
        }
    }
    Ok(())
}

fn sequencer() -> Sequencer {
    let template: Source = serde_json::from_str(r#"{"ts_ms": 0}"#).expect("a source");
    let mut sequencer = Sequencer::new(template, table(), Position::default(), Lsn(0));
    sequencer.watch_for_snapshot();
    sequencer
}

fn table() -> Table {
    let column = |(name, kind): (&str, ColumnKind)| Column {
        name: name.into(),
        kind,
        not_null: false,
        generated: false,
        form: String::new(),
    };
    let array = ColumnKind::Array { element: Box::new(ColumnKind::Integer), delimiter: ',' };
    Table {
        oid: 1,
        schema: "public".into(),
        name: "kinds".into(),
        kind: 'r',
        columns: COLUMNS.into_iter().chain([("xs", array)]).map(column).collect(),
        key: vec!["id".into()],
        replica_identity: 'd',
        estimated_rows: Some(0),
        whole: true,
        pages: 0,
    }
}
