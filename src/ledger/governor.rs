//! How many connections may be opened at the same time, and when.

use super::letters::Failure;
use crate::limits::{DIAL_BACKOFF_MAX, DIAL_BACKOFF_MIN, DIALS_MAX};
use crate::random::Random;
use crate::time::Instant;
use std::sync::Arc;
use std::time::Duration;

/// Allows dials to one endpoint: in parallel as long as they succeed (one more when a whole window has succeeded, half as
/// many after a failure), one at a time and with growing pauses while they fail.
#[derive(Debug)]
pub(super) struct Governor {
    window: u32,
    /// Successes since it grew.
    successes: u32,
    /// Dials that were allowed and have not come to an end.
    dialing: u32,
    /// Failures one after the other; those of dials made side by side are one.
    failures: u32,
    retry_at: Instant,
    /// How long it takes to open a connection, of late.
    took: Duration,
    trouble: Option<Arc<str>>,
    random: Random,
}

impl Governor {
    pub fn new(seed: u64) -> Self {
        Self {
            window: WINDOW_FIRST,
            successes: 0,
            dialing: 0,
            failures: 0,
            retry_at: Instant::default(),
            took: Duration::from_millis(5),
            trouble: None,
            random: Random::new(seed),
        }
    }

    pub fn may_dial(&self, now: Instant) -> bool {
        let allowed = if self.failures > 0 { 1 } else { self.window };
        self.dialing < allowed && now >= self.retry_at
    }

    pub fn granted(&mut self) {
        self.dialing += 1;
    }

    pub fn unused(&mut self) {
        self.ends();
    }

    pub fn opened(&mut self, took: Duration) {
        self.successes += 1;
        if self.successes >= self.window {
            self.successes = 0;
            self.window = (self.window + 1).min(DIALS_MAX);
        }
        self.ends();
        self.took = (self.took * 4 + took) / 5;
        (self.failures, self.retry_at, self.trouble) = (0, Instant::default(), None);
    }

    pub fn failed(&mut self, failure: &Failure, now: Instant) {
        self.ends();
        let (Failure::Unreachable(why) | Failure::Overloaded(why)) = failure else { return };
        if self.trouble.as_deref() != Some(why) {
            self.trouble = Some(why.clone());
        }
        if now < self.retry_at {
            return;
        }
        self.window = (self.window / 2).max(1);
        self.successes = 0;
        let pause = (DIAL_BACKOFF_MIN * (1 << self.failures.min(10))).min(DIAL_BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + self.random.portion(pause, 0.5);
    }

    fn ends(&mut self) {
        assert!(self.dialing > 0, "a dial that ends was allowed");
        self.dialing -= 1;
    }

    /// The last dials failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// When the pause is over.
    pub fn retry_at(&self) -> Instant {
        self.retry_at
    }

    pub fn dialing(&self) -> u32 {
        self.dialing
    }

    pub fn took(&self) -> Duration {
        self.took
    }

    pub fn trouble(&self) -> Option<&Arc<str>> {
        self.trouble.as_ref()
    }
}

/// A cold start begins with this many side by side: PostgreSQL forks a process for each, and nobody knows yet how fast. It
/// grows slowly, as those that come first often serve the whole queue before the next are there.
const WINDOW_FIRST: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn fill(governor: &mut Governor, now: Instant) -> u32 {
        std::iter::from_fn(|| governor.may_dial(now).then(|| governor.granted())).count() as u32
    }

    #[test]
    fn a_cold_start_is_neither_one_at_a_time_nor_a_storm() {
        let mut governor = Governor::new(1);
        let mut widths = Vec::new();
        for round in 0..6 {
            let width = fill(&mut governor, at(round));
            (0..width).for_each(|_| governor.opened(MS));
            widths.push(width);
        }
        assert_eq!(widths, [4, 5, 6, 7, 8, 9]);
        for _ in 0..99 {
            governor.granted();
            governor.opened(MS);
        }
        assert!(fill(&mut governor, at(9)) <= DIALS_MAX);
    }

    #[test]
    fn failures_side_by_side_are_one_and_then_one_at_a_time_is_tried() {
        let mut governor = Governor::new(1);
        let failure = Failure::Unreachable("refused".into());
        assert_eq!(fill(&mut governor, at(0)), 4);
        (0..4).for_each(|_| governor.failed(&failure, at(0)));
        assert_eq!(governor.trouble().map(AsRef::as_ref), Some("refused"));
        assert_eq!(fill(&mut governor, at(20)), 0, "the first pause is 25 to 50 ms");
        assert_eq!(fill(&mut governor, at(50)), 1);
        let mut now = 50;
        for _ in 0..20 {
            governor.failed(&failure, at(now));
            let pause = governor.retry_at().since(at(now));
            assert!(pause <= DIAL_BACKOFF_MAX && pause >= DIAL_BACKOFF_MIN / 2, "{pause:?}");
            now += 1000;
            assert_eq!(fill(&mut governor, at(now)), 1);
        }
        governor.opened(MS);
        assert!(governor.trouble().is_none() && !governor.is_failing());
        assert!(governor.may_dial(at(now)));
    }

    #[test]
    fn a_refused_login_slows_nobody() {
        let mut governor = Governor::new(1);
        assert_eq!(fill(&mut governor, at(0)), 4);
        (0..4).for_each(|_| governor.failed(&Failure::Refused, at(0)));
        assert_eq!(fill(&mut governor, at(0)), 4);
    }
}
