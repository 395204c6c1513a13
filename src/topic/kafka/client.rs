//! How every client of the brokers is set up, and what the topics are called. Sends and reads nothing itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;

use super::super::{LogError, Partition};
use super::Settings;

/// How long a question to a broker may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The largest record, in bytes: topics are made with this limit, and writers hold themselves to it.
pub(super) const RECORD_BYTES_MAX: usize = 16 << 20;
/// What a broker puts around a record, and headers that are added to one that is put aside.
const ENVELOPE_BYTES: usize = 64 << 10;
/// How long a broker is asked before it is looked whether it has let us in at all.
const GLANCE: Duration = Duration::from_secs(2);
/// Events of a client that are looked at for the reason why it is not let in.
const EVENTS_MAX: usize = 100;

/// The topics of a pipeline.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub changes: String,
    pub dead_letters: String,
    /// Capture's state and embed's markers, one partition, compacted.
    pub state: String,
    /// Whether others write `changes`: Debezium's topic.
    pub is_foreign: bool,
    prefix: String,
}

impl Names {
    pub fn new(settings: &Settings) -> Names {
        let prefix = format!("{}.{}", settings.prefix, settings.pipeline);
        Names {
            changes: settings.source_topic.clone().unwrap_or_else(|| format!("{prefix}.changes")),
            is_foreign: settings.source_topic.is_some(),
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

/// What writers and readers of some topics have to keep to: the strictest of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The largest batch of records that a broker takes, in bytes.
    pub batch_bytes_max: usize,
    /// How long tombstones are kept at least.
    pub tombstone_retention: Duration,
}

impl Limits {
    /// Those of topics as they are made here.
    pub fn new(settings: &Settings) -> Limits {
        Limits { batch_bytes_max: RECORD_BYTES_MAX, tombstone_retention: settings.tombstone_retention }
    }

    /// The most bytes of a record, key and value, that leave room for all that comes with them.
    pub fn record_bytes_max(&self) -> usize {
        self.batch_bytes_max - ENVELOPE_BYTES.min(self.batch_bytes_max / 2)
    }
}

/// The brokers' topics. Who is not let in is told at once; that nobody answers, after `PATIENCE`. Blocks.
pub(super) fn metadata(settings: &Settings) -> Result<Metadata, LogError> {
    let deadline = Instant::now() + PATIENCE;
    let connect = fault("connect to", &settings.brokers);
    let consumer = reader(settings).map_err(&connect)?;
    loop {
        // Asked for all of them: to ask for one may create it.
        let error = match consumer.fetch_metadata(None, GLANCE) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error,
        };
        if let Some(what) = refusal(&consumer) {
            return Err(LogError::Login { brokers: settings.brokers.clone(), what });
        }
        if Instant::now() > deadline {
            return Err(connect(error));
        }
    }
}

/// Why the brokers have not let this client in, if that is what happened.
fn refusal(consumer: &BaseConsumer<Quiet>) -> Option<&'static str> {
    for _ in 0..EVENTS_MAX {
        // None is no end: it stands for a line of librdkafka's log, too.
        let event = consumer.poll(Duration::from_millis(1));
        match event.and_then(Result::err).and_then(|error| error.rdkafka_error_code()) {
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => {
                return Some(
                    "they refuse the name or the password; check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and \
                     KAFKA_SASL_MECHANISM",
                );
            }
            Some(RDKafkaErrorCode::SSL) => {
                return Some(
                    "TLS failed: their certificate is not trusted or names another host, or they do not speak TLS \
                     there; check KAFKA_SSL_CA_LOCATION, KAFKA_BROKERS and KAFKA_SECURITY_PROTOCOL",
                );
            }
            _ => {}
        }
    }
    None
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
