//! Embed's side of the log on Kafka: one of a group that shares the partitions of `changes` among its members.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::trail::Place;
use super::super::{LogError, Offsets, OpenLetters, Outgoing, Partition, Stored, lock, replay};
use super::client::{self, Limits, Names, PATIENCE, Quiet};
use super::feed::Feed;
use super::foreign::{self, Marks};
use super::standing::Standing;
use super::topics::{self, Wanted};
use super::writer::{self, Placed, Writer};
use super::{Settings, letters, state};
use crate::clock::now_ms;
use crate::event::{Record, VectorEvent};

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
    /// Of a topic that others write: what was read, while it is found out what a truncate in it reaches to.
    pending: Option<Vec<Stored>>,
    next_beat: Instant,
    /// A replay that was found and is not begun: the offsets of its records.
    replay: BTreeMap<Partition, u64>,
    /// Up to where replays are done, as far as was asked.
    replayed: BTreeMap<Partition, u64>,
}

/// What a member has open.
struct Joined {
    feed: Feed,
    /// For the heartbeats of a topic that has none.
    marks: Mutex<Marks>,
    /// The next offsets to read, where something was committed.
    done: Mutex<BTreeMap<Partition, u64>>,
    /// What metrics say.
    standing: Mutex<Standing>,
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
            pending: None,
            next_beat: Instant::now(),
        }
    }

    /// See [`super::super::EmbedLog::next`]. Joins the group the first time. [`LogError::Revoked`] where a partition was
    /// taken away: what was read and not committed is to be dropped, and `rewind` called.
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, LogError> {
        if self.joined.is_none() {
            // Said before there are records: they may be long in coming.
            return self.joined().await.map(|_| vec![]);
        }
        let revocations = self.revocations;
        let joined = self.joined().await?;
        let given = match self.names.is_foreign {
            true => self.next_foreign(&joined, max_records, max_bytes).await,
            false => joined.feed.next(max_records, max_bytes, revocations).await,
        };
        drop(joined);
        match &given {
            Err(LogError::Broker { .. }) => self.leave(),
            Err(LogError::NoPosition { .. }) => {
                // A partition that was added has no position either, and that is another fault.
                let vectors = self.names.vectors(&self.revision);
                topics::check_partitions(&self.settings, &[&self.names.changes, &vectors]).await?;
            }
            _ => {}
        }
        let mut batch = given?;
        let replayed = &self.replayed;
        let done = |partition, offset| Ok(replayed.get(&partition).is_some_and(|replayed| offset <= *replayed));
        self.replay = replay::cut(&mut batch, done)?;
        Ok(batch)
    }

    /// As `next`, of a topic that others write.
    async fn next_foreign(
        &mut self,
        joined: &Arc<Joined>,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, LogError> {
        let revocations = self.revocations;
        loop {
            if self.pending.is_some() {
                self.fence(joined).await?;
                if joined.feed.revocations() != revocations {
                    return Err(LogError::Revoked { topic: self.names.changes.clone() });
                }
                if let Some(batch) = self.pending.take() {
                    return Ok(batch);
                }
            }
            tokio::select! {
                biased;
                () = sleep_until(self.next_beat) => {
                    self.next_beat = Instant::now() + foreign::BEAT_EVERY;
                    self.beat(joined).await;
                }
                batch = joined.feed.next(max_records, max_bytes, revocations) => self.pending = Some(batch?),
            }
        }
    }

    /// Finds out what the truncates in the pending batch reach to. Cancel-safe: what is not found out is still there.
    async fn fence(&mut self, joined: &Joined) -> Result<(), LogError> {
        while let Some((place, lsn)) = foreign::truncates(self.pending.as_deref().unwrap_or_default()).first().copied()
        {
            let Some(stored) = self.pending.as_ref().and_then(|batch| batch.get(place)).cloned() else { break };
            sleep(foreign::unsettled(&stored)).await;
            let (settings, topic) = (self.settings.clone(), self.names.changes.clone());
            let find = move || foreign::fenced(&settings, &topic, &stored, lsn);
            let fenced = spawn_blocking(find).await.unwrap_or_else(|fault| Err(LogError::Task(fault)));
            match (fenced, &mut self.pending) {
                (Ok(fenced), Some(batch)) => batch[place] = fenced,
                (Err(error), pending) => {
                    // The same is read again.
                    *pending = None;
                    joined.feed.rewind();
                    return Err(error);
                }
                (Ok(_), None) => {}
            }
        }
        Ok(())
    }

    /// Writes the heartbeats that are due. A fault is met again by whoever reads or commits.
    async fn beat(&self, joined: &Arc<Joined>) {
        let (settings, names, revision) = (self.settings.clone(), self.names.clone(), self.revision.clone());
        let (joined, id) = (Arc::clone(joined), self.transactional_id.clone());
        let beat = move || joined.beat(&settings, &names, &names.vectors(&revision), &id);
        match spawn_blocking(beat).await.unwrap_or_else(|fault| Err(LogError::Task(fault))) {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "heartbeats"),
        }
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

    /// See [`super::super::EmbedLog::fetched`].
    pub fn fetched(&self) -> u64 {
        self.joined.as_ref().map_or(0, |joined| joined.feed.waiting())
    }

    /// See [`super::super::EmbedLog::lag`].
    pub fn lag(&self) -> Option<u64> {
        let Joined { feed, standing, .. } = &**self.joined.as_ref()?;
        lock(standing).lag(feed.tenures(), &feed.held()?)
    }

    /// See [`super::super::EmbedLog::position`].
    pub fn position(&self) -> Option<u64> {
        let Joined { feed, standing, .. } = &**self.joined.as_ref()?;
        lock(standing).position(feed.tenures(), &feed.held()?)
    }

    /// See [`super::super::EmbedLog::can_look`].
    pub fn can_look(&self) -> bool {
        self.pending.is_none() && self.joined.is_some()
    }

    /// See [`super::super::EmbedLog::look`].
    pub async fn look(&mut self) -> Result<bool, LogError> {
        let Some(joined) = self.joined.clone() else { return Ok(false) };
        let changes = self.names.changes.clone();
        let look = move || joined.look(&changes);
        spawn_blocking(look).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))
    }

    /// See [`super::super::EmbedLog::commit`]. Nothing is written for a partition that was taken away.
    pub async fn commit(
        &mut self,
        vectors: Vec<Outgoing>,
        dead_letters: Vec<Record>,
        ends: &BTreeMap<Partition, u64>,
    ) -> Result<Vec<Place>, LogError> {
        let joined = self.joined().await?;
        let (settings, names) = (self.settings.clone(), self.names.clone());
        let count = vectors.len();
        let mut records = writer::place(&names.vectors(&self.revision), settings.partitions, vectors);
        let bytes_max = self.limits.record_bytes_max();
        records.extend(dead_letters.into_iter().map(|letter| letters::place(&settings, &names, letter, bytes_max)));
        let (ends, revocations, id) = (ends.clone(), self.revocations, self.transactional_id.clone());
        let commit = move || joined.commit(&settings, &names, &id, &records, &ends, revocations);
        let committed = spawn_blocking(commit).await.unwrap_or_else(|fault| Err(LogError::Task(fault)));
        self.uncertain |= committed.is_err();
        // The dead letters follow, in a topic of their own.
        committed.map(|mut places| {
            places.truncate(count);
            places
        })
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
        self.pending = None;
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
            Wanted { name: &vectors, partitions },
            Wanted { name: &names.dead_letters, partitions },
            Wanted { name: &names.state, partitions: 1 },
            Wanted { name: &names.changes, partitions },
        ];
        if names.is_foreign {
            topics::check_foreign(&settings, &names.changes).await?;
            self.limits = topics::ensure(&settings, &wanted[..3], &[]).await?;
            topics::warn_of_retention(&settings, &names.changes).await?;
        } else {
            self.limits = topics::ensure(&settings, &wanted, &[]).await?;
        }
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
    let feed = Feed::join(&config, &names.changes)?;
    Ok(Joined {
        feed,
        marks: Mutex::default(),
        done: Mutex::default(),
        standing: Mutex::default(),
        writers: Mutex::default(),
    })
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
    let missing = (0..settings.partitions).filter(|partition| !known.contains_key(partition));
    // Others may have had their topic forget its first records.
    let begins = missing.map(|p| Ok((p, client::bounds(&consumer, &names.changes, p)?.0)));
    let begins: BTreeMap<Partition, u64> = begins.collect::<Result<_, KafkaError>>().map_err(&fault)?;
    if !begins.is_empty() {
        let offsets = client::offsets(&names.changes, &begins).map_err(&fault)?;
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
    ) -> Result<Vec<Place>, LogError> {
        let _no_rebalance = self.feed.transaction();
        if self.feed.revocations() != revocations || !self.feed.owns(ends.keys()) {
            return Err(LogError::Revoked { topic: names.changes.clone() });
        }
        let fault = client::fault("commit to", &names.changes);
        let group = self.feed.consumer().group_metadata();
        let group = group.ok_or_else(|| LogError::Revoked { topic: names.changes.clone() })?;
        // Who was thrown out of the group has a membership that names no member, and brokers let a transaction with that
        // pass. Asked after it was taken: the client marks its partitions as lost in the same step.
        if self.feed.consumer().assignment_lost() {
            return Err(LogError::Revoked { topic: names.changes.clone() });
        }
        let offsets = client::offsets(&names.changes, ends).map_err(&fault)?;
        let written = self
            .write(settings, transactional_id, |writer| writer.transact(records, Some((offsets, group))))
            .map_err(&fault)?;
        self.feed.forget_below(ends);
        lock(&self.done).extend(ends);
        lock(&self.standing).moved(ends);
        Ok(written.places)
    }

    /// Writes with the writer whose turn it is.
    fn write<T>(
        &self,
        settings: &Settings,
        transactional_id: &str,
        write: impl FnOnce(&Writer) -> Result<T, KafkaError>,
    ) -> Result<T, KafkaError> {
        let mut held = lock(&self.writers);
        let turn = held.turn;
        let writer = match held.writers[turn].take() {
            Some(writer) => writer,
            None => Writer::open(settings, &format!("{transactional_id}.{turn}"))?,
        };
        let written = write(&writer)?;
        // A writer that failed is not kept, and has the next turn too: its successor settles what it left.
        held.writers[turn] = Some(writer);
        held.turn = 1 - turn;
        Ok(written)
    }

    /// Writes heartbeats for the partitions whose mark is passed, and marks their ends anew.
    fn beat(&self, settings: &Settings, names: &Names, vectors: &str, transactional_id: &str) -> Result<(), LogError> {
        let _no_rebalance = self.feed.transaction();
        let fault = client::fault("write heartbeats to", vectors);
        let owned = self.feed.owned();
        let mut marks = lock(&self.marks);
        marks.keep(&owned);
        let passed = marks.passed(&lock(&self.done), &self.feed.drained());
        let unmarked: Vec<Partition> = marks.without(&owned).collect();
        let as_of_ms = now_ms();
        for partition in unmarked {
            let (_, end) = client::bounds(self.feed.consumer(), &names.changes, partition).map_err(&fault)?;
            marks.set(partition, as_of_ms, end);
        }
        if passed.is_empty() {
            return Ok(());
        }
        let beats = passed.into_iter().map(|(partition, as_of_ms)| {
            Outgoing::To(partition, VectorEvent::Heartbeat { as_of_ms }.to_record(now_ms()))
        });
        let records = writer::place(vectors, settings.partitions, beats.collect());
        self.write(settings, transactional_id, |writer| writer.transact(&records, None)).map(drop).map_err(&fault)
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
        let begun_key = begun_key(revision);
        let keys: BTreeMap<Partition, String> =
            replays.keys().map(|partition| (*partition, format!("replay.{revision}.{partition}"))).collect();
        let wanted: Vec<&str> = keys.values().chain([&begun_key]).map(String::as_str).collect();
        let known = state::read_each(settings, &names.state, &wanted)?;
        let began: Begun =
            known.get(&*begun_key).and_then(|value| serde_json::from_slice(value).ok()).unwrap_or_default();
        let (reader, mut beginnings) = (client::reader(settings).map_err(&fault)?, BTreeMap::new());
        for (&partition, &offset) in replays {
            let done = known.get(&*keys[&partition]).and_then(|value| serde_json::from_slice::<u64>(value).ok());
            let done = done.map_or(0, |done| done + 1);
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
            for partition in beginnings.keys() {
                state::write(settings, &names.state, &keys[partition], replays[partition].to_string().as_bytes())?;
            }
            tracing::info!(topic = names.changes, partitions = ?beginnings.keys(), "embedding once more from the beginning");
        }
        lock(&self.standing).moved(&beginnings);
        self.feed.seek(beginnings);
        self.feed.rewind();
        Ok(())
    }

    /// Asks the brokers what `standing` lacks. `false`: the group has not said yet which partitions are ours.
    fn look(&self, topic: &str) -> Result<bool, LogError> {
        let (tenure, Some(held)) = (self.feed.tenures(), self.feed.held()) else { return Ok(false) };
        if lock(&self.standing).lacks_positions(tenure, &held) {
            let positions = self.committed(topic)?;
            lock(&self.standing).begins(tenure, positions);
        }
        if held.values().any(|held| !held.is_all) {
            let ends = self.feed.ends().map_err(client::fault("ask for the ends of", topic))?;
            lock(&self.standing).ends(ends);
        }
        Ok(true)
    }

    /// The group's positions of the partitions that are ours.
    fn committed(&self, topic: &str) -> Result<BTreeMap<Partition, u64>, LogError> {
        let fault = client::fault("ask for the positions in", topic);
        let ours = self.feed.consumer().assignment().map_err(&fault)?;
        let list = self.feed.consumer().committed_offsets(ours, PATIENCE).map_err(&fault)?;
        Ok(positions(&list))
    }
}

/// The positions of a consumer's group in all partitions where it has any.
pub(super) fn committed(
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
    format!("{}-{}-{}", whoami::hostname().unwrap_or_default(), std::process::id(), now_ms())
}
