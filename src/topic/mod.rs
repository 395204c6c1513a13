//! The log: two compacted topics, `changes` and `vectors.<revision>`, and the dead letters.
//!
//! **Invariant:** what a reader gets is durable; capture's position and its events, embed's positions and its
//! outputs, are written in one transaction each.

pub mod embedded;

use serde::{Deserialize, Serialize};

use crate::event::{Lsn, Position, Record};

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
    /// A stored value does not have its checksum or its form.
    #[error("read log {path}: {what} is damaged; remove the folder to build the log anew from PostgreSQL")]
    Damaged {
        /// The folder.
        path: String,
        /// Which value.
        what: String,
    },
}
