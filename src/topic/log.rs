//! The seam: a log is Kafka or the embedded one. Hands every call on; decides nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::letter::{Newest, Sought};
use super::trail::Place;
use super::{
    CaptureState, LetterId, Letters, LogError, Offsets, OpenLetters, Outgoing, Partition, Stored, embedded, kafka,
};
use crate::clock::now_ms;
use crate::event::{ChangeEvent, Record};

/// An open log. Clones are the same log.
#[derive(Clone)]
pub enum Log {
    /// On this machine.
    Embedded(embedded::Log),
    /// On brokers.
    Kafka(kafka::Log),
}

impl Log {
    /// Capture's state, as far as durable; none before the first append.
    pub async fn capture_state(&self) -> Result<Option<CaptureState>, LogError> {
        match self {
            Log::Embedded(log) => log.capture_state(),
            Log::Kafka(log) => log.capture_state().await,
        }
    }

    /// Makes the caller the only capture: whoever wrote before is fenced. Gives the state that it has left.
    pub async fn take_over(&self) -> Result<Option<CaptureState>, LogError> {
        match self {
            Log::Embedded(log) => log.capture_state(),
            Log::Kafka(log) => log.take_over().await,
        }
    }

    /// Appends events to `changes` and sets capture's state, in one transaction; returns when both are durable.
    /// If the future is dropped, the transaction may be written all the same. Gives the records' places, in their order.
    pub async fn append_changes(&self, records: Vec<Outgoing>, state: &CaptureState) -> Result<Vec<Place>, LogError> {
        match self {
            Log::Embedded(log) => log.append_changes(records, state).await,
            Log::Kafka(log) => log.append_changes(records, state).await,
        }
    }

    /// The most bytes that key and value of a record may have to be taken.
    pub fn record_bytes_max(&self) -> usize {
        match self {
            Log::Embedded(_) => usize::MAX,
            Log::Kafka(log) => log.record_bytes_max(),
        }
    }

    /// The ends of `changes`, as far as the capture in this process knows them.
    pub fn changes_ends(&self) -> Offsets {
        match self {
            Log::Embedded(log) => log.changes_ends(),
            Log::Kafka(log) => log.changes_ends(),
        }
    }

    /// Keys of a partition of `changes` whose latest record is a row's and stands below `offset`, each with that record's
    /// offset: at most `limit`, in the log's own order, after the key `after`.
    pub async fn live_keys_below(
        &self,
        partition: Partition,
        offset: u64,
        after: Option<Bytes>,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, LogError> {
        let log = self.clone();
        let read = move || match log {
            Log::Embedded(log) => log.live_keys_below(partition, offset, after.as_deref(), limit),
            Log::Kafka(log) => log.live_keys_below(partition, offset, after.as_deref(), limit),
        };
        spawn_blocking(read).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))
    }

    /// The newest open dead letters, at most `limit`. Reads all of their topic.
    pub async fn dead_letters(&self, limit: usize) -> Result<Letters, LogError> {
        self.read_dead_letters(Newest::new(limit), Newest::offer).await.map(Newest::finish)
    }

    /// An open dead letter with its bytes. Reads all of the topic.
    pub async fn dead_letter(&self, id: LetterId) -> Result<Option<Record>, LogError> {
        self.read_dead_letters(Sought::new(id), Sought::offer).await.map(|sought| sought.found)
    }

    async fn read_dead_letters<T: Send + 'static>(
        &self,
        mut into: T,
        offer: fn(&mut T, &Record),
    ) -> Result<T, LogError> {
        let log = self.clone();
        let read = move || {
            let visit = |record: &Record| offer(&mut into, record);
            match log {
                Log::Embedded(log) => log.visit_dead_letters(visit)?,
                Log::Kafka(log) => log.visit_dead_letters(visit)?,
            }
            Ok(into)
        };
        spawn_blocking(read).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))
    }

    /// Whether freshness travels through the log as heartbeats, because its ends may be in different processes.
    pub fn has_heartbeats(&self) -> bool {
        matches!(self, Log::Kafka(_))
    }

    /// What tells this log from every other: offsets of two logs do not compare. With Kafka the cluster's id.
    pub async fn id(&self) -> Result<String, LogError> {
        match self {
            Log::Embedded(log) => Ok(format!("{:016x}", log.id())),
            Log::Kafka(log) => log.cluster_id().await,
        }
    }

    /// Has embed read `changes` again from its beginning, each partition up to a record that says so, of every revision
    /// that had begun before.
    pub async fn ask_replay(&self, id: u64) -> Result<(), LogError> {
        let record = Outgoing::Everywhere(ChangeEvent::Replay { id }.to_record(now_ms()));
        match self {
            Log::Embedded(log) => log.append_marks(vec![record]).await,
            Log::Kafka(log) => log.append_marks(vec![record]).await,
        }
    }

    /// Whether others write `changes`: then nothing can be asked of who embeds through it.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Log::Kafka(log) if log.is_foreign())
    }

    /// A store's side for a revision, at the beginning of topic `vectors.<revision>`, which is made if there is none.
    pub fn vectors(&self, revision: &str) -> Result<VectorsReader, LogError> {
        match self {
            Log::Embedded(log) => log.vectors(revision).map(VectorsReader::Embedded),
            Log::Kafka(log) => Ok(VectorsReader::Kafka(Box::new(log.vectors(revision)))),
        }
    }

    /// Finishes what is waiting. Later calls fail.
    pub async fn close(&self) -> Result<(), LogError> {
        match self {
            Log::Embedded(log) => log.close().await,
            Log::Kafka(log) => {
                log.close().await;
                Ok(())
            }
        }
    }
}

/// Embed's side of the log: reads `changes`, writes `vectors.<revision>`.
pub enum EmbedLog {
    /// On this machine.
    Embedded(embedded::EmbedLog),
    /// On brokers, as one of a group.
    Kafka(Box<kafka::EmbedLog>),
}

impl EmbedLog {
    /// The records of `changes` after the last ones given: at least one, at most `max_records`, and more than
    /// `max_bytes` only if the first alone has more. Waits for the first; inside a partition the order is that of the
    /// offsets. Cancel-safe: if the future is dropped, the next call gives the same records. None at all when brokers have just been
    /// reached.
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, LogError> {
        match self {
            EmbedLog::Embedded(log) => log.next(max_records, max_bytes).await,
            EmbedLog::Kafka(log) => log.next(max_records, max_bytes).await,
        }
    }

    /// Whether a replay was found: `next` gives what stands before it, which may be nothing, and nothing behind it until
    /// [`EmbedLog::begin_replay`].
    pub fn has_replay(&self) -> bool {
        match self {
            EmbedLog::Embedded(log) => log.has_replay(),
            EmbedLog::Kafka(log) => log.has_replay(),
        }
    }

    /// Puts the partitions of the replay that was found back to their beginning, durably. To be called when nothing that
    /// was read is under way.
    pub async fn begin_replay(&mut self) -> Result<(), LogError> {
        match self {
            EmbedLog::Embedded(log) => log.begin_replay().await,
            EmbedLog::Kafka(log) => log.begin_replay().await,
        }
    }

    /// See [`Log::record_bytes_max`]; to be asked when records were given.
    pub fn record_bytes_max(&self) -> usize {
        match self {
            EmbedLog::Embedded(_) => usize::MAX,
            EmbedLog::Kafka(log) => log.record_bytes_max(),
        }
    }

    /// About how many records wait, as far as they have been fetched.
    pub fn fetched(&self) -> u64 {
        match self {
            EmbedLog::Embedded(log) => log.lag(),
            EmbedLog::Kafka(log) => log.fetched(),
        }
    }

    /// Records that stand behind the committed positions of the partitions that are ours; `None`: not known yet.
    pub fn lag(&self) -> Option<u64> {
        match self {
            EmbedLog::Embedded(log) => Some(log.lag()),
            EmbedLog::Kafka(log) => log.lag(),
        }
    }

    /// Records that stand before the committed positions, over the partitions that are ours; `None`: not known yet.
    pub fn position(&self) -> Option<u64> {
        match self {
            EmbedLog::Embedded(log) => Some(log.committed().iter().sum()),
            EmbedLog::Kafka(log) => log.position(),
        }
    }

    /// Whether `look` is of use, and a call of `next` that is dropped for it loses nothing: brokers were reached.
    pub fn can_look(&self) -> bool {
        match self {
            EmbedLog::Embedded(_) => false,
            EmbedLog::Kafka(log) => log.can_look(),
        }
    }

    /// Asks for what `lag` and `position` go by. `false`: it is not known yet which partitions are ours.
    pub async fn look(&mut self) -> Result<bool, LogError> {
        match self {
            EmbedLog::Embedded(_) => Ok(true),
            EmbedLog::Kafka(log) => log.look().await,
        }
    }

    /// Writes embed's outputs, its dead letters and its positions, those partitions' next offsets to read, in one
    /// transaction; returns when all is durable. If the future is dropped, the transaction may be written all the same.
    pub async fn commit(
        &mut self,
        vectors: Vec<Outgoing>,
        dead_letters: Vec<Record>,
        ends: &BTreeMap<Partition, u64>,
    ) -> Result<Vec<Place>, LogError> {
        match self {
            EmbedLog::Embedded(log) => {
                let mut upto = log.committed();
                for (partition, end) in ends {
                    if let Some(offset) = upto.get_mut(usize::from(*partition)) {
                        *offset = (*offset).max(*end);
                    }
                }
                log.commit(vectors, dead_letters, &upto).await
            }
            EmbedLog::Kafka(log) => log.commit(vectors, dead_letters, ends).await,
        }
    }

    /// Counts the times that partitions came from others, who may have put records of theirs aside. What was given since
    /// came after the count.
    pub fn tenures(&self) -> u64 {
        match self {
            EmbedLog::Embedded(_) => 0,
            EmbedLog::Kafka(log) => log.tenures(),
        }
    }

    /// The open dead letters of the partitions that are ours, at most `limit`. Reads all of their topic.
    pub async fn open_letters(&mut self, limit: usize) -> Result<OpenLetters, LogError> {
        match self {
            EmbedLog::Embedded(log) => log.open_letters(limit).await,
            EmbedLog::Kafka(log) => log.open_letters(limit).await,
        }
    }

    /// Goes back to the committed positions.
    pub async fn rewind(&mut self) -> Result<(), LogError> {
        match self {
            EmbedLog::Embedded(log) => {
                log.rewind();
                Ok(())
            }
            EmbedLog::Kafka(log) => log.rewind().await,
        }
    }
}

/// A store's side of the log: reads `vectors.<revision>`. The store itself keeps its positions.
pub enum VectorsReader {
    /// On this machine.
    Embedded(embedded::VectorsReader),
    /// On brokers.
    Kafka(Box<kafka::VectorsReader>),
}

impl VectorsReader {
    /// Continues at these positions. [`LogError::Ahead`] if the topic does not reach that far, [`LogError::Expired`] if
    /// tombstones after them may have been dropped. To be called before the first `next` and after an error.
    pub async fn seek(&mut self, positions: &Offsets) -> Result<(), LogError> {
        match self {
            VectorsReader::Embedded(reader) => reader.seek(positions),
            VectorsReader::Kafka(reader) => reader.seek(positions).await,
        }
    }

    /// The records after the last ones given; otherwise as [`EmbedLog::next`].
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, LogError> {
        match self {
            VectorsReader::Embedded(reader) => reader.next(max_records, max_bytes).await,
            VectorsReader::Kafka(reader) => reader.next(max_records, max_bytes).await,
        }
    }

    /// The next offsets to read. To be stored with the effects of what was read.
    pub fn positions(&self) -> Offsets {
        match self {
            VectorsReader::Embedded(reader) => reader.positions(),
            VectorsReader::Kafka(reader) => reader.positions(),
        }
    }

    /// The ends of the topic, as far as they are known.
    pub fn ends(&self) -> Offsets {
        match self {
            VectorsReader::Embedded(reader) => reader.ends(),
            VectorsReader::Kafka(reader) => reader.ends(),
        }
    }
}
