//! The store in Qdrant, one generation of it: rows as points, written under conditions, positions beside them. Takes
//! events that others have read from `vectors`; it reads no log and moves no alias.
//!
//! **Invariant:** an older version never replaces a newer one, nor comes back after a delete; positions move only behind
//! writes that Qdrant has called Completed; whole points are written, never parts of them.

mod adopt;
mod collection;
mod copy;
mod diagnose;
mod error;
mod filter;
mod generations;
mod held;
mod inventory;
pub mod lines;
mod link;
mod load;
mod plan;
mod point;
mod snapshots;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateFieldIndexCollectionBuilder, DeleteCollection, DeletePointsBuilder,
    Filter as QdrantFilter, GetCollectionInfoRequest, GetPointsBuilder, PayloadIncludeSelector, PointId,
    QueryPointsBuilder, Range, RetrievedPoint, ScoredPoint, ScrollPoints, ScrollPointsBuilder, SearchParamsBuilder,
    UpsertPointsBuilder, vector_output,
};
use tokio::sync::Mutex as AsyncMutex;

pub use self::adopt::Adopted;
use self::collection::Refusal;
pub use self::diagnose::{Spoken, remedy, rest_remedy};
pub use self::error::QdrantError;
pub use self::generations::{Look, QdrantGeneration, QdrantGenerations};
pub use self::held::{Listing, Stray};
pub use self::inventory::{Contents, Listed};
use self::link::Link;
pub use self::load::{Begun, Kept, LoadedRow, Loading, RowLoading, Settled};
use self::plan::{Step, Write};
use self::point::{Origin, Progress};
pub use self::snapshots::{Snapshot, SnapshotError, Snapshots};
use super::filter::Filter;
use super::matrix::rank;
use super::mirror::{Applied, Hit};
use super::scan::{DIMENSION, Vector};
use crate::clock::now_ms;
use crate::config::Qdrant as Server;
use crate::event::{EmbeddedRow, RowKey, VectorEvent, Version, Window};
use crate::topic::{Offsets, Partition};

/// Points asked for at once by their ids.
const GET_MAX: usize = 1000;
/// Points asked for beyond those that are wanted, since a row can have several.
const RESERVE: usize = 8;
/// Points of a search at most; rows whose windows take up more than these are left out.
const FOUND_MAX: usize = 20_000;

/// What a store is made for.
#[derive(Clone, Debug)]
pub struct QdrantSettings {
    /// The server.
    pub server: Server,
    /// The generation's own name, not the alias.
    pub collection: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// Revision of the embedding.
    pub revision: String,
    /// Partitions of `vectors`.
    pub partitions: Partition,
    /// What tells the log from every other, since positions of two logs do not compare; `None`: whatever the log, for looking.
    pub log: Option<String>,
    /// Fields of a document, in the order in which searches give them.
    pub payload: Vec<String>,
    /// Those that searches may filter by.
    pub filters: Vec<String>,
}

/// How a search finds the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// By Qdrant's index, where it has one.
    Indexed,
    /// By looking at every point.
    Exact,
}

/// One generation of one pipeline and revision in Qdrant. Clones are the same store.
#[derive(Clone)]
pub struct QdrantStore(Arc<Inner>);

struct Inner {
    link: Link,
    settings: QdrantSettings,
    /// One writer at a time.
    writer: AsyncMutex<()>,
    /// What Qdrant durably has, as of the last look or write.
    progress: Mutex<Vec<Progress>>,
    /// Purges to be made once more.
    again: Mutex<Vec<(Instant, Partition, u64)>>,
}

impl QdrantStore {
    /// Prepares a connection; makes none. Called inside of a runtime.
    pub fn new(settings: QdrantSettings) -> Result<QdrantStore, QdrantError> {
        Ok(QdrantStore::over(Link::new(&settings)?, settings))
    }

    fn over(link: Link, settings: QdrantSettings) -> QdrantStore {
        QdrantStore(Arc::new(Inner {
            link,
            progress: Mutex::new(vec![Progress::default(); usize::from(settings.partitions)]),
            writer: AsyncMutex::default(),
            again: Mutex::default(),
            settings,
        }))
    }

    /// Makes the collection and its indexes where they are not there, and opens it. An existing one stays as it is.
    pub async fn create(&self) -> Result<(), QdrantError> {
        let inner = &*self.0;
        inner.link.check_version().await?;
        let request = collection::create(&inner.settings);
        match inner.link.call("create", inner.link.collections().create(request)).await {
            Err(error) if error.is_there_already() => {}
            created => drop(created?),
        }
        inner.check_collection().await?;
        for (field, kind) in collection::indexes(&inner.settings) {
            let request = CreateFieldIndexCollectionBuilder::new(&inner.settings.collection, field, kind).wait(true);
            inner.link.completed("index", inner.link.points().create_field_index(request.build())).await?;
        }
        self.claim().await?;
        self.open().await
    }

    /// Checks the server and the collection and reads the positions. Also after a fault: a write may have happened that
    /// was not answered, and a collection that was restored has the positions that it had then.
    pub async fn open(&self) -> Result<(), QdrantError> {
        let inner = &*self.0;
        let _writer = inner.writer.lock().await;
        inner.link.check_version().await?;
        inner.check_collection().await?;
        *lock(&inner.progress) = inner.read_progress().await?;
        Ok(())
    }

    /// Says in the collection, before the first row comes, which log it is filled from.
    async fn claim(&self) -> Result<(), QdrantError> {
        let inner = &*self.0;
        let _writer = inner.writer.lock().await;
        if inner.settings.log.is_none() || inner.read_positions().await?.iter().any(Option::is_some) {
            return Ok(());
        }
        let mut write = Write::default();
        for partition in 0..inner.settings.partitions {
            let position = point::position(inner.origin(), partition, Progress::default());
            write.add(vec![position], point::POSITION, 0);
        }
        inner.write(vec![write]).await
    }

    /// Says of a generation that came from a backup that this log goes on from its positions, whatever log they were of; then
    /// opens it. Nobody else may write to it yet.
    pub async fn adopt(&self) -> Result<(), QdrantError> {
        let inner = &*self.0;
        let anonymous = QdrantSettings { log: None, ..inner.settings.clone() };
        let found = QdrantStore::over(inner.link.clone(), anonymous);
        found.open().await?;
        let progress = lock(&found.0.progress).clone();
        let positions = (0..).zip(&progress);
        let points = positions.map(|(partition, progress)| point::position(inner.origin(), partition, *progress));
        let request = UpsertPointsBuilder::new(&inner.settings.collection, points.collect::<Vec<_>>()).wait(true);
        inner.link.completed("adopt", inner.link.points().upsert(request.build())).await?;
        self.open().await
    }

    /// The next offset of `vectors` to take in each partition, as of the last write or `open`; all before is durable.
    pub fn positions(&self) -> Offsets {
        lock(&self.0.progress).iter().map(|progress| progress.position).collect()
    }

    /// The moment up to which it holds everything that was committed in the source, milliseconds since the Unix epoch;
    /// `None`: there was no heartbeat in every partition yet.
    pub fn as_of_ms(&self) -> Option<i64> {
        lock(&self.0.progress).iter().map(|progress| progress.as_of_ms).min().filter(|as_of_ms| *as_of_ms > 0)
    }

    /// Applies events, each with its place in `vectors`, in their order. When it returns they and the positions behind
    /// them are durable. After an error the caller calls `open` and takes up the log at `positions` again: they may be
    /// anywhere between those before and those after.
    pub async fn apply(&self, batch: Vec<(Partition, u64, VectorEvent)>) -> Result<Applied, QdrantError> {
        self.apply_upto(batch, Offsets::new()).await
    }

    /// As `apply`; the positions move on to `upto` at least.
    pub async fn apply_upto(
        &self,
        batch: Vec<(Partition, u64, VectorEvent)>,
        upto: Offsets,
    ) -> Result<Applied, QdrantError> {
        let inner = &*self.0;
        let partitions = inner.settings.partitions;
        if let Some((found, ..)) = batch.iter().find(|(partition, ..)| *partition >= partitions) {
            return Err(QdrantError::Partition { found: *found, partitions });
        }
        let _writer = inner.writer.lock().await;
        let before = inner.read_progress().await?;
        let known = std::mem::replace(&mut *lock(&inner.progress), before.clone());
        for (partition, (found, known)) in (0..).zip(before.iter().zip(&known)) {
            if found.position < known.position {
                let (collection, found, stood) = (self.collection().to_owned(), found.position, known.position);
                return Err(QdrantError::Restored { collection, partition, found, stood });
            }
        }
        let mut after = before.clone();
        let plan = plan::plan(batch, &upto, &mut after, now_ms());
        let applied = inner.perform(plan, &before, &after).await?;
        *lock(&inner.progress) = after;
        Ok(applied)
    }

    /// Makes those purges once more that were made at least a request's time-out ago: what a write that came late
    /// has brought back since goes for good. Call it now and then.
    pub async fn tidy(&self) -> Result<(), QdrantError> {
        let now = Instant::now();
        let due: Vec<_> = lock(&self.0.again).iter().filter(|(due, ..)| *due <= now).copied().collect();
        for purge @ (_, partition, barrier) in due {
            self.0.purge(partition, barrier).await?;
            lock(&self.0.again).retain(|other| *other != purge);
        }
        Ok(())
    }

    /// Forgets tombstones that were stored before this time, milliseconds since the Unix epoch, and says how many.
    /// An older upsert that comes later than that would bring its row back.
    pub async fn prune(&self, older_than_ms: i64) -> Result<u64, QdrantError> {
        let older = Range { lt: Some(older_than_ms as f64), ..Range::default() };
        let filter =
            QdrantFilter::must([Condition::matches(point::DELETED, true), Condition::range(point::DELETED_AT, older)]);
        let count = self.0.count(filter.clone()).await?;
        if count > 0 {
            self.0.delete("prune", filter).await?;
        }
        Ok(count)
    }

    /// The best `limit` rows by the score of their best window, at least `min_score`: by falling score, equal scores by
    /// key. `query` has `DIMENSION` finite numbers. The deadline is the caller's, who drops this future.
    pub async fn search(
        &self,
        query: &[f32],
        limit: usize,
        min_score: f32,
        filter: &Filter,
        accuracy: Accuracy,
    ) -> Result<Vec<Hit>, QdrantError> {
        if Vector::new(query).is_none() {
            return Err(QdrantError::Query { found: query.len() });
        }
        let known = &self.0.settings.filters;
        if let Some((field, _)) = filter.conditions().iter().find(|(field, _)| !known.contains(field)) {
            return Err(QdrantError::Field { field: field.clone(), known: known.clone() });
        }
        let mut asked = (limit + RESERVE).min(FOUND_MAX);
        loop {
            let points = self.0.nearest(query, asked, min_score, filter, accuracy).await?;
            let (found, last) = (points.len(), points.last().map(|point| point.score));
            let hits = self.0.best(points).await?;
            // Equal scores are put in order here, so all that have the score of the last one must be known.
            let is_whole = hits.get(limit.saturating_sub(1)).is_some_and(|hit| Some(hit.score) > last);
            if found < asked || is_whole || asked == FOUND_MAX || limit == 0 {
                return Ok(hits.into_iter().take(limit).collect());
            }
            asked = (asked * 4).min(FOUND_MAX);
        }
    }

    /// Makes a collection of its own beside the alias of these settings, writes a point, finds it, and removes the
    /// collection; nothing of the generations is touched.
    pub async fn try_out(settings: QdrantSettings) -> Result<(), QdrantError> {
        // No name of a generation: those end with a number.
        let tag = RandomState::new().hash_one(std::process::id());
        let collection = format!("{}__check_{tag:016x}", settings.collection);
        let store = QdrantStore::new(QdrantSettings { collection, partitions: 1, ..settings })?;
        let tried = store.write_and_find().await;
        let request = DeleteCollection { collection_name: store.collection().to_owned(), timeout: None };
        let removed = store.0.link.call("remove", store.0.link.collections().delete(request)).await;
        tried.and(removed.map(drop))
    }

    async fn write_and_find(&self) -> Result<(), QdrantError> {
        self.create().await?;
        let key = RowKey::from_columns([("id".to_owned(), 1.into())].into_iter().collect());
        let mut vector = vec![0.0; DIMENSION];
        vector[0] = 1.0;
        let version = self.positions().first().copied().unwrap_or_default();
        let windows = vec![Window::new(&vector, "a trial".to_owned())];
        let row = EmbeddedRow { version, payload: "{}".to_owned(), windows, ..EmbeddedRow::default() };
        self.apply(vec![(0, version, VectorEvent::Upsert { key: key.clone(), row })]).await?;
        let found = self.search(&vector, 1, 0.5, &Filter::new(vec![]), Accuracy::Exact).await?;
        match found.first() {
            Some(hit) if hit.key == key => Ok(()),
            _ => Err(QdrantError::NotFound { collection: self.collection().to_owned() }),
        }
    }

    /// What some rows are, by the ids of their first windows, and where the next ones begin: none, or those from an id on.
    pub async fn contents(
        &self,
        from: Option<PointId>,
    ) -> Result<(HashMap<PointId, Content>, Option<PointId>), QdrantError> {
        let inner = &*self.0;
        let request = ScrollPointsBuilder::new(&inner.settings.collection)
            .filter(searchable_rows())
            .limit(GET_MAX as u32)
            .with_payload(reserved(&[point::VERSION, point::ROW_HASH]))
            .with_vectors(false);
        let request = ScrollPoints { offset: from, ..request.build() };
        let page = inner.link.call("list", inner.link.points().scroll(request)).await?;
        Ok((contents(page.result), page.next_page_offset))
    }

    /// As `contents`, of these ids, as far as they are rows here.
    pub async fn contents_of(
        &self,
        ids: impl Iterator<Item = &PointId>,
    ) -> Result<HashMap<PointId, Content>, QdrantError> {
        let ids: Vec<PointId> = ids.cloned().collect();
        let points = self.0.get(&ids, &[point::VERSION, point::ROW_HASH, point::DELETED]).await?;
        Ok(contents(points.into_values().filter(|point| !point::is_deleted(&point.payload)).collect()))
    }

    /// The vectors of some rows.
    pub async fn sample(&self, count: usize) -> Result<Vec<Vec<f32>>, QdrantError> {
        let inner = &*self.0;
        let request = ScrollPointsBuilder::new(&inner.settings.collection)
            .filter(searchable_rows())
            .limit(count as u32)
            .with_payload(false)
            .with_vectors(true)
            .build();
        let found = inner.link.call("list", inner.link.points().scroll(request)).await?.result;
        let dense = |point: RetrievedPoint| match point.vectors?.get_vector()? {
            vector_output::Vector::Dense(vector) => Some(vector.data),
            _ => None,
        };
        Ok(found.into_iter().filter_map(dense).collect())
    }

    /// Rows that can be found.
    pub async fn rows(&self) -> Result<u64, QdrantError> {
        self.0.count(searchable_rows()).await
    }

    /// Windows that can be found.
    pub async fn points(&self) -> Result<u64, QdrantError> {
        self.0.count(QdrantFilter::must([Condition::matches(point::DELETED, false)])).await
    }

    /// The collection's name.
    pub fn collection(&self) -> &str {
        &self.0.settings.collection
    }

    /// Fields that searches may filter by.
    pub fn fields(&self) -> &[String] {
        &self.0.settings.filters
    }

    /// Partitions of `vectors` that it was made for.
    pub fn partitions(&self) -> Partition {
        self.0.settings.partitions
    }
}

impl std::fmt::Debug for QdrantStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QdrantStore").field("collection", &self.0.settings.collection).finish_non_exhaustive()
    }
}

/// What a row is: its version, and the hash of all that is indexed of it.
pub type Content = (Version, Option<String>);

fn contents(points: Vec<RetrievedPoint>) -> HashMap<PointId, Content> {
    let content = |point: RetrievedPoint| Some((point.id?, point::content(&point.payload)?));
    points.into_iter().filter_map(content).collect()
}

/// First windows of rows that can be found.
fn searchable_rows() -> QdrantFilter {
    QdrantFilter::must([Condition::matches(point::DELETED, false), Condition::matches(point::WINDOW, 0)])
}

fn reserved(fields: &[&str]) -> PayloadIncludeSelector {
    PayloadIncludeSelector { fields: fields.iter().map(|field| (*field).to_owned()).collect() }
}

impl Inner {
    fn origin(&self) -> Origin<'_> {
        let QdrantSettings { pipeline, revision, log, .. } = &self.settings;
        Origin { pipeline, revision, log: log.as_deref().unwrap_or_default() }
    }

    async fn check_collection(&self) -> Result<(), QdrantError> {
        let request = GetCollectionInfoRequest { collection_name: self.settings.collection.clone() };
        let info = self.link.call("look at", self.link.collections().get(request)).await?;
        let info = info.result.unwrap_or_default();
        let collection = self.settings.collection.clone();
        match collection::refusal(&self.settings, &info) {
            Some(Refusal::Foreign(what)) => Err(QdrantError::Foreign { collection, what }),
            Some(Refusal::Outdated(what)) => Err(QdrantError::Outdated { collection, what }),
            None => Ok(()),
        }
    }

    /// What the points of positions say; a partition that has none is at its beginning. Positions of another log say that
    /// nothing here is of use.
    async fn read_progress(&self) -> Result<Vec<Progress>, QdrantError> {
        let points = self.read_positions().await?;
        let progress = points.into_iter().enumerate().map(|(partition, point)| {
            let Some(point) = point else { return Ok(Progress::default()) };
            let found = point::log_of(&point.payload);
            if found.is_some_and(|found| found.starts_with(point::LOADING)) && self.settings.log.as_deref() != found {
                let what = "a local store is being loaded into it, or that was interrupted".to_owned();
                return Err(QdrantError::Outdated { collection: self.settings.collection.clone(), what });
            }
            if let (Some(wanted), Some(found)) = (&self.settings.log, found)
                && wanted != found
            {
                let what = "it was filled from another log, and positions of two logs do not compare".to_owned();
                return Err(QdrantError::Outdated { collection: self.settings.collection.clone(), what });
            }
            let id = point::position_id(&self.settings.pipeline, partition as Partition);
            point::progress(&point.payload).ok_or_else(|| self.damaged(&id, "it has no position"))
        });
        progress.collect()
    }

    /// The points of positions, of each partition.
    async fn read_positions(&self) -> Result<Vec<Option<RetrievedPoint>>, QdrantError> {
        let partitions = 0..self.settings.partitions;
        let ids: Vec<PointId> =
            partitions.map(|partition| point::position_id(&self.settings.pipeline, partition)).collect();
        let mut points = self.get(&ids, &[point::RESERVED]).await?;
        Ok(ids.iter().map(|id| points.remove(id)).collect())
    }

    async fn perform(&self, plan: plan::Plan, before: &[Progress], after: &[Progress]) -> Result<Applied, QdrantError> {
        let mut applied = plan.applied;
        let mut last = vec![];
        for step in plan.steps {
            match step {
                Step::Write(rows) => {
                    let known = self.known(rows.keys()).await?;
                    let writes =
                        plan::writes(self.origin(), rows, |key| known.get(key).copied(), now_ms(), &mut applied);
                    self.write(std::mem::replace(&mut last, writes)).await?;
                }
                Step::Purge(partition, barrier) => {
                    self.write(std::mem::take(&mut last)).await?;
                    applied.purged += self.purge(partition, barrier).await?;
                    // A write that was sent before and given up may arrive until then.
                    let due = Instant::now() + self.settings.server.timeout;
                    lock(&self.again).push((due, partition, barrier));
                }
            }
        }
        plan::add_positions(&mut last, self.origin(), before, after);
        self.write(last).await?;
        Ok(applied)
    }

    /// The version and the windows that the store has of each key.
    async fn known(
        &self,
        keys: impl Iterator<Item = &RowKey> + Clone + Send,
    ) -> Result<HashMap<RowKey, (Version, usize)>, QdrantError> {
        let pipeline = &self.settings.pipeline;
        let ids: Vec<PointId> = keys.clone().map(|key| point::id(pipeline, key, 0)).collect();
        let fields = [point::VERSION, point::WINDOWS, point::DELETED];
        let points = self.get(&ids, &fields).await?;
        let mut known = HashMap::with_capacity(points.len());
        for (key, id) in keys.zip(&ids) {
            if let Some(point) = points.get(id) {
                // A point that is none of ours any more has no version: whatever comes is newer.
                known.insert(key.clone(), point::state(&point.payload).unwrap_or_default());
            }
        }
        Ok(known)
    }

    async fn get(&self, ids: &[PointId], fields: &[&str]) -> Result<HashMap<PointId, RetrievedPoint>, QdrantError> {
        let mut points = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(GET_MAX) {
            let request = GetPointsBuilder::new(&self.settings.collection, ids)
                .with_payload(reserved(fields))
                .with_vectors(false);
            let found = self.link.call("read", self.link.points().get(request.build())).await?.result;
            points.extend(found.into_iter().filter_map(|point| Some((point.id.clone()?, point))));
        }
        Ok(points)
    }

    async fn write(&self, writes: Vec<Write>) -> Result<(), QdrantError> {
        for Write { points, branches } in writes {
            let request = UpsertPointsBuilder::new(&self.settings.collection, points)
                .update_filter(QdrantFilter::should(branches))
                .wait(true);
            self.link.completed("upsert", self.link.points().upsert(request.build())).await?;
        }
        Ok(())
    }

    /// Removes what is older than the barrier, and says how many rows and tombstones that were.
    async fn purge(&self, partition: Partition, barrier: u64) -> Result<u64, QdrantError> {
        let older = Range { lt: Some(barrier as f64), ..Range::default() };
        let doomed =
            vec![Condition::matches(point::PARTITION, i64::from(partition)), Condition::range(point::VERSION, older)];
        let rows = [doomed.clone(), vec![Condition::matches(point::WINDOW, 0)]].concat();
        let count = self.count(QdrantFilter::must(rows)).await?;
        self.delete("purge", QdrantFilter::must(doomed)).await?;
        Ok(count)
    }

    async fn delete(&self, operation: &'static str, filter: QdrantFilter) -> Result<(), QdrantError> {
        let request = DeletePointsBuilder::new(&self.settings.collection).points(filter).wait(true);
        self.link.completed(operation, self.link.points().delete(request.build())).await
    }

    async fn count(&self, filter: QdrantFilter) -> Result<u64, QdrantError> {
        let request = CountPointsBuilder::new(&self.settings.collection).filter(filter).exact(true);
        Ok(self.link.call("count", self.link.points().count(request.build())).await?.result.unwrap_or_default().count)
    }

    async fn nearest(
        &self,
        query: &[f32],
        asked: usize,
        min_score: f32,
        filter: &Filter,
        accuracy: Accuracy,
    ) -> Result<Vec<ScoredPoint>, QdrantError> {
        let request = QueryPointsBuilder::new(&self.settings.collection)
            .query(query.to_vec())
            .limit(asked as u64)
            // Qdrant takes what is above its threshold; here what is at it belongs to it.
            .score_threshold(min_score.next_down())
            .filter(filter::conditions(filter))
            .with_payload(true)
            .params(SearchParamsBuilder::default().exact(accuracy == Accuracy::Exact));
        Ok(self.link.call("search", self.link.points().query(request.build())).await?.result)
    }

    /// The best window of each row, in the order of hits. A row is what its window 0 says: another window of another
    /// version is being replaced, or was brought back by a write that came late, and does not count.
    async fn best(&self, points: Vec<ScoredPoint>) -> Result<Vec<Hit>, QdrantError> {
        let mut found = Vec::with_capacity(points.len());
        for point in points {
            let id = point.id;
            match point::hit(point.payload, point.score, &self.settings.payload) {
                Some(hit) => found.push(hit),
                // Somebody else's, or harmed: one point is no reason to answer nothing.
                None => tracing::debug!("point {} is no window of a row", point::shown(id.as_ref())),
            }
        }
        let mut versions: HashMap<RowKey, Version> =
            found.iter().filter(|(_, window)| *window == 0).map(|(hit, _)| (hit.key.clone(), hit.version)).collect();
        let others = found.iter().map(|(hit, _)| &hit.key).filter(|key| !versions.contains_key(*key));
        let others: BTreeSet<RowKey> = others.cloned().collect();
        if !others.is_empty() {
            let known = self.known(others.iter()).await?;
            versions.extend(known.into_iter().map(|(key, (version, _))| (key, version)));
        }
        let mut best: HashMap<RowKey, Hit> = HashMap::with_capacity(versions.len());
        for (hit, _) in found {
            let is_better = best.get(&hit.key).is_none_or(|other| hit.score > other.score);
            if is_better && versions.get(&hit.key) == Some(&hit.version) {
                best.insert(hit.key.clone(), hit);
            }
        }
        let mut hits: Vec<Hit> = best.into_values().collect();
        hits.sort_by(|a, b| rank((a.score, &a.key), (b.score, &b.key)));
        Ok(hits)
    }

    fn damaged(&self, id: &PointId, what: &str) -> QdrantError {
        let (collection, point) = (self.settings.collection.clone(), point::shown(Some(id)));
        QdrantError::Damaged { collection, point, what: what.to_owned() }
    }
}

fn lock<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
