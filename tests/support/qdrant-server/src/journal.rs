//! What was written since the engine's last flush, as a file that outlives a SIGKILL. Knows nothing of the engine.
//!
//! The engine keeps the newest points in memory until it is flushed and does not read its own log when it is loaded;
//! the real server replays that log. Here the journal does it: a request is in it before the engine sees it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::path::Path;

use prost::Message;
use qdrant_client::qdrant::{
    CreateFieldIndexCollection, DeleteFieldIndexCollection, DeletePoints, SetPayloadPoints, UpsertPoints,
};

/// Length and CRC-32 in front of each record.
const HEAD: usize = 8;

/// A request that changes points, as the client sent it.
#[derive(Clone, Debug)]
pub enum Write {
    Upsert(UpsertPoints),
    Delete(DeletePoints),
    SetPayload(SetPayloadPoints),
    CreateIndex(CreateFieldIndexCollection),
    DeleteIndex(DeleteFieldIndexCollection),
}

pub struct Journal {
    file: File,
}

impl Journal {
    /// Opens it and gives what it holds. What a kill cut off at its end was never acknowledged and is left out.
    pub fn open(path: &Path) -> io::Result<(Journal, Vec<Write>)> {
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = vec![];
        file.read_to_end(&mut bytes)?;
        let mut writes = vec![];
        let mut rest = bytes.as_slice();
        while let Some((write, after)) = first_record(rest) {
            writes.push(write);
            rest = after;
        }
        let whole = (bytes.len() - rest.len()) as u64;
        file.set_len(whole)?;
        file.seek(SeekFrom::Start(whole))?;
        Ok((Journal { file }, writes))
    }

    /// After this returns, the record outlives the process (not the machine, as in Qdrant).
    pub fn append(&mut self, write: &Write) -> io::Result<()> {
        let mut record = vec![0; HEAD];
        write.encode(&mut record);
        let length = u32::try_from(record.len() - HEAD).map_err(io::Error::other)?;
        let sum = crc32fast::hash(&record[HEAD..]);
        record[..4].copy_from_slice(&length.to_le_bytes());
        record[4..HEAD].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all(&record)
    }

    /// The engine has all of it on disk.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()
    }
}

impl Write {
    fn encode(&self, into: &mut Vec<u8>) {
        let (kind, body) = match self {
            Write::Upsert(request) => (1, request.encode_to_vec()),
            Write::Delete(request) => (2, request.encode_to_vec()),
            Write::SetPayload(request) => (3, request.encode_to_vec()),
            Write::CreateIndex(request) => (4, request.encode_to_vec()),
            Write::DeleteIndex(request) => (5, request.encode_to_vec()),
        };
        into.push(kind);
        into.extend_from_slice(&body);
    }

    fn decode(record: &[u8]) -> Option<Write> {
        let (kind, body) = record.split_first()?;
        match kind {
            1 => UpsertPoints::decode(body).ok().map(Write::Upsert),
            2 => DeletePoints::decode(body).ok().map(Write::Delete),
            3 => SetPayloadPoints::decode(body).ok().map(Write::SetPayload),
            4 => CreateFieldIndexCollection::decode(body).ok().map(Write::CreateIndex),
            5 => DeleteFieldIndexCollection::decode(body).ok().map(Write::DeleteIndex),
            _ => None,
        }
    }
}

fn first_record(bytes: &[u8]) -> Option<(Write, &[u8])> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let sum = u32::from_le_bytes(bytes.get(4..HEAD)?.try_into().ok()?);
    let record = bytes.get(HEAD..HEAD + length)?;
    let write = (crc32fast::hash(record) == sum).then(|| Write::decode(record))??;
    Some((write, &bytes[HEAD + length..]))
}
