//! The log: two compacted topics, `changes` and `vectors.<revision>`, and the dead letters.
//!
//! **Invariant:** what a reader gets is durable; capture's position and its events, embed's positions and its
//! outputs, are written in one transaction each.

pub mod embedded;
pub mod kafka;
pub mod letter;
mod log;
pub mod partition;
pub mod replay;
pub mod trail;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::event::{Lsn, Position, Record};

pub use letter::{Letter, LetterId, Letters, OpenLetters, Settled};
pub use log::{EmbedLog, Log, VectorsReader};

/// A partition's number, from 0.
pub type Partition = u16;

/// The next offset to read in each partition; the index is the partition.
pub type Offsets = Vec<u64>;

/// A record at its place in a topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The partition it is in.
    pub partition: Partition,
    /// Its offset there.
    pub offset: u64,
    /// The record.
    pub record: Record,
}

/// A record on its way into a topic.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// Into the partition that its key belongs to (murmur2 of the key, as Kafka's own clients do).
    ByKey(Record),
    /// Into this partition.
    To(Partition, Record),
    /// Into every partition.
    Everywhere(Record),
}

/// What capture knows of its own progress. Written with the events that it covers, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureState {
    /// The system identifier of the PostgreSQL cluster.
    pub system_id: u64,
    /// Its timeline.
    pub timeline: u32,
    /// The last event in the log.
    pub position: Position,
    /// Up to where the slot may be confirmed: recorded here before it is sent.
    pub confirm: Lsn,
    /// How far the snapshot is.
    pub snapshot: SnapshotMarker,
    /// Whether the log has all rows although a snapshot is wanted: somebody asked for one, and no change was missed.
    #[serde(default)]
    pub whole: bool,
    /// What was captured: table, key, published columns and rows. Another one needs a snapshot of its own.
    #[serde(default)]
    pub captured: String,
    /// How that snapshot is to be taken.
    #[serde(default)]
    pub resync: Resync,
}

impl CaptureState {
    /// Whether the log has held the whole table and all changes since.
    pub fn is_whole(&self) -> bool {
        self.whole || self.snapshot == SnapshotMarker::Complete
    }
}

/// What a person has asked of the snapshot that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resync {
    /// Rows of a batch; 0: nobody has said.
    pub batch_rows: u32,
    /// Whether all texts are embedded again that come to be known until it is complete.
    pub forced: bool,
    /// The number of the last one that was forced. A later one has a greater number.
    pub number: u64,
}

/// The durable marker of the snapshot. An incomplete one is run again from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotMarker {
    /// Asked for, or interrupted.
    #[default]
    Wanted,
    /// All its rows are in the log.
    Complete,
}

/// The log failed. Nothing was stepped over; what was not acknowledged may or may not be there.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process has it open.
    #[error(
        "open log {path}: another process has it open; stop that vecsync, or set VECSYNC_DATA_DIR to another folder"
    )]
    Locked {
        /// The folder.
        path: String,
    },
    /// The storage beneath failed.
    #[error("{operation} log {path}")]
    Storage {
        /// What was being done.
        operation: &'static str,
        /// The folder.
        path: String,
        /// What the storage said.
        source: sled::Error,
    },
    /// It was made with other settings.
    #[error(
        "open log {path}: it has {found} partitions, VECSYNC_TOPIC_PARTITIONS asks for {wanted}; the number is fixed when the log is made: set it back, or remove the folder to build the log anew from PostgreSQL"
    )]
    Partitions {
        /// The folder.
        path: String,
        /// Partitions it has.
        found: u16,
        /// Partitions the settings want.
        wanted: u16,
    },
    /// Files beneath could not be made durable, or the writer could not be started.
    #[error("{operation} log {path}")]
    Files {
        /// What was being done.
        operation: &'static str,
        /// The folder.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A stored value does not have its checksum or its form.
    #[error("read log {path}: {what} is damaged; remove the folder to build the log anew from PostgreSQL")]
    Damaged {
        /// The folder.
        path: String,
        /// Which value.
        what: String,
    },
    /// What was asked for does not fit this log. Nothing was written.
    #[error("{operation} log {path}: {reason}")]
    Refused {
        /// What was being done.
        operation: &'static str,
        /// The folder.
        path: String,
        /// What does not fit.
        reason: String,
    },
    /// The disk is nearly full. Nothing was written; it goes on when there is room.
    #[error("write log {path}: {free} bytes are free on its disk, {wanted} are wanted; make room")]
    Full {
        /// The folder.
        path: String,
        /// Free bytes.
        free: u64,
        /// Bytes that must be free.
        wanted: u64,
    },
    /// Another embedder of this revision was opened after this one. Nothing was written.
    #[error("commit to {topic}: a newer embedder of it was opened")]
    Fenced {
        /// The topic.
        topic: String,
    },
    /// The reader has read what this log never held: the log was replaced, or the reader's store was.
    #[error(
        "read {topic}: position {position} in partition {partition} is past the end, {end}; the log is another one than the reader knew: fill the reader's store anew from the beginning"
    )]
    Ahead {
        /// The topic.
        topic: String,
        /// The partition.
        partition: Partition,
        /// The reader's position there.
        position: u64,
        /// The topic's end there.
        end: u64,
    },
    /// Tombstones that the reader has not read were pruned: it would keep rows that are gone.
    #[error(
        "read {topic}: position {position} in partition {partition} is before {pruned}, up to where tombstones were dropped; fill the reader's store anew from the beginning"
    )]
    Expired {
        /// The topic.
        topic: String,
        /// The partition.
        partition: Partition,
        /// The reader's position there.
        position: u64,
        /// Tombstones below this offset may be gone.
        pruned: u64,
    },
    /// An earlier write failed, and what it left is not known: the log takes no more until it is opened again.
    #[error("log {path}: an earlier write failed ({reason}); open it again")]
    Failed {
        /// The folder.
        path: String,
        /// How the write failed.
        reason: String,
    },
    /// A broker did not do what was asked, or is not there.
    #[error("{operation} {topic}")]
    Broker {
        /// What was being done.
        operation: &'static str,
        /// The topic, or the brokers.
        topic: String,
        /// What librdkafka said.
        source: Box<rdkafka::error::KafkaError>,
    },
    /// Debezium's topic is not there. It is waited for.
    #[error(
        "read {topic}, which source.topic of the pipeline file names: there is no such topic; Debezium's connector makes it \
         with the first record, as <its topic.prefix>.<schema>.<table>"
    )]
    Absent {
        /// The topic.
        topic: String,
    },
    /// The brokers do not let us in.
    #[error("log in to the brokers {brokers}: {what}")]
    Login {
        /// The brokers.
        brokers: String,
        /// What they refuse and what to check.
        what: &'static str,
    },
    /// A topic has settings that would lose rows or their order.
    #[error("use topic {topic}: {what}")]
    Topic {
        /// The topic.
        topic: String,
        /// What is wrong, what was wanted and what to do.
        what: String,
    },
    /// Another member of the group has the partition now. Nothing was written.
    #[error("read {topic}: partitions were taken away")]
    Revoked {
        /// The topic.
        topic: String,
    },
    /// The reader's position is gone, or the records at it are.
    #[error(
        "read {topic}: there is no valid position to go on from, although it was begun once: the group's offsets have expired, or the records at them were deleted; stop all who embed, put the group at the beginning with kafka-consumer-groups --reset-offsets --to-earliest --group {group} --topic {topic} --execute, which has everything read again, start them, then run `vecsync sync`"
    )]
    NoPosition {
        /// The topic.
        topic: String,
        /// The group of those who embed.
        group: String,
    },
    /// There was a fault since the last take-over, or none yet.
    #[error("write {topic}: not taken over")]
    NotTaken {
        /// The topic.
        topic: String,
    },
    /// A thread could not be started.
    #[error("read {topic}: start a thread")]
    Thread {
        /// The topic.
        topic: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The thread that reads it is gone.
    #[error("read {topic}: the thread that reads it panicked")]
    Panicked {
        /// The topic.
        topic: String,
    },
    /// A task of the log ended abnormally.
    #[error("a task of the log")]
    Task(#[source] tokio::task::JoinError),
    /// The log was closed.
    #[error("log {path}: closed")]
    Closed {
        /// The folder.
        path: String,
    },
}

impl LogError {
    /// Whether the same may succeed later. A login may: a password that was changed too early must not end searches.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            LogError::Full { .. }
                | LogError::Broker { .. }
                | LogError::Absent { .. }
                | LogError::Login { .. }
                | LogError::Revoked { .. }
                | LogError::NotTaken { .. }
        )
    }
}

/// Locks, also after a holder has panicked: the values behind these locks are replaced whole, or by steps that do not.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
