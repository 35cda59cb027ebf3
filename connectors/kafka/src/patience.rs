//! Notices a session that gets nowhere: tells the driver that the brokers accept nothing, and ends it when they refuse us.
//!
//! An outage is no error of the session (P6: its producer lives on, so nothing is repeated), so this is how one learns of it.
//! Time is read here, and nothing is sent.

use std::time::{Duration, Instant};

use catalog_bridge_api::{Acks, Lease};

use crate::producer::End;
use crate::reports::{Failure, Reports};

/// How long nothing must be acknowledged until the driver is told.
const STALL_AFTER: Duration = Duration::from_secs(3);
/// How long refused credentials must stop everything until the session ends: a starting broker refuses them too.
const REFUSED_AFTER: Duration = Duration::from_secs(10);

/// Of one session.
#[derive(Debug)]
pub(crate) struct Patience {
    acks: Acks,
    delivered: u64,
    since: Instant,
    is_stalled: bool,
}

impl Patience {
    /// Full patience.
    pub(crate) fn new(acks: Acks) -> Self {
        Patience { acks, delivered: 0, since: Instant::now(), is_stalled: false }
    }

    /// To be called now and then, with how many records were sent.
    pub(crate) fn look(&mut self, reports: &Reports, lease: &Lease, sent: u64) -> Result<(), End> {
        self.look_at(reports, lease, sent, Instant::now())
    }

    fn look_at(&mut self, reports: &Reports, lease: &Lease, sent: u64, now: Instant) -> Result<(), End> {
        if !lease.is_held() {
            return Err(End::LeaseLost);
        }
        let delivered = reports.delivered();
        if delivered != self.delivered || delivered >= sent {
            self.went_on(reports, delivered, now);
            return Ok(());
        }
        let waited = now.duration_since(self.since);
        let trouble = reports.trouble();
        if let Some(trouble) = trouble.as_ref().filter(|trouble| trouble.is_refusal && waited > REFUSED_AFTER) {
            let words = trouble.words.clone();
            return Err(End::Failed(Failure { code: trouble.code, words, record: None }));
        }
        if waited > STALL_AFTER && !self.is_stalled {
            self.is_stalled = true;
            let words = trouble.map_or_else(|| "the brokers do not answer".to_owned(), |trouble| trouble.words);
            self.acks.stalled(Some(words));
        }
        Ok(())
    }

    fn went_on(&mut self, reports: &Reports, delivered: u64, now: Instant) {
        if delivered != self.delivered {
            reports.clear_trouble();
        }
        (self.delivered, self.since) = (delivered, now);
        if std::mem::take(&mut self.is_stalled) {
            self.acks.stalled(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::Ack;
    use rdkafka::error::RDKafkaErrorCode as Code;

    use super::*;

    #[test]
    fn an_outage_is_told_once_and_its_end_too() {
        let (acks, mut told) = Acks::channel();
        let (reports, lease, start) = (Reports::default(), Lease::unlimited(), Instant::now());
        let mut patience = Patience::new(acks);
        reports.note_trouble(Code::AllBrokersDown, "1/1 brokers are down");
        let mut look = |seconds, sent| {
            patience.look_at(&reports, &lease, sent, start + Duration::from_secs(seconds)).expect("goes on");
            told.try_next()
        };

        assert_eq!(look(1, 0), None);
        assert_eq!(look(2, 5), None);
        assert_eq!(look(60, 5), Some(Ack::Stalled(Some("1/1 brokers are down".to_owned()))));
        assert_eq!(look(61, 5), None);
        reports.count_delivered(1.into());
        assert_eq!(look(62, 5), Some(Ack::Stalled(None)));
    }

    #[test]
    fn refused_credentials_end_the_session_after_a_while() {
        let (acks, _told) = Acks::channel();
        let (reports, lease, start) = (Reports::default(), Lease::unlimited(), Instant::now());
        let mut patience = Patience::new(acks);
        reports.note_trouble(Code::Authentication, "invalid credentials");

        assert!(patience.look_at(&reports, &lease, 1, start + Duration::from_secs(9)).is_ok());
        assert!(patience.look_at(&reports, &lease, 1, start + Duration::from_secs(20)).is_err());
    }
}
