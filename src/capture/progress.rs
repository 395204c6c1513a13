//! Decides how capture starts, from what the log records and what the server shows. No I/O.

use crate::event::{Lsn, Position};
use crate::topic::{CaptureState, Resync, SnapshotMarker};

/// The output plugin that vecsync reads.
pub const PLUGIN: &str = "pgoutput";

/// The server that capture has connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// System identifier of the cluster.
    pub system_id: u64,
    /// Its timeline.
    pub timeline: u32,
    /// End of its flushed write-ahead log.
    pub flushed: Lsn,
}

/// What the server shows of the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFacts {
    /// Output plugin.
    pub plugin: String,
    /// Where the slot was confirmed.
    pub confirmed: Lsn,
    /// Whether the write-ahead log it needs is gone.
    pub lost: bool,
    /// The process that streams from it.
    pub active_pid: Option<i32>,
}

/// How to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Make the slot, then stream and take a snapshot.
    CreateSlot,
    /// Remove a slot that is of no use any more, then as with none.
    ReplaceSlot,
    /// Stream from the slot, with this state. A `Wanted` snapshot is taken beside the stream.
    Stream(CaptureState),
    /// Another process streams from the slot: wait until it ends.
    Standby {
        /// The server process that serves it.
        pid: i32,
    },
    /// Going on could lose changes: say why and wait for `vecsync sync`.
    Refuse(Refusal),
}

/// Why the stream cannot be continued without a resync.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The slot is not there any more.
    #[error("replication slot {slot} is gone from the server, and changes since {confirm} may have gone with it")]
    SlotMissing {
        /// The slot.
        slot: String,
        /// What was confirmed to it last.
        confirm: Lsn,
    },
    /// The server has removed WAL that the slot needs.
    #[error("replication slot {slot} is lost: the server removed WAL that it needs (max_slot_wal_keep_size)")]
    SlotLost {
        /// The slot.
        slot: String,
    },
    /// Somebody else confirmed changes, or made the slot anew.
    #[error(
        "replication slot {slot} stands at {found}, past {recorded} that vecsync recorded: changes between are not in the log"
    )]
    SlotAhead {
        /// The slot.
        slot: String,
        /// Where it stands.
        found: Lsn,
        /// Where vecsync would have confirmed at most.
        recorded: Lsn,
    },
    /// The server is younger than the log: a restored backup.
    #[error(
        "the server's WAL ends at {found}, before {recorded} that vecsync has seen: it was restored from an older backup"
    )]
    ServerBehind {
        /// Where its WAL ends.
        found: Lsn,
        /// What vecsync has seen.
        recorded: Lsn,
    },
    /// Another cluster answers at this address.
    #[error("the server is another one: system identifier {found}, the log was filled from {recorded}")]
    OtherSystem {
        /// Its identifier.
        found: u64,
        /// The recorded one.
        recorded: u64,
    },
    /// The publication was dropped and made anew.
    #[error("publication {publication} was missing at a moment that the replication slot still has to pass")]
    PublicationMissing {
        /// The publication.
        publication: String,
    },
    /// The server cannot decode what the slot has to pass.
    #[error("the server cannot decode the changes that replication slot {slot} has to pass: {reason}")]
    SlotUndecodable {
        /// The slot.
        slot: String,
        /// What the server says.
        reason: String,
    },
    /// Somebody else's slot.
    #[error(
        "replication slot {slot} belongs to the plugin {plugin}, vecsync needs pgoutput: name another slot in the pipeline file"
    )]
    OtherPlugin {
        /// The slot.
        slot: String,
        /// Its plugin.
        plugin: String,
    },
}

impl Refusal {
    /// What to do about it, to stand behind the reason.
    pub fn remedy(&self) -> &'static str {
        match self {
            Refusal::OtherPlugin { .. } => "",
            Refusal::SlotMissing { .. }
            | Refusal::SlotLost { .. }
            | Refusal::SlotAhead { .. }
            | Refusal::ServerBehind { .. }
            | Refusal::OtherSystem { .. }
            | Refusal::SlotUndecodable { .. }
            | Refusal::PublicationMissing { .. } => {
                ": run `vecsync sync` to bring the index back to the table; searches go on meanwhile"
            }
        }
    }
}

/// Decides how to start. `record` is what the log holds, `slot` what the server shows.
pub fn decide(record: Option<&CaptureState>, server: Server, slot_name: &str, slot: Option<&SlotFacts>) -> Start {
    let name = || slot_name.to_owned();
    if let Some(slot) = slot
        && slot.plugin != PLUGIN
    {
        return Start::Refuse(Refusal::OtherPlugin { slot: name(), plugin: slot.plugin.clone() });
    }
    if let Some(pid) = slot.and_then(|slot| slot.active_pid) {
        return Start::Standby { pid };
    }
    let Some(record) = record else {
        // An empty log with a slot: made by hand, or the log was lost, or it came from a backup. The snapshot brings
        // everything, so nothing is lost with a slot that is.
        return match slot {
            None => Start::CreateSlot,
            Some(slot) if slot.lost => Start::ReplaceSlot,
            Some(slot) => Start::Stream(fresh(server, slot.confirmed)),
        };
    };
    if record.system_id != server.system_id {
        return Start::Refuse(Refusal::OtherSystem { found: server.system_id, recorded: record.system_id });
    }
    let Some(slot) = slot else {
        // The table is to be read anyway, and nothing before that counts: somebody was killed while the slot was made.
        if record.snapshot == SnapshotMarker::Wanted {
            return Start::CreateSlot;
        }
        return Start::Refuse(Refusal::SlotMissing { slot: name(), confirm: record.confirm });
    };
    if slot.lost {
        return Start::Refuse(Refusal::SlotLost { slot: name() });
    }
    let seen = record.position.commit_lsn.max(record.confirm);
    if server.flushed < seen {
        return Start::Refuse(Refusal::ServerBehind { found: server.flushed, recorded: seen });
    }
    if slot.confirmed > record.confirm {
        return Start::Refuse(Refusal::SlotAhead { slot: name(), found: slot.confirmed, recorded: record.confirm });
    }
    if record.timeline != server.timeline {
        // A failover that carried the slot along. Positions of one timeline say nothing about another's: what the old
        // one had past the fork is gone, so the table is read again.
        return Start::Stream(CaptureState { resync: record.resync, ..fresh(server, slot.confirmed) });
    }
    Start::Stream(record.clone())
}

/// The state of a log that has nothing of this server yet.
pub fn fresh(server: Server, confirmed: Lsn) -> CaptureState {
    CaptureState {
        system_id: server.system_id,
        timeline: server.timeline,
        position: Position::default(),
        confirm: confirmed,
        snapshot: SnapshotMarker::Wanted,
        whole: false,
        captured: String::new(),
        resync: Resync::default(),
    }
}

/// The state with which `captured` is followed. What the log has of another table, key, column list or row filter is
/// not what this one would have sent: it is read again.
pub fn capturing(state: CaptureState, captured: String) -> CaptureState {
    if state.captured == captured {
        return state;
    }
    CaptureState { captured, snapshot: SnapshotMarker::Wanted, whole: false, ..state }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Server = Server { system_id: 7, timeline: 1, flushed: Lsn(1000) };

    fn record() -> CaptureState {
        CaptureState {
            system_id: 7,
            timeline: 1,
            position: Position { commit_lsn: Lsn(500), ordinal: 2 },
            confirm: Lsn(520),
            snapshot: SnapshotMarker::Complete,
            whole: false,
            captured: "faq".into(),
            resync: Default::default(),
        }
    }

    fn slot(confirmed: u64) -> SlotFacts {
        SlotFacts { plugin: "pgoutput".into(), confirmed: Lsn(confirmed), lost: false, active_pid: None }
    }

    fn check(record: Option<CaptureState>, server: Server, slot: Option<SlotFacts>) -> Start {
        decide(record.as_ref(), server, "s", slot.as_ref())
    }

    fn refusal(start: Start) -> Refusal {
        match start {
            Start::Refuse(refusal) => refusal,
            other => panic!("wanted a refusal, got {other:?}"),
        }
    }

    #[test]
    fn an_empty_log_starts_with_a_snapshot() {
        assert_eq!(check(None, SERVER, None), Start::CreateSlot);
        assert_eq!(check(None, SERVER, Some(slot(400))), Start::Stream(fresh(SERVER, Lsn(400))));
        assert_eq!(check(None, SERVER, Some(SlotFacts { lost: true, ..slot(400) })), Start::ReplaceSlot);
    }

    #[test]
    fn a_slot_at_or_behind_the_record_goes_on() {
        for confirmed in [100, 520] {
            assert_eq!(check(Some(record()), SERVER, Some(slot(confirmed))), Start::Stream(record()));
        }
        let promoted = Server { timeline: 2, ..SERVER };
        assert_eq!(check(Some(record()), promoted, Some(slot(520))), Start::Stream(fresh(promoted, Lsn(520))));
    }

    #[test]
    fn another_table_or_shape_is_read_again() {
        assert_eq!(capturing(record(), "faq".into()), record());
        let other = capturing(record(), "faq, renamed".into());
        assert_eq!((other.snapshot, other.position), (SnapshotMarker::Wanted, record().position));
    }

    #[test]
    fn what_could_lose_changes_is_refused_by_name() {
        let missing = refusal(check(Some(record()), SERVER, None));
        assert!(matches!(missing, Refusal::SlotMissing { .. }));
        let ahead = refusal(check(Some(record()), SERVER, Some(slot(521))));
        assert!(matches!(ahead, Refusal::SlotAhead { .. }));
        let behind = refusal(check(Some(record()), Server { flushed: Lsn(519), ..SERVER }, Some(slot(300))));
        assert!(matches!(behind, Refusal::ServerBehind { .. }));
        let other = refusal(check(Some(record()), Server { system_id: 8, ..SERVER }, Some(slot(300))));
        assert!(matches!(other, Refusal::OtherSystem { .. }));
        let lost = refusal(check(Some(record()), SERVER, Some(SlotFacts { lost: true, ..slot(300) })));
        assert!(matches!(lost, Refusal::SlotLost { .. }));
        let plugin = refusal(check(None, SERVER, Some(SlotFacts { plugin: "wal2json".into(), ..slot(300) })));
        assert!(plugin.remedy().is_empty() && missing.remedy().contains("vecsync sync"));
    }

    #[test]
    fn a_slot_in_use_makes_a_standby() {
        let busy = SlotFacts { active_pid: Some(42), ..slot(520) };
        assert_eq!(check(Some(record()), SERVER, Some(busy)), Start::Standby { pid: 42 });
    }
}
