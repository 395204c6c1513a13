//! Whether searches ask the primary store: a circuit breaker. No I/O, no clock: what happened and when goes in.
//!
//! Closed, searches ask it. Failures or slow answers in a row open it, and nothing is asked for a while. Then probes of its own,
//! no user's searches, are to be answered quickly several times in a row. A store that is lost again soon after stays open
//! for twice as long each time, so that one that flaps is not asked at each of its upswings.

use std::time::{Duration, Instant};

/// When it opens, and when it closes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Failures in a row that open it.
    pub failures: u32,
    /// Answers in a row that were slow, or none, that open it.
    pub slow: u32,
    /// From when on an answer is slow; the deadline of a probe.
    pub slow_after: Duration,
    /// How long it stays open at first, and at most.
    pub open: (Duration, Duration),
    /// Probes in a row that close it.
    pub probes: u32,
    /// A store that has lasted this long is trusted as at first.
    pub steady: Duration,
}

impl Limits {
    /// For searches that are hedged after so long.
    pub fn hedged_after(delay: Duration) -> Limits {
        Limits {
            failures: 3,
            slow: 5,
            // Who hedges at once does not call a store slow that takes as long as stores do.
            slow_after: delay.max(Duration::from_millis(50)),
            open: (Duration::from_secs(1), Duration::from_secs(30)),
            probes: 3,
            steady: Duration::from_secs(60),
        }
    }
}

/// What became of a search or a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Answered {
        /// How long it took.
        took: Duration,
    },
    /// No answer yet after so long, and nobody waits any more.
    Abandoned {
        /// How long it was waited.
        after: Duration,
    },
    /// Answered with a fault, or not reached.
    Failed,
}

/// Whether it lets searches through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Searches ask the store.
    Closed,
    /// Nothing asks it.
    Open,
    /// Probes ask it.
    HalfOpen,
}

impl State {
    /// All of them, as the metrics' label `state` names them.
    pub const ALL: [State; 3] = [State::Closed, State::Open, State::HalfOpen];

    /// Its name there.
    pub fn as_label(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
        }
    }
}

/// Why it is not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// So many searches in a row failed.
    Failures(u32),
    /// So many searches in a row were slow.
    Slow(u32),
    /// The store does not answer at all.
    Lost,
    /// A probe failed or was slow.
    Probe,
    /// Somebody tries out what happens without the store.
    Drill,
}

/// The breaker of one store.
#[derive(Clone, Debug)]
pub struct Breaker {
    limits: Limits,
    phase: Phase,
    cause: Option<Cause>,
    /// For how long it opens the next time.
    open_for: Duration,
    closed_at: Option<Instant>,
    held_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed { failed: u32, slow: u32 },
    Open { until: Instant },
    HalfOpen { passed: u32 },
}

impl Breaker {
    /// A closed one.
    pub fn new(limits: Limits) -> Breaker {
        Breaker {
            limits,
            phase: Phase::Closed { failed: 0, slow: 0 },
            cause: None,
            open_for: limits.open.0,
            closed_at: None,
            held_until: None,
        }
    }

    /// When it opens and closes.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How it is.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Why it is not closed.
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Searches that have failed in a row, while it is closed.
    pub fn failed(&self) -> u32 {
        match self.phase {
            Phase::Closed { failed, .. } => failed,
            Phase::Open { .. } | Phase::HalfOpen { .. } => 0,
        }
    }

    /// Notes what became of a search. Those that end when it is open already say nothing new.
    pub fn searched(&mut self, now: Instant, outcome: Outcome) {
        let Phase::Closed { failed, slow } = &mut self.phase else { return };
        match outcome {
            Outcome::Failed => (*failed, *slow) = (*failed + 1, *slow + 1),
            Outcome::Answered { took: long } | Outcome::Abandoned { after: long } if long >= self.limits.slow_after => {
                (*failed, *slow) = (0, *slow + 1);
            }
            Outcome::Answered { .. } => (*failed, *slow) = (0, 0),
            // It could have been quick.
            Outcome::Abandoned { .. } => {}
        }
        let (failed, slow) = (*failed, *slow);
        if failed >= self.limits.failures {
            self.open(now, Cause::Failures(failed));
        } else if slow >= self.limits.slow {
            self.open(now, Cause::Slow(slow));
        }
    }

    /// Notes that the store does not answer at all.
    pub fn lost(&mut self, now: Instant) {
        match self.phase {
            Phase::Closed { .. } | Phase::HalfOpen { .. } => self.open(now, Cause::Lost),
            Phase::Open { .. } if self.cause == Some(Cause::Drill) && !self.is_held(now) => self.open(now, Cause::Lost),
            // It is not long enough away to count again.
            Phase::Open { .. } => {}
        }
    }

    /// Whether a drill keeps it open.
    pub fn is_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    /// Whether the store, which can be asked, is to be probed now.
    pub fn wants_probe(&mut self, now: Instant) -> bool {
        if self.is_held(now) {
            return false;
        }
        self.held_until = None;
        match self.phase {
            Phase::Closed { .. } => false,
            Phase::Open { until } if now < until => false,
            Phase::Open { .. } => {
                self.phase = Phase::HalfOpen { passed: 0 };
                true
            }
            Phase::HalfOpen { .. } => true,
        }
    }

    /// Notes what became of a probe.
    pub fn probed(&mut self, now: Instant, outcome: Outcome) {
        let Phase::HalfOpen { passed } = &mut self.phase else { return };
        match outcome {
            Outcome::Answered { took } if took < self.limits.slow_after => *passed += 1,
            _ => return self.open(now, Cause::Probe),
        }
        if *passed >= self.limits.probes {
            self.phase = Phase::Closed { failed: 0, slow: 0 };
            (self.cause, self.closed_at) = (None, Some(now));
        }
    }

    /// Keeps it open until then, whatever the store does; afterwards it closes as ever.
    pub fn hold(&mut self, until: Instant) {
        self.held_until = self.held_until.max(Some(until));
        (self.phase, self.cause) = (Phase::Open { until }, Some(Cause::Drill));
    }

    fn open(&mut self, now: Instant, cause: Cause) {
        if let Phase::Closed { .. } = self.phase {
            let lasted = self.closed_at.map(|since| now.duration_since(since));
            if lasted.is_none_or(|lasted| lasted >= self.limits.steady) {
                self.open_for = self.limits.open.0;
            }
        }
        (self.phase, self.cause) = (Phase::Open { until: now + self.open_for }, Some(cause));
        self.open_for = (self.open_for * 2).min(self.limits.open.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    fn quick() -> Outcome {
        Outcome::Answered { took: 2 * MS }
    }

    fn slow() -> Outcome {
        Outcome::Abandoned { after: 60 * MS }
    }

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(Limits::hedged_after(50 * MS)), Instant::now())
    }

    /// Probes each second until it closes; says after how many seconds.
    fn heal(breaker: &mut Breaker, from: Instant) -> u32 {
        (0..100)
            .find(|second| {
                let now = from + *second * S;
                if breaker.wants_probe(now) {
                    breaker.probed(now, quick());
                }
                breaker.state() == State::Closed
            })
            .expect("it closes")
    }

    #[test]
    fn failures_in_a_row_open_it_and_single_ones_do_not() {
        let (mut breaker, now) = breaker();
        for _ in 0..10 {
            breaker.searched(now, Outcome::Failed);
            breaker.searched(now, Outcome::Failed);
            breaker.searched(now, quick());
        }
        assert_eq!((breaker.state(), breaker.cause(), breaker.failed()), (State::Closed, None, 0));
        for count in 1..=3 {
            breaker.searched(now, Outcome::Failed);
            assert_eq!(breaker.failed(), count % 3);
        }
        assert_eq!((breaker.state(), breaker.cause()), (State::Open, Some(Cause::Failures(3))));
    }

    #[test]
    fn slow_answers_in_a_row_open_it_whoever_gave_up() {
        let (mut breaker, now) = breaker();
        for outcome in [slow(), Outcome::Answered { took: 51 * MS }, slow(), Outcome::Failed] {
            breaker.searched(now, outcome);
        }
        // Nobody waited for it long enough to say.
        breaker.searched(now, Outcome::Abandoned { after: 5 * MS });
        assert_eq!(breaker.state(), State::Closed);
        breaker.searched(now, slow());
        assert_eq!((breaker.state(), breaker.cause()), (State::Open, Some(Cause::Slow(5))));
    }

    #[test]
    fn it_closes_after_its_time_and_quick_probes_in_a_row() {
        let (mut breaker, now) = breaker();
        breaker.lost(now);
        assert!(!breaker.wants_probe(now + 999 * MS));
        assert!(breaker.wants_probe(now + S));
        breaker.probed(now + S, quick());
        breaker.probed(now + S, quick());
        assert_eq!(breaker.state(), State::HalfOpen);
        // A slow one is none, and it waits for twice as long.
        breaker.probed(now + S, Outcome::Answered { took: 50 * MS });
        assert_eq!((breaker.state(), breaker.cause()), (State::Open, Some(Cause::Probe)));
        assert!(!breaker.wants_probe(now + 2999 * MS));
        assert_eq!(heal(&mut breaker, now + 3 * S), 2);
        assert_eq!(breaker.cause(), None);
    }

    #[test]
    fn what_ends_late_changes_nothing() {
        let (mut breaker, now) = breaker();
        breaker.lost(now);
        breaker.searched(now, quick());
        breaker.probed(now, quick());
        assert_eq!(breaker.state(), State::Open);
        breaker.lost(now + 900 * MS);
        assert!(breaker.wants_probe(now + S), "to be lost still does not count again");
    }

    #[test]
    fn one_that_flaps_is_asked_more_and_more_seldom_and_one_that_lasts_is_trusted_again() {
        let (mut breaker, mut now) = breaker();
        let mut took = vec![];
        for _ in 0..8 {
            breaker.lost(now);
            took.push(heal(&mut breaker, now));
            now += took.last().copied().unwrap_or_default() * S + 2 * S;
        }
        assert_eq!(took, [3, 4, 6, 10, 18, 32, 32, 32]);
        now += 60 * S;
        breaker.lost(now);
        assert_eq!(heal(&mut breaker, now), 3);
    }

    #[test]
    fn a_drill_holds_it_open_for_its_time_and_no_longer() {
        let (mut breaker, now) = breaker();
        breaker.hold(now + 10 * S);
        assert_eq!((breaker.state(), breaker.cause()), (State::Open, Some(Cause::Drill)));
        assert!(!breaker.wants_probe(now + 9 * S));
        breaker.searched(now, quick());
        breaker.lost(now + 5 * S);
        assert!(!breaker.wants_probe(now + 9999 * MS));
        assert_eq!(heal(&mut breaker, now + 10 * S), 2);
        // One that is lost meanwhile is lost when it ends.
        breaker.hold(now + 20 * S);
        breaker.lost(now + 19 * S);
        assert_eq!(breaker.cause(), Some(Cause::Drill));
        breaker.lost(now + 20 * S);
        assert_eq!(breaker.cause(), Some(Cause::Lost));
        // And a drill of one that is open already does not make it shorter.
        breaker.hold(now + 40 * S);
        breaker.hold(now + 30 * S);
        assert!(!breaker.wants_probe(now + 35 * S));
    }
}
