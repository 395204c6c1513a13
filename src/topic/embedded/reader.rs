//! Reads the log: embed's side and the stores' side. Gives durable records only; writes through the writer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::super::trail::Place;
use super::super::{LogError, Offsets, OpenLetters, Outgoing, Partition, Stored, lock, replay};
use super::layout::kind;
use super::shared::{Shared, Topic};
use super::writer::Command;
use super::{Inner, check_expired};
use crate::event::Record;

/// Embed's side of the log: reads `changes`, writes `vectors.<revision>`. One for each revision; a newer one fences
/// this one.
pub struct EmbedLog {
    inner: Arc<Inner>,
    topic: Arc<Topic>,
    epoch: u64,
    cursor: Cursor,
    /// A replay that was found and is not begun: the offsets of its records.
    replay: BTreeMap<Partition, u64>,
}

impl EmbedLog {
    pub(super) fn new(inner: Arc<Inner>, topic: Arc<Topic>) -> Result<EmbedLog, LogError> {
        let shared = inner.shared.clone();
        let committed = lock(&topic.committed).clone();
        // What was dropped before this topic was made, it never needed.
        let began = (0..shared.partitions).map(|partition| shared.number(kind::BEGAN, topic.id, partition));
        check_expired(&shared, &shared.changes, &committed, &began.collect::<Result<_, _>>()?)?;
        let epoch = topic.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        let cursor = Cursor::new(shared.clone(), shared.changes.clone(), committed);
        Ok(EmbedLog { inner, topic, epoch, cursor, replay: BTreeMap::new() })
    }

    /// The records of `changes` after the last ones given, whether those were committed or not: at least one, at most
    /// `max_records`, and more than `max_bytes` only if the first alone has more. Waits for the first; only durable ones
    /// are given. All partitions take part in turn; inside a partition the order is that of the offsets.
    ///
    /// Cancel-safe: if the future is dropped, the next call gives the same records.
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, LogError> {
        let mut batch = self.cursor.next(max_records, max_bytes).await?;
        let (shared, topic) = (&self.inner.shared, self.topic.id);
        let done = |partition, offset| Ok(offset < shared.number(kind::REPLAYED, topic, partition)?);
        self.replay = replay::cut(&mut batch, done)?;
        Ok(batch)
    }

    /// See [`super::super::EmbedLog::has_replay`].
    pub fn has_replay(&self) -> bool {
        !self.replay.is_empty()
    }

    /// See [`super::super::EmbedLog::begin_replay`].
    pub async fn begin_replay(&mut self) -> Result<(), LogError> {
        let (topic, epoch, replays) = (self.topic.clone(), self.epoch, std::mem::take(&mut self.replay));
        self.inner.ask(|done| Command::Replay { topic, epoch, replays, done }).await?;
        self.rewind();
        Ok(())
    }

    /// Offsets after the last record given: an upper bound of the records, as compaction leaves gaps.
    pub fn lag(&self) -> u64 {
        self.cursor.lag()
    }

    /// Writes embed's outputs, its dead letters and its positions in one transaction; returns when all is durable.
    ///
    /// `vectors` are in the order of their versions within a partition: the log removes what stands before a barrier.
    /// A dead letter takes the place of an older one with the same key; without a key it is kept beside the others.
    /// If the future is dropped, the transaction may be written all the same.
    pub async fn commit(
        &mut self,
        vectors: Vec<Outgoing>,
        dead_letters: Vec<Record>,
        upto: &Offsets,
    ) -> Result<Vec<Place>, LogError> {
        let shared = &self.inner.shared;
        shared.check_len("commit to", upto)?;
        let (committed, ends) = (self.committed(), shared.changes.ends());
        for (partition, ((&position, &from), &end)) in upto.iter().zip(&committed).zip(&ends).enumerate() {
            if position < from || position > end {
                let reason =
                    format!("position {position} in partition {partition}, which goes from {from} committed to {end}");
                return Err(shared.refused("commit to", reason));
            }
        }
        shared.ensure_room()?;
        let (topic, epoch, upto) = (self.topic.clone(), self.epoch, upto.clone());
        self.inner.ask(|done| Command::Commit { topic, epoch, vectors, dead_letters, upto, done }).await
    }

    /// The next offsets of `changes` to read after a restart.
    pub fn committed(&self) -> Offsets {
        lock(&self.topic.committed).clone()
    }

    /// The open dead letters, at most `limit`.
    pub async fn open_letters(&self, limit: usize) -> Result<OpenLetters, LogError> {
        let shared = self.inner.shared.clone();
        let read = move || {
            let mut open = OpenLetters::new(limit);
            shared.visit_dead_letters(|record| open.offer(record)).map(|()| open)
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))
    }

    /// Goes back to the committed positions.
    pub fn rewind(&mut self) {
        self.cursor.positions = self.committed();
        self.replay.clear();
    }
}

/// A store's side of the log: reads `vectors.<revision>`. The store itself keeps its positions.
pub struct VectorsReader {
    cursor: Cursor,
}

impl VectorsReader {
    pub(super) fn new(shared: Arc<Shared>, topic: Arc<Topic>) -> VectorsReader {
        let start = vec![0; usize::from(shared.partitions)];
        VectorsReader { cursor: Cursor::new(shared, topic, start) }
    }

    /// Continues at these positions. [`LogError::Ahead`] if the topic does not reach that far, [`LogError::Expired`] if
    /// tombstones after them were dropped; a partition at 0 is read whole, so nothing of it can have been missed.
    /// After an error the reader is where it was.
    pub fn seek(&mut self, positions: &Offsets) -> Result<(), LogError> {
        let Cursor { shared, topic, .. } = &self.cursor;
        shared.check_len("read", positions)?;
        for (partition, (&position, end)) in (0..).zip(positions.iter().zip(topic.ends())) {
            if position > end {
                return Err(LogError::Ahead { topic: topic.name.clone(), partition, position, end });
            }
        }
        check_expired(shared, topic, positions, &vec![0; positions.len()])?;
        self.cursor.positions.clone_from(positions);
        Ok(())
    }

    /// The records after the last ones given; otherwise as [`EmbedLog::next`].
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, LogError> {
        self.cursor.next(max_records, max_bytes).await
    }

    /// The next offsets to read. To be stored with the effects of what was read.
    pub fn positions(&self) -> Offsets {
        self.cursor.positions.clone()
    }

    /// The durable ends of the topic.
    pub fn ends(&self) -> Offsets {
        self.cursor.topic.ends()
    }

    /// Offsets after the last record given: an upper bound of the records, as compaction leaves gaps.
    pub fn lag(&self) -> u64 {
        self.cursor.lag()
    }
}

/// A place in a topic.
struct Cursor {
    shared: Arc<Shared>,
    topic: Arc<Topic>,
    positions: Offsets,
    ends: watch::Receiver<Offsets>,
    /// The partition that the next batch begins with.
    turn: Partition,
}

impl Cursor {
    fn new(shared: Arc<Shared>, topic: Arc<Topic>, positions: Offsets) -> Cursor {
        let ends = topic.ends.subscribe();
        Cursor { shared, topic, positions, ends, turn: 0 }
    }

    /// One hop to a blocking thread for a batch: a read that misses the cache waits for the disk, and any read waits
    /// for a transaction that is being applied, up to some 20 ms.
    async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, LogError> {
        loop {
            let ends = self.more().await?;
            let (shared, topic, positions, turn) =
                (self.shared.clone(), self.topic.clone(), self.positions.clone(), self.turn);
            let scan = move || {
                let mut batch = Batch::new(&shared, &topic, positions, &ends, max_records, max_bytes);
                batch.fill(turn)?;
                Ok((batch.records, batch.positions))
            };
            let (records, positions) = match tokio::task::spawn_blocking(scan).await {
                Ok(scanned) => scanned?,
                Err(error) if error.is_panic() => return Err(self.shared.damaged("a page")),
                Err(_) => return Err(self.shared.stopped_error()),
            };
            self.positions = positions;
            self.turn = (self.turn + 1) % self.shared.partitions;
            // Compaction may have removed all there was.
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }

    /// Waits until there is something behind the positions.
    async fn more(&mut self) -> Result<Offsets, LogError> {
        let Cursor { shared, positions, ends, .. } = self;
        let behind = |ends: &Offsets| positions.iter().zip(ends).any(|(position, end)| position < end);
        tokio::select! {
            biased;
            () = shared.stopped.cancelled() => Err(shared.stopped_error()),
            ends = ends.wait_for(behind) => ends.map(|ends| ends.clone()).map_err(|_| shared.stopped_error()),
        }
    }

    fn lag(&self) -> u64 {
        self.topic.ends().iter().zip(&self.positions).map(|(end, position)| end.saturating_sub(*position)).sum()
    }
}

/// A batch of records as it fills.
struct Batch<'a> {
    shared: &'a Shared,
    topic: &'a Topic,
    ends: &'a Offsets,
    positions: Offsets,
    records: Vec<Stored>,
    records_max: usize,
    bytes_left: usize,
}

impl<'a> Batch<'a> {
    fn new(
        shared: &'a Shared,
        topic: &'a Topic,
        positions: Offsets,
        ends: &'a Offsets,
        max_records: usize,
        max_bytes: usize,
    ) -> Batch<'a> {
        let records_max = max_records.max(1);
        Batch { shared, topic, ends, positions, records: Vec::new(), records_max, bytes_left: max_bytes }
    }

    /// Gives each partition an equal share of what is still free, round by round, beginning with `turn`.
    fn fill(&mut self, turn: Partition) -> Result<(), LogError> {
        let all = self.shared.partitions;
        let mut open: Vec<Partition> =
            (0..all).map(|n| ((u32::from(turn) + u32::from(n)) % u32::from(all)) as u16).collect();
        while !open.is_empty() && self.records.len() < self.records_max {
            let share = (self.records_max - self.records.len()).div_ceil(open.len());
            let bytes = self.bytes_left.div_ceil(open.len());
            let mut still = Vec::with_capacity(open.len());
            for partition in open {
                if self.take(partition, share, bytes)? {
                    still.push(partition);
                }
            }
            open = still;
        }
        Ok(())
    }

    /// Takes up to `share` records and about `bytes` bytes from a partition. Says whether there may be more that fits.
    fn take(&mut self, partition: Partition, share: usize, bytes: usize) -> Result<bool, LogError> {
        let at = usize::from(partition);
        let (from, end) = (self.positions[at], self.ends[at]);
        if from >= end {
            return Ok(false);
        }
        let (mut count, mut taken) = (0, 0);
        for found in self.shared.records(self.topic.id, partition, from, end) {
            if count == share || self.records.len() == self.records_max {
                return Ok(true);
            }
            let found = found?;
            if found.size > self.bytes_left && !self.records.is_empty() {
                return Ok(false);
            }
            if count > 0 && taken + found.size > bytes {
                return Ok(true);
            }
            self.positions[at] = found.stored.offset + 1;
            self.bytes_left = self.bytes_left.saturating_sub(found.size);
            (count, taken) = (count + 1, taken + found.size);
            self.records.push(found.stored);
        }
        self.positions[at] = end;
        Ok(false)
    }
}

/// Up to where tombstones of a partition were dropped.
pub(super) fn pruned(shared: &Shared, topic: &Topic, partition: Partition) -> Result<u64, LogError> {
    shared.number(kind::PRUNED, topic.id, partition)
}
