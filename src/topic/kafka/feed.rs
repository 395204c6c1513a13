//! A thread that polls the broker and a bounded buffer behind it. Knows partitions and offsets, no events.
//!
//! **Invariants:** the broker is polled all the time, whatever the reader does, so that a slow reader keeps its place in
//! its group; when the buffer stays full, partitions are paused; of a partition that was taken away nothing more is given.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::Notify;

use super::super::{LogError, Partition, Stored, lock};
use super::client::{self, Quiet};
use super::message::stored;
use super::standing::Held;
use super::standstill::Standstill;
use crate::event::Record;

/// Bytes of records that wait, beyond which partitions are paused. librdkafka holds about as much before them.
const BUFFER_BYTES_MAX: usize = 16 << 20;
/// How long a full buffer is waited for before partitions are paused, which throws away what librdkafka has fetched.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
/// How long a poll waits.
const POLL: Duration = Duration::from_millis(100);
/// How long a poll waits while partitions are paused: they go on soon after there is room.
const POLL_PAUSED: Duration = Duration::from_millis(5);

/// How long a partition that was taken on may bring neither a record nor its end. Longer than a transaction may hold its
/// position back.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long the brokers may take to say where the partitions end. Nothing is polled meanwhile.
const ENDS_PATIENCE: Duration = Duration::from_secs(3);

/// What a record costs in memory besides its own bytes.
const RECORD_OVERHEAD: usize = 200;

/// Records of a topic as they come.
pub(super) struct Feed {
    shared: Arc<Shared>,
    consumer: Arc<BaseConsumer<Context>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    topic: String,
    group: String,
    buffer: Mutex<Buffer>,
    arrived: Notify,
    /// The buffer has become smaller.
    room: Condvar,
    stopping: AtomicBool,
    /// Held by a transaction that commits positions; a partition is given back only between two of them.
    transaction: Mutex<()>,
}

impl Shared {
    fn new(topic: &str, config: &ClientConfig) -> Shared {
        Shared {
            topic: topic.to_owned(),
            group: config.get("group.id").unwrap_or_default().to_owned(),
            buffer: Mutex::default(),
            arrived: Notify::new(),
            room: Condvar::new(),
            stopping: AtomicBool::new(false),
            transaction: Mutex::new(()),
        }
    }
}

#[derive(Default)]
struct Buffer {
    lanes: BTreeMap<Partition, Lane>,
    bytes: usize,
    /// Counts the times that a partition was taken away.
    revocations: u64,
    /// Counts the times that partitions were taken on.
    tenures: u64,
    /// Whether the group has said which partitions are ours, be it none.
    is_assigned: bool,
    paused: bool,
    fault: Option<LogError>,
    /// Whether the thread that polls is gone, though nobody has ended it.
    is_abandoned: bool,
    /// Partitions that are to be read from these offsets on instead.
    seeks: BTreeMap<Partition, u64>,
    /// Since when a partition that was taken on has been silent.
    silent_since: Option<Instant>,
    /// The partition that the next batch begins after.
    turn: Partition,
}

/// A partition: its records in order, the first `given` of them given and not yet done with.
#[derive(Default)]
struct Lane {
    records: VecDeque<Stored>,
    given: usize,
    /// Nothing stands behind the last record but markers of transactions.
    at_end: bool,
    /// A record or its end has come since it was taken on.
    heard: bool,
}

/// Follows the group: what is taken away is dropped, between two transactions.
pub(super) struct Context(Arc<Shared>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("Kafka: {error}: {reason}");
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            // The group has shared out anew, and nothing has changed for this member.
            Rebalance::Revoke(list) if list.count() == 0 => {}
            Rebalance::Assign(list) if list.count() == 0 => lock(&self.0.buffer).is_assigned = true,
            Rebalance::Revoke(list) => {
                let partitions = partitions(list);
                tracing::info!(?partitions, "partitions given back");
                // Whoever gets them next must find all that was committed.
                let _transaction = lock(&self.0.transaction);
                let mut buffer = lock(&self.0.buffer);
                buffer.revocations += 1;
                buffer.paused = false;
                for partition in partitions {
                    buffer.drop_lane(partition);
                }
                drop(buffer);
                self.0.arrived.notify_one();
            }
            Rebalance::Assign(list) => {
                let partitions = partitions(list);
                tracing::info!(?partitions, "partitions taken on");
                let mut buffer = lock(&self.0.buffer);
                buffer.tenures += 1;
                buffer.is_assigned = true;
                buffer.paused = false;
                for partition in partitions {
                    buffer.drop_lane(partition);
                    buffer.lanes.insert(partition, Lane::default());
                }
            }
            Rebalance::Error(error) => tracing::warn!("share the partitions of {}: {error}", self.0.topic),
        }
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<Partition> {
    list.elements().iter().filter_map(|element| Partition::try_from(element.partition()).ok()).collect()
}

impl Feed {
    /// Joins the configured group and reads the partitions that it gets, from the group's positions on.
    pub fn join(config: &ClientConfig, topic: &str) -> Result<Feed, LogError> {
        Feed::start(config, topic, |consumer| consumer.subscribe(&[topic]))
    }

    /// Reads all partitions from these positions on.
    pub fn assigned(
        config: &ClientConfig,
        topic: &str,
        positions: &BTreeMap<Partition, u64>,
    ) -> Result<Feed, LogError> {
        Feed::start(config, topic, |consumer| consumer.assign(&client::offsets(topic, positions)?))
    }

    fn start(
        config: &ClientConfig,
        topic: &str,
        begin: impl FnOnce(&BaseConsumer<Context>) -> Result<(), KafkaError>,
    ) -> Result<Feed, LogError> {
        let fault = client::fault("read", topic);
        let shared = Arc::new(Shared::new(topic, config));
        let consumer = config.create_with_context(Context(Arc::clone(&shared))).map_err(&fault)?;
        let consumer: Arc<BaseConsumer<Context>> = Arc::new(consumer);
        begin(&consumer).map_err(&fault)?;
        let (polled, polling, config) = (Arc::clone(&consumer), Polling(Arc::clone(&shared)), config.clone());
        let thread = std::thread::Builder::new()
            .name("vecsync-kafka".to_owned())
            .spawn(move || poll(&polled, &polling.0, &config))
            .map_err(|source| LogError::Thread { topic: topic.to_owned(), source })?;
        Ok(Feed { shared, consumer, thread: Some(thread) })
    }

    pub fn consumer(&self) -> &BaseConsumer<Context> {
        &self.consumer
    }

    /// Keeps partitions from being given back while it is held.
    pub fn transaction(&self) -> MutexGuard<'_, ()> {
        lock(&self.shared.transaction)
    }

    /// How often partitions were taken away.
    pub fn revocations(&self) -> u64 {
        lock(&self.shared.buffer).revocations
    }

    /// How often partitions were taken on.
    pub fn tenures(&self) -> u64 {
        lock(&self.shared.buffer).tenures
    }

    /// The partitions that are ours.
    pub fn owned(&self) -> Vec<Partition> {
        lock(&self.shared.buffer).lanes.keys().copied().collect()
    }

    /// Where our partitions end for who reads what is committed. Blocks.
    pub fn ends(&self) -> Result<BTreeMap<Partition, u64>, KafkaError> {
        ends(&self.consumer, &self.shared.topic, &self.owned())
    }

    /// The partitions that are ours, with what of them waits here; `None`: the group has not said yet which those are.
    pub fn held(&self) -> Option<BTreeMap<Partition, Held>> {
        let buffer = lock(&self.shared.buffer);
        let held = |lane: &Lane| Held { records: lane.records.len() as u64, is_all: lane.at_end };
        buffer.is_assigned.then(|| buffer.lanes.iter().map(|(partition, lane)| (*partition, held(lane))).collect())
    }

    /// Whether all these partitions are ours.
    pub fn owns<'a>(&self, mut partitions: impl Iterator<Item = &'a Partition>) -> bool {
        let buffer = lock(&self.shared.buffer);
        partitions.all(|partition| buffer.lanes.contains_key(partition))
    }

    /// Waits until there are records and gives some. `revocations` is what the caller knows of: where more partitions
    /// were taken away, it is told first. Cancel-safe.
    pub async fn next(&self, records: usize, bytes: usize, revocations: u64) -> Result<Vec<Stored>, LogError> {
        loop {
            let arrived = self.shared.arrived.notified();
            {
                let mut buffer = lock(&self.shared.buffer);
                if buffer.revocations != revocations {
                    return Err(LogError::Revoked { topic: self.shared.topic.clone() });
                }
                if let Some(fault) = buffer.fault.take() {
                    return Err(fault);
                }
                if buffer.is_abandoned {
                    return Err(LogError::Panicked { topic: self.shared.topic.clone() });
                }
                let batch = buffer.give(records, bytes);
                if !batch.is_empty() {
                    return Ok(batch);
                }
            }
            arrived.await;
        }
    }

    /// About how many records wait to be given.
    pub fn waiting(&self) -> u64 {
        lock(&self.shared.buffer).lanes.values().map(|lane| (lane.records.len() - lane.given) as u64).sum()
    }

    /// The partitions of which nothing is left, as far as is known: all was given and forgotten.
    pub fn drained(&self) -> BTreeSet<Partition> {
        let buffer = lock(&self.shared.buffer);
        let drained = buffer.lanes.iter().filter(|(_, lane)| lane.at_end && lane.records.is_empty());
        drained.map(|(partition, _)| *partition).collect()
    }

    /// Whether all of a partition was given, as far as is known.
    pub fn is_at_end(&self, partition: Partition) -> bool {
        let buffer = lock(&self.shared.buffer);
        buffer.lanes.get(&partition).is_some_and(|lane| lane.at_end && lane.given == lane.records.len())
    }

    /// Forgets records below these offsets.
    pub fn forget_below(&self, ends: &BTreeMap<Partition, u64>) {
        lock(&self.shared.buffer).forget_below(ends);
        self.shared.room.notify_one();
    }

    /// Goes on at these offsets in these partitions; of what was read of them nothing more is given.
    pub fn seek(&self, offsets: BTreeMap<Partition, u64>) {
        let mut buffer = lock(&self.shared.buffer);
        for (partition, offset) in offsets {
            if buffer.lanes.contains_key(&partition) {
                buffer.drop_lane(partition);
                buffer.lanes.insert(partition, Lane::default());
                buffer.seeks.insert(partition, offset);
            }
        }
    }

    /// Gives what was given and is not forgotten once more.
    pub fn rewind(&self) {
        for lane in lock(&self.shared.buffer).lanes.values_mut() {
            lane.given = 0;
        }
        self.shared.arrived.notify_one();
    }
}

impl Drop for Feed {
    /// Ends the thread; the consumer leaves its group.
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.room.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads {} panicked", self.shared.topic);
        }
    }
}

/// Held by the thread that polls: whoever waits for records hears of its panic.
struct Polling(Arc<Shared>);

impl Drop for Polling {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.0.buffer).is_abandoned = true;
            self.0.arrived.notify_one();
        }
    }
}

impl Buffer {
    fn drop_lane(&mut self, partition: Partition) {
        if let Some(lane) = self.lanes.remove(&partition) {
            self.bytes -= lane.records.iter().map(size).sum::<usize>();
        }
        self.seeks.remove(&partition);
    }

    fn push(&mut self, stored: Stored) {
        if self.seeks.contains_key(&stored.partition) {
            return;
        }
        self.bytes += size(&stored);
        let lane = self.lanes.entry(stored.partition).or_default();
        (lane.at_end, lane.heard) = (false, true);
        lane.records.push_back(stored);
    }

    /// Whether a partition that was taken on has been silent for too long: not even its end has come. Says so once.
    fn is_silent(&mut self, now: Instant) -> bool {
        if self.paused || self.lanes.values().all(|lane| lane.heard) {
            self.silent_since = None;
            return false;
        }
        let is_silent = now.duration_since(*self.silent_since.get_or_insert(now)) > SILENCE_MAX;
        if is_silent {
            self.silent_since = None;
        }
        is_silent
    }

    /// Records from the partitions in turn, each partition's own in order.
    fn give(&mut self, records_max: usize, bytes_max: usize) -> Vec<Stored> {
        let mut batch: Vec<Stored> = vec![];
        let mut bytes = 0;
        let ready = |lane: &Lane| lane.given < lane.records.len();
        let mut open: Vec<Partition> = self.lanes.iter().filter(|(_, lane)| ready(lane)).map(|(p, _)| *p).collect();
        let after = open.iter().position(|partition| *partition > self.turn).unwrap_or(0);
        open.rotate_left(after);
        self.turn = open.first().copied().unwrap_or(self.turn);
        while !open.is_empty() {
            let share = (records_max.max(1) - batch.len()).div_ceil(open.len());
            let mut still = vec![];
            for partition in open {
                let Some(lane) = self.lanes.get_mut(&partition) else { continue };
                for _ in 0..share {
                    let Some(stored) = lane.records.get(lane.given) else { break };
                    if batch.len() >= records_max.max(1) || (!batch.is_empty() && bytes + size(stored) > bytes_max) {
                        return batch;
                    }
                    bytes += size(stored);
                    batch.push(stored.clone());
                    lane.given += 1;
                }
                if lane.given < lane.records.len() {
                    still.push(partition);
                }
            }
            if batch.len() >= records_max.max(1) {
                break;
            }
            open = still;
        }
        batch
    }

    fn forget_below(&mut self, ends: &BTreeMap<Partition, u64>) {
        for (partition, end) in ends {
            let Some(lane) = self.lanes.get_mut(partition) else { continue };
            while lane.records.front().is_some_and(|stored| stored.offset < *end) {
                if let Some(stored) = lane.records.pop_front() {
                    self.bytes -= size(&stored);
                    lane.given = lane.given.saturating_sub(1);
                }
            }
        }
    }
}

fn size(stored: &Stored) -> usize {
    let Record { key, value, headers, .. } = &stored.record;
    let headers: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    RECORD_OVERHEAD + key.len() + value.as_ref().map_or(0, Bytes::len) + headers
}

fn poll(consumer: &BaseConsumer<Context>, shared: &Shared, config: &ClientConfig) {
    let mut wait = POLL;
    let mut standstill = Standstill::new(Instant::now());
    while !shared.stopping.load(Ordering::Acquire) {
        match consumer.poll(wait) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                let partition = Partition::try_from(partition).unwrap_or_default();
                standstill.hear(partition);
                let mut buffer = lock(&shared.buffer);
                let lane = buffer.lanes.entry(partition).or_default();
                (lane.at_end, lane.heard) = (true, true);
            }
            Some(Ok(message)) => {
                if let Some(stored) = stored(&message) {
                    standstill.hear(stored.partition);
                    lock(&shared.buffer).push(stored);
                    shared.arrived.notify_one();
                }
            }
            Some(Err(error)) => {
                if let Some(fault) = grave(shared, error) {
                    lock(&shared.buffer).fault = Some(fault);
                    shared.arrived.notify_one();
                }
            }
        }
        let is_silent = lock(&shared.buffer).is_silent(Instant::now());
        if is_silent || stands_still(consumer, shared, config, &mut standstill) {
            let silence = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
            lock(&shared.buffer).fault = Some(client::fault("read", &shared.topic)(silence));
            shared.arrived.notify_one();
        }
        wait = regulate(consumer, shared);
        seek(consumer, shared);
    }
}

/// Whether the consumer is to be replaced: it reads nothing although there is something to read, or does not get through to
/// the brokers although others do.
fn stands_still(
    consumer: &BaseConsumer<Context>,
    shared: &Shared,
    config: &ClientConfig,
    standstill: &mut Standstill,
) -> bool {
    let (paused, owned) = {
        let buffer = lock(&shared.buffer);
        (buffer.paused, buffer.lanes.keys().copied().collect::<Vec<_>>())
    };
    if paused {
        standstill.reset();
    }
    if paused || !standstill.is_due(Instant::now()) {
        return false;
    }
    let topic = &shared.topic;
    let stands_still = match ends(consumer, topic, &owned) {
        Ok(ends) => standstill.is_behind(&ends),
        Err(error) => {
            tracing::debug!("ask for the ends of {topic}: {error}");
            let other: Result<BaseConsumer<Quiet>, _> = config.create_with_context(Quiet);
            let told = other.and_then(|other| other.fetch_metadata(Some(topic), ENDS_PATIENCE));
            // A broker that has just started may know of none.
            let is_answered = told.is_ok_and(|told| !told.brokers().is_empty());
            if !is_answered {
                standstill.reset();
            }
            is_answered && standstill.is_deaf()
        }
    };
    if stands_still {
        tracing::warn!(topic, "the Kafka client reads nothing although there is something to read; it is replaced");
        standstill.reset();
    }
    stands_still
}

/// Where these partitions end for who reads what is committed; where there are none, whether the brokers answer.
fn ends(
    consumer: &BaseConsumer<Context>,
    topic: &str,
    partitions: &[Partition],
) -> Result<BTreeMap<Partition, u64>, KafkaError> {
    if partitions.is_empty() {
        return consumer.fetch_metadata(Some(topic), ENDS_PATIENCE).map(|_| BTreeMap::new());
    }
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition_offset(topic, i32::from(*partition), Offset::End)?;
    }
    let told = consumer.offsets_for_times(asked, ENDS_PATIENCE)?;
    let ends = told.elements().into_iter().map(|element| {
        element.error()?;
        let end = element.offset().to_raw().and_then(|end| u64::try_from(end).ok()).unwrap_or_default();
        Ok((Partition::try_from(element.partition()).unwrap_or_default(), end))
    });
    ends.collect()
}

/// Does what was asked of `Feed::seek`, here, so that nothing of before is polled after it.
fn seek(consumer: &BaseConsumer<Context>, shared: &Shared) {
    let wanted = lock(&shared.buffer).seeks.clone();
    for (partition, offset) in wanted {
        let to = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
        match consumer.seek(&shared.topic, i32::from(partition), to, client::PATIENCE) {
            Ok(()) => drop(lock(&shared.buffer).seeks.remove(&partition)),
            Err(error) => tracing::debug!("go back in partition {partition} of {}: {error}", shared.topic),
        }
    }
}

/// Pauses or resumes all partitions as the buffer asks for. Says how long the next poll may wait.
fn regulate(consumer: &BaseConsumer<Context>, shared: &Shared) -> Duration {
    let (bytes, paused) = {
        let mut buffer = lock(&shared.buffer);
        if !buffer.paused && buffer.bytes > BUFFER_BYTES_MAX {
            let is_full =
                |buffer: &mut Buffer| buffer.bytes > BUFFER_BYTES_MAX / 2 && !shared.stopping.load(Ordering::Acquire);
            let waited = shared.room.wait_timeout_while(buffer, ROOM_PATIENCE, is_full);
            buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        (buffer.bytes, buffer.paused)
    };
    let pause = if paused { bytes > BUFFER_BYTES_MAX / 2 } else { bytes > BUFFER_BYTES_MAX };
    if pause != paused {
        let changed = consumer.assignment().and_then(|assignment| match pause {
            true => consumer.pause(&assignment),
            false => consumer.resume(&assignment),
        });
        match changed {
            Ok(()) => lock(&shared.buffer).paused = pause,
            Err(error) => tracing::debug!("pause or resume {}: {error}", shared.topic),
        }
    }
    if pause { POLL_PAUSED } else { POLL }
}

/// What the reader has to know; a broker that is away comes back by itself.
fn grave(shared: &Shared, error: KafkaError) -> Option<LogError> {
    let Shared { topic, group, .. } = shared;
    let code = error.rdkafka_error_code();
    match code {
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
            Some(LogError::NoPosition { topic: topic.clone(), group: group.clone() })
        }
        Some(
            RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::Resolve
            | RDKafkaErrorCode::PollExceeded,
        ) => {
            tracing::debug!("read {topic}: {error}");
            None
        }
        _ => Some(client::fault("read", topic)(error)),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;

    fn stored(partition: Partition, offset: u64) -> Stored {
        let record = Record { key: Bytes::from_static(b"k"), value: None, headers: vec![], timestamp_ms: 0 };
        Stored { partition, offset, record }
    }

    fn given(buffer: &mut Buffer, records: usize) -> Vec<(Partition, u64)> {
        buffer.give(records, usize::MAX).iter().map(|stored| (stored.partition, stored.offset)).collect()
    }

    #[test]
    fn partitions_take_turns_and_keep_their_order() {
        let mut buffer = Buffer::default();
        for offset in 0..4 {
            buffer.push(stored(0, offset));
            buffer.push(stored(1, 10 + offset));
        }
        assert_eq!(given(&mut buffer, 4), [(1, 10), (1, 11), (0, 0), (0, 1)]);
        assert_eq!(given(&mut buffer, 2), [(0, 2), (1, 12)]);
        assert_eq!(given(&mut buffer, 9), [(1, 13), (0, 3)]);
        assert_eq!(given(&mut buffer, 9), []);
    }

    #[test]
    fn what_is_not_done_with_is_given_again() {
        let mut buffer = Buffer::default();
        (0..4).for_each(|offset| buffer.push(stored(0, offset)));
        assert_eq!(given(&mut buffer, 3).len(), 3);
        buffer.forget_below(&BTreeMap::from([(0, 2)]));
        assert_eq!(given(&mut buffer, 9), [(0, 3)]);
        buffer.lanes.values_mut().for_each(|lane| lane.given = 0);
        assert_eq!(given(&mut buffer, 9), [(0, 2), (0, 3)]);
        buffer.forget_below(&BTreeMap::from([(0, 9), (7, 1)]));
        assert_eq!((buffer.bytes, given(&mut buffer, 9).len()), (0, 0));
    }

    #[test]
    fn a_partition_that_was_taken_on_and_stays_silent_is_noticed_once() {
        let (mut buffer, begun) = (Buffer::default(), Instant::now());
        let check = |buffer: &mut Buffer, after_s: u64, wanted: bool| {
            assert_eq!(buffer.is_silent(begun + Duration::from_secs(after_s)), wanted, "after {after_s} s");
        };
        buffer.push(stored(0, 1));
        check(&mut buffer, 100, false);
        buffer.lanes.insert(1, Lane::default());
        check(&mut buffer, 101, false);
        check(&mut buffer, 131, false);
        check(&mut buffer, 132, true);
        check(&mut buffer, 133, false);
        // While everything is paused nothing is to be heard.
        buffer.paused = true;
        check(&mut buffer, 200, false);
        buffer.paused = false;
        check(&mut buffer, 201, false);
        buffer.push(stored(1, 1));
        check(&mut buffer, 300, false);
    }

    #[test]
    fn of_a_partition_that_was_taken_away_nothing_is_left() {
        let mut buffer = Buffer::default();
        (0..4).for_each(|offset| buffer.push(stored(offset as Partition % 2, offset)));
        assert_eq!(given(&mut buffer, 1).len(), 1);
        buffer.drop_lane(1);
        buffer.drop_lane(1);
        assert_eq!(given(&mut buffer, 9).iter().filter(|(partition, _)| *partition == 1).count(), 0);
        buffer.drop_lane(0);
        assert_eq!(buffer.bytes, 0);
    }

    #[tokio::test]
    async fn who_waits_for_records_hears_that_the_thread_panicked() {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1").set("group.id", "group");
        let feed = Feed::assigned(&config, "topic", &BTreeMap::new()).expect("a thread");
        let polling = Polling(Arc::clone(&feed.shared));
        let panicked = std::thread::spawn(move || {
            let _polling = polling;
            panic!("a defect");
        });
        for _ in 0..2 {
            let fault = feed.next(1, 1, 0).await.expect_err("nothing comes any more");
            assert!(matches!(fault, LogError::Panicked { .. }), "{fault}");
        }
        panicked.join().expect_err("it panicked");
    }

    #[test]
    fn the_ends_of_all_partitions_are_one_question() {
        let brokers = rdkafka::mocking::MockCluster::new(1).expect("a broker inside librdkafka");
        brokers.create_topic("topic", 3, 1).expect("a topic");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers.bootstrap_servers()).set("group.id", "group");
        let producer: BaseProducer = config.clone().remove("group.id").create().expect("a producer");
        for record in 0..5 {
            let record = BaseRecord::<str, str>::to("topic").partition(if record < 3 { 0 } else { 2 }).payload("x");
            producer.send(record).expect("it is taken");
        }
        producer.flush(client::PATIENCE).expect("it is written");
        let shared = Arc::new(Shared::new("topic", &config));
        let consumer = config.create_with_context(Context(shared)).expect("a consumer");
        let ends = |partitions: &[Partition]| ends(&consumer, "topic", partitions).expect("the broker answers");
        assert_eq!(ends(&[0, 1, 2]), BTreeMap::from([(0, 3), (1, 0), (2, 2)]));
        assert_eq!(ends(&[]), BTreeMap::new());
    }
}
