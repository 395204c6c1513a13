//! The values that flow through vecsync and how they are written in records. No I/O.

mod debezium;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use debezium::is_unavailable;

use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A row as JSON, columns in catalog order.
pub type Row = Map<String, Value>;

/// A position in PostgreSQL's write-ahead log, in bytes since its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = EventError;

    /// Reads PostgreSQL's notation, two hexadecimal halves such as `16/B374D848`.
    fn from_str(text: &str) -> Result<Self, EventError> {
        let halves = text.split_once('/').and_then(|(high, low)| {
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some((u64::from(high) << 32) | u64::from(low))
        });
        halves.map(Lsn).ok_or_else(|| EventError::Lsn(text.to_owned()))
    }
}

/// The version of a row's state: the offset of its record in `changes`. Monotone for a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

/// Where an event stands in the source. Orders events of one timeline of one system.
///
/// An event's own LSN repeats, and one transaction's end can equal the next one's begin;
/// the commit LSN together with the ordinal inside the transaction does not repeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Start of the transaction's commit record.
    pub commit_lsn: Lsn,
    /// Number of the event inside its transaction, from 1; 0 stands before the first.
    pub ordinal: u64,
}

/// A row's primary key: a JSON object of the key columns in catalog order, in its one canonical spelling.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey(String);

impl RowKey {
    /// Builds the key from its columns, which the caller gives in catalog order.
    pub fn from_columns(columns: Row) -> Self {
        RowKey(serde_json::to_string(&columns).expect("columns have string names"))
    }

    /// Reads a record's key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EventError> {
        let columns: Row = serde_json::from_slice(bytes).map_err(|source| EventError::Json { part: "key", source })?;
        let columns = debezium::unwrapped_key(columns);
        if columns.is_empty() {
            return Err(EventError::EmptyKey);
        }
        Ok(RowKey::from_columns(columns))
    }

    /// The canonical JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its columns with their values.
    pub fn columns(&self) -> Row {
        serde_json::from_str(&self.0).expect("a RowKey is built from a JSON object")
    }

    /// What users see as the row's id: the value of a single-column key, the object of a composite one.
    pub fn id(&self) -> Value {
        let columns = self.columns();
        if columns.len() == 1 {
            columns.into_iter().next().map(|(_, value)| value).expect("one column was counted")
        } else {
            Value::Object(columns)
        }
    }

    fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_bytes())
    }
}

/// The reserved key of a barrier record. Compacted topics need a key; no row can have this one,
/// because a row's key names columns and PostgreSQL's catalog cannot hold an empty column name.
pub const BARRIER_KEY: &[u8] = br#"{"":"barrier"}"#;
/// What the reserved keys of barriers in `vectors` begin with whose truncate stands in another partition.
const BARRIER_OF: &str = r#"{"":"barrier of "#;
/// The reserved key of a heartbeat record.
pub const HEARTBEAT_KEY: &[u8] = br#"{"":"heartbeat"}"#;

/// The reserved key of a replay record.
pub const REPLAY_KEY: &[u8] = br#"{"":"replay"}"#;

/// Header of a tombstone in `vectors`: the version of the delete, decimal.
const VERSION_HEADER: &str = "vecsync.version";
/// Header of a truncate that stands in one partition for all: in each of them the first offset that is not before it.
const FENCES_HEADER: &str = "vecsync.fences";
/// Header of a tombstone: when the delete was committed, milliseconds since the Unix epoch, decimal.
const COMMIT_HEADER: &str = "vecsync.commit_ts_ms";
/// Header of a record in `changes` without its row, which was too large: the bytes that it would have had, decimal.
const TOO_LARGE_HEADER: &str = "vecsync.too-large";

/// Header of a record in `changes` whose texts are embedded again although they may be known: the number of the resync that
/// was forced, decimal.
const ANEW_HEADER: &str = "vecsync.embed-anew";

/// The column that a row has beside its key where there is nothing else to be had of it, and says why. No column of PostgreSQL's
/// has this name.
pub const FAULT_COLUMN: &str = "";

/// Room for a change as JSON, in bytes: the envelope and a short row, so that most need no more.
const CHANGE_BYTES: usize = 1024;

/// One record of a topic, before it has a place in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The compaction key.
    pub key: Bytes,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Named extra values, in order.
    pub headers: Vec<(String, Bytes)>,
    /// When the record was made, milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

impl Record {
    /// Whether a key is one of those that no row can have, such as [`BARRIER_KEY`]: its column has no name.
    pub fn is_reserved(key: &[u8]) -> bool {
        key.starts_with(br#"{"":"#)
    }

    /// Bytes of key and value.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }

    /// With the number of the resync for which its texts are embedded again, if there is one.
    pub fn to_embed_anew(mut self, number: Option<u64>) -> Record {
        self.headers.extend(number.map(|number| number_header(ANEW_HEADER, number)));
        self
    }

    /// The number of the resync for which its texts are embedded again.
    pub fn embed_anew(&self) -> Option<u64> {
        self.header_number(ANEW_HEADER)
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value)
    }

    /// A header's value that is a decimal number.
    pub fn header_number<T: FromStr>(&self, name: &str) -> Option<T> {
        std::str::from_utf8(self.header(name)?).ok()?.parse().ok()
    }
}

/// What happened to a row, in the letters of the Debezium envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    /// Inserted.
    #[serde(rename = "c")]
    Create,
    /// Updated.
    #[serde(rename = "u")]
    Update,
    /// Deleted.
    #[serde(rename = "d")]
    Delete,
    /// The table was truncated.
    #[serde(rename = "t")]
    Truncate,
    /// Read by a snapshot.
    #[serde(rename = "r")]
    Read,
}

impl Op {
    /// The value of the metrics label `op`.
    pub fn as_label(self) -> &'static str {
        match self {
            Op::Create => "create",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Read => "read",
        }
    }
}

/// A change of one row: the value of a record in `changes`. The field names are the Debezium envelope's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The row before, as far as the replica identity gives it.
    pub before: Option<Row>,
    /// The row after; none for a delete or a truncate.
    pub after: Option<Row>,
    /// Where the change comes from.
    pub source: Source,
    /// What happened.
    pub op: Op,
    /// When vecsync made the event, milliseconds since the Unix epoch.
    pub ts_ms: i64,
}

/// The `source` block of a change. What all changes of a stream share is shared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Version of the program that captured it.
    #[serde(default)]
    pub version: Arc<str>,
    /// Kind of connector, `postgresql`.
    #[serde(default)]
    pub connector: Arc<str>,
    /// The pipeline's name.
    #[serde(default)]
    pub name: Arc<str>,
    /// Database.
    #[serde(default)]
    pub db: Arc<str>,
    /// Schema.
    #[serde(default)]
    pub schema: Arc<str>,
    /// Table.
    #[serde(default)]
    pub table: Arc<str>,
    /// The event's own LSN.
    #[serde(default)]
    pub lsn: Option<u64>,
    /// The transaction's id.
    #[serde(rename = "txId", default)]
    pub tx_id: Option<u64>,
    /// When the transaction was committed (a snapshot: when it was taken), milliseconds since the Unix epoch.
    pub ts_ms: i64,
    /// `true` for a row read by a snapshot, else `false`.
    #[serde(default)]
    pub snapshot: Option<Cow<'static, str>>,
    /// Start of the transaction's commit record.
    #[serde(default)]
    pub commit_lsn: Option<Lsn>,
    /// Number of the event inside its transaction.
    #[serde(default)]
    pub ordinal: Option<u64>,
}

/// What a record in `changes` says.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeEvent {
    /// A row changed.
    Row {
        /// Its key.
        key: RowKey,
        /// The change.
        change: Box<Change>,
    },
    /// A row is gone: the tombstone that follows its delete.
    Tombstone {
        /// Its key.
        key: RowKey,
        /// When the delete was committed, milliseconds since the Unix epoch, if known.
        commit_ts_ms: Option<i64>,
    },
    /// All rows of this partition below this record are gone.
    Barrier {
        /// The truncate.
        change: Box<Change>,
    },
    /// The table was truncated, and this record alone says so, in one partition for all: Debezium's way.
    Truncate {
        /// The truncate.
        change: Box<Change>,
        /// In each partition the first offset that is not before it, where that was found out.
        fences: Vec<u64>,
    },
    /// Something that concerns no row: a logical message.
    Nothing,
    /// All that was committed in the source before this moment stands before this record.
    Heartbeat {
        /// The moment, milliseconds since the Unix epoch.
        as_of_ms: i64,
    },
    /// This partition is to be embedded again from its beginning up to this record.
    Replay {
        /// Which replay: a later one has a greater number.
        id: u64,
    },
}

/// What stands in `changes` for a change that is too large for it: a message of the Debezium envelope, which those who
/// follow rows leave aside.
#[derive(Serialize)]
struct Stub<'a> {
    source: &'a Source,
    op: &'static str,
    ts_ms: i64,
    message: StubMessage,
}

#[derive(Serialize)]
struct StubMessage {
    prefix: &'static str,
    content: &'static str,
}

/// What concerns no row; `m` is the letter of the Debezium envelope for that.
#[derive(Serialize, Deserialize)]
struct Envelope {
    source: EnvelopeSource,
    op: String,
    ts_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replay: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct EnvelopeSource {
    ts_ms: i64,
}

impl ChangeEvent {
    /// Writes the event as a record made at `now_ms`.
    pub fn to_record(&self, now_ms: i64) -> Record {
        let json = |change: &Change| {
            let mut bytes = Vec::with_capacity(CHANGE_BYTES);
            serde_json::to_writer(&mut bytes, change).expect("a change has string keys only");
            Bytes::from(bytes)
        };
        match self {
            ChangeEvent::Row { key, change } => {
                Record { key: key.to_bytes(), value: Some(json(change)), headers: vec![], timestamp_ms: now_ms }
            }
            ChangeEvent::Tombstone { key, commit_ts_ms } => Record {
                key: key.to_bytes(),
                value: None,
                headers: commit_ts_ms.map(|ms| number_header(COMMIT_HEADER, ms)).into_iter().collect(),
                timestamp_ms: now_ms,
            },
            ChangeEvent::Barrier { change } => Record {
                key: Bytes::from_static(BARRIER_KEY),
                value: Some(json(change)),
                headers: vec![],
                timestamp_ms: now_ms,
            },
            ChangeEvent::Truncate { change, fences } => Record {
                key: Bytes::new(),
                value: Some(json(change)),
                headers: vec![(FENCES_HEADER.to_owned(), serde_json::to_vec(fences).expect("numbers").into())],
                timestamp_ms: now_ms,
            },
            ChangeEvent::Nothing => Record {
                key: Bytes::new(),
                value: Some(Bytes::from_static(br#"{"op":"m"}"#)),
                headers: vec![],
                timestamp_ms: now_ms,
            },
            ChangeEvent::Heartbeat { as_of_ms } => message(HEARTBEAT_KEY, *as_of_ms, None, now_ms),
            ChangeEvent::Replay { id } => message(REPLAY_KEY, now_ms, Some(*id), now_ms),
        }
    }

    /// As `to_record`, for a log that takes records of so many bytes. What is larger goes without the row before; where
    /// that is not enough, a record stands in its place that has no row but says how large it is: see
    /// [`EventError::TooLarge`].
    pub fn to_record_within(&self, bytes_max: usize, now_ms: i64) -> Record {
        let record = self.to_record(now_ms);
        let ChangeEvent::Row { key, change } = self else { return record };
        let bytes = record.bytes();
        if bytes <= bytes_max {
            return record;
        }
        if change.before.is_some() {
            let change = Box::new(Change { before: None, ..(**change).clone() });
            return ChangeEvent::Row { key: key.clone(), change }.to_record_within(bytes_max, now_ms);
        }
        let message = StubMessage { prefix: TOO_LARGE_HEADER, content: "" };
        let stub = Stub { source: &change.source, op: "m", ts_ms: change.ts_ms, message };
        let value = serde_json::to_vec(&stub).expect("a stub has string keys only");
        let headers = vec![number_header(TOO_LARGE_HEADER, bytes)];
        Record { key: key.to_bytes(), value: Some(value.into()), headers, timestamp_ms: now_ms }
    }

    /// Reads a record of `changes`. An error is poison: this record will never be readable.
    pub fn from_record(record: &Record) -> Result<Self, EventError> {
        if let Some(bytes) = record.header_number(TOO_LARGE_HEADER) {
            return Err(EventError::TooLarge(bytes));
        }
        let change = |value: &[u8]| {
            serde_json::from_slice::<Box<Change>>(value).map_err(|source| EventError::Json { part: "value", source })
        };
        // None: it concerns no row.
        let any = |value: &[u8]| {
            let read = if debezium::is_wrapped(value) { debezium::change(value) } else { change(value) };
            match read {
                Err(_) if debezium::is_message(value) => Ok(None),
                read => read.map(Some),
            }
        };
        let message = |value: &[u8]| {
            serde_json::from_slice::<Envelope>(value).map_err(|source| EventError::Json { part: "value", source })
        };
        match &record.value {
            Some(value) if record.key == BARRIER_KEY => Ok(ChangeEvent::Barrier { change: change(value)? }),
            Some(value) if record.key == HEARTBEAT_KEY => {
                Ok(ChangeEvent::Heartbeat { as_of_ms: message(value)?.source.ts_ms })
            }
            Some(value) if record.key == REPLAY_KEY => {
                Ok(ChangeEvent::Replay { id: message(value)?.replay.unwrap_or_default() })
            }
            Some(value) => {
                let Some(change) = any(value)? else { return Ok(ChangeEvent::Nothing) };
                if change.op == Op::Truncate && record.key.is_empty() {
                    let fences = record.header(FENCES_HEADER).and_then(|fences| serde_json::from_slice(fences).ok());
                    return Ok(ChangeEvent::Truncate { change, fences: fences.unwrap_or_default() });
                }
                let key = RowKey::from_bytes(&record.key)?;
                if change.after.is_none() && change.op != Op::Delete {
                    return Err(EventError::NoRow(change.op.as_label()));
                }
                Ok(ChangeEvent::Row { key, change })
            }
            None => Ok(ChangeEvent::Tombstone {
                key: RowKey::from_bytes(&record.key)?,
                commit_ts_ms: record.header_number(COMMIT_HEADER),
            }),
        }
    }
}

/// An embedded row: the value of a record in `vectors`, a protobuf message.
#[derive(Clone, PartialEq, Message)]
pub struct EmbeddedRow {
    /// The row's version: its offset in `changes`.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// Hash of all that is indexed, text and payload, 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub row_hash: Vec<u8>,
    /// Hash of the rendered title and text, 16 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub text_hash: Vec<u8>,
    /// The payload: a JSON object.
    #[prost(string, tag = "4")]
    pub payload: String,
    /// The row's windows in reading order; at least one.
    #[prost(message, repeated, tag = "5")]
    pub windows: Vec<Window>,
    /// When the change was committed, milliseconds since the Unix epoch.
    #[prost(sint64, tag = "6")]
    pub commit_ts_ms: i64,
}

/// One window of a row's text.
#[derive(Clone, PartialEq, Message)]
pub struct Window {
    /// Unit-length vector, one little-endian f32 a dimension. On the wire it is what a packed `repeated float` is
    /// (<https://protobuf.dev/programming-guides/encoding/#packed>), and is read without copying.
    #[prost(bytes = "bytes", tag = "1")]
    pub vector_bytes: Bytes,
    /// The text that the vector stands for, without the title.
    #[prost(string, tag = "2")]
    pub passage: String,
}

impl Window {
    /// A window with this vector, one f32 a dimension.
    pub fn new(vector: &[f32], passage: String) -> Self {
        let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        Window { vector_bytes: bytes.into(), passage }
    }

    /// The vector, one f32 a dimension.
    pub fn vector(&self) -> Vec<f32> {
        let numbers = self.vector_bytes.chunks_exact(size_of::<f32>());
        numbers.map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
    }
}

/// What a record in `vectors` says.
#[derive(Clone, Debug, PartialEq)]
pub enum VectorEvent {
    /// The row is this now.
    Upsert {
        /// Its key.
        key: RowKey,
        /// The row, embedded.
        row: EmbeddedRow,
    },
    /// The row is gone.
    Delete {
        /// Its key.
        key: RowKey,
        /// Version of the delete.
        version: Version,
        /// When the delete was committed, milliseconds since the Unix epoch, if known.
        commit_ts_ms: Option<i64>,
    },
    /// All rows of this partition with an older version are gone.
    Barrier {
        /// Version of the truncate.
        version: Version,
        /// When the truncate was committed, milliseconds since the Unix epoch.
        commit_ts_ms: i64,
        /// The partition of `changes` whose truncate it is, where that is another one. It has a key of its own: a barrier of
        /// one must not push out one of another that reaches further.
        of: Option<u16>,
    },
    /// All that was committed in the source before this moment and belongs into this partition stands before this record.
    Heartbeat {
        /// The moment, milliseconds since the Unix epoch.
        as_of_ms: i64,
    },
    /// The partition was embedded again from its beginning, and all of it stands before this record.
    Replayed {
        /// Which replay.
        id: u64,
    },
}

impl VectorEvent {
    /// Writes the event as a record made at `now_ms`.
    pub fn to_record(&self, now_ms: i64) -> Record {
        match self {
            VectorEvent::Upsert { key, row } => Record {
                key: key.to_bytes(),
                value: Some(row.encode_to_vec().into()),
                headers: vec![],
                timestamp_ms: now_ms,
            },
            VectorEvent::Delete { key, version, commit_ts_ms } => {
                let mut headers = vec![number_header(VERSION_HEADER, version.0)];
                headers.extend(commit_ts_ms.map(|ms| number_header(COMMIT_HEADER, ms)));
                Record { key: key.to_bytes(), value: None, headers, timestamp_ms: now_ms }
            }
            VectorEvent::Barrier { version, commit_ts_ms, of } => {
                let row = EmbeddedRow { version: version.0, commit_ts_ms: *commit_ts_ms, ..EmbeddedRow::default() };
                let record = reserved(BARRIER_KEY, &row, now_ms);
                match of {
                    Some(of) => Record { key: format!("{BARRIER_OF}{of}\"}}").into(), ..record },
                    None => record,
                }
            }
            VectorEvent::Heartbeat { as_of_ms } => {
                let row = EmbeddedRow { commit_ts_ms: *as_of_ms, ..EmbeddedRow::default() };
                reserved(HEARTBEAT_KEY, &row, now_ms)
            }
            VectorEvent::Replayed { id } => {
                reserved(REPLAY_KEY, &EmbeddedRow { version: *id, ..EmbeddedRow::default() }, now_ms)
            }
        }
    }

    /// Reads a record of `vectors`.
    pub fn from_record(record: &Record) -> Result<Self, EventError> {
        match &record.value {
            Some(value) => {
                let row = EmbeddedRow::decode(value.clone()).map_err(EventError::Protobuf)?;
                let of = record.key.strip_prefix(BARRIER_OF.as_bytes()).and_then(|of| of.strip_suffix(b"\"}"));
                if record.key == BARRIER_KEY || of.is_some() {
                    let of = of.and_then(|of| std::str::from_utf8(of).ok()?.parse().ok());
                    let (version, commit_ts_ms) = (Version(row.version), row.commit_ts_ms);
                    return Ok(VectorEvent::Barrier { version, commit_ts_ms, of });
                }
                if record.key == HEARTBEAT_KEY {
                    return Ok(VectorEvent::Heartbeat { as_of_ms: row.commit_ts_ms });
                }
                if record.key == REPLAY_KEY {
                    return Ok(VectorEvent::Replayed { id: row.version });
                }
                Ok(VectorEvent::Upsert { key: RowKey::from_bytes(&record.key)?, row })
            }
            None => Ok(VectorEvent::Delete {
                key: RowKey::from_bytes(&record.key)?,
                version: record.header_number(VERSION_HEADER).map(Version).ok_or(EventError::NoVersion)?,
                commit_ts_ms: record.header_number(COMMIT_HEADER),
            }),
        }
    }
}

/// A record or a value that cannot be read. Reading it again gives the same: it is poison, not a passing fault.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// Not an LSN.
    #[error(
        "read LSN {0:?}: wanted two hexadecimal numbers of at most 8 digits with a slash between, like 16/B374D848"
    )]
    Lsn(String),
    /// Not the JSON that was wanted.
    #[error("read record {part}: not the JSON object that was wanted")]
    Json {
        /// `key` or `value`.
        part: &'static str,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A key without columns.
    #[error("read record key: an object without columns")]
    EmptyKey,
    /// A change without the row it is about.
    #[error("read record value: a change with op {0} has no `after`")]
    NoRow(&'static str),
    /// The row was too large for the log, and only its key is there.
    #[error("the change is too large for the log: {0} bytes")]
    TooLarge(u64),
    /// A tombstone without its version.
    #[error("read tombstone: header {VERSION_HEADER} is missing or not a number")]
    NoVersion,
    /// Not the protobuf message that was wanted.
    #[error("read embedded row")]
    Protobuf(#[source] prost::DecodeError),
}

fn message(key: &'static [u8], ts_ms: i64, replay: Option<u64>, now_ms: i64) -> Record {
    let envelope = Envelope { source: EnvelopeSource { ts_ms }, op: "m".to_owned(), ts_ms: now_ms, replay };
    let value = serde_json::to_vec(&envelope).expect("an envelope has string keys only");
    Record { key: Bytes::from_static(key), value: Some(value.into()), headers: vec![], timestamp_ms: now_ms }
}

fn reserved(key: &'static [u8], row: &EmbeddedRow, now_ms: i64) -> Record {
    let value = Some(row.encode_to_vec().into());
    Record { key: Bytes::from_static(key), value, headers: vec![], timestamp_ms: now_ms }
}

fn number_header(name: &str, number: impl fmt::Display) -> (String, Bytes) {
    (name.to_owned(), Bytes::from(number.to_string()))
}

#[cfg(test)]
mod tests;
