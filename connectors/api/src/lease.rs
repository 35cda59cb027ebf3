use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Whether this process still owns what it writes (promise P9). The deadline is counted by `CLOCK_BOOTTIME`, which goes on
/// while the machine sleeps, from before the renewal was sent. Cheap to clone and to ask.
#[derive(Debug, Clone)]
pub struct Lease {
    deadline_nanos: Arc<AtomicU64>,
}

impl Lease {
    /// A lease that ends `time_to_live` after `renewal_sent`, a reading of [`Lease::clock`].
    pub fn until(renewal_sent: Duration, time_to_live: Duration) -> Self {
        Lease { deadline_nanos: Arc::new(AtomicU64::new(deadline(renewal_sent, time_to_live))) }
    }

    /// A lease that never ends, for tests and for tools without replicas.
    pub fn unlimited() -> Self {
        Lease { deadline_nanos: Arc::new(AtomicU64::new(UNLIMITED)) }
    }

    /// The clock that leases are counted by: time since boot, sleep included.
    pub fn clock() -> Duration {
        clock::since_boot()
    }

    /// Moves the deadline after a renewal; never backwards. A lease that was ended or ran out stays so, whatever a late
    /// renewal says: what was held back meanwhile was given up.
    pub fn extend(&self, renewal_sent: Duration, time_to_live: Duration) {
        let deadline = deadline(renewal_sent, time_to_live);
        let _ = self.deadline_nanos.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            Some(if has_passed(old) { ENDED } else { old.max(deadline) })
        });
    }

    /// Ends it now, for good.
    pub fn end(&self) {
        self.deadline_nanos.store(ENDED, Ordering::Release);
    }

    /// True while the owner may send. Test it before each send, also between retries. Once false it is false for ever.
    pub fn is_held(&self) -> bool {
        let mut deadline = self.deadline_nanos.load(Ordering::Acquire);
        while has_passed(deadline) {
            let ending = self.deadline_nanos.compare_exchange(deadline, ENDED, Ordering::AcqRel, Ordering::Acquire);
            match ending {
                Ok(_) => return false,
                // A renewal came between: it decides.
                Err(extended) => deadline = extended,
            }
        }
        true
    }
}

fn deadline(renewal_sent: Duration, time_to_live: Duration) -> u64 {
    u64::try_from((renewal_sent + time_to_live).as_nanos()).map_or(UNLIMITED - 1, |nanos| nanos.min(UNLIMITED - 1))
}

fn has_passed(deadline: u64) -> bool {
    deadline != UNLIMITED && clock::since_boot().as_nanos() >= u128::from(deadline)
}

const UNLIMITED: u64 = u64::MAX;
/// One nanosecond after boot: always passed, and no real deadline is there.
const ENDED: u64 = 1;

#[expect(unsafe_code, reason = "std has no CLOCK_BOOTTIME; Instant stops while the machine sleeps")]
mod clock {
    use std::time::Duration;

    pub(super) fn since_boot() -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a live, writable timespec, and this clock exists on every Linux since 2.6.39.
        let code = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
        assert_eq!(code, 0, "CLOCK_BOOTTIME exists on every supported kernel");
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_lease_is_never_held_again() {
        let lease = Lease::until(Lease::clock(), Duration::from_secs(60));
        assert!(lease.is_held());

        lease.end();
        lease.extend(Lease::clock(), Duration::from_secs(60));

        assert!(!lease.is_held());
    }

    #[test]
    fn a_deadline_counts_from_before_the_renewal_was_sent() {
        let sent = Lease::clock().saturating_sub(Duration::from_secs(10));
        assert!(!Lease::until(sent, Duration::from_secs(10)).is_held());
    }

    #[test]
    fn a_lease_that_ran_out_is_never_held_again() {
        let sent = Lease::clock().saturating_sub(Duration::from_secs(10));
        let (seen, unseen) = (Lease::until(sent, Duration::from_secs(9)), Lease::until(sent, Duration::from_secs(9)));
        assert!(!seen.is_held());

        for lease in [seen, unseen] {
            lease.extend(Lease::clock(), Duration::from_secs(60));
            assert!(!lease.is_held());
        }
    }

    #[test]
    fn a_renewal_in_time_moves_the_deadline() {
        let lease = Lease::until(Lease::clock(), Duration::from_secs(60));
        lease.extend(Lease::clock(), Duration::from_secs(120));
        assert!(lease.is_held());

        let unlimited = Lease::unlimited();
        unlimited.extend(Lease::clock(), Duration::ZERO);
        assert!(unlimited.is_held());
    }
}
