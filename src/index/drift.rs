//! Tells drift from rows that are on their way: compares what rows should be with what a store holds. No I/O, no clock.
//!
//! **Why what is called drift is drift.** Stores lag and rows change while they are compared, so a difference makes a key
//! a suspect, no more. A suspect's row is read again, the store is waited for until it has all that was committed before
//! that, and then it is asked again. A difference can still be a change that came after the reading; but then the row
//! has changed. It is drift where two such rounds one after the other show the same row and the same in the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::RowKey;

/// The hash of all that is indexed of a row.
pub type RowHash = [u8; 16];

/// What a row should be in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// There, with this hash.
    Row(RowHash),
    /// Not there: the table has no such row, or it does not belong into the index.
    Nothing,
    /// There, but nobody can say how: its document cannot be rendered. Whatever a store holds is older.
    Unfit,
}

/// What a store holds of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// A row with this hash, whole.
    Row(RowHash),
    /// Nothing that a search could find.
    Nothing,
    /// A row that is not whole or cannot be read.
    Torn,
}

/// How a store differs from the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It lacks a row.
    Missing,
    /// It holds another state of it.
    Stale,
    /// It holds a row that it should not.
    Extra,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Missing, Kind::Stale, Kind::Extra];

    /// The metrics' label `kind`, and the name in reports.
    pub fn as_label(self) -> &'static str {
        match self {
            Kind::Missing => "missing",
            Kind::Stale => "stale",
            Kind::Extra => "extra",
        }
    }
}

/// How what is held differs from what is wanted, if it does.
pub fn difference(wanted: Wanted, held: Held) -> Option<Kind> {
    match (wanted, held) {
        (Wanted::Row(wanted), Held::Row(held)) if wanted == held => None,
        (Wanted::Nothing, Held::Nothing) => None,
        (Wanted::Row(_) | Wanted::Unfit, Held::Nothing) => Some(Kind::Missing),
        (Wanted::Row(_) | Wanted::Unfit, Held::Row(_) | Held::Torn) => Some(Kind::Stale),
        (Wanted::Nothing, Held::Row(_) | Held::Torn) => Some(Kind::Extra),
    }
}

/// The rows that one store may hold wrongly, until each is settled. Bounded.
#[derive(Debug)]
pub struct Suspects {
    max: usize,
    open: BTreeMap<RowKey, Suspect>,
    drifted: BTreeMap<RowKey, Kind>,
    same: u64,
    overlooked: u64,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// It was met in the table, so that it counts as the same when it is.
    counts: bool,
    seen: Option<(Wanted, Held)>,
}

impl Suspects {
    /// None yet; at most `max` keys are kept.
    pub fn new(max: usize) -> Self {
        Suspects { max, open: BTreeMap::new(), drifted: BTreeMap::new(), same: 0, overlooked: 0 }
    }

    /// Takes in what a row of the table should be, and what the store held when it was asked. Each key once.
    pub fn compare(&mut self, key: &RowKey, wanted: Wanted, held: Held) {
        match difference(wanted, held) {
            None => self.same += u64::from(matches!(wanted, Wanted::Row(_))),
            Some(_) => self.suspect(key, true),
        }
    }

    /// Takes in a key that the store has and the table, it seems, has not.
    pub fn suspect_extra(&mut self, key: &RowKey) {
        self.suspect(key, false);
    }

    fn suspect(&mut self, key: &RowKey, counts: bool) {
        if self.open.contains_key(key) {
            return;
        }
        if self.open.len() >= self.max {
            self.overlooked += 1;
            return;
        }
        self.open.insert(key.clone(), Suspect { counts, seen: None });
    }

    /// Keys that are not settled.
    pub fn open(&self) -> impl Iterator<Item = &RowKey> {
        self.open.keys()
    }

    /// Takes in what a suspect's row was when it was read again, and what the store held when it had all that was committed
    /// before. `is_last`: there will be no other round, for the store does not get there.
    pub fn judge(&mut self, key: &RowKey, wanted: Wanted, held: Held, is_last: bool) {
        let Some(suspect) = self.open.get_mut(key) else { return };
        let settled = match difference(wanted, held) {
            None => None,
            Some(kind) if is_last || suspect.seen == Some((wanted, held)) => Some(kind),
            Some(_) => {
                suspect.seen = Some((wanted, held));
                return;
            }
        };
        let counts = suspect.counts;
        self.open.remove(key);
        match settled {
            Some(kind) => drop(self.drifted.insert(key.clone(), kind)),
            None => self.same += u64::from(counts && matches!(wanted, Wanted::Row(_))),
        }
    }

    /// What has drifted, with how.
    pub fn drifted(&self) -> &BTreeMap<RowKey, Kind> {
        &self.drifted
    }

    /// Suspects every key that has drifted again, to see what is left after a repair.
    pub fn again(&self) -> Suspects {
        let mut again = Suspects::new(self.max);
        self.drifted.keys().for_each(|key| again.suspect(key, false));
        again
    }

    /// Rows of the table that the store holds as they are.
    pub fn same(&self) -> u64 {
        self.same
    }

    /// Keys that changed each time they were looked at.
    pub fn unsettled(&self) -> u64 {
        self.open.len() as u64
    }

    /// Differences beyond the bound, which were not looked at again.
    pub fn overlooked(&self) -> u64 {
        self.overlooked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RowHash = [1; 16];
    const B: RowHash = [2; 16];

    fn key(id: u32) -> RowKey {
        RowKey::from_bytes(format!(r#"{{"id":{id}}}"#).as_bytes()).expect("a key")
    }

    /// Compares one row, then gives the rounds in their order.
    fn check(first: (Wanted, Held), rounds: &[(Wanted, Held)], expected: Option<Kind>, same: u64, open: u64) {
        let mut suspects = Suspects::new(10);
        suspects.compare(&key(1), first.0, first.1);
        for (wanted, held) in rounds {
            suspects.judge(&key(1), *wanted, *held, false);
        }
        let found = suspects.drifted().get(&key(1)).copied();
        assert_eq!((found, suspects.same(), suspects.unsettled()), (expected, same, open), "{first:?} {rounds:?}");
    }

    #[test]
    fn differences_have_their_kinds() {
        let (row, nothing, unfit) = (Wanted::Row(A), Wanted::Nothing, Wanted::Unfit);
        for (wanted, held, expected) in [
            (row, Held::Row(A), None),
            (row, Held::Row(B), Some(Kind::Stale)),
            (row, Held::Torn, Some(Kind::Stale)),
            (row, Held::Nothing, Some(Kind::Missing)),
            (nothing, Held::Nothing, None),
            (nothing, Held::Row(A), Some(Kind::Extra)),
            (nothing, Held::Torn, Some(Kind::Extra)),
            (unfit, Held::Nothing, Some(Kind::Missing)),
            (unfit, Held::Row(A), Some(Kind::Stale)),
        ] {
            assert_eq!(difference(wanted, held), expected, "{wanted:?} {held:?}");
        }
    }

    #[test]
    fn a_difference_counts_when_two_rounds_show_the_same() {
        let (missing, stale) = ((Wanted::Row(A), Held::Nothing), (Wanted::Row(A), Held::Row(B)));
        check((Wanted::Row(A), Held::Row(A)), &[], None, 1, 0);
        check((Wanted::Nothing, Held::Nothing), &[], None, 0, 0);
        check(missing, &[], None, 0, 1);
        check(missing, &[missing], None, 0, 1);
        check(missing, &[missing, missing], Some(Kind::Missing), 0, 0);
        check(stale, &[stale, stale], Some(Kind::Stale), 0, 0);
        // It was on its way.
        check(missing, &[(Wanted::Row(A), Held::Row(A))], None, 1, 0);
        check(missing, &[missing, (Wanted::Row(B), Held::Row(B))], None, 1, 0);
        // The row was deleted meanwhile, and the store follows.
        check(stale, &[(Wanted::Nothing, Held::Nothing)], None, 0, 0);
        // A row that changes all the time: the store is ahead of what was read, each time with something else.
        check(stale, &[stale, (Wanted::Row(B), Held::Row(A)), stale], None, 0, 1);
    }

    #[test]
    fn a_store_that_does_not_get_there_is_judged_as_it_is() {
        let mut suspects = Suspects::new(10);
        suspects.compare(&key(1), Wanted::Row(A), Held::Nothing);
        suspects.suspect_extra(&key(2));
        suspects.judge(&key(1), Wanted::Row(A), Held::Nothing, true);
        suspects.judge(&key(2), Wanted::Row(A), Held::Row(A), true);
        assert_eq!(suspects.drifted().iter().collect::<Vec<_>>(), [(&key(1), &Kind::Missing)]);
        assert_eq!((suspects.same(), suspects.unsettled()), (0, 0), "row 2 came after the table was read");
    }

    #[test]
    fn keys_beyond_the_bound_are_counted_and_not_kept() {
        let mut suspects = Suspects::new(2);
        for id in [1, 2, 2, 3, 4] {
            suspects.suspect_extra(&key(id));
        }
        assert_eq!((suspects.unsettled(), suspects.overlooked()), (2, 2));
        for id in [1, 2, 1] {
            suspects.judge(&key(id), Wanted::Nothing, Held::Row(A), true);
        }
        let again = suspects.again();
        assert_eq!(again.open().collect::<Vec<_>>(), [&key(1), &key(2)]);
        assert!(again.drifted().is_empty());
    }
}
