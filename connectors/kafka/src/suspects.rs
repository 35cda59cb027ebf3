//! Finds the one record that a broker refuses.
//!
//! Kafka refuses a batch as a whole, and librdkafka then reports every record of it with the same error. So a refusal is
//! believed only of a record that was alone in its batch: after the first one the sink sends one record per batch until it
//! is past the suspects.

use std::sync::atomic::{AtomicU64, Ordering};

use catalog_bridge_api::Offset;

/// The largest suspected offset of a sink.
#[derive(Debug, Default)]
pub(crate) struct Suspects(AtomicU64);

impl Suspects {
    /// Whether a session that starts after `checkpoint` has to send one record per batch.
    pub(crate) fn lie_after(&self, checkpoint: Offset) -> bool {
        checkpoint.get() < self.0.load(Ordering::Acquire)
    }

    /// Suspects everything up to `offset`.
    pub(crate) fn suspect(&self, offset: Offset) {
        self.0.fetch_max(offset.get(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicion_ends_behind_the_last_suspect() {
        let suspects = Suspects::default();
        assert!(!suspects.lie_after(0.into()));

        suspects.suspect(7.into());
        suspects.suspect(5.into());

        assert!(suspects.lie_after(6.into()));
        assert!(!suspects.lie_after(7.into()));
    }
}
