//! The state that a destination's reader ends with.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use catalog_bridge_api::{Event, EventType, Offset};

use crate::Delivered;

/// Folding the deliveries by key, the last one wins, gives what folding the log gives: a misorder that repetitions hide shows
/// here. Removed entities may be missing altogether, as after a walk.
pub fn check_last_writer(events: &[Event], delivered: &[Delivered]) -> Result<()> {
    let mut held: BTreeMap<&str, Offset> = BTreeMap::new();
    for message in delivered {
        held.insert(&message.key, message.offset);
    }
    let mut last: BTreeMap<String, &Event> = BTreeMap::new();
    for event in events {
        last.insert(event.entity_ref.to_string(), event);
    }
    for (key, offset) in &held {
        let event = last.get(*key).with_context(|| format!("key {key} is none of the log's"))?;
        ensure!(
            event.offset == *offset,
            "key {key}: the last message is offset {offset}, the log's last event is {}",
            event.offset
        );
    }
    for (key, event) in last {
        let is_there = held.contains_key(key.as_str());
        ensure!(
            is_there || event.event_type == EventType::Removed,
            "key {key} lives since offset {} and was not delivered",
            event.offset
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let event = |offset: u64, name: &str, kind: &str| {
            serde_json::from_value(serde_json::json!({
                "offset": offset, "type": kind, "entityRef": format!("component:default/{name}"),
                "occurredAt": "2026-11-24T00:00:00Z", "recordedAt": "2026-11-24T00:00:00Z", "cause": "ingest",
            }))
            .expect("an event")
        };
        vec![
            event(1, "a", "added"),
            event(2, "a", "updated"),
            event(3, "b", "added"),
            event(4, "b", "removed"),
            event(5, "c", "added"),
        ]
    }

    fn holds(list: &[(u64, &str)]) -> Result<()> {
        let message = |(offset, name): &(u64, &str)| Delivered {
            offset: (*offset).into(),
            key: format!("component:default/{name}"),
            generation: 1,
            bytes: Vec::new(),
        };
        check_last_writer(&events(), &list.iter().map(message).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_message_of_each_key_is_the_logs_last_event() {
        assert!(holds(&[(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c")]).is_ok());
        assert!(holds(&[(2, "a"), (5, "c")]).is_ok(), "what was removed may be missing");
        assert!(holds(&[(2, "a"), (1, "a"), (5, "c")]).is_err(), "an older state was written last");
        assert!(holds(&[(2, "a"), (3, "b"), (5, "c")]).is_err(), "what was removed lives on");
        assert!(holds(&[(2, "a")]).is_err(), "a live one is missing");
    }
}
