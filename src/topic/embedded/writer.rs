//! The one thread that writes the log: plans transactions, compacts, syncs once for all that came together. Serves no reads.
//!
//! **Invariant:** what is published to readers and acknowledged to writers was synced before. A write that fails ends
//! the writer: what it left on disk is not known until the log is opened again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc as threads;

use tokio::sync::{mpsc, oneshot};

use super::super::partition::partition_of;
use super::super::trail::Place;
use super::super::{CaptureState, LogError, Offsets, Outgoing, Partition, Stored, lock};
use super::layout::{self, Latest, RecordKind, TopicId, kind};
use super::shared::{Shared, Topic};
use crate::event::{BARRIER_KEY, Record};

/// Transactions that share one sync at most: more would only make the first ones wait.
const GROUP_MAX: usize = 64;
/// Records that one step of a purge removes: a step holds up other transactions for some milliseconds.
const PURGE_STEP: usize = 256;
/// Tombstones that one step of a prune removes, for the same reason.
pub(super) const PRUNE_STEP: usize = 256;

/// Where the answer goes. Nobody need be waiting for it any more.
pub(super) type Done<T> = oneshot::Sender<Result<T, LogError>>;

pub(super) enum Command {
    /// Without a state, capture's stays as it is.
    Append {
        records: Vec<Outgoing>,
        state: Option<CaptureState>,
        done: Done<Vec<Place>>,
    },
    Commit {
        topic: Arc<Topic>,
        epoch: u64,
        vectors: Vec<Outgoing>,
        dead_letters: Vec<Record>,
        upto: Offsets,
        done: Done<Vec<Place>>,
    },
    /// Puts partitions back to their beginning for the replay whose record stands at this offset.
    Replay {
        topic: Arc<Topic>,
        epoch: u64,
        replays: BTreeMap<Partition, u64>,
        done: Done<Vec<Place>>,
    },
    /// Removes at most [`PRUNE_STEP`] tombstones and barriers that are older than `before_ms` and stand below `below`.
    Prune {
        topic: Arc<Topic>,
        partition: Partition,
        below: u64,
        before_ms: i64,
        done: Done<u64>,
    },
    /// Takes records with the offsets that they have in another log, and sets numbers of the topic's partitions by their kinds.
    Import {
        topic: Arc<Topic>,
        records: Vec<Stored>,
        numbers: Vec<(u8, Partition, u64)>,
        done: Done<()>,
    },
    /// Answers when all before it is durable, and writes nothing until the other end of `released` is gone.
    Hold {
        done: Done<()>,
        released: threads::Receiver<()>,
    },
    Close {
        done: Done<()>,
    },
}

/// A transaction that is written and not yet durable, and what is to happen when it is.
enum Written {
    Append(Option<CaptureState>, Vec<Place>, Done<Vec<Place>>),
    Commit(Arc<Topic>, Offsets, Vec<Place>, Done<Vec<Place>>),
    Prune(u64, Done<u64>),
    Import(Done<()>),
    Hold(Done<()>, threads::Receiver<()>),
    Close(Done<()>),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// Next offsets to give out, of all that is written.
    next: HashMap<TopicId, Offsets>,
    /// Topics whose ends have moved since the last sync.
    touched: HashMap<TopicId, Arc<Topic>>,
    /// Barriers whose older records are still to be removed.
    purges: BTreeMap<(TopicId, Partition), u64>,
}

/// One transaction as it grows.
#[derive(Default)]
struct Plan {
    batch: sled::Batch,
    next: Vec<(Arc<Topic>, Offsets)>,
    barriers: Vec<(TopicId, Partition, u64)>,
}

impl Writer {
    /// `purges` are the barriers that the last process had not finished with.
    pub fn new(shared: Arc<Shared>, purges: BTreeMap<(TopicId, Partition), u64>) -> Writer {
        Writer { shared, next: HashMap::new(), touched: HashMap::new(), purges }
    }

    /// Serves until closed, until every sender is gone, or until a write fails.
    pub fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let shared = self.shared.clone();
        // Storage beneath may panic on damage. The writer then ends like after any other failed write.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve(&mut queue)));
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => shared.fail(&error),
            Err(_) => shared.fail(&shared.damaged("a page")),
        }
        shared.stopped.cancel();
    }

    fn serve(&mut self, queue: &mut mpsc::Receiver<Command>) -> Result<(), LogError> {
        loop {
            let first = if self.purges.is_empty() {
                queue.blocking_recv()
            } else {
                self.purge_step()?;
                match queue.try_recv() {
                    Ok(command) => Some(command),
                    Err(mpsc::error::TryRecvError::Empty) => continue,
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                }
            };
            let Some(first) = first else { return self.shared.sync() };
            if self.group(first, queue)? {
                return Ok(());
            }
        }
    }

    /// Writes what is waiting, syncs once, then answers. Says whether the log was closed.
    fn group(&mut self, first: Command, queue: &mut mpsc::Receiver<Command>) -> Result<bool, LogError> {
        let mut written = Vec::new();
        let mut waiting = Some(first);
        while let Some(command) = waiting.take() {
            if let Err(error) = self.write(command, &mut written) {
                self.shared.fail(&error);
                answer_failed(&self.shared, written);
                return Err(error);
            }
            if written.len() < GROUP_MAX && !matches!(written.last(), Some(Written::Hold(..))) {
                waiting = queue.try_recv().ok();
            }
        }
        if let Err(error) = self.shared.sync() {
            self.shared.fail(&error);
            answer_failed(&self.shared, written);
            return Err(error);
        }
        Ok(self.publish(written))
    }

    fn write(&mut self, command: Command, written: &mut Vec<Written>) -> Result<(), LogError> {
        match command {
            Command::Append { records, state, done } => match self.append(records, state.as_ref()) {
                Ok(places) => written.push(Written::Append(state, places, done)),
                Err(error) => return refuse(&self.shared, error, done),
            },
            Command::Commit { topic, epoch, vectors, dead_letters, upto, done } => {
                match self.commit(&topic, epoch, vectors, dead_letters, &upto) {
                    Ok(places) => written.push(Written::Commit(topic, upto, places, done)),
                    Err(error) => return refuse(&self.shared, error, done),
                }
            }
            Command::Replay { topic, epoch, replays, done } => match self.replay(&topic, epoch, &replays) {
                Ok(upto) => written.push(Written::Commit(topic, upto, vec![], done)),
                Err(error) => return refuse(&self.shared, error, done),
            },
            Command::Prune { topic, partition, below, before_ms, done } => {
                match self.prune(&topic, partition, below, before_ms) {
                    Ok(count) => written.push(Written::Prune(count, done)),
                    Err(error) => return refuse(&self.shared, error, done),
                }
            }
            Command::Import { topic, records, numbers, done } => match self.import(&topic, records, numbers) {
                Ok(()) => written.push(Written::Import(done)),
                Err(error) => return refuse(&self.shared, error, done),
            },
            Command::Hold { done, released } => written.push(Written::Hold(done, released)),
            Command::Close { done } => written.push(Written::Close(done)),
        }
        Ok(())
    }

    fn publish(&mut self, written: Vec<Written>) -> bool {
        for (id, topic) in self.touched.drain() {
            if let Some(next) = self.next.get(&id) {
                topic.ends.send_replace(next.clone());
            }
        }
        let mut closed = false;
        for one in written {
            match one {
                Written::Append(state, places, done) => {
                    if let Some(state) = state {
                        *lock(&self.shared.state) = Some(state);
                    }
                    let _ = done.send(Ok(places));
                }
                Written::Commit(topic, upto, places, done) => {
                    *lock(&topic.committed) = upto;
                    let _ = done.send(Ok(places));
                }
                Written::Prune(count, done) => drop(done.send(Ok(count))),
                Written::Import(done) => drop(done.send(Ok(()))),
                // The last of its group: nothing that is written is not answered yet.
                Written::Hold(done, released) => {
                    if done.send(Ok(())).is_ok() {
                        let _ = released.recv();
                    }
                }
                Written::Close(done) => {
                    closed = true;
                    let _ = done.send(Ok(()));
                }
            }
        }
        closed
    }

    fn append(&mut self, records: Vec<Outgoing>, state: Option<&CaptureState>) -> Result<Vec<Place>, LogError> {
        let changes = self.shared.changes.clone();
        let mut plan = Plan::default();
        let places = self.place(&mut plan, &changes, records)?;
        if let Some(state) = state {
            let key = layout::state_key(changes.id);
            let json = serde_json::to_vec(state)
                .map_err(|error| self.shared.refused("append to", format!("capture's state: {error}")))?;
            let value = layout::sealed(&key, &json);
            plan.batch.insert(key, value);
        }
        self.apply(plan).map(|()| places)
    }

    /// Gives the positions as they are then.
    fn replay(
        &mut self,
        topic: &Arc<Topic>,
        epoch: u64,
        replays: &BTreeMap<Partition, u64>,
    ) -> Result<Offsets, LogError> {
        if topic.epoch.load(Ordering::SeqCst) != epoch {
            return Err(LogError::Fenced { topic: topic.name.clone() });
        }
        let mut positions = lock(&topic.committed).clone();
        let mut plan = Plan::default();
        for (&partition, &offset) in replays {
            for (kind, number) in [(kind::POSITION, 0), (kind::REPLAYED, offset + 1)] {
                let key = layout::partition_key(kind, topic.id, partition);
                let value = layout::number(&key, number);
                plan.batch.insert(key, value);
            }
            positions[usize::from(partition)] = 0;
        }
        self.apply(plan)?;
        Ok(positions)
    }

    fn commit(
        &mut self,
        topic: &Arc<Topic>,
        epoch: u64,
        vectors: Vec<Outgoing>,
        dead_letters: Vec<Record>,
        upto: &Offsets,
    ) -> Result<Vec<Place>, LogError> {
        if topic.epoch.load(Ordering::SeqCst) != epoch {
            return Err(LogError::Fenced { topic: topic.name.clone() });
        }
        let mut plan = Plan::default();
        let places = self.place(&mut plan, topic, vectors)?;
        let dead = self.shared.dead.clone();
        self.place(&mut plan, &dead, dead_letters.into_iter().map(Outgoing::ByKey).collect())?;
        for (partition, position) in (0..).zip(upto) {
            let key = layout::partition_key(kind::POSITION, topic.id, partition);
            let value = layout::number(&key, *position);
            plan.batch.insert(key, value);
        }
        self.apply(plan).map(|()| places)
    }

    fn import(
        &mut self,
        topic: &Arc<Topic>,
        records: Vec<Stored>,
        numbers: Vec<(u8, Partition, u64)>,
    ) -> Result<(), LogError> {
        let mut plan = Plan::default();
        let mut seen = HashSet::with_capacity(records.len());
        let mut last: Vec<Stored> = records.into_iter().rev().collect();
        last.retain(|Stored { partition, record, .. }| {
            record.key.is_empty() || seen.insert((*partition, record.key.clone()))
        });
        for Stored { partition, offset, record } in last.iter().rev() {
            self.store(&mut plan, topic.id, *partition, *offset, record)?;
        }
        for (kind, partition, number) in numbers.into_iter().filter(|(.., number)| *number > 0) {
            let key = layout::partition_key(kind, topic.id, partition);
            let value = layout::number(&key, number);
            plan.batch.insert(key, value);
        }
        self.apply(plan)
    }

    /// Gives the records their offsets. A newer record of a key takes the place of the older one, also inside `records`:
    /// offsets are given to all, only the last one is stored. Gives the places.
    fn place(&mut self, plan: &mut Plan, topic: &Arc<Topic>, records: Vec<Outgoing>) -> Result<Vec<Place>, LogError> {
        if records.is_empty() {
            return Ok(vec![]);
        }
        let mut next = self.next_offsets(topic)?;
        let placed = self.spread(&mut next, records)?;
        let mut seen = HashSet::with_capacity(placed.len());
        let last: Vec<bool> = placed
            .iter()
            .rev()
            // A record without a key has nothing to be compacted by.
            .map(|(partition, _, record)| record.key.is_empty() || seen.insert((*partition, record.key.clone())))
            .collect();
        let mut touched = vec![false; next.len()];
        for ((partition, offset, record), last) in placed.iter().zip(last.into_iter().rev()) {
            touched[usize::from(*partition)] = true;
            if last {
                self.store(plan, topic.id, *partition, *offset, record)?;
            }
        }
        for (partition, _) in (0..).zip(touched).filter(|(_, touched)| *touched) {
            let key = layout::partition_key(kind::END, topic.id, partition);
            let value = layout::number(&key, next[usize::from(partition)]);
            plan.batch.insert(key, value);
        }
        plan.next.push((topic.clone(), next));
        Ok(placed.into_iter().map(|(partition, offset, _)| (partition, offset)).collect())
    }

    fn spread(&self, next: &mut Offsets, records: Vec<Outgoing>) -> Result<Vec<(Partition, u64, Record)>, LogError> {
        let partitions = self.shared.partitions;
        let mut placed = Vec::with_capacity(records.len());
        let mut put = |partition: Partition, record: Record| {
            let next = &mut next[usize::from(partition)];
            placed.push((partition, *next, record));
            *next += 1;
        };
        for outgoing in records {
            match outgoing {
                Outgoing::ByKey(record) => put(partition_of(&record.key, partitions), record),
                Outgoing::To(partition, record) if partition < partitions => put(partition, record),
                Outgoing::To(partition, _) => {
                    let reason = format!("partition {partition}, the log has {partitions}");
                    return Err(self.shared.refused("append to", reason));
                }
                Outgoing::Everywhere(record) => (0..partitions).for_each(|partition| put(partition, record.clone())),
            }
        }
        Ok(placed)
    }

    fn store(
        &self,
        plan: &mut Plan,
        topic: TopicId,
        partition: Partition,
        offset: u64,
        record: &Record,
    ) -> Result<(), LogError> {
        let meaning = kind_of(record);
        let pieces = layout::pieces(topic, partition, offset, record);
        if !record.key.is_empty() {
            let place = layout::latest_key(topic, partition, &record.key);
            if let Some(value) = self.shared.db.get(&place).map_err(self.shared.storage("read"))? {
                let (older, _) =
                    Latest::decode(&place, &value).map_err(|_| self.shared.damaged("the index of keys"))?;
                remove(&mut plan.batch, topic, partition, &older);
            }
            let latest = Latest { offset, kind: meaning, pieces: pieces.len() as u32 };
            let value = layout::seal(&place, latest.encode(&record.key));
            plan.batch.insert(place, value);
        }
        for (key, value) in pieces {
            plan.batch.insert(key, value);
        }
        if meaning != RecordKind::Live {
            let place = layout::offset_key(kind::EXPIRING, topic, partition, offset);
            let value = layout::expiring(&place, record.timestamp_ms, &record.key);
            plan.batch.insert(place, value);
        }
        if meaning == RecordKind::Barrier {
            let place = layout::partition_key(kind::BARRIER, topic, partition);
            let value = layout::number(&place, offset);
            plan.batch.insert(place, value);
            plan.barriers.push((topic, partition, offset));
        }
        Ok(())
    }

    fn next_offsets(&mut self, topic: &Topic) -> Result<Offsets, LogError> {
        if let Some(next) = self.next.get(&topic.id) {
            return Ok(next.clone());
        }
        (0..self.shared.partitions).map(|partition| self.shared.number(kind::END, topic.id, partition)).collect()
    }

    fn apply(&mut self, plan: Plan) -> Result<(), LogError> {
        self.shared.db.apply_batch(plan.batch).map_err(self.shared.storage("write"))?;
        for (topic, next) in plan.next {
            self.next.insert(topic.id, next);
            self.touched.insert(topic.id, topic);
        }
        for (topic, partition, offset) in plan.barriers {
            self.purges.insert((topic, partition), offset);
        }
        Ok(())
    }

    /// Removes some of the records below one durable barrier; they are dead, since every reader purges what it holds
    /// below the barrier anyway. Needs no sync: after a crash the barrier's mark is still there and the purge goes on.
    fn purge_step(&mut self) -> Result<(), LogError> {
        let Some((&(topic, partition), &below)) = self.purges.first_key_value() else { return Ok(()) };
        let mut batch = sled::Batch::default();
        let mut count = 0;
        for found in self.shared.records(topic, partition, 0, below).take(PURGE_STEP) {
            let found = found?;
            let (offset, record) = (found.stored.offset, found.stored.record);
            remove(&mut batch, topic, partition, &Latest { offset, kind: kind_of(&record), pieces: found.pieces });
            if !record.key.is_empty() {
                let place = layout::latest_key(topic, partition, &record.key);
                let latest = self.shared.db.get(&place).map_err(self.shared.storage("read"))?;
                let latest = latest.and_then(|value| Latest::decode(&place, &value).ok());
                if latest.is_some_and(|(latest, _)| latest.offset == offset) {
                    batch.remove(place);
                }
            }
            count += 1;
        }
        if count < PURGE_STEP {
            batch.remove(layout::partition_key(kind::BARRIER, topic, partition));
        }
        self.shared.db.apply_batch(batch).map_err(self.shared.storage("purge"))?;
        if count < PURGE_STEP {
            self.purges.remove(&(topic, partition));
            self.shared.sync()?;
        }
        Ok(())
    }

    fn prune(&mut self, topic: &Topic, partition: Partition, below: u64, before_ms: i64) -> Result<u64, LogError> {
        // While the records below a barrier are being removed, the barrier is still needed.
        if self.purges.contains_key(&(topic.id, partition)) {
            return Ok(0);
        }
        let place = |offset| layout::offset_key(kind::EXPIRING, topic.id, partition, offset);
        let mut batch = sled::Batch::default();
        let (mut count, mut pruned) = (0, None);
        for entry in self.shared.db.range(place(0)..place(below)) {
            let (key, value) = entry.map_err(self.shared.storage("read"))?;
            let damaged = |_| self.shared.damaged("the list of tombstones");
            let offset = layout::offset_in(&key).map_err(damaged)?.ok_or(layout::Malformed).map_err(damaged)?;
            let (timestamp_ms, record_key) = layout::read_expiring(&key, &value).map_err(damaged)?;
            if timestamp_ms >= before_ms {
                continue;
            }
            let latest_place = layout::latest_key(topic.id, partition, record_key);
            let latest = self.shared.db.get(&latest_place).map_err(self.shared.storage("read"))?;
            let latest = latest.map(|value| Latest::decode(&latest_place, &value)).transpose().map_err(damaged)?;
            if let Some((latest, _)) = latest.filter(|(latest, _)| latest.offset == offset) {
                remove(&mut batch, topic.id, partition, &latest);
                batch.remove(latest_place);
            }
            batch.remove(key);
            pruned = Some(offset + 1);
            count += 1;
            if count == PRUNE_STEP {
                break;
            }
        }
        let Some(pruned) = pruned else { return Ok(0) };
        let mark = layout::partition_key(kind::PRUNED, topic.id, partition);
        let pruned = pruned.max(self.shared.number(kind::PRUNED, topic.id, partition)?);
        let value = layout::number(&mark, pruned);
        batch.insert(mark, value);
        self.shared.db.apply_batch(batch).map_err(self.shared.storage("prune"))?;
        Ok(count as u64)
    }
}

fn kind_of(record: &Record) -> RecordKind {
    match &record.value {
        _ if record.key == BARRIER_KEY => RecordKind::Barrier,
        Some(_) => RecordKind::Live,
        None => RecordKind::Tombstone,
    }
}

/// Removes a record with all its pieces, and its mark if it is one that expires.
fn remove(batch: &mut sled::Batch, topic: TopicId, partition: Partition, record: &Latest) {
    for piece in 0..record.pieces {
        batch.remove(layout::piece_key(topic, partition, record.offset, piece));
    }
    if record.kind != RecordKind::Live {
        batch.remove(layout::offset_key(kind::EXPIRING, topic, partition, record.offset));
    }
}

/// Hands the error to who asked. A refusal wrote nothing; any other error is the writer's end.
fn refuse<T>(shared: &Shared, error: LogError, done: Done<T>) -> Result<(), LogError> {
    let refusal = matches!(error, LogError::Refused { .. } | LogError::Fenced { .. });
    if !refusal {
        shared.fail(&error);
    }
    let _ = done.send(Err(error));
    if refusal { Ok(()) } else { Err(shared.stopped_error()) }
}

fn answer_failed(shared: &Shared, written: Vec<Written>) {
    for one in written {
        match one {
            Written::Append(_, _, done) | Written::Commit(_, _, _, done) => {
                drop(done.send(Err(shared.stopped_error())));
            }
            Written::Import(done) | Written::Hold(done, _) | Written::Close(done) => {
                drop(done.send(Err(shared.stopped_error())));
            }
            Written::Prune(_, done) => drop(done.send(Err(shared.stopped_error()))),
        }
    }
}
