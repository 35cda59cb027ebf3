//! When a failed sink is tried again.
//!
//! Delays double from 100 ms up to 30 s, half of each random so that many sinks do not come back in step; a destination's own
//! wish (`Retry-After`) is a lower bound, believed up to a day. Plain input and output: chance and time are passed in.

use std::time::Duration;

use chrono::{DateTime, Utc};

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(30);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The failures since something went through.
#[derive(Debug, Default)]
pub(super) struct Retry {
    attempts: u32,
    since: Option<DateTime<Utc>>,
}

impl Retry {
    /// Counts a failure; the delay before the next try. `chance` is in 0..1.
    pub(super) fn failed(&mut self, now: DateTime<Utc>, retry_after: Option<Duration>, chance: f64) -> Duration {
        let doubled = FIRST.saturating_mul(2_u32.saturating_pow(self.attempts.min(16)));
        let most = doubled.min(MOST);
        self.attempts = self.attempts.saturating_add(1);
        self.since.get_or_insert(now);
        let delay = most / 2 + (most / 2).mul_f64(chance.clamp(0.0, 1.0));
        delay.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX))
    }

    /// Something went through.
    pub(super) fn succeeded(&mut self) {
        *self = Retry::default();
    }

    /// Failures in a row.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Since when nothing went through.
    pub(super) fn since(&self) -> Option<DateTime<Utc>> {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn delays_double_to_the_cap_and_begin_anew_after_success() {
        let mut retry = Retry::default();
        let now = DateTime::UNIX_EPOCH;
        let delays: Vec<u128> = (0..12).map(|_| retry.failed(now, None, 1.0).as_millis()).collect();
        assert_eq!(delays[..5], [100, 200, 400, 800, 1_600]);
        assert_eq!(delays[11], 30_000);
        assert_eq!((retry.attempts(), retry.since()), (12, Some(now)));

        retry.succeeded();

        assert_eq!((retry.attempts(), retry.since()), (0, None));
        assert_eq!(retry.failed(now, None, 1.0), FIRST);
    }

    #[test]
    fn the_destinations_wish_is_a_lower_bound() {
        let mut retry = Retry::default();
        let minute = Duration::from_secs(60);
        assert_eq!(retry.failed(DateTime::UNIX_EPOCH, Some(minute), 0.5), minute);
        assert_eq!(retry.failed(DateTime::UNIX_EPOCH, Some(Duration::MAX), 0.5), RETRY_AFTER_MAX);
    }

    proptest! {
        #[test]
        fn delays_stay_within_their_bounds(attempts in 0_u32..100, chance in 0.0..1.0) {
            let mut retry = Retry { attempts, since: None };
            let delay = retry.failed(DateTime::UNIX_EPOCH, None, chance);
            prop_assert!(delay >= FIRST / 2 && delay <= MOST);
        }
    }
}
