//! How far one of those who embed is in the partitions that are its own. Asks nobody: it is told what was committed, where
//! partitions end, and what waits.

use std::collections::BTreeMap;

use super::super::Partition;

/// What of a partition waits to be embedded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Records that were read and are not committed.
    pub records: u64,
    /// Whether nothing stands behind them but markers of transactions.
    pub is_all: bool,
}

/// What is known of the partitions.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// The tenure that the positions are of.
    tenure: u64,
    positions: BTreeMap<Partition, u64>,
    ends: BTreeMap<Partition, u64>,
}

impl Standing {
    /// Whether the group has to be asked for positions.
    pub fn lacks_positions(&self, tenure: u64, held: &BTreeMap<Partition, Held>) -> bool {
        self.tenure != tenure || held.keys().any(|partition| !self.positions.contains_key(partition))
    }

    /// Takes the group's positions in this tenure, in place of what was known.
    pub fn begins(&mut self, tenure: u64, positions: BTreeMap<Partition, u64>) {
        (self.tenure, self.positions) = (tenure, positions);
        self.ends.clear();
    }

    /// Takes where partitions end now.
    pub fn ends(&mut self, ends: BTreeMap<Partition, u64>) {
        self.ends = ends;
    }

    /// Positions were committed, further on or, for a replay, back at the beginning.
    pub fn moved(&mut self, positions: &BTreeMap<Partition, u64>) {
        self.positions.extend(positions);
    }

    /// Offsets before the positions, over all partitions that are ours.
    pub fn position(&self, tenure: u64, held: &BTreeMap<Partition, Held>) -> Option<u64> {
        let known = (self.tenure == tenure || held.is_empty()).then_some(&self.positions)?;
        held.keys().map(|partition| known.get(partition)).sum()
    }

    /// Records behind them. Where not all of a partition has been read, its offsets count, of which compaction leaves some empty.
    pub fn lag(&self, tenure: u64, held: &BTreeMap<Partition, Held>) -> Option<u64> {
        let unread = |partition: &Partition| {
            let known = (self.tenure == tenure).then_some(&self.positions)?;
            Some(self.ends.get(partition)?.saturating_sub(*known.get(partition)?))
        };
        let of = |(partition, held): (&Partition, &Held)| match held.is_all {
            true => Some(held.records),
            false => Some(unread(partition)?.max(held.records)),
        };
        held.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(lanes: &[(Partition, u64, bool)]) -> BTreeMap<Partition, Held> {
        lanes
            .iter()
            .map(|(partition, records, is_all)| (*partition, Held { records: *records, is_all: *is_all }))
            .collect()
    }

    #[test]
    fn what_is_known_is_said_and_nothing_else() {
        fn check(
            standing: &Standing,
            tenure: u64,
            held: &BTreeMap<Partition, Held>,
            wanted: (Option<u64>, Option<u64>),
        ) {
            assert_eq!((standing.position(tenure, held), standing.lag(tenure, held)), wanted, "{standing:?} {held:?}");
        }
        let mut standing = Standing::default();
        let (none, read, unread) =
            (held(&[]), held(&[(0, 2, true), (3, 0, true)]), held(&[(0, 2, true), (3, 4, false)]));
        // Who has no partition lacks nothing.
        check(&standing, 1, &none, (Some(0), Some(0)));
        // All was read: the positions are not needed for what is left.
        check(&standing, 1, &read, (None, Some(2)));
        check(&standing, 1, &unread, (None, None));
        assert!(standing.lacks_positions(1, &read) && !standing.lacks_positions(0, &none));

        standing.begins(1, BTreeMap::from([(0, 10), (3, 5)]));
        assert!(!standing.lacks_positions(1, &read) && standing.lacks_positions(2, &read));
        check(&standing, 1, &unread, (Some(15), None));
        standing.ends(BTreeMap::from([(0, 12), (3, 105)]));
        check(&standing, 1, &unread, (Some(15), Some(102)));
        standing.moved(&BTreeMap::from([(3, 103)]));
        // More has come than the partition had when it was asked for.
        check(&standing, 1, &unread, (Some(113), Some(6)));
        // A replay.
        standing.moved(&BTreeMap::from([(3, 0)]));
        check(&standing, 1, &unread, (Some(10), Some(107)));
        // Others had the partitions meanwhile.
        check(&standing, 2, &unread, (None, None));
    }
}
