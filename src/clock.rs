//! The one reading of the wall clock, for timestamps in records and answers, and what follows from two of its moments. Decisions
//! take `now` as a value.

use std::time::{SystemTime, UNIX_EPOCH};

/// How far the clocks of two machines may be apart, milliseconds. A moment that is further ahead is of a clock that is wrong, or
/// was put back since.
const APART_MS: i64 = 60_000;

/// Now, milliseconds since the Unix epoch; 0 for a clock that stands before it.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// How long ago a moment was, milliseconds; `None` for one that has not come yet, which says nothing.
pub fn age_ms(moment_ms: i64, now_ms: i64) -> Option<u64> {
    let age_ms = now_ms.saturating_sub(moment_ms);
    (age_ms >= -APART_MS).then(|| u64::try_from(age_ms).unwrap_or(0))
}

/// The later of two moments that were told one after the other, the same perhaps again; one that has not come yet gives way.
pub fn later_ms(known_ms: i64, told_ms: i64, now_ms: i64) -> i64 {
    if age_ms(known_ms, now_ms).is_none() { told_ms } else { known_ms.max(told_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;
    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn a_moment_has_an_age_when_it_has_come() {
        for (moment_ms, wanted) in [(NOW_MS, Some(0)), (NOW_MS - 5, Some(5)), (NOW_MS + APART_MS, Some(0))] {
            assert_eq!(age_ms(moment_ms, NOW_MS), wanted, "{moment_ms}");
        }
        assert_eq!(
            (age_ms(NOW_MS + HOUR_MS, NOW_MS), age_ms(i64::MAX, 0), age_ms(0, i64::MAX)),
            (None, None, Some(i64::MAX as u64))
        );
    }

    #[test]
    fn what_a_clock_said_before_it_was_put_back_gives_way() {
        assert_eq!(later_ms(NOW_MS - 9, NOW_MS - 5, NOW_MS), NOW_MS - 5);
        // Told again.
        assert_eq!(later_ms(NOW_MS - 5, NOW_MS - 9, NOW_MS), NOW_MS - 5);
        assert_eq!(later_ms(NOW_MS + HOUR_MS, NOW_MS - 9, NOW_MS), NOW_MS - 9);
    }
}
