//! How every client of the brokers is set up, and what the topics are called. Sends and reads nothing itself.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;

use super::super::{LogError, Partition};
use super::Settings;

/// How long a question to a broker may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The largest record, in bytes: topics are made with this limit, and writers hold themselves to it.
pub(super) const RECORD_BYTES_MAX: usize = 16 << 20;

/// The topics of a pipeline.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub changes: String,
    pub dead_letters: String,
    /// Capture's state and embed's markers, one partition, compacted.
    pub state: String,
    prefix: String,
}

impl Names {
    pub fn new(settings: &Settings) -> Names {
        let prefix = format!("{}.{}", settings.prefix, settings.pipeline);
        Names {
            changes: format!("{prefix}.changes"),
            dead_letters: format!("{prefix}.dead-letter"),
            state: format!("{prefix}.state"),
            prefix,
        }
    }

    pub fn vectors(&self, revision: &str) -> String {
        format!("{}.vectors.{revision}", self.prefix)
    }

    /// The group of those who embed a revision.
    pub fn embedders(&self, revision: &str) -> String {
        format!("{}.embed.{revision}", self.prefix)
    }

    /// The transactional id of the one capture.
    pub fn capture(&self) -> String {
        format!("{}.capture", self.prefix)
    }
}

/// Hands librdkafka's log to ours. Broken connections are told by those who needed them.
#[derive(Clone, Copy)]
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("Kafka: {error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}

pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!("librdkafka {facility}: {message}");
        }
        _ => tracing::debug!("librdkafka {facility}: {message}"),
    }
}

/// What all clients have in common.
pub(super) fn config(settings: &Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &settings.brokers);
    config.set("client.id", "vecsync");
    for (property, value) in &settings.security {
        config.set(*property, value.expose());
    }
    config
        // Without delay: most of what is sent answers somebody.
        .set("socket.nagle.disable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        // A topic that was deleted or widened is noticed soon.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("allow.auto.create.topics", "false")
        .set("log_level", "6");
    config
}

/// What all readers have in common. `group` is a name that nobody joins, or one to be joined by `subscribe`.
pub(super) fn reading(settings: &Settings, group: &str) -> ClientConfig {
    let mut config = config(settings);
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "250")
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.max.bytes", "33554432")
        .set("receive.message.max.bytes", "67108864")
        .set("queued.max.messages.kbytes", "8192");
    config
}

/// A consumer that is told what to read. Its group is never joined.
pub(super) fn reader(settings: &Settings) -> Result<BaseConsumer<Quiet>, KafkaError> {
    let group = format!("{}.{}.reader", settings.prefix, settings.pipeline);
    reading(settings, &group).create_with_context(Quiet)
}

/// First and next offset of a partition.
pub(super) fn bounds<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: Partition,
) -> Result<(u64, u64), KafkaError> {
    let (low, high) = consumer.fetch_watermarks(topic, i32::from(partition), PATIENCE)?;
    Ok((u64::try_from(low).unwrap_or(0), u64::try_from(high).unwrap_or(0)))
}

/// An error of a broker, with what was being done.
pub(super) fn fault(operation: &'static str, topic: &str) -> impl Fn(KafkaError) -> LogError {
    move |source| LogError::Broker { operation, topic: topic.to_owned(), source: Box::new(source) }
}

/// Offsets by partition, as librdkafka wants them.
pub(super) fn offsets(topic: &str, ends: &BTreeMap<Partition, u64>) -> Result<rdkafka::TopicPartitionList, KafkaError> {
    let mut list = rdkafka::TopicPartitionList::new();
    for (partition, offset) in ends {
        let offset = rdkafka::Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
        list.add_partition_offset(topic, i32::from(*partition), offset)?;
    }
    Ok(list)
}
