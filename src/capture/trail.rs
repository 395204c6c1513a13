//! Says at debug where in `changes` each commit's events have gone, and at trace where each has. Says nothing of keys and rows.

use tracing::Level;

use super::Capture;
use crate::event::{Change, ChangeEvent, Lsn, Op};
use crate::topic::trail::{Place, Places};

const TARGET: &str = "vecsync::capture";
const STAGE: &str = "capture";

/// A commit, or a reading of the table.
#[derive(Clone, Copy, PartialEq)]
struct Origin {
    commit_lsn: Option<Lsn>,
    xid: Option<u64>,
}

/// A line for each commit in what was appended: `places` are those of its records, in their order.
pub(super) fn appended(capture: &Capture, events: &[ChangeEvent], places: &[Place]) {
    if !tracing::enabled!(target: TARGET, Level::DEBUG) {
        return;
    }
    let pipeline = &*capture.pipeline;
    let say = |origin: Origin, count: usize, changes: &Places| {
        let Origin { commit_lsn, xid } = origin;
        let commit_lsn = commit_lsn.map(tracing::field::display);
        let said = if commit_lsn.is_some() { "commit appended" } else { "rows appended" };
        tracing::debug!(target: TARGET, pipeline, stage = STAGE, commit_lsn, xid, events = count, %changes, "{said}");
    };
    let partitions = capture.log.changes_ends().len();
    let mut rest = places;
    let mut open: Option<(Origin, usize, Places)> = None;
    for event in events {
        let (change, width) = match event {
            ChangeEvent::Row { change, .. } => (Some(&**change), 1),
            ChangeEvent::Tombstone { .. } => (None, 1),
            ChangeEvent::Barrier { change } | ChangeEvent::Truncate { change, .. } => (Some(&**change), partitions),
            ChangeEvent::Nothing | ChangeEvent::Heartbeat { .. } | ChangeEvent::Replay { .. } => (None, partitions),
        };
        let (own, behind) = rest.split_at(width.min(rest.len()));
        rest = behind;
        // A tombstone is of the delete before it.
        let origin = change.map(|change| Origin { commit_lsn: change.source.commit_lsn, xid: change.source.tx_id });
        if let Some((was, count, changes)) = open.take_if(|(was, ..)| origin.is_some_and(|origin| *was != origin)) {
            say(was, count, &changes);
        }
        let origin = origin.unwrap_or(Origin { commit_lsn: None, xid: None });
        let (_, count, changes) = open.get_or_insert_with(|| (origin, 0, Places::default()));
        *count += 1;
        own.iter().for_each(|place| changes.note(*place));
        if let Some(change) = change {
            trace(pipeline, change, own);
        }
    }
    if let Some((origin, count, changes)) = open {
        say(origin, count, &changes);
    }
}

fn trace(pipeline: &str, change: &Change, places: &[Place]) {
    if tracing::enabled!(target: TARGET, Level::TRACE) {
        let changes: Places = places.iter().copied().collect();
        let commit_lsn = change.source.commit_lsn.map(tracing::field::display);
        let (ordinal, op) = (change.source.ordinal, Op::as_label(change.op));
        tracing::trace!(target: TARGET, pipeline, stage = STAGE, commit_lsn, ordinal, op, %changes, "event appended");
    }
}
