//! Decides how far a sink's checkpoint may move.
//!
//! Invariants (P5, P6): `prefix()` is the largest offset with nothing unacknowledged at or below it, counted also over what the
//! view left out; it never goes back. Held are at most `events_max` offsets and `bytes_max` bytes (or one larger message).
//! Knows nothing of brokers, SQL or clocks.

use std::collections::VecDeque;

use catalog_bridge_api::Offset;

/// How much may be unacknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowLimits {
    pub(super) events_max: usize,
    pub(super) bytes_max: usize,
}

/// The unacknowledged messages of one session, in offset order. `T` is what the driver remembers of each.
#[derive(Debug)]
pub(super) struct Window<T> {
    limits: WindowLimits,
    slots: VecDeque<Slot<T>>,
    unacknowledged: usize,
    bytes: usize,
    /// Messages that joined the acknowledged prefix and were not yet asked for.
    completed: u64,
    /// Everything up to here was offered or passed over.
    reached: Offset,
}

#[derive(Debug)]
struct Slot<T> {
    offset: Offset,
    bytes: usize,
    state: SlotState<T>,
}

#[derive(Debug)]
enum SlotState<T> {
    /// Not yet given to the session: the key gate holds it.
    Held(T),
    /// With the session.
    Sent(T),
    Acknowledged,
}

impl<T> Window<T> {
    /// An empty window after `checkpoint`.
    pub(super) fn new(checkpoint: Offset, limits: WindowLimits) -> Self {
        Window { limits, slots: VecDeque::new(), unacknowledged: 0, bytes: 0, completed: 0, reached: checkpoint }
    }

    /// True while one more message may come in. Acknowledged ones behind a gap count too: they may be repeated.
    pub(super) fn has_room(&self) -> bool {
        self.slots.is_empty() || (self.slots.len() < self.limits.events_max && self.bytes < self.limits.bytes_max)
    }

    /// Takes a message in, not yet sent. Offsets only ascend.
    pub(super) fn hold(&mut self, offset: Offset, bytes: usize, note: T) {
        debug_assert!(offset > self.reached, "{offset} comes after {}", self.reached);
        self.slots.push_back(Slot { offset, bytes, state: SlotState::Held(note) });
        self.unacknowledged += 1;
        self.bytes += bytes;
        self.reached = offset;
    }

    /// The session has it from now on.
    pub(super) fn sent(&mut self, offset: Offset) {
        let Some(slot) = self.slot(offset) else { return };
        slot.state = match std::mem::replace(&mut slot.state, SlotState::Acknowledged) {
            SlotState::Held(note) => SlotState::Sent(note),
            other => other,
        };
    }

    /// Nothing up to `offset` beyond what was held needs delivery.
    pub(super) fn pass(&mut self, offset: Offset) {
        self.reached = self.reached.max(offset);
    }

    /// One sent message is durable. Its note, unless it was not with the session.
    pub(super) fn acknowledge(&mut self, offset: Offset) -> Option<T> {
        let slot = self.slot(offset)?;
        let note = acknowledge_slot(slot)?;
        self.unacknowledged -= 1;
        self.advance();
        Some(note)
    }

    /// Every sent message up to `offset` is durable; their notes in offset order.
    pub(super) fn acknowledge_up_to(&mut self, offset: Offset) -> Vec<(Offset, T)> {
        let end = self.slots.partition_point(|slot| slot.offset <= offset);
        let mut notes = Vec::new();
        for slot in self.slots.range_mut(..end) {
            if let Some(note) = acknowledge_slot(slot) {
                notes.push((slot.offset, note));
            }
        }
        self.unacknowledged -= notes.len();
        self.advance();
        notes
    }

    /// Where the checkpoint may be: the end of the acknowledged prefix.
    pub(super) fn prefix(&self) -> Offset {
        // Between two slots lies only what was passed over.
        self.slots.front().map_or(self.reached, |first| Offset::new(first.offset.get() - 1))
    }

    /// How many messages joined the acknowledged prefix since the last call.
    pub(super) fn take_completed(&mut self) -> u64 {
        std::mem::take(&mut self.completed)
    }

    /// What is remembered of the first unacknowledged message.
    pub(super) fn first(&self) -> Option<&T> {
        match &self.slots.front()?.state {
            SlotState::Held(note) | SlotState::Sent(note) => Some(note),
            SlotState::Acknowledged => None,
        }
    }

    /// Messages that are not acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    fn slot(&mut self, offset: Offset) -> Option<&mut Slot<T>> {
        let index = self.slots.binary_search_by_key(&offset, |slot| slot.offset).ok()?;
        self.slots.get_mut(index)
    }

    fn advance(&mut self) {
        while let Some(Slot { state: SlotState::Acknowledged, bytes, .. }) = self.slots.front() {
            self.bytes -= bytes;
            self.completed += 1;
            self.slots.pop_front();
        }
    }
}

fn acknowledge_slot<T>(slot: &mut Slot<T>) -> Option<T> {
    match std::mem::replace(&mut slot.state, SlotState::Acknowledged) {
        SlotState::Sent(note) => Some(note),
        held @ SlotState::Held(_) => {
            slot.state = held;
            None
        }
        SlotState::Acknowledged => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: WindowLimits = WindowLimits { events_max: 8, bytes_max: 1_000 };

    fn sent(offsets: &[u64]) -> Window<()> {
        let mut window = Window::new(Offset::ZERO, LIMITS);
        for offset in offsets {
            window.hold((*offset).into(), 10, ());
            window.sent((*offset).into());
        }
        window
    }

    #[test]
    fn prefix_stops_before_the_first_gap() {
        let mut window = sent(&[1, 2, 3]);

        window.acknowledge(1.into());
        window.acknowledge(3.into());
        assert_eq!((window.prefix(), window.take_completed()), (1.into(), 1));

        window.acknowledge(2.into());
        assert_eq!((window.prefix(), window.take_completed()), (3.into(), 2));
    }

    #[test]
    fn prefix_covers_what_the_view_left_out() {
        let mut window = sent(&[5]);
        window.pass(9.into());
        assert_eq!(window.prefix(), 4.into());

        window.acknowledge(5.into());

        assert_eq!(window.prefix(), 9.into());
    }

    #[test]
    fn what_the_session_never_got_cannot_be_acknowledged() {
        let mut window = sent(&[1]);
        window.hold(2.into(), 10, ());

        assert_eq!(window.acknowledge_up_to(2.into()).len(), 1);
        assert_eq!(window.acknowledge(2.into()), None);

        assert_eq!(window.prefix(), 1.into());
    }

    #[test]
    fn a_message_larger_than_the_window_still_fits_alone() {
        let mut window = Window::new(Offset::ZERO, LIMITS);
        assert!(window.has_room());
        window.hold(1.into(), 5_000, ());
        assert!(!window.has_room());
    }

    proptest! {
        /// Promise P5: whatever the order of acknowledgements, nothing at or below the prefix is unacknowledged, and the prefix
        /// is as far as it can be.
        #[test]
        fn prefix_is_exact(
            steps in prop::collection::vec((0_u8..5, 1_u64..4, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut window = Window::new(Offset::ZERO, LIMITS);
            let (mut reached, mut open, mut held) = (0, BTreeSet::new(), BTreeSet::new());
            for (step, gap, pick) in steps {
                match step {
                    0 if window.has_room() => {
                        reached += gap;
                        window.hold(reached.into(), 100, ());
                        open.insert(reached);
                        held.insert(reached);
                    }
                    1 if !held.is_empty() => {
                        let offset = *held.iter().nth(pick.index(held.len())).expect("not empty");
                        window.sent(offset.into());
                        held.remove(&offset);
                    }
                    2 if !open.is_empty() => {
                        let offset = *open.iter().nth(pick.index(open.len())).expect("not empty");
                        let was_sent = window.acknowledge(offset.into()).is_some();
                        prop_assert_eq!(was_sent, !held.contains(&offset));
                        if was_sent {
                            open.remove(&offset);
                        }
                    }
                    3 => {
                        let offset = pick.index(reached as usize + 2) as u64;
                        window.acknowledge_up_to(offset.into());
                        open.retain(|open| *open > offset || held.contains(open));
                    }
                    4 => {
                        reached += gap;
                        window.pass(reached.into());
                    }
                    _ => {}
                }
                let expected = open.first().map_or(reached, |first| first - 1);
                prop_assert_eq!(window.prefix(), Offset::new(expected));
                prop_assert_eq!(window.unacknowledged(), open.len());
                prop_assert!(window.slots.len() <= LIMITS.events_max);
            }
        }
    }
}
