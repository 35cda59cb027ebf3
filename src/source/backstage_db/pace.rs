//! How often to look. Time is passed in.
//!
//! Keeps P10: what costs the catalog's database time is repeated so seldom that it takes less than a hundredth of a core.

use std::time::{Duration, Instant};

/// A look costs at most one part in so many of a core.
const SHARE: u32 = 100;
/// Longest pause after looks that were in vain.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// When the next of a kind of look is due: after its interval, after a hundred times what the last one cost, and after
/// twice as long for each one in a row that was in vain.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    interval: Duration,
    in_vain: u32,
    due: Instant,
    pause: Duration,
}

impl Pace {
    /// Due at once.
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Pace { interval, in_vain: 0, due: now, pause: interval }
    }

    /// Due after one interval.
    pub(super) fn later(interval: Duration, now: Instant) -> Self {
        Pace { due: now + interval, ..Pace::new(interval, now) }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// It was done and cost so much of the database's time.
    pub(super) fn done(&mut self, cost: Duration, now: Instant) {
        let doubled = self.interval.saturating_mul(1 << self.in_vain.min(16)).min(PAUSE_MAX.max(self.interval));
        self.pause = doubled.max(cost.saturating_mul(SHARE));
        self.due = now + self.pause;
    }

    /// It changed nothing though it should have: wait twice as long from now on.
    pub(super) fn was_in_vain(&mut self) {
        self.in_vain = self.in_vain.saturating_add(1);
    }

    /// It did its work: back to the interval.
    pub(super) fn was_useful(&mut self) {
        self.in_vain = 0;
    }

    /// How many in a row were in vain.
    pub(super) fn in_vain(&self) -> u32 {
        self.in_vain
    }

    /// The pause that it takes now.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    pub(super) fn due_in(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }
}

/// The pause between looks at the counter: short while there is something going on.
#[derive(Debug)]
pub(super) struct Poll {
    fixed: Option<Duration>,
    last_change: Option<Instant>,
}

/// While something is going on.
const POLL_BUSY: Duration = Duration::from_millis(50);
/// Else.
const POLL_IDLE: Duration = Duration::from_millis(250);
/// How long a change counts as something going on.
const BUSY_FOR: Duration = Duration::from_secs(10);

impl Poll {
    pub(super) fn new(fixed: Option<Duration>) -> Self {
        Poll { fixed, last_change: None }
    }

    pub(super) fn changed(&mut self, now: Instant) {
        self.last_change = Some(now);
    }

    pub(super) fn pause(&self, now: Instant) -> Duration {
        let is_busy = self.last_change.is_some_and(|last| now.saturating_duration_since(last) < BUSY_FOR);
        self.fixed.unwrap_or(if is_busy { POLL_BUSY } else { POLL_IDLE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_takes_less_than_a_hundredth_of_a_core() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(1), start);
        assert!(pace.is_due(start));

        pace.done(Duration::from_millis(3), start);
        assert_eq!(pace.due_in(start), Duration::from_secs(1));
        pace.done(Duration::from_millis(30), start);

        assert_eq!(pace.due_in(start), Duration::from_secs(3));
        assert!(!pace.is_due(start + Duration::from_millis(2_999)) && pace.is_due(start + Duration::from_secs(3)));
    }

    #[test]
    fn looks_in_vain_double_the_pause_up_to_an_hour() {
        let now = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(1), now);
        for _ in 0..3 {
            pace.was_in_vain();
        }
        pace.done(Duration::ZERO, now);
        assert_eq!(pace.pause(), Duration::from_secs(8));

        for _ in 0..60 {
            pace.was_in_vain();
        }
        pace.done(Duration::ZERO, now);
        assert_eq!(pace.pause(), PAUSE_MAX);
        pace.was_useful();
        pace.done(Duration::ZERO, now);

        assert_eq!(pace.pause(), Duration::from_secs(1));
    }

    #[test]
    fn polls_are_quick_for_ten_seconds_after_a_change() {
        let now = Instant::now();
        let mut poll = Poll::new(None);
        assert_eq!(poll.pause(now), POLL_IDLE);

        poll.changed(now);

        assert_eq!(poll.pause(now + Duration::from_secs(9)), POLL_BUSY);
        assert_eq!(poll.pause(now + Duration::from_secs(11)), POLL_IDLE);
        assert_eq!(Poll::new(Some(Duration::from_millis(10))).pause(now), Duration::from_millis(10));
    }
}
