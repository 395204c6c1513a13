//! What can go wrong with Qdrant, and which of it passes by itself.

use std::error::Error;
use std::time::Duration;

use qdrant_client::qdrant::UpdateStatus;
use tonic::{Code, Status};

use crate::index::scan::DIMENSION;
use crate::topic::Partition;

/// Qdrant failed, or is not what was expected. Positions have not moved past anything that is not known to be durable.
#[derive(Debug, thiserror::Error)]
pub enum QdrantError {
    /// It cannot be reached, or answered with an error.
    #[error("{operation} Qdrant collection {collection} at {url}: {}", said(status))]
    Call {
        /// What was being done.
        operation: &'static str,
        /// The collection.
        collection: String,
        /// Where Qdrant is.
        url: String,
        /// What the server or the way to it said; not called `source`, since its message repeats its causes.
        status: Box<Status>,
    },
    /// No place that could be reached.
    #[error("prepare a connection to Qdrant at {url}")]
    Address {
        /// Where it is said to be.
        url: String,
        /// What is wrong with that.
        source: tonic::transport::Error,
    },
    /// No answer in time. A write may have happened, or may still.
    #[error("{operation} Qdrant collection {collection}: no answer for {} ms", after.as_millis())]
    Silent {
        /// What was being done.
        operation: &'static str,
        /// The collection.
        collection: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The write is not known to be durable.
    #[error("{operation} Qdrant collection {collection}: answered {status:?}, wanted Completed")]
    NotDurable {
        /// What was being done.
        operation: &'static str,
        /// The collection.
        collection: String,
        /// What was answered.
        status: UpdateStatus,
    },
    /// There is no such collection.
    #[error("use Qdrant collection {collection}: it is not there; `vecsync init` makes it")]
    Missing {
        /// The collection.
        collection: String,
    },
    /// The collection is not one that this pipeline and revision can write to.
    #[error("use Qdrant collection {collection}: {what}")]
    Foreign {
        /// The collection.
        collection: String,
        /// What it has, and what was wanted.
        what: String,
    },
    /// The collection is a generation of this pipeline, but of another revision. Another one has to be filled beside it.
    #[error("use Qdrant collection {collection}: {what}")]
    Outdated {
        /// The collection.
        collection: String,
        /// What it has, and what was wanted.
        what: String,
    },
    /// It would lose or hide something, or what is there is not what it should be.
    #[error("{operation} Qdrant collection {collection}: {what}")]
    Refused {
        /// What was to be done.
        operation: &'static str,
        /// The collection.
        collection: String,
        /// Why not, and what to do.
        what: String,
    },
    /// The server does not know conditional writes, and would take older rows for newer ones.
    #[error("use Qdrant at {url}: version {found}, wanted 1.16 or later")]
    Version {
        /// Where it is.
        url: String,
        /// What it says it is.
        found: String,
    },
    /// A point is not what was stored.
    #[error("read Qdrant collection {collection}: point {point}: {what}")]
    Damaged {
        /// The collection.
        collection: String,
        /// The point.
        point: String,
        /// What is wrong with it.
        what: String,
    },
    /// The collection is as it was earlier: somebody has restored it. Its positions are those of then.
    #[error(
        "apply to Qdrant collection {collection}: partition {partition} is at {found} and was at {stood}: restored?"
    )]
    Restored {
        /// The collection.
        collection: String,
        /// The partition.
        partition: Partition,
        /// Its position.
        found: u64,
        /// The position that it had.
        stood: u64,
    },
    /// An event of a partition that the collection was not made for.
    #[error("apply to Qdrant: partition {found}, made for {partitions} partitions")]
    Partition {
        /// The event's partition.
        found: Partition,
        /// Partitions it has.
        partitions: Partition,
    },
    /// What was just written is not found.
    #[error("search Qdrant collection {collection}: the point that was just written is not found")]
    NotFound {
        /// The collection.
        collection: String,
    },
    /// The query is not a vector of this store.
    #[error("search Qdrant: the query has {found} numbers or one that is not finite, wanted {DIMENSION}")]
    Query {
        /// Numbers in the query.
        found: usize,
    },
    /// The filter names a field that cannot be filtered by.
    #[error("search Qdrant: {field:?} is not a filterable field; those are {}", known.join(", "))]
    Field {
        /// The field.
        field: String,
        /// Fields that can be.
        known: Vec<String>,
    },
}

impl QdrantError {
    pub(super) fn from_status(operation: &'static str, collection: String, url: String, status: Status) -> Self {
        match status.code() {
            Code::NotFound => QdrantError::Missing { collection },
            _ => QdrantError::Call { operation, collection, url, status: Box::new(status) },
        }
    }

    /// What is to be made is there already.
    pub(super) fn is_there_already(&self) -> bool {
        matches!(self, QdrantError::Call { status, .. } if status.code() == Code::AlreadyExists)
    }
}

/// What a status says, in one line: its message, and what is at the bottom of it where that is another thing.
fn said(status: &Status) -> String {
    let mut bottom: Option<&(dyn Error + 'static)> = status.source();
    while let Some(deeper) = bottom.and_then(Error::source) {
        bottom = Some(deeper);
    }
    let message = if status.message().is_empty() { status.code().description() } else { status.message() };
    let said = match bottom.map(ToString::to_string) {
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        _ => message.to_owned(),
    };
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => format!("{said}; set QDRANT_API_KEY to a key that it takes"),
        _ => said,
    }
}
