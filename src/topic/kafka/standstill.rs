//! Notices a consumer that reads nothing although there is something to read. Asks nobody itself: it is told what was heard
//! and what the broker says.
//!
//! librdkafka since 2.10 gives up all brokers it knows when one that has just started names none, and may then never
//! connect again (its issue 5301); a fetch can also be lost in ways that nobody is told of.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::Partition;

/// How often the ends of the partitions are asked for.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// What is known of a consumer and its partitions.
pub(super) struct Standstill {
    asked: Instant,
    partitions: BTreeMap<Partition, Seen>,
    /// The last answer did not come, though the brokers answer others.
    was_deaf: bool,
}

#[derive(Default)]
struct Seen {
    /// Where the partition ended when that was asked for the last time.
    end: Option<u64>,
    /// A record or the end of the partition has come since.
    heard: bool,
    /// The partition had grown then, and nothing had come.
    is_behind: bool,
}

impl Standstill {
    pub fn new(now: Instant) -> Standstill {
        Standstill { asked: now, partitions: BTreeMap::new(), was_deaf: false }
    }

    /// A record or the end of the partition has come.
    pub fn hear(&mut self, partition: Partition) {
        self.partitions.entry(partition).or_default().heard = true;
    }

    /// Whether the ends are to be asked for. Says so once.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now.duration_since(self.asked) >= ASK_EVERY;
        if is_due {
            self.asked = now;
        }
        is_due
    }

    /// What was read is held back, or the brokers answer nobody: nothing follows from what was before.
    pub fn reset(&mut self) {
        self.partitions.clear();
        self.was_deaf = false;
    }

    /// Takes where the partitions end now. Whether one of them stands still: it had grown when it was asked for before,
    /// and nothing of it has come since.
    pub fn is_behind(&mut self, ends: &BTreeMap<Partition, u64>) -> bool {
        self.was_deaf = false;
        self.partitions.retain(|partition, _| ends.contains_key(partition));
        let mut stands_still = false;
        for (partition, &end) in ends {
            let seen = self.partitions.entry(*partition).or_default();
            let known = seen.end.filter(|_| !seen.heard);
            stands_still |= seen.is_behind && known.is_some();
            let is_behind = known.is_some_and(|known| end > known);
            // Who is behind is measured from where it was before it fell behind.
            *seen = Seen { end: known.filter(|_| is_behind).or(Some(end)), heard: false, is_behind };
        }
        stands_still
    }

    /// Takes that no answer came while the brokers answer others. Whether that was so the last time, too.
    pub fn is_deaf(&mut self) -> bool {
        std::mem::replace(&mut self.was_deaf, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(ends: &[(Partition, u64)]) -> BTreeMap<Partition, u64> {
        ends.iter().copied().collect()
    }

    #[test]
    fn a_partition_that_grows_without_a_word_stands_still() {
        let mut standstill = Standstill::new(Instant::now());
        for partition in [0, 1] {
            standstill.hear(partition);
        }
        for (heard, now, stands_still) in [
            (&[][..], [(0, 5), (1, 7)], false),
            // Nothing was written.
            (&[], [(0, 5), (1, 7)], false),
            // Both have grown; a word of one of them comes before the next time.
            (&[], [(0, 6), (1, 8)], false),
            (&[0], [(0, 6), (1, 8)], true),
            // Said again as long as it lasts, and no more after a word.
            (&[], [(0, 6), (1, 8)], true),
            (&[1], [(0, 6), (1, 9)], false),
            (&[1], [(0, 6), (1, 9)], false),
        ] {
            heard.iter().for_each(|partition| standstill.hear(*partition));
            assert_eq!(standstill.is_behind(&ends(&now)), stands_still, "{now:?}");
        }
    }

    #[test]
    fn what_was_reset_or_taken_away_is_forgotten() {
        let mut standstill = Standstill::new(Instant::now());
        assert!(!standstill.is_behind(&ends(&[(0, 5)])));
        assert!(!standstill.is_behind(&ends(&[(0, 6)])));
        standstill.reset();
        assert!(!standstill.is_behind(&ends(&[(0, 7)])));
        assert!(!standstill.is_behind(&ends(&[(0, 8)])));
        assert!(!standstill.is_behind(&ends(&[(1, 8)])));
        assert!(!standstill.is_behind(&ends(&[(0, 9)])));
        assert!(!standstill.is_behind(&ends(&[(0, 10)])));
        assert!(standstill.is_behind(&ends(&[(0, 10)])));
    }

    #[test]
    fn who_is_not_answered_twice_while_others_are_is_deaf() {
        let mut standstill = Standstill::new(Instant::now());
        assert!(!standstill.is_deaf());
        standstill.reset();
        assert!(!standstill.is_deaf());
        assert!(standstill.is_deaf());
        assert!(!standstill.is_behind(&ends(&[(0, 5)])));
        assert!(!standstill.is_deaf());
    }

    #[test]
    fn the_ends_are_asked_for_now_and_then() {
        let begin = Instant::now();
        let mut standstill = Standstill::new(begin);
        assert!(!standstill.is_due(begin));
        assert!(standstill.is_due(begin + ASK_EVERY));
        assert!(!standstill.is_due(begin + ASK_EVERY));
    }
}
