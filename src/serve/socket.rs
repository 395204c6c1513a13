//! A connection's socket with its deadlines: slow heads, silence, stalled answers, and a farewell. No HTTP but for what stands
//! in the place of answers that hyper gives without a word.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use super::api::Api;
use super::limits::{LINGER_BYTES_MAX, Limits};

/// What a connection is doing: shared by its socket, its requests and the loop that accepts connections.
#[derive(Debug)]
pub(super) struct Activity {
    phase: Mutex<Phase>,
    evicted: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Open since then, and nothing has come.
    Fresh(Instant),
    /// The first byte of a request came then.
    Head(Instant),
    /// A request is being answered.
    Serving,
    /// The last answer was ready then. `unread`: its request may not have been read to the end.
    Idle { since: Instant, unread: bool },
}

impl Activity {
    pub(super) fn new() -> Self {
        Activity { phase: Mutex::new(Phase::Fresh(Instant::now())), evicted: Notify::new() }
    }

    /// A request's head is complete.
    pub(super) fn begin(&self) {
        self.set(Phase::Serving);
    }

    /// The answer is ready.
    pub(super) fn end(&self, unread: bool) {
        self.set(Phase::Idle { since: Instant::now(), unread });
    }

    /// Since when the server waits for the client; `None` while it is the client that waits.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        match self.phase() {
            Phase::Fresh(since) | Phase::Head(since) | Phase::Idle { since, .. } => Some(since),
            Phase::Serving => None,
        }
    }

    /// Asks the connection to close, now or with the answer it is giving.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Whether a request is being read, or none has come: nobody waits for an answer.
    pub(super) fn owes_nothing(&self) -> bool {
        matches!(self.phase(), Phase::Fresh(_) | Phase::Head(_))
    }

    fn bytes_came(&self) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*phase, Phase::Fresh(_) | Phase::Idle { .. }) {
            *phase = Phase::Head(Instant::now());
        }
    }

    /// A part of the answer is sent: the client's turn begins with the last of it.
    fn bytes_went(&self) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if let Phase::Idle { since, .. } = &mut *phase {
            *since = Instant::now();
        }
    }

    /// When the client must have sent what it owes.
    fn deadline(&self, limits: &Limits) -> Option<Instant> {
        match self.phase() {
            Phase::Fresh(since) | Phase::Head(since) => Some(since + limits.head),
            Phase::Idle { since, .. } => Some(since + limits.idle),
            Phase::Serving => None,
        }
    }

    /// Whether bytes of a refused request may still be on their way.
    fn is_unread(&self) -> bool {
        matches!(self.phase(), Phase::Head(_) | Phase::Idle { unread: true, .. })
    }

    fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }
}

/// A stream that fails with `TimedOut` when its client is too slow.
///
/// Closing it takes in what a refused client still sends, within limits: a socket closed with unread bytes is reset, and
/// a reset can overtake the answer that says why.
pub(super) struct Socket<IO> {
    io: IO,
    activity: Arc<Activity>,
    limits: Arc<Limits>,
    read_timer: Timer,
    write_timer: Timer,
    stalled_since: Option<Instant>,
    farewell: Farewell,
    api: Arc<Api>,
    /// What is left to be written in the place of an answer of hyper's own.
    words: Option<Bytes>,
}

enum Farewell {
    None,
    Lingering { until: Instant, bytes_left: usize },
    Done,
}

impl<IO> Socket<IO> {
    pub(super) fn new(io: IO, activity: Arc<Activity>, limits: Arc<Limits>, api: Arc<Api>) -> Self {
        let (read_timer, write_timer, farewell) = (Timer(None), Timer(None), Farewell::None);
        Socket { io, activity, limits, read_timer, write_timer, stalled_since: None, farewell, api, words: None }
    }

    /// Passes on the outcome of a write of bytes.
    fn watch_write(&mut self, outcome: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if outcome.is_ready() {
            self.activity.bytes_went();
        }
        self.watch(outcome, cx)
    }

    /// Passes on the outcome of a write, a flush or the end, or fails when none has succeeded for too long.
    ///
    /// hyper flushes whenever it is polled, also by the timer of a silent client: a flush that did not wait sent nothing,
    /// and must not put the client's deadline off.
    fn watch<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            if self.stalled_since.take().is_some() {
                self.activity.bytes_went();
                // While it lasted, reading had no deadline: it is polled again to get one.
                cx.waker().wake_by_ref();
            }
            return outcome;
        }
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        self.write_timer.fail_after(since + self.limits.write_stall, cx)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let filled = buf.filled().len();
        if let Poll::Ready(outcome) = Pin::new(&mut this.io).poll_read(cx, buf) {
            if buf.filled().len() > filled {
                this.activity.bytes_came();
            }
            return Poll::Ready(outcome);
        }
        match this.activity.deadline(&this.limits) {
            // It is the client's turn only when it has its answer; until then the write's own deadline counts.
            Some(_) if this.stalled_since.is_some() => Poll::Pending,
            Some(deadline) => this.read_timer.fail_after(deadline, cx),
            None => Poll::Pending,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(mut words) = this.words.take().or_else(|| this.api.in_words(bytes)) else {
            let outcome = Pin::new(&mut this.io).poll_write(cx, bytes);
            return this.watch_write(outcome, cx);
        };
        while !words.is_empty() {
            let outcome = Pin::new(&mut this.io).poll_write(cx, &words);
            match this.watch_write(outcome, cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => words.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    this.words = Some(words);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = slices {
            return self.poll_write(cx, only);
        }
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.watch_write(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(outcome, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.farewell {
                Farewell::None => {
                    let outcome = Pin::new(&mut this.io).poll_shutdown(cx);
                    ready!(this.watch(outcome, cx))?;
                    this.farewell = if this.activity.is_unread() {
                        let until = Instant::now() + this.limits.linger;
                        Farewell::Lingering { until, bytes_left: LINGER_BYTES_MAX }
                    } else {
                        Farewell::Done
                    };
                }
                Farewell::Lingering { until, bytes_left } => {
                    let mut scratch = [0; 8192];
                    let mut buf = ReadBuf::new(&mut scratch);
                    let came = match Pin::new(&mut this.io).poll_read(cx, &mut buf) {
                        Poll::Ready(Ok(())) => buf.filled().len(),
                        Poll::Ready(Err(_)) => 0,
                        Poll::Pending if this.read_timer.is_over(*until, cx) => 0,
                        Poll::Pending => return Poll::Pending,
                    };
                    *bytes_left = bytes_left.saturating_sub(came);
                    if came == 0 || *bytes_left == 0 || Instant::now() >= *until {
                        this.farewell = Farewell::Done;
                    }
                }
                Farewell::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// A timer that is made on first use: most sockets never wait for their client to read.
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn fail_after<T>(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.is_over(deadline, cx) { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
    }

    /// Whether the deadline has passed; if not, wakes the task then.
    fn is_over(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time::{interval, timeout};

    use super::super::health::Report;
    use super::super::keys::Keys;
    use super::super::status::State;
    use super::super::{Service, Services};
    use super::*;
    use crate::shutdown::Shutdown;

    /// hyper flushes at each poll: when the first timer woke it, the flush began the client's time anew, for ever.
    #[tokio::test]
    async fn a_flush_of_nothing_does_not_put_the_deadline_off() {
        let limits = Arc::new(Limits { idle: Duration::from_millis(100), ..Limits::default() });
        let health = || Report { components: Vec::new(), ready: Ok(()), serves: true, is_whole: true };
        let service = Service {
            pipeline: "faq".into(),
            search: None,
            health: Arc::new(health),
            filters: Vec::new(),
            state: Arc::new(State::default),
            control: None,
        };
        let services = Services::one(service, Arc::new(String::new));
        let api = Api::new(services, Keys::default(), Duration::from_secs(1), limits.clone(), Shutdown::new());
        let activity = Arc::new(Activity::new());
        activity.end(false);
        let (near, _far) = tokio::io::duplex(64);
        let mut socket = Socket::new(near, activity, limits, Arc::new(api));

        let mut wakes = interval(Duration::from_millis(10));
        let mut scratch = [0; 8];
        let polled = poll_fn(|cx| {
            while wakes.poll_tick(cx).is_ready() {}
            let read = Pin::new(&mut socket).poll_read(cx, &mut ReadBuf::new(&mut scratch));
            if read.is_pending() {
                assert!(matches!(Pin::new(&mut socket).poll_flush(cx), Poll::Ready(Ok(()))));
            }
            read
        });
        let outcome = timeout(Duration::from_secs(20), polled).await.expect("closed at its deadline");
        assert_eq!(outcome.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
    }
}
