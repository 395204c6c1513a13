//! How much of the log is on its way to the store of this process, for who appends what nobody waits for. Decides nothing.

use std::sync::Arc;

use tokio::sync::watch;

use crate::capture::Behind;
use crate::topic::{Log, Offsets};

/// Counts the records that are not embedded, and those that are embedded and not stored. `None`: over Kafka they may be
/// embedded and stored anywhere.
pub(super) fn of(log: &Log, revision: &str, stored: &watch::Receiver<Offsets>) -> Option<Behind> {
    let Log::Embedded(log) = log.clone() else { return None };
    let (revision, stored) = (revision.to_owned(), stored.clone());
    Some(Arc::new(move || {
        let stored = stored.borrow().clone();
        let ends = log.changes_ends();
        let progress = log.progress(&revision, &stored).ok()?;
        let missing = |ends: &Offsets, done: &Offsets| -> u64 {
            ends.iter().zip(done).map(|(end, done)| end.saturating_sub(*done)).sum()
        };
        Some(missing(&ends, &progress.embedded) + missing(&progress.vector_ends, &progress.stored))
    }))
}
