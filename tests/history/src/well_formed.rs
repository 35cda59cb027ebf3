//! Promises P1, P2 and P3 of a log that was read from the beginning.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use catalog_bridge_api::{EntityRef, Event, EventType, Offset};
use serde_json::Value;

/// What the catalog itself holds: the judge of a capture.
pub type Truth = BTreeMap<EntityRef, Value>;

/// Offsets are `after`+1, `after`+2, … with no gap (P1).
pub fn check_dense(after: Offset, events: &[Event]) -> Result<()> {
    let mut expected = after.next();
    for event in events {
        ensure!(
            event.offset == expected,
            "offset {} follows {}: a gap or a repetition",
            event.offset,
            expected.get() - 1
        );
        expected = expected.next();
    }
    Ok(())
}

/// Each ref goes added (updated)* removed (added …)*, `previousOffset` names the event before, and no update is without a
/// change (P2). The events must begin at the log's beginning.
pub fn check_well_formed(events: &[Event]) -> Result<()> {
    let mut last: BTreeMap<&EntityRef, &Event> = BTreeMap::new();
    for event in events {
        let before = last.insert(&event.entity_ref, event);
        let place = format!("offset {} ({} {})", event.offset, event.event_type.as_str(), event.entity_ref);
        match (before.map(|event| event.event_type), event.event_type) {
            (None | Some(EventType::Removed), EventType::Added) => {
                ensure!(event.previous_offset.is_none(), "{place}: added has a previousOffset");
                ensure!(event.entity.is_some(), "{place}: no entity");
            }
            (Some(EventType::Added | EventType::Updated), EventType::Updated) => {
                ensure!(event.previous_offset == before.map(|event| event.offset), "{place}: wrong previousOffset");
                let (Some(old), Some(new)) = (before.and_then(|event| event.entity.as_ref()), event.entity.as_ref())
                else {
                    bail!("{place}: no entity on one side");
                };
                ensure!(
                    serde_json::from_str::<Value>(old.as_str())? != serde_json::from_str::<Value>(new.as_str())?,
                    "{place}: changes nothing"
                );
            }
            (Some(EventType::Added | EventType::Updated), EventType::Removed) => {
                ensure!(event.previous_offset == before.map(|event| event.offset), "{place}: wrong previousOffset");
                ensure!(event.entity.is_none(), "{place}: removed carries an entity");
            }
            (was, _) => bail!("{place}: follows {was:?}"),
        }
    }
    Ok(())
}

/// The live entities after these events, begun from `from`.
pub fn live_state(from: Truth, events: &[Event]) -> Result<Truth> {
    let mut state = from;
    for event in events {
        match &event.entity {
            Some(entity) if event.event_type != EventType::Removed => {
                state.insert(event.entity_ref.clone(), serde_json::from_str(entity.as_str())?);
            }
            _ => {
                state.remove(&event.entity_ref);
            }
        }
    }
    Ok(state)
}
