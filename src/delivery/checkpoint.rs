//! Decides when a sink's checkpoint is written, and to what.
//!
//! Invariants (P5, P6): what is written is never beyond the acknowledged prefix and never before what was written; it is due
//! after 1,000 events or 250 ms, and while 2,000 are acknowledged and not written nothing more is offered, so that a slow
//! store cannot make the repeated suffix long. A walk ends in the very write that reaches its S. Does no I/O; time is passed in.

use std::time::Duration;

use catalog_bridge_api::{JsonText, Offset};
use tokio::time::Instant;

use crate::store::{Checkpoint, CheckpointMove};

const EVENTS_MAX: u64 = 1_000;
/// One interval that is being written, and the next.
const UNWRITTEN_MAX: u64 = 2 * EVENTS_MAX;
const DELAY: Duration = Duration::from_millis(250);

/// Where a sink stands in the store, and what is to be written next.
#[derive(Debug, Clone)]
pub(super) struct Position {
    pub(super) epoch: u64,
    pub(super) generation: u64,
    pub(super) offset: Offset,
    pub(super) walk: Option<Offset>,
    pub(super) walk_removals_above: Option<Offset>,
    /// What the connector keeps, as of the last report.
    pub(super) connector_state: Option<JsonText>,
    prefix: Offset,
    /// Messages of the acknowledged prefix since the last write.
    acknowledged: u64,
    /// How many of them are in the move that is being written.
    moving: u64,
    state_changed: bool,
    dirty_since: Option<Instant>,
}

impl Position {
    /// As the row says.
    pub(super) fn of(row: &Checkpoint) -> Self {
        Position {
            epoch: row.epoch,
            generation: row.generation,
            offset: row.offset,
            walk: row.walk,
            walk_removals_above: row.walk_removals_above,
            connector_state: row.connector_state.clone(),
            prefix: row.offset,
            acknowledged: 0,
            moving: 0,
            state_changed: false,
            dirty_since: None,
        }
    }

    /// Everything up to `prefix` is done, with so many messages more than at the last call.
    pub(super) fn reached(&mut self, prefix: Offset, acknowledged: u64, now: Instant) {
        self.acknowledged += acknowledged;
        if prefix > self.prefix {
            self.prefix = prefix;
            self.dirty_since.get_or_insert(now);
        }
    }

    /// The connector wants this kept.
    pub(super) fn remember(&mut self, state: JsonText, now: Instant) {
        self.connector_state = Some(state);
        self.state_changed = true;
        self.dirty_since.get_or_insert(now);
    }

    /// Up to where everything is done, written or not.
    pub(super) fn prefix(&self) -> Offset {
        self.prefix
    }

    /// True while more may be offered.
    pub(super) fn has_room(&self) -> bool {
        self.acknowledged < UNWRITTEN_MAX
    }

    /// When the next write is due at the latest; `None` when there is nothing to write.
    pub(super) fn due(&self) -> Option<Instant> {
        let since = self.dirty_since?;
        Some(if self.acknowledged >= EVENTS_MAX { since } else { since + DELAY })
    }

    /// What to write; call [`Position::written`] when it was.
    pub(super) fn next_move(&mut self) -> Option<CheckpointMove> {
        self.dirty_since?;
        self.moving = self.acknowledged;
        let walk = self.walk.filter(|at| self.prefix < *at);
        Some(CheckpointMove {
            epoch: self.epoch,
            generation: self.generation,
            offset: self.prefix,
            walk,
            walk_removals_above: self.walk_removals_above.filter(|_| walk.is_some()),
            connector_state: self.connector_state.clone().filter(|_| self.state_changed),
        })
    }

    /// The move back to what the destination still holds. A walk goes on from there.
    pub(super) fn back_to(&self, kept: Offset) -> CheckpointMove {
        CheckpointMove {
            epoch: self.epoch,
            generation: self.generation,
            offset: kept,
            walk: self.walk,
            walk_removals_above: self.walk_removals_above,
            connector_state: None,
        }
    }

    /// This move is stored; more may have come meanwhile.
    pub(super) fn written(&mut self, stored: &CheckpointMove, now: Instant) {
        self.offset = stored.offset;
        self.walk = stored.walk;
        self.walk_removals_above = stored.walk_removals_above;
        self.acknowledged -= std::mem::take(&mut self.moving);
        if stored.connector_state == self.connector_state {
            self.state_changed = false;
        }
        self.dirty_since = (self.prefix > self.offset || self.state_changed).then_some(now);
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::store::ConsumerKind;

    fn row(offset: u64, walk: Option<u64>) -> Checkpoint {
        Checkpoint {
            kind: ConsumerKind::Sink,
            name: "orders".to_owned(),
            offset: offset.into(),
            source_position: None,
            walk: walk.map(Offset::new),
            walk_removals_above: walk.map(|_| 3.into()),
            connector_state: None,
            owner: None,
            epoch: 4,
            lease_expires_at: None,
            generation: 2,
            fingerprint: None,
            paused: false,
            expired: false,
            commands: 0,
            status: None,
            updated_at: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_write_is_due_after_a_thousand_events_or_a_quarter_second() {
        let now = Instant::now();
        let mut position = Position::of(&row(10, None));
        assert_eq!(position.due(), None);
        assert!(position.next_move().is_none());

        position.reached(11.into(), 1, now);
        assert_eq!(position.due(), Some(now + DELAY));
        position.reached(1_010.into(), 999, now);
        assert_eq!(position.due(), Some(now));

        let stored = position.next_move().expect("dirty");
        position.reached(1_011.into(), 1, now);
        position.written(&stored, now);
        assert_eq!(position.offset, 1_010.into());
        assert_eq!(position.due(), Some(now + DELAY));
    }

    #[test]
    fn what_is_acknowledged_and_not_written_is_bounded() {
        let now = Instant::now();
        let mut position = Position::of(&row(0, None));
        position.reached(1_500.into(), 1_500, now);
        let first = position.next_move().expect("dirty");
        position.reached(2_000.into(), 500, now);
        assert!(!position.has_room());

        position.written(&first, now);

        assert!(position.has_room());
        position.reached(3_499.into(), 1_499, now);
        assert!(position.has_room());
        position.reached(3_500.into(), 1, now);
        assert!(!position.has_room());
    }

    #[test]
    fn a_walk_ends_in_the_write_that_reaches_it() {
        let mut position = Position::of(&row(0, Some(9)));

        position.reached(8.into(), 1, Instant::now());
        let within = position.next_move().expect("dirty");
        assert_eq!((within.walk, within.walk_removals_above), (Some(9.into()), Some(3.into())));

        position.reached(9.into(), 1, Instant::now());
        let end = position.next_move().expect("dirty");
        assert_eq!((end.walk, end.walk_removals_above), (None, None));
    }

    #[test]
    fn the_connectors_state_is_written_once_and_with_the_prefix() {
        let now = Instant::now();
        let mut position = Position::of(&row(0, None));

        position.remember(JsonText::from_trusted("{\"a\":1}"), now);
        let stored = position.next_move().expect("dirty");
        assert_eq!(stored.connector_state, Some(JsonText::from_trusted("{\"a\":1}")));
        position.written(&stored, now);
        assert_eq!(position.due(), None);

        position.reached(1.into(), 1, now);
        assert_eq!(position.next_move().expect("dirty").connector_state, None);
    }
}
