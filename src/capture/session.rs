//! One connection's life: start, stream, snapshot beside it, feedback on its own clock, until it breaks or shutdown.

mod load;
mod patience;
mod republish;
mod shape;

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::catalog::{self, CatalogError, Table};
use super::connection::{ExportSnapshot, Frame, ReplicationConnection, ReplicationStream};
use super::progress::{self, Refusal, Server, SlotFacts, Start};
use super::publication::{self, Publication};
use super::sequencer::{Sequencer, Step};
use super::snapshot::Piece;
use super::sql::Sql;
use super::{
    Capture, CaptureError, Current, Phase, Request, SnapshotProgress, Status, Wanted, joined, pgoutput, reselect, slot,
    trail,
};
use crate::clock::now_ms;
use crate::event::{ChangeEvent, Lsn, Op, Source};
use crate::metrics::Stage;
use crate::retry::Retry;
use crate::shutdown::Shutdown;
use crate::topic::{CaptureState, Outgoing, Resync, SnapshotMarker};
pub(super) use load::noted;
use load::{Snapshot, open_snapshot};
pub(super) use patience::{PROBE_PATIENCE, Pace, START_PATIENCE, answered, with_feedback};
use republish::Republish;
pub(super) use republish::key_text;
pub(super) use shape::{Inspected, identities, inspect, shapes};
use shape::{changed, published};

/// Events of one append: enough to share one fsync well, few enough to stay small in memory.
pub(super) const EVENTS_PER_APPEND: usize = 2_000;
/// Bytes of one append, for wide rows.
pub(super) const BYTES_PER_APPEND: usize = 4 << 20;
/// Streamed transactions beyond which those that others see are forgotten, at the next probe.
const UNSEEN_MAX: usize = 10_000;
/// How often the source is asked how far it is.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How often the log is told that it is current while nothing changes.
pub(super) const HEARTBEAT_WHEN_IDLE: Duration = Duration::from_secs(5);
/// How long a lock is waited for that somebody else has on the table. Whoever truncates or alters it waits for the readers of
/// a snapshot, and these for the session that takes their rows: it must not wait behind them without end.
const LOCK_PATIENCE: &str = "SET lock_timeout = '1s'";

/// Runs one session. `Ok` means shutdown.
pub(super) async fn run(
    capture: &Capture,
    status: &watch::Sender<Status>,
    requests: &mut mpsc::Receiver<Request>,
    retry: &mut Retry,
    shutdown: &Shutdown,
) -> Result<(), CaptureError> {
    let started = tokio::select! {
        biased;
        () = shutdown.raised() => return Ok(()),
        started = start(capture) => started?,
    };
    if let Some(documents) = started.followed.documents.clone() {
        return joined::run(capture, status, requests, retry, shutdown, started, documents).await;
    }
    let Started { sql, followed, shape, stream, state, database, identity, pace, unseen } = started;
    let Inspected { table, publication, .. } = followed;
    capture.received.begin(state.confirm);
    tracing::info!(slot = capture.source.slot, from = %state.confirm, "streaming {}.{}", table.schema, table.name);

    let template = template(capture, &database, &table);
    let mut sequencer = Sequencer::new(template, published(&table, &publication), state.position, state.confirm);
    sequencer.add_unseen(unseen);
    let mut feedback = interval(pace.feedback_every);
    feedback.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut session = Session {
        capture,
        status,
        sql,
        table,
        publication,
        shape,
        identity,
        stream,
        sequencer,
        state,
        feedback,
        stream_patience: pace.stream_patience,
        probe: None,
        snapshot: None,
        republish: None,
        settled: false,
        heard: Instant::now(),
        changed: true,
        heartbeat: None,
    };
    let (complete, needed) = (session.state.snapshot == SnapshotMarker::Complete, !session.state.is_whole());
    status.send_modify(|status| {
        status.phase = Phase::Streaming;
        let ends = capture.log.changes_ends();
        status.snapshot = SnapshotProgress { complete, needed, ends, ..Default::default() };
        if !complete {
            status.current = None;
        }
    });
    if !complete {
        session.begin_snapshot().await?;
    }
    let ended = session.follow(requests, shutdown).await;
    session.abandon_snapshot().await;
    if session.settled {
        retry.reset();
    }
    ended?;
    session.stream.finish().await;
    Ok(())
}

/// What a session begins with.
pub(super) struct Started {
    pub(super) sql: Sql,
    pub(super) followed: Inspected,
    /// The tables' shape, read before the tables were.
    pub(super) shape: String,
    pub(super) stream: ReplicationStream,
    pub(super) state: CaptureState,
    pub(super) database: String,
    /// The publication as it is at the start.
    pub(super) identity: String,
    pub(super) pace: Pace,
    /// Transactions that an earlier session may have been sent and that are not visible yet.
    unseen: HashSet<u32>,
}

/// The constant fields of a change's `source`.
pub(super) fn template(capture: &Capture, database: &str, table: &Table) -> Source {
    Source {
        version: env!("CARGO_PKG_VERSION").into(),
        connector: "postgresql".into(),
        name: capture.pipeline.as_str().into(),
        db: database.into(),
        schema: table.schema.as_str().into(),
        table: table.name.as_str().into(),
        lsn: None,
        tx_id: None,
        ts_ms: 0,
        snapshot: None,
        commit_lsn: None,
        ordinal: None,
    }
}

/// Connects, checks and begins the stream.
async fn start(capture: &Capture) -> Result<Started, CaptureError> {
    let sql = super::sql::connect(&capture.database).await?;
    sql.batch_execute(LOCK_PATIENCE).await.map_err(|source| CatalogError::query("set lock_timeout", source))?;
    let oids = answered(START_PATIENCE, inspect(capture, &sql)).await?.oids();
    let mut replication = ReplicationConnection::connect(&capture.database).await?;
    let name = &capture.source.slot;
    let seen = capture.log.capture_state().await?;
    let (server, _, slot) = server_and_slot(&mut replication, &sql, name).await?;
    if let Start::Standby { pid } = progress::decide(seen.as_ref(), server, name, slot.as_ref()) {
        return Err(CaptureError::Standby { slot: name.clone(), pid });
    }
    // Nobody streams, so nobody who is at work is fenced. What the last one wrote until now counts, and it may have
    // made the slot, too: the server is asked after the record was read, and so is never behind it by right.
    let record = capture.log.take_over().await?;
    let (server, database, slot) = server_and_slot(&mut replication, &sql, name).await?;
    let asked = record.as_ref().map(|record| record.resync).unwrap_or_default();
    let state = match progress::decide(record.as_ref(), server, name, slot.as_ref()) {
        Start::Stream(state) => state,
        Start::CreateSlot => create_slot(capture, &sql, &mut replication, server, asked).await?,
        Start::ReplaceSlot => {
            drop_slot(&sql, name).await?;
            create_slot(capture, &sql, &mut replication, server, asked).await?
        }
        Start::Standby { pid } => return Err(CaptureError::Standby { slot: capture.source.slot.clone(), pid }),
        Start::Refuse(refusal) => return Err(CaptureError::Refused(refusal)),
    };
    // Once more, in this order: what changes after it was named is noticed within a second, what changed before is here.
    let shape = answered(START_PATIENCE, shapes(&sql, &oids)).await?;
    let identity = identities(&sql, &oids, &capture.source.publication);
    let identity = answered(START_PATIENCE, identity).await?;
    let followed = answered(START_PATIENCE, inspect(capture, &sql)).await?;
    let captured = followed.captured(&capture.source, &identity);
    if state.snapshot == SnapshotMarker::Complete && state.captured != captured {
        tracing::warn!(
            "what is captured has changed ({}): the table is read again",
            changed(&state.captured, &captured)
        );
        tracing::debug!(was = state.captured, is = captured);
    }
    let state = progress::capturing(state, captured);
    if record.as_ref() != Some(&state) {
        capture.log.append_changes(vec![], &state).await?;
    }
    let pace = answered(START_PATIENCE, Pace::of(&mut replication)).await?;
    let unseen = answered(START_PATIENCE, running(&sql)).await?;
    let stream = replication.start_replication(name, state.confirm, &capture.source.publication);
    let stream = answered(START_PATIENCE, stream).await?;
    Ok(Started { sql, followed, shape, stream, state, database, identity, pace, unseen })
}

/// Forgets the position so that the next session takes a whole snapshot, with a slot that begins now.
pub(super) async fn reset(capture: &Capture, wanted: Wanted) -> Result<(), CaptureError> {
    let sql = super::sql::connect(&capture.database).await?;
    // The slot decodes with the publication as it was at each moment, so the publication must be there first.
    answered(START_PATIENCE, inspect(capture, &sql)).await?;
    let mut replication = ReplicationConnection::connect(&capture.database).await?;
    let name = &capture.source.slot;
    let (server, _, slot) = server_and_slot(&mut replication, &sql, name).await?;
    match slot {
        Some(SlotFacts { active_pid: Some(pid), .. }) => {
            return Err(CaptureError::Standby { slot: name.clone(), pid });
        }
        Some(slot) if slot.plugin != progress::PLUGIN => {
            return Err(CaptureError::Refused(Refusal::OtherPlugin { slot: name.clone(), plugin: slot.plugin }));
        }
        // What it skips, the snapshot brings.
        Some(_) => drop_slot(&sql, name).await?,
        None => {}
    }
    let before = capture.log.take_over().await?.map(|state| state.resync).unwrap_or_default();
    create_slot(capture, &sql, &mut replication, server, noted(before, wanted)).await.map(|_| ())
}

/// The server as it is now, the database, and then the slot.
async fn server_and_slot(
    replication: &mut ReplicationConnection,
    sql: &Sql,
    slot: &str,
) -> Result<(Server, String, Option<SlotFacts>), CaptureError> {
    let system = answered(START_PATIENCE, replication.identify_system()).await?;
    let server = Server { system_id: system.system_id, timeline: system.timeline, flushed: system.flushed };
    let slot = answered(START_PATIENCE, slot_facts(sql, slot)).await?;
    Ok((server, system.database, slot))
}

struct Session<'a> {
    capture: &'a Capture,
    status: &'a watch::Sender<Status>,
    sql: Sql,
    table: Table,
    publication: Publication,
    /// The table's shape that was taken up.
    shape: String,
    identity: String,
    stream: ReplicationStream,
    sequencer: Sequencer,
    /// What the log has recorded.
    state: CaptureState,
    feedback: Interval,
    /// How long the stream may bring nothing although it is asked.
    stream_patience: Duration,
    /// Until the stream has reached this, what it shows may be older than the moment.
    probe: Option<(Lsn, i64)>,
    snapshot: Option<Snapshot>,
    /// Rows that are to be published again.
    republish: Option<Republish>,
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
    Piece(Option<Piece>),
    Feedback,
    Probe,
    Request(Request),
    Shutdown,
}

impl Session<'_> {
    async fn follow(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
        shutdown: &Shutdown,
    ) -> Result<(), CaptureError> {
        let mut probe_at = Instant::now();
        loop {
            // What has been received is in the log: every turn ends with an append.
            self.capture.received.note(self.sequencer.received());
            let next = {
                let pieces = open_snapshot(&mut self.snapshot, self.sequencer.received());
                let piece = async {
                    match pieces {
                        Some(snapshot) => snapshot.pieces.recv().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    // 1. Stopping comes before new work.
                    () = shutdown.raised() => Next::Shutdown,
                    // 2. Feedback keeps the connection alive whatever else there is to do.
                    _ = self.feedback.tick() => Next::Feedback,
                    // 3. A person waits; for the one before first, which ends soon.
                    Some(request) = requests.recv(), if self.republish.is_none() => Next::Request(request),
                    // 4. The clock of freshness, once a second.
                    () = tokio::time::sleep_until(probe_at) => Next::Probe,
                    // 5. Live changes come before the snapshot's rows.
                    frame = self.stream.next() => Next::Frame(frame?),
                    piece = piece => Next::Piece(piece),
                }
            };
            match next {
                Next::Frame(frame) => {
                    self.heard = Instant::now();
                    self.take_frames(frame).await?;
                    // A stream that never pauses must not starve the snapshot, which holds a transaction open, nor hide that
                    // it has failed.
                    let waiting = open_snapshot(&mut self.snapshot, self.sequencer.received());
                    match waiting.map(|snapshot| snapshot.pieces.try_recv()) {
                        Some(Ok(piece)) => self.take_piece(Some(piece)).await?,
                        Some(Err(TryRecvError::Disconnected)) => self.take_piece(None).await?,
                        Some(Err(TryRecvError::Empty)) | None => {}
                    }
                }
                Next::Piece(piece) => self.take_piece(piece).await?,
                Next::Feedback => self.record_and_confirm().await?,
                Next::Probe => {
                    let reached = self.ask_source().await?;
                    self.probe.get_or_insert(reached);
                    let (lsn, _) = reached;
                    if self.sequencer.received() < lsn.max(self.awaited()) {
                        if self.heard.elapsed() > self.stream_patience {
                            return Err(CaptureError::Silent(self.stream_patience));
                        }
                        // The server answers with how far it has sent.
                        self.stream.send_status(self.state.confirm, true).await?;
                    } else {
                        // Nothing is missing, so its silence says nothing.
                        self.heard = Instant::now();
                    }
                    if self.sequencer.confirmable() > self.state.confirm {
                        self.record_and_confirm().await?;
                    }
                    probe_at = Instant::now() + PROBE_EVERY;
                }
                Next::Request(Request::Resync(wanted, done)) => {
                    let accepted = self.resync(wanted).await;
                    let before = self.status.borrow().finished.number;
                    let _ = done.send(accepted.as_ref().map(|()| before).map_err(ToString::to_string));
                    accepted?;
                }
                Next::Request(Request::Republish(keys, done)) => self.begin_republish(keys, done).await?,
                Next::Shutdown => return self.record_and_confirm().await,
            }
            self.append().await?;
            self.finish_republish().await?;
            if let Some(as_of_ms) = self.publish_current() {
                self.send_heartbeat(as_of_ms).await?;
            }
        }
    }

    /// Offers this frame and those that have already arrived, up to the size of one append.
    async fn take_frames(&mut self, first: Frame) -> Result<(), CaptureError> {
        let mut frame = Some(first);
        while let Some(next) = frame {
            match next {
                Frame::Data { start, payload, .. } => {
                    let message =
                        pgoutput::decode(payload).map_err(|source| CaptureError::Decode { lsn: start, source })?;
                    if self.sequencer.offer(message, start, now_ms())? == Step::ShapeChanged {
                        self.take_shape().await?;
                    }
                }
                Frame::Keepalive { end, reply_requested, .. } => {
                    self.sequencer.keepalive(end);
                    if reply_requested {
                        self.append().await?;
                        self.record_and_confirm().await?;
                    }
                }
            }
            let (bytes, events) = self.sequencer.waiting();
            if bytes >= BYTES_PER_APPEND || events >= EVENTS_PER_APPEND {
                return Ok(());
            }
            frame = self.stream.try_next()?;
        }
        Ok(())
    }

    /// Makes what was collected durable. Feedback goes on meanwhile, with what is durable already.
    async fn append(&mut self) -> Result<(), CaptureError> {
        let batch = self.sequencer.take();
        if batch.events.is_empty() {
            return Ok(());
        }
        let state = CaptureState {
            position: self.sequencer.position(),
            confirm: self.sequencer.confirmable(),
            ..self.state.clone()
        };
        let (capture, sql, table) = (self.capture, &self.sql, &self.table);
        {
            let work = async {
                let events = reselect::complete(sql, table, batch.events).await;
                let events = events.map_err(|source| CaptureError::Reselect { table: table.name.clone(), source })?;
                let records = records(capture, &events, &state);
                let places = capture.log.append_changes(records, &state).await?;
                trail::appended(capture, &events, &places);
                Ok(())
            };
            with_feedback(&mut self.stream, &mut self.feedback, self.state.confirm, work).await?;
        }
        self.heard = Instant::now();
        self.changed = true;
        self.state = state;
        Ok(())
    }

    /// Records how far the slot may be confirmed, then confirms it.
    async fn record_and_confirm(&mut self) -> Result<(), CaptureError> {
        let confirm = self.sequencer.confirmable();
        if confirm > self.state.confirm && self.sequencer.waiting().1 == 0 {
            self.record(vec![], CaptureState { confirm, ..self.state.clone() }).await?;
        }
        self.stream.send_status(self.state.confirm, false).await?;
        Ok(())
    }

    /// Hands the log what is no event of the stream, and where capture stands. However long the log takes, feedback
    /// goes on.
    async fn record(&mut self, records: Vec<Outgoing>, state: CaptureState) -> Result<(), CaptureError> {
        let log = &self.capture.log;
        let work = async { log.append_changes(records, &state).await.map(drop).map_err(CaptureError::from) };
        with_feedback(&mut self.stream, &mut self.feedback, self.state.confirm, work).await?;
        self.heard = Instant::now();
        self.state = state;
        Ok(())
    }

    /// Asks the source where it is; gives that and when it was asked.
    async fn ask_source(&mut self) -> Result<(Lsn, i64), CaptureError> {
        let asked_ms = now_ms();
        let (sql, source) = (&self.sql, &self.capture.source);
        let prune = self.sequencer.unseen().len() > UNSEEN_MAX;
        let asked = async {
            let progress = slot::source_progress(sql, &source.slot).await?;
            let running = if prune { Some(running(sql).await?) } else { None };
            // Asked last: what it is now, it was at the moment before too.
            let identity = publication::identity(sql, self.table.oid, &source.publication).await?;
            let shape = catalog::shape(sql, self.table.oid).await?;
            Ok::<_, CaptureError>((progress, running, identity, shape))
        };
        let ((flushed, _), running, identity, shape) = answered(PROBE_PATIENCE, asked).await?;
        if identity != self.identity {
            let state = CaptureState { snapshot: SnapshotMarker::Wanted, whole: false, ..self.state.clone() };
            self.record(vec![], state).await?;
            return Err(CaptureError::PublicationChanged(source.publication.clone()));
        }
        if let Some(running) = running {
            self.sequencer.keep_unseen(&running);
        }
        if shape != self.shape {
            self.take_shape().await?;
        }
        Ok((flushed, asked_ms))
    }

    /// Says up to which moment the log is current, once the stream has passed what the probe saw.
    fn publish_current(&mut self) -> Option<i64> {
        let (lsn, as_of_ms) = self.probe?;
        if self.sequencer.received() < lsn || self.sequencer.in_transaction() || self.snapshot.is_some() {
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
        self.record(vec![Outgoing::Everywhere(record)], self.state.clone()).await?;
        (self.changed, self.heartbeat) = (false, Some(Instant::now()));
        Ok(())
    }
}

async fn slot_facts(sql: &Sql, name: &str) -> Result<Option<SlotFacts>, CaptureError> {
    Ok(slot::slot(sql, name).await?.map(SlotFacts::from))
}

async fn running(sql: &Sql) -> Result<HashSet<u32>, CatalogError> {
    reselect::running(sql).await.map_err(|source| CatalogError::query("read pg_locks", source))
}

async fn drop_slot(sql: &Sql, name: &String) -> Result<(), CaptureError> {
    let dropped = sql.execute("SELECT pg_drop_replication_slot($1)", &[name]).await;
    dropped.map(|_| ()).map_err(|source| CaptureError::DropSlot { slot: name.clone(), source })
}

/// Makes the slot and records where it begins.
async fn create_slot(
    capture: &Capture,
    sql: &Sql,
    replication: &mut ReplicationConnection,
    server: Server,
    resync: Resync,
) -> Result<CaptureState, CaptureError> {
    let name = &capture.source.slot;
    let created = slot::create(replication, sql, name, false, ExportSnapshot::No).await?;
    tracing::info!(slot = name, point = %created.consistent_point, "replication slot created");
    let state = CaptureState { resync, ..progress::fresh(server, created.consistent_point) };
    capture.log.append_changes(vec![], &state).await?;
    Ok(state)
}

/// The records of these events, which are counted.
pub(super) fn records(capture: &Capture, events: &[ChangeEvent], state: &CaptureState) -> Vec<Outgoing> {
    count(capture, events);
    let (now, bytes_max) = (now_ms(), capture.log.record_bytes_max());
    let anew = Some(state.resync.number).filter(|_| state.resync.forced);
    let record = |event: &ChangeEvent| match event {
        ChangeEvent::Row { .. } | ChangeEvent::Tombstone { .. } => {
            Outgoing::ByKey(event.to_record_within(bytes_max, now).to_embed_anew(anew))
        }
        // What concerns no row of its own.
        ChangeEvent::Barrier { .. }
        | ChangeEvent::Truncate { .. }
        | ChangeEvent::Heartbeat { .. }
        | ChangeEvent::Replay { .. }
        | ChangeEvent::Nothing => Outgoing::Everywhere(event.to_record(now)),
    };
    events.iter().map(record).collect()
}

fn count(capture: &Capture, events: &[ChangeEvent]) {
    let mut last = None;
    let mut counts = [(Op::Create, 0), (Op::Update, 0), (Op::Delete, 0), (Op::Truncate, 0), (Op::Read, 0)];
    for event in events {
        if let ChangeEvent::Row { change, .. } | ChangeEvent::Barrier { change } = event {
            last = Some(change.source.ts_ms);
            for (op, count) in &mut counts {
                *count += u64::from(*op == change.op);
            }
        }
    }
    for (op, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        capture.metrics.events(Stage::Capture, op.as_label(), count);
    }
    if let Some(ts_ms) = last {
        capture.metrics.last_commit(Stage::Capture, ts_ms);
    }
}
