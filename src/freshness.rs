//! Follows marks through the pipeline: when a mark has reached the store, everything committed before it is
//! searchable. No I/O, no clock.

use crate::topic::Offsets;
use crate::topic::embedded::Progress;

/// A moment on its way: everything committed before `as_of_ms` is below `ends` in the topic it is in now.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    /// Milliseconds since the Unix epoch; `None` for the mark that only says that the index was loaded once.
    as_of_ms: Option<i64>,
    ends: Offsets,
}

/// How fresh a store is. One mark at a time is in each topic, so memory is bounded; a newer one waits its turn.
#[derive(Debug, Default)]
pub struct Freshness {
    waiting: Option<Mark>,
    in_changes: Option<Mark>,
    in_vectors: Option<Mark>,
    loaded: bool,
    as_of_ms: Option<i64>,
    /// Since when the store is being filled from the beginning of the log; what it hears from before that says nothing.
    filled_since_ms: Option<i64>,
}

impl Freshness {
    /// The log was complete before; these were the ends of `changes` when the process started.
    pub fn started_complete(&mut self, changes_ends: Offsets) {
        self.waiting = Some(Mark { as_of_ms: None, ends: changes_ends });
    }

    /// The store was lost and is being filled again: it is loaded when it has what the log has now.
    pub fn lost(&mut self, changes_ends: Offsets) {
        *self = Freshness::default();
        self.started_complete(changes_ends);
    }

    /// Everything committed before `as_of_ms` is in `changes` below `ends`.
    pub fn captured(&mut self, as_of_ms: i64, ends: Offsets) {
        self.waiting = Some(Mark { as_of_ms: Some(as_of_ms), ends });
    }

    /// The store is being filled from the beginning of a log since then, milliseconds since the Unix epoch. Heartbeats that are
    /// older come by again with that, and rows that were changed after one of them stand behind it: only one that was
    /// written since then has all rows before it.
    pub fn fills(&mut self, since_ms: i64) {
        *self = Freshness { filled_since_ms: Some(since_ms), ..Freshness::default() };
    }

    /// The store itself says up to which moment it holds everything.
    pub fn heard(&mut self, as_of_ms: Option<i64>) {
        let is_of_now = as_of_ms >= self.filled_since_ms;
        self.loaded = as_of_ms.is_some() && (self.loaded || is_of_now);
        self.as_of_ms = as_of_ms.filter(|_| self.loaded);
    }

    /// Moves the marks on. Calling it again with the same positions is harmless.
    pub fn advance(&mut self, positions: &Progress) {
        // The last topic first, so that a mark passes a topic that is already drained in the same call.
        self.arrive(positions);
        if self.in_changes.is_none() {
            self.in_changes = self.waiting.take();
        }
        let passed = self.in_changes.as_ref().is_some_and(|mark| reached(&positions.embedded, &mark.ends));
        if passed && self.in_vectors.is_none() {
            let mark = self.in_changes.take();
            self.in_vectors = mark.map(|mark| Mark { ends: positions.vector_ends.clone(), ..mark });
            self.arrive(positions);
        }
    }

    /// Whether the store has held the whole table at some moment.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// The moment up to which everything committed is in the store, milliseconds since the Unix epoch.
    pub fn as_of_ms(&self) -> Option<i64> {
        self.as_of_ms
    }

    fn arrive(&mut self, positions: &Progress) {
        if self.in_vectors.as_ref().is_some_and(|mark| reached(&positions.stored, &mark.ends))
            && let Some(mark) = self.in_vectors.take()
        {
            self.loaded = true;
            // Marks arrive in their order, also those of a clock that was put back.
            self.as_of_ms = mark.as_of_ms.or(self.as_of_ms);
        }
    }
}

fn reached(positions: &Offsets, ends: &Offsets) -> bool {
    positions.len() == ends.len() && positions.iter().zip(ends).all(|(position, end)| position >= end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(embedded: u64, vector_end: u64, stored: u64) -> Progress {
        Progress { embedded: vec![embedded], vector_ends: vec![vector_end], stored: vec![stored] }
    }

    #[test]
    fn a_mark_counts_only_when_it_has_passed_both_topics() {
        let mut freshness = Freshness::default();
        freshness.captured(100, vec![5]);
        freshness.advance(&at(4, 4, 4));
        assert_eq!((freshness.is_loaded(), freshness.as_of_ms()), (false, None));
        freshness.advance(&at(5, 9, 8));
        assert_eq!(freshness.as_of_ms(), None, "the store lacks a record");
        freshness.advance(&at(7, 12, 9));
        assert_eq!((freshness.is_loaded(), freshness.as_of_ms()), (true, Some(100)));
    }

    #[test]
    fn a_drained_pipeline_passes_a_mark_at_once() {
        let mut freshness = Freshness::default();
        freshness.captured(100, vec![5]);
        freshness.advance(&at(5, 9, 9));
        assert_eq!(freshness.as_of_ms(), Some(100));
    }

    #[test]
    fn under_load_marks_do_not_overtake_or_starve() {
        let mut freshness = Freshness::default();
        let mut seen = vec![];
        for now in 1..100_i64 {
            // A store that is always three records behind, and a new mark every turn.
            freshness.captured(now, vec![now as u64]);
            let behind = (now - 3).max(0) as u64;
            freshness.advance(&at(now as u64, now as u64, behind));
            if let Some(as_of) = freshness.as_of_ms() {
                assert!(as_of as u64 <= behind, "{as_of} is claimed, {behind} is stored");
                seen.push(as_of);
            }
        }
        assert!(seen.last().is_some_and(|last| *last > 90), "{seen:?}");
    }

    #[test]
    fn a_lost_store_is_not_loaded_until_it_is_filled_again() {
        let mut freshness = Freshness::default();
        freshness.captured(100, vec![5]);
        freshness.advance(&at(5, 9, 9));
        freshness.lost(vec![5]);
        freshness.advance(&at(5, 9, 0));
        assert_eq!((freshness.is_loaded(), freshness.as_of_ms()), (false, None));
        freshness.captured(200, vec![5]);
        freshness.advance(&at(5, 9, 9));
        freshness.advance(&at(5, 9, 9));
        assert_eq!((freshness.is_loaded(), freshness.as_of_ms()), (true, Some(200)));
    }

    #[test]
    fn a_heartbeat_from_before_the_filling_says_nothing() {
        let mut freshness = Freshness::default();
        freshness.heard(Some(50));
        assert_eq!((freshness.is_loaded(), freshness.as_of_ms()), (true, Some(50)), "it was whole before");
        freshness.fills(100);
        for (heard, wanted) in [(None, None), (Some(50), None), (Some(99), None), (Some(100), Some(100))] {
            freshness.heard(heard);
            assert_eq!((freshness.is_loaded(), freshness.as_of_ms()), (wanted.is_some(), wanted), "{heard:?}");
        }
        freshness.heard(None);
        assert!(!freshness.is_loaded());
    }

    #[test]
    fn a_clock_that_is_put_back_is_followed() {
        let mut freshness = Freshness::default();
        for (now, wanted) in [(7_200_000, 7_200_000), (1_000, 1_000), (2_000, 2_000)] {
            freshness.captured(now, vec![5]);
            freshness.advance(&at(5, 9, 9));
            assert_eq!(freshness.as_of_ms(), Some(wanted));
        }
    }

    #[test]
    fn a_restart_is_loaded_when_the_store_has_what_the_log_had() {
        let mut freshness = Freshness::default();
        freshness.started_complete(vec![5]);
        freshness.advance(&at(5, 9, 3));
        assert!(!freshness.is_loaded(), "the store is being filled again");
        freshness.advance(&at(5, 9, 9));
        assert_eq!((freshness.is_loaded(), freshness.as_of_ms()), (true, None));
    }
}
