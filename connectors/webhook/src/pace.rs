//! Keeps `max_rate`: when the next event may be sent.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A timer may wake late by this much without the rate falling behind.
const SLACK: Duration = Duration::from_millis(20);

/// Shared by all sessions of a sink.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Between two events; zero without a limit.
    interval: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(events_per_second: Option<f64>) -> Pace {
        let interval = events_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate));
        Pace { interval, next: Mutex::new(None) }
    }

    /// Resolves when an event may be sent. Cancel safe: it takes nothing.
    pub(crate) async fn ready(&self) {
        let next = *self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = next {
            tokio::time::sleep_until(next).await;
        }
    }

    /// An event is sent now.
    pub(crate) fn take(&self) {
        if self.interval.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let due = next.unwrap_or(now).max(now.checked_sub(SLACK).unwrap_or(now));
        *next = Some(due + self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent_within(pace: &Pace, time: Duration) -> u32 {
        let end = Instant::now() + time;
        let mut count = 0;
        while tokio::time::timeout_at(end, pace.ready()).await.is_ok() && Instant::now() < end {
            pace.take();
            count += 1;
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_also_above_what_timers_resolve() {
        for rate in [2_u32, 50, 1_000, 20_000] {
            let pace = Pace::new(Some(rate.into()));
            let sent = sent_within(&pace, Duration::from_secs(3)).await;
            let most = 3 * rate + rate / 50 + 1;
            assert!((3 * rate - rate / 50 - 1..=most).contains(&sent), "{rate}: {sent}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_saves_up_nothing() {
        let pace = Pace::new(Some(10.0));
        pace.take();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(sent_within(&pace, Duration::from_secs(1)).await <= 11);
    }
}
