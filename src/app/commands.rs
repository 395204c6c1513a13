//! Answers the commands that reach a running vecsync: hands each to the room that can do it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::backup::Backups;
use super::failover::Failover;
use super::letters;
use super::resync::Resyncs;
use super::serving::Shared;
use super::verify::Verifier;
use crate::capture::{self, REPUBLISH_KEYS_MAX, Republished};
use crate::control::{self, Passed, Reply, Request};
use crate::event::RowKey;
use crate::index::{Primary, PrimaryState, RebuildRequest, Rebuilt, ReplayRequest};
use crate::remedy;
use crate::retry::Chain;
use crate::topic::Log;
use crate::topic::replay::{Source, Target};

/// How long a fault of Qdrant may last that is there when something is asked of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest drill.
pub const DRILL_SECONDS_MAX: u64 = 3600;
/// How long a drill goes on when who asked for it is gone.
const DRILL_LEASE: Duration = Duration::from_secs(2);
const STOPPED: &str = "vecsync stopped meanwhile; run it again";

/// The ways to the rooms.
#[derive(Clone)]
pub(super) struct Commands {
    pub log: Log,
    pub resyncs: Resyncs,
    pub captures: mpsc::Sender<capture::Request>,
    pub replays: mpsc::Sender<ReplayRequest>,
    /// Qdrant, where this process writes to it.
    pub rebuilds: Option<(Primary, mpsc::Sender<RebuildRequest>)>,
    pub verifier: Verifier,
    /// The breaker, where there is a Qdrant, and who answers in its place.
    pub drills: Option<(Failover, Arc<Shared>)>,
    /// Where this process keeps a store.
    pub backups: Option<Backups>,
}

impl Commands {
    /// Answers for the pipeline that is at work where this is called.
    pub fn handler(self) -> control::Handler {
        let pipeline = remedy::pipeline();
        Arc::new(move |request, passed| {
            let (commands, pipeline) = (self.clone(), pipeline.clone());
            // A letter is shown as it is.
            let is_text_ours = !matches!(request, Request::DeadLetters | Request::DeadLetter { .. });
            Box::pin(async move {
                let answering = Box::pin(commands.answer(request, passed));
                let mut reply = remedy::about(pipeline.clone(), answering).await;
                match (&mut reply, pipeline) {
                    (Reply::Failed(reason), Some(name)) => *reason = remedy::named(reason, &name).into_owned(),
                    (Reply::Done(said), Some(name)) if is_text_ours => remedy::named_in(said, &name),
                    (Reply::Failed(_) | Reply::Done(_), _) => {}
                }
                reply
            })
        })
    }

    async fn answer(self, request: Request, passed: Passed) -> Reply {
        match request {
            Request::Sync { force, batch_rows } => {
                match self.resyncs.resync(capture::Wanted { force, batch_rows }, &passed).await {
                    Ok(resynced) => Reply::Done(json!(resynced)),
                    Err(reason) => Reply::Failed(reason),
                }
            }
            Request::Arrive { as_of_ms } => Reply::Done(json!(self.resyncs.arrive(as_of_ms, &passed).await)),
            Request::SourceStats => Reply::Done(json!(self.resyncs.source_stats().await)),
            Request::StoreStats => Reply::Done(json!(self.resyncs.store_stats())),
            Request::RetryDeadLetters { ids } => letters::retry(&self.log, &self.captures, ids).await,
            Request::Replay { topic, into } => match self.replay(topic, into, passed).await {
                Ok(replayed) => Reply::Done(replayed),
                Err(reason) => Reply::Failed(reason),
            },
            Request::Recreate => match self.rebuild(true, passed).await {
                Ok(Some(rebuilt)) => Reply::Done(json!(rebuilt)),
                Ok(None) => Reply::Failed("this process writes to no Qdrant; QDRANT_HOST is not set there".to_owned()),
                Err(reason) => Reply::Failed(reason),
            },
            Request::Verify { repair } => match self.verifier.verify(repair, passed).await {
                Ok(report) => Reply::Done(json!(report)),
                Err(reason) => Reply::Failed(reason),
            },
            Request::Drill { seconds } => match &self.drills {
                Some((_, shared)) if !shared.is_local_whole() => Reply::Failed(
                    "the mirror is not whole, so nothing could answer in Qdrant's place; `vecsync status` says why"
                        .to_owned(),
                ),
                Some((failover, _)) => {
                    hold(failover, Duration::from_secs(seconds.min(DRILL_SECONDS_MAX)), &passed).await;
                    Reply::Done(Value::Null)
                }
                None => {
                    Reply::Failed("there is no fallback to try: it has no Qdrant, QDRANT_HOST is not set".to_owned())
                }
            },
            Request::Backup { dir } => match &self.backups {
                Some(backups) => match backups.make(&dir, passed).await {
                    Ok(report) => Reply::Done(json!(report)),
                    Err(error) => Reply::Failed(Chain(&error).to_string()),
                },
                None => Reply::Failed("this process keeps no store".to_owned()),
            },
            Request::Republish { keys } => match self.republish(&keys).await {
                Ok(republished) => Reply::Done(json!(republished)),
                Err(reason) => Reply::Failed(reason),
            },
            reading => letters::answer(&self.log, reading).await,
        }
    }

    async fn republish(&self, keys: &[String]) -> Result<Vec<(String, Republished)>, String> {
        if keys.len() > REPUBLISH_KEYS_MAX {
            return Err(format!("{} keys, {REPUBLISH_KEYS_MAX} are the most", keys.len()));
        }
        let keys = keys.iter().map(|key| RowKey::from_bytes(key.as_bytes())).collect::<Result<_, _>>();
        let keys = keys.map_err(|error| error.to_string())?;
        let republished = letters::republish(&self.captures, keys).await?;
        Ok(republished.into_iter().map(|(key, became)| (key.as_str().to_owned(), became)).collect())
    }

    async fn replay(&self, topic: Source, into: Target, passed: Passed) -> Result<Value, String> {
        let (done, answered) = oneshot::channel();
        let request = ReplayRequest { topic, into, done, passed: passed.clone() };
        self.replays.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "another replay waits already; try again when it is done".to_owned(),
            mpsc::error::TrySendError::Closed(_) => "this process keeps no store".to_owned(),
        })?;
        let replayed = answered.await.map_err(|_| STOPPED.to_owned())?;
        let mut said = json!(replayed?);
        if into == Target::New {
            // What was embedded again goes the way of every change; the new generation has it from the log, too.
            let rebuilt = self.rebuild(false, passed).await;
            let rebuilt = rebuilt.map_err(|reason| format!("the mirror was filled anew, Qdrant was not: {reason}"))?;
            said["qdrant"] = json!(rebuilt);
        }
        Ok(said)
    }

    /// Fills a new generation in Qdrant. `None`: this process writes to none.
    async fn rebuild(&self, removes_others: bool, passed: Passed) -> Result<Option<Rebuilt>, String> {
        let Some((primary, rebuilds)) = &self.rebuilds else { return Ok(None) };
        // A fault that passes takes the writer as long as a look.
        let is_well = |state: &PrimaryState| state.fault.is_none() && state.sink_fault.is_none();
        if timeout(PATIENCE, primary.subscribe().wait_for(is_well)).await.is_err() {
            let state = primary.state();
            return Err(state.fault.or(state.sink_fault).unwrap_or_default());
        }
        let (done, answered) = oneshot::channel();
        rebuilds.try_send(RebuildRequest { removes_others, done, passed }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                "Qdrant is being filled already; try again when it is done".to_owned()
            }
            mpsc::error::TrySendError::Closed(_) => STOPPED.to_owned(),
        })?;
        answered.await.map_err(|_| STOPPED.to_owned())?.map(Some)
    }
}

/// Holds the breaker open, a little at a time, for as long as somebody waits for the end of it.
async fn hold(failover: &Failover, length: Duration, passed: &Passed) {
    let until = Instant::now() + length;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || passed.is_closed() {
            return;
        }
        failover.hold(left.min(DRILL_LEASE));
        let done = length.saturating_sub(left);
        passed.send_replace((done.as_secs(), length.as_secs()));
        tokio::time::sleep(left.min(DRILL_LEASE / 2)).await;
    }
}
