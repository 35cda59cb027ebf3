//! What both stores' rows decode to, and what both check of what they read.

use std::collections::HashMap;
use std::sync::Arc;

use catalog_bridge_api::{Cause, Changed, EntityRef, EventType, JsonText, Offset, SourceName};

use super::page::Sized;
use super::{LogEntry, LogState, StoreError};

type Decoded<T> = Result<T, sqlx::Error>;

/// A ref as it was written.
pub(super) fn entity_ref(text: &str) -> Decoded<EntityRef> {
    EntityRef::parse(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// A source's name as it was written.
pub(super) fn source(text: &str) -> Decoded<SourceName> {
    SourceName::parse(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// A type by its name.
pub(super) fn event_type(text: &str) -> Decoded<EventType> {
    EventType::parse(text).ok_or_else(|| unknown("event type", text))
}

/// A cause by its name.
pub(super) fn cause(text: &str) -> Decoded<Cause> {
    Cause::parse(text).ok_or_else(|| unknown("cause", text))
}

/// `changed` as `NewEvent::changed_text` wrote it.
pub(super) fn changed(text: Option<&str>) -> Decoded<Option<Changed>> {
    text.map(serde_json::from_str).transpose().map_err(|error| sqlx::Error::Decode(error.into()))
}

/// A body; it was checked when it was written.
pub(super) fn body(text: Option<&str>) -> Option<JsonText> {
    text.map(JsonText::from_trusted)
}

fn unknown(what: &str, text: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("unknown {what} \"{text}\"").into())
}

impl LogState {
    /// Readers resume at `oldest` or above; a state is exact at `oldest` or above.
    pub(super) fn check_kept(&self, asked: Offset) -> Result<(), StoreError> {
        if asked < self.oldest {
            return Err(StoreError::Expired { asked, oldest: self.oldest, head: self.head });
        }
        Ok(())
    }

    /// Above `oldest` the log is complete: `rows` are after+1, after+2, … and there are some below head.
    pub(super) fn check_contiguous(&self, after: Offset, rows: &[Sized]) -> Result<(), StoreError> {
        let mut expected = after;
        for row in rows {
            expected = expected.next();
            if row.offset != expected {
                break;
            }
        }
        let is_contiguous = rows.last().map_or(after >= self.head, |row| row.offset == expected);
        if is_contiguous {
            return Ok(());
        }
        Err(StoreError::Unavailable {
            action: "read the log",
            source: format!("event {expected} is missing, though head is {} and oldest {}", self.head, self.oldest)
                .into(),
        })
    }
}

impl LogEntry {
    /// Gives each event the body of its predecessor, where that is among them and was not read for it.
    pub(super) fn lend_bodies(mut entries: Vec<LogEntry>) -> Vec<Arc<LogEntry>> {
        let bodies: HashMap<Offset, JsonText> =
            entries.iter().filter_map(|entry| Some((entry.event.offset, entry.event.entity.clone()?))).collect();
        for entry in &mut entries {
            if entry.previous_entity.is_none() {
                entry.previous_entity = entry.event.previous_offset.and_then(|previous| bodies.get(&previous).cloned());
            }
        }
        entries.into_iter().map(Arc::new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: u64, after: u64, offsets: &[u64], expected: bool) {
        let state =
            LogState { log_id: uuid::Uuid::nil(), head: Offset::new(head), oldest: Offset::ZERO, redactions: 0 };
        let rows: Vec<Sized> = offsets.iter().map(|offset| Sized { offset: Offset::new(*offset), bytes: 0 }).collect();
        assert_eq!(state.check_contiguous(Offset::new(after), &rows).is_ok(), expected, "{offsets:?}");
    }

    /// P1.
    #[test]
    fn a_gap_is_never_served() {
        check(5, 2, &[3, 4, 5], true);
        check(5, 2, &[3], true);
        check(5, 5, &[], true);
        check(5, 2, &[4, 5], false);
        check(5, 2, &[3, 5], false);
        check(5, 2, &[], false);
    }
}
