//! One collection: the engine's shard, the one thread that writes to it, and its settings on disk.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use prost::Message;
use qdrant_client::qdrant::{self as grpc, CollectionInfo, CollectionStatus, CreateCollection};
use qdrant_edge::{
    Condition, CountRequest, CreateIndex, EdgeShard, FieldIndexOperations, Filter, HasIdCondition, PayloadOps, PointId,
    PointInsertOperations, PointOperations, PointStructPersisted, ScrollRequest, SetPayloadOp, UpdateOperation,
    WithPayloadInterface, WithVector,
};
use tonic::Status;

use crate::convert::{self, Selection, refusal};
use crate::files;
use crate::journal::{Journal, Write};
use crate::settings;

/// Writes that wait for the one thread; who comes after them waits with its request.
const QUEUE: usize = 64;
/// Writes of a journal between two flushes, at most: so much a restart may have to do again.
const JOURNAL_WRITES_MAX: usize = 2_000;

const SETTINGS: &str = "settings";
const SHARD: &str = "shard";
const JOURNAL: &str = "journal";

pub struct Collection {
    core: Arc<Core>,
    queue: SyncSender<Job>,
    writer: JoinHandle<()>,
}

/// What readers and the writer share.
struct Core {
    folder: PathBuf,
    settings: RwLock<CreateCollection>,
    shard: EdgeShard,
    is_optimizing: AtomicBool,
}

enum Job {
    Write(Box<Write>, SyncSender<Result<u64, Status>>),
    /// Something that needs everything to be on disk and nobody to write.
    AtRest(Box<dyn FnOnce(&Core) + Send>),
    Stop,
}

impl Collection {
    /// Makes the files of a new collection in a folder that is not there yet.
    pub fn create(folder: &Path, request: &CreateCollection) -> Result<(), Status> {
        let config = settings::engine(request)?;
        fs::create_dir_all(folder.join(SHARD)).map_err(files::failed)?;
        files::replace(&folder.join(SETTINGS), &request.encode_to_vec()).map_err(files::failed)?;
        EdgeShard::new(&folder.join(SHARD), config).map(drop).map_err(refusal)
    }

    /// Opens it and does again what a kill kept from the engine's files.
    pub fn open(folder: &Path, delay: Duration) -> Result<Collection, Status> {
        let bytes = fs::read(folder.join(SETTINGS)).map_err(files::failed)?;
        let settings = CreateCollection::decode(bytes.as_slice())
            .map_err(|error| Status::internal(format!("settings: {error}")))?;
        let shard = EdgeShard::load(&folder.join(SHARD), None).map_err(refusal)?;
        let (mut journal, writes) = Journal::open(&folder.join(JOURNAL)).map_err(files::failed)?;
        for write in writes {
            // One that failed when it was asked for fails again; its client knows.
            let _ = apply(&shard, write);
        }
        each_once(&shard)?;
        shard.flush();
        journal.clear().map_err(files::failed)?;
        let every = settings.optimizers_config.and_then(|optimizers| optimizers.flush_interval_sec).unwrap_or(5);
        let core = Arc::new(Core {
            folder: folder.to_owned(),
            settings: RwLock::new(settings),
            shard,
            is_optimizing: AtomicBool::new(false),
        });
        let (queue, jobs) = sync_channel(QUEUE);
        let mut keeper = Keeper {
            core: Arc::clone(&core),
            journal,
            unflushed: 0,
            written: 0,
            delay,
            every: Duration::from_secs(every.max(1)),
            optimizer: None,
        };
        let writer = thread::spawn(move || keeper.run(&jobs));
        Ok(Collection { core, queue, writer })
    }

    pub fn shard(&self) -> &EdgeShard {
        &self.core.shard
    }

    /// Hands a write to the writer. The answer comes when the write outlives the process and can be read.
    pub fn write(&self, write: Write) -> Result<Receiver<Result<u64, Status>>, Status> {
        let (answer, answered) = sync_channel(1);
        self.queue.send(Job::Write(Box::new(write), answer)).map_err(|_| gone())?;
        Ok(answered)
    }

    /// Runs when everything is on disk, and keeps writers waiting meanwhile. Gets the collection's folder.
    pub fn at_rest<T: Send + 'static>(&self, action: impl FnOnce(&Path) -> T + Send + 'static) -> Result<T, Status> {
        let (answer, answered) = sync_channel(1);
        let job = Job::AtRest(Box::new(move |core| drop(answer.send(action(&core.folder)))));
        self.queue.send(job).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())
    }

    pub fn info(&self) -> CollectionInfo {
        let settings = self.core.settings.read().unwrap_or_else(PoisonError::into_inner).clone();
        let info = self.core.shard.info();
        let is_optimizing = self.core.is_optimizing.load(Ordering::Relaxed);
        let status = if is_optimizing { CollectionStatus::Yellow } else { CollectionStatus::Green };
        CollectionInfo {
            status: status.into(),
            optimizer_status: Some(grpc::OptimizerStatus { ok: true, error: String::new() }),
            segments_count: info.segments_count as u64,
            config: Some(settings::message(&settings)),
            payload_schema: info.payload_schema.iter().map(|(path, index)| settings::schema(path, index)).collect(),
            points_count: Some(info.points_count as u64),
            indexed_vectors_count: Some(info.indexed_vectors_count as u64),
            ..CollectionInfo::default()
        }
    }

    /// New parameters: those of optimizers and of the graph, and metadata.
    pub fn update(&self, request: grpc::UpdateCollection) -> Result<(), Status> {
        let mut settings = self.core.settings.write().unwrap_or_else(PoisonError::into_inner);
        let updated = settings::updated(&settings, request)?;
        let config = settings::engine(&updated)?;
        files::replace(&self.core.folder.join(SETTINGS), &updated.encode_to_vec()).map_err(files::failed)?;
        self.core.shard.set_hnsw_config(config.hnsw_config).map_err(refusal)?;
        self.core.shard.set_optimizers_config(config.optimizers).map_err(refusal)?;
        *settings = updated;
        Ok(())
    }

    /// Ends the writer and lets go of the files.
    pub fn close(self) {
        let _ = self.queue.send(Job::Stop);
        let _ = self.writer.join();
    }
}

fn gone() -> Status {
    Status::internal("Service internal error: the collection's writer is gone")
}

/// The writer's own.
struct Keeper {
    core: Arc<Core>,
    journal: Journal,
    unflushed: usize,
    written: u64,
    delay: Duration,
    every: Duration,
    optimizer: Option<JoinHandle<()>>,
}

impl Keeper {
    fn run(&mut self, jobs: &Receiver<Job>) {
        let mut due = Instant::now() + self.every;
        loop {
            match jobs.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Job::Write(write, answer)) => {
                    thread::sleep(self.delay);
                    // Who does not wait for the answer has let go of it.
                    let _ = answer.send(self.write(*write));
                }
                Ok(Job::AtRest(action)) => {
                    self.rest();
                    action(&self.core);
                }
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return self.rest(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= due || self.unflushed >= JOURNAL_WRITES_MAX {
                self.tidy();
                due = Instant::now() + self.every;
            }
        }
    }

    fn write(&mut self, write: Write) -> Result<u64, Status> {
        let write = resolve(&self.core.shard, write)?;
        self.journal.append(&write).map_err(files::failed)?;
        self.unflushed += 1;
        apply(&self.core.shard, write)?;
        self.written += 1;
        Ok(self.written)
    }

    /// Flushes, and lets the engine's optimizers look at what has come, beside the writes that go on.
    fn tidy(&mut self) {
        if self.optimizer.as_ref().is_some_and(|optimizer| !optimizer.is_finished()) {
            return;
        }
        let has_optimized = self.optimizer.take().is_some_and(|optimizer| optimizer.join().is_ok());
        if self.unflushed == 0 && !has_optimized {
            return;
        }
        let is_due = self.unflushed > 0;
        self.flush();
        if is_due {
            let core = Arc::clone(&self.core);
            core.is_optimizing.store(true, Ordering::Relaxed);
            self.optimizer = Some(thread::spawn(move || {
                if let Err(error) = core.shard.optimize() {
                    eprintln!("optimize {}: {error}", core.folder.display());
                }
                core.is_optimizing.store(false, Ordering::Relaxed);
            }));
        }
    }

    /// Everything is on disk and nothing goes on beside.
    fn rest(&mut self) {
        if let Some(optimizer) = self.optimizer.take() {
            let _ = optimizer.join();
        }
        self.flush();
    }

    fn flush(&mut self) {
        self.core.shard.flush();
        match self.journal.clear() {
            Ok(()) => self.unflushed = 0,
            Err(error) => eprintln!("clear the journal of {}: {error}", self.core.folder.display()),
        }
    }
}

/// A kill while segments are optimised leaves points in two of them. The engine's loading keeps both, the real server's the
/// newer one; a change that changes nothing does the same here.
fn each_once(shard: &EdgeShard) -> Result<(), Status> {
    let scroll = ScrollRequest {
        limit: Some(usize::MAX),
        with_payload: Some(WithPayloadInterface::Bool(false)),
        ..ScrollRequest::default()
    };
    let (records, _) = shard.scroll(scroll).map_err(refusal)?;
    let ids: Vec<PointId> = records.into_iter().map(|record| record.id).collect();
    let mut open = vec![ids.as_slice()];
    while let Some(ids) = open.pop() {
        let filter = Filter::new_must(Condition::HasId(ids.iter().copied().collect::<HasIdCondition>()));
        let count = CountRequest { filter: Some(filter), exact: true };
        match shard.count(count).map_err(refusal)? {
            count if count == ids.len() => {}
            _ if ids.len() > 1 => open.extend(ids.chunks(ids.len().div_ceil(2))),
            _ => {
                let (points, payload) = (Some(ids.to_vec()), convert::payload(HashMap::new()));
                let touch = SetPayloadOp { payload, points, filter: None, key: None };
                shard.update(UpdateOperation::PayloadOperation(PayloadOps::SetPayload(touch))).map_err(refusal)?;
            }
        }
    }
    Ok(())
}

/// Decides a conditional upsert by what is stored now, so that doing it again later has the same outcome. All else
/// stays as it is.
fn resolve(shard: &EdgeShard, write: Write) -> Result<Write, Status> {
    let Write::Upsert(mut request) = write else { return Ok(write) };
    let condition = request.update_filter.take().map(convert::filter).transpose()?;
    let mode = request.update_mode();
    if condition.is_none() && mode == grpc::UpdateMode::Upsert {
        return Ok(Write::Upsert(request));
    }
    let ids: Vec<PointId> =
        request.points.iter().map(|point| convert::point_id(point.id.clone())).collect::<Result<_, _>>()?;
    let stored: HashSet<PointId> = shard
        .retrieve(&ids, Some(WithPayloadInterface::Bool(false)), Some(WithVector::Bool(false)))
        .map_err(refusal)?
        .into_iter()
        .map(|record| record.id)
        .collect();
    let refused = match condition {
        Some(condition) => not_matching(shard, &ids, condition)?,
        None => HashSet::new(),
    };
    let mut number = ids.iter();
    request.points.retain(|_| {
        number.next().is_some_and(|id| match mode {
            grpc::UpdateMode::Upsert => !refused.contains(id),
            grpc::UpdateMode::InsertOnly => !stored.contains(id),
            grpc::UpdateMode::UpdateOnly => stored.contains(id) && !refused.contains(id),
        })
    });
    request.set_update_mode(grpc::UpdateMode::Upsert);
    Ok(Write::Upsert(request))
}

fn not_matching(shard: &EdgeShard, ids: &[PointId], condition: Filter) -> Result<HashSet<PointId>, Status> {
    let filter = Filter {
        must: Some(vec![Condition::HasId(ids.iter().copied().collect::<HasIdCondition>())]),
        must_not: Some(vec![Condition::Filter(condition)]),
        ..Filter::default()
    };
    let request = ScrollRequest {
        limit: Some(ids.len()),
        filter: Some(filter),
        with_payload: Some(WithPayloadInterface::Bool(false)),
        ..ScrollRequest::default()
    };
    let (records, _) = shard.scroll(request).map_err(refusal)?;
    Ok(records.into_iter().map(|record| record.id).collect())
}

fn apply(shard: &EdgeShard, write: Write) -> Result<(), Status> {
    let operation = match write {
        Write::Upsert(request) => {
            let points: Vec<PointStructPersisted> =
                request.points.into_iter().map(convert::point).collect::<Result<_, _>>()?;
            if points.is_empty() {
                return Ok(());
            }
            UpdateOperation::PointOperation(PointOperations::UpsertPoints(PointInsertOperations::PointsList(points)))
        }
        Write::Delete(request) => UpdateOperation::PointOperation(match convert::selection(request.points)? {
            Selection::Ids(ids) => PointOperations::DeletePoints { ids },
            Selection::Matching(filter) => PointOperations::DeletePointsByFilter(filter),
        }),
        Write::SetPayload(request) => {
            let (points, filter) = match convert::selection(request.points_selector)? {
                Selection::Ids(ids) => (Some(ids), None),
                Selection::Matching(filter) => (None, Some(filter)),
            };
            let key = request.key.as_deref().map(convert::path).transpose()?;
            let payload = convert::payload(request.payload);
            UpdateOperation::PayloadOperation(PayloadOps::SetPayload(SetPayloadOp { payload, points, filter, key }))
        }
        Write::CreateIndex(request) => {
            let field_name = convert::path(&request.field_name)?;
            let field_schema = Some(settings::field_type(&request)?.into());
            UpdateOperation::FieldIndexOperation(FieldIndexOperations::CreateIndex(CreateIndex {
                field_name,
                field_schema,
            }))
        }
        Write::DeleteIndex(request) => {
            UpdateOperation::FieldIndexOperation(FieldIndexOperations::DeleteIndex(convert::path(&request.field_name)?))
        }
    };
    shard.update(operation).map_err(refusal)
}
