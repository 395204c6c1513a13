//! Answers the commands that reach a running vecsync: hands each to the room that can do it.

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::letters;
use crate::capture;
use crate::control::{self, Passed, Reply, Request};
use crate::index::ReplayRequest;
use crate::topic::Log;
use crate::topic::replay::{Source, Target};

/// The ways to the rooms.
#[derive(Clone)]
pub(super) struct Commands {
    pub log: Log,
    pub captures: mpsc::Sender<capture::Request>,
    pub replays: mpsc::Sender<ReplayRequest>,
}

impl Commands {
    pub fn handler(self) -> control::Handler {
        std::sync::Arc::new(move |request, passed| {
            let commands = self.clone();
            Box::pin(async move { commands.answer(request, passed).await })
        })
    }

    async fn answer(self, request: Request, passed: Passed) -> Reply {
        match request {
            Request::Sync => match self.resync().await {
                Ok(()) => Reply::Done(Value::Null),
                Err(reason) => Reply::Failed(format!("the resync did not begin: {reason}")),
            },
            Request::RetryDeadLetters { ids } => letters::retry(&self.log, &self.captures, ids).await,
            Request::Replay { topic, into } => match self.replay(topic, into, passed).await {
                Ok(replayed) => Reply::Done(replayed),
                Err(reason) => Reply::Failed(reason),
            },
            reading => letters::answer(&self.log, reading).await,
        }
    }

    async fn resync(&self) -> Result<(), String> {
        let (done, answered) = oneshot::channel();
        let ended = || "capture has ended".to_owned();
        self.captures.send(capture::Request::Resync(done)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    async fn replay(&self, topic: Source, into: Target, passed: Passed) -> Result<Value, String> {
        let (done, answered) = oneshot::channel();
        let request = ReplayRequest { topic, into, done, passed };
        self.replays.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "another replay waits already; try again when it is done".to_owned(),
            mpsc::error::TrySendError::Closed(_) => "this process keeps no store".to_owned(),
        })?;
        let replayed = answered.await.map_err(|_| "vecsync stopped meanwhile; run it again".to_owned())?;
        replayed.map(|replayed| json!(replayed))
    }
}
