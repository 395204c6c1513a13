//! The threads that run the model and the queue before them. Knows token ids and vectors, no rows.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc;

use super::batch;
use super::model::{EmbedError, Model, TOKENS_MAX, Vector};
use super::tokens::{self, TokenIds};
use crate::metrics;

type Outcome = Result<Vector, EmbedError>;

/// Texts for one call of the model.
struct Call {
    texts: Arc<[TokenIds]>,
    members: Vec<usize>,
    reply: mpsc::Sender<Vec<(usize, Outcome)>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    calls: VecDeque<Call>,
    closed: bool,
}

/// Models, each on a thread of its own, that take calls from one queue in its order.
pub struct Inference {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    budget: usize,
}

impl Inference {
    /// Starts a thread for each model. A call holds at most `budget` tokens, padding included; 0: one text a call.
    pub fn start(models: Vec<Model>, budget: usize) -> io::Result<Inference> {
        let queue = Arc::new(Queue::default());
        // Made before the first thread, so that those already started are joined if a later one cannot be.
        let mut inference = Inference { queue: Arc::clone(&queue), threads: vec![], budget };
        for model in models {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name("embed".into()).spawn(move || serve(model, &queue))?;
            inference.threads.push(thread);
        }
        Ok(inference)
    }

    /// Calls that wait.
    pub fn waiting(&self) -> usize {
        self.queue.lock().calls.len()
    }

    /// Embeds texts; the results are in their order. When the future is dropped, calls that have not begun are not
    /// made. The queue is bounded by what its callers embed at a time.
    pub async fn embed(&self, texts: Vec<TokenIds>) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = texts.iter().map(|_| Err(EmbedError::Stopped)).collect();
        let mut members = vec![];
        for (index, text) in texts.iter().enumerate() {
            if (1..=TOKENS_MAX).contains(&text.len()) {
                members.push(index);
            } else {
                outcomes[index] = Err(EmbedError::Length { tokens: text.len() });
            }
        }
        let lengths: Vec<usize> = members.iter().map(|index| texts[*index].len()).collect();
        let calls = batch::pack(&lengths, self.budget);
        let (reply, mut replies) = mpsc::channel(calls.len().max(1));
        let texts: Arc<[TokenIds]> = texts.into();
        {
            let mut state = self.queue.lock();
            if state.closed {
                return outcomes;
            }
            for call in calls {
                let members = call.into_iter().map(|position| members[position]).collect();
                state.calls.push_back(Call { texts: Arc::clone(&texts), members, reply: reply.clone() });
            }
        }
        self.queue.changed.notify_all();
        drop(reply);
        while let Some(results) = replies.recv().await {
            for (index, outcome) in results {
                outcomes[index] = outcome;
            }
        }
        outcomes
    }
}

impl Drop for Inference {
    /// Ends the threads after the calls that they are in.
    fn drop(&mut self) {
        {
            let mut state = self.queue.lock();
            state.closed = true;
            state.calls.clear();
        }
        self.queue.changed.notify_all();
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

    /// Waits for a call; none when the queue is closed.
    fn next(&self) -> Option<Call> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(call) = state.calls.pop_front() {
                return Some(call);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn serve(mut model: Model, queue: &Queue) {
    while let Some(call) = queue.next() {
        if call.reply.is_closed() {
            continue;
        }
        let results = run(&mut model, &call);
        // The channel holds a place for every call; only a caller that went away makes this fail.
        let _ = call.reply.try_send(call.members.into_iter().zip(results).collect());
    }
}

fn run(model: &mut Model, call: &Call) -> Vec<Outcome> {
    let texts: Vec<&TokenIds> = call.members.iter().map(|index| &call.texts[*index]).collect();
    let results = batch::bisect(&texts, &mut |texts: &[&TokenIds]| {
        let begun = Instant::now();
        let results = model.run(texts);
        metrics::model_call(texts.len(), begun.elapsed());
        results
    });
    let mut outcomes = vec![];
    for (result, text) in results.into_iter().zip(&texts) {
        outcomes.push(match result {
            Ok(outcome) => outcome,
            // A model that refuses even the empty text is broken; then the texts are not to blame.
            Err(fault) => Err(match model.run(&[&tokens::nothing()]) {
                Ok(_) => EmbedError::Text { tokens: text.len(), source: Arc::new(fault) },
                Err(fault) => EmbedError::Model(Arc::new(fault)),
            }),
        });
    }
    outcomes
}
