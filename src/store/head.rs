//! What this process knows of the log's state, and who waits for it to move.
//!
//! Keeps P1 for watchers: under one log id the head, `oldest` and the redaction counter never go back, and a log id that was
//! left never comes again. Knows nothing of where the state was learned (a local append, a poll, a notification).

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

use super::LogState;

/// The watched state. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    sender: Arc<watch::Sender<LogState>>,
    /// The ids that the log had before; a few in a process's life.
    left: Arc<Mutex<Vec<Uuid>>>,
}

impl Head {
    /// Begins with a state that was read from the store.
    pub(crate) fn new(state: LogState) -> Self {
        Head { sender: Arc::new(watch::Sender::new(state)), left: Arc::default() }
    }

    /// What is known now; taken before a read of the store, to judge what it finds.
    pub(crate) fn seen(&self) -> Seen {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Seen { state: self.sender.borrow().clone(), left }
    }

    /// Follows it.
    pub(crate) fn subscribe(&self) -> watch::Receiver<LogState> {
        self.sender.subscribe()
    }

    /// Takes a state that was committed. States may arrive out of order: of one log id each number only grows, and a read
    /// that began before the log got a new id does not bring the old one back.
    pub(crate) fn publish(&self, state: &LogState) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if left.contains(&state.log_id) {
            return;
        }
        self.sender.send_if_modified(|known| {
            let mut next = state.clone();
            if known.log_id == state.log_id {
                next.head = known.head.max(state.head);
                next.oldest = known.oldest.max(state.oldest);
                next.redactions = known.redactions.max(state.redactions);
            } else {
                left.push(known.log_id);
            }
            let is_news = next != *known;
            *known = next;
            is_news
        });
    }
}

/// What this process knew before it looked at the store.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    state: LogState,
    left: Vec<Uuid>,
}

impl Seen {
    /// Whether a state found afterwards is older than what was seen before: then the store was restored from a copy. Of a
    /// store that only goes forward nothing committed is ever taken back.
    pub(crate) fn is_ahead_of(&self, found: &LogState) -> bool {
        let seen = &self.state;
        if seen.log_id != found.log_id {
            return self.left.contains(&found.log_id);
        }
        found.head < seen.head || found.oldest < seen.oldest || found.redactions < seen.redactions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catalog_bridge_api::Offset;

    fn state(log: u128, head: u64) -> LogState {
        LogState { log_id: Uuid::from_u128(log), head: Offset::new(head), oldest: Offset::ZERO, redactions: 0 }
    }

    /// P1.
    #[test]
    fn head_never_goes_back_under_one_log_id() {
        let head = Head::new(state(1, 5));

        head.publish(&state(1, 3));
        assert_eq!(head.seen().state, state(1, 5));
        head.publish(&state(1, 7));
        assert_eq!(head.seen().state, state(1, 7));
        head.publish(&state(2, 1));
        head.publish(&state(1, 9));
        assert_eq!(head.seen().state, state(2, 1));
    }

    #[test]
    fn a_store_that_went_back_was_restored() {
        let head = Head::new(state(1, 5));
        assert!(!head.seen().is_ahead_of(&state(1, 5)));
        assert!(!head.seen().is_ahead_of(&state(1, 6)));
        assert!(!head.seen().is_ahead_of(&state(2, 1)), "another replica gave a new id");
        assert!(head.seen().is_ahead_of(&state(1, 4)));
        assert!(head.seen().is_ahead_of(&LogState { redactions: 0, ..state(1, 4) }));

        let before = head.seen();
        head.publish(&state(2, 1));

        assert!(head.seen().is_ahead_of(&state(1, 9)), "an id that was left is back");
        assert!(!before.is_ahead_of(&state(1, 9)), "a read from before the change is only late");
    }
}
