//! A transactional producer: writes records, and where asked a group's positions, all or nothing. Decides nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::Message;
use rdkafka::TopicPartitionList;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::super::partition::partition_of;
use super::super::trail::Place;
use super::super::{Outgoing, Partition, lock};
use super::Settings;
use super::client::{self, PATIENCE, RECORD_BYTES_MAX};
use crate::event::Record;

/// A transaction that has not ended by then is ended by the broker: what a killed process leaves open holds its readers
/// up for so long.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than a transaction lasts, so that the broker's own word on it comes first.
const COMMIT_PATIENCE: Duration = Duration::from_secs(20);

/// Between a commit and the next transaction. The broker writes the markers of a transaction after it has confirmed it; a
/// next one that comes sooner is sent away, and librdkafka waits 20 ms before it tries again, once for each partition.
const APART: Duration = Duration::from_millis(4);
/// How long what was sent in a transaction that failed may take to be reported: a broker that is there does so at once.
const SETTLING: Duration = Duration::from_secs(2);
/// How long the producer is polled at a time: it does not return sooner, whatever comes.
const GLANCE: Duration = Duration::from_millis(1);
/// How long a commit of positions may take, and how long the client has, beyond it, to say that the time is over.
const POSITIONS_PATIENCE: Duration = Duration::from_secs(6);
const GRACE: Duration = Duration::from_secs(2);

/// A record with the topic and the partition that it goes to.
pub(super) type Placed = (Arc<str>, Partition, Record);
/// The offset after the last record of each partition, by topic.
pub(super) type Ends = HashMap<String, BTreeMap<Partition, u64>>;

/// What a transaction has written.
#[derive(Debug, PartialEq)]
pub(super) struct Written {
    pub ends: Ends,
    /// The records' places, in their order.
    pub places: Vec<Place>,
}

/// A producer that has been initialised: it has fenced those before it.
pub(super) struct Writer {
    producer: Arc<BaseProducer<Deliveries>>,
    /// When the last transaction was committed.
    committed: Mutex<Option<Instant>>,
}

/// What became of the records of the transaction.
#[derive(Default)]
struct Deliveries(Mutex<Delivered>);

#[derive(Default)]
struct Delivered {
    ends: Ends,
    /// The offset of each record that was sent, by its number.
    offsets: Vec<u64>,
    count: usize,
    fault: Option<KafkaError>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("Kafka: {error}: {reason}");
    }
}

impl ProducerContext for Deliveries {
    /// The record's number in what is sent together.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let mut delivered = lock(&self.0);
        delivered.count += 1;
        match result {
            Ok(message) => {
                let partition = Partition::try_from(message.partition()).unwrap_or_default();
                let offset = u64::try_from(message.offset()).unwrap_or_default();
                let end = offset + 1;
                if let Some(known) = delivered.offsets.get_mut(number) {
                    *known = offset;
                }
                // Once a record: the name is copied only for the first of its topic.
                if !delivered.ends.contains_key(message.topic()) {
                    delivered.ends.insert(message.topic().to_owned(), BTreeMap::new());
                }
                if let Some(ends) = delivered.ends.get_mut(message.topic()) {
                    let known = ends.entry(partition).or_default();
                    *known = end.max(*known);
                }
            }
            Err((error, _)) => {
                delivered.fault.get_or_insert_with(|| error.clone());
            }
        }
    }
}

impl Writer {
    /// Connects and fences every other writer with this transactional id; waits for what it left open. Blocks.
    pub fn open(settings: &Settings, transactional_id: &str) -> Result<Writer, KafkaError> {
        let mut config = client::config(settings);
        config
            .set("transactional.id", transactional_id)
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
            .set("compression.type", "lz4")
            // What belongs to a transaction is there before the first record is sent.
            .set("linger.ms", "0")
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "65536")
            .set("message.max.bytes", RECORD_BYTES_MAX.to_string());
        let producer: BaseProducer<Deliveries> = config.create_with_context(Deliveries::default())?;
        producer.init_transactions(PATIENCE)?;
        Ok(Writer { producer: Arc::new(producer), committed: Mutex::new(None) })
    }

    /// Writes records, and `positions` of a group, in one transaction. Gives the records' places and the offset after the
    /// last one of each partition written to. Blocks. After an error it is not known whether the transaction stands, and this writer is of
    /// no further use: the next one's `open` settles it.
    pub fn transact(
        &self,
        records: &[Placed],
        positions: Option<(TopicPartitionList, ConsumerGroupMetadata)>,
    ) -> Result<Written, KafkaError> {
        *self.delivered() = Delivered { offsets: vec![0; records.len()], ..Delivered::default() };
        self.keep_apart();
        self.producer.begin_transaction()?;
        let written = self.fill(records, positions);
        if written.is_err() {
            self.abort();
        }
        written?;
        self.producer.commit_transaction(COMMIT_PATIENCE)?;
        *lock(&self.committed) = Some(Instant::now());
        let Delivered { ends, offsets, .. } = std::mem::take(&mut *self.delivered());
        let places = records.iter().zip(offsets).map(|((_, partition, _), offset)| (*partition, offset)).collect();
        Ok(Written { ends, places })
    }

    /// Ends a transaction that failed sooner than its time-out does; whether it succeeds changes nothing.
    fn abort(&self) {
        // Aborting waits for the reports of all that was sent, and hears none of them: they come by `poll` alone.
        let deadline = Instant::now() + SETTLING;
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.producer.poll(GLANCE);
        }
        let _ = self.producer.abort_transaction(PATIENCE);
    }

    fn keep_apart(&self) {
        let committed = *lock(&self.committed);
        if let Some(committed) = committed {
            thread::sleep(APART.saturating_sub(committed.elapsed()));
        }
    }

    fn fill(
        &self,
        records: &[Placed],
        positions: Option<(TopicPartitionList, ConsumerGroupMetadata)>,
    ) -> Result<(), KafkaError> {
        for (number, (topic, partition, record)) in records.iter().enumerate() {
            self.send(topic, *partition, record, number)?;
        }
        if let Some((offsets, group)) = positions {
            self.send_positions(offsets, group)?;
        }
        self.wait_for(records.len())
    }

    /// Adds a group's positions to the transaction. librdkafka since 2.10 may never return from this, whatever limit it is
    /// given, when brokers have come back and have told it of none at first (its issue 5511). So it waits on a thread of its
    /// own; one that does not return is left behind with its producer, which the next writer fences.
    fn send_positions(&self, offsets: TopicPartitionList, group: ConsumerGroupMetadata) -> Result<(), KafkaError> {
        let (tell, told) = mpsc::channel();
        let producer = Arc::clone(&self.producer);
        let send = move || drop(tell.send(producer.send_offsets_to_transaction(&offsets, &group, POSITIONS_PATIENCE)));
        let spawned = thread::Builder::new().name("vecsync-positions".to_owned()).spawn(send);
        spawned.map_err(|_| KafkaError::Flush(RDKafkaErrorCode::CriticalSystemResource))?;
        told.recv_timeout(POSITIONS_PATIENCE + GRACE).unwrap_or_else(|_| {
            tracing::warn!("the Kafka client did not come back from a commit of positions; it is replaced");
            Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut))
        })
    }

    /// Waits until so many records are delivered. The producer's own `flush` looks every 100 ms only.
    fn wait_for(&self, count: usize) -> Result<(), KafkaError> {
        let deadline = Instant::now() + COMMIT_PATIENCE;
        loop {
            {
                let mut delivered = self.delivered();
                if let Some(fault) = delivered.fault.take() {
                    return Err(fault);
                }
                if delivered.count >= count {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
            }
            self.producer.poll(GLANCE);
        }
    }

    fn send(&self, topic: &str, partition: Partition, record: &Record, number: usize) -> Result<(), KafkaError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: Some(&value[..]) });
        }
        let mut message = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, number)
            .partition(i32::from(partition))
            .key(&record.key[..])
            .timestamp(record.timestamp_ms)
            .headers(headers);
        if let Some(value) = &record.value {
            message = message.payload(&value[..]);
        }
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    self.producer.poll(GLANCE);
                    if let Some(fault) = self.delivered().fault.take() {
                        return Err(fault);
                    }
                    message = back;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    fn delivered(&self) -> MutexGuard<'_, Delivered> {
        lock(&self.producer.context().0)
    }
}

/// Writes records outside of any transaction; returns when all are durable. Blocks.
pub(super) fn write(settings: &Settings, records: &[Placed]) -> Result<(), KafkaError> {
    let mut config = client::config(settings);
    config.set("enable.idempotence", "true").set("message.timeout.ms", PATIENCE.as_millis().to_string());
    let producer: BaseProducer<Deliveries> = config.create_with_context(Deliveries::default())?;
    let writer = Writer { producer: Arc::new(producer), committed: Mutex::new(None) };
    writer.fill(records, None)
}

/// Gives each record its place in a topic of `partitions` partitions.
pub(super) fn place(topic: &str, partitions: u16, outgoing: Vec<Outgoing>) -> Vec<Placed> {
    let topic: Arc<str> = topic.into();
    let mut placed = Vec::with_capacity(outgoing.len());
    for outgoing in outgoing {
        match outgoing {
            Outgoing::ByKey(record) => placed.push((topic.clone(), partition_of(&record.key, partitions), record)),
            Outgoing::To(partition, record) => placed.push((topic.clone(), partition, record)),
            Outgoing::Everywhere(record) => {
                placed.extend((0..partitions).map(|partition| (topic.clone(), partition, record.clone())));
            }
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::path::PathBuf;

    use rdkafka::bindings;
    use rdkafka::consumer::{BaseConsumer, Consumer};

    use super::*;
    use crate::config::Secret;

    /// Two brokers inside librdkafka. The second looks after the group until it is taken out of the cluster. Where librdkafka
    /// is mended this fails, and `send_positions` needs no thread any more.
    #[test]
    fn a_commit_of_positions_that_never_returns_is_left_behind() {
        let settings = Settings {
            brokers: String::new(),
            security: vec![("test.mock.num.brokers", Secret::new("2".to_owned()))],
            prefix: "t".to_owned(),
            pipeline: "faq".to_owned(),
            source_topic: None,
            partitions: 1,
            replication: 1,
            tombstone_retention: Duration::from_secs(1),
            scratch: PathBuf::new(),
        };
        let writer = Writer::open(&settings, "writer").expect("the brokers take it");
        let [topic, group, kind] = ["topic", "group", "group"].map(|name| CString::new(name).expect("no zero in it"));
        // SAFETY: the producer lives to the end of the test and its cluster with it; the strings outlive the calls.
        let (brokers, cluster) = unsafe {
            let cluster = bindings::rd_kafka_handle_mock_cluster(writer.producer.client().native_ptr());
            bindings::rd_kafka_mock_topic_create(cluster, topic.as_ptr(), 1, 1);
            bindings::rd_kafka_mock_partition_set_leader(cluster, topic.as_ptr(), 0, 1);
            bindings::rd_kafka_mock_coordinator_set(cluster, kind.as_ptr(), group.as_ptr(), 2);
            let brokers = std::ffi::CStr::from_ptr(bindings::rd_kafka_mock_cluster_bootstraps(cluster));
            (brokers.to_string_lossy().into_owned(), cluster)
        };
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", "group");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let commit = || {
            let positions = client::offsets("topic", &BTreeMap::from([(0, 1)])).expect("a list");
            writer.transact(&[], Some((positions, consumer.group_metadata().expect("it has a group"))))
        };
        commit().expect("the second broker takes it");
        // SAFETY: as above.
        unsafe {
            bindings::rd_kafka_mock_coordinator_set(cluster, kind.as_ptr(), group.as_ptr(), 1);
            bindings::rd_kafka_mock_broker_decommission(cluster, 2);
        }
        writer.producer.client().fetch_metadata(None, PATIENCE).expect("the first broker answers");
        assert_eq!(commit(), Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)));
    }
}
