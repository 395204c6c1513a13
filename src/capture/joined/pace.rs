//! How fast documents may be appended that nobody waits for one by one: as fast as they are embedded and stored, so that a single
//! change does not stand behind a whole category. No I/O.
//!
//! What is on its way is the rate at which things arrive, times how long they travel (Little's law). Part of the travel is there
//! with nothing before them: a disk, a broker, a poll. Only what comes on top of that is a queue, and only the queue is kept short:
//! held to the whole travel, a way that is long by itself would be given less and less.

use std::time::Duration;

use tokio::time::Instant;

/// How long the queue may be, seconds: a single change may be held up for one, of which reading, writing and the way itself take a part, and
/// the queue is longer for a while until it is noticed.
const QUEUED: f64 = 0.15;
/// Documents on their way before anything is known, and the bounds of what is found out.
const WINDOW_MIN: f64 = 32.0;
const WINDOW_MAX: f64 = 4_000.0;
/// How much a single measurement may change that.
const CHANGE_MAX: f64 = 1.3;
/// How long the travel without a queue is held to be what it was. Then few documents go at a time until it is known anew.
const REMEMBERED: Duration = Duration::from_secs(20);
/// After so long some are appended whatever is on its way: something else may hold that up.
const PATIENCE: Duration = Duration::from_secs(1);
/// Documents of one step: a part of the window, so that a step is no queue of its own.
const STEP_MIN: f64 = 16.0;
const STEP_MAX: f64 = 500.0;
/// Documents a second where nobody here knows what has arrived.
const BLIND_PER_S: f64 = 4_000.0;

/// The pace of one session.
#[derive(Debug)]
pub struct Pace {
    window: f64,
    /// The shortest travel, seconds, and since when it is remembered; `None`: to be found out, with few documents at a time.
    alone: Option<(f64, Instant)>,
    /// The document whose travel is measured: how many had been appended with it, when, and whether it had a queue before it.
    followed: Option<(u64, Instant, bool)>,
    /// What is on its way, as was said last.
    behind: u64,
    /// When documents were appended last, and how many.
    last: (Instant, usize),
}

impl Pace {
    /// Begins.
    pub fn new(now: Instant) -> Pace {
        Pace { window: WINDOW_MIN, alone: None, followed: None, behind: 0, last: (now, 0) }
    }

    /// How many documents may be appended now; 0: none yet. `behind` is how many records are on their way, if that is known, of
    /// `appended` in all.
    pub fn step(&mut self, now: Instant, appended: u64, behind: Option<u64>) -> usize {
        let (since, count) = self.last;
        let waited = now.duration_since(since);
        let Some(behind) = behind else {
            return if waited.as_secs_f64() * BLIND_PER_S >= count as f64 { STEP_MAX as usize } else { 0 };
        };
        self.behind = behind;
        self.measure(now, appended - appended.min(behind));
        let window = if self.alone.is_some() { self.window } else { WINDOW_MIN };
        let step = (window / 8.0).clamp(STEP_MIN, STEP_MAX);
        if behind as f64 + step <= window || waited >= PATIENCE { step as usize } else { 0 }
    }

    /// So many were appended, which makes `appended` in all.
    pub fn done(&mut self, now: Instant, count: usize, appended: u64) {
        self.last = (now, count);
        if self.followed.is_none() {
            self.followed = Some((appended, now, self.behind as f64 > WINDOW_MIN));
        }
    }

    fn measure(&mut self, now: Instant, arrived: u64) {
        let Some((document, since, was_queued)) = self.followed else { return };
        let travel = now.duration_since(since).as_secs_f64();
        let has_arrived = arrived >= document;
        // One that does not come says enough when it has taken twice as long as it may.
        if !has_arrived && self.alone.is_none_or(|(alone, _)| travel < 2.0 * (alone + QUEUED)) {
            return;
        }
        self.followed = (!has_arrived).then_some((document, now, true));
        match self.alone {
            _ if !has_arrived => {}
            // What was appended before few went at a time is a queue still.
            None if was_queued => return,
            Some((alone, since)) if alone <= travel => {
                if now.duration_since(since) > REMEMBERED {
                    self.alone = None;
                    return;
                }
            }
            _ => self.alone = Some((travel, now)),
        }
        let Some((alone, _)) = self.alone else { return };
        let change = if travel - alone < QUEUED / 3.0 { CHANGE_MAX } else { (alone + QUEUED) / travel };
        let change = change.clamp(1.0 / CHANGE_MAX, CHANGE_MAX);
        self.window = (self.window * change).clamp(WINDOW_MIN, WINDOW_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const SECONDS: u64 = 60;

    /// Somebody takes so many a second, and each is seen to have arrived so much later; how many were appended, and how many
    /// waited to be taken at most after the first five seconds, in which it finds out.
    fn run(per_s: f64, later_ms: u64) -> (u64, u64) {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let (mut appended, mut taken, mut most) = (0_u64, 0.0_f64, 0);
        let mut seen = VecDeque::from([0; 1]);
        for ms in 0..SECONDS * 1_000 {
            let now = begun + Duration::from_millis(ms);
            taken = (taken + per_s / 1_000.0).min(appended as f64);
            seen.push_back(taken as u64);
            if seen.len() as u64 > later_ms + 1 {
                seen.pop_front();
            }
            let arrived = if ms < later_ms { 0 } else { seen[0] };
            let step = pace.step(now, appended, Some(appended - arrived));
            if step > 0 {
                appended += step as u64;
                pace.done(now, step, appended);
            }
            if ms > 5_000 {
                most = most.max(appended - taken as u64);
            }
        }
        (appended, most)
    }

    #[tokio::test]
    async fn it_goes_as_fast_as_things_arrive_and_never_far_ahead() {
        for per_s in [150.0, 1_000.0, 7_000.0] {
            let (appended, most) = run(per_s, 0);
            assert!(appended as f64 > SECONDS as f64 * per_s * 0.95, "{per_s}: {appended}");
            assert!(most as f64 <= per_s * 0.65, "{per_s}: {most} wait");
        }
    }

    #[tokio::test]
    async fn a_way_that_is_long_by_itself_is_no_queue() {
        for (per_s, later_ms, share) in
            [(150.0, 500, 0.9), (1_000.0, 500, 0.8), (1_000.0, 1_500, 0.35), (3_000.0, 1_000, 0.5)]
        {
            let (appended, most) = run(per_s, later_ms);
            assert!(appended as f64 > SECONDS as f64 * per_s * share, "{per_s}, {later_ms} ms: {appended}");
            assert!(most as f64 <= per_s * 1.3, "{per_s}, {later_ms} ms: {most} wait");
        }
    }

    #[tokio::test]
    async fn it_goes_on_slowly_where_nothing_arrives_and_at_a_rate_where_nobody_knows() {
        let (appended, _) = run(0.0, 0);
        assert!((300..3_000).contains(&appended), "{appended}");
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let mut appended = 0;
        for ms in 0..1_000 {
            let now = begun + Duration::from_millis(ms);
            let step = pace.step(now, 0, None);
            if step > 0 {
                appended += step;
                pace.done(now, step, 0);
            }
        }
        assert!((3_500..=4_600).contains(&appended), "{appended}");
    }
}
