//! How fast documents may be appended that nobody waits for one by one: as fast as they are embedded and stored, so that a single
//! change does not stand behind a whole category. No I/O.

use std::time::Duration;

use tokio::time::Instant;

/// How long what is on its way may take to arrive: half of the second that a single change may be held up for, less what reading
/// and writing take.
const ON_ITS_WAY: Duration = Duration::from_millis(300);
/// Documents on their way before anything is known, and the bounds of what is found out.
const WINDOW: f64 = 256.0;
const WINDOW_MIN: f64 = 32.0;
const WINDOW_MAX: f64 = 4_000.0;
/// Over how long arriving is measured.
const MEASURED: Duration = Duration::from_millis(200);
/// The share of a new measurement.
const SHARE: f64 = 0.5;
/// After so long some are appended whatever is on its way: something else may hold that up.
const PATIENCE: Duration = Duration::from_secs(1);
/// Documents of one step.
const STEP_MAX: f64 = 500.0;
/// Documents a second where nobody here knows what has arrived.
const BLIND_PER_S: f64 = 4_000.0;

/// The pace of one session.
#[derive(Debug)]
pub struct Pace {
    window: f64,
    /// When it was measured last, what had been appended by then, and what of it was on its way.
    measured: (Instant, u64, u64),
    /// When documents were appended last, and how many.
    last: (Instant, usize),
}

impl Pace {
    /// Begins. `appended` is what the log has been given so far.
    pub fn new(now: Instant, appended: u64) -> Pace {
        Pace { window: WINDOW, measured: (now, appended, 0), last: (now, 0) }
    }

    /// How many documents may be appended now; 0: none yet. `behind` is how many records are on their way, if that is known, of
    /// `appended` in all.
    pub fn step(&mut self, now: Instant, appended: u64, behind: Option<u64>) -> usize {
        let (since, count) = self.last;
        let waited = now.duration_since(since);
        let Some(behind) = behind else {
            return if waited.as_secs_f64() * BLIND_PER_S >= count as f64 { STEP_MAX as usize } else { 0 };
        };
        self.measure(now, appended, behind);
        let step = (self.window / 2.0).min(STEP_MAX);
        if behind as f64 + step <= self.window || waited >= PATIENCE { step as usize } else { 0 }
    }

    /// So many were appended.
    pub fn done(&mut self, now: Instant, count: usize) {
        self.last = (now, count);
    }

    fn measure(&mut self, now: Instant, appended: u64, behind: u64) {
        let (at, had, was_behind) = self.measured;
        let took = now.duration_since(at);
        if took < MEASURED {
            return;
        }
        let arrived = (appended - appended.min(behind)).saturating_sub(had - had.min(was_behind));
        self.measured = (now, appended, behind);
        // Where nothing was on its way, how little arrived says nothing.
        if was_behind == 0 && behind == 0 {
            return;
        }
        let fits = arrived as f64 / took.as_secs_f64() * ON_ITS_WAY.as_secs_f64();
        // One that had run dry may do more than it was given.
        let fits = if behind == 0 { fits.max(self.window * 2.0) } else { fits };
        self.window = (self.window * (1.0 - SHARE) + fits * SHARE).clamp(WINDOW_MIN, WINDOW_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody takes so many a second; how many were appended in ten seconds, and how many were on their way at most after the first two,
    /// in which it finds out.
    fn run(per_s: f64) -> (u64, u64) {
        let begun = Instant::now();
        let mut pace = Pace::new(begun, 0);
        let (mut appended, mut taken, mut most) = (0_u64, 0.0_f64, 0);
        for ms in 0..10_000 {
            let now = begun + Duration::from_millis(ms);
            taken = (taken + per_s / 1_000.0).min(appended as f64);
            let behind = appended - taken as u64;
            let step = pace.step(now, appended, Some(behind));
            if step > 0 {
                appended += step as u64;
                pace.done(now, step);
            }
            if ms > 2_000 {
                most = most.max(appended - taken as u64);
            }
        }
        (appended, most)
    }

    #[tokio::test]
    async fn it_goes_as_fast_as_things_arrive_and_never_far_ahead() {
        for per_s in [150.0, 1_000.0, 7_000.0] {
            let (appended, most) = run(per_s);
            assert!(appended as f64 > 9.0 * per_s * 0.9, "{per_s}: {appended}");
            assert!(most as f64 <= (per_s * 0.6).max(64.0), "{per_s}: {most} on their way");
        }
    }

    #[tokio::test]
    async fn it_goes_on_slowly_where_nothing_arrives_and_at_a_rate_where_nobody_knows() {
        let (appended, _) = run(0.0);
        assert!((300..3_000).contains(&appended), "{appended}");
        let begun = Instant::now();
        let mut pace = Pace::new(begun, 0);
        let mut appended = 0;
        for ms in 0..1_000 {
            let now = begun + Duration::from_millis(ms);
            let step = pace.step(now, 0, None);
            if step > 0 {
                appended += step;
                pace.done(now, step);
            }
        }
        assert!((3_500..=4_600).contains(&appended), "{appended}");
    }
}
