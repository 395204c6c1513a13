//! Postgres → `changes`: connects, decides how to start, keeps the stream and its snapshot going.
//!
//! **Invariant:** the slot is confirmed only up to what the log has durably acknowledged and recorded.

pub mod catalog;
pub mod check;
pub mod connection;
pub mod documents;
pub mod fault;
mod joined;
mod link;
mod login;
pub mod pgoutput;
pub mod progress;
pub mod publication;
pub mod reread;
pub mod reselect;
pub mod sequencer;
mod session;
pub mod slot;
pub mod snapshot;
pub mod socket;
pub mod sql;
pub mod standing;
pub mod survey;
pub mod tls;
mod trail;
pub mod values;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{Database, Source};
use crate::event::RowKey;
use crate::metrics::PipelineMetrics;
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::{Log, LogError, Offsets, SnapshotMarker};

pub use progress::Refusal;
pub use standing::{Received, Standing, watch_source};

/// Given the columns that there are, says of every other one that the pipeline names where it names it.
pub type ColumnCheck = Arc<dyn Fn(&[&str]) -> Vec<String> + Send + Sync>;

/// How many records of the log nobody has embedded and stored yet; `None`: not known now.
pub type Behind = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// SQLSTATE `undefined_object`.
const UNDEFINED_OBJECT: &str = "42704";
/// SQLSTATE of a lock that was not got in `lock_timeout`.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// SQLSTATE of a slot that is there already.
const DUPLICATE_OBJECT: &str = "42710";

/// SQLSTATE `internal_error`, and what the server says, in no other language, of a change whose table it does not find: a slot
/// that was made while somebody truncated the table can meet one, and then never gets past it (seen on 15.18).
const UNDECODABLE: (&str, &str) = ("XX000", "could not map filenode");
/// Sessions in a row that end with that before it is taken for what it is.
const UNDECODABLE_MAX: u32 = 3;

/// How often one that stands by looks whether the slot is free.
const STANDBY_LOOK: Duration = Duration::from_secs(1);

/// What capture follows and where it writes.
#[derive(Clone)]
pub struct Capture {
    /// The source.
    pub database: Database,
    /// Table, publication, slot.
    pub source: Source,
    /// The pipeline's name.
    pub pipeline: String,
    /// Says what is wrong with a pipeline that finds only these columns.
    pub check_columns: ColumnCheck,
    /// Where changes go.
    pub log: Log,
    /// Counters.
    pub metrics: PipelineMetrics,
    /// How far the log is.
    pub received: Received,
    /// How much of it is on its way.
    pub behind: Option<Behind>,
}

/// What capture is doing, for health and progress.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// The last moment up to which everything committed is in the log.
    pub current: Option<Current>,
    /// The snapshot.
    pub snapshot: SnapshotProgress,
    /// The last snapshot that this process has brought to its end.
    pub finished: Finished,
    /// Why the pipeline's query is not one of documents by key, if it has shown that.
    pub query: Option<String>,
}

/// A snapshot that is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Which one of this process, from 1; 0: none yet.
    pub number: u64,
    /// Rows that were read.
    pub rows: u64,
    /// Of them those of which a live event was newer.
    pub superseded: u64,
    /// Rows that the log had and the table has not.
    pub gone: u64,
    /// When, milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// How the table is to be read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whether texts that did not change are embedded again, too.
    pub force: bool,
    /// Rows of a batch; 0: as many as it takes by itself.
    pub batch_rows: u32,
}

/// What capture is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Connecting.
    #[default]
    Starting,
    /// Streaming.
    Streaming,
    /// Another process streams; this one takes over when it ends.
    Standby(String),
    /// A passing fault; it is tried again.
    Retrying(String),
    /// A resync is needed.
    Refused(String),
}

impl Phase {
    /// What capture can be doing, as metrics and the status name it.
    pub const NAMES: [&str; 5] = ["starting", "streaming", "standby", "retrying", "refused"];

    /// The one of these that it is.
    pub fn name(&self) -> &'static str {
        let place = match self {
            Phase::Starting => 0,
            Phase::Streaming => 1,
            Phase::Standby(_) => 2,
            Phase::Retrying(_) => 3,
            Phase::Refused(_) => 4,
        };
        Self::NAMES[place]
    }
}

/// Everything committed before `as_of_ms` is in `changes` below `ends`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// Milliseconds since the Unix epoch.
    pub as_of_ms: i64,
    /// Ends of `changes` at that moment.
    pub ends: Offsets,
}

/// How far the snapshot is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotProgress {
    /// Whether all of it is in the log.
    pub complete: bool,
    /// Whether the index cannot be trusted before it is complete: the first load, or changes may have been missed.
    pub needed: bool,
    /// Rows read so far.
    pub rows: u64,
    /// Rows that the table has, as the server counts or estimates them, where it can.
    pub expected: Option<u64>,
    /// Ends of `changes` when it was complete.
    pub ends: Offsets,
}

/// What capture is asked to do beside following the table. Who asked may have given up.
#[derive(Debug)]
pub enum Request {
    /// To bring the log back to the table; answered when it has begun, or when one that had begun serves as well: it reads
    /// as of a moment, and what came later comes with the stream.
    Resync(Wanted, oneshot::Sender<Result<u64, String>>),
    /// To read the rows of these keys and publish them again, with new versions; answered when that is durable, key by
    /// key. At most [`REPUBLISH_KEYS_MAX`] at a time.
    Republish(Vec<RowKey>, oneshot::Sender<Result<Vec<(RowKey, Republished)>, String>>),
}

/// Keys that one request may name: their rows are held in memory until the stream has passed the moment of reading.
pub const REPUBLISH_KEYS_MAX: usize = 100;

/// What became of a key that was to be published again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Republished {
    /// Its row was published.
    Row,
    /// It has no row, and its delete was published.
    Gone,
    /// A change of its row came by itself meanwhile.
    Changed,
    /// It is no key of the table, and why.
    Refused(String),
}

/// Capture cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] connection::ConnectError),
    /// A command of the replication connection failed.
    #[error(transparent)]
    Command(#[from] connection::CommandError),
    /// The stream broke.
    #[error(transparent)]
    Stream(#[from] connection::StreamError),
    /// The table cannot be followed.
    #[error(transparent)]
    Catalog(#[from] catalog::CatalogError),
    /// The pipeline names columns that the table lacks.
    #[error("{}; mend the pipeline file and start again, or mend the table", .0.trim_end_matches(';'))]
    Columns(String),
    /// A message of the stream cannot be read.
    #[error("read the stream at {lsn}")]
    Decode {
        /// Where.
        lsn: crate::event::Lsn,
        /// What is wrong with it.
        source: pgoutput::DecodeError,
    },
    /// The stream cannot be followed.
    #[error(transparent)]
    Sequence(#[from] sequencer::SequenceError),
    /// Unchanged columns could not be completed.
    #[error("complete unchanged columns of {table}")]
    Reselect {
        /// The table.
        table: String,
        /// Why not.
        source: reselect::ReselectError,
    },
    /// A query of the pipeline failed.
    #[error("run {place}")]
    Run {
        /// Its place in the pipeline file.
        place: String,
        /// Why.
        source: reselect::ReselectError,
    },
    /// The snapshot failed.
    #[error(transparent)]
    Snapshot(#[from] snapshot::SnapshotError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A slot that is of no use any more could not be removed.
    #[error("drop replication slot {slot}")]
    DropSlot {
        /// The slot.
        slot: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// Changes may have been left out of the stream. The table is read again as soon as it is published.
    #[error("publication {0} was changed while it was read from: the table is read again")]
    PublicationChanged(String),
    /// The source does not answer.
    #[error("ask the source: no answer for {} s", .0.as_secs())]
    Silent(Duration),
    /// Going on could lose changes.
    #[error("{0}{remedy}", remedy = .0.remedy())]
    Refused(Refusal),
    /// Another process streams from the slot.
    #[error("replication slot {slot} is in use by server process {pid}; waiting to take over")]
    Standby {
        /// The slot.
        slot: String,
        /// The server process.
        pid: i32,
    },
}

/// What an error means for capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Try again.
    Passing,
    /// Settings or the database must be changed by a person.
    Configuration,
    /// A resync is needed.
    Resync,
    /// The log takes nothing more until it is opened again.
    Fatal,
}

impl CaptureError {
    /// A slot decodes with the catalog of each moment: where the publication was missing at one, it never gets past.
    fn refined(self, publication: &str) -> Self {
        let code = match &self {
            CaptureError::Stream(error) => error.code(),
            CaptureError::Command(error) => error.code(),
            _ => None,
        };
        if code == Some(UNDEFINED_OBJECT) && self.to_string().contains("publication") {
            return CaptureError::Refused(Refusal::PublicationMissing { publication: publication.to_owned() });
        }
        self
    }

    /// Whether the server cannot decode a change, or nobody can follow what it decodes.
    fn is_undecodable(&self) -> bool {
        match self {
            CaptureError::Stream(error) => {
                error.code() == Some(UNDECODABLE.0) && Chain(error).to_string().contains(UNDECODABLE.1)
            }
            // It comes again however often the slot is read.
            CaptureError::Sequence(sequencer::SequenceError::KeyMissing { .. }) => true,
            _ => false,
        }
    }

    /// Whether somebody else has had a lock on the table for too long. With the session its snapshot ends, which may be what
    /// they wait for: so the next attempt is the first of a new fault.
    fn is_of_a_lock(&self) -> bool {
        let (CaptureError::Reselect { source, .. } | CaptureError::Run { source, .. }) = self else { return false };
        let reselect::ReselectError::Query(error) = source else { return false };
        error.code().is_some_and(|code| code.code() == LOCK_NOT_AVAILABLE)
    }

    /// Whether settings or the database must be changed by a person.
    pub fn is_for_a_person(&self) -> bool {
        self.outcome() == Outcome::Configuration
    }

    fn outcome(&self) -> Outcome {
        let by = |transient| if transient { Outcome::Passing } else { Outcome::Configuration };
        match self {
            CaptureError::Connect(error) => by(error.is_transient()),
            // Another capture that starts at the same moment has made the slot.
            CaptureError::Command(error) if error.code() == Some(DUPLICATE_OBJECT) => Outcome::Passing,
            CaptureError::Command(error) => by(error.is_transient()),
            CaptureError::Catalog(error) => by(error.is_transient()),
            CaptureError::Columns(_) => Outcome::Configuration,
            CaptureError::Stream(_)
            | CaptureError::Decode { .. }
            | CaptureError::Sequence(_)
            | CaptureError::Reselect { .. }
            | CaptureError::Run { .. }
            | CaptureError::Silent(_)
            | CaptureError::PublicationChanged(_)
            | CaptureError::DropSlot { .. }
            | CaptureError::Standby { .. } => Outcome::Passing,
            CaptureError::Snapshot(error) => match error {
                snapshot::SnapshotError::Connect(error) => by(error.is_transient()),
                snapshot::SnapshotError::Slot(error) => by(error.is_transient()),
                snapshot::SnapshotError::Query { source, .. } => by(fault::is_transient_sql(source)),
                _ => Outcome::Passing,
            },
            CaptureError::Refused(_) => Outcome::Resync,
            CaptureError::Log(LogError::Topic { .. }) => Outcome::Configuration,
            CaptureError::Log(error) if error.is_passing() => Outcome::Passing,
            CaptureError::Log(_) => Outcome::Fatal,
        }
    }
}

/// Prepares a resync for the next start: the log must be open, no vecsync may run on it.
pub async fn prepare_resync(capture: &Capture, wanted: Wanted) -> Result<(), CaptureError> {
    session::reset(capture, wanted).await
}

/// Follows the table until shutdown. Passing faults are retried. A fault that only a person can mend ends a
/// capture that has never streamed; one that has streamed keeps trying, because searches are being served.
pub async fn run(
    capture: Capture,
    status: watch::Sender<Status>,
    mut requests: mpsc::Receiver<Request>,
    shutdown: Shutdown,
) -> Result<(), CaptureError> {
    let mut retry = Retry::new("capture");
    let mut undecodable = 0;
    loop {
        let ended = session::run(&capture, &status, &mut requests, &mut retry, &shutdown).await;
        let error = match ended {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let mut error = error.refined(&capture.source.publication);
        undecodable = if error.is_undecodable() { undecodable + 1 } else { 0 };
        if undecodable == UNDECODABLE_MAX {
            let (slot, reason) = (capture.source.slot.clone(), Chain(&error).to_string());
            undecodable = 0;
            error = match renew(&capture).await {
                // The next session begins with it.
                Ok(true) => error,
                Ok(false) => CaptureError::Refused(Refusal::SlotUndecodable { slot, reason }),
                Err(fault) => fault,
            };
        }
        let fault = Chain(&error).to_string();
        match error.outcome() {
            Outcome::Fatal => return Err(error),
            // A start that has loaded nothing serves nobody: better to end with the reason.
            Outcome::Configuration if !is_loaded(&capture).await => return Err(error),
            Outcome::Passing if matches!(error, CaptureError::Standby { .. }) => {
                if !matches!(status.borrow().phase, Phase::Standby(_)) {
                    tracing::info!("standing by: {fault}");
                }
                status.send_modify(|status| status.phase = Phase::Standby(fault.clone()));
                // The one that streams is no fault, and when it ends somebody is to take over soon.
                retry.reset();
                tokio::select! {
                    biased;
                    () = shutdown.raised() => return Ok(()),
                    () = tokio::time::sleep(STANDBY_LOOK) => {}
                    Some(request) = requests.recv() => answer(&capture, &status, request, &fault).await,
                }
            }
            Outcome::Passing | Outcome::Configuration => {
                if error.is_of_a_lock() {
                    retry.reset();
                }
                status.send_modify(|status| status.phase = Phase::Retrying(fault.clone()));
                tokio::select! {
                    again = retry.wait(&fault, &shutdown) => if !again { return Ok(()) },
                    Some(request) = requests.recv() => answer(&capture, &status, request, &fault).await,
                }
            }
            Outcome::Resync => {
                tracing::error!("{fault}");
                status.send_modify(|status| status.phase = Phase::Refused(fault.clone()));
                tokio::select! {
                    biased;
                    () = shutdown.raised() => return Ok(()),
                    Some(request) = requests.recv() => answer(&capture, &status, request, &fault).await,
                }
            }
        }
    }
}

/// Makes a slot anew that cannot be decoded, where the table is to be read anyway: what it skips, the snapshot brings. Says
/// whether that is so.
async fn renew(capture: &Capture) -> Result<bool, CaptureError> {
    let state = capture.log.capture_state().await?;
    let Some(state) = state.filter(|state| state.snapshot == SnapshotMarker::Wanted) else { return Ok(false) };
    tracing::warn!(slot = capture.source.slot, "the server cannot decode what the slot has to pass: it is made anew");
    session::reset(capture, Wanted { force: false, batch_rows: state.resync.batch_rows }).await?;
    Ok(true)
}

/// Whether the log has something to serve, as far as it can be asked.
async fn is_loaded(capture: &Capture) -> bool {
    let state = capture.log.capture_state().await.ok().flatten();
    let complete = state.is_some_and(|state| state.snapshot == SnapshotMarker::Complete);
    complete || capture.log.changes_ends().iter().any(|end| *end > 0)
}

/// Takes up a request while no session runs, because of `fault`.
async fn answer(capture: &Capture, status: &watch::Sender<Status>, request: Request, fault: &str) {
    match request {
        Request::Resync(wanted, done) => {
            let begun = session::reset(capture, wanted).await.map_err(|error| Chain(&error).to_string());
            match &begun {
                // What was refused is mended: who waits for the snapshot must not take it for refused again.
                Ok(()) => status.send_modify(|status| status.phase = Phase::Starting),
                Err(fault) => tracing::error!("resync: {fault}"),
            }
            let _ = done.send(begun.map(|()| status.borrow().finished.number));
        }
        Request::Republish(_, done) => drop(done.send(Err(format!("the table is not followed now: {fault}")))),
    }
}
