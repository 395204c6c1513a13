//! Decodes pgoutput, protocol version 1. No I/O; the caller knows what the relations mean.
//!
//! Formats: PostgreSQL's manual, "Logical Replication Message Formats".

use bytes::{Buf, Bytes};

use super::wire::unix_ms;
use crate::event::Lsn;

/// A message of the output plugin. Timestamps are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction begins. Transactions come whole and in the order of their commits.
    Begin {
        /// Start of the transaction's commit record: the same as its `Commit::commit_lsn`.
        final_lsn: Lsn,
        /// When it was committed.
        commit_ts_ms: i64,
        /// The transaction's id.
        xid: u32,
    },
    /// A transaction ends.
    Commit {
        /// Start of its commit record.
        commit_lsn: Lsn,
        /// End of its commit record: what may be confirmed once all of it is durable.
        end_lsn: Lsn,
        /// When it was committed.
        commit_ts_ms: i64,
    },
    /// Describes a table; comes before its first row of a connection, and again when it has changed.
    Relation(Relation),
    /// Describes a type that is not built in.
    Type {
        /// Its OID.
        id: u32,
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
    },
    /// The transaction came from elsewhere by replication.
    Origin {
        /// Its commit there.
        commit_lsn: Lsn,
        /// The origin's name.
        name: String,
    },
    /// A row was inserted.
    Insert {
        /// The relation's id.
        relation: u32,
        /// The row.
        new: Tuple,
    },
    /// A row was updated.
    Update {
        /// The relation's id.
        relation: u32,
        /// The row before, where the replica identity or a change of the key gives it.
        old: Option<Old>,
        /// The row after.
        new: Tuple,
    },
    /// A row was deleted.
    Delete {
        /// The relation's id.
        relation: u32,
        /// The row before, as far as the replica identity gives it.
        old: Old,
    },
    /// Tables were emptied.
    Truncate {
        /// The relations' ids.
        relations: Vec<u32>,
        /// `CASCADE` was said.
        cascade: bool,
        /// `RESTART IDENTITY` was said.
        restart_identity: bool,
    },
    /// Something an application wrote with `pg_logical_emit_message`.
    Logical {
        /// Part of a transaction, or on its own.
        transactional: bool,
        /// Where it stands.
        lsn: Lsn,
        /// Whose it is.
        prefix: String,
        /// What it says.
        content: Bytes,
    },
    /// A kind that this version of the protocol does not have.
    Unknown(u8),
}

/// A table as the stream describes it: the published columns, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// What rows refer to it by: the table's OID.
    pub id: u32,
    /// Schema.
    pub schema: String,
    /// Table.
    pub name: String,
    /// `d`efault, `n`othing, `f`ull or `i`ndex.
    pub replica_identity: u8,
    /// Columns.
    pub columns: Vec<RelationColumn>,
}

/// A column as the stream describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity; every column is when it is full.
    pub is_key: bool,
    /// Name.
    pub name: String,
    /// The type's OID.
    pub type_oid: u32,
    /// The type's modifier; -1 for none.
    pub type_mod: i32,
}

/// A row before its change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Old {
    /// Only the columns of the replica identity hold values, the others are `Null`.
    Key(Tuple),
    /// Replica identity full: every column.
    Full(Tuple),
}

/// A row's columns, in the order of its relation's.
pub type Tuple = Vec<Datum>;

/// A column's value. Slices of the message: keeping one keeps the buffer it was read into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datum {
    /// NULL, or outside the key in `Old::Key`.
    Null,
    /// A large value that the update did not touch and that is therefore not sent.
    Unchanged,
    /// The type's text form, in the client's encoding.
    Text(Bytes),
    /// The type's binary form; comes only when asked for.
    Binary(Bytes),
}

/// Decodes one message. An error means the message, and therefore the stream, cannot be understood.
pub fn decode(payload: Bytes) -> Result<Message, DecodeError> {
    let mut reader = Reader { bytes: payload, kind: '?' };
    let tag = reader.u8()?;
    reader.kind = char::from(tag);
    let message = match tag {
        b'B' => Message::Begin { final_lsn: reader.lsn()?, commit_ts_ms: unix_ms(reader.i64()?), xid: reader.u32()? },
        b'C' => {
            let _flags = reader.u8()?;
            Message::Commit { commit_lsn: reader.lsn()?, end_lsn: reader.lsn()?, commit_ts_ms: unix_ms(reader.i64()?) }
        }
        b'R' => Message::Relation(relation(&mut reader)?),
        b'Y' => Message::Type { id: reader.u32()?, schema: reader.text()?, name: reader.text()? },
        b'O' => Message::Origin { commit_lsn: reader.lsn()?, name: reader.text()? },
        b'I' => {
            let relation = reader.u32()?;
            reader.expect(b'N', "new row")?;
            Message::Insert { relation, new: tuple(&mut reader)? }
        }
        b'U' => {
            let relation = reader.u32()?;
            let (old, part) = match reader.u8()? {
                b'K' => (Some(Old::Key(tuple(&mut reader)?)), reader.u8()?),
                b'O' => (Some(Old::Full(tuple(&mut reader)?)), reader.u8()?),
                part => (None, part),
            };
            if part != b'N' {
                return Err(DecodeError::Part { kind: 'U', wanted: "new row", found: part });
            }
            Message::Update { relation, old, new: tuple(&mut reader)? }
        }
        b'D' => {
            let relation = reader.u32()?;
            let old = match reader.u8()? {
                b'K' => Old::Key(tuple(&mut reader)?),
                b'O' => Old::Full(tuple(&mut reader)?),
                found => return Err(DecodeError::Part { kind: 'D', wanted: "old row or key", found }),
            };
            Message::Delete { relation, old }
        }
        b'T' => truncate(&mut reader)?,
        b'M' => {
            let transactional = reader.u8()? & 1 != 0;
            let (lsn, prefix) = (reader.lsn()?, reader.text()?);
            let length = reader.u32()? as usize;
            Message::Logical { transactional, lsn, prefix, content: reader.take(length)? }
        }
        // What it holds is not known, so neither is where it ends.
        tag => return Ok(Message::Unknown(tag)),
    };
    match reader.bytes.len() {
        0 => Ok(message),
        bytes => Err(DecodeError::Trailing { kind: reader.kind, bytes }),
    }
}

fn relation(reader: &mut Reader) -> Result<Relation, DecodeError> {
    let (id, schema, name) = (reader.u32()?, reader.text()?, reader.text()?);
    let replica_identity = reader.u8()?;
    let count = reader.u16()?;
    let mut columns = Vec::with_capacity(usize::from(count).min(reader.bytes.len()));
    for _ in 0..count {
        columns.push(RelationColumn {
            is_key: reader.u8()? & 1 != 0,
            name: reader.text()?,
            type_oid: reader.u32()?,
            type_mod: reader.i32()?,
        });
    }
    // The stream leaves the name of this one schema out.
    let schema = if schema.is_empty() { "pg_catalog".to_owned() } else { schema };
    Ok(Relation { id, schema, name, replica_identity, columns })
}

fn truncate(reader: &mut Reader) -> Result<Message, DecodeError> {
    let (count, options) = (reader.u32()? as usize, reader.u8()?);
    // The count is a stranger's: nothing is reserved for it before the bytes are known to be there.
    let mut ids = reader.take(count.saturating_mul(4))?;
    let relations = std::iter::from_fn(|| (!ids.is_empty()).then(|| ids.get_u32())).collect();
    Ok(Message::Truncate { relations, cascade: options & 1 != 0, restart_identity: options & 2 != 0 })
}

fn tuple(reader: &mut Reader) -> Result<Tuple, DecodeError> {
    let count = reader.u16()?;
    let mut tuple = Vec::with_capacity(usize::from(count).min(reader.bytes.len()));
    for _ in 0..count {
        tuple.push(match reader.u8()? {
            b'n' => Datum::Null,
            b'u' => Datum::Unchanged,
            b't' => Datum::Text(reader.sized()?),
            b'b' => Datum::Binary(reader.sized()?),
            found => return Err(DecodeError::Part { kind: reader.kind, wanted: "column value", found }),
        });
    }
    Ok(tuple)
}

/// What is left of a message.
struct Reader {
    bytes: Bytes,
    kind: char,
}

impl Reader {
    fn take(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        self.need(length)?;
        Ok(self.bytes.split_to(length))
    }

    fn need(&self, length: usize) -> Result<(), DecodeError> {
        if self.bytes.len() < length {
            return Err(DecodeError::Truncated { kind: self.kind, missing: length - self.bytes.len() });
        }
        Ok(())
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.need(2)?;
        Ok(self.bytes.get_u16())
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.need(4)?;
        Ok(self.bytes.get_u32())
    }

    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.need(4)?;
        Ok(self.bytes.get_i32())
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        self.need(8)?;
        Ok(self.bytes.get_i64())
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.need(8)?;
        Ok(Lsn(self.bytes.get_u64()))
    }

    /// A value after its length; a negative length reads as one that no message has.
    fn sized(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// A terminated string.
    fn text(&mut self) -> Result<String, DecodeError> {
        let end = self.bytes.iter().position(|&byte| byte == 0);
        let end = end.ok_or(DecodeError::Truncated { kind: self.kind, missing: 1 })?;
        let text = self.bytes.split_to(end);
        self.bytes.advance(1);
        String::from_utf8(text.into()).map_err(|source| DecodeError::Name { kind: self.kind, source })
    }

    fn expect(&mut self, part: u8, wanted: &'static str) -> Result<(), DecodeError> {
        match self.u8()? {
            found if found == part => Ok(()),
            found => Err(DecodeError::Part { kind: self.kind, wanted, found }),
        }
    }
}

/// A message that does not have its kind's form.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It ends too soon.
    #[error("decode pgoutput message {kind:?}: {missing} bytes too short")]
    Truncated {
        /// The message's kind.
        kind: char,
        /// How many bytes there should be more, at least.
        missing: usize,
    },
    /// It does not end where it should.
    #[error("decode pgoutput message {kind:?}: {bytes} bytes too long")]
    Trailing {
        /// The message's kind.
        kind: char,
        /// How many bytes are left.
        bytes: usize,
    },
    /// Another part was due.
    #[error("decode pgoutput message {kind:?}: {:?} where a {wanted} was due", char::from(*found))]
    Part {
        /// The message's kind.
        kind: char,
        /// What was due.
        wanted: &'static str,
        /// What came.
        found: u8,
    },
    /// A name that is not UTF-8.
    #[error("decode pgoutput message {kind:?}: a name is not UTF-8")]
    Name {
        /// The message's kind.
        kind: char,
        /// Where it is not.
        source: std::string::FromUtf8Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    /// One message of each kind, as a server would send it, and what it says.
    fn samples() -> Vec<(Vec<u8>, Message)> {
        let lsn = |n: u64| n.to_be_bytes();
        let id = 16402u32.to_be_bytes();
        let row = |value: &[u8]| {
            join(&[b"\0\x04", b"t", &(value.len() as u32).to_be_bytes(), value, b"n", b"u", b"b\0\0\0\x01\xff"])
        };
        let tuple = |value: &'static [u8]| {
            let binary = Datum::Binary(Bytes::from_static(b"\xff"));
            vec![Datum::Text(Bytes::from_static(value)), Datum::Null, Datum::Unchanged, binary]
        };
        let (one, two) = (row(b"one"), row(b""));
        vec![
            (
                join(&[b"B", &lsn(5), &2_000i64.to_be_bytes(), &7u32.to_be_bytes()]),
                Message::Begin { final_lsn: Lsn(5), commit_ts_ms: 946_684_800_002, xid: 7 },
            ),
            (
                join(&[b"C\0", &lsn(5), &lsn(6), &0i64.to_be_bytes()]),
                Message::Commit { commit_lsn: Lsn(5), end_lsn: Lsn(6), commit_ts_ms: 946_684_800_000 },
            ),
            (
                join(&[
                    b"R",
                    &id,
                    b"public\0faq\0d\0\x02",
                    b"\x01id\0\0\0\0\x17\xff\xff\xff\xff",
                    b"\0q\0\0\0\0\x19\0\0\0\x08",
                ]),
                Message::Relation(Relation {
                    id: 16402,
                    schema: "public".into(),
                    name: "faq".into(),
                    replica_identity: b'd',
                    columns: vec![
                        RelationColumn { is_key: true, name: "id".into(), type_oid: 23, type_mod: -1 },
                        RelationColumn { is_key: false, name: "q".into(), type_oid: 25, type_mod: 8 },
                    ],
                }),
            ),
            (
                join(&[b"Y", &id, b"public\0mood\0"]),
                Message::Type { id: 16402, schema: "public".into(), name: "mood".into() },
            ),
            (join(&[b"O", &lsn(9), b"up\0"]), Message::Origin { commit_lsn: Lsn(9), name: "up".into() }),
            (join(&[b"I", &id, b"N", &one]), Message::Insert { relation: 16402, new: tuple(b"one") }),
            (join(&[b"U", &id, b"N", &one]), Message::Update { relation: 16402, old: None, new: tuple(b"one") }),
            (
                join(&[b"U", &id, b"K", &two, b"N", &one]),
                Message::Update { relation: 16402, old: Some(Old::Key(tuple(b""))), new: tuple(b"one") },
            ),
            (
                join(&[b"U", &id, b"O", &two, b"N", &one]),
                Message::Update { relation: 16402, old: Some(Old::Full(tuple(b""))), new: tuple(b"one") },
            ),
            (join(&[b"D", &id, b"K", &one]), Message::Delete { relation: 16402, old: Old::Key(tuple(b"one")) }),
            (join(&[b"D", &id, b"O", &two]), Message::Delete { relation: 16402, old: Old::Full(tuple(b"")) }),
            (
                join(&[b"T\0\0\0\x02\x03", &id, &1u32.to_be_bytes()]),
                Message::Truncate { relations: vec![16402, 1], cascade: true, restart_identity: true },
            ),
            (
                join(&[b"M\x01", &lsn(3), b"app\0\0\0\0\x02hi"]),
                Message::Logical {
                    transactional: true,
                    lsn: Lsn(3),
                    prefix: "app".into(),
                    content: Bytes::from_static(b"hi"),
                },
            ),
        ]
    }

    #[test]
    fn every_kind_is_decoded() {
        for (bytes, wanted) in samples() {
            assert_eq!(decode(Bytes::from(bytes)).expect("decodable"), wanted);
        }
        assert_eq!(decode(Bytes::from_static(b"S1234")).expect("unknown"), Message::Unknown(b'S'));
    }

    #[test]
    fn values_are_slices_of_the_message() {
        let (bytes, _) = samples().swap_remove(5);
        let bytes = Bytes::from(bytes);
        let Ok(Message::Insert { new, .. }) = decode(bytes.clone()) else { panic!("no insert") };
        let Datum::Text(value) = &new[0] else { panic!("no text") };
        assert!(bytes.as_ptr_range().contains(&value.as_ptr()));
    }

    #[test]
    fn every_truncation_and_every_byte_too_many_is_an_error() {
        for (bytes, _) in samples() {
            for length in 0..bytes.len() {
                let error = decode(Bytes::copy_from_slice(&bytes[..length])).expect_err("too short");
                assert!(matches!(error, DecodeError::Truncated { .. }), "{error}");
            }
            let longer = decode(Bytes::from(join(&[&bytes, b"\0"])));
            assert!(matches!(longer, Err(DecodeError::Trailing { bytes: 1, .. })));
        }
    }

    #[test]
    fn wrong_parts_and_names_are_errors() {
        for bytes in [
            &b"I\0\0\0\x01O\0\0"[..],
            b"U\0\0\0\x01X\0\0",
            b"U\0\0\0\x01K\0\0K\0\0",
            b"D\0\0\0\x01N\0\0",
            b"I\0\0\0\x01N\0\x01x",
            b"Y\0\0\0\x01\xff\0a\0",
            b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff",
            b"T\xff\xff\xff\xff\0\0\0\0\x01",
        ] {
            assert!(decode(Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        // A fixed xorshift: the same bytes in every run.
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        let samples = samples();
        for _ in 0..200_000 {
            let mut bytes = samples[random() % samples.len()].0.clone();
            for _ in 0..1 + random() % 4 {
                let at = random() % bytes.len();
                bytes[at] = random() as u8;
            }
            let _ = decode(Bytes::from(bytes));
        }
    }
}
