//! Holds a message back while an earlier one of its lane is unacknowledged.
//!
//! Invariant (P5): of each lane at most one message is with the session, and they leave in the order in which they came. For
//! destinations that may store a later message after losing an earlier one (no prefix property, BROKERS L1). The window
//! bounds what is held. Knows nothing of brokers or clocks.

use std::collections::{HashMap, VecDeque};

use catalog_bridge_api::EntityRef;

/// What has to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GateKind {
    /// Nothing: the connector is `prefix_safe`.
    Open,
    /// Messages of one entity.
    Entity,
    /// All messages.
    Stream,
}

/// The gate; `T` is what it holds.
#[derive(Debug)]
pub(super) struct KeyGate<T> {
    kind: GateKind,
    /// The lanes with a message at the session, and what waits behind it. For `Stream` the one lane is `None`.
    lanes: HashMap<Option<EntityRef>, VecDeque<T>>,
}

impl<T> KeyGate<T> {
    pub(super) fn new(kind: GateKind) -> Self {
        KeyGate { kind, lanes: HashMap::new() }
    }

    /// Gives the item back when it may go now, else holds it.
    pub(super) fn admit(&mut self, entity_ref: &EntityRef, item: T) -> Option<T> {
        let Some(lane) = self.lane(entity_ref) else { return Some(item) };
        match self.lanes.get_mut(&lane) {
            Some(waiting) => {
                waiting.push_back(item);
                None
            }
            None => {
                self.lanes.insert(lane, VecDeque::new());
                Some(item)
            }
        }
    }

    /// The lane's message at the session was acknowledged: the next one may go.
    pub(super) fn settle(&mut self, entity_ref: &EntityRef) -> Option<T> {
        let lane = self.lane(entity_ref)?;
        let next = self.lanes.get_mut(&lane)?.pop_front();
        if next.is_none() {
            self.lanes.remove(&lane);
        }
        next
    }

    fn lane(&self, entity_ref: &EntityRef) -> Option<Option<EntityRef>> {
        match self.kind {
            GateKind::Open => None,
            GateKind::Entity => Some(Some(entity_ref.clone())),
            GateKind::Stream => Some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(name: &str) -> EntityRef {
        EntityRef::from_parts("component", "default", name).expect("valid")
    }

    #[test]
    fn entities_wait_only_for_themselves() {
        let mut gate = KeyGate::new(GateKind::Entity);
        let (a, b) = (entity("a"), entity("b"));

        assert_eq!(gate.admit(&a, 1), Some(1));
        assert_eq!(gate.admit(&a, 2), None);
        assert_eq!(gate.admit(&b, 3), Some(3));
        assert_eq!(gate.admit(&a, 4), None);

        assert_eq!(gate.settle(&a), Some(2));
        assert_eq!(gate.settle(&b), None);
        assert_eq!(gate.settle(&a), Some(4));
        assert_eq!(gate.settle(&a), None);
        assert_eq!(gate.admit(&a, 5), Some(5));
    }

    #[test]
    fn a_stream_goes_one_by_one() {
        let mut gate = KeyGate::new(GateKind::Stream);

        assert_eq!(gate.admit(&entity("a"), 1), Some(1));
        assert_eq!(gate.admit(&entity("b"), 2), None);

        assert_eq!(gate.settle(&entity("a")), Some(2));
    }

    #[test]
    fn an_open_gate_holds_nothing() {
        let mut gate = KeyGate::new(GateKind::Open);
        assert_eq!(gate.admit(&entity("a"), 1), Some(1));
        assert_eq!(gate.admit(&entity("a"), 2), Some(2));
        assert_eq!(gate.settle(&entity("a")), None);
    }
}
