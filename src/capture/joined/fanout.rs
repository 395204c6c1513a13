//! Changes of watched tables that make more documents new than fit between two others: what waits, in which order, and how far
//! the log may be called complete meanwhile. No I/O, no clock.

use std::collections::{BTreeSet, VecDeque};

use super::causes::Cause;
use crate::capture::documents::KeyText;
use crate::event::{Lsn, Position};

/// Values that one fan-out has at most: bounds its query.
pub const VALUES_MAX: usize = 500;
/// Values that wait at most. Beyond that the stream is not read: a transaction of a million categories must fit into memory.
const WAITING_MAX: usize = 50_000;

/// A place in the stream that all before it has had its effects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The last event.
    pub position: Position,
    /// Up to where the slot may be confirmed.
    pub confirm: Lsn,
}

/// A fan-out.
#[derive(Clone, Debug, PartialEq)]
pub struct Fanout {
    /// Which of the watched tables.
    pub watched: usize,
    /// Values of its rows.
    pub values: BTreeSet<KeyText>,
    /// The first of its causes.
    pub cause: Cause,
    /// What came before that.
    before: Place,
    /// It was begun: what its values affect has been asked for.
    begun: bool,
}

/// Fan-outs in the order of the log.
#[derive(Debug, Default)]
pub struct Fanouts {
    queue: VecDeque<Fanout>,
    waiting: usize,
}

impl Fanouts {
    /// Adds one, `before` which all has had its effects or waits here. What waits already is not added again: it is read later
    /// than this, so it has this change in it, too.
    pub fn push(&mut self, watched: usize, values: impl IntoIterator<Item = KeyText>, cause: Cause, before: Place) {
        for value in values {
            let mut others = self.queue.iter_mut().filter(|fanout| fanout.watched == watched && !fanout.begun);
            if others.any(|fanout| fanout.values.contains(&value)) {
                continue;
            }
            self.waiting += 1;
            let last = self.queue.iter_mut().rfind(|fanout| fanout.watched == watched && !fanout.begun);
            match last {
                Some(fanout) if fanout.values.len() < VALUES_MAX => drop(fanout.values.insert(value)),
                Some(_) | None => {
                    let values = BTreeSet::from([value]);
                    self.queue.push_back(Fanout { watched, values, cause, before, begun: false });
                }
            }
        }
    }

    /// The one at work, or to be begun.
    pub fn first(&self) -> Option<&Fanout> {
        self.queue.front()
    }

    /// Begins the first one: what its values affect is asked for from now on.
    pub fn begin(&mut self) -> Option<&Fanout> {
        let first = self.queue.front_mut()?;
        first.begun = true;
        Some(first)
    }

    /// The one at work is done.
    pub fn finish(&mut self) {
        if let Some(done) = self.queue.pop_front() {
            self.waiting -= done.values.len();
        }
    }

    /// Up to where all has had its effects, if that is the case up to `reached` but for what waits here.
    pub fn settled(&self, reached: Place) -> Place {
        self.queue.front().map_or(reached, |first| first.before)
    }

    /// Whether all that was committed before this has had its effects.
    pub fn has_passed(&self, lsn: Lsn) -> bool {
        self.queue.front().is_none_or(|first| first.cause.position.commit_lsn >= lsn)
    }

    /// Whether more may come.
    pub fn has_room(&self) -> bool {
        self.waiting < WAITING_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(number: usize) -> KeyText {
        vec![Some(number.to_string())]
    }

    fn at(lsn: u64) -> (Cause, Place) {
        let position = Position { commit_lsn: Lsn(lsn), ordinal: 1 };
        let before = Place { position: Position { commit_lsn: Lsn(lsn - 1), ordinal: 9 }, confirm: Lsn(lsn - 1) };
        (Cause { lsn: Lsn(lsn), position, xid: 1, commit_ts_ms: 0 }, before)
    }

    fn push(fanouts: &mut Fanouts, watched: usize, values: std::ops::Range<usize>, lsn: u64) {
        let (cause, before) = at(lsn);
        fanouts.push(watched, values.map(value), cause, before);
    }

    #[test]
    fn the_log_is_complete_up_to_the_first_that_waits() {
        let mut fanouts = Fanouts::default();
        let reached = at(90).1;
        assert_eq!((fanouts.settled(reached), fanouts.has_passed(Lsn(90))), (reached, true));
        push(&mut fanouts, 0, 1..2, 10);
        push(&mut fanouts, 1, 1..2, 20);
        assert_eq!(fanouts.settled(reached), at(10).1);
        assert_eq!((fanouts.has_passed(Lsn(10)), fanouts.has_passed(Lsn(11))), (true, false));
        fanouts.finish();
        assert_eq!(fanouts.settled(reached), at(20).1);
        fanouts.finish();
        assert_eq!(fanouts.settled(reached), reached);
    }

    #[test]
    fn what_waits_is_joined_and_what_is_at_work_is_done_again() {
        let mut fanouts = Fanouts::default();
        push(&mut fanouts, 0, 1..2, 10);
        fanouts.begin();
        push(&mut fanouts, 0, 1..2, 20);
        push(&mut fanouts, 0, 1..3, 30);
        push(&mut fanouts, 0, 1..3, 40);
        fanouts.finish();
        let second = fanouts.first().expect("the first was read from already");
        assert_eq!((second.values.len(), second.cause), (2, at(20).0));
        fanouts.finish();
        assert_eq!(fanouts.first(), None);
    }

    #[test]
    fn there_is_an_end_to_what_waits() {
        let mut fanouts = Fanouts::default();
        push(&mut fanouts, 0, 0..WAITING_MAX, 10);
        assert!(!fanouts.has_room());
        assert!(fanouts.queue.iter().all(|fanout| fanout.values.len() <= VALUES_MAX));
        fanouts.finish();
        assert!(fanouts.has_room());
    }
}
