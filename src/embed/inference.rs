//! The threads that run the model and the queues before them: one for rows, one for queries. A query that comes alone is
//! embedded where it is asked for. Knows token ids and vectors.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio::task::block_in_place;

use super::batch;
use super::model::{EmbedError, Model, TOKENS_MAX, Vector};
use super::tokens::{self, TokenIds};
use crate::metrics;

type Outcome = Result<Vector, EmbedError>;

/// Texts that were asked for together.
struct Job {
    texts: Vec<TokenIds>,
    progress: Mutex<Progress>,
}

/// What has become of a job. Who asked for it is woken once, by the last call.
struct Progress {
    outcomes: Vec<Outcome>,
    calls_left: usize,
    reply: Option<oneshot::Sender<Vec<Outcome>>>,
}

/// Some of a job's texts, for one call of the model.
struct Call {
    job: Arc<Job>,
    members: Vec<usize>,
}

struct Queue {
    state: Mutex<State>,
    /// Threads that take rows wait here.
    for_rows: Condvar,
    /// The one that takes queries alone.
    for_queries: Condvar,
    /// How many queries are embedded at the same time: more of them than cores only take turns.
    queries_at_once: usize,
}

/// A call on a thread.
struct Turn {
    call: Call,
    /// What a query gives back.
    place: Option<Place>,
}

/// Of the queries that are embedded at the same time, one; with the model for queries, if that is not with a thread.
struct Place {
    queue: Arc<Queue>,
    model: Option<Model>,
}

/// Whose rows they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane(u64);

/// What waits, of each lane in its order. The lanes have turns, so that nobody's backfill holds up somebody else's rows.
struct Lanes<T> {
    waiting: VecDeque<(Lane, VecDeque<T>)>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Lanes { waiting: VecDeque::new() }
    }
}

impl<T> Lanes<T> {
    fn extend(&mut self, lane: Lane, more: Vec<T>) {
        match self.waiting.iter_mut().find(|(of, _)| *of == lane) {
            Some((_, calls)) => calls.extend(more),
            None if more.is_empty() => {}
            None => self.waiting.push_back((lane, more.into())),
        }
    }

    /// The next of the lane whose turn it is.
    fn pop(&mut self) -> Option<T> {
        let (lane, mut calls) = self.waiting.pop_front()?;
        let next = calls.pop_front();
        if !calls.is_empty() {
            self.waiting.push_back((lane, calls));
        }
        next
    }

    fn len(&self) -> usize {
        self.waiting.iter().map(|(_, calls)| calls.len()).sum()
    }
}

#[derive(Default)]
struct State {
    rows: Lanes<Call>,
    queries: VecDeque<Call>,
    /// Queries that are being embedded.
    queries_running: usize,
    /// The model for queries, unless one is being embedded by it.
    for_queries: Option<Model>,
    /// Threads that wait for rows.
    idle: usize,
    /// The thread for queries alone waits, and was not woken yet.
    is_query_idle: bool,
    closed: bool,
}

/// What a thread takes. A queue's order is kept.
#[derive(Clone, Copy)]
enum Takes {
    /// Rows, and queries while there are none: nobody else needs the core then.
    RowsFirst,
    /// Queries alone, so that none waits for a backfill.
    Queries,
}

/// Models: each of those for rows on a thread of its own; that for queries is with whoever embeds one.
pub struct Inference {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    /// How many of them take rows.
    for_rows: usize,
    budget: usize,
    lanes: AtomicU64,
}

impl Inference {
    /// Starts a thread for each model. A call with rows holds at most `budget` tokens, padding included; 0: one text a call.
    pub fn start(rows: Vec<Model>, query: Model, budget: usize) -> io::Result<Inference> {
        let queue = Arc::new(Queue::new(rows.len(), query));
        // Made before the first thread, so that those already started are joined if a later one cannot be.
        let mut inference = Inference {
            queue: Arc::clone(&queue),
            threads: vec![],
            for_rows: rows.len(),
            budget,
            lanes: AtomicU64::new(0),
        };
        let rows = rows.into_iter().map(|model| (Some(model), Takes::RowsFirst));
        for (model, takes) in rows.chain([(None, Takes::Queries)]) {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name("embed".into());
            inference.threads.push(thread.spawn(move || serve(model, &queue, takes))?);
        }
        Ok(inference)
    }

    /// A lane that nobody has.
    pub fn lane(&self) -> Lane {
        Lane(self.lanes.fetch_add(1, Ordering::Relaxed))
    }

    /// Queries that wait.
    pub fn queries_waiting(&self) -> usize {
        self.queue.lock().queries.len()
    }

    /// Embeds a query. Where none is waiting, and the runtime has other threads, it is done on this one: to hand it to another
    /// and be woken by that takes a tenth of the time of a short one.
    pub async fn query(&self, text: TokenIds) -> Outcome {
        let has_others = Handle::try_current().is_ok_and(|here| here.runtime_flavor() == RuntimeFlavor::MultiThread);
        if has_others && let Some(mut place) = self.queue.at_once() {
            return block_in_place(|| place.embed(&text));
        }
        let enqueue = |state: &mut State, calls| state.queries.extend(calls);
        self.run(vec![text], |_| vec![vec![0]], enqueue).await.pop().unwrap_or(Err(EmbedError::Stopped))
    }

    /// Embeds texts of rows; the results are in their order.
    pub async fn embed(&self, lane: Lane, texts: Vec<TokenIds>) -> Vec<Outcome> {
        // Few texts are spread over all threads.
        let pack = |lengths: &[usize]| {
            let share = lengths.iter().sum::<usize>().div_ceil(self.for_rows.max(1));
            batch::pack(lengths, self.budget.min(share))
        };
        self.run(texts, pack, |state, calls| state.rows.extend(lane, calls)).await
    }

    /// Runs the model over texts. When the future is dropped, calls that have not begun are not made. The queues are bounded
    /// by what their callers embed at a time.
    async fn run(
        &self,
        texts: Vec<TokenIds>,
        pack: impl FnOnce(&[usize]) -> Vec<Vec<usize>>,
        enqueue: impl FnOnce(&mut State, Vec<Call>),
    ) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = texts.iter().map(|_| Err(EmbedError::Stopped)).collect();
        let mut members = vec![];
        for (index, text) in texts.iter().enumerate() {
            match check_length(text) {
                Ok(()) => members.push(index),
                Err(fault) => outcomes[index] = Err(fault),
            }
        }
        let lengths: Vec<usize> = members.iter().map(|index| texts[*index].len()).collect();
        if members.is_empty() {
            return outcomes;
        }
        let calls = pack(&lengths);
        let texts_count = texts.len();
        let (reply, finished) = oneshot::channel();
        let progress = Progress { outcomes, calls_left: calls.len(), reply: Some(reply) };
        let job = Arc::new(Job { texts, progress: Mutex::new(progress) });
        let calls = calls.into_iter().map(|call| {
            let members = call.into_iter().map(|position| members[position]).collect();
            Call { job: Arc::clone(&job), members }
        });
        self.queue.add(|state| enqueue(state, calls.collect()));
        // The last of the calls replies, whatever becomes of it.
        finished.await.unwrap_or_else(|_| vec![Err(EmbedError::Stopped); texts_count])
    }
}

impl Drop for Inference {
    /// Ends the threads after the calls that they are in.
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.for_rows.notify_all();
        self.queue.for_queries.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that ran the model panicked");
            }
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new(for_rows: usize, query: Model) -> Self {
        let state = Mutex::new(State { for_queries: Some(query), ..State::default() });
        let (rows, queries) = (Condvar::new(), Condvar::new());
        Queue { state, for_rows: rows, for_queries: queries, queries_at_once: for_rows.max(1) }
    }

    /// A place for a query that nobody is before.
    fn at_once(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.lock();
        if state.closed || !state.queries.is_empty() || state.queries_running >= self.queries_at_once {
            return None;
        }
        let model = Some(state.for_queries.take()?);
        state.queries_running += 1;
        Some(Place { queue: Arc::clone(self), model })
    }

    fn add(&self, enqueue: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        enqueue(&mut state);
        self.wake(&mut state);
    }

    /// Wakes as many threads as have something to do.
    fn wake(&self, state: &mut State) {
        let mut queries = state.queries.len().min(self.queries_at_once.saturating_sub(state.queries_running));
        if queries > 0 && state.for_queries.is_some() && std::mem::take(&mut state.is_query_idle) {
            self.for_queries.notify_one();
            queries -= 1;
        }
        for _ in 0..(state.rows.len() + queries).min(state.idle) {
            self.for_rows.notify_one();
        }
    }

    fn has_query(&self, state: &State) -> bool {
        !state.queries.is_empty() && state.queries_running < self.queries_at_once
    }

    /// Waits for a call; none when the queue is closed.
    fn next(self: &Arc<Self>, takes: Takes) -> Option<Turn> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if matches!(takes, Takes::RowsFirst)
                && let Some(call) = state.rows.pop()
            {
                // A query that would have had its turn on this thread has it on the other.
                self.wake(&mut state);
                return Some(Turn { call, place: None });
            }
            let can_query = matches!(takes, Takes::RowsFirst) || state.for_queries.is_some();
            if can_query
                && self.has_query(&state)
                && let Some(call) = state.queries.pop_front()
            {
                state.queries_running += 1;
                let model = if matches!(takes, Takes::Queries) { state.for_queries.take() } else { None };
                return Some(Turn { call, place: Some(Place { queue: Arc::clone(self), model }) });
            }
            state = match takes {
                Takes::RowsFirst => {
                    state.idle += 1;
                    let mut state = self.for_rows.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.idle -= 1;
                    state
                }
                Takes::Queries => {
                    state.is_query_idle = true;
                    let mut state = self.for_queries.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.is_query_idle = false;
                    state
                }
            };
        }
    }
}

impl Job {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody waits for it any more.
    fn is_given_up(&self) -> bool {
        self.progress().reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn note(&self, results: impl Iterator<Item = (usize, Outcome)>) {
        let mut progress = self.progress();
        for (index, outcome) in results {
            progress.outcomes[index] = outcome;
        }
    }
}

impl Drop for Call {
    /// Made or not, it is over; the last one hands over what its job has come to.
    fn drop(&mut self) {
        let mut progress = self.job.progress();
        progress.calls_left -= 1;
        if progress.calls_left > 0 {
            return;
        }
        if let Some(reply) = progress.reply.take() {
            // Only a caller that went away makes this fail.
            let _ = reply.send(std::mem::take(&mut progress.outcomes));
        }
    }
}

/// Makes calls until the queue is closed: with the thread's own model, or with that for queries.
fn serve(mut own: Option<Model>, queue: &Arc<Queue>, takes: Takes) {
    while let Some(Turn { call, mut place }) = queue.next(takes) {
        let lent = place.as_mut().and_then(|place| place.model.as_mut());
        if let Some(model) = lent.or(own.as_mut())
            && !call.job.is_given_up()
        {
            let texts: Vec<&TokenIds> = call.members.iter().map(|index| &call.job.texts[*index]).collect();
            let results = run(model, &texts);
            call.job.note(call.members.iter().copied().zip(results));
        }
        // Given back before the answer goes out. Whoever waits for it is this thread, at its next turn, or woken by it.
        drop(place);
    }
}

impl Place {
    fn embed(&mut self, text: &TokenIds) -> Outcome {
        let Some(model) = &mut self.model else { return Err(EmbedError::Stopped) };
        check_length(text)?;
        run(model, &[text]).pop().unwrap_or(Err(EmbedError::Stopped))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.queries_running -= 1;
        if let Some(model) = self.model.take() {
            state.for_queries = Some(model);
            self.queue.wake(&mut state);
        }
    }
}

/// Refuses what the model has no positions for, and what has no token at all.
fn check_length(text: &TokenIds) -> Result<(), EmbedError> {
    match text.len() {
        1..=TOKENS_MAX => Ok(()),
        tokens => Err(EmbedError::Length { tokens }),
    }
}

/// Runs the model. A panic takes neither the thread nor the model with it: were they gone, everybody would wait for them. A call
/// overwrites all that the one before has left in the model.
fn guarded(model: &mut Model, texts: &[&TokenIds]) -> Result<Vec<Outcome>, ort::Error> {
    let results = catch_unwind(AssertUnwindSafe(|| model.run(texts)));
    results.unwrap_or_else(|_| Err(ort::Error::new("the call panicked")))
}

fn run(model: &mut Model, texts: &[&TokenIds]) -> Vec<Outcome> {
    let results = batch::bisect(texts, &mut |texts: &[&TokenIds]| {
        let begun = Instant::now();
        let results = guarded(model, texts);
        metrics::model_call(texts.len(), begun.elapsed());
        results
    });
    let mut outcomes = vec![];
    for (result, text) in results.into_iter().zip(texts) {
        outcomes.push(match result {
            Ok(outcome) => outcome,
            // A model that refuses even the empty text is broken; then the texts are not to blame.
            Err(fault) => Err(match guarded(model, &[&tokens::nothing()]) {
                Ok(_) => EmbedError::Text { tokens: text.len(), source: Arc::new(fault) },
                Err(fault) => EmbedError::Model(Arc::new(fault)),
            }),
        });
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_waits_for_one_call_of_each_backfill() {
        let [large, other, small] = [0, 1, 2].map(Lane);
        let mut lanes = Lanes::default();
        lanes.extend(large, (0..100).map(|n| ("large", n)).collect());
        lanes.extend(other, vec![("other", 0), ("other", 1)]);
        assert_eq!(lanes.pop(), Some(("large", 0)));
        lanes.extend(small, vec![("small", 0)]);
        lanes.extend(large, vec![("large", 100)]);
        lanes.extend(small, vec![]);
        let next: Vec<_> = (0..4).filter_map(|_| lanes.pop()).collect();
        assert_eq!(next, [("other", 0), ("large", 1), ("small", 0), ("other", 1)]);
        // What is left is in its order, and nothing is lost.
        assert_eq!(lanes.len(), 99);
        let rest: Vec<_> = std::iter::from_fn(|| lanes.pop()).collect();
        assert_eq!(rest, (2..=100).map(|n| ("large", n)).collect::<Vec<_>>());
        assert_eq!(lanes.len(), 0);
    }
}
