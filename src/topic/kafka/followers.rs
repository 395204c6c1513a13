//! How far those who embed are, asked of the brokers by who does not embed itself. Joins no group and reads no record.

use rdkafka::consumer::BaseConsumer;

use super::super::{LogError, Offsets};
use super::Settings;
use super::client::{self, Names, Quiet};
use super::embed::committed;

/// The group of a revision, seen from outside.
pub struct Followers {
    consumer: BaseConsumer<Quiet>,
    topic: String,
    partitions: u16,
}

impl Followers {
    pub(super) fn new(settings: &Settings, names: &Names, revision: &str) -> Result<Followers, LogError> {
        let fault = client::fault("ask for the positions in", &names.changes);
        // What is just being committed is not waited for: an answer a moment old serves as well.
        let consumer = client::reading(settings, &names.embedders(revision))
            .set("isolation.level", "read_uncommitted")
            .create_with_context(Quiet)
            .map_err(fault)?;
        Ok(Followers { consumer, topic: names.changes.clone(), partitions: settings.partitions })
    }

    /// The next offset that each partition is to be read from. Blocks.
    pub fn positions(&self) -> Result<Offsets, LogError> {
        let known = committed(&self.consumer, &self.topic, self.partitions);
        let known = known.map_err(client::fault("ask for the positions in", &self.topic))?;
        Ok((0..self.partitions).map(|partition| known.get(&partition).copied().unwrap_or(0)).collect())
    }
}
