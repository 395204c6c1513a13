//! One connection's life where documents come from a query: causes out of the stream, documents read at the present, appended.
//!
//! **Why it converges, and no document goes back in time.** One task reads some documents and appends them before it reads the
//! next, so the last record of a key is of its last reading. A change is visible before its documents are read, and whatever a
//! change makes new is read after it: rows of the documents' table name their keys, rows of a watched one are given to
//! `affects`. That is asked later than the change, and may miss a key that has moved meanwhile: but what has moved it is itself a
//! change, with a cause of its own further on.
//!
//! **What may be confirmed.** A change that makes many documents new is a fan-out: its keys come page by page, and other
//! changes are taken between the pages. Until the last page is in the log, the position that the log records stands before the
//! fan-out's cause. What a kill repeats is read at the present again, and does no harm.

mod affected;
mod causes;
mod events;
mod fanout;
mod keys;
mod load;
mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use self::affected::affected;
use self::causes::{Cause, Causes, Tracker};
use self::events::Events;
use self::fanout::{Fanouts, Place};
use self::keys::Keys;
use self::load::Load;
use self::pace::Pace;
use super::catalog::CatalogError;
use super::connection::{Frame, ReplicationStream};
use super::documents::{Document, Documents, KeyText, QUERY, Reader};
use super::reselect::{self, ReselectError};
use super::sequencer::Step;
use super::session::{
    BYTES_PER_APPEND, EVENTS_PER_APPEND, HEARTBEAT_WHEN_IDLE, PROBE_EVERY, PROBE_PATIENCE, START_PATIENCE, Started,
    answered, identities, inspect, key_text, noted, records, shapes, template, with_feedback,
};
use super::sql::Sql;
use super::{
    Capture, CaptureError, Current, Phase, Republished, Request, SnapshotProgress, Status, Wanted, pgoutput, slot,
    trail,
};
use crate::clock::now_ms;
use crate::event::{ChangeEvent, Lsn, RowKey};
use crate::retry::Retry;
use crate::shutdown::Shutdown;
use crate::topic::{self, CaptureState, Outgoing, SnapshotMarker};

/// Documents that one change makes new and that are read at once. More are a fan-out.
const AT_ONCE_MAX: usize = 1_000;
/// Documents of one query, and the bytes that they may come to.
const DOCUMENTS_MAX: usize = 500;
/// What a document is taken for before any was seen.
const DOCUMENT_BYTES: usize = 16 << 10;
/// How long a transaction is waited for that others do not see yet.
const VISIBLE_PATIENCE: Duration = Duration::from_secs(30);
/// How long the documents of one query may take.
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether more may be appended.
const PACE_LOOK: Duration = Duration::from_millis(5);

/// Runs one session. `Ok` means shutdown.
pub(super) async fn run(
    capture: &Capture,
    status: &watch::Sender<Status>,
    requests: &mut mpsc::Receiver<Request>,
    retry: &mut Retry,
    shutdown: &Shutdown,
    started: Started,
    documents: Documents,
) -> Result<(), CaptureError> {
    let Started { sql, shape, stream, state, database, identity, pace, .. } = started;
    capture.received.begin(state.confirm);
    let (schema, table) = (&documents.main.schema, &documents.main.name);
    tracing::info!(slot = capture.source.slot, from = %state.confirm, "streaming documents of {schema}.{table}");
    let mut reader = Reader::connect(&capture.database, documents.clone()).await?;
    prepare(&mut reader, documents.clone()).await?;
    let mut feedback = interval(pace.feedback_every);
    feedback.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (complete, needed) = (state.snapshot == SnapshotMarker::Complete, !state.is_whole());
    let reached = Place { position: state.position, confirm: state.confirm };
    let mut session = Session {
        capture,
        status,
        sql,
        reader,
        shape,
        identity,
        stream,
        tracker: Tracker::new(&documents, state.position, state.confirm),
        events: Events::new(template(capture, &database, &documents.main)),
        state,
        reached,
        feedback,
        stream_patience: pace.stream_patience,
        probe: None,
        fanouts: Fanouts::default(),
        fanned: None,
        load: None,
        loads_next: false,
        pace: Pace::new(Instant::now()),
        document_bytes: DOCUMENT_BYTES,
        settled: false,
        heard: Instant::now(),
        changed: true,
        heartbeat: None,
    };
    status.send_modify(|status| {
        status.phase = Phase::Streaming;
        status.query = None;
        let ends = capture.log.changes_ends();
        status.snapshot = SnapshotProgress { complete, needed, ends, ..Default::default() };
        if !complete {
            status.current = None;
        }
    });
    if !complete {
        session.begin_load();
    }
    let ended = Box::pin(session.follow(requests, shutdown)).await;
    if session.settled {
        retry.reset();
    }
    ended?;
    session.stream.finish().await;
    Ok(())
}

async fn prepare(reader: &mut Reader, documents: Documents) -> Result<(), CaptureError> {
    let prepared = answered(START_PATIENCE, async { reader.prepare(documents).await.map_err(unprepared) });
    prepared.await
}

fn unprepared(source: tokio_postgres::Error) -> CatalogError {
    CatalogError::query("prepare source.query", source)
}

fn of_query(place: &str, source: ReselectError) -> CaptureError {
    CaptureError::Run { place: place.to_owned(), source }
}

/// Records that the log has been given so far.
fn appended(capture: &Capture) -> u64 {
    capture.log.changes_ends().iter().sum()
}

struct Session<'a> {
    capture: &'a Capture,
    status: &'a watch::Sender<Status>,
    /// Short questions about the source.
    sql: Sql,
    /// Documents.
    reader: Reader,
    /// The tables' shape that was taken up.
    shape: String,
    identity: String,
    stream: ReplicationStream,
    tracker: Tracker,
    events: Events,
    /// What the log has recorded.
    state: CaptureState,
    /// Up to here everything has had its effects but for the fan-outs that wait.
    reached: Place,
    feedback: Interval,
    /// How long the stream may bring nothing although it is asked.
    stream_patience: Duration,
    /// Until the stream has reached this, what it shows may be older than the moment.
    probe: Option<(Lsn, i64)>,
    fanouts: Fanouts,
    /// The keys of the first of them.
    fanned: Option<Keys>,
    /// All documents, read anew.
    load: Option<Load>,
    /// Whose turn it is where there are both.
    loads_next: bool,
    pace: Pace,
    /// What a document comes to, about.
    document_bytes: usize,
    /// The log was current once: what breaks now is a new fault, not the last one again.
    settled: bool,
    /// When the stream last brought something, or had nothing to bring.
    heard: Instant,
    /// Whether anything was appended since the last heartbeat.
    changed: bool,
    /// When the last heartbeat was sent.
    heartbeat: Option<Instant>,
}

/// What happened next.
enum Next {
    Frame(Frame),
    Work(Work),
    Feedback,
    Probe,
    Request(Request),
    Shutdown,
}

/// What may be done that nobody waits for.
#[derive(Clone, Copy)]
enum Work {
    /// So many documents of the first fan-out.
    Fanout(usize),
    /// So many of all.
    Load(usize),
}

impl Session<'_> {
    async fn follow(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
        shutdown: &Shutdown,
    ) -> Result<(), CaptureError> {
        let mut probe_at = Instant::now();
        loop {
            self.begin_fanout();
            self.capture.received.note(self.fanouts.settled(self.reached).confirm.max(self.settled_received()));
            let (has_room, has_work) = (self.fanouts.has_room(), self.fanned.is_some() || self.load.is_some());
            let next = {
                let work =
                    work(self.capture, self.fanned.as_mut(), self.load.as_mut(), self.loads_next, &mut self.pace);
                tokio::select! {
                    biased;
                    // 1. Stopping comes before new work.
                    () = shutdown.raised() => Next::Shutdown,
                    // 2. Feedback keeps the connection alive whatever else there is to do.
                    _ = self.feedback.tick() => Next::Feedback,
                    // 3. A person waits.
                    Some(request) = requests.recv() => Next::Request(request),
                    // 4. The clock of freshness, once a second.
                    () = tokio::time::sleep_until(probe_at) => Next::Probe,
                    // 5. Live changes come before what a fan-out or a load is in the middle of.
                    frame = self.stream.next(), if has_room => Next::Frame(frame?),
                    work = work, if has_work => Next::Work(work?),
                }
            };
            match next {
                Next::Frame(frame) => {
                    self.heard = Instant::now();
                    self.take_frames(frame).await?;
                    self.take_causes().await?;
                    // A stream that never pauses must not starve what waits, nor hide that it has failed.
                    if let Some(work) = self.ready_work().await? {
                        self.work(work).await?;
                    }
                }
                Next::Work(work) => self.work(work).await?,
                Next::Feedback => self.record_and_confirm().await?,
                Next::Probe => {
                    let reached = self.ask_source().await?;
                    self.probe.get_or_insert(reached);
                    if self.tracker.received() < reached.0 && has_room {
                        if self.heard.elapsed() > self.stream_patience {
                            return Err(CaptureError::Silent(self.stream_patience));
                        }
                        // The server answers with how far it has sent.
                        self.stream.send_status(self.state.confirm, true).await?;
                    } else {
                        // Nothing is missing, or nothing is read, so its silence says nothing.
                        self.heard = Instant::now();
                    }
                    self.record_and_confirm().await?;
                    probe_at = Instant::now() + PROBE_EVERY;
                }
                Next::Request(Request::Resync(wanted, done)) => {
                    let accepted = self.resync(wanted).await;
                    let before = self.status.borrow().finished.number;
                    let _ = done.send(accepted.as_ref().map(|()| before).map_err(ToString::to_string));
                    accepted?;
                }
                Next::Request(Request::Republish(keys, done)) => {
                    // Who asked may have given up.
                    let _ = done.send(Ok(self.republish(keys).await?));
                }
                Next::Shutdown => return self.record_and_confirm().await,
            }
            if let Some(as_of_ms) = self.publish_current() {
                self.send_heartbeat(as_of_ms).await?;
            }
        }
    }

    /// How far the stream is, where nothing waits.
    fn settled_received(&self) -> Lsn {
        if self.fanouts.first().is_none() { self.tracker.received() } else { Lsn(0) }
    }

    /// Offers this frame and those that have already arrived, up to the size of one append.
    async fn take_frames(&mut self, first: Frame) -> Result<(), CaptureError> {
        let mut frame = Some(first);
        while let Some(next) = frame {
            match next {
                Frame::Data { start, payload, .. } => {
                    let message =
                        pgoutput::decode(payload).map_err(|source| CaptureError::Decode { lsn: start, source })?;
                    if self.tracker.offer(message, start)? == Step::ShapeChanged {
                        self.take_shape().await?;
                    }
                }
                Frame::Keepalive { end, reply_requested, .. } => {
                    self.tracker.keepalive(end);
                    if reply_requested {
                        self.take_causes().await?;
                        self.record_and_confirm().await?;
                    }
                }
            }
            if self.tracker.waiting() >= EVENTS_PER_APPEND {
                return Ok(());
            }
            frame = self.stream.try_next()?;
        }
        Ok(())
    }

    /// Gives what was collected its effects: fan-outs wait from now on, everything else is in the log.
    async fn take_causes(&mut self) -> Result<(), CaptureError> {
        let causes = self.tracker.take();
        let reached = Place { position: self.tracker.position(), confirm: self.tracker.confirmable() };
        if causes.is_empty() {
            self.reached = reached;
            return Ok(());
        }
        let Causes { mut keys, watched, truncated, emptied, untold, xids } = causes;
        let again = emptied.is_some() || untold.is_some();
        let (sql, reader) = (&self.sql, &self.reader);
        let main = &reader.documents().main.name;
        let of_table = |source| CaptureError::Reselect { table: main.clone(), source };
        let xids = xids.iter().map(u32::to_string).collect();
        let asking = async {
            reselect::until_visible(sql, xids, VISIBLE_PATIENCE).await.map_err(of_table)?;
            let asked = tokio::time::timeout(READ_PATIENCE, affected(reader, watched)).await;
            asked.map_err(|_| of_query("source.watch", ReselectError::Silent(READ_PATIENCE)))?
        };
        let asked = with_feedback(&mut self.stream, &mut self.feedback, self.state.confirm, asking).await?;
        for (watched, values, cause) in asked.fanouts {
            self.fanouts.push(watched, values, cause, self.reached);
        }
        for (key, cause) in asked.keys {
            let known = keys.entry(key).or_insert(cause);
            if cause.position > known.position {
                *known = cause;
            }
        }
        if let Some(table) = &untold {
            tracing::warn!(
                "a row of {table} was changed while the table's replica identity lacked the key that is followed, so which \
                 documents it concerns is not known: all documents are read again"
            );
        } else if emptied.is_some() {
            tracing::info!("a watched table was truncated: all documents are read again");
        }
        if again {
            // Every document may be another one. Recorded with the position that passes the change.
            self.load = None;
            (self.state.snapshot, self.state.whole) = (SnapshotMarker::Wanted, false);
        }
        // Documents are read at the present, so none of them is older than the truncate.
        let mut waiting: Vec<ChangeEvent> = truncated.iter().map(|cause| self.events.barrier(*cause)).collect();
        let all: Vec<(KeyText, Cause)> = keys.into_iter().collect();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let (some, after) = rest.split_at(self.documents_at_once().min(rest.len()));
            rest = after;
            let keys: Vec<KeyText> = some.iter().map(|(key, _)| key.clone()).collect();
            let documents = self.read(&keys).await?;
            let causes = some.iter().map(|(key, cause)| (self.reader.key(key), *cause)).collect();
            waiting.extend(self.events.of_causes(documents, causes));
            if rest.is_empty() {
                self.reached = reached;
            }
            self.append(std::mem::take(&mut waiting)).await?;
        }
        self.reached = reached;
        if !waiting.is_empty() {
            self.append(waiting).await?;
        }
        if again {
            self.record(vec![]).await?;
            self.begin_load();
        }
        Ok(())
    }

    fn documents_at_once(&self) -> usize {
        (BYTES_PER_APPEND / self.document_bytes.max(1)).clamp(1, DOCUMENTS_MAX)
    }

    /// The documents of these keys, as they are now.
    async fn read(&mut self, keys: &[KeyText]) -> Result<Vec<Document>, CaptureError> {
        let reader = &self.reader;
        let reading = async {
            let read = tokio::time::timeout(READ_PATIENCE, reader.read(keys)).await;
            let read = read.map_err(|_| of_query(QUERY, ReselectError::Silent(READ_PATIENCE)))?;
            read.map_err(|source| of_query(QUERY, source.into()))
        };
        let read = with_feedback(&mut self.stream, &mut self.feedback, self.state.confirm, reading).await?;
        if !read.is_empty() {
            let bytes = read.iter().map(|document| document.bytes).sum::<usize>() / read.len();
            // Large ones count at once, small ones by and by.
            self.document_bytes = bytes.max((self.document_bytes + bytes) / 2);
        }
        let why = self.reader.gives_others().map(str::to_owned);
        self.status.send_if_modified(|status| std::mem::replace(&mut status.query, why.clone()) != why);
        Ok(read)
    }

    /// Makes these durable, with the place up to which all has had its effects.
    async fn append(&mut self, events: Vec<ChangeEvent>) -> Result<(), CaptureError> {
        if events.is_empty() {
            return Ok(());
        }
        let records = records(self.capture, &events, &self.state);
        self.changed = true;
        let places = self.record(records).await?;
        trail::appended(self.capture, &events, &places);
        Ok(())
    }

    /// Hands the log records, and where capture stands. However long the log takes, feedback goes on.
    async fn record(&mut self, records: Vec<Outgoing>) -> Result<Vec<topic::trail::Place>, CaptureError> {
        let state = self.state_now();
        let log = &self.capture.log;
        let work = async { log.append_changes(records, &state).await.map_err(CaptureError::from) };
        let places = with_feedback(&mut self.stream, &mut self.feedback, self.state.confirm, work).await?;
        self.heard = Instant::now();
        self.state = state;
        Ok(places)
    }

    fn state_now(&self) -> CaptureState {
        let Place { position, confirm } = self.fanouts.settled(self.reached);
        CaptureState { position, confirm: confirm.max(self.state.confirm), ..self.state.clone() }
    }

    /// Records how far the slot may be confirmed, then confirms it.
    async fn record_and_confirm(&mut self) -> Result<(), CaptureError> {
        if self.tracker.waiting() == 0 && self.state_now().confirm > self.state.confirm {
            self.record(vec![]).await?;
        }
        self.stream.send_status(self.state.confirm, false).await?;
        Ok(())
    }

    /// Asks for the keys of the first fan-out that waits.
    fn begin_fanout(&mut self) {
        if self.fanned.is_some() {
            return;
        }
        let documents = self.reader.documents();
        if let Some(first) = self.fanouts.begin()
            && let Some(watched) = documents.watched.get(first.watched)
        {
            let values: Vec<KeyText> = first.values.iter().cloned().collect();
            self.fanned = Some(Keys::affected(&self.capture.database, first.watched, watched, values));
        }
    }

    /// What may be done now without waiting for it.
    async fn ready_work(&mut self) -> Result<Option<Work>, CaptureError> {
        self.begin_fanout();
        if self.fanned.is_none() && self.load.is_none() {
            return Ok(None);
        }
        let work = work(self.capture, self.fanned.as_mut(), self.load.as_mut(), self.loads_next, &mut self.pace);
        tokio::select! {
            biased;
            work = work => work.map(Some),
            () = std::future::ready(()) => Ok(None),
        }
    }

    async fn work(&mut self, work: Work) -> Result<(), CaptureError> {
        match work {
            Work::Fanout(count) => {
                self.loads_next = true;
                self.fan_out(count).await
            }
            Work::Load(count) => {
                self.loads_next = false;
                self.load_some(count).await
            }
        }
    }

    /// Some documents of the first fan-out; when there are no more, the next one is the first.
    async fn fan_out(&mut self, count: usize) -> Result<(), CaptureError> {
        let (Some(keys), Some(first)) = (&mut self.fanned, self.fanouts.first()) else { return Ok(()) };
        let cause = first.cause;
        let keys = keys.take(count.min((BYTES_PER_APPEND / self.document_bytes.max(1)).clamp(1, DOCUMENTS_MAX)));
        if keys.is_empty() {
            self.fanouts.finish();
            self.fanned = None;
            return Ok(());
        }
        let documents = self.read(&keys).await?;
        let causes: BTreeMap<RowKey, Cause> = keys.iter().map(|key| (self.reader.key(key), cause)).collect();
        let events = self.events.of_causes(documents, causes);
        self.append(events).await?;
        self.pace.done(Instant::now(), keys.len(), appended(self.capture));
        Ok(())
    }

    /// Publishes documents again that somebody names by their keys.
    async fn republish(&mut self, keys: Vec<RowKey>) -> Result<Vec<(RowKey, Republished)>, CaptureError> {
        let (mut texts, mut outcomes) = (BTreeMap::new(), vec![]);
        for key in keys {
            match key_text(&self.reader.documents().main, &key) {
                Ok(text) => drop(texts.insert(key, text.into_iter().map(Some).collect::<KeyText>())),
                Err(why) => outcomes.push((key, Republished::Refused(why))),
            }
        }
        let read_ms = now_ms();
        let documents = self.read(&texts.values().cloned().collect::<Vec<_>>()).await?;
        let mut gone: BTreeSet<RowKey> = texts.into_keys().collect();
        let mut events = vec![];
        for document in documents {
            // A key may have another spelling than the table gives it.
            if gone.remove(&document.key) {
                outcomes.push((document.key.clone(), Republished::Row));
                events.push(self.events.read(document, self.reached.confirm, read_ms));
            }
        }
        for key in gone {
            events.extend(self.events.absent(key.clone(), self.reached.confirm, read_ms));
            outcomes.push((key, Republished::Gone));
        }
        self.append(events).await?;
        Ok(outcomes)
    }

    /// Asks the source where it is; gives that and when it was asked.
    async fn ask_source(&mut self) -> Result<(Lsn, i64), CaptureError> {
        let asked_ms = now_ms();
        let (sql, source) = (&self.sql, &self.capture.source);
        let oids: Vec<u32> = self.reader.documents().tables().iter().map(|table| table.oid).collect();
        let asked = async {
            let progress = slot::source_progress(sql, &source.slot).await?;
            // Asked last: what it is now, it was at the moment before too.
            let identity = identities(sql, &oids, &source.publication).await?;
            let shape = shapes(sql, &oids).await?;
            Ok::<_, CaptureError>((progress.0, identity, shape))
        };
        let (flushed, identity, shape) = answered(PROBE_PATIENCE, asked).await?;
        if identity != self.identity {
            (self.state.snapshot, self.state.whole) = (SnapshotMarker::Wanted, false);
            self.record(vec![]).await?;
            return Err(CaptureError::PublicationChanged(source.publication.clone()));
        }
        if shape != self.shape {
            self.take_shape().await?;
        }
        Ok((flushed, asked_ms))
    }

    /// Takes up the tables as the catalog has them now. That the pipeline can no longer be followed is an error: the stream stays
    /// where it is until somebody mends the one or the other.
    async fn take_shape(&mut self) -> Result<(), CaptureError> {
        // What was collected so far is of the old shape.
        self.take_causes().await?;
        let (capture, sql) = (self.capture, &self.sql);
        let oids: Vec<u32> = self.reader.documents().tables().iter().map(|table| table.oid).collect();
        let look = async {
            // Asked first: what changes after it is noticed next time.
            let shape = shapes(sql, &oids).await?;
            Ok::<_, CaptureError>((shape, inspect(capture, sql).await?))
        };
        let looked = answered(START_PATIENCE, look);
        let looked = with_feedback(&mut self.stream, &mut self.feedback, self.state.confirm, looked).await?;
        let (shape, followed) = looked;
        let captured = followed.captured(&capture.source, &self.identity);
        let Some(documents) = followed.documents else { return Ok(()) };
        let again = has_other_values(self.reader.documents(), &documents);
        self.shape = shape;
        prepare(&mut self.reader, documents.clone()).await?;
        self.tracker.set_documents(&documents);
        self.state.captured = captured;
        if again {
            tracing::warn!("the documents may have other values: they are read again");
            self.load = None;
            let batch_rows = self.state.resync.batch_rows;
            self.resync(Wanted { force: false, batch_rows }).await?;
        }
        Ok(())
    }

    /// Says up to which moment the log is current, once the stream has passed what the probe saw and every fan-out from before
    /// it is done.
    fn publish_current(&mut self) -> Option<i64> {
        let (lsn, as_of_ms) = self.probe?;
        let waits = self.tracker.received() < lsn || self.tracker.in_transaction() || self.tracker.waiting() > 0;
        if waits || !self.fanouts.has_passed(lsn) || self.load.is_some() {
            return None;
        }
        self.probe = None;
        self.settled = true;
        let current = Current { as_of_ms, ends: self.capture.log.changes_ends() };
        self.status.send_modify(|status| status.current = Some(current));
        Some(as_of_ms)
    }

    /// Says through the log up to which moment it is current: soon after a change, and now and then while there is none.
    async fn send_heartbeat(&mut self, as_of_ms: i64) -> Result<(), CaptureError> {
        let due = self.changed || self.heartbeat.is_none_or(|at| at.elapsed() >= HEARTBEAT_WHEN_IDLE);
        if !due || !self.capture.log.has_heartbeats() {
            return Ok(());
        }
        let record = ChangeEvent::Heartbeat { as_of_ms }.to_record(now_ms());
        self.record(vec![Outgoing::Everywhere(record)]).await?;
        (self.changed, self.heartbeat) = (false, Some(Instant::now()));
        Ok(())
    }
}

/// Whether documents may have come to hold other values, or other keys, without an event.
fn has_other_values(was: &Documents, is: &Documents) -> bool {
    let forms = |documents: &Documents| -> BTreeMap<(u32, String), String> {
        let columns = documents.tables().into_iter().flat_map(|table| {
            table.columns.iter().map(|column| ((table.oid, column.name.clone()), column.form.clone()))
        });
        columns.collect()
    };
    let before = forms(was);
    let is_other = |(column, form): (&(u32, String), &String)| before.get(column).is_some_and(|was| was != form);
    was.main.oid != is.main.oid
        || was.main.key != is.main.key
        || was.columns != is.columns
        || was.watched.iter().map(|one| one.table.oid).ne(is.watched.iter().map(|one| one.table.oid))
        || forms(is).iter().any(is_other)
}

/// Waits for what may be done next that nobody waits for. If the future is dropped, nothing is lost.
async fn work(
    capture: &Capture,
    fanned: Option<&mut Keys>,
    load: Option<&mut Load>,
    loads_next: bool,
    pace: &mut Pace,
) -> Result<Work, CaptureError> {
    let is_first_load = load.as_ref().is_some_and(|load| load.is_first);
    let count = loop {
        // Where there is nothing to search yet, nobody waits behind it.
        if is_first_load {
            break DOCUMENTS_MAX;
        }
        let behind = capture.behind.as_ref().and_then(|behind| behind());
        match pace.step(Instant::now(), appended(capture), behind) {
            0 => tokio::time::sleep(PACE_LOOK).await,
            count => break count,
        }
    };
    match (fanned, load) {
        (Some(keys), load) if !loads_next || load.is_none() => {
            keys.ready().await?;
            Ok(Work::Fanout(count))
        }
        (_, Some(load)) => {
            load.ready().await?;
            Ok(Work::Load(count))
        }
        (Some(_), None) | (None, None) => std::future::pending().await,
    }
}
