//! Embed's side of the log on Kafka: one of a group that shares the partitions of `changes` among its members.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::super::{LogError, Offsets, OpenLetters, Outgoing, Partition, Stored, lock, replay};
use super::client::{self, Limits, Names, PATIENCE, Quiet};
use super::feed::Feed;
use super::topics::{self, Wanted};
use super::writer::{self, Placed, Writer};
use super::{Settings, letters, state};
use crate::event::Record;

/// One of those who embed a revision.
pub struct EmbedLog {
    settings: Settings,
    names: Names,
    revision: String,
    /// Names this member's transactions. The group's generation decides who may commit, so any name will do.
    transactional_id: String,
    joined: Option<Arc<Joined>>,
    /// What the topics ask for.
    limits: Limits,
    /// Revocations that the caller knows of.
    revocations: u64,
    /// Whether a commit failed, so that the group's positions may be ahead of what is known here.
    uncertain: bool,
    /// A replay that was found and is not begun: the offsets of its records.
    replay: BTreeMap<Partition, u64>,
    /// Up to where replays are done, as far as was asked.
    replayed: BTreeMap<Partition, u64>,
}

/// What a member has open.
struct Joined {
    feed: Feed,
    /// Used in turn: a producer's next transaction has to wait until the broker is done with its last one.
    writers: Mutex<Writers>,
}

#[derive(Default)]
struct Writers {
    writers: [Option<Writer>; 2],
    /// Whose turn it is.
    turn: usize,
}

impl EmbedLog {
    pub(super) fn new(settings: Settings, names: Names, revision: &str) -> EmbedLog {
        let transactional_id = format!("{}.{}", names.embedders(revision), unique());
        let revision = revision.to_owned();
        let limits = Limits::new(&settings);
        EmbedLog {
            settings,
            names,
            revision,
            transactional_id,
            joined: None,
            limits,
            revocations: 0,
            uncertain: false,
            replay: BTreeMap::new(),
            replayed: BTreeMap::new(),
        }
    }

    /// See [`super::super::EmbedLog::next`]. Joins the group the first time. [`LogError::Revoked`] where a partition was
    /// taken away: what was read and not committed is to be dropped, and `rewind` called.
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, LogError> {
        let revocations = self.revocations;
        let joined = self.joined().await?;
        let given = joined.feed.next(max_records, max_bytes, revocations).await;
        drop(joined);
        if let Err(LogError::Broker { .. }) = &given {
            self.leave();
        }
        let mut batch = given?;
        let replayed = &self.replayed;
        let done = |partition, offset| Ok(replayed.get(&partition).is_some_and(|replayed| offset <= *replayed));
        self.replay = replay::cut(&mut batch, done)?;
        Ok(batch)
    }

    /// Leaves the group; the next call joins it anew. librdkafka does not ask for a partition's position again when that has
    /// failed once, and would read nothing from it for ever.
    fn leave(&mut self) {
        if let Some(joined) = self.joined.take() {
            // It waits for its thread, and for a broker that may be away.
            drop(spawn_blocking(move || drop(joined)));
        }
        // The positions that it begins at are those that were committed.
        (self.revocations, self.uncertain) = (0, false);
    }

    /// See [`super::super::EmbedLog::has_replay`]. It may turn out to be done.
    pub fn has_replay(&self) -> bool {
        !self.replay.is_empty()
    }

    /// See [`super::super::EmbedLog::begin_replay`].
    pub async fn begin_replay(&mut self) -> Result<(), LogError> {
        let joined = self.joined().await?;
        let (settings, names, revision) = (self.settings.clone(), self.names.clone(), self.revision.clone());
        let (replay, revocations) = (std::mem::take(&mut self.replay), self.revocations);
        self.replayed.extend(&replay);
        let begin = move || joined.begin_replay(&settings, &names, &revision, &replay, revocations);
        let begun = spawn_blocking(begin).await.unwrap_or_else(|fault| Err(LogError::Task(fault)));
        if begun.is_err() {
            self.replayed.clear();
        }
        begun
    }

    /// See [`super::super::EmbedLog::lag`].
    pub fn lag(&self) -> u64 {
        self.joined.as_ref().map_or(0, |joined| joined.feed.waiting())
    }

    /// See [`super::super::EmbedLog::commit`]. Nothing is written for a partition that was taken away.
    pub async fn commit(
        &mut self,
        vectors: Vec<Outgoing>,
        dead_letters: Vec<Record>,
        ends: &BTreeMap<Partition, u64>,
    ) -> Result<(), LogError> {
        let joined = self.joined().await?;
        let (settings, names) = (self.settings.clone(), self.names.clone());
        let mut records = writer::place(&names.vectors(&self.revision), settings.partitions, vectors);
        let bytes_max = self.limits.record_bytes_max();
        records.extend(dead_letters.into_iter().map(|letter| letters::place(&settings, &names, letter, bytes_max)));
        let (ends, revocations, id) = (ends.clone(), self.revocations, self.transactional_id.clone());
        let commit = move || joined.commit(&settings, &names, &id, &records, &ends, revocations);
        let committed = spawn_blocking(commit).await.unwrap_or_else(|fault| Err(LogError::Task(fault)));
        self.uncertain |= committed.is_err();
        committed
    }

    /// See [`super::super::EmbedLog::record_bytes_max`].
    pub fn record_bytes_max(&self) -> usize {
        self.limits.record_bytes_max()
    }

    /// See [`super::super::EmbedLog::tenures`].
    pub fn tenures(&self) -> u64 {
        self.joined.as_ref().map_or(0, |joined| joined.feed.tenures())
    }

    /// See [`super::super::EmbedLog::open_letters`]. A row has the same partition in both topics.
    pub async fn open_letters(&mut self, limit: usize) -> Result<OpenLetters, LogError> {
        let partitions = self.joined().await?.feed.owned();
        let (settings, names) = (self.settings.clone(), self.names.clone());
        let read = move || {
            let mut open = OpenLetters::new(limit);
            letters::visit(&settings, &names, partitions, |record| open.offer(record)).map(|()| open)
        };
        spawn_blocking(read).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))
    }

    /// See [`super::super::EmbedLog::rewind`].
    pub async fn rewind(&mut self) -> Result<(), LogError> {
        let Some(joined) = self.joined.clone() else { return Ok(()) };
        self.replay.clear();
        self.revocations = joined.feed.revocations();
        if self.uncertain {
            let changes = self.names.changes.clone();
            let asked = Arc::clone(&joined);
            let ask = move || asked.committed(&changes);
            let committed = spawn_blocking(ask).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))?;
            joined.feed.forget_below(&committed);
            self.uncertain = false;
        }
        joined.feed.rewind();
        Ok(())
    }

    async fn joined(&mut self) -> Result<Arc<Joined>, LogError> {
        if let Some(joined) = &self.joined {
            return Ok(Arc::clone(joined));
        }
        let (settings, names, revision) = (self.settings.clone(), self.names.clone(), self.revision.clone());
        let partitions = settings.partitions;
        let vectors = names.vectors(&revision);
        let wanted = [
            Wanted { name: &names.changes, partitions },
            Wanted { name: &vectors, partitions },
            Wanted { name: &names.dead_letters, partitions },
            Wanted { name: &names.state, partitions: 1 },
        ];
        self.limits = topics::ensure(&settings, &wanted).await?;
        let join = move || join(&settings, &names, &revision);
        let joined = spawn_blocking(join).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))?;
        let joined = Arc::new(joined);
        self.joined = Some(Arc::clone(&joined));
        Ok(joined)
    }
}

fn join(settings: &Settings, names: &Names, revision: &str) -> Result<Joined, LogError> {
    begin(settings, names, revision)?;
    let mut config = client::reading(settings, &names.embedders(revision));
    config
        .set("partition.assignment.strategy", "cooperative-sticky")
        // How long a member that was killed keeps its partitions from the others.
        .set("session.timeout.ms", "10000")
        .set("heartbeat.interval.ms", "2000")
        .set("max.poll.interval.ms", "60000");
    Ok(Joined { feed: Feed::join(&config, &names.changes)?, writers: Mutex::default() })
}

/// The marker that a revision has begun at the beginning.
#[derive(Default, Serialize, Deserialize)]
struct Begun {
    begun: bool,
    /// Where `changes` ended then.
    #[serde(default)]
    ends: Offsets,
}

fn begun_key(revision: &str) -> String {
    format!("embed.{revision}")
}

/// The first of all members puts the group at the beginning, explicitly, and leaves a marker that says so. From then on a
/// missing position is a fault and never a beginning.
fn begin(settings: &Settings, names: &Names, revision: &str) -> Result<(), LogError> {
    let marker = begun_key(revision);
    if state::read(settings, &names.state, &marker)?.is_some() {
        return Ok(());
    }
    let fault = client::fault("put at the beginning", &names.changes);
    let consumer: BaseConsumer<Quiet> =
        client::reading(settings, &names.embedders(revision)).create_with_context(Quiet).map_err(&fault)?;
    let known = committed(&consumer, &names.changes, settings.partitions).map_err(&fault)?;
    let zeros: BTreeMap<Partition, u64> =
        (0..settings.partitions).filter(|partition| !known.contains_key(partition)).map(|p| (p, 0)).collect();
    if !zeros.is_empty() {
        let offsets = client::offsets(&names.changes, &zeros).map_err(&fault)?;
        match consumer.commit(&offsets, CommitMode::Sync) {
            Ok(()) => {}
            // A group that has members has been begun by one of them.
            Err(KafkaError::ConsumerCommit(
                RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::RebalanceInProgress,
            )) => return Ok(()),
            Err(error) => return Err(fault(error)),
        }
    }
    let ends = (0..settings.partitions).map(|partition| Ok(client::bounds(&consumer, &names.changes, partition)?.1));
    let begun = Begun { begun: true, ends: ends.collect::<Result<_, _>>().map_err(&fault)? };
    let value = serde_json::to_vec(&begun).expect("a marker has string keys only");
    state::write(settings, &names.state, &marker, &value)?;
    tracing::info!(topic = names.changes, revision, "embedding begins at the beginning");
    Ok(())
}

impl Joined {
    fn commit(
        &self,
        settings: &Settings,
        names: &Names,
        transactional_id: &str,
        records: &[Placed],
        ends: &BTreeMap<Partition, u64>,
        revocations: u64,
    ) -> Result<(), LogError> {
        let _no_rebalance = self.feed.transaction();
        if self.feed.revocations() != revocations || !self.feed.owns(ends.keys()) {
            return Err(LogError::Revoked { topic: names.changes.clone() });
        }
        let fault = client::fault("commit to", &names.changes);
        let group = self.feed.consumer().group_metadata();
        let group = group.ok_or_else(|| LogError::Revoked { topic: names.changes.clone() })?;
        let mut held = lock(&self.writers);
        let turn = held.turn;
        let writer = match held.writers[turn].take() {
            Some(writer) => writer,
            None => Writer::open(settings, &format!("{transactional_id}.{turn}")).map_err(&fault)?,
        };
        let offsets = client::offsets(&names.changes, ends).map_err(&fault)?;
        writer.transact(records, Some((&offsets, &group))).map_err(&fault)?;
        // A writer that failed is not kept, and has the next turn too: its successor settles what it left.
        held.writers[turn] = Some(writer);
        held.turn = 1 - turn;
        self.feed.forget_below(ends);
        Ok(())
    }

    /// Puts partitions back to their beginning for the replays whose records stand at these offsets, those that are done
    /// excepted; what is read goes on from the committed positions.
    fn begin_replay(
        &self,
        settings: &Settings,
        names: &Names,
        revision: &str,
        replays: &BTreeMap<Partition, u64>,
        revocations: u64,
    ) -> Result<(), LogError> {
        let _no_rebalance = self.feed.transaction();
        if self.feed.revocations() != revocations || !self.feed.owns(replays.keys()) {
            return Err(LogError::Revoked { topic: names.changes.clone() });
        }
        let fault = client::fault("put at the beginning", &names.changes);
        let begun = state::read(settings, &names.state, &begun_key(revision))?;
        let began: Begun = begun.and_then(|value| serde_json::from_slice(&value).ok()).unwrap_or_default();
        let (reader, mut beginnings) = (client::reader(settings).map_err(&fault)?, BTreeMap::new());
        let key = |partition: Partition| format!("replay.{revision}.{partition}");
        for (&partition, &offset) in replays {
            let done = state::read(settings, &names.state, &key(partition))?;
            let done = done.and_then(|value| serde_json::from_slice::<u64>(&value).ok()).map_or(0, |done| done + 1);
            // Who began later has read all of it anyway.
            let began = began.ends.get(usize::from(partition)).copied().unwrap_or_default();
            if offset >= done.max(began) {
                let (low, _) = client::bounds(&reader, &names.changes, partition).map_err(&fault)?;
                beginnings.insert(partition, low);
            }
        }
        if !beginnings.is_empty() {
            let offsets = client::offsets(&names.changes, &beginnings).map_err(&fault)?;
            self.feed.consumer().commit(&offsets, CommitMode::Sync).map_err(&fault)?;
            // After the position: a kill between the two begins once more, and loses no replay.
            for &partition in beginnings.keys() {
                state::write(settings, &names.state, &key(partition), replays[&partition].to_string().as_bytes())?;
            }
            tracing::info!(topic = names.changes, partitions = ?beginnings.keys(), "embedding once more from the beginning");
        }
        self.feed.seek(beginnings);
        self.feed.rewind();
        Ok(())
    }

    /// The group's positions of the partitions that are ours.
    fn committed(&self, topic: &str) -> Result<BTreeMap<Partition, u64>, LogError> {
        let fault = client::fault("ask for the positions in", topic);
        let ours = self.feed.consumer().assignment().map_err(&fault)?;
        let list = self.feed.consumer().committed_offsets(ours, PATIENCE).map_err(&fault)?;
        Ok(positions(&list))
    }
}

fn committed(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    partitions: u16,
) -> Result<BTreeMap<Partition, u64>, KafkaError> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, i32::from(partitions) - 1);
    Ok(positions(&consumer.committed_offsets(asked, PATIENCE)?))
}

fn positions(list: &TopicPartitionList) -> BTreeMap<Partition, u64> {
    let known = list.elements().into_iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((element.partition().try_into().ok()?, offset.try_into().ok()?)),
        _ => None,
    });
    known.collect()
}

/// A name that no other process has: where and when this one was started.
fn unique() -> String {
    format!("{}-{}-{}", whoami::hostname().unwrap_or_default(), std::process::id(), crate::clock::now_ms())
}
