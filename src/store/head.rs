//! What this process knows of the log's state, and who waits for it to move.
//!
//! Keeps P1 for watchers: under one log id the head, `oldest` and the redaction counter never go back. Knows nothing of
//! where the state was learned (a local append, a poll, a notification).

use std::sync::Arc;

use tokio::sync::watch;

use super::LogState;

/// The watched state. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    sender: Arc<watch::Sender<LogState>>,
}

impl Head {
    /// Begins with a state that was read from the store.
    pub(crate) fn new(state: LogState) -> Self {
        Head { sender: Arc::new(watch::Sender::new(state)) }
    }

    /// The last known state.
    pub(crate) fn current(&self) -> LogState {
        self.sender.borrow().clone()
    }

    /// Follows it.
    pub(crate) fn subscribe(&self) -> watch::Receiver<LogState> {
        self.sender.subscribe()
    }

    /// Takes a state that was committed. States may arrive out of order: of one log id each number only grows. A new log id
    /// replaces everything, so it must come from whoever gave it or from a read of the store.
    pub(crate) fn publish(&self, state: &LogState) {
        self.sender.send_if_modified(|known| {
            let next = if known.log_id == state.log_id {
                LogState {
                    log_id: known.log_id,
                    head: known.head.max(state.head),
                    oldest: known.oldest.max(state.oldest),
                    redactions: known.redactions.max(state.redactions),
                }
            } else {
                state.clone()
            };
            let moved = next != *known;
            *known = next;
            moved
        });
    }
}

#[cfg(test)]
mod tests {
    use catalog_bridge_api::Offset;
    use uuid::Uuid;

    use super::*;

    fn state(log: u128, head: u64) -> LogState {
        LogState { log_id: Uuid::from_u128(log), head: Offset::new(head), oldest: Offset::ZERO, redactions: 0 }
    }

    /// P1.
    #[test]
    fn head_never_goes_back_under_one_log_id() {
        let head = Head::new(state(1, 5));

        head.publish(&state(1, 3));
        assert_eq!(head.current(), state(1, 5));
        head.publish(&state(1, 7));
        assert_eq!(head.current(), state(1, 7));
        head.publish(&state(2, 1));
        assert_eq!(head.current(), state(2, 1));
    }
}
