//! How often to look. Time is passed in.
//!
//! Keeps P10: what costs the catalog's database time is repeated so seldom that it takes less than a hundredth of a core. The
//! cost is the server's own, so that neither a slow network nor a starved client delays the finding of a removal.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::position::Way;

/// Looks for removals cost at most one part in so many of a core, by the server's clock: two fifths of the hundredth that capture may
/// cost. The rest is for the polls, and for what the least of some measures leaves out (docs/capture-performance.md has both).
const SHARE: u32 = 250;
/// Longest pause after looks that were in vain.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// So many measures of a kind of look are remembered.
const MEASURES: usize = 8;
/// The first ones of a kind are taken for nothing: one alone may be mostly a wait for a processor.
const MEASURES_FREE: usize = 2;

/// What looks cost the database.
///
/// A server tells how long it took, not how long it computed: it may have waited for a processor, and such waits only ever
/// add. So the cost of a row is the least of the last few measures of that kind of look.
#[derive(Debug, Default)]
pub(super) struct Meter {
    recent: HashMap<&'static str, VecDeque<f64>>,
    spent: Duration,
}

impl Meter {
    /// A look of this kind over so many rows took so long by the server's clock; returns what it cost.
    pub(super) fn note(&mut self, kind: &'static str, rows: u64, took: Duration) -> Duration {
        let rows = rows.max(1) as f64;
        let recent = self.recent.entry(kind).or_default();
        recent.push_back(took.as_secs_f64() / rows);
        if recent.len() <= MEASURES_FREE {
            return Duration::ZERO;
        }
        if recent.len() > MEASURES {
            recent.pop_front();
        }
        let least = recent.iter().copied().fold(f64::INFINITY, f64::min);
        let cost = Duration::try_from_secs_f64(least * rows).unwrap_or(took);
        self.spent += cost;
        cost
    }

    /// The cost of all looks since this was asked last.
    pub(super) fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }
}

/// When the next of a kind of look is due: after its interval, after [`SHARE`] times what the last one cost, and after
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
    busy: Duration,
    last_change: Option<Instant>,
}

/// While something is going on.
const POLL_BUSY: Duration = Duration::from_millis(50);
/// The same by triggers, whose outbox tells at once.
const POLL_BUSY_BY_TRIGGERS: Duration = Duration::from_millis(10);
/// Else.
const POLL_IDLE: Duration = Duration::from_millis(250);
/// How long a change counts as something going on.
const BUSY_FOR: Duration = Duration::from_secs(10);

impl Poll {
    pub(super) fn new(fixed: Option<Duration>, way: Way) -> Self {
        let busy = if way == Way::Triggers { POLL_BUSY_BY_TRIGGERS } else { POLL_BUSY };
        Poll { fixed, busy, last_change: None }
    }

    pub(super) fn changed(&mut self, now: Instant) {
        self.last_change = Some(now);
    }

    pub(super) fn pause(&self, now: Instant) -> Duration {
        let is_busy = self.last_change.is_some_and(|last| now.saturating_duration_since(last) < BUSY_FOR);
        self.fixed.unwrap_or(if is_busy { self.busy } else { POLL_IDLE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_processor_do_not_count_as_cost() {
        let mut meter = Meter::default();
        let took = [900, 5, 4, 800, 6, 2_000].map(Duration::from_millis);

        let costs = took.map(|took| meter.note("count", 1_000, took).as_millis());

        assert_eq!(costs, [0, 0, 4, 4, 4, 4]);
        assert_eq!(meter.take_spent().as_millis(), 16);
        assert_eq!(meter.take_spent(), Duration::ZERO);
    }

    #[test]
    fn a_growing_table_costs_more_at_once() {
        let mut meter = Meter::default();
        for _ in 0..20 {
            meter.note("count", 1_000, Duration::from_millis(4));
        }
        assert_eq!(meter.note("count", 10_000, Duration::from_millis(40)).as_millis(), 40);
        // Rows that became dearer count as soon as the cheap ones are forgotten.
        for _ in 0..MEASURES {
            meter.note("count", 10_000, Duration::from_millis(400));
        }
        assert_eq!(meter.note("count", 10_000, Duration::from_millis(400)).as_millis(), 400);
    }

    #[test]
    fn a_look_takes_less_than_a_hundredth_of_a_core() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(1), start);
        assert!(pace.is_due(start));

        pace.done(Duration::from_millis(3), start);
        assert_eq!(pace.due_in(start), Duration::from_secs(1));
        pace.done(Duration::from_millis(12), start);

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
        let mut poll = Poll::new(None, Way::Generations);
        assert_eq!(poll.pause(now), POLL_IDLE);

        poll.changed(now);

        assert_eq!(poll.pause(now + Duration::from_secs(9)), POLL_BUSY);
        assert_eq!(poll.pause(now + Duration::from_secs(11)), POLL_IDLE);
        assert_eq!(Poll::new(Some(Duration::from_millis(10)), Way::Generations).pause(now), Duration::from_millis(10));
    }
}
