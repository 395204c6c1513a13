//! What can go wrong with the mirror, and which of it means damage.

use super::DIMENSION;
use crate::topic::Partition;

/// The mirror failed. Positions have not moved past anything that is not stored.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Another process, or another handle in this one, has it open.
    #[error(
        "open mirror {path}: another process has it open; stop that vecsync, or set VECSYNC_DATA_DIR to another folder"
    )]
    Locked {
        /// The folder.
        path: String,
    },
    /// sled failed.
    #[error("{operation} mirror {path}")]
    Storage {
        /// What was being done.
        operation: &'static str,
        /// The folder.
        path: String,
        /// What sled said.
        source: sled::Error,
    },
    /// The file system failed.
    #[error("{operation} mirror {path}")]
    Files {
        /// What was being done.
        operation: &'static str,
        /// The folder.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// sled panicked.
    #[error("{operation} mirror {path}: panic: {text}")]
    Panicked {
        /// What was being done.
        operation: &'static str,
        /// The folder.
        path: String,
        /// What the panic said.
        text: String,
    },
    /// A stored value is not what was stored.
    #[error("read mirror {path}: damaged: {what}")]
    Damaged {
        /// The folder.
        path: String,
        /// Which value.
        what: String,
    },
    /// An earlier fault: nothing is written before `recover`.
    #[error("write mirror {path}: refused until it is opened anew after a fault")]
    Faulty {
        /// The folder.
        path: String,
    },
    /// It is closed, or being opened anew.
    #[error("use mirror {path}: it is closed")]
    Closed {
        /// The folder.
        path: String,
    },
    /// An event of a partition that it was not made for.
    #[error("apply to mirror: partition {found}, made for {partitions} partitions")]
    Partition {
        /// The event's partition.
        found: Partition,
        /// Partitions it has.
        partitions: Partition,
    },
    /// The query is not a vector of this store.
    #[error("search mirror: the query has {found} numbers or one that is not finite, wanted {DIMENSION}")]
    Query {
        /// Numbers in the query.
        found: usize,
    },
    /// The filter names a field that cannot be filtered by.
    #[error("search mirror: {field:?} is not a filterable field; those are {}", known.join(", "))]
    Field {
        /// The field.
        field: String,
        /// Fields that can be.
        known: Vec<String>,
    },
}

impl MirrorError {
    /// What is on the disk cannot be used, and trying again will not change that.
    pub(super) fn is_damage(&self) -> bool {
        use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, Other, UnexpectedEof};
        match self {
            MirrorError::Damaged { .. } | MirrorError::Panicked { .. } => true,
            // A file that is missing, short or senseless; not a disk that is full or may not be written.
            MirrorError::Storage { source: sled::Error::Io(error), .. } => {
                matches!(error.kind(), UnexpectedEof | InvalidData | InvalidInput | NotFound | Other)
            }
            MirrorError::Storage { .. } => true,
            MirrorError::Locked { .. }
            | MirrorError::Files { .. }
            | MirrorError::Faulty { .. }
            | MirrorError::Closed { .. }
            | MirrorError::Partition { .. }
            | MirrorError::Query { .. }
            | MirrorError::Field { .. } => false,
        }
    }

    /// The store has to be opened and checked anew before it is written to.
    pub(super) fn is_fault(&self) -> bool {
        matches!(
            self,
            MirrorError::Storage { .. }
                | MirrorError::Files { .. }
                | MirrorError::Panicked { .. }
                | MirrorError::Damaged { .. }
        )
    }

    pub(super) fn is_sled_lock(&self) -> bool {
        matches!(self, MirrorError::Storage { source: sled::Error::Io(error), .. }
            if error.to_string().contains("could not acquire lock"))
    }
}
