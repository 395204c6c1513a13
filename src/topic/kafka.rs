//! The log on Kafka: two compacted topics, the dead letters, and a topic for capture's state. Serves many processes.
//!
//! **Invariants.** Capture's events and its state are one transaction under a fixed transactional id, so a newer capture
//! fences an older one; embed's records, dead letters and positions are one transaction of a member of its group, so
//! whoever lost a partition cannot write for it. Everybody reads committed records only. A fault of a broker is told to
//! the caller, who tries again; what it left unsettled is settled before anything else is written.

mod client;
mod embed;
mod feed;
mod followers;
mod foreign;
mod keys;
mod letters;
mod message;
mod standing;
mod standstill;
mod state;
mod topics;
mod vectors;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::task::spawn_blocking;

use super::trail::Place;
use super::{CaptureState, LogError, Offsets, Outgoing, Partition, lock};
use crate::config::Secret;
use crate::event::Record;
use client::{Limits, Names, PATIENCE};
use keys::LiveKeys;
use topics::Wanted;
use writer::{Writer, Written};

pub use embed::EmbedLog;
pub use followers::Followers;
pub use vectors::VectorsReader;

/// The record of the state topic that is capture's state.
const CAPTURE: &str = "capture";

/// What the log is made for and where it is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bootstrap servers.
    pub brokers: String,
    /// librdkafka's properties of security.
    pub security: Vec<(&'static str, Secret)>,
    /// Prefix of the topics' names.
    pub prefix: String,
    /// The pipeline's name, the second part of the topics' names.
    pub pipeline: String,
    /// A topic that Debezium writes, to be read instead of `changes`. It is never made or altered.
    pub source_topic: Option<String>,
    /// Partitions of each topic.
    pub partitions: u16,
    /// Copies of each partition, where a topic is made.
    pub replication: u16,
    /// How long tombstones are kept at least, where a topic is made.
    pub tombstone_retention: Duration,
    /// A folder for what a resync looks up; what is in it is removed.
    pub scratch: PathBuf,
}

/// The log of one pipeline. Clones are the same. Connects when it is used.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    settings: Settings,
    names: Names,
    /// What the topics ask for, as far as this capture has asked them.
    limits: Mutex<Limits>,
    /// Capture's; none before it has taken over and after a fault.
    writer: Mutex<Option<Writer>>,
    /// Ends of `changes`, as far as this capture knows them.
    ends: Mutex<Offsets>,
    live_keys: Mutex<Option<LiveKeys>>,
}

impl Log {
    /// A log that is not connected yet.
    pub fn new(settings: Settings) -> Log {
        Log(Arc::new(Inner {
            names: Names::new(&settings),
            limits: Mutex::new(Limits::new(&settings)),
            writer: Mutex::new(None),
            ends: Mutex::new(vec![0; usize::from(settings.partitions)]),
            live_keys: Mutex::new(None),
            settings,
        }))
    }

    /// See [`super::Log::capture_state`]. Makes the topics that are missing.
    pub async fn capture_state(&self) -> Result<Option<CaptureState>, LogError> {
        ensure(&self.0).await?;
        self.blocking(|inner| inner.read_state()).await
    }

    /// As `capture_state`, of topics that are there. Makes none.
    pub async fn recorded(&self) -> Result<Option<CaptureState>, LogError> {
        self.blocking(|inner| inner.read_state()).await
    }

    /// See [`super::Log::take_over`].
    pub async fn take_over(&self) -> Result<Option<CaptureState>, LogError> {
        ensure(&self.0).await?;
        self.blocking(|inner| {
            let mut held = lock(&inner.writer);
            // The old one's connections first: it may be the very one that has to be fenced.
            *held = None;
            let opened = Writer::open(&inner.settings, &inner.names.capture());
            *held = Some(opened.map_err(client::fault("take over", &inner.names.changes))?);
            *lock(&inner.ends) = inner.read_ends()?;
            inner.read_state()
        })
        .await
    }

    /// See [`super::Log::append_changes`]. Only after `take_over`; after an error nothing more is written before it.
    pub async fn append_changes(&self, records: Vec<Outgoing>, state: &CaptureState) -> Result<Vec<Place>, LogError> {
        let value = serde_json::to_vec(state).expect("capture's state has string keys only");
        self.blocking(move |inner| inner.append(records, value.into())).await
    }

    /// Appends to `changes` what is no event of the source, outside of capture's transactions; returns when it is durable.
    pub async fn append_marks(&self, records: Vec<Outgoing>) -> Result<(), LogError> {
        if self.0.names.is_foreign {
            let reason = "Debezium writes it, and vecsync writes nothing into it: to have it embedded again stop all who embed, \
                          put their group back with kafka-consumer-groups --reset-offsets --to-earliest, and start them";
            let path = self.0.names.changes.clone();
            return Err(LogError::Refused { operation: "append to", path, reason: reason.to_owned() });
        }
        ensure(&self.0).await?;
        self.blocking(|inner| {
            let placed = writer::place(&inner.names.changes, inner.settings.partitions, records);
            writer::write(&inner.settings, &placed).map_err(client::fault("append to", &inner.names.changes))
        })
        .await
    }

    /// See [`super::Log::changes_ends`].
    pub fn changes_ends(&self) -> Offsets {
        lock(&self.0.ends).clone()
    }

    /// See [`super::Log::live_keys_below`]. Reads the whole partition the first time. Blocks.
    pub fn live_keys_below(
        &self,
        partition: Partition,
        offset: u64,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, LogError> {
        let inner = &self.0;
        if offset == 0 {
            return Ok(vec![]);
        }
        let mut held = lock(&inner.live_keys);
        if held.as_ref().is_none_or(|keys| keys.partition() != partition || after.is_none()) {
            *held = None;
            let end = lock(&inner.ends).get(usize::from(partition)).copied().unwrap_or_default();
            *held = Some(LiveKeys::read(&inner.settings, &inner.names.changes, partition, end)?);
        }
        let page = held.as_ref().map_or(Ok(vec![]), |keys| keys.below(offset, after, limit))?;
        if page.is_empty() {
            *held = None;
        }
        Ok(page)
    }

    /// Shows every record of the topic of dead letters, each partition in its order. Blocks.
    pub fn visit_dead_letters(&self, visit: impl FnMut(&Record)) -> Result<(), LogError> {
        let Inner { settings, names, .. } = &*self.0;
        letters::visit(settings, names, 0..settings.partitions, visit)
    }

    /// Embed's side for a revision, not connected yet.
    pub fn embedder(&self, revision: &str) -> EmbedLog {
        EmbedLog::new(self.0.settings.clone(), self.0.names.clone(), revision)
    }

    /// Those who embed a revision, seen from outside; not connected yet.
    pub fn followers(&self, revision: &str) -> Result<Followers, LogError> {
        Followers::new(&self.0.settings, &self.0.names, revision)
    }

    /// See [`super::Log::vectors`]; not connected yet.
    pub fn vectors(&self, revision: &str) -> VectorsReader {
        let Inner { settings, names, .. } = &*self.0;
        VectorsReader::new(settings.clone(), names.vectors(revision), names.changes.clone())
    }

    /// The offset behind the last record of a partition of `vectors.<revision>`, markers of transactions left aside.
    pub async fn vectors_end(&self, revision: &str, partition: Partition) -> Result<u64, LogError> {
        let topic = self.0.names.vectors(revision);
        self.blocking(move |inner| vectors::end(&inner.settings, &topic, partition)).await
    }

    /// Refuses topics whose number of partitions has changed since they were made, and the lack of Debezium's topic.
    pub async fn check_partitions(&self, revision: &str) -> Result<(), LogError> {
        let Inner { settings, names, .. } = &*self.0;
        if names.is_foreign {
            topics::check_foreign(settings, &names.changes).await?;
        }
        topics::check_partitions(settings, &[&names.changes, &names.dead_letters, &names.vectors(revision)]).await
    }

    /// Refuses topics that are there and cannot be used as they are. Makes none.
    pub async fn check_topics(&self, revision: &str) -> Result<(), LogError> {
        self.check_partitions(revision).await?;
        let Inner { settings, names, .. } = &*self.0;
        let vectors = names.vectors(revision);
        let ours = [&*names.changes, &names.dead_letters, &vectors];
        topics::check_present(settings, &ours[usize::from(names.is_foreign)..]).await
    }

    /// The cluster's id.
    pub async fn cluster_id(&self) -> Result<String, LogError> {
        self.blocking(|inner| {
            let fault = client::fault("connect to", &inner.settings.brokers);
            let consumer = client::reader(&inner.settings).map_err(&fault)?;
            let timed_out = || fault(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut));
            consumer.client().fetch_cluster_id(PATIENCE).ok_or_else(timed_out)
        })
        .await
    }

    /// See [`super::Log::is_foreign`].
    pub fn is_foreign(&self) -> bool {
        self.0.names.is_foreign
    }

    /// Refuses to start where the brokers do not let us in.
    pub async fn check_login(&self) -> Result<(), LogError> {
        topics::check_login(&self.0.settings).await
    }

    /// See [`super::Log::record_bytes_max`].
    pub fn record_bytes_max(&self) -> usize {
        lock(&self.0.limits).record_bytes_max()
    }

    /// Ends capture's connections.
    pub async fn close(&self) {
        // Only a writer that hangs in a call to its broker is left to the end of the process.
        let closed = self.blocking(|inner| {
            lock(&inner.writer).take();
            lock(&inner.live_keys).take();
            Ok(())
        });
        if closed.await.is_err() {
            tracing::debug!("close the log: the task was ended");
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let inner = Arc::clone(&self.0);
        spawn_blocking(move || work(&inner)).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))
    }
}

impl Inner {
    fn append(&self, records: Vec<Outgoing>, state: Bytes) -> Result<Vec<Place>, LogError> {
        let Inner { settings, names, .. } = self;
        let mut held = lock(&self.writer);
        let Some(writer) = held.as_ref() else {
            return Err(LogError::NotTaken { topic: names.changes.clone() });
        };
        let mut placed = writer::place(&names.changes, settings.partitions, records);
        placed.push((names.state.as_str().into(), 0, state::record(CAPTURE, state)));
        match writer.transact(&placed, None) {
            Ok(Written { ends: written, mut places }) => {
                // The last record is the state's, of another topic.
                places.pop();
                let mut ends = lock(&self.ends);
                for (partition, end) in written.get(&names.changes).into_iter().flatten() {
                    if let Some(known) = ends.get_mut(usize::from(*partition)) {
                        *known = (*known).max(*end);
                    }
                }
                Ok(places)
            }
            Err(error) => {
                *held = None;
                Err(client::fault("append to", &names.changes)(error))
            }
        }
    }

    fn read_state(&self) -> Result<Option<CaptureState>, LogError> {
        let Some(value) = state::read(&self.settings, &self.names.state, CAPTURE)? else { return Ok(None) };
        let damaged = |_| LogError::Damaged { path: self.names.state.clone(), what: "capture's state".to_owned() };
        serde_json::from_slice(&value).map(Some).map_err(damaged)
    }

    fn read_ends(&self) -> Result<Offsets, LogError> {
        let fault = client::fault("ask for the ends of", &self.names.changes);
        let consumer = client::reader(&self.settings).map_err(&fault)?;
        let end = |partition| client::bounds(&consumer, &self.names.changes, partition).map(|(_, end)| end);
        (0..self.settings.partitions).map(end).collect::<Result<_, _>>().map_err(&fault)
    }
}

/// The topics that every process needs.
async fn ensure(inner: &Inner) -> Result<(), LogError> {
    let Inner { settings, names, .. } = inner;
    let partitions = settings.partitions;
    let wanted = [
        Wanted { name: &names.changes, partitions },
        Wanted { name: &names.dead_letters, partitions },
        Wanted { name: &names.state, partitions: 1 },
    ];
    *lock(&inner.limits) = topics::ensure(settings, &wanted, &[]).await?;
    Ok(())
}
