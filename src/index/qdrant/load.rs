//! Loads a local store into a collection of its own, beside whatever answers: the rows of a mirror into a generation, the
//! points of a file into a collection that is none. What was loaded is read back and compared before the alias names it.

use std::collections::BTreeMap;

use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::vectors_output::VectorsOptions as Output;
use qdrant_client::qdrant::{
    CreateFieldIndexCollectionBuilder, FieldType, PointId, PointStruct, RetrievedPoint, vector, vector_output,
};

use super::copy::Digest;
use super::generations::ADOPTED;
use super::link::Link;
use super::plan::{self, Pending, Write};
use super::point::{self, Origin, Progress};
use super::{QdrantError, QdrantGeneration, QdrantGenerations, QdrantSettings, QdrantStore, collection};
use crate::clock::now_ms;
use crate::event::{EmbeddedRow, RowKey, Version};
use crate::index::mirror::Applied;
use crate::topic::{Offsets, Partition};

const OPERATION: &str = "load a local store into";
/// What the stamp of a collection of points from a file begins with; the file's hash follows.
pub(super) const LINES: &str = "points of a file, hash ";
/// Numbers of a vector may differ by so much after the server has normalised it.
const ROUNDING: f32 = 1e-6;
/// Fewer rows than this share of what the alias names do not take its place.
const SHARE_MIN: f64 = 0.5;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The collection, which the alias names.
    pub collection: String,
    /// Rows, where they are rows.
    pub rows: Option<u64>,
    /// Points that can be found.
    pub points: u64,
    /// The hash of those, as they were read back.
    pub hash: String,
}

impl QdrantGenerations {
    /// Refuses to load a file where its points would hide something.
    pub async fn check_lines(&self) -> Result<(), QdrantError> {
        let alias = &self.settings.collection;
        let Some(named) = self.named().await? else { return Ok(()) };
        let info = self.info(named).await?;
        match collection::stamp(&self.settings, &info) {
            Some(stamp) if stamp.starts_with(LINES) => Ok(()),
            _ if named == ADOPTED => Err(self.not_loaded(format!(
                "the alias names {}, which was taken over, and points of a file would hide it: remove the alias {alias} first \
                 if that is wanted",
                self.collection(named)
            ))),
            _ => Err(self.not_loaded(format!(
                "the alias names {}, which vecsync keeps in step with the table, and points of a file would hide it: \
                 `vecsync sync` fills it from the table",
                self.collection(named)
            ))),
        }
    }

    /// A collection for the points of a file with this hash: that which an earlier, interrupted load has begun, or a new
    /// one.
    pub async fn begin_lines(&self, hash: &str) -> Result<Loading, QdrantError> {
        self.check_lines().await?;
        let stamp = format!("{LINES}{hash}");
        let numbers = self.numbers().await?;
        for number in numbers.iter().rev() {
            if collection::stamp(&self.settings, &self.info(*number).await?) == Some(&stamp) {
                return Ok(self.loading(*number));
            }
        }
        let loading = self.loading(numbers.last().copied().unwrap_or(0) + 1);
        let settings = QdrantSettings { collection: loading.link.name().to_owned(), ..self.settings.clone() };
        self.link.check_version().await?;
        let request = collection::create_stamped(&settings, &stamp);
        loading.link.call("create", loading.link.collections().create(request)).await?;
        for field in &settings.filters {
            let path = super::filter::path(field);
            let request = CreateFieldIndexCollectionBuilder::new(&settings.collection, path, FieldType::Keyword);
            let mut points = loading.link.points();
            loading.link.completed("index", points.create_field_index(request.wait(true).build())).await?;
        }
        Ok(loading)
    }

    /// A generation for the rows of a mirror, or the one that has them already.
    pub async fn begin_rows(&self, kept: &Kept) -> Result<Begun, QdrantError> {
        if let Some(named) = self.named().await? {
            if self.is_ours(named).await? {
                let store = self.of(named).store;
                let (log, positions) = store.origin().await?;
                let rows = store.rows().await?;
                let has = |has: &[u64]| {
                    has.len() == kept.positions.len() && !has.iter().zip(&kept.positions).any(|(has, kept)| has < kept)
                };
                if rows > 0 && log == kept.log && has(&positions) {
                    return Ok(Begun::There { collection: store.collection().to_owned(), rows });
                }
                if rows > 0 && !log.is_empty() && log == kept.log {
                    return Err(self.not_loaded(format!(
                        "the alias names {}, of the same revision and the same log: `vecsync run` brings it up to date by itself",
                        self.collection(named)
                    )));
                }
            }
            let store = self.of(named).store;
            let (what, has, before) = match self.is_generation(named).await? {
                true => ("rows", kept.rows, store.rows().await?),
                // Its points are not rows that could be counted.
                false => ("points", kept.points, store.0.link.count_all().await?),
            };
            if (has as f64) < SHARE_MIN * before as f64 {
                return Err(self.not_loaded(format!(
                    "the mirror has {has} {what}, and {}, which the alias names, has {before}, so it stays: `vecsync sync` and \
                     `vecsync run` fill another from the table",
                    self.collection(named)
                )));
            }
        }
        let generation = match self.resumable(kept).await? {
            Some(number) => self.of(number),
            None => {
                let settings = QdrantSettings { log: Some(kept.mark.clone()), ..self.settings.clone() };
                QdrantGenerations { settings, link: self.link.clone() }.add().await?
            }
        };
        Ok(Begun::Loading(Box::new(RowLoading {
            generations: self.clone(),
            generation,
            kept: kept.clone(),
            digest: Digest::default(),
            rows: 0,
        })))
    }

    /// A generation that an interrupted load of the same mirror has left. What one of another mirror, or of another
    /// state of it, has left is removed: nobody else takes it up.
    async fn resumable(&self, kept: &Kept) -> Result<Option<u32>, QdrantError> {
        let named = self.named().await?;
        let mut found = None;
        for number in self.numbers().await? {
            if Some(number) == named || !self.is_ours(number).await? {
                continue;
            }
            let (log, positions) = self.of(number).store.origin().await?;
            if log == kept.mark || (log == kept.log && positions == kept.positions) {
                found = Some(number);
            } else if log.starts_with(point::LOADING) {
                self.discard(number).await?;
            }
        }
        Ok(found)
    }

    /// Whether it is a generation of this pipeline, revision and number of partitions.
    async fn is_ours(&self, number: u32) -> Result<bool, QdrantError> {
        Ok(collection::refusal(&self.settings, &self.info(number).await?).is_none())
    }

    fn loading(&self, number: u32) -> Loading {
        let link = self.link.to(self.collection(number));
        Loading { generations: self.clone(), number, link, digest: Digest::default() }
    }

    fn not_loaded(&self, what: String) -> QdrantError {
        QdrantError::Refused { operation: OPERATION, collection: self.settings.collection.clone(), what }
    }
}

impl QdrantStore {
    /// Which log its positions are of, and what they are.
    async fn origin(&self) -> Result<(String, Offsets), QdrantError> {
        let points = self.0.read_positions().await?;
        let log =
            points.iter().flatten().find_map(|point| point::log_of(&point.payload)).unwrap_or_default().to_owned();
        let position = |point: &Option<RetrievedPoint>| {
            point.as_ref().and_then(|point| point::progress(&point.payload)).unwrap_or_default().position
        };
        Ok((log, points.iter().map(position).collect()))
    }
}

/// A collection that the points of a file are being loaded into.
pub struct Loading {
    generations: QdrantGenerations,
    number: u32,
    link: Link,
    digest: Digest,
}

impl Loading {
    /// Writes some points; the same ones again change nothing.
    pub async fn write(&self, points: Vec<PointStruct>) -> Result<(), QdrantError> {
        self.link.put(points).await
    }

    /// Reads some points back and compares them.
    pub async fn compare(&mut self, points: &[PointStruct]) -> Result<(), QdrantError> {
        compare(&self.link, points, &mut self.digest).await
    }

    /// Counts, and lets the alias name it, when all points were compared.
    pub async fn finish(self) -> Result<Settled, QdrantError> {
        let (found, wanted) = (self.link.count_all().await?, self.digest.points);
        if found != wanted {
            return Err(another(&self.link, format!("it has {found} points, and {wanted} were loaded")));
        }
        self.generations.check_lines().await?;
        self.generations.switch(&self.generations.of(self.number)).await?;
        let collection = self.link.name().to_owned();
        Ok(Settled { collection, rows: None, points: found, hash: self.digest.hash() })
    }
}

/// What is loaded of a mirror, but for its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which mirror it is, in which state. Stands in the positions' log while it is loaded.
    pub mark: String,
    /// The log that the mirror was filled from; empty: not known.
    pub log: String,
    /// The next offset of `vectors` to take in each partition.
    pub positions: Offsets,
    /// Rows below this version are gone, one a partition.
    pub barriers: Vec<u64>,
    /// The last heartbeat of each partition; empty or 0: none.
    pub heartbeats: Vec<i64>,
    /// Rows that can be found.
    pub rows: u64,
    /// Their windows.
    pub points: u64,
}

impl Kept {
    /// The mark for a mirror in a state that is called so.
    pub fn mark(state: &str) -> String {
        format!("{}{state}", point::LOADING)
    }
}

/// How a load of rows begins.
#[derive(Debug)]
pub enum Begun {
    /// The generation that the alias names has all that the mirror has.
    There {
        /// Its collection.
        collection: String,
        /// Its rows.
        rows: u64,
    },
    /// They are to be loaded.
    Loading(Box<RowLoading>),
}

/// A row of a mirror, or its tombstone.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedRow {
    /// Its key.
    pub key: RowKey,
    /// Its version.
    pub version: Version,
    /// The partition of `vectors` that it came from.
    pub partition: Partition,
    /// `None`: deleted.
    pub row: Option<EmbeddedRow>,
}

/// A generation that the rows of a mirror are being loaded into.
#[derive(Debug)]
pub struct RowLoading {
    generations: QdrantGenerations,
    generation: QdrantGeneration,
    kept: Kept,
    digest: Digest,
    rows: u64,
}

impl RowLoading {
    /// Writes some rows and tombstones; the same ones again change nothing.
    pub async fn write(&self, rows: Vec<LoadedRow>) -> Result<(), QdrantError> {
        let inner = &*self.generation.store.0;
        let mut pending = BTreeMap::new();
        for LoadedRow { key, version, partition, row } in rows {
            let row = match row {
                Some(row) => Some(self.searchable(&key, row)?),
                None => None,
            };
            pending.insert(key, Pending { version, partition, row });
        }
        let known = inner.known(pending.keys()).await?;
        let mut applied = Applied::default();
        let writes = plan::writes(self.origin(), pending, |key| known.get(key).copied(), now_ms(), &mut applied);
        inner.write(writes).await
    }

    /// Reads some rows and tombstones back and compares them.
    pub async fn compare(&mut self, rows: Vec<LoadedRow>) -> Result<(), QdrantError> {
        let link = &self.generation.store.0.link;
        let pipeline = &self.generations.settings.pipeline;
        let (mut wanted, mut gone) = (vec![], vec![]);
        for LoadedRow { key, version, partition, row } in rows {
            let Some(row) = row else {
                gone.push((point::id(pipeline, &key, 0), version));
                continue;
            };
            let (row, payload) = self.searchable(&key, row)?;
            let places = 0..row.windows.len();
            wanted.extend(places.map(|place| point::window(self.origin(), &key, partition, &row, &payload, place)));
            self.rows += 1;
        }
        compare(link, &wanted, &mut self.digest).await?;
        let ids: Vec<PointId> = gone.iter().map(|(id, _)| id.clone()).collect();
        let found = link.whole(&ids).await?;
        for (id, version) in gone {
            if found.get(&id).and_then(|point| point::state(&point.payload)) != Some((version, 0)) {
                return Err(another(link, format!("point {} is not the tombstone it was", point::shown(Some(&id)))));
            }
        }
        Ok(())
    }

    /// Counts, writes the positions, and lets the alias name it, when all rows were compared.
    pub async fn finish(self) -> Result<Settled, QdrantError> {
        let store = &self.generation.store;
        let (rows, points) = (store.rows().await?, store.points().await?);
        if (rows, points) != (self.rows, self.digest.points) {
            let what = format!(
                "it has {rows} rows and {points} points, and {} and {} were loaded",
                self.rows, self.digest.points
            );
            return Err(another(&store.0.link, what));
        }
        let mut write = Write::default();
        for (partition, position) in (0..).zip(&self.kept.positions) {
            let place = usize::from(partition);
            let barrier = self.kept.barriers.get(place).copied().unwrap_or_default();
            let as_of_ms = self.kept.heartbeats.get(place).copied().unwrap_or_default();
            let progress = Progress { position: *position, barrier, as_of_ms };
            write.add(vec![point::position(self.origin(), partition, progress)], point::POSITION, *position);
        }
        store.0.write(vec![write]).await?;
        self.generations.switch(&self.generation).await?;
        let collection = store.collection().to_owned();
        Ok(Settled { collection, rows: Some(rows), points, hash: self.digest.hash() })
    }

    fn origin(&self) -> Origin<'_> {
        let QdrantSettings { pipeline, revision, .. } = &self.generations.settings;
        Origin { pipeline, revision, log: &self.kept.log }
    }

    fn searchable(&self, key: &RowKey, row: EmbeddedRow) -> Result<(EmbeddedRow, crate::event::Row), QdrantError> {
        match plan::searchable(&row) {
            Ok(payload) => Ok((row, payload)),
            Err(why) => {
                Err(self.generations.not_loaded(format!("the mirror's row {} cannot be stored: {why}", key.as_str())))
            }
        }
    }
}

/// Reads points back and compares them with what was written.
async fn compare(link: &Link, points: &[PointStruct], digest: &mut Digest) -> Result<(), QdrantError> {
    let ids: Vec<PointId> = points.iter().filter_map(|point| point.id.clone()).collect();
    let found = link.whole(&ids).await?;
    for point in points {
        let found = point.id.as_ref().and_then(|id| found.get(id));
        match found.filter(|found| is_as_written(point, found)) {
            Some(found) => digest.add(found),
            None => {
                let is = if found.is_some() { "is another" } else { "is not there" };
                return Err(another(link, format!("point {} {is}", point::shown(point.id.as_ref()))));
            }
        }
    }
    Ok(())
}

fn another(link: &Link, what: String) -> QdrantError {
    let what = format!(
        "{what} after it was loaded: somebody else writes to it. Searches do not ask it; stop that, and run this once more"
    );
    QdrantError::Refused { operation: OPERATION, collection: link.name().to_owned(), what }
}

/// The same payload, and the same vector but for rounding.
fn is_as_written(point: &PointStruct, found: &RetrievedPoint) -> bool {
    let written = match point.vectors.as_ref().and_then(|vectors| vectors.vectors_options.as_ref()) {
        Some(VectorsOptions::Vector(vector)) => match &vector.vector {
            Some(vector::Vector::Dense(dense)) => &dense.data,
            _ => return false,
        },
        _ => return false,
    };
    let read = match found.vectors.as_ref().and_then(|vectors| vectors.vectors_options.clone()) {
        Some(Output::Vector(vector)) => match vector.into_vector() {
            vector_output::Vector::Dense(dense) => dense.data,
            _ => return false,
        },
        _ => return false,
    };
    let is_near = |(one, other): (&f32, &f32)| (one - other).abs() <= ROUNDING;
    point.payload == found.payload && written.len() == read.len() && written.iter().zip(&read).all(is_near)
}
