//! Keeps the mirror fed, and fills it again from `vectors` when asked: in place, or as a new generation beside it.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::task::AbortOnDropHandle;

use super::arrivals::Arrivals;
use super::generations::{Current, Generations};
use super::mirror::{Difference, Mirror, MirrorError};
use super::sink::{self, Seen, SinkError, Span, Told};
use crate::clock::now_ms;
use crate::metrics::PipelineMetrics;
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::replay::{Source, Target};
use crate::topic::{Log, LogError, Offsets};

/// A new generation that has less than this share of the rows is not switched to: the log must have lost them.
const SHARE_MIN: f64 = 0.5;

/// The index cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The log cannot be opened.
    #[error("read vectors into the mirror")]
    Log(#[from] LogError),
    /// The sink cannot go on.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The sink panicked: a defect.
    #[error("keep the mirror up")]
    Task(#[from] JoinError),
}

/// A replay that is wanted.
pub struct ReplayRequest {
    /// What is read again.
    pub topic: Source,
    /// Where to.
    pub into: Target,
    /// Told what came of it.
    pub done: oneshot::Sender<Result<Replayed, String>>,
    /// Told how many of how many offsets are passed.
    pub passed: watch::Sender<(u64, u64)>,
}

/// What a replay did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// The generation that answers now.
    pub generation: u32,
    /// Rows that it holds.
    pub rows: u64,
    /// Points that it holds.
    pub points: u64,
    /// How it differs from the one before; none where that was filled itself.
    pub difference: Option<Difference>,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// What feeds the mirror.
pub struct Index {
    /// The mirror.
    pub generations: Generations,
    /// The log.
    pub log: Log,
    /// The revision whose vectors are read.
    pub revision: String,
    /// Where it is counted.
    pub metrics: PipelineMetrics,
    /// Told of what the mirror has.
    pub arrivals: Arrivals,
}

/// A sink at work.
struct Feeding {
    stop: Shutdown,
    task: JoinHandle<Result<(), SinkError>>,
}

impl Feeding {
    /// Lets it finish what it is at.
    async fn stop(self) -> Result<(), IndexError> {
        self.stop.raise();
        Ok(self.task.await??)
    }
}

async fn stop(feeding: &mut Option<Feeding>) -> Result<(), IndexError> {
    match feeding.take() {
        Some(feeding) => feeding.stop().await,
        None => Ok(()),
    }
}

/// Why a replay came to nothing.
enum Fault {
    /// The index cannot go on either.
    Index(IndexError),
    /// Only the replay.
    Replay(String),
    /// Shutdown.
    Stopped,
}

impl<E> From<E> for Fault
where
    IndexError: From<E>,
{
    fn from(error: E) -> Self {
        Fault::Index(error.into())
    }
}

impl Index {
    /// Feeds the mirror until shutdown. `progress` has its positions whenever they move. Replays are done one after the
    /// other.
    pub async fn run(
        self,
        shutdown: Shutdown,
        progress: watch::Sender<Offsets>,
        mut requests: mpsc::Receiver<ReplayRequest>,
    ) -> Result<(), IndexError> {
        let told = Told { positions: progress, arrivals: self.arrivals.clone(), ..Told::default() };
        loop {
            let current = self.generations.current();
            let _noting = AbortOnDropHandle::new(tokio::spawn(note(
                self.generations.clone(),
                self.log.clone(),
                shutdown.clone(),
            )));
            if current.lost.is_some() {
                match self.refill(current, &shutdown).await {
                    Ok(()) => continue,
                    Err(Fault::Index(error)) => return Err(error),
                    Err(Fault::Replay(_) | Fault::Stopped) => return Ok(()),
                }
            }
            let mut feeding = self.feed(&current.mirror, Span::Follow, &shutdown, told.clone())?;
            let request = tokio::select! {
                ended = &mut feeding.task => match ended? {
                    Err(SinkError::Lost(reason)) => {
                        self.lost(&current, &Chain(&reason).to_string()).await;
                        continue;
                    }
                    ended => return Ok(ended?),
                },
                request = requests.recv() => request,
            };
            let Some(ReplayRequest { topic, into, done, passed }) = request else {
                return Ok(feeding.task.await??);
            };
            tracing::info!(?topic, ?into, "replay begins");
            let since = Instant::now();
            let embedded = match topic {
                Source::Changes => self.embed_again(&current, &mut feeding, &told.seen, &passed).await,
                Source::Vectors => Ok(()),
            };
            let replayed = match (embedded, topic, into) {
                (Err(Fault::Replay(reason)), ..) => {
                    feeding.stop().await?;
                    Err(Fault::Replay(reason))
                }
                (Err(fault), ..) => Err(fault),
                // It has followed all that was embedded again.
                (Ok(()), Source::Changes, Target::Current) => {
                    feeding.stop().await?;
                    Ok(replayed(&current, None))
                }
                (Ok(()), Source::Vectors, Target::Current) => self.again(current, feeding, &shutdown, &passed).await,
                (Ok(()), _, Target::New) => self.anew(current, feeding, &shutdown, &passed).await,
            };
            let answer = match replayed {
                Ok(mut replayed) => {
                    replayed.took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(
                        generation = replayed.generation,
                        rows = replayed.rows,
                        "replayed in {} ms",
                        replayed.took_ms
                    );
                    Ok(replayed)
                }
                // What follows the mirror finds it again.
                Err(Fault::Index(IndexError::Sink(SinkError::Lost(reason)))) => Err(Chain(&reason).to_string()),
                Err(Fault::Index(error)) => return Err(error),
                Err(Fault::Stopped) => return Ok(()),
                Err(Fault::Replay(reason)) => {
                    tracing::warn!("replay: {reason}");
                    Err(reason)
                }
            };
            // Who asked may have gone meanwhile.
            let _ = done.send(answer);
        }
    }

    fn feed(&self, mirror: &Mirror, span: Span, shutdown: &Shutdown, told: Told) -> Result<Feeding, LogError> {
        let (reader, stop) = (self.log.vectors(&self.revision)?, shutdown.child());
        let sink = sink::run(mirror.clone(), reader, span, self.metrics.clone(), stop.clone(), told);
        Ok(Feeding { stop, task: tokio::spawn(sink) })
    }

    /// The log is another one than the mirror was filled from.
    async fn lost(&self, current: &Current, reason: &str) {
        let done = if self.log.is_foreign() {
            // Only its owner can have it embedded again, and nobody tells when that is done.
            current.mirror.reset(reason).await
        } else {
            let rows = current.mirror.rows();
            tracing::error!(
                "{reason}: the mirror goes on answering with what it has, {rows} rows, and another is filled beside it"
            );
            self.generations.note_lost(reason).await
        };
        if let Err(error) = done {
            // It is found again.
            tracing::warn!("{}", Chain(&error));
        }
    }

    /// Fills a new generation from a log that has lost what the current one was filled from: all of `changes` is embedded
    /// again, and the new one takes over when it has seen the whole of it.
    async fn refill(&self, current: Current, shutdown: &Shutdown) -> Result<(), Fault> {
        let mut retry = Retry::new("mirror");
        loop {
            let fault = match self.filled_again(&current, shutdown).await {
                Err(Fault::Replay(reason)) => reason,
                Err(fault) => return Err(fault),
                Ok(()) => return Ok(()),
            };
            if !retry.wait(&fault, shutdown).await {
                return Err(Fault::Stopped);
            }
        }
    }

    async fn filled_again(&self, current: &Current, shutdown: &Shutdown) -> Result<(), Fault> {
        let failed = |error: MirrorError| Fault::Replay(Chain(&error).to_string());
        let next = self.generations.add().await.map_err(failed)?;
        let told = Told::default();
        let mut feeding = self.feed(&next.mirror, Span::Follow, shutdown, told.clone())?;
        let (unseen, _) = watch::channel((0, 0));
        let embedded = self.embed_again(&next, &mut feeding, &told.seen, &unseen).await;
        match embedded {
            Ok(()) => {
                feeding.stop().await?;
                let (rows, before) = (next.mirror.rows(), current.mirror.rows());
                self.generations.switch(next).await.map_err(failed)?;
                tracing::info!(rows, before, "the mirror was filled again and answers");
                Ok(())
            }
            Err(fault) => {
                if let Fault::Replay(_) = fault {
                    feeding.stop().await?;
                }
                self.generations.discard(next).await;
                Err(match fault {
                    // Once more.
                    Fault::Index(IndexError::Sink(SinkError::Lost(reason))) => {
                        Fault::Replay(Chain(&reason).to_string())
                    }
                    fault => fault,
                })
            }
        }
    }

    /// Has all of `changes` embedded again and follows what comes of it to its end.
    async fn embed_again(
        &self,
        current: &Current,
        feeding: &mut Feeding,
        seen: &watch::Sender<Seen>,
        passed: &watch::Sender<(u64, u64)>,
    ) -> Result<(), Fault> {
        let (mut seen, before, rows) = (seen.subscribe(), seen.borrow().upserts, current.mirror.rows());
        // Later than those that were seen, wherever the clock stands: it counts as seen when it, or a later one, was.
        let last = seen.borrow().replayed.values().max().copied().unwrap_or_default();
        let id = u64::try_from(now_ms()).unwrap_or_default().max(last + 1);
        if let Err(error) = self.log.ask_replay(id).await {
            return Err(Fault::Replay(Chain(&error).to_string()));
        }
        loop {
            tokio::select! {
                ended = &mut feeding.task => {
                    ended??;
                    return Err(Fault::Stopped);
                }
                Ok(()) = seen.changed() => {
                    let seen = seen.borrow_and_update();
                    passed.send_replace(((seen.upserts - before).min(rows), rows));
                    let whole = seen.replayed.values().filter(|replayed| **replayed >= id).count();
                    if whole == usize::from(current.mirror.partitions()) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes all that the log has up to the mirror's positions once more, over what is there.
    async fn again(
        &self,
        current: Current,
        feeding: Feeding,
        shutdown: &Shutdown,
        passed: &watch::Sender<(u64, u64)>,
    ) -> Result<Replayed, Fault> {
        feeding.stop().await?;
        self.take(&current.mirror, Span::Again(current.mirror.positions()), shutdown, passed).await?;
        Ok(replayed(&current, None))
    }

    /// Fills a new generation while the current one is followed and serves; where both stand at the same place, compares
    /// them and switches.
    async fn anew(
        &self,
        current: Current,
        feeding: Feeding,
        shutdown: &Shutdown,
        passed: &watch::Sender<(u64, u64)>,
    ) -> Result<Replayed, Fault> {
        let failed = |error: MirrorError| Fault::Replay(Chain(&error).to_string());
        let mut feeding = Some(feeding);
        let next = match self.generations.add().await {
            Ok(next) => next,
            Err(error) => {
                stop(&mut feeding).await?;
                return Err(failed(error));
            }
        };
        let filled = async {
            self.take(&next.mirror, Span::UpTo(current.mirror.positions()), shutdown, passed).await?;
            // What has come meanwhile; nothing more comes into the current one from here on.
            stop(&mut feeding).await?;
            self.take(&next.mirror, Span::UpTo(current.mirror.positions()), shutdown, passed).await?;
            let difference = current.mirror.compare(&next.mirror);
            let before = difference.same + difference.different + difference.only_old;
            if (difference.rows as f64) < SHARE_MIN * before as f64 {
                return Err(Fault::Replay(format!(
                    "the log gave {} rows where {before} are searchable, so nothing was switched: `vecsync sync` publishes \
                     the table again",
                    difference.rows
                )));
            }
            Ok(difference)
        };
        let filled = filled.await;
        stop(&mut feeding).await?;
        match filled {
            Ok(difference) => {
                self.generations.switch(next).await.map_err(failed)?;
                Ok(replayed(&self.generations.current(), Some(difference)))
            }
            Err(fault) => {
                self.generations.discard(next).await;
                Err(fault)
            }
        }
    }

    /// Runs a sink to the end of its span.
    async fn take(
        &self,
        mirror: &Mirror,
        span: Span,
        shutdown: &Shutdown,
        passed: &watch::Sender<(u64, u64)>,
    ) -> Result<(), Fault> {
        let told = Told::default();
        let mut positions = told.positions.subscribe();
        let total = span.until().map_or(0, |until| until.iter().sum());
        let mut feeding = self.feed(mirror, span, shutdown, told)?;
        loop {
            tokio::select! {
                ended = &mut feeding.task => {
                    ended??;
                    return if shutdown.is_raised() { Err(Fault::Stopped) } else { Ok(()) };
                }
                Ok(()) = positions.changed() => {
                    passed.send_replace((positions.borrow_and_update().iter().sum(), total));
                }
            }
        }
    }
}

/// Notes beside the mirror which log it is filled from, for who finds it without that log.
async fn note(generations: Generations, log: Log, shutdown: Shutdown) {
    let mut retry = Retry::new("mirror");
    loop {
        let noted = match log.id().await {
            Ok(id) => generations.note_log(&id).await.map_err(|error| Chain(&error).to_string()),
            Err(error) => Err(Chain(&error).to_string()),
        };
        match noted {
            Err(fault) if retry.wait(&fault, &shutdown).await => {}
            _ => return,
        }
    }
}

fn replayed(current: &Current, difference: Option<Difference>) -> Replayed {
    let (rows, points) = (current.mirror.rows(), current.mirror.points());
    Replayed { generation: current.number, rows, points, difference, took_ms: 0 }
}
