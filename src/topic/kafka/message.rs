//! A message as librdkafka gives it, as a record of the log. No I/O.

use bytes::Bytes;
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers};

use super::super::{Partition, Stored};
use crate::event::Record;

/// Copies it; none where its place is none of a partition's.
pub(super) fn stored(message: &BorrowedMessage<'_>) -> Option<Stored> {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        let copied = headers.iter().map(|header| {
            let value = header.value.map_or_else(Bytes::new, Bytes::copy_from_slice);
            (header.key.to_owned(), value)
        });
        copied.collect()
    });
    Some(Stored {
        partition: Partition::try_from(message.partition()).ok()?,
        offset: u64::try_from(message.offset()).ok()?,
        record: Record {
            key: message.key().map_or_else(Bytes::new, Bytes::copy_from_slice),
            value: message.payload().map(Bytes::copy_from_slice),
            headers,
            timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
        },
    })
}
