//! What both stores' walks and states have in common.

use std::sync::Arc;

use catalog_bridge_api::EventType;

use super::LogEntry;

/// Events that one step of a walk looks at: a page of a walk over much overwritten history is read in several short steps.
pub(super) const STEP_EVENTS: i64 = 20_000;
/// Refs that one step of a state looks at.
pub(super) const STEP_REFS: i64 = 1_000;

/// A walk tells a live entity as `added`: its receiver holds nothing, or what an earlier delivery left.
pub(super) fn as_added(entries: Vec<Arc<LogEntry>>) -> Vec<Arc<LogEntry>> {
    entries
        .into_iter()
        .map(|entry| match entry.event.event_type {
            EventType::Added | EventType::Removed => entry,
            EventType::Updated => {
                let mut event = entry.event.clone();
                event.event_type = EventType::Added;
                event.changed = None;
                event.previous_offset = None;
                Arc::new(LogEntry { event, previous_entity: None })
            }
        })
        .collect()
}
